package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// Keys of RFC 7748, section 6.1.
const (
	peerPrivate = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
	peerPublic  = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
	clusterKey  = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="
)

// installed is what the test may change.
type installed struct {
	peer, local v1alpha1.KubeLink
	corefile    corev1.ConfigMap
	service     corev1.Service
	deployment  appsv1.Deployment
	secret      corev1.Secret
	forbidden   bool // to read the secret
}

// inSecret has the link take its preshared key from the secret, which has this value.
func (i *installed) inSecret(value string) {
	i.peer.Spec.PresharedKeySecretRef = &v1alpha1.SecretKeyRef{Name: "psk", Key: "laptop"}
	i.secret.Data = map[string][]byte{"laptop": []byte(value)}
}

func newInstalled() *installed {
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "kubelink", Name: name} }
	i := &installed{
		corefile:   corev1.ConfigMap{ObjectMeta: named("kubelink"), Data: map[string]string{}},
		service:    corev1.Service{ObjectMeta: named("kubelink")},
		deployment: appsv1.Deployment{ObjectMeta: named("kubelink")},
		secret:     corev1.Secret{ObjectMeta: named("psk")},
	}
	i.peer.Name, i.local.Name = "laptop", "kubelink1"
	i.peer.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: "192.168.0.50/24", Endpoint: "Inbound", PublicKey: peerPublic}
	i.local.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: "192.168.0.11/24", Endpoint: "LocalLink", CIDR: "100.64.0.0/20"}
	i.local.Status.PublicKey = clusterKey
	i.service.Spec.Ports = []corev1.ServicePort{{Name: "bridge", Port: 80}, {Name: "wireguard", Port: 51820}}
	i.service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.7"}}
	return i
}

