package bridge

// Offloads of a TUN: packets whose checksum is still to be filled in, and super-packets, which stand
// for many packets of one flow. Pure functions, no I/O.
//
// Before each packet of a TUN with IFF_VNET_HDR is a struct virtio_net_hdr that says what is left to
// do (linux/virtio_net.h; VIRTIO 1.2, 5.1.6.2). What is done here for those who cannot is what the
// kernel does for a device that cannot: skb_checksum_help, tcp_gso_segment, __udp_gso_segment.

import (
	"encoding/binary"
)

const vnetSize = 10 // of a struct virtio_net_hdr without what later versions append to it

// Values of a struct virtio_net_hdr, VIRTIO_NET_HDR_* of the kernel. TCP with the ECN bit is not
// there: it is not offered to the kernel, which then takes care of such segments itself.
const (
	needsCsum = 1 // flags: csumStart and csumOffset are set
	dataValid = 2 // flags: the checksum of the packet was found good

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDP   = 5 // UDP_L4: datagrams, not the fragments of the former UFO
)

const (
	protocolTCP  = 6
	protocolUDP  = 17
	protocolSCTP = 132

	csumTCP, csumUDP = 16, 6 // where the checksum is in a TCP and in a UDP header
	headerUDP        = 8

	gsoByFrags     = 0xffff // as a gsoSize it means something else to the kernel
	maxExtensions  = 8      // IPv6 extension headers
	maxSegmentsUDP = 128    // most datagrams in one super-packet: UDP_MAX_SEGMENTS of linux/udp.h, 64 before 6.9
	minSegmentTCP  = 8      // TCP_MIN_GSO_SIZE: Linux makes no smaller segments

	// Most bytes that the headers of all segments take. Linux itself makes segments of 8 bytes: 8192 of them with
	// the longest headers of IPv4 and TCP are below this. But the extension headers of IPv6 have no such
	// limit: one frame would become hundreds of megabytes.
	maxHeaderBytes = 1 << 20
)

// vnetHeader is a struct virtio_net_hdr. With needsCsum the checksum field at csumStart+csumOffset
// holds the sum of the pseudo header, and from csumStart on everything is to be added. With a gsoType
// the packet is a super-packet, and all its segments but the last have gsoSize bytes of payload.
type vnetHeader struct {
	flags, gsoType                         uint8
	hdrLen, gsoSize, csumStart, csumOffset uint16
}

// parseVnet reads a header from the first vnetSize bytes of b, little endian: TUNSETVNETLE.
func parseVnet(b []byte) vnetHeader {
	_ = b[vnetSize-1]
	return vnetHeader{
		flags:      b[0],
		gsoType:    b[1],
		hdrLen:     binary.LittleEndian.Uint16(b[2:]),
		gsoSize:    binary.LittleEndian.Uint16(b[4:]),
		csumStart:  binary.LittleEndian.Uint16(b[6:]),
		csumOffset: binary.LittleEndian.Uint16(b[8:]),
	}
}

// putBytes writes the header to the first vnetSize bytes of b.
func (h *vnetHeader) putBytes(b []byte) {
	_ = b[vnetSize-1]
	b[0], b[1] = h.flags, h.gsoType
	binary.LittleEndian.PutUint16(b[2:], h.hdrLen)
	binary.LittleEndian.PutUint16(b[4:], h.gsoSize)
	binary.LittleEndian.PutUint16(b[6:], h.csumStart)
	binary.LittleEndian.PutUint16(b[8:], h.csumOffset)
}

// validateFor tells whether the header, which may come from the network, fits packet, which addresses found
// sound. Only then it may be given to the kernel or to the functions below. Whatever means nothing is
// cleared, so that a gsoType is left on two segments and more only, and hdrLen, to the kernel a hint how
// much to keep in one piece, becomes the length of the headers. dataValid is the word of another machine:
// it is the caller's to clear.
//
// Whether the sum of the pseudo header is right is not asked, nor does the kernel: with a routing header
// or a source route it is not of the addresses in the IP header.
func (h *vnetHeader) validateFor(packet []byte) bool {
	if h.flags != needsCsum {
		ok := h.flags == 0 && h.gsoType == gsoNone // VIRTIO 1.2, 5.1.6.2.1: no segmentation without it
		*h = vnetHeader{}
		return ok
	}
	protocol, start, ok := parseTransport(packet)
	if !ok {
		return false
	}
	field, end := int(h.csumStart)+int(h.csumOffset), 0 // of the headers
	exact := int(h.csumStart) == start
	switch {
	case protocol == protocolTCP:
		if !exact || h.csumOffset != csumTCP || len(packet) < start+20 {
			return false
		}
		offset := int(packet[start+12]>>4) * 4
		if end = start + offset; offset < 20 {
			return false
		}
	case protocol == protocolUDP && exact:
		if h.csumOffset != csumUDP {
			return false
		}
		end = start + headerUDP
	case protocol == protocolUDP: // of a packet in the datagram, as in a VXLAN
		if start += headerUDP; int(h.csumStart) < start {
			return false
		}
		end = field + 2
	case protocol == protocolSCTP || int(h.csumStart) < start: // SCTP has a CRC
		return false
	default:
		end = field + 2
	}
	if end > min(len(packet), maxPayload) { // what is beyond cannot be said in 16 bits
		return false
	}
	h.hdrLen = uint16(end)

	switch h.gsoType {
	case gsoNone:
		h.gsoSize = 0
		return true
	case gsoTCPv4:
		ok = protocol == protocolTCP && packet[0]>>4 == 4
	case gsoTCPv6:
		ok = protocol == protocolTCP && packet[0]>>4 == 6
	case gsoUDP:
		ok = protocol == protocolUDP && exact && len(packet)-end <= maxSegmentsUDP*int(h.gsoSize) &&
			int(binary.BigEndian.Uint16(packet[start+4:])) == len(packet)-start
	default:
		return false
	}
	if !ok || h.gsoSize == gsoByFrags || h.gsoSize == 0 || protocol == protocolTCP && h.gsoSize < minSegmentTCP {
		return false
	}
	if (len(packet)-end)/int(h.gsoSize)*end > maxHeaderBytes {
		return false
	}
	if len(packet)-end <= int(h.gsoSize) { // one segment: to the kernel too it is a packet like others
		h.gsoType, h.gsoSize = gsoNone, 0
	}
	return true
}

