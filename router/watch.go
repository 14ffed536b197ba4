package router

// What the API server tells: LinkGateways, KubeLinks, and the endpoints of a former broker. Only what the router uses
// of them stays in memory.

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/host"
	"github.com/mandelsoft/kubelink/broker/kubeapi"
	"github.com/mandelsoft/kubelink/broker/link"
)

// doubtTime is how long the API server has to say that it does not know a kind, or may not tell of it, before the
// router goes on without: an API server that starts does not know all kinds at once.
const doubtTime = 5 * time.Second

// titleLinks is the resource of KubeLinks.
const titleLinks = "kubelinks"

// watcher follows the objects.
type watcher struct {
	config *rest.Config
	codecs serializer.CodecFactory
	kinds  []*kind
}

// kind is one of the kinds that the watcher follows.
type kind struct {
	title    string
	optional bool // the router can do without
	informer cache.SharedIndexInformer
	changed  func()
	from     *rest.RESTClient
	remedy   string // where the API server refuses to tell

	mu     sync.Mutex // guards the fields below
	err    error      // of the last request that failed
	since  time.Time  // when the first of them failed that the API server refused
	absent bool       // the API server has listed its kinds after the last refusal, and this one is not among them
}

// newWatcher returns a watcher that calls changed after changes.
func newWatcher(c *Config, server *host.APIServer, changed func()) (*watcher, error) {
	w := &watcher{config: rest.CopyConfig(c.REST)}
	w.config.Wrap(server.Wrap)
	w.config.WarningHandler = rest.NoWarnings{} // Endpoints are deprecated, but a Role can name one
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, eventsv1.AddToScheme,
		appsv1.AddToScheme} {
		if err := add(types); err != nil {
			return nil, err
		}
	}
	w.codecs = serializer.NewCodecFactory(types)
	own, err := w.newClient(v1alpha1.GroupVersion, "/apis")
	if err != nil {
		return nil, err
	}
	core, err := w.newClient(corev1.SchemeGroupVersion, "/api")
	if err != nil {
		return nil, err
	}
	named := fields.OneTermEqualSelector("metadata.name", c.Service)
	for _, k := range []struct {
		from      *rest.RESTClient
		resource  string
		namespace string
		selector  fields.Selector
		object    runtime.Object
		reduce    cache.TransformFunc
		optional  bool
	}{
		{own, "linkgateways", c.Namespace, fields.Everything(), &v1alpha1.LinkGateway{}, reduceGateway, true},
		{own, titleLinks, "", fields.Everything(), &v1alpha1.KubeLink{}, reduceLink, false},
		{core, "endpoints", c.Namespace, named, &corev1.Endpoints{}, reduceEndpoints, true}, //nolint:staticcheck // see above
	} {
		one := &kind{title: k.resource, optional: k.optional, changed: changed, from: k.from,
			remedy: tellRoles(c, k.resource)}
		from := cache.NewListWatchFromClient(k.from, k.resource, k.namespace, k.selector)
		one.informer = kubeapi.NewInformer(from, k.object, 0, cache.Indexers{})
		if err := one.prepareInformer(k.reduce); err != nil {
			return nil, err
		}
		w.kinds = append(w.kinds, one)
	}
	return w, nil
}

// newClient returns a client for a group.
func (w *watcher) newClient(group schema.GroupVersion, path string) (*rest.RESTClient, error) {
	c := rest.CopyConfig(w.config)
	c.GroupVersion, c.APIPath = &group, path
	c.NegotiatedSerializer = w.codecs.WithoutConversion()
	if c.UserAgent == "" {
		c.UserAgent = "kubelink-router"
	}
	return rest.RESTClientFor(c)
}

// tellRoles says which roles are missing where the API server refuses to tell of a resource. The ones of the component
// are for the names that it has.
func tellRoles(c *Config, resource string) string {
	const namespace, service = "kubelink", "kubelink"
	remedy := "apply the roles in deploy/components/router"
	if c.Namespace != namespace && resource != titleLinks {
		remedy += fmt.Sprintf(", with the namespace %s (flag --namespace) in place of %s", c.Namespace, namespace)
	}
	if c.Service != service && resource == "endpoints" {
		remedy += fmt.Sprintf(", with %s (flag --service) in place of %s in the resourceNames of endpoints",
			c.Service, service)
	}
	return remedy
}

// prepareInformer says what the informer keeps, and what it calls.
func (k *kind) prepareInformer(reduce cache.TransformFunc) error {
	if err := k.informer.SetTransform(reduce); err != nil {
		return err
	}
	if err := k.informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		k.noteError(ctx, err)
	}); err != nil {
		return err
	}
	_, err := k.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { k.changed() },
		DeleteFunc: func(any) { k.changed() },
		UpdateFunc: func(old, new any) {
			if !sameObject(old, new) {
				k.changed()
			}
		},
	})
	return err
}

// sameObject tells whether an update changes nothing that the router uses.
func sameObject(old, new any) bool {
	switch a := old.(type) {
	case *v1alpha1.KubeLink:
		b, ok := new.(*v1alpha1.KubeLink)
		return ok && a.DeletionTimestamp.Equal(b.DeletionTimestamp) && reflect.DeepEqual(a.Spec, b.Spec) &&
			a.Status.State == b.Status.State && a.Status.Gateway == b.Status.Gateway
	case *v1alpha1.LinkGateway:
		b, ok := new.(*v1alpha1.LinkGateway)
		return ok && reflect.DeepEqual(a.Spec, b.Spec)
	}
	return false
}

