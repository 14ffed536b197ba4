package broker

// Why the broker is not ready, and what wakes the reconciler.

import (
	"errors"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/nodecheck"
)

// health is why the broker is not ready, or not as it should be.
type health struct {
	api         error             // the API server cannot be reached
	controllers error             // the controllers do not run
	applied     error             // the last state could not be applied in full, or there was none yet
	crds        error             // the CRDs are not up to date, which is no reason not to be ready
	node        *nodecheck.Report // whether packets pass; nil: not known
	clusterDNS  string            // why coredns-configure has no effect; empty: it has, or is not wanted
}

var errNoHolder = errors.New("the API server has not told yet which broker holds the links")

var errNoState = errors.New("no state from the API server yet")

// healthState is the health right now. Readers take no lock.
type healthState struct{ atomic.Pointer[health] }

func newHealthState() *healthState {
	s := &healthState{}
	s.Store(&health{applied: errNoState})
	return s
}

func (s *healthState) change(change func(*health)) {
	for {
		old := s.Load()
		h := *old
		change(&h)
		if s.CompareAndSwap(old, &h) {
			return
		}
	}
}

// theKey stands for all that is watched.
var theKey = &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: "all"}}

// waker wakes the reconciler of the running controllers. One pending event is enough, as the reconciler always looks at
// everything. Each run of the controllers has a channel of its own.
type waker struct {
	events atomic.Pointer[chan event.GenericEvent]
}

// newChannel returns the channel of a new run.
func (w *waker) newChannel() chan event.GenericEvent {
	events := make(chan event.GenericEvent, 1)
	w.events.Store(&events)
	return events
}

// wake lets the reconciler look again. It never blocks.
func (w *waker) wake() {
	if events := w.events.Load(); events != nil {
		select {
		case *events <- event.GenericEvent{Object: theKey}:
		default:
		}
	}
}
