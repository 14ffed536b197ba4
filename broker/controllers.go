package broker

// The controllers come and go with the API server, and with the configuration; the state that they applied stays. Every
// watched kind leads to one key, so there is one reconciler.

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	appsclient "k8s.io/client-go/kubernetes/typed/apps/v1"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/crds"
	"github.com/mandelsoft/kubelink/broker/deadline"
	"github.com/mandelsoft/kubelink/broker/eventlog"
	"github.com/mandelsoft/kubelink/broker/globalnames"
	"github.com/mandelsoft/kubelink/broker/host"
	"github.com/mandelsoft/kubelink/broker/kubeapi"
	"github.com/mandelsoft/kubelink/broker/linkgateway"
	"github.com/mandelsoft/kubelink/broker/meshservice"
	"github.com/mandelsoft/kubelink/broker/stubdomain"
)

var scheme = runtime.NewScheme()

func init() {
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, coordinationv1.AddToScheme, discovery.AddToScheme, v1alpha1.AddToScheme, coredns.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	kubeapi.SetLibraryLog(eventlog.New("kubelink").Handler())
}

// controllers are the controllers of one configuration. They run until end.
type controllers struct {
	cfg    Config
	local  *rest.Config // of the API server
	api    *rest.Config // the same, but server notes the addresses that it connects to
	r      *reconciler
	health *healthState
	server *host.APIServer
	log    *slog.Logger
	stop   context.CancelCauseFunc
	wg     sync.WaitGroup // all goroutines
	back   chan struct{}  // the API server is back
	owner  *kubeapi.Owner // the Deployment of this process; nil: it is not known

	// The fields below are for the managers, one after the other.
	mapper      meta.RESTMapper // nil: nothing is prepared yet
	crds        *crds.Installer
	syncTimeout time.Duration // grows with an API server that is slow
	synced      atomic.Bool   // the running manager knows the KubeLinks
}

// A manager that does not know the KubeLinks after syncTimeout is started anew, and the next one has more time.
const (
	firstSyncTimeout   = 15 * time.Second
	longestSyncTimeout = 4 * time.Minute
)

// startControllers starts the controllers in the background.
func startControllers(
	cfg Config, api *rest.Config, r *reconciler, server *host.APIServer, log *slog.Logger,
) *controllers {
	traced := rest.CopyConfig(api)
	traced.Wrap(server.Wrap)
	ctx, stop := context.WithCancelCause(context.Background())
	c := &controllers{
		cfg: cfg, local: api, api: traced, r: r, health: r.health, server: server, log: log, stop: stop,
		back: make(chan struct{}, 1), syncTimeout: firstSyncTimeout,
	}
	if apps, err := appsclient.NewForConfig(traced); err == nil { // else managers fail for the same reason, and say it
		c.owner = kubeapi.NewOwner(apps.RESTClient(), "deployments", cfg.Namespace, kubeapi.DeploymentOf(cfg.PodName))
	}
	c.wg.Go(func() {
		if c.owner.AwaitFirst(ctx) {
			log.Info("the Deployment has been seen: with it, states of links and MeshServices end")
		}
	})
	c.wg.Go(func() { kubeapi.Probe(ctx, c.api, c.health.Load().api, c.noteAPI) })
	c.wg.Go(func() {
		// Managers fail for the same reason, and say it.
		if err := r.election.Run(ctx, traced, cfg.leaseConfig()); err != nil {
			log.Warn("cannot look at the Lease of the links", "error", err)
		}
	})
	c.wg.Go(func() { c.runManagers(ctx) })
	return c
}

// errBrokerEnds is the cause of the end of controllers that no others follow.
var errBrokerEnds = errors.New("the broker ends")

// stopAndWait ends the controllers and awaits them. The cause is nil if others follow.
func (c *controllers) stopAndWait(cause error) {
	if c == nil {
		return
	}
	c.stop(cause)
	c.wg.Wait()
	c.r.mu.Lock()   // the last reconciliation may outlive its manager
	c.r.mu.Unlock() //nolint:staticcheck // waiting is all
}

// runManagers runs one manager after the other until ctx ends.
func (c *controllers) runManagers(ctx context.Context) {
	// A pause is between half of the delay and all of it; the delay grows from 250 ms to 10 s.
	backoff := wait.Backoff{Duration: 125 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 16, Cap: 5 * time.Second}
	delays := backoff
	for ctx.Err() == nil {
		started := time.Now()
		err := c.runUntilBack(ctx)
		restart := errors.Is(err, errAPIBack)
		if restart || time.Since(started) > time.Minute {
			delays = backoff
		}
		if !restart && !c.synced.Load() {
			c.syncTimeout = min(2*c.syncTimeout, longestSyncTimeout)
		}
		if ctx.Err() != nil || restart {
			continue
		}
		delay := delays.Step()
		c.log.Warn("controllers ended, trying again", "error", err, "delay", delay)
		c.health.change(func(h *health) { h.controllers = err })
		select {
		case <-ctx.Done():
		case <-c.back:
		case <-time.After(delay):
		}
	}
}

