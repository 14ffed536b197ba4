package router

// What the watcher makes of the answers of an API server: here, of ones that tests with a real one cannot have.

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/host"
	"github.com/mandelsoft/kubelink/broker/link"
)

// apiAnswers are the answers to lists, by resource: objects, or the reason of a refusal.
type apiAnswers map[string]any

// ServeHTTP implements http.Handler. A watch lasts until its client ends it.
func (a apiAnswers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	w.Header().Set("Content-Type", "application/json")
	answer := a[resource]
	if reason, refused := answer.(metav1.StatusReason); refused {
		code := map[metav1.StatusReason]int{metav1.StatusReasonForbidden: http.StatusForbidden,
			metav1.StatusReasonNotFound: http.StatusNotFound}[reason]
		w.WriteHeader(code)
		answer = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
			Reason: reason, Code: int32(code), Message: resource + " refused"}
	} else if r.URL.Query().Get("sendInitialEvents") == "true" {
		w.WriteHeader(http.StatusUnprocessableEntity) // so that the client lists
		answer = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
			Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity}
	} else if r.URL.Query().Get("watch") != "" {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func typed(kind, version string) (metav1.TypeMeta, metav1.ListMeta) {
	return metav1.TypeMeta{Kind: kind, APIVersion: version}, metav1.ListMeta{ResourceVersion: "1"}
}

// aLink and anEndpoint are lists of a former system.
func aLink() *v1alpha1.KubeLinkList {
	list := &v1alpha1.KubeLinkList{Items: []v1alpha1.KubeLink{*kubeLink("k2", "100.64.16.0/20", ledBy("10.250.0.1"))}}
	list.TypeMeta, list.ListMeta = typed("KubeLinkList", v1alpha1.GroupVersion.String())
	list.Items[0].ResourceVersion, list.Items[0].Spec.PublicKey = "1", "of no use here"
	return list
}

//nolint:staticcheck // see newWatcher
func anEndpoint() *corev1.EndpointsList {
	node := "node1"
	list := &corev1.EndpointsList{Items: []corev1.Endpoints{{
		ObjectMeta: metav1.ObjectMeta{Name: "kubelink", Namespace: "kubelink", ResourceVersion: "1"},
		Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: "100.96.1.5", NodeName: &node}},
			NotReadyAddresses: []corev1.EndpointAddress{{IP: "100.96.1.6"}}}}}}}
	list.TypeMeta, list.ListMeta = typed("EndpointsList", "v1")
	return list
}

// kinds is what discovery says.
func kinds(names ...string) *metav1.APIResourceList {
	list := &metav1.APIResourceList{GroupVersion: v1alpha1.GroupVersion.String()}
	for _, n := range names {
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: n})
	}
	return list
}

const noGateways = "the API server has not told of linkgateways yet: " +
	"failed to list *v1alpha1.LinkGateway: linkgateways refused"

