package hooks

// The commands as far as they go without a cluster. test/realnodes has them in pods.

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// serveDNS answers all questions over UDP and TCP with a code, until the test ends.
func serveDNS(t *testing.T, rcode int) (address string) {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(r, rcode)) })
	for _, s := range []*dns.Server{{Listener: tcp, Handler: handler}, {PacketConn: udp, Handler: handler}} {
		ended := make(chan error, 1)
		go func() { ended <- s.ActivateAndServe() }()
		t.Cleanup(func() {
			s.Shutdown()
			<-ended
		})
	}
	return tcp.Addr().String()
}

func TestCheckDNS(t *testing.T) {
	for rcode, want := range map[int]string{
		dns.RcodeSuccess: "", dns.RcodeServerFailure: "", dns.RcodeRefused: "has to be in podCIDR, nodeCIDR or dns.allow",
	} {
		err := checkDNS(t.Context(), serveDNS(t, rcode), "kubelink")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", dns.RcodeToString[rcode], err)
		}
	}
	closed, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	if err := checkDNS(t.Context(), closed.LocalAddr().String(), "kubelink"); err == nil ||
		!strings.Contains(err.Error(), "does a broker run") {
		t.Errorf("without a server: %v", err)
	}
}

// newClient has objects of all kinds that the commands use.
func newClient(t *testing.T, objects ...client.Object) client.Client {
	t.Helper()
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, v1alpha1.AddToScheme,
		apiextensions.AddToScheme} {
		if err := add(types); err != nil {
			t.Fatal(err)
		}
	}
	return fake.NewClientBuilder().WithScheme(types).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.KubeLink{}, &v1alpha1.MeshService{}).Build()
}

func newLink(name string, state v1alpha1.State, message string) *v1alpha1.KubeLink {
	l := &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: name}}
	l.Status.State, l.Status.Message = state, message
	return l
}

func TestCheckLinks(t *testing.T) {
	for _, c := range []struct {
		links []client.Object
		fails string
		says  string
	}{
		{nil, "", "there are no KubeLinks yet"},
		{[]client.Object{newLink("a", v1alpha1.StateUp, ""), newLink("b", v1alpha1.StateIdle, "")}, "", "KubeLink b: Idle"},
		{[]client.Object{newLink("a", v1alpha1.StateUp, ""), newLink("b", v1alpha1.StateDown, "refused")},
			"KubeLink b: Down: refused", ""},
		{[]client.Object{newLink("a", "", "")}, "KubeLink a: no broker has seen it", ""},
	} {
		var out strings.Builder
		err := checkLinks(t.Context(), newClient(t, c.links...), &out)
		if (err == nil) != (c.fails == "") || err != nil && err.Error() != c.fails ||
			!strings.Contains(out.String(), c.says) {
			t.Errorf("%v: %v, %q", c.links, err, &out)
		}
	}
}

