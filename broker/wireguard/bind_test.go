package wireguard

// The sockets of wireguard-go in this process, on the loopback device of a network namespace that each test makes.

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// enterNamespace gives the test a network namespace, whose loopback device has addresses and an MTU.
func enterNamespace(t *testing.T, mtu int, addresses ...string) netlink.Link {
	t.Helper()
	runtime.LockOSThread() // and never unlocks: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	errs := []error{netlink.LinkSetMTU(lo, mtu), netlink.LinkSetUp(lo)}
	for _, a := range addresses {
		errs = append(errs, netlink.AddrAdd(lo, loopbackAddr(t, a)))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		awaitAddress(t, netip.MustParsePrefix(a).Addr())
	}
	return lo
}

// awaitAddress waits until packets get to an address: the kernel drops some while IPv6 in a namespace is new.
func awaitAddress(t *testing.T, a netip.Addr) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	arrived := 0
	await(t, a.String(), func() bool {
		c.WriteTo([]byte{1}, c.LocalAddr())
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, _, err := c.ReadFrom(make([]byte, 1)); err == nil {
			arrived++
		}
		return arrived == 3
	})
}

func loopbackAddr(t *testing.T, address string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(address)
	if err != nil {
		t.Fatal(err)
	}
	a.Flags = unix.IFA_F_NODAD
	return a
}

// openBind opens a bind until the end of the test, which may take 20 s.
func openBind(t *testing.T, b conn.Bind) (receive []conn.ReceiveFunc, port uint16) {
	t.Helper()
	receive, port, err := b.Open(0)
	if err != nil || len(receive) != 2 {
		t.Fatalf("%d receivers: %v", len(receive), err)
	}
	late := time.AfterFunc(20*time.Second, func() { b.Close() })
	t.Cleanup(func() {
		late.Stop()
		b.Close()
	})
	return receive, port
}

// received is a packet, and where it came from.
type received struct {
	packet []byte
	from   conn.Endpoint
}

// receiveAll receives until there are as many packets.
func receiveAll(t *testing.T, receive conn.ReceiveFunc, count int) (all []received) {
	t.Helper()
	buffers, sizes := make([][]byte, conn.IdealBatchSize), make([]int, conn.IdealBatchSize)
	for i := range buffers {
		buffers[i] = make([]byte, 1<<16)
	}
	from := make([]conn.Endpoint, conn.IdealBatchSize)
	for len(all) < count {
		n, err := receive(buffers, sizes, from)
		if err != nil {
			t.Errorf("%d of %d packets: %v", len(all), count, err)
			return all
		}
		for i := range n {
			all = append(all, received{bytes.Clone(buffers[i][:sizes[i]]), from[i]})
		}
	}
	return all
}

// makePackets makes packets of these sizes, none like another one.
func makePackets(name string, sizes ...int) (all [][]byte) {
	for i, size := range sizes {
		p := fmt.Appendf(nil, "%s %d ", name, i)
		all = append(all, append(p, bytes.Repeat([]byte{byte(i)}, max(0, size-len(p)))...))
	}
	return all
}

func repeatSize(size, count int) (sizes []int) {
	for range count {
		sizes = append(sizes, size)
	}
	return sizes
}

// checkReceived compares packets, in their order.
func checkReceived(t *testing.T, what string, got []received, want [][]byte) {
	t.Helper()
	for i := range want {
		if i >= len(got) || !bytes.Equal(got[i].packet, want[i]) {
			t.Errorf("%s: packet %d of %d (%d received) is another one", what, i, len(want), len(got))
			return
		}
	}
}

// Peers with IPv4 and with IPv6 get what is sent to them at the same time, in all sizes and in their order, in batches
// that the kernel cuts and joins.
func TestBindSendsToBothFamilies(t *testing.T) {
	enterNamespace(t, 65536, "172.16.0.1/32", "172.16.0.2/32", "fd00::1/128", "fd00:1:2:3:4:5:6:7/128")
	testBothFamilies(t, new(bind))
}

