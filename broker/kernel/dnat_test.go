package kernel

// Mesh services in real network namespaces: a gateway node with three pods, an endpoint on another node, and a cluster
// behind a device in place of the links' one. Real connections tell which endpoint answers, and whom it sees.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// serviceBed is the namespaces. All of them have both address families.
type serviceBed struct {
	t     *testing.T
	node  netns.NsHandle
	far   netns.NsHandle            // 192.168.0.12, behind kubelink
	hosts map[string]netns.NsHandle // by name: pods p1, p2 and p3 of this node, and far4 on another node
}

// bedState is what the gateway of the bed has without services.
var bedState = State{Addresses: addresses("192.168.0.11/24", "fd00:99::1/64"),
	Routes: routes("192.168.0.0/24 192.168.0.11", "100.64.16.0/20 192.168.0.11", "fd00:99::/64 fd00:99::1")}

// podAddresses are the addresses of endpoints by family and name.
var podAddresses = map[int]map[string]netip.Addr{unix.AF_INET: {}, unix.AF_INET6: {}}

func init() {
	for i := 1; i <= 3; i++ {
		name := fmt.Sprintf("p%d", i)
		podAddresses[unix.AF_INET][name] = netip.AddrFrom4([4]byte{100, 96, 0, byte(i)})
		podAddresses[unix.AF_INET6][name] = netip.MustParseAddr(fmt.Sprintf("fd00:a::%d", i))
	}
	podAddresses[unix.AF_INET]["far4"] = netip.MustParseAddr("100.96.1.4")
	podAddresses[unix.AF_INET6]["far4"] = netip.MustParseAddr("fd00:a:1::4")
}

func newServiceBed(t *testing.T) *serviceBed {
	t.Helper()
	node, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	bed := &serviceBed{t: t, node: node, hosts: map[string]netns.NsHandle{}}
	const settings = `sysctl -qw net.ipv4.ip_forward=1
		sysctl -qw net.ipv6.conf.all.forwarding=1
		sysctl -qw net.ipv4.conf.all.rp_filter=0
		sysctl -qw net.ipv4.conf.default.rp_filter=0
		sysctl -qw net.ipv6.conf.default.accept_dad=0
		sysctl -qw net.ipv4.icmp_ratelimit=0
		sysctl -qw net.ipv6.icmp.ratelimit=0
		sysctl -qew net.ipv4.icmp_msgs_per_sec=100000 net.ipv4.icmp_msgs_burst=10000
	` // the kernel sends 50 refusals at once and 1,000 in a second, so that a fast run of the tests would miss some
	run(t, settings)
	// join connects a namespace to a device of the node. It knows no route but those in more.
	join := func(device string, n int, v4, v6, more string) netns.NsHandle {
		ns := neighbour(t, node, device)
		here, there := fmt.Sprintf("02:00:00:00:00:%02x", n), fmt.Sprintf("02:00:00:00:01:%02x", n)
		run(t, fmt.Sprintf(`ip link set %s address %s up
			ip neigh add %s lladdr %s dev %[1]s
			ip neigh add %[5]s lladdr %[4]s dev %[1]s`, device, here, v4, there, v6))
		bed.within(ns, func() {
			run(t, settings+fmt.Sprintf(`ip link set lo up
				ip link set eth0 address %s up
				ip addr add %s/32 dev eth0
				ip addr add %s/128 dev eth0 nodad
				ip neigh add 169.254.1.1 lladdr %s dev eth0
				ip neigh add fe80::1 lladdr %[4]s dev eth0
			`, there, v4, v6, here)+more)
			settle(t, netip.MustParseAddr(v6))
		})
		if device == config.Device { // no TUN: it needs the neighbour that the routes name
			run(t, fmt.Sprintf("ip neigh add %s lladdr %s dev %s", anyPeer, there, device))
		}
		return ns
	}
	const anywhere = `ip route add default via 169.254.1.1 dev eth0 onlink
		ip route add default via fe80::1 dev eth0`
	for i := 1; i <= 3; i++ {
		name := fmt.Sprintf("p%d", i)
		v4, v6 := podAddresses[unix.AF_INET][name].String(), podAddresses[unix.AF_INET6][name].String()
		bed.hosts[name] = join("cali"+name, i, v4, v6, anywhere)
		run(t, fmt.Sprintf("ip route add %s dev cali%s\nip route add %s dev cali%[2]s", v4, name, v6))
	}
	bed.hosts["far4"] = join("eth0", 4, "100.96.1.4", "fd00:a:1::4", `
		ip route add 10.250.0.11 via 169.254.1.1 dev eth0 onlink
		ip route add fd00:250::11 via fe80::1 dev eth0`)
	run(t, `ip addr add 10.250.0.11/24 dev eth0
		ip addr add fd00:250::11/64 dev eth0 nodad
		ip route add 100.96.1.4 dev eth0
		ip route add fd00:a:1::4 dev eth0`)
	settle(t, netip.MustParseAddr("fd00:250::11"))
	bed.far = join("kubelink", 5, "192.168.0.12", "fd00:99::2", anywhere)
	for name, ns := range bed.hosts {
		bed.serve(ns, name, 80, 81)
	}
	bed.serve(bed.far, "far", 80)
	return bed
}

