package service

// The endpoints of a service of the cluster, as its EndpointSlices say. There can be thousands, of hundreds of ports,
// so all of them are read once, and the ones of a port once for all MeshServices that lead to it.

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// endpoint is one of a service that is ready, or ends and still serves.
type endpoint struct {
	addr  netip.Addr
	slice *discovery.EndpointSlice // that has its ports
	ready bool
}

// endpointSet has the endpoints of a service.
type endpointSet struct {
	slices   []*discovery.EndpointSlice // by name
	all      []endpoint                 // by address, and by the name of their slice
	circular map[bool]int               // how many are left out, by family: true is IPv4
	byPort   map[familyPort]targets[netip.AddrPort]
}

// familyPort is a port of a service, for one family.
type familyPort struct {
	portKey
	name string
	ipv4 bool
}

// targets are the endpoints of a port, or of an address.
type targets[T comparable] struct {
	list  []T // MaxTargets at most
	total int
}

// findEndpoints returns the endpoints of a service.
func (b *builder) findEndpoints(service types.NamespacedName) *endpointSet {
	s := b.endpoints[service]
	if s == nil {
		s = newEndpointSet(b.objects.Slices[service], b.circles)
		b.endpoints[service] = s
	}
	return s
}

func newEndpointSet(list []*discovery.EndpointSlice, circles map[netip.Addr]bool) *endpointSet {
	s := &endpointSet{circular: map[bool]int{}, byPort: map[familyPort]targets[netip.AddrPort]{}}
	s.slices = slices.SortedFunc(slices.Values(list), func(a, b *discovery.EndpointSlice) int {
		return cmp.Compare(a.Name, b.Name)
	})
	for _, slice := range s.slices {
		isIPv4 := slice.AddressType == discovery.AddressTypeIPv4
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			isReady, isEnding := readiness(&e.Conditions)
			if len(e.Addresses) == 0 || !isReady && !isEnding {
				continue
			}
			a, err := parseAddress(e.Addresses[0]) // the others are the same endpoint
			if err != nil || a.Is4() != isIPv4 || circles[a] {
				s.circular[isIPv4]++
				continue
			}
			s.all = append(s.all, endpoint{a, slice, isReady})
		}
	}
	slices.SortStableFunc(s.all, func(a, b endpoint) int { return a.addr.Compare(b.addr) })
	return s
}

// readiness reads the conditions of an endpoint; the comments of their API type say what a missing one means.
func readiness(c *discovery.EndpointConditions) (ready, ending bool) {
	isTrue := func(b *bool, missing bool) bool { return b == nil && missing || b != nil && *b }
	ready = isTrue(c.Ready, true)
	return ready, isTrue(c.Serving, ready) && isTrue(c.Terminating, false)
}

// findTargets finds the endpoints of a port, of the family of the address.
func (s *endpointSet) findTargets(port servicePort, family netip.Addr) targets[netip.AddrPort] {
	key := familyPort{port.portKey, port.Name, family.Is4()}
	found, known := s.byPort[key]
	if !known {
		numbers := make(map[*discovery.EndpointSlice]uint16, len(s.slices))
		for _, slice := range s.slices {
			numbers[slice] = portIn(slice, port)
		}
		found = collect(s.all, family, func(e *endpoint) (netip.AddrPort, bool) {
			n := numbers[e.slice]
			return netip.AddrPortFrom(e.addr, n), n > 0
		}, netip.AddrPort.Compare)
		s.byPort[key] = found
	}
	return found
}

// portIn is the number that a port of the service has at the endpoints of a slice; 0: it has none.
func portIn(slice *discovery.EndpointSlice, port servicePort) uint16 {
	for _, p := range slice.Ports {
		proto, name := corev1.ProtocolTCP, ""
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if p.Name != nil {
			name = *p.Name
		}
		parsed, ok := parseProtocol(proto)
		if ok && parsed == port.protocol && name == port.Name && p.Port != nil && *p.Port > 0 && *p.Port <= 65535 {
			return uint16(*p.Port)
		}
	}
	return 0
}

// findAddresses finds the addresses of endpoints, of the family of the address.
func (s *endpointSet) findAddresses(family netip.Addr) targets[netip.Addr] {
	return collect(s.all, family, func(e *endpoint) (netip.Addr, bool) { return e.addr, true }, netip.Addr.Compare)
}

// collect makes targets of endpoints. As kube-proxy does, it takes those that are ready, and while none is, those that
// still serve while they end. They are in the order of their addresses.
func collect[T comparable](
	all []endpoint, family netip.Addr, target func(*endpoint) (T, bool), compare func(a, b T) int,
) targets[T] {
	var ready, ending targets[T]
	for i := range all {
		e := &all[i]
		if e.addr.Is4() != family.Is4() {
			continue
		}
		t, ok := target(e)
		switch {
		case !ok:
		case e.ready:
			ready.add(t)
		case ready.total == 0:
			ending.add(t)
		}
	}
	if ready.total == 0 {
		ready = ending
	}
	slices.SortFunc(ready.list, compare) // by port
	return ready
}

func (t *targets[T]) add(target T) {
	const ports = 8 // that one endpoint may have in several slices
	if slices.Contains(t.list[max(0, len(t.list)-ports):], target) {
		return // another slice has it, too
	}
	t.total++
	if len(t.list) < MaxTargets {
		t.list = append(t.list, target)
	}
}
