package bridge

// Headers, ICMP, queue and limiter by themselves.

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
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
		binary.BigEndian.PutUint16(b[10:], ^foldSum(sum16(b[:20], 0)))
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
		src, dst, ok := parseAddresses(test.packet)
		if ok != test.ok {
			t.Errorf("%s: %v", test.name, ok)
		}
		if ok && src.String() != "192.168.0.12" && src.String()+dst.String() != "fd00::1fd01::2" {
			t.Errorf("%s: %s to %s", test.name, src, dst)
		}
	}
}

func TestHasSourceRoute(t *testing.T) {
	v4 := func(options ...byte) []byte {
		options = append(options, make([]byte, (4-len(options)%4)%4)...)
		p := append(packet("192.168.0.12", "100.64.0.1", 64, 28, 0)[:20], options...)
		p = append(p, make([]byte, 8)...)
		p[0], p[3] = 0x45+byte(len(options)/4), byte(len(p))
		return p
	}
	v6 := func(next byte, extensions ...byte) []byte {
		p := packet("fd00::12", "fd00::11", 64, 48, 0)[:40]
		p[6], p[5] = next, byte(len(extensions)+8)
		return append(append(p, extensions...), make([]byte, 8)...)
	}
	many := bytes.Repeat([]byte{60, 0, 1, 4, 0, 0, 0, 0}, maxExtensions)
	for _, test := range []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"no options", v4(), false},
		{"router alert", v4(148, 4, 0, 0), false},
		{"record route", v4(1, 7, 7, 4, 0, 0, 0, 0), false},
		{"loose source route", v4(131, 7, 4, 10, 0, 0, 1), true},
		{"strict source route", v4(137, 7, 4, 10, 0, 0, 1), true},
		{"behind others", v4(1, 148, 4, 0, 0, 131, 7, 4, 10, 0, 0, 1), true},
		{"behind one of length 0", v4(148, 0, 131, 7, 4, 10, 0, 0, 1), true},
		{"behind the end", v4(0, 131, 7, 4, 10, 0, 0, 1), false},
		{"cut", v4(1, 1, 1, 148), true},
		{"UDP over IPv6", v6(17), false},
		{"routing header with segments left", v6(43, 17, 0, 4, 1, 0, 0, 0, 0), true},
		{"without", v6(43, 17, 0, 4, 0, 0, 0, 0, 0), false},
		{"behind options", v6(60, 43, 0, 1, 4, 0, 0, 0, 0, 17, 0, 4, 1, 0, 0, 0, 0), true},
		{"too long", v6(60, 43, 9, 1, 4, 0, 0, 0, 0), true},
		{"behind too many", v6(60, many...), true},
		{"fragment of it", v6(44, 43, 0, 0, 1, 0, 0, 0, 0, 17, 0, 4, 1, 0, 0, 0, 0), true},
		{"fragment", v6(44, 17, 0, 0, 1, 0, 0, 0, 0), false},
	} {
		if _, _, ok := parseAddresses(test.packet); !ok {
			t.Errorf("%s: not sound", test.name)
		} else if got := hasSourceRoute(test.packet); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}

	// One check on the way in.
	_, s := newTestSession(t)
	room := append(make([]byte, vnetSize), v4(131, 7, 4, 10, 0, 0, 1)...)
	s.receivePacket(room, vnetHeader{})
	if n := s.peer.counters.drops[DropDestination].Load(); n != 1 {
		t.Errorf("%d packets with a source route", n)
	}
}

