package bridge

// Headers, ICMP, queue and limiter by themselves.

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// packet makes a UDP packet, IPv4 or IPv6, of size bytes with its last 8 bytes a mark.
func packet(src, dst string, ttl byte, size int, mark uint64) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	b := make([]byte, size)
	udp := 20
	if s.Is6() {
		udp = 40
		b[0], b[6], b[7] = 0x60, 17, ttl
		binary.BigEndian.PutUint16(b[4:], uint16(size-40))
		copy(b[8:], s.AsSlice())
		copy(b[24:], d.AsSlice())
	} else {
		b[0], b[8], b[9] = 0x45, ttl, 17
		binary.BigEndian.PutUint16(b[2:], uint16(size))
		copy(b[12:], s.AsSlice())
		copy(b[16:], d.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^fold(sum16(b[:20], 0)))
	}
	binary.BigEndian.PutUint16(b[udp+4:], uint16(size-udp))
	binary.BigEndian.PutUint64(b[size-8:], mark)
	return b
}

func TestAddresses(t *testing.T) {
	v4, v6 := packet("192.168.0.12", "100.64.0.1", 64, 60, 0), packet("fd00::1", "fd01::2", 64, 80, 0)
	change := func(b []byte, at int, to byte) []byte { b = bytes.Clone(b); b[at] = to; return b }
	for _, test := range []struct {
		name   string
		packet []byte
		ok     bool
	}{
		{"IPv4", v4, true},
		{"IPv6", v6, true},
		{"empty", nil, false},
		{"version 5", change(v4, 0, 0x55), false},
		{"header too short", change(v4, 0, 0x44), false},
		{"options beyond the end", change(v4[:20], 0, 0x46), false},
		{"IPv4 longer than it says", append(bytes.Clone(v4), 0), false},
		{"IPv4 cut", v4[:59], false},
		{"IPv6 longer than it says", append(bytes.Clone(v6), 0), false},
		{"IPv6 header cut", v6[:39], false},
	} {
		src, dst, ok := addresses(test.packet)
		if ok != test.ok {
			t.Errorf("%s: %v", test.name, ok)
		}
		if ok && src.String() != "192.168.0.12" && src.String()+dst.String() != "fd00::1fd01::2" {
			t.Errorf("%s: %s to %s", test.name, src, dst)
		}
	}
}

func TestDecrementTTL(t *testing.T) {
	for _, ttl := range []byte{2, 64, 255} {
		for mark := range 300 { // with various identifications, so various checksums
			p := packet("192.168.0.12", "100.64.0.1", ttl, 60, 0)
			binary.BigEndian.PutUint16(p[4:], uint16(mark*219))
			binary.BigEndian.PutUint16(p[10:], 0)
			binary.BigEndian.PutUint16(p[10:], ^fold(sum16(p[:20], 0)))
			if !decrementTTL(p) || p[8] != ttl-1 || fold(sum16(p[:20], 0)) != 0xffff {
				t.Fatalf("ttl %d: %x", ttl, p[:20])
			}
		}
	}
	for _, src := range []string{"192.168.0.12", "fd00::1"} {
		for _, ttl := range []byte{0, 1} {
			if p := packet(src, src, ttl, 60, 0); decrementTTL(p) {
				t.Errorf("%s: no hop is left of %d", src, ttl)
			}
		}
	}
}

