package bridge

// Offloads, with the kernel as the judge: what it makes of a super-packet for a TUN without offloads is
// what the segmenter has to make of it.

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// slowSum is the sum of RFC 1071, word by word.
func slowSum(b []byte, sum uint32) uint16 {
	for i, v := range b {
		if sum += uint32(v); i%2 == 0 {
			sum += uint32(v)<<8 - uint32(v)
		}
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum>>16 + sum&0xffff)
}

// pseudoSum is the sum of the pseudo header of a packet with n bytes of transport header and payload.
func pseudoSum(packet []byte, protocol byte, n int) uint16 {
	pair := packet[12:20]
	if packet[0]>>4 == 6 {
		pair = packet[8:40]
	}
	return slowSum(pair, uint32(protocol)+uint32(n)>>16+uint32(n)&0xffff)
}

// flow is what all packets of a test have in common.
type flow struct {
	v6, tcp           bool
	ipOptions         int // bytes of IPv4 options or of IPv6 extension headers
	tcpOptions        int
	flags, tos        byte
	id, fragment, mss uint16
	seq               uint32
}

// super makes a super-packet, or with an mss of 0 a packet that needs its checksum.
func (f flow) super(payload []byte) (vnetHeader, []byte) {
	start, length, protocol := 20+f.ipOptions, 8, byte(protocolUDP)
	if f.v6 {
		start = 40 + f.ipOptions
	}
	if f.tcp {
		length, protocol = 20+f.tcpOptions, protocolTCP
	}
	b := make([]byte, start+length, start+length+len(payload))
	b = append(b, payload...)
	if f.v6 {
		b[0], b[1], b[3], b[6], b[7] = 0x60|f.tos>>4, f.tos<<4, 7, protocol, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		copy(b[8:], netip.MustParseAddr("fd00::1").AsSlice())
		copy(b[24:], netip.MustParseAddr("fd00::2").AsSlice())
		if f.ipOptions > 0 { // destination options: one PadN
			b[6], b[40], b[41], b[42], b[43] = 60, protocol, byte(f.ipOptions/8-1), 1, byte(f.ipOptions-4)
		}
	} else {
		b[0], b[1], b[8], b[9] = 0x40|byte(start/4), f.tos, 64, protocol
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[4:], f.id)
		binary.BigEndian.PutUint16(b[6:], f.fragment)
		copy(b[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
		for i := 20; i < start; i++ {
			b[i] = 1 // no operation
		}
		binary.BigEndian.PutUint16(b[10:], ^slowSum(b[:start], 0))
	}
	h := vnetHeader{flags: needsCsum, gsoSize: f.mss, csumStart: uint16(start), csumOffset: csumUDP}
	l4 := b[start:]
	binary.BigEndian.PutUint16(l4, 4321)
	binary.BigEndian.PutUint16(l4[2:], 9)
	if f.tcp {
		h.csumOffset = csumTCP
		binary.BigEndian.PutUint32(l4[4:], f.seq)
		binary.BigEndian.PutUint32(l4[8:], 0x12345678)
		l4[12], l4[13], l4[14] = byte(length/4)<<4, f.flags, 1
		for i := range f.tcpOptions {
			l4[20+i] = 1
		}
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	}
	binary.BigEndian.PutUint16(l4[h.csumOffset:], pseudoSum(b, protocol, len(l4)))
	switch {
	case f.mss == 0:
	case !f.tcp:
		h.gsoType = gsoUDP
	case f.v6:
		h.gsoType = gsoTCPv6
	default:
		h.gsoType = gsoTCPv4
	}
	h.hdrLen = uint16(start + length)
	return h, b
}

// flows are all kinds of them.
func flows(mss uint16) (all []flow) {
	for _, v6 := range []bool{false, true} {
		for _, tcp := range []bool{false, true} {
			for _, ipOptions := range []int{0, 8, 40} {
				f := flow{v6: v6, tcp: tcp, ipOptions: ipOptions, mss: mss, id: 0xfffe, seq: 0xffffff00, tos: 2, fragment: 0x4000}
				if tcp {
					f.tcpOptions, f.flags = 12, 0x99 // CWR, ACK, PSH, FIN
				}
				all = append(all, f)
			}
		}
	}
	return all
}

func (f flow) String() string {
	return fmt.Sprintf("v6 %v, TCP %v, %d+%d bytes of options, flags %#x, MSS %d", f.v6, f.tcp, f.ipOptions, f.tcpOptions,
		f.flags, f.mss)
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// allSegments returns all segments of a super-packet.
func allSegments(h vnetHeader, packet []byte) (segments [][]byte) {
	for s := h.splitPacket(packet); s.nextSize() > 0; {
		b := make([]byte, s.nextSize())
		if n := s.writeNext(b); n != len(b) {
			panic("size of a segment")
		}
		segments = append(segments, b)
	}
	return segments
}

// checksumsGood tells whether all checksums of a packet are.
func checksumsGood(packet []byte) bool {
	if _, _, ok := parseAddresses(packet); !ok {
		return false
	}
	protocol, start, ok := parseTransport(packet)
	if packet[0]>>4 == 4 && slowSum(packet[:int(packet[0]&15)*4], 0) != 0xffff {
		return false
	}
	n := len(packet) - start
	return ok && slowSum(packet[start:], uint32(pseudoSum(packet, protocol, n))) == 0xffff
}

func TestSum(t *testing.T) {
	b := noise(300)
	for from := range 9 {
		for to := from; to <= len(b); to++ {
			sum := rand.Uint32N(1 << 20)
			if got, want := foldSum(sum16(b[from:to], sum)), slowSum(b[from:to], uint32(foldSum(sum))); got != want {
				t.Fatalf("%d to %d: %x, not %x", from, to, got, want)
			}
		}
	}
	for _, v := range []byte{0, 0xff} {
		for n := range 300 {
			if got, want := foldSum(sum16(bytes.Repeat([]byte{v}, n), 0)), slowSum(bytes.Repeat([]byte{v}, n), 0); got != want {
				t.Fatalf("%d of %x: %x, not %x", n, v, got, want)
			}
		}
	}
}

func TestVnetHeader(t *testing.T) {
	b := []byte{1, 5, 2, 0, 4, 3, 6, 0, 8, 9}
	h := parseVnet(b)
	if h != (vnetHeader{1, 5, 2, 0x304, 6, 0x908}) {
		t.Errorf("%+v", h)
	}
	got := make([]byte, vnetSize)
	if h.putBytes(got); !bytes.Equal(got, b) {
		t.Errorf("% x", got)
	}
}

func TestValidateFor(t *testing.T) {
	for _, f := range append(flows(0), flows(1000)...) {
		h, packet := f.super(noise(3000))
		want := h
		h.hdrLen = 0xffff
		if !h.validateFor(packet) || h != want {
			t.Errorf("%v: %+v, not %+v", f, h, want)
		}
		for cutAt := range int(h.hdrLen) {
			short := bytes.Clone(packet[:cutAt])
			if cutAt >= 40 && f.v6 {
				binary.BigEndian.PutUint16(short[4:], uint16(cutAt-40))
			} else if cutAt >= 20 && !f.v6 {
				binary.BigEndian.PutUint16(short[2:], uint16(cutAt))
			}
			if _, _, ok := parseAddresses(short); ok && new(want).validateFor(short) {
				t.Errorf("%v: cut at %d", f, cutAt)
			}
		}
	}

	tcp, udp := flow{tcp: true, mss: 1000}, flow{mss: 1000}
	tcp6, udp6 := flow{tcp: true, mss: 1000, v6: true, ipOptions: 8}, flow{mss: 1000, v6: true}
	for _, test := range []struct {
		name   string
		flow   flow
		change func(h *vnetHeader, packet []byte)
		ok     bool
	}{
		{"nothing to do", tcp, func(h *vnetHeader, _ []byte) { *h = vnetHeader{hdrLen: 7, csumStart: 60000} }, true},
		{"DATA_VALID", tcp, func(h *vnetHeader, _ []byte) { *h = vnetHeader{flags: dataValid} }, false},
		{"DATA_VALID as well", tcp, func(h *vnetHeader, _ []byte) { h.flags |= dataValid }, false},
		{"RSC_INFO", tcp, func(h *vnetHeader, _ []byte) { h.flags = 4 }, false},
		{"segments without checksum", tcp, func(h *vnetHeader, _ []byte) { h.flags = 0 }, false},
		{"ECN", tcp, func(h *vnetHeader, _ []byte) { h.gsoType |= 0x80 }, false},
		{"UFO", udp, func(h *vnetHeader, _ []byte) { h.gsoType = 3 }, false},
		{"TCPv6 in IPv4", tcp, func(h *vnetHeader, _ []byte) { h.gsoType = gsoTCPv6 }, false},
		{"TCPv4 in IPv6", tcp6, func(h *vnetHeader, _ []byte) { h.gsoType = gsoTCPv4 }, false},
		{"UDP is not TCP", udp, func(h *vnetHeader, _ []byte) { h.gsoType = gsoTCPv4 }, false},
		{"TCP is not UDP", tcp, func(h *vnetHeader, _ []byte) { h.gsoType = gsoUDP }, false},
		{"no size", tcp, func(h *vnetHeader, _ []byte) { h.gsoSize = 0 }, false},
		{"GSO_BY_FRAGS", tcp, func(h *vnetHeader, _ []byte) { h.gsoSize = 0xffff }, false},
		{"hundreds of segments of TCP", tcp, func(h *vnetHeader, _ []byte) { h.gsoSize = 8 }, true},
		{"tiny segments of TCP", tcp, func(h *vnetHeader, _ []byte) { h.gsoSize = 7 }, false},
		{"129 segments of UDP", udp, func(h *vnetHeader, _ []byte) { h.gsoSize = 23 }, false},
		{"125 segments of UDP", udp, func(h *vnetHeader, _ []byte) { h.gsoSize = 24 }, true},
		{"start too early", tcp, func(h *vnetHeader, _ []byte) { h.csumStart-- }, false},
		{"start too late", tcp, func(h *vnetHeader, _ []byte) { h.csumStart++ }, false},
		{"start at the end", udp, func(h *vnetHeader, p []byte) { h.gsoType, h.csumStart = 0, uint16(len(p)) }, false},
		{"start beyond the end", udp, func(h *vnetHeader, _ []byte) { h.gsoType, h.csumStart = 0, 0xffff }, false},
		{"wrong field of TCP", tcp, func(h *vnetHeader, _ []byte) { h.csumOffset = 6 }, false},
		{"wrong field of UDP", udp, func(h *vnetHeader, _ []byte) { h.csumOffset = 16 }, false},
		{"field beyond the end", udp, func(h *vnetHeader, _ []byte) { h.gsoType, h.csumOffset = 0, 0xffff }, false},
		{"sum in the header of UDP", udp, func(h *vnetHeader, _ []byte) { h.gsoType, h.csumStart = 0, 22 }, false},
		{"sum in the datagram", udp, func(h *vnetHeader, _ []byte) { h.gsoType, h.csumStart = 0, 60 }, true},
		{"segments in the datagram", udp, func(h *vnetHeader, _ []byte) { h.csumStart = 60 }, false},
		{"short data offset", tcp, func(_ *vnetHeader, p []byte) { p[32] = 0x40 }, false},
		{"UDP shorter than its packet", udp, func(_ *vnetHeader, p []byte) { p[25]-- }, false},
		{"UDPv6 shorter than its packet", udp6, func(_ *vnetHeader, p []byte) { p[45]-- }, false},
		{"first fragment", tcp, func(_ *vnetHeader, p []byte) { p[6] = 0x20 }, false},
		{"last fragment", tcp, func(_ *vnetHeader, p []byte) { p[7] = 1 }, false},
		{"fragment of IPv6", tcp6, func(_ *vnetHeader, p []byte) { p[6] = 44 }, false},
		{"long extension", tcp6, func(_ *vnetHeader, p []byte) { p[41] = 0xff }, false},
		{"extensions without end", tcp6, func(_ *vnetHeader, p []byte) { clear(p[40:]) }, false},
		{"SCTP", udp, func(h *vnetHeader, p []byte) { h.gsoType, p[9] = 0, protocolSCTP }, false},
		{"another protocol", udp, func(h *vnetHeader, p []byte) { h.gsoType, p[9] = 0, 4 }, true},
		{"another protocol, too early", udp, func(h *vnetHeader, p []byte) { h.gsoType, p[9], h.csumStart = 0, 4, 19 },
			false},
		{"segments of another protocol", udp, func(_ *vnetHeader, p []byte) { p[9] = 4 }, false},
	} {
		h, packet := test.flow.super(make([]byte, 3000))
		test.change(&h, packet)
		if ok := h.validateFor(packet); ok != test.ok {
			t.Errorf("%s: %v", test.name, ok)
		}
	}

	// What one frame may become is bounded, and never less than what Linux makes.
	for _, test := range []struct {
		flow flow
		ok   bool
	}{
		{flow{tcp: true, mss: minSegmentTCP, ipOptions: 40, tcpOptions: 40}, true},
		{flow{tcp: true, mss: minSegmentTCP, v6: true, tcpOptions: 40}, true},
		{flow{tcp: true, mss: 1400, v6: true, ipOptions: 2048}, true},
		{flow{tcp: true, mss: minSegmentTCP, v6: true, ipOptions: 2048}, false},
	} {
		h, packet := test.flow.super(make([]byte, 63000))
		if ok := h.validateFor(packet); ok != test.ok {
			t.Errorf("%v in 63000 bytes: %v", test.flow, ok)
		}
	}

	h, packet := tcp.super(make([]byte, 1000))
	if !h.validateFor(packet) || h.gsoType != gsoNone {
		t.Errorf("one segment: %+v", h)
	}
	h = vnetHeader{hdrLen: 7, csumStart: 60000}
	if !h.validateFor(packet) || h != (vnetHeader{}) {
		t.Errorf("nothing to do: %+v", h)
	}
	// A field behind the 65535th byte is out of reach.
	h, packet = flow{v6: true}.super(make([]byte, 65535-8))
	h.csumStart, h.csumOffset = 65535, 10
	if h.validateFor(packet) {
		t.Error("checksum beyond 16 bits")
	}
}

func TestSegments(t *testing.T) {
	for _, f := range flows(1000) {
		for _, n := range []int{1001, 2000, 3999, 60001} {
			payload := noise(n)
			h, packet := f.super(payload)
			before := bytes.Clone(packet)
			if !h.validateFor(packet) {
				t.Fatalf("%v: %+v", f, h)
			}
			s, segments := h.splitPacket(packet), allSegments(h, packet)
			if s.countLeft() != (n+999)/1000 || s.countLeft() != len(segments) || !bytes.Equal(before, packet) {
				t.Fatalf("%v: %d segments, not %d", f, len(segments), s.countLeft())
			}
			var joined []byte
			for i, b := range segments {
				if !checksumsGood(b) {
					t.Errorf("%v: segment %d is wrong: %x", f, i, b)
				}
				l4 := b[h.csumStart:]
				joined = append(joined, b[h.hdrLen:]...)
				if id := binary.BigEndian.Uint16(b[4:]); !f.v6 && id != f.id+uint16(i) {
					t.Errorf("%v: identification %x", f, id)
				}
				if !f.tcp {
					continue
				}
				flags := f.flags
				if i > 0 {
					flags &^= 0x80
				}
				if i < len(segments)-1 {
					flags &^= 9
				}
				if seq := binary.BigEndian.Uint32(l4[4:]); seq != f.seq+uint32(i*1000) || l4[13] != flags {
					t.Errorf("%v: segment %d: sequence %x, flags %x", f, i, seq, l4[13])
				}
			}
			if !bytes.Equal(joined, payload) {
				t.Errorf("%v: another payload", f)
			}
		}
	}
}

func TestFillChecksum(t *testing.T) {
	for _, f := range flows(0) {
		for n := range 300 {
			h, packet := f.super(noise(n))
			if !h.validateFor(packet) {
				t.Fatalf("%v: %+v", f, h)
			}
			if h.fillChecksum(packet); !checksumsGood(packet) || h != (vnetHeader{}) {
				t.Fatalf("%v: %x", f, packet)
			}
		}
		h, packet := f.super(zeroSum(f, 100))
		field := h.csumStart + h.csumOffset
		h.fillChecksum(packet)
		if sum := binary.BigEndian.Uint16(packet[field:]); sum != 0xffff || !checksumsGood(packet) {
			t.Errorf("%v: no checksum: %x", f, sum)
		}
		before := bytes.Clone(packet)
		if h.fillChecksum(packet); !bytes.Equal(before, packet) {
			t.Errorf("%v: complete packet was changed", f)
		}
	}
}

// zeroSum is a payload that makes the checksum of the first segment 0.
func zeroSum(f flow, n int) []byte {
	payload := noise(n)
	payload[0], payload[1] = 0, 0
	h, packet := f.super(payload)
	if len(payload) > int(h.gsoSize) && h.gsoSize > 0 {
		packet = allSegments(h, packet)[0]
	} else {
		new(h).fillChecksum(packet)
	}
	copy(payload, packet[h.csumStart+h.csumOffset:][:2])
	return payload
}

// vnetTUN is a TUN with or without offloads in the network namespace of the caller.
func vnetTUN(name string, offloads bool) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if offloads {
		flags |= unix.IFF_VNET_HDR
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return nil, err
	}
	if offloads {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1); err != nil {
			return nil, err
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD,
			unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_USO4|unix.TUN_F_USO6); err != nil {
			return nil, err
		}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// newVnetTUN is a TUN of a namespace, up, with addresses and with routes to other hosts.
func newVnetTUN(t *testing.T, in func(func()), name string, offloads bool, addrs []string,
	routes ...string) (tun *os.File) {
	in(func() {
		var err error
		if tun, err = vnetTUN(name, offloads); err != nil {
			t.Errorf("TUN %s: %v", name, err)
			return
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Error(err)
			return
		}
		for _, a := range addrs {
			addr, _ := netlink.ParseAddr(a)
			if err := netlink.AddrReplace(link, addr); err != nil {
				t.Errorf("address %s: %v", a, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			t.Error(err)
		}
		for _, r := range routes {
			_, dst, _ := net.ParseCIDR(r)
			if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
				t.Errorf("route %s: %v", r, err)
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { tun.Close() })
	return tun
}

// tapped is a packet of the kernel with its header.
type tapped struct {
	vnetHeader
	packet []byte
}

// wiretap connects TUNs with offloads, and keeps what it saw of one direction.
type wiretap struct {
	mu   sync.Mutex
	seen []tapped
}

func (w *wiretap) pump(t *testing.T, from, to *os.File) {
	b := make([]byte, vnetSize+hello.MaxPayload)
	for {
		n, err := from.Read(b)
		if err != nil {
			return // closed at the end of the test
		}
		packet := b[vnetSize:n]
		_, dst, ok := parseAddresses(packet)
		h := parseVnet(b)
		was := h
		h.flags &^= dataValid
		if !ok || !h.validateFor(packet) {
			t.Errorf("packet of the kernel is not sound: %+v % x", was, packet[:min(100, len(packet))])
			continue
		}
		if w != nil && dst.IsGlobalUnicast() {
			w.mu.Lock()
			w.seen = append(w.seen, tapped{h, bytes.Clone(packet)})
			w.mu.Unlock()
		}
		h.putBytes(b)
		to.Write(b[:n]) // fails when the other one is closed
	}
}

// take returns what was seen since the last time.
func (w *wiretap) take() []tapped {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

// judge is a kernel that forwards from a TUN with offloads to one without.
type judge struct{ in, out *os.File }

func newJudge(t *testing.T) *judge {
	c := namespace(t)
	c(func() {
		for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+file, []byte("1"), 0); err != nil {
				t.Error(err)
			}
		}
	})
	return &judge{
		in:  newVnetTUN(t, c, "offloads", true, nil, "10.0.0.1/32", "fd00::1/128"),
		out: newVnetTUN(t, c, "plain", false, nil, "10.0.0.2/32", "fd00::2/128"),
	}
}

// compare checks what we make of a packet against what the kernel does. It returns the number of
// packets.
func (j *judge) compare(t *testing.T, h vnetHeader, packet []byte) int {
	t.Helper()
	b := make([]byte, vnetSize, vnetSize+len(packet))
	h.putBytes(b)
	if _, err := j.in.Write(append(b, packet...)); err != nil {
		t.Fatalf("%+v % x: %v", h, packet[:min(80, len(packet))], err)
	}
	mine := bytes.Clone(packet)
	decrementTTL(mine)
	var want [][]byte
	if g := h; h.gsoType == gsoNone {
		g.fillChecksum(mine)
		want = append(want, mine)
	} else {
		want = allSegments(h, mine)
	}
	got := make([]byte, hello.MaxPayload)
	for i := 0; i < len(want); {
		j.out.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := j.out.Read(got)
		if err != nil {
			t.Fatalf("packet %d of %d of %+v % x: %v", i, len(want), h, packet[:min(80, len(packet))], err)
		}
		if _, dst, ok := parseAddresses(got[:n]); ok && dst.IsMulticast() {
			continue // neighbour discovery
		}
		if !bytes.Equal(got[:n], want[i]) {
			t.Fatalf("packet %d of %d of %+v % x:\n% x, kernel:\n% x", i, len(want), h, packet[:min(80, len(packet))],
				want[i][:min(100, len(want[i]))], got[:min(n, 100)])
		}
		i++
	}
	return len(want)
}

// TestOffloadMade: super-packets with all that headers can have.
func TestOffloadMade(t *testing.T) {
	j := newJudge(t)
	supers, packets := 0, 0
	for range 150 {
		for _, f := range flows(uint16(8 + rand.Uint32N(1373))) {
			f.id, f.seq, f.tos = uint16(rand.Uint32()), rand.Uint32(), byte(rand.Uint32())
			f.fragment &= uint16(rand.Uint32())
			if f.tcp {
				f.flags, f.tcpOptions = byte(rand.Uint32())|0x10, int(rand.Uint32N(11))*4
			}
			n := 2 + rand.IntN(min(65000, int(f.mss)*maxSegmentsUDP)-1)
			if supers++; supers%5 == 0 {
				f.mss, n = 0, 2+rand.IntN(1300)
			}
			payload := noise(n)
			if supers%7 == 0 {
				payload = zeroSum(f, max(n, 3))
			}
			f.mss = min(f.mss, uint16(1500-60-60))
			h, packet := f.super(payload)
			if !h.validateFor(packet) {
				t.Fatalf("%v with %d bytes", f, n)
			}
			packets += j.compare(t, h, packet)
		}
	}
	t.Logf("%d super-packets, %d packets", supers, packets)

	// The kernel leaves open the checksum of a packet in a VXLAN, whose own is there or not wanted.
	inner, frame := flow{tcp: true}.super(noise(500))
	_, packet := flow{}.super(append(make([]byte, 8+14), frame...)) // behind a VXLAN and an Ethernet header
	packet[26], packet[27] = 0, 0
	inner.csumStart += 28 + 8 + 14
	if !inner.validateFor(packet) {
		t.Fatalf("VXLAN is not sound: %+v", inner)
	}
	j.compare(t, inner, packet)
	if inner.fillChecksum(packet); !checksumsGood(packet[28+8+14:]) {
		t.Errorf("VXLAN: % x", packet)
	}
}

// TestOffloadKernel: super-packets of the kernel itself.
func TestOffloadKernel(t *testing.T) {
	j := newJudge(t)
	inA, inB := namespace(t), namespace(t)
	a := newVnetTUN(t, inA, "a", true, []string{"10.0.0.1/24", "fd00::1/64"})
	b := newVnetTUN(t, inB, "b", true, []string{"10.0.0.2/24", "fd00::2/64"})
	tap := new(wiretap)
	go tap.pump(t, a, b)
	go (*wiretap)(nil).pump(t, b, a)
	check := func(what string, seen []tapped) {
		t.Helper()
		supers, packets := 0, 0
		for _, s := range seen {
			if s.gsoType != gsoNone {
				supers++
			}
			packets += j.compare(t, s.vnetHeader, s.packet)
		}
		t.Logf("%s: %d packets, %d of them super-packets, stand for %d", what, len(seen), supers, packets)
		if supers == 0 {
			t.Errorf("%s: no super-packets", what)
		}
	}
	for _, dst := range []string{"10.0.0.2", "fd00::2"} {
		// TCP
		var peer, conn net.Conn
		var server net.Listener
		var err error
		inB(func() { server, err = net.Listen("tcp", net.JoinHostPort(dst, "0")) })
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		inA(func() { conn, err = net.DialTimeout("tcp", server.Addr().String(), 5*time.Second) })
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if peer, err = server.Accept(); err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		data := noise(1 << 20)
		go func(conn net.Conn) {
			for rest := data; len(rest) > 0; {
				n := min(len(rest), 1+rand.IntN(100000))
				conn.Write(rest[:n])
				rest = rest[n:]
			}
			conn.Close()
		}(conn)
		peer.SetDeadline(time.Now().Add(30 * time.Second))
		if got, err := io.ReadAll(peer); err != nil || !bytes.Equal(got, data) {
			t.Errorf("TCP to %s: %d bytes of %d, %v", dst, len(got), len(data), err)
		}
		check("TCP to "+dst, tap.take())

		// UDP
		var socket net.PacketConn
		inB(func() { socket, err = net.ListenPacket("udp", net.JoinHostPort(dst, "0")) })
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		socket.(*net.UDPConn).SetReadBuffer(1 << 22)
		socket.SetDeadline(time.Now().Add(30 * time.Second))
		inA(func() { conn, err = net.DialTimeout("udp", socket.LocalAddr().String(), 5*time.Second) })
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		got := make([]byte, 2000)
		expect := func(datagram []byte) {
			t.Helper()
			if n, _, err := socket.ReadFrom(got); err != nil || !bytes.Equal(got[:n], datagram) {
				t.Fatalf("UDP to %s: %d bytes, not %d, %v", dst, n, len(datagram), err)
			}
		}
		for range 30 {
			size := 1 + rand.IntN(1400)
			setSegment(t, conn, size)
			data := noise(1 + rand.IntN(min(65000, 64*size)))
			if _, err := conn.Write(data); err != nil {
				t.Fatalf("%d bytes in datagrams of %d: %v", len(data), size, err)
			}
			for datagram := range slices.Chunk(data, size) {
				expect(datagram)
			}
		}
		check("UDP to "+dst, tap.take())
	}
}

func setSegment(t *testing.T, conn net.Conn, size int) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err == nil {
		if e := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT,
				size)
		}); e != nil {
			err = e
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestOffloadAllocations(t *testing.T) {
	b, room := make([]byte, hello.MaxPayload), make([]byte, 0, hello.MaxPayload)
	for _, f := range flows(1400) {
		h, packet := f.super(noise(60000))
		single := f
		single.mss = 0
		hs, datagram := single.super(noise(1400))
		if n := testing.AllocsPerRun(10, func() {
			h := h
			if !h.validateFor(packet) {
				t.Error("not sound")
			}
			for s := h.splitPacket(packet); s.nextSize() > 0; {
				s.writeNext(b)
			}
			g := hs
			g.fillChecksum(append(room, datagram...))
		}); n != 0 {
			t.Errorf("%v: %v allocations", f, n)
		}
	}
}

func FuzzOffload(f *testing.F) {
	for _, mss := range []uint16{0, 100, 1000} {
		for _, flow := range flows(mss) {
			h, packet := flow.super(noise(1200))
			b := make([]byte, vnetSize)
			h.putBytes(b)
			f.Add(b, packet)
		}
	}
	f.Fuzz(func(t *testing.T, header, packet []byte) {
		if len(header) < vnetSize || len(packet) > 40+hello.MaxPayload {
			return
		}
		h := parseVnet(header)
		if packet = bytes.Clone(packet); len(packet) >= 40 && len(packet) <= hello.MaxPayload { // else none is sound
			if packet[0]>>4 == 4 {
				binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
			} else {
				binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-40))
			}
		}
		if _, _, ok := parseAddresses(packet); !ok {
			return
		}
		h.flags &^= dataValid
		if !h.validateFor(packet) {
			return
		}
		if again := h; !again.validateFor(packet) || again != h {
			t.Fatalf("sound, then not: %+v, %+v", h, again)
		}
		if h.gsoType == gsoNone {
			start := h
			done := bytes.Clone(packet)
			h.fillChecksum(done)
			copy(done[start.csumStart+start.csumOffset:][:2], packet[start.csumStart+start.csumOffset:])
			if !bytes.Equal(done, packet) {
				t.Fatalf("%+v: more than the checksum was changed", start)
			}
			return
		}
		protocol, start, _ := parseTransport(packet)
		binary.BigEndian.PutUint16(packet[h.csumStart+h.csumOffset:], pseudoSum(packet, protocol, len(packet)-start))
		s := h.splitPacket(packet)
		count, total := s.countLeft(), 0
		if count < 2 {
			t.Fatalf("%d segments", count)
		}
		b := make([]byte, int(h.hdrLen)+int(h.gsoSize))
		for ; s.nextSize() > 0; count-- {
			n := s.writeNext(b)
			if total += n - int(h.hdrLen); n > len(b) || n <= int(h.hdrLen) || !checksumsGood(b[:n]) {
				t.Fatalf("%+v: segment % x", h, b[:n])
			}
		}
		if count != 0 || total != len(packet)-int(h.hdrLen) {
			t.Fatalf("%d segments left, %d bytes", count, total)
		}
	})
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 1460, 65000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			data := noise(n)
			b.SetBytes(int64(n))
			for b.Loop() {
				sum16(data, 0)
			}
		})
	}
}

func BenchmarkSegments(b *testing.B) {
	for _, f := range []flow{{tcp: true, tcpOptions: 12, mss: 1448}, {mss: 1400},
		{tcp: true, tcpOptions: 12, mss: 1428, v6: true}, {tcp: true, mss: 64}} {
		b.Run(fmt.Sprintf("TCP=%v/v6=%v/%d", f.tcp, f.v6, f.mss), func(b *testing.B) {
			h, packet := f.super(noise(65000))
			to := make([]byte, 2000)
			b.SetBytes(int64(len(packet)))
			for b.Loop() {
				for s := h.splitPacket(packet); s.nextSize() > 0; {
					s.writeNext(to)
				}
			}
		})
	}
}