// noteError notes that a request has failed.
func (k *kind) noteError(ctx context.Context, err error) {
	refused := apierrors.IsNotFound(err) || apierrors.IsForbidden(err)
	absent := refused && k.optional && k.isAbsent(ctx)
	k.mu.Lock()
	k.err, k.absent = err, absent
	switch {
	case !refused:
		k.since = time.Time{}
	case k.since.IsZero():
		k.since = time.Now()
	}
	k.mu.Unlock()
	k.changed()
}

// isAbsent asks the API server for the kinds of the group, which needs no right that a router could lack. An API server
// that starts may refuse all, and have no kind at all: it is believed when it names other ones.
func (k *kind) isAbsent(ctx context.Context) bool {
	version := k.from.APIVersion()
	if version.Group == "" {
		return false // the kinds of the core are always there
	}
	text, err := k.from.Get().AbsPath("/apis", version.Group, version.Version).DoRaw(ctx)
	var list metav1.APIResourceList
	if err != nil || json.Unmarshal(text, &list) != nil {
		return false
	}
	has := func(name string) bool {
		return slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == name })
	}
	return has(titleLinks) && !has(k.title)
}

// knowledge is what the API server has told of a kind.
type knowledge struct {
	synced  bool // all
	without bool // nothing, for so long that the router may go on without
	absent  bool // that there is no such kind
	err     error
}

// tellState tells what is known of a kind.
func (k *kind) tellState() knowledge {
	if k.informer.HasSynced() {
		return knowledge{synced: true}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	without := k.optional && !k.since.IsZero() && time.Since(k.since) >= doubtTime
	return knowledge{without: without, absent: k.absent, err: k.err}
}

// startInformers starts the informers.
func (w *watcher) startInformers(ctx context.Context, wg *sync.WaitGroup) {
	for _, k := range w.kinds {
		wg.Go(func() { k.informer.RunWithContext(ctx) })
		wg.Go(func() {
			if cache.WaitForCacheSync(ctx.Done(), k.informer.HasSynced) {
				k.changed()
			}
		})
	}
}

// readObjects returns the objects. waiting says what the API server has not told yet; empty: nothing. denied are
// findings about what it refuses to tell. A refusal is no news: where an earlier start has left routes (adopted), it
// does not change them, for the gateway that they lead to may be unknown to KubeLinks and endpoints.
func (w *watcher) readObjects(adopted bool) (o *objects, waiting string, denied link.Findings) {
	o = &objects{}
	for _, k := range w.kinds {
		known := k.tellState()
		text := fmt.Sprintf("the API server has not told of %s yet", k.title)
		if known.err != nil {
			text += ": " + known.err.Error()
		}
		if known.without && apierrors.IsForbidden(known.err) {
			denied = append(denied, link.Finding{Reason: AccessDenied,
				Text:   fmt.Sprintf("the API server refuses to tell of %s: %v", k.title, known.err),
				Remedy: k.remedy})
		}
		if needless := len(o.gateways) > 0; known.without && (needless || known.absent || !adopted) {
			continue
		}
		if !known.synced {
			return nil, text, denied
		}
		for _, one := range k.informer.GetStore().List() {
			o.addObject(one)
		}
	}
	return o, "", denied
}

// addObject adds an object of any of the kinds.
func (o *objects) addObject(object any) {
	switch x := object.(type) {
	case *v1alpha1.LinkGateway:
		o.gateways = append(o.gateways, x)
	case *v1alpha1.KubeLink:
		o.links = append(o.links, x)
	case *corev1.Endpoints: //nolint:staticcheck // see newWatcher
		for _, s := range x.Subsets {
			for _, a := range s.Addresses {
				e := formerEndpoint{}
				e.address, _ = netip.ParseAddr(a.IP)
				if a.NodeName != nil {
					e.node = *a.NodeName
				}
				o.former = append(o.former, e)
			}
		}
	}
}

// reduceMeta is what the router uses of the metadata of an object.
func reduceMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, ResourceVersion: m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp}
}

func reduceGateway(object any) (any, error) {
	if g, ok := object.(*v1alpha1.LinkGateway); ok {
		return &v1alpha1.LinkGateway{ObjectMeta: reduceMeta(&g.ObjectMeta), Spec: g.Spec}, nil
	}
	return object, nil
}

func reduceLink(object any) (any, error) {
	k, ok := object.(*v1alpha1.KubeLink)
	if !ok {
		return object, nil
	}
	return &v1alpha1.KubeLink{
		ObjectMeta: reduceMeta(&k.ObjectMeta),
		Spec: v1alpha1.KubeLinkSpec{CIDR: k.Spec.CIDR, ClusterAddress: k.Spec.ClusterAddress, Endpoint: k.Spec.Endpoint,
			Egress: k.Spec.Egress},
		Status: v1alpha1.KubeLinkStatus{State: k.Status.State, Gateway: k.Status.Gateway},
	}, nil
}

func reduceEndpoints(object any) (any, error) {
	e, ok := object.(*corev1.Endpoints) //nolint:staticcheck // see newWatcher
	if !ok {
		return object, nil
	}
	reduced := &corev1.Endpoints{ObjectMeta: reduceMeta(&e.ObjectMeta)} //nolint:staticcheck // see newWatcher
	for _, s := range e.Subsets {
		//nolint:staticcheck // see newWatcher
		reduced.Subsets = append(reduced.Subsets, corev1.EndpointSubset{Addresses: s.Addresses})
	}
	return reduced, nil
}
