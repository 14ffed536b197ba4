package writeback

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// newWrittenOutcome is an outcome of links whose statuses are written already.
func newWrittenOutcome(w *Writer, links int, meta metav1.ObjectMeta) *Outcome {
	seen, o := &Observations{Checked: true}, &Outcome{}
	for i := range links {
		obj := &v1alpha1.KubeLink{ObjectMeta: meta}
		obj.Name = fmt.Sprintf("stub%d", i)
		obj.UID, obj.ResourceVersion = types.UID(obj.Name), "7"
		l := Link{Object: obj, State: v1alpha1.StateUp, Forwarding: seen.forwarding(func(string) bool { return true })}
		w.setStatus(obj, l)
		o.Links = append(o.Links, l)
	}
	return o
}

// A status that is right costs no copy of its object, however large that is.
func TestUnchangedIsNotCopied(t *testing.T) {
	count := func(meta metav1.ObjectMeta) float64 {
		w := newTestWriter(nil, func() {})
		o := newWrittenOutcome(w, 10, meta)
		return testing.AllocsPerRun(10, func() {
			if err := w.writeOutcome(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		})
	}
	large := metav1.ObjectMeta{Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"a": "b"},
		ManagedFields: make([]metav1.ManagedFieldsEntry, 10)}
	if small, large := count(metav1.ObjectMeta{}), count(large); large > small {
		t.Errorf("%.0f allocations, %.0f for large objects", small, large)
	}
}

// BenchmarkUnchanged is an outcome of 250 links whose statuses are written already.
func BenchmarkUnchanged(b *testing.B) {
	w := newTestWriter(nil, func() {})
	o := newWrittenOutcome(w, 250, metav1.ObjectMeta{})
	b.ReportAllocs()
	for b.Loop() {
		if err := w.writeOutcome(b.Context(), o); err != nil {
			b.Fatal(err)
		}
	}
}
