package meshservice

// What users see of MeshServices: status and Events.

import (
	"cmp"
	"context"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// claimTime is how long other brokers have to say something of a new MeshService.
const claimTime = 5 * time.Second

// Report is a status that is to be written.
type Report struct {
	object   *v1alpha1.MeshService // as read from the cache; nothing changes it
	report   service.Report
	recorder events.EventRecorder
	watch    *Watch
	written  atomic.Bool // the API server has taken it
}

// Object is the object that the report is about.
func (r *Report) Object() client.Object { return r.object }

// Write writes the status to the API server.
func (r *Report) Write(ctx context.Context, c client.Client) error {
	obj := r.object.DeepCopy()
	st := &obj.Status
	st.State, st.Message, st.ObservedGeneration = r.report.State, r.report.Message, obj.Generation
	before := meta.IsStatusConditionTrue(st.Conditions, v1alpha1.ConditionReady)
	for _, condition := range newConditions(&r.report) {
		condition.ObservedGeneration = obj.Generation
		meta.SetStatusCondition(&st.Conditions, condition)
	}
	// The cache may lack what was written last: an Event would tell of a change that did not happen.
	patch := client.MergeFromWithOptions(r.object, client.MergeFromWithOptimisticLock{})
	err := c.Status().Patch(ctx, obj, patch)
	r.written.Store(err == nil)
	r.watch.noteWrite(r.object, r.report, err)
	if err != nil {
		return err
	}
	if r.object.Status.State != r.report.State || before != r.report.Ready {
		r.announce(obj)
	}
	return nil
}

// announce makes an Event of a new state.
func (r *Report) announce(obj *v1alpha1.MeshService) {
	kind, note := corev1.EventTypeWarning, r.report.Message
	switch {
	case r.report.Ready && r.report.Doubtful:
		// a Warning
	case r.report.Ready:
		kind, note = corev1.EventTypeNormal, cmp.Or(note, "MeshService is served")
	}
	r.recorder.Eventf(obj, nil, kind, "MeshService"+string(r.report.State), "Reconcile", "%s", note)
}

// hasStatus says whether the status of a MeshService is that of a report.
func hasStatus(m *v1alpha1.MeshService, r *service.Report) bool {
	return m.Status.ObservedGeneration == m.Generation && statesReport(&m.Status, r)
}

// statesReport says whether a status has the report, of whatever generation.
func statesReport(st *v1alpha1.MeshServiceStatus, r *service.Report) bool {
	if st.State != r.State || st.Message != r.Message {
		return false
	}
	for _, want := range newConditions(r) {
		c := meta.FindStatusCondition(st.Conditions, want.Type)
		if c == nil || c.Status != want.Status || c.Reason != want.Reason || c.Message != want.Message {
			return false
		}
	}
	return true
}

// newConditions are the conditions of a report.
func newConditions(r *service.Report) []metav1.Condition {
	accepted := metav1.Condition{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, Reason: "Valid"}
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: string(r.State)}
	switch {
	case r.State != v1alpha1.StateOk:
		accepted.Status, accepted.Reason, accepted.Message = metav1.ConditionFalse, string(r.State), r.Message
		ready.Status, ready.Message = metav1.ConditionFalse, r.Message
	case !r.Ready:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "NoEndpoints", r.Message
	}
	return []metav1.Condition{accepted, ready}
}

// Report tells which statuses are to be written, unless it has told that before. It wakes the reconciler when there is
// more to tell by then.
func (s *Services) Report(ctx context.Context, recorder events.EventRecorder, tell func([]*Report)) {
	w := s.from.watch
	if w == nil || s.reported {
		return
	}
	s.reported = true
	s.noteWritten()
	latest := w.readLatest(ctx)
	var reports []*Report
	var later time.Duration
	for i := range s.objects.MeshServices {
		m := &s.objects.MeshServices[i]
		if l := latest[m.UID]; l != nil && l.Generation == m.Generation {
			m = l
		}
		key := client.ObjectKeyFromObject(m)
		report, ok := s.built.Reports[key]
		if !ok || hasStatus(m, &report) { // it is about to go, or as it should be
			delete(s.left, key)
			continue
		}
		if report.Weak && !s.left[key] && !w.hasWritten(m) {
			rest := claimTime - time.Since(m.CreationTimestamp.Time)
			if m.Status.State == "" && rest > 0 {
				later = max(later, rest)
			}
			if m.Status.State == "" && rest > 0 || !isUnserved(m, report.State) {
				continue
			}
		}
		reports = append(reports, &Report{object: m, report: report, recorder: recorder, watch: w})
	}
	s.told = reports
	if later > 0 {
		s.again = true
		time.AfterFunc(later, w.Wake)
	}
	tell(reports)
}

// readLatest returns the MeshServices that the cache has by now, by UID. The watch compares each status that comes
// later with the reports that it was given. So one that came between the reading of the objects and these reports is
// not missed.
//
// Before the MeshServices are known, the cache would wait for them: for ever, if they are forbidden.
func (w *Watch) readLatest(ctx context.Context) map[types.UID]*v1alpha1.MeshService {
	var list v1alpha1.MeshServiceList
	if !w.listed.Load() {
		return nil
	}
	if err := w.cache.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil { // nothing here writes to them
		return nil
	}
	latest := make(map[types.UID]*v1alpha1.MeshService, len(list.Items))
	for i := range list.Items {
		latest[list.Items[i].UID] = &list.Items[i]
	}
	return latest
}

// noteWritten notes which of the last reports are written. Until then they are told again, however often the services
// are built anew: the one who writes takes the latest ones only.
func (s *Services) noteWritten() {
	s.told = slices.DeleteFunc(s.told, func(r *Report) bool {
		if !r.written.Load() {
			return false
		}
		delete(s.left, client.ObjectKeyFromObject(r.object))
		return true
	})
}

// isUnserved tells whether the status says that no broker serves a MeshService. That it is Stale says another broker,
// too, of a mesh that it cannot serve: then it knows the reason.
func isUnserved(m *v1alpha1.MeshService, report v1alpha1.State) bool {
	switch st := &m.Status; st.State {
	case v1alpha1.StateStale:
		return m.IsAbandoned() || report != v1alpha1.StateStale || st.ObservedGeneration != m.Generation
	case "", v1alpha1.StateUnsupported:
		return true
	}
	return false
}

// Forget says that this broker does not hold the links: when it does, it reports anew.
func (s *Services) Forget() { s.reported = false }
