package service

// The endpoints behind a MeshService: those of a service of the cluster, or addresses.

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

func netipString(a netip.Addr) string { return a.String() }

// readTargets makes the services of an entry. ready: there is an endpoint.
func (b *builder) readTargets(e *entry) (services []Service, ready bool, p *mesh.Problem) {
	if e.object.Spec.Service != "" {
		services, p = b.readService(e)
	} else {
		services, p = b.readEndpoints(e)
	}
	if p != nil {
		return nil, false, p
	}
	count := 0
	for i := range services {
		s := &services[i]
		slices.SortFunc(s.Ports, func(a, b Port) int {
			return comparePorts(portKey{protocol(a.Protocol), a.Port}, portKey{protocol(b.Protocol), b.Port})
		})
		for _, port := range s.Ports {
			count += len(port.Targets)
		}
		count += len(s.Targets)
	}
	if b.total+count > maxTotal {
		return nil, false, invalid("spec: the MeshServices of this cluster have more than %d endpoints in sum: "+
			"name fewer ports in spec.ports, or delete other MeshServices", maxTotal)
	}
	b.total += count
	return services, count > 0, nil
}

// newService makes the service of an address.
func (e *entry) newService(a netip.Addr) Service {
	return Service{
		Namespace: e.object.Namespace, Name: e.object.Name, StandsFor: e.object.Spec.Service, Address: a, Whole: e.whole,
	}
}

// servicePort is a port of a service of the cluster.
type servicePort struct {
	portKey
	*corev1.ServicePort
}

// servicePorts are the ports of a service, or those of a name. A service that is nil has none.
func servicePorts(service *corev1.Service, name string) (ports []servicePort) {
	if service == nil {
		return nil
	}
	for i := range service.Spec.Ports {
		p := &service.Spec.Ports[i]
		if proto, ok := parseProtocol(p.Protocol); ok && (name == "" || p.Name == name) {
			ports = append(ports, servicePort{portKey{proto, uint16(p.Port)}, p})
		}
	}
	return ports
}

// portsOf are the ports of a service, for messages.
func portsOf(service *corev1.Service) (ports []portEntry) {
	for _, p := range servicePorts(service, "") {
		ports = append(ports, portEntry{p.portKey, p.Name})
	}
	return ports
}

// readService makes the services for a service of the cluster.
func (b *builder) readService(e *entry) ([]Service, *mesh.Problem) {
	spec := &e.object.Spec
	key := types.NamespacedName{Namespace: e.object.Namespace, Name: spec.Service}
	service := b.objects.Services[key]
	switch {
	case len(spec.Endpoints) > 1:
		return nil, invalid("spec.endpoints has %d entries: with spec.service there may be one, with portMappings only",
			len(spec.Endpoints))
	case len(spec.Endpoints) == 1 && spec.Endpoints[0].Address != "":
		return nil, invalid("spec.endpoints[0].address %s: with spec.service there may be none: remove one of the two",
			quote(spec.Endpoints[0].Address))
	case service == nil:
		return nil, invalid("spec.service %s: namespace %s has no such service: create it, or name another one",
			quote(spec.Service), e.object.Namespace)
	case service.Spec.Type == corev1.ServiceTypeExternalName:
		return nil, invalid("spec.service %s is of type ExternalName, which has no endpoints: "+
			"give spec.endpoints with addresses instead", quote(spec.Service))
	}
	ports, p := e.mapToService(service)
	if p != nil {
		return nil, p
	}
	found, cut := b.findEndpoints(key), 0
	var services []Service
	for _, a := range e.addresses {
		s := e.newService(a)
		s.Affinity = affinityOf(service)
		for _, port := range ports {
			t := found.findTargets(port.target, a)
			s.Ports = append(s.Ports, Port{
				Name: port.name, Protocol: uint8(port.protocol), Port: port.number, Targets: t.list,
			})
			cut = max(cut, t.total-MaxTargets)
		}
		if e.whole {
			t := found.findAddresses(a)
			s.Targets = t.list
			cut = max(cut, t.total-MaxTargets)
		}
		services = append(services, s)
	}
	e.noteMissing(services)
	e.noteLeftOut(found, cut)
	return services, nil
}

// mappedPort is a port of the MeshService with the port of the service behind it.
type mappedPort struct {
	portEntry
	target servicePort
}

