package mesh

// Links to other clusters. Each is checked on its own, against the local cluster, and against older links.

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// linkEntry is a link to another cluster.
type linkEntry struct {
	Link
	spec      *v1alpha1.KubeLinkSpec
	mesh      *meshEntry
	addresses Prefixes  // with the masks of the mesh
	services  Prefixes  // service networks of the cluster; empty: unknown, or not routed
	unrouted  Prefixes  // service networks of the cluster that this cluster has as well
	claims    claimList // what is routed to the link
	offers    []Offer   // accepted ones, by namespace and name
	ingress   []Rule
	gateway   string // full name of the link that carries this one; empty: the link has an endpoint
	host      string // of the endpoint
	port      uint16
	literal   []netip.Addr // the endpoint, where it is an address
	reached   []netip.Addr // under which the peer is known; empty: a gateway carries the link
	key       PublicKey    // of the peer, in mode wireguard
	preshared SecretKey    // with the peer, in mode wireguard
	dns       ClusterZone  // Name is empty: no names
}

// networks are all networks that are routed to the link.
func (l *linkEntry) networks() []netip.Prefix {
	var networks []netip.Prefix
	for _, c := range l.claims {
		networks = append(networks, c.prefix)
	}
	return networks
}

// routesTo tells whether the address is routed to the link.
func (l *linkEntry) routesTo(a netip.Addr) bool {
	_, ok := l.claims.findAddress(a)
	return ok
}

// linkSet has the links that can be used so far.
type linkSet struct {
	local   *Local
	host    hostCheck
	meshes  *meshSet
	reports *reports
	keys    *Keys
	objects map[string]*v1alpha1.KubeLink // that are served, usable or not
	byName  map[string]*linkEntry
	byAge   []*linkEntry // the same, older ones first
	claims  claimList    // of all links, older ones first

	reserved []Reserved // sorted
}

func newLinkSet(in *input, meshes *meshSet, r *reports) *linkSet {
	s := &linkSet{
		local: in.local, host: meshes.host, meshes: meshes, reports: r,
		keys: in.keys, reserved: in.reserved,
		objects: map[string]*v1alpha1.KubeLink{}, byName: map[string]*linkEntry{},
	}
	for _, o := range in.byAge {
		if in.served.servesLink(o) {
			s.objects[o.Name] = o
		}
	}
	return s
}

func (s *linkSet) addLink(l *linkEntry) {
	s.claims = append(s.claims, l.claims...)
	s.byName[l.Name], s.byAge = l, append(s.byAge, l)
}

// sorted are the links by name.
func (s *linkSet) sorted() []*linkEntry {
	var list []*linkEntry
	for _, name := range slices.Sorted(maps.Keys(s.byName)) {
		list = append(list, s.byName[name])
	}
	return list
}

// readLink reads a link, but for its names and for its gateway, which may be younger.
func (s *linkSet) readLink(o *v1alpha1.KubeLink) (*linkEntry, *Problem) {
	mesh, cluster := LinkName(o.Name)
	if cluster == "" {
		return nil, missingCluster(o.Name)
	}
	m := s.meshes.findMesh(mesh)
	if m == nil {
		return nil, s.missingMesh(mesh)
	}
	if cluster == m.Cluster {
		return nil, invalid("metadata.name %q: %s is the name of the local cluster in %s; "+
			"a link is named after the other cluster", o.Name, cluster, MeshTitle(mesh))
	}
	l := &linkEntry{Link: Link{Name: o.Name, Mesh: mesh, Cluster: cluster, Peer: o.Name}, spec: &o.Spec, mesh: m}
	for _, read := range []func(*linkEntry) *Problem{
		s.readAddress, s.readServices, s.readEgress, s.checkClaims, s.readIngress, s.readEndpoint, s.checkLoop, s.readKeys,
	} {
		if p := read(l); p != nil {
			return nil, p
		}
	}
	if p := s.checkReserved(l, o); p != nil {
		return nil, p
	}
	return l, nil
}

// missingMesh says why there is no mesh of the name.
func (s *linkSet) missingMesh(mesh string) *Problem {
	if text := s.meshes.describeBroken()[mesh]; text != "" {
		return stale("%s", text)
	}
	return stale("%s has no LocalLink: create KubeLink %s with endpoint LocalLink "+
		"and the address of this cluster in the mesh", MeshTitle(mesh), ObjectName(mesh, "<local cluster>"))
}