// parseTransport returns the protocol of a packet that addresses found sound and where its header starts;
// ok is false when the packet is a fragment or its extension headers (RFC 8200, 4) are not sound.
func parseTransport(packet []byte) (protocol byte, start int, ok bool) {
	if packet[0]>>4 == 4 {
		fragment := binary.BigEndian.Uint16(packet[6:])&0x3fff != 0 // more to come, or not the first
		return packet[9], int(packet[0]&0x0f) * 4, !fragment
	}
	protocol, start = packet[6], 40
	for range maxExtensions {
		switch protocol {
		case 0, 43, 60: // hop-by-hop options, routing, destination options
			if len(packet) < start+8 {
				return 0, 0, false
			}
			protocol, start = packet[start], start+8+int(packet[start+1])*8
		default:
			return protocol, start, protocol != 44 && start <= len(packet) // 44: fragment
		}
	}
	return 0, 0, false
}

// fillChecksum fills in the checksum of a packet that needs one, if its header is sound. Then nothing is
// left to do: the header becomes empty.
func (h *vnetHeader) fillChecksum(packet []byte) {
	if h.flags&needsCsum != 0 {
		sum := ^foldSum(sum16(packet[h.csumStart:], 0))
		if sum == 0 { // in UDP no checksum at all (RFC 768); to the others it is the same number
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(packet[h.csumStart+h.csumOffset:], sum)
	}
	*h = vnetHeader{}
}

// segmenter cuts a super-packet into the packets it stands for, all checksums filled in:
//
//	for s := h.segments(packet); s.size() > 0; {
//		n := s.next(b)
//	}
type segmenter struct {
	packet  []byte
	start   int    // of the TCP or UDP header
	headers int    // their length, IP and TCP or UDP: each segment has them
	mss     int    // payload of all segments but the last
	done    int    // segments so far
	total   int    // segments
	pseudo  uint32 // sum of the pseudo header but for the length in it
	tcp     bool
}

// splitPacket starts to cut a super-packet with a sound header. The packet stays as it is, and must do so
// until the last segment was taken.
func (h *vnetHeader) splitPacket(packet []byte) segmenter {
	s := segmenter{
		packet:  packet,
		start:   int(h.csumStart),
		headers: int(h.hdrLen),
		mss:     int(h.gsoSize),
		tcp:     h.gsoType != gsoUDP,
	}
	s.total = (len(packet) - s.headers + s.mss - 1) / s.mss
	s.pseudo = uint32(binary.BigEndian.Uint16(packet[h.csumStart+h.csumOffset:])) +
		uint32(^uint16(len(packet)-s.start))
	return s
}

// countLeft returns the number of segments that are left. All have the same size, the last may be shorter.
func (s *segmenter) countLeft() int { return s.total - s.done }

// nextSize returns the length of the next segment; 0: there is none.
func (s *segmenter) nextSize() int {
	if s.done == s.total {
		return 0
	}
	return min(s.headers+s.mss, len(s.packet)-s.done*s.mss)
}

// writeNext writes the next segment to b, which has room for it, and returns its length.
func (s *segmenter) writeNext(b []byte) int {
	n := s.nextSize()
	if n == 0 {
		return 0
	}
	b = b[:n]
	copy(b, s.packet[:s.headers])
	copy(b[s.headers:], s.packet[s.headers+s.done*s.mss:])
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(n))
		binary.BigEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:])+uint16(s.done))
		checksumIPv4(b)
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(n-40))
	}
	segment, check := b[s.start:], csumUDP
	pseudo := s.pseudo + uint32(len(segment))
	if s.tcp {
		check = csumTCP
		binary.BigEndian.PutUint32(segment[4:], binary.BigEndian.Uint32(segment[4:])+uint32(s.done*s.mss))
		if s.done > 0 {
			segment[13] &^= 0x80 // CWR is said once (RFC 3168, 6.1.2)
		}
		if s.done < s.total-1 {
			segment[13] &^= 0x09 // PSH and FIN come behind the last byte
		}
	} else {
		binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)))
	}
	binary.BigEndian.PutUint16(segment[check:], 0)
	sum := ^foldSum(sum16(segment, pseudo))
	if sum == 0 && !s.tcp {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(segment[check:], sum)
	s.done++
	return n
}

// checksumIPv4 fills in the checksum of an IPv4 header.
func checksumIPv4(packet []byte) {
	binary.BigEndian.PutUint16(packet[10:], 0)
	binary.BigEndian.PutUint16(packet[10:], ^foldSum(sum16(packet[:int(packet[0]&0x0f)*4], 0)))
}
