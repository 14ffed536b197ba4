package kernel

// Set in a real network namespace: what ip and iptables-save show, that a second Set writes
// nothing, that Clear leaves what was there, and what happens to packets. Each test has a
// namespace of its own, and needs to be root for that.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// enter takes the goroutine to a new network namespace with its loopback up. The thread is never
// given back: it ends with the goroutine.
func enter(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	after, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (as root): %v", err)
	}
	defer after.Close()
	if before.Equal(after) {
		t.Fatal("still in the namespace of the host")
	}
	run(t, "ip link set lo up")
}

// run runs commands, one per line, and returns what they print.
func run(t testing.TB, commands string) string {
	t.Helper()
	var all strings.Builder
	for line := range strings.Lines(commands) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

// tun makes a TUN device. Reading from it gives what the kernel sends there.
func tun(t testing.TB, name string) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), name) // only now can the poller wait for it
	t.Cleanup(func() { file.Close() })
	return file
}

// counted counts what Set writes.
type counted struct {
	system
	writes int
}

func (c *counted) Change(verb string, object any) error {
	c.writes++
	return c.system.Change(verb, object)
}

func (c *counted) RestoreTable(ctx context.Context, tools toolset, table string, commands []string) error {
	c.writes++
	return c.system.RestoreTable(ctx, tools, table, commands)
}

func open(t testing.TB, c Config) (*Kernel, *counted) {
	t.Helper()
	k, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	w := &counted{system: k.system}
	k.system = w
	return k, w
}

func set(t testing.TB, k *Kernel, s State) {
	t.Helper()
	if err := k.Set(s); err != nil {
		t.Fatal(err)
	}
	for _, a := range s.Addresses {
		if a.Addr().Is6() {
			settle(t, a.Addr())
		}
	}
}

// settle waits until packets to an IPv6 address are taken as local: the kernel makes that route in
// a work queue, as the end of duplicate address detection, even where there is none to do.
func settle(t testing.TB, a netip.Addr) {
	t.Helper()
	local := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: toIPNet(hostPrefix(a))}
	for deadline := time.Now().Add(5 * time.Second); ; {
		found, err := netlink.RouteListFiltered(netlink.FAMILY_V6, local, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		if len(found) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not become local: %v", a, err)
		}
	}
}

// unstable is what changes by itself.
var unstable = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)

// state is all of the namespace as its tools print it.
func state(t testing.TB) string {
	return unstable.ReplaceAllString(run(t, `ip addr
		ip -4 route show table all
		ip -6 route show table all
		ip -4 rule
		ip -6 rule
		iptables-save
		ip6tables-save`), "")
}

// foreign makes objects of other programs in the places where we have ours.
const foreign = `
	sysctl -qw net.ipv4.conf.kubelink.forwarding=1
	sysctl -qw net.ipv6.conf.kubelink.forwarding=1
	ip link set kubelink up mtu 1500
	ip addr add 10.1.2.3/32 dev kubelink
	ip route add 172.16.0.0/12 dev kubelink proto static
	ip route add 172.17.0.0/16 dev kubelink proto static table 77
	ip route add 100.64.48.0/20 dev lo proto 107
	ip rule add priority 100 from 10.1.2.3 lookup 77
	iptables -t nat -N KUBE-POSTROUTING
	iptables -t nat -A POSTROUTING -j KUBE-POSTROUTING
	iptables -t nat -A POSTROUTING -s 100.96.0.0/11 -j MASQUERADE
	iptables -P FORWARD DROP
	iptables -A FORWARD -s 10.66.0.0/16 -j DROP
	iptables -t mangle -A FORWARD -s 10.66.0.0/16 -j ACCEPT
	ip6tables -t nat -A POSTROUTING -s fd00:aa::/64 -j MASQUERADE
	ip6tables -A FORWARD -s fd00:66::/64 -j DROP
	ip6tables -t mangle -A FORWARD -s fd00:66::/64 -j ACCEPT`

