package bridge

// ICMP errors. They let an application fail at once, instead of after minutes, when its packets cannot be delivered,
// and let a host send smaller packets when its packets are too big (RFC 792, RFC 1191, RFC 4443).

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

const (
	icmpBufferSize = 1280 // bytes of the largest ICMP error: RFC 4443, 2.4(c)

	// Limits of ICMP errors of a TUN reader, and of a session (RFC 1812, 4.3.2.8).
	icmpInterval = 10 * time.Millisecond // per message
	maxICMPBurst = 50                    // messages
)

func newICMPLimiter() *rate.Limiter { return rate.NewLimiter(rate.Every(icmpInterval), maxICMPBurst) }

// icmpError is the type, the code and the rest of the header of an ICMP error.
type icmpError struct {
	kind, code byte
	rest       uint32
}

// icmpUnreachable returns the ICMP message that tells the sender of packet that its destination cannot be reached. It
// is built in buf (at least icmpBufferSize bytes), and nil when no message may be sent.
func icmpUnreachable(buf, packet []byte) []byte {
	return buildICMPError(buf, packet, icmpError{3, 1, 0}, icmpError{1, 3, 0}) // host, address unreachable
}

// icmpTooBig returns the ICMP message that tells the sender of packet that it is longer than mtu (for a super-packet:
// that its segments are). It is built in buf (at least icmpBufferSize bytes), and nil when no message may be sent. In
// either case the caller drops the packet and counts it.
//
// No message answers an IPv4 packet without DF (RFC 1191, 4): its sender relies on routers that fragment, and the
// bridge does not. Such packets come from hosts without path MTU discovery, or are fragments of datagrams that exceed
// the MTU of the device.
//
// IPv6 hosts need not send less than 1280 bytes at a time (RFC 8200, 5), so a message asks for that at least.
func icmpTooBig(buf, packet []byte, mtu int) []byte {
	if len(packet) >= 20 && packet[0]>>4 == 4 && packet[6]&0x40 == 0 {
		return nil
	}
	return buildICMPError(buf, packet,
		icmpError{3, 4, uint32(min(mtu, 0xffff))}, icmpError{2, 0, uint32(max(mtu, 1280))})
}

// buildICMPError returns the ICMP message for the family of packet, built in buf (at least icmpBufferSize bytes), or
// nil when no message may be sent: RFC 1122 3.2.2, RFC 4443 2.4(e).
//
// Its source is the address that cannot be reached. An address of the local cluster would be the usual source, but
// the kernel drops packets that come in from a device with one of its own addresses as source. The unreachable address
// passes the reverse path filter, too, as its route leads to the device.
func buildICMPError(buf, packet []byte, v4, v6 icmpError) []byte {
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	src, dst, ok := parseAddresses(packet)
	if !ok || !src.IsGlobalUnicast() || !dst.IsGlobalUnicast() || dst == broadcast {
		return nil
	}
	if src.Is4() {
		return v4.buildIPv4(buf, packet)
	}
	return v6.buildIPv6(buf, packet)
}

func (e icmpError) buildIPv4(buf, packet []byte) []byte {
	header := int(packet[0]&0x0f) * 4
	if binary.BigEndian.Uint16(packet[6:])&0x1fff != 0 { // not the first fragment
		return nil
	}
	if packet[9] == 1 { // ICMP: errors are sent for queries only
		if len(packet) <= header || packet[header] != 8 && packet[header] != 13 {
			return nil
		}
	}
	quoted := packet[:min(len(packet), 576-28)] // RFC 1812, 4.3.2.3
	b := append(buf[:0], 0x45, 0xc0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0)
	b = append(b, packet[16:20]...)
	b = append(b, packet[12:16]...)
	b = e.appendMessage(b, quoted)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[10:], ^foldSum(sum16(b[:20], 0)))
	binary.BigEndian.PutUint16(b[22:], ^foldSum(sum16(b[20:], 0)))
	return b
}

func (e icmpError) buildIPv6(buf, packet []byte) []byte {
	header, next := 40, packet[6]
	if next == 44 && len(packet) >= 48 { // errors are sent for the first fragment only (RFC 8200, 4.5)
		if binary.BigEndian.Uint16(packet[42:])&^7 != 0 {
			return nil
		}
		header, next = 48, packet[40]
	}
	switch next {
	case 58: // ICMPv6: no errors for errors, nor for neighbour discovery
		if len(packet) <= header || packet[header] != 128 {
			return nil
		}
	case 6, 17, 132: // TCP, UDP, SCTP
	default: // the protocol behind other extension headers is not looked for
		return nil
	}
	quoted := packet[:min(len(packet), icmpBufferSize-48)]
	b := append(buf[:0], 0x60, 0, 0, 0, 0, 0, 58, 64)
	b = append(b, packet[24:40]...)
	b = append(b, packet[8:24]...)
	b = e.appendMessage(b, quoted)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	sum := sum16(b[8:40], uint32(len(b)-40)+58) // pseudo header
	binary.BigEndian.PutUint16(b[42:], ^foldSum(sum16(b[40:], sum)))
	return b
}

// appendMessage appends the ICMP message to b, with a checksum of 0.
func (e icmpError) appendMessage(b, quoted []byte) []byte {
	b = binary.BigEndian.AppendUint32(append(b, e.kind, e.code, 0, 0), e.rest)
	return append(b, quoted...)
}