// readAddress reads spec.clusterAddress, which must lie in the mesh and be free.
func (s *linkSet) readAddress(l *linkEntry) *Problem {
	address, p := parseClusterAddress(l.spec.ClusterAddress)
	if p != nil {
		return p
	}
	own := l.mesh.Addresses.SameFamily(address.Addr())
	if !own.IsValid() {
		own = l.mesh.Addresses.First()
	}
	switch {
	case address.Bits() != own.Bits():
		return invalid("spec.clusterAddress %s: the mask of %s is /%d, as its local address %s says; use %s/%d",
			address, MeshTitle(l.Mesh), own.Bits(), own, address.Addr(), own.Bits())
	case address.Masked() != own.Masked():
		return invalid("spec.clusterAddress %s does not lie in the network %s of %s: set a free address of it",
			address, own.Masked(), MeshTitle(l.Mesh))
	case address.Addr() == own.Addr():
		return invalid("spec.clusterAddress %s is the address of the local cluster: "+
			"set the address of %s", address, l.Cluster)
	}
	for _, other := range s.byAge {
		if slices.Contains(other.addresses, address) {
			return invalid("spec.clusterAddress %s is already used by the older link %s: "+
				"every cluster of a mesh has an address of its own, set a free one", address, other.Name)
		}
	}
	l.addresses = Prefixes{address}
	for _, a := range l.addresses.Addrs() {
		l.claims = append(l.claims, claim{netip.PrefixFrom(a, a.BitLen()), l.Name, fieldAddress})
	}
	return nil
}

// readServices reads spec.cidr.
func (s *linkSet) readServices(l *linkEntry) *Problem {
	if l.spec.CIDR == "" {
		return nil
	}
	cidr, err := parseNetwork(l.spec.CIDR)
	if err != nil {
		return invalid("spec.cidr %q: %v", l.spec.CIDR, err)
	}
	if err := CheckWidth(cidr); err != nil {
		return invalid("spec.cidr %s: %v", cidr, err)
	}
	if title, own := s.findOwn(cidr); own.IsValid() {
		s.reports.addNote(l.Name, "spec.cidr %s is not routed, as it overlaps with the %s %s: "+
			"what the cluster offers with MeshServices is reached, and named", cidr, title, own)
		l.unrouted = Prefixes{cidr}
		return nil
	}
	for _, m := range s.meshes.list {
		if n := m.Addresses.SameFamily(cidr.Addr()); n.Overlaps(cidr) {
			return invalid("spec.cidr %s overlaps with the network %s of %s: they must be disjoint",
				cidr, n.Masked(), MeshTitle(m.Name))
		}
	}
	if p := s.host.checkApart(fieldCIDR, cidr, s.meshes.services()); p != nil {
		return p
	}
	l.services = Prefixes{cidr}
	l.claims = append(l.claims, claim{cidr, l.Name, fieldCIDR})
	return nil
}

// findOwn finds a network of the local cluster that overlaps with a network; not valid: there is none.
func (s *linkSet) findOwn(n netip.Prefix) (title string, own netip.Prefix) {
	for _, l := range s.local.titledNetworks(s.meshes.services()) {
		for _, own := range l.networks {
			if own.Overlaps(n) {
				return l.title, own
			}
		}
	}
	return "", netip.Prefix{}
}

// readEgress reads spec.egress.
func (s *linkSet) readEgress(l *linkEntry) *Problem {
	for _, e := range l.spec.Egress {
		n, err := parseEgress(e)
		if err != nil {
			return invalid("spec.egress %q: %v", string(e), err)
		}
		if p := s.checkEgress(l.mesh, n); p != nil {
			return p
		}
		if !slices.ContainsFunc(l.claims, func(c claim) bool { return c.prefix == n }) {
			l.claims = append(l.claims, claim{n, l.Name, fieldEgress})
		}
	}
	return nil
}

// checkEgress refuses what would take local traffic into the tunnel. A network that is wider than a local one is fine:
// the more specific local routes stay in force.
func (s *linkSet) checkEgress(m *meshEntry, n netip.Prefix) *Problem {
	if err := CheckWidth(n); err != nil {
		return invalid("spec.egress %s: %v", n, err)
	}
	services := s.meshes.services()
	for _, own := range s.local.titledNetworks(services) {
		for _, cidr := range own.networks {
			if contains(cidr, n) {
				return invalid("spec.egress %s lies in the %s %s: it would take local traffic away", n, own.title, cidr)
			}
		}
	}
	for _, other := range s.meshes.list {
		own := other.Addresses.SameFamily(n.Addr())
		if !own.Overlaps(n) || n.Bits() < own.Bits() {
			continue
		}
		// Single addresses of the link's mesh (mesh services) may be routed to the link.
		if other != m || n.Bits() == own.Bits() || n.Contains(own.Addr()) {
			return invalid("spec.egress %s would take the network %s of %s, or its local address, away",
				n, own.Masked(), MeshTitle(other.Name))
		}
	}
	return s.host.checkRoute(fieldEgress, n, services)
}

// checkClaims refuses networks of a family that the mesh has no address of, and networks of older links.
func (s *linkSet) checkClaims(l *linkEntry) *Problem {
	for _, c := range l.claims {
		if !l.addresses.SameFamily(c.prefix.Addr()).IsValid() {
			return invalid("%s %s and spec.clusterAddress %s are of different IP families: "+
				"the source address of the mesh cannot be used towards it", c.field, c.prefix, l.addresses)
		}
		if p := s.claims.checkFree(c); p != nil {
			return p
		}
	}
	return nil
}

// readIngress reads spec.ingress.
func (s *linkSet) readIngress(l *linkEntry) (p *Problem) {
	l.ingress, p = parseIngress(l.spec.Ingress)
	s.reports.noteDenied(l.Name, l.ingress)
	return p
}
