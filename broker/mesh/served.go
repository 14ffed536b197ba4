package mesh

// What the property served-links says of the objects that there are: which links this broker serves, and so which
// meshes it is the gateway of.

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// DefaultMesh is the name of the default mesh in served-links.
const DefaultMesh = "<default>"

// servedSet is the part of this broker.
type servedSet struct {
	all    bool
	names  map[string]bool // entries of served-links
	meshes map[string]bool // of which this broker serves all links
	linked map[string]bool // of which this broker serves a link that is not about to go
}

func newServedSet(local *Local, links []*v1alpha1.KubeLink) *servedSet {
	s := &servedSet{local.Served == nil, map[string]bool{}, map[string]bool{}, map[string]bool{}}
	var networks []netip.Prefix
	for _, entry := range local.Served {
		if s.names[entry] = true; entry == DefaultMesh {
			s.meshes[""] = true
		}
		if n, err := netip.ParsePrefix(entry); err == nil {
			networks = append(networks, n)
		}
	}
	ranges := meshRanges(local, links)
	for name := range ranges {
		isNamed := func(n netip.Prefix) bool { return slices.Contains(networks, n) }
		if name != "" && s.names[name] || slices.ContainsFunc(ranges[name], isNamed) {
			s.meshes[name] = true
		}
	}
	for _, o := range links {
		if s.servesLink(o) {
			mesh, _ := LinkName(o.Name)
			s.linked[mesh] = true
		}
	}
	return s
}

// meshRanges are the networks of all meshes, usable or not: as stanza and LocalLinks say, or else as the links say.
func meshRanges(local *Local, links []*v1alpha1.KubeLink) map[string]Prefixes {
	ranges := map[string]Prefixes{"": local.Addresses.Masked()}
	addRange := func(o *v1alpha1.KubeLink) {
		mesh, _ := LinkName(o.Name)
		networks := ranges[mesh]
		if address, err := ClusterAddress(o.Spec.ClusterAddress); err == nil {
			networks = append(networks, address.Masked())
		}
		ranges[mesh] = networks // a mesh without range has a name
	}
	for _, o := range links {
		if isLocalLink(o) {
			addRange(o)
		}
	}
	defined := maps.Clone(ranges)
	for _, o := range links {
		if mesh, _ := LinkName(o.Name); len(defined[mesh]) == 0 {
			addRange(o)
		}
	}
	return ranges
}

// servesLink tells whether the object is a link to another cluster that stays and that this broker serves.
func (s *servedSet) servesLink(o *v1alpha1.KubeLink) bool {
	mesh, _ := LinkName(o.Name)
	return !isLocalLink(o) && o.DeletionTimestamp == nil && (s.servesWhole(mesh) || s.names[o.Name])
}

// servesWhole tells whether this broker serves all links of the mesh, also those to come.
func (s *servedSet) servesWhole(mesh string) bool { return s.all || s.meshes[mesh] }

// writesLocalLink tells whether this broker writes the status of a LocalLink. Brokers that share a mesh do not know of
// each other: so the list of one has the name of the LocalLink.
func (s *servedSet) writesLocalLink(name string) bool {
	mesh, _ := LinkName(name)
	return s.servesWhole(mesh) || s.names[name]
}

// servesMesh tells whether this broker is a gateway of the mesh: it has the address of this cluster, and the routes.
func (s *servedSet) servesMesh(m *Mesh) bool {
	return s.servesWhole(m.Name) || s.linked[m.Name] || m.Link != "" && s.names[m.Link]
}

// otherClaims are the networks of links that other brokers serve and have accepted, as their statuses say. They are no
// matter of routes here, but belong to these links: brokers can share a mesh.
func (in *input) otherClaims() (claims claimList) {
	for _, o := range in.byAge {
		if isLocalLink(o) || in.served.all || in.served.servesLink(o) || o.DeletionTimestamp != nil {
			continue
		}
		switch o.Status.State {
		case "", v1alpha1.StateInvalid, v1alpha1.StateStale:
			continue
		}
		add := func(n netip.Prefix, err error, field string) {
			if err == nil {
				claims = append(claims, claim{n.Masked(), o.Name, field})
			}
		}
		if a, err := ClusterAddress(o.Spec.ClusterAddress); err == nil {
			add(netip.PrefixFrom(a.Addr(), a.Addr().BitLen()), nil, fieldAddress)
		}
		cidr, err := parseNetwork(o.Spec.CIDR)
		add(cidr, err, fieldCIDR)
		for _, e := range o.Spec.Egress {
			n, err := parseEgress(e)
			add(n, err, fieldEgress)
		}
	}
	return claims
}
