package kernel

// Packets that are forwarded, in a real network namespace: among the rules of a firewall, and without the node's
// setting.

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// useLegacy has the legacy iptables run as iptables until the test ends, on a node whose kubelet uses it, too.
func useLegacy(t testing.TB) {
	t.Helper()
	legacy, err := exec.LookPath("xtables-legacy-multi")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore",
		"ip6tables", "ip6tables-save", "ip6tables-restore"} {
		if err := os.Symlink(legacy, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(dir, "lock")) // the lock of this machine is not ours
	run(t, "iptables -t mangle -N KUBE-IPTABLES-HINT\nip6tables -t mangle -N KUBE-IPTABLES-HINT")
}

// inNamespace runs a test in a namespace and with a thread of its own.
func inNamespace(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		enter(t)
		f(t)
	})
}

// pod makes a device of a pod with the address 100.96.0.5. The node forwards its packets.
func pod(t *testing.T) *os.File {
	t.Helper()
	device := tun(t, "cali0")
	run(t, `ip link set cali0 up
		ip route add 100.96.0.5/32 dev cali0
		sysctl -qw net.ipv4.conf.all.rp_filter=0
		sysctl -qw net.ipv4.conf.cali0.forwarding=1`)
	return device
}

var (
	podAddress = netip.MustParseAddr("100.96.0.5")
	farAddress = netip.MustParseAddr("100.64.16.20")
	forbidden  = netip.MustParseAddr("100.64.16.21") // by a network policy of these tests
)

// forwarded sends a packet for each target, one after the other, and returns the target of the first that the other
// device gets.
func forwarded(t *testing.T, from, to *os.File, source netip.Addr, targets ...netip.Addr) (first netip.Addr) {
	t.Helper()
	for _, target := range targets {
		if _, err := from.Write(udp4(source, target)); err != nil {
			t.Fatal(err)
		}
	}
	if err := to.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for p := make([]byte, 2000); ; {
		if _, err := to.Read(p); err != nil {
			return netip.Addr{}
		}
		if target, _ := netip.AddrFromSlice(p[16:20]); slices.Contains(targets, target) {
			return target
		}
	}
}

// The rules of common firewalls and network policies: packets of pods pass in both directions, what a policy forbids
// does not, and a policy that comes later moves in front of our hook.
func TestForwardHook(t *testing.T) {
	const policy = `
		iptables -N POLICY
		iptables -A POLICY -d 100.64.16.21/32 -j DROP
		iptables -A FORWARD -j POLICY`
	for _, c := range []struct {
		name, rules string
		before      string // the rule after our hook; empty: none
	}{
		{"nothing else", "", ""},
		{"policy of FORWARD is DROP", "iptables -P FORWARD DROP", ""},
		{"RHEL: REJECT at the end", `
			iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
			iptables -A FORWARD -j REJECT --reject-with icmp-host-prohibited`, "-A FORWARD -j REJECT"},
		{"DROP at the end, and what is invalid before", `
			iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP
			iptables -A FORWARD -j DROP`, "-A FORWARD -j DROP"},
		{"only what is new is dropped", `
			iptables -A FORWARD -m state ! --state RELATED,ESTABLISHED -j DROP`, "-A FORWARD -m state ! --state"},
		{"a log before the DROP", `
			iptables -A FORWARD -m limit --limit 5/min -j NFLOG
			iptables -A FORWARD -m comment --comment no-way -j DROP`, "-A FORWARD -m limit"},
		{"a REJECT for each protocol", `
			iptables -A FORWARD -p tcp -j REJECT --reject-with tcp-reset
			iptables -A FORWARD -p udp -j REJECT
			iptables -A FORWARD -j REJECT --reject-with icmp-proto-unreachable`, "-A FORWARD -p tcp"},
		{"ufw, shorewall: a chain that refuses all", `
			iptables -N ufw-reject-forward
			iptables -N reject
			iptables -A reject -p tcp -j REJECT --reject-with tcp-reset
			iptables -A reject -j REJECT
			iptables -A ufw-reject-forward -j reject
			iptables -A FORWARD -j ufw-reject-forward`, "-A FORWARD -j ufw-reject-forward"},
		{"other devices only", `
			iptables -A FORWARD ! -i docker0 -j DROP`, "-A FORWARD ! -i docker0"},
		{"Weave Net: the default of its policies is a DROP", `
			iptables -N WEAVE-NPC
			iptables -A FORWARD -o weave -j WEAVE-NPC
			iptables -A FORWARD -o weave -j DROP`, ""},
	} {
		for backend, prepare := range map[string]func(testing.TB){"nft": func(testing.TB) {}, "legacy": useLegacy} {
			inNamespace(t, c.name+", "+backend, func(t *testing.T) {
				prepare(t)
				device, cali := tun(t, "kubelink"), pod(t)
				run(t, policy+"\n"+c.rules)
				k, w := open(t, config)
				check := func(when string) {
					t.Helper()
					set(t, k, oneMesh)
					rules := run(t, "iptables -S FORWARD")
					if got := forwarded(t, cali, device, podAddress, forbidden, farAddress); got != farAddress {
						t.Errorf("%s: of packets to %s, which a policy forbids, and %s, %s passes first:\n%s",
							when, forbidden, farAddress, got, rules)
					}
					if got := forwarded(t, device, cali, farAddress, podAddress); got != podAddress {
						t.Errorf("%s: a packet to a pod does not pass:\n%s", when, rules)
					}
					_, after, ok := strings.Cut(rules, "\n-A FORWARD -m comment --comment kubelink -j KLINK-FORWARD\n")
					if !ok || !strings.HasPrefix(after, c.before) || c.before == "" && after != "" {
						t.Errorf("%s: the hook is not before %q:\n%s", when, c.before, rules)
					}
					w.writes = 0
					if set(t, k, oneMesh); w.writes > 0 {
						t.Errorf("%s: a second Set writes", when)
					}
				}
				check("first")
				run(t, `iptables -D FORWARD -m comment --comment kubelink -j KLINK-FORWARD
					iptables -A FORWARD -m comment --comment kubelink -j KLINK-FORWARD`)
				check("after another program has moved the hook to the end")
				run(t, `iptables -D FORWARD -m comment --comment kubelink -j KLINK-FORWARD
					iptables -I FORWARD -m comment --comment kubelink -j KLINK-FORWARD`)
				check("after another program has moved the hook in front of policies")
			})
		}
	}
}

