package connect

import (
	"context"
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/install"
)

// newCluster has a node, a DNS with a Corefile, and other objects.
func newCluster(t *testing.T, name, corefile string, objects ...client.Object) *Cluster {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, clientgoscheme.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDR: "100.96.0.0/24"}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.250.0.11"}}
	dns := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"},
		Data: map[string]string{"Corefile": corefile}}
	return &Cluster{Name: name, Client: fake.NewClientBuilder().WithScheme(s).WithObjects(append(objects, node, dns)...).
		Build()}
}

// newSide is a cluster of its own.
func newSide(c *Cluster, out *strings.Builder) *side {
	return &side{changer: changer{Cluster: c, log: NewLog(out)}, end: end{context: c.Name}}
}

func TestSameObjects(t *testing.T) {
	newVersion := func(version, state, image string) *unstructured.Unstructured {
		o := &unstructured.Unstructured{Object: map[string]any{
			"status": map[string]any{"state": state}, "spec": map[string]any{"image": image}}}
		o.SetResourceVersion(version)
		return o
	}
	old := newVersion("1", "starts", "a")
	if !isSame(old, newVersion("2", "runs", "a")) || isSame(old, newVersion("2", "starts", "b")) ||
		old.GetResourceVersion() != "1" {
		t.Error("a status counts, or a change does not")
	}
}

// A cluster without load balancers gets told, while it waits, what to give.
func TestNoLoadBalancer(t *testing.T) {
	var out strings.Builder
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: install.Namespace, Name: install.Name}}
	p := newPair(newCluster(t, "c1", "", service), newCluster(t, "c2", ""), Options{UpTimeout: time.Millisecond}, NewLog(&out))
	err := p.findEndpoint(context.Background(), p.sides[0], p.sides[1])
	if err == nil || !strings.Contains(err.Error(), "it has no address yet; without load balancers") ||
		!strings.Contains(err.Error(), "--endpoint c1=HOST[:PORT]") {
		t.Error(err)
	}
}

func TestStubDomain(t *testing.T) {
	const plain, custom = ".:53 {\n    reload\n    forward . 10.0.0.1\n}\n", ".:53 {\n}\nimport custom/*.server\n"
	users := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns-custom"},
		Data: map[string]string{"a.server": "x", "kubelink.server": "y"}}
	ctx := context.Background()
	for _, c := range []struct {
		name, corefile string
		objects        []client.Object
		added, imports bool
	}{
		{"a server block", plain, nil, true, false},
		{"coredns-custom is imported, and not there", custom, nil, false, true},
		{"coredns-custom of a user", custom, []client.Object{users}, false, true},
		{"an import within a server block", ".:53 {\n    reload\n    import custom/*.server\n}\n", nil, true, false},
		{"another port", ".:1053 {\n    reload\n}\n", nil, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			s := newSide(newCluster(t, "c1", c.corefile, c.objects...), &out)
			for range 2 { // the second time changes nothing
				if err := s.readDNS(ctx); err != nil {
					t.Fatal(err)
				}
				if err := s.setStubDomain(ctx, netip.MustParseAddr("100.64.0.11")); err != nil {
					t.Fatal(err)
				}
			}
			data, err := s.readConfig(ctx, "coredns")
			if err != nil || regexp.MustCompile(`kubelink:\d+ {`).MatchString(data["Corefile"]) != c.added ||
				s.dns.imports != c.imports ||
				strings.Count(out.String(), "\n") > 1 {
				t.Errorf("%v, %v\n%s\n%s", err, s.dns, data["Corefile"], &out)
			}
			if err := s.removeStubDomain(ctx); err != nil {
				t.Fatal(err)
			}
			data, err = s.readConfig(ctx, "coredns")
			if err != nil || data["Corefile"] != c.corefile {
				t.Errorf("%v\n%s", err, data["Corefile"])
			}
			data, err = s.readConfig(ctx, "coredns-custom")
			if _, has := data["kubelink.server"]; err != nil || has || (data["a.server"] != "") != (c.objects != nil) {
				t.Errorf("%v %v", err, data)
			}
		})
	}
	var out strings.Builder
	block := newSide(newCluster(t, "c1", plain+"kubelink {\n    forward . 10.1.1.1\n}\n"), &out)
	if err := block.readDNS(ctx); err != nil {
		t.Fatal(err)
	}
	err := block.setStubDomain(ctx, netip.MustParseAddr("100.64.0.11"))
	const stays = "has a server block for kubelink, which stays in force"
	if err != nil || !strings.Contains(out.String(), stays) {
		t.Errorf("a block of the user: %v %s", err, &out)
	}
	s := newSide(newCluster(t, "c1", ""), &out)
	err = s.setStubDomain(ctx, netip.MustParseAddr("100.64.0.11"))
	if err != nil || !strings.Contains(out.String(), "to 100.64.0.11 there") {
		t.Errorf("no Corefile: %v %s", err, &out)
	}
}

