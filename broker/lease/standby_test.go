package lease

import (
	"net/netip"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// A standby says what the holder has written, and asks only where a route of its node leads.
func TestLinkStatuses(t *testing.T) {
	since := time.Unix(1000, 0)
	const route, none, all = "100.64.16.0/20", "10.0.0.0/8", "0.0.0.0/0"
	const elsewhere = "the broker on node1 carries the link"
	for _, c := range []struct {
		name    string
		state   v1alpha1.State
		message string
		routes  []string
		want    zone.Status
	}{
		{"up, routed", "Up", "", []string{all, route}, zone.Status{Usable: true, State: "Up", Reason: elsewhere}},
		{"up, noted", "Up", "a note", []string{route},
			zone.Status{Usable: true, State: "Up", Reason: elsewhere + ": a note"}},
		{"up, no route", "Up", "", []string{none},
			zone.Status{State: "Up", Reason: elsewhere + ", and this node has no route to it"}},
		{"up, default route", "Up", "", []string{all},
			zone.Status{State: "Up", Reason: elsewhere + ", and this node has no route to it"}},
		{"down", "Down", "timed out", []string{route}, zone.Status{State: "Down", Reason: elsewhere + ": timed out"}},
		{"not written yet", "", "", []string{route}, zone.Status{State: "Idle", Reason: elsewhere}},
	} {
		item := v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: "peer"}}
		item.Status = v1alpha1.KubeLinkStatus{State: c.state, Message: c.message, Conditions: []metav1.Condition{
			{Type: v1alpha1.ConditionReady, LastTransitionTime: metav1.NewTime(since)}}}
		objects := &mesh.Objects{Links: []v1alpha1.KubeLink{item}}
		for _, r := range c.routes {
			objects.Host.Routes = append(objects.Host.Routes, netip.MustParsePrefix(r))
		}
		state := &mesh.State{Zones: []mesh.Zone{{Clusters: []mesh.ClusterZone{
			{Link: ""}, {Link: "peer", Upstream: netip.MustParseAddrPort("100.64.16.10:53")}}}}}
		c.want.Since = since
		if got := (&State{Role: Standby, Holder: "node1"}).linkStatuses(objects, state); got["peer"] != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got["peer"], c.want)
		}
	}
}