// What a broker has left that was killed goes, and nothing of others.
func TestUninstallSteps(t *testing.T) {
	named := func(namespace, name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: namespace, Name: name}
	}
	local := newLink("local", v1alpha1.StateUp, "")
	local.Finalizers = []string{v1alpha1.Finalizer, "example.com/other"}
	custom := &corev1.ConfigMap{ObjectMeta: named(metav1.NamespaceSystem, "coredns-custom"),
		Data: map[string]string{"kubelink.server": "ours", "own.server": "theirs"}}
	gateway := &v1alpha1.LinkGateway{ObjectMeta: named("kubelink", "kubelink-7")}
	lease := &coordinationv1.Lease{ObjectMeta: named("kubelink", "kubelink-7")}
	foreign := &coordinationv1.Lease{ObjectMeta: named("kubelink", "foreign")}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	served := &v1alpha1.MeshService{ObjectMeta: named("ns", "served"),
		Status: v1alpha1.MeshServiceStatus{State: v1alpha1.StateOk}}
	u := &uninstaller{Client: newClient(t, local, served, custom, gateway, lease, foreign), namespace: "kubelink",
		patience: time.Minute, out: &strings.Builder{}}
	for _, step := range []func(context.Context) error{
		u.endPrograms, u.removeFinalizers, u.abandonObjects, u.deleteGateways, u.cleanClusterDNS,
	} {
		for range 2 { // what is done already is no error
			if err := step(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, o := range []client.Object{gateway, lease} {
		if err := u.Get(ctx, client.ObjectKeyFromObject(o), o); !apierrors.IsNotFound(err) {
			t.Errorf("%T %s: %v, not gone", o, o.GetName(), err)
		}
	}
	for _, o := range []client.Object{local, served, custom, foreign} {
		if err := u.Get(ctx, client.ObjectKeyFromObject(o), o); err != nil {
			t.Error(err)
		}
	}
	if local.Status.State != v1alpha1.StateDown || !strings.Contains(local.Status.Message, "no broker keeps this link") {
		t.Errorf("the state that a broker has left: %+v", local.Status)
	}
	if served.Status.State != v1alpha1.StateStale || !strings.Contains(served.Status.Message, "no broker serves this") {
		t.Errorf("the state that a broker has left: %+v", served.Status)
	}
	if len(local.Finalizers) != 1 || len(custom.Data) != 1 || custom.Data["own.server"] == "" {
		t.Errorf("finalizers %q, the cluster's DNS %q", local.Finalizers, custom.Data)
	}
}

// Links that need no change cost no request: there may be hundreds.
func TestUninstallUnchangedLinks(t *testing.T) {
	up, down := newLink("up", v1alpha1.StateUp, ""), newLink("down", v1alpha1.StateUp, "")
	down.Abandon()
	var read []string
	c := interceptor.NewClient(newClient(t, up, down, newLink("new", "", "")).(client.WithWatch), interceptor.Funcs{Get: func(
		ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
		read = append(read, key.Name)
		return c.Get(ctx, key, o, options...)
	}})
	u := &uninstaller{Client: c, namespace: "kubelink", out: &strings.Builder{}}
	for _, step := range []func(context.Context) error{u.removeFinalizers, u.abandonObjects} {
		if err := step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(read, []string{"up"}) {
		t.Errorf("KubeLinks %q are read", read)
	}
}

// Pods on a dead node do not end. The rest goes on without them.
func TestUninstallWithDeadNode(t *testing.T) {
	waits := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelink", Name: daemonSetName,
		Finalizers: []string{metav1.FinalizerDeleteDependents}}}
	var out strings.Builder
	var policies []metav1.DeletionPropagation
	c := interceptor.NewClient(newClient(t, waits).(client.WithWatch), interceptor.Funcs{Delete: func(
		ctx context.Context, c client.WithWatch, o client.Object, options ...client.DeleteOption) error {
		policies = append(policies, *(&client.DeleteOptions{}).ApplyOptions(options).PropagationPolicy)
		return c.Delete(ctx, o, options...)
	}})
	u := &uninstaller{Client: c, namespace: "kubelink", patience: 3 * pollInterval, out: &out}
	if err := u.endPrograms(t.Context()); err != nil || !strings.Contains(out.String(), "a node may be dead") {
		t.Errorf("%v %s", err, &out)
	}
	const foreground, background = metav1.DeletePropagationForeground, metav1.DeletePropagationBackground
	if !slices.Equal(policies, []metav1.DeletionPropagation{foreground, foreground, background, background}) {
		t.Error(policies)
	}
}

// A finalizer of another program holds an object, and with it its kind. The error names both, the time that it took,
// and what to do.
func TestUninstallHeldObjects(t *testing.T) {
	held := newLink("c2", v1alpha1.StateUp, "")
	held.Finalizers = []string{"example.com/backup", "example.com/audit"}
	service := &v1alpha1.MeshService{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web",
		Finalizers: []string{"example.com/backup"}}}
	free := newLink("c3", v1alpha1.StateUp, "") // is not to be deleted
	free.Finalizers = []string{"example.com/free"}
	crd := &apiextensions.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "kubelinks.kubelink.mandelsoft.org",
		Finalizers: []string{apiextensions.CustomResourceCleanupFinalizer, "example.com/kind"}}}
	u := &uninstaller{Client: newClient(t, held, service, free, crd), finalizer: 3 * pollInterval, out: &strings.Builder{}}
	for _, o := range []client.Object{held, service} { // as the API server does when their kinds are deleted
		if err := u.Delete(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	err := u.deleteCRDs(t.Context())
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"after 750ms", "KubeLink c2 has example.com/backup and example.com/audit (kubectl patch " +
		`kubelinks.kubelink.mandelsoft.org c2 --type=merge -p '{"metadata":{"finalizers":null}}')`,
		"MeshService ns/web has example.com/backup (kubectl -n ns patch meshservices.kubelink.mandelsoft.org web",
		"CustomResourceDefinition kubelinks.kubelink.mandelsoft.org has example.com/kind (kubectl patch crd kubelinks.",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("there is no %q: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "free") || strings.Contains(err.Error(), "customresourcecleanup") {
		t.Error(err)
	}
}
