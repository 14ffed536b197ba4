package bridge

// Which addresses the kernel leads into a tunnel, in a network namespace.

import (
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

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
		ip route add 172.31.9.0/24 via 10.250.0.9`) {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", line, err, out)
		}
	}
	table := &routingTable{peers: []*peer{{Peer: mesh.Peer{
		Link: "b", Local: mesh.Prefixes{netip.MustParsePrefix("192.168.0.11/24")},
	}}}}
	table.routes.Insert(netip.MustParsePrefix("192.168.0.0/24"), nil)
	table.routes.Insert(netip.MustParsePrefix("172.16.0.0/12"), table.peers[0])
	for address, want := range map[string]string{
		"172.31.0.2:443":          "172.31.0.2 lies in the network 172.16.0.0/12 of link b, so that the connection would run",
		"[::ffff:172.31.0.2]:443": "172.31.0.2 lies in the network 172.16.0.0/12 of link b",
		"192.168.0.77:443":        "192.168.0.77 lies in the mesh network 192.168.0.0/24",
		"172.31.9.2:443":          "", // the kernel has a longer route
		"10.250.0.2:443":          "",
		"198.51.100.1:443":        "",
		"[2001:db8::1]:443":       "", // there is no route at all
	} {
		switch err := table.checkCarrier(address); {
		case want == "" && err != nil:
			t.Errorf("%s: %v", address, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}