func TestNamespace(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	run(t, foreign)
	before := state(t)

	k, w := open(t, table)
	set(t, k, twoMeshes)
	after := state(t)
	for _, want := range []string{
		"inet 192.168.0.11/32 scope global noprefixroute kubelink\n",
		"inet6 fd00:99::1/128 scope global nodad noprefixroute",
		"192.168.0.0/24 via 192.0.0.8 dev kubelink table 77 proto 107 src 192.168.0.11 onlink",
		"100.64.16.128/25 via 192.0.0.8 dev kubelink table 77 proto 107 src 10.99.0.1 onlink",
		"fd00:5::/48 dev kubelink table 77 proto 107 src fd00:99::1 metric 1024",
		"32750:\tfrom all lookup 77 proto 107\n",
		"-A FORWARD -s 10.66.0.0/16 -j DROP\n-A FORWARD -m comment --comment kubelink -j KLINK-FORWARD\n",
		"-A POSTROUTING -o kubelink -m comment --comment kubelink -j KLINK-POSTROUTING\n" +
			"-A POSTROUTING -j KUBE-POSTROUTING\n",
		"-A KLINK-POSTROUTING -s 192.168.0.0/24 -d 100.64.16.0/20 -o kubelink -j ACCEPT\n" +
			"-A KLINK-POSTROUTING -d 100.64.16.0/20 -o kubelink -j SNAT --to-source 192.168.0.11\n",
		"-A KLINK-POSTROUTING -d fd00:5::/48 -o kubelink -j SNAT --to-source fd00:99::1\n",
		"-A PREROUTING -i kubelink -m comment --comment kubelink -j KLINK-LOCAL\n",
		"-A KLINK-LOCAL -m addrtype --dst-type LOCAL,BROADCAST,ANYCAST,MULTICAST -j DROP\n",
		"-A KLINK-LOCAL -d ff00::/8 -j DROP\n-A KLINK-LOCAL -m addrtype --dst-type LOCAL,ANYCAST -j DROP\n",
		"-A FORWARD -m comment --comment kubelink -j KLINK-MSS\n-A FORWARD -s 10.66.0.0/16 -j ACCEPT\n",
		"-A FORWARD -m comment --comment kubelink -j KLINK-MSS\n-A FORWARD -s fd00:66::/64 -j ACCEPT\n",
		"-A KLINK-MSS -i kubelink -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu\n" +
			"-A KLINK-MSS -o kubelink -p tcp",
	} {
		if !strings.Contains(after, want) {
			t.Errorf("misses %q", want)
		}
	}
	if t.Failed() {
		t.Fatal(after)
	}

	// Nothing is written where all is right: not by the same broker, not by the one that comes
	// after a kill.
	successor, sw := open(t, table)
	for name, k := range map[string]*Kernel{"again": k, "adopted": successor} {
		w.writes, sw.writes = 0, 0
		generation := nftGeneration(t)
		events := monitor(t, func() { set(t, k, twoMeshes) })
		if w.writes+sw.writes > 0 || events > 0 || generation != nftGeneration(t) {
			t.Errorf("%s: %d writes, %d events, nftables generation %d to %d",
				name, w.writes+sw.writes, events, generation, nftGeneration(t))
		}
	}
	if now := state(t); now != after {
		t.Errorf("a second Set made\n%s\nof\n%s", now, after)
	}

	// What a killed broker with another table left goes away: the result is that of a new start.
	k, _ = open(t, config)
	set(t, k, oneMesh)
	moved := state(t)
	set(t, k, State{})
	if now := state(t); now != before {
		t.Errorf("Clear left\n%s\nof\n%s", now, before)
	}
	set(t, k, oneMesh)
	if now := state(t); now != moved {
		t.Errorf("a new start made\n%s\nwhere a change made\n%s", now, moved)
	}

	// A destination that somebody else has is named, the others are set.
	more := State{Addresses: oneMesh.Addresses,
		Routes: append(routes("100.64.48.0/20 192.168.0.11", "100.64.64.0/20 192.168.0.11"), oneMesh.Routes...)}
	err := k.Set(more)
	if err == nil || !strings.Contains(err.Error(), "not kubelink's: 100.64.48.0/20 dev lo proto 107 table 254") {
		t.Errorf("error %v", err)
	}
	if now := state(t); !strings.Contains(now, "100.64.64.0/20 via 192.0.0.8 dev kubelink proto 107") ||
		!strings.Contains(now, "100.64.48.0/20 dev lo proto 107") {
		t.Errorf("after a conflict\n%s", now)
	}
	if err := k.Clear(); err != nil {
		t.Error(err)
	}
	if now := state(t); now != before {
		t.Errorf("Clear left\n%s\nof\n%s", now, before)
	}
}

