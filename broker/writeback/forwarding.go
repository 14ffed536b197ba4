package writeback

// The condition Forwarding: what the check of the node says of a link; of a LocalLink also what other nodes lack.

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// The reasons of the condition where there is no finding.
const (
	reasonNotChecked      = "NotChecked"
	reasonCheckIncomplete = "CheckIncomplete"
	reasonNothingFound    = "NothingFound"
)

// forwarding is the condition of a KubeLink, which the selected peers concern.
func (seen *Observations) forwarding(selected func(peer string) bool) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionForwarding, Status: metav1.ConditionUnknown, Reason: reasonNotChecked}
	found := seen.Findings.Select(selected)
	switch {
	case len(found) > 0:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, found[0].Reason, found.String()
	case seen.Unchecked != nil:
		c.Reason, c.Message = reasonCheckIncomplete, OneLine(seen.Unchecked)
	case seen.Checked:
		c.Status, c.Reason = metav1.ConditionTrue, reasonNothingFound
	}
	return c
}

// announceForwarding makes an event when something else stands in the way of packets, or nothing any more. A new state
// has an event of its own, which says it, too.
func announceForwarding(recorder events.EventRecorder, before, obj *v1alpha1.KubeLink) {
	was := meta.FindStatusCondition(before.Status.Conditions, v1alpha1.ConditionForwarding)
	is := meta.FindStatusCondition(obj.Status.Conditions, v1alpha1.ConditionForwarding)
	if is == nil {
		return
	}
	wasFalse := was != nil && was.Status == metav1.ConditionFalse
	switch {
	case is.Status == metav1.ConditionFalse && (!wasFalse || was.Message != is.Message):
		recorder.Eventf(obj, nil, corev1.EventTypeWarning, is.Reason, "Check", "%s", is.Message)
	case is.Status == metav1.ConditionTrue && wasFalse:
		recorder.Eventf(obj, nil, corev1.EventTypeNormal, "Forwarding", "Check", "nothing stands in the way of packets")
	}
}
