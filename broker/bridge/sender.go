package bridge

// The sending half of a session: which goroutine sends, and when; and the batches of frames that it sends.
//
// No goroutine is there to send. A goroutine that has something to send posts it and calls kickSender. If no goroutine
// is sending, the caller sends, with all packets that are there by then; else the goroutine that is sending sends them,
// too. So a packet goes from the TUN to the socket in one goroutine, on one processor, and many packets in one system
// call. None of this waits: when the kernel accepts no more, the session's goroutine serveEvents waits until it does,
// and the queue holds or drops packets. That goroutine also continues when there is no end to sending.

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// maxRounds is the number of batches that a goroutine sends in one go; then serveEvents takes over.
const maxRounds = 4

// sender is the sending half of a session. A goroutine owns it while it sends: it gets the right to send when it raises
// kicks from zero, and by a value in turn.
type sender struct {
	session    *session
	maxPayload int // bytes of a packet that the peer reads

	// Any goroutine sets these, and calls kickSender.
	mailbox  mailbox
	posted   atomic.Int64 // bytes in the mailbox
	due      dueFrames
	writable atomic.Bool  // the kernel accepts bytes again
	kicks    atomic.Int32 // calls of kickSender that are not served yet; zero: no goroutine sends

	// The goroutine that sends owns these.
	queue      queue
	blocked    bool     // the kernel accepts no more: see writable
	unsent     int      // bytes of the batch that it does not accept, which count in the budget
	batchLimit int      // bytes
	finished   bool     // nothing more will be sent
	services   [][]byte // frames of our list of mesh services that are left to be sent
	icmp       *rate.Limiter
	records    int64 // TLS records that were sent, approximately
	renewAt    int64 // number of records at which the session is to be replaced

	blockedSignal signal // tells serveEvents that the sender is blocked,
	spentSignal   signal // or that records has reached renewAt;
	turn          signal // gives serveEvents the right to send
}

// dueFrames are the control frames to be sent.
type dueFrames struct {
	ping     atomic.Bool
	pong     atomic.Uint64 // token to be sent back; 0: none
	update   atomic.Bool   // our announcement has changed
	services atomic.Bool   // our list of mesh services
}

// init prepares the sender for a peer that has extension 128 of the hello (capable), or not.
func (o *sender) init(s *session, capable bool) {
	o.session = s
	o.maxPayload, o.batchLimit = hello.MaxLegacyPayload, maxBatchBytes
	if capable {
		o.maxPayload = hello.MaxPayload
	}
	o.queue = queue{stale: s.peer.timing.stale, drops: &s.peer.counters.drops}
	o.icmp = newICMPLimiter()
	o.renewAt = s.firstRenewal()
	o.blockedSignal, o.spentSignal, o.turn = newSignal(), newSignal(), newSignal()
	// The ping is sent first, before any packet: see hello.FlagKeepalive. It also measures the round-trip time.
	o.due.ping.Store(s.flags&hello.FlagKeepalive != 0)
}

// postPacket takes a packet over, and leaves it for the goroutine that sends next. A call of kickSender has to follow.
func (o *sender) postPacket(buf *buffer) {
	size, budget := int64(len(buf.data)), &o.session.peer.budget
	if o.posted.Add(size) > int64(budget.burstLimit()) { // the goroutine that sends is far behind
		o.posted.Add(-size)
		buf.free()
		o.session.peer.counters.drops.add(DropQueueFull)
		return
	}
	budget.held.Add(size)
	o.mailbox.putPacket(buf)
}

// kickSender ensures that posted packets and due frames are sent.
func (o *sender) kickSender() {
	if o.kicks.Add(1) == 1 {
		o.sendLoop()
	}
}

// sendBatch sends one batch, unless another goroutine is sending. more tells that there is more to send, and that the
// caller has to come back.
func (o *sender) sendBatch() (more bool) {
	if o.kicks.Add(1) != 1 {
		return false
	}
	if o.sendRound() {
		return false
	}
	o.kicks.Store(0) // kicks since then rely on us: the caller comes back
	return true
}

// sendLoop sends until there is nothing to do. The caller has the right to send. When that takes long, serveEvents
// continues, which does other work in between.
func (o *sender) sendLoop() {
	for range maxRounds {
		if o.sendRound() {
			return
		}
	}
	o.turn <- struct{}{} // has room: only the goroutine that has the right to send gives it away
	if o.session.detached.Load() {
		o.reclaimTurn()
	}
}

// reclaimTurn takes back the right to send that was given to serveEvents, which may have ended.
func (o *sender) reclaimTurn() {
	select {
	case <-o.turn:
		o.sendLoop()
	default:
	}
}

