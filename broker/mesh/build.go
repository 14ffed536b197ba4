package mesh

// From objects to State. Older objects win over younger ones, so that a mistake in a new object
// never breaks what works.

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// LinkName splits the name of a KubeLink into mesh (empty: the default mesh) and cluster.
func LinkName(name string) (mesh, cluster string) {
	if m, c, ok := strings.Cut(name, v1alpha1.MeshSeparator); ok {
		return m, c
	}
	return "", name
}

// ObjectName is the name of the KubeLink of a cluster in a mesh.
func ObjectName(mesh, cluster string) string {
	if mesh == "" {
		return cluster
	}
	return mesh + v1alpha1.MeshSeparator + cluster
}

// Build computes the State. It does not change its arguments.
func Build(objects Objects, local Local) State {
	b := &builder{
		local:    local,
		problems: map[string]Problem{},
		notes:    map[string]string{},
		members:  map[string][]string{},
		meshes:   map[string]*meshEntry{},
		links:    map[string]*linkEntry{},
		broken:   map[string]string{},
	}
	byAge := make([]*v1alpha1.KubeLink, 0, len(objects.Links))
	for i := range objects.Links {
		byAge = append(byAge, &objects.Links[i])
	}
	slices.SortFunc(byAge, func(a, b *v1alpha1.KubeLink) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})

	for _, o := range byAge {
		if o.Spec.Endpoint != v1alpha1.EndpointLocal && o.DeletionTimestamp == nil {
			mesh, _ := LinkName(o.Name)
			b.members[mesh] = append(b.members[mesh], o.Name)
		}
	}
	if len(local.Addresses) > 0 {
		b.addMesh(&meshEntry{Mesh: Mesh{
			Cluster:   local.ClusterName,
			Addresses: local.Addresses,
			Services:  local.ServiceCIDRs,
			Domain:    local.MeshDomain,
			DNS:       local.MeshDNS,
		}})
	}
	for _, o := range byAge {
		if o.Spec.Endpoint == v1alpha1.EndpointLocal {
			p := b.localLink(o)
			b.report(o.Name, p)
			if mesh, _ := LinkName(o.Name); p != nil && b.broken[mesh] == "" {
				b.broken[mesh] = o.Name
			}
		}
	}
	for _, o := range byAge {
		served := local.Served == nil || slices.Contains(local.Served, o.Name)
		if o.Spec.Endpoint != v1alpha1.EndpointLocal && o.DeletionTimestamp == nil && served {
			b.report(o.Name, b.remoteLink(o))
		}
	}
	// A gateway may be younger than the links behind it.
	for _, name := range slices.Sorted(maps.Keys(b.links)) {
		if l := b.links[name]; l.gateway != "" {
			if p := b.gateway(l); p != nil {
				b.report(name, p)
				delete(b.links, name)
			}
		}
	}
	return b.state()
}

// builder collects what objects claim.
type builder struct {
	local    Local
	problems map[string]Problem
	notes    map[string]string
	members  map[string][]string   // by mesh
	meshes   map[string]*meshEntry // by mesh
	links    map[string]*linkEntry // usable so far, by name of the object
	broken   map[string]string     // the oldest LocalLink that cannot be used, by mesh
	claims   []claim
}

type meshEntry struct {
	Mesh
	ingress []Rule // mesh-wide
}

type linkEntry struct {
	Link
	mesh      *meshEntry
	gateway   string   // full name
	addresses Prefixes // with the masks of the mesh
	host      string
	port      uint16
	networks  []netip.Prefix
	ingress   []Rule
	dns       ClusterZone // Name is empty: no names
}

// claim is a network that belongs to a link.
type claim struct {
	prefix netip.Prefix
	owner  string
	field  string // a spec.cidr may not overlap with another one at all
}

func (b *builder) report(name string, p *Problem) {
	if p != nil {
		b.problems[name] = *p
	}
}

// note says something at an object; a mesh that the stanza defines has none.
func (b *builder) note(name, format string, args ...any) {
	if name == "" {
		return
	}
	text := fmt.Sprintf(format, args...)
	if old := b.notes[name]; old != "" {
		text = old + "; " + text
	}
	b.notes[name] = text
}

