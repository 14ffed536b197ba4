package connect

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// newSystem is the namespace whose UID is that of a cluster.
func newSystem(uid string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem, UID: types.UID(uid)}}
}

// newSystemLease is the Lease of a run.
func newSystemLease() *coordinationv1.Lease {
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: leaseName}}
	claimLease(l, leaseTime)
	return l
}

// meetAt has so many readers of KubeLinks wait for each other, once.
func meetAt(c *Cluster, readers int) {
	var all sync.WaitGroup
	all.Add(readers)
	var mu sync.Mutex // guards readers
	c.Client = interceptor.NewClient(c.Client.(client.WithWatch), interceptor.Funcs{List: func(
		ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
		err := c.List(ctx, list, options...)
		if _, ok := list.(*v1alpha1.KubeLinkList); ok {
			mu.Lock()
			if readers--; readers >= 0 {
				all.Done()
			}
			mu.Unlock()
			all.Wait()
		}
		return err
	}})
}

// Runs at the same time that have a cluster in common give all clusters addresses of their own, and the same CA, whatever
// the order of their arguments.
func TestConnectAtOnce(t *testing.T) {
	all := networks("100.64.0.0/20", "100.96.0.0/11", "10.250.0.0/16")
	for _, c := range []struct {
		name      string
		pairs     [][2]int
		installed bool // in all clusters, by another party
	}{
		{"nothing is there", [][2]int{{0, 1}, {2, 0}}, false},
		{"one common cluster", [][2]int{{0, 1}, {0, 2}, {3, 0}, {4, 0}}, true},
		{"the same clusters", [][2]int{{0, 1}, {1, 0}, {0, 1}}, true},
		{"all with all", [][2]int{{0, 1}, {1, 2}, {2, 0}}, true},
	} {
		var clusters []*Cluster
		o := Options{DefaultImage: "kubelink:v1", MeshCIDR: prefix("192.168.0.0/24"), UpTimeout: time.Millisecond,
			MeshServices: true, Networks: map[string]Networks{}, Endpoints: map[string]string{}}
		readers := map[int]int{}
		for _, pair := range c.pairs {
			readers[pair[0]]++
			readers[pair[1]]++
		}
		for i := range len(readers) {
			name := string(rune('a' + i))
			objects := []client.Object{newSystem(name)}
			if meta := (metav1.ObjectMeta{Namespace: "kubelink", Name: "kubelink"}); c.installed {
				ca := caOf("ca.crt=x", "ca.key=y")
				ca.Namespace, ca.Name = "kubelink", "kubelink-tls"
				objects = append(objects, &appsv1.Deployment{ObjectMeta: meta}, &ca)
			}
			clusters = append(clusters, newCluster(t, name, "", objects...))
			meetAt(clusters[i], readers[i])
			o.Networks[name], o.Endpoints[name] = all, "host-"+name
		}
		var runs sync.WaitGroup
		for _, pair := range c.pairs {
			runs.Go(func() {
				err := Connect(t.Context(), clusters[pair[0]], clusters[pair[1]], o, NewLog(&strings.Builder{}))
				if err == nil || !strings.Contains(err.Error(), "to be Up") { // there are no brokers
					t.Errorf("%s: %v", c.name, err)
				}
			})
		}
		runs.Wait()
		names, addresses := map[string]string{}, map[string]string{}
		var secrets []corev1.Secret
		for _, cluster := range clusters {
			var links v1alpha1.KubeLinkList
			if err := cluster.Client.List(t.Context(), &links); err != nil {
				t.Fatal(err)
			}
			for _, l := range links.Items {
				if is, ok := names[l.Spec.ClusterAddress]; ok && is != l.Name {
					t.Errorf("%s: %s and %s have the address %s", c.name, is, l.Name, l.Spec.ClusterAddress)
				}
				if is, ok := addresses[l.Name]; ok && is != l.Spec.ClusterAddress {
					t.Errorf("%s: %s has the addresses %s and %s", c.name, l.Name, is, l.Spec.ClusterAddress)
				}
				names[l.Spec.ClusterAddress], addresses[l.Name] = l.Name, l.Spec.ClusterAddress
			}
			var leases coordinationv1.LeaseList
			if err := cluster.Client.List(t.Context(), &leases); err != nil || len(leases.Items) > 0 {
				t.Errorf("%s: %v %v", c.name, err, leases.Items)
			}
			secrets = append(secrets, corev1.Secret{})
			if err := cluster.Client.Get(t.Context(), objectKey("kubelink-tls"), &secrets[len(secrets)-1]); err != nil {
				t.Error(err)
			}
		}
		for _, s := range secrets {
			if len(s.Data[caKey]) == 0 || !bytes.Equal(s.Data[caKey], secrets[0].Data[caKey]) {
				t.Errorf("%s: the clusters have different CAs", c.name)
			}
		}
		if len(addresses) != len(clusters) {
			t.Errorf("%s: %v", c.name, addresses)
		}
	}
}

