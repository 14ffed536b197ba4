package e2e

// MeshServices: users see each state, and what is in the way.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// applyMeshServices applies MeshServices, by name and spec, for the time of a test.
func applyMeshServices(t *testing.T, ctx context.Context, b *fleet.Broker, specs ...[2]string) {
	t.Helper()
	for _, s := range specs { // of two of one second, the name decides
		_, err := b.KubectlInput(ctx, fmt.Sprintf(
			`{"apiVersion":"kubelink.mandelsoft.org/v1alpha1","kind":"MeshService","metadata":{"name":%q},"spec":{%s}}`,
			s[0], s[1]), "apply", "-f", "-")
		must(t, err)
		t.Cleanup(func() { b.Kubectl(context.Background(), "delete", "meshservice", s[0], "--ignore-not-found") })
	}
}

// waitMeshService waits until kubectl shows a MeshService with all of these words.
func waitMeshService(t *testing.T, limit time.Duration, b *fleet.Broker, name string, words ...string) {
	t.Helper()
	within(t, limit, fmt.Sprintf("%s to be %q", name, words), func(ctx context.Context) error {
		out, err := b.Kubectl(ctx, "get", "msvc", name, "-o", "wide", "--no-headers")
		if err != nil {
			return err
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				return errors.New(out)
			}
		}
		return nil
	})
}

// Users see each state with kubectl, with the reason, and it follows what they do about it.
func TestMeshServiceStates(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	b := brokers[1]
	must(t, b.Apply(ctx, newKubeLink("m5--kubelink2", "192.168.0.99/24", v1alpha1.EndpointLocal, nil)))
	t.Cleanup(func() { must(t, b.Remove(context.Background(), "m5--kubelink2")) })
	applyMeshServices(t, ctx, b,
		[2]string{"first", `"service":"server","meshAddress":"192.168.0.100"`},
		[2]string{"ports", `"service":"server","ports":[{"port":8800,"protocol":"tcp"}],
			"endpoints":[{"portMappings":[{"port":8800,"targetPort":"http"}]}]`},
		[2]string{"far", `"meshAddress":"198.18.0.1","endpoints":[{"address":"10.250.0.77"}]`},
		[2]string{"missing", `"service":"nope","meshAddress":"192.168.0.101"`},
		[2]string{"taken", `"service":"server","meshAddress":"192.168.0.13"`},
		[2]string{"second", `"service":"server","meshAddress":"192.168.0.100"`},
		[2]string{"stale", `"service":"server","mesh":"m5","ports":[{"port":80}]`},
	)
	const limit = 5 * time.Second
	for name, words := range map[string][]string{
		"first":   {"server", "192.168.0.100", " Ok ", " True "},
		"ports":   {"server", " Ok ", " True "},
		"far":     {"198.18.0.1", " Ok ", "lies in no mesh: it is served, but not announced"},
		"missing": {" Invalid ", " False ", `spec.service "nope": namespace default has no such service: create it`},
		"taken":   {" Invalid ", "spec.meshAddress 192.168.0.13 belongs to the link kubelink3"},
		"second":  {" Invalid ", "spec.meshAddress 192.168.0.100 belongs to the older MeshService default/first"},
		"stale":   {" Stale ", "LocalLink m5--kubelink2 of mesh m5 cannot be used (Invalid): repair it first"},
	} {
		waitMeshService(t, limit, b, name, words...)
	}
	out, err := b.Kubectl(ctx, "get", "msvc", "-o", "wide")
	must(t, err)
	t.Log("\n" + out)

	// A service that comes, without endpoints; and what is free again.
	_, err = b.Kubectl(ctx, "create", "service", "clusterip", "nope", "--tcp=80")
	must(t, err)
	t.Cleanup(func() { b.Kubectl(context.Background(), "delete", "service", "nope", "--ignore-not-found") })
	waitMeshService(t, limit, b, "missing", " Ok ", " False ",
		"service nope has no ready endpoint (IPv4): connections are")
	_, err = b.Kubectl(ctx, "delete", "meshservice", "first")
	must(t, err)
	waitMeshService(t, limit, b, "second", " Ok ", " True ")
	_, err = b.Kubectl(ctx, "delete", "service", "nope")
	must(t, err)
	waitMeshService(t, limit, b, "missing", " Invalid ", "no such service")

	// A younger link does not get the address.
	must(t, b.Apply(ctx, newKubeLink("late", "192.168.0.100/24", "late.example", nil)))
	t.Cleanup(func() { must(t, b.Remove(context.Background(), "late")) })
	must(t, b.WaitState(ctx, "late", v1alpha1.StateInvalid, "belongs to the older MeshService default/second"))
	within(t, limit, "events", func(ctx context.Context) error {
		out, err := b.Kubectl(ctx, "get", "events", "--field-selector", "involvedObject.kind=MeshService")
		for _, w := range []string{"MeshServiceInvalid", "MeshServiceOk", "no such service", "meshservice/second"} {
			if err == nil && !strings.Contains(out, w) {
				err = fmt.Errorf("no %q in\n%s", w, out)
			}
		}
		return err
	})
	testServedElsewhere(t, ctx, b)
}

