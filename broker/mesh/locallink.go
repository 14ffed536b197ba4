package mesh

// The meshes that the local cluster is a member of: the default mesh of the stanza, and one for each LocalLink.

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// meshEntry is a mesh with what its LocalLink says for all of its links.
type meshEntry struct {
	Mesh
	ingress []Rule // mesh-wide
	served  bool   // by this broker
}

// localName is the domain name of the local cluster in the mesh.
func (m *meshEntry) localName() string { return strings.ToLower(m.Cluster) + "." + m.Domain }

// meshSet has the meshes that can be used.
type meshSet struct {
	local   *Local
	host    hostCheck
	reports *reports
	members map[string][]string // names of the links to other clusters, by mesh
	list    []*meshEntry        // by name
	broken  map[string]string   // the oldest LocalLink that cannot be used, by mesh
	refused *Problem            // of the mesh that the stanza defines; nil: it can be used
}

// newMeshSet begins with the mesh that the stanza defines, if it defines one.
func newMeshSet(local *Local, host *Host, r *reports, members map[string][]string) *meshSet {
	s := &meshSet{
		local: local, host: hostCheck{host, local, "the gateway node"}, reports: r, members: members,
		broken: map[string]string{},
	}
	for _, a := range local.Addresses {
		if p := s.host.checkApart("link-address", a.Masked(), local.ServiceCIDRs); p != nil && s.refused == nil {
			s.refused = p
		}
	}
	if len(local.Addresses) > 0 && s.refused == nil {
		s.addMesh(&meshEntry{Mesh: Mesh{
			Cluster:   local.ClusterName,
			Addresses: local.Addresses,
			Services:  local.ServiceCIDRs,
			Domain:    local.MeshDomain,
			DNS:       local.MeshDNS,
		}})
	}
	return s
}

func (s *meshSet) addMesh(m *meshEntry) {
	m.Members = slices.Sorted(slices.Values(s.members[m.Name]))
	s.list = append(s.list, m)
	slices.SortFunc(s.list, func(a, b *meshEntry) int { return cmp.Compare(a.Name, b.Name) })
}

// findMesh returns nil if there is no usable mesh of the name.
func (s *meshSet) findMesh(name string) *meshEntry {
	return s.findFunc(func(m *meshEntry) bool { return m.Name == name })
}

// findDomain returns the mesh with the base domain: there is one at most.
func (s *meshSet) findDomain(domain string) *meshEntry {
	return s.findFunc(func(m *meshEntry) bool { return m.Domain == domain })
}

func (s *meshSet) findFunc(is func(*meshEntry) bool) *meshEntry {
	if i := slices.IndexFunc(s.list, is); i >= 0 {
		return s.list[i]
	}
	return nil
}

// domains are the base domains, empty where a mesh has no DNS.
func (s *meshSet) domains() []string {
	var domains []string
	for _, m := range s.list {
		domains = append(domains, m.Domain)
	}
	return domains
}

// services are all networks of services that the local cluster is known to have. A LocalLink that names one protects it
// in all meshes: there is one local cluster.
func (s *meshSet) services() Prefixes {
	services := slices.Clone(s.local.ServiceCIDRs)
	for _, m := range s.list {
		for _, n := range m.Services {
			if !slices.Contains(services, n) {
				services = append(services, n)
			}
		}
	}
	return services
}

// describeBroken says why there is no mesh of a name that stanza or LocalLinks define.
func (s *meshSet) describeBroken() (broken map[string]string) {
	if len(s.broken) > 0 || s.refused != nil {
		broken = map[string]string{}
	}
	for mesh, name := range s.broken {
		if s.findMesh(mesh) == nil {
			broken[mesh] = fmt.Sprintf("LocalLink %s of %s cannot be used (%s): repair it first",
				name, MeshTitle(mesh), s.reports.problems[name].State)
		}
	}
	if s.refused != nil && s.findMesh("") == nil {
		broken[""] = fmt.Sprintf("%s cannot be used: %s", MeshTitle(""), s.refused.Message)
	}
	return broken
}

