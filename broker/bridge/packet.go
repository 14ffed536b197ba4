package bridge

// IP headers: the little that a router needs of them.

import (
	"encoding/binary"
	"net/netip"
)

// addresses returns source and destination of an IPv4 or IPv6 packet (RFC 791, RFC 8200); ok is
// false when its header is not sound or its length is not the length of packet.
func addresses(packet []byte) (src, dst netip.Addr, ok bool) {
	if len(packet) < 20 {
		return src, dst, false
	}
	switch packet[0] >> 4 {
	case 4:
		header := int(packet[0]&0x0f) * 4
		if header < 20 || header > len(packet) || int(binary.BigEndian.Uint16(packet[2:])) != len(packet) {
			return src, dst, false
		}
		return netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20])), true
	case 6:
		if len(packet) < 40 || 40+int(binary.BigEndian.Uint16(packet[4:])) != len(packet) {
			return src, dst, false
		}
		return netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40])), true
	}
	return src, dst, false
}

// decrementTTL takes one hop from a packet that addresses found sound; false: it has none left.
func decrementTTL(packet []byte) bool {
	if packet[0]>>4 == 6 {
		if packet[7] <= 1 {
			return false
		}
		packet[7]--
		return true
	}
	if packet[8] <= 1 {
		return false
	}
	before := binary.BigEndian.Uint16(packet[8:])
	packet[8]--
	after := binary.BigEndian.Uint16(packet[8:])
	// RFC 1624, equation 3: HC' = ~(~HC + ~m + m')
	sum := uint32(^binary.BigEndian.Uint16(packet[10:])) + uint32(^before) + uint32(after)
	binary.BigEndian.PutUint16(packet[10:], ^fold(sum))
	return true
}

// fold ends a one's complement sum (RFC 1071).
func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// sum16 adds b to a one's complement sum.
func sum16(b []byte, sum uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}
