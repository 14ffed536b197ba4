package bridge

// ICMP errors as the kernel takes them, from a TUN in a network namespace of its own.

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// newSimpleTUN takes the goroutine to a new network namespace, with a TUN without offloads that has these
// addresses. The thread is never given back: it ends with the goroutine.
func newSimpleTUN(t *testing.T, addresses ...string) *os.File {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	request, err := unix.NewIfreq("plain")
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "plain") // only now can the poller wait for it
	t.Cleanup(func() { file.Close() })
	link, err := netlink.LinkByName("plain")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
		// An IPv6 address becomes local in a work queue of the kernel.
		bits := 8 * len(addr.Mask)
		local := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: &net.IPNet{IP: addr.IP, Mask: net.CIDRMask(bits, bits)}}
		for deadline := time.Now().Add(5 * time.Second); ; {
			found, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, local, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
			if len(found) > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not become local: %v", a, err)
			}
		}
	}
	return file
}

// Behind the TUN is a path with an MTU of 1300 to a mirror: a packet comes back from the address it
// went to, so that a connection to any address there is one to this host.
func TestTooBigKernel(t *testing.T) {
	const mtu = 1300
	tun := newSimpleTUN(t, "192.168.0.11/24", "fd00::11/64")
	var answered, silent atomic.Int64 // packets that are too big
	done := make(chan struct{})
	go func() {
		defer close(done)
		for in, buf := make([]byte, hello.MaxPayload), make([]byte, 1280); ; {
			n, err := tun.Read(in)
			if err != nil {
				return
			}
			packet := in[:n]
			_, dst, ok := parseAddresses(packet)
			switch {
			case !ok || !dst.IsGlobalUnicast():
				continue
			case n > mtu:
				if packet = icmpTooBig(buf, packet, mtu); packet == nil {
					silent.Add(1)
					continue
				}
				answered.Add(1)
			default:
				from, size := 12, 4
				if dst.Is6() {
					from, size = 8, 16
				}
				src := bytes.Clone(packet[from : from+size])
				copy(packet[from:], packet[from+size:from+2*size])
				copy(packet[from+size:], src) // checksums stay
			}
			if _, err := tun.Write(packet); err != nil {
				t.Errorf("write to the TUN: %v", err)
			}
		}
	}()

	for _, f := range []struct {
		name, local, udp, datagram, tcp string
		header                          int // of IP and UDP
		level, discover, always, mtu    int // of socket options
	}{
		{"IPv4", "192.168.0.11", "192.168.0.21", "192.168.0.22", "192.168.0.23", 28, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER,
			unix.IP_PMTUDISC_DO, unix.IP_MTU},
		{"IPv6", "fd00::11", "fd00::21", "fd00::22", "fd00::23", 48, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER,
			unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU},
	} {
		pathMTU := func(conn syscall.Conn) (got int) {
			t.Helper()
			control(t, conn, func(fd int) (err error) {
				got, err = unix.GetsockoptInt(fd, f.level, f.mtu)
				return err
			})
			return got
		}

		// A socket that never fragments hears of it, and what fits comes back.
		address := netip.AddrPortFrom(netip.MustParseAddr(f.udp), 7)
		conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(f.local), Port: 7}, net.UDPAddrFromAddrPort(address))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		control(t, conn, func(fd int) error { return unix.SetsockoptInt(fd, f.level, f.discover, f.always) })
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if got := pathMTU(conn); got != 1500 {
			t.Errorf("%s: path MTU %d before", f.name, got)
		}
		in := make([]byte, 2000)
		if _, err := conn.Write(make([]byte, 1500-f.header)); err != nil {
			t.Errorf("%s: the first packet: %v", f.name, err)
		}
		if _, err := conn.Read(in); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("%s: the answer: %v, want EMSGSIZE", f.name, err)
		}
		if got := pathMTU(conn); got != mtu {
			t.Errorf("%s: path MTU %d, want %d", f.name, got, mtu)
		}
		if _, err := conn.Write(make([]byte, mtu-f.header+1)); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("%s: a packet too big: %v, want EMSGSIZE", f.name, err)
		}
		if _, err := conn.Write(make([]byte, mtu-f.header)); err != nil {
			t.Errorf("%s: a packet that fits: %v", f.name, err)
		}
		if n, err := conn.Read(in); n != mtu-f.header || err != nil {
			t.Errorf("%s: a packet that fits comes back with %d bytes, %v", f.name, n, err)
		}

		// TCP sends anew what was too big. The mirror shows both ends the same path.
		listener, err := net.Listen("tcp", net.JoinHostPort(f.local, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		before := answered.Load()
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		client, err := net.DialTimeout("tcp", net.JoinHostPort(f.tcp, port), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		client.SetDeadline(time.Now().Add(10 * time.Second))
		server.SetDeadline(time.Now().Add(10 * time.Second))
		sent, received := bytes.Repeat([]byte("kubelink"), 1<<15), make([]byte, 1<<18)
		sending := make(chan error)
		go func() { _, err := client.Write(sent); sending <- err }()
		if n, err := io.ReadFull(server, received); err != nil || !bytes.Equal(received, sent) {
			t.Errorf("%s: %d bytes of %d came through TCP: %v", f.name, n, len(sent), err)
		}
		if err := <-sending; err != nil {
			t.Errorf("%s: TCP: %v", f.name, err)
		}
		if got := pathMTU(client.(*net.TCPConn)); got != mtu || answered.Load() == before {
			t.Errorf("%s: path MTU of TCP is %d after %d answers, want %d", f.name, got, answered.Load()-before, mtu)
		}

		// Of a datagram that comes in fragments, the first is answered for IPv6. For IPv4 they have
		// no DF, so that no sender learns.
		address = netip.AddrPortFrom(netip.MustParseAddr(f.datagram), 8)
		large, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(f.local), Port: 8}, net.UDPAddrFromAddrPort(address))
		if err != nil {
			t.Fatal(err)
		}
		defer large.Close()
		large.SetDeadline(time.Now().Add(10 * time.Second))
		before = answered.Load()
		if _, err := large.Write(make([]byte, 4000)); err != nil {
			t.Errorf("%s: a datagram of fragments: %v", f.name, err)
		}
		want, answers := 1500, int64(0)
		if f.name == "IPv6" {
			want, answers = mtu, 1
			if _, err := large.Read(in); !errors.Is(err, syscall.EMSGSIZE) {
				t.Errorf("%s: the answer: %v, want EMSGSIZE", f.name, err)
			}
		}
		// A small one after it comes back when all of it has been seen.
		if _, err := large.Write([]byte("end")); err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
		if n, err := large.Read(in); n != 3 || err != nil {
			t.Errorf("%s: %d bytes came back, %v", f.name, n, err)
		}
		if got := pathMTU(large); got != want || answered.Load()-before != answers {
			t.Errorf("%s: path MTU of fragments is %d after %d answers, want %d after %d", f.name, got, answered.Load()-before,
				want, answers)
		}
	}
	if n := silent.Load(); n != 2+1 { // of IPv4 two without DF, of IPv6 one that is not the first
		t.Errorf("%d packets too big without an answer", n)
	}
	tun.Close()
	<-done
}

// control runs f with the descriptor of a socket.
func control(t *testing.T, conn syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
}