func invalid(format string, args ...any) *Problem {
	return &Problem{v1alpha1.StateInvalid, fmt.Sprintf(format, args...)}
}

func stale(format string, args ...any) *Problem {
	return &Problem{v1alpha1.StateStale, fmt.Sprintf(format, args...)}
}

// meshTitle is how messages call a mesh.
func meshTitle(name string) string {
	if name == "" {
		return "the default mesh"
	}
	return "mesh " + name
}

// localLink adds the mesh that a LocalLink defines.
func (b *builder) localLink(o *v1alpha1.KubeLink) *Problem {
	name, cluster := LinkName(o.Name)
	if cluster == "" {
		return invalid("metadata.name %q: the cluster is missing after %q; name the object <mesh>%s<cluster>", o.Name, v1alpha1.MeshSeparator, v1alpha1.MeshSeparator)
	}
	if o.DeletionTimestamp != nil && len(b.members[name]) == 0 {
		return nil // nothing keeps it any more
	}
	if o.Spec.GatewayLink != "" {
		return invalid("spec.gatewayLink %q cannot be used on a LocalLink: remove it", o.Spec.GatewayLink)
	}
	if old := b.meshes[name]; old != nil {
		if old.Link == "" {
			return stale("%s is already defined by link-address %s of the Corefile: remove that property or this object", meshTitle(name), old.Addresses)
		}
		return stale("%s already has the older LocalLink %s: delete one of the two", meshTitle(name), old.Link)
	}
	address, p := clusterAddress(o.Spec.ClusterAddress)
	if p != nil {
		return p
	}
	for _, other := range b.sorted() {
		if n := other.Addresses.SameFamily(address.Addr()); n.Overlaps(address) {
			return invalid("spec.clusterAddress %s: its network overlaps with %s of %s; meshes must be disjoint", address, n.Masked(), meshTitle(other.Name))
		}
	}
	if p := b.disjoint("spec.clusterAddress", address); p != nil {
		return p
	}
	m := &meshEntry{Mesh: Mesh{Name: name, Link: o.Name, Cluster: cluster, Addresses: Prefixes{address}, Services: b.local.ServiceCIDRs, Domain: b.local.MeshDomain}}
	if o.Spec.CIDR != "" {
		cidr, err := network(o.Spec.CIDR)
		switch {
		case err != nil:
			return invalid("spec.cidr %q: %v", o.Spec.CIDR, err)
		case len(b.local.ServiceCIDRs) > 0 && !slices.Contains(b.local.ServiceCIDRs, cidr):
			return invalid("spec.cidr %s of the LocalLink differs from service-cidr %s of the Corefile: set both to the service network of this cluster, or remove one", cidr, b.local.ServiceCIDRs)
		case cidr.Overlaps(address):
			return invalid("spec.cidr %s overlaps with the mesh network %s of spec.clusterAddress: they must be disjoint", cidr, address.Masked())
		}
		if len(m.Services) == 0 {
			m.Services = Prefixes{cidr}
		}
	}
	if len(o.Spec.Egress) > 0 {
		b.note(o.Name, "spec.egress has no meaning on a LocalLink")
	}
	var err error
	if m.ingress, err = rules(o.Spec.Ingress); err != nil {
		return invalid("spec.ingress %v", err)
	}
	if name == "" {
		m.DNS = b.local.MeshDNS
	}
	if dns := o.Spec.DNS; dns != nil {
		address, p := dnsAddress(dns)
		if p != nil {
			return p
		}
		if address.IsValid() {
			m.DNS = address
		}
		if dns.BaseDomain != "" {
			if m.Domain, err = ParseDomain(dns.BaseDomain); err != nil {
				return invalid("spec.dns.baseDomain %q: %v", dns.BaseDomain, err)
			}
		}
		if dns.OmitDNSPropagation {
			m.Domain = ""
		}
	}
	if m.Domain != "" && b.local.ClusterDomain != "" && InDomain(b.local.ClusterDomain, m.Domain) {
		return invalid("spec.dns.baseDomain %q contains the cluster domain %s: choose a domain of its own for the mesh", m.Domain, b.local.ClusterDomain)
	}
	for _, other := range b.sorted() {
		switch {
		case m.Domain == "" || other.Domain == "":
			continue
		case m.Domain == other.Domain:
			b.note(o.Name, "no DNS: spec.dns.baseDomain %s is already used by %s; set another one", TrimDot(m.Domain), meshTitle(other.Name))
		case InDomain(m.Domain, "global."+other.Domain) || InDomain(other.Domain, "global."+m.Domain):
			b.note(o.Name, "no DNS: spec.dns.baseDomain %s, and %s of %s: one lies in the global names of the other; set another one", TrimDot(m.Domain), TrimDot(other.Domain), meshTitle(other.Name))
		case other.Cluster != "" && m.Domain == other.localName():
			b.note(o.Name, "no DNS: spec.dns.baseDomain %s is the local cluster in %s; set another one", TrimDot(m.Domain), meshTitle(other.Name))
		default:
			continue
		}
		m.Domain = ""
	}
	if text := b.local.Unasked(m.Domain); m.Domain != "" && text != "" {
		b.note(o.Name, "%s", text)
	}
	b.addMesh(m)
	return nil
}

