package writeback

import (
	"errors"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

func newKubeLink(name, endpoint string) v1alpha1.KubeLink {
	return v1alpha1.KubeLink{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.KubeLinkSpec{Endpoint: endpoint},
	}
}

// deleted returns a KubeLink that the API server deletes when its finalizers are gone.
func deleted(l v1alpha1.KubeLink) v1alpha1.KubeLink {
	l.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	return l
}

// showOutcomes shows each outcome on a line: name, state, message, and whether there is to be a finalizer.
func showOutcomes(outcomes []Link) (text string) {
	for _, o := range outcomes {
		text += fmt.Sprintf("%s %s %q", o.Object.Name, o.State, o.Message)
		if o.Finalizer {
			text += " finalizer"
		}
		text += "\n"
	}
	return text
}

func TestLinkOutcomesOfLocalLinks(t *testing.T) {
	local, peer := newKubeLink("m--self", v1alpha1.EndpointLocal), newKubeLink("m--peer", "b.example")
	alone := []v1alpha1.KubeLink{local}
	set := mesh.State{Meshes: []mesh.Mesh{{Name: "m", Link: "m--self"}}}
	invalid := mesh.State{Problems: map[string]mesh.Problem{"m--self": {State: v1alpha1.StateInvalid, Message: "bad"}}}
	stale := mesh.State{Problems: map[string]mesh.Problem{"m--self": {State: v1alpha1.StateStale, Message: "another"}}}
	noted := set
	noted.Notes = map[string]string{"m--self": "first"}
	withMembers := mesh.State{Meshes: []mesh.Mesh{{Link: "m--self", Members: []string{"m--peer", "m--third"}}}}
	onNode := link.Findings{{Reason: "ForwardingOff", Text: "off", Remedy: "switch it on"}}
	onOthers := link.Findings{{Reason: link.RouterMissing, Text: "no router on node2", Remedy: "install it"}}
	ofMember := link.Findings{{Link: "m--peer", Reason: "ForeignRoute", Text: "a route", Remedy: "remove it"}}
	foreign, shared := set, mesh.State{Meshes: []mesh.Mesh{{Link: "m--self", Shared: true}}}
	foreign.Foreign = map[string]bool{"m--self": true}
	aged := func(name string, age time.Duration) v1alpha1.KubeLink {
		l := newKubeLink(name, "b.example")
		l.CreationTimestamp = metav1.NewTime(time.Now().Add(-age))
		return l
	}
	written := aged("m--written", time.Minute)
	written.Status.State = v1alpha1.StateDown
	var many []v1alpha1.KubeLink
	for i := range 8 {
		many = append(many, aged(fmt.Sprint("m--l", i), time.Minute))
	}
	for _, c := range []struct {
		name  string
		items []v1alpha1.KubeLink
		state mesh.State
		seen  Observations
		want  string
	}{
		{"set up", alone, set, Observations{}, `m--self Up ""`},
		{"notes in their order", alone, noted, Observations{
			Notes: map[string][]string{"m--self": {"second", "third"}, "m--other": {"not here"}}, Announce: errors.New("a\nb"),
		}, `m--self Up "first; second; third; a; b"`},
		{"the kernel is still being told", alone, noted, Observations{
			Pending: errors.New("busy\nnow"), Announce: errors.New("no token"),
		}, `m--self Up "first; busy; now; no token"`},
		{"invalid", alone, invalid, Observations{Apply: errors.New("apply")}, `m--self Invalid "bad"`},
		{"invalid, with a member", []v1alpha1.KubeLink{local, peer}, invalid, Observations{},
			`m--self Invalid "bad" finalizer`},
		{"stale: another LocalLink keeps the members", []v1alpha1.KubeLink{local, peer}, stale, Observations{},
			`m--self Stale "another"`},
		{"state not applied", alone, noted, Observations{Apply: errors.New("no device\nno route")},
			`m--self Error "no device; no route"`},
		{"something on the node stands in the way", alone, noted, Observations{Findings: onNode},
			`m--self Error "off: switch it on; first"`},
		{"pods of other nodes have no way here", alone, noted, Observations{Nodes: onOthers},
			`m--self Up "no router on node2: install it; first"`},
		{"neither they nor packets of links", alone, noted, Observations{Findings: onNode, Nodes: onOthers},
			`m--self Error "off: switch it on; no router on node2: install it; first"`},
		{"they have no way, and a member has not", alone, withMembers, Observations{Findings: ofMember, Nodes: onOthers},
			`m--self Up "link m--peer: a route: remove it; no router on node2: install it"`},
		{"something stands in the way of a member", alone, withMembers, Observations{Findings: ofMember},
			`m--self Up "link m--peer: a route: remove it"`},
		{"something stands in the way of a link of another mesh", alone, set, Observations{Findings: ofMember},
			`m--self Up ""`},
		{"no credentials", alone, set, Observations{Creds: errors.New("no secret")}, `m--self Error "no secret"`},
		{"neither", alone, set, Observations{Creds: errors.New("no secret"), Apply: errors.New("no device")},
			`m--self Error "no secret; no device"`},
		{"credentials are in use, a new version is not", alone, set,
			Observations{Creds: errors.New("cannot be parsed"), Usable: true}, `m--self Error "cannot be parsed"`},
		{"being deleted", []v1alpha1.KubeLink{deleted(local), peer}, withMembers, Observations{},
			`m--self Deleting "waits for the deletion of m--peer, m--third" finalizer`},
		{"being deleted, and invalid", []v1alpha1.KubeLink{deleted(local)}, invalid, Observations{},
			`m--self Deleting "waits for the deletion of "`},
		{"being deleted, and not applied", []v1alpha1.KubeLink{deleted(local)}, withMembers,
			Observations{Apply: errors.New("apply")}, `m--self Deleting "waits for the deletion of m--peer, m--third"`},

		{"with a member", []v1alpha1.KubeLink{local, peer}, set, Observations{},
			`m--self Up "" finalizer`},
		{"the last member is about to go", []v1alpha1.KubeLink{local, deleted(peer)}, set, Observations{},
			`m--self Up ""`},
		{"members of other meshes", []v1alpha1.KubeLink{local, newKubeLink("n--peer", "b.example"), newKubeLink("m", "b")},
			set, Observations{}, `m--self Up ""`},
		{"a LocalLink is no member", []v1alpha1.KubeLink{local, newKubeLink("m--too", v1alpha1.EndpointLocal)}, set,
			Observations{}, `m--self Up ""` + "\n" + `m--too Up ""`},
		{"the default mesh", []v1alpha1.KubeLink{newKubeLink("self", v1alpha1.EndpointLocal), newKubeLink("peer", "b")},
			mesh.State{Meshes: []mesh.Mesh{{Link: "self"}}}, Observations{}, `self Up "" finalizer`},

		{"another broker writes it", alone, foreign, Observations{}, ``},
		{"no broker serves a link", []v1alpha1.KubeLink{local, aged("m--four", time.Minute), aged("m--five", time.Minute),
			aged("m--new", time.Second), written, deleted(aged("m--gone", time.Minute)), aged("four", time.Minute)}, shared,
			Observations{}, `m--self Up "no broker serves m--four, m--five: name each link, or the mesh, in served-links ` +
				`of a broker" finalizer`},
		{"no broker serves many links", append(many, local), shared, Observations{},
			`m--self Up "no broker serves m--l0, m--l1, m--l2, m--l3, m--l4, 3 more: name each link, or the mesh, in ` +
				`served-links of a broker" finalizer`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.want != "" {
				c.want += "\n"
			}
			if got := showOutcomes(LinkOutcomes(c.items, &c.state, &c.seen)); got != c.want {
				t.Errorf("got  %swant %s", got, c.want)
			}
		})
	}
}

