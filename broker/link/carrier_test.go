package link

// Which addresses the kernel leads into a tunnel, in a network namespace.

import (
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
)

// networks are those of a mesh, and of link b in it.
type networks struct {
	local       netip.Addr
	mesh, ofOne netip.Prefix
}

func (n networks) IsLocal(a netip.Addr) bool { return a == n.local }

func (n networks) FindNetwork(a netip.Addr) (netip.Prefix, string) {
	switch {
	case n.mesh.Contains(a):
		return n.mesh, ""
	case n.ofOne.Contains(a):
		return n.ofOne, "b"
	}
	return netip.Prefix{}, ""
}

func TestCheckCarrier(t *testing.T) {
	runtime.LockOSThread() // the thread ends with the test
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (as root): %v", err)
	}
	defer ns.Close()
	for line := range strings.Lines(`ip link set lo up
		ip link add kubelink type veth peer name far
		ip link set kubelink up
		ip link set far up
		ip addr add 192.168.0.11/32 dev kubelink
		ip addr add 10.250.0.11/16 dev far
		ip route add default via 10.250.0.1
		ip route add 192.168.0.0/24 dev kubelink src 192.168.0.11
		ip route add 172.16.0.0/12 dev kubelink src 192.168.0.11
		ip route add 10.9.0.0/24 dev kubelink src 192.168.0.11
		ip route add 172.31.9.0/24 via 10.250.0.9`) {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", line, err, out)
		}
	}
	table := networks{netip.MustParseAddr("192.168.0.11"), netip.MustParsePrefix("192.168.0.0/24"),
		netip.MustParsePrefix("172.16.0.0/12")}
	for address, want := range map[string]string{
		"172.31.0.2":        "172.31.0.2 lies in the network 172.16.0.0/12 of link b, so that the connection would run",
		"::ffff:172.31.0.2": "172.31.0.2 lies in the network 172.16.0.0/12 of link b",
		"192.168.0.77":      "192.168.0.77 lies in the mesh network 192.168.0.0/24",
		"10.9.0.1":          "10.9.0.1 lies in a mesh network", // a route that no link has any more
		"172.31.9.2":        "",                                // the kernel has a longer route
		"10.250.0.2":        "",
		"198.51.100.1":      "",
		"2001:db8::1":       "no route to 2001:db8::1: network is unreachable",
	} {
		switch err := CheckCarrier(netip.MustParseAddr(address), table); {
		case want == "" && err != nil:
			t.Errorf("%s: %v", address, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}