func TestNetworks(t *testing.T) {
	ctx := context.Background()
	shoot := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "shoot-info"},
		Data: map[string]string{"serviceNetwork": "100.64.0.0/13", "podNetwork": "100.96.0.0/11", "nodeNetwork": "10.180.0.0/16"}}
	kubeadm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kubeadm-config"},
		Data: map[string]string{"ClusterConfiguration": "networking:\n  serviceSubnet: 10.96.0.0/12,fd00::/112\n" +
			"  podSubnet: 10.244.0.0/16\n"}}
	for _, c := range []struct {
		name    string
		objects []client.Object
		given   Networks
		want    Networks
		fails   string
	}{
		{"Gardener", []client.Object{shoot}, Networks{}, networks("100.64.0.0/13", "100.96.0.0/11", "10.180.0.0/16"), ""},
		{"kubeadm", []client.Object{kubeadm}, Networks{}, networks("10.96.0.0/12", "10.244.0.0/16", "10.250.0.0/24"), ""},
		{"given", []client.Object{shoot}, Networks{Pods: prefix("10.1.0.0/16")},
			networks("100.64.0.0/13", "10.1.0.0/16", "10.180.0.0/16"), ""},
		{"unknown", nil, Networks{}, Networks{}, "c1: the service network is not known: give --service-cidr c1=CIDR"},
	} {
		var out strings.Builder
		s := newSide(newCluster(t, "c1", "", c.objects...), &out)
		got := c.given
		err := s.findNetworks(ctx, &got)
		if c.fails != "" {
			if err == nil || err.Error() != c.fails {
				t.Errorf("%s: %v", c.name, err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
	if found := validRange.FindStringSubmatch("The range of valid IPs is 100.64.0.0/20"); found == nil ||
		found[1] != "100.64.0.0/20" {
		t.Errorf("%q", found)
	}
}

// caOf is a secret with a CA.
func caOf(keys ...string) corev1.Secret {
	s := corev1.Secret{Data: map[string][]byte{}}
	for _, key := range keys {
		name, value, _ := strings.Cut(key, "=")
		s.Data[name] = []byte(value)
	}
	return s
}

func TestShareCA(t *testing.T) {
	installed := &appsv1.Deployment{}
	for _, c := range []struct {
		name   string
		a, b   corev1.Secret
		others *appsv1.Deployment // of b
		fails  string
	}{
		{"none", caOf(), caOf(), nil, ""},
		{"a has one", caOf("ca.crt=x", "ca.key=y"), caOf(), nil, ""},
		{"both have it", caOf("ca.crt=x\n"), caOf("ca.crt=y\nx"), nil, ""},
		{"a has no key", caOf("ca.crt=x"), caOf(), nil, "make a certificate of this CA for host"},
		{"different ones", caOf("ca.crt=x"), caOf("ca.crt=y"), nil, "c1 and c2 have different CAs"},
		{"b is not ours", caOf("ca.crt=x", "ca.key=y"), caOf(), installed, "c2 has kubelink without a CA"},
	} {
		var out strings.Builder
		p := newPair(newCluster(t, "c1", ""), newCluster(t, "c2", ""), Options{Mode: mesh.Bridge}, NewLog(&out))
		p.sides[0].secret, p.sides[1].secret, p.sides[1].deployment = c.a, c.b, c.others
		for _, s := range p.sides {
			s.endpoint = "host"
		}
		err := p.shareCA(context.Background())
		if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.fails != "" || c.name == "both have it" {
			continue
		}
		var a, b corev1.Secret
		for s, to := range map[*side]*corev1.Secret{p.sides[0]: &a, p.sides[1]: &b} {
			if to.Data = s.secret.Data; len(s.secret.Data) > 0 {
				continue
			}
			if err := s.Client.Get(context.Background(), objectKey("kubelink-tls"), to); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if string(a.Data["ca.key"]) != string(b.Data["ca.key"]) || len(a.Data["ca.key"]) == 0 {
			t.Errorf("%s: %q %q", c.name, a.Data, b.Data)
		}
	}
}

// One cluster is no two, and has one kubelink.
func TestRefuse(t *testing.T) {
	local := newLink("c1", "LocalLink", "192.168.0.1/24")
	local.Labels = map[string]string{managedLabel: owner}
	a, b := newCluster(t, "c1", "", newSystem("1"), &local), newCluster(t, "c1-admin", "", newSystem("1"))
	for name, do := range map[string]func(context.Context, *Cluster, *Cluster, Options, *Log) error{
		"connect": Connect, "disconnect": Disconnect,
	} {
		var out strings.Builder
		err := do(t.Context(), a, b, Options{MeshServices: true}, NewLog(&out))
		if err == nil || !strings.Contains(err.Error(), "contexts of the same cluster") || out.Len() > 0 {
			t.Errorf("%s: %v %s", name, err, &out)
		}
	}
	b = newCluster(t, "c2", "", newSystem("2"), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{
		Namespace: "links", Name: "kubelink", Labels: map[string]string{"app": "kubelink"}}})
	var out strings.Builder
	all := networks("100.64.0.0/20", "100.96.0.0/11", "10.250.0.0/16")
	err := Connect(t.Context(), a, b, Options{Networks: map[string]Networks{"c1-admin": all, "c1": all}}, NewLog(&out))
	if err == nil || !strings.Contains(err.Error(), "c2 has kubelink in namespace links") {
		t.Error(err)
	}
}

// TestDryRun shows what there is to do in two empty clusters, without any secret, and makes nothing.
func TestDryRun(t *testing.T) {
	a, b := newCluster(t, "c1", ".:53 {\n}\n"), newCluster(t, "c2", ".:53 {\n}\n")
	var mu sync.Mutex // guards shown: both clusters are shown at the same time
	shown := map[string]int{}
	o := Options{DryRun: true, DefaultImage: "kubelink:v1", MeshCIDR: prefix("192.168.0.0/24"), UpTimeout: time.Minute,
		Networks: map[string]Networks{"c1": networks("100.64.0.0/20", "100.96.0.0/11", "10.250.0.0/16"),
			"c2": networks("100.64.16.0/20", "100.96.0.0/11", "10.250.0.0/16")},
		Show: func(c *Cluster, o *unstructured.Unstructured) {
			mu.Lock()
			shown[c.Name+" "+describeObject(o)]++
			mu.Unlock()
			if data, _, _ := unstructured.NestedMap(o.Object, "data"); o.GetKind() == "Secret" &&
				(len(data) != 2 || data["ca.key"] != "UkVEQUNURUQ=") {
				t.Errorf("%s: %v", c.Name, data)
			}
		}}
	var out strings.Builder
	if err := Connect(context.Background(), a, b, o, NewLog(&out)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"c1 KubeLink c1", "c1 KubeLink c2", "c2 KubeLink c1", "c2 Secret kubelink/kubelink-tls",
		"c1 Deployment kubelink/kubelink", "c2 DaemonSet kubelink/kubelink-router"} {
		if shown[want] != 1 {
			t.Errorf("%s is shown %d times", want, shown[want])
		}
	}
	if !strings.Contains(out.String(), "c1: would change ConfigMap kube-system/coredns") {
		t.Errorf("%s", &out)
	}
	var namespaces corev1.NamespaceList
	if err := a.Client.List(context.Background(), &namespaces); err != nil || len(namespaces.Items) > 0 {
		t.Errorf("%v %v", err, namespaces.Items)
	}
	o.DefaultImage = ""
	if err := Connect(context.Background(), a, b, o, NewLog(&out)); err == nil || !strings.Contains(err.Error(), "--image") {
		t.Errorf("without image: %v", err)
	}
}

// Brokers that are gone cannot take their finalizers off.
func TestDisconnectWithoutBroker(t *testing.T) {
	ctx := context.Background()
	local := newLink("c1", "LocalLink", "192.168.0.1/24")
	local.Labels = map[string]string{managedLabel: owner}
	local.Finalizers = []string{v1alpha1.Finalizer}
	kept := newLink("m2--c1", "LocalLink", "192.168.2.1/24")
	kept.Labels, kept.Finalizers = local.Labels, []string{v1alpha1.Finalizer, "example.com/backup"}
	foreign := newLink("m--x", "LocalLink", "192.168.1.1/24")
	link := newLink("c2", "host", "192.168.0.2/24")
	a, b := newCluster(t, "c1", "", &local, &link, &foreign, &kept), newCluster(t, "c2", "")
	var out strings.Builder
	s := newSide(a, &out)
	if err := s.readLinks(ctx); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*v1alpha1.KubeLink{&local, &kept} {
		if err := a.Client.Delete(ctx, l.DeepCopy()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.releaseLocals(ctx); err != nil {
		t.Fatal(err)
	}
	const stays = "KubeLink m2--c1 stays until what has its finalizers example.com/backup releases it"
	if !strings.Contains(out.String(), stays) {
		t.Errorf("%s", &out)
	}
	var is v1alpha1.KubeLink
	if err := a.Client.Get(ctx, clusterKey("m2--c1"), &is); err != nil || len(is.Finalizers) != 1 {
		t.Fatalf("%v %v", err, is.Finalizers)
	}
	is.Finalizers = nil
	if err := a.Client.Update(ctx, &is); err != nil {
		t.Fatal(err)
	}
	if err := Disconnect(ctx, a, b, Options{}, NewLog(&out)); err != nil {
		t.Fatal(err)
	}
	var list v1alpha1.KubeLinkList
	if err := a.Client.List(ctx, &list); err != nil || len(list.Items) != 1 || list.Items[0].Name != "m--x" {
		t.Errorf("%v %v\n%s", err, list.Items, &out)
	}
}

// Pods on a dead node do not end. The rest goes on without them.
func TestDisconnectWithDeadNode(t *testing.T) {
	meta := metav1.ObjectMeta{Namespace: "kubelink", Name: "kubelink-router", Labels: map[string]string{managedLabel: owner},
		Finalizers: []string{metav1.FinalizerDeleteDependents}}
	own := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelink", Name: "kubelink",
		Labels: map[string]string{managedLabel: owner}}}
	a, b := newCluster(t, "c1", "", &appsv1.DaemonSet{ObjectMeta: meta}, own), newCluster(t, "c2", "")
	var out strings.Builder
	p := newPair(a, b, Options{}, NewLog(&out))
	for _, s := range p.sides {
		s.patience = pollInterval / 2
	}
	if err := p.uninstallOwn(t.Context(), p.sides[0], p.sides[1]); err != nil {
		t.Fatal(err)
	}
	err := a.Client.Get(t.Context(), client.ObjectKeyFromObject(own), own)
	if !isAbsent(err) || !strings.Contains(out.String(), "as a node may be dead") {
		t.Errorf("%v\n%s", err, &out)
	}
}

// Of a cluster that is gone for good, the link of the other one is left. It is told how to remove it.
func TestDisconnectFromGone(t *testing.T) {
	gone := newCluster(t, "c2", "")
	gone.Client = interceptor.NewClient(gone.Client.(client.WithWatch), interceptor.Funcs{
		Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			return errors.New("connection refused")
		}})
	err := Disconnect(t.Context(), newCluster(t, "c1", ""), gone, Options{}, NewLog(&strings.Builder{}))
	if err == nil || !strings.Contains(err.Error(), "kubectl --context c1 delete kubelink c2") ||
		!strings.Contains(err.Error(), "c2: read Namespace kube-system: connection refused") {
		t.Error(err)
	}
}

// A link with the name of the other cluster may lead elsewhere.
func TestDisconnectKeepsOthers(t *testing.T) {
	one, two := newLink("c1", "LocalLink", "192.168.0.1/24"), newLink("c2", "LocalLink", "192.168.0.2/24")
	link, other := newLink("c2", "host", "192.168.0.9/24"), newLink("c3", "host", "192.168.0.3/24")
	a, b := newCluster(t, "c1", "", &one, &link, &other), newCluster(t, "c2", "", &two)
	var out strings.Builder
	err := Disconnect(context.Background(), a, b, Options{}, NewLog(&out))
	if err == nil || !strings.Contains(err.Error(), "c1: KubeLink c2 has the cluster address 192.168.0.9/24") {
		t.Errorf("%v\n%s", err, &out)
	}
	link.Spec.ClusterAddress, link.ResourceVersion = "192.168.0.2/24", ""
	a = newCluster(t, "c1", "", newLinks(one, link, other)...)
	if err := Disconnect(context.Background(), a, b, Options{}, NewLog(&out)); err != nil ||
		!strings.Contains(out.String(), "c1: kubelink stays, as there is another link: c3") {
		t.Errorf("%v\n%s", err, &out)
	}
}

// newLinks are links without what an API server has set.
func newLinks(links ...v1alpha1.KubeLink) (all []client.Object) {
	for _, l := range links {
		l.ResourceVersion = ""
		all = append(all, &l)
	}
	return all
}