// Every change of one state to another ends as if the other had been set on a new machine.
func TestNamespaceTransitions(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	run(t, foreign)
	masquerading := twoMeshes
	masquerading.Masquerade = true
	states := []State{{}, oneMesh, twoMeshes, oneLink, otherSource, masquerading}
	fresh := make([]string, len(states))
	for i, s := range states {
		k, _ := open(t, table)
		set(t, k, s)
		fresh[i] = state(t)
		set(t, k, State{})
	}
	for from := range states {
		for to := range states {
			k, _ := open(t, table)
			set(t, k, states[from])
			set(t, k, states[to])
			now, want := strings.Split(state(t), "\n"), strings.Split(fresh[to], "\n")
			if more, less := minus(now, want), minus(want, now); len(more)+len(less) > 0 {
				t.Errorf("from %d to %d: has %q, misses %q", from, to, more, less)
			}
		}
	}
}

func TestNoDevice(t *testing.T) {
	enter(t)
	run(t, "ip route add blackhole 100.64.48.0/20 proto 107")
	k, _ := open(t, table)
	err := k.Set(oneMesh)
	if err == nil ||
		!strings.Contains(err.Error(), "device kubelink does not exist: 1 addresses and 3 routes are not set") {
		t.Errorf("error %v", err)
	}
	if now := state(t); !strings.Contains(now, "-j SNAT --to-source 192.168.0.11") || !strings.Contains(now, "lookup 77") {
		t.Errorf("does not set what needs no device:\n%s", now)
	}
	if err := k.Clear(); err != nil {
		t.Error(err)
	}
	if now := state(t); strings.Contains(now, "KLINK") || strings.Contains(now, "lookup 77") ||
		!strings.Contains(now, "blackhole") {
		t.Errorf("Clear left\n%s", now)
	}
}

// A killed broker leaves its persistent device. One with another device name takes all over, and
// leaves what only looks like it: a TAP without carrier, a TUN that a process holds open.
func TestOldDevice(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	tun(t, "open")
	run(t, foreign)
	run(t, `ip tuntap add dev tap mode tap
		ip link set tap up
		ip link set open up
		ip route add 100.64.80.0/20 dev tap proto 107
		ip route add 100.64.96.0/20 dev open proto 107`)
	k, _ := open(t, config)
	set(t, k, twoMeshes)
	fresh := state(t)
	if !strings.Contains(fresh, "100.64.80.0/20 dev tap") || !strings.Contains(fresh, "100.64.96.0/20 dev open") {
		t.Errorf("took what is not ours:\n%s", fresh)
	}
	set(t, k, State{})

	for _, c := range []Config{{Device: "old"}, {Device: "old", Table: 77, RulePriority: 32750}} {
		device := tun(t, "old")
		control, err := device.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		persist := func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) }
		if e := control.Control(persist); e != nil || err != nil {
			t.Fatal(e, err)
		}
		killed, _ := open(t, c)
		set(t, killed, twoMeshes)
		if err := k.Set(oneMesh); c.Table == 0 && (err == nil ||
			!strings.Contains(err.Error(), "not kubelink's: 192.168.0.0/24 via 192.0.0.8 dev old proto 107")) {
			t.Errorf("with the old device open: error %v", err)
		}
		set(t, killed, twoMeshes)
		device.Close()

		set(t, k, twoMeshes)
		now, want := strings.Split(state(t), "\n"), strings.Split(fresh, "\n")
		if more, less := minus(now, want), minus(want, now); len(more)+len(less) > 0 {
			t.Errorf("after %+v: has %q, misses %q", c, more, less)
		}
		set(t, k, State{})
	}
}

