package lease

// What a standby knows of the links: what their holder has written.

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// LinkStatuses are the states of the links as DNS tells them. The names of a cluster are asked for when its link is Up
// at the holder: whether there is a way to it depends on the routes of this node.
func (s *State) LinkStatuses(items []v1alpha1.KubeLink) map[string]zone.Status {
	statuses := make(map[string]zone.Status, len(items))
	for i := range items {
		l := &items[i]
		reason := fmt.Sprintf("the broker on %s carries the link", s.Holder)
		if l.Status.Message != "" {
			reason += ": " + l.Status.Message
		}
		status := zone.Status{State: string(l.Status.State), Reason: reason, Usable: l.Status.State == v1alpha1.StateUp}
		if status.State == "" {
			status.State = string(v1alpha1.StateIdle)
		}
		if c := meta.FindStatusCondition(l.Status.Conditions, v1alpha1.ConditionReady); c != nil {
			status.Since = c.LastTransitionTime.Time
		}
		statuses[l.Name] = status
	}
	return statuses
}
