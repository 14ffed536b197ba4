package writeback

// What the writer writes to one KubeLink: finalizer, facts that the peer announced, status, event.

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// The status of a link is written statusBurst times at once, and then once in each statusInterval. A write wakes
// everything that watches the link: two brokers that see it in different ways would write in turns as fast as the API
// server lets them.
const (
	statusBurst    = 60
	statusInterval = 5 * time.Second
)

// statusBudget bounds the writes to the status of one KubeLink.
type statusBudget struct {
	*rate.Limiter
	told      bool      // the log says that it is bounded
	emptiedAt time.Time // when the list of standbys was emptied
}

// writeLink writes finalizer, announced facts and status of one link, where they differ.
func (w *Writer) writeLink(ctx context.Context, l Link) error {
	if l.Standby != nil {
		return w.writeStandby(ctx, l)
	}
	before, gone, err := w.writeFinalizer(ctx, l)
	if gone || err != nil {
		return err
	}
	var adoptErr error
	if l.Adopt != nil {
		var note string
		note, adoptErr = l.Adopt(ctx)
		l.Message = joinTexts(l.Message, note)
	}
	if l.Object.Spec.Endpoint == v1alpha1.EndpointLocal && w.dnsNote != "" {
		l.Message = joinTexts(l.Message, "coredns-configure: "+w.dnsNote)
	}
	// Most statuses are right: only what is written needs a copy of the whole object.
	wanted := *before
	before.Status.DeepCopyInto(&wanted.Status)
	w.setStatus(&wanted, l)
	if sameStatus(&before.Status, &wanted.Status) || !w.allowStatus(before, l) {
		return adoptErr
	}
	obj := before.DeepCopy()
	obj.Status = wanted.Status
	// The cache may lack what the writer wrote last. Without the lock, the times of transitions, and events, would
	// belong to a change that did not happen.
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := w.Client.Status().Patch(ctx, obj, patch); err != nil {
		return errors.Join(adoptErr, err)
	}
	w.limits[obj.UID].Allow() // a failed write wakes nothing and costs nothing
	if before.Status.State != l.State {
		w.announceState(obj, l)
	} else {
		announceForwarding(w.Recorder, before, obj)
	}
	return adoptErr
}

// writeStandby writes the entry of this broker.
func (w *Writer) writeStandby(ctx context.Context, l Link) error {
	obj := l.Object.DeepCopy()
	enterStandby(obj, l.Standby)
	if sameStatus(&l.Object.Status, &obj.Status) || !w.allowStatus(obj, l) {
		return nil
	}
	patch := client.MergeFromWithOptions(l.Object.DeepCopy(), client.MergeFromWithOptimisticLock{})
	if err := w.Client.Status().Patch(ctx, obj, patch); err != nil {
		return err
	}
	w.limits[obj.UID].Allow()
	return nil
}

// sameStatus compares what the API server would store. The exact comparison comes first: it is a quarter of the work, and
// nearly all statuses pass it.
func sameStatus(a, b *v1alpha1.KubeLinkStatus) bool {
	return reflect.DeepEqual(a, b) || equality.Semantic.DeepEqual(a, b)
}

// writeFinalizer adds or removes the finalizer. It returns the object as it is then, and whether it is gone by that.
func (w *Writer) writeFinalizer(ctx context.Context, l Link) (obj *v1alpha1.KubeLink, gone bool, err error) {
	has := slices.Contains(l.Object.Finalizers, v1alpha1.Finalizer)
	if has == l.Finalizer || !has && l.Object.DeletionTimestamp != nil {
		return l.Object, false, nil
	}
	obj = l.Object.DeepCopy()
	if l.Finalizer {
		obj.Finalizers = append(obj.Finalizers, v1alpha1.Finalizer)
	} else {
		obj.Finalizers = slices.DeleteFunc(obj.Finalizers, func(f string) bool { return f == v1alpha1.Finalizer })
	}
	patch := client.MergeFromWithOptions(l.Object, client.MergeFromWithOptimisticLock{})
	if err := w.Client.Patch(ctx, obj, patch); err != nil {
		return nil, false, err
	}
	return obj, !l.Finalizer && obj.DeletionTimestamp != nil, nil
}

// shutdownTimeout bounds what is written at the end of the process.
const shutdownTimeout = 1500 * time.Millisecond

