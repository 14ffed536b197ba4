package bridge

// Packet buffers.
//
// Ownership: a buffer has one owner. newBuffer gives it to the caller, session.post and peer.park take
// it; who drops a packet frees its buffer. Nobody keeps a slice of it after that.

import (
	"sync"
	"time"
)

// headroom is kept free before a packet, for what is sent before it: a frame with its virtio_net_hdr
// and the header of its own frame, see wire.go. The TUN reads and writes the virtio_net_hdr right before the packet.
const headroom = frameHeader + vnetSize + frameHeader

// Size classes of buffers, headroom included. What a buffer holds of the limits of a queue is its size:
// a short packet in a large one would be cheap in the accounts only.
const (
	smallBuffer  = 2 << 10
	mediumBuffer = 16 << 10
	largeBuffer  = headroom + maxPayload
)

// buffer is one packet.
type buffer struct {
	data   []byte        // headroom, then the packet
	size   int           // of the packet
	vnet   vnetHeader    // what is left to be done on it; zero: nothing
	hash   uint32        // of its flow
	queued time.Duration // when it was queued, in the bridge's time
	next   *buffer       // in a list of the owner
}

var bufferPools = [...]sync.Pool{
	{New: func() any { return &buffer{data: make([]byte, smallBuffer)} }},
	{New: func() any { return &buffer{data: make([]byte, mediumBuffer)} }},
	{New: func() any { return &buffer{data: make([]byte, largeBuffer)} }},
}

func sizeClass(size int) int {
	switch {
	case size <= smallBuffer:
		return 0
	case size <= mediumBuffer:
		return 1
	}
	return 2
}

// newBuffer returns a buffer for a packet of size bytes.
func newBuffer(size int) *buffer {
	buf := bufferPools[sizeClass(headroom+size)].Get().(*buffer)
	buf.size, buf.vnet = size, vnetHeader{}
	return buf
}

// copyBuffer returns a buffer with a copy of packet.
func copyBuffer(packet []byte, vnet vnetHeader) *buffer {
	buf := newBuffer(len(packet))
	copy(buf.packet(), packet)
	buf.vnet = vnet
	return buf
}

func (buf *buffer) free() { bufferPools[sizeClass(len(buf.data))].Put(buf) }

func (buf *buffer) packet() []byte { return buf.data[headroom : headroom+buf.size] }

// frame is the packet as a frame, after that of its virtio_net_hdr if there is one.
func (buf *buffer) frame() []byte {
	start := headroom - frameHeader
	putHeader(buf.data[start:], buf.size, framePacket)
	if buf.vnet != (vnetHeader{}) {
		start = 0
		putHeader(buf.data, vnetSize, frameOffload)
		buf.vnet.putBytes(buf.data[frameHeader:])
	}
	return buf.data[start : headroom+buf.size]
}
