package bridge

// IP headers: the fields that a router reads and changes. Pure functions, no I/O.

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// parseAddresses returns source and destination of an IPv4 or IPv6 packet (RFC 791, RFC 8200). ok is false
// when the header is malformed, or states another length than packet has.
func parseAddresses(packet []byte) (src, dst netip.Addr, ok bool) {
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

// hasSourceRoute tells whether the destination may forward the packet to another address that the packet names: by a
// source route of IPv4 (RFC 791, 3.1) or a routing header of IPv6 (RFC 8200, 4.4). Malformed options count as one.
// parseAddresses has accepted the packet.
func hasSourceRoute(packet []byte) bool {
	if packet[0]>>4 == 4 {
		return hasSourceRouteOption(packet[20 : int(packet[0]&0x0f)*4])
	}
	return hasRoutingHeader(packet)
}

func hasSourceRouteOption(options []byte) bool {
	const end, noOperation, loose, strict = 0, 1, 131, 137
	for len(options) > 0 && options[0] != end {
		n := 1
		switch {
		case options[0] == noOperation:
		case options[0] == loose, options[0] == strict, len(options) < 2, options[1] < 2:
			return true
		default:
			n = int(options[1])
		}
		options = options[min(n, len(options)):]
	}
	return false
}

func hasRoutingHeader(packet []byte) bool {
	next, start := packet[6], 40
	for range maxExtensions {
		size := 8
		switch next {
		case 0, 43, 60: // hop-by-hop options, routing, destination options
			if len(packet) < start+8 || next == 43 && packet[start+3] > 0 { // segments that are left
				return true
			}
			size += int(packet[start+1]) * 8
		case 44: // fragment
			if len(packet) < start+8 {
				return true
			}
		default:
			return false
		}
		next, start = packet[start], start+size
	}
	return true
}

// decrementTTL takes one hop from a packet that parseAddresses has accepted. It returns false when the packet has no
// hop left.
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
	binary.BigEndian.PutUint16(packet[10:], ^foldSum(sum))
	return true
}

// foldSum folds a one's complement sum to 16 bits (RFC 1071).
func foldSum(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// sum16 adds b to a one's complement sum. It adds 64 bits at a time, in the byte order of the machine, and swaps the
// bytes of the result: RFC 1071, 2(B) and 2(C).
func sum16(b []byte, sum uint32) uint32 {
	var s, c uint64
	for ; len(b) >= 64; b = b[64:] {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[32:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[40:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[48:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[56:]), c)
	}
	for ; len(b) >= 8; b = b[8:] {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), c)
	}
	var rest uint64 // the last bytes, padded with zeros
	for i, v := range b {
		rest |= uint64(v) << (8 * i)
	}
	s, c = bits.Add64(s, rest, c)
	s, c = bits.Add64(s, 0, c)
	s += c
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	return sum + uint32(bits.ReverseBytes16(foldSum(uint32(s))))
}

// flowHash is the same for all packets of a flow, in both directions. A flow is a TCP or UDP connection; packets of
// other protocols between two addresses are one flow. Fragments are a flow of their own, as only the first fragment
// has ports. parseAddresses has accepted the packet.
func flowHash(packet []byte) uint32 {
	var (
		hash     uint64
		protocol byte
		ports    []byte
	)
	if packet[0]>>4 == 4 {
		hash = uint64(binary.BigEndian.Uint32(packet[12:])) + uint64(binary.BigEndian.Uint32(packet[16:]))
		protocol = packet[9]
		if binary.BigEndian.Uint16(packet[6:])&0x3fff == 0 {
			ports = packet[int(packet[0]&0x0f)*4:]
		}
	} else {
		hash = binary.BigEndian.Uint64(packet[8:]) + binary.BigEndian.Uint64(packet[24:])
		hash = mixBits(hash) + binary.BigEndian.Uint64(packet[16:]) + binary.BigEndian.Uint64(packet[32:])
		protocol = packet[6]
		ports = packet[40:]
	}
	hash = mixBits(hash) + uint64(protocol)
	if (protocol == 6 || protocol == 17) && len(ports) >= 4 {
		a, b := uint64(binary.BigEndian.Uint16(ports)), uint64(binary.BigEndian.Uint16(ports[2:]))
		hash += (a+b)<<24 + (a^b)<<8
	}
	return uint32(mixBits(hash) >> 32)
}

// mixBits spreads every bit of x over all 64 bits (the finalizer of MurmurHash3).
func mixBits(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
