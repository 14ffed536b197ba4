package kubeapi

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	ctrlcache "sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// Nobody is asked for the resources of the broker's own kinds.
func TestMapper(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer server.Close()
	m, err := NewMapper(&rest.Config{Host: server.URL}, server.Client())
	if err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[schema.GroupVersionKind]string{
		v1alpha1.GroupVersion.WithKind("KubeLink"):         "kubelinks root",
		v1alpha1.GroupVersion.WithKind("MeshService"):      "meshservices namespace",
		v1alpha1.GroupVersion.WithKind("LinkGateway"):      "linkgateways namespace",
		coredns.GroupVersion.WithKind("CoreDNSEntry"):      "corednsentries namespace",
		coredns.GroupVersion.WithKind("HostedZone"):        "hostedzones namespace",
		corev1.SchemeGroupVersion.WithKind("Secret"):       "secrets namespace",
		{Group: "apps", Version: "v1", Kind: "Deployment"}: "deployments namespace",

		{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice"}: "endpointslices namespace",
		corev1.SchemeGroupVersion.WithKind("ConfigMap"):                   "configmaps namespace",
		corev1.SchemeGroupVersion.WithKind("Service"):                     "services namespace",
	} {
		mapping, err := m.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if got := mapping.Resource.Resource + " " + string(mapping.Scope.Name()); got != want {
			t.Errorf("%s: %s, want %s", kind, got, want)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the API server was asked %d times", n)
	}
	if _, err := m.RESTMapping(schema.GroupKind{Group: "cert-manager.io", Kind: "Certificate"}, "v1"); err == nil ||
		asked.Load() == 0 {
		t.Errorf("for other kinds it is asked: %v", err)
	}
}

// An informer keeps what it has while its lists have no version, and follows again when they have one.
func TestInformerDoubts(t *testing.T) {
	link := v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: "one", ResourceVersion: "1"}}
	var answer atomic.Pointer[v1alpha1.KubeLinkList]
	answer.Store(&v1alpha1.KubeLinkList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []v1alpha1.KubeLink{link}})
	lists := make(chan struct{}, 100)
	watches := make(chan *watch.FakeWatcher, 100)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			lists <- struct{}{}
			return answer.Load().DeepCopy(), nil
		},
		WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents != nil {
				return nil, errors.New("not here")
			}
			w := watch.NewFake()
			watches <- w
			return w, nil
		},
	}
	informer := NewInformer(lw, &v1alpha1.KubeLink{}, 0, cache.Indexers{})
	failures := make(chan error, 100)
	informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) { failures <- err })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go informer.RunWithContext(ctx)
	w := <-watches
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		t.Fatal("not synced")
	}
	answer.Store(&v1alpha1.KubeLinkList{}) // what {} is
	w.Error(&metav1.Status{Status: "Failure", Code: 410, Reason: metav1.StatusReasonExpired})
	for err := range failures {
		if strings.Contains(err.Error(), "without resourceVersion, which is not believed") {
			break
		}
	}
	if n := len(informer.GetStore().List()); n != 1 {
		t.Errorf("%d links are left", n)
	}
	answer.Store(&v1alpha1.KubeLinkList{ListMeta: metav1.ListMeta{ResourceVersion: "7"}}) // they are gone indeed
	<-watches
	deadline := time.After(10 * time.Second)
	for len(informer.GetStore().List()) > 0 {
		select {
		case <-deadline:
			t.Fatal("the links are still there")
		case <-time.Tick(time.Millisecond):
		}
	}
}

// emptyAPI answers everything with {}.
type emptyAPI struct{ client.Reader }

func (emptyAPI) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return nil
}
func (emptyAPI) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }

