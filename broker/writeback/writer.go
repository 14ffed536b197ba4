// Package writeback writes to the API server: status and events of KubeLinks, their finalizers, the managed TLS secret,
// the Certificate, and the KubeLinks of peers that connected by themselves. The reconciler tells it the whole outcome
// and goes on; the latest outcome wins. So the reconciler never waits for the API server.
package writeback

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/deadline"
)

// Outcome is all that one reconciliation wants to have written.
type Outcome struct {
	Links       []Link
	Create      map[string]*v1alpha1.KubeLink // for peers that connected by themselves, by name
	Secret      *corev1.Secret                // with a resourceVersion it is updated, without it is created; nil: none
	Certificate *unstructured.Unstructured    // the request to the certificate service; nil: none
	// ClusterDNS configures the cluster's DNS; nil: not wanted. What only a user can mend is its note.
	ClusterDNS func(context.Context) (note string, err error)
	// Standby says that another broker holds the links: Links have only what this one says of itself, and nothing else is
	// written.
	Standby bool
}

// Link is what users are to see of one KubeLink.
type Link struct {
	Object    *v1alpha1.KubeLink // as read from the cache; the writer does not change it
	State     v1alpha1.State
	Message   string
	Notes     []string // that Message has, too: to be known, and no failure
	PublicKey string   // of this cluster, for a LocalLink
	Finalizer bool     // the LocalLink has members
	Term      uint32
	Contested []netip.Addr
	Standby   *v1alpha1.Standby // all that is written: this broker does not hold the links; nil: it does
	// Forwarding says what the check of the node has found; zero: nothing is said.
	Forwarding metav1.Condition
	// Adopt writes what the peer announced to the KubeLink; nil: it announced nothing. What only a user can mend is its
	// note.
	Adopt func(context.Context) (note string, err error)
}

// Report is a status to be written of an object that is no KubeLink.
type Report interface {
	Object() client.Object
	Write(context.Context, client.Client) error
}

// Config is what a writer needs of its surroundings.
type Config struct {
	Client   client.Client
	Recorder events.EventRecorder
	Log      *slog.Logger
	NodeIP   string // shown as the gateway of links
	NodeName string // of this broker among the standbys
	// MayWrite tells whether this broker still holds the links, else what has to be written waits; nil: it does.
	MayWrite func() bool
	// Wake asks for another outcome: a status that was held back may be written now.
	Wake      func()
	MaxCreate int // bound of KubeLinks that wait to be created
	// IsLast says at the end of Start that no other writer follows in this process; nil: one does. The next process may
	// never come, so the writer takes its finalizers off: without a broker that does so, LocalLinks, and with them the
	// CRD, could not be deleted.
	IsLast func() bool
}

// Writer writes the latest outcome. It implements manager.Runnable.
type Writer struct {
	Config
	signal chan struct{}

	mu      sync.Mutex // guards pending and reports; nothing waits while it is held
	pending *Outcome
	reports map[string][]Report // written after pending, by what makes them

	// The fields below belong to the goroutine of Start.
	limit      deadline.Limit              // of requests; each grows with an API server that is slow
	written    *Outcome                    // the latest one; nil: none
	requested  bool                        // this writer has applied the Certificate
	dnsNote    string                      // latest note of ClusterDNS
	limits     map[types.UID]*statusBudget // by KubeLink
	heldBackBy time.Duration               // time until a status that was held back may be written; 0: none was
}

// NewWriter returns a writer that starts with Start.
func NewWriter(c Config) *Writer {
	if c.MayWrite == nil {
		c.MayWrite = func() bool { return true }
	}
	return &Writer{
		Config: c, signal: make(chan struct{}, 1),
		limit: deadline.New(deadline.First), limits: map[types.UID]*statusBudget{}, reports: map[string][]Report{},
	}
}

// SetOutcome replaces the outcome to be written. It never blocks.
func (w *Writer) SetOutcome(o *Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inheritCreates(o, w.pending)
	w.pending = o
	w.notify()
}

// SetReports replaces the reports to be written that come from one source. It never blocks.
func SetReports[R Report](w *Writer, source string, reports []R) {
	all := make([]Report, len(reports))
	for i, r := range reports {
		all[i] = r
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reports[source] = all; len(all) == 0 {
		delete(w.reports, source)
	}
	w.notify()
}

func (w *Writer) notify() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// inheritCreates copies the KubeLinks to be created from an older outcome, which may be nil: no later outcome asks for
// them again.
func (w *Writer) inheritCreates(o, older *Outcome) {
	if older == nil {
		return
	}
	for name, l := range older.Create {
		if len(o.Create) < w.MaxCreate {
			o.Create[name] = l
		}
	}
}

// Start runs until ctx ends. It tries a failed write again with the outcome that is wanted by then.
func (w *Writer) Start(ctx context.Context) error {
	// A pause is between half of the delay and all of it; the delay grows from 100 ms to 5 s.
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 16, Cap: 2500 * time.Millisecond}
	delays := backoff
	var retry, later <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			if w.IsLast != nil && w.IsLast() {
				w.removeFinalizers()
			}
			return nil
		case <-w.signal:
		case <-retry:
		case <-later:
			w.Wake()
			later = nil
			continue
		}
		retry = nil
		err := w.writeAll(ctx)
		if later = nil; w.heldBackBy > 0 {
			later = time.After(w.heldBackBy)
		}
		if err != nil && ctx.Err() == nil {
			delay := delays.Step()
			w.Log.Warn("cannot write to the API server, trying again", "error", err, "delay", delay)
			retry = time.After(delay)
			continue
		}
		delays = backoff
	}
}

