package bridge

// A session: one connection with a peer after the hellos, and the packets on it.
//
// Outbound, there is no goroutine that sends: who has something to send posts it and calls kick. If nobody is
// sending, the caller does it, with all that has gathered meanwhile; else the one that is at it does that,
// too. So a packet goes from the TUN to the socket in one goroutine, on one processor, and many of them in one
// system call. Nothing of that waits: where the kernel takes no more, the session's own goroutine
// waits until it does, and the queue does what queues do. That goroutine also takes over
// when there is no end to it, and sends the pings.
//
// Inbound, the reader takes frames from its read buffer in place, filters, and writes them to the TUN
// from there; what goes on to another peer is copied.
//
// Buffers: who sends owns what it takes from the queue and frees it. The reader owns its read buffer for
// the life of the session; no slice of it outlives a frame.

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	batchBytes  = 64 << 10 // packets up to this size, and one more, are sent in one system call; fewer on slow paths
	recordBytes = 16 << 10 // largest TLS record
	directBytes = 4 << 10  // frames from this size on are encrypted where they are, others are gathered before
	readBytes   = 32 << 10 // what the reader has for frames, and when there are larger ones
	readMost    = 4 * largeBuffer
	readsSmall  = 64 // reads in a row that did not need that
	spentMost   = 6  // sixteenths of timing.records that the only session of a link waits for another one
	rounds      = 4  // batches that are sent in one go; then the session's own goroutine takes over
)

var reads = sync.Pool{New: func() any { return new([headroom + readMost]byte) }}

var batches = sync.Pool{New: func() any { return new(make([]byte, 0, recordBytes+frameHeader+maxPayload)) }}

type session struct {
	p        *peer
	conn     net.Conn // TLS, or gather
	raw      *gather
	accepted bool
	stream   int
	instance uint64        // of the peer's process; 0: not known
	ours     uint32        // features that we announced,
	theirs   uint32        // those of the peer,
	flags    uint32        // and those that both ends have
	largest  int           // payload that the peer reads
	born     time.Duration // in the bridge's time
	tun      atomic.Int32  // TUN queue that its packets are written to

	// What is to be sent. Any goroutine sets it and calls kick.
	mailbox mailbox
	posted  atomic.Int64 // bytes in the mailbox
	ping    atomic.Bool
	pong    atomic.Uint64 // token to be sent back; 0: none
	update  atomic.Bool   // our announcement changed
	free    atomic.Bool   // the kernel takes bytes again
	gone    atomic.Bool   // no longer a session of the peer

	// Who sends: the one that made work leave zero.
	work    atomic.Int32
	queue   queue
	blocked bool // the kernel takes no more: see free
	most    int  // bytes of a batch
	last    bool // nothing more will be sent
	icmp    limiter
	records int64 // TLS records that were sent, about
	renew   int64 // as soon as there are so many, the session is to be replaced

	short  bool     // the reader's: the path is
	onward *session // the reader's: has packets of ours to be sent

	waiting chan struct{} // tells the session's goroutine that it is blocked
	spent   chan struct{} // or that renew is reached
	more    chan struct{} // gives the session's goroutine the right to send

	rtt atomic.Int64 // nanoseconds, smoothed

	done  chan struct{}
	once  sync.Once
	cause error // why it ended; read after done
}

