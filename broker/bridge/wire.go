package bridge

// The frames of a session, as they are on the wire: pure functions, no I/O but readFrame, which
// the handshake uses.
//
//	length uint16 BE | type uint8 | payload of that length
//
// A receiver skips types that it does not know. Types 16 and up are ours and are only sent when
// both hellos announced the flag that goes with them.

import (
	"encoding/binary"
	"errors"
	"io"
)

const (
	framePacket  = 0  // one IP packet
	frameHello   = 1  // see hello.go; again within a session with flagUpdates
	framePing    = 16 // 8 bytes that mean something to the sender only; with flagKeepalive
	framePong    = 17 // the 8 bytes of a ping
	frameOffload = 18 // struct virtio_net_hdr, little endian, of the packet in the next frame; with flagOffload

	frameHeader      = 3
	maxPayload       = 1<<16 - 1
	maxLegacyPayload = 17000 // largest payload that a peer without our capability extension reads
)

// Flags of the capability extension. A feature is used when both ends announce it.
const (
	// Pings are answered. The first frame of a dialler after its hello is a ping: it tells the acceptor
	// that its hello was good, so that a refused link does not look connected for a moment.
	flagKeepalive uint32 = 1 << iota
	flagUpdates          // a further hello updates the announced facts
	// Packets may lack their TCP or UDP checksum, and may be TCP segments of up to 64 KiB that the receiver's
	// kernel cuts: what a frame of type 18 says of a packet, in the terms of virtio (gso_type TCPV4, TCPV6).
	flagOffload
	flagUSO     // with flagOffload: UDP as well (gso_type UDP_L4)
	flagStreams // a link has several sessions, see hello.go
)

// putHeader writes the header of a frame with n bytes of payload to the start of b.
func putHeader(b []byte, n int, typ byte) {
	binary.BigEndian.PutUint16(b, uint16(n))
	b[2] = typ
}

// appendFrame appends a frame to b.
func appendFrame(b []byte, typ byte, payload []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, typ)
	return append(b, payload...)
}

// cutFrame returns the first frame of b and what follows it; ok is false while it is incomplete.
// Payload and rest are parts of b.
func cutFrame(b []byte) (typ byte, payload, rest []byte, ok bool) {
	if len(b) < frameHeader {
		return 0, nil, b, false
	}
	end := frameHeader + int(binary.BigEndian.Uint16(b))
	if len(b) < end {
		return 0, nil, b, false
	}
	return b[2], b[frameHeader:end:end], b[end:], true
}

// readFrame reads one frame and not a byte more.
func readFrame(r io.Reader) (typ byte, payload []byte, err error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, binary.BigEndian.Uint16(h[:]))
	_, err = io.ReadFull(r, payload)
	return h[2], payload, err
}

// readHello reads the frame that a session starts with. No packet is taken before it; types that
// are unknown are skipped, but not without end.
func readHello(r io.Reader) (*hello, error) {
	for range 16 {
		typ, payload, err := readFrame(r)
		switch {
		case err != nil:
			return nil, err
		case typ == frameHello:
			return parseHello(payload)
		case typ == framePacket:
			return nil, errors.New("packet before the hello")
		}
	}
	return nil, errors.New("no hello")
}