func TestWatcher(t *testing.T) {
	gateways := &v1alpha1.LinkGatewayList{Items: []v1alpha1.LinkGateway{*gateway(1, "192.168.0.0/24")}}
	gateways.TypeMeta, gateways.ListMeta = typed("LinkGatewayList", v1alpha1.GroupVersion.String())
	gateways.Items[0].ResourceVersion = "1"
	for name, c := range map[string]struct {
		answers apiAnswers
		adopted bool // an earlier start has left routes
		waiting string
		objects string // numbers of gateways, links and former endpoints
		reasons string
	}{
		"all": {apiAnswers{"linkgateways": gateways, "kubelinks": aLink(), "endpoints": anEndpoint()}, true,
			"", "1 1 1", ""},
		"a former system: its CRDs and roles": {apiAnswers{"linkgateways": metav1.StatusReasonNotFound,
			"kubelinks": aLink(), "endpoints": anEndpoint()}, false, "", "0 1 1", ""},
		"roles of a former system": {apiAnswers{"linkgateways": metav1.StatusReasonForbidden, "kubelinks": aLink(),
			"endpoints": anEndpoint()}, false, "", "0 1 1", AccessDenied},
		"refused after a restart": {apiAnswers{"linkgateways": metav1.StatusReasonForbidden, "kubelinks": aLink(),
			"endpoints": anEndpoint(), "v1alpha1": kinds("kubelinks", "linkgateways")}, true,
			noGateways, "", AccessDenied},
		"not found after a restart": {apiAnswers{"linkgateways": metav1.StatusReasonNotFound, "kubelinks": aLink(),
			"endpoints": anEndpoint(), "v1alpha1": kinds("kubelinks", "linkgateways")}, true, noGateways, "", ""},
		"no kind after a restart": {apiAnswers{"linkgateways": metav1.StatusReasonNotFound, "kubelinks": aLink(),
			"endpoints": anEndpoint(), "v1alpha1": kinds()}, true, noGateways, "", ""},
		"all refused after a restart": {apiAnswers{"linkgateways": metav1.StatusReasonForbidden, "kubelinks": aLink(),
			"endpoints": anEndpoint(), "v1alpha1": metav1.StatusReasonForbidden}, true, noGateways, "", AccessDenied},
		"a former system after a restart": {apiAnswers{"linkgateways": metav1.StatusReasonForbidden, "kubelinks": aLink(),
			"endpoints": anEndpoint(), "v1alpha1": kinds("kubelinks", "meshservices")}, true, "", "0 1 1", AccessDenied},
		"no need of endpoints": {apiAnswers{"linkgateways": gateways, "kubelinks": aLink(),
			"endpoints": metav1.StatusReasonForbidden}, true, "", "1 1 0", AccessDenied},
		"no kubelinks": {apiAnswers{"linkgateways": gateways, "kubelinks": metav1.StatusReasonNotFound,
			"endpoints": anEndpoint()}, false, "the API server has not told of kubelinks yet: " +
			"failed to list *v1alpha1.KubeLink: kubelinks refused", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(c.answers)
			defer server.Close()
			changed := make(chan struct{}, 1)
			w, err := newWatcher(&Config{REST: &rest.Config{Host: server.URL}, Namespace: "kubelink", Service: "kubelink"},
				host.NewAPIServer(), func() {
					select {
					case changed <- struct{}{}:
					default:
					}
				})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithTimeout(t.Context(), time.Minute)
			var wg sync.WaitGroup
			w.startInformers(ctx, &wg)
			defer wg.Wait()
			defer stop()
			awaitObjects(ctx, t, w, changed, c.adopted, c.waiting, c.objects, c.reasons)
		})
	}
}

// awaitObjects waits until the watcher tells what is wanted.
func awaitObjects(
	ctx context.Context, t *testing.T, w *watcher, changed <-chan struct{}, adopted bool, waiting, want, reasons string,
) {
	t.Helper()
	for {
		first := w.kinds[0].tellState()
		o, why, denied := w.readObjects(adopted)
		got := ""
		if o != nil {
			got = fmt.Sprint(len(o.gateways), len(o.links), len(o.former))
		}
		decided := first.synced || first.without
		if decided && why == waiting && got == want && reasonsOf(denied) == reasons {
			if o != nil && o.links[0].Spec.PublicKey != "" {
				t.Error("the watcher keeps what the router does not use")
			}
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waits for %q, has %q and %v", why, got, denied)
		case <-changed:
		case <-time.After(doubtTime): // the doubt is over without a further event
		}
	}
}

func reasonsOf(findings link.Findings) (text string) {
	for _, f := range findings {
		text += f.Reason
	}
	return text
}

// The remedy of a refusal names what the flags name.
func TestTellRoles(t *testing.T) {
	const roles = "apply the roles in deploy/components/router"
	for _, c := range []struct{ resource, namespace, service, want string }{
		{"endpoints", "kubelink", "kubelink", roles},
		{"linkgateways", "kubelink", "broker", roles},
		{"kubelinks", "links", "kubelink", roles},
		{"linkgateways", "links", "kubelink", roles + ", with the namespace links (flag --namespace) in place of kubelink"},
		{"endpoints", "links", "broker", roles + ", with the namespace links (flag --namespace) in place of kubelink, " +
			"with broker (flag --service) in place of kubelink in the resourceNames of endpoints"},
	} {
		if got := tellRoles(&Config{Namespace: c.namespace, Service: c.service}, c.resource); got != c.want {
			t.Errorf("%s: %s, want %s", c.resource, got, c.want)
		}
	}
}
