package service

// Ports of a MeshService, and the ports of endpoints that they are mapped to.

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// protocol is a number of IANA.
type protocol uint8

const (
	tcp protocol = 6
	udp protocol = 17
)

func (p protocol) String() string {
	if p == udp {
		return "UDP"
	}
	return "TCP"
}

// parseProtocol parses a protocol in any case; the default is TCP.
func parseProtocol[T ~string](s T) (protocol, bool) {
	switch strings.ToUpper(string(s)) {
	case "", "TCP":
		return tcp, true
	case "UDP":
		return udp, true
	}
	return 0, false
}

// portKey is a port of an address.
type portKey struct {
	protocol protocol
	number   uint16
}

func (k portKey) String() string { return fmt.Sprintf("%d/%s", k.number, k.protocol) }

func comparePorts(a, b portKey) int {
	return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.number, b.number))
}

// readPorts reads spec.ports.
func (b *builder) readPorts(e *entry) *mesh.Problem {
	spec := &e.object.Spec
	if len(spec.Ports) > maxPorts {
		return invalid("spec.ports has %d entries: there may be %d", len(spec.Ports), maxPorts)
	}
	for i, p := range spec.Ports {
		proto, ok := parseProtocol(p.Protocol)
		switch {
		case !ok:
			return invalid("spec.ports[%d].protocol %s: expected TCP or UDP", i, quote(string(p.Protocol)))
		case p.Port < 1 || p.Port > 65535:
			return invalid("spec.ports[%d].port %d: expected a number from 1 to 65535", i, p.Port)
		}
		k := portKey{proto, uint16(p.Port)}
		if e.hasPort(k) {
			return invalid("spec.ports[%d]: %s port %d is there twice: remove one", i, proto, p.Port)
		}
		if text := b.describeOpen(k); text != "" && !e.own {
			return invalid("spec.ports[%d]: %s port %d of the address of this cluster %s: choose another port",
				i, proto, p.Port, text)
		}
		e.ports = append(e.ports, portEntry{k, p.Name})
	}
	e.whole = e.own && len(e.ports) == 0
	if len(e.ports) == 0 && !e.own {
		return invalid("spec.ports is missing: without spec.meshAddress, name ports of %s, the address of this cluster in %s",
			list(e.addresses, netipString), mesh.MeshTitle(e.mesh.Name))
	}
	return nil
}

// describeOpen says what else has a port of the cluster addresses; empty: nothing has.
func (b *builder) describeOpen(k portKey) string {
	for _, open := range b.around.State.LocalPorts {
		if strings.EqualFold(open.Protocol, k.protocol.String()) && open.Port == k.number {
			return "is open by local-ports of the Corefile"
		}
	}
	if b.around.Mode == mesh.WireGuard && k == (portKey{tcp, mesh.ControlPort}) {
		return "is where brokers talk to each other"
	}
	return ""
}

// mapping is an entry of portMappings, with the field for messages.
type mapping struct {
	field string
	from  portKey
	to    intstr.IntOrString
}

// readMappings reads portMappings of an endpoint. service may be nil.
func (e *entry) readMappings(endpoint int, service *corev1.Service) ([]mapping, *mesh.Problem) {
	entries := e.object.Spec.Endpoints[endpoint].PortMappings
	if len(entries) > maxPorts {
		return nil, invalid("spec.endpoints[%d].portMappings has %d entries: there may be %d",
			endpoint, len(entries), maxPorts)
	}
	mappings := make([]mapping, 0, len(entries))
	for i := range entries {
		field := fmt.Sprintf("spec.endpoints[%d].portMappings[%d]", endpoint, i)
		m, p := e.readMapping(field, &entries[i], service)
		if p != nil {
			return nil, p
		}
		if slices.ContainsFunc(mappings, func(old mapping) bool { return old.from == m.from }) {
			return nil, invalid("%s: %s port %d is mapped twice: remove one mapping", field, m.from.protocol, m.from.number)
		}
		mappings = append(mappings, m)
	}
	return mappings, nil
}

func (e *entry) readMapping(
	field string, entry *v1alpha1.MeshServicePortMapping, service *corev1.Service,
) (m mapping, p *mesh.Problem) {
	proto, ok := parseProtocol(entry.Protocol)
	if !ok {
		return m, invalid("%s.protocol %s: expected TCP or UDP", field, quote(string(entry.Protocol)))
	}
	number, name, ok := parsePort(entry.Port)
	if !ok {
		return m, invalid("%s.port %d: expected a number from 1 to 65535, or the name of a port", field, entry.Port.IntVal)
	}
	k := portKey{proto, number}
	if name != "" {
		if k, p = e.findPort(field, name, proto, service); p != nil {
			return m, p
		}
	}
	if !e.whole && !e.hasPort(k) {
		return m, invalid("%s.port %s: spec.ports has no %s port %d: add it there, or map one that is there: %s",
			field, quote(entry.Port.String()), proto, k.number, list(e.ports, portEntry.String))
	}
	return mapping{field, k, entry.TargetPort}, nil
}

// parsePort returns the number of a port, or else its name. A number may be written as a text.
func parsePort(v intstr.IntOrString) (number uint16, name string, ok bool) {
	n := int64(v.IntVal)
	if v.Type == intstr.String {
		var err error
		if n, err = strconv.ParseInt(v.StrVal, 10, 32); err != nil {
			return 0, v.StrVal, v.StrVal != ""
		}
	}
	return uint16(n), "", n >= 1 && n <= 65535
}

// findPort finds the port of the MeshService that a name means. Users of the former system wrote the names of the
// service's ports.
func (e *entry) findPort(
	field, name string, proto protocol, service *corev1.Service,
) (k portKey, p *mesh.Problem) {
	found := servicePorts(service, name)
	i := slices.IndexFunc(found, func(s servicePort) bool { return s.protocol == proto })
	for _, own := range e.ports {
		if own.name != name || own.protocol != proto {
			continue
		}
		text := fmt.Sprintf("%s.port %s is %s of spec.ports", field, quote(name), own.portKey)
		if i >= 0 && found[i].portKey != own.portKey {
			text += fmt.Sprintf(", not %s of service %s", found[i].portKey, service.Name)
		}
		e.addNote(text)
		return own.portKey, nil
	}
	if i >= 0 {
		e.addNote(fmt.Sprintf("%s.port %s is %s of service %s", field, quote(name), found[i].portKey, service.Name))
		return found[i].portKey, nil
	}
	for _, own := range e.ports {
		if own.name == name {
			found = append(found, servicePort{portKey: own.portKey})
		}
	}
	if len(found) > 0 {
		return k, invalid("%s.port %s is %s: set protocol to %s in the mapping",
			field, quote(name), found[0].portKey, found[0].protocol)
	}
	of := "spec.ports has no " + proto.String() + " port of this name"
	if service != nil {
		of = "neither spec.ports nor service " + service.Name + " has a " + proto.String() + " port of this name"
	}
	return k, invalid("%s.port %s: %s: write a number, or a name of one of %s", field, quote(name), of,
		list(append(e.ports, portsOf(service)...), portEntry.String))
}

func (p portEntry) String() string {
	if p.name == "" {
		return p.portKey.String()
	}
	return p.portKey.String() + " (" + quote(p.name) + ")"
}
