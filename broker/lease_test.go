package broker

// What a broker does with its gateway, and what it answers, while it holds the links and while another one does.

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/kubeapi"
	"github.com/mandelsoft/kubelink/broker/lease"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/linkgateway"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// roleStep is a reconciliation with a role.
type roleStep struct {
	role  lease.Role
	calls []string // to dataplane and kernel
	state string   // of the link in DNS
}

// roleTest is a broker with one link.
type roleTest struct {
	*Broker
	dataplane *fakeDataplane
	kernel    *recordingKernel
	state     *mesh.State
}

func newRoleTest(t *testing.T) *roleTest {
	t.Helper()
	b, err := New(Config{Local: mesh.Local{Mode: mesh.Bridge, Propagation: mesh.PropagateDNS}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.names.close)
	d := &fakeDataplane{calls: &[]string{}}
	r := &roleTest{b, d, &recordingKernel{calls: d.calls}, linkedState()}
	b.setGateway(newFakeGateway(d, r.kernel))
	r.state.Peers, r.state.Local = []mesh.Peer{{Link: "kubelink2"}}, prefixes("100.64.0.0/20")
	r.state.Meshes = []mesh.Mesh{{Addresses: prefixes("192.168.0.11/24")}}
	r.state.Routes = []mesh.Route{{
		Destination: netip.MustParsePrefix("100.64.16.0/20"), Source: netip.MustParseAddr("192.168.0.11"),
	}}
	return r
}

// reconcile takes a step with a term.
func (r *roleTest) reconcile(t *testing.T, term uint32, step *roleStep) {
	t.Helper()
	d, item := r.dataplane, *kubeLink("kubelink2", "192.168.0.12/24", "b.example", "100.64.16.0/20")
	item.Status.State = v1alpha1.StateUp
	*d.calls = nil
	if d.setStatus(); step.role == lease.Holder {
		d.setStatus(link.Status{Link: "kubelink2", State: link.Up})
	}
	seen := &lease.State{Role: step.role, Term: term, Holder: "node9"}
	r.r.holder = seen.ViewLinks(&mesh.Objects{Links: []v1alpha1.KubeLink{item}}, r.state)
	if err := (&reconcilerRun{reconciler: r.r}).refreshCredentials(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err, pending := r.r.apply(r.state, nil, kubeapi.Entrance{Port: 7}); err != nil || pending != nil {
		t.Fatal(err, pending)
	}
	if !slices.Equal(*d.calls, step.calls) {
		t.Errorf("term %d:\ngot  %q\nwant %q", term, *d.calls, step.calls)
	}
	if got := answeredState(t, r.Broker); got != step.state {
		t.Errorf("term %d: DNS: %s, want %s", term, got, step.state)
	}
	has := len(r.kernel.state.Addresses) + len(r.kernel.state.Routes)
	if want := map[lease.Role]int{lease.Holder: 2}[step.role]; has != want {
		t.Errorf("term %d: the kernel has %+v", term, r.kernel.state)
	}
	if step.role == lease.Holder && d.settings.Term != term {
		t.Errorf("peers are told term %d, not %d", d.settings.Term, term)
	}
}

// A broker that does not know its role touches nothing, a standby has neither peers nor routes, and one that takes the
// links has all, in the order of any other reconciliation.
func TestRoles(t *testing.T) {
	const names = "Statuses"
	carry := []string{"SetCredentials unencrypted", names, "Configure port 7", "Set 1 peers 1 local", "kernel", names}
	again := carry[1:]
	leave := []string{"SetCredentials none", "Set 0 peers 1 local", "kernel"}
	const up = "state=Up"
	const elsewhere = "state=Up reason=the broker on node9 carries the link, and this node has no route to it"
	unknown := "state=Idle reason=kubelink has just started, and the API server has not told the links yet"
	for _, c := range []struct {
		name  string
		steps []roleStep
	}{
		{"holder from the start", []roleStep{
			{lease.Unknown, []string{names, names}, unknown}, {lease.Holder, carry, up}, {lease.Holder, again, up}}},
		{"standby, then holder", []roleStep{
			{lease.Unknown, []string{names, names}, unknown}, {lease.Standby, leave, elsewhere},
			{lease.Standby, leave, elsewhere}, {lease.Holder, carry, up}}},
		{"holder, then standby, and back", []roleStep{
			{lease.Holder, carry, up}, {lease.Standby, leave, elsewhere}, {lease.Holder, carry, up}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRoleTest(t)
			for i, step := range c.steps {
				r.reconcile(t, uint32(i+1), &step)
			}
		})
	}
}

// The outcome of a standby is its own entry. A holder says what is wrong with its Lease, and what peers say of a second
// broker.
func TestOutcomeByRole(t *testing.T) {
	b, err := New(Config{Local: mesh.Local{Mode: mesh.Bridge}, LeaseConfig: LeaseConfig{NodeName: "node1"}})
	if err != nil {
		t.Fatal(err)
	}
	d := &fakeDataplane{}
	d.setStatus(link.Status{Link: "kubelink2", State: link.Up, Note: "two brokers"})
	b.setGateway(newFakeGateway(d, &recordingKernel{}))
	objects := mesh.Objects{Links: []v1alpha1.KubeLink{
		*kubeLink("kubelink1", "192.168.0.11/24", v1alpha1.EndpointLocal, "100.64.0.0/20"),
		*kubeLink("kubelink2", "192.168.0.12/24", "b.example", "100.64.16.0/20")}}
	state := mesh.Build(objects, b.cfg.Local)
	run := newTestRun(b, newFakeAPIServer())
	b.r.holder = lease.View{State: &lease.State{Role: lease.Standby, Term: 4, Holder: "node9"}}
	out := run.newOutcome(&objects, &state, nil, nil, nil, nil)
	if !out.Standby || len(out.Links) != 1 || out.Links[0].Standby.Node != "node1" || out.Secret != nil ||
		out.Create != nil || !strings.HasPrefix(out.Links[0].Standby.Message, "node9 holds the links with term 4") {
		t.Errorf("standby: %+v", out)
	}
	held := &lease.State{Role: lease.Holder, Term: 5, Holder: "node1", Problem: "cannot be renewed"}
	b.r.holder = lease.View{State: held}
	if err := run.refreshCredentials(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.names.changeSource(func(from *nameSource) { from.setRouted(&state) })
	out = run.newOutcome(&objects, &state, nil, nil, nil, nil)
	if out.Standby || len(out.Links) != 2 {
		t.Fatalf("holder: %+v", out)
	}
	for i, want := range []string{"cannot be renewed", "two brokers"} {
		if l := out.Links[i]; l.Message != want || l.Term != 5 || l.Standby != nil {
			t.Errorf("holder: %s %+v", l.Object.Name, l)
		}
	}
}

// Brokers with other links have another Lease, whatever the order of the list is; so has one that carries no traffic.
func TestLeaseConfig(t *testing.T) {
	names := map[string]bool{}
	for _, c := range []struct {
		mode   mesh.Mode
		served []string
		want   string // empty: another one than all before
	}{
		{mesh.Bridge, nil, "kubelink"}, {mesh.None, nil, "kubelink-names"}, {mesh.Bridge, []string{"one"}, ""},
		{mesh.Bridge, []string{"one", "two"}, ""}, {mesh.None, []string{"one"}, ""},
	} {
		cfg := Config{Local: mesh.Local{Mode: c.mode, Served: c.served}, LeaseConfig: LeaseConfig{LeaseDuration: 15e9}}
		l := cfg.leaseConfig()
		if c.want != "" && l.Name != c.want || names[l.Name] || !strings.HasPrefix(l.Name, "kubelink") {
			t.Errorf("mode %s, links %q: Lease %s", c.mode, c.served, l.Name)
		}
		names[l.Name] = true
		if l.RenewDeadline != 10*time.Second || l.RetryPeriod != 2*time.Second {
			t.Errorf("%+v", l)
		}
	}
	cfg := Config{LeaseConfig: LeaseConfig{
		LeaseName: "mine", LeaseDuration: 15e9, LeaseRenewDeadline: 8e9, LeaseRetryPeriod: 1e9,
	}}
	if l := cfg.leaseConfig(); l.Name != "mine" || l.RenewDeadline != 8e9 || l.RetryPeriod != 1e9 {
		t.Errorf("%+v", l)
	}
}

// A broker without Lease leads, one that does not know yet does not.
func TestCollectLeader(t *testing.T) {
	for _, c := range []struct {
		cfg  LeaseConfig
		want string
	}{{LeaseConfig{}, "1"}, {LeaseConfig{LeaseDuration: 15e9}, "0"}} {
		b, err := New(Config{LeaseConfig: c.cfg})
		if err != nil {
			t.Fatal(err)
		}
		metricsSource.Store(b)
		const help = "Whether this broker holds the links (1) or another broker of the cluster does (0)."
		want := "# HELP coredns_kubelink_leader " + help + `
# TYPE coredns_kubelink_leader gauge
coredns_kubelink_leader{lease=""} ` + c.want + `
# HELP coredns_kubelink_term Term of the broker that holds the links: the number of transitions of its Lease.
# TYPE coredns_kubelink_term gauge
coredns_kubelink_term{lease=""} 0
`
		if err := testutil.CollectAndCompare(collector{}, strings.NewReader(want), "coredns_kubelink_leader",
			"coredns_kubelink_term"); err != nil {
			t.Error(err)
		}
		metricsSource.Store(nil)
	}
}

// Only the broker that holds the links says where the gateway is, and not before the kernel has the routes.
func TestWritePlaceByRole(t *testing.T) {
	b, err := New(Config{Local: mesh.Local{Mode: mesh.Bridge}, APIConfig: APIConfig{Namespace: "kubelink"}})
	if err != nil {
		t.Fatal(err)
	}
	b.setGateway(newFakeGateway(&fakeDataplane{}, &recordingKernel{}))
	b.r.gateway.place.Place = linkgateway.Place{Node: "node1", MTU: 9000}
	api := newFakeAPIServer()
	run := newTestRun(b, api)
	run.places.Namespace = "kubelink"
	changes, err := api.Watch(t.Context(), &v1alpha1.LinkGatewayList{})
	if err != nil {
		t.Fatal(err)
	}
	defer changes.Stop()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- run.places.Start(ctx) }()
	state := &mesh.State{Meshes: []mesh.Mesh{{Addresses: prefixes("192.168.0.11/24")}}}
	for _, c := range []struct {
		role    lease.Role
		term    uint32
		pending error
		says    string // empty: nothing is written
	}{
		{lease.Unknown, 0, nil, ""},
		{lease.Standby, 4, nil, ""},
		{lease.Holder, 5, kernel.ErrBusy, ""},
		{lease.Holder, 6, nil, "kubelink node1 6 [192.168.0.0/24] 1500"},
		{lease.Standby, 7, nil, ""},
		{lease.Holder, 8, nil, "kubelink node1 8 [192.168.0.0/24] 1500"},
	} {
		b.r.holder = lease.View{State: &lease.State{Role: c.role, Term: c.term}}
		run.writePlace(state, c.pending)
		if c.says == "" {
			continue
		}
		o := (<-changes.ResultChan()).Object.(*v1alpha1.LinkGateway)
		says := fmt.Sprint(o.Name, " ", o.Spec.Node, " ", o.Spec.Term, " ", o.Spec.Networks, " ", o.Spec.MTU)
		if says != c.says {
			t.Errorf("%s, not %s", says, c.says)
		}
	}
	b.setGateway(nil) // mode none
	run.writePlace(state, nil)
	stop()
	if err := <-ended; err != nil || len(changes.ResultChan()) > 0 {
		t.Errorf("%v, %d further changes", err, len(changes.ResultChan()))
	}
}
