package mesh

// What carries traffic: peers, and routes into the meshes. A mode that carries no traffic has neither.

import (
	"net/netip"
	"slices"
)

// peersOf are the links with a connection of their own. The networks of the links behind a gateway belong to the
// gateway. meshes are all of the cluster: its address in a mesh of another broker is that of a node, too.
func peersOf(meshes []*meshEntry, links []*linkEntry, open []LocalPort) []Peer {
	var node []netip.Addr
	for _, m := range meshes {
		node = append(node, m.Addresses.Addrs()...)
	}
	carried := map[string][]*linkEntry{} // by peer
	for _, l := range links {
		carried[l.Peer] = append(carried[l.Peer], l)
	}
	peers := make([]Peer, 0, len(links))
	unlisted := map[*meshEntry][]Rule{} // what the links without a list of their own share
	for _, l := range links {
		if l.gateway != "" {
			continue
		}
		rules, shared := unlisted[l.mesh]
		if !shared || len(l.ingress) > 0 {
			rules = effectiveIngress(l.mesh, node, l.mesh.ingress, l.ingress)
		}
		if len(l.ingress) == 0 {
			unlisted[l.mesh] = rules
		}
		p := Peer{
			Link:      l.Name,
			Local:     l.mesh.Addresses,
			Services:  l.mesh.Services,
			Addresses: l.addresses,
			Host:      l.host,
			Port:      l.port,
			Key:       l.key,
			Preshared: l.preshared,
			Ingress:   rules,
			Unlisted:  len(l.mesh.ingress)+len(l.ingress) == 0,
			Open:      open,
		}
		for _, c := range carried[l.Name] {
			networks := c.networks()
			p.Networks = append(p.Networks, networks...)
			if len(carried[l.Name]) == 1 {
				continue
			}
			lists := [][]Rule{l.mesh.ingress, l.ingress}
			if c != l {
				lists = append(lists, c.ingress)
			}
			slices.SortFunc(networks, netip.Prefix.Compare)
			p.Carried = append(p.Carried, Carried{networks, effectiveIngress(l.mesh, node, lists...),
				p.Unlisted && len(c.ingress) == 0})
		}
		slices.SortFunc(p.Networks, netip.Prefix.Compare)
		peers = append(peers, p)
	}
	return peers
}

// routesOf are the routes to the networks of meshes and links. Addresses of a mesh need no route of their own: the
// route of the mesh covers them.
func routesOf(meshes []*meshEntry, links []*linkEntry) []Route {
	var routes []Route
	for _, m := range meshes {
		for _, a := range m.Addresses {
			routes = append(routes, Route{a.Masked(), a.Addr()})
		}
	}
	for _, l := range links {
		for _, n := range l.networks() {
			if own := l.mesh.Addresses.SameFamily(n.Addr()); !contains(own, n) {
				routes = append(routes, Route{n, own.Addr()})
			}
		}
	}
	slices.SortFunc(routes, func(a, b Route) int { return a.Destination.Compare(b.Destination) })
	return routes
}

// localNetworks are the networks in the local cluster, of its gateway node, and the ones that meshes have.
func localNetworks(local *Local, host *Host, meshes []*meshEntry) []netip.Prefix {
	networks := local.networks()
	for _, n := range host.Networks {
		networks = append(networks, n.Prefix)
	}
	for _, m := range meshes {
		networks = slices.Concat(networks, m.Addresses.Masked(), m.Services)
	}
	slices.SortFunc(networks, netip.Prefix.Compare)
	return slices.Compact(networks)
}
