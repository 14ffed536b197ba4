package mesh

// The zones of the meshes: their clusters, and their global names.

import (
	"cmp"
	"net/netip"
	"slices"
)

// zones are the base domains of all meshes with DNS.
func (n *naming) zones(links []*linkEntry) []Zone {
	var zones []Zone
	for _, m := range n.meshes.list {
		if n.local.Propagation == PropagateNone || m.Domain == "" || !m.served {
			continue
		}
		z := Zone{
			Domain: m.Domain, Mesh: m.Name, Networks: m.Addresses.Masked(), Global: n.globalZone(m, links),
		}
		if c, ok := n.localCluster(m); ok {
			z.Clusters = append(z.Clusters, c)
		}
		for _, l := range links {
			if l.mesh == m && l.dns.Name != "" {
				z.Clusters = append(z.Clusters, l.dns)
			}
		}
		slices.SortFunc(z.Clusters, func(a, b ClusterZone) int { return cmp.Compare(a.Name, b.Name) })
		zones = append(zones, z)
	}
	slices.SortFunc(zones, func(a, b Zone) int { return cmp.Compare(a.Domain, b.Domain) })
	return zones
}

// localCluster is the sub-domain of the local cluster in a mesh, if it has one.
func (n *naming) localCluster(m *meshEntry) (ClusterZone, bool) {
	c := ClusterZone{
		Name:          m.localName(),
		Addresses:     m.Addresses.Addrs(),
		Services:      m.Services,
		ClusterDomain: n.local.ClusterDomain,
		API:           API{Use: n.local.Propagation == PropagateKubernetes},
	}
	service := n.local.ClusterDNS
	if !service.IsValid() {
		service = Nth(m.Services.First(), 10)
	}
	if service.IsValid() {
		c.Upstream = netip.AddrPortFrom(service, dnsPort)
	}
	taken := n.meshes.findDomain(c.Name)
	switch {
	case m.Cluster == "" || !service.IsValid() && !c.API.Use:
	case InDomain(c.Name, "global."+m.Domain):
		n.reports.addNote(m.Link, "no DNS for the local cluster: %s is reserved for global names; "+
			"use another name for it", TrimDot(c.Name))
	case c.Name == "ns.dns."+m.Domain:
		n.reports.addNote(m.Link, "no DNS for the local cluster: %s is the name of the mesh's name server; "+
			"use another name for it", TrimDot(c.Name))
	case taken != nil:
		n.reports.addNote(m.Link, "no DNS for the local cluster: %s is the domain of %s; use another name for it",
			TrimDot(c.Name), MeshTitle(taken.Name))
	default:
		return c, true
	}
	return c, false
}

// globalZone is the global zone of a mesh: served here, or by the mesh-global DNS service.
func (n *naming) globalZone(m *meshEntry, links []*linkEntry) GlobalZone {
	name, err := ParseDomain("svc.global." + m.Domain)
	if err != nil {
		n.reports.addNote(m.Link, "no global names: svc.global.%s: %v", m.Domain, err)
		return GlobalZone{}
	}
	z := GlobalZone{Name: name}
	if !m.DNS.IsValid() || m.DNS == n.local.DNSAddress(m.Services) {
		return z
	}
	z.Upstream = netip.AddrPortFrom(m.DNS, dnsPort)
	bits := -1
	for _, l := range links {
		if b := l.claims.longestMatch(m.DNS); b > bits {
			z.Link, bits = l.Name, b
		}
	}
	if z.Link == "" && !n.isLocal(m, m.DNS) && n.local.Mode.CarriesTraffic() {
		n.reports.addNote(m.Link, "no global names: the mesh DNS address %s (spec.dns.dnsIP) is neither in this cluster "+
			"nor routed to a link; add it to spec.egress of the link that leads there", m.DNS)
	}
	return z
}

// isLocal tells whether an address lies in the local cluster.
func (n *naming) isLocal(m *meshEntry, a netip.Addr) bool {
	networks := slices.Concat(n.meshes.services(), n.local.networks())
	return slices.Contains(m.Addresses.Addrs(), a) ||
		slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(a) })
}
