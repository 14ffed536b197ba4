package bridge

// ICMP errors, so that users whose packets lead nowhere fail at once and not after minutes, and those
// whose packets are too big send smaller ones (RFC 792, RFC 1191, RFC 4443).

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// icmpError is the type, the code and the rest of the header of an ICMP error.
type icmpError struct {
	kind, code byte
	rest       uint32
}

// icmpUnreachable returns the ICMP message that tells the sender of packet that its destination cannot be
// reached, built in buf (at least 1280 bytes), or nil when none may be sent.
func icmpUnreachable(buf, packet []byte) []byte {
	return appendICMPError(buf, packet, icmpError{3, 1, 0}, icmpError{1, 3, 0}) // host, address unreachable
}

// icmpTooBig returns the ICMP message that tells the sender of packet that it is longer than mtu (for a
// super-packet: that its segments are), built in buf (at least 1280 bytes), or nil when none may be
// sent. In either case the caller drops the packet and counts it.
//
// There is none for an IPv4 packet without DF either (RFC 1191 4): its sender counts on routers that
// fragment, which we do not. These are of who switched path MTU discovery off, and the fragments of
// datagrams over the MTU of the device.
//
// IPv6 hosts need not send less than 1280 bytes at a time (RFC 8200 5), so that is the least we ask for.
func icmpTooBig(buf, packet []byte, mtu int) []byte {
	if len(packet) >= 20 && packet[0]>>4 == 4 && packet[6]&0x40 == 0 {
		return nil
	}
	return appendICMPError(buf, packet, icmpError{3, 4, uint32(min(mtu, 0xffff))}, icmpError{2, 0, uint32(max(mtu, 1280))})
}

// appendICMPError returns the ICMP message that answers packet, one for each family, built in buf (at least 1280
// bytes), or nil when none may be sent: RFC 1122 3.2.2, RFC 4443 2.4(e).
//
// It comes from the very address that cannot be reached. An address of our own would be correct
// style, but the kernel drops what comes in from a device with a source that is its own; this
// source passes the reverse path filter too, as its route leads to the device.
func appendICMPError(buf, packet []byte, v4, v6 icmpError) []byte {
	src, dst, ok := parseAddresses(packet)
	if !ok || !src.IsGlobalUnicast() || !dst.IsGlobalUnicast() || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return nil
	}
	if src.Is4() {
		header := int(packet[0]&0x0f) * 4
		if binary.BigEndian.Uint16(packet[6:])&0x1fff != 0 { // not the first fragment
			return nil
		}
		if packet[9] == 1 { // ICMP: only queries are answered
			if len(packet) <= header || packet[header] != 8 && packet[header] != 13 {
				return nil
			}
		}
		quoted := packet[:min(len(packet), 576-28)] // RFC 1812 4.3.2.3
		b := append(buf[:0], 0x45, 0xc0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0)
		b = append(b, packet[16:20]...)
		b = append(b, packet[12:16]...)
		b = v4.appendMessage(b, quoted)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[10:], ^foldSum(sum16(b[:20], 0)))
		binary.BigEndian.PutUint16(b[22:], ^foldSum(sum16(b[20:], 0)))
		return b
	}
	header, next := 40, packet[6]
	if next == 44 && len(packet) >= 48 { // of fragments, the first (RFC 8200 4.5)
		if binary.BigEndian.Uint16(packet[42:])&^7 != 0 {
			return nil
		}
		header, next = 48, packet[40]
	}
	switch next {
	case 58: // ICMPv6: not for errors, nor for neighbour discovery
		if len(packet) <= header || packet[header] != 128 {
			return nil
		}
	case 6, 17, 132: // TCP, UDP, SCTP
	default: // what hides behind other extension headers
		return nil
	}
	quoted := packet[:min(len(packet), 1280-48)]
	b := append(buf[:0], 0x60, 0, 0, 0, 0, 0, 58, 64)
	b = append(b, packet[24:40]...)
	b = append(b, packet[8:24]...)
	b = v6.appendMessage(b, quoted)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	sum := sum16(b[8:40], uint32(len(b)-40)+58) // pseudo header
	binary.BigEndian.PutUint16(b[42:], ^foldSum(sum16(b[40:], sum)))
	return b
}

// appendMessage appends the message to b, its checksum 0.
func (e icmpError) appendMessage(b, quoted []byte) []byte {
	b = binary.BigEndian.AppendUint32(append(b, e.kind, e.code, 0, 0), e.rest)
	return append(b, quoted...)
}

// limiter is a token bucket (RFC 1812 4.3.2.8). It belongs to one goroutine, or to who locks it.
type limiter struct {
	every  time.Duration // one token
	burst  int
	tokens int
	last   time.Duration
}

func (l *limiter) allow(now time.Duration) bool {
	if n := int((now - l.last) / l.every); n > 0 || l.last == 0 {
		if l.last == 0 {
			l.tokens = l.burst
		}
		l.tokens = min(l.burst, l.tokens+n)
		l.last = now
	}
	if l.tokens == 0 {
		return false
	}
	l.tokens--
	return true
}
