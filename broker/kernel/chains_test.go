package kernel

// Chains of other rooms in a real network namespace.

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Chains of other rooms stand beside those of a mesh: neither Set moves the hooks of the other for ever.
func TestNamespaceChains(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	run(t, foreign)
	before := state(t)
	chains := []Chain{
		{Table: "mangle", Name: "KLINK-X-MSS", Hook: "-A FORWARD", Rules: []string{"-i x -j RETURN"}},
		{Table: "filter", Name: "KLINK-X-ACCEPT", Hook: "-A FORWARD", Behind: "x", Rules: []string{"-i x -j ACCEPT"}},
		{Table: "mangle", Name: "KLINK-X-INPUT", Hook: "-A INPUT -p udp -m udp --dport 8780", Counts: true,
			Rules: []string{"-s 10.0.0.1/32 -j RETURN", "-j DROP"}},
		{Table: "nat", Name: "KLINK-X-NAT", Hook: "-A POSTROUTING", Rules: []string{"-o x -j ACCEPT"}},
	}
	k, _ := open(t, config)
	other, err := NewChains()
	if err != nil {
		t.Fatal(err)
	}
	w := &counted{system: other.kernel.system}
	other.kernel.system = w
	setOther := func(wanted bool) {
		t.Helper()
		if warning, err := other.Set(unix.AF_INET, chains, wanted); warning != nil || err != nil {
			t.Fatal(warning, err)
		}
	}
	set(t, k, oneMesh)
	setOther(true)
	first := state(t)
	for range 2 {
		set(t, k, oneMesh)
		setOther(true)
	}
	if now := state(t); now != first || w.writes != len(chains) {
		t.Errorf("after the first time: %d writes, and\n%s\nof\n%s", w.writes-len(chains), now, first)
	}
	for _, want := range []string{
		"-A KLINK-X-INPUT -s 10.0.0.1/32 -j RETURN\n-A KLINK-X-INPUT -j DROP\n",
		"-A INPUT -p udp -m udp --dport 8780 -m comment --comment kubelink -j KLINK-X-INPUT\n",
		"-A FORWARD -s 10.66.0.0/16 -j DROP\n",
	} {
		if !strings.Contains(first, want) {
			t.Errorf("misses %q:\n%s", want, first)
		}
	}
	// A program puts its rules in front of all.
	run(t, `iptables -t mangle -I FORWARD -s 10.67.0.0/16 -j ACCEPT
		iptables -t nat -I POSTROUTING -s 10.67.0.0/16 -j MASQUERADE`)
	set(t, k, oneMesh)
	setOther(true)
	for table, chain := range map[string]string{"mangle": "FORWARD", "nat": "POSTROUTING"} {
		rules := strings.Split(run(t, "iptables -t "+table+" -S "+chain), "\n")
		if !strings.Contains(rules[1], " -j KLINK-") || !strings.Contains(rules[2], " -j KLINK-") {
			t.Errorf("%s: the hooks are not first: %q", table, rules)
		}
	}
	setOther(false)
	set(t, k, State{})
	run(t, `iptables -t mangle -D FORWARD -s 10.67.0.0/16 -j ACCEPT
		iptables -t nat -D POSTROUTING -s 10.67.0.0/16 -j MASQUERADE`)
	if now := state(t); now != before {
		t.Errorf("left\n%s\nof\n%s", now, before)
	}
}

// A device forwards, whatever new devices do.
func TestNamespacePrepareDevice(t *testing.T) {
	enter(t)
	run(t, `sysctl -qw net.ipv4.conf.default.forwarding=0
		ip link add x type veth peer name y`)
	x, err := netlink.LinkByName("x")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, f := range families {
			if err := PrepareDevice(x.Attrs().Index, "x", f); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := run(t, "sysctl -n net.ipv4.conf.x.forwarding net.ipv4.conf.y.forwarding net.ipv6.conf.x.forwarding")
	if got != "1\n0\n1\n" {
		t.Errorf("settings %q", got)
	}
}
