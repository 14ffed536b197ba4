package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

var all = []string{"lan", "node1", "node2", "stranger", "pod1", "pod2", "gateway", "mesh"}

// Packets pass in both directions through networks that drop foreign addresses, which they do not without the overlay.
func TestNamespaceDirections(t *testing.T) {
	for _, podMode := range []bool{false, true} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("pod mode %v, IPv6 %v", podMode, v6), func(t *testing.T) {
				w := newWorld(t, all...)
				w.v6 = v6
				w.build(podMode)
				for _, server := range []string{"mesh", "pod2", "node2", w.gateway} {
					w.answer(server)
				}
				w.route("node2", "via "+w.address("node1").String())
				w.want("pod2", "remote", "")
				w.want("node2", "mesh", "")

				w.set()
				w.want("pod2", "remote", "cluster")
				w.want("pod2", "mesh", "cluster")
				w.want("node2", "remote", "cluster")
				w.want("pod1", "remote", "cluster")
				w.want("mesh", "service2", w.gateway) // the pod on the other node sees the gateway
				client := w.choose("mesh", "remote")  // the address that has more bits of the server's
				w.want("mesh", "host2", client)       // a server in the network of a node sees the client
			})
		}
	}
}

// What the gateway's own address in the mesh answers takes the overlay, too.
func TestNamespaceClusterAddress(t *testing.T) {
	w := newWorld(t, all...)
	w.build(false)
	w.answer("node1")
	w.run("node1", "iptables -t mangle -A INPUT -d 192.168.0.11 -j ACCEPT")
	w.set()
	w.want("pod2", "cluster", "node2")
	w.want("node2", "cluster", "node2")
}

// VXLAN packets come from peers only.
func TestNamespaceForged(t *testing.T) {
	for _, podMode := range []bool{false, true} {
		t.Run(fmt.Sprintf("pod mode %v", podMode), func(t *testing.T) { testForged(t, podMode) })
	}
}