// mapToService finds the port of the service for each port of the MeshService.
func (e *entry) mapToService(service *corev1.Service) ([]mappedPort, *mesh.Problem) {
	targets := map[portKey]servicePort{}
	if len(e.object.Spec.Endpoints) > 0 {
		mappings, p := e.readMappings(0, service)
		if p != nil {
			return nil, p
		}
		for _, m := range mappings {
			if targets[m.from], p = findTarget(m, service); p != nil {
				return nil, p
			}
		}
	}
	ports, direct := slices.Clone(e.ports), servicePorts(service, "")
	if e.whole { // all ports of the service, and those that are mapped
		for k := range targets {
			ports = append(ports, portEntry{portKey: k})
		}
		for _, p := range direct {
			if _, mapped := targets[p.portKey]; !mapped {
				ports = append(ports, portEntry{p.portKey, p.Name})
			}
		}
		if len(ports) > maxPorts {
			return nil, invalid("spec.ports is missing, and service %s has %d ports: name those that count, %d at most",
				service.Name, len(ports), maxPorts)
		}
	}
	mapped := make([]mappedPort, 0, len(ports))
	for i, port := range ports {
		target, ok := targets[port.portKey]
		if !ok {
			j := slices.IndexFunc(direct, func(p servicePort) bool { return p.portKey == port.portKey })
			if j < 0 {
				return nil, invalid("spec.ports[%d]: service %s has no %s port %d, and no entry of "+
					"spec.endpoints[0].portMappings maps it to one of its ports: %s",
					i, service.Name, port.protocol, port.number, list(portsOf(service), portEntry.String))
			}
			target = direct[j]
		}
		if port.name == "" {
			port.name = target.Name
		}
		mapped = append(mapped, mappedPort{port, target})
	}
	return mapped, nil
}

// findTarget finds the port of the service that a mapping leads to. As in the former system, a number is that of the
// service's port, not of the port of its pods.
func findTarget(m mapping, service *corev1.Service) (servicePort, *mesh.Problem) {
	number, name, ok := parsePort(m.to)
	if !ok {
		return servicePort{}, invalid("%s.targetPort %s: expected a number from 1 to 65535, or the name of a port",
			m.field, quote(m.to.String()))
	}
	all := servicePorts(service, "")
	for _, p := range all {
		if p.protocol == m.from.protocol && (name != "" && p.Name == name || name == "" && p.number == number) {
			return p, nil
		}
	}
	for _, p := range all {
		switch {
		case name != "" && p.Name == name:
			return p, invalid("%s.targetPort %s is %s of service %s: set protocol to %s in the mapping and in spec.ports",
				m.field, quote(name), p.portKey, service.Name, p.protocol)
		case name == "" && p.protocol == m.from.protocol && p.TargetPort.IntVal == int32(number):
			return p, invalid("%s.targetPort %d is a port of the pods of service %s, not of the service: write %d",
				m.field, number, service.Name, p.number)
		}
	}
	return servicePort{}, invalid("%s.targetPort %s: service %s has no such %s port: write one of %s",
		m.field, quote(m.to.String()), service.Name, m.from.protocol, list(portsOf(service), portEntry.String))
}

// affinityOf is for how many seconds the service keeps the endpoint of a client.
func affinityOf(service *corev1.Service) int {
	if service.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := service.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return int(seconds)
}

// noteMissing notes the ports without endpoint.
func (e *entry) noteMissing(services []Service) {
	name := e.object.Spec.Service
	var missing []portKey
	any := false
	for i := range services {
		any = any || len(services[i].Targets) > 0
		for j, p := range services[i].Ports {
			has := slices.ContainsFunc(services, func(s Service) bool { return len(s.Ports[j].Targets) > 0 })
			any = any || has
			if !has && i == 0 {
				missing = append(missing, portKey{protocol(p.Protocol), p.Port})
			}
		}
	}
	switch {
	case !any:
		families := list(e.addresses, familyOf)
		e.addNote(fmt.Sprintf("service %s has no ready endpoint (%s): connections are refused", name, families))
	case len(missing) > 0:
		e.addNote(fmt.Sprintf("service %s has no ready endpoint for %s: connections to it are refused", name,
			list(missing, portKey.String)))
	}
}