// newSession makes a session of a connection on which the hellos were exchanged; ours had flags.
func newSession(p *peer, conn net.Conn, raw *gather, accepted bool, stream int, flags uint32, h *hello) *session {
	s := &session{
		p: p, conn: conn, raw: raw, accepted: accepted, stream: stream, instance: h.instance, ours: flags, theirs: h.flags, flags: h.flags & flags,
		largest: maxFormerPayload, born: p.b.now(), most: batchBytes,
		queue: queue{stale: p.b.timing.stale, drops: &p.count.drops}, icmp: limiter{every: icmpInterval, burst: icmpBurst},
		waiting: make(chan struct{}, 1), spent: make(chan struct{}, 1), more: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if h.capable {
		s.largest = maxPayload
	}
	if s.renew = math.MaxInt64; !s.plain() {
		s.renew = p.b.timing.records/4*3 + rand.Int64N(p.b.timing.records/4) // not all sessions at the same time
	}
	// The first thing that is sent, before any packet: see flagKeepalive. It measures the round-trip time, too.
	s.ping.Store(s.flags&flagKeepalive != 0)
	return s
}

// plain tells whether the session is neither encrypted nor authenticated.
func (s *session) plain() bool {
	_, secure := s.conn.(*tls.Conn)
	return !secure
}

// run carries packets until the session ends. The caller has attached it to the peer.
func (s *session) run() {
	attended := make(chan struct{})
	go func() {
		defer close(attended)
		s.attend()
	}()
	s.close(s.read())
	<-attended
}

// close ends the session; cause of the first call counts. It does not wait for the peer: TLS would.
func (s *session) close(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.done)
		s.raw.Close()
	})
}

var (
	errSilent = errors.New("peer is silent")
	errStuck  = errors.New("peer does not read")
)

// attend does what needs waiting, until the end of the session.
func (s *session) attend() {
	var ping <-chan time.Time
	if s.flags&flagKeepalive != 0 {
		t := time.NewTicker(s.p.b.timing.ping)
		defer t.Stop()
		ping = t.C
	}
	spent := 0
	s.kick()
	for {
		select {
		case <-s.done:
			return
		case <-ping:
			s.ping.Store(true)
			s.kick()
		case <-s.spent:
			spent++
			s.p.retire(s, spent > spentMost)
			if s.gone.Load() { // the peer closes when it has read the last of it; it is not trusted to do so
				s.raw.SetReadDeadline(time.Now().Add(s.p.b.timing.silence))
			}
		case <-s.more:
			s.send()
		case <-s.waiting:
			err := s.raw.sendSome()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = errStuck
			}
			if err != nil {
				s.close(err)
				return
			}
			s.most = min(batchBytes, s.raw.adapt(s.p.b.now())) // nobody sends before it is free
			s.free.Store(true)
			s.kick()
		}
	}
}

// post leaves a packet for who sends next, and owns it from now on. A kick has to follow.
func (s *session) post(buf *buffer) {
	size, account := int64(len(buf.data)), &s.p.b.account
	if s.posted.Add(size) > int64(account.limit()) { // whoever sends is far behind
		s.posted.Add(-size)
		buf.free()
		s.p.count.drops.add(DropQueueFull)
		return
	}
	account.held.Add(size)
	s.mailbox.put(buf)
}

// kick sees to it that what was posted is sent.
func (s *session) kick() {
	if s.work.Add(1) == 1 {
		s.send()
	}
}

// push sends one batch, unless somebody else is sending; more: there is more, and the caller has to come back.
func (s *session) push() (more bool) {
	if s.work.Add(1) != 1 {
		return false
	}
	s.work.Store(1)
	idle, err := s.round()
	if err != nil {
		s.close(err)
		idle = true
	}
	if idle && s.work.CompareAndSwap(1, 0) {
		return false
	}
	s.work.Store(0) // who kicked meanwhile relies on us: we come back
	return true
}

// send sends until there is nothing to do. Only one goroutine at a time is here. When that takes long, the
// session's own goroutine goes on, which looks after other things in between.
func (s *session) send() {
	for range rounds {
		s.work.Store(1) // who kicks from now on makes it more
		idle, err := s.round()
		if err != nil {
			s.close(err)
			idle = true
		}
		if idle && s.work.CompareAndSwap(1, 0) {
			return
		}
	}
	s.more <- struct{}{} // has room: it is used by who has the right to send
	if s.gone.Load() {
		s.reclaim()
	}
}

// reclaim takes the right to send back that was given to the session's goroutine, which may have ended.
func (s *session) reclaim() {
	select {
	case <-s.more:
		s.send()
	default:
	}
}