// Without iptables no packet leaves un-NATed: there are no routes.
func TestNoIptables(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	path := os.Getenv("PATH")
	k, _ := open(t, config)
	t.Setenv("PATH", t.TempDir())
	err := k.Set(oneMesh)
	t.Setenv("PATH", path)
	if err == nil || !strings.Contains(err.Error(), "3 new routes of IPv4 are not set: there is no source NAT for them") {
		t.Errorf("error %v", err)
	}
	if now := state(t); strings.Contains(now, "proto 107") {
		t.Errorf("without iptables\n%s", now)
	}
	set(t, k, oneMesh)
	if now := state(t); !strings.Contains(now, "100.64.32.0/20 via 192.0.0.8 dev kubelink proto 107") {
		t.Errorf("with iptables\n%s", now)
	}
}

// A packet from a pod leaves with our address in the mesh that its route belongs to, though the
// CNI masquerades too and the policy of FORWARD is DROP. One that has an address of the mesh
// keeps it, also where a shorter prefix of another mesh would match.
func TestSourceNAT(t *testing.T) {
	enter(t)
	device, pod := tun(t, "kubelink"), tun(t, "cali0")
	run(t, foreign)
	run(t, `ip link set cali0 up
		ip route add 100.96.0.5/32 dev cali0
		ip -6 addr add fd00:aa::5/128 dev lo`)
	for name, value := range map[string]string{"ip_forward": "1", "conf/all/rp_filter": "0",
		"conf/kubelink/rp_filter": "0", "conf/cali0/rp_filter": "0"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	k, _ := open(t, config)
	set(t, k, twoMeshes)

	for _, c := range []struct {
		name                   string
		from                   *os.File
		source, target, leaves string
	}{
		{"pod to a cluster address", pod, "100.96.0.5", "192.168.0.12", "192.168.0.11"},
		{"pod to a service", pod, "100.96.0.5", "100.64.16.7", "192.168.0.11"},
		{"pod into a network of another mesh inside of it", pod, "100.96.0.5", "100.64.16.130", "10.99.0.1"},
		{"pod to the other mesh", pod, "100.96.0.5", "10.99.7.7", "10.99.0.1"},
		{"a member, through us as gateway", device, "192.168.0.12", "100.64.32.1", "192.168.0.12"},
		{"a member of the other mesh", device, "10.99.0.9", "100.64.16.130", "10.99.0.9"},
		{"a member of one mesh into the other", device, "192.168.0.12", "10.99.7.7", "10.99.0.1"},
	} {
		source, target := netip.MustParseAddr(c.source), netip.MustParseAddr(c.target)
		if _, err := c.from.Write(udp4(source, target)); err != nil {
			t.Fatal(err)
		}
		if got := received(t, device, target); got.String() != c.leaves {
			t.Errorf("%s: %s to %s leaves with source %s, want %s", c.name, c.source, c.target, got, c.leaves)
		}
	}

	// The reply finds the pod.
	if _, err := pod.Write(udp4(netip.MustParseAddr("100.96.0.5"), netip.MustParseAddr("100.64.16.9"))); err != nil {
		t.Fatal(err)
	}
	received(t, device, netip.MustParseAddr("100.64.16.9"))
	if _, err := device.Write(udp4(netip.MustParseAddr("100.64.16.9"), netip.MustParseAddr("192.168.0.11"))); err != nil {
		t.Fatal(err)
	}
	if got := received(t, pod, netip.MustParseAddr("100.96.0.5")); got.String() != "100.64.16.9" {
		t.Errorf("the reply comes from %s", got)
	}

	// Local processes, of both families: unbound ones by the preferred source, bound ones by NAT.
	for _, c := range []struct{ source, target, leaves string }{
		{"", "100.64.16.7", "192.168.0.11"},
		{"", "fd00:5::7", "fd00:99::1"},
		{"10.1.2.3", "100.64.16.130", "10.99.0.1"},
		{"fd00:aa::5", "fd00:5::8", "fd00:99::1"},
	} {
		dialer := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(c.source)}}
		conn, err := dialer.Dial("udp", net.JoinHostPort(c.target, "7"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if got := received(t, device, netip.MustParseAddr(c.target)); got.String() != c.leaves {
			t.Errorf("local %s to %s leaves with source %s, want %s", c.source, c.target, got, c.leaves)
		}
	}
}

// Both ends of a connection through the device get an MSS that fits its MTU, though they could use
// larger packets; those of this node's own do so without a rule. Timestamps are off, for they take
// their bytes from the segment size.
func TestMSS(t *testing.T) {
	enter(t)
	node, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	within := func(ns netns.NsHandle, f func()) {
		t.Helper()
		if err := netns.Set(ns); err != nil {
			t.Fatal(err)
		}
		f()
		if err := netns.Set(node); err != nil {
			t.Fatal(err)
		}
	}
	start := func(commands string) {
		for name, value := range map[string]string{"ipv4/tcp_timestamps": "0", "ipv4/ip_forward": "1",
			"ipv6/conf/all/forwarding": "1", "ipv6/conf/default/accept_dad": "0"} {
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
				t.Fatal(err)
			}
		}
		run(t, commands)
	}
	start("")
	pod, far := neighbour(t, node, "cali0"), neighbour(t, node, "kubelink")
	// This device is no TUN: without these addresses it would need the neighbour discovery of IPv6, which is none of
	// the packets that a linked cluster may send.
	run(t, `ip link set kubelink address 02:00:00:00:00:01
		ip neigh add fd00:5::7 lladdr 02:00:00:00:00:02 dev kubelink
		ip neigh add 192.0.0.8 lladdr 02:00:00:00:00:02 dev kubelink
		ip link set cali0 mtu 9000 up
		ip addr add 169.254.1.1/32 dev cali0
		ip addr add fd00:a::1/128 dev cali0 nodad
		ip route add 100.96.0.5 dev cali0
		ip route add fd00:a::5 dev cali0`)
	within(pod, func() {
		start(`ip link set eth0 mtu 9000 up
			ip addr add 100.96.0.5/32 dev eth0
			ip addr add fd00:a::5/128 dev eth0 nodad
			ip route add default via 169.254.1.1 dev eth0 onlink
			ip route add fd00:a::1 dev eth0
			ip route add default via fd00:a::1`)
		settle(t, netip.MustParseAddr("fd00:a::5"))
	})
	settle(t, netip.MustParseAddr("fd00:a::1"))
	within(far, func() {
		start(`ip link set eth0 address 02:00:00:00:00:02 mtu 9000 up
			ip neigh add fd00:99::1 lladdr 02:00:00:00:00:01 dev eth0
			ip addr add 100.64.16.7/32 dev eth0
			ip addr add fd00:5::7/128 dev eth0 nodad
			ip route add default via 192.168.0.11 dev eth0 onlink
			ip route add fd00:99::1 dev eth0
			ip route add default via fd00:99::1`)
		settle(t, netip.MustParseAddr("fd00:5::7"))
	})
	const port = 7777
	state := twoMeshes
	state.LocalPorts = []mesh.LocalPort{{Protocol: "tcp", Port: port}}
	k, _ := open(t, config)
	set(t, k, state)

	// want is of the client's segments and of the server's.
	check := func(name string, client, server netns.NsHandle, address string, want [2]int) {
		t.Helper()
		var listener net.Listener
		var conns [2]net.Conn
		within(server, func() { listener, err = net.Listen("tcp", net.JoinHostPort(address, fmt.Sprint(port))) })
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		within(client, func() { conns[0], err = net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second) })
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer conns[0].Close()
		if conns[1], err = listener.Accept(); err != nil {
			t.Fatal(err)
		}
		defer conns[1].Close()
		var got [2]int
		for i := range conns {
			raw, err := conns[i].(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			maxSegment := func(fd uintptr) { got[i], err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }
			if e := raw.Control(maxSegment); e != nil || err != nil {
				t.Fatal(e, err)
			}
		}
		if got != want {
			t.Errorf("%s: segments of client and server have up to %d bytes, want %d", name, got, want)
		}
	}
	all := func(name string, v4, v6 [2]int) {
		t.Helper()
		check(name+": pod to far", pod, far, "100.64.16.7", v4)
		check(name+": far to pod", far, pod, "100.96.0.5", v4)
		check(name+": pod to far, IPv6", pod, far, "fd00:5::7", v6)
		check(name+": far to pod, IPv6", far, pod, "fd00:a::5", v6)
		check(name+": node to far", node, far, "100.64.16.7", [2]int{1460, 1460})
		check(name+": far to node", far, node, "192.168.0.11", [2]int{1460, 1460})
		check(name+": node to far, IPv6", node, far, "fd00:5::7", [2]int{1440, 1440})
		check(name+": far to node, IPv6", far, node, "fd00:99::1", [2]int{1440, 1440})
	}
	run(t, `iptables -t mangle -F KLINK-MSS
		ip6tables -t mangle -F KLINK-MSS`)
	all("without rules", [2]int{8960, 8960}, [2]int{8940, 8940})
	set(t, k, state)
	all("with rules", [2]int{1460, 1460}, [2]int{1440, 1440})
	// Each rule is for what one side says; the other's kernel sends what it hears.
	for rule, v4 := range map[string][2]int{"1": {8960, 1460}, "2": {1460, 8960}} {
		run(t, "iptables -t mangle -D KLINK-MSS "+rule)
		check("without rule "+rule+": pod to far", pod, far, "100.64.16.7", v4)
		set(t, k, state)
	}
}