// addLocalLink adds the mesh that a LocalLink defines, or reports why it cannot. older are the objects that win over
// it.
func (s *meshSet) addLocalLink(o *v1alpha1.KubeLink, older []*v1alpha1.KubeLink) {
	m, p := s.readLocalLink(o)
	if p == nil && m != nil {
		p = s.checkEndpoints(o, m.Addresses.First().Masked(), older)
	}
	if p == nil && m != nil {
		p = s.checkServices(m, older)
	}
	if p != nil {
		s.reports.addProblem(o.Name, p)
		if mesh, _ := LinkName(o.Name); s.broken[mesh] == "" {
			s.broken[mesh] = o.Name
		}
		return
	}
	if m != nil {
		s.addMesh(m)
	}
}

// readLocalLink returns neither mesh nor problem for a LocalLink that is about to go and that nothing keeps any more.
func (s *meshSet) readLocalLink(o *v1alpha1.KubeLink) (*meshEntry, *Problem) {
	name, cluster := LinkName(o.Name)
	if cluster == "" {
		return nil, missingCluster(o.Name)
	}
	if o.DeletionTimestamp != nil && len(s.members[name]) == 0 {
		return nil, nil
	}
	if o.Spec.GatewayLink != "" {
		return nil, invalid("spec.gatewayLink %q cannot be used on a LocalLink: remove it", o.Spec.GatewayLink)
	}
	if p := s.checkFirst(name); p != nil {
		return nil, p
	}
	address, p := s.readOwnAddress(o.Spec.ClusterAddress)
	if p != nil {
		return nil, p
	}
	m := &meshEntry{Mesh: Mesh{
		Name: name, Link: o.Name, Cluster: cluster,
		Addresses: Prefixes{address}, Services: s.local.ServiceCIDRs, Domain: s.local.MeshDomain,
	}}
	if m.Services, p = s.readOwnServices(o.Spec.CIDR, address); p != nil {
		return nil, p
	}
	if len(o.Spec.Egress) > 0 {
		s.reports.addNote(o.Name, "spec.egress has no meaning on a LocalLink")
	}
	if o.Spec.PublicKey != "" && s.local.Mode == WireGuard {
		s.reports.addNote(o.Name, "spec.publicKey has no meaning on a LocalLink: the key of this cluster is in its status")
	}
	if m.ingress, p = parseIngress(o.Spec.Ingress); p != nil {
		return nil, p
	}
	s.reports.noteDenied(o.Name, m.ingress)
	if p := s.readMeshDNS(m, o.Spec.DNS); p != nil {
		return nil, p
	}
	return m, nil
}

// checkFirst refuses a second definition of a mesh.
func (s *meshSet) checkFirst(mesh string) *Problem {
	old := s.findMesh(mesh)
	switch {
	case old == nil:
		return nil
	case old.Link == "":
		return stale("%s is already defined by link-address %s of the Corefile: remove that property or this object",
			MeshTitle(mesh), old.Addresses)
	}
	return stale("%s already has the older LocalLink %s: delete one of the two", MeshTitle(mesh), old.Link)
}

// readOwnAddress reads the address of the local cluster in a mesh.
func (s *meshSet) readOwnAddress(text string) (netip.Prefix, *Problem) {
	address, p := parseClusterAddress(text)
	if p != nil {
		return address, p
	}
	for _, other := range s.list {
		if n := other.Addresses.SameFamily(address.Addr()); n.Overlaps(address) {
			return address, invalid("spec.clusterAddress %s: its network overlaps with %s of %s; meshes must be disjoint",
				address, n.Masked(), MeshTitle(other.Name))
		}
	}
	if p := s.local.checkDisjoint(fieldAddress, address); p != nil {
		return address, p
	}
	services := s.services()
	for _, n := range services {
		if n.Overlaps(address) {
			return address, invalid("%s %s overlaps with the local service network %s: they must be disjoint",
				fieldAddress, address, n)
		}
	}
	return address, s.host.checkApart(fieldAddress, address, services)
}