// round sends one batch of what waits; idle: there is nothing more that could be sent now.
func (s *session) round() (idle bool, err error) {
	held := s.queue.bytes
	held += s.sort()
	idle, err = s.next()
	if left := held - s.queue.bytes; left > 0 {
		s.p.b.account.held.Add(-int64(left))
	}
	return idle, err
}

func (s *session) next() (idle bool, err error) {
	gone := s.gone.Load()
	if gone {
		s.p.resend(&s.queue)
	}
	if s.last || s.blocked && !s.free.Swap(false) {
		return true, nil
	}
	select {
	case <-s.done: // what waits goes to another session as soon as this one is gone
		return true, nil
	default:
	}
	more := !gone
	if more && !s.blocked { // else what is left of the last batch comes first
		if more, err = s.batch(); err != nil {
			return true, err
		}
	}
	done, err := s.raw.flush()
	switch s.blocked = !done; {
	case err != nil:
	case s.blocked:
		s.waiting <- struct{}{} // has room: it is used once until free
	case gone: // but not at its end yet: see retire
		s.last = true
		s.raw.closeWrite()
	case s.records >= s.renew:
		s.renew += s.p.b.timing.records / 16
		select {
		case s.spent <- struct{}{}:
		default:
		}
	}
	return !(more && done), err
}

// sort moves what was posted to the queue, and returns how many bytes that was.
func (s *session) sort() (moved int) {
	buf := s.mailbox.take()
	if buf == nil {
		return 0
	}
	limit := s.p.b.account.limit()
	for buf != nil {
		next := buf.next
		moved += len(buf.data)
		s.queue.push(buf, limit)
		buf = next
	}
	s.posted.Add(-int64(moved))
	return moved
}

// batch encrypts what is to be sent in one system call; more: there was more to it.
func (s *session) batch() (more bool, err error) {
	var (
		b       = s.p.b
		now     = b.now()
		frames  = batches.Get().(*[]byte) // they become a TLS record together
		total   int
		packets uint64
		bytes   uint64
	)
	*frames, err = s.control((*frames)[:0])
	if err == nil {
		err = s.full(frames)
	}
	for err == nil && total < s.most {
		buf := s.queue.pop(now)
		if buf == nil {
			break
		}
		total += buf.size
		var sent bool
		switch {
		case !s.takes(buf.vnet):
			if buf.vnet.gsoType != gsoNone { // what the segments' headers add
				total += int(buf.vnet.hdrLen) * buf.size / max(1, int(buf.vnet.gsoSize))
			}
			sent, err = s.cut(frames, buf)
		case buf.size > s.largest:
			s.tooBig(buf)
		case buf.size >= directBytes:
			if err = s.encrypt(frames); err == nil {
				err = s.write(buf.frame())
			}
			sent = true
		default:
			*frames = append(*frames, buf.frame()...)
			err = s.full(frames)
			sent = true
		}
		if sent {
			packets++
			bytes += uint64(buf.size)
		}
		buf.free()
	}
	if err == nil {
		err = s.encrypt(frames)
	}
	batches.Put(frames)
	if packets > 0 {
		s.p.count.txPackets.Add(packets)
		s.p.count.txBytes.Add(bytes)
	}
	return total >= s.most, err
}

// encrypt sends frames on their way, and empties it.
func (s *session) encrypt(frames *[]byte) error {
	if len(*frames) == 0 {
		return nil
	}
	err := s.write(*frames)
	*frames = (*frames)[:0]
	return err
}

// write encrypts frames, and counts the records: a key of AES-GCM is good for 2^24.5 (RFC 8446, 5.5), and Go never
// takes a new one by itself.
func (s *session) write(frames []byte) error {
	s.records += 1 + int64(len(frames)/recordBytes)
	_, err := s.conn.Write(frames)
	return err
}

