package broker

// The one reconciler: everything that is watched leads to one key, and each time everything is
// looked at. Controllers come and go with the API server; the state that they applied stays.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/stubdomain"
)

const (
	// probeInterval is how often the API server is asked whether it is there, which `ready` shows.
	probeInterval = 2 * time.Second
	// resync is how often the kernel's state is compared with what it should be, without any event.
	resync = 30 * time.Second
	// apiTimeout bounds one request to the API server: watches aside, none takes long.
	apiTimeout = 5 * time.Second
)

var (
	scheme = runtime.NewScheme()
	// theKey stands for all that is watched.
	theKey = &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: "all"}}
)

func init() {
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1alpha1.AddToScheme, coredns.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	ctrl.SetLogger(logr.FromSlogHandler(slog.Default().With("plugin", "kubelink").Handler()))
}

// restConfig finds the API server.
func (c *Config) restConfig() (*rest.Config, error) {
	if c.Kubeconfig == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("no kubeconfig is set, and this is no pod: set kubeconfig FILE (%w)", err)
		}
		return cfg, nil
	}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: c.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", c.Kubeconfig, err)
	}
	return cfg, nil
}

// startControllers starts the controllers in the background.
func (b *Broker) startControllers(cfg *rest.Config) {
	cfg.UserAgent = "kubelink"
	// A hundred links change their state at once when the network breaks.
	cfg.QPS, cfg.Burst = 50, 300
	if !reflect.DeepEqual(cfg, b.api) { // else what uses it goes on
		b.api = cfg
	}
	ctx, stop := context.WithCancel(context.Background())
	b.stop, b.done = stop, make(chan struct{})
	go func() {
		defer close(b.done)
		probed := make(chan struct{})
		back := make(chan struct{}, 1)
		go func() {
			defer close(probed)
			b.probe(ctx, cfg, back)
		}()
		const first, longest = 250 * time.Millisecond, 10 * time.Second
		for delay := first; ctx.Err() == nil; {
			// Watches that failed for a while are tried again late, with a back-off of their own: when
			// the API server is back, new ones are faster.
			run, end := context.WithCancelCause(ctx)
			unhook := make(chan struct{})
			go func() {
				select {
				case <-back:
					end(errAPIBack)
				case <-unhook:
				}
			}()
			started := time.Now()
			err := b.runManager(run, cfg)
			restart := context.Cause(run) == errAPIBack
			close(unhook)
			end(nil)
			if restart || time.Since(started) > time.Minute {
				delay = first
			}
			if ctx.Err() != nil || restart {
				continue
			}
			b.log.Warn("controllers ended, trying again", "error", err, "delay", delay)
			b.setHealth(func(h *health) { h.controllers = err })
			select {
			case <-ctx.Done():
			case <-back:
			case <-time.After(delay/2 + rand.N(delay/2)):
			}
			delay = min(2*delay, longest)
		}
		<-probed
	}()
}

func (b *Broker) stopControllers() {
	if b.stop != nil {
		b.stop()
		<-b.done
		b.stop = nil
		b.reconciling.Lock()   // the last one may outlive its manager
		b.reconciling.Unlock() //nolint:staticcheck // waiting is all
	}
}

var errAPIBack = errors.New("the API server is back")

// probe keeps health.api true to life, and tells when the API server is back. Watches notice both late.
func (b *Broker) probe(ctx context.Context, cfg *rest.Config, back chan<- struct{}) {
	cfg = rest.CopyConfig(cfg)
	cfg.Timeout = probeInterval
	client, unusable := discovery.NewDiscoveryClientForConfig(cfg)
	slow := false
	for {
		err := unusable // for good: a CA that cannot be read, for example
		if err == nil {
			err = client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
			if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
				err = nil // it lives; what is missing shows where it is needed
			}
		}
		if ctx.Err() != nil {
			return
		}
		old := b.health.Load().api
		// One answer that is late says nothing of the watches: to start them anew would add to the load that made it late.
		if slow = err != nil && old == nil && !slow && utilnet.IsTimeout(err); slow {
			err = nil
		}
		if err != nil {
			err = fmt.Errorf("API server %s: %w", cfg.Host, err)
		}
		if (old == nil) != (err == nil) {
			if err != nil {
				b.log.Warn("API server does not answer; links and names stay as they are", "error", err)
			} else {
				b.log.Info("API server answers")
				select {
				case back <- struct{}{}:
				default:
				}
			}
		}
		b.setHealth(func(h *health) { h.api = err })
		select {
		case <-ctx.Done():
			return
		case <-time.After(probeInterval):
		}
	}
}

