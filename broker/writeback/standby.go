package writeback

// Who writes what when several brokers serve the same links: the holder writes all, a standby only its own entry in the
// list of standbys of each LocalLink.

import (
	"fmt"
	"slices"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

const (
	// standbyInterval is how often the holder empties the list of standbys: a broker that is gone with its node leaves its
	// entry, and one that lives enters itself again.
	standbyInterval = 10 * time.Minute
	maxStandbys     = 64 // as the CRD says
)

// StandbyOutcomes is what a standby on a node says at the LocalLinks, but for those of other brokers.
func StandbyOutcomes(
	items []v1alpha1.KubeLink, foreign map[string]bool, node, holder string, term uint32,
) []Link {
	standby := &v1alpha1.Standby{Node: node, Message: fmt.Sprintf(
		"%s holds the links with term %d: this broker answers DNS, and takes the links when that Lease ends", holder, term)}
	var outcomes []Link
	for i := range items {
		obj := &items[i]
		if obj.Spec.Endpoint == v1alpha1.EndpointLocal && !foreign[obj.Name] {
			outcomes = append(outcomes, Link{Object: obj, Standby: standby})
		}
	}
	return outcomes
}

// enterStandby enters a standby in the list of a KubeLink.
func enterStandby(obj *v1alpha1.KubeLink, standby *v1alpha1.Standby) {
	st := &obj.Status
	isOwn := func(s v1alpha1.Standby) bool { return s.Node == standby.Node }
	if i := slices.IndexFunc(st.Standbys, isOwn); i >= 0 {
		st.Standbys[i] = *standby
	} else if len(st.Standbys) < maxStandbys {
		st.Standbys = append(st.Standbys, *standby)
	}
}

// removeStandbys removes the entry of the node that holds the links, and now and then all.
func removeStandbys(obj *v1alpha1.KubeLink, node string, budget *statusBudget) {
	now := time.Now()
	isOwn := func(s v1alpha1.Standby) bool { return s.Node == node }
	if now.Sub(budget.emptiedAt) > standbyInterval {
		budget.emptiedAt = now
		isOwn = func(v1alpha1.Standby) bool { return true }
	}
	if obj.Status.Standbys = slices.DeleteFunc(obj.Status.Standbys, isOwn); len(obj.Status.Standbys) == 0 {
		obj.Status.Standbys = nil
	}
}
