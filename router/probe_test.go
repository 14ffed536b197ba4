package router

// The probe of the network between a node and the gateway, in network namespaces.

import (
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
)

func TestProbeTargets(t *testing.T) {
	f := node3()
	o := &objects{gateways: list{gateway(1, "192.168.0.0/24", "100.64.16.0/20"), gateway(4, "100.64.32.7/32"),
		inVXLAN(gateway(5, "100.64.48.0/20")), gateway(3, "100.64.64.0/20")}}
	f.overlay = &tunnel{index: 9, mtu: 1450}
	own := kubeLink("local", "100.64.0.0/20", local)
	own.Spec.ClusterAddress = "192.168.0.11/24"
	o.links = append(o.links, own, kubeLink("k2", "100.64.16.0/20"))
	got := ""
	for _, x := range probeTargets(makeRouting(o, f), f, o.links) {
		got += fmt.Sprintf("%s at %s, to %s\n", x.name, x.address, x.mesh)
	}
	want := "LinkGateway g1 at 10.250.0.1, to 192.168.0.11\nLinkGateway g4 at 10.250.0.4, to 100.64.32.7\n"
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A network that drops addresses of meshes is found; a gateway that is away, or a network that is right, is not taken
// for one.
func TestNamespaceProbe(t *testing.T) {
	runtime.LockOSThread() // the thread ends with the goroutine
	spaces := map[string]netns.NsHandle{}
	run := func(name, command string) {
		t.Helper()
		if err := netns.Set(spaces[name]); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %s: %v: %s", name, command, err, out)
		}
	}
	for _, name := range []string{"lan", "gateway", "node"} {
		ns, err := netns.New()
		if err != nil {
			t.Fatalf("make a network namespace (as root): %v", err)
		}
		defer ns.Close()
		spaces[name] = ns
		run(name, "ip link set lo up; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	}
	run("lan", "ip link add br0 type bridge mcast_snooping 0; ip link set br0 up")
	for i, name := range []string{"gateway", "node"} {
		run("lan", fmt.Sprintf("ip link add %s type veth peer name eth0 netns /proc/%d/fd/%d; "+
			"ip link set %[1]s master br0 up", name, syscall.Getpid(), int(spaces[name])))
		run(name, fmt.Sprintf("ip link set eth0 up; ip addr add 10.250.0.%d/24 dev eth0; "+
			"ip addr add fd00:a::%[1]d/64 dev eth0 nodad", i+1))
	}
	run("gateway", "ip addr add 192.168.0.11/32 dev lo; ip addr add fd00:c::b/128 dev lo nodad")
	run("node", "ip route add 192.168.0.0/24 via 10.250.0.1; ip route add fd00:c::/64 via fd00:a::1")
	const table = "nft 'table bridge f { chain c { type filter hook forward priority 0; ip daddr != 10.250.0.0/24 drop; " +
		"ip6 daddr fd00:c::/64 drop; }; }'"
	for _, c := range []struct{ name, before, after, want string }{
		{"all passes", "true", "true", ""},
		{"sources are dropped", "nft 'table bridge f { chain c { type filter hook forward priority 0; " +
			"ip saddr 192.168.0.0/24 drop; ip6 saddr fd00:c::/64 drop; }; }'", "nft delete table bridge f", AddressesDropped},
		{"addresses are dropped", table, "nft delete table bridge f", AddressesDropped},
		{"the gateway is away", "ip link set gateway down", "ip link set gateway up", ""},
		{"the gateway is silent", "nft 'table bridge f { chain c { type filter hook forward priority 0; " +
			"ip protocol icmp drop; icmpv6 type { destination-unreachable, time-exceeded } drop; }; }'",
			"nft delete table bridge f", ""},
		{"large packets get lost", "nft 'table bridge f { chain c { type filter hook forward priority 0; " +
			"meta length > 1300 drop; }; }'", "nft delete table bridge f", LargeDropped},
	} {
		run("lan", c.before)
		for _, target := range []probeTarget{
			{"LinkGateway g1", netip.MustParseAddr("10.250.0.1"), netip.MustParseAddr("192.168.0.11"), 1500},
			{"LinkGateway g1", netip.MustParseAddr("fd00:a::1"), netip.MustParseAddr("fd00:c::b"), 1500},
		} {
			run("node", "true") // this thread is there now
			reason := ""
			f := target.probe(t.Context())
			if f != nil {
				reason = f.Reason
			}
			if reason != c.want || f != nil && !strings.Contains(f.Text, target.mesh.String()) {
				t.Errorf("%s: %s: finding %v", c.name, target.address, f)
			}
		}
		run("lan", c.after)
	}
}