var errAPIBack = errors.New("the API server is back")

// runUntilBack runs a manager until it fails, or until the API server is back. The error is errAPIBack then: watches
// that failed for a while are tried again late, with a back-off of their own, so new ones are faster.
func (c *controllers) runUntilBack(ctx context.Context) error {
	run, end := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-c.back:
			end(errAPIBack)
		case <-ended:
		}
	})
	err := c.runManager(run)
	close(ended)
	wg.Wait()
	if context.Cause(run) == errAPIBack {
		err = errAPIBack
	}
	end(nil)
	return err
}

// noteAPI notes that the API server answers (nil), or why not. When it is back, the watches notice that late.
func (c *controllers) noteAPI(err error) {
	switch old := c.health.Load().api; {
	case old == nil && err != nil:
		c.log.Warn("API server does not answer; links and names stay as they are", "error", err)
	case old != nil && err == nil:
		c.log.Info("API server answers")
		if deadline.IsTimeout(old) && !c.synced.Load() {
			break // it was slow and not away: a manager that starts only needs time
		}
		select {
		case c.back <- struct{}{}:
		default:
		}
	}
	c.health.change(func(h *health) { h.api = err })
}

// watchedKind is a kind of objects that the cache has.
type watchedKind struct {
	object client.Object
	wanted bool
	helps  bool            // each change wakes the reconciler, but links come up without these objects
	late   bool            // of one that helps: the reconciler does not wait for it at all
	cache  *cache.ByObject // which of them, and what of them; nil: all
}

// watchedKinds are all kinds of objects that the broker reads from the cache.
func watchedKinds(cfg *Config, secrets cache.ByObject, allSecrets bool) []watchedKind {
	stripped := &cache.ByObject{Transform: cache.TransformStripManagedFields()} // there may be many
	return []watchedKind{
		{object: &v1alpha1.KubeLink{}, wanted: true},
		{object: &corev1.Secret{}, wanted: cfg.Secret != "" || allSecrets, helps: true, cache: &secrets},
		{object: &corev1.Service{}, wanted: cfg.Service != "", helps: true,
			cache: selectByName(cfg.Namespace, cfg.Service)},
		{object: &corev1.Node{}, wanted: cfg.needsNodes(), helps: true, late: !cfg.VXLAN.Wanted,
			cache: &cache.ByObject{Transform: linkgateway.ReduceNode}},
		{object: &corev1.Pod{}, wanted: cfg.expectsRouters(), helps: true, late: true, cache: &cache.ByObject{
			Namespaces: map[string]cache.Config{cfg.Namespace: {
				LabelSelector: labels.SelectorFromSet(linkgateway.RouterLabels())}},
			Transform: linkgateway.ReduceRouter}},
		{object: &corev1.ConfigMap{}, wanted: cfg.ConfigureDNS,
			cache: selectByName(stubdomain.Namespace, stubdomain.ConfigMap)},
		{object: &coredns.CoreDNSEntry{}, wanted: true, cache: stripped},
		{object: &coredns.HostedZone{}, wanted: true, cache: stripped},
	}
}

// selectObjects returns what the cache is to have of objects, and the kinds that help, the late ones apart.
func selectObjects(kinds []watchedKind) (byObject map[client.Object]cache.ByObject, helps, late []client.Object) {
	byObject = map[client.Object]cache.ByObject{}
	for _, k := range kinds {
		if k.wanted && k.cache != nil {
			byObject[k.object] = *k.cache
		}
		switch {
		case k.wanted && k.late:
			late = append(late, k.object)
		case k.wanted && k.helps:
			helps = append(helps, k.object)
		}
	}
	return byObject, helps, late
}

// selectByName selects the one object of that name.
func selectByName(namespace, name string) *cache.ByObject {
	return &cache.ByObject{Namespaces: map[string]cache.Config{
		namespace: {FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name)},
	}}
}

// prepare makes what all managers use.
func (c *controllers) prepare() error {
	if c.mapper != nil {
		return nil
	}
	http, err := rest.HTTPClientFor(c.api)
	if err != nil {
		return err
	}
	note := func(err error) { c.health.change(func(h *health) { h.crds = err }) }
	if c.crds, err = crds.New(c.api, c.cfg.ForceCRDs, note, c.log); err != nil {
		return err
	}
	c.mapper, err = kubeapi.NewMapper(c.api, http)
	return err
}

// awaitAPI asks the API server for what has to be known before the first route is set.
func (c *controllers) awaitAPI(ctx context.Context) (err error) {
	var wg sync.WaitGroup
	if c.cfg.Mode.CarriesTraffic() {
		wg.Go(func() { c.server.AwaitEndpoints(ctx, c.api, c.log) })
	}
	if c.cfg.DeployCRDs {
		err = c.crds.Await(ctx)
	}
	wg.Wait()
	return err
}

