package hello

// The frames of a session, as they are on the wire. Only ReadFrame and ReadHello read, for the handshake.
//
//	length uint16 BE | type uint8 | payload of that length
//
// A receiver skips types that it does not know. Types 16 and up are extensions of kubelink: an end sends one only when
// both hellos announced its flag.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Types of frames.
const (
	FramePacket  = 0  // one IP packet
	FrameHello   = 1  // see hello.go; with FlagUpdates also later in a session
	FramePing    = 16 // 8 bytes that have a meaning to the sender only; with FlagKeepalive
	FramePong    = 17 // the 8 bytes of a ping
	FrameOffload = 18 // struct virtio_net_hdr, little endian, of the packet in the next frame; with FlagOffload
	// FrameServices is a part of the list of mesh services that the sender offers, see services.go; with FlagServices.
	FrameServices = 19
)

// Sizes, in bytes.
const (
	FrameHeader      = 3         // before each payload
	MaxPayload       = 1<<16 - 1 // that a frame can have
	MaxLegacyPayload = 17000     // that a peer without extension 128 of the hello reads at most
)

// Flags of extension 128 of the hello. A session uses a feature when both ends announce it.
const (
	// FlagKeepalive: the end answers pings. The first frame of a dialler after its hello is a ping. It tells the acceptor
	// that its hello was accepted, so that a refused link does not look connected for a moment.
	FlagKeepalive uint32 = 1 << iota
	FlagUpdates          // a later hello updates the announcement
	// FlagOffload: packets may lack their TCP or UDP checksum, and may be TCP segments of up to 64 KiB that the kernel
	// of the receiver cuts. A frame of type 18 says so, in the terms of virtio (gso_type TCPV4, TCPV6).
	FlagOffload
	FlagUSO     // with FlagOffload: UDP as well (gso_type UDP_L4)
	FlagStreams // a link has several sessions, see hello.go
	// FlagServices: the end says which mesh services it offers, at once and when that changes, and reads what its peer
	// offers.
	FlagServices
	// FlagInbound: the end has no endpoint of its peer (mode wireguard). A later hello says so, too.
	FlagInbound
)

// PutHeader writes the header of a frame with n bytes of payload to the start of b.
func PutHeader(b []byte, n int, typ byte) {
	binary.BigEndian.PutUint16(b, uint16(n))
	b[2] = typ
}

// AppendFrame appends a frame to b.
func AppendFrame(b []byte, typ byte, payload []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, typ)
	return append(b, payload...)
}

// AppendFrame64 appends a frame with a payload of 8 bytes to b, within its capacity.
func AppendFrame64(b []byte, typ byte, payload uint64) []byte {
	b = append(b, 0, 8, typ)
	return binary.BigEndian.AppendUint64(b, payload)
}

// CutFrame returns the first frame of b, and the bytes after it. ok is false while the frame is incomplete. Payload
// and rest are parts of b.
func CutFrame(b []byte) (typ byte, payload, rest []byte, ok bool) {
	if len(b) < FrameHeader {
		return 0, nil, b, false
	}
	end := FrameHeader + int(binary.BigEndian.Uint16(b))
	if len(b) < end {
		return 0, nil, b, false
	}
	return b[2], b[FrameHeader:end:end], b[end:], true
}

// ReadFrame reads one frame with a payload of limit bytes at most, and no byte beyond it. The errors are those of r,
// io.ErrUnexpectedEOF in a frame, and one that tells the size of a frame that is too large.
func ReadFrame(r io.Reader, limit int) (typ byte, payload []byte, err error) {
	var h [FrameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint16(h[:]))
	if n > limit {
		return 0, nil, fmt.Errorf("frame of %d bytes, at most %d are accepted", n, limit)
	}
	payload = make([]byte, n)
	if _, err = io.ReadFull(r, payload); errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return h[2], payload, err
}

// ReadHello reads the hello that a session starts with. It accepts no packet before the hello, and skips some frames
// of unknown types, all of limit bytes at most.
func ReadHello(r io.Reader, limit int) (*Hello, error) {
	const maxFrames = 16
	for range maxFrames {
		typ, payload, err := ReadFrame(r, limit)
		switch {
		case err != nil:
			return nil, err
		case typ == FrameHello:
			return ParsePayload(payload)
		case typ == FramePacket:
			return nil, errors.New("packet before the hello")
		}
	}
	return nil, errors.New("no hello")
}
