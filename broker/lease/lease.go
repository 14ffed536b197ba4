// Package lease decides which one of several brokers of the same links carries them, by a Lease of the API server
// (coordination.k8s.io/v1). The Lease says which node holds the links, and its number of transitions is the term of the
// holder: peers follow the highest one (package bridge).
//
// It differs from client-go's leader election in three points. The holder goes on when it cannot reach the API server:
// to stop would end links that work. A standby counts only the time in which it could read the Lease, and saw no
// change: when the API server comes back after an outage, it finds an old Lease and takes nothing. And the holder is a
// node: the process that follows a crashed one has the Lease at once.
package lease

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/deadline"
)

// Config says which Lease decides. After RenewDeadline the holder says that it cannot renew. A request takes as long,
// and longer when the API server is slow.
type Config struct {
	Namespace, Name string
	Identity        string // of this broker's node

	Duration      time.Duration // for which a standby sees no change before it takes the Lease; 0: there is no Lease
	RenewDeadline time.Duration
	RetryPeriod   time.Duration // between renewals, and between looks of a standby
}

// isSameLease tells whether both configurations are about the same Lease.
func (c *Config) isSameLease(other *Config) bool {
	return (c.Duration == 0) == (other.Duration == 0) &&
		c.Namespace == other.Namespace && c.Name == other.Name && c.Identity == other.Identity
}

// leases is what an Elector needs of the API server.
type leases interface {
	Get(context.Context, string, metav1.GetOptions) (*coordinationv1.Lease, error)
	Create(context.Context, *coordinationv1.Lease, metav1.CreateOptions) (*coordinationv1.Lease, error)
	Update(context.Context, *coordinationv1.Lease, metav1.UpdateOptions) (*coordinationv1.Lease, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// Elector takes part in the election. Run and Release are not called at the same time; the other methods may be.
type Elector struct {
	log      *slog.Logger
	changed  func() // called when the State has changed; it does not block
	instance string // random, of this process
	state    atomic.Pointer[State]

	takeovers takeoverCounters

	config     Config
	api        leases // nil: Run was not called yet
	disconnect func()
	limit      deadline.Limit // of the requests of a step
	memory
}

// memory is what an Elector remembers of its Lease.
type memory struct {
	lease     *coordinationv1.Lease // as last read or written; nil: it does not exist, or is unknown
	decided   bool                  // this process has held the Lease, or has seen that another one holds it
	held      bool                  // this process holds it, as far as it knows
	term      uint32                // the highest one seen
	unchanged time.Duration         // for which this broker could read the Lease, and saw no change
	readAt    time.Time             // when it read the Lease; zero: the last try failed
	triedAt   time.Time             // when it tried first
	renewedAt time.Time             // when it renewed last
}

// NewElector returns an Elector. Its role is Unknown until Run has found out more.
func NewElector(log *slog.Logger, changed func()) *Elector {
	e := &Elector{log: log, changed: changed, instance: rand.Text()}
	e.state.Store(&State{})
	return e
}

// State is what is known right now. It takes no lock.
func (e *Elector) State() *State { return e.state.Load() }

// Omit says that there is no Lease: this broker holds the links from now on.
func (e *Elector) Omit(identity string) { e.publishState(State{Role: Holder, Holder: identity}) }

// Run takes part in the election until ctx ends. What it has found out stays for the next Run: a holder goes on
// holding. Without Lease it gives back the one that this process held.
func (e *Elector) Run(ctx context.Context, api *rest.Config, c Config) error {
	client, disconnect, err := newClient(api, &c)
	if err != nil {
		return err
	}
	defer disconnect()
	e.run(ctx, client, disconnect, c)
	return nil
}

// run is Run with a client. It ends connections that do not answer.
func (e *Elector) run(ctx context.Context, api leases, disconnect func(), c Config) {
	if !c.isSameLease(&e.config) {
		bounded, cancel := context.WithTimeout(ctx, e.config.RenewDeadline)
		e.Release(bounded)
		cancel()
		e.memory = memory{}
	}
	e.config, e.api, e.disconnect, e.limit = c, api, disconnect, deadline.New(c.RenewDeadline)
	if s := *e.State(); s.Role == Unknown {
		s.Lease = c.Name
		e.state.Store(&s)
	}
	for ctx.Err() == nil && c.Duration > 0 {
		pause, cancel := context.WithTimeout(ctx, e.takeStep(ctx))
		if e.decided && !e.held && e.awaitReturn(pause) {
			cancel()
		}
		<-pause.Done()
		cancel()
	}
}

// awaitReturn waits until the holder gives the Lease back: a standby takes it at once. false: ctx has ended, or a watch
// is not possible.
func (e *Elector) awaitReturn(ctx context.Context) bool {
	opts := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", e.config.Name).String()}
	if e.lease != nil {
		opts.ResourceVersion = e.lease.ResourceVersion
	}
	changes, err := e.api.Watch(ctx, opts)
	if err != nil {
		return false
	}
	defer changes.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case event, open := <-changes.ResultChan():
			l, ok := event.Object.(*coordinationv1.Lease)
			if !open || !ok {
				return false
			}
			if event.Type == watch.Modified && ownerOf(l, e.config.Identity, e.instance) == vacant {
				return true
			}
		}
	}
}