// runManager runs the controllers until ctx ends or something fails.
func (c *controllers) runManager(ctx context.Context) error {
	c.synced.Store(false)
	if err := c.prepare(); err != nil {
		return err
	}
	if err := c.awaitAPI(ctx); err != nil {
		return err
	}
	direct, err := client.New(c.api, client.Options{Mapper: c.mapper})
	if err != nil {
		return err
	}
	secrets, allSecrets := apizone.CachedSecrets(ctx, direct, c.cfg.accessConfig(), c.log)
	if !allSecrets {
		secrets = *selectByName(c.cfg.Namespace, c.cfg.Secret)
	}
	byObject, helps, late := selectObjects(watchedKinds(&c.cfg, secrets, allSecrets))
	watches := kubeapi.NewWatches(c.r.waker.wake, helps, late)
	watch := globalnames.NewWatch(c.r.waker.wake, c.log)
	mgr, err := ctrl.NewManager(c.api, ctrl.Options{
		Scheme:         scheme,
		MapperProvider: func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return c.mapper, nil },
		// CoreDNS serves metrics and health.
		Metrics:                server.Options{BindAddress: "0"},
		HealthProbeBindAddress: "0",
		// Caches of a dead API server may take for ever to end, and nothing needs their end; end awaits the
		// last reconciliation.
		GracefulShutdownTimeout: ptr.To(2 * time.Second),
		Cache: cache.Options{
			ByObject: byObject, NewInformer: kubeapi.NewInformer,
			DefaultWatchErrorHandler: func(ctx context.Context, r *toolscache.Reflector, err error) {
				watch.HandleWatchError(ctx, r, err)
				watches.NoteWatchError(r, err)
			},
		},
	})
	if err != nil {
		return err
	}
	offers, err := meshservice.NewWatch(meshservice.Config{
		API: c.api, Options: cache.Options{Scheme: scheme, Mapper: c.mapper, NewInformer: kubeapi.NewInformer},
		Backends: c.cfg.Mode.CarriesTraffic(), Wake: c.r.waker.wake, Log: c.log,
	})
	if err != nil {
		return err
	}
	watch.Cache = mgr.GetCache()
	watches.SetCache(mgr.GetCache())
	run := newReconcilerRun(c.r, &c.cfg, c.local, mgr, watch, watches, allSecrets)
	run.synced, run.offers = &c.synced, offers
	run.writer.IsLast = func() bool { return context.Cause(ctx) == errBrokerEnds }
	if err := c.addController(mgr, run); err != nil {
		return err
	}
	if err := c.addRunnables(mgr, run); err != nil {
		return err
	}
	c.r.waker.wake() // an empty cluster has no object that would
	return mgr.Start(ctx)
}

// addController adds the controller with the watch of KubeLinks.
func (c *controllers) addController(mgr ctrl.Manager, run *reconcilerRun) error {
	toKey := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: theKey.Name}}}
	})
	return ctrl.NewControllerManagedBy(mgr).Named("kubelink").
		WithOptions(controller.Options{
			// Names are global in a process of controller-runtime, and this controller is started anew.
			SkipNameValidation:      ptr.To(true),
			MaxConcurrentReconciles: 1,
			CacheSyncTimeout:        c.syncTimeout, // if KubeLinks may not be watched, that is reported then
			// What an error keeps from being applied is tried again no later than what nothing has touched.
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](100*time.Millisecond, resync),
		}).
		WatchesRawSource(source.Channel(c.r.waker.newChannel(), toKey)).
		Watches(&v1alpha1.KubeLink{}, toKey).
		Complete(run)
}

// addRunnables adds what runs beside the controller.
func (c *controllers) addRunnables(mgr ctrl.Manager, run *reconcilerRun) error {
	runnables := []manager.Runnable{
		run.writer, run.places, run.watch, run.offers, run.watches, run.secrets, run.keys,
	}
	if c.cfg.DeployCRDs {
		runnables = append(runnables, c.crds)
	}
	if files := c.cfg.pkiConfig(); files.CertFile != "" {
		runnables = append(runnables, manager.RunnableFunc(func(ctx context.Context) error {
			files.WatchFiles(ctx, c.r.waker.wake, resync, c.log)
			return nil
		}))
	}
	if c.cfg.Mode.CarriesTraffic() {
		runnables = append(runnables, manager.RunnableFunc(func(ctx context.Context) error {
			c.server.FollowEndpoints(ctx, c.api, c.log)
			return nil
		}))
	}
	if tokens := c.r.peers.tokens; tokens != nil {
		api, err := tokens.NewClient(c.api, tokenTimeout, c.cfg.Kubeconfig == "")
		if err != nil {
			return err
		}
		runnables = append(runnables, manager.RunnableFunc(func(ctx context.Context) error {
			tokens.Run(ctx, api, c.r.waker.wake)
			return nil
		}))
	}
	for _, r := range runnables {
		if err := mgr.Add(r); err != nil {
			return err
		}
	}
	return nil
}