func TestDecrementTTL(t *testing.T) {
	for _, ttl := range []byte{2, 64, 255} {
		for mark := range 300 { // with various identifications, so various checksums
			p := packet("192.168.0.12", "100.64.0.1", ttl, 60, 0)
			binary.BigEndian.PutUint16(p[4:], uint16(mark*219))
			binary.BigEndian.PutUint16(p[10:], 0)
			binary.BigEndian.PutUint16(p[10:], ^foldSum(sum16(p[:20], 0)))
			if !decrementTTL(p) || p[8] != ttl-1 || foldSum(sum16(p[:20], 0)) != 0xffff {
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
	msg := icmpUnreachable(buf, v4)
	if len(msg) != 576 || msg[20] != 3 || msg[21] != 1 || foldSum(sum16(msg[:20], 0)) != 0xffff ||
		foldSum(sum16(msg[20:], 0)) != 0xffff || !bytes.Equal(msg[28:], v4[:548]) {
		t.Errorf("IPv4: %x", msg)
	}
	if src, dst, ok := parseAddresses(msg); !ok || src.String() != "192.168.0.99" || dst.String() != "192.168.0.11" {
		t.Errorf("IPv4 from %s to %s, %v", src, dst, ok)
	}
	v6 := packet("fd00::1", "fd00::99", 64, 100, 0)
	msg = icmpUnreachable(buf, v6)
	if len(msg) != 148 || msg[40] != 1 || msg[41] != 3 || !bytes.Equal(msg[48:], v6) ||
		foldSum(sum16(msg[40:], sum16(msg[8:40], uint32(len(msg)-40)+58))) != 0xffff {
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
		if msg := icmpUnreachable(buf, p); msg != nil {
			t.Errorf("%s is answered: %x", name, msg)
		}
	}
	if icmpUnreachable(buf, change(icmp, 20, 8)) == nil {
		t.Error("ping is not answered")
	}
}

func TestTooBig(t *testing.T) {
	buf := make([]byte, 1280)
	change := func(b []byte, at int, to byte) []byte { b = bytes.Clone(b); b[at] = to; return b }
	fragment := func(b []byte, next byte, offset uint16) []byte {
		b = change(change(b, 6, 44), 40, next)
		binary.BigEndian.PutUint16(b[42:], offset|1) // more follow
		return b
	}
	small, large := packet("192.168.0.11", "192.168.0.12", 64, 100, 0), packet("192.168.0.11", "192.168.0.12", 64, 1500, 0)
	v4, dst4 := change(large, 6, 0x40), packet("192.168.0.11", "224.0.0.1", 64, 1500, 0)
	options := change(v4, 0, 0x46)
	v6 := packet("fd00::1", "fd00::2", 64, 1500, 0)
	short := packet("fd00::1", "fd00::2", 64, 80, 0)[:44]
	short[5] = 4
	icmp, icmp6 := change(v4, 9, 1), change(v6, 6, 58)
	for _, test := range []struct {
		name   string
		packet []byte
		mtu    int
		header string // of the ICMP message without the checksum; empty: no message
		size   int
	}{
		{"IPv4", v4, 1400, "\x03\x04\x00\x00\x05\x78", 576},
		{"IPv4 with options", options, 1400, "\x03\x04\x00\x00\x05\x78", 576},
		{"IPv4, all of it quoted", change(small, 6, 0x40), 68, "\x03\x04\x00\x00\x00\x44", 128},
		{"IPv4, an MTU over 16 bits", v4, 70000, "\x03\x04\x00\x00\xff\xff", 576},
		{"IPv4 without DF", large, 1400, "", 0},
		{"IPv4 first fragment", change(v4, 6, 0x60), 1400, "\x03\x04\x00\x00\x05\x78", 576},
		{"IPv4 later fragment", change(v4, 7, 1), 1400, "", 0},
		{"IPv4 ping", change(icmp, 20, 8), 1400, "\x03\x04\x00\x00\x05\x78", 576},
		{"IPv4 ICMP error", change(icmp, 20, 3), 1400, "", 0},
		{"IPv4 multicast", change(dst4, 6, 0x40), 1400, "", 0},
		{"IPv6", v6, 1400, "\x02\x00\x00\x00\x05\x78", 1280},
		{"IPv6, an MTU below the least", v6, 576, "\x02\x00\x00\x00\x05\x00", 1280},
		{"IPv6, an MTU over 16 bits", v6, 70000, "\x02\x00\x00\x01\x11\x70", 1280},
		{"IPv6 ping", change(icmp6, 40, 128), 1400, "\x02\x00\x00\x00\x05\x78", 1280},
		{"IPv6 first fragment", fragment(v6, 17, 0), 1400, "\x02\x00\x00\x00\x05\x78", 1280},
		{"IPv6 later fragment", fragment(v6, 17, 1448), 1400, "", 0},
		{"IPv6 fragment of an ICMP error", change(fragment(v6, 58, 0), 48, 1), 1400, "", 0},
		{"IPv6 fragment of a ping", change(fragment(v6, 58, 0), 48, 128), 1400, "\x02\x00\x00\x00\x05\x78", 1280},
		{"IPv6 fragment without its header", change(short, 6, 44), 1400, "", 0},
		{"IPv6 ICMP error", change(icmp6, 40, 2), 1400, "", 0},
		{"IPv6 hop-by-hop options", change(v6, 6, 0), 1400, "", 0},
		{"IPv6 multicast", packet("fd00::1", "ff05::2", 64, 1500, 0), 1400, "", 0},
		{"IPv6 from nowhere", packet("::", "fd00::2", 64, 1500, 0), 1400, "", 0},
		{"not a packet", []byte{0x45}, 1400, "", 0},
	} {
		msg := icmpTooBig(buf, test.packet, test.mtu)
		if len(msg) != test.size {
			t.Errorf("%s: %d bytes, want %d: %x", test.name, len(msg), test.size, msg)
		}
		if len(msg) == 0 {
			continue
		}
		from, to, ok := parseAddresses(msg)
		src, dst, _ := parseAddresses(test.packet)
		if !ok || from != dst || to != src {
			t.Errorf("%s: from %s to %s, %v", test.name, from, to, ok)
		}
		header, sum := 20, uint32(0)
		if src.Is6() {
			header, sum = 40, sum16(msg[8:40], uint32(len(msg)-40)+58)
		} else if foldSum(sum16(msg[:20], 0)) != 0xffff {
			t.Errorf("%s: checksum of the header: %x", test.name, msg[:20])
		}
		if foldSum(sum16(msg[header:], sum)) != 0xffff {
			t.Errorf("%s: checksum: %x", test.name, msg[header:header+8])
		}
		if got := string(msg[header:header+2]) + string(msg[header+4:header+8]); got != test.header {
			t.Errorf("%s: header %x, want %x", test.name, got, test.header)
		}
		if !bytes.HasPrefix(test.packet, msg[header+8:]) {
			t.Errorf("%s: quotes %x", test.name, msg[header+8:])
		}
	}
	if n := testing.AllocsPerRun(100, func() { icmpTooBig(buf, v4, 1400); icmpTooBig(buf, v6, 1400) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestICMPLimiter(t *testing.T) {
	l := newICMPLimiter()
	l.SetBurst(5)
	n, start := 0, time.Now()
	for now := time.Duration(1); now < time.Second; now += time.Millisecond {
		if l.AllowN(start.Add(now), 1) {
			n++
		}
	}
	if n < 90 || n > 105 {
		t.Errorf("%d in a second", n)
	}
}

// FuzzPacket: all packets that reach the TUN are valid, from the peer and within ingress.
func FuzzPacket(f *testing.F) {
	f.Add(packet("192.168.0.12", "100.64.0.1", 64, 60, 0), []byte{})
	f.Add(packet("fd00::12", "fd00::11", 64, 60, 0), []byte{1, 0, 0, 0, 0, 0, 40, 0, 6, 0})
	tun := newMemTUN()
	b, err := Open(Config{Interface: "mem", open: openerOf(tun), Log: quiet})
	if err != nil {
		f.Fatal(err)
	}
	defer b.Close(false)
	p := newPeer(b.shared, b.router, b.iface, &spec)
	p.filter.Store(newIngressFilter(&spec, verdictTables{}))
	routes := &routingTable{}
	for _, n := range spec.Networks {
		routes.routes.Insert(n, p)
	}
	b.router.table.Store(routes)
	icmp := make([]byte, 1280)
	sess := newSession(p, null{}, newBatchConn(null{}, time.Second), true, 0, p.featureFlags(),
		&hello.Hello{Capable: true, Flags: ^uint32(0)})
	sess.flags |= hello.FlagOffload | hello.FlagUSO
	f.Fuzz(func(t *testing.T, in, vnet []byte) {
		var offload []byte
		if len(vnet) == vnetSize {
			offload = hello.AppendFrame(nil, hello.FrameOffload, vnet)
		}
		if len(in) > hello.MaxPayload {
			return
		}
		icmpUnreachable(icmp, in)
		icmpTooBig(icmp, in, 1400)
		frames := hello.AppendFrame(append(make([]byte, headroom), offload...), hello.FramePacket, in)
		sess.handleFrames(frames, headroom)
		for len(tun.out) > 0 {
			out := <-tun.out
			src, dst, ok := parseAddresses(out)
			if !ok || src != spec.Addresses.First().Addr() && src != netip.MustParseAddr("fd00::12") ||
				!spec.Ingress[0].Prefix.Contains(dst) && !spec.Ingress[1].Prefix.Contains(dst) ||
				spec.Ingress[2].Prefix.Contains(dst) {
				t.Fatalf("passed: %x", out)
			}
		}
	})
}
