package meshservice

// An API server that a test plays: lists, and events of watches.

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// playedAPI is the API server that a test plays.
type playedAPI struct {
	mu      sync.Mutex
	objects map[string][]client.Object // by resource
	refused map[string]bool            // resources that may not be read
	missing map[string]bool            // resources that are not known
	held    map[string]chan struct{}   // resources whose lists wait until it is closed
	asked   map[string]int             // lists, by resource
	watches map[string]chan event      // by resource
	version int
}

type event struct {
	Type   string        `json:"type"`
	Object client.Object `json:"object"`
}

func newPlayedAPI() *playedAPI {
	s := &playedAPI{objects: map[string][]client.Object{}, refused: map[string]bool{}, asked: map[string]int{},
		missing: map[string]bool{}, held: map[string]chan struct{}{}, watches: map[string]chan event{}}
	for _, resource := range []string{"meshservices", "services", "endpointslices"} {
		s.watches[resource] = make(chan event, 100)
	}
	return s
}

// send tells watches of an object.
func (s *playedAPI) send(what string, o client.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	o = o.DeepCopyObject().(client.Object)
	o.SetResourceVersion(fmt.Sprint(1000 + s.version))
	s.watches[resourceOf(o)] <- event{what, o}
}

// add has lists contain the objects.
func (s *playedAPI) add(objects ...client.Object) {
	for _, o := range objects {
		o.SetResourceVersion("1")
		s.objects[resourceOf(o)] = append(s.objects[resourceOf(o)], o)
	}
}

func resourceOf(o client.Object) string {
	return strings.ToLower(o.GetObjectKind().GroupVersionKind().Kind) + "s"
}

func (s *playedAPI) lists(resource string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[resource]
}

func (s *playedAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	w.Header().Set("Content-Type", "application/json")
	s.mu.Lock()
	refused, missing, held, watch := s.refused[resource], s.missing[resource], s.held[resource], s.watches[resource]
	if r.URL.Query().Get("watch") == "" {
		s.asked[resource]++
	}
	s.mu.Unlock()
	query := r.URL.Query()
	switch {
	case refused:
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden)
	case missing:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	case query.Get("sendInitialEvents") == "true": // so that the client lists
		refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	case query.Get("watch") != "":
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case e := <-watch:
				json.NewEncoder(w).Encode(e)
				w.(http.Flusher).Flush()
			}
		}
	default:
		if held != nil {
			select {
			case <-held:
			case <-r.Context().Done():
			}
		}
		json.NewEncoder(w).Encode(map[string]any{
			"metadata": map[string]string{"resourceVersion": "1"}, "items": s.objects[resource],
		})
	}
}

// set changes what the server answers.
func (s *playedAPI) set(resource string, in map[string]bool, value bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in[resource] = value
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status: metav1.StatusFailure, Reason: reason, Code: int32(code), Message: "refused"})
}

// startWatch runs a watch of a playedAPI for the time of a test. Each value of woken is a wake.
func startWatch(t testing.TB, s *playedAPI) (w *Watch, woken chan struct{}) {
	t.Helper()
	server := httptest.NewServer(s)
	scheme, mapper := runtime.NewScheme(), meta.NewDefaultRESTMapper(nil)
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discovery.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []schemaKind{
		{v1alpha1.GroupVersion.Group, "v1alpha1", "MeshService"}, {"", "v1", "Service"},
		{"discovery.k8s.io", "v1", "EndpointSlice"},
	} {
		mapper.Add(kind.gvk(), meta.RESTScopeNamespace)
	}
	woken = make(chan struct{}, 1000)
	w, err := NewWatch(Config{
		API: &rest.Config{Host: server.URL}, Options: cache.Options{Scheme: scheme, Mapper: mapper}, Backends: true,
		Wake: func() { woken <- struct{}{} }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Start(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { wg.Wait(); server.CloseClientConnections(); server.Close() })
	return w, woken
}

// await fails the test when nothing wakes the reconciler.
func await(t testing.TB, woken chan struct{}) {
	t.Helper()
	select {
	case <-woken:
	case <-time.After(30 * time.Second):
		t.Fatal("nothing wakes the reconciler")
	}
}
