package kernel

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flows are those of a node, each as source, destination, and the source after its translation. A fourth address is the
// destination after its translation.
const (
	podToPeer       = "100.96.1.5 100.64.16.9 100.96.1.5"
	podToMesh       = "100.96.1.5 192.168.0.12 100.96.1.5"
	maskedToPeer    = "100.96.1.5 100.64.16.9 10.250.0.11" // as a node masquerades it
	gatewayToPeer   = "100.96.1.5 100.64.16.9 192.168.0.11"
	gatewayToMesh   = "100.96.1.5 192.168.0.12 192.168.0.11"
	gatewayItself   = "192.168.0.11 192.168.0.12 192.168.0.11"
	fromPeer        = "192.168.0.12 100.64.0.9 192.168.0.12 100.96.1.5"
	fromPeerMasked  = "192.168.0.12 100.64.0.9 10.250.0.11 100.96.2.5"
	toMeshService   = "100.96.1.5 192.168.0.200 100.96.1.5 100.96.1.6"
	toInternet      = "100.96.1.5 172.31.0.2 10.250.0.11"
	toSecondGateway = "100.96.1.5 10.9.0.1 10.9.0.11"
)

var allFlows = []string{podToPeer, podToMesh, maskedToPeer, gatewayToPeer, gatewayToMesh, gatewayItself, fromPeer,
	fromPeerMasked, toMeshService, toInternet, toSecondGateway}

func makeFlow(text string, port uint16) *netlink.ConntrackFlow {
	words := strings.Fields(text)
	ip := func(i int) net.IP { return net.ParseIP(words[i]).To4() }
	f := &netlink.ConntrackFlow{FamilyType: unix.AF_INET, TimeOut: 100,
		Forward: netlink.IPTuple{SrcIP: ip(0), DstIP: ip(1), SrcPort: port, DstPort: 53, Protocol: unix.IPPROTO_UDP},
		Reverse: netlink.IPTuple{SrcIP: ip(1), DstIP: ip(2), SrcPort: 53, DstPort: port, Protocol: unix.IPPROTO_UDP}}
	if len(words) > 3 {
		f.Reverse.SrcIP = ip(3)
	}
	return f
}

// In a real network namespace: the kernel has the flows that are to stay, and no other.
func TestForgetFlows(t *testing.T) {
	mesh, peer, second := netip.MustParsePrefix("192.168.0.0/24"), netip.MustParsePrefix("100.64.16.0/20"),
		netip.MustParsePrefix("10.9.0.0/24")
	other := netip.MustParseAddr("10.250.0.12")
	for _, c := range []struct {
		name   string
		routes []NodeRoute
		want   []string // forgotten
	}{
		{"no gateway", []NodeRoute{{Destination: mesh}, {Destination: peer}}, nil},
		{"the gateway is elsewhere", []NodeRoute{{Destination: mesh, Gateway: other}, {Destination: peer, Gateway: other}},
			[]string{gatewayToPeer, gatewayToMesh}},
		{"the gateway is here", []NodeRoute{{Destination: mesh, Fallback: true}, {Destination: peer, Fallback: true}},
			[]string{podToPeer, podToMesh, maskedToPeer}},
		{"one is here, one elsewhere", []NodeRoute{{Destination: mesh, Fallback: true}, {Destination: peer, Fallback: true},
			{Destination: second, Gateway: other}}, []string{podToPeer, podToMesh, maskedToPeer, toSecondGateway}},
	} {
		t.Run(c.name, func(t *testing.T) {
			enter(t)
			for i, text := range allFlows {
				if err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, makeFlow(text, uint16(1000+i))); err != nil {
					t.Fatalf("%s: %v", text, err)
				}
			}
			n, err := ForgetFlows(c.routes)
			if err != nil || n != len(c.want) {
				t.Errorf("%d forgotten, %v", n, err)
			}
			left, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
			if err != nil {
				t.Fatal(err)
			}
			for i, text := range allFlows {
				gone := !slices.ContainsFunc(left, func(f *netlink.ConntrackFlow) bool {
					return f.Forward.SrcPort == uint16(1000+i)
				})
				if gone != slices.Contains(c.want, text) {
					t.Errorf("%s: gone is %t", text, gone)
				}
			}
		})
	}
}
