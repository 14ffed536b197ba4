// Package mesh is the pure model of kubelink: Build turns the objects of the API and what the local cluster knows of
// itself into a State. No kernel, no clock, no API in here.
package mesh

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// Objects are all that a State is made of, besides the stanza: objects of the API, and facts of the gateway node.
type Objects struct {
	Links    []v1alpha1.KubeLink
	Reserved []Reserved // addresses of MeshServices, in any order
	Host     Host
	Keys     Keys                  // in mode wireguard
	Offers   map[string]*Offers    // what peers offer, by the name of their link
	Settled  map[netip.Addr]string // addresses that stay with a link as long as its peer offers them
}

// Build computes the State. It does not change its arguments. Older objects win over younger ones, so that a mistake in
// a new object never breaks what works; what the node has and needs wins over all of them.
func Build(objects Objects, local Local) State {
	in := newInput(objects, &local)
	// A link whose gateway cannot be used takes no network from others: each such gateway costs another look.
	for {
		names, links := in.readObjects()
		if orphans := links.attachGateways(); len(orphans) > 0 {
			maps.Copy(in.orphans, orphans)
			continue
		}
		others := in.otherClaims()
		accepted := in.acceptOffers(links, others)
		s := makeState(&local, names, links, links.reports)
		s.Offers = accepted
		s.addNetworks(others)
		s.Foreign = in.foreignLinks()
		return s
	}
}

// input is what Build reads.
type input struct {
	local   *Local
	host    *Host
	keys    *Keys
	byAge   []*v1alpha1.KubeLink
	served  *servedSet
	orphans map[string]*Problem // of links whose gateway cannot be used, by name

	reserved []Reserved // sorted
	offers   map[string]*Offers
	settled  map[netip.Addr]string
}

func newInput(objects Objects, local *Local) *input {
	host := objects.Host
	if len(host.Routes) == 0 {
		host.Routes = local.NodeCIDRs // until the kernel has told its routes
	}
	byAge := sortByGateway(sortByAge(objects.Links))
	return &input{
		local: local, host: &host, keys: &objects.Keys,
		byAge: byAge, served: newServedSet(local, byAge), orphans: map[string]*Problem{},
		reserved: sortReserved(objects.Reserved), offers: objects.Offers, settled: objects.Settled,
	}
}

// readObjects reads all objects, older ones first.
func (in *input) readObjects() (*naming, *linkSet) {
	r := newReports()
	meshes := newMeshSet(in.local, in.host, r, membersByMesh(in.byAge))
	for i, o := range in.byAge {
		if isLocalLink(o) {
			meshes.addLocalLink(o, in.byAge[:i])
		}
	}
	for _, m := range meshes.list { // a mesh of another broker counts in all checks: nothing may lie in its way
		m.served, m.Shared = in.served.servesMesh(&m.Mesh), !in.served.servesWhole(m.Name)
	}
	links := newLinkSet(in, meshes, r)
	names := &naming{local: in.local, meshes: meshes, reports: r, taken: map[string]string{}, offers: in.offers}
	for _, o := range in.byAge {
		if !in.served.servesLink(o) {
			continue
		}
		l, p := (*linkEntry)(nil), in.orphans[o.Name]
		if p == nil {
			l, p = links.readLink(o)
		}
		if p == nil {
			p = names.readNames(l)
		}
		if p == nil {
			links.addLink(l)
		}
		r.addProblem(o.Name, p)
	}
	return names, links
}

// foreignLinks are the LocalLinks whose status other brokers write.
func (in *input) foreignLinks() (names map[string]bool) {
	for _, o := range in.byAge {
		if isLocalLink(o) && !in.served.writesLocalLink(o.Name) {
			if names == nil {
				names = map[string]bool{}
			}
			names[o.Name] = true
		}
	}
	return names
}