// noteLeftOut notes endpoints that are not used; cut are those of a port that has too many.
func (e *entry) noteLeftOut(found *endpointSet, cut int) {
	name := e.object.Spec.Service
	if cut > 0 {
		e.addNote(fmt.Sprintf("service %s has %d ready endpoints: %d of them are used", name, cut+MaxTargets, MaxTargets))
	}
	circular := 0
	for _, ipv4 := range []bool{true, false} {
		if slices.ContainsFunc(e.addresses, func(a netip.Addr) bool { return a.Is4() == ipv4 }) {
			circular += found.circular[ipv4]
		}
	}
	if circular > 0 {
		e.addNote(fmt.Sprintf("%d endpoints of service %s are not used: addresses of a mesh would lead in circles, "+
			"and loopback or link-local addresses nowhere", circular, name))
	}
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// readEndpoints makes the services for addresses.
func (b *builder) readEndpoints(e *entry) ([]Service, *mesh.Problem) {
	endpoints := e.object.Spec.Endpoints
	switch {
	case len(endpoints) == 0:
		return nil, invalid("spec.service and spec.endpoints are missing: name a service of namespace %s, "+
			"or give endpoints with addresses", e.object.Namespace)
	case len(endpoints) > maxEndpoints:
		return nil, invalid("spec.endpoints has %d entries: there may be %d", len(endpoints), maxEndpoints)
	}
	targets := make([]addressTarget, 0, len(endpoints))
	ports := slices.Clone(e.ports)
	for i := range endpoints {
		t, p := b.readEndpoint(e, i, &endpoints[i])
		if p != nil {
			return nil, p
		}
		targets = append(targets, t)
		for k := range t.ports {
			if !slices.ContainsFunc(ports, func(p portEntry) bool { return p.portKey == k }) { // of a whole address
				ports = append(ports, portEntry{portKey: k})
			}
		}
	}
	if len(ports) > maxPorts {
		return nil, invalid("spec.endpoints maps %d ports: there may be %d", len(ports), maxPorts)
	}
	var services []Service
	for _, a := range e.addresses {
		s := e.newService(a)
		for _, port := range ports {
			s.Ports = append(s.Ports, Port{
				Name: port.name, Protocol: uint8(port.protocol), Port: port.number, Targets: targetsOf(targets, port.portKey, a),
			})
		}
		for _, t := range targets {
			if e.whole {
				s.Targets = append(s.Targets, t.address)
			}
		}
		slices.SortFunc(s.Targets, netip.Addr.Compare)
		s.Targets = slices.Compact(s.Targets)
		services = append(services, s)
	}
	return services, nil
}

// addressTarget is an entry of spec.endpoints with an address.
type addressTarget struct {
	address netip.Addr
	ports   map[portKey]uint16 // others keep their number
}

// targetsOf are the endpoints of a port, of the family of the address.
func targetsOf(targets []addressTarget, k portKey, family netip.Addr) (list []netip.AddrPort) {
	for _, t := range targets {
		if t.address.Is4() != family.Is4() {
			continue
		}
		port, mapped := t.ports[k]
		if !mapped {
			port = k.number
		}
		list = append(list, netip.AddrPortFrom(t.address, port))
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return slices.Compact(list)
}

func (b *builder) readEndpoint(
	e *entry, i int, endpoint *v1alpha1.MeshServiceEndpoint,
) (t addressTarget, p *mesh.Problem) {
	field := fmt.Sprintf("spec.endpoints[%d].address", i)
	if endpoint.Address == "" {
		return t, invalid("%s is missing: without spec.service each endpoint needs one", field)
	}
	a, err := parseAddress(endpoint.Address)
	isSame := func(own netip.Addr) bool { return own.Is4() == a.Is4() }
	switch {
	case err != nil:
		return t, invalid("%s %s: %v", field, quote(endpoint.Address), err)
	case b.circles[a]:
		return t, invalid("%s %s is an address of this cluster in a mesh, or of a MeshService: packets would go in circles; "+
			"name what is behind it", field, a)
	case !slices.ContainsFunc(e.addresses, isSame):
		return t, invalid("%s %s and the address %s of the MeshService are of different IP families: give an endpoint of %s",
			field, a, list(e.addresses, netipString), list(e.addresses, familyOf))
	}
	mappings, p := e.readMappings(i, nil)
	if p != nil {
		return t, p
	}
	t = addressTarget{a, map[portKey]uint16{}}
	for _, m := range mappings {
		number, name, ok := parsePort(m.to)
		if !ok || name != "" {
			text := "expected a number from 1 to 65535"
			if name != "" {
				text = "a name needs spec.service: write the number"
			}
			return t, invalid("%s.targetPort %s: %s", m.field, quote(m.to.String()), text)
		}
		t.ports[m.from] = number
	}
	return t, nil
}
