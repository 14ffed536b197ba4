package writeback

import (
	"errors"
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

func TestForwardingCondition(t *testing.T) {
	found := link.Findings{
		{Link: "b", Reason: "ForeignRoute", Text: "a route", Remedy: "remove it"},
		{Link: "c", Reason: "PacketFilter", Text: "a rule", Remedy: "remove that"},
	}
	for _, c := range []struct {
		name string
		seen Observations
		peer string
		want metav1.Condition
	}{
		{"not checked yet", Observations{}, "b", metav1.Condition{Status: "Unknown", Reason: "NotChecked"}},
		{"nothing found", Observations{Checked: true}, "b", metav1.Condition{Status: "True", Reason: "NothingFound"}},
		{"found", Observations{Checked: true, Findings: found}, "c",
			metav1.Condition{Status: "False", Reason: "PacketFilter", Message: "link c: a rule: remove that"}},
		{"found of other links", Observations{Checked: true, Findings: found}, "d",
			metav1.Condition{Status: "True", Reason: "NothingFound"}},
		{"not in full", Observations{Checked: true, Unchecked: errors.New("no\nnftables")}, "b",
			metav1.Condition{Status: "Unknown", Reason: "CheckIncomplete", Message: "no; nftables"}},
		{"not in full, and found", Observations{Checked: true, Findings: found, Unchecked: errors.New("no")}, "b",
			metav1.Condition{Status: "False", Reason: "ForeignRoute", Message: "link b: a route: remove it"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.Type = "Forwarding"
			if got := c.seen.forwarding(func(peer string) bool { return peer == c.peer }); got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// What other nodes lack concerns the LocalLink: the statuses of links do not change with it.
func TestForwardingOfOtherNodes(t *testing.T) {
	items := []v1alpha1.KubeLink{newKubeLink("self", v1alpha1.EndpointLocal), newKubeLink("peer", "b.example")}
	s := mesh.State{Meshes: []mesh.Mesh{{Link: "self", Members: []string{"peer"}}},
		Links: []mesh.Link{{Name: "peer", Peer: "peer"}}}
	missing := link.Findings{{Reason: link.RouterMissing, Text: "no router on node2", Remedy: "install it"}}
	route := link.Findings{{Link: "peer", Reason: "ForeignRoute", Text: "a route", Remedy: "remove it"}}
	for _, c := range []struct {
		name        string
		seen        Observations
		local, peer string
	}{
		{"no router", Observations{Checked: true, Nodes: missing},
			"False RouterMissing no router on node2: install it", "True NothingFound "},
		{"not known", Observations{Checked: true, NodesUnknown: errors.New("forbidden")},
			"Unknown CheckIncomplete forbidden", "True NothingFound "},
		{"found here first", Observations{Checked: true, Findings: route, Nodes: missing},
			"False ForeignRoute link peer: a route: remove it; no router on node2: install it",
			"False ForeignRoute link peer: a route: remove it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i, want := range []string{c.local, c.peer} {
				f := LinkOutcomes(items, &s, &c.seen)[i].Forwarding
				if got := fmt.Sprint(f.Status, " ", f.Reason, " ", f.Message); got != want {
					t.Errorf("%s: %s, want %s", items[i].Name, got, want)
				}
			}
		})
	}
}

// There is one event for each change of what stands in the way, and one when nothing does any more.
func TestForwardingEvents(t *testing.T) {
	recorder := events.NewFakeRecorder(10)
	last := &v1alpha1.KubeLink{}
	for _, c := range []struct {
		status  metav1.ConditionStatus
		message string
		want    string
	}{
		{"Unknown", "", ""},
		{"True", "", ""},
		{"False", "a route", "Warning ForeignRoute a route"},
		{"False", "a route", ""},
		{"False", "another route", "Warning ForeignRoute another route"},
		{"True", "", "Normal Forwarding nothing stands in the way of packets"},
		{"True", "", ""},
	} {
		now := &v1alpha1.KubeLink{}
		now.Status.Conditions = []metav1.Condition{
			{Type: v1alpha1.ConditionForwarding, Status: c.status, Reason: "ForeignRoute", Message: c.message}}
		announceForwarding(recorder, last, now)
		last = now
		got := ""
		select {
		case got = <-recorder.Events:
		default:
		}
		if got != c.want {
			t.Errorf("%s %q: event %q, want %q", c.status, c.message, got, c.want)
		}
	}
}
