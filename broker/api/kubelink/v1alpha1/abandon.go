package v1alpha1

// What a KubeLink says when no broker keeps it any more.

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const abandoned = "no broker keeps this link, as kubelink was removed from the cluster or scaled to 0: " +
	"start a broker, or delete the object"

// Abandon says that no broker keeps the status any more, and tells whether that is new. A link that is Up, or would
// become so, is Down from now on. What is wrong with the object stays true.
func (s *KubeLinkStatus) Abandon() (changed bool) {
	switch s.State {
	case "", StateInvalid, StateStale, StateDeleting:
		return false
	case StateDown:
		if s.Message == abandoned {
			return false
		}
	}
	s.State, s.Message, s.Gateway, s.Contested, s.Standbys = StateDown, abandoned, "", nil, nil
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: ConditionReady, Status: metav1.ConditionFalse,
		Reason: string(StateDown), Message: abandoned, ObservedGeneration: s.ObservedGeneration})
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: ConditionForwarding, Status: metav1.ConditionUnknown,
		Reason: "NotChecked", ObservedGeneration: s.ObservedGeneration})
	return true
}
