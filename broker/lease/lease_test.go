package lease

// Several brokers and one API server, in the time of testing/synctest: what takes minutes is tested in an instant.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

var leaseResource = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}

// fakeAPI has one Lease, and refuses outdated updates.
type fakeAPI struct {
	mu      sync.Mutex
	lease   *coordinationv1.Lease
	version int
	away    bool // it does not answer
	delay   time.Duration
	refuse  error // of each request
	noWrite error // of each write
	noWatch error // of each watch
	writes  int
	watches map[*watch.RaceFreeFakeWatcher]bool
}

func (f *fakeAPI) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	if err := f.begin(ctx, false); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.noWatch != nil {
		return nil, f.noWatch
	}
	w := watch.NewRaceFreeFake()
	if f.lease != nil && f.lease.ResourceVersion != opts.ResourceVersion {
		w.Modify(f.lease.DeepCopy())
	}
	if f.watches == nil {
		f.watches = map[*watch.RaceFreeFakeWatcher]bool{}
	}
	f.watches[w] = true
	return w, nil
}

func (f *fakeAPI) begin(ctx context.Context, write bool) error {
	f.mu.Lock()
	away, refuse, delay := f.away, f.refuse, f.delay
	if write && refuse == nil {
		refuse = f.noWrite
	}
	f.mu.Unlock()
	switch {
	case away: // a connection is not made
		delay = 10 * time.Second
	case delay == 0:
		return refuse
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(delay):
	}
	if away {
		return context.DeadlineExceeded
	}
	return refuse
}

func (f *fakeAPI) Get(ctx context.Context, name string, _ metav1.GetOptions) (*coordinationv1.Lease, error) {
	if err := f.begin(ctx, false); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lease == nil {
		return nil, apierrors.NewNotFound(leaseResource, name)
	}
	return f.lease.DeepCopy(), nil
}

func (f *fakeAPI) Create(
	ctx context.Context, l *coordinationv1.Lease, _ metav1.CreateOptions,
) (*coordinationv1.Lease, error) {
	if err := f.begin(ctx, true); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lease != nil {
		return nil, apierrors.NewAlreadyExists(leaseResource, l.Name)
	}
	return f.store(l), nil
}

func (f *fakeAPI) Update(
	ctx context.Context, l *coordinationv1.Lease, _ metav1.UpdateOptions,
) (*coordinationv1.Lease, error) {
	if err := f.begin(ctx, true); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.lease == nil:
		return nil, apierrors.NewNotFound(leaseResource, l.Name)
	case f.lease.ResourceVersion != l.ResourceVersion:
		return nil, apierrors.NewConflict(leaseResource, l.Name, errors.New("changed"))
	}
	return f.store(l), nil
}

// store stores a Lease. f.mu is held.
func (f *fakeAPI) store(l *coordinationv1.Lease) *coordinationv1.Lease {
	f.version++
	f.writes++
	f.lease = l.DeepCopy()
	f.lease.ResourceVersion = fmt.Sprint(f.version)
	for w := range f.watches {
		if w.IsStopped() {
			delete(f.watches, w)
		} else {
			w.Modify(f.lease.DeepCopy())
		}
	}
	return f.lease.DeepCopy()
}

func (f *fakeAPI) change(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// edit changes the Lease as a user does.
func (f *fakeAPI) edit(change func(*coordinationv1.Lease)) {
	f.change(func() {
		l := f.lease.DeepCopy()
		change(l)
		f.store(l)
	})
}

// world is a number of brokers and the API server.
type world struct {
	t   *testing.T
	api *fakeAPI
	all map[string]*candidate
}

// candidate is a broker in the election.
type candidate struct {
	*Elector
	stop    context.CancelFunc
	api     *fakeAPI
	takes   int // changes to Holder
	demoted int // changes to Standby
}

func testConfig(node string) Config {
	return Config{Namespace: "kubelink", Name: "kubelink", Identity: node,
		Duration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second}
}

// simulate runs a test in a bubble of its own, and ends all brokers after it.
func simulate(t *testing.T, test func(*testing.T, *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, api: &fakeAPI{}, all: map[string]*candidate{}}
		defer func() {
			for _, c := range w.all {
				c.stop()
			}
		}()
		test(t, w)
	})
}

// start starts a process of a broker on a node.
func (w *world) start(name, node string) *candidate {
	c := &candidate{api: w.api}
	last := Unknown
	c.Elector = NewElector(quiet, func() {
		if role := c.State().Role; role != last {
			if last = role; role == Holder {
				c.takes++
			} else {
				c.demoted++
			}
		}
	})
	c.resume(testConfig(node))
	w.all[name] = c
	synctest.Wait()
	return c
}

