package service

// From MeshServices to services. Older objects win over younger ones, and the networks of links, the cluster and its
// gateway node over all of them: package mesh has refused the links that older MeshServices keep from an address.

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Limits that are no limits of the API server.
const (
	// MaxTargets is how many endpoints a port, or the rest of an address, has at most.
	MaxTargets = 256
	// maxPorts is how many ports a MeshService has at most.
	maxPorts = 256
	// maxEndpoints is how many entries spec.endpoints has at most.
	maxEndpoints = 64
	// maxTotal is how many endpoints all MeshServices have in sum, those of each port counted.
	maxTotal = 100_000
)

// Objects are what services are made of.
type Objects struct {
	MeshServices []v1alpha1.MeshService
	// What MeshServices name, by namespace and name. Others may be left out.
	Services map[types.NamespacedName]*corev1.Service
	Slices   map[types.NamespacedName][]*discovery.EndpointSlice // by the service
}

// Surroundings are what services must fit into.
type Surroundings struct {
	Mode    mesh.Mode
	State   *mesh.State
	Host    *mesh.Host
	Partial bool // other brokers may serve other meshes of the cluster
}

// Result is what MeshServices mean.
type Result struct {
	Services []Service // by address, then by namespace and name
	Reports  map[types.NamespacedName]Report
	// LinkNotes tell of KubeLinks, by name, that their lists keep packets from services.
	LinkNotes map[string]string
}

