package lease

// What a standby knows of the links: what their holder has written.

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// View is what one reconciliation sees of the brokers of the links.
type View struct {
	*State
	Elsewhere map[string]zone.Status // links that another broker carries; nil: this one does
}

// ViewLinks returns the State with what it says of links.
func (s *State) ViewLinks(objects *mesh.Objects, state *mesh.State) View {
	if s.Role != Standby {
		return View{State: s}
	}
	return View{State: s, Elsewhere: s.linkStatuses(objects, state)}
}

// linkStatuses are the states of the links as DNS tells them. A standby asks a cluster for names when its link is Up at
// the holder, and when this node has a route there: on the default route, questions would leave for the outside world.
func (s *State) linkStatuses(objects *mesh.Objects, state *mesh.State) map[string]zone.Status {
	routed := map[string]bool{}
	for _, z := range state.Zones {
		for _, c := range z.Clusters {
			routed[c.Link] = c.Upstream.IsValid() && objects.Host.HasRoute(c.Upstream.Addr())
		}
	}
	statuses := make(map[string]zone.Status, len(objects.Links))
	for i := range objects.Links {
		l := &objects.Links[i]
		up := l.Status.State == v1alpha1.StateUp
		status := zone.Status{State: string(l.Status.State), Usable: up && routed[l.Name],
			Reason: fmt.Sprintf("the broker on %s carries the link", s.Holder)}
		if up && !status.Usable {
			status.Reason += ", and this node has no route to it"
		}
		if l.Status.Message != "" {
			status.Reason += ": " + l.Status.Message
		}
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
