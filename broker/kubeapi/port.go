package kubeapi

// The port that the service of the broker leads to, and the ways there.

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Entrance is the port to listen on, and what leads to it.
type Entrance struct {
	Port      uint16           // with the protocol of the mode, as all ports here
	Addresses []netip.AddrPort // of the service, by which packets get to Port
	NodePorts []uint16         // of the service, by which they get there from each node
}

// ServicePort is the port to listen on, as a service tells it. The zero value is ready. It has one user at a time.
type ServicePort struct {
	mode mesh.Mode // of the last entrance
	last Entrance  // that the service told; zero: none yet
}

// Find returns the target port of the port of the service that is named after the mode, or of the only port with the
// protocol of the mode. While the service cannot be read, that is the last one; if there is none, it is brokerPort. The
// error says why it is one of them.
func (p *ServicePort) Find(
	ctx context.Context, reader client.Reader, service types.NamespacedName, mode mesh.Mode, brokerPort uint16,
) (Entrance, error) {
	if p.mode != mode {
		*p = ServicePort{mode: mode}
	}
	var svc corev1.Service
	err := reader.Get(ctx, service, &svc)
	switch {
	case err != nil && !apierrors.IsNotFound(err) && p.last.Port != 0:
		return p.last, fmt.Errorf("service %s: %w; listening on port %d as before", service.Name, err, p.last.Port)
	case err != nil:
		err = fmt.Errorf("service %s: %w; listening on broker-port %d", service.Name, err, brokerPort)
		return Entrance{Port: brokerPort}, err
	}
	port, problem := targetPort(&svc, mode)
	if problem != "" {
		err = fmt.Errorf("service %s%s; listening on broker-port %d", service.Name, problem, brokerPort)
		return findEntrance(&svc, mode, brokerPort), err
	}
	p.last = findEntrance(&svc, mode, port)
	return p.last, nil
}

// findEntrance returns the ways to a port, by all ports of the service that lead there. A target port with a name can
// be any: it counts as that one.
func findEntrance(svc *corev1.Service, mode mesh.Mode, port uint16) Entrance {
	e := Entrance{Port: port}
	all := append(slices.Clone(svc.Spec.ClusterIPs), svc.Spec.ExternalIPs...)
	for _, i := range svc.Status.LoadBalancer.Ingress {
		all = append(all, i.IP)
	}
	for _, p := range svc.Spec.Ports {
		target, problem := targetNumber(&p)
		if cmp.Or(p.Protocol, corev1.ProtocolTCP) != ProtocolOf(mode) || problem == "" && target != port {
			continue
		}
		for _, ip := range all {
			if a, err := netip.ParseAddr(ip); err == nil { // else None, or a load balancer with a name
				e.Addresses = append(e.Addresses, netip.AddrPortFrom(a.Unmap(), uint16(p.Port)))
			}
		}
		if p.NodePort != 0 {
			e.NodePorts = append(e.NodePorts, uint16(p.NodePort))
		}
	}
	return e
}

// ProtocolOf is the protocol that carries links of a mode.
func ProtocolOf(mode mesh.Mode) corev1.Protocol {
	if mode == mesh.WireGuard {
		return corev1.ProtocolUDP
	}
	return corev1.ProtocolTCP
}

// targetPort is the target port of a service for a mode. problem is why there is none.
func targetPort(svc *corev1.Service, mode mesh.Mode) (port uint16, problem string) {
	wanted := ProtocolOf(mode)
	var others []corev1.ServicePort // with the protocol of the mode
	for _, p := range svc.Spec.Ports {
		protocol := cmp.Or(p.Protocol, corev1.ProtocolTCP)
		switch {
		case p.Name == string(mode) && protocol != wanted:
			return 0, fmt.Sprintf(": port %s is %s, but mode %[1]s uses %[3]s", p.Name, protocol, wanted)
		case p.Name == string(mode):
			return targetNumber(&p)
		case protocol == wanted:
			others = append(others, p)
		}
	}
	if len(others) == 1 {
		return targetNumber(&others[0])
	}
	return 0, fmt.Sprintf(" has %d %s ports and none is named %s: name one so, or add it", len(others), wanted, mode)
}

// targetNumber is the target port of a port. problem is why it is none.
func targetNumber(p *corev1.ServicePort) (port uint16, problem string) {
	switch {
	case p.TargetPort.IntValue() > 0:
		return uint16(p.TargetPort.IntValue()), ""
	case p.TargetPort.StrVal != "":
		return 0, fmt.Sprintf(": target port %q of port %s is a name; use a number",
			p.TargetPort.StrVal, cmp.Or(p.Name, fmt.Sprint(p.Port)))
	}
	return uint16(p.Port), ""
}
