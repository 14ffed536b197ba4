package bridge

// Joined datagrams: cut again, they are what they were.

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// datagram is a packet of a test, as the kernel gives it to a TUN with offloads.
type datagram struct {
	flow
	port    byte
	ttl     byte
	payload int
	broken  bool // its sum of the pseudo header is wrong
}

func (d datagram) make(fill byte) (vnetHeader, []byte) {
	h, packet := d.super(bytes.Repeat([]byte{fill}, d.payload))
	start := int(h.csumStart)
	packet[start+1] = d.port
	if d.v6 {
		packet[7] = d.ttl
	} else {
		packet[8] = d.ttl
		checksumIPv4(packet)
	}
	if d.fragment&0x3fff != 0 && !d.v6 {
		return vnetHeader{}, packet
	}
	if d.broken {
		packet[start+csumUDP] ^= 1
	}
	return h, packet
}

// joinTest gives packets to a joiner, and remembers in which order those of each flow came in and went out.
type joinTest struct {
	*testing.T
	joiner
	in, out map[string][][]byte // with their checksums
	supers  int
	bursts  [][]int // datagrams in each packet that was sent, by flush
}

func newJoinTest(t *testing.T) *joinTest {
	j := &joinTest{T: t, in: map[string][][]byte{}, out: map[string][][]byte{}, bursts: [][]int{nil}}
	j.send = func(_ *peer, buf *buffer) { j.take(buf.packet(), buf.vnet); buf.free() }
	return j
}

// name is what a packet has in common with those that it must not overtake.
func (j *joinTest) name(packet []byte) string {
	addresses, start := packet[12:20], 20
	if packet[0]>>4 == 6 {
		addresses, start = packet[8:40], 40
	}
	if protocolOf(packet) == protocolUDP && (start == 40 || packet[0] == 0x45) {
		return fmt.Sprintf("%x %x", addresses, packet[start:start+4])
	}
	return fmt.Sprintf("%x %d", addresses, protocolOf(packet))
}

// finish fills in a checksum, and clears what nothing depends on.
func finish(packet []byte, h vnetHeader) []byte {
	packet = bytes.Clone(packet)
	if h.flags == needsCsum {
		h.fillChecksum(packet)
	}
	if packet[0]>>4 == 4 && packet[6]&0x40 != 0 {
		packet[4], packet[5] = 0, 0
		checksumIPv4(packet)
	}
	return packet
}

func (j *joinTest) add(h vnetHeader, packet []byte) {
	j.Helper()
	if _, _, ok := parseAddresses(packet); !ok || !h.validateFor(packet) {
		return
	}
	key := j.name(packet)
	if h.gsoType == gsoNone {
		j.in[key] = append(j.in[key], finish(packet, h))
	} else {
		for _, segment := range allSegments(h, packet) {
			j.in[key] = append(j.in[key], finish(segment, vnetHeader{}))
		}
	}
	before := bytes.Clone(packet)
	if !j.addPacket(nil, packet, h) {
		j.take(packet, h)
	}
	if !bytes.Equal(before, packet) {
		j.Error("the packet was changed")
	}
}

// take takes what is sent.
func (j *joinTest) take(packet []byte, h vnetHeader) {
	key, n := j.name(packet), 1
	again := h
	if _, _, ok := parseAddresses(packet); !ok || !again.validateFor(packet) || again != h {
		j.Errorf("the kernel takes no %+v % x", h, packet[:min(60, len(packet))])
		return
	}
	if h.gsoType == gsoNone {
		j.out[key] = append(j.out[key], finish(packet, h))
	} else {
		segments := allSegments(h, packet)
		if n = len(segments); n > maxSegmentsUDP {
			j.Errorf("%d segments", n)
		}
		for _, segment := range segments {
			j.out[key] = append(j.out[key], finish(segment, vnetHeader{}))
		}
		j.supers++
	}
	last := &j.bursts[len(j.bursts)-1]
	*last = append(*last, n)
}

