package v1alpha1

// What objects say when no broker keeps them any more.

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	abandonedLink    = "no broker keeps this link" + abandonedBecause
	abandonedService = "no broker serves this" + abandonedBecause
	abandonedBecause = ", as kubelink was removed from the cluster or scaled to 0: start a broker, or delete the object"
)

// Abandon says in the status that no broker keeps the link any more, and tells whether that is new. A link that is Up,
// or would become so, is Down from now on. What is wrong with the object stays true.
func (l *KubeLink) Abandon() (changed bool) {
	s := &l.Status
	switch s.State {
	case "", StateInvalid, StateStale, StateDeleting:
		return false
	case StateDown:
		if s.Message == abandonedLink {
			return false
		}
	}
	s.State, s.Message, s.Gateway, s.Contested, s.Standbys = StateDown, abandonedLink, "", nil, nil
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: ConditionReady, Status: metav1.ConditionFalse,
		Reason: string(StateDown), Message: abandonedLink, ObservedGeneration: s.ObservedGeneration})
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: ConditionForwarding, Status: metav1.ConditionUnknown,
		Reason: "NotChecked", ObservedGeneration: s.ObservedGeneration})
	return true
}

// Abandon says in the status that no broker serves the MeshService any more, and tells whether that is new. What is
// wrong with the object stays true.
func (m *MeshService) Abandon() (changed bool) {
	s := &m.Status
	if s.State != StateOk {
		return false
	}
	s.State, s.Message = StateStale, abandonedService
	for _, condition := range []string{ConditionAccepted, ConditionReady} {
		meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: condition, Status: metav1.ConditionFalse,
			Reason: string(StateStale), Message: abandonedService, ObservedGeneration: s.ObservedGeneration})
	}
	return true
}

// IsAbandoned tells whether the status says that no broker serves the MeshService any more.
func (m *MeshService) IsAbandoned() bool {
	return m.Status.State == StateStale && m.Status.Message == abandonedService
}