// neighbour makes a network namespace whose eth0 is the other end of a new device.
func neighbour(t testing.TB, node netns.NsHandle, device string) netns.NsHandle {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := netns.Set(node); err != nil {
		t.Fatal(err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: device}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	return ns
}

// A kernel without the TCPMSS target gets all else, and the error says what to do. The commands
// fail as those of iptables do there.
func TestNoTCPMSS(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	path := os.Getenv("PATH")
	k, w := open(t, config)
	script := `input=$(cat)
		case $input in *TCPMSS*) echo "iptables-restore: line 3 failed" >&2; exit 1;; esac
		echo "$input" | exec REAL "$@"`
	fakeCommands(t, map[string]string{"iptables-restore": script, "ip6tables-restore": script})
	for range 2 {
		w.writes = 0
		if err := k.Set(oneMesh); err != nil {
			t.Error(err)
		}
		err := k.Warning()
		if err == nil ||
			!strings.Contains(err.Error(), "line 3 failed; "+
				"TCP connections of pods with a larger MTU than kubelink has rely on path MTU discovery; "+
				"it needs the kernel modules xt_TCPMSS, xt_comment, xt_tcpudp and iptable_mangle (") ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v", err)
		}
	}
	if w.writes != 1 {
		t.Errorf("%d writes, want the one that fails", w.writes)
	}
	if now := state(t); !strings.Contains(now, "100.64.32.0/20 via 192.0.0.8 dev kubelink proto 107") ||
		!strings.Contains(now, "-j KLINK-FORWARD") || strings.Contains(now, "KLINK-MSS") {
		t.Errorf("without TCPMSS\n%s", now)
	}
	if err := k.Clear(); err != nil {
		t.Error(err)
	}
	t.Setenv("PATH", path)
	set(t, k, oneMesh)
	if err := k.Warning(); err != nil {
		t.Errorf("warning with TCPMSS: %v", err)
	}
	if now := state(t); !strings.Contains(now, "-A KLINK-MSS -o kubelink") {
		t.Errorf("with TCPMSS\n%s", now)
	}
}

