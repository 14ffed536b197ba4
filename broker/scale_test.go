package broker

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// fakeLinkCache lists KubeLinks as the cache does: it copies them unless it is told not to.
type fakeLinkCache struct {
	client.WithWatch
	links []v1alpha1.KubeLink
}

func (c *fakeLinkCache) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	all, ok := list.(*v1alpha1.KubeLinkList)
	if !ok {
		return c.WithWatch.List(ctx, list, options...)
	}
	opts := (&client.ListOptions{}).ApplyOptions(options)
	all.Items = make([]v1alpha1.KubeLink, len(c.links))
	for i := range c.links {
		if copied := opts.UnsafeDisableDeepCopy; copied != nil && *copied {
			all.Items[i] = c.links[i]
		} else {
			c.links[i].DeepCopyInto(&all.Items[i])
		}
	}
	return nil
}

// newScaleRun returns a reconciler of many links that are Up.
func newScaleRun(tb testing.TB, links int) (*reconcilerRun, *fakeLinkCache) {
	cfg := Config{Local: mesh.Local{Mode: mesh.Bridge}}
	cfg.Propagation, cfg.MeshDomain, cfg.ClusterDomain = mesh.PropagateDNS, "kubelink.", "cluster.local."
	b, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(b.names.close)
	cache := &fakeLinkCache{WithWatch: newFakeAPIServer()}
	add := func(name, address, endpoint, cidr string) {
		l := kubeLink(name, address, endpoint, cidr)
		l.CreationTimestamp, l.UID, l.Generation = metav1.Unix(int64(len(cache.links)), 0), types.UID(name), 1
		fields := metav1.NewFieldsV1(strings.Repeat("x", 500))
		l.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl", FieldsV1: fields}}
		cache.links = append(cache.links, *l)
	}
	add("kubelink1", "10.202.0.1/16", v1alpha1.EndpointLocal, "100.64.0.0/20")
	var statuses []link.Status
	for i := range links {
		address := netip.AddrFrom4([4]byte{10, 202, byte((i + 2) >> 8), byte(i + 2)})
		services := netip.AddrFrom4([4]byte{10, 100 + byte(i>>8), byte(i), 0})
		name := fmt.Sprintf("stub%d", i)
		add(name, address.String()+"/16", name+".example:8090", services.String()+"/24")
		statuses = append(statuses, link.Status{Link: name, State: link.Up})
	}
	d := &fakeDataplane{}
	d.setStatus(statuses...)
	b.setGateway(newFakeGateway(d, &recordingKernel{}))
	return newTestRun(b, cache), cache
}

// A reconciliation lists the objects of the cache without a copy, so it must not write to them.
func TestReconcileLeavesCache(t *testing.T) {
	run, cache := newScaleRun(t, 5)
	before := (&v1alpha1.KubeLinkList{Items: cache.links}).DeepCopy().Items
	if _, err := run.Reconcile(t.Context(), reconcile.Request{}); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(cache.links, before) {
		t.Errorf("the cache has changed: %+v", cache.links)
	}
}

// BenchmarkReconcile is a change of one of 250 links, without what dataplane, kernel and API server do with it.
func BenchmarkReconcile(b *testing.B) {
	run, cache := newScaleRun(b, 250)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		l := &cache.links[1+n%250]
		l.Spec.Ingress = []v1alpha1.IngressCIDR{v1alpha1.IngressCIDR(fmt.Sprintf("100.64.0.%d", n%200))}
		l.Generation++
		if _, err := run.Reconcile(b.Context(), reconcile.Request{}); err != nil {
			b.Fatal(err)
		}
	}
}
