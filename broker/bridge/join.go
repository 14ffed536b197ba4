package bridge

// Datagrams of a flow that wait in the TUN together become one super-packet (USO), as GRO joins what a network card has
// received: small packets cost the kernels and the bridge per packet, not per byte. None waits for another one: only
// what one burst of reads has found is joined. The segments that the peer's kernel, or segment.go, cuts are the
// datagrams as they were, with their boundaries, order and headers. Only the Identification of a datagram with the DF
// flag may differ, which RFC 6864, 4.1, has everybody ignore.

import (
	"bytes"
	"encoding/binary"

	"github.com/mandelsoft/kubelink/broker/hello"
)

const (
	joinedFlows = 4  // at a time: flows alternate
	maxJoined   = 64 // datagrams in a super-packet: UDP_MAX_SEGMENTS of Linux before 6.9
)

// joiner joins datagrams. It belongs to the goroutine of a tunReader.
type joiner struct {
	send  func(*peer, *buffer) // takes the buffer over
	slots [joinedFlows]joined
	used  int // slots from the first one on that have a buffer
	next  int // slot that gives way to another flow
}

// joined is a datagram that others may join, or a super-packet of several.
type joined struct {
	peer    *peer
	buf     *buffer
	headers int  // bytes of the IP and UDP headers
	segment int  // payload of each datagram but the last
	length  int  // the UDP header's field of the first one
	count   int  // datagrams
	full    bool // the last one was shorter
}

// addPacket takes a datagram, of which it keeps a copy, for later calls of addPacket and flush. It returns false when
// the packet is none that can be joined, and the caller has to send it: after datagrams of its flow that came before.
func (j *joiner) addPacket(p *peer, packet []byte, h vnetHeader) bool {
	headers := joinableHeaders(h, packet)
	if headers == 0 {
		if protocolOf(packet) != protocolTCP {
			j.flush() // it may be of the same flow: a fragment, for example
		}
		return false
	}
	slot := j.findSlot(p, packet, headers)
	if slot == nil {
		slot = j.emptySlot()
	} else if slot.append(packet) {
		return true
	} else {
		j.sendSlot(slot)
	}
	length := len(packet) - headers + headerUDP
	*slot = joined{peer: p, buf: copyBuffer(packet, h), headers: headers, segment: length - headerUDP,
		length: length, count: 1}
	return true
}

// flush sends all that has been added.
func (j *joiner) flush() {
	for i := range j.slots[:j.used] {
		j.sendSlot(&j.slots[i])
	}
	j.used, j.next = 0, 0
}

// sendSlot sends what is in a slot, which has no buffer then.
func (j *joiner) sendSlot(s *joined) {
	p, buf := s.peer, s.finish()
	s.peer, s.buf = nil, nil
	j.send(p, buf)
}

// findSlot returns the slot of a datagram's flow; nil: there is none.
func (j *joiner) findSlot(p *peer, packet []byte, headers int) *joined {
	for i := range j.slots[:j.used] {
		slot := &j.slots[i]
		if slot.peer == p && slot.headers == headers &&
			bytes.Equal(flowKey(slot.buf.packet(), headers), flowKey(packet, headers)) {
			return slot
		}
	}
	return nil
}

// emptySlot returns a slot for another flow.
func (j *joiner) emptySlot() *joined {
	if j.used < len(j.slots) {
		j.used++
		return &j.slots[j.used-1]
	}
	slot := &j.slots[j.next]
	j.next = (j.next + 1) % len(j.slots)
	j.sendSlot(slot)
	return slot
}

