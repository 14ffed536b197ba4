package writeback

// What users are to see of each KubeLink after a reconciliation. All of this is pure.

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Observations are what the parts of the broker say of objects, besides the State.
type Observations struct {
	Statuses  map[string]link.Status  // of peers, by link; nil: this broker carries no traffic
	Unrouted  map[string]bool         // links whose routes the kernel does not have yet: no packets pass
	Notes     map[string][]string     // by link
	Apply     error                   // the state could not be applied in full
	Pending   error                   // a part of the state is still being applied
	Creds     error                   // the credentials, or a new version of them, cannot be used
	Usable    bool                    // there are credentials
	PublicKey string                  // of this cluster, in mode wireguard
	Announce  error                   // this cluster does not announce all that it should
	Contested map[string][]netip.Addr // by the link that has them

	Checked   bool          // the node was checked
	Findings  link.Findings // what keeps packets from passing
	Unchecked error         // why a part of the node could not be checked

	// On which other nodes pods have no way to the links, and why that is not known. LocalLinks tell it: there may be many
	// links, and a node that comes or goes must not change the statuses of all of them.
	Nodes        link.Findings
	NodesUnknown error
}

// AddNote adds a note to a link; an empty text is none.
func (seen *Observations) AddNote(link, text string) {
	if text == "" {
		return
	}
	if seen.Notes == nil {
		seen.Notes = map[string][]string{}
	}
	seen.Notes[link] = append(seen.Notes[link], text)
}

// SetStatuses says that this broker carries traffic, and how links are. Their notes are added.
func (seen *Observations) SetStatuses(statuses []link.Status) {
	seen.Statuses = make(map[string]link.Status, len(statuses))
	for _, st := range statuses {
		seen.Statuses[st.Link] = st
		seen.AddNote(st.Link, st.Note)
	}
}

// LinkOutcomes says for each KubeLink what users are to see of it. KubeLinks for which another broker may speak, or
// which are about to go, are left out.
func LinkOutcomes(items []v1alpha1.KubeLink, s *mesh.State, seen *Observations) []Link {
	meshes := map[string]mesh.Mesh{} // by LocalLink
	for _, m := range s.Meshes {
		meshes[m.Link] = m
	}
	links := make(map[string]mesh.Link, len(s.Links))
	for _, l := range s.Links {
		links[l.Name] = l
	}
	outcomes := make([]Link, 0, len(items))
	for i := range items {
		obj := &items[i]
		none := func(string) bool { return false }
		out := Link{Object: obj, Forwarding: (&Observations{}).forwarding(none)}
		problem, broken := s.Problems[obj.Name]
		out.Notes = slices.DeleteFunc(append([]string{s.Notes[obj.Name]}, seen.Notes[obj.Name]...),
			func(text string) bool { return text == "" })
		note := joinTexts(slices.Clone(out.Notes)...)
		if obj.Spec.Endpoint == v1alpha1.EndpointLocal {
			if s.Foreign[obj.Name] {
				continue
			}
			if meshes[obj.Name].Shared {
				unserved := unservedNote(items, obj.Name, links, s.Problems)
				note, out.Notes = joinTexts(note, unserved), addText(out.Notes, unserved)
			}
			out.PublicKey = seen.PublicKey
			out.Finalizer = problem.State != v1alpha1.StateStale && hasMembers(items, obj.Name)
			members := meshes[obj.Name].Members
			out.State, out.Message = localState(obj, members, note, problem, seen)
			out.Notes = addText(out.Notes, OneLine(seen.Announce))
			if !broken {
				all := *seen
				all.Findings = slices.Concat(seen.Findings, seen.Nodes)
				all.Unchecked = errors.Join(seen.Unchecked, seen.NodesUnknown)
				out.Forwarding = all.forwarding(func(peer string) bool { return slices.Contains(members, peer) })
			}
		} else if out.Contested = seen.Contested[obj.Name]; broken {
			out.State, out.Message = problem.State, problem.Message
		} else if l, usable := links[obj.Name]; usable {
			out.State, out.Message = remoteState(l, note, seen)
			out.Forwarding = seen.forwarding(func(peer string) bool { return peer == l.Peer })
		} else {
			continue
		}
		outcomes = append(outcomes, out)
	}
	return outcomes
}

