package overlay

// The worker that sets states in a goroutine of its own: a Set may take as long as another program holds the xtables
// lock.

import (
	"reflect"
	"sync"
	"time"

	"github.com/mandelsoft/kubelink/broker/kernel"
)

// patience is how long Worker.Set waits for the kernel. Usually it takes milliseconds.
const patience = time.Second

// Worker brings the latest state to the kernel.
type Worker struct {
	end    end
	repair time.Duration // how often the kernel is compared with a state that does not change
	done   func()        // called at the end of a run that Set has not waited for; it must not block

	wg sync.WaitGroup // the goroutine of a run

	mu   sync.Mutex // guards the fields below; a run does not hold it
	last State      // of the last run
	at   time.Time  // its end; zero: there was none
	err  error      // of the last run
	run  *workerRun // nil: none
}

// workerRun is one Set.
type workerRun struct {
	ended chan struct{}
	left  bool // Worker.Set has not waited for the end; Worker.mu guards it
}

// end is an Overlay as the worker needs it.
type end interface {
	Set(State) error
	Clear() error
	Counters() Counters
}

// NewWorker returns a worker that uses o.
func NewWorker(o *Overlay, repair time.Duration, done func()) *Worker {
	return &Worker{end: o, repair: repair, done: done}
}

// Set brings a state to the kernel, and repairs it now and then. It waits for a moment; then pending is kernel.ErrBusy.
// A repair that takes longer is none.
func (w *Worker) Set(s State) (err, pending error) {
	w.mu.Lock()
	same := !w.at.IsZero() && reflect.DeepEqual(s, w.last)
	if w.run == nil && (!same || w.err != nil || time.Since(w.at) >= w.repair-time.Second) {
		run := &workerRun{ended: make(chan struct{})}
		w.run = run
		w.wg.Go(func() { w.tell(run, s) })
	}
	run := w.run
	w.mu.Unlock()
	if run != nil {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-run.ended:
		case <-timer.C:
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.run != nil {
		w.run.left = true
	}
	if !w.at.IsZero() && reflect.DeepEqual(s, w.last) {
		return w.err, nil
	}
	return nil, kernel.ErrBusy
}

// tell is the goroutine of a run.
func (w *Worker) tell(run *workerRun, s State) {
	err := w.end.Set(s)
	w.mu.Lock()
	w.last, w.err, w.at = s, err, time.Now()
	left := run.left
	w.run = nil
	close(run.ended)
	w.mu.Unlock()
	if left {
		w.done()
	}
}

// Counters does not wait for a run.
func (w *Worker) Counters() Counters { return w.end.Counters() }

// Wait waits for the end of a run.
func (w *Worker) Wait() { w.wg.Wait() }

// Clear removes all that is ours from the kernel, after the end of a run.
func (w *Worker) Clear() error {
	w.wg.Wait()
	return w.end.Clear()
}