func (bed *serviceBed) within(ns netns.NsHandle, f func()) {
	bed.t.Helper()
	if err := netns.Set(ns); err != nil {
		bed.t.Fatal(err)
	}
	f()
	if err := netns.Set(bed.node); err != nil {
		bed.t.Fatal(err)
	}
}

// serve has TCP ports and UDP port 53 of a namespace answer with its name and the address of the client.
func (bed *serviceBed) serve(ns netns.NsHandle, name string, ports ...int) {
	bed.t.Helper()
	for _, port := range ports {
		var listener net.Listener
		var err error
		bed.within(ns, func() { listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
		if err != nil {
			bed.t.Fatal(err)
		}
		bed.t.Cleanup(func() { listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, answer(name, conn.RemoteAddr()))
				conn.Close()
			}
		}()
	}
	var packets net.PacketConn
	var err error
	bed.within(ns, func() { packets, err = net.ListenPacket("udp", ":53") })
	if err != nil {
		bed.t.Fatal(err)
	}
	bed.t.Cleanup(func() { packets.Close() })
	go func() {
		for b := make([]byte, 100); ; {
			_, client, err := packets.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo([]byte(answer(name, client)), client)
		}
	}()
}

func answer(name string, client net.Addr) string {
	a, _ := netip.ParseAddrPort(client.String())
	return name + " sees " + a.Addr().Unmap().String()
}

// ask makes a connection and returns the answer, or "refused", and how long that took.
func (bed *serviceBed) ask(ns netns.NsHandle, network string, to netip.AddrPort) (got string, took time.Duration) {
	bed.t.Helper()
	began := time.Now()
	var conn net.Conn
	var err error
	bed.within(ns, func() { conn, err = net.DialTimeout(network, to.String(), 5*time.Second) })
	if err == nil {
		defer conn.Close()
		got, err = exchange(conn, network == "udp")
	}
	took = time.Since(began)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPERM) { // EPERM: UDP of the node itself
		return "refused", took
	}
	if err != nil {
		return err.Error(), took
	}
	return got, took
}

// exchange reads an answer, after a question if there must be one.
func exchange(conn net.Conn, question bool) (string, error) {
	if question {
		if _, err := conn.Write([]byte("who?")); err != nil {
			return "", err
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, err := conn.Read(b)
	return string(b[:n]), err
}

// ping sends an ICMP echo request and returns what comes: "pong", "unreachable" or an error.
func (bed *serviceBed) ping(ns netns.NsHandle, to netip.Addr) string {
	bed.t.Helper()
	network, request, reply, unreachable := "ip4:icmp", byte(8), byte(0), byte(3)
	if to.Is6() {
		network, request, reply, unreachable = "ip6:ipv6-icmp", 128, 129, 1
	}
	var conn net.Conn
	var err error
	bed.within(ns, func() {
		if conn, err = net.Dial(network, to.String()); err != nil {
			return
		}
		defer conn.Close()
		packet := []byte{request, 0, 0, 0, 0, 7, 0, 1}
		var sum checksum
		sum.add(packet) // the kernel makes that of ICMPv6
		packet[2], packet[3] = byte(sum.value()>>8), byte(sum.value())
		if _, err = conn.Write(packet); err == nil {
			err = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		}
		for b := make([]byte, 200); err == nil; {
			var n int
			if n, _, err = conn.(*net.IPConn).ReadFrom(b); n > 0 && b[0] == reply {
				break
			}
			if n > 0 && b[0] == unreachable {
				err = unix.ECONNREFUSED
			}
		}
	})
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EPERM):
		return "unreachable"
	case err != nil:
		return err.Error()
	}
	return "pong"
}