func TestWGConfig(t *testing.T) {
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(peerPrivate+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../../deploy/examples/wireguard-peer.conf")
	if err != nil {
		t.Fatal(err)
	}
	variable := []corev1.Container{{Env: []corev1.EnvVar{{Name: "ENDPOINT", Value: "kubelink.one.example"}}}}
	for _, test := range []struct {
		name    string
		change  func(*installed)
		options wgConfigOptions
		want    string // a part of the file, or of the error
		wrong   bool
	}{
		{"the example", readExample(t), wgConfigOptions{endpoint: "kubelink.kubelink1.example:8777"}, string(example), false},
		{"a peer with endpoint", func(i *installed) { i.peer.Spec.Endpoint = "router.example:4500" }, wgConfigOptions{},
			"ListenPort = 4500\n", false},
		{"private key", nil, wgConfigOptions{keyFile: keyFile}, "\nPrivateKey = " + peerPrivate + "\n", false},
		{"private key of another", func(i *installed) { i.peer.Spec.PublicKey = clusterKey },
			wgConfigOptions{keyFile: keyFile}, "is the key of " + peerPublic, true},
		{"preshared key", func(i *installed) { i.peer.Spec.PresharedKey = peerPrivate }, wgConfigOptions{},
			"\nPresharedKey = " + peerPrivate + "\n", false},
		{"preshared key in a secret", func(i *installed) { i.inSecret(peerPrivate + "\n") }, wgConfigOptions{},
			"\nPresharedKey = " + peerPrivate + "\n", false},
		{"preshared key in a secret of another namespace", func(i *installed) {
			i.inSecret(peerPrivate)
			i.secret.Namespace, i.peer.Spec.PresharedKeySecretRef.Namespace = "other", "other"
		}, wgConfigOptions{}, "\nPresharedKey = " + peerPrivate + "\n", false},
		{"no such secret", func(i *installed) { i.inSecret(peerPrivate); i.secret.Name = "x" }, wgConfigOptions{},
			"names secret kubelink/psk, which does not exist", true},
		{"secret without the key", func(i *installed) { i.inSecret("") }, wgConfigOptions{},
			"secret kubelink/psk has no key laptop: add it", true},
		{"bad key in the secret", func(i *installed) { i.inSecret("x") }, wgConfigOptions{},
			"key laptop of secret kubelink/psk: ", true},
		{"secret that may not be read", func(i *installed) { i.inSecret(peerPrivate); i.forbidden = true }, wgConfigOptions{},
			"secret kubelink/psk, and you may not read it: ask for the right to get this secret", true},
		{"dns-name", func(i *installed) { i.corefile.Data["Corefile"] = "kubelink {\n dns-name a.example # x\n}" },
			wgConfigOptions{}, "\nEndpoint = a.example:51820\n", false},
		{"dns-name in a variable", func(i *installed) {
			i.corefile.Data["x.properties"] = "dns-name {$ENDPOINT}\n"
			i.deployment.Spec.Template.Spec.Containers = variable
		}, wgConfigOptions{}, "\nEndpoint = kubelink.one.example:51820\n", false},
		{"flag", nil, wgConfigOptions{endpoint: "[2001:db8::1]"}, "\nEndpoint = [2001:db8::1]:51820\n", false},
		{"flag with port", nil, wgConfigOptions{endpoint: "b.example:1"}, "\nEndpoint = b.example:1\n", false},
		{"networks", nil, wgConfigOptions{cidrs: []string{"10.1.2.3/16"}},
			"AllowedIPs = 192.168.0.11/32, 10.1.0.0/16\n", false},
		{"service without the port", func(i *installed) { i.service.Spec.Ports = nil }, wgConfigOptions{},
			"Endpoint = 203.0.113.7:8777\n", false},
		{"no endpoint", func(i *installed) { i.service.Status = corev1.ServiceStatus{} }, wgConfigOptions{},
			"give --endpoint host[:port]", true},
		{"bad endpoint", nil, wgConfigOptions{endpoint: "a:b"}, `endpoint "a:b": port "b" is not a number`, true},
		{"cluster with names", func(i *installed) { i.peer.Spec.CIDR = "100.64.16.0/20" }, wgConfigOptions{},
			"\nAddress = 192.168.0.50/32\n", false},
		{"networks without names", func(i *installed) {
			i.peer.Spec.CIDR, i.peer.Spec.DNS = "10.9.0.0/16", &v1alpha1.KubeLinkDNS{OmitDNSPropagation: true}
		}, wgConfigOptions{}, "\nAddress = 192.168.0.50/32\n", false},
		{"no such link", func(i *installed) { i.peer.Name = "x" }, wgConfigOptions{}, "there is no KubeLink laptop", true},
		{"LocalLink", func(i *installed) { i.peer.Spec.Endpoint = "LocalLink" }, wgConfigOptions{}, "is the LocalLink", true},
		{"behind a gateway", func(i *installed) { i.peer.Spec.GatewayLink = "b" }, wgConfigOptions{}, "is behind b", true},
		{"no LocalLink", func(i *installed) { i.local.Name = "m--k" }, wgConfigOptions{}, "has no LocalLink: create", true},
		{"no key of the peer", func(i *installed) { i.peer.Spec.PublicKey = "" }, wgConfigOptions{}, "wg genkey", true},
		{"bad key of the peer", func(i *installed) { i.peer.Spec.PublicKey = "x" }, wgConfigOptions{},
			"spec.publicKey of", true},
		{"no key of the cluster", func(i *installed) {
			i.local.Status.PublicKey, i.local.Status.Message = "", "secret kubelink/x has no key"
		}, wgConfigOptions{}, "has no publicKey: secret kubelink/x has no key", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			i := newInstalled()
			if test.change != nil {
				test.change(i)
			}
			s := runtime.NewScheme()
			for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, appsv1.AddToScheme} {
				if err := add(s); err != nil {
					t.Fatal(err)
				}
			}
			objects := []client.Object{&i.peer, &i.local, &i.corefile, &i.service, &i.deployment, &i.secret}
			var warnings strings.Builder
			w := &wgConfig{client: fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).
				WithInterceptorFuncs(interceptor.Funcs{Get: i.get}).Build(),
				namespace: "kubelink", warnings: &warnings, wgConfigOptions: test.options}
			got, err := w.make(context.Background(), "laptop")
			if err != nil {
				got = err.Error()
			}
			if warned := warnings.String(); (warned != "") != strings.Contains(test.name, "with names") {
				t.Errorf("warning %q", warned)
			}
			if !strings.Contains(got, test.want) || (err != nil) != test.wrong {
				t.Errorf("%s\nwant %s", got, test.want)
			}
		})
	}
}

// get reads an object, unless the API server forbids it.
func (i *installed) get(
	ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption,
) error {
	if _, ok := o.(*corev1.Secret); ok && i.forbidden {
		return apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, key.Name, nil)
	}
	return c.Get(ctx, key, o, opts...)
}

// readExample takes over the link of the example.
func readExample(t *testing.T) func(*installed) {
	text, err := os.ReadFile("../../deploy/examples/wireguard-peer.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return func(i *installed) {
		if err := yaml.UnmarshalStrict(text, &i.peer); err != nil {
			t.Fatal(err)
		}
	}
}