// control appends pings, pongs and hellos that are due to frames.
func (s *session) control(frames []byte) ([]byte, error) {
	if s.ping.Load() && s.ping.Swap(false) {
		putHeader(frames[len(frames):len(frames)+frameHeader], 8, framePing)
		frames = binary.BigEndian.AppendUint64(frames[:len(frames)+frameHeader], uint64(s.p.b.now()))
	}
	if s.pong.Load() != 0 {
		putHeader(frames[len(frames):len(frames)+frameHeader], 8, framePong)
		frames = binary.BigEndian.AppendUint64(frames[:len(frames)+frameHeader], s.pong.Swap(0))
	}
	if s.update.Load() && s.update.Swap(false) {
		hello, _, err := s.p.hello(s.stream)
		return append(frames, hello...), err
	}
	return frames, nil
}

// takes tells whether the peer does what is left to be done on a packet.
func (s *session) takes(h vnetHeader) bool {
	switch {
	case h == (vnetHeader{}):
		return true
	case h.gsoType == gsoUDP:
		return s.flags&flagUSO != 0
	}
	return s.flags&flagOffload != 0
}

// cut does it for the peer: segments, and checksums. A packet that is too big is not sent.
func (s *session) cut(frames *[]byte, buf *buffer) (sent bool, err error) {
	if buf.vnet.gsoType == gsoNone {
		buf.vnet.complete(buf.packet())
		if buf.size > s.largest {
			s.tooBig(buf)
			return false, nil
		}
		*frames = append(*frames, buf.frame()...)
		return true, s.full(frames)
	}
	seg := buf.vnet.segments(buf.packet())
	for n := seg.size(); n > 0; n = seg.size() {
		if n > s.largest { // cannot be: the MTU of the TUN bounds it, unless somebody raised that
			s.p.count.drops.add(DropTooBig)
			return false, nil
		}
		start := len(*frames)
		*frames = (*frames)[:start+frameHeader+n]
		putHeader((*frames)[start:], n, framePacket)
		seg.next((*frames)[start+frameHeader:])
		if err := s.full(frames); err != nil {
			return true, err
		}
	}
	return true, nil
}

// full encrypts frames if they make a record.
func (s *session) full(frames *[]byte) error {
	if len(*frames) < recordBytes {
		return nil
	}
	return s.encrypt(frames)
}

// tooBig drops a packet that is larger than the peer reads, and tells its sender if that is on our side.
func (s *session) tooBig(buf *buffer) {
	b := s.p.b
	s.p.count.drops.add(DropTooBig)
	src, _, _ := addresses(buf.packet())
	if from, _ := b.table.Load().routes.Lookup(src); from != nil || !s.icmp.allow(b.now()) {
		return
	}
	msg := make([]byte, vnetSize+1280)
	if m := tooBig(msg[vnetSize:], buf.packet(), s.largest); m != nil {
		b.deliver(0, msg[:vnetSize+len(m)], vnetHeader{})
	}
}

// read takes frames until an error. With keepalive, silence is one.
func (s *session) read() error {
	var (
		small      = make([]byte, headroom+readBytes)
		large      *[headroom + readMost]byte // while large frames come
		buf        = small                    // one of them
		start, end = headroom, headroom       // what is not handled yet; before it is room for a virtio_net_hdr
		needless   int                        // reads since large was needed
		renewed    time.Duration
		silence    = s.p.b.timing.silence
	)
	for {
		if s.flags&flagKeepalive != 0 {
			if now := s.p.b.now(); (renewed == 0 || now-renewed > silence/8) && !s.gone.Load() { // not for each read: it has its cost
				renewed = now
				s.raw.SetReadDeadline(time.Now().Add(silence))
			}
		}
		n, err := s.conn.Read(buf[end:])
		if needless++; end+n > len(small)-recordBytes {
			needless = 0
		}
		end += n
		used, ferr := s.frames(buf[:end], start)
		if ferr != nil {
			return ferr
		}
		if err != nil && s.flags&flagKeepalive != 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			return errSilent
		}
		if err != nil {
			return err
		}
		switch start = used; {
		case start == end:
			start, end = headroom, headroom
			if large != nil && needless >= readsSmall { // an idle session comes here with each ping
				reads.Put(large)
				buf, large = small, nil
			}
		case len(buf)-end < recordBytes: // else the next record would come in parts
			old := buf
			if large == nil && (s.flags&flagOffload != 0 || end-start > readBytes/2) {
				large = reads.Get().(*[headroom + readMost]byte)
				buf = large[:]
			}
			end = headroom + copy(buf[headroom:], old[start:end])
			start = headroom
		}
	}
}