// Build computes the services. It does not change its arguments.
func Build(o *Objects, around *Surroundings) Result {
	b := newBuilder(o, around)
	r := Result{Reports: make(map[types.NamespacedName]Report, len(o.MeshServices))}
	for _, m := range b.byAge {
		services, report := b.buildOne(m)
		r.Services = append(r.Services, services...)
		report.Message = shorten(report.Message)
		r.Reports[keyOf(m)] = report
	}
	r.LinkNotes = b.linkNotes()
	slices.SortFunc(r.Services, func(a, b Service) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return r
}

// Reserve lists the addresses that MeshServices have for themselves, usable or not: a service that is made anew finds
// its address free.
func Reserve(list []v1alpha1.MeshService) (reserved []mesh.Reserved) {
	for i := range list {
		m := &list[i]
		if a, err := parseAddress(m.Spec.MeshAddress); err == nil && m.DeletionTimestamp == nil {
			reserved = append(reserved, mesh.Reserved{Addr: a, Owner: title(m), Created: m.CreationTimestamp})
		}
	}
	return reserved
}

func keyOf(m *v1alpha1.MeshService) types.NamespacedName {
	return types.NamespacedName{Namespace: m.Namespace, Name: m.Name}
}

// title is how messages call a MeshService.
func title(m *v1alpha1.MeshService) string { return "MeshService " + m.Namespace + "/" + m.Name }

// builder has what MeshServices are compared with.
type builder struct {
	objects *Objects
	around  *Surroundings
	byAge   []*v1alpha1.MeshService // without those that go
	links   bart.Table[string]      // names of links by their networks
	outside map[netip.Addr]string   // what the gateway node reaches outside of the meshes
	peers   map[netip.Addr]string   // where peers are: it is up to them
	circles map[netip.Addr]bool     // that no endpoint may have: packets would come back
	uses    map[netip.Addr]*addressUse
	total   int // endpoints so far

	excluded map[string][]string // mesh services that lists exclude, by the KubeLink

	endpoints map[types.NamespacedName]*endpointSet // by service
}

func newBuilder(o *Objects, around *Surroundings) *builder {
	b := &builder{
		objects: o, around: around, byAge: sortByAge(o.MeshServices), outside: map[netip.Addr]string{},
		peers:   map[netip.Addr]string{},
		circles: map[netip.Addr]bool{}, uses: map[netip.Addr]*addressUse{},
		endpoints: map[types.NamespacedName]*endpointSet{}, excluded: map[string][]string{},
	}
	for _, n := range around.State.Networks {
		b.links.Insert(n.Prefix.Masked(), n.Link)
	}
	for _, host := range slices.Sorted(maps.Keys(around.Host.Endpoints)) {
		for _, a := range around.Host.Endpoints[host] {
			b.peers[a] = "the endpoint " + host + " of a link"
		}
	}
	for _, link := range slices.Sorted(maps.Keys(around.Host.Remotes)) {
		b.peers[around.Host.Remotes[link]] = "the peer of link " + link
	}
	for _, need := range around.Host.Needs {
		b.outside[need.Addr] = need.Title
	}
	for _, own := range around.Host.Addresses {
		b.outside[own.Addr] = "the address of " + own.Device
	}
	for _, m := range b.meshes() {
		for _, a := range m.Addresses.Addrs() {
			b.circles[a] = true
		}
	}
	for _, m := range b.byAge {
		if a, err := parseAddress(m.Spec.MeshAddress); err == nil {
			b.circles[a] = true
		}
	}
	return b
}

// sortByAge sorts by age, and by namespace and name what was created in the same second.
func sortByAge(list []v1alpha1.MeshService) []*v1alpha1.MeshService {
	byAge := make([]*v1alpha1.MeshService, 0, len(list))
	for i := range list {
		if list[i].DeletionTimestamp == nil {
			byAge = append(byAge, &list[i])
		}
	}
	slices.SortFunc(byAge, func(a, b *v1alpha1.MeshService) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return byAge
}

// entry is a MeshService that is being read.
type entry struct {
	object    *v1alpha1.MeshService
	mesh      *mesh.Mesh // that it belongs to
	served    bool       // by this broker
	foreign   bool       // there is no mesh, and another broker says so, or knows one
	addresses []netip.Addr
	own       bool // these are no addresses of the cluster
	whole     bool
	ports     []portEntry // spec.ports
	notes     []string
	doubtful  bool // one of the notes tells of a mistake, perhaps
}

// portEntry is an entry of spec.ports.
type portEntry struct {
	portKey
	name string
}

func (e *entry) addNote(text string) {
	if len(e.notes) < maxListed {
		e.notes = append(e.notes, text)
	}
}

// hasPort tells whether spec.ports has the port.
func (e *entry) hasPort(k portKey) bool {
	return slices.ContainsFunc(e.ports, func(p portEntry) bool { return p.portKey == k })
}

// buildOne makes the services of one MeshService: one for each address.
func (b *builder) buildOne(m *v1alpha1.MeshService) ([]Service, Report) {
	if !b.around.Mode.CarriesTraffic() {
		return nil, Report{State: v1alpha1.StateUnsupported, Weak: true, Message: "mode none carries no traffic: " +
			"MeshServices need a broker with mode bridge or wireguard in its Corefile"}
	}
	e := &entry{object: m}
	for _, read := range []func(*entry) *mesh.Problem{b.readAddress, b.readPorts, b.claim} {
		if p := read(e); p != nil {
			return nil, Report{State: p.State, Message: p.Message, Weak: b.isForeign(e)}
		}
	}
	if !e.served {
		return nil, Report{State: v1alpha1.StateStale, Weak: true, Message: "no broker serves " +
			mesh.MeshTitle(e.mesh.Name) + ": name it in served-links of a broker"}
	}
	services, ready, p := b.readTargets(e)
	if p != nil {
		return nil, Report{State: p.State, Message: p.Message, Weak: b.isForeign(e)}
	}
	b.noteExcluded(e)
	return services, Report{
		State: v1alpha1.StateOk, Ready: ready, Message: strings.Join(e.notes, "; "), Weak: b.isForeign(e),
		Doubtful: e.doubtful,
	}
}

// isForeign tells whether another broker writes the status, as it does of the LocalLink.
func (b *builder) isForeign(e *entry) bool {
	return e.foreign || e.mesh != nil && (!e.served || b.around.State.Foreign[e.mesh.Link])
}

// addressUse is what older MeshServices have of an address.
type addressUse struct {
	whole *v1alpha1.MeshService // nil: ports only
	first *v1alpha1.MeshService
	ports map[portKey]*v1alpha1.MeshService
}

// claim takes address or ports, unless an older MeshService has them. It keeps them, even if it cannot be used: a
// service that is made anew finds them as they were.
func (b *builder) claim(e *entry) *mesh.Problem {
	for _, a := range e.addresses {
		u := b.uses[a]
		switch {
		case u == nil:
			continue
		case u.whole != nil:
			return invalid("spec.meshAddress %s belongs to the older %s: choose another address", a, title(u.whole))
		case e.whole:
			return invalid("spec.meshAddress %s has ports of the older %s: choose another address, or name spec.ports",
				a, title(u.first))
		}
		for i, p := range e.ports {
			if old := u.ports[p.portKey]; old != nil {
				return invalid("spec.ports[%d]: %s port %d of %s belongs to the older %s: choose another port",
					i, p.protocol, p.number, a, title(old))
			}
		}
	}
	for _, a := range e.addresses {
		u := b.uses[a]
		if u == nil {
			u = &addressUse{first: e.object}
			b.uses[a] = u
		}
		if e.whole {
			u.whole = e.object
		}
		if u.ports == nil && len(e.ports) > 0 {
			u.ports = make(map[portKey]*v1alpha1.MeshService, len(e.ports))
		}
		for _, p := range e.ports {
			u.ports[p.portKey] = e.object
		}
	}
	return nil
}