// sorted is the meshes in a fixed order, so that messages are the same each time.
func (b *builder) sorted() []*meshEntry {
	return slices.SortedFunc(maps.Values(b.meshes), func(a, b *meshEntry) int { return cmp.Compare(a.Name, b.Name) })
}

// localName is that of the local cluster in the mesh.
func (m *meshEntry) localName() string { return strings.ToLower(m.Cluster) + "." + m.Domain }

// meshAt is the mesh whose domain is the name: there is one at most.
func (b *builder) meshAt(name string) *meshEntry {
	for _, m := range b.meshes {
		if m.Domain == name {
			return m
		}
	}
	return nil
}

func (b *builder) addMesh(m *meshEntry) {
	m.Members = slices.Sorted(slices.Values(b.members[m.Name]))
	b.meshes[m.Name] = m
}

// disjoint checks a network of the mesh against those of the local cluster, which it would hide.
func (b *builder) disjoint(field string, p netip.Prefix) *Problem {
	for _, n := range []struct {
		name  string
		cidrs Prefixes
	}{{"service-cidr", b.local.ServiceCIDRs}, {"pod-cidr", b.local.PodCIDRs}, {"node-cidr", b.local.NodeCIDRs}} {
		if cidr := n.cidrs.SameFamily(p.Addr()); cidr.Overlaps(p) {
			return invalid("%s %s overlaps with the local %s %s: they must be disjoint", field, p, n.name, cidr)
		}
	}
	return nil
}

