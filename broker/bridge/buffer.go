package bridge

// Packet buffers and the queue of a peer.
//
// Ownership: a buffer has one owner. newBuffer gives it to the caller, push gives it to the queue,
// pop to the writer; who drops a packet frees its buffer. Nobody keeps a slice of it after that.

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// headroom is kept free before a packet: for the frame header, and for a virtio_net_hdr
	// (10 bytes) between the two.
	headroom    = 16
	smallPacket = 2048 - headroom // packets of up to this size get a small buffer

	queuePackets = 512     // most packets in a queue,
	queueBytes   = 1 << 20 // most bytes,
	pendingMax   = 32      // and most packets while there is no session
)

// buffer is one packet with room for its frame header.
type buffer struct {
	data   []byte        // headroom, then the packet
	size   int           // of the packet
	queued time.Duration // when it was queued, in the bridge's time
}

var (
	smallBuffers = sync.Pool{New: func() any { return &buffer{data: make([]byte, headroom+smallPacket)} }}
	largeBuffers = sync.Pool{New: func() any { return &buffer{data: make([]byte, headroom+maxPayload)} }}
)

// newBuffer returns a buffer for a packet of size bytes.
func newBuffer(size int) *buffer {
	pool := &largeBuffers
	if size <= smallPacket {
		pool = &smallBuffers
	}
	buf := pool.Get().(*buffer)
	buf.size = size
	return buf
}

// copyBuffer returns a buffer with a copy of packet.
func copyBuffer(packet []byte) *buffer {
	buf := newBuffer(len(packet))
	copy(buf.packet(), packet)
	return buf
}

func (buf *buffer) free() {
	if len(buf.data) == headroom+smallPacket {
		smallBuffers.Put(buf)
	} else {
		largeBuffers.Put(buf)
	}
}

func (buf *buffer) packet() []byte { return buf.data[headroom : headroom+buf.size] }

// frame is the packet as a frame.
func (buf *buffer) frame() []byte {
	f := buf.data[headroom-frameHeader : headroom+buf.size]
	putHeader(f, buf.size, framePacket)
	return f
}

// queue holds the packets for one peer, bounded in number and bytes. Any number of goroutines
// push, one pops.
type queue struct {
	packets chan *buffer
	bytes   atomic.Int64
}

// push adds buf. To make room it drops the oldest packets, and returns how many: it never blocks.
func (q *queue) push(buf *buffer, most int) (dropped int) {
	q.bytes.Add(int64(buf.size))
	for {
		if len(q.packets) < most && (q.bytes.Load() <= queueBytes || len(q.packets) == 0) {
			select {
			case q.packets <- buf:
				return dropped
			default: // another one was faster
			}
		}
		if old := q.pop(); old != nil {
			old.free()
			dropped++
		}
	}
}

// pop returns the oldest packet, nil when there is none.
func (q *queue) pop() *buffer {
	select {
	case buf := <-q.packets:
		return q.popped(buf)
	default:
		return nil
	}
}

// popped accounts for a buffer that was received from the channel.
func (q *queue) popped(buf *buffer) *buffer {
	q.bytes.Add(-int64(buf.size))
	return buf
}