// end ends a burst: all that came in is out, in the order within its flow.
func (j *joinTest) end() {
	j.Helper()
	j.flush()
	j.bursts = append(j.bursts, nil)
	for key, in := range j.in {
		if !slices.EqualFunc(in, j.out[key], bytes.Equal) {
			j.Errorf("flow %s: %d packets in, %d out, or others", key, len(in), len(j.out[key]))
		}
	}
	if len(j.in) != len(j.out) {
		j.Errorf("%d flows in, %d out", len(j.in), len(j.out))
	}
}

func TestJoin(t *testing.T) {
	v4 := datagram{flow: flow{fragment: 0x4000}, ttl: 64, payload: 1200}
	v6 := datagram{flow: flow{v6: true}, ttl: 64, payload: 1200}
	with := func(d datagram, change func(*datagram)) datagram { change(&d); return d }
	times := func(n int, all ...datagram) []datagram { return slices.Concat(slices.Repeat([][]datagram{all}, n)...) }
	port := func(n byte) datagram { return with(v4, func(d *datagram) { d.port = n }) }
	noDF := func(id uint16) datagram { return with(v4, func(d *datagram) { d.fragment, d.id = 0, id }) }
	for _, c := range []struct {
		name  string
		burst []datagram
		want  []int // datagrams in each packet
	}{
		{"one", times(1, v4), []int{1}},
		{"IPv4", times(10, v4), []int{10}},
		{"IPv6", times(10, v6), []int{10}},
		{"two flows in turns", times(5, port(1), port(2)), []int{5, 5}},
		{"four flows in turns", times(5, port(1), port(2), v6, port(3)), []int{5, 5, 5, 5}},
		{"five flows: the first gives way", append(times(2, port(1), port(2), v6, port(3)), port(4), port(1)),
			[]int{2, 2, 1, 1, 2, 2}},
		{"both families, same ports", times(2, v4, v6), []int{2, 2}},
		{"a shorter one is the last", append(times(3, v4), with(v4, func(d *datagram) { d.payload = 7 }), v4), []int{4, 1}},
		{"a longer one begins anew", append(times(3, v4), times(2, with(v4, func(d *datagram) { d.payload = 1201 }))...),
			[]int{3, 2}},
		{"too many", times(70, with(v4, func(d *datagram) { d.payload = 100 })), []int{64, 6}},
		{"too large", times(60, with(v4, func(d *datagram) { d.payload = 1400 })), []int{46, 14}},
		{"large ones are not copied", times(2, with(v4, func(d *datagram) { d.payload = 20000 })), []int{1, 1}},
		{"empty", times(2, with(v4, func(d *datagram) { d.payload = 0 })), []int{1, 1}},
		{"empty within a flow", []datagram{v4, with(v4, func(d *datagram) { d.payload = 0 }), v4}, []int{1, 1, 1}},
		{"hop limits", []datagram{v4, v4, with(v4, func(d *datagram) { d.ttl = 63 }), v6, v6,
			with(v6, func(d *datagram) { d.ttl = 63 })}, []int{2, 2, 1, 1}},
		{"congestion is experienced", []datagram{v4, v4, with(v4, func(d *datagram) { d.tos = 3 }), v6, v6,
			with(v6, func(d *datagram) { d.tos = 3 })}, []int{2, 2, 1, 1}},
		{"DF: no identification counts", []datagram{v4, with(v4, func(d *datagram) { d.id = 77 })}, []int{2}},
		{"no DF: identifications that follow", []datagram{noDF(65535), noDF(0), noDF(1)}, []int{3}},
		{"no DF: the same identification", []datagram{noDF(5), noDF(5)}, []int{1, 1}},
		{"DF and no DF", []datagram{noDF(5), with(noDF(6), func(d *datagram) { d.fragment = 0x4000 })}, []int{1, 1}},
		{"fragments", []datagram{v4, with(v4, func(d *datagram) { d.fragment = 0x2000 }), v4}, []int{1, 1, 1}},
		{"options", times(2, with(v4, func(d *datagram) { d.ipOptions = 8 })), []int{1, 1}},
		{"extension headers", times(2, with(v6, func(d *datagram) { d.ipOptions = 8 })), []int{1, 1}},
		{"another sum of the pseudo header", []datagram{v4, with(v4, func(d *datagram) { d.broken = true }), v4},
			[]int{1, 1, 1}},
		{"TCP does not interrupt", []datagram{v4, with(v4, func(d *datagram) { d.tcp = true }), v4}, []int{1, 2}},
		{"a super-packet within a flow", []datagram{v4, with(v4, func(d *datagram) { d.mss, d.payload = 500, 1200 }), v4},
			[]int{1, 3, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := newJoinTest(t)
			for i, d := range c.burst {
				j.add(d.make(byte(i)))
			}
			j.end()
			if got := j.bursts[0]; !slices.Equal(got, c.want) {
				t.Errorf("sent packets of %v datagrams, want %v", got, c.want)
			}
		})
	}
}

