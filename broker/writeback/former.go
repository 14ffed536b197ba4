package writeback

// Objects that this broker does not serve any more: with other served-links, another broker writes their status, or none
// does, and then the last state must not stand for ever.

import (
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// formerMessage is what an object says until another broker speaks for it.
const formerMessage = "the broker that served this has other served-links now, and no other broker has taken it: " +
	"name it, or its mesh, in served-links of one broker"

// Former remembers the KubeLinks that this process has written the status of. It outlives writers, and has one user at
// a time. The zero value is ready.
type Former struct {
	served map[string]bool
	left   map[string]string // versions of objects that are no longer served, as they were then
}

// AddOutcomes adds an outcome for each object that has been served before and is not any more. It is written once:
// after a change of the object, another broker speaks for it.
func (f *Former) AddOutcomes(items []v1alpha1.KubeLink, outcomes []Link) []Link {
	served := map[string]bool{}
	for i := range outcomes {
		served[outcomes[i].Object.Name] = true
	}
	left := map[string]string{}
	for i := range items {
		o := &items[i]
		version, leaves := f.left[o.Name]
		if f.served[o.Name] && !served[o.Name] {
			version, leaves = o.ResourceVersion, true
		}
		if !leaves || served[o.Name] || version != o.ResourceVersion || o.DeletionTimestamp != nil {
			continue
		}
		left[o.Name] = version
		none := func(string) bool { return false }
		outcomes = append(outcomes, Link{Object: o, State: v1alpha1.StateStale, Message: formerMessage,
			Forwarding: (&Observations{}).forwarding(none)})
	}
	f.served, f.left = served, left
	return outcomes
}