func testForged(t *testing.T, podMode bool) {
	w := newWorld(t, all...)
	w.build(podMode)
	w.set()
	w.dropped("node2")
	w.dropped(w.gateway)
	node1, node2, gateway := w.address("node1"), w.address("node2"), w.address(w.gateway)
	inside := func(server, from, to string) (payload []byte, arrived func(bool) bool) {
		conn := w.listen(server, 0)
		port := conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		payload = w.forged(makeMAC(w.address(server)), netip.AddrPortFrom(w.address(from), 9),
			netip.AddrPortFrom(w.address(to), port))
		return payload, func(expected bool) bool {
			timeout := 200 * time.Millisecond // for what should not come; it takes under a millisecond
			if expected {
				timeout = 5 * time.Second
			}
			conn.SetReadDeadline(time.Now().Add(timeout))
			_, err := conn.Read(make([]byte, 100))
			return err == nil
		}
	}
	toNode, nodeGot := inside("node2", "remote", "node2")
	toGateway, gatewayGot := inside(w.gateway, "node2", "cluster")
	// A service with the VXLAN port of a node as endpoint.
	w.run(w.gateway, "iptables -t nat -I PREROUTING -p udp -d 100.64.0.9 -j DNAT --to-destination "+node2.String()+":8781")

	udp := netip.AddrPortFrom
	type test struct {
		name, from     string
		source, target netip.AddrPort
		counts         string // who drops it; empty: the network does before
		passes         bool
	}
	link := w.address("remote")
	tests := []test{
		{"the gateway itself", w.gateway, udp(gateway, 5000), udp(node2, 8781), "", true},
		{"a pod of the node", "pod2", udp(w.address("pod2"), 5001), udp(node2, 8781), "node2", false},
		{"a pod of the node as the gateway's node", "pod2", udp(node1, 5002), udp(node2, 8781), "", false},
		{"a stranger", "stranger", udp(w.address("stranger"), 5003), udp(node2, 8781), "node2", false},
		{"a link to the node", "mesh", udp(link, 5004), udp(node2, 8781), w.gateway, false},
		{"a link to a service with the port of a node", "mesh", udp(link, 5005),
			udp(netip.MustParseAddr("100.64.0.9"), 80), w.gateway, false},
		{"the node itself", "node2", udp(node2, 5006), udp(gateway, 8780), "", true},
		{"a pod of another node, masqueraded", "pod2", udp(w.address("pod2"), 5007), udp(gateway, 8780), "node2", false},
		{"a stranger to the gateway", "stranger", udp(w.address("stranger"), 5008), udp(gateway, 8780), w.gateway, false},
		{"a link to the gateway", "mesh", udp(link, 5009), udp(gateway, 8780), "", false},
	}
	if podMode {
		tests = append(tests,
			test{"a pod beside the gateway as a node", "pod1", udp(node2, 5010), udp(gateway, 8780), "", false},
			test{"a pod beside the gateway", "pod1", udp(w.address("pod1"), 5011), udp(gateway, 8780), "node1", false},
			test{"a pod beside the gateway, masqueraded", "pod1", udp(w.address("pod1"), 5012), udp(node2, 8781),
				"node1", false})
		tests[8].counts = "" // it has no route to pods here, and they none to it
	} else {
		tests = append(tests,
			test{"a pod of the gateway's node", "pod1", udp(w.address("pod1"), 5010), udp(gateway, 8780), "node1", false},
			test{"a pod of the gateway's node, masqueraded", "pod1", udp(w.address("pod1"), 5011), udp(node2, 8781),
				"node1", false})
	}
	// The reverse path filter of the nodes would drop what has the address of another network. We do not rely on it.
	for _, name := range []string{"node1", "node2", w.gateway} {
		w.run(name, "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
	}
	for _, x := range tests {
		payload, arrived := toNode, nodeGot
		if x.target.Addr() == gateway {
			payload, arrived = toGateway, gatewayGot
		}
		var before uint64
		if x.counts != "" {
			before = w.dropped(x.counts)
		}
		w.send(x.from, x.source, x.target, payload)
		if got := arrived(x.passes); got != x.passes {
			t.Errorf("%s: arrived %v", x.name, got)
		}
		if x.counts == "" {
			continue
		}
		if got := w.dropped(x.counts) - before; got != 1 {
			t.Errorf("%s: %s counted %d packets", x.name, x.counts, got)
		}
	}
	w.countWithoutSet("node2", func() {
		w.send("stranger", udp(w.address("stranger"), 5020), udp(node2, 8781), toNode)
	})
}

// countWithoutSet makes sure that the next packet that is dropped counts, also where nothing sets the overlay.
func (w *world) countWithoutSet(name string, send func()) {
	w.t.Helper()
	before := w.dropped(name)
	send()
	for end := time.Now().Add(5 * time.Second); ; <-time.After(50 * time.Millisecond) {
		var got uint64
		w.in(name, func() { got = w.overlays[name].Counters().Dropped - before })
		if got == 1 {
			return
		}
		if time.Now().After(end) {
			w.t.Errorf("%s counted %d packets without a Set", name, got)
			return
		}
	}
}

// A process that comes after a killed one adopts all; Clear leaves nothing.
func TestNamespaceAdoption(t *testing.T) {
	for _, podMode := range []bool{false, true} {
		w := newWorld(t, all...)
		w.build(podMode)
		before := map[string]string{}
		for name := range w.states() {
			before[name] = w.show(name)
		}
		w.set()
		for name, s := range w.states() {
			after := w.show(name)
			w.in(name, func() {
				index := deviceIndex(t, w.overlays[name].role.Device())
				successor := w.open(name)
				if err := successor.Set(s); err != nil {
					t.Fatal(err)
				}
				if now := w.show(name); now != after {
					t.Errorf("%s: the second Set made\n%s\nof\n%s", name, now, after)
				}
				w.in(name, func() {})
				if deviceIndex(t, successor.role.Device()) != index {
					t.Errorf("%s: the device was made anew", name)
				}
				// What an earlier process had otherwise is mended.
				w.run(name, fmt.Sprintf(`ip neigh add 203.0.113.9 lladdr 02:6b:01:02:03:04 dev %[1]s nud permanent
					bridge fdb add 02:6b:01:02:03:04 dev %[1]s dst 203.0.113.9
					ip link set %[1]s mtu 1200 down`, successor.role.Device()))
				w.in(name, func() {
					if err := successor.Set(s); err != nil {
						t.Fatal(err)
					}
				})
				if now := w.show(name); now != after {
					t.Errorf("%s: Set mended\n%s\nwhere it was\n%s", name, now, after)
				}
				w.in(name, func() {
					if err := w.open(name).Clear(); err != nil {
						t.Fatal(err)
					}
				})
			})
			if now := w.show(name); now != before[name] {
				t.Errorf("%s: Clear left\n%s\nof\n%s", name, now, before[name])
			}
		}
	}
}

// unstable is what changes by itself, or with each new device.
var unstable = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]|^\d+: |^.*\bproto 114\b.*\n|^.*fe80:.*\n|^.*ff00::/8.*\n|` +
	`^.*33:33:.*\n|^.*01:00:5e.*\n`)

func (w *world) show(name string) string {
	w.t.Helper()
	return unstable.ReplaceAllString(w.run(name, `ip -d link
		ip -4 addr
		ip -4 route show table all
		ip -6 route show table all
		ip -4 rule
		ip -6 rule
		ip neigh show nud permanent
		bridge fdb
		iptables-save
		ip6tables-save`), "")
}

func deviceIndex(t *testing.T, name string) int {
	t.Helper()
	d, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return d.Attrs().Index
}

// Devices and ports of other programs are named and stay as they are.
func TestNamespaceForeign(t *testing.T) {
	for _, x := range []struct{ name, make, want string }{
		{"name", "ip link add klvxlan type bridge",
			"there is a device klvxlan that is not kubelink's (a bridge device): rename it (ip link set klvxlan name NAME)"},
		{"a VXLAN device with our name", "ip link add klvxlan type vxlan id 5 dstport 4789",
			"there is a device klvxlan that is not kubelink's (a vxlan device)"},
		{"port", "ip link add flannel.1 type vxlan id 107 dstport 8781",
			"UDP port 8781 of device klvxlan is that of the VXLAN device flannel.1 (VNI 107), which is not kubelink's: " +
				"choose another one with the property vxlan-port, or vxlan-vni, of kubelink"},
	} {
		w := newWorld(t, all...)
		w.build(false)
		w.run("node2", x.make)
		before := w.run("node2", "ip -d link")
		o := w.open("node2")
		w.in("node2", func() {
			if err := o.Set(w.states()["node2"]); err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%s: error %v", x.name, err)
			}
			w.wantNoFilters("node2", x.name)
			if err := o.Clear(); err != nil {
				t.Errorf("%s: %v", x.name, err)
			}
		})
		if now := w.run("node2", "ip -d link"); now != before {
			t.Errorf("%s: changed to\n%s", x.name, now)
		}
	}
	w := newWorld(t, all...)
	w.build(false)
	w.listen("node2", 8781)
	o := w.open("node2")
	w.in("node2", func() {
		err := o.Set(w.states()["node2"])
		if err == nil || !strings.Contains(err.Error(), "UDP port 8781 is that of another program") {
			t.Errorf("error %v", err)
		}
	})
	w.wantNoFilters("node2", "a port of another program")
	if now := w.run("node2", "ip link"); strings.Contains(now, "klvxlan") {
		t.Errorf("half a device is left:\n%s", now)
	}
}

// wantNoFilters makes sure that no filter drops packets of the program that has the port.
func (w *world) wantNoFilters(node, why string) {
	w.t.Helper()
	if now := w.run(node, "iptables-save"); strings.Contains(now, "VXLAN") {
		w.t.Errorf("%s: filters are set:\n%s", why, now)
	}
}

// The MTU is that of the way, and connections of pods with a larger one have an MSS that fits.
func TestNamespaceMTU(t *testing.T) {
	for _, x := range []struct{ underlay, route, want int }{{1500, 0, 1450}, {9000, 0, 8950}, {9000, 1400, 1350}} {
		w := newWorld(t, all...)
		w.build(false)
		for _, n := range []string{"node1", "node2"} {
			w.run("lan", fmt.Sprintf("ip link set %s mtu %d", n, x.underlay))
			w.run(n, fmt.Sprintf("ip link set eth0 mtu %d", x.underlay))
		}
		if x.route != 0 {
			w.run("node2", fmt.Sprintf("ip route add 10.250.0.1 dev eth0 mtu %d", x.route))
		}
		for _, pod := range []string{"pod2"} {
			w.run("node2", "ip link set "+pod+" mtu 9000")
			w.run(pod, "ip link set eth0 mtu 9000")
		}
		w.run(w.gateway, "ip link set kubelink mtu 9000")
		w.run("mesh", "ip link set tun mtu 9000")
		w.set()
		if got := w.overlays["node2"].MTU(); got != x.want {
			t.Errorf("underlay %d, route %d: MTU %d, want %d", x.underlay, x.route, got, x.want)
		}
		if got, want := w.mss("pod2", "mesh"), x.want-40; got != want {
			t.Errorf("underlay %d, route %d: MSS %d, want %d", x.underlay, x.route, got, want)
		}
	}
}

// mss connects and returns the maximum segment size that the server was told, in bytes, without options.
func (w *world) mss(from, to string) (size int) {
	w.t.Helper()
	var listener net.Listener
	w.in(to, func() {
		var err error
		if listener, err = net.Listen("tcp4", ":80"); err != nil {
			w.t.Fatal(err)
		}
	})
	defer listener.Close()
	w.in(from, func() {
		conn, err := net.DialTimeout("tcp4", netip.AddrPortFrom(w.address(to), 80).String(), 5*time.Second)
		if err != nil {
			w.t.Fatal(err)
		}
		defer conn.Close()
		server, err := listener.Accept()
		if err != nil {
			w.t.Fatal(err)
		}
		defer server.Close()
		const options = 12 // timestamps
		size = segmentSize(w.t, server.(*net.TCPConn)) + options
		// And what is as large as that arrives: 1 MB each way.
		done := make(chan error, 1)
		go func() {
			_, err := server.Write(make([]byte, 1<<20))
			done <- err
		}()
		for left := 1 << 20; left > 0; {
			conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, err := conn.Read(make([]byte, 1<<16))
			if err != nil {
				w.t.Fatalf("%d bytes are missing: %v", left, err)
			}
			left -= n
		}
		if err := <-done; err != nil {
			w.t.Fatal(err)
		}
	})
	return size
}

// 250 nodes are set in under a second.
func TestNamespaceManyPeers(t *testing.T) {
	w := newWorld(t, all...)
	w.build(false)
	s := w.states()["node1"]
	s.Peers = nil
	for i := range 250 {
		s.Peers = append(s.Peers, Peer{Name: fmt.Sprint("node", i),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 250, byte(1 + i/200), byte(1 + i%200)})}})
	}
	w.run("node1", "ip route add 10.250.0.0/16 dev eth0")
	o := w.open("node1")
	w.in("node1", func() {
		for _, what := range []string{"new", "again"} {
			start := time.Now()
			if err := o.Set(s); err != nil {
				t.Fatal(err)
			}
			took := time.Since(start)
			t.Logf("%s: %v", what, took)
			if took > time.Second {
				t.Errorf("%s: 250 peers took %v", what, took)
			}
		}
	})
	if got := strings.Count(w.run("node1", "bridge fdb show dev klvxlan-gw"), "permanent"); got != 250 {
		t.Errorf("%d entries of the forwarding database, want 250", got)
	}
	w.run("node1", "ip route show table 118107")
	// All but one go.
	s.Peers = s.Peers[:1]
	w.in("node1", func() {
		if err := o.Set(s); err != nil {
			t.Fatal(err)
		}
	})
	got := w.run("node1", "bridge fdb show dev klvxlan-gw\nip neigh show dev klvxlan-gw\nip route show table 118107")
	if strings.Count(got, "10.250.1.1") != 3 || strings.Count(got, "10.250.") != 3 {
		t.Errorf("left:\n%s", got)
	}
}

// The gateway's device is made anew when its port or VNI changes. What comes from the mesh meanwhile does not leave for
// a node outside of the overlay: connections would go on there.
func TestNamespaceGatewayChange(t *testing.T) {
	w := newWorld(t, all...)
	w.build(false)
	w.set()
	w.run("node1", `nft add table inet watch
		nft 'add chain inet watch out { type filter hook postrouting priority 0; }'
		nft 'add rule inet watch out oifname eth0 ip saddr 192.168.0.0/24 counter'
		nft 'add rule inet watch out oifname klvxlan-gw counter'`)
	var conn net.Conn
	w.in("mesh", func() {
		var err error
		if conn, err = net.Dial("udp4", netip.AddrPortFrom(w.address("node2"), 9).String()); err != nil {
			t.Fatal(err)
		}
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := conn.Write([]byte("from the mesh")); errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}()
	o, s := w.overlays["node1"], w.states()["node1"]
	w.in("node1", func() {
		for range 5 {
			for _, change := range []func(){func() { s.VNI ^= 1 }, func() { s.Port ^= 4 }} {
				change()
				if err := o.Set(s); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	conn.Close()
	<-ended
	counts := w.run("node1", "nft list chain inet watch out")
	if strings.Count(counts, "counter packets 0 bytes 0") != 1 {
		t.Errorf("packets left outside of the overlay:\n%s", counts)
	}
	if now := w.run("node1", "ip route show table 118107"); strings.Contains(now, "unreachable") {
		t.Errorf("routes that were held are left:\n%s", now)
	}
}

// A node without a way is named, and the other one is served.
func TestNamespaceUnservedPeer(t *testing.T) {
	w := newWorld(t, all...)
	w.build(false)
	w.set()
	s := w.states()["node1"]
	s.Peers = append([]Peer{{Name: "node node9", Addresses: []netip.Addr{netip.MustParseAddr("10.9.9.9")}}}, s.Peers...)
	w.run("node1", "ip route add unreachable 10.9.9.9")
	w.in("node1", func() {
		failed, unserved := SplitError(w.overlays["node1"].Set(s))
		if failed != nil || unserved == nil || !strings.Contains(unserved.Error(), "overlay to node node9: ") {
			t.Errorf("failed: %v, unserved: %v", failed, unserved)
		}
	})
	w.answer("mesh")
	w.want("pod2", "mesh", "cluster")
}
