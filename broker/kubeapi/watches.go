package kubeapi

// Watches of kinds that help: what they say changes how links work, but links come up without them.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// patience is how long the reconciler waits for kinds that help.
	patience = 15 * time.Second
	// retryInterval is the pause between two tries to watch a kind.
	retryInterval = 5 * time.Second
)

// Watches watches kinds that help. It implements manager.Runnable. A nil Watches watches none.
type Watches struct {
	wake  func()
	kinds []client.Object
	late  []client.Object // that the reconciler never waits for
	cache cache.Cache
	once  sync.Once
	asked chan struct{} // closed when Ready is called for the first time

	mu      sync.Mutex       // guards the fields below
	ready   bool             // all kinds are known, or patience is over
	synced  map[string]bool  // by type
	failure map[string]error // why a kind is not known, by type
}

// NewWatches returns watches of kinds that call wake after changes. The reconciler does not wait for the late ones.
func NewWatches(wake func(), kinds, late []client.Object) *Watches {
	w := &Watches{
		wake: wake, kinds: kinds, late: late, asked: make(chan struct{}), synced: map[string]bool{},
		failure: map[string]error{},
	}
	for _, k := range slices.Concat(kinds, late) {
		w.synced[typeName(k)] = false
	}
	return w
}

// SetCache sets the cache that has the kinds. It comes before Start.
func (w *Watches) SetCache(c cache.Cache) { w.cache = c }

func typeName(o any) string { return fmt.Sprintf("%T", o) }

// Start watches until ctx ends. It begins when the reconciler asks: the controller starts when all kinds are known that
// the cache has by then.
func (w *Watches) Start(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-w.asked:
	}
	timer := time.AfterFunc(patience, w.endPatience)
	defer timer.Stop()
	var awaited, late sync.WaitGroup
	for _, k := range w.late {
		late.Go(func() { w.watchKind(ctx, k) })
	}
	for _, k := range w.kinds {
		awaited.Go(func() { w.watchKind(ctx, k) })
	}
	awaited.Wait()
	w.endPatience()
	<-ctx.Done()
	late.Wait()
	return nil
}

// endPatience lets the reconciler go on.
func (w *Watches) endPatience() {
	w.mu.Lock()
	was := w.ready
	w.ready = true
	w.mu.Unlock()
	if !was {
		w.wake()
	}
}

// watchKind returns when the objects of a kind are known, or ctx ends; the informer lives on with the cache.
func (w *Watches) watchKind(ctx context.Context, kind client.Object) {
	for ctx.Err() == nil {
		informer, err := w.cache.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
		if err == nil {
			var handler toolscache.ResourceEventHandlerRegistration
			handler, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
				AddFunc: func(any) { w.wake() }, DeleteFunc: func(any) { w.wake() },
				UpdateFunc: func(old, new any) {
					if !sameButVersion(old, new) { // heartbeats of nodes change nothing else of what the cache keeps
						w.wake()
					}
				},
			})
			if err == nil {
				if toolscache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
					w.noteSynced(typeName(kind))
				}
				return
			}
		}
		w.noteFailure(typeName(kind), err)
		select {
		case <-ctx.Done():
		case <-time.After(retryInterval):
		}
	}
}

// sameButVersion compares objects without their versions.
func sameButVersion(old, new any) bool {
	a, ok := old.(client.Object)
	b, isObject := new.(client.Object)
	if !ok || !isObject || a.GetResourceVersion() == b.GetResourceVersion() {
		return false // a resync, after which all is looked at
	}
	a = a.DeepCopyObject().(client.Object)
	a.SetResourceVersion(b.GetResourceVersion())
	return equality.Semantic.DeepEqual(a, b)
}

func (w *Watches) noteSynced(kind string) {
	w.mu.Lock()
	w.synced[kind] = true
	w.mu.Unlock()
	w.wake()
}

func (w *Watches) noteFailure(kind string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failure[kind] = err
}

// NoteWatchError notes failures of all watches of the cache.
func (w *Watches) NoteWatchError(r *toolscache.Reflector, err error) {
	w.noteFailure(r.TypeDescription(), err)
}

// Ready tells whether the reconciler may go on. wake is called when it may.
func (w *Watches) Ready() bool {
	if w == nil {
		return true
	}
	w.once.Do(func() { close(w.asked) })
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ready
}

// check returns why objects of a kind cannot be read yet.
func (w *Watches) check(o runtime.Object) error { return w.checkKind(typeName(o)) }

func (w *Watches) checkKind(kind string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	synced, watched := w.synced[kind]
	switch {
	case !watched || synced:
		return nil
	case w.failure[kind] != nil:
		return fmt.Errorf("it cannot be read: %w", w.failure[kind])
	}
	return errors.New("the API server has not told it yet")
}

// Reader reads the cache and waits for nothing: a kind that is not known yet cannot be read.
func (w *Watches) Reader(cached client.Reader) client.Reader { return watchedReader{cached, w} }

type watchedReader struct {
	client.Reader
	watches *Watches
}

// List checks the kind of the members.
func (r watchedReader) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	if err := r.watches.checkKind(strings.TrimSuffix(typeName(list), "List")); err != nil {
		return err
	}
	return r.Reader.List(ctx, list, options...)
}

func (r watchedReader) Get(
	ctx context.Context, key client.ObjectKey, o client.Object, options ...client.GetOption,
) error {
	if err := r.watches.check(o); err != nil {
		return err
	}
	return r.Reader.Get(ctx, key, o, options...)
}