// runManager runs the controllers until ctx ends or something fails.
func (b *Broker) runManager(ctx context.Context, cfg *rest.Config) error {
	if b.cfg.DeployCRDs {
		if err := installCRDs(ctx, cfg, b.log); err != nil {
			return err
		}
	}
	access := apizone.Config{Namespace: b.cfg.Namespace, TLSSecret: b.cfg.Secret, Propagation: b.cfg.Propagation}
	secrets, allSecrets, err := apizone.CachedSecrets(ctx, cfg, access, b.log)
	if err != nil {
		return err
	}
	if !allSecrets {
		secrets = named(b.cfg.Namespace, b.cfg.Secret)
	}
	watchSecrets := b.cfg.Secret != "" || allSecrets
	byObject := map[client.Object]cache.ByObject{}
	if watchSecrets {
		byObject[&corev1.Secret{}] = secrets
	}
	if b.cfg.Service != "" {
		byObject[&corev1.Service{}] = named(b.cfg.Namespace, b.cfg.Service)
	}
	if b.cfg.ConfigureDNS {
		byObject[&corev1.ConfigMap{}] = named(stubdomain.Namespace, stubdomain.ConfigMap)
	}
	for _, kind := range globalKinds { // there may be many
		byObject[kind] = cache.ByObject{Transform: cache.TransformStripManagedFields()}
	}
	watch := newGlobalWatch(b)
	mgr, err := ctrl.NewManager(cfg, ctrl.Options{
		Scheme: scheme,
		// CoreDNS serves metrics and health.
		Metrics:                server.Options{BindAddress: "0"},
		HealthProbeBindAddress: "0",
		// Caches of a dead API server may take for ever to end, and nobody needs their end; that of a
		// running reconciliation is awaited by Broker.reconciling.
		GracefulShutdownTimeout: ptr.To(2 * time.Second),
		Cache:                   cache.Options{ByObject: byObject, DefaultWatchErrorHandler: watch.watchFailed},
	})
	if err != nil {
		return err
	}

	skip := true // names are process-global in controller-runtime, and this is started anew
	w := newWriter(b, mgr)
	watch.cache = mgr.GetCache()
	var cached client.Reader
	if allSecrets {
		cached = mgr.GetClient()
	}
	r := &reconciler{
		b: b, client: mgr.GetClient(), writer: w, watch: watch,
		secrets: apizone.NewSecrets(access, cached, mgr.GetAPIReader(), b.wake),
	}
	toKey := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: theKey.Name}}}
	})
	events := make(chan event.GenericEvent, 1)
	b.events.Store(&events)
	bld := ctrl.NewControllerManagedBy(mgr).Named("kubelink").
		WithOptions(controller.Options{
			SkipNameValidation:      &skip,
			MaxConcurrentReconciles: 1,
			CacheSyncTimeout:        15 * time.Second, // a kind that may not be watched is reported then
			// What an error keeps from being applied is tried again no later than what nobody touched.
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](100*time.Millisecond, resync),
		}).
		Watches(&v1alpha1.KubeLink{}, toKey).
		WatchesRawSource(source.Channel(events, toKey))
	if watchSecrets {
		bld = bld.Watches(&corev1.Secret{}, toKey)
	}
	if b.cfg.Service != "" {
		bld = bld.Watches(&corev1.Service{}, toKey)
	}
	if err := bld.Complete(r); err != nil {
		return err
	}
	for _, runnable := range []manager.Runnable{w, watch, r.secrets} {
		if err := mgr.Add(runnable); err != nil {
			return err
		}
	}
	if b.cfg.CertFile != "" {
		files := b.cfg.pkiConfig()
		if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
			files.WatchFiles(ctx, b.wake, resync, b.log)
			return nil
		})); err != nil {
			return err
		}
	}
	if tokens := b.tokens; tokens != nil {
		api, err := tokens.NewClient(cfg, apiTimeout, b.cfg.Kubeconfig == "")
		if err != nil {
			return err
		}
		if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error { tokens.Run(ctx, api, b.wake); return nil })); err != nil {
			return err
		}
	}
	b.wake() // an empty cluster has no object that would
	return mgr.Start(ctx)
}

