package broker

// The order of effects, and the kernel's part: addresses, routes, rules and iptables chains. That part can take long:
// an iptables command waits for up to 10 s for the xtables lock, which kube-proxy or another program on the node may
// hold. So a goroutine of its own does it, and the reconciler waits a moment only.

import (
	"errors"
	"log/slog"
	"net"
	"reflect"
	"sync"
	"time"

	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/onchange"
)

// apply is the one place that orders effects. Independent parts do not stop each other.
func (r *reconciler) apply(s *mesh.State, accesses []apizone.Access, port uint16) error {
	publish := func(from *nameSource) {
		from.state, from.restored, from.accesses, from.globals = s, false, accesses, r.globals.Zones()
		from.credentials = r.creds.Usable()
	}
	// Names of links that go are the first to go: no client shall wait for what is being taken down.
	r.names.publish(publish)
	var errs []error
	if g := r.gateway; g != nil {
		// Peers come before routes: dialling starts at once, and the first routed packet finds a link. NAT comes
		// before addresses and routes (kernel.Set sees to that), so that no packet leaves with a foreign source
		// address. On removal the order is harmless: what is still routed for an instant is answered with
		// unreachable.
		settings := r.cfg.linkSettings(port)
		settings.DNS, settings.API, _ = r.newAnnouncement(s) // what is missing is told by the LocalLinks
		errs = append(errs, g.Configure(settings))
		peers := s.Peers
		if !r.creds.Usable() {
			peers = nil // better no link than one without authentication
		}
		errs = append(errs, g.Set(peers, s.Local), g.kernel.setState(s))
	}
	// Names of links that have come are the last: a client that gets an answer can use it.
	r.names.publish(publish)
	return errors.Join(errs...)
}

// kernelPatience is how long the reconciler waits for the kernel. Usually it takes milliseconds.
const kernelPatience = time.Second

// errKernelBusy is the error of a state that the kernel has not taken yet.
var errKernelBusy = errors.New("addresses, routes and iptables chains are still being set: " +
	"if this stays, something on the node holds the xtables lock (see lsof /run/xtables.lock)")

// kernelState is what the kernel was last told. It is told again only for a reason: each time costs processes, and
// links can change often.
type kernelState struct {
	kernel.State
	index int // of the interface
	at    time.Time
}

// kernelSetter is what the worker needs of a kernel.Kernel.
type kernelSetter interface {
	Set(kernel.State) error
	Warning() error
	Clear() error
}

// kernelWorker brings the latest state to the kernel.
type kernelWorker struct {
	device string
	log    *slog.Logger
	done   func() // a run has ended that set did not wait for

	wg sync.WaitGroup // the goroutine of a run

	mu      sync.Mutex // guards the fields below; a run does not hold it
	kernel  kernelSetter
	last    kernelState    // what the kernel has; zero: unknown
	running chan struct{}  // closed at the end of the run; nil: none runs
	left    bool           // set has not waited for the run
	err     error          // of the last run, until set has told it
	warning onchange.Error // of the kernel
}

func newKernelWorker(c *Config, done func(), log *slog.Logger) (*kernelWorker, error) {
	k, err := kernel.New(c.kernelConfig())
	if err != nil {
		return nil, err
	}
	return &kernelWorker{device: c.Interface, log: log, done: done, kernel: k}, nil
}

// forgetState makes the next set tell the kernel all, by k if that is not nil. It waits for a run.
func (w *kernelWorker) forgetState(k kernelSetter) {
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last, w.err = (kernelState{}), nil; k != nil {
		w.kernel = k
	}
}

// setState brings a state to the kernel, and repairs it now and then. When this takes longer than kernelPatience, it
// returns errKernelBusy and calls done at the end; the next set with that state returns the result.
func (w *kernelWorker) setState(s *mesh.State) error {
	want := kernelState{at: time.Now()}
	want.Routes = s.Routes
	for _, m := range s.Meshes {
		want.Addresses = append(want.Addresses, m.Addresses...)
	}
	if i, err := net.InterfaceByName(w.device); err == nil {
		want.index = i.Index
	}
	w.mu.Lock()
	if w.running != nil {
		w.mu.Unlock()
		return errKernelBusy
	}
	if err := w.err; err != nil {
		w.err = nil
		w.mu.Unlock()
		return err
	}
	same := want.index == w.last.index && reflect.DeepEqual(want.State, w.last.State)
	if same && want.at.Sub(w.last.at) < resync-time.Second {
		w.mu.Unlock()
		return nil
	}
	running := make(chan struct{})
	w.running, w.left = running, false
	w.mu.Unlock()
	w.wg.Go(func() { w.runSet(want, running) })

	patience := time.NewTimer(kernelPatience)
	defer patience.Stop()
	select {
	case <-running:
	case <-patience.C:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running != nil {
		w.left = true
		return errKernelBusy
	}
	err := w.err
	w.err = nil
	return err
}

// runSet tells the kernel.
func (w *kernelWorker) runSet(want kernelState, running chan struct{}) {
	err := w.kernel.Set(want.State)
	warning := w.kernel.Warning()
	w.mu.Lock()
	if w.err = err; err == nil {
		w.last = want
		if w.warning.Set(warning) && warning != nil {
			w.log.Warn("TCP connections of pods with a large MTU rely on path MTU discovery", "error", warning)
		}
	} else {
		w.last = kernelState{}
	}
	left := w.left
	w.running = nil
	close(running)
	w.mu.Unlock()
	if left {
		w.done()
	}
}

// close waits for a run and removes all that is ours from the kernel, unless it is to be kept.
func (w *kernelWorker) close(keep bool) {
	w.wg.Wait()
	if keep {
		return
	}
	if err := w.kernel.Clear(); err != nil {
		w.log.Error("cannot remove kernel state", "error", err)
	}
}