// sendRound sends one batch. It returns true when it has given up the right to send, as there is nothing more to do.
func (o *sender) sendRound() (ended bool) {
	o.kicks.Store(1) // kicks from now on raise it further
	held := o.queue.bytes + o.unsent
	held += o.sortMailbox()
	idle, err := o.sendNext()
	o.unsent = 0
	if o.blocked && !o.session.hasEnded() {
		o.unsent = o.session.raw.unsentBytes()
		o.queue.trimTo(o.session.peer.budget.sessionLimit())
	}
	if left := held - o.queue.bytes - o.unsent; left != 0 {
		o.session.peer.budget.held.Add(-int64(left))
	}
	if err != nil {
		o.session.close(err)
		idle = true
	}
	return idle && o.kicks.CompareAndSwap(1, 0)
}

// sendNext sends what the kernel accepts of the last batch, or one batch. idle tells that nothing more can be sent now.
func (o *sender) sendNext() (idle bool, err error) {
	s := o.session
	detached := s.detached.Load()
	if detached {
		s.peer.resendQueue(&o.queue)
	}
	if o.finished || o.blocked && !o.writable.Swap(false) {
		return true, nil
	}
	if s.hasEnded() { // packets in the queue go to another session as soon as this one is detached
		return true, nil
	}
	more := !detached
	if more && !o.blocked { // else the rest of the last batch comes first
		if more, err = o.encodeBatch(); err != nil {
			return true, err
		}
	}
	done, err := s.raw.flushBatch()
	o.blocked = !done
	switch {
	case err != nil:
	case o.blocked:
		o.blockedSignal.notify() // has room: one value until writable
	case detached: // but the connection lives: see retireSession
		o.finished = true
		s.raw.closeWrite()
	case o.records >= o.renewAt:
		o.renewAt += s.peer.timing.maxRecords / 16
		o.spentSignal.notify()
	}
	return !(more && done), err
}

// sortMailbox moves the posted packets to the queue, and returns their bytes.
func (o *sender) sortMailbox() (moved int) {
	buf := o.mailbox.takeAll()
	if buf == nil {
		return 0
	}
	limit := o.session.peer.budget.burstLimit() // sendRound trims the queue if the kernel accepts no more
	for buf != nil {
		next := buf.next
		moved += len(buf.data)
		o.queue.pushPacket(buf, limit)
		buf = next
	}
	o.posted.Add(-int64(moved))
	return moved
}

// A batch is the frames that are sent in one system call.

const (
	recordBytes = 16 << 10 // of the largest TLS record
	directBytes = 4 << 10  // frames of this size are encrypted in place; smaller frames share a TLS record
)

var frameBuffers = sync.Pool{New: func() any {
	return new(make([]byte, 0, recordBytes+hello.FrameHeader+hello.MaxPayload))
}}

// encodeBatch encrypts the frames of a batch. more tells that the batch is full.
func (o *sender) encodeBatch() (more bool, err error) {
	var (
		peer    = o.session.peer
		now     = peer.now()
		frames  = frameBuffers.Get().(*[]byte) // become one TLS record
		total   int
		packets uint64
		bytes   uint64
		delay   time.Duration
	)
	*frames, err = o.appendControl((*frames)[:0])
	if err == nil {
		err = o.flushFullRecord(frames)
	}
	for err == nil && total < o.batchLimit {
		buf := o.queue.popPacket(now)
		if buf == nil {
			break
		}
		total += o.batchSize(buf)
		var sent bool
		if sent, err = o.encodePacket(frames, buf); sent {
			packets++
			bytes += uint64(buf.size)
			delay += max(0, now-buf.queued) // a packet may have come since
		}
		buf.free()
	}
	if err == nil {
		err = o.flushFrames(frames)
	}
	frameBuffers.Put(frames)
	if packets > 0 {
		peer.counters.txPackets.Add(packets)
		peer.counters.txBytes.Add(bytes)
		peer.counters.txDelay.Add(int64(delay))
	}
	return total >= o.batchLimit || len(o.services) > 0, err
}

// batchSize is the bytes that a packet adds to a batch: if it is cut, its segments have headers of their own.
func (o *sender) batchSize(buf *buffer) int {
	if buf.vnet.gsoType == gsoNone || o.peerAccepts(buf.vnet) {
		return buf.size
	}
	return buf.size + int(buf.vnet.hdrLen)*buf.size/max(1, int(buf.vnet.gsoSize))
}

