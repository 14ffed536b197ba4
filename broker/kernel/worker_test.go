package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// slowKernel takes a state when the test lets it.
type slowKernel struct {
	let      chan error
	sets     chan State
	backends []Backend
}

func (k *slowKernel) Set(s State) error   { k.sets <- s; return <-k.let }
func (k *slowKernel) Warning() error      { return nil }
func (k *slowKernel) Clear() error        { return nil }
func (k *slowKernel) Drops() Drops        { return Drops{Node: 7} }
func (k *slowKernel) Backends() []Backend { return k.backends }

// newTestWorker returns a worker on a kernel of the test, and counts the calls of Done.
func newTestWorker() (*Worker, *slowKernel, *atomic.Int32) {
	k, woken := &slowKernel{let: make(chan error, 1), sets: make(chan State, 4)}, &atomic.Int32{}
	w := NewWorker(nil, WorkerConfig{
		Device: "none", Repair: resync, Done: func() { woken.Add(1) }, Log: slog.New(slog.DiscardHandler),
	})
	w.kernel = k
	return w, k, woken
}

const resync = 30 * time.Second

func stateWithRoute(destination string) State {
	return State{Routes: []mesh.Route{{
		Destination: netip.MustParsePrefix(destination), Source: netip.MustParseAddr("192.168.0.11"),
	}}}
}

// Set waits for a moment; then the state counts as not set yet, and the worker calls Done at the end.
func TestWorkerPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k, woken := newTestWorker()
		one, two := stateWithRoute("100.64.16.0/20"), stateWithRoute("100.64.32.0/20")

		k.let <- nil
		if err := w.Set(one); err != nil {
			t.Fatal(err)
		}
		<-k.sets
		if err := w.Set(one); err != nil || len(k.sets) > 0 {
			t.Errorf("the kernel is told the same again: %v", err)
		}

		began := time.Now()
		if err := w.Set(two); err != ErrBusy || time.Since(began) != patience {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		began = time.Now()
		if err := w.Set(one); err != ErrBusy || time.Since(began) != 0 {
			t.Errorf("while it is busy: %v after %v", err, time.Since(began))
		}
		time.Sleep(Grace)
		if err := w.Set(two); err != ErrStuck {
			t.Errorf("after the grace: %v", err)
		}
		if n := w.Drops().Node; n != 7 { // it waits for nothing
			t.Errorf("%d refused packets", n)
		}
		if woken.Load() > 0 {
			t.Error("woken before the end")
		}
		k.let <- nil
		synctest.Wait()
		<-k.sets
		if woken.Load() != 1 {
			t.Errorf("woken %d times", woken.Load())
		}
		if err := w.Set(two); err != nil || len(k.sets) > 0 {
			t.Errorf("after the end: %v", err)
		}
	})
}

// What is the same is told again at each resync: other programs change it, and no event tells. Set does not wait for
// that.
func TestWorkerRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k, woken := newTestWorker()
		one, two := stateWithRoute("100.64.16.0/20"), stateWithRoute("100.64.32.0/20")
		k.let <- nil
		if err := w.Set(one); err != nil {
			t.Fatal(err)
		}
		<-k.sets
		time.Sleep(resync)
		if err := w.Set(one); err != nil || len(k.sets) != 1 {
			t.Errorf("a slow repair: %v", err)
		}
		if err := w.Set(one); err != nil {
			t.Errorf("during the repair: %v", err)
		}
		if err := w.Set(two); err != ErrBusy {
			t.Errorf("another state during the repair: %v", err)
		}
		k.let <- nil
		synctest.Wait()
		if woken.Load() != 1 {
			t.Errorf("woken %d times", woken.Load())
		}
		<-k.sets
		k.let <- nil
		if err := w.Set(two); err != nil || len(k.sets) != 1 {
			t.Errorf("the other state after the repair: %v", err)
		}
	})
}

// A run that fails slowly is tried again later and later, and its error is what Set returns meanwhile. Another
// state does not wait for that.
func TestWorkerBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k, _ := newTestWorker()
		one := stateWithRoute("100.64.16.0/20")
		pause := 100 * time.Millisecond
		for try := range 4 {
			const why = "again, as the last try has failed: lock"
			if err := w.Set(one); !errors.Is(err, ErrBusy) || strings.HasSuffix(err.Error(), why) != (try > 0) {
				t.Fatal(err)
			}
			k.let <- errors.New("lock")
			synctest.Wait()
			<-k.sets
			time.Sleep(pause - time.Millisecond)
			if err := w.Set(one); err == nil || err.Error() != "lock" || len(k.sets) > 0 {
				t.Errorf("before the end of %v: %v", pause, err)
			}
			time.Sleep(time.Millisecond)
			pause *= 2
		}
		if err := w.Set(one); !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
		k.let <- errors.New("lock")
		synctest.Wait()
		<-k.sets
		k.let <- nil
		if err := w.Set(stateWithRoute("100.64.32.0/20")); err != nil || len(k.sets) != 1 {
			t.Errorf("another state: %v", err)
		}
	})
}

// A quick failure is told at once, and tried again at the next Set.
func TestWorkerFails(t *testing.T) {
	w, k, woken := newTestWorker()
	for _, err := range []error{errors.New("lock"), errors.New("lock"), nil} {
		k.let <- err
		if got := w.Set(stateWithRoute("100.64.16.0/20")); got != err {
			t.Errorf("%v, want %v", got, err)
		}
		<-k.sets
	}
	if woken.Load() > 0 {
		t.Error("woken by a run that Set has waited for")
	}
}

// What somebody else has changed is repaired at once when the worker is told to compare, also in another goroutine
// while the kernel is being told.
func TestWorkerComparesSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k, _ := newTestWorker()
		one := stateWithRoute("100.64.16.0/20")
		w.CompareSoon() // there is no state yet
		for n := range 3 {
			k.let <- nil
			if err := w.Set(one); err != nil || len(k.sets) != 1 {
				t.Errorf("round %d: told %d times, %v", n, len(k.sets), err)
			}
			<-k.sets
			w.CompareSoon()
		}
		go w.CompareSoon()
		if err := w.Set(one); err != nil { // the kernel does not take it yet: the repair goes on
			t.Error(err)
		}
		w.CompareSoon()
		k.let <- nil
		synctest.Wait()
		if len(k.sets) != 1 {
			t.Errorf("told %d times", len(k.sets))
		}
		w.Wait()
	})
}

// The log says in which back end of iptables the chains are, once, and when that changes.
func TestWorkerLogsBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k, _ := newTestWorker()
		var log bytes.Buffer
		w.config.Log = slog.New(slog.NewTextHandler(&log, nil))
		for i, step := range []struct {
			backend, want string
			times         int
		}{{"nft", "backend=nft reason=kubelet", 1}, {"nft", "backend=nft", 1}, {"legacy", "backend=legacy", 1}} {
			k.backends = []Backend{{4, step.backend, "kubelet"}}
			k.let <- nil
			if err := w.Set(stateWithRoute(fmt.Sprintf("100.64.%d.0/24", i))); err != nil {
				t.Fatal(err)
			}
			<-k.sets
			if n := strings.Count(log.String(), "family=IPv4 "+step.want); n != step.times {
				t.Errorf("step %d: %d lines with %q:\n%s", i, n, step.want, log.String())
			}
		}
	})
}