// Whatever a TUN gives, cut again it is what it was, and in the same order within a flow.
func FuzzJoin(f *testing.F) {
	f.Add([]byte(strings.Repeat("\x00\x00\x64\x00", 40)))
	f.Add([]byte("\x00\x00\x64\x00\x01\x00\x64\x00\x00\x00\x64\x00\x01\x00\x64\x00\x02\x00\x64\x00\x02\x00\x63\x00"))
	f.Add([]byte("\x00\x04\xb0\x00\x00\x04\xb0\x01\x00\x04\xb0\x02\xff\x00\x00\x00\x00\x04\xb0\x04\x00\x04\xb0\x08"))
	f.Fuzz(func(t *testing.T, script []byte) {
		j := newJoinTest(t)
		id := uint16(0xfff0)
		for n := 0; len(script) >= 4 && n < 1000; n, script = n+1, script[4:] {
			which, odd := script[0], script[3]
			if which == 0xff {
				j.end()
				continue
			}
			d := datagram{port: which & 7, ttl: 64 - odd&1, payload: int(binary.BigEndian.Uint16(script[1:]) & 0x3fff)}
			d.flow = flow{v6: which&8 != 0, tcp: which&0xf0 == 0xf0, fragment: 0x4000, tos: odd >> 1 & 1, id: id}
			d.broken = odd&4 != 0
			switch odd >> 3 & 7 {
			case 1:
				d.fragment = 0
				id++
			case 2:
				d.fragment = 0
			case 3:
				d.fragment = 0x2000
			case 4:
				d.ipOptions = 8
			case 5:
				d.mss = uint16(which)*4 + 8
			}
			h, packet := d.make(byte(n))
			switch odd >> 6 {
			case 1: // a header that says something else
				packet[n%len(packet)] ^= odd
			case 2:
				h = vnetHeader{}
			}
			j.add(h, packet)
		}
		j.end()
	})
}

func TestJoinAllocations(t *testing.T) {
	h, packet := datagram{flow: flow{fragment: 0x4000}, ttl: 64, payload: 1200}.make(1)
	j := joiner{send: func(_ *peer, buf *buffer) { buf.free() }}
	if n := testing.AllocsPerRun(100, func() {
		for range 50 {
			j.addPacket(nil, packet, h)
		}
		j.flush()
	}); n != 0 && !withRaceDetector {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkJoin(b *testing.B) {
	h, packet := datagram{flow: flow{fragment: 0x4000}, ttl: 64, payload: 1200}.make(1)
	j := joiner{send: func(_ *peer, buf *buffer) { buf.free() }}
	b.SetBytes(int64(len(packet)))
	b.ReportAllocs()
	for i := range b.N {
		j.addPacket(nil, packet, h)
		if i%20 == 19 {
			j.flush()
		}
	}
}

// capture sees what a device sends to its kernel, with the offloads that are left to do.
func capture(t *testing.T, s *site) (fd int) {
	t.Helper()
	s.in(func() {
		var err error
		all := int(uint16(unix.ETH_P_ALL)<<8 | unix.ETH_P_ALL>>8)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			t.Error(err)
			return
		}
		link, err := net.InterfaceByName("kubelink")
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
		}
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: link.Index})
		}
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// countCaptured returns how many UDP packets were captured by now, and how many datagrams are in them.
func countCaptured(t *testing.T, fd int) (packets, datagrams int) {
	b := make([]byte, 70000)
	for {
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		if err == syscall.EAGAIN {
			return packets, datagrams
		}
		if err != nil {
			t.Fatal(err)
		}
		h, packet := parseVnet(b), b[vnetSize:n]
		if _, _, ok := parseAddresses(packet); !ok || protocolOf(packet) != protocolUDP {
			continue
		}
		packets, datagrams = packets+1, datagrams+1
		if h.gsoType == gsoUDP {
			headers := 28
			if packet[0]>>4 == 6 {
				headers = 48
			}
			datagrams += (len(packet) - headers - 1) / int(h.gsoSize)
		}
	}
}