// remoteLink checks a link to another cluster on its own and against older ones.
func (b *builder) remoteLink(o *v1alpha1.KubeLink) *Problem {
	spec := &o.Spec
	meshName, cluster := LinkName(o.Name)
	if cluster == "" {
		return invalid("metadata.name %q: the cluster is missing after %q; name the object <mesh>%s<cluster>", o.Name, v1alpha1.MeshSeparator, v1alpha1.MeshSeparator)
	}
	m := b.meshes[meshName]
	if m == nil {
		if name := b.broken[meshName]; name != "" {
			return stale("LocalLink %s of %s cannot be used (%s): repair it first", name, meshTitle(meshName), b.problems[name].State)
		}
		return stale("%s has no LocalLink: create KubeLink %s with endpoint LocalLink and the address of this cluster in the mesh", meshTitle(meshName), ObjectName(meshName, "<local cluster>"))
	}
	if cluster == m.Cluster {
		return invalid("metadata.name %q: %s is the name of the local cluster in %s; a link is named after the other cluster", o.Name, cluster, meshTitle(meshName))
	}
	l := &linkEntry{Link: Link{Name: o.Name, Mesh: meshName, Cluster: cluster, Peer: o.Name}, mesh: m}

	address, p := clusterAddress(spec.ClusterAddress)
	if p != nil {
		return p
	}
	own := m.Addresses.SameFamily(address.Addr())
	if !own.IsValid() {
		own = m.Addresses.First()
	}
	switch {
	case address.Bits() != own.Bits():
		return invalid("spec.clusterAddress %s: the mask of %s is /%d, as its local address %s says; use %s/%d", address, meshTitle(meshName), own.Bits(), own, address.Addr(), own.Bits())
	case address.Masked() != own.Masked():
		return invalid("spec.clusterAddress %s does not lie in the network %s of %s", address, own.Masked(), meshTitle(meshName))
	case address.Addr() == own.Addr():
		return invalid("spec.clusterAddress %s is the address of the local cluster: give that of %s", address, cluster)
	}
	l.addresses = Prefixes{address}
	for _, other := range b.links {
		if slices.Contains(other.addresses, address) {
			return invalid("spec.clusterAddress %s is already used by the older link %s: every cluster of a mesh has an address of its own", address, other.Name)
		}
	}

	var claims []claim
	for _, a := range l.addresses.Addrs() {
		claims = append(claims, claim{netip.PrefixFrom(a, a.BitLen()), o.Name, "spec.clusterAddress"})
	}
	if spec.CIDR != "" {
		cidr, err := network(spec.CIDR)
		if err != nil {
			return invalid("spec.cidr %q: %v", spec.CIDR, err)
		}
		if n := m.Services.SameFamily(cidr.Addr()); n.Overlaps(cidr) {
			return invalid("spec.cidr %s overlaps with the local service network %s: the service networks of a mesh must be disjoint", cidr, n)
		}
		if p := b.disjoint("spec.cidr", cidr); p != nil {
			return p
		}
		for _, other := range b.sorted() {
			if n := other.Addresses.SameFamily(cidr.Addr()); n.Overlaps(cidr) {
				return invalid("spec.cidr %s overlaps with the network %s of %s: they must be disjoint", cidr, n.Masked(), meshTitle(other.Name))
			}
		}
		claims = append(claims, claim{cidr, o.Name, "spec.cidr"})
	}
	for _, e := range spec.Egress {
		p, err := network(string(e))
		if err != nil {
			return invalid("spec.egress %q: %v", string(e), err)
		}
		if p.Bits() == 0 {
			return invalid("spec.egress %s: a default route would lead the tunnel's own connections into the tunnel; name the networks behind this cluster", p)
		}
		// A wider network is fine: the more specific local routes stay in force.
		for _, n := range []struct {
			name  string
			cidrs Prefixes
		}{{"local service network", m.Services}, {"pod-cidr", b.local.PodCIDRs}, {"node-cidr", b.local.NodeCIDRs}} {
			if cidr := n.cidrs.SameFamily(p.Addr()); cidr.Bits() <= p.Bits() && cidr.Overlaps(p) {
				return invalid("spec.egress %s lies in the %s %s: it would take local traffic away", p, n.name, cidr)
			}
		}
		for _, other := range b.sorted() {
			n := other.Addresses.SameFamily(p.Addr())
			inside := n.Overlaps(p) && p.Bits() >= n.Bits()
			// Single mesh addresses (mesh services) may be led to this link.
			if inside && (other != m || p.Bits() == n.Bits() || p.Contains(n.Addr())) {
				return invalid("spec.egress %s would take the network %s of %s, or its local address, away", p, n.Masked(), meshTitle(other.Name))
			}
		}
		if !slices.ContainsFunc(claims, func(c claim) bool { return c.prefix == p }) {
			claims = append(claims, claim{p, o.Name, "spec.egress"})
		}
	}
	for _, c := range claims {
		if !l.addresses.SameFamily(c.prefix.Addr()).IsValid() {
			return invalid("%s %s and spec.clusterAddress %s are of different IP families: the source address of the mesh cannot be used towards it", c.field, c.prefix, address)
		}
		for _, old := range b.claims {
			taken := old.prefix == c.prefix
			if old.field == "spec.cidr" && old.prefix.Overlaps(c.prefix) {
				// Two service networks may not touch; other networks may surround one, and not take a part of it.
				taken = taken || c.field == old.field || c.prefix.Bits() >= old.prefix.Bits()
			}
			if taken {
				return invalid("%s %s is already routed to the older link %s (%s): a network belongs to one link", c.field, c.prefix, old.owner, old.prefix)
			}
		}
		l.networks = append(l.networks, c.prefix)
	}

	var err error
	if l.ingress, err = rules(spec.Ingress); err != nil {
		return invalid("spec.ingress %v", err)
	}
	if spec.GatewayLink != "" {
		l.gateway = spec.GatewayLink
		if !strings.Contains(l.gateway, v1alpha1.MeshSeparator) {
			l.gateway = ObjectName(meshName, l.gateway)
		}
		if len(spec.Ingress) > 0 {
			b.note(o.Name, "spec.ingress has no effect: packets of this cluster come through %s, whose spec.ingress decides", l.gateway)
		}
	} else if p := b.endpoint(l, spec.Endpoint); p != nil {
		return p
	}
	if p := b.loop(l); p != nil {
		return p
	}
	if p := b.clusterDNS(l, spec); p != nil {
		return p
	}
	b.claims = append(b.claims, claims...)
	b.links[o.Name] = l
	return nil
}

