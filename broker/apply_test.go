package broker

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/zone"

	"github.com/prometheus/client_golang/prometheus"
)

// fakeKernel takes a state when the test lets it.
type fakeKernel struct {
	let  chan error
	sets chan kernel.State
}

func (k *fakeKernel) Set(s kernel.State) error { k.sets <- s; return <-k.let }
func (k *fakeKernel) Warning() error           { return nil }
func (k *fakeKernel) Clear() error             { return nil }

func newFakeKernel() *fakeKernel {
	return &fakeKernel{let: make(chan error, 1), sets: make(chan kernel.State, 4)}
}

func stateWithRoute(destination string) *mesh.State {
	return &mesh.State{Routes: []mesh.Route{{
		Destination: netip.MustParsePrefix(destination), Source: netip.MustParseAddr("192.168.0.11"),
	}}}
}

// The reconciler waits for a moment; then the state is reported as not applied, and the reconciler is woken at the end.
func TestKernelWorkerPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, woken := newFakeKernel(), 0
		w := &kernelWorker{device: "none", log: slog.New(slog.DiscardHandler), done: func() { woken++ }, kernel: k}
		one, two := stateWithRoute("100.64.16.0/20"), stateWithRoute("100.64.32.0/20")

		k.let <- nil
		if err := w.setState(one); err != nil {
			t.Fatal(err)
		}
		<-k.sets
		if err := w.setState(one); err != nil || len(k.sets) > 0 {
			t.Errorf("the kernel is told the same again: %v", err)
		}

		began := time.Now()
		if err := w.setState(two); !errors.Is(err, errKernelBusy) || time.Since(began) != kernelPatience {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		began = time.Now()
		if err := w.setState(one); !errors.Is(err, errKernelBusy) || time.Since(began) != 0 {
			t.Errorf("while it is busy: %v after %v", err, time.Since(began))
		}
		if woken > 0 {
			t.Error("woken before the end")
		}
		k.let <- errors.New("lock")
		synctest.Wait()
		if woken != 1 {
			t.Errorf("woken %d times", woken)
		}
		<-k.sets
		if err := w.setState(two); err == nil || err.Error() != "lock" || len(k.sets) > 0 {
			t.Errorf("result of the run: %v", err)
		}
		k.let <- nil
		if err := w.setState(two); err != nil || len(k.sets) != 1 {
			t.Errorf("the next try: %v", err)
		}
		if woken != 1 {
			t.Error("woken by a run that set has waited for")
		}

		// What is the same is looked at again at each resync: other programs change it, and no event tells.
		<-k.sets
		time.Sleep(resync)
		k.let <- nil
		if err := w.setState(two); err != nil || len(k.sets) != 1 {
			t.Errorf("no resync: %v", err)
		}
	})
}

// close awaits a run.
func TestKernelWorkerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		w := &kernelWorker{device: "none", log: slog.New(slog.DiscardHandler), done: func() {}, kernel: k}
		if err := w.setState(stateWithRoute("100.64.16.0/20")); !errors.Is(err, errKernelBusy) {
			t.Fatal(err)
		}
		closed := make(chan struct{})
		go func() { w.close(false); close(closed) }()
		synctest.Wait()
		select {
		case <-closed:
			t.Fatal("closed while the kernel is being told")
		default:
		}
		k.let <- nil
		<-closed
	})
}

// fakeDataplane has the statuses that a test gives it.
type fakeDataplane struct {
	dataplane
	statuses []link.Status
}

func (d *fakeDataplane) Statuses() []link.Status          { return d.statuses }
func (d *fakeDataplane) Collect(chan<- prometheus.Metric) {}

// A lost link shows in DNS while a reconciliation waits: telling DNS takes a lock of its own.
func TestLostLinkDuringReconciliation(t *testing.T) {
	b, err := New(Config{Local: mesh.Local{Mode: mesh.Bridge, Propagation: mesh.PropagateDNS}})
	if err != nil {
		t.Fatal(err)
	}
	b.r.mu.Lock() // a reconciliation that waits
	defer b.r.mu.Unlock()
	d := &fakeDataplane{statuses: []link.Status{{Link: "kubelink2", State: link.Up}}}
	published := make(chan zone.Status, 1)
	b.names.changeSource(func(from *nameSource) {
		from.dataplane = d
		from.state = &mesh.State{Links: []mesh.Link{{Name: "kubelink2", Peer: "kubelink2"}}}
	})
	b.names.followLinks()
	defer b.names.close()
	await := func(state link.State) {
		t.Helper()
		b.names.linksChanged()
		for range 2 { // the second signal is taken after the first was published
			b.names.signal <- struct{}{}
		}
		b.names.mu.Lock()
		published <- b.names.from.linkStatus()("kubelink2")
		b.names.mu.Unlock()
		if st := <-published; st.State != string(state) || b.Table() == nil {
			t.Errorf("%+v", st)
		}
	}
	await(link.Up)
	d.statuses = []link.Status{{Link: "kubelink2", State: link.Down, Reason: "peer is silent"}}
	await(link.Down)
}
