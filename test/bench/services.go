package main

// This file measures a broker with many MeshServices: the time from its start until another cluster reaches all of
// them, and how soon packets follow a change of one.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const (
	serviceCount = 1000
	endpoints    = 3 // of each
	starts       = 3 // how often the broker starts

	// what is promised
	appliedWithin = 3 * time.Second
	changedWithin = time.Second
)

// servicesMesh is the mesh of the clusters, with room for many services.
var servicesMesh = netip.MustParsePrefix("10.201.0.0/16")

// meshServices is the test bed: the second cluster has the services, the first one the client.
type meshServices struct {
	fleet  *fleet.Fleet
	two    *fleet.Broker
	client *testbed.Pod
	pods   []*testbed.Pod // behind all services; they answer with their names
	slices []*discovery.EndpointSlice
}

// measureServices starts the broker of the services, and changes endpoints. Times over what is promised are an error.
func measureServices(ctx context.Context) error {
	f, err := fleet.New(ctx, 2, fleet.Options{Mode: mesh.Bridge})
	if err != nil {
		return err
	}
	defer f.Close()
	m := &meshServices{fleet: f, two: f.Brokers[1], slices: make([]*discovery.EndpointSlice, serviceCount)}
	fmt.Printf("\n%d MeshServices with %d endpoints each, at the other end of a link\n", serviceCount, endpoints)
	started, changed, err := m.measure(ctx)
	if err != nil {
		f.DumpLogs(os.Stderr, 20)
		return err
	}
	return errors.Join(
		printTimes("start of the broker until all are reached", started, appliedWithin),
		printTimes("change of one until packets follow", changed, changedWithin))
}

// printTimes prints median and maximum. A median over what is promised is an error.
func printTimes(what string, times []time.Duration, promised time.Duration) error {
	median, maximum := summarize(times)
	fmt.Printf("%-44s %2d times   median %5d ms   maximum %5d ms   promised %d ms\n", what, len(times),
		median.Milliseconds(), maximum.Milliseconds(), promised.Milliseconds())
	if median > promised {
		return fmt.Errorf("%s: %s, and %s is promised", what, median, promised)
	}
	return nil
}

func (m *meshServices) measure(ctx context.Context) (started, changed []time.Duration, err error) {
	if err := m.setUp(ctx); err != nil {
		return nil, nil, err
	}
	for range starts {
		took, err := m.restart(ctx)
		if err != nil {
			return nil, nil, err
		}
		started = append(started, took)
	}
	for i := range changes {
		took, err := m.change(ctx, i*serviceCount/changes, m.pods[i%endpoints])
		if err != nil {
			return nil, nil, err
		}
		changed = append(changed, took)
	}
	return started, changed, nil
}

// setUp makes pods, services and links, and waits until the services are reached.
func (m *meshServices) setUp(ctx context.Context) (err error) {
	if m.client, err = m.fleet.Brokers[0].Pod(ctx, "client", testbed.PodOptions{}); err != nil {
		return err
	}
	for i := range endpoints {
		p, err := m.two.Pod(ctx, fmt.Sprintf("server-%d", i), testbed.PodOptions{})
		if err != nil {
			return err
		}
		if err := p.ServeHTTP(streamPort, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, p.Object.Name)
		})); err != nil {
			return err
		}
		m.pods = append(m.pods, p)
	}
	for i, b := range m.fleet.Brokers {
		b.MeshAddress = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 201, 0, byte(1 + i)}), servicesMesh.Bits())
	}
	if err := inParallel(ctx, serviceCount, m.createService); err != nil {
		return err
	}
	if err := m.fleet.Mesh(ctx); err != nil {
		return err
	}
	return m.waitForAll(ctx)
}

func serviceAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 201, byte(1 + i/250), byte(1 + i%250)})
}

// createService creates a service with its EndpointSlice, and a MeshService for it.
func (m *meshServices) createService(ctx context.Context, i int) error {
	name := metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("many-%d", i)}
	service := &corev1.Service{ObjectMeta: name, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone,
		Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	port, portName := int32(streamPort), "http"
	slice := &discovery.EndpointSlice{ObjectMeta: name, AddressType: discovery.AddressTypeIPv4,
		Ports: []discovery.EndpointPort{{Name: &portName, Port: &port}}}
	slice.Labels = map[string]string{discovery.LabelServiceName: name.Name, discovery.LabelManagedBy: "bench"}
	for _, p := range m.pods {
		slice.Endpoints = append(slice.Endpoints, discovery.Endpoint{Addresses: []string{p.Address.String()}})
	}
	m.slices[i] = slice
	for _, o := range []client.Object{service, slice, &v1alpha1.MeshService{ObjectMeta: name,
		Spec: v1alpha1.MeshServiceSpec{Service: name.Name, MeshAddress: serviceAddress(i).String()}}} {
		if err := m.two.Client.Create(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// restart measures the time from the start of the broker until the client has reached all services.
func (m *meshServices) restart(ctx context.Context) (time.Duration, error) {
	if err := m.two.Kill(ctx, syscall.SIGTERM); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := m.two.Launch(); err != nil {
		return 0, err
	}
	if err := m.waitForAll(ctx); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

// waitForAll waits until the client has reached some of the services, evenly spread. They are set all at once.
func (m *meshServices) waitForAll(ctx context.Context) error {
	const sample = 10
	for i := range sample {
		if _, err := m.waitForPod(ctx, i*(serviceCount-1)/(sample-1), nil); err != nil {
			return err
		}
	}
	return nil
}

// change leaves a service one endpoint. It measures the time until packets get there.
func (m *meshServices) change(ctx context.Context, i int, to *testbed.Pod) (time.Duration, error) {
	// Of the other two, one answers before.
	for _, p := range []*testbed.Pod{m.pods[(slices.Index(m.pods, to)+1)%endpoints], to} {
		before := m.slices[i].DeepCopy()
		m.slices[i].Endpoints = []discovery.Endpoint{{Addresses: []string{p.Address.String()}}}
		begin := time.Now()
		if err := m.two.Client.Patch(ctx, m.slices[i], client.MergeFrom(before)); err != nil {
			return 0, err
		}
		end, err := m.waitForPod(ctx, i, p)
		if err != nil || p == to {
			return end.Sub(begin), err
		}
	}
	return 0, nil
}

// waitForPod returns when a pod has answered, and no other one any more; nil: any pod.
func (m *meshServices) waitForPod(ctx context.Context, i int, p *testbed.Pod) (since time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	times := 1
	if p != nil {
		times = 6 // of three pods, another one would answer
	}
	err = testbed.Until(ctx, serviceAddress(i).String(), func(ctx context.Context) error {
		since = time.Time{}
		for range times {
			limited, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			name, err := m.client.Get(limited, fmt.Sprintf("http://%s/", serviceAddress(i)))
			cancel()
			if err != nil {
				return err
			}
			if p != nil && name != p.Object.Name {
				return fmt.Errorf("%s answers, not %s", name, p.Object.Name)
			}
			if since.IsZero() {
				since = time.Now()
			}
		}
		return nil
	})
	return since, err
}