// endpoint reads host[:port].
func (b *builder) endpoint(l *linkEntry, s string) *Problem {
	switch {
	case s == "":
		return invalid("spec.endpoint is missing: set it to host[:port] of the peer's broker, or set spec.gatewayLink")
	case s == v1alpha1.EndpointInbound && b.local.Mode == Bridge:
		return invalid("spec.endpoint Inbound works in mode wireguard only: in mode bridge give the host name in the peer's certificate")
	case s == v1alpha1.EndpointInbound:
		return nil
	}
	var err error
	if l.host, l.port, err = Endpoint(s, b.local.DefaultPort); err != nil {
		return invalid("spec.endpoint %q: %v", s, err)
	}
	return nil
}

// loop refuses what would lead a tunnel's own connection into a tunnel. Endpoints that are names
// cannot be told from here.
func (b *builder) loop(l *linkEntry) *Problem {
	if a, err := netip.ParseAddr(l.host); err == nil {
		for _, c := range b.claims {
			if c.prefix.Contains(a) {
				return invalid("spec.endpoint %s lies in the network %s that is routed to link %s: the connection would run through a tunnel", a, c.prefix, c.owner)
			}
		}
	}
	others := []*linkEntry{l}
	for _, name := range slices.Sorted(maps.Keys(b.links)) {
		others = append(others, b.links[name])
	}
	for _, other := range others {
		a, err := netip.ParseAddr(other.host)
		if err != nil {
			continue
		}
		for _, n := range l.networks {
			if n.Contains(a) {
				return invalid("the network %s (spec.cidr, spec.egress) contains the endpoint %s of link %s: its connection would run through a tunnel", n, a, other.Name)
			}
		}
	}
	return nil
}

