package service

// Which links reach mesh services.

import (
	"net/netip"
	"slices"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Open returns a State in which the links of a mesh reach its mesh services: addresses of their own where no ingress
// list counts, for lists say themselves which addresses they lead to; and ports at the addresses of this cluster,
// unless a list denies these. No link can claim an address of a mesh service. The argument stays as it is.
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
	for i := range s.Peers {
		p := &s.Peers[i]
		strangers := otherRanges(s.Meshes, p.Local)
		reached := slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool {
			return slices.ContainsFunc(strangers, func(n netip.Prefix) bool { return n.Contains(a) })
		})
		p.Carried = slices.Clone(p.Carried)
		p.Ingress = openAddresses(p.Ingress, p.Unlisted, reached)
		for k := range p.Carried {
			c := &p.Carried[k]
			c.Ingress = openAddresses(c.Ingress, c.Unlisted, reached)
		}
		p.Open = openPorts(p.Open, p.Local, services)
	}
	return s
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

func openAddresses(rules []mesh.Rule, unlisted bool, reached []netip.Addr) []mesh.Rule {
	if !unlisted {
		return rules
	}
	all := slices.Clone(rules)
	for _, a := range reached {
		all = append(all, mesh.Rule{Prefix: full(a), Allow: true})
	}
	slices.SortStableFunc(all, func(a, b mesh.Rule) int { return a.Prefix.Compare(b.Prefix) })
	return slices.CompactFunc(all, func(a, b mesh.Rule) bool { return a.Prefix == b.Prefix })
}

// openPorts adds the ports of services at the addresses of this cluster in a mesh.
func openPorts(open []mesh.LocalPort, own mesh.Prefixes, services []Service) []mesh.LocalPort {
	names := map[uint8]string{6: "tcp", 17: "udp"}
	all := slices.Clone(open)
	for i := range services {
		if !slices.Contains(own.Addrs(), services[i].Address) {
			continue
		}
		for _, p := range services[i].Ports {
			all = append(all, mesh.LocalPort{Protocol: names[p.Protocol], Port: p.Port})
		}
	}
	slices.SortFunc(all, mesh.LocalPort.Compare)
	return slices.Compact(all)
}
