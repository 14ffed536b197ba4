// Package meshservice keeps what the MeshServices of the cluster mean: it watches them, and the services and
// EndpointSlices that they name, and reports on each object. It has a cache of its own: neither the number of these
// objects nor a missing permission for them may hold up links.
package meshservice

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
	"github.com/mandelsoft/kubelink/broker/onchange"
)

const (
	// retryInterval is the pause between two tries to watch a kind that the API server does not know.
	retryInterval = 5 * time.Second
	// patience is how long the reconciler waits for the first MeshServices: until then, what an earlier process has told
	// the kernel stays.
	patience = 15 * time.Second
	// conflictPause is the pause after a status that could not be written, as the object was another one than the cache had.
	conflictPause = time.Second
)

// backends are the kinds of objects behind MeshServices.
var backends = []client.Object{&corev1.Service{}, &discovery.EndpointSlice{}}

// Config says how a Watch finds the objects.
type Config struct {
	API      *rest.Config
	Options  cache.Options // of the cache; NewWatch adds what it is to have of the objects
	Backends bool          // false: MeshServices only, as nothing is served
	Wake     func()        // called when the objects have changed
	Log      *slog.Logger
}

// Watch watches the objects. It implements manager.Runnable.
type Watch struct {
	Config
	cache cache.Cache
	born  time.Time
	some  chan struct{} // closed when there is a MeshService
	once  sync.Once

	listed  atomic.Bool   // the MeshServices are known
	known   atomic.Bool   // and what they name, if there is one
	version atomic.Uint64 // counts changes
	failure onchange.Error

	used    atomic.Pointer[map[types.NamespacedName]bool]           // services that MeshServices name; nil: none
	reports atomic.Pointer[map[types.NamespacedName]service.Report] // as built last; nil: none
	written sync.Map                                                // by UID: the *service.Report that was written last
}

// NewWatch returns a watch that runs with Start.
func NewWatch(c Config) (*Watch, error) {
	w := &Watch{Config: c, born: time.Now(), some: make(chan struct{})}
	c.Options.ByObject = map[client.Object]cache.ByObject{
		&v1alpha1.MeshService{}:    {Transform: cache.TransformStripManagedFields()},
		&corev1.Service{}:          {Transform: reduceService},
		&discovery.EndpointSlice{}: {Transform: reduceSlice},
	}
	c.Options.DefaultWatchErrorHandler = func(ctx context.Context, r *toolscache.Reflector, err error) {
		toolscache.DefaultWatchErrorHandler(ctx, r, err)
		w.noteFailure(err)
	}
	var err error
	w.cache, err = cache.New(c.API, c.Options)
	return w, err
}

// Start watches until ctx ends. Services and EndpointSlices, of which there may be many, it watches from when there is
// a MeshService.
func (w *Watch) Start(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := w.cache.Start(ctx); err != nil {
			w.noteFailure(err)
		}
	})
	if !w.watchKind(ctx, &v1alpha1.MeshService{}) {
		return nil
	}
	w.listed.Store(true)
	if w.Backends {
		select {
		case <-w.some:
		default:
			w.Wake() // there is none
			select {
			case <-ctx.Done():
				return nil
			case <-w.some:
			}
		}
		for _, kind := range backends {
			if !w.watchKind(ctx, kind) {
				return nil
			}
		}
	}
	w.known.Store(true)
	w.version.Add(1)
	w.Wake()
	return nil
}

// isReady tells whether all objects are known that there are.
func (w *Watch) isReady() bool {
	if !w.listed.Load() || w.known.Load() {
		return w.known.Load()
	}
	select {
	case <-w.some:
		return false
	default:
		return true
	}
}

// watchKind returns when the objects of a kind are known; false: ctx has ended. The informer lives on with the cache.
func (w *Watch) watchKind(ctx context.Context, kind client.Object) bool {
	for ctx.Err() == nil {
		// It must not wait for objects that may never come, such as when they are forbidden.
		informer, err := w.cache.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
		if _, ok := kind.(*discovery.EndpointSlice); ok && err == nil {
			err = w.cache.IndexField(ctx, kind, fieldService, serviceOf)
		}
		if err == nil {
			handler, err := informer.AddEventHandler(w)
			if err == nil {
				synced := toolscache.WaitForCacheSync(ctx.Done(), handler.HasSynced)
				w.noteFailure(nil) // else it would be told of the next kind
				return synced
			}
		}
		w.noteFailure(fmt.Errorf("%T: %w", kind, err)) // the API server does not know the kind, for example
		select {
		case <-ctx.Done():
		case <-time.After(retryInterval):
		}
	}
	return false
}

