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
	batchBytes       = 64 << 10 // packets up to this size, and one more, are sent in one system call; fewer on slow paths
	recordBytes      = 16 << 10 // largest TLS record
	directBytes      = 4 << 10  // frames from this size on are encrypted where they are, others are gathered before
	smallReadBytes   = 32 << 10 // what the reader has for frames, and when there are larger ones
	maxReadBytes     = 4 * largeBuffer
	shrinkAfterReads = 64 // reads in a row that did not need that
	maxSpentSignals  = 6  // sixteenths of timing.records that the only session of a link waits for another one
	maxRounds        = 4  // batches that are sent in one go; then the session's own goroutine takes over
)

var readBuffers = sync.Pool{New: func() any { return new([headroom + maxReadBytes]byte) }}

var frameBuffers = sync.Pool{New: func() any { return new(make([]byte, 0, recordBytes+frameHeader+maxPayload)) }}

type session struct {
	peer       *peer
	conn       net.Conn // TLS, or gather
	raw        *batchConn
	accepted   bool
	stream     int
	instance   uint64        // of the peer's process; 0: not known
	ourFlags   uint32        // features that we announced,
	theirFlags uint32        // those of the peer,
	flags      uint32        // and those that both ends have
	maxPayload int           // payload that the peer reads
	startedAt  time.Duration // in the bridge's time
	tunQueue   atomic.Int32  // TUN queue that its packets are written to

	// What is to be sent. Any goroutine sets it and calls kick.
	mailbox  mailbox
	posted   atomic.Int64 // bytes in the mailbox
	ping     atomic.Bool
	pong     atomic.Uint64 // token to be sent back; 0: none
	update   atomic.Bool   // our announcement changed
	writable atomic.Bool   // the kernel takes bytes again
	detached atomic.Bool   // no longer a session of the peer

	// Who sends: the one that made work leave zero.
	kicks       atomic.Int32
	queue       queue
	blocked     bool // the kernel takes no more: see free
	batchLimit  int  // bytes of a batch
	finished    bool // nothing more will be sent
	icmp        limiter
	recordsSent int64 // TLS records that were sent, about
	renewAt     int64 // as soon as there are so many, the session is to be replaced

	shortPath bool     // the reader's: the path is
	forwardTo *session // the reader's: has packets of ours to be sent

	blockedSignal chan struct{} // tells the session's goroutine that it is blocked
	spentSignal   chan struct{} // or that renew is reached
	turn          chan struct{} // gives the session's goroutine the right to send

	rtt atomic.Int64 // nanoseconds, smoothed

	done  chan struct{}
	once  sync.Once
	cause error // why it ended; read after done
}

