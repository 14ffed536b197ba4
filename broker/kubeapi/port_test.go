package kubeapi

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// serviceReader answers with a service that has a port, or with an error.
type serviceReader struct {
	client.Reader
	port int32
	err  error
}

func (r *serviceReader) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	o.(*corev1.Service).Spec.Ports = []corev1.ServicePort{{Name: "bridge", Port: r.port}}
	return r.err
}

// The ways to the port are all addresses of the service, with each of its ports that leads there, and its node ports.
func TestFindEntrance(t *testing.T) {
	named := intstr.FromString("wireguard")
	number := intstr.FromInt32(8777)
	svc := &corev1.Service{
		Spec: corev1.ServiceSpec{
			ClusterIPs: []string{"10.96.0.80", "fd01::80"}, ExternalIPs: []string{"198.51.100.7"},
			Ports: []corev1.ServicePort{
				{Name: "wireguard", Protocol: "UDP", Port: 443, TargetPort: number, NodePort: 30777},
				{Name: "former", Protocol: "UDP", Port: 8777, NodePort: 30778},
				{Name: "named", Protocol: "UDP", Port: 444, TargetPort: named},
				{Name: "dns", Protocol: "UDP", Port: 53, TargetPort: intstr.FromInt32(1053), NodePort: 30053},
				{Name: "bridge", Port: 80, TargetPort: number, NodePort: 30080},
			},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
			{IP: "203.0.113.9"}, {Hostname: "lb.example"}}}},
	}
	var want Entrance
	for _, port := range []uint16{443, 8777, 444} {
		for _, a := range []string{"10.96.0.80", "fd01::80", "198.51.100.7", "203.0.113.9"} {
			want.Addresses = append(want.Addresses, netip.AddrPortFrom(netip.MustParseAddr(a), port))
		}
	}
	want.Port, want.NodePorts = 8777, []uint16{30777, 30778}
	var p ServicePort
	reader, service := &oneService{service: svc}, types.NamespacedName{Name: "kubelink"}
	got, err := p.Find(t.Context(), reader, service, mesh.WireGuard, 1)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	svc.Spec.ClusterIPs, svc.Spec.ExternalIPs, svc.Status = []string{"None"}, nil, corev1.ServiceStatus{}
	svc.Spec.Ports = svc.Spec.Ports[4:]
	got, err = p.Find(t.Context(), reader, service, mesh.Bridge, 1)
	if want := (Entrance{Port: 8777, NodePorts: []uint16{30080}}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	svc.Spec.Ports[0].Protocol = "UDP"
	svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "dns", Protocol: "UDP", Port: 53})
	got, err = p.Find(t.Context(), reader, service, mesh.WireGuard, 8777)
	if want := (Entrance{Port: 8777, NodePorts: []uint16{30080}}); err == nil || !reflect.DeepEqual(got, want) {
		t.Errorf("with broker-port: %v, %v, want %v", got, err, want)
	}
}

// oneService answers with a service.
type oneService struct {
	client.Reader
	service *corev1.Service
}

func (s *oneService) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	*o.(*corev1.Service) = *s.service
	return nil
}

// While the service cannot be read, its last port counts; when it is gone, broker-port does.
func TestFindKeepsPort(t *testing.T) {
	fails := errors.New("no answer")
	gone := apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, "kubelink")
	var p ServicePort
	for _, c := range []struct {
		reader serviceReader
		want   uint16
		says   string
	}{
		{serviceReader{err: fails}, 80, "service kubelink: no answer; listening on broker-port 80"},
		{serviceReader{port: 8443}, 8443, ""},
		{serviceReader{err: fails}, 8443, "service kubelink: no answer; listening on port 8443 as before"},
		{serviceReader{err: gone}, 80, `service kubelink: services "kubelink" not found; listening on broker-port 80`},
	} {
		got, err := p.Find(t.Context(), &c.reader, types.NamespacedName{Namespace: "ns", Name: "kubelink"}, mesh.Bridge, 80)
		said := ""
		if err != nil {
			said = err.Error()
		}
		if got.Port != c.want || said != c.says {
			t.Errorf("port %d, %q, want %d, %q", got.Port, said, c.want, c.says)
		}
	}
	// The port of one mode is none of another mode.
	p.last.Port = 8443
	service := types.NamespacedName{Namespace: "ns", Name: "kubelink"}
	got, err := p.Find(t.Context(), &serviceReader{err: fails}, service, mesh.WireGuard, 8777)
	if got.Port != 8777 || err == nil {
		t.Errorf("port %d, %v", got.Port, err)
	}
}