// testServedElsewhere: with another list the broker leaves MeshServices to others, and says so; in mode none it serves
// none.
func testServedElsewhere(t *testing.T, ctx context.Context, b *fleet.Broker) {
	t.Run("served elsewhere", func(t *testing.T) {
		editCorefile(t, ctx, b, "service kubelink\n", "service kubelink\n        served-links m5\n")
		waitMeshService(t, 10*time.Second, b, "second", " Stale ",
			"no broker serves the default mesh: name it in served-links")
	})
	waitMeshService(t, 15*time.Second, b, "second", " Ok ", " True ")
	t.Run("mode none", func(t *testing.T) {
		edits := []string{"secret kubelink-tls", "mode none", "service kubelink\n", ""}
		if inWireGuard() {
			edits = []string{"mode wireguard", "mode none", "secret kubelink-tls", "", "secret-manage-mode self", "",
				"service kubelink\n", ""}
		}
		editCorefile(t, ctx, b, edits...)
		waitMeshService(t, 15*time.Second, b, "second", " Unsupported ", "mode none carries no traffic: MeshServices need")
	})
	waitMeshService(t, 15*time.Second, b, "second", " Ok ", " True ")
}

// scaledService is a service without selector: the test says which pods are behind it.
type scaledService struct {
	b     *fleet.Broker
	pods  []*testbed.Pod
	slice *discovery.EndpointSlice
}

const scaledAddress = "192.168.0.150"

// newScaledService makes pods that answer with their names, and a MeshService that leads to those of scale.
func newScaledService(t *testing.T, ctx context.Context, b *fleet.Broker, count int) *scaledService {
	t.Helper()
	s := &scaledService{b: b}
	for i := range count {
		p, err := b.Pod(ctx, fmt.Sprintf("scaled-%d", i), testbed.PodOptions{})
		must(t, err)
		t.Cleanup(func() { must(t, p.Delete(context.Background())) })
		must(t, p.ServeHTTP(httpPort, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, p.Object.Name)
		})))
		must(t, p.ServeUDPEcho(udpPort))
		s.pods = append(s.pods, p)
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "scaled"}}
	service.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
	must(t, b.Client.Create(ctx, service))
	t.Cleanup(func() { must(t, b.Client.Delete(context.Background(), service)) })
	s.slice = &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "scaled-test", Labels: map[string]string{
			discovery.LabelServiceName: "scaled", discovery.LabelManagedBy: "test-bed",
		}},
		AddressType: discovery.AddressTypeIPv4, Endpoints: []discovery.Endpoint{},
		Ports: []discovery.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](httpPort)}},
	}
	must(t, b.Client.Create(ctx, s.slice))
	t.Cleanup(func() { must(t, b.Client.Delete(context.Background(), s.slice)) })
	applyMeshServices(t, ctx, b, [2]string{"scaled", `"service":"scaled","meshAddress":"` + scaledAddress + `"`})
	return s
}

