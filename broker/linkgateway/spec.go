package linkgateway

// What a LinkGateway says.

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// maxNetworks is the bound of the CRD.
const maxNetworks = 4096

// NewSpec says where the gateway of the links of a state is. It leads to own networks, too. tunnelMTU is the MTU of the
// interface to the links, in bytes. The error is about networks that there is no room for.
func NewSpec(p *Place, s *mesh.State, own []netip.Prefix, term uint32, tunnelMTU int) (
	*v1alpha1.LinkGatewaySpec, error,
) {
	networks, err := listNetworks(s, own)
	spec := &v1alpha1.LinkGatewaySpec{
		Node: p.Node, NodeIPs: textsOf(p.NodeIPs), Networks: networks, Term: int64(term),
	}
	if p.InPod {
		spec.Pod, spec.PodIPs = p.Pod, textsOf(p.PodIPs)
	}
	if p.MTU > 0 {
		spec.MTU = int32(min(p.MTU, tunnelMTU))
	}
	return spec, err
}

func textsOf(addresses []netip.Addr) (texts []v1alpha1.GatewayIP) {
	for _, a := range addresses {
		texts = append(texts, v1alpha1.GatewayIP(a.String()))
	}
	return texts
}

// listNetworks lists what the gateway routes into meshes, and what is its own. The range of a mesh that brokers share
// leads to any of them: so each lists the addresses of its links in it. If there is no room for all, the widest
// networks are listed: that leaves out the fewest addresses. Mesh services come last, and of them the ones of peers: no
// peer, and no user of a namespace, takes the room of links.
func listNetworks(s *mesh.State, own []netip.Prefix) (texts []v1alpha1.GatewayNetwork, err error) {
	all := slices.Clone(own)
	for _, m := range s.Meshes {
		all = append(all, m.Addresses.Masked()...)
	}
	for _, r := range s.Routes {
		all = append(all, r.Destination.Masked())
	}
	for _, p := range s.Peers {
		for _, n := range p.Networks {
			if slices.ContainsFunc(s.Meshes, func(m mesh.Mesh) bool { return m.Shared && m.Addresses.Contains(n.Addr()) }) {
				all = append(all, n)
			}
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	all = slices.Compact(all)
	if n := len(all); n > maxNetworks {
		err = fmt.Errorf("the links have %d networks, and a LinkGateway has room for %d: nodes other than the gateway have "+
			"no way to the smallest ones; join networks of egress", n, maxNetworks)
		rank := rankServices(s, own)
		slices.SortStableFunc(all, func(a, b netip.Prefix) int {
			return cmp.Or(rank[a]-rank[b], a.Bits()-b.Bits())
		})
		all = all[:maxNetworks]
		slices.SortFunc(all, netip.Prefix.Compare)
	}
	for _, n := range all {
		texts = append(texts, v1alpha1.GatewayNetwork(n.String()))
	}
	return texts, err
}

// rankServices gives networks that lead to mesh services only a rank, by which they lose their room: first those of
// peers.
func rankServices(s *mesh.State, own []netip.Prefix) map[netip.Prefix]int {
	rank := map[netip.Prefix]int{}
	for _, n := range own {
		rank[n] = 1
	}
	for n := range s.OfferedNetworks() {
		rank[n] = 2
	}
	return rank
}
