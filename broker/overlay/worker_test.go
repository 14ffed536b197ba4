package overlay

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mandelsoft/kubelink/broker/kernel"
)

// fakeEnd takes some time for a Set.
type fakeEnd struct {
	takes time.Duration
	err   error
	sets  atomic.Int32
}

func (f *fakeEnd) Set(State) error {
	f.sets.Add(1)
	time.Sleep(f.takes)
	return f.err
}
func (f *fakeEnd) Clear() error       { return nil }
func (f *fakeEnd) Counters() Counters { return Counters{} }

func TestWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var woken atomic.Int32
		f := &fakeEnd{}
		w := &Worker{end: f, repair: 30 * time.Second, done: func() { woken.Add(1) }}
		expect := func(s State, wantErr, wantPending error, sets, wakes int32) {
			t.Helper()
			err, pending := w.Set(s)
			if err != wantErr || pending != wantPending || f.sets.Load() != sets || woken.Load() != wakes {
				t.Errorf("error %v, pending %v, %d sets, woken %d times", err, pending, f.sets.Load(), woken.Load())
			}
		}
		one, two := State{VNI: 1}, State{VNI: 2}
		expect(one, nil, nil, 1, 0)
		expect(one, nil, nil, 1, 0) // the kernel has it
		f.takes = 20 * time.Second
		expect(two, nil, kernel.ErrBusy, 2, 0)
		expect(two, nil, kernel.ErrBusy, 2, 0)
		w.Wait()
		expect(two, nil, nil, 2, 1)
		time.Sleep(30 * time.Second)
		expect(two, nil, nil, 3, 1) // a repair that takes longer is not pending
		w.Wait()
		f.takes, f.err = 0, errors.New("no such luck")
		expect(one, f.err, nil, 4, 2)
		expect(one, f.err, nil, 5, 2) // what fails is tried again
	})
}