// Datagrams of two flows, sent as fast as possible, leave the far TUN as super-packets. The sockets get them with
// their boundaries, in the order of each flow; none waits for a packet that comes later: there is none.
func TestJoinEndToEnd(t *testing.T) {
	a, b := sites(t, false, false)
	if b.TUN().Offloads&OffloadUSO == 0 {
		t.Fatalf("the kernel has no USO: %s", b.TUN().Offloads)
	}
	for _, address := range []string{b.v4(), b.v6()} {
		fd := capture(t, b)
		var flows [2]struct {
			receiver net.PacketConn
			sender   net.Conn
		}
		for i := range flows {
			f := &flows[i]
			var err error
			b.in(func() { f.receiver, err = net.ListenPacket("udp", net.JoinHostPort(address, "0")) })
			if err == nil {
				a.in(func() { f.sender, err = net.Dial("udp", f.receiver.LocalAddr().String()) })
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.receiver.Close()
			defer f.sender.Close()
		}
		const count = 32
		size := func(flow, n int) int { // mostly equal, some shorter, some longer
			return 300 + 500*flow + []int{0, 0, 0, 0, 0, 0, -100, 0, 0, 50}[n%10]
		}
		deadline := time.Now().Add(20 * time.Second)
		sent, joined := 0, 0
		for round := 0; joined < 3*count; round++ {
			if time.Now().After(deadline) {
				t.Fatalf("%s: of %d datagrams, %d came in super-packets\n%+v", address, sent, joined, a.Stats())
			}
			for i := range flows {
				var messages []ipv4.Message
				for n := range count {
					payload := bytes.Repeat([]byte{byte(n)}, size(i, n))
					binary.BigEndian.PutUint32(payload, uint32(round*count+n))
					messages = append(messages, ipv4.Message{Buffers: [][]byte{payload}})
				}
				conn := ipv4.NewPacketConn(flows[i].sender.(*net.UDPConn)) // sendmmsg(2), of both families
				for len(messages) > 0 {
					n, err := conn.WriteBatch(messages, 0)
					if err != nil {
						t.Fatal(err)
					}
					messages = messages[n:]
				}
			}
			sent += len(flows) * count
			buf := make([]byte, hello.MaxPayload)
			for i := range flows {
				flows[i].receiver.SetReadDeadline(deadline)
				for n := range count {
					got, _, err := flows[i].receiver.ReadFrom(buf)
					if err != nil || got != size(i, n) || binary.BigEndian.Uint32(buf) != uint32(round*count+n) ||
						buf[got-1] != byte(n) {
						t.Fatalf("%s, flow %d, round %d, datagram %d: %d bytes, number %d, %v\n%+v\n%+v", address, i, round, n,
							got, binary.BigEndian.Uint32(buf), err, a.Stats(), b.Stats())
					}
				}
			}
			packets, datagrams := countCaptured(t, fd)
			joined += datagrams - packets
			if datagrams != len(flows)*count {
				t.Errorf("%s: %d datagrams left the TUN, of %d", address, datagrams, len(flows)*count)
			}
		}
		t.Logf("%s: of %d datagrams, %d were joined to an earlier one", address, sent, joined)
	}
}
