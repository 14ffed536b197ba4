package bridge

// Packet buffers, and the pools that they come from.
//
// Each buffer has one owner. newBuffer makes its caller the owner; sender.postPacket and outbox.sendPacket take the
// buffer over. The owner that drops or has sent a packet frees its buffer, and no slice of it is used afterwards.

import (
	"sync"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// headroom is kept free before a packet for what is sent before it: a frame with its virtio_net_hdr, and the header of
// its own frame. The TUN reads and writes the virtio_net_hdr directly before the packet.
const headroom = hello.FrameHeader + vnetSize + hello.FrameHeader

// Size classes of buffers in bytes, headroom included. The limits of queues count these sizes: a short packet in a
// large buffer takes a large part of a limit.
const (
	smallBuffer  = 2 << 10
	mediumBuffer = 16 << 10
	largeBuffer  = headroom + hello.MaxPayload
)

// buffer is one packet.
type buffer struct {
	data   []byte        // headroom, then the packet
	size   int           // of the packet
	vnet   vnetHeader    // what is left to be done on the packet; zero: nothing
	hash   uint32        // of its flow
	queued time.Duration // when it was queued, in the bridge's time
	next   *buffer       // in a list of the owner
}

var bufferPools = [...]sync.Pool{
	{New: func() any { return &buffer{data: make([]byte, smallBuffer)} }},
	{New: func() any { return &buffer{data: make([]byte, mediumBuffer)} }},
	{New: func() any { return &buffer{data: make([]byte, largeBuffer)} }},
}

// sizeClass returns the pool for buffers of size bytes.
func sizeClass(size int) *sync.Pool {
	switch {
	case size <= smallBuffer:
		return &bufferPools[0]
	case size <= mediumBuffer:
		return &bufferPools[1]
	}
	return &bufferPools[2]
}

// newBuffer returns a buffer for a packet of size bytes.
func newBuffer(size int) *buffer {
	buf := sizeClass(headroom + size).Get().(*buffer)
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

func (buf *buffer) free() { sizeClass(len(buf.data)).Put(buf) }

func (buf *buffer) packet() []byte { return buf.data[headroom : headroom+buf.size] }

// frame returns the packet as a frame, after the frame of its virtio_net_hdr if it has one.
func (buf *buffer) frame() []byte {
	start := headroom - hello.FrameHeader
	hello.PutHeader(buf.data[start:], buf.size, hello.FramePacket)
	if buf.vnet != (vnetHeader{}) {
		start = 0
		hello.PutHeader(buf.data, vnetSize, hello.FrameOffload)
		buf.vnet.putBytes(buf.data[hello.FrameHeader:])
	}
	return buf.data[start : headroom+buf.size]
}
