// Package globalnames keeps the names that belong to no cluster: it watches CoreDNSEntry and HostedZone objects, keeps
// the zones made of them, and reports on each object. It does so beside the reconciler's other kinds, because neither
// the number of these objects nor a missing permission for them may hold up links.
package globalnames

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/onchange"
	"github.com/mandelsoft/kubelink/broker/records"
)

// retryInterval is the pause between two tries to watch a kind that the API server does not know.
const retryInterval = 5 * time.Second

// nameKinds are the kinds of objects that global names come from.
var nameKinds = []client.Object{&coredns.CoreDNSEntry{}, &coredns.HostedZone{}}

// Watch watches the objects from when this cluster serves a global zone. It implements manager.Runnable.
type Watch struct {
	Cache cache.Cache // set before Start

	wake   func()
	log    *slog.Logger
	wanted chan struct{} // closed when the objects are wanted
	once   sync.Once

	synced  atomic.Bool
	version atomic.Uint64  // counts changes
	failure onchange.Error // why the objects cannot be read

	reports atomic.Pointer[records.Result] // on all objects, as built last; nil: none yet
	written sync.Map                       // by UID: the *records.Report that this broker has written last
}

// NewWatch returns a watch that wakes the reconciler when names may change.
func NewWatch(wake func(), log *slog.Logger) *Watch {
	return &Watch{wake: wake, log: log, wanted: make(chan struct{})}
}

func (w *Watch) request() { w.once.Do(func() { close(w.wanted) }) }

// Start runs until the objects are known, or ctx ends; the informers live on with the cache.
func (w *Watch) Start(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-w.wanted:
	}
	var known []toolscache.InformerSynced
	for _, kind := range nameKinds {
		synced, err := w.watchKind(ctx, kind)
		if synced == nil {
			return err
		}
		known = append(known, synced)
	}
	if toolscache.WaitForCacheSync(ctx.Done(), known...) {
		w.synced.Store(true)
		w.wake()
	}
	return nil
}

// watchKind adds the handler to the informer of a kind. It tries until ctx ends; the result is nil then.
func (w *Watch) watchKind(ctx context.Context, kind client.Object) (toolscache.InformerSynced, error) {
	for {
		// It must not wait for objects that may never come, such as when they are forbidden.
		informer, err := w.Cache.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
		if err == nil {
			handler, err := informer.AddEventHandler(w)
			if err != nil {
				return nil, err
			}
			return handler.HasSynced, nil
		}
		w.noteFailure(err) // the API server does not know the kind, for example
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(retryInterval):
		}
	}
}

// noteFailure notes why the objects cannot be read. Informers try again all the time.
func (w *Watch) noteFailure(err error) {
	if w.failure.Set(err) && !w.synced.Load() {
		w.log.Warn("cannot read the objects of global names, trying again", "error", err)
		w.wake()
	}
}

// HandleWatchError is the handler for failures of all watches of the cache.
func (w *Watch) HandleWatchError(ctx context.Context, r *toolscache.Reflector, err error) {
	toolscache.DefaultWatchErrorHandler(ctx, r, err)
	for _, kind := range nameKinds {
		if r.TypeDescription() == fmt.Sprintf("%T", kind) {
			w.noteFailure(err)
		}
	}
}

// OnAdd implements toolscache.ResourceEventHandler.
func (w *Watch) OnAdd(any, bool) { w.noteChange() }

// OnDelete implements toolscache.ResourceEventHandler.
func (w *Watch) OnDelete(o any) {
	if unknown, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
		o = unknown.Obj
	}
	if o, ok := o.(client.Object); ok {
		w.written.Delete(o.GetUID())
	}
	w.noteChange()
}

// OnUpdate implements toolscache.ResourceEventHandler. It ignores what does not change names, such as the status that
// the broker writes.
func (w *Watch) OnUpdate(before, after any) {
	a, b := before.(client.Object), after.(client.Object)
	if a.GetUID() != b.GetUID() { // its deletion was missed
		w.written.Delete(a.GetUID())
	}
	if a.GetUID() != b.GetUID() || a.GetGeneration() != b.GetGeneration() ||
		!maps.Equal(a.GetAnnotations(), b.GetAnnotations()) || w.isOutdated(b) {
		w.noteChange()
	}
}

// isOutdated tells whether the status of an object is what this broker has written last, and has come to another
// conclusion since. To what others write it says nothing: two brokers would write in turns.
func (w *Watch) isOutdated(o client.Object) bool {
	report := w.reportOn(o)
	return report != nil && w.hasWritten(o) && !hasStatus(o, statusOf(o), report)
}

// hasWritten tells whether the status of an object is what this broker has written last.
func (w *Watch) hasWritten(o client.Object) bool {
	written, ok := w.written.Load(o.GetUID())
	return ok && statesReport(statusOf(o), written.(*records.Report))
}

// reportOn returns the report on an object, as built last; nil: there is none.
func (w *Watch) reportOn(o client.Object) *records.Report {
	reports := w.reports.Load()
	if reports == nil {
		return nil
	}
	from := reports.Entries
	if _, ok := o.(*coredns.HostedZone); ok {
		from = reports.HostedZones
	}
	if r, ok := from[client.ObjectKeyFromObject(o)]; ok {
		return &r
	}
	return nil
}

// noteWrite notes that this broker has written a report, or why not. The names are built again if there is another
// conclusion by now, as the watch may have brought the object already, or if the object was another one than the cache
// had.
func (w *Watch) noteWrite(o client.Object, r records.Report, err error) {
	if err == nil {
		w.written.Store(o.GetUID(), &r)
	}
	now := w.reportOn(o)
	if apierrors.IsConflict(err) || err == nil && now != nil && !reflect.DeepEqual(*now, r) {
		w.noteChange()
	}
}

func (w *Watch) noteChange() {
	w.version.Add(1)
	if w.synced.Load() {
		w.wake()
	}
}