// clusterDNS finds where the names of a remote cluster come from: its API server or its DNS service.
func (b *builder) clusterDNS(l *linkEntry, spec *v1alpha1.KubeLinkSpec) *Problem {
	zone := ClusterZone{Link: l.Name, Addresses: l.addresses.Addrs(), ClusterDomain: "cluster.local."}
	if spec.CIDR != "" {
		cidr, _ := network(spec.CIDR) // checked before
		zone.Services = Prefixes{cidr}
	}
	var upstream netip.Addr
	if dns := spec.DNS; dns != nil {
		var p *Problem
		if upstream, p = dnsAddress(dns); p != nil {
			return p
		}
		if dns.BaseDomain != "" {
			var domains []string
			for _, m := range b.sorted() {
				domains = append(domains, m.Domain)
			}
			var err error
			if zone.ClusterDomain, err = clusterDomain(dns.BaseDomain, domains); err != nil {
				return invalid("spec.dns.baseDomain %q: %v", dns.BaseDomain, err)
			}
		}
		if dns.OmitDNSPropagation {
			return nil
		}
	}
	if b.local.Propagation == PropagateNone || l.mesh.Domain == "" {
		return nil
	}
	var err error
	zone.Name, err = ParseDomain(l.Cluster + "." + l.mesh.Domain)
	other := b.meshAt(zone.Name)
	switch {
	case err != nil:
		b.note(l.Name, "no DNS: %s.%s: %v", l.Cluster, l.mesh.Domain, err)
		return nil
	case InDomain(zone.Name, "global."+l.mesh.Domain):
		b.note(l.Name, "no DNS: %s is reserved for global names; use another name for the cluster", TrimDot(zone.Name))
		return nil
	case other != nil: // whichever is older: all names of a mesh are more than those of a cluster
		b.note(l.Name, "no DNS: %s is the domain of %s; use another name for the cluster, or another spec.dns.baseDomain there", TrimDot(zone.Name), meshTitle(other.Name))
		return nil
	}
	var noAPI error
	if b.local.Propagation == PropagateKubernetes {
		zone.API, noAPI = apiAccess(spec)
	} else if spec.APIAccess != nil && !strings.HasPrefix(spec.APIAccess.Name, AnnouncedSecret) {
		b.note(l.Name, "spec.apiAccess is not used: it is for dns-propagation kubernetes")
	}
	if !upstream.IsValid() {
		upstream = Nth(zone.Services.First(), 10)
	}
	routed := !b.local.Mode.CarriesTraffic() || slices.ContainsFunc(l.networks, func(n netip.Prefix) bool { return n.Contains(upstream) })
	switch {
	case upstream.IsValid() && routed:
		zone.Upstream = netip.AddrPortFrom(upstream, 53)
		if noAPI != nil {
			b.note(l.Name, "names come from the DNS service of the cluster, not from its API server: %v", noAPI)
		}
	case zone.API.Use:
	case upstream.IsValid():
		b.note(l.Name, "no DNS: spec.dns.dnsIP %s is not routed to this link; add it to spec.egress", upstream)
		return nil
	default:
		b.note(l.Name, "no DNS: the address of the cluster's DNS service is unknown; set spec.dns.dnsIP")
		return nil
	}
	l.dns = zone
	return nil
}

// AnnouncedSecret begins the names of secrets with access that peers have announced.
const AnnouncedSecret = "kubelink-api-"

// apiAccess finds the API server of a remote cluster: the first service address, which is routed to
// the link as the whole of spec.cidr is. The error is why it cannot be used.
func apiAccess(spec *v1alpha1.KubeLinkSpec) (API, error) {
	switch {
	case spec.APIAccess == nil:
		return API{}, errors.New("spec.apiAccess is not set")
	case spec.APIAccess.Name == "":
		return API{}, errors.New("spec.apiAccess.name is missing; set it to the name of the secret")
	case spec.CIDR == "":
		return API{}, errors.New("spec.cidr is missing, whose first address is that of the API server")
	}
	cidr, _ := network(spec.CIDR) // checked before
	server := Nth(cidr, 1)
	if !server.IsValid() {
		return API{}, fmt.Errorf("spec.cidr %s is too small to have an address for the API server", cidr)
	}
	host := server.String()
	if server.Is6() {
		host = "[" + host + "]"
	}
	return API{Server: "https://" + host, Namespace: spec.APIAccess.Namespace, Secret: spec.APIAccess.Name, Use: true}, nil
}

// gateway attaches a link to the one that carries it.
func (b *builder) gateway(l *linkEntry) *Problem {
	if l.gateway == l.Name {
		return invalid("spec.gatewayLink names this link itself: name the link of the cluster that forwards for it")
	}
	if mesh, _ := LinkName(l.gateway); mesh != l.Mesh {
		return invalid("spec.gatewayLink %s belongs to %s: a gateway must be in the same mesh", l.gateway, meshTitle(mesh))
	}
	if l.mesh.Link == l.gateway {
		return invalid("spec.gatewayLink %s is the LocalLink: name the link of another cluster, or set spec.endpoint", l.gateway)
	}
	gw := b.links[l.gateway]
	if gw == nil {
		if p, ok := b.problems[l.gateway]; ok {
			return stale("spec.gatewayLink %s cannot be used (%s): repair that link first", l.gateway, p.State)
		}
		return stale("spec.gatewayLink %s does not exist, or is not served: create that link", l.gateway)
	}
	if gw.gateway != "" {
		return invalid("spec.gatewayLink %s has a gateway itself (%s): name that one", l.gateway, gw.gateway)
	}
	l.Peer = gw.Name
	return nil
}