// makeState puts together what was read.
func makeState(local *Local, names *naming, links *linkSet, r *reports) State {
	all, byName := names.meshes.list, links.sorted()
	meshes := slices.DeleteFunc(slices.Clone(all), func(m *meshEntry) bool { return !m.served })
	s := State{
		Local: localNetworks(local, links.host.Host, all), LocalPorts: local.LocalPorts,
		Broken: names.meshes.describeBroken(), Zones: names.zones(byName), Problems: r.problems, Notes: r.notes,
	}
	r.dropNotesOfBroken()
	for _, m := range all {
		if m.served {
			s.Meshes = append(s.Meshes, m.Mesh)
			continue
		}
		s.Unserved = append(s.Unserved, m.Mesh)
		if m.Domain != "" && local.Propagation != PropagateNone {
			s.Elsewhere = append(s.Elsewhere, m.Domain)
		}
	}
	slices.Sort(s.Elsewhere)
	var networks claimList
	for _, l := range byName {
		link := l.Link
		if !local.Mode.CarriesTraffic() {
			link.Peer = ""
		}
		s.Links = append(s.Links, link)
		networks = append(networks, l.claims...)
	}
	s.addNetworks(networks)
	if local.Mode.CarriesTraffic() {
		s.Peers, s.Routes = peersOf(all, byName, local.LocalPorts), routesOf(meshes, byName)
		s.Lists = ingressLists(meshes, byName)
	}
	return s
}

// addNetworks adds what belongs to links.
func (s *State) addNetworks(claims claimList) {
	for _, c := range claims {
		s.Networks = append(s.Networks, LinkNetwork{c.prefix, c.owner})
	}
	slices.SortStableFunc(s.Networks, func(a, b LinkNetwork) int { return a.Prefix.Compare(b.Prefix) })
}

// sortByAge sorts by age, and by name what was created in the same second. Links that the broker made for peers count
// as younger than those of users: a peer cannot take an address or a network before its owner is linked.
func sortByAge(links []v1alpha1.KubeLink) []*v1alpha1.KubeLink {
	byAge := make([]*v1alpha1.KubeLink, 0, len(links))
	for i := range links {
		byAge = append(byAge, &links[i])
	}
	slices.SortFunc(byAge, func(a, b *v1alpha1.KubeLink) int {
		return cmp.Or(autoRank(a)-autoRank(b), a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			cmp.Compare(a.Name, b.Name))
	})
	return byAge
}

// sortByGateway sorts links behind the gateways that they need, and leaves the order else: a link works only from when
// its gateway is there, and takes nothing from links that have worked before.
func sortByGateway(byAge []*v1alpha1.KubeLink) []*v1alpha1.KubeLink {
	places := make(map[string]int, len(byAge))
	for i, o := range byAge {
		places[o.Name] = i
	}
	since := func(o *v1alpha1.KubeLink) int { // the place of the younger one of the two
		mesh, _ := LinkName(o.Name)
		return max(places[o.Name], places[gatewayName(mesh, &o.Spec)])
	}
	sorted := slices.Clone(byAge)
	slices.SortStableFunc(sorted, func(a, b *v1alpha1.KubeLink) int {
		order := since(a) - since(b)
		switch since(a) { // a gateway stands before the older links that have waited for it
		case places[a.Name]:
			return cmp.Or(order, -1)
		case places[b.Name]:
			return cmp.Or(order, 1)
		}
		return order
	})
	return sorted
}

// autoRank is 1 for a link that the broker made for a peer, else 0.
func autoRank(o *v1alpha1.KubeLink) int {
	if IsAutoLink(o) {
		return 1
	}
	return 0
}

// IsAutoLink tells whether the broker made the link for a peer that had none.
func IsAutoLink(o *v1alpha1.KubeLink) bool {
	return !isLocalLink(o) && o.Annotations[v1alpha1.AnnotationAutoConnect] == "true"
}

// membersByMesh are the names of the links to other clusters that are not about to go, usable or not.
func membersByMesh(links []*v1alpha1.KubeLink) map[string][]string {
	members := map[string][]string{}
	for _, o := range links {
		if !isLocalLink(o) && o.DeletionTimestamp == nil {
			mesh, _ := LinkName(o.Name)
			members[mesh] = append(members[mesh], o.Name)
		}
	}
	return members
}

func isLocalLink(o *v1alpha1.KubeLink) bool { return o.Spec.Endpoint == v1alpha1.EndpointLocal }
