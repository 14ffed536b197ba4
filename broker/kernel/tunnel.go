package kernel

// No tunnel lies in itself. A peer can send a packet of its tunnel inside of it, to a service that leads to our own
// port. The dataplane would take it, and send its answer through the device, that is, through the answer itself. All of
// it is pure.
//
// Where the service leads there on this node, packets are seen as they arrive. In a pod, or by a load balancer, they
// leave first, and come back as those of a node: so they must not leave.

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Tunnel is what carries links: no packet from or to the device does.
type Tunnel struct {
	mesh.LocalPort                 // of this node or pod; port 0: not known
	Addresses      []TunnelAddress // that lead there
}

// TunnelAddress is where packets get to the port of tunnels: an address of a service with a port of it, or the network
// of nodes with a node port.
type TunnelAddress struct {
	Network netip.Prefix
	Port    uint16
}

// guardAddresses returns the rules of guardChain that keep links away from the addresses. Before the NAT of kube-proxy,
// packets still have them.
func (t Tunnel) guardAddresses(family int) (rules []string) {
	sorted := slices.SortedFunc(slices.Values(t.Addresses), func(a, b TunnelAddress) int {
		return cmp.Or(a.Network.Compare(b.Network), cmp.Compare(a.Port, b.Port))
	})
	for _, a := range sorted {
		if FamilyOf(a.Network.Addr()) == family {
			to := matchOption("-d", a.Network.Masked())
			rules = append(rules, strings.TrimSpace(fmt.Sprintf("%s -p %s -m %[2]s --dport %d -j DROP", to, t.Protocol, a.Port)))
		}
	}
	return slices.Compact(rules)
}

// tunnelChains keep the port that carries links away from the device: what comes in there does not get to the port, and
// what leaves the port does not go out there. Their hooks are behind the NAT of kube-proxy, and before that of answers.
func tunnelChains(device string, port mesh.LocalPort) []chain {
	toChain := func(builtin, way, option string, counts reason) chain {
		name := "KLINK-" + builtin
		return chain{table: mangleTable, name: name, device: device, first: true, counts: counts, unwanted: port.Port == 0,
			hooks:  []string{fmt.Sprintf("-A %s %s %s -m comment --comment kubelink -j %s", builtin, way, device, name)},
			rules:  []string{fmt.Sprintf("-A %s -p %s -m %[2]s %s %d -j DROP", name, port.Protocol, option, port.Port)},
			remedy: "a hostile peer may lead the traffic of its link through the link itself"}
	}
	return []chain{toChain("INPUT", "-i", "--dport", ofNode), toChain("OUTPUT", "-o", "--sport", notCounted)}
}
