package kubeapi

import (
	"context"
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
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
		if got != c.want || said != c.says {
			t.Errorf("port %d, %q, want %d, %q", got, said, c.want, c.says)
		}
	}
	// The port of one mode is none of another mode.
	p.last = 8443
	service := types.NamespacedName{Namespace: "ns", Name: "kubelink"}
	got, err := p.Find(t.Context(), &serviceReader{err: fails}, service, mesh.WireGuard, 8777)
	if got != 8777 || err == nil {
		t.Errorf("port %d, %v", got, err)
	}
}