// resume lets a broker take part with a configuration, as after a reload.
func (c *candidate) resume(cfg Config) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { c.run(ctx, c.api, func() {}, cfg); close(ended) }()
	c.stop = func() { stop(); <-ended }
}

// expect compares the state of a broker.
func (w *world) expect(name string, role Role, term uint32, holder string) {
	w.t.Helper()
	synctest.Wait()
	if s := w.all[name].State(); s.Role != role || s.Term != term || s.Holder != holder {
		w.t.Errorf("%s: role %d, term %d, holder %q, want %d, %d, %q", name, s.Role, s.Term, s.Holder, role, term, holder)
	}
}

// awaitHolder waits until a broker holds the Lease, and returns how long that took.
func (w *world) awaitHolder(name string) time.Duration {
	w.t.Helper()
	start := time.Now()
	for w.all[name].State().Role != Holder {
		if time.Since(start) > time.Hour {
			w.t.Fatalf("%s: %+v", name, w.all[name].State())
		}
		time.Sleep(10 * time.Millisecond) // of the bubble
	}
	return time.Since(start)
}

// The first broker takes a free Lease at once; the other one stands by, for as long as the first one renews.
func TestTwoBrokers(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		start := time.Now()
		a := w.start("a", "node1")
		w.expect("a", Holder, 1, "node1")
		b := w.start("b", "node2")
		w.expect("b", Standby, 1, "node1")
		if took := time.Since(start); took > 0 {
			t.Errorf("the start took %s", took)
		}
		time.Sleep(10 * time.Minute)
		w.expect("a", Holder, 1, "node1")
		w.expect("b", Standby, 1, "node1")
		if a.takes != 1 || a.demoted != 0 || b.takes != 0 || b.demoted != 1 {
			t.Errorf("a %+v, b %+v", a, b)
		}
		if n := w.api.writes; n > 310 {
			t.Errorf("%d writes in 10 minutes", n)
		}
		if !a.State().MayWrite() || b.State().MayWrite() {
			t.Error("who may write")
		}
	})
}

// Another broker takes the Lease of one that is gone within its duration and 5 s, with the next term.
func TestTakeover(t *testing.T) {
	for offset := range 20 {
		simulate(t, func(t *testing.T, w *world) {
			a := w.start("a", "node1")
			time.Sleep(time.Duration(offset) * 100 * time.Millisecond)
			w.start("b", "node2")
			time.Sleep(time.Minute)
			a.stop()
			if took := w.awaitHolder("b"); took < 12*time.Second || took > 20*time.Second {
				t.Errorf("took over after %s", took)
			}
			w.expect("b", Holder, 2, "node2")
		})
	}
}

// names are the expected states of brokers, by name.
type names map[string]struct {
	role   Role
	term   uint32
	holder string
}