// removeFinalizers removes the finalizers that this writer keeps. The next broker adds them again.
func (w *Writer) removeFinalizers() {
	if w.written == nil || !w.MayWrite() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	for _, l := range w.written.Links {
		if !l.Finalizer {
			continue
		}
		err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { // the cache may lack what was written last
			obj := &v1alpha1.KubeLink{}
			if err := w.Client.Get(ctx, client.ObjectKeyFromObject(l.Object), obj); err != nil {
				return client.IgnoreNotFound(err)
			}
			_, _, err := w.writeFinalizer(ctx, Link{Object: obj})
			return client.IgnoreNotFound(err)
		})
		if err != nil {
			w.Log.Warn("cannot take the finalizer off: "+
				"without a broker, the LocalLink can be deleted only when a user removes it",
				"link", l.Object.Name, "finalizer", v1alpha1.Finalizer, "error", err)
		}
	}
}

// setStatus sets state, message and conditions of obj.
func (w *Writer) setStatus(obj *v1alpha1.KubeLink, l Link) {
	st := &obj.Status
	st.State, st.Message, st.ObservedGeneration = l.State, l.Message, obj.Generation
	st.Gateway, st.Term, st.PublicKey = w.NodeIP, int64(l.Term), l.PublicKey
	st.Contested = nil
	for _, a := range l.Contested {
		st.Contested = append(st.Contested, a.String())
	}
	removeStandbys(obj, w.NodeName, w.budgetOf(obj))
	accepted, ready := metav1.ConditionTrue, metav1.ConditionFalse
	if l.State == v1alpha1.StateInvalid || l.State == v1alpha1.StateStale {
		accepted = metav1.ConditionFalse
	}
	if l.State == v1alpha1.StateUp {
		ready = metav1.ConditionTrue
	}
	for _, c := range []metav1.Condition{
		{Type: v1alpha1.ConditionAccepted, Status: accepted},
		{Type: v1alpha1.ConditionReady, Status: ready},
	} {
		c.Reason, c.Message, c.ObservedGeneration = string(l.State), l.Message, obj.Generation
		if c.Type == v1alpha1.ConditionAccepted && accepted == metav1.ConditionTrue {
			c.Reason, c.Message = "Valid", ""
		}
		meta.SetStatusCondition(&st.Conditions, c)
	}
	if l.Forwarding.Type != "" {
		l.Forwarding.ObservedGeneration = obj.Generation
		meta.SetStatusCondition(&st.Conditions, l.Forwarding)
	}
}

// budgetOf returns the budget of obj.
func (w *Writer) budgetOf(obj *v1alpha1.KubeLink) *statusBudget {
	budget := w.limits[obj.UID]
	if budget == nil {
		budget = &statusBudget{Limiter: rate.NewLimiter(rate.Every(statusInterval), statusBurst)}
		w.limits[obj.UID] = budget
	}
	return budget
}

// allowStatus says whether the status of obj may be written now. Else the writer comes back to it.
func (w *Writer) allowStatus(obj *v1alpha1.KubeLink, l Link) bool {
	budget := w.budgetOf(obj)
	tokens := budget.Tokens()
	if tokens >= 1 {
		if tokens > statusBurst/2 {
			budget.told = false
		}
		return true
	}
	w.holdBack(time.Duration((1 - tokens) / float64(budget.Limit()) * float64(time.Second)))
	if !budget.told {
		w.Log.Warn("the status of a link changes too often: it is written at intervals from now on. "+
			"Either the link flaps, or another broker with another configuration runs in this cluster",
			"link", obj.Name, "interval", statusInterval, "state", l.State, "message", l.Message)
		budget.told = true
	}
	return false
}

// announceState makes an event and a line of the log of a new state.
func (w *Writer) announceState(obj *v1alpha1.KubeLink, l Link) {
	kind := corev1.EventTypeWarning
	if l.State == v1alpha1.StateUp || l.State == v1alpha1.StateIdle || l.State == v1alpha1.StateDeleting {
		kind = corev1.EventTypeNormal
	}
	note := l.Message
	if note == "" {
		note = "link is " + string(l.State)
	}
	w.Recorder.Eventf(obj, nil, kind, "Link"+string(l.State), "Reconcile", "%s", note)
	w.Log.Info("link "+string(l.State), "link", obj.Name, "message", l.Message)
}

// joinTexts joins texts that are not empty to one line.
func joinTexts(texts ...string) string {
	return strings.Join(slices.DeleteFunc(texts, func(s string) bool { return s == "" }), "; ")
}