// udp4 is an IPv4 packet from and to port 7 without payload.
func udp4(source, target netip.Addr) []byte {
	p := make([]byte, 28)
	p[0], p[3], p[8], p[9] = 0x45, 28, 64, unix.IPPROTO_UDP
	copy(p[12:], source.AsSlice())
	copy(p[16:], target.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	p[21], p[23], p[25] = 7, 7, 8
	return p
}

// received returns the source of the next UDP packet to a target.
func received(t *testing.T, device *os.File, target netip.Addr) netip.Addr {
	t.Helper()
	if err := device.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for p := make([]byte, 2000); ; {
		n, err := device.Read(p)
		if err != nil {
			t.Fatalf("no packet to %s: %v", target, err)
		}
		source, to := p[12:16], p[16:20]
		if p[0]>>4 == 6 && n >= 40 {
			source, to = p[8:24], p[24:40]
		}
		if bytes.Equal(to, target.AsSlice()) {
			a, _ := netip.AddrFromSlice(source)
			return a
		}
	}
}

// monitor counts the changes of addresses, routes and rules that the kernel tells of while f runs.
func monitor(t *testing.T, f func()) (events int) {
	t.Helper()
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f()
	// A last event, so that no time decides when all have been seen.
	end := netlink.NewRule()
	end.Priority, end.Table, end.Family = 31999, 7, unix.AF_INET
	if err := errors.Join(netlink.RuleAdd(end), netlink.RuleDel(end)); err != nil {
		t.Fatal(err)
	}
	for {
		messages, _, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.RTM_NEWRULE:
			case unix.RTM_DELRULE:
				return events
			default:
				events++
			}
		}
	}
}