func TestLinkOutcomesOfPeers(t *testing.T) {
	usable := mesh.State{
		Links: []mesh.Link{{Name: "peer", Peer: "peer"}}, Notes: map[string]string{"peer": "note", "other": "not here"},
	}
	behind := mesh.State{Links: []mesh.Link{{Name: "peer", Peer: "gw"}}, Notes: map[string]string{"peer": "note"}}
	broken := usable // one that became invalid after it was usable
	broken.Problems = map[string]mesh.Problem{"peer": {State: v1alpha1.StateStale, Message: "no mesh"}}
	statuses := func(all ...link.Status) Observations {
		seen := Observations{Statuses: map[string]link.Status{}, Usable: true}
		for _, st := range all {
			seen.Statuses[st.Link] = st
		}
		return seen
	}
	unrouted := func(st link.Status) Observations {
		seen := statuses(st)
		seen.Unrouted = map[string]bool{"peer": true}
		return seen
	}
	noCredentials := statuses(link.Status{Link: "peer", State: link.Up})
	noCredentials.Usable, noCredentials.Creds = false, errors.New("secret a/b:\nno key")
	otherErrors := statuses(link.Status{Link: "peer", State: link.Up})
	otherErrors.Apply, otherErrors.Creds, otherErrors.Announce = errors.New("a"), errors.New("b"), errors.New("c")
	otherErrors.Notes = map[string][]string{"peer": {"names are old"}}
	obstructed := func(peer string, st link.Status) Observations {
		seen := statuses(st)
		seen.Findings = link.Findings{{Link: peer, Reason: "ForeignRoute", Text: "a route", Remedy: "remove it"}}
		return seen
	}
	elsewhere := statuses(link.Status{Link: "peer", State: link.Up})
	elsewhere.Nodes = link.Findings{{Reason: link.RouterMissing, Text: "no router on node2", Remedy: "install it"}}
	modeNone := Observations{Notes: map[string][]string{"peer": {"names are old"}}}
	for _, c := range []struct {
		name  string
		state mesh.State
		seen  Observations
		want  string
	}{
		{"other nodes have no router: packets of other pods pass", usable, elsewhere, `peer Up "note"`},
		{"broken", broken, statuses(link.Status{Link: "peer", State: link.Up}), `peer Stale "no mesh"`},
		{"neither usable nor broken: another broker serves it", mesh.State{}, statuses(), ``},
		{"mode none", usable, modeNone,
			`peer Idle "mode none: this broker serves names, and carries no traffic; note; names are old"`},
		{"no credentials", usable, noCredentials, `peer Error "secret a/b:; no key"`},
		{"the dataplane does not know it yet", usable, statuses(), `peer Idle "note"`},
		{"never connected", usable, statuses(link.Status{Link: "peer", State: link.Idle, Reason: "dials"}),
			`peer Idle "dials; note"`},
		{"connected", usable, statuses(link.Status{Link: "peer", State: link.Up}), `peer Up "note"`},
		{"connected before its routes are there", usable, unrouted(link.Status{Link: "peer", State: link.Up}),
			`peer Idle "its routes are being set; note"`},
		{"lost before its routes are there", usable,
			unrouted(link.Status{Link: "peer", State: link.Down, Reason: "silent"}), `peer Down "silent; note"`},
		{"behind a gateway before its routes are there", behind, unrouted(link.Status{Link: "gw", State: link.Up}),
			`peer Idle "its routes are being set; note"`},
		{"connected; errors of this end show at the LocalLink", usable, otherErrors, `peer Up "note; names are old"`},
		{"connected, and something on the node is in the way", usable,
			obstructed("", link.Status{Link: "peer", State: link.Up}), `peer Error "a route: remove it; note"`},
		{"connected, and a route is in the way", usable,
			obstructed("peer", link.Status{Link: "peer", State: link.Up}), `peer Error "link peer: a route: remove it; note"`},
		{"connected, and a route is in the way of another link", usable,
			obstructed("other", link.Status{Link: "peer", State: link.Up}), `peer Up "note"`},
		{"lost, and a route is in the way", usable,
			obstructed("peer", link.Status{Link: "peer", State: link.Down, Reason: "silent"}),
			`peer Down "silent; link peer: a route: remove it; note"`},
		{"a route is in the way of its gateway", behind,
			obstructed("gw", link.Status{Link: "gw", State: link.Up}), `peer Error "link gw: a route: remove it; note"`},
		{"lost", usable, statuses(link.Status{Link: "peer", State: link.Down, Reason: "silent"}),
			`peer Down "silent; note"`},
		{"behind a gateway", behind, statuses(link.Status{Link: "gw", State: link.Up, Reason: "not shown"}),
			`peer Up "through gw; note"`},
		{"behind a lost gateway", behind, statuses(link.Status{Link: "gw", State: link.Down, Reason: "silent"}),
			`peer Down "gateway gw is Down; silent; note"`},
		{"behind a new gateway", behind, statuses(link.Status{Link: "gw", State: link.Idle}),
			`peer Idle "gateway gw is Idle; note"`},
		{"behind a gateway without status", behind, statuses(link.Status{Link: "peer", State: link.Up}),
			`peer Idle "note"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.want != "" {
				c.want += "\n"
			}
			items := []v1alpha1.KubeLink{newKubeLink("peer", "b.example")}
			// That this broker serves a link to a peer is in the State.
			if got := showOutcomes(LinkOutcomes(items, &c.state, &c.seen)); got != c.want {
				t.Errorf("got  %swant %s", got, c.want)
			}
		})
	}
}

// The outcomes are in the order of the objects, and refer to them.
func TestLinkOutcomesOrder(t *testing.T) {
	items := []v1alpha1.KubeLink{
		newKubeLink("b", "b.example"), newKubeLink("gone", "c.example"), newKubeLink("a", v1alpha1.EndpointLocal),
	}
	s := mesh.State{
		Meshes: []mesh.Mesh{{Link: "a"}}, Links: []mesh.Link{{Name: "b", Peer: "b"}},
	}
	outcomes := LinkOutcomes(items, &s, &Observations{})
	if len(outcomes) != 2 || outcomes[0].Object != &items[0] || outcomes[1].Object != &items[2] {
		t.Errorf("got\n%s", showOutcomes(outcomes))
	}
}