// noteFailure notes why the objects cannot be read; nil: they can. Informers try again all the time.
func (w *Watch) noteFailure(err error) {
	if w.failure.Set(err) && err != nil && !w.known.Load() {
		w.Log.Warn("cannot read MeshServices and what they name, trying again", "error", err)
		w.version.Add(1)
		w.Wake()
	}
}

// OnAdd implements toolscache.ResourceEventHandler.
func (w *Watch) OnAdd(o any, _ bool) {
	if _, ok := o.(*v1alpha1.MeshService); ok {
		w.once.Do(func() { close(w.some) })
	}
	w.noteChange(o)
}

// OnDelete implements toolscache.ResourceEventHandler.
func (w *Watch) OnDelete(o any) {
	if unknown, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
		o = unknown.Obj
	}
	if m, ok := o.(*v1alpha1.MeshService); ok {
		w.written.Delete(m.UID)
	}
	w.noteChange(o)
}

// OnUpdate implements toolscache.ResourceEventHandler. It ignores what means nothing for MeshServices: among that is
// the status that the broker itself writes.
func (w *Watch) OnUpdate(before, after any) {
	if a, ok := before.(*v1alpha1.MeshService); ok && a.UID != after.(*v1alpha1.MeshService).UID { // its deletion was missed
		w.written.Delete(a.UID)
	}
	if differ(before, after) || w.isMistold(after) {
		w.noteChange(after)
	}
}

// differ tells whether what is read of an object has changed.
func differ(before, after any) bool {
	switch a := after.(type) {
	case *v1alpha1.MeshService:
		b := before.(*v1alpha1.MeshService)
		return a.UID != b.UID || a.Generation != b.Generation || a.DeletionTimestamp.IsZero() != b.DeletionTimestamp.IsZero()
	case *corev1.Service:
		b := before.(*corev1.Service)
		return a.UID != b.UID || !equality.Semantic.DeepEqual(a.Spec, b.Spec)
	case *discovery.EndpointSlice:
		b := before.(*discovery.EndpointSlice)
		return a.Labels[discovery.LabelServiceName] != b.Labels[discovery.LabelServiceName] ||
			!equality.Semantic.DeepEqual(a.Ports, b.Ports) || !equality.Semantic.DeepEqual(a.Endpoints, b.Endpoints)
	}
	return true
}

// isMistold tells whether something else than this broker has changed the status of a MeshService; or this broker, and
// it has come to another conclusion since.
func (w *Watch) isMistold(o any) bool {
	m, ok := o.(*v1alpha1.MeshService)
	if !ok {
		return false
	}
	r := w.reportOn(m)
	return r != nil && (!r.Weak || w.hasWritten(m)) && !hasStatus(m, r)
}

// hasWritten tells whether the status of a MeshService is what this broker has written last.
func (w *Watch) hasWritten(m *v1alpha1.MeshService) bool {
	written, ok := w.written.Load(m.UID)
	return ok && statesReport(&m.Status, written.(*service.Report))
}

// reportOn returns the report on a MeshService, as built last; nil: there is none.
func (w *Watch) reportOn(m *v1alpha1.MeshService) *service.Report {
	reports := w.reports.Load()
	if reports == nil {
		return nil
	}
	if r, ok := (*reports)[client.ObjectKeyFromObject(m)]; ok {
		return &r
	}
	return nil
}

// noteWrite notes that this broker has written a report, or why not. The services are looked at again if there is
// another conclusion by now, as the watch may have brought the object already, or if the object was another one than the
// cache had.
func (w *Watch) noteWrite(m *v1alpha1.MeshService, r service.Report, err error) {
	if err == nil {
		w.written.Store(m.UID, &r)
	}
	switch now := w.reportOn(m); {
	case apierrors.IsConflict(err): // until the cache has the object as it is, the next try would end the same way
		time.AfterFunc(conflictPause, func() { w.noteChange(m) })
	case err == nil && now != nil && *now != r:
		w.noteChange(m)
	}
}

// noteChange counts the change of an object, if something may depend on it.
func (w *Watch) noteChange(o any) {
	switch o := o.(type) {
	case *corev1.Service:
		if !w.isUsed(client.ObjectKeyFromObject(o)) {
			return
		}
	case *discovery.EndpointSlice:
		if !w.isUsed(types.NamespacedName{Namespace: o.Namespace, Name: o.Labels[discovery.LabelServiceName]}) {
			return
		}
	}
	w.version.Add(1)
	if w.isReady() {
		w.Wake()
	}
}

func (w *Watch) isUsed(service types.NamespacedName) bool {
	used := w.used.Load()
	return used != nil && (*used)[service]
}