// bedService is the whole address N of the mesh, with these endpoints.
func bedService(family, n int, endpoints ...string) service.Service {
	s := service.Service{Namespace: "default", Name: fmt.Sprintf("s%d", n), Address: bedAddress(family, n), Whole: true}
	for _, name := range endpoints {
		s.Targets = append(s.Targets, podAddresses[family][name])
	}
	return s
}

func bedAddress(family, n int) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte{192, 168, 0, byte(n)})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00:99::%d", n))
}

// bedPort is a port with these endpoints at their port.
func bedPort(family int, protocol uint8, port, target uint16, endpoints ...string) service.Port {
	p := service.Port{Protocol: protocol, Port: port}
	for _, name := range endpoints {
		p.Targets = append(p.Targets, netip.AddrPortFrom(podAddresses[family][name], target))
	}
	return p
}

// forEachFamily runs a test in a bed of its own for each back end and address family.
func forEachFamily(t *testing.T, test func(bed *serviceBed, family int)) {
	for _, backend := range []string{nftBackend, legacyBackend} {
		for _, family := range families {
			inNamespace(t, fmt.Sprintf("%s, IPv%d", backend, IPVersion(family)), func(t *testing.T) {
				if backend == legacyBackend {
					useLegacy(t)
				}
				test(newServiceBed(t), family)
			})
		}
	}
}

func withServices(services ...service.Service) State {
	s := bedState
	s.Services = services
	return s
}

// places are where the broker runs, as changes of a state.
var places = map[string]func(*State){
	"a node": func(*State) {},
	"a pod":  func(s *State) { s.Pod = Pod{Is: true, Device: "eth0"} },
}

// A whole address leads over all protocols to its endpoints, from a cluster behind a link, from pods, which can be
// endpoints themselves, and from the node. An endpoint on a node without route to clients answers, and so does one
// beyond a link. No rule of the node but ours lets these packets pass.
func TestServiceWholeAddress(t *testing.T) {
	forEachFamily(t, func(bed *serviceBed, family int) {
		t := bed.t
		run(t, "iptables -P FORWARD DROP\nip6tables -P FORWARD DROP")
		mapped := bedService(family, 203, "p1")
		mapped.Ports = []service.Port{bedPort(family, unix.IPPROTO_TCP, 8080, 81, "p2")}
		beyond := bedService(family, 204)
		beyond.Targets = []netip.Addr{map[int]netip.Addr{unix.AF_INET: netip.MustParseAddr("192.168.0.12"),
			unix.AF_INET6: netip.MustParseAddr("fd00:99::2")}[family]}
		k, _ := open(t, config)
		clients := map[string]netns.NsHandle{"a cluster": bed.far, "a pod": bed.hosts["p1"], "the node": bed.node}
		for place, change := range places {
			s := withServices(bedService(family, 201, "far4"), bedService(family, 202, "p1"), mapped, beyond)
			change(&s)
			set(t, k, s)
			for client, ns := range clients {
				for _, c := range []struct {
					n       int
					network string
					port    uint16
					want    string // endpoint
				}{
					{201, "tcp", 80, "far4"}, {201, "udp", 53, "far4"}, {202, "tcp", 80, "p1"}, {202, "udp", 53, "p1"},
					{203, "tcp", 8080, "p2"}, {203, "tcp", 81, "p1"}, {202, "tcp", 82, "refused"},
					{204, "tcp", 80, "far"}, {204, "udp", 53, "far"},
				} {
					got, _ := bed.ask(ns, c.network, netip.AddrPortFrom(bedAddress(family, c.n), c.port))
					name, sees, _ := strings.Cut(got, " sees ")
					if name != c.want {
						t.Errorf("%s: %s to %s port %d of service %d: %s, want %s", place, client, c.network, c.port, c.n, got, c.want)
					}
					if client == "a cluster" && (sees == "192.168.0.12" || sees == "fd00:99::2") {
						t.Errorf("%s: the endpoint sees the client: %s", place, got)
					}
				}
				for _, n := range []int{201, 202, 204} {
					if got := bed.ping(ns, bedAddress(family, n)); got != "pong" {
						t.Errorf("%s: %s pings service %d: %s", place, client, n, got)
					}
				}
			}
			if t.Failed() {
				t.Fatal(run(t, "iptables-save -c"))
			}
		}
	})
}