// While a run waits for the Lease, another one removes kubelink and its load balancer. The links get the address of the
// next load balancer, for which the run does not keep the Lease.
func TestConnectAfterDisconnect(t *testing.T) {
	a, c := newCluster(t, "a", "", newSystem("a")), newCluster(t, "c", "", newSystem("c"))
	address, claims := "192.0.2.1", 0
	a.Client = interceptor.NewClient(a.Client.(client.WithWatch), interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object,
			options ...client.GetOption) error {
			err := c.Get(ctx, key, o, options...)
			switch o := o.(type) {
			case *coordinationv1.Lease:
				if claims++; claims == 1 {
					address = ""
				}
			case *corev1.Service:
				if address != "" {
					o.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address}}
				}
			}
			return err
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, options ...client.DeleteOption) error {
			if _, ok := o.(*coordinationv1.Lease); ok {
				address = "192.0.2.99"
			}
			return c.Delete(ctx, o, options...)
		}})
	all := networks("100.64.0.0/20", "100.96.0.0/11", "10.250.0.0/16")
	o := Options{DefaultImage: "kubelink:v1", MeshCIDR: prefix("192.168.0.0/24"), UpTimeout: time.Millisecond,
		MeshServices: true, Networks: map[string]Networks{"a": all, "c": all}, Endpoints: map[string]string{"c": "host-c"}}
	var out strings.Builder
	err := Connect(t.Context(), a, c, o, NewLog(&out))
	if err == nil || !strings.Contains(err.Error(), "to be Up") || claims != 2 ||
		!strings.Contains(out.String(), "a: the load balancer has no address any more") {
		t.Errorf("%v, the Lease is read %d times\n%s", err, claims, &out)
	}
	var l v1alpha1.KubeLink
	if err := c.Client.Get(t.Context(), clusterKey("a"), &l); err != nil || l.Spec.Endpoint != address {
		t.Errorf("%v, endpoint %q", err, l.Spec.Endpoint)
	}
}

// A run waits for the one that holds the Lease, and takes it from one that was killed.
func TestLease(t *testing.T) {
	var out strings.Builder
	s := newSide(newCluster(t, "c1", "", newSystemLease()), &out)
	s.leaseTime = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 3*pollInterval)
	defer cancel()
	err := s.holdLease(ctx, func(context.Context) error {
		t.Error("it does not wait")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "c1: no more time to wait for another run of this command: process ") ||
		!strings.Contains(err.Error(), "holds Lease kube-system/kubelink-connect since 20") {
		t.Error(err)
	}
	s.leaseTime = pollInterval / 2
	held := false
	if err := s.holdLease(t.Context(), func(context.Context) error {
		held = true
		return nil
	}); err != nil || !held {
		t.Errorf("%v\n%s", err, &out)
	}
	if err := s.Client.Get(t.Context(), client.ObjectKeyFromObject(newSystemLease()), newSystemLease()); !isAbsent(err) {
		t.Errorf("the Lease is left: %v", err)
	}
}