// named is the one object of that name.
func named(namespace, name string) cache.ByObject {
	return cache.ByObject{Namespaces: map[string]cache.Config{
		namespace: {FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name)},
	}}
}

type reconciler struct {
	b       *Broker
	client  client.Client // reads from the cache: works without API server
	secrets *apizone.Secrets
	writer  *writer
	watch   *globalWatch
}

// Reconcile computes the state and applies it. It only reads; what is to be written to the API
// goes to the writer, so that an API server that hangs holds up no link and no name.
func (r *reconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	b := r.b
	b.reconciling.Lock()
	defer b.reconciling.Unlock()
	if err := ctx.Err(); err != nil { // a newer one has taken over
		return reconcile.Result{}, err
	}
	var list v1alpha1.KubeLinkList
	if err := r.client.List(ctx, &list); err != nil {
		return reconcile.Result{}, err
	}
	slices.SortFunc(list.Items, func(a, b v1alpha1.KubeLink) int { return cmp.Compare(a.Name, b.Name) }) // the cache has no order
	state := mesh.Build(mesh.Objects{Links: list.Items}, b.cfg.Local)
	port, portErr := r.listenPort(ctx)
	credErr := r.refreshCredentials(ctx)
	b.accesses = r.secrets.FindAccesses(ctx, state.Zones, b.api)
	globalErr := r.globals(ctx, state.Zones)
	err := b.apply(&state, port)
	noteNames(&state, b.apiZones.Statuses())
	b.setHealth(func(h *health) { h.controllers, h.applied = nil, errors.Join(err, portErr, credErr, globalErr) })

	b.snapshot.Load().KeepLinks(list.Items)
	r.writer.want(r.outcome(list.Items, &state, errors.Join(err, portErr), credErr))
	if err != nil {
		return reconcile.Result{}, err
	}
	// Others flush chains and reorder hooks, and no event tells.
	return reconcile.Result{RequeueAfter: min(resync, b.creds.RenewIn())}, nil
}

// listenPort is broker-port, or the target port of the service's port named bridge.
func (r *reconciler) listenPort(ctx context.Context) (uint16, error) {
	cfg := &r.b.cfg
	if cfg.Service == "" || cfg.Mode != mesh.Bridge {
		return cfg.BrokerPort, nil
	}
	var svc corev1.Service
	if err := r.client.Get(ctx, types.NamespacedName{Namespace: cfg.Namespace, Name: cfg.Service}, &svc); err != nil {
		return cfg.BrokerPort, fmt.Errorf("service %s: %w; listening on broker-port %d", cfg.Service, err, cfg.BrokerPort)
	}
	for _, p := range svc.Spec.Ports {
		switch {
		case p.Name != string(mesh.Bridge):
		case p.Protocol != corev1.ProtocolTCP && p.Protocol != "":
			return cfg.BrokerPort, fmt.Errorf("service %s: port bridge is %s, but mode bridge uses TCP; listening on broker-port %d", cfg.Service, p.Protocol, cfg.BrokerPort)
		case p.TargetPort.IntValue() > 0:
			return uint16(p.TargetPort.IntValue()), nil
		case p.TargetPort.StrVal != "":
			return cfg.BrokerPort, fmt.Errorf("service %s: target port %q of port bridge is a name; use a number; listening on broker-port %d", cfg.Service, p.TargetPort.StrVal, cfg.BrokerPort)
		default:
			return uint16(p.Port), nil
		}
	}
	return cfg.BrokerPort, fmt.Errorf("service %s has no port named bridge: add it; listening on broker-port %d", cfg.Service, cfg.BrokerPort)
}