// Each endpoint gets the same part of connections. With affinity, a client stays with its endpoint when others come and
// go, and gets another one when it goes.
func TestServiceSpread(t *testing.T) {
	forEachFamily(t, func(bed *serviceBed, family int) {
		t := bed.t
		tcp := netip.AddrPortFrom(bedAddress(family, 200), 80)
		affine := func(endpoints ...string) State {
			s := bedService(family, 201, endpoints...)
			s.Ports = []service.Port{bedPort(family, unix.IPPROTO_TCP, 8080, 80, endpoints...)}
			s.Affinity = 10800
			return withServices(s)
		}
		k, w := open(t, config)
		set(t, k, withServices(bedService(family, 200, "p1", "p2", "p3")))
		for _, network := range []string{"tcp", "udp"} {
			port, counts := map[string]uint16{"tcp": 80, "udp": 53}[network], map[string]int{}
			for range 300 {
				got, _ := bed.ask(bed.far, network, netip.AddrPortFrom(tcp.Addr(), port))
				name, _, _ := strings.Cut(got, " ")
				counts[name]++
			}
			t.Logf("300 connections of %s: %v", network, counts)
			for _, name := range []string{"p1", "p2", "p3"} { // 100 each, with a deviation of 8
				if n := counts[name]; n < 60 || n > 140 {
					t.Errorf("%s: %s gets %d of 300 connections", network, name, n)
				}
			}
		}

		set(t, k, affine("p1", "p2", "p3"))
		for _, port := range []uint16{80, 8080} {
			to := netip.AddrPortFrom(bedAddress(family, 201), port)
			first, _ := bed.ask(bed.far, "tcp", to)
			stays := func(when string, want bool) {
				t.Helper()
				for range 20 {
					if got, _ := bed.ask(bed.far, "tcp", to); (got == first) != want {
						t.Fatalf("port %d, %s: %s, first it was %s", port, when, got, first)
					}
				}
			}
			stays("at once", true)
			name, _, _ := strings.Cut(first, " ")
			others := slices.DeleteFunc([]string{"p1", "p2", "p3"}, func(p string) bool { return p == name })
			kept := []string{others[0], name}
			slices.Sort(kept)
			set(t, k, affine(kept...))
			stays("without another one", true)
			w.writes = 0
			set(t, k, affine(kept...))
			set(t, k, affine("p1", "p2", "p3"))
			stays("with it", true)
			set(t, k, affine(others...))
			stays("without its endpoint", false)
			set(t, k, affine("p1", "p2", "p3"))
		}
	})
}

// The kernel sends a host six ICMP errors at once, then one a second, and takes its redirects from these. A cluster gets
// refusals, and no redirect that makes it go without them. Routes of an earlier version are replaced.
func TestServiceRefusesWithLimit(t *testing.T) {
	enter(t)
	bed := newServiceBed(t)
	run(t, "sysctl -qw net.ipv4.icmp_ratelimit=1000\nip link set kubelink up\n"+
		"ip route add 192.168.0.0/24 dev kubelink proto 107")
	k, _ := open(t, config)
	set(t, k, withServices(bedService(unix.AF_INET, 200)))
	for range 3 {
		if got, _ := bed.ask(bed.far, "udp", netip.AddrPortFrom(bedAddress(unix.AF_INET, 200), 53)); got != "refused" {
			t.Errorf("a cluster asks a service without endpoints: %s", got)
		}
	}
}