// readOwnServices reads the service network of the local cluster, which the stanza may have as well.
func (s *meshSet) readOwnServices(text string, address netip.Prefix) (Prefixes, *Problem) {
	own := s.local.ServiceCIDRs
	if text == "" {
		return own, nil
	}
	cidr, err := parseNetwork(text)
	switch {
	case err != nil:
		return nil, invalid("spec.cidr %q: %v", text, err)
	case len(own) > 0 && !slices.Contains(own, cidr):
		return nil, invalid("spec.cidr %s of the LocalLink differs from service-cidr %s of the Corefile: "+
			"set both to the service network of this cluster, or remove one", cidr, own)
	case cidr.Overlaps(address):
		return nil, invalid("spec.cidr %s overlaps with the mesh network %s of spec.clusterAddress: "+
			"they must be disjoint", cidr, address.Masked())
	case len(own) > 0:
		return own, nil
	}
	return Prefixes{cidr}, nil
}

// checkServices refuses a service network that lies in the way of older objects of other meshes.
func (s *meshSet) checkServices(m *meshEntry, older []*v1alpha1.KubeLink) *Problem {
	for _, own := range m.Services {
		for _, other := range s.list {
			if n := other.Addresses.SameFamily(own.Addr()); n.Overlaps(own) {
				return invalid("spec.cidr %s overlaps with the network %s of %s: they must be disjoint",
					own, n.Masked(), MeshTitle(other.Name))
			}
		}
		for _, o := range older {
			mesh, _ := LinkName(o.Name)
			n, err := parseNetwork(o.Spec.CIDR)
			if err == nil && n.Overlaps(own) && !isLocalLink(o) && o.DeletionTimestamp == nil &&
				mesh != m.Name && s.findMesh(mesh) != nil && !slices.Contains(s.services(), own) {
				return invalid("spec.cidr %s overlaps with spec.cidr %s of the older link %s: give the service network of "+
					"this cluster, or delete that link", own, n, o.Name)
			}
		}
	}
	return nil
}

// readMeshDNS reads base domain and DNS service of a mesh; dns may be nil.
func (s *meshSet) readMeshDNS(m *meshEntry, dns *v1alpha1.KubeLinkDNS) *Problem {
	if m.Name == "" {
		m.DNS = s.local.MeshDNS
	}
	if dns != nil {
		address, p := parseDNSAddress(dns)
		if p != nil {
			return p
		}
		if address.IsValid() {
			m.DNS = address
		}
		if dns.BaseDomain != "" {
			var err error
			if m.Domain, err = ParseDomain(dns.BaseDomain); err != nil {
				return invalid("spec.dns.baseDomain %q: %v", dns.BaseDomain, err)
			}
		}
		if dns.OmitDNSPropagation {
			m.Domain = ""
		}
	}
	if m.Domain == "" {
		return nil
	}
	if s.local.ClusterDomain != "" && InDomain(s.local.ClusterDomain, m.Domain) {
		return invalid("spec.dns.baseDomain %q contains the cluster domain %s: choose a domain of its own for the mesh",
			m.Domain, s.local.ClusterDomain)
	}
	s.dropTakenDomain(m)
	if text := s.local.MissingServerBlock(m.Domain); m.Domain != "" && text != "" {
		s.reports.addNote(m.Link, "%s", text)
	}
	return nil
}

// dropTakenDomain leaves a mesh without DNS if its base domain clashes with the one of an older mesh.
func (s *meshSet) dropTakenDomain(m *meshEntry) {
	for _, other := range s.list {
		switch {
		case m.Domain == "" || other.Domain == "":
			continue
		case m.Domain == other.Domain:
			s.reports.addNote(m.Link, "no DNS: spec.dns.baseDomain %s is already used by %s; set another one",
				TrimDot(m.Domain), MeshTitle(other.Name))
		case InDomain(m.Domain, "global."+other.Domain) || InDomain(other.Domain, "global."+m.Domain):
			s.reports.addNote(m.Link, "no DNS: spec.dns.baseDomain %s, and %s of %s: "+
				"one lies in the global names of the other; set another one",
				TrimDot(m.Domain), TrimDot(other.Domain), MeshTitle(other.Name))
		case other.Cluster != "" && m.Domain == other.localName():
			s.reports.addNote(m.Link, "no DNS: spec.dns.baseDomain %s is the local cluster in %s; set another one",
				TrimDot(m.Domain), MeshTitle(other.Name))
		default:
			continue
		}
		m.Domain = ""
	}
}

// MeshTitle is how messages call a mesh.
func MeshTitle(name string) string {
	if name == "" {
		return "the default mesh"
	}
	return "mesh " + name
}