// A run ends when it has lost its Lease, and leaves that of the other run alone.
func TestLostLease(t *testing.T) {
	for name, lose := range map[string]func(ctx context.Context, c client.Client, refuses *atomic.Bool) error{
		"taken": func(ctx context.Context, c client.Client, _ *atomic.Bool) error {
			l := newSystemLease()
			if err := c.Get(ctx, client.ObjectKeyFromObject(l), l); err != nil {
				return err
			}
			claimLease(l, leaseTime)
			return c.Update(ctx, l)
		},
		"refused": func(_ context.Context, _ client.Client, refuses *atomic.Bool) error {
			refuses.Store(true)
			return nil
		},
	} {
		var out strings.Builder
		var refuses atomic.Bool
		s := newSide(newCluster(t, "c1", ""), &out)
		s.leaseTime = 200 * time.Millisecond
		kept := s.Client
		s.Client = interceptor.NewClient(kept.(client.WithWatch), interceptor.Funcs{Update: func(
			ctx context.Context, c client.WithWatch, o client.Object, options ...client.UpdateOption) error {
			if refuses.Load() {
				return errors.New("connection refused")
			}
			return c.Update(ctx, o, options...)
		}})
		err := s.holdLease(t.Context(), func(ctx context.Context) error {
			if err := lose(ctx, kept, &refuses); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if err == nil || !strings.Contains(err.Error(), "c1: this run has lost Lease kube-system/kubelink-connect") {
			t.Errorf("%s: %v", name, err)
		}
		err = kept.Get(t.Context(), client.ObjectKeyFromObject(newSystemLease()), newSystemLease())
		if (err == nil) != (name == "taken") {
			t.Errorf("%s: %v\n%s", name, err, &out)
		}
	}
}

// What holds the Lease has written it lately: it is not taken.
func TestRenewedLease(t *testing.T) {
	var out strings.Builder
	s := newSide(newCluster(t, "c1", ""), &out)
	s.leaseTime = 2 * pollInterval
	waits := newSide(s.Cluster, &out)
	waits.leaseTime = s.leaseTime
	ctx, cancel := context.WithTimeout(t.Context(), 4*pollInterval)
	defer cancel()
	if err := s.holdLease(t.Context(), func(context.Context) error {
		err := waits.holdLease(ctx, func(context.Context) error { return errors.New("both have it") })
		if ctx.Err() == nil {
			t.Error(err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// A renewal may have been done whose answer was lost. The Lease goes all the same.
func TestReleaseAfterLostAnswer(t *testing.T) {
	var out strings.Builder
	s := newSide(newCluster(t, "c1", ""), &out)
	s.leaseTime = time.Hour
	l, err := s.acquireLease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	renewed := l.DeepCopy()
	renewed.Spec.RenewTime = &metav1.MicroTime{Time: time.Now().Add(time.Second)}
	if err := s.Client.Update(t.Context(), renewed); err != nil {
		t.Fatal(err)
	}
	s.releaseLease(t.Context(), l)
	if err := s.Client.Get(t.Context(), client.ObjectKeyFromObject(l), l); !isAbsent(err) || out.Len() > 0 {
		t.Errorf("the Lease is left: %v\n%s", err, &out)
	}
}

// A request that fails does not end the wait for another run. At the first one there is nothing to wait for.
func TestWaitThroughFailure(t *testing.T) {
	for failing, fails := range map[int]bool{1: true, 2: false} {
		var out strings.Builder
		s := newSide(newCluster(t, "c1", "", newSystemLease()), &out)
		s.leaseTime = 3 * pollInterval
		requests := 0
		s.Client = interceptor.NewClient(s.Client.(client.WithWatch), interceptor.Funcs{Get: func(ctx context.Context,
			c client.WithWatch, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
			if requests++; requests == failing {
				return errors.New("connection reset by peer")
			}
			return c.Get(ctx, key, o, options...)
		}})
		if _, err := s.acquireLease(t.Context()); (err != nil) != fails {
			t.Errorf("request %d fails: %v", failing, err)
		}
	}
}
