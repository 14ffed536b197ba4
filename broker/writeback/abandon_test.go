package writeback

import (
	"errors"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// Of links that nobody keeps, none says that it is Up, or about to be, and no MeshService that it is served. What is
// wrong with an object stays.
func TestAbandon(t *testing.T) {
	var objects []client.Object
	var names []string
	states := []v1alpha1.State{"", "Up", "Idle", "Down", "Error", "Invalid", "Stale", "Deleting"}
	for _, s := range states {
		l := newKubeLink("link"+strings.ToLower(string(s)), "b.example")
		l.Status.State, l.Status.Message, l.Status.Gateway = s, "of the broker", "10.250.0.1"
		l.Status.Standbys = []v1alpha1.Standby{{Node: "node2"}}
		for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionForwarding} {
			l.Status.Conditions = append(l.Status.Conditions,
				metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: "Set"})
		}
		objects, names = append(objects, &l), append(names, l.Name)
	}
	var services []types.NamespacedName
	for _, s := range []v1alpha1.State{"", v1alpha1.StateOk, v1alpha1.StateInvalid} {
		m := &v1alpha1.MeshService{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m" + strings.ToLower(string(s))}}
		m.Status.State, m.Status.Message = s, "of the broker"
		objects, services = append(objects, m), append(services, client.ObjectKeyFromObject(m))
	}
	services = append(services, types.NamespacedName{Namespace: "ns", Name: "gone"})
	api := newFakeAPI(t, objects...)
	for _, want := range []int{5, 0} { // once is enough
		if n, err := Abandon(t.Context(), api, append(names, "gone"), services); err != nil || n != want {
			t.Errorf("%d statuses are written, %v, want %d", n, err, want)
		}
	}
	for i, s := range states {
		st := api.getLink(t, names[i]).Status
		if s == "" || s == "Invalid" || s == "Stale" || s == "Deleting" {
			if st.State != s || st.Message != "of the broker" {
				t.Errorf("%s: %+v", s, st)
			}
			continue
		}
		if st.State != v1alpha1.StateDown || !strings.HasPrefix(st.Message, "no broker keeps this link") ||
			st.Gateway != "" || st.Standbys != nil || meta.IsStatusConditionTrue(st.Conditions, v1alpha1.ConditionReady) ||
			!meta.IsStatusConditionPresentAndEqual(st.Conditions, v1alpha1.ConditionForwarding, metav1.ConditionUnknown) {
			t.Errorf("%s: %+v", s, st)
		}
	}
	for i, want := range []v1alpha1.State{"", v1alpha1.StateStale, v1alpha1.StateInvalid} {
		m := &v1alpha1.MeshService{}
		if err := api.Get(t.Context(), services[i], m); err != nil {
			t.Fatal(err)
		}
		ready := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionReady)
		says := strings.HasPrefix(m.Status.Message, "no broker serves this")
		if stale := want == v1alpha1.StateStale; m.Status.State != want || says != stale || (ready != nil) != stale ||
			stale && ready.Status != metav1.ConditionFalse {
			t.Errorf("%s: %+v", m.Name, m.Status)
		}
	}
	up := newKubeLink("refused", "b.example")
	up.Status.State = v1alpha1.StateUp
	refusing := newFakeAPI(t, &up)
	refusing.fail["status refused"] = errors.New("forbidden")
	if n, err := Abandon(t.Context(), refusing, []string{"refused"}, nil); n != 0 || err == nil ||
		err.Error() != "status of KubeLink refused: forbidden" {
		t.Errorf("%d written, %v", n, err)
	}
}
