package survey

// The links of several clusters, each with what both of its ends say.

import (
	"net/netip"
	"slices"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/diagnosis"
)

// Link is a link of a cluster, with what the cluster at its other end says of the way back.
type Link struct {
	Context string `json:"context"`
	Mode    string `json:"mode,omitempty"`
	diagnosis.Link
	Old  bool  `json:"old,omitempty"`  // no broker tells: this is the status that the object has
	Back *Back `json:"back,omitempty"` // nil: the cluster at the other end was not asked, or did not answer
}

// Back is the link of the other cluster to this one.
type Back struct {
	Context string `json:"context"`
	Name    string `json:"name,omitempty"` // of the KubeLink there; empty: there is none
	State   string `json:"state"`          // Missing: there is none
	Reason  string `json:"reason,omitempty"`
}

// StateMissing is the state of a link that the other cluster does not have.
const StateMissing = "Missing"

// active returns the report of the broker that holds the links, or else of any; nil: none answers.
func (a *Answer) active() (r *diagnosis.Report) {
	for i := range a.Brokers {
		if next := a.Brokers[i].Report; next != nil && (r == nil || next.Lease.Active && !r.Lease.Active) {
			r = next
		}
	}
	return r
}

// Links are the links of all clusters, by context and name.
func Links(answers []Answer) (all []Link) {
	known := make([][]Link, len(answers))
	for i := range answers {
		known[i] = answers[i].links()
	}
	for i := range answers {
		for _, l := range known[i] {
			l.Back = findBack(answers, known, i, &l)
			all = append(all, l)
		}
	}
	return all
}

// links merges what the brokers of a cluster report: with served-links there are several, each with its links. Without
// a report, the objects have the states that were written last.
func (a *Answer) links() (all []Link) {
	known := map[string]int{}
	for i := range a.Brokers {
		r := a.Brokers[i].Report
		if r == nil {
			continue
		}
		for _, l := range r.Links {
			link := Link{Context: a.Context, Mode: r.Mode, Link: l}
			at, ok := known[l.Name]
			if !ok {
				known[l.Name] = len(all)
				all = append(all, link)
			} else if r.Lease.Active {
				all[at] = link
			}
		}
	}
	for i := range a.Links {
		o := &a.Links[i]
		if _, ok := known[o.Name]; ok || o.Spec.Endpoint == v1alpha1.EndpointLocal || len(known) > 0 {
			continue
		}
		l := Link{Context: a.Context, Old: true}
		l.Name, l.ClusterAddress, l.CIDR, l.Endpoint = o.Name, o.Spec.ClusterAddress, o.Spec.CIDR, o.Spec.Endpoint
		l.State, l.Message, l.Reason = string(o.Status.State), o.Status.Message, o.Status.Message
		all = append(all, l)
	}
	return all
}

// end is the place of a cluster in a mesh.
type end struct {
	answer  *Answer
	cluster diagnosis.Cluster
}

// ends are the places of a cluster, by its reports or else by its LocalLinks.
func (a *Answer) ends() (all []end) {
	if r := a.active(); r != nil {
		for _, c := range r.Clusters {
			all = append(all, end{a, c})
		}
		return all
	}
	for i := range a.Links {
		if o := &a.Links[i]; o.Spec.Endpoint == v1alpha1.EndpointLocal {
			c := diagnosis.Cluster{Link: o.Name, Name: o.Name, Addresses: []string{o.Spec.ClusterAddress}}
			if o.Spec.CIDR != "" {
				c.Services = []string{o.Spec.CIDR}
			}
			all = append(all, end{a, c})
		}
	}
	return all
}

// hasAddress tells whether a cluster address with its mask is one of the end.
func (e *end) hasAddress(text string) bool { return slices.Contains(e.cluster.Addresses, text) }

// sameMesh tells whether an end has an address in the network of a cluster address.
func (e *end) sameMesh(text string) bool {
	network, err := netip.ParsePrefix(text)
	return err == nil && slices.ContainsFunc(e.cluster.Addresses, func(own string) bool {
		a, err := netip.ParsePrefix(own)
		return err == nil && network.Contains(a.Addr())
	})
}

// findEnd finds the cluster at the other end of a link of the answer number from, and the number of its answer.
func findEnd(answers []Answer, from int, l *Link) (e *end, at int) {
	for i := range answers {
		if i == from {
			continue
		}
		for _, e := range answers[i].ends() {
			if e.hasAddress(l.ClusterAddress) {
				return &e, i
			}
		}
	}
	return nil, 0
}

// findBack finds the link of the other cluster to this one, among the links of all answers.
func findBack(answers []Answer, links [][]Link, from int, l *Link) *Back {
	other, at := findEnd(answers, from, l)
	if other == nil || other.answer.LinksErr != nil && other.answer.active() == nil {
		return nil
	}
	for _, own := range answers[from].ends() {
		if !own.sameMesh(l.ClusterAddress) {
			continue
		}
		for _, back := range links[at] {
			if own.hasAddress(back.ClusterAddress) {
				return &Back{other.answer.Context, back.Name, back.State, back.Reason}
			}
		}
	}
	return &Back{Context: other.answer.Context, State: StateMissing}
}

// Age is the time since a link has its state; 0: not known.
func (l *Link) Age(now time.Time) time.Duration {
	if l.Since == nil {
		return 0
	}
	return max(now.Sub(*l.Since), 0)
}
