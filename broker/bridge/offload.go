package bridge

// Offloads of a TUN: packets that still lack their checksum, and super-packets, each of which stands for many packets
// of one flow. Pure functions, no I/O. segment.go cuts super-packets.
//
// A TUN with IFF_VNET_HDR puts a struct virtio_net_hdr before each packet. It says what is left to do on the packet
// (linux/virtio_net.h; VIRTIO 1.2, 5.1.6.2). For a TUN or a peer without offloads, the bridge does what the kernel
// does for a device without offloads: skb_checksum_help, tcp_gso_segment, __udp_gso_segment.

import (
	"encoding/binary"

	"github.com/mandelsoft/kubelink/broker/hello"
)

const vnetSize = 10 // bytes of a struct virtio_net_hdr, without the fields that later versions append

// Values of a struct virtio_net_hdr, VIRTIO_NET_HDR_* of the kernel. The ECN bit is missing: the bridge does not offer
// it to the kernel, which then cuts such segments itself.
const (
	needsCsum = 1 // flags: csumStart and csumOffset are set
	dataValid = 2 // flags: the sender of the header has verified the checksum of the packet

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDP   = 5 // UDP_L4: datagrams, not the fragments of the former UFO
)

const (
	protocolTCP  = 6
	protocolUDP  = 17
	protocolSCTP = 132

	csumTCP, csumUDP = 16, 6 // offset of the checksum in a TCP and in a UDP header
	headerUDP        = 8

	gsoByFrags     = 0xffff // this gsoSize has another meaning to the kernel
	maxExtensions  = 8      // IPv6 extension headers
	maxSegmentsUDP = 128    // datagrams in one super-packet: UDP_MAX_SEGMENTS of linux/udp.h, 64 before Linux 6.9
	minSegmentTCP  = 8      // TCP_MIN_GSO_SIZE: Linux makes no smaller segments

	// maxHeaderBytes bounds the bytes of all segments' headers. Linux itself makes segments of 8 bytes: 8192 of them with
	// the longest headers of IPv4 and TCP are below this. The extension headers of IPv6 have no such limit: without this
	// one, one frame would become hundreds of megabytes.
	maxHeaderBytes = 1 << 20
)

// vnetHeader is a struct virtio_net_hdr. With needsCsum, the checksum field at csumStart+csumOffset holds the sum of
// the pseudo header, and the sum of all bytes from csumStart on is to be added. With a gsoType the packet is a
// super-packet, and all its segments but the last have gsoSize bytes of payload.
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

// validateFor tells whether the header, which may come from the network, fits packet, which parseAddresses has
// accepted. The kernel and the functions below take no other headers. Fields without meaning are cleared: a gsoType
// remains only on two or more segments, and hdrLen, which to the kernel is a hint how much to keep in one piece,
// becomes the length of the headers. dataValid is a claim of another machine: the caller clears it.
//
// The sum of the pseudo header is not verified, nor does the kernel verify it: with a routing header or a source route
// it is not the sum of the addresses in the IP header.
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
	end, ok := h.headersEnd(packet, protocol, start)
	if !ok || end > min(len(packet), hello.MaxPayload) { // hdrLen has 16 bits
		return false
	}
	h.hdrLen = uint16(end)
	if h.gsoType == gsoNone {
		h.gsoSize = 0
		return true
	}
	if !h.matchesProtocol(packet, protocol, start) || !h.validSegmentSize(len(packet)-end, protocol) {
		return false
	}
	if len(packet)-end <= int(h.gsoSize) { // one segment is no super-packet to the kernel
		h.gsoType, h.gsoSize = gsoNone, 0
	}
	return true
}

// headersEnd returns the end of the headers of a packet that lacks its checksum: of TCP or UDP if the checksum is
// theirs, else of the checksum field. ok is false when the header places the checksum where no such packet has it.
func (h *vnetHeader) headersEnd(packet []byte, protocol byte, start int) (end int, ok bool) {
	exact := int(h.csumStart) == start
	switch {
	case protocol == protocolTCP:
		if !exact || h.csumOffset != csumTCP || len(packet) < start+20 {
			return 0, false
		}
		length := int(packet[start+12]>>4) * 4
		return start + length, length >= 20
	case protocol == protocolUDP && exact:
		return start + headerUDP, h.csumOffset == csumUDP
	case protocol == protocolUDP: // the checksum of a packet in the datagram, as in a VXLAN
		start += headerUDP
	case protocol == protocolSCTP: // has a CRC instead
		return 0, false
	}
	return int(h.csumStart) + int(h.csumOffset) + 2, int(h.csumStart) >= start
}

// matchesProtocol tells whether the packet is of the protocol that gsoType cuts.
func (h *vnetHeader) matchesProtocol(packet []byte, protocol byte, start int) bool {
	switch h.gsoType {
	case gsoTCPv4:
		return protocol == protocolTCP && packet[0]>>4 == 4
	case gsoTCPv6:
		return protocol == protocolTCP && packet[0]>>4 == 6
	case gsoUDP:
		return protocol == protocolUDP && int(h.csumStart) == start &&
			int(binary.BigEndian.Uint16(packet[start+4:])) == len(packet)-start
	}
	return false
}

// validSegmentSize tells whether gsoSize cuts payload bytes into no more segments than are allowed.
func (h *vnetHeader) validSegmentSize(payload int, protocol byte) bool {
	size := int(h.gsoSize)
	switch {
	case size == 0, size == gsoByFrags:
		return false
	case protocol == protocolTCP && size < minSegmentTCP:
		return false
	case protocol == protocolUDP && payload > maxSegmentsUDP*size:
		return false
	}
	return payload/size*int(h.hdrLen) <= maxHeaderBytes
}

// parseTransport returns the protocol of a packet that parseAddresses has accepted, and where the protocol's header
// starts. ok is false when the packet is a fragment or its extension headers (RFC 8200, 4) are malformed.
func parseTransport(packet []byte) (protocol byte, start int, ok bool) {
	if packet[0]>>4 == 4 {
		fragment := binary.BigEndian.Uint16(packet[6:])&0x3fff != 0 // more fragments follow, or an offset
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

// fillChecksum completes the checksum of a packet that lacks it. validateFor has accepted the header. Afterwards
// nothing is left to do: the header becomes empty.
func (h *vnetHeader) fillChecksum(packet []byte) {
	if h.flags&needsCsum != 0 {
		sum := ^foldSum(sum16(packet[h.csumStart:], 0))
		if sum == 0 { // means "no checksum" in UDP (RFC 768); other protocols take both for the same number
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(packet[h.csumStart+h.csumOffset:], sum)
	}
	*h = vnetHeader{}
}
