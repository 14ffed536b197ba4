package bridge

// "Destination unreachable" for packets that lead nowhere, so that users fail at once and not
// after minutes (RFC 792, RFC 4443).

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// unreachable returns the ICMP message that answers packet, built in buf (at least 1280 bytes),
// or nil when none may be sent: RFC 1122 3.2.2, RFC 4443 2.4(e).
//
// It comes from the very address that cannot be reached. An address of our own would be correct
// style, but the kernel drops what comes in from a device with a source that is its own; this
// source passes the reverse path filter too, as its route leads to the device.
func unreachable(buf, packet []byte) []byte {
	src, dst, ok := addresses(packet)
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
		b = append(b, 3, 1, 0, 0, 0, 0, 0, 0) // host unreachable
		b = append(b, quoted...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[10:], ^fold(sum16(b[:20], 0)))
		binary.BigEndian.PutUint16(b[22:], ^fold(sum16(b[20:], 0)))
		return b
	}
	switch next := packet[6]; next {
	case 58: // ICMPv6: not for errors, nor for neighbour discovery
		if len(packet) <= 40 || packet[40] != 128 {
			return nil
		}
	case 6, 17, 132: // TCP, UDP, SCTP
	default: // fragments and what hides behind other extension headers
		return nil
	}
	quoted := packet[:min(len(packet), 1280-48)]
	b := append(buf[:0], 0x60, 0, 0, 0, 0, 0, 58, 64)
	b = append(b, packet[24:40]...)
	b = append(b, packet[8:24]...)
	b = append(b, 1, 3, 0, 0, 0, 0, 0, 0) // address unreachable
	b = append(b, quoted...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	sum := sum16(b[8:40], uint32(len(b)-40)+58) // pseudo header
	binary.BigEndian.PutUint16(b[42:], ^fold(sum16(b[40:], sum)))
	return b
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
