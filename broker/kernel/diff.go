package kernel

// What Set owns of the objects that the kernel has, and the changes that make of them the objects
// that Set wants. All of it is pure.

import (
	"maps"
	"slices"
)

// ownership is one look at the kernel, divided.
type ownership struct {
	ours       objects
	foreign    objects // addresses are left out: they are in the way of none of ours
	oldDevices []int   // that a killed broker left
}

// divideObjects divides what the kernel has: ours, and objects of other programs that are perhaps
// in the places where ours should be. Ours are, on the device and on old devices, routes with
// Protocol; on the device, full-length addresses with noprefixroute; rules with Protocol.
func divideObjects(found objects, oldDevices []int) ownership {
	o := ownership{oldDevices: oldDevices}
	o.ours.link, o.ours.forwarding, o.ours.unrouting = found.link, found.forwarding, found.unrouting
	for _, a := range found.addresses {
		if a.NoPrefixRoute && a.Prefix.IsSingleIP() {
			o.ours.addresses = append(o.ours.addresses, a)
		}
	}
	for _, r := range found.routes {
		switch {
		case isMarked(r) && (r.Index == found.link.Index || slices.Contains(oldDevices, r.Index)):
			o.ours.routes = append(o.ours.routes, r)
		case r.Protocol != RouterProtocol: // whose metric lets ours win
			o.foreign.routes = append(o.foreign.routes, r)
		}
	}
	o.divideRules(found.rules, Protocol)
	return o
}

// divideRules divides rules: ours have the protocol.
func (o *ownership) divideRules(found []rule, protocol int) {
	for _, r := range found {
		if r.Protocol == protocol {
			o.ours.rules = append(o.ours.rules, r)
		} else {
			o.foreign.rules = append(o.foreign.rules, r)
		}
	}
}

// isMarked says that a route has our Protocol and a device. One without a device is not ours, for
// we make none.
func isMarked(r route) bool { return r.Protocol == Protocol && r.Index != 0 }

// candidateDevices returns the devices, apart from ours, that have routes with Protocol, by index.
func candidateDevices(found objects) []int {
	candidates := map[int]bool{}
	for _, r := range found.routes {
		if isMarked(r) && r.Index != found.link.Index {
			candidates[r.Index] = true
		}
	}
	return slices.Sorted(maps.Keys(candidates))
}

// plan is what to tell the kernel, in this order, and what must stay as it is.
type plan struct {
	changes   []change
	conflicts []conflict
	withheld  map[int]int // number of new routes that wait for source NAT or the firewall, by family
}

// change is a command of ip(8): verb is set, add, replace or del, object a link, address, route or
// rule.
type change struct {
	verb   string
	object any
}

// conflict is a route that Set does not set, for a foreign one has its place.
type conflict struct {
	wanted, foreign route
}

// planChanges returns the changes in this order: the device is up before it can have routes; a
// route needs its source address, a rule its table; and the other way round. All that is new comes
// before anything goes. The families of noRoutes get no new routes: the connections that take one
// would stay without source NAT, or would not be filtered.
func planChanges(wanted objects, found ownership, noRoutes map[int]string) *plan {
	p := &plan{withheld: map[int]int{}}
	if wanted.link != found.ours.link {
		p.changes = append(p.changes, change{"set", wanted.link})
	}
	addChanges(p, "set", minus(wanted.unrouting, found.ours.unrouting))
	addChanges(p, "set", minus(wanted.forwarding, found.ours.forwarding))
	addChanges(p, "add", minus(wanted.addresses, found.ours.addresses))
	usedDevices := p.addRoutes(wanted.routes, found, noRoutes)
	addChanges(p, "add", missingRules(wanted.rules, found))

	addChanges(p, "del", minus(found.ours.rules, wanted.rules))
	addChanges(p, "del", unwantedRoutes(found.ours.routes, wanted.routes))
	addChanges(p, "del", minus(found.ours.addresses, wanted.addresses))
	for _, index := range found.oldDevices {
		if !usedDevices[index] {
			p.changes = append(p.changes, change{"del", link{Index: index}})
		}
	}
	return p
}

func addChanges[T any](p *plan, verb string, list []T) {
	for _, object := range list {
		p.changes = append(p.changes, change{verb, object})
	}
}

// addRoutes adds the changes that set the wanted routes, and tells which old devices must stay
// because their routes do. No packet gets through an old device, but without its route the packets
// would take the default route.
func (p *plan) addRoutes(wanted []route, found ownership, noRoutes map[int]string) (usedDevices map[int]bool) {
	ours, foreign := routesByKey(found.ours.routes), map[place]route{}
	for _, r := range found.foreign.routes {
		foreign[r.place()] = r
	}
	usedDevices = map[int]bool{}
	for _, r := range wanted {
		other, taken := foreign[r.place()]
		old, exists := ours[r.key()]
		family := FamilyOf(r.Source)
		switch {
		case taken:
			p.conflicts = append(p.conflicts, conflict{r, other})
		case noRoutes[family] != "" && old.Index != r.Index:
			p.withheld[family]++
			usedDevices[old.Index] = true
		case !exists:
			p.changes = append(p.changes, change{"add", r})
		case old != r:
			p.changes = append(p.changes, change{"replace", r})
		}
	}
	return usedDevices
}

// missingRules returns the wanted rules that the kernel does not have. A foreign rule to the same
// table will do, the kernel refuses a second one.
func missingRules(wanted []rule, found ownership) []rule {
	existing := slices.Clone(found.ours.rules)
	for _, r := range found.foreign.rules {
		if len(wanted) > 0 {
			r.Protocol = wanted[0].Protocol
		}
		existing = append(existing, r)
	}
	return minus(wanted, existing)
}

// unwantedRoutes returns our routes with a key that no wanted route has: one with the same key was
// replaced.
func unwantedRoutes(ours, wanted []route) (unwanted []route) {
	keys := routesByKey(wanted)
	for _, r := range ours {
		if _, ok := keys[r.key()]; !ok {
			unwanted = append(unwanted, r)
		}
	}
	return unwanted
}

func routesByKey(routes []route) map[routeKey]route {
	byKey := make(map[routeKey]route, len(routes))
	for _, r := range routes {
		byKey[r.key()] = r
	}
	return byKey
}

// minus returns the members of a that are not in b, each once.
func minus[T comparable](a, b []T) []T {
	in := make(map[T]bool, len(b))
	for _, x := range b {
		in[x] = true
	}
	var result []T
	for _, x := range a {
		if !in[x] {
			in[x] = true
			result = append(result, x)
		}
	}
	return result
}
