package kernel

// The worker that brings states to the kernel in a goroutine of its own, for a Set may take as long as another program
// holds the xtables lock.

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/mandelsoft/kubelink/broker/onchange"
)

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
	Drops() Drops
	Backends() []Backend
}

// Worker brings the latest state to the kernel.
type Worker struct {
	config WorkerConfig
	warned onchange.Error // warning of the kernel, as logged
	logged []Backend      // of the kernel

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
	// Told is called when the kernel was told a state: how long that took, and why it has failed. It must not block.
	Told func(time.Duration, error)
	Log  *slog.Logger
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

// CompareSoon makes the next Set compare the kernel with the state, whenever that was done last. A run that goes on
// does so anyway: it is not awaited.
func (w *Worker) CompareSoon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.retryAt = (time.Time{}); !w.last.at.IsZero() {
		w.last.at = w.last.at.Add(-w.config.Repair)
	}
}

// Set brings a state to the kernel, and repairs it now and then. It waits for a moment; then it returns an
// ErrBusy, after Grace ErrStuck, and calls Done at the end. A repair that takes longer is no error.
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
		return w.reportRun(&want)
	}
	return w.err
}

// startRun starts a run, unless one is running, or there is no reason for one. It returns what is to be said of want
// then.
func (w *Worker) startRun(want workState) (*workRun, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running != nil {
		return nil, w.reportRun(&want)
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

// reportRun says what is to be said of a wanted state while a run goes on. Of another try, users learn why the last one
// has failed: it may take as long to fail again. w.mu is held.
func (w *Worker) reportRun(want *workState) error {
	err := w.running.report(want)
	if err == ErrBusy && w.err != nil {
		return fmt.Errorf("%w again, as the last try has failed: %w", ErrBusy, w.err)
	}
	return err
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
	began := time.Now()
	err := w.kernel.Set(run.want.State)
	if w.config.Told != nil {
		w.config.Told(time.Since(began), err)
	}
	w.logBackends()
	if warning := w.kernel.Warning(); err == nil && w.warned.Set(warning) && warning != nil {
		w.config.Log.Warn("the node is not as it should be, a mesh works nevertheless", "error", warning)
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

// logBackends logs in which iptables the chains are, when that has changed.
func (w *Worker) logBackends() {
	all := w.kernel.Backends()
	for _, b := range all {
		if !slices.Contains(w.logged, b) {
			w.config.Log.Info("iptables chains are in the back end that the node uses",
				"family", fmt.Sprintf("IPv%d", b.Family), "backend", b.Name, "reason", b.Reason)
		}
	}
	w.logged = all
}

// Drops are those of the kernel. It does not wait for a run.
func (w *Worker) Drops() Drops { return w.currentKernel().Drops() }

// Backends are those of the kernel. It does not wait for a run.
func (w *Worker) Backends() []Backend { return w.currentKernel().Backends() }

func (w *Worker) currentKernel() setter {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.kernel
}

// Wait waits for the end of a run.
func (w *Worker) Wait() { w.wg.Wait() }

// Clear removes all that is ours from the kernel, after the end of a run.
func (w *Worker) Clear() error {
	w.wg.Wait()
	return w.kernel.Clear()
}