// newSession makes a session of a connection on which the hellos were exchanged; ours had flags.
func newSession(p *peer, conn net.Conn, raw *batchConn, accepted bool, stream int, flags uint32, h *hello) *session {
	s := &session{
		peer: p, conn: conn, raw: raw, accepted: accepted, stream: stream, instance: h.instance, ourFlags: flags, theirFlags: h.flags, flags: h.flags & flags,
		maxPayload: maxLegacyPayload, startedAt: p.b.now(), batchLimit: batchBytes,
		queue: queue{stale: p.b.timing.stale, drops: &p.counters.drops}, icmp: limiter{every: icmpInterval, burst: icmpBurst},
		blockedSignal: make(chan struct{}, 1), spentSignal: make(chan struct{}, 1), turn: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if h.capable {
		s.maxPayload = maxPayload
	}
	if s.renewAt = math.MaxInt64; !s.isUnencrypted() {
		s.renewAt = p.b.timing.maxRecords/4*3 + rand.Int64N(p.b.timing.maxRecords/4) // not all sessions at the same time
	}
	// The first thing that is sent, before any packet: see flagKeepalive. It measures the round-trip time, too.
	s.ping.Store(s.flags&flagKeepalive != 0)
	return s
}

// isUnencrypted tells whether the session is neither encrypted nor authenticated.
func (s *session) isUnencrypted() bool {
	_, secure := s.conn.(*tls.Conn)
	return !secure
}

// run carries packets until the session ends. The caller has attached it to the peer.
func (s *session) run() {
	attended := make(chan struct{})
	go func() {
		defer close(attended)
		s.serveEvents()
	}()
	s.close(s.readLoop())
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

// serveEvents does what needs waiting, until the end of the session.
func (s *session) serveEvents() {
	var ping <-chan time.Time
	if s.flags&flagKeepalive != 0 {
		t := time.NewTicker(s.peer.b.timing.ping)
		defer t.Stop()
		ping = t.C
	}
	spent := 0
	s.kickSender()
	for {
		select {
		case <-s.done:
			return
		case <-ping:
			s.ping.Store(true)
			s.kickSender()
		case <-s.spentSignal:
			spent++
			s.peer.retireSession(s, spent > maxSpentSignals)
			if s.detached.Load() { // the peer closes when it has read the last of it; it is not trusted to do so
				s.raw.SetReadDeadline(time.Now().Add(s.peer.b.timing.silence))
			}
		case <-s.turn:
			s.sendLoop()
		case <-s.blockedSignal:
			err := s.raw.awaitSend()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = errStuck
			}
			if err != nil {
				s.close(err)
				return
			}
			s.batchLimit = min(batchBytes, s.raw.adaptUnsent(s.peer.b.now())) // nobody sends before it is free
			s.writable.Store(true)
			s.kickSender()
		}
	}
}

// postPacket leaves a packet for who sends next, and owns it from now on. A kick has to follow.
func (s *session) postPacket(buf *buffer) {
	size, account := int64(len(buf.data)), &s.peer.b.budget
	if s.posted.Add(size) > int64(account.sessionLimit()) { // whoever sends is far behind
		s.posted.Add(-size)
		buf.free()
		s.peer.counters.drops.add(DropQueueFull)
		return
	}
	account.held.Add(size)
	s.mailbox.putPacket(buf)
}

// kickSender sees to it that what was posted is sent.
func (s *session) kickSender() {
	if s.kicks.Add(1) == 1 {
		s.sendLoop()
	}
}

// pushBatch sends one batch, unless somebody else is sending; more: there is more, and the caller has to come back.
func (s *session) pushBatch() (more bool) {
	if s.kicks.Add(1) != 1 {
		return false
	}
	s.kicks.Store(1)
	idle, err := s.sendRound()
	if err != nil {
		s.close(err)
		idle = true
	}
	if idle && s.kicks.CompareAndSwap(1, 0) {
		return false
	}
	s.kicks.Store(0) // who kicked meanwhile relies on us: we come back
	return true
}

// sendLoop sends until there is nothing to do. Only one goroutine at a time is here. When that takes long, the
// session's own goroutine goes on, which looks after other things in between.
func (s *session) sendLoop() {
	for range maxRounds {
		s.kicks.Store(1) // who kicks from now on makes it more
		idle, err := s.sendRound()
		if err != nil {
			s.close(err)
			idle = true
		}
		if idle && s.kicks.CompareAndSwap(1, 0) {
			return
		}
	}
	s.turn <- struct{}{} // has room: it is used by who has the right to send
	if s.detached.Load() {
		s.reclaimTurn()
	}
}

// reclaimTurn takes the right to send back that was given to the session's goroutine, which may have ended.
func (s *session) reclaimTurn() {
	select {
	case <-s.turn:
		s.sendLoop()
	default:
	}
}

// sendRound sends one batch of what waits; idle: there is nothing more that could be sent now.
func (s *session) sendRound() (idle bool, err error) {
	held := s.queue.bytes
	held += s.sortMailbox()
	idle, err = s.sendNext()
	if left := held - s.queue.bytes; left > 0 {
		s.peer.b.budget.held.Add(-int64(left))
	}
	return idle, err
}

func (s *session) sendNext() (idle bool, err error) {
	gone := s.detached.Load()
	if gone {
		s.peer.resendQueue(&s.queue)
	}
	if s.finished || s.blocked && !s.writable.Swap(false) {
		return true, nil
	}
	select {
	case <-s.done: // what waits goes to another session as soon as this one is gone
		return true, nil
	default:
	}
	more := !gone
	if more && !s.blocked { // else what is left of the last batch comes first
		if more, err = s.encodeBatch(); err != nil {
			return true, err
		}
	}
	done, err := s.raw.flushBatch()
	switch s.blocked = !done; {
	case err != nil:
	case s.blocked:
		s.blockedSignal <- struct{}{} // has room: it is used once until free
	case gone: // but not at its end yet: see retire
		s.finished = true
		s.raw.closeWrite()
	case s.recordsSent >= s.renewAt:
		s.renewAt += s.peer.b.timing.maxRecords / 16
		select {
		case s.spentSignal <- struct{}{}:
		default:
		}
	}
	return !(more && done), err
}

// sortMailbox moves what was posted to the queue, and returns how many bytes that was.
func (s *session) sortMailbox() (moved int) {
	buf := s.mailbox.takeAll()
	if buf == nil {
		return 0
	}
	limit := s.peer.b.budget.sessionLimit()
	for buf != nil {
		next := buf.next
		moved += len(buf.data)
		s.queue.pushPacket(buf, limit)
		buf = next
	}
	s.posted.Add(-int64(moved))
	return moved
}

// encodeBatch encrypts what is to be sent in one system call; more: there was more to it.
func (s *session) encodeBatch() (more bool, err error) {
	var (
		b       = s.peer.b
		now     = b.now()
		frames  = frameBuffers.Get().(*[]byte) // they become a TLS record together
		total   int
		packets uint64
		bytes   uint64
	)
	*frames, err = s.appendControl((*frames)[:0])
	if err == nil {
		err = s.flushFullRecord(frames)
	}
	for err == nil && total < s.batchLimit {
		buf := s.queue.popPacket(now)
		if buf == nil {
			break
		}
		total += buf.size
		var sent bool
		switch {
		case !s.peerAccepts(buf.vnet):
			if buf.vnet.gsoType != gsoNone { // what the segments' headers add
				total += int(buf.vnet.hdrLen) * buf.size / max(1, int(buf.vnet.gsoSize))
			}
			sent, err = s.segmentPacket(frames, buf)
		case buf.size > s.maxPayload:
			s.dropTooBig(buf)
		case buf.size >= directBytes:
			if err = s.flushFrames(frames); err == nil {
				err = s.writeFrames(buf.frame())
			}
			sent = true
		default:
			*frames = append(*frames, buf.frame()...)
			err = s.flushFullRecord(frames)
			sent = true
		}
		if sent {
			packets++
			bytes += uint64(buf.size)
		}
		buf.free()
	}
	if err == nil {
		err = s.flushFrames(frames)
	}
	frameBuffers.Put(frames)
	if packets > 0 {
		s.peer.counters.txPackets.Add(packets)
		s.peer.counters.txBytes.Add(bytes)
	}
	return total >= s.batchLimit, err
}

// flushFrames sends frames on their way, and empties it.
func (s *session) flushFrames(frames *[]byte) error {
	if len(*frames) == 0 {
		return nil
	}
	err := s.writeFrames(*frames)
	*frames = (*frames)[:0]
	return err
}

// writeFrames encrypts frames, and counts the records: a key of AES-GCM is good for 2^24.5 (RFC 8446, 5.5), and Go never
// takes a new one by itself.
func (s *session) writeFrames(frames []byte) error {
	s.recordsSent += 1 + int64(len(frames)/recordBytes)
	_, err := s.conn.Write(frames)
	return err
}

// appendControl appends pings, pongs and hellos that are due to frames.
func (s *session) appendControl(frames []byte) ([]byte, error) {
	if s.ping.Load() && s.ping.Swap(false) {
		putHeader(frames[len(frames):len(frames)+frameHeader], 8, framePing)
		frames = binary.BigEndian.AppendUint64(frames[:len(frames)+frameHeader], uint64(s.peer.b.now()))
	}
	if s.pong.Load() != 0 {
		putHeader(frames[len(frames):len(frames)+frameHeader], 8, framePong)
		frames = binary.BigEndian.AppendUint64(frames[:len(frames)+frameHeader], s.pong.Swap(0))
	}
	if s.update.Load() && s.update.Swap(false) {
		hello, _, err := s.peer.helloFrame(s.stream)
		return append(frames, hello...), err
	}
	return frames, nil
}

// peerAccepts tells whether the peer does what is left to be done on a packet.
func (s *session) peerAccepts(h vnetHeader) bool {
	switch {
	case h == (vnetHeader{}):
		return true
	case h.gsoType == gsoUDP:
		return s.flags&flagUSO != 0
	}
	return s.flags&flagOffload != 0
}

// segmentPacket does it for the peer: segments, and checksums. A packet that is too big is not sent.
func (s *session) segmentPacket(frames *[]byte, buf *buffer) (sent bool, err error) {
	if buf.vnet.gsoType == gsoNone {
		buf.vnet.fillChecksum(buf.packet())
		if buf.size > s.maxPayload {
			s.dropTooBig(buf)
			return false, nil
		}
		*frames = append(*frames, buf.frame()...)
		return true, s.flushFullRecord(frames)
	}
	seg := buf.vnet.splitPacket(buf.packet())
	for n := seg.nextSize(); n > 0; n = seg.nextSize() {
		if n > s.maxPayload { // cannot be: the MTU of the TUN bounds it, unless somebody raised that
			s.peer.counters.drops.add(DropTooBig)
			return false, nil
		}
		start := len(*frames)
		*frames = (*frames)[:start+frameHeader+n]
		putHeader((*frames)[start:], n, framePacket)
		seg.writeNext((*frames)[start+frameHeader:])
		if err := s.flushFullRecord(frames); err != nil {
			return true, err
		}
	}
	return true, nil
}

// flushFullRecord encrypts frames if they make a record.
func (s *session) flushFullRecord(frames *[]byte) error {
	if len(*frames) < recordBytes {
		return nil
	}
	return s.flushFrames(frames)
}

// dropTooBig drops a packet that is larger than the peer reads, and tells its sender if that is on our side.
func (s *session) dropTooBig(buf *buffer) {
	b := s.peer.b
	s.peer.counters.drops.add(DropTooBig)
	src, _, _ := parseAddresses(buf.packet())
	if from, _ := b.table.Load().routes.Lookup(src); from != nil || !s.icmp.allow(b.now()) {
		return
	}
	msg := make([]byte, vnetSize+1280)
	if m := icmpTooBig(msg[vnetSize:], buf.packet(), s.maxPayload); m != nil {
		b.writePacket(0, msg[:vnetSize+len(m)], vnetHeader{})
	}
}

// readLoop takes frames until an error. With keepalive, silence is one.
func (s *session) readLoop() error {
	var (
		small      = make([]byte, headroom+smallReadBytes)
		large      *[headroom + maxReadBytes]byte // while large frames come
		buf        = small                        // one of them
		start, end = headroom, headroom           // what is not handled yet; before it is room for a virtio_net_hdr
		needless   int                            // reads since large was needed
		renewed    time.Duration
		silence    = s.peer.b.timing.silence
	)
	for {
		if s.flags&flagKeepalive != 0 {
			if now := s.peer.b.now(); (renewed == 0 || now-renewed > silence/8) && !s.detached.Load() { // not for each read: it has its cost
				renewed = now
				s.raw.SetReadDeadline(time.Now().Add(silence))
			}
		}
		n, err := s.conn.Read(buf[end:])
		if needless++; end+n > len(small)-recordBytes {
			needless = 0
		}
		end += n
		used, ferr := s.handleFrames(buf[:end], start)
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
			if large != nil && needless >= shrinkAfterReads { // an idle session comes here with each ping
				readBuffers.Put(large)
				buf, large = small, nil
			}
		case len(buf)-end < recordBytes: // else the next record would come in parts
			old := buf
			if large == nil && (s.flags&flagOffload != 0 || end-start > smallReadBytes/2) {
				large = readBuffers.Get().(*[headroom + maxReadBytes]byte)
				buf = large[:]
			}
			end = headroom + copy(buf[headroom:], old[start:end])
			start = headroom
		}
	}
}

