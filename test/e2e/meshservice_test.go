package e2e

// MeshServices: users see each state, and what is in the way.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
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
// go while there are requests; pods of its own cluster do so, too.
func TestMeshServiceTraffic(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	b, address := brokers[1], netip.MustParseAddr(scaledAddress)
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
	scaleDuringRequests(t, ctx, s)
}

// scaleDuringRequests changes the number of endpoints from 1 to 3, 2, 0 and 1. New endpoints get requests within a
// second, none gets any that is gone, and none fails while there is an endpoint; else they are refused.
func scaleDuringRequests(t *testing.T, ctx context.Context, s *scaledService) {
	t.Helper()
	const some = 500
	r := startRequests(clients[0], "http://"+scaledAddress+"/")
	defer r.stop()
	begin := time.Now()
	scale := func(count int) time.Time {
		t.Helper()
		now := time.Now()
		s.scale(t, ctx, count)
		return now
	}
	r.await(t, begin, some)
	three := scale(3)
	r.checkShares(t, three.Add(time.Second), some, 3)
	two := scale(2)
	r.checkShares(t, two.Add(time.Second), some, 2)
	none := scale(0)
	refused := r.await(t, none.Add(time.Second), 50)
	var took []time.Duration
	for _, a := range refused {
		if took = append(took, a.took); a.err == nil || !strings.Contains(a.err.Error(), "refused") {
			t.Errorf("without endpoints, %q answers: %v", a.name, a.err)
		}
	}
	slices.Sort(took)
	t.Logf("refused in %s (median)", median(took))
	if quantile(took, 0.9) > 100*time.Millisecond {
		t.Errorf("refused in %s", took)
	}
	waitMeshService(t, 5*time.Second, s.b, "scaled", " Ok ", " False ",
		"service scaled has no ready endpoint (IPv4): connections are refused")
	one := scale(1)
	r.checkShares(t, one.Add(time.Second), some, 1)

	r.checkFailures(t, begin, none, one)
}

// requests are sent until stop: one after the other, each with a connection of its own.
type requests struct {
	stop func()

	mu      sync.Mutex
	answers []requestAnswer
}

type requestAnswer struct {
	begin time.Time
	took  time.Duration
	name  string // that the server has said
	err   error
}

func startRequests(from *testbed.Pod, url string) *requests {
	ctx, cancel := context.WithCancel(context.Background())
	r := &requests{}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ticker := time.NewTicker(2 * time.Millisecond); ctx.Err() == nil; <-ticker.C {
				one, end := context.WithTimeout(ctx, requestTime)
				a := requestAnswer{begin: time.Now()}
				a.name, a.err = from.Get(one, url)
				a.took = time.Since(a.begin)
				if end(); ctx.Err() == nil {
					r.mu.Lock()
					r.answers = append(r.answers, a)
					r.mu.Unlock()
				}
			}
		})
	}
	r.stop = func() { cancel(); wg.Wait() }
	return r
}

// since returns what became of the requests that were sent from a moment on.
func (r *requests) since(moment time.Time) []requestAnswer {
	r.mu.Lock()
	all := slices.Clone(r.answers)
	r.mu.Unlock()
	slices.SortFunc(all, func(a, b requestAnswer) int { return a.begin.Compare(b.begin) })
	i, _ := slices.BinarySearchFunc(all, moment, func(a requestAnswer, t time.Time) int { return a.begin.Compare(t) })
	return all[i:]
}

// await waits until some requests have been sent from a moment on.
func (r *requests) await(t *testing.T, moment time.Time, some int) (all []requestAnswer) {
	t.Helper()
	within(t, time.Minute, "requests", func(context.Context) error {
		if all = r.since(moment); len(all) < some {
			return fmt.Errorf("%d of %d", len(all), some)
		}
		return nil
	})
	return all
}

// checkShares checks that so many pods, and no others, answer the requests from a moment on, each its share.
func (r *requests) checkShares(t *testing.T, moment time.Time, some, pods int) {
	t.Helper()
	shares := map[string]int{}
	all := r.await(t, moment, some)
	for _, a := range all {
		if a.err == nil { // failures are counted over all
			shares[a.name]++
		}
	}
	for _, n := range shares {
		if n < len(all)/pods/2 || len(shares) != pods {
			t.Errorf("a second after there were %d endpoints, their shares of %d requests are %v", pods, len(all), shares)
			break
		}
	}
	t.Logf("%d endpoints: %v", pods, shares)
}

// checkFailures checks that fewer than one of 1,000 requests failed while there was an endpoint: until none, and again
// when the first one was answered after one.
func (r *requests) checkFailures(t *testing.T, begin, none, one time.Time) {
	t.Helper()
	failed, all := 0, 0
	var refused, answered time.Time // first
	for _, a := range r.since(begin) {
		end := a.begin.Add(a.took)
		switch {
		case a.begin.After(none) && refused.IsZero() && a.err != nil:
			refused = a.begin
		case a.begin.After(one) && answered.IsZero() && a.err == nil:
			answered = end
		}
		if end.Before(none) || !answered.IsZero() && a.begin.After(answered) {
			if all++; a.err != nil {
				failed++
				t.Log(a.err)
			}
		}
	}
	t.Logf("%d of %d requests failed; refused %s after the last endpoint went; answered %s after one came",
		failed, all, refused.Sub(none), answered.Sub(one))
	if failed*1000 >= all {
		t.Errorf("%d of %d requests failed while there was an endpoint", failed, all)
	}
}