// writeAll writes the pending outcome first. Then it writes reports, of which there may be many, until there is a new
// outcome.
func (w *Writer) writeAll(ctx context.Context) error {
	w.mu.Lock()
	o := w.pending
	if !(o != nil && o.Standby) && !w.MayWrite() {
		w.mu.Unlock()
		return nil
	}
	w.pending = nil
	w.mu.Unlock()
	if o == nil {
		return w.writeReports(ctx)
	}
	w.heldBackBy, w.written = 0, o
	err := w.writeOutcome(ctx, o)
	if err == nil {
		return w.writeReports(ctx)
	}
	// An error about one KubeLink does not hold up reports; an API server that does not answer does.
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		err = errors.Join(err, w.writeReports(ctx))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending == nil {
		w.pending = o
	} else {
		w.inheritCreates(w.pending, o)
	}
	return err
}

func (w *Writer) writeReports(ctx context.Context) error {
	for ctx.Err() == nil {
		source, report := w.nextReport()
		if report == nil {
			return nil
		}
		err := w.limit.Do(ctx, func(ctx context.Context) error { return report.Write(ctx, w.Client) })
		done := 1
		switch {
		case err == nil, isOutdated(err):
		case apierrors.IsForbidden(err), apierrors.IsInvalid(err):
			w.Log.Warn("cannot write the status of "+source, "object", client.ObjectKeyFromObject(report.Object()),
				"error", err)
			if apierrors.IsForbidden(err) {
				done = math.MaxInt // the API server would refuse the rest, too
			}
		default:
			return err
		}
		w.dropReports(source, report, done)
	}
	return nil
}

// nextReport returns a report of any source, unless there is a new outcome, or another broker holds the links.
func (w *Writer) nextReport() (source string, r Report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending != nil || !w.MayWrite() {
		return "", nil
	}
	for source, reports := range w.reports {
		return source, reports[0]
	}
	return "", nil
}

// dropReports removes the first n reports of a source, unless SetReports has replaced them.
func (w *Writer) dropReports(source string, first Report, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	reports := w.reports[source]
	if len(reports) == 0 || reports[0].Object() != first.Object() {
		return
	}
	if w.reports[source] = reports[min(n, len(reports)):]; len(w.reports[source]) == 0 {
		delete(w.reports, source)
	}
}

// isOutdated says that the object has changed or is gone. The watch of it brings a new outcome.
func isOutdated(err error) bool { return apierrors.IsNotFound(err) || apierrors.IsConflict(err) }

// batch runs the requests of one outcome one after the other and collects their errors.
type batch struct {
	limit *deadline.Limit
	errs  []error
	dead  bool // the API server does not answer: each further request would fail the same way, only later
}

func (b *batch) run(ctx context.Context, what string, request func(context.Context) error) {
	if b.dead {
		return
	}
	err := b.limit.Do(ctx, request)
	if err != nil && !isOutdated(err) {
		b.errs = append(b.errs, fmt.Errorf("%s: %w", what, err))
	}
	var status apierrors.APIStatus
	var netErr net.Error
	b.dead = err != nil && !errors.As(err, &status) && errors.As(err, &netErr)
}

func (w *Writer) writeOutcome(ctx context.Context, o *Outcome) error {
	b := &batch{limit: &w.limit}
	if s := o.Secret; s != nil {
		b.run(ctx, "secret "+s.Name, func(ctx context.Context) error {
			if s.ResourceVersion == "" {
				return w.Client.Create(ctx, s.DeepCopy())
			}
			return w.Client.Update(ctx, s.DeepCopy())
		})
	}
	if o.Certificate != nil && !w.requested {
		b.run(ctx, "certificate", func(ctx context.Context) error {
			apply := client.ApplyConfigurationFromUnstructured(o.Certificate.DeepCopy())
			err := w.Client.Apply(ctx, apply, client.FieldOwner("kubelink"), client.ForceOwnership)
			w.requested = err == nil
			return err
		})
	}
	if o.ClusterDNS != nil {
		b.run(ctx, "cluster DNS", func(ctx context.Context) (err error) {
			w.dnsNote, err = o.ClusterDNS(ctx)
			return err
		})
	}
	if len(w.limits) > len(o.Links) { // some KubeLinks are gone
		maps.DeleteFunc(w.limits, func(uid types.UID, _ *statusBudget) bool {
			return !slices.ContainsFunc(o.Links, func(l Link) bool { return l.Object.UID == uid })
		})
	}
	for _, l := range o.Links {
		b.run(ctx, "KubeLink "+l.Object.Name, func(ctx context.Context) error { return w.writeLink(ctx, l) })
	}
	w.createLinks(ctx, b, o.Create)
	return errors.Join(b.errs...)
}

// createLinks creates KubeLinks and removes from the map the ones that need no other try.
func (w *Writer) createLinks(ctx context.Context, b *batch, links map[string]*v1alpha1.KubeLink) {
	for name, l := range links {
		b.run(ctx, "create KubeLink "+name, func(ctx context.Context) error {
			err := w.Client.Create(ctx, l.DeepCopy())
			switch {
			case apierrors.IsAlreadyExists(err):
				err = nil
			case apierrors.IsInvalid(err), apierrors.IsForbidden(err):
				w.Log.Warn("cannot create the link of a peer that connected by itself", "link", name, "error", err)
				err = nil // the next try would end the same way
			}
			if err == nil {
				delete(links, name)
			}
			return err
		})
	}
}

// holdBack notes that a status has to wait for at least d.
func (w *Writer) holdBack(d time.Duration) { w.heldBackBy = min(cmp.Or(w.heldBackBy, d), d) }