// Release gives the Lease back that this process holds, so that another broker takes it at once.
func (e *Elector) Release(ctx context.Context) {
	if !e.held || e.lease == nil {
		return
	}
	e.held = false
	if _, err := e.api.Update(ctx, releaseLease(e.lease), metav1.UpdateOptions{}); err != nil {
		e.log.Warn("cannot give the Lease of the links back: another broker takes it when it has expired",
			"lease", e.config.Name, "error", err)
	}
}

// takeStep renews the Lease, or looks at it, and returns how long to wait for the next step.
func (e *Elector) takeStep(ctx context.Context) (pause time.Duration) {
	if e.triedAt.IsZero() {
		e.triedAt = time.Now()
	}
	err := e.limit.Do(ctx, e.renewOrLook)
	switch {
	case ctx.Err() != nil:
		return 0
	case isOutdated(err):
		return e.config.RetryPeriod / 10
	case err != nil:
		e.unchanged, e.readAt = 0, time.Time{}
		e.noteFailure(err)
		if deadline.IsTimeout(err) { // the holder is to be sooner back than a standby has waited
			e.disconnect()
			return 0
		}
	case !e.held:
		return max(e.config.RetryPeriod/10, min(e.config.RetryPeriod, e.remainingWait()))
	}
	return e.config.RetryPeriod
}

