// Package kernel makes the network stack of the gateway what a mesh needs: addresses and routes
// on the device, the rule that leads to their table, source NAT, the acceptance of forwarded
// packets, and a TCP segment size that fits. All of it is one Set, told the whole; Set finds the
// difference itself, so that it also adopts what a killed broker left.
//
// Set changes and removes only what is ours: on the device, routes with Protocol and full-length
// addresses with noprefixroute; rules with Protocol; the chains KUBELINK-* and the jumps to them.
// Ours is, too, a TUN device that has routes with Protocol and that no process holds open: a killed
// broker left it, and the device has another name since.
//
// From a State to commands: desired.go says which objects are wanted, netfilter.go which chains;
// diff.go compares the objects with what the kernel has, netfilter.go the chains; system.go
// tells the kernel. This file has the steps in their order, and the worker that takes them in a
// goroutine of its own: an iptables command waits for up to 10 s for the xtables lock, which
// kube-proxy or another program on the node may hold.
package kernel

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/mandelsoft/kubelink/broker/onchange"
)

// Kernel is the network stack of one network namespace. Its methods may be called concurrently.
type Kernel struct {
	config Config
	system system

	setting sync.Mutex   // held over a whole Set, which runs commands; guards clean, and the calls of system
	clean   map[int]bool // families without chains of ours, as Set has seen

	mu      sync.Mutex // guards warning; held to read or to assign it only
	warning error      // of the last Set
}

// system is the kernel as Set needs it; linux is the real one.
type system interface {
	Dump(device string) (*objects, error)                           // all that Set may own or collide with
	Change(verb string, object any) error                           // what a change says
	DeviceName(index int) string                                    // or a text in place of one that does not exist
	IsIdleTUN(index int) bool                                       // a TUN device that no process holds open
	ListChain(family int, table, chain string) ([]string, error)    // rules as iptables -S prints them; nil: no such chain
	RestoreTable(family int, table string, commands []string) error // all or nothing, in one transaction
}

// New returns the stack of the network namespace that the calling thread is in. Set and Clear must
// be called in the same one, for they run iptables(8). It needs CAP_NET_ADMIN and Linux 4.17.
func New(config Config) (*Kernel, error) {
	if config.Table == 0 {
		config.Table = MainTable
	}
	if n := len(config.Device); n == 0 || n >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("device name %q: want 1 to %d characters", config.Device, unix.IFNAMSIZ-1)
	}
	if config.Table < 0 || config.Table == unix.RT_TABLE_LOCAL {
		return nil, fmt.Errorf("route table %d: want %d (main) or another table that the kernel does not fill",
			config.Table, MainTable)
	}
	s, err := newSystem()
	if err != nil {
		return nil, err
	}
	return &Kernel{config: config, system: s, clean: map[int]bool{}}, nil
}

// Clear removes all that is ours. The device stays, it need not exist.
func (k *Kernel) Clear() error { return k.Set(State{}) }

// Set makes the network stack what s says. Where all is right it writes nothing. A part that fails
// does not stop the other parts: their errors are joined, each says what was tried, and the next Set
// tries again.
func (k *Kernel) Set(s State) error {
	k.setting.Lock()
	defer k.setting.Unlock()
	routes, errs := validateRoutes(s.Routes)
	s.Routes = routes

	// The kernel decides about source NAT with the first packet of a connection and keeps to it. So
	// the chains come before the first packet can leave, and go when none leaves any more.
	if s.isEmpty() {
		errs = append(errs, k.setNetwork(s, nil)...)
	}
	noNAT, failed := k.setChains(s)
	errs = append(errs, failed...)
	if !s.isEmpty() {
		errs = append(errs, k.setNetwork(s, noNAT)...)
	}
	return errors.Join(errs...)
}

// Warning tells what the last Set could not do, but a mesh does without; nil: there is nothing. It
// does not wait for a Set that runs.
func (k *Kernel) Warning() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.warning
}

// setNetwork sets all that rtnetlink(7) does: it reads what the kernel has, plans the changes and
// makes them. The families of noNAT get no new routes.
func (k *Kernel) setNetwork(s State, noNAT map[int]bool) (errs []error) {
	found, err := k.system.Dump(k.config.Device)
	if err != nil {
		return []error{fmt.Errorf("read the network state of device %s: %w", k.config.Device, err)}
	}
	if found.link.Index == 0 && !s.isEmpty() {
		errs = append(errs, fmt.Errorf("device %s does not exist: %d addresses and %d routes are not set",
			k.config.Device, len(s.Addresses), len(s.Routes)))
	}
	wanted := wantedObjects(k.config, s, found.link)
	p := planChanges(wanted, divideObjects(*found, k.findOldDevices(*found)), noNAT)
	errs = append(errs, k.omissions(p)...)
	return append(errs, k.makeChanges(p)...)
}