// What has no endpoint is refused at once: a whole address, a port, or what is not mapped.
func TestServiceRefuses(t *testing.T) {
	forEachFamily(t, func(bed *serviceBed, family int) {
		t := bed.t
		run(t, "iptables -P FORWARD DROP\nip6tables -P FORWARD DROP")
		mapped := bedService(family, 201)
		mapped.Ports = []service.Port{bedPort(family, unix.IPPROTO_TCP, 80, 80, "p1"),
			bedPort(family, unix.IPPROTO_TCP, 81, 81), bedPort(family, unix.IPPROTO_UDP, 53, 53)}
		k, _ := open(t, config)
		clients := map[string]netns.NsHandle{"a cluster": bed.far, "a pod": bed.hosts["p1"], "the node": bed.node}
		for place, change := range places {
			shared := service.Service{Address: bedAddress(family, 202), Ports: []service.Port{
				bedPort(family, unix.IPPROTO_TCP, 80, 80, "p1"), bedPort(family, unix.IPPROTO_TCP, 81, 81)}}
			s := withServices(bedService(family, 200), mapped, shared)
			change(&s)
			set(t, k, s)
			for client, ns := range clients {
				for _, c := range []struct {
					n       int
					network string
					port    uint16
				}{{200, "tcp", 80}, {200, "udp", 53}, {201, "tcp", 81}, {201, "tcp", 82}, {201, "udp", 53}, {201, "udp", 54},
					{202, "tcp", 81}, {202, "tcp", 82}, {202, "udp", 53}} {
					to, least := netip.AddrPortFrom(bedAddress(family, c.n), c.port), time.Hour
					for range 3 { // this machine may be busy
						got, took := bed.ask(ns, c.network, to)
						if least = min(least, took); got != "refused" {
							t.Fatalf("%s: %s to %s port %d of service %d: %s", place, client, c.network, c.port, c.n, got)
						}
					}
					t.Logf("%s: %s to %s port %d is refused after %s", place, client, c.network, c.port, least)
					if least > 100*time.Millisecond {
						t.Errorf("%s: %s to %s port %d of service %d is refused after %s", place, client, c.network, c.port, c.n, least)
					}
				}
				for _, n := range []int{200, 201, 202} {
					if got := bed.ping(ns, bedAddress(family, n)); got != "unreachable" {
						t.Errorf("%s: %s pings service %d: %s", place, client, n, got)
					}
				}
				if got, _ := bed.ask(ns, "tcp", netip.AddrPortFrom(bedAddress(family, 201), 80)); !strings.HasPrefix(got, "p1") {
					t.Errorf("%s: %s to a port with an endpoint: %s", place, client, got)
				}
			}
		}
	})
}

