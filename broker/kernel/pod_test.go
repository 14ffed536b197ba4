package kernel

// The network namespace of a pod: nothing in it forwards before the broker comes, and /proc/sys is read-only.

import (
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestPod sends packets through a pod with an interface of its own name, whose settings no process may write.
func TestPod(t *testing.T) {
	enter(t)
	own, mesh := tun(t, "pod0"), tun(t, "kubelink")
	run(t, `sysctl -qw net.ipv4.ip_forward=0
		ip addr add 100.96.1.7/32 dev pod0
		ip link set pod0 up
		ip route add default dev pod0`)
	makeSettingsReadOnly(t)
	k, _ := open(t, config)
	inPod := twoMeshes
	inPod.Pod = Pod{Is: true, Device: "pod0"}
	set(t, k, oneMesh) // as long as the broker does not know that this is a pod
	set(t, k, inPod)
	if problem := k.Warning(); problem == nil || strings.Contains(problem.Error(), "ipv4") {
		t.Errorf("warning %v", problem) // of IPv6 only, which the second mesh has
	}
	for _, c := range []struct {
		name           string
		from, to       *os.File
		source, target string
		want           string // source that arrives
	}{
		{"pods to the mesh", own, mesh, "100.96.2.5", "100.64.16.20", "192.168.0.11"},
		{"a node to the second mesh", own, mesh, "10.250.0.5", "100.64.16.200", "10.99.0.1"},
		{"the mesh to a service", mesh, own, "100.64.16.20", "100.64.0.20", "100.96.1.7"},
		{"the mesh to a pod", mesh, own, "192.168.0.12", "100.96.2.5", "100.96.1.7"},
		{"the second mesh to a pod", mesh, own, "100.64.16.200", "100.96.2.5", "100.96.1.7"},
		{"within a mesh", mesh, mesh, "192.168.0.12", "100.64.32.9", "192.168.0.12"},
		{"within the second mesh", mesh, mesh, "10.99.0.3", "10.99.0.4", "10.99.0.3"},
	} {
		if _, err := c.from.Write(udp4(netip.MustParseAddr(c.source), netip.MustParseAddr(c.target))); err != nil {
			t.Fatal(err)
		}
		if got := received(t, c.to, netip.MustParseAddr(c.target)); got.String() != c.want {
			t.Errorf("%s: arrives from %s, not %s", c.name, got, c.want)
		}
	}
	// What is for a network without route does not go back to the node that has sent it.
	stray, next := netip.MustParseAddr("100.64.99.9"), netip.MustParseAddr("100.96.2.6")
	for from, to := range map[*os.File]netip.Addr{own: stray, mesh: next} {
		if _, err := from.Write(udp4(podAddress, to)); err != nil {
			t.Fatal(err)
		}
	}
	if rules := run(t, "iptables -vnxL KLINK-FORWARD"); !regexp.MustCompile(`\n +1 +28 +REJECT `).MatchString(rules) {
		t.Errorf("the packet is not refused: %s", rules)
	}
	received(t, own, next)
	rules := run(t, "iptables -t nat -S")
	if !strings.Contains(rules, "-A POSTROUTING -m comment --comment kubelink -j KLINK-POSTROUTING\n") ||
		!strings.Contains(rules, "-A KLINK-POSTROUTING -o kubelink -j RETURN\n-A KLINK-POSTROUTING -o klvxlan-gw -j RETURN\n"+
			"-A KLINK-POSTROUTING -o lo -j RETURN\n"+
			"-A KLINK-POSTROUTING -j MASQUERADE\n") {
		t.Error(rules)
	}
	set(t, k, twoMeshes)
	if rules := run(t, "iptables -t nat -S"); strings.Contains(rules, "MASQUERADE") ||
		strings.Count(rules, "-j KLINK-POSTROUTING") != 1 || !strings.Contains(rules, "-A POSTROUTING -o kubelink -m") {
		t.Errorf("on a node: %s", rules)
	}
	set(t, k, inPod)
	set(t, k, State{})
	if rules := run(t, "iptables-save"); strings.Contains(rules, "KLINK") {
		t.Errorf("at the end: %s", rules)
	}
}