// scale has this many pods behind the service.
func (s *scaledService) scale(t *testing.T, ctx context.Context, count int) {
	t.Helper()
	s.slice.Endpoints = []discovery.Endpoint{}
	for _, p := range s.pods[:count] {
		s.slice.Endpoints = append(s.slice.Endpoints, discovery.Endpoint{Addresses: []string{p.Address.String()}})
	}
	must(t, s.b.Client.Update(ctx, s.slice))
}

// waitNames waits until as many pods answer at the mesh address as there should be, and no others.
func (s *scaledService) waitNames(t *testing.T, from *testbed.Pod, count int) {
	t.Helper()
	took := within(t, 5*time.Second, fmt.Sprintf("answers of %d pods", count), func(ctx context.Context) error {
		names := map[string]int{}
		for range 12 * count {
			name, err := from.Get(ctx, "http://"+scaledAddress+"/")
			if err != nil {
				return err
			}
			names[name]++
		}
		if len(names) != count {
			return fmt.Errorf("pods that answer: %v", names)
		}
		return nil
	})
	t.Logf("%d pods answer all requests %v after the change", count, took)
}

// Pods of another cluster reach a service at its mesh address, by TCP, UDP and ping, and its endpoints as they come and
// go; pods of its own cluster do so, too.
func TestMeshServiceTraffic(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	b, address := brokers[1], netip.MustParseAddr(scaledAddress)
	// What the clusters do not tell each other.
	caller, provider := b.LinkTo(), brokers[0].LinkTo()
	caller.Spec.Egress = []v1alpha1.EgressCIDR{scaledAddress}
	provider.Spec.Ingress = []v1alpha1.IngressCIDR{v1alpha1.IngressCIDR(b.ServiceCIDR.String()), scaledAddress}
	t.Cleanup(func() { restoreMesh(t) })
	must(t, errors.Join(brokers[0].Apply(ctx, caller), b.Apply(ctx, provider)))

	s := newScaledService(t, ctx, b, 3)
	waitMeshService(t, 5*time.Second, b, "scaled", " Ok ", " False ", "service scaled has no ready endpoint (IPv4)")
	s.scale(t, ctx, 1)
	waitMeshService(t, 5*time.Second, b, "scaled", " Ok ", " True ")
	s.waitNames(t, clients[0], 1)
	s.waitNames(t, clients[1], 1)
	conn, err := clients[0].DialContext(ctx, "udp", netip.AddrPortFrom(address, udpPort).String())
	must(t, err)
	defer conn.Close()
	within(t, 5*time.Second, "an answer by UDP", func(context.Context) error {
		conn.SetDeadline(time.Now().Add(time.Second))
		_, err := conn.Write([]byte("hello"))
		if err == nil {
			_, err = conn.Read(make([]byte, 64))
		}
		return err
	})
	within(t, 5*time.Second, "an answer to a ping", func(ctx context.Context) error {
		_, err := clients[0].Ping(ctx, address)
		return err
	})
	s.scale(t, ctx, 3)
	s.waitNames(t, clients[0], 3)
	s.scale(t, ctx, 0)
	took := within(t, 5*time.Second, "refusal", func(ctx context.Context) error {
		begin := time.Now()
		name, err := clients[0].Get(ctx, "http://"+scaledAddress+"/")
		if err == nil || !strings.Contains(err.Error(), "refused") {
			return fmt.Errorf("%q answers: %w", name, err)
		}
		t.Logf("refused after %v", time.Since(begin))
		return nil
	})
	t.Logf("refused %v after the change", took)
	waitMeshService(t, 5*time.Second, b, "scaled", " Ok ", " False ",
		"has no ready endpoint (IPv4): connections are refused")
	s.scale(t, ctx, 1)
	s.waitNames(t, clients[0], 1)
}