// state puts it all together.
func (b *builder) state() State {
	s := State{Problems: b.problems, Notes: b.notes, Local: b.localNetworks()}
	for name := range b.problems {
		delete(b.notes, name)
	}
	zones := map[string]*Zone{}
	for _, name := range slices.Sorted(maps.Keys(b.meshes)) {
		m := b.meshes[name]
		s.Meshes = append(s.Meshes, m.Mesh)
		if b.local.Mode.CarriesTraffic() {
			for _, a := range m.Addresses {
				s.Routes = append(s.Routes, Route{a.Masked(), a.Addr()})
			}
		}
		if b.local.Propagation == PropagateNone || m.Domain == "" {
			continue
		}
		zone := &Zone{Domain: m.Domain, Mesh: name, Networks: m.Addresses.Masked(), Global: b.global(m)}
		zones[name] = zone
		upstream := b.local.ClusterDNS
		if !upstream.IsValid() {
			upstream = Nth(m.Services.First(), 10)
		}
		local := ClusterZone{
			Name:          m.localName(),
			Addresses:     m.Addresses.Addrs(),
			Services:      m.Services,
			ClusterDomain: b.local.ClusterDomain,
			API:           API{Use: b.local.Propagation == PropagateKubernetes},
		}
		if upstream.IsValid() {
			local.Upstream = netip.AddrPortFrom(upstream, 53)
		}
		other := b.meshAt(local.Name)
		switch {
		case m.Cluster == "" || !upstream.IsValid() && !local.API.Use:
		case InDomain(local.Name, "global."+m.Domain):
			b.note(m.Link, "no DNS for the local cluster: %s is reserved for global names; use another name for it", TrimDot(local.Name))
		case other != nil:
			b.note(m.Link, "no DNS for the local cluster: %s is the domain of %s; use another name for it", TrimDot(local.Name), meshTitle(other.Name))
		default:
			zone.Clusters = append(zone.Clusters, local)
		}
	}
	peers := map[string]*Peer{}
	for _, name := range slices.Sorted(maps.Keys(b.links)) {
		l := b.links[name]
		if !b.local.Mode.CarriesTraffic() {
			l.Peer = ""
		}
		s.Links = append(s.Links, l.Link)
		if z := zones[l.Mesh]; z != nil && l.dns.Name != "" {
			z.Clusters = append(z.Clusters, l.dns)
		}
		if !b.local.Mode.CarriesTraffic() {
			continue
		}
		if l.gateway == "" {
			peers[name] = &Peer{
				Link:      name,
				Local:     l.mesh.Addresses,
				Services:  l.mesh.Services,
				Addresses: l.addresses,
				Host:      l.host,
				Port:      l.port,
				Ingress:   effectiveIngress(l),
			}
		}
		for _, n := range l.networks {
			if own := l.mesh.Addresses.SameFamily(n.Addr()); !own.Contains(n.Addr()) { // the mesh's own route covers it
				s.Routes = append(s.Routes, Route{n, own.Addr()})
			}
		}
	}
	for _, l := range b.links {
		if p := peers[l.Peer]; p != nil {
			p.Networks = append(p.Networks, l.networks...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(peers)) {
		p := peers[name]
		slices.SortFunc(p.Networks, netip.Prefix.Compare)
		s.Peers = append(s.Peers, *p)
	}
	slices.SortFunc(s.Routes, func(a, b Route) int { return a.Destination.Compare(b.Destination) })
	for _, z := range zones {
		slices.SortFunc(z.Clusters, func(a, b ClusterZone) int { return cmp.Compare(a.Name, b.Name) })
		s.Zones = append(s.Zones, *z)
	}
	slices.SortFunc(s.Zones, func(a, b Zone) int { return cmp.Compare(a.Domain, b.Domain) })
	return s
}

// global is the global zone of a mesh: served here, or asked of the mesh-global DNS service.
func (b *builder) global(m *meshEntry) GlobalZone {
	name, err := ParseDomain("svc.global." + m.Domain)
	if err != nil {
		b.note(m.Link, "no global names: svc.global.%s: %v", m.Domain, err)
		return GlobalZone{}
	}
	z := GlobalZone{Name: name}
	if !m.DNS.IsValid() || m.DNS == b.local.DNSAddress(m.Services) {
		return z
	}
	z.Upstream = netip.AddrPortFrom(m.DNS, 53)
	bits := -1
	for _, link := range slices.Sorted(maps.Keys(b.links)) {
		for _, n := range b.links[link].networks {
			if n.Contains(m.DNS) && n.Bits() > bits {
				z.Link, bits = link, n.Bits()
			}
		}
	}
	local := slices.Contains(m.Addresses.Addrs(), m.DNS) || slices.ContainsFunc([]Prefixes{m.Services, b.local.ServiceCIDRs, b.local.PodCIDRs, b.local.NodeCIDRs}, func(n Prefixes) bool {
		return n.Contains(m.DNS)
	})
	if z.Link == "" && !local && b.local.Mode.CarriesTraffic() {
		b.note(m.Link, "no global names: the mesh DNS address %s (spec.dns.dnsIP) is neither in this cluster nor routed to a link; add it to spec.egress of the link that leads there", m.DNS)
	}
	return z
}

// localNetworks is what lies in the local cluster, or is reserved for meshes.
func (b *builder) localNetworks() []netip.Prefix {
	all := slices.Concat([]netip.Prefix(b.local.ServiceCIDRs), b.local.PodCIDRs, b.local.NodeCIDRs)
	for _, m := range b.meshes {
		all = slices.Concat(all, []netip.Prefix(m.Addresses.Masked()), m.Services)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all)
}

// effectiveIngress combines the rules of a link with those of its mesh: the link's own list, else
// the mesh-wide one, else the local service network; what the mesh denies stays denied; the local
// cluster address is always allowed. In the result, too, the longest prefix decides.
func effectiveIngress(l *linkEntry) []Rule {
	meshWide, base := l.mesh.ingress, l.ingress
	allows := func(r Rule) bool { return r.Allow }
	if !slices.ContainsFunc(base, allows) { // nothing, or denials to be taken from the default
		if slices.ContainsFunc(meshWide, allows) {
			base = slices.Concat(meshWide, base)
		} else {
			var services []Rule
			for _, n := range l.mesh.Services {
				services = append(services, Rule{n, true})
			}
			base = append(services, base...)
		}
	}
	prefixes := map[netip.Prefix]bool{}
	for _, r := range slices.Concat(base, meshWide) {
		allow, known := decide(base, r.Prefix)
		meshAllow, meshKnown := decide(meshWide, r.Prefix)
		prefixes[r.Prefix] = known && allow && (!meshKnown || meshAllow)
	}
	for _, local := range l.mesh.Addresses.Addrs() {
		prefixes[netip.PrefixFrom(local, local.BitLen())] = true
	}
	var result []Rule
	for p, allow := range prefixes {
		result = append(result, Rule{p, allow})
	}
	slices.SortFunc(result, func(a, b Rule) int { return a.Prefix.Compare(b.Prefix) })
	return result
}

// decide is what rules say about a network: the longest prefix that contains it counts; among
// equal ones a denial.
func decide(rules []Rule, p netip.Prefix) (allow, known bool) {
	bits := -1
	for _, r := range rules {
		if r.Prefix.Bits() > p.Bits() || !r.Prefix.Contains(p.Addr()) || r.Prefix.Bits() < bits {
			continue
		}
		if r.Prefix.Bits() == bits {
			allow = allow && r.Allow
			continue
		}
		bits, allow, known = r.Prefix.Bits(), r.Allow, true
	}
	return allow, known
}