// events are what can happen to a Lease that a on node1 holds, while b on node2 stands by; and how it is 5 s later.
var events = []struct {
	name  string
	event func(*world)
	want  names
}{
	{"a process that is killed has its Lease back at once", func(w *world) {
		w.all["a"].stop()
		w.start("a", "node1")
	}, names{"a": {Holder, 2, "node1"}, "b": {Standby, 2, "node1"}}},
	{"an orderly end gives it back", func(w *world) {
		w.all["a"].stop()
		w.all["a"].Release(context.Background())
		if took := w.awaitHolder("b"); took > 20*time.Millisecond {
			w.t.Errorf("took over after %s", took)
		}
		w.expect("b", Holder, 2, "node2")
		w.start("a", "node1")
	}, names{"a": {Standby, 2, "node2"}, "b": {Holder, 2, "node2"}}},
	{"an orderly end gives it back, and the other one may not watch", func(w *world) {
		w.api.change(func() { w.api.noWatch = apierrors.NewForbidden(leaseResource, "", nil) })
		time.Sleep(3 * time.Second) // until the present watch has ended
		w.all["a"].stop()
		w.all["a"].Release(context.Background())
		time.Sleep(2 * time.Second)
		w.expect("b", Holder, 2, "node2")
		w.start("a", "node1")
	}, names{"a": {Standby, 2, "node2"}, "b": {Holder, 2, "node2"}}},
	{"a reload keeps it", func(w *world) {
		w.all["a"].stop()
		cfg := testConfig("node1")
		cfg.RetryPeriod = time.Second
		w.all["a"].resume(cfg)
	}, names{"a": {Holder, 1, "node1"}, "b": {Standby, 1, "node1"}}},
	{"the API server is away for a minute", func(w *world) {
		w.api.change(func() { w.api.away = true })
		time.Sleep(time.Minute)
		w.expect("a", Holder, 1, "node1")
		w.expect("b", Standby, 1, "node1")
		if w.all["a"].State().MayWrite() || !strings.Contains(w.all["a"].State().Problem, "cannot be renewed") {
			w.t.Errorf("%+v", w.all["a"].State())
		}
		w.api.change(func() { w.api.away = false })
		time.Sleep(time.Minute)
	}, names{"a": {Holder, 1, "node1"}, "b": {Standby, 1, "node1"}}},
	{"the API server is away for a day, often", func(w *world) {
		for n := range 100 {
			w.api.change(func() { w.api.away = true })
			time.Sleep(14*time.Minute + time.Duration(n)*97*time.Millisecond)
			w.api.change(func() { w.api.away = false })
			time.Sleep(25 * time.Second)
		}
	}, names{"a": {Holder, 1, "node1"}, "b": {Standby, 1, "node1"}}},
	{"nobody can write for a while", func(w *world) {
		w.api.change(func() { w.api.noWrite = apierrors.NewInternalError(errors.New("no space")) })
		time.Sleep(time.Minute)
		w.api.change(func() { w.api.noWrite = nil })
	}, names{"a": {Holder, 1, "node1"}, "b": {Standby, 1, "node1"}}},
	{"nobody may use it any more", func(w *world) {
		w.api.change(func() { w.api.refuse = apierrors.NewForbidden(leaseResource, "kubelink", errors.New("no")) })
		time.Sleep(time.Hour)
		if !w.all["a"].State().MayWrite() || w.all["b"].State().MayWrite() {
			w.t.Errorf("%+v, %+v", w.all["a"].State(), w.all["b"].State())
		}
		w.api.change(func() { w.api.refuse = nil })
	}, names{"a": {Holder, 1, "node1"}, "b": {Standby, 1, "node1"}}},
	{"a user deletes it", func(w *world) {
		w.api.change(func() { w.api.lease = nil })
	}, names{"a": {Holder, 1, "node1"}, "b": {Standby, 1, "node1"}}},
	{"a user deletes it when the holder is gone", func(w *world) {
		w.all["a"].stop()
		w.api.change(func() { w.api.lease = nil })
		w.awaitHolder("b")
		w.start("a", "node1")
	}, names{"a": {Standby, 2, "node2"}, "b": {Holder, 2, "node2"}}},
	{"a user annotates it", func(w *world) {
		w.api.edit(func(l *coordinationv1.Lease) { l.Annotations = nil })
	}, names{"a": {Holder, 1, "node1"}, "b": {Standby, 1, "node1"}}},
	{"a user lowers the term", func(w *world) {
		w.api.edit(func(l *coordinationv1.Lease) { l.Spec.LeaseTransitions = nil })
	}, names{"a": {Holder, 1, "node1"}, "b": {Standby, 1, "node1"}}},
	{"a user takes it away", func(w *world) {
		w.api.edit(func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = ptr.To("node9") })
		time.Sleep(5 * time.Second)
		w.expect("a", Standby, 1, "node9")
		for w.all["a"].State().Role != Holder && w.all["b"].State().Role != Holder {
			time.Sleep(time.Second)
		}
	}, nil},
	{"garbage", func(w *world) {
		w.all["a"].stop()
		w.api.edit(func(l *coordinationv1.Lease) {
			l.Spec = coordinationv1.LeaseSpec{HolderIdentity: ptr.To("x\n" + strings.Repeat("é", 500)),
				LeaseDurationSeconds: ptr.To(int32(math.MaxInt32)), LeaseTransitions: ptr.To(int32(math.MaxInt32)),
				RenewTime: ptr.To(metav1.NewMicroTime(time.Now().Add(1000 * time.Hour)))}
		})
		time.Sleep(3 * time.Second)
		if s := w.all["b"].State(); s.Role != Standby || len(s.Holder) > 253 || strings.Contains(s.Holder, "\n") {
			w.t.Errorf("%+v", s)
		}
		if took := w.awaitHolder("b"); took > 20*time.Second {
			w.t.Errorf("took over after %s", took)
		}
		w.start("a", "node1")
	}, names{"a": {Standby, 1, "node2"}, "b": {Holder, 1, "node2"}}},
	{"a second process with the same identity", func(w *world) {
		w.start("twin", "node1")
		time.Sleep(time.Minute)
		w.expect("twin", Holder, 2, "node1")
		if n := w.all["a"].demoted; n != 1 {
			w.t.Errorf("%d times demoted", n)
		}
	}, names{"a": {Standby, 2, "another process of node1"}, "b": {Standby, 2, "node1"}}},
	{"the clocks are a year off", func(w *world) {
		for range 40 {
			w.api.edit(func(l *coordinationv1.Lease) {
				l.Spec.RenewTime = ptr.To(metav1.NewMicroTime(l.Spec.RenewTime.AddDate(-1, 0, 0)))
			})
			time.Sleep(1700 * time.Millisecond)
		}
	}, names{"a": {Holder, 1, "node1"}, "b": {Standby, 1, "node1"}}},
}

