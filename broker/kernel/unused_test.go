package kernel

// What is for an address of a mesh that no cluster has, in a real network namespace.

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// A pod and a process of the node are told at once that nobody has an address. What somebody has leaves for the device.
func TestUnusedAddresses(t *testing.T) {
	for backend, prepare := range map[string]func(testing.TB){"nft": func(testing.TB) {}, "legacy": useLegacy} {
		inNamespace(t, backend, func(t *testing.T) {
			prepare(t)
			testUnusedAddresses(t)
		})
	}
}

func testUnusedAddresses(t *testing.T) {
	device, pods := tun(t, "kubelink"), tun(t, "pods")
	run(t, `ip link set pods up
		ip addr add 100.96.0.1/16 dev pods
		ip addr add fd00:96::1/64 dev pods nodad
		sysctl -qw net.ipv4.ip_forward=1
		sysctl -qw net.ipv6.conf.all.forwarding=1
		sysctl -qw net.ipv4.conf.all.rp_filter=0
		iptables -P FORWARD DROP
		ip6tables -P FORWARD DROP`)
	settle(t, netip.MustParseAddr("fd00:96::1"))
	s := twoMeshes
	s.Firewall = &Firewall{Peers: []mesh.Peer{
		{Local: addresses("192.168.0.11/24"), Networks: addresses("192.168.0.12/32", "100.64.16.0/20")},
		{Local: addresses("192.168.0.11/24"), Networks: addresses("192.168.0.128/25", "100.64.32.0/20")},
		{Local: addresses("10.99.0.1/16", "fd00:99::1/64"),
			Networks: addresses("10.0.0.0/8", "fd00:99::2/128", "fd00:5::/48")},
	}}
	s.Services = []service.Service{{Address: netip.MustParseAddr("192.168.0.77"), Whole: true,
		Ports: []service.Port{{Protocol: unix.IPPROTO_TCP, Port: 80}}}}
	k, _ := open(t, config)
	set(t, k, s)
	for _, c := range []struct {
		name, target string
		used         bool
	}{
		{"a cluster", "192.168.0.12", true},
		{"nobody", "192.168.0.99", false},
		{"an address of a network", "192.168.0.200", true},
		{"a service", "100.64.16.20", true},
		{"the second mesh, whose range is in the network of a link", "10.99.0.9", true},
		{"a cluster, IPv6", "fd00:99::2", true},
		{"nobody, IPv6", "fd00:99::9", false},
		{"a service, IPv6", "fd00:5::20", true},
	} {
		target := netip.MustParseAddr(c.target)
		pod := netip.MustParseAddr(map[bool]string{true: "100.96.0.7", false: "fd00:96::7"}[target.Is4()])
		network := map[bool]string{true: "udp4", false: "udp6"}[target.Is4()]
		p := packet{target: c.target, protocol: unix.IPPROTO_UDP, from: 4000, to: 9}
		if _, err := pods.Write(p.encode(pod)); err != nil {
			t.Fatal(err)
		}
		process, err := net.Dial(network, netip.AddrPortFrom(target, 9).String())
		if err != nil {
			t.Fatal(err)
		}
		defer process.Close()
		_, refused := process.Write([]byte("hello"))
		if !c.used {
			for seen := nextPacket(t, pods); seen.target != pod; seen = nextPacket(t, pods) {
			}
			if refused == nil {
				_ = process.SetReadDeadline(time.Now().Add(10 * time.Second))
				_, refused = process.Read(make([]byte, 9))
			}
			if !errors.Is(refused, unix.EHOSTUNREACH) && !errors.Is(refused, unix.EPERM) {
				t.Errorf("%s: a process gets %v", c.name, refused)
			}
			continue
		}
		for range 2 {
			for seen := nextPacket(t, device); seen.target != target; seen = nextPacket(t, device) {
			}
		}
	}

	// Without endpoint a service refuses as a closed port does.
	for _, order := range []string{"with the services", "before the services"} {
		if _, err := net.DialTimeout("tcp", "192.168.0.77:80", 10*time.Second); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("set %s: a service without endpoint: %v", order, err)
		}
		without := s
		without.Services = nil
		set(t, k, without)
		set(t, k, s)
	}
	bridge := s
	bridge.Firewall = nil
	set(t, k, bridge)
	if rules := run(t, "iptables-save\nip6tables-save"); strings.Contains(rules, unusedName) {
		t.Errorf("where the dataplane refuses: %s", rules)
	}
}

// Hooks are in their order after one Set, wherever they were.
func TestHooksMoveAtOnce(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	k, _ := open(t, config)
	s := twoMeshes
	s.Firewall = &Firewall{}
	s.Services = []service.Service{{Address: netip.MustParseAddr("192.168.0.77"), Whole: true}}
	set(t, k, s)
	before := run(t, "iptables -S FORWARD\nip6tables -t mangle -S PREROUTING")
	names := func(text string) (names []string) {
		for line := range strings.Lines(text) {
			if words := strings.Fields(line); words[0] == "-A" {
				names = append(names, words[len(words)-1])
			}
		}
		return names
	}
	want := []string{refuseName, unusedName, forwardName, routingName, guardName}
	if got := names(before); !slices.Equal(got, want) {
		t.Fatalf("hooks %q, want %q", got, want)
	}
	run(t, `iptables -D FORWARD 3
		iptables -I FORWARD -m comment --comment kubelink -j KLINK-FORWARD
		ip6tables -t mangle -D PREROUTING 1
		ip6tables -t mangle -A PREROUTING -i kubelink -m comment --comment kubelink -j KLINK-ROUTING`)
	set(t, k, s)
	if got := names(run(t, "iptables -S FORWARD\nip6tables -t mangle -S PREROUTING")); !slices.Equal(got, want) {
		t.Errorf("after a Set: hooks %q, want %q", got, want)
	}
}
