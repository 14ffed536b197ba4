package linkgateway

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

var otherKey = client.ObjectKey{Namespace: key.Namespace, Name: "kubelink-1234"}

// putOther makes the object of another broker.
func (w *world) putOther(t *testing.T, spec v1alpha1.LinkGatewaySpec) {
	t.Helper()
	o := &v1alpha1.LinkGateway{Spec: spec}
	o.Namespace, o.Name = otherKey.Namespace, otherKey.Name
	if err := w.api.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// renew plays the holder of the Lease of the other broker.
func (w *world) renew(t *testing.T, seconds int32) {
	t.Helper()
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: otherKey.Namespace, Name: otherKey.Name}}
	err := w.api.Get(t.Context(), otherKey, l)
	now := metav1.NowMicro()
	l.Spec.RenewTime, l.Spec.LeaseDurationSeconds = &now, &seconds
	if err == nil {
		err = w.api.Update(t.Context(), l)
	} else {
		err = w.api.Create(t.Context(), l)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) otherIsThere(t *testing.T) bool {
	t.Helper()
	err := w.api.Get(t.Context(), otherKey, &v1alpha1.LinkGateway{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

// What another broker has left goes: at once from the place of this broker, and else when its Lease is dead.
func TestRemoveFormer(t *testing.T) {
	const shared, foreign = "10.7.0.0/16", "10.8.0.0/16"
	for _, c := range []struct {
		name    string
		own     string // pod of this broker
		spec    v1alpha1.LinkGatewaySpec
		seconds int32 // of the Lease; 0: there is none
		renews  bool
		after   time.Duration // when it is gone; 0: it stays
	}{
		{"this node", "", v1alpha1.LinkGatewaySpec{Node: "node1", Term: 3, Networks: []v1alpha1.GatewayNetwork{foreign}},
			15, false, time.Second},
		{"this node, omit-lease", "", v1alpha1.LinkGatewaySpec{Node: "node1"}, 0, false, time.Second},
		{"this pod", "a", v1alpha1.LinkGatewaySpec{Node: "node1", Pod: "a"}, 0, false, time.Second},
		{"another pod on this node", "a", v1alpha1.LinkGatewaySpec{Node: "node1", Pod: "b", Term: 3}, 15, false, 0},
		{"a node, and this is a pod there", "a", v1alpha1.LinkGatewaySpec{Node: "node1", Term: 3}, 15, true, 0},
		{"another node, the Lease is dead", "",
			v1alpha1.LinkGatewaySpec{Node: "node2", Term: 3, Networks: []v1alpha1.GatewayNetwork{shared}}, 15, false,
			deadTime + formerInterval},
		{"another node, a long Lease is dead", "",
			v1alpha1.LinkGatewaySpec{Node: "node2", Term: 3, Networks: []v1alpha1.GatewayNetwork{shared}}, 60, false,
			2*time.Minute + formerInterval},
		{"another node, without Lease", "",
			v1alpha1.LinkGatewaySpec{Node: "node2", Term: 3, Networks: []v1alpha1.GatewayNetwork{shared}}, 0, false,
			deadTime + formerInterval},
		{"another node, the Lease is renewed", "",
			v1alpha1.LinkGatewaySpec{Node: "node2", Term: 3, Networks: []v1alpha1.GatewayNetwork{shared}}, 15, true, 0},
		{"another node, other networks", "",
			v1alpha1.LinkGatewaySpec{Node: "node2", Term: 3, Networks: []v1alpha1.GatewayNetwork{foreign}}, 15, false, 0},
		{"another node, omit-lease", "",
			v1alpha1.LinkGatewaySpec{Node: "node2", Networks: []v1alpha1.GatewayNetwork{shared}}, 0, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulate(t, func(t *testing.T, w *world) {
				w.putOther(t, c.spec)
				if c.seconds > 0 {
					w.renew(t, c.seconds)
				}
				spec := want(3, shared)
				spec.Pod = c.own
				w.Set(key.Name, spec, nil)
				passed := time.Duration(0)
				for ; w.otherIsThere(t) && passed < 5*time.Minute; passed += time.Second {
					w.after(time.Second)
					if c.renews {
						w.renew(t, c.seconds)
					}
				}
				synctest.Wait()
				early := c.after > time.Second && passed < c.after/2
				if there := w.otherIsThere(t); there != (c.after == 0) || !there && (passed > c.after || early) {
					t.Errorf("there: %v, after %s", there, passed)
				}
				if w.Problem() != nil || strings.Contains(w.log.String(), "level=WARN") {
					t.Errorf("%v, log %s", w.Problem(), w.log)
				}
			})
		})
	}
}

// The own object comes first, and what cannot be deleted is said once, with the remedy.
func TestRemoveFormerFails(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		w.fail["delete"] = apierrors.NewForbidden(schema.GroupResource{Resource: "linkgateways"}, otherKey.Name,
			errors.New("no role"))
		w.putOther(t, v1alpha1.LinkGatewaySpec{Node: "node1"})
		w.Set(key.Name, want(3), nil)
		if ops := w.after(time.Second); ops != "get create delete" {
			t.Error(ops)
		}
		w.after(5 * time.Minute)
		log := w.log.String()
		if n := strings.Count(log, "level=WARN"); n != 1 || !strings.Contains(log, "deploy/base/rbac.yaml") {
			t.Errorf("%d warnings: %s", n, log)
		}
		delete(w.fail, "delete")
		w.after(2 * formerInterval)
		if w.otherIsThere(t) || w.text(t) != "node1 3 []" {
			t.Errorf("%v, %s", w.otherIsThere(t), w.text(t))
		}
	})
}

// A broker that does not hold the links deletes nothing.
func TestStandbyRemovesNothing(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		w.lost = true
		w.putOther(t, v1alpha1.LinkGatewaySpec{Node: "node1"})
		w.Set(key.Name, want(3), nil)
		if ops := w.after(time.Minute); ops != "" || !w.otherIsThere(t) {
			t.Error(ops)
		}
	})
}