// nftGeneration is the number of transactions that nf_tables has seen.
func nftGeneration(t *testing.T) uint32 {
	t.Helper()
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	request.AddData(&nl.Nfgenmsg{Version: nl.NFNETLINK_V0})
	messages, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		t.Fatal(err)
	}
	attributes, err := nl.ParseRouteAttr(messages[0][nl.SizeofNfgenmsg:])
	if err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.Uint32(attributes[0].Value)
}

// many is a mesh with a range and n-1 networks.
func many(n int) State {
	s := State{Addresses: addresses("192.168.0.11/24"), Routes: routes("192.168.0.0/24 192.168.0.11")}
	for i := 1; i < n; i++ {
		s.Routes = append(s.Routes, mesh.Route{
			Destination: netip.MustParsePrefix(fmt.Sprintf("100.%d.%d.0/24", 64+i/256, i%256)), Source: s.Addresses[0].Addr()})
	}
	return s
}

// The numbers of routes are those of a few links, and of a full mesh with several networks each.
func BenchmarkCold20(b *testing.B)     { benchCold(b, 20) }
func BenchmarkCold1000(b *testing.B)   { benchCold(b, 1000) }
func BenchmarkWarm20(b *testing.B)     { benchWarm(b, 20) }
func BenchmarkWarm1000(b *testing.B)   { benchWarm(b, 1000) }
func BenchmarkChange20(b *testing.B)   { benchChange(b, 20) }
func BenchmarkChange1000(b *testing.B) { benchChange(b, 1000) }

// benchCold: all routes on an empty machine.
func benchCold(b *testing.B, n int) {
	enter(b)
	tun(b, "kubelink")
	k, _ := open(b, config)
	s := many(n)
	for b.Loop() {
		set(b, k, s)
		b.StopTimer()
		set(b, k, State{})
		b.StartTimer()
	}
}

// benchWarm: all routes are there.
func benchWarm(b *testing.B, n int) {
	enter(b)
	tun(b, "kubelink")
	k, _ := open(b, config)
	s := many(n)
	set(b, k, s)
	for b.Loop() {
		set(b, k, s)
	}
}

// benchChange: one route more or less.
func benchChange(b *testing.B, n int) {
	enter(b)
	tun(b, "kubelink")
	k, _ := open(b, config)
	s := many(n + 1)
	set(b, k, s)
	for i := 0; b.Loop(); i++ {
		set(b, k, State{Addresses: s.Addresses, Routes: s.Routes[:n+i%2]})
	}
}