// handleFrames handles the complete frames in b from start on, and returns where the rest starts. The bytes before
// a frame are no longer needed then: the virtio_net_hdr of its packet goes there.
func (s *session) handleFrames(b []byte, start int) (used int, err error) {
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
			s.receivePacket(b[start-len(payload)-vnetSize:start], vnet)
		case framePing:
			if len(payload) == 8 {
				s.pong.Store(binary.BigEndian.Uint64(payload))
				s.kickSender()
			}
		case framePong:
			if len(payload) == 8 {
				s.updateRTT(s.peer.b.now() - time.Duration(binary.BigEndian.Uint64(payload)))
			}
		case frameHello:
			err = s.peer.receiveHello(payload)
		}
	}
	s.kickForwarded()
	if packets > 0 {
		s.peer.counters.rxPackets.Add(packets)
		s.peer.counters.rxBytes.Add(bytes)
	}
	return start, err
}

// updateRTT smooths round-trip times as RFC 6298 does.
func (s *session) updateRTT(rtt time.Duration) {
	if rtt <= 0 || rtt > time.Minute { // not an answer to a ping of ours
		return
	}
	if !s.shortPath {
		s.shortPath = s.raw.tuneShortPath()
	}
	old := s.rtt.Load()
	if old != 0 {
		rtt = time.Duration(old) + (rtt-time.Duration(old))/8
	}
	if s.rtt.Store(int64(rtt)); old == 0 {
		s.peer.b.notifyChanged() // what was not known is news; that it changes is not
	}
}