// Packets that are larger than the MTU of the path arrive: the kernel does not cut messages into them.
func TestBindSendsFragments(t *testing.T) {
	enterNamespace(t, 1300, "172.16.0.1/32", "172.16.0.2/32", "fd00::1/128", "fd00:1:2:3:4:5:6:7/128")
	testBothFamilies(t, new(bind))
}

func testBothFamilies(t *testing.T, sender conn.Bind) {
	var sizes []int
	for _, some := range [][]int{repeatSize(1452, 300), {1452, 1452, 700, 1452, 30, 1452}, repeatSize(148, 70), {9000},
		repeatSize(1452, 130), {1, 2, 3}, repeatSize(1000, 66)} {
		sizes = append(sizes, some...)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	peer := new(bind)
	receive, port := openBind(t, peer)
	openBind(t, sender)
	var to []conn.Endpoint
	var packets [][][]byte
	for i, address := range []string{"172.16.0.2", "fd00:1:2:3:4:5:6:7"} {
		e, err := sender.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(address), port).String())
		if err != nil {
			t.Fatal(err)
		}
		want := makePackets(address, sizes...)
		to, packets = append(to, e), append(packets, want)
		wg.Go(func() { checkReceived(t, address, receiveAll(t, receive[i], len(sizes)), want) })
	}
	for begin := 0; begin < len(sizes); begin += conn.IdealBatchSize {
		for i := range to {
			if err := sender.Send(packets[i][begin:min(len(sizes), begin+conn.IdealBatchSize)], to[i]); err != nil {
				t.Error(err)
			}
		}
	}
}

// An answer has the source that the peer knows, and another one when that is no address of this machine any more.
func TestBindAnswersFromTheAddressOfThePacket(t *testing.T) {
	lo := enterNamespace(t, 65536, "172.16.0.1/32", "172.16.0.2/32", "172.16.0.3/32", "fd00::1/128", "fd00::2/128",
		"fd00::3/128")
	one, two := new(bind), new(bind)
	atOne, _ := openBind(t, one)
	atTwo, port := openBind(t, two)
	for i, own := range []string{"172.16.0.1", "fd00::1"} {
		address := []string{"172.16.0.3", "fd00::3"}[i]
		to := newPlace(netip.AddrPortFrom(netip.MustParseAddr(address), port), local{addr: netip.MustParseAddr(own)})
		exchange := func() (there, back received) {
			if err := one.Send([][]byte{[]byte("question")}, to); err != nil {
				t.Fatal(err)
			}
			there = receiveAll(t, atTwo[i], 1)[0]
			if err := two.Send([][]byte{[]byte("answer")}, there.from); err != nil {
				t.Fatal(err)
			}
			return there, receiveAll(t, atOne[i], 1)[0]
		}
		there, back := exchange()
		if is := back.from.DstToString(); is != to.DstToString() || there.from.SrcToString() != address ||
			there.from.DstIP().String() != own {
			t.Errorf("the answer to %s (%s) from %s comes from %s", to.DstToString(), there.from.SrcToString(),
				there.from.DstToString(), is)
		}
		if again, _ := exchange(); again.from != there.from {
			t.Error("packets of one place do not share it")
		}
		there.from.ClearSrc()
		if again, _ := exchange(); again.from == there.from || again.from.SrcIP().String() != address {
			t.Errorf("the source stays %s", again.from.SrcToString())
		}
		bits := map[bool]string{true: "/32", false: "/128"}[i == 0]
		if err := netlink.AddrDel(lo, loopbackAddr(t, address+bits)); err != nil {
			t.Fatal(err)
		}
		there.from.(*place).clear.Store(false)
		if err := two.Send([][]byte{[]byte("late answer")}, there.from); err != nil {
			t.Errorf("from an address that is gone: %v", err)
		}
		if is := receiveAll(t, atOne[i], 1)[0].from.DstToString(); is == to.DstToString() {
			t.Errorf("the late answer comes from %s", is)
		}
	}
}

