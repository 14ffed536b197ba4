package bridge

// The contents of a batch: the frames that are sent in one system call, and how packets fit the peer.

import "sync"

const (
	recordBytes = 16 << 10 // of the largest TLS record
	directBytes = 4 << 10  // frames of this size are encrypted in place; smaller frames share a TLS record
)

var frameBuffers = sync.Pool{New: func() any { return new(make([]byte, 0, recordBytes+frameHeader+maxPayload)) }}

// encodeBatch encrypts the frames of a batch. more tells that the batch is full.
func (o *sender) encodeBatch() (more bool, err error) {
	var (
		peer    = o.session.peer
		now     = peer.now()
		frames  = frameBuffers.Get().(*[]byte) // become one TLS record
		total   int
		packets uint64
		bytes   uint64
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
	}
	return total >= o.batchLimit, err
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

// appendControl appends the pings, pongs and hellos that are due to frames.
func (o *sender) appendControl(frames []byte) ([]byte, error) {
	if o.due.ping.Load() && o.due.ping.Swap(false) {
		frames = appendFrame64(frames, framePing, uint64(o.session.peer.now()))
	}
	if o.due.pong.Load() != 0 {
		frames = appendFrame64(frames, framePong, o.due.pong.Swap(0))
	}
	if o.due.update.Load() && o.due.update.Swap(false) {
		hello, _, err := o.session.peer.helloFrame(o.session.stream)
		return append(frames, hello...), err
	}
	return frames, nil
}

// peerAccepts tells whether the peer does the work that is left to be done on a packet.
func (o *sender) peerAccepts(h vnetHeader) bool {
	switch {
	case h == (vnetHeader{}):
		return true
	case h.gsoType == gsoUDP:
		return o.session.flags&flagUSO != 0
	}
	return o.session.flags&flagOffload != 0
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
		*frames = (*frames)[:start+frameHeader+n]
		putHeader((*frames)[start:], n, framePacket)
		seg.writeNext((*frames)[start+frameHeader:])
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
