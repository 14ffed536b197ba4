package service

// Which links reach mesh services.

import (
	"net/netip"
	"slices"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Open returns a State in which the links of a mesh reach its mesh services: addresses of their own where no ingress
// list counts, for lists say themselves which addresses they lead to; and ports at the addresses of this cluster,
// unless a list denies these. No link can claim an address of a mesh service. The argument stays as it is. Peers with
// the same rules share the new ones, so that what is made of them can be made once.
func Open(s mesh.State, services []Service) mesh.State {
	if len(services) == 0 {
		return s
	}
	var cluster, addresses []netip.Addr
	for i := range s.Meshes {
		cluster = append(cluster, s.Meshes[i].Addresses.Addrs()...)
	}
	s.Local, s.Peers = slices.Clone(s.Local), slices.Clone(s.Peers)
	for i := range services {
		if a := services[i].Address; !slices.Contains(cluster, a) {
			addresses = append(addresses, a)
			s.Local = append(s.Local, full(a))
		}
	}
	slices.SortFunc(s.Local, netip.Prefix.Compare)
	s.Local = slices.Compact(s.Local)
	openings := map[netip.Prefix]*opening{}
	for i := range s.Peers {
		p := &s.Peers[i]
		o := openings[p.Local.First()]
		if o == nil {
			o = newOpening(s.Meshes, p.Local, addresses, services)
			openings[p.Local.First()] = o
		}
		p.Carried = slices.Clone(p.Carried)
		p.Ingress = o.openAddresses(p.Ingress, p.Unlisted)
		for k := range p.Carried {
			c := &p.Carried[k]
			c.Ingress = o.openAddresses(c.Ingress, c.Unlisted)
		}
		p.Open = o.openPorts(p.Open)
	}
	return s
}

// opening is what mesh services open to the links of a mesh.
type opening struct {
	addresses []mesh.Rule
	ports     []mesh.LocalPort
	opened    []merged[mesh.Rule]
	open      []merged[mesh.LocalPort]
}

// merged is a list with what a mesh opens.
type merged[T comparable] struct{ before, after []T }

// newOpening makes that of the mesh with these addresses of this cluster.
func newOpening(meshes []mesh.Mesh, own mesh.Prefixes, addresses []netip.Addr, services []Service) *opening {
	o := &opening{}
	strangers := otherRanges(meshes, own)
	for _, a := range addresses {
		if !slices.ContainsFunc(strangers, func(n netip.Prefix) bool { return n.Contains(a) }) {
			o.addresses = append(o.addresses, mesh.Rule{Prefix: full(a), Allow: true})
		}
	}
	names, cluster := map[uint8]string{6: "tcp", 17: "udp"}, own.Addrs()
	for i := range services {
		if !slices.Contains(cluster, services[i].Address) {
			continue
		}
		for _, p := range services[i].Ports {
			o.ports = append(o.ports, mesh.LocalPort{Protocol: names[p.Protocol], Port: p.Port})
		}
	}
	return o
}

// otherRanges are the networks of the meshes that have not these addresses of this cluster.
func otherRanges(meshes []mesh.Mesh, own mesh.Prefixes) (ranges []netip.Prefix) {
	for i := range meshes {
		if !slices.Equal(meshes[i].Addresses, own) {
			ranges = append(ranges, meshes[i].Addresses.Masked()...)
		}
	}
	return ranges
}

// Outside returns the addresses of services that lie in no mesh of this cluster, in order, each once.
func Outside(meshes []mesh.Mesh, services []Service) (outside []netip.Prefix) {
	for i := range services {
		a := services[i].Address
		if !slices.ContainsFunc(meshes, func(m mesh.Mesh) bool { return m.Addresses.Contains(a) }) {
			outside = append(outside, full(a))
		}
	}
	slices.SortFunc(outside, netip.Prefix.Compare)
	return slices.Compact(outside)
}

func full(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// openAddresses returns the rules with those for addresses of services, if there is no list.
func (o *opening) openAddresses(rules []mesh.Rule, unlisted bool) []mesh.Rule {
	if !unlisted {
		return rules
	}
	return mergeOnce(&o.opened, rules, func() []mesh.Rule {
		all := slices.Concat(rules, o.addresses)
		slices.SortStableFunc(all, func(a, b mesh.Rule) int { return a.Prefix.Compare(b.Prefix) })
		return slices.CompactFunc(all, func(a, b mesh.Rule) bool { return a.Prefix == b.Prefix })
	})
}

// openPorts adds the ports of services at the addresses of this cluster in the mesh.
func (o *opening) openPorts(open []mesh.LocalPort) []mesh.LocalPort {
	return mergeOnce(&o.open, open, func() []mesh.LocalPort {
		all := slices.Concat(open, o.ports)
		slices.SortFunc(all, mesh.LocalPort.Compare)
		return slices.Compact(all)
	})
}

// mergeOnce merges what was not merged yet.
func mergeOnce[T comparable](known *[]merged[T], before []T, merge func() []T) []T {
	for _, m := range *known {
		if slices.Equal(m.before, before) {
			return m.after
		}
	}
	after := merge()
	*known = append(*known, merged[T]{before, after})
	return after
}