func TestUnreachable(t *testing.T) {
	buf := make([]byte, 1280)
	v4 := packet("192.168.0.11", "192.168.0.99", 64, 1400, 0)
	msg := unreachable(buf, v4)
	if len(msg) != 576 || msg[20] != 3 || msg[21] != 1 || fold(sum16(msg[:20], 0)) != 0xffff ||
		fold(sum16(msg[20:], 0)) != 0xffff || !bytes.Equal(msg[28:], v4[:548]) {
		t.Errorf("IPv4: %x", msg)
	}
	if src, dst, ok := addresses(msg); !ok || src.String() != "192.168.0.99" || dst.String() != "192.168.0.11" {
		t.Errorf("IPv4 from %s to %s, %v", src, dst, ok)
	}
	v6 := packet("fd00::1", "fd00::99", 64, 100, 0)
	msg = unreachable(buf, v6)
	if len(msg) != 148 || msg[40] != 1 || msg[41] != 3 || !bytes.Equal(msg[48:], v6) ||
		fold(sum16(msg[40:], sum16(msg[8:40], uint32(len(msg)-40)+58))) != 0xffff {
		t.Errorf("IPv6: %x", msg)
	}
	change := func(b []byte, at int, to byte) []byte { b = bytes.Clone(b); b[at] = to; return b }
	icmp := change(v4, 9, 1)
	for name, p := range map[string][]byte{
		"multicast":     packet("192.168.0.11", "224.0.0.1", 64, 60, 0),
		"broadcast":     packet("192.168.0.11", "255.255.255.255", 64, 60, 0),
		"from nowhere":  packet("0.0.0.0", "192.168.0.99", 64, 60, 0),
		"fragment":      change(v4, 7, 9),
		"ICMP error":    change(icmp, 20, 3),
		"multicast v6":  packet("fd00::1", "ff02::2", 64, 60, 0),
		"fragment v6":   change(v6, 6, 44),
		"ICMPv6 error":  change(change(v6, 6, 58), 40, 1),
		"not a packet":  {1, 2, 3},
		"solicitations": change(change(v6, 6, 58), 40, 135),
	} {
		if msg := unreachable(buf, p); msg != nil {
			t.Errorf("%s is answered: %x", name, msg)
		}
	}
	if unreachable(buf, change(icmp, 20, 8)) == nil {
		t.Error("ping is not answered")
	}
}

func TestQueueDropsOldest(t *testing.T) {
	q := queue{packets: make(chan *buffer, queuePackets)}
	dropped := 0
	for i := range byte(10) {
		dropped += q.push(copyBuffer([]byte{i}), 4)
	}
	for i := byte(6); i < 10; i++ {
		if buf := q.pop(); buf == nil || buf.packet()[0] != i {
			t.Fatalf("%d is not next: %v", i, buf)
		}
	}
	if dropped != 6 || q.pop() != nil || q.bytes.Load() != 0 {
		t.Errorf("%d dropped, %d bytes left", dropped, q.bytes.Load())
	}
	for range 100 { // large packets are bounded by their bytes
		q.push(newBuffer(maxPayload), queuePackets)
	}
	if n := len(q.packets); n != queueBytes/maxPayload {
		t.Errorf("%d large packets are queued", n)
	}
	for range 2 * queuePackets {
		q.push(newBuffer(100), queuePackets)
	}
	if n := len(q.packets); n != queuePackets || q.bytes.Load() != 100*queuePackets {
		t.Errorf("%d small packets of %d bytes are queued", n, q.bytes.Load())
	}
}

func TestLimiter(t *testing.T) {
	l := limiter{every: 10 * time.Millisecond, burst: 5}
	n := 0
	for now := time.Duration(1); now < time.Second; now += time.Millisecond {
		if l.allow(now) {
			n++
		}
	}
	if n < 90 || n > 105 {
		t.Errorf("%d in a second", n)
	}
}

// FuzzPacket: whatever a peer sends, what reaches the TUN is sound, from the peer and within ingress.
func FuzzPacket(f *testing.F) {
	f.Add(packet("192.168.0.12", "100.64.0.1", 64, 60, 0))
	f.Add(packet("fd00::12", "fd00::11", 64, 60, 0))
	tun := newMemTUN()
	b, err := Open(Config{Interface: "mem", open: opens(tun), Log: quiet})
	if err != nil {
		f.Fatal(err)
	}
	defer b.Close(false)
	p := b.newPeer(&spec)
	p.filter.Store(newFilter(&spec))
	routes := &table{}
	for _, n := range spec.Networks {
		routes.routes.Insert(n, p)
	}
	b.table.Store(routes)
	icmp := make([]byte, 1280)
	f.Fuzz(func(t *testing.T, in []byte) {
		unreachable(icmp, in)
		p.receive(bytes.Clone(in))
		select {
		case out := <-tun.out:
			src, dst, ok := addresses(out)
			if !ok || src != spec.Address.Addr() && src != netip.MustParseAddr("fd00::12") ||
				!spec.Ingress[0].Prefix.Contains(dst) && !spec.Ingress[1].Prefix.Contains(dst) || spec.Ingress[2].Prefix.Contains(dst) {
				t.Fatalf("passed: %x", out)
			}
		default:
		}
	})
}