func TestReaderDoubts(t *testing.T) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "tls"}}
	real := fake.NewClientBuilder().WithObjects(secret).Build()
	key := client.ObjectKeyFromObject(secret)
	for _, c := range []struct {
		from  client.Reader
		fails bool
	}{{real, false}, {emptyAPI{}, true}} {
		var s corev1.Secret
		if err := (Reader{c.from}).Get(t.Context(), key, &s); (err != nil) != c.fails {
			t.Errorf("get from %T: %v", c.from, err)
		}
	}
	for version, fails := range map[string]bool{"7": false, "": true} {
		list := corev1.SecretList{ListMeta: metav1.ListMeta{ResourceVersion: version}}
		if err := (Reader{emptyAPI{}}).List(t.Context(), &list); (err != nil) != fails {
			t.Errorf("list of version %q: %v", version, err)
		}
	}
	err := (Reader{real}).Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: "other"}, &corev1.Secret{})
	if client.IgnoreNotFound(err) != nil || err == nil {
		t.Errorf("a secret that is not there: %v", err)
	}
}

// The reconciler does not wait for what is late, which cannot be read before it is known.
func TestLateWatches(t *testing.T) {
	woken, ended := make(chan struct{}, 1), make(chan error)
	w := NewWatches(func() { woken <- struct{}{} }, nil, []client.Object{&corev1.Pod{}})
	w.SetCache(refusingCache{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- w.Start(ctx) }()
	w.Ready() // it starts the watches
	<-woken
	err := w.Reader(fake.NewClientBuilder().Build()).List(t.Context(), &corev1.PodList{})
	if err == nil || !w.Ready() {
		t.Errorf("ready %v, pods: %v", w.Ready(), err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// refusingCache has no informers.
type refusingCache struct{ ctrlcache.Cache }

func (refusingCache) GetInformer(
	context.Context, client.Object, ...ctrlcache.InformerGetOption,
) (ctrlcache.Informer, error) {
	return nil, errors.New("forbidden")
}

// A heartbeat of a node changes its version, and nothing of what the cache keeps.
func TestSameButVersion(t *testing.T) {
	node := func(version, label string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: version,
			Labels: map[string]string{"a": label}}}
	}
	for _, c := range []struct {
		old, new any
		same     bool
	}{
		{node("1", "x"), node("2", "x"), true}, {node("1", "x"), node("2", "y"), false},
		{node("1", "x"), node("1", "x"), false}, {"no", "object", false},
	} {
		if got := sameButVersion(c.old, c.new); got != c.same {
			t.Errorf("%v and %v: %v", c.old, c.new, got)
		}
	}
}

// What is not known cannot be read, and the reconciler waits for it only for a while.
func TestWatches(t *testing.T) {
	var woken atomic.Int32
	w := NewWatches(func() { woken.Add(1) }, []client.Object{&corev1.Secret{}, &corev1.Service{}}, nil)
	reader := w.Reader(fake.NewClientBuilder().Build())
	get := func(o client.Object) error {
		return reader.Get(t.Context(), client.ObjectKey{Namespace: "n", Name: "x"}, o)
	}
	if w.Ready() || !(*Watches)(nil).Ready() {
		t.Error("ready at once")
	}
	if err := get(&corev1.Secret{}); err == nil || !strings.Contains(err.Error(), "has not told it yet") {
		t.Errorf("secret: %v", err)
	}
	w.noteFailure("*v1.Secret", errors.New("forbidden"))
	w.noteSynced("*v1.Service")
	w.endPatience()
	if err := get(&corev1.Secret{}); err == nil || !strings.Contains(err.Error(), "cannot be read: forbidden") {
		t.Errorf("secret: %v", err)
	}
	for _, o := range []client.Object{&corev1.Service{}, &corev1.ConfigMap{}} {
		if err := get(o); err == nil || client.IgnoreNotFound(err) != nil {
			t.Errorf("%T: %v", o, err)
		}
	}
	if !w.Ready() || woken.Load() != 2 {
		t.Errorf("ready %v, woken %d times", w.Ready(), woken.Load())
	}
}