func TestBindOpensOnePort(t *testing.T) {
	enterNamespace(t, 65536)
	one, two := new(bind), new(bind)
	receive, port := openBind(t, one)
	if a, b := one.v4.Load().port(), one.v6.Load().port(); a != port || b != port {
		t.Errorf("ports %d and %d, not %d", a, b, port)
	}
	if _, _, err := one.Open(port); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Error(err)
	}
	if _, _, err := two.Open(port); !errors.Is(err, syscall.EADDRINUSE) {
		t.Error(err)
	}
	if err := one.SetMark(7); err != nil {
		t.Error(err)
	}
	var ends sync.WaitGroup
	for _, r := range receive {
		ends.Go(func() {
			buffers := [][]byte{make([]byte, 1<<16)}
			if _, err := r(buffers, make([]int, 1), make([]conn.Endpoint, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a receiver of a closed bind: %v", err)
			}
		})
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	ends.Wait()
	to, err := one.ParseEndpoint("[::ffff:127.0.0.1]:1")
	if err != nil || to.DstToString() != "127.0.0.1:1" {
		t.Errorf("%v: %v", to, err)
	}
	if err := one.Send([][]byte{{1}}, to); !errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Error(err)
	}
	if _, again, err := two.Open(port); err != nil || again != port {
		t.Errorf("port %d: %v", again, err)
	}
	two.Close()
}

// What comes out of the tunnels is not taken, whichever address it has: the answer would go through itself.
func TestBindTakesNothingFromTunnel(t *testing.T) {
	enterNamespace(t, 1500, "10.9.9.1/32", "fd00:9::1/128")
	file, err := openTUN("kubelink")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	device, err := netlink.LinkByName("kubelink")
	if err == nil {
		err = netlink.LinkSetUp(device)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"10.9.8.0/24", "fd00:8::/64"} { // the kernel drops what has no way back
		_, network, _ := net.ParseCIDR(n)
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: device.Attrs().Index, Dst: network}); err != nil {
			t.Fatalf("%s: %v", n, err)
		}
	}
	for _, tunnel := range []int{0, device.Attrs().Index} {
		receive, port := openBind(t, &bind{tunnel: tunnel})
		for i, c := range []struct{ peer, own string }{{"10.9.8.1", "10.9.9.1"}, {"fd00:8::1", "fd00:9::1"}} {
			packet := append(make([]byte, vnetSize), udpPacket(netip.MustParseAddr(c.peer), netip.MustParseAddr(c.own), port)...)
			if _, err := file.Write(packet); err != nil {
				t.Fatal(err)
			}
			other, err := net.Dial("udp", net.JoinHostPort(c.own, fmt.Sprint(port)))
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if _, err := other.Write([]byte("mark")); err != nil {
				t.Fatal(err)
			}
			want := c.peer
			if tunnel != 0 {
				want = c.own
			}
			if got := receiveAll(t, receive[i], 1); got[0].from.DstIP().String() != want {
				t.Errorf("tunnel %d: the first packet is of %s, want %s", tunnel, got[0].from.DstIP(), want)
			}
		}
	}
}

// udpPacket makes an IP packet with one of UDP.
func udpPacket(from, to netip.Addr, port uint16) []byte {
	segment := []byte{0x22, 0xb8, byte(port >> 8), byte(port), 0, 12, 0, 0, 'b', 'a', 'c', 'k'}
	sum := func(start uint32, b []byte) uint32 {
		for i := 0; i < len(b); i += 2 {
			start += uint32(b[i])<<8 | uint32(b[i+1])
		}
		for start > 0xffff {
			start = start>>16 + start&0xffff
		}
		return start
	}
	whole := sum(sum(sum(unix.IPPROTO_UDP+uint32(len(segment)), from.AsSlice()), to.AsSlice()), segment)
	segment[6], segment[7] = byte(^whole>>8), byte(^whole)
	header := []byte{0x45, 0, 0, 32, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	if from.Is6() {
		header = []byte{0x60, 0, 0, 0, 0, 12, unix.IPPROTO_UDP, 64}
	}
	header = append(append(header, from.AsSlice()...), to.AsSlice()...)
	if from.Is4() {
		whole = sum(0, header)
		header[10], header[11] = byte(^whole>>8), byte(^whole)
	}
	return append(header, segment...)
}
