package writeback

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// storedLocalLink is a LocalLink as the API server has it, with the entries of some standbys.
func storedLocalLink(t *testing.T, api client.Client, nodes ...string) *v1alpha1.KubeLink {
	t.Helper()
	obj := &v1alpha1.KubeLink{}
	if err := api.Get(t.Context(), client.ObjectKey{Name: "self"}, obj); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		obj.Status.Standbys = append(obj.Status.Standbys, v1alpha1.Standby{Node: n})
	}
	if err := api.Status().Update(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
	return obj
}

// standbyNodes are the nodes of the entries that the API server has.
func standbyNodes(t *testing.T, api client.Client) (nodes []string) {
	t.Helper()
	for _, s := range storedLocalLink(t, api).Status.Standbys {
		nodes = append(nodes, s.Node)
	}
	return nodes
}

// A standby writes its own entry and nothing else: not even what the outcome of a holder would have.
func TestStandbyWritesItself(t *testing.T) {
	local, peer := newKubeLink("self", v1alpha1.EndpointLocal), newKubeLink("peer", "b.example")
	local.Status = v1alpha1.KubeLinkStatus{State: "Up", Message: "of the holder", Gateway: "10.0.0.1", Term: 4}
	api := newFakeAPI(t, &local, &peer)
	w := newTestWriter(api, func() {})
	w.MayWrite = func() bool { return false }
	report := &countedReport{}
	SetReports(w, "names", []Report{report})
	for range 3 { // once is enough
		local := storedLocalLink(t, api)
		api.writes = nil
		links := StandbyOutcomes([]v1alpha1.KubeLink{*local, peer}, nil, "node2", "node1", 4)
		w.SetOutcome(&Outcome{Standby: true, Links: links})
		if err := w.writeAll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(api.writes) > 0 || report.writes > 0 {
		t.Errorf("written without need: %q, %d reports", api.writes, report.writes)
	}
	got := storedLocalLink(t, api).Status
	want := v1alpha1.KubeLinkStatus{State: "Up", Message: "of the holder", Gateway: "10.0.0.1", Term: 4,
		Standbys: []v1alpha1.Standby{{Node: "node2",
			Message: "node1 holds the links with term 4: this broker answers DNS, and takes the links when that Lease ends"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

// The entries of other standbys stay, up to a bound.
func TestStandbyKeepsOthers(t *testing.T) {
	for _, c := range []struct {
		before []string
		joined bool
	}{
		{nil, true}, {[]string{"node3"}, true}, {[]string{"node2", "node3"}, true},
		{manyNodes(maxStandbys - 1), true}, {manyNodes(maxStandbys), false},
	} {
		local := newKubeLink("self", v1alpha1.EndpointLocal)
		api := newFakeAPI(t, &local)
		obj := storedLocalLink(t, api, c.before...)
		w := newTestWriter(api, func() {})
		w.SetOutcome(&Outcome{Standby: true, Links: StandbyOutcomes([]v1alpha1.KubeLink{*obj}, nil, "node2", "node1", 4)})
		if err := w.writeAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := slices.Clone(c.before)
		if c.joined && !slices.Contains(want, "node2") {
			want = append(want, "node2")
		}
		if got := standbyNodes(t, api); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func manyNodes(n int) (nodes []string) {
	for i := range n {
		nodes = append(nodes, fmt.Sprint("other", i))
	}
	return nodes
}

// A broker says that it stands by where it would write the status.
func TestStandbyServes(t *testing.T) {
	items := []v1alpha1.KubeLink{newKubeLink("one", v1alpha1.EndpointLocal), newKubeLink("m--two", v1alpha1.EndpointLocal)}
	for _, c := range []struct {
		foreign map[string]bool
		want    int
	}{{nil, 2}, {map[string]bool{"m--two": true}, 1}, {map[string]bool{"one": true, "m--two": true}, 0}} {
		if got := StandbyOutcomes(items, c.foreign, "node2", "node1", 4); len(got) != c.want {
			t.Errorf("%v: %d outcomes", c.foreign, len(got))
		}
	}
}

// The holder empties the list when it begins and then now and then, so that a standby that is gone does not stay in it.
// Between that it removes its own entry only.
func TestHolderEmptiesStandbys(t *testing.T) {
	local := newKubeLink("self", v1alpha1.EndpointLocal)
	local.UID = "1"
	api := newFakeAPI(t, &local)
	w := newTestWriter(api, func() {})
	w.NodeName = "node1"
	write := func(before ...string) []string {
		obj := storedLocalLink(t, api, before...)
		w.SetOutcome(&Outcome{Links: []Link{{Object: obj, State: v1alpha1.StateUp, Term: 4}}})
		if err := w.writeAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		return standbyNodes(t, api)
	}
	if left := write("node1", "node2"); len(left) > 0 {
		t.Errorf("at first: %q", left)
	}
	if left := write("node1", "node2"); !slices.Equal(left, []string{"node2"}) {
		t.Errorf("soon after: %q", left)
	}
	w.limits["1"].emptiedAt = time.Now().Add(-standbyInterval - time.Second)
	if left := write(); len(left) > 0 {
		t.Errorf("after a while: %q", left)
	}
	if got := storedLocalLink(t, api).Status; got.Term != 4 || got.State != v1alpha1.StateUp {
		t.Errorf("%+v", got)
	}
}

// What a broker wants to write waits while it is not known whether it still holds the links.
func TestWriterWaitsForLease(t *testing.T) {
	peer := newKubeLink("peer", "b.example")
	api := newFakeAPI(t, &peer)
	holds := false
	w := newTestWriter(api, func() {})
	w.MayWrite = func() bool { return holds }
	report := &countedReport{}
	SetReports(w, "names", []Report{report})
	w.SetOutcome(&Outcome{Links: []Link{{Object: &peer, State: v1alpha1.StateUp, Finalizer: true}}})
	for _, c := range []struct {
		holds  bool
		writes []string
		report int
	}{{false, nil, 0}, {true, []string{"patch peer", "patch status peer"}, 1}} {
		holds = c.holds
		if err := w.writeAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(api.writes) != len(c.writes) || report.writes != c.report {
			t.Errorf("holds %v: %q, %d reports", c.holds, api.writes, report.writes)
		}
	}
	holds, api.writes = false, nil
	if w.removeFinalizers(); len(api.writes) > 0 {
		t.Errorf("a broker that may have lost its Lease wrote %q", api.writes)
	}
}

// countedReport counts its writes.
type countedReport struct {
	object v1alpha1.KubeLink
	writes int
}

func (r *countedReport) Object() client.Object { return &r.object }

func (r *countedReport) Write(context.Context, client.Client) error { r.writes++; return nil }