// localState is the state of a LocalLink.
func localState(
	obj *v1alpha1.KubeLink, members []string, note string, problem mesh.Problem, seen *Observations,
) (v1alpha1.State, string) {
	failed := errors.Join(seen.Creds, seen.Apply)
	isMember := func(peer string) bool { return slices.Contains(members, peer) }
	switch {
	case obj.DeletionTimestamp != nil:
		return v1alpha1.StateDeleting, "waits for the deletion of " + strings.Join(members, ", ")
	case problem.State != "":
		return problem.State, problem.Message
	case failed != nil:
		return v1alpha1.StateError, joinTexts(OneLine(failed), seen.Findings.Select(isMember).String())
	case len(seen.Findings.About("")) > 0:
		return v1alpha1.StateError, joinTexts(seen.Findings.Select(isMember).String(), seen.Nodes.String(), note)
	}
	// What one link or another node lacks is no fault of the mesh.
	return v1alpha1.StateUp, joinTexts(seen.Findings.Select(isMember).String(), seen.Nodes.String(), note,
		OneLine(seen.Pending), OneLine(seen.Announce))
}

// remoteState is the state of a usable link to another cluster.
func remoteState(l mesh.Link, note string, seen *Observations) (v1alpha1.State, string) {
	switch {
	case seen.Statuses == nil:
		return v1alpha1.StateIdle, joinTexts("mode none: this broker serves names, and carries no traffic", note)
	case !seen.Usable:
		return v1alpha1.StateError, OneLine(seen.Creds)
	}
	st, ok := seen.Statuses[l.Peer]
	found := seen.Findings.About(l.Peer)
	note = joinTexts(found.String(), note)
	switch {
	case !ok:
		return v1alpha1.StateIdle, note
	case st.State == link.Up && seen.Unrouted[l.Name]:
		return v1alpha1.StateIdle, joinTexts(link.Unrouted, note)
	case st.State == link.Up && len(found) > 0:
		return v1alpha1.StateError, note
	case l.Peer == l.Name:
		return v1alpha1.State(st.State), joinTexts(st.Reason, note)
	case st.State == link.Up:
		return v1alpha1.StateUp, joinTexts("through "+l.Peer, note)
	}
	return v1alpha1.State(st.State), joinTexts(fmt.Sprintf("gateway %s is %s", l.Peer, st.State), st.Reason, note)
}

const (
	// claimTime is how long brokers have to say something of a new link.
	claimTime = 5 * time.Second
	// maxUnserved bounds the links that a message lists.
	maxUnserved = 5
)

// unservedNote names the links of a mesh for which no broker speaks.
func unservedNote(
	items []v1alpha1.KubeLink, local string, links map[string]mesh.Link, problems map[string]mesh.Problem,
) string {
	name, _ := mesh.LinkName(local)
	var unserved []string
	for i := range items {
		o := &items[i]
		m, _ := mesh.LinkName(o.Name)
		_, usable := links[o.Name]
		_, broken := problems[o.Name]
		if m == name && o.Spec.Endpoint != v1alpha1.EndpointLocal && o.DeletionTimestamp == nil && !usable && !broken &&
			o.Status.State == "" && time.Since(o.CreationTimestamp.Time) > claimTime {
			unserved = append(unserved, o.Name)
		}
	}
	if len(unserved) == 0 {
		return ""
	}
	if more := len(unserved) - maxUnserved; more > 0 {
		unserved = append(unserved[:maxUnserved:maxUnserved], fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("no broker serves %s: name each link, or the mesh, in served-links of a broker",
		strings.Join(unserved, ", "))
}

// addText appends a text that is not empty.
func addText(texts []string, text string) []string {
	if text == "" {
		return texts
	}
	return append(texts, text)
}

// hasMembers says whether the mesh of a LocalLink has other links that are not about to go.
func hasMembers(items []v1alpha1.KubeLink, local string) bool {
	name, _ := mesh.LinkName(local)
	return slices.ContainsFunc(items, func(o v1alpha1.KubeLink) bool {
		m, _ := mesh.LinkName(o.Name)
		return m == name && o.Spec.Endpoint != v1alpha1.EndpointLocal && o.DeletionTimestamp == nil
	})
}

// OneLine is the text of an error on one line; empty for nil.
func OneLine(err error) string {
	if err == nil {
		return ""
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}