// What happens to the Lease, and which broker holds it then.
func TestEvents(t *testing.T) {
	for _, c := range events {
		t.Run(c.name, func(t *testing.T) {
			simulate(t, func(t *testing.T, w *world) {
				w.start("a", "node1")
				w.start("b", "node2")
				time.Sleep(30 * time.Second)
				c.event(w)
				time.Sleep(5 * time.Second)
				for name, want := range c.want {
					w.expect(name, want.role, want.term, want.holder)
				}
				holders := 0
				for _, c := range w.all {
					if c.State().MayWrite() {
						holders++
					}
				}
				if holders != 1 {
					t.Errorf("%d brokers may write", holders)
				}
			})
		})
	}
}

// A process that was stopped for a while, as a machine that sleeps, writes nothing before it has asked; a standby that
// was stopped takes nothing from a holder that lives.
func TestStoppedProcess(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.start("a", "node1")
		b := w.start("b", "node2")
		b.stop() // it does not read,
		w.api.change(func() { w.api.away = true })
		time.Sleep(10 * time.Minute) // as the holder does not write,
		w.api.change(func() { w.api.away = false })
		b.resume(testConfig("node2")) // and is the first to read
		time.Sleep(time.Minute)
		w.expect("a", Holder, 1, "node1")
		w.expect("b", Standby, 1, "node1")

		a.stop()
		w.awaitHolder("b")
		if s := a.State(); s.Role != Holder || s.MayWrite() {
			t.Errorf("the stopped one: %+v", s)
		}
		a.resume(testConfig("node1"))
		w.expect("a", Standby, 2, "node2")
	})
}

// Where the Lease cannot be used, the broker carries its links; when it can, the Lease decides.
func TestWithoutLease(t *testing.T) {
	forbidden := apierrors.NewForbidden(leaseResource, "kubelink", errors.New("no role"))
	for _, c := range []struct {
		name  string
		set   func(*fakeAPI)
		after time.Duration // at most
		says  string
	}{
		{"reading is forbidden", func(f *fakeAPI) { f.refuse = forbidden }, 0, "no role"},
		{"writing is forbidden", func(f *fakeAPI) { f.noWrite = forbidden }, 0, "no role"},
		{"there is no namespace", func(f *fakeAPI) {
			f.noWrite = apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "kubelink")
		}, 0, "namespaces"},
		{"a webhook fails", func(f *fakeAPI) { f.noWrite = apierrors.NewInternalError(errors.New("webhook")) },
			20 * time.Second, "webhook"},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulate(t, func(t *testing.T, w *world) {
				c.set(w.api)
				w.start("a", "node1")
				if took := w.awaitHolder("a"); took > c.after {
					t.Errorf("after %s", took)
				}
				w.expect("a", Holder, 0, "node1")
				s := w.all["a"].State()
				if !strings.Contains(s.Problem, c.says) || !strings.Contains(s.Problem, "omit-lease") || !s.MayWrite() {
					t.Errorf("%+v", s)
				}
				w.api.change(func() { w.api.refuse, w.api.noWrite = nil, nil })
				time.Sleep(5 * time.Second)
				w.expect("a", Holder, 1, "node1")
				if s := w.all["a"].State(); s.Problem != "" {
					t.Errorf("%+v", s)
				}
			})
		})
	}
	t.Run("the API server does not answer", func(t *testing.T) {
		simulate(t, func(t *testing.T, w *world) {
			w.api.away = true
			w.start("a", "node1")
			time.Sleep(time.Hour)
			w.expect("a", Unknown, 0, "")
			w.api.change(func() { w.api.away = false })
			if took := w.awaitHolder("a"); took > 12*time.Second {
				t.Errorf("after %s", took)
			}
		})
	})
	t.Run("it is held when it can be used", func(t *testing.T) {
		simulate(t, func(t *testing.T, w *world) {
			w.api.refuse = forbidden
			w.start("a", "node1")
			w.expect("a", Holder, 0, "node1")
			w.api.change(func() { w.api.refuse = nil })
			w.start("b", "node2")
			time.Sleep(5 * time.Second)
			w.expect("a", Standby, 1, "node2")
		})
	})
}