// receivePacket decides on a packet from the peer: to the TUN, on to another peer, or nowhere. The packet
// is the caller's, with room for a virtio_net_hdr before it.
func (s *session) receivePacket(room []byte, vnet vnetHeader) {
	p, packet := s.peer, room[vnetSize:]
	src, dst, ok := parseAddresses(packet)
	if !ok || vnet != (vnetHeader{}) && !vnet.validateFor(packet) {
		p.counters.drops.add(DropMalformed)
		return
	}
	routes := &p.b.table.Load().routes
	if owner, _ := routes.Lookup(src); owner != p {
		p.counters.drops.add(DropSource)
		return
	}
	if packet[0] != 0x45 && hasSourceRoute(packet) { // dst is not where it ends: nobody could say whether that is allowed
		p.counters.drops.add(DropDestination)
		return
	}
	if allowed, _ := p.filter.Load().ingress.Lookup(dst); allowed {
		if !p.b.writePacket(int(s.tunQueue.Load()), room, vnet) {
			p.counters.drops.add(DropTUNWrite)
		}
		return
	}
	next, _ := routes.Lookup(dst)
	switch {
	case next == nil || next == p:
		p.counters.drops.add(DropDestination)
	case !decrementTTL(packet):
		p.counters.drops.add(DropTTL)
	case !next.isReachable():
		next.counters.drops.add(DropNotConnected)
	default:
		if to := next.sendPacket(copyBuffer(packet, vnet)); to != s.forwardTo {
			s.kickForwarded()
			s.forwardTo = to
		}
	}
}

// kickForwarded sends what was given to another peer.
func (s *session) kickForwarded() {
	if s.forwardTo != nil {
		s.forwardTo.kickSender()
		s.forwardTo = nil
	}
}
