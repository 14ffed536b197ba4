package router

// The overlay to gateways: which one follows from the objects, and what the kernel makes of it, in a network namespace.

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/overlay"
)

func TestWantedOverlay(t *testing.T) {
	other := inVXLAN(gateway(2, "100.64.32.0/20"))
	other.Spec.VXLAN.Port = 9000
	for name, c := range map[string]struct {
		gateways list
		want     string // peers and their sources
		finding  string
	}{
		"none":        {list{gateway(1)}, "0 0", ""},
		"node":        {list{inVXLAN(gateway(1))}, "107 8780 g1 [10.250.0.1] []", ""},
		"pod":         {list{inVXLAN(inPod(gateway(1), "100.96.1.5"))}, "107 8780 g1 [100.96.1.5] [10.250.0.1]", ""},
		"here":        {list{inVXLAN(gateway(3))}, "0 0", ""},
		"pod here":    {list{inVXLAN(inPod(gateway(3), "100.96.3.5"))}, "107 8780 g3 [100.96.3.5] [10.250.0.3]", ""},
		"two of them": {list{inVXLAN(gateway(1)), inVXLAN(gateway(4))}, "107 8780 g4 [10.250.0.4] [] g1 [10.250.0.1] []", ""},
		"other port": {list{inVXLAN(gateway(1)), other}, "107 9000 g2 [10.250.0.2] []",
			"LinkGateway g1 wants VXLAN packets with VNI 107 and port 8780, LinkGateway g2 with VNI 107 and port 9000"},
	} {
		t.Run(name, func(t *testing.T) {
			f := node3()
			s, findings := wantedOverlay(findLeaders(&objects{gateways: c.gateways}, f.apart), f)
			got := fmt.Sprint(s.VNI, " ", s.Port)
			for _, p := range s.Peers {
				got += fmt.Sprintf(" %s %v %v", strings.TrimPrefix(p.Name, "LinkGateway "), p.Addresses, p.Sources)
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			if len(s.Peers) > 0 && fmt.Sprint(s.Addresses, s.NodeNetworks) != "[10.250.0.3] [10.250.0.0/16]" {
				t.Errorf("own addresses %v, networks of nodes %v", s.Addresses, s.NodeNetworks)
			}
			if text := findings.String(); (c.finding == "") != (text == "") || !strings.Contains(text, c.finding) {
				t.Errorf("findings %q, want %q", text, c.finding)
			}
		})
	}
}

// enterNode goes to a network namespace with the address of node 3. It returns a function that runs a command there.
func enterNode(t *testing.T) (run func(line string) string) {
	t.Helper()
	runtime.LockOSThread() // the thread ends with the goroutine
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (as root): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	run = func(line string) string {
		t.Helper()
		out, err := exec.Command("sh", "-c", line).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
		return string(out)
	}
	run("ip link set lo up; ip link add eth0 type veth peer name lan; ip link set lan up; ip link set eth0 up;" +
		"ip addr add 10.250.0.3/16 dev eth0; ip addr add fd00:250::3/64 dev eth0 nodad")
	return run
}

// The routes go through the device in both families, a second look writes nothing, and what is not wanted any more
// goes.
func TestNamespaceOverlay(t *testing.T) {
	run := enterNode(t)
	g := inVXLAN(gateway(1, "100.64.16.0/20", "fd00:16::/64"))
	g.Spec.NodeIPs = append(g.Spec.NodeIPs, "fd00:250::1")
	f := node3()
	f.addresses = append(f.addresses, netip.MustParseAddr("fd00:250::3"))
	o := &objects{gateways: list{g}}
	leaders := findLeaders(o, f.apart)
	routes, err := kernel.OpenRoutes(kernel.RoutesConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for look := range 2 {
		end, err := overlay.New(overlay.Node) // as after a restart
		if err != nil {
			t.Fatal(err)
		}
		v := &vxlan{end: end}
		s, _ := wantedOverlay(leaders, f)
		if f.overlay, f.noOverlay = v.prepare(s); f.noOverlay != nil || f.overlay.mtu != 1450 {
			t.Fatal(f.overlay, f.noOverlay)
		}
		want := makeRouting(o, f)
		written, errs := routes.Set(want.routes)
		if len(errs) > 0 || len(want.findings) > 0 || (written > 0) != (look == 0) {
			t.Errorf("look %d: %d changes, errors %v, findings %v", look, written, errs, want.findings)
		}
	}
	for command, want := range map[string]string{
		"ip -4 route get 100.64.16.9":                      "via 10.250.0.1 dev klvxlan",
		"ip -6 route get fd00:16::9":                       "via fe80::26b:afa:1 dev klvxlan",
		"bridge fdb show dev klvxlan":                      "02:6b:0a:fa:00:01 dst 10.250.0.1 port 8780 self permanent",
		"ip -6 neigh show dev klvxlan nud permanent":       "fe80::26b:afa:1 lladdr 02:6b:0a:fa:00:01 PERMANENT",
		"iptables -t nat -S KLROUTER-VXLAN-NAT | tail -1":  "-o klvxlan -j SNAT --to-source 10.250.0.3",
		"ip6tables -t nat -S KLROUTER-VXLAN-NAT | tail -1": "-o klvxlan -j SNAT --to-source fd00:250::3",
	} {
		if got := run(command); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", command, got, want)
		}
	}
	end, err := overlay.New(overlay.Node)
	if err != nil {
		t.Fatal(err)
	}
	if err := (&vxlan{end: end}).remove(); err != nil {
		t.Error(err)
	}
	left := run("ip link; iptables-save; ip6tables-save")
	if strings.Contains(left, "klvxlan") || strings.Contains(left, "KLROUTER") {
		t.Errorf("left: %s", left)
	}
}

// The device is made anew when the gateway or the node changes. What is sent to a mesh meanwhile never takes the
// default route.
func TestNamespaceOverlayChange(t *testing.T) {
	run := enterNode(t)
	run(`ip addr add 10.250.0.4/16 dev eth0
		ip route add default via 10.250.0.254
		ip -6 route add default via fd00:250::fe
		nft add table inet watch
		nft 'add chain inet watch out { type filter hook postrouting priority 0; }'
		nft 'add rule inet watch out oifname eth0 ip daddr 100.64.16.0/20 counter'
		nft 'add rule inet watch out oifname eth0 ip6 daddr fd00:16::/64 counter'
		nft 'add rule inet watch out oifname klvxlan counter'`)
	g := inVXLAN(gateway(1, "100.64.16.0/20", "fd00:16::/64"))
	g.Spec.NodeIPs = append(g.Spec.NodeIPs, "fd00:250::1")
	f, o := node3(), &objects{gateways: list{g}}
	f.addresses = append(f.addresses, netip.MustParseAddr("fd00:250::3"))
	routes, err := kernel.OpenRoutes(kernel.RoutesConfig{})
	if err != nil {
		t.Fatal(err)
	}
	end, err := overlay.New(overlay.Node)
	if err != nil {
		t.Fatal(err)
	}
	v := &vxlan{end: end}
	look := func() { // as Router.lookOnce does
		t.Helper()
		s, _ := wantedOverlay(findLeaders(o, f.apart), f)
		f.overlay, f.noOverlay = v.prepare(s)
		want := makeRouting(o, f)
		if _, errs := routes.Set(want.routes); len(errs) > 0 || f.noOverlay != nil || len(want.findings) > 0 {
			t.Fatal(errs, f.noOverlay, want.findings)
		}
	}
	ours := func() string {
		return run("ip -4 route show table all proto 114; ip -6 route show table all proto 114")
	}
	look()
	first := ours()
	stop := floodPackets(t, "100.64.16.9", "fd00:16::9")
	for range 5 {
		for _, change := range []func(){
			func() { g.Spec.VXLAN.VNI ^= 1 },
			func() { g.Spec.VXLAN.Port ^= 2 },
			func() { f.addresses[0] = netip.MustParseAddr("10.250.0.4") },
			func() { f.addresses[0] = netip.MustParseAddr("10.250.0.3") },
		} {
			change()
			look()
		}
	}
	sent := stop()
	if now := ours(); now != first {
		t.Errorf("routes are\n%s\nwhere they were\n%s", now, first)
	}
	counts := run("nft list chain inet watch out")
	if strings.Count(counts, "counter packets 0 bytes 0") != 2 {
		t.Errorf("packets to the mesh took the default route:\n%s", counts)
	}
	t.Logf("%d packets were sent:\n%s", sent, counts)
}

// floodPackets sends UDP packets from the namespace of the calling thread until stop, which returns their number.
func floodPackets(t *testing.T, targets ...string) (stop func() int) {
	t.Helper()
	var conns []net.PacketConn
	for _, network := range []string{"udp4", "udp6"} {
		conn, err := net.ListenPacket(network, ":0")
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	var ended atomic.Bool
	var wg sync.WaitGroup
	var sent atomic.Int64
	for i, conn := range conns {
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(targets[i]), 9))
		wg.Go(func() {
			for !ended.Load() {
				if _, err := conn.WriteTo([]byte("to the mesh"), to); err == nil { // unreachable is as good
					sent.Add(1)
				}
			}
		})
	}
	return func() int {
		ended.Store(true)
		wg.Wait()
		for _, conn := range conns {
			conn.Close()
		}
		return int(sent.Load())
	}
}