// encodePacket appends a packet to frames, or encrypts it. sent is false when the packet is dropped.
func (o *sender) encodePacket(frames *[]byte, buf *buffer) (sent bool, err error) {
	switch {
	case !o.peerAccepts(buf.vnet):
		return o.encodeOffload(frames, buf)
	case buf.size > o.maxPayload:
		o.dropTooBig(buf)
		return false, nil
	case buf.size >= directBytes:
		if err = o.flushFrames(frames); err == nil {
			err = o.writeFrames(buf.frame())
		}
		return true, err
	}
	*frames = append(*frames, buf.frame()...)
	return true, o.flushFullRecord(frames)
}

// flushFrames encrypts frames, and empties it.
func (o *sender) flushFrames(frames *[]byte) error {
	if len(*frames) == 0 {
		return nil
	}
	err := o.writeFrames(*frames)
	*frames = (*frames)[:0]
	return err
}

// flushFullRecord encrypts frames if they fill a TLS record.
func (o *sender) flushFullRecord(frames *[]byte) error {
	if len(*frames) < recordBytes {
		return nil
	}
	return o.flushFrames(frames)
}

// writeFrames encrypts frames, and counts the records: a key of AES-GCM is good for 2^24.5 records (RFC 8446, 5.5), and
// Go never updates a key by itself.
func (o *sender) writeFrames(frames []byte) error {
	o.records += 1 + int64(len(frames)/recordBytes)
	_, err := o.session.conn.Write(frames)
	return err
}

// appendControl appends the pings, pongs and hellos that are due to frames, and one frame of mesh services: packets are
// not to wait for all of them.
func (o *sender) appendControl(frames []byte) ([]byte, error) {
	if o.due.ping.Load() && o.due.ping.Swap(false) {
		frames = hello.AppendFrame64(frames, hello.FramePing, uint64(o.session.peer.now()))
	}
	if o.due.pong.Load() != 0 {
		frames = hello.AppendFrame64(frames, hello.FramePong, o.due.pong.Swap(0))
	}
	if o.due.update.Load() && o.due.update.Swap(false) {
		hello, _, err := o.session.peer.helloFrame(o.session.stream, nil)
		if err != nil {
			return frames, err
		}
		frames = append(frames, hello...)
	}
	if o.due.services.Load() && o.due.services.Swap(false) {
		o.services = o.session.peer.serviceFrames()
	}
	if len(o.services) > 0 {
		frames, o.services = append(frames, o.services[0]...), o.services[1:]
	}
	return frames, nil
}

// peerAccepts tells whether the peer does the work that is left to be done on a packet.
func (o *sender) peerAccepts(h vnetHeader) bool {
	switch {
	case h == (vnetHeader{}):
		return true
	case h.gsoType == gsoUDP:
		return o.session.flags&hello.FlagUSO != 0
	}
	return o.session.flags&hello.FlagOffload != 0
}

// encodeOffload does this work for the peer: segments, and checksums. sent is false when the packet is too big.
func (o *sender) encodeOffload(frames *[]byte, buf *buffer) (sent bool, err error) {
	if buf.vnet.gsoType == gsoNone {
		buf.vnet.fillChecksum(buf.packet())
		if buf.size > o.maxPayload {
			o.dropTooBig(buf)
			return false, nil
		}
		*frames = append(*frames, buf.frame()...)
		return true, o.flushFullRecord(frames)
	}
	seg := buf.vnet.splitPacket(buf.packet())
	for n := seg.nextSize(); n > 0; n = seg.nextSize() {
		if n > o.maxPayload { // the MTU of the TUN prevents it, unless a user has raised that MTU
			o.session.peer.counters.drops.add(DropTooBig)
			return false, nil
		}
		start := len(*frames)
		*frames = (*frames)[:start+hello.FrameHeader+n]
		hello.PutHeader((*frames)[start:], n, hello.FramePacket)
		seg.writeNext((*frames)[start+hello.FrameHeader:])
		if err := o.flushFullRecord(frames); err != nil {
			return true, err
		}
	}
	return true, nil
}

// dropTooBig drops a packet that is larger than the peer reads, and tells its sender, unless that is behind a link.
func (o *sender) dropTooBig(buf *buffer) {
	p := o.session.peer
	p.counters.drops.add(DropTooBig)
	src, _, _ := parseAddresses(buf.packet())
	if from, _ := p.router.table.Load().routes.Lookup(src); from != nil || !o.icmp.Allow() {
		return
	}
	msg := make([]byte, vnetSize+icmpBufferSize)
	if m := icmpTooBig(msg[vnetSize:], buf.packet(), o.maxPayload); m != nil {
		p.iface.writePacket(0, msg[:vnetSize+len(m)], vnetHeader{})
	}
}
