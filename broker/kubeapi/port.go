package kubeapi

// The port that the service of the broker leads to.

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// ServicePort is the port to listen on, as a service tells it. The zero value is ready. It has one user at a time.
type ServicePort struct {
	last uint16 // that the service told; 0: none yet
}

// Find returns the target port of the port of the service that is named after the mode. While the service cannot be
// read, that is the last one; if there is none, it is brokerPort. The error says why it is one of them.
func (p *ServicePort) Find(
	ctx context.Context, reader client.Reader, service types.NamespacedName, brokerPort uint16,
) (uint16, error) {
	var svc corev1.Service
	err := reader.Get(ctx, service, &svc)
	switch {
	case err != nil && !apierrors.IsNotFound(err) && p.last != 0:
		return p.last, fmt.Errorf("service %s: %w; listening on port %d as before", service.Name, err, p.last)
	case err != nil:
		return brokerPort, fmt.Errorf("service %s: %w; listening on broker-port %d", service.Name, err, brokerPort)
	}
	port, problem := targetPort(&svc)
	if problem != "" {
		return brokerPort, fmt.Errorf("service %s%s; listening on broker-port %d", service.Name, problem, brokerPort)
	}
	p.last = port
	return port, nil
}

// targetPort is the target port of the port of a service that is named after the mode. problem is why there is none.
func targetPort(svc *corev1.Service) (port uint16, problem string) {
	for _, p := range svc.Spec.Ports {
		switch {
		case p.Name != string(mesh.Bridge):
		case p.Protocol != corev1.ProtocolTCP && p.Protocol != "":
			return 0, fmt.Sprintf(": port bridge is %s, but mode bridge uses TCP", p.Protocol)
		case p.TargetPort.IntValue() > 0:
			return uint16(p.TargetPort.IntValue()), ""
		case p.TargetPort.StrVal != "":
			return 0, fmt.Sprintf(": target port %q of port bridge is a name; use a number", p.TargetPort.StrVal)
		default:
			return uint16(p.Port), ""
		}
	}
	return 0, " has no port named bridge: add it"
}