// joinableHeaders returns the bytes of the headers of a datagram that may be one of several; 0: it may not. It has to
// be small and whole, without options and extension headers, and to lack its checksum: one that is there might be
// wrong, and the segments would have right ones. validateFor has accepted h.
func joinableHeaders(h vnetHeader, packet []byte) int {
	if h.flags != needsCsum || h.gsoType != gsoNone || h.csumOffset != csumUDP || headroom+len(packet) > mediumBuffer {
		return 0
	}
	const fragment = 0x3fff // MF, and the offset
	start := 20
	switch {
	case packet[0] == 0x45 && packet[9] == protocolUDP && binary.BigEndian.Uint16(packet[6:])&fragment == 0:
	case packet[0]>>4 == 6 && packet[6] == protocolUDP:
		start = 40
	default:
		return 0
	}
	headers := start + headerUDP
	if int(h.csumStart) != start || len(packet) <= headers ||
		int(binary.BigEndian.Uint16(packet[start+4:])) != len(packet)-start {
		return 0
	}
	return headers
}

// protocolOf returns the protocol of a packet that parseAddresses has accepted, without a look at extension headers.
func protocolOf(packet []byte) byte {
	if packet[0]>>4 == 4 {
		return packet[9]
	}
	return packet[6]
}

// flowKey is addresses and ports.
func flowKey(packet []byte, headers int) []byte {
	if headers == 20+headerUDP {
		return packet[12:24]
	}
	return packet[8:44]
}

// append appends a datagram of the same flow. It returns false when the datagram has to be one of its own, or the first
// of another super-packet.
func (s *joined) append(packet []byte) bool {
	payload := packet[s.headers:]
	size := s.buf.size + len(payload)
	if s.full || len(payload) > s.segment || s.count == maxJoined || size > hello.MaxPayload || !s.hasHeadersOf(packet) {
		return false
	}
	if headroom+size > len(s.buf.data) {
		larger := newBuffer(size)
		larger.vnet = s.buf.vnet
		copy(larger.packet(), s.buf.packet())
		s.buf.free()
		s.buf = larger
	}
	s.buf.size = size
	copy(s.buf.packet()[size-len(payload):], payload)
	s.count++
	s.full = len(payload) < s.segment
	return true
}

// hasHeadersOf tells whether the headers of the next datagram are those that its segment will have.
func (s *joined) hasHeadersOf(packet []byte) bool {
	first := s.buf.packet()
	start := s.headers - headerUDP
	if start == 20 {
		const df = 0x4000
		id := binary.BigEndian.Uint16(first[4:]) + uint16(s.count)
		flags := binary.BigEndian.Uint16(packet[6:])
		if first[1] != packet[1] || first[8] != packet[8] || flags != binary.BigEndian.Uint16(first[6:]) ||
			flags&df == 0 && id != binary.BigEndian.Uint16(packet[4:]) {
			return false
		}
	} else if !bytes.Equal(first[:4], packet[:4]) || first[7] != packet[7] {
		return false
	}
	// The sums of the pseudo headers differ by the lengths only.
	return pseudoWithout(first[start:], s.length) == pseudoWithout(packet[start:], len(packet)-start)
}

// pseudoWithout is the sum in a UDP header that lacks its checksum, without the length that is a part of it.
func pseudoWithout(header []byte, length int) uint16 {
	sum := foldSum(uint32(binary.BigEndian.Uint16(header[csumUDP:])) + uint32(^uint16(length)))
	if sum == 0xffff {
		return 0
	}
	return sum
}

// finish returns the buffer, with the headers of a super-packet if there are several datagrams.
func (s *joined) finish() *buffer {
	buf := s.buf
	if s.count == 1 {
		return buf
	}
	packet, start := buf.packet(), s.headers-headerUDP
	length := len(packet) - start
	header := packet[start:]
	sum := uint32(binary.BigEndian.Uint16(header[csumUDP:])) + uint32(length) + uint32(^uint16(s.length))
	binary.BigEndian.PutUint16(header[csumUDP:], foldSum(sum))
	binary.BigEndian.PutUint16(header[4:], uint16(length))
	if start == 20 {
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		checksumIPv4(packet)
	} else {
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-start))
	}
	buf.vnet.gsoType, buf.vnet.gsoSize, buf.vnet.hdrLen = gsoUDP, uint16(s.segment), uint16(s.headers)
	return buf
}