// A client that sends UDP from one port goes on when its endpoint goes, when the first endpoint comes, and when the
// service is replaced. One of TCP is left alone.
func TestServiceFlows(t *testing.T) {
	forEachFamily(t, func(bed *serviceBed, family int) {
		t := bed.t
		k, _ := open(t, config)
		whole := func(endpoints ...string) State { return withServices(bedService(family, 200, endpoints...)) }
		port := func(endpoints ...string) State {
			s := bedService(family, 200, "p3")
			s.Ports = []service.Port{bedPort(family, unix.IPPROTO_UDP, 53, 53, endpoints...)}
			return withServices(s)
		}
		var conn net.Conn
		var err error
		bed.within(bed.far, func() {
			conn, err = net.Dial("udp", netip.AddrPortFrom(bedAddress(family, 200), 53).String())
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, step := range []struct {
			name string
			s    State
			want string
		}{
			{"no service", bedState, ""}, {"an endpoint", whole("p1"), "p1"}, {"another one", whole("p2"), "p2"},
			{"more", whole("p1", "p2", "p3"), "p2"}, {"a port", port("p1"), "p1"}, {"another one of the port", port("p2"), "p2"},
			{"none", port(), "refused"}, {"one again", port("p1"), "p1"}, {"the whole address", whole("p2"), "p2"},
			{"none of it", whole(), "refused"}, {"no service again", bedState, ""}, {"a new one", whole("p1"), "p1"},
		} {
			set(t, k, step.s)
			if err := k.Warning(); err != nil {
				t.Fatal(err)
			}
			if step.want == "" {
				if _, err := conn.Write([]byte("who?")); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
					t.Fatal(err)
				}
				continue
			}
			got, err := exchange(conn, true)
			for step.want != "refused" && errors.Is(err, unix.ECONNREFUSED) { // by an earlier step
				got, err = exchange(conn, true)
			}
			if errors.Is(err, unix.ECONNREFUSED) {
				got, err = "refused", nil
			}
			if name, _, _ := strings.Cut(got, " "); err != nil || name != step.want {
				t.Fatalf("%s: %q, %v, want %s", step.name, got, err, step.want)
			}
		}
	})
}

// Ports at the address of the cluster itself: they lead to endpoints though the node has the same ports open, and no
// other port of the node is open.
func TestServicePorts(t *testing.T) {
	forEachFamily(t, func(bed *serviceBed, family int) {
		t := bed.t
		bed.serve(bed.node, "node", 22, 80, 81)
		own := bedState.Addresses[0].Addr()
		if family == unix.AF_INET6 {
			own = bedState.Addresses[1].Addr()
		}
		const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP
		one := service.Service{Name: "one", Address: own, Ports: []service.Port{
			bedPort(family, tcp, 80, 80, "p1"), bedPort(family, tcp, 8081, 81, "p2", "far4"),
			bedPort(family, udp, 5353, 53, "p3")}}
		two := service.Service{Name: "two", Address: own, Ports: []service.Port{bedPort(family, tcp, 81, 80)}}
		for port := range uint16(40) { // so many that they are in chains of their own
			two.Ports = append(two.Ports, bedPort(family, tcp, 9000+2*port, 80, "p3"))
		}
		k, _ := open(t, config)
		set(t, k, withServices(one, two))
		clients := map[string]netns.NsHandle{"a cluster": bed.far, "a pod": bed.hosts["p1"], "the node": bed.node}
		for client, ns := range clients {
			for _, c := range []struct {
				network string
				port    uint16
				want    []string
			}{
				{"tcp", 80, []string{"p1"}}, {"tcp", 8081, []string{"p2", "far4"}}, {"udp", 5353, []string{"p3"}},
				{"tcp", 9000, []string{"p3"}}, {"tcp", 9078, []string{"p3"}}, {"tcp", 9040, []string{"p3"}},
				{"tcp", 81, []string{"refused"}},
			} {
				got, _ := bed.ask(ns, c.network, netip.AddrPortFrom(own, c.port))
				if name, _, _ := strings.Cut(got, " "); !slices.Contains(c.want, name) {
					t.Errorf("%s to %s port %d: %s, want %s", client, c.network, c.port, got, c.want)
				}
			}
			if got := bed.ping(ns, own); got != "pong" {
				t.Errorf("%s pings the cluster: %s", client, got)
			}
		}
		// The node's own ports, and one between those of services.
		before := k.Drops().Node
		for _, port := range []uint16{9001, 22} {
			conn := net.Dialer{Timeout: 300 * time.Millisecond}
			bed.within(bed.far, func() {
				if c, err := conn.DialContext(context.Background(), "tcp", netip.AddrPortFrom(own, port).String()); err == nil {
					t.Errorf("port %d of the node is open", port)
					c.Close()
				} else if errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("port %d of the node: %v, want that it drops packets", port, err)
				}
			})
		}
		set(t, k, withServices(one, two))
		if n := k.Drops().Node - before; n < 2 {
			t.Errorf("%d packets dropped, want those to ports of the node", n)
		}
		if got, _ := bed.ask(bed.hosts["p1"], "tcp", netip.AddrPortFrom(own, 22)); !strings.HasPrefix(got, "node ") {
			t.Errorf("a port that no service has, of a pod: %s", got)
		}
	})
}