// The same of IPv6: a REJECT at the end, and a policy that comes later.
func TestForwardHookIPv6(t *testing.T) {
	enter(t)
	device, cali := tun(t, "kubelink"), tun(t, "cali0")
	run(t, `sysctl -qw net.ipv6.conf.all.forwarding=1
		ip -6 addr add fd00:a::1/128 dev cali0 nodad
		ip link set cali0 up
		ip -6 route add fd00:a::5/128 dev cali0
		ip6tables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
		ip6tables -A FORWARD -j REJECT --reject-with icmp6-adm-prohibited`)
	settle(t, netip.MustParseAddr("fd00:a::1"))
	k, _ := open(t, config)
	target := netip.MustParseAddr("fd00:a::5")
	for _, policy := range []string{"", "ip6tables -N POLICY\nip6tables -I FORWARD 3 -j POLICY"} {
		run(t, policy)
		set(t, k, twoMeshes)
		p := packet{target: target.String(), protocol: unix.IPPROTO_UDP, from: 7, to: 7}
		if _, err := device.Write(p.encode(netip.MustParseAddr("fd00:5::7"))); err != nil {
			t.Fatal(err)
		}
		if got := received(t, cali, target); got.String() != "fd00:5::7" {
			t.Errorf("the packet comes from %s", got)
		}
		rules := run(t, "ip6tables -S FORWARD")
		if !strings.Contains(rules, "-j KLINK-FORWARD\n-A FORWARD -j REJECT") {
			t.Errorf("the hook is not before REJECT:\n%s", rules)
		}
	}
}

// Forwarding is off on the node and on for the devices of the CNI: it is set for our device, and again after
// it was switched off. The node's own setting stays as it is.
func TestForwarding(t *testing.T) {
	enter(t)
	device, cali := tun(t, "kubelink"), pod(t)
	run(t, `sysctl -qw net.ipv4.ip_forward=0
		sysctl -qw net.ipv6.conf.all.forwarding=0
		sysctl -qw net.ipv6.conf.kubelink.disable_ipv6=0
		sysctl -qw net.ipv4.conf.cali0.forwarding=1
		ip -6 addr add fd00:a::1/128 dev cali0 nodad
		ip -6 route add fd00:a::5/128 dev cali0`)
	settle(t, netip.MustParseAddr("fd00:a::1"))
	k, w := open(t, config)
	const force = "/proc/sys/net/ipv6/conf/kubelink/force_forwarding"
	target6 := netip.MustParseAddr("fd00:a::5")
	check := func(when string) {
		t.Helper()
		set(t, k, twoMeshes)
		if got := forwarded(t, device, cali, farAddress, podAddress); got != podAddress {
			t.Errorf("%s: a packet from the mesh is not forwarded to the pod", when)
		}
		if _, err := os.Stat(force); err != nil { // before Linux 6.17 only the node has a setting for IPv6
			wantErrors(t, when, k.Warning(), "run sysctl -w net.ipv6.conf.all.forwarding=1 on the node")
			return
		}
		if err := k.Warning(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		p := packet{target: target6.String(), protocol: unix.IPPROTO_UDP, from: 7, to: 7}
		if _, err := device.Write(p.encode(netip.MustParseAddr("fd00:5::7"))); err != nil {
			t.Fatal(err)
		}
		if got := received(t, cali, target6); got.String() != "fd00:5::7" {
			t.Errorf("%s: the packet of IPv6 comes from %s", when, got)
		}
		w.writes = 0
		if set(t, k, twoMeshes); w.writes > 0 {
			t.Errorf("%s: a second Set writes", when)
		}
		for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if value, err := os.ReadFile("/proc/sys/net/" + file); err != nil || string(value) != "0\n" {
				t.Errorf("%s: %s of the node is %q, %v", when, file, value, err)
			}
		}
	}
	check("first")
	run(t, `sysctl -qw net.ipv4.conf.kubelink.forwarding=0
		sysctl -qw net.ipv6.conf.kubelink.forwarding=0
		sysctl -qe -w net.ipv6.conf.kubelink.force_forwarding=0`)
	check("after somebody has switched it off")
	run(t, `ip link del kubelink`)
	device = tun(t, "kubelink")
	check("after the device was replaced")
}