// frames handles the complete frames in b from start on, and returns where the rest starts. The bytes before
// a frame are no longer needed then: the virtio_net_hdr of its packet goes there.
func (s *session) frames(b []byte, start int) (used int, err error) {
	var packets, bytes uint64
	for err == nil {
		typ, payload, _, ok := cutFrame(b[start:])
		if !ok {
			break
		}
		var vnet vnetHeader
		if typ == frameOffload {
			if len(payload) == vnetSize && s.flags&flagOffload != 0 {
				parsed := parseVnet(payload)
				next, nextPayload, _, ok := cutFrame(b[start+frameHeader+vnetSize:])
				if !ok {
					break // it stays together with its packet
				}
				if next == framePacket {
					vnet, typ, payload = parsed, next, nextPayload
					start += frameHeader + vnetSize
				}
			}
		}
		start += frameHeader + len(payload)
		switch typ {
		case framePacket:
			packets++
			bytes += uint64(len(payload))
			s.receive(b[start-len(payload)-vnetSize:start], vnet)
		case framePing:
			if len(payload) == 8 {
				s.pong.Store(binary.BigEndian.Uint64(payload))
				s.kick()
			}
		case framePong:
			if len(payload) == 8 {
				s.measured(s.p.b.now() - time.Duration(binary.BigEndian.Uint64(payload)))
			}
		case frameHello:
			err = s.p.updated(payload)
		}
	}
	s.forward()
	if packets > 0 {
		s.p.count.rxPackets.Add(packets)
		s.p.count.rxBytes.Add(bytes)
	}
	return start, err
}

// measured smooths round-trip times as RFC 6298 does.
func (s *session) measured(rtt time.Duration) {
	if rtt <= 0 || rtt > time.Minute { // not an answer to a ping of ours
		return
	}
	if !s.short {
		s.short = s.raw.shorten()
	}
	old := s.rtt.Load()
	if old != 0 {
		rtt = time.Duration(old) + (rtt-time.Duration(old))/8
	}
	if s.rtt.Store(int64(rtt)); old == 0 {
		s.p.b.changed() // what was not known is news; that it changes is not
	}
}

// receive decides on a packet from the peer: to the TUN, on to another peer, or nowhere. The packet
// is the caller's, with room for a virtio_net_hdr before it.
func (s *session) receive(room []byte, vnet vnetHeader) {
	p, packet := s.p, room[vnetSize:]
	src, dst, ok := addresses(packet)
	if !ok || vnet != (vnetHeader{}) && !vnet.sound(packet) {
		p.count.drops.add(DropMalformed)
		return
	}
	routes := &p.b.table.Load().routes
	if owner, _ := routes.Lookup(src); owner != p {
		p.count.drops.add(DropSource)
		return
	}
	if packet[0] != 0x45 && rerouted(packet) { // dst is not where it ends: nobody could say whether that is allowed
		p.count.drops.add(DropDestination)
		return
	}
	if allowed, _ := p.filter.Load().ingress.Lookup(dst); allowed {
		if !p.b.deliver(int(s.tun.Load()), room, vnet) {
			p.count.drops.add(DropTUNWrite)
		}
		return
	}
	next, _ := routes.Lookup(dst)
	switch {
	case next == nil || next == p:
		p.count.drops.add(DropDestination)
	case !decrementTTL(packet):
		p.count.drops.add(DropTTL)
	case !next.reachable():
		next.count.drops.add(DropNotConnected)
	default:
		if to := next.send(copyBuffer(packet, vnet)); to != s.onward {
			s.forward()
			s.onward = to
		}
	}
}

// forward sends what was given to another peer.
func (s *session) forward() {
	if s.onward != nil {
		s.onward.kick()
		s.onward = nil
	}
}
