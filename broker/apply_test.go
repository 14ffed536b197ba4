package broker

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// fakeDataplane has the statuses that a test gives it.
type fakeDataplane struct {
	dataplane
	statuses atomic.Pointer[[]link.Status]
}

func (d *fakeDataplane) setStatus(st link.Status)         { d.statuses.Store(&[]link.Status{st}) }
func (d *fakeDataplane) Statuses() []link.Status          { return *d.statuses.Load() }
func (d *fakeDataplane) Collect(chan<- prometheus.Metric) {}
func (d *fakeDataplane) Configure(link.Settings) error    { return nil }
func (d *fakeDataplane) Close(bool) error                 { return nil }

func (d *fakeDataplane) Set([]mesh.Peer, []netip.Prefix) error { return nil }

// linkedState has one link to a cluster with names.
func linkedState() *mesh.State {
	return &mesh.State{
		Links: []mesh.Link{{Name: "kubelink2", Peer: "kubelink2"}},
		Zones: []mesh.Zone{{Domain: "kubelink.", Clusters: []mesh.ClusterZone{{
			Name: "kubelink2.kubelink.", Link: "kubelink2", ClusterDomain: "cluster.local.",
			Upstream: netip.MustParseAddrPort("127.0.0.1:9"),
		}}}},
	}
}

// answeredState is the state of the link as DNS tells it; empty: there is no table.
func answeredState(t *testing.T, b *Broker) string {
	t.Helper()
	table := b.Table()
	if table == nil {
		return ""
	}
	const name = "_state.kubelink2.kubelink."
	match, ok := table.Match(name)
	if !ok {
		t.Fatal("no such name")
	}
	state := &request.Request{W: &test.ResponseWriter{}, Req: new(dns.Msg).SetQuestion(name, dns.TypeTXT)}
	reply, err := match.Answer(context.Background(), state)
	if err != nil || len(reply.Answer) != 1 {
		t.Fatal(reply, err)
	}
	return strings.Join(reply.Answer[0].(*dns.TXT).Txt, " ")
}

// fakeKernel returns what the test wants.
type fakeKernel struct {
	kernelSetter
	told   chan struct{} // closed when the kernel is being told
	result chan error
}

func (k *fakeKernel) Set(kernel.State) error {
	close(k.told)
	return <-k.result
}

// newLinkedBroker has a gateway with fakes for kernel and dataplane, on which one link is Up.
func newLinkedBroker(t *testing.T) (*Broker, *fakeDataplane) {
	t.Helper()
	b, err := New(Config{Local: mesh.Local{Mode: mesh.Bridge, Propagation: mesh.PropagateDNS}})
	if err != nil {
		t.Fatal(err)
	}
	d := &fakeDataplane{}
	d.setStatus(link.Status{Link: "kubelink2", State: link.Up})
	b.setGateway(&gateway{dataplane: d, log: b.log})
	b.names.followLinks()
	t.Cleanup(func() { b.names.stopFollowing(); b.names.close() })
	return b, d
}

// startApply applies the state, and returns when the kernel is being told. The kernel returns result then.
func startApply(b *Broker) (k *fakeKernel, pending chan error) {
	k, pending = &fakeKernel{told: make(chan struct{}), result: make(chan error)}, make(chan error)
	b.r.gateway.kernel = k
	go func() {
		err, p := b.r.apply(linkedState(), nil, 0)
		pending <- errors.Join(err, p)
	}()
	<-k.told
	return k, pending
}

// publishChange tells of a change of the link and waits until DNS shows it.
func publishChange(b *Broker) {
	b.names.linksChanged()
	for range 2 { // the second signal is taken after the first was published
		b.names.signal <- struct{}{}
	}
}

// A lost link shows in DNS while a reconciliation waits: telling DNS takes a lock of its own.
func TestLostLinkDuringReconciliation(t *testing.T) {
	b, d := newLinkedBroker(t)
	b.r.mu.Lock() // as a reconciliation does
	defer b.r.mu.Unlock()
	k, pending := startApply(b)
	k.result <- nil
	if err := <-pending; err != nil {
		t.Fatal(err)
	}
	if text := answeredState(t, b); !strings.Contains(text, "state=Up") {
		t.Fatal(text)
	}
	k, pending = startApply(b)
	d.setStatus(link.Status{Link: "kubelink2", State: link.Down, Reason: "peer is silent"})
	publishChange(b)
	if text := answeredState(t, b); !strings.Contains(text, "state=Down") || !strings.Contains(text, "peer is silent") {
		t.Error(text)
	}
	k.result <- nil
	<-pending
}

// The names of a new link are answered when the kernel has its routes, and not as soon as it is connected.
func TestNamesWaitForRoutes(t *testing.T) {
	b, _ := newLinkedBroker(t)
	ready := func(when string, want bool) {
		t.Helper()
		if text := answeredState(t, b); strings.Contains(text, "state=Up") != want {
			t.Errorf("%s: %s", when, text)
		}
	}
	for _, c := range []struct {
		name   string
		result error
		ready  bool // at the end
	}{
		{"busy", kernel.ErrBusy, false},
		{"stuck", kernel.ErrStuck, false},
		{"done", nil, true},
		{"busy with another state", kernel.ErrBusy, true},
	} {
		before := strings.Contains(answeredState(t, b), "state=Up")
		k, pending := startApply(b)
		publishChange(b)
		ready(c.name+", while the kernel is being told", before)
		k.result <- c.result
		if err := <-pending; !errors.Is(err, c.result) || err == nil != (c.result == nil) {
			t.Errorf("%s: %v", c.name, err)
		}
		ready(c.name, c.ready)
	}
}

// Another gateway has no routes yet, whatever the one before had.
func TestNamesWaitForRoutesOfNewGateway(t *testing.T) {
	b, d := newLinkedBroker(t)
	k, pending := startApply(b)
	k.result <- nil
	<-pending
	b.setGateway(&gateway{dataplane: d, log: b.log})
	publishChange(b)
	if text := answeredState(t, b); strings.Contains(text, "state=Up") {
		t.Error(text)
	}
}

// What the kernel does not take in full is tried again, and the names are answered.
func TestNamesAfterKernelError(t *testing.T) {
	b, _ := newLinkedBroker(t)
	k, pending := startApply(b)
	k.result <- errors.New("no such table")
	if err := <-pending; err == nil {
		t.Error("no error")
	}
	if text := answeredState(t, b); !strings.Contains(text, "state=Up") {
		t.Error(text)
	}
}