// A broker goes on when its Lease gets another name, or none, and gives the old one back.
func TestAnotherLease(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.start("a", "node1")
		first := w.api
		a.stop()
		a.api = &fakeAPI{}
		cfg := testConfig("node1")
		cfg.Name = "other"
		a.resume(cfg)
		w.expect("a", Holder, 1, "node1")
		if h := first.lease.Spec.HolderIdentity; h != nil || a.takes != 1 || a.demoted != 0 {
			t.Errorf("holder %v, %+v", h, a)
		}
		second := a.api
		a.stop()
		cfg.Duration = 0
		a.Omit("node1")
		a.resume(cfg)
		w.expect("a", Holder, 0, "node1")
		if h := second.lease.Spec.HolderIdentity; h != nil || a.takes != 1 || !a.State().MayWrite() {
			t.Errorf("holder %v, %+v", h, a)
		}
	})
}

// Brokers of disjoint groups of links have a Lease each, and know nothing of each other.
func TestTwoGroups(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		groups := map[string][]string{"a": {"one", "two"}, "b": {"three"}}
		leases := map[string]*fakeAPI{}
		for name, served := range groups {
			c := w.start(name, "node-"+name)
			c.stop()
			cfg := testConfig("node-" + name)
			cfg.Name = Name(true, served)
			c.api = &fakeAPI{}
			leases[cfg.Name] = c.api
			c.resume(cfg)
		}
		time.Sleep(time.Minute)
		for name := range groups {
			if s := w.all[name].State(); s.Role != Holder || s.Holder != "node-"+name {
				t.Errorf("%s: %+v", name, s)
			}
		}
		if len(leases) != 2 || Name(true, nil) == Name(true, []string{}) || Name(true, nil) == Name(false, nil) {
			t.Error("groups share a Lease")
		}
	})
}

// Behind a slow API server, the first broker gets the Lease late, keeps it, and may write all the time.
func TestSlowAPIServer(t *testing.T) {
	for _, delay := range []time.Duration{3 * time.Second, 8 * time.Second, 12 * time.Second} {
		simulate(t, func(t *testing.T, w *world) {
			w.api.delay = delay
			a := w.start("a", "node1")
			if took := w.awaitHolder("a"); took > 8*delay {
				t.Errorf("%s per request: held after %s", delay, took)
			}
			b := w.start("b", "node2")
			wrote := 0
			for range 600 {
				time.Sleep(time.Second)
				if a.State().MayWrite() {
					wrote++
				}
			}
			if wrote < 590 || a.takes != 1 || a.demoted != 0 || b.takes != 0 {
				t.Errorf("%s per request: may write in %d of 600 s; a %+v, b %+v", delay, wrote, a, b)
			}
		})
	}
}

// HeldSince needs a renewal after the time. Without Lease there is none to renew; with one that cannot be used, the
// broker is never sure.
func TestHeldSince(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		before := time.Now()
		time.Sleep(time.Second)
		a := w.start("a", "node1")
		w.awaitHolder("a")
		if now := time.Now(); !a.State().HeldSince(before) || a.State().HeldSince(now.Add(time.Second)) {
			t.Errorf("holder: %+v", a.State())
		}
		cut := time.Now()
		w.api.change(func() { w.api.away = true })
		time.Sleep(5 * time.Second)
		if a.State().HeldSince(cut.Add(time.Second)) || !a.State().MayWrite() {
			t.Errorf("cut off for a moment: %+v", a.State())
		}
		time.Sleep(time.Minute)
		if a.State().HeldSince(before) {
			t.Errorf("cut off: %+v", a.State())
		}
	})
	for _, c := range []struct {
		state State
		want  bool
	}{{State{Role: Holder}, true}, {State{Role: Holder, Problem: "no role"}, false}, {State{Role: Standby, Term: 3}, false}} {
		if got := c.state.HeldSince(time.Now()); got != c.want {
			t.Errorf("%+v: %v", c.state, got)
		}
	}
}