// findOldDevices returns the devices that a killed broker left.
func (k *Kernel) findOldDevices(found objects) (indexes []int) {
	for _, index := range candidateDevices(found) {
		if k.system.IsIdleTUN(index) {
			indexes = append(indexes, index)
		}
	}
	return indexes
}

// omissions returns an error for each wanted object that a plan leaves out.
func (k *Kernel) omissions(p *plan) (errs []error) {
	for _, c := range p.conflicts {
		errs = append(errs, fmt.Errorf("%s: there is a route that is not ours: %s",
			ipCommand("add", c.wanted, k.system.DeviceName), c.foreign.text(k.system.DeviceName)))
	}
	for _, f := range families {
		if n := p.withheld[f]; n > 0 {
			errs = append(errs, fmt.Errorf("%d new routes of IPv%d are not set: there is no source NAT for them",
				n, ipVersion(f)))
		}
	}
	return errs
}

// makeChanges makes all changes of a plan, also where one fails.
func (k *Kernel) makeChanges(p *plan) (errs []error) {
	for _, c := range p.changes {
		if err := k.system.Change(c.verb, c.object); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", ipCommand(c.verb, c.object, k.system.DeviceName), err))
		}
	}
	return errs
}

// setChains sets the chains of both families. It looks once at a family that is not in use, for
// what a killed broker left. It returns the families whose source NAT is not as it should be.
func (k *Kernel) setChains(s State) (noNAT map[int]bool, errs []error) {
	noNAT = map[int]bool{}
	var warnings []error
	for _, f := range families {
		wanted := s.usesFamily(f)
		if !wanted && k.clean[f] {
			continue
		}
		k.clean[f] = !wanted
		for _, c := range wantedChains(k.config.Device, s, f) {
			err := k.setChain(c, f, wanted)
			if err == nil {
				continue
			}
			k.clean[f] = false
			noNAT[f] = noNAT[f] || c.table == natTable
			err = fmt.Errorf("chain %s of IPv%d: %w", c.name, ipVersion(f), err)
			if c.remedy != "" && wanted && !errors.Is(err, exec.ErrNotFound) {
				warnings = append(warnings, fmt.Errorf("%w; %s", err, c.remedy))
			} else {
				errs = append(errs, err)
			}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.warning = errors.Join(warnings...)
	return noNAT, errs
}

// setChain makes a chain and its hook as they are wanted, or removes both.
func (k *Kernel) setChain(c chain, family int, wanted bool) error {
	builtin, err := k.system.ListChain(family, c.table, c.builtin())
	if err != nil {
		if !wanted && errors.Is(err, exec.ErrNotFound) {
			return nil // without iptables there are no chains
		}
		return err
	}
	current, err := k.system.ListChain(family, c.table, c.name)
	if err != nil {
		return err
	}
	if commands := c.restoreCommands(wanted, builtin, current); len(commands) > 0 {
		return k.system.RestoreTable(family, c.table, commands)
	}
	return nil
}

const (
	// patience is how long Worker.Set waits for the kernel. Usually it takes milliseconds.
	patience = time.Second
	// Grace is how long the kernel may take for a new state before that counts as an error.
	Grace = 15 * time.Second
)

// What Worker.Set returns while the kernel has not taken a new state.
var (
	// ErrBusy is for the time until Grace.
	ErrBusy = errors.New("addresses, routes and iptables chains are being set")
	// ErrStuck is for the time after Grace.
	ErrStuck = errors.New("addresses, routes and iptables chains are being set since 15 s or more: " +
		"something on the node may hold the xtables lock (see lsof /run/xtables.lock)")
)

// workState is a state for the kernel. The kernel is told again only for a reason: each time costs processes, and
// links can change often.
type workState struct {
	State
	index int // of the interface
	at    time.Time
}

// equals ignores the time.
func (s *workState) equals(other *workState) bool {
	return s.index == other.index && reflect.DeepEqual(s.State, other.State)
}

// setter is what the worker needs of a kernel.Kernel.
type setter interface {
	Set(State) error
	Warning() error
	Clear() error
}

// Worker brings the latest state to the kernel.
type Worker struct {
	config WorkerConfig
	warned onchange.Error // warning of the kernel, as logged

	wg sync.WaitGroup // the goroutine of a run

	mu      sync.Mutex // guards the fields below; a run does not hold it
	kernel  setter
	last    workState    // what the kernel has; zero: unknown
	running *workRun     // nil: none
	failed  workState    // what the last run could not set in full
	err     error        // why
	retryAt time.Time    // not before then the worker tries failed again
	backoff wait.Backoff // of runs that fail slowly
}

// workRun is one try to tell the kernel.
type workRun struct {
	want   workState
	repair bool // the kernel has had this state before
	ended  chan struct{}
	left   bool // Set has not waited for the end; Worker.mu guards it
}

// slowBackoff is between runs that fail after Set has stopped waiting: 100 ms to 30 s. The controller has a
// back-off for the other runs.
var slowBackoff = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Steps: 16, Cap: 30 * time.Second}

// WorkerConfig says how a Worker works.
type WorkerConfig struct {
	Device string        // name of the TUN
	Repair time.Duration // how often the kernel is compared with a state that does not change
	Done   func()        // called at the end of a run that Set has not waited for; it must not block
	Log    *slog.Logger
}

// NewWorker returns a worker that uses k.
func NewWorker(k *Kernel, config WorkerConfig) *Worker {
	return &Worker{config: config, kernel: k, backoff: slowBackoff}
}

// Forget makes the next Set tell the kernel all, by k if that is not nil. It waits for a run.
func (w *Worker) Forget(k *Kernel) {
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last, w.failed, w.err = (workState{}), (workState{}), nil; k != nil {
		w.kernel = k
	}
}

// Set brings a state to the kernel, and repairs it now and then. It waits for a moment; then it returns ErrBusy, after
// Grace ErrStuck, and calls Done at the end. A repair that takes longer is no error.
func (w *Worker) Set(s State) error {
	want := workState{State: s, at: time.Now()}
	if i, err := net.InterfaceByName(w.config.Device); err == nil {
		want.index = i.Index
	}
	run, err := w.startRun(want)
	if run == nil {
		return err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-run.ended:
	case <-timer.C:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running == run {
		run.left = true
		return run.report(&want)
	}
	return w.err
}

// startRun starts a run, unless one is running, or there is no reason for one. It returns what is to be said of want
// then.
func (w *Worker) startRun(want workState) (*workRun, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running != nil {
		return nil, w.running.report(&want)
	}
	same := !w.last.at.IsZero() && want.equals(&w.last)
	if same && want.at.Sub(w.last.at) < w.config.Repair-time.Second {
		return nil, nil
	}
	if w.err != nil && want.equals(&w.failed) && want.at.Before(w.retryAt) {
		return nil, w.err
	}
	run := &workRun{want: want, repair: same, ended: make(chan struct{})}
	w.running = run
	w.wg.Go(func() { w.tellKernel(run) })
	return run, nil
}

// report says what is to be said of a wanted state while the run goes on.
func (run *workRun) report(want *workState) error {
	switch {
	case run.repair && want.equals(&run.want):
		return nil
	case time.Since(run.want.at) >= Grace:
		return ErrStuck
	}
	return ErrBusy
}

// tellKernel is the goroutine of a run.
func (w *Worker) tellKernel(run *workRun) {
	err := w.kernel.Set(run.want.State)
	if warning := w.kernel.Warning(); err == nil && w.warned.Set(warning) && warning != nil {
		w.config.Log.Warn("TCP connections of pods with a large MTU rely on path MTU discovery", "error", warning)
	}
	w.mu.Lock()
	if w.err = err; err == nil {
		w.last, w.failed, w.backoff, w.retryAt = run.want, workState{}, slowBackoff, time.Time{}
	} else {
		w.last, w.failed, w.retryAt = workState{}, run.want, time.Time{}
		if run.left {
			w.retryAt = time.Now().Add(w.backoff.Step())
		}
	}
	left := run.left
	w.running = nil
	close(run.ended)
	w.mu.Unlock()
	if left {
		w.config.Done()
	}
}

// Wait waits for the end of a run.
func (w *Worker) Wait() { w.wg.Wait() }

// Clear removes all that is ours from the kernel, after the end of a run.
func (w *Worker) Clear() error {
	w.wg.Wait()
	return w.kernel.Clear()
}