// renewOrLook renews the Lease that this process holds, or looks at it.
func (e *Elector) renewOrLook(ctx context.Context) error {
	if e.held {
		err := e.writeLease(ctx, e.lease, e.term)
		if !isOutdated(err) && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return e.readLease(ctx)
}

// isOutdated says that another program has changed or made the Lease meanwhile.
func isOutdated(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }

// readLease reads the Lease, and takes it if it is to be had.
func (e *Elector) readLease(ctx context.Context) error {
	l, err := e.api.Get(ctx, e.config.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		l, err = nil, nil
	}
	if err != nil {
		return err
	}
	first, lost, owner := !e.decided, e.held && l == nil, ownerOf(l, e.config.Identity, e.instance)
	e.observeLease(l)
	switch {
	case owner == self, lost: // a Lease that was deleted is made again as it was
		return e.writeLease(ctx, l, max(1, e.term))
	case owner == vacant && (l != nil || first), owner == earlier && first, e.remainingWait() <= 0:
		return e.takeLease(ctx, l, owner)
	}
	e.decided, e.held = true, false
	holder := holderName(l)
	if owner == earlier {
		holder = "another process of " + holder
	}
	e.publishState(State{Role: Standby, Lease: e.config.Name, Term: e.term, Holder: holder})
	return nil
}

// takeLease takes the Lease l from its owner; nil: it makes one.
func (e *Elector) takeLease(ctx context.Context, l *coordinationv1.Lease, from owner) error {
	why := tookExpired
	switch {
	case l == nil:
		why = tookNew
	case from == vacant:
		why = tookReleased
	case from == earlier:
		why = tookRestart
	}
	err := e.writeLease(ctx, l, nextTerm(e.term))
	switch {
	case err == nil:
		e.takeovers[why].Add(1)
	case !isOutdated(err):
		e.unchanged = 0 // the holder could not renew it either
	}
	return err
}

// observeLease notes what the Lease says, and for how long it has said so. A pause of this process does not count as
// time in which it could read the Lease.
func (e *Elector) observeLease(l *coordinationv1.Lease) {
	now := time.Now()
	switch {
	case !sameRecord(l, e.lease):
		e.unchanged = 0
	case !e.readAt.IsZero():
		e.unchanged += min(now.Sub(e.readAt), 2*e.config.RetryPeriod)
	}
	if t := termOf(l); l != nil && (t > e.term || ownerOf(l, e.config.Identity, e.instance) == foreign) {
		e.term = t
	}
	e.lease, e.readAt = l, now
}

// sameRecord tells whether no holder has written the Lease meanwhile. Other programs may change its metadata.
func sameRecord(a, b *coordinationv1.Lease) bool {
	if a == nil || b == nil {
		return a == b
	}
	return equality.Semantic.DeepEqual(a.Spec, b.Spec)
}

// remainingWait is the time until a standby may take the Lease.
func (e *Elector) remainingWait() time.Duration {
	return durationOf(e.lease, e.config.Duration) - e.unchanged
}

// writeLease writes the Lease l, nil: it makes one, as that of this process with a term.
func (e *Elector) writeLease(ctx context.Context, l *coordinationv1.Lease, term uint32) (err error) {
	now := time.Now()
	wanted := claimLease(l, &e.config, e.instance, term, now)
	if l == nil {
		wanted, err = e.api.Create(ctx, wanted, metav1.CreateOptions{})
	} else {
		wanted, err = e.api.Update(ctx, wanted, metav1.UpdateOptions{})
	}
	if err != nil {
		return err
	}
	e.lease, e.decided, e.held, e.term, e.unchanged, e.readAt, e.renewedAt = wanted, true, true, term, 0, now, now
	confirmed := time.Now().Add(e.config.Duration)
	e.publishState(State{
		Role: Holder, Lease: e.config.Name, Term: term, Holder: e.config.Identity, renewed: now, confirmed: confirmed,
	})
	return nil
}

// noteFailure decides what a failed step means. A holder stays one. A broker that has not learnt which broker holds the
// Lease, as it must not read or write it, carries the links as if there was none: that is what happened before there
// were Leases, and peers prefer a broker that has one.
func (e *Elector) noteFailure(err error) {
	s, now := *e.state.Load(), time.Now()
	refused := apierrors.IsForbidden(err) || apierrors.IsMethodNotSupported(err) || apierrors.IsNotFound(err)
	answered := refused || apierrors.ReasonForError(err) != metav1.StatusReasonUnknown
	switch {
	case s.Role == Unknown && (refused || answered && now.Sub(e.triedAt) > e.config.Duration):
		e.publishState(State{Role: Holder, Lease: e.config.Name, Holder: e.config.Identity, Problem: fmt.Sprintf(
			"Lease %s cannot be used: %v: this broker carries the links without it, and does not notice another one; "+
				"allow it as deploy/base/rbac.yaml does, or set omit-lease", e.config.Name, err)})
	case e.held && s.Problem == "" && now.Sub(e.renewedAt) > e.config.RenewDeadline:
		s.Problem = fmt.Sprintf("Lease %s cannot be renewed: %v: this broker goes on, but another one may take the links",
			e.config.Name, err)
		e.publishState(s)
	}
	if e.held && refused { // by an API server that answers: no other broker gets further
		s = *e.state.Load()
		s.confirmed = now.Add(e.config.Duration)
		e.publishState(s)
	}
}

// publishState makes s the State, and tells if it differs.
func (e *Elector) publishState(s State) {
	old := e.state.Swap(&s)
	if s.equals(old) && s.MayWrite() == old.MayWrite() {
		return
	}
	switch {
	case s.equals(old):
	case s.Problem != "" && s.Problem != old.Problem:
		e.log.Warn("the Lease of the links", "problem", s.Problem)
	case s.Role == Holder && s.Term > 0:
		e.log.Info("this broker holds the links", "lease", e.config.Name, "identity", s.Holder, "term", s.Term)
	case s.Role == Standby:
		e.log.Info("another broker holds the links, this one answers DNS and stands by", "lease", e.config.Name,
			"holder", s.Holder, "term", s.Term)
	}
	e.changed()
}
