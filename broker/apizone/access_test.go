package apizone

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

func TestAPICredentials(t *testing.T) {
	ca := someCA(t)
	encoded := base64.StdEncoding.EncodeToString([]byte(ca))
	for _, c := range []struct {
		name, token, ca string
		bad             string // empty: good
	}{
		{"PEM", "secret", ca, ""},
		{"base64", "secret", encoded, ""},
		{"base64 in lines", "secret", encoded[:64] + "\n" + encoded[64:128] + "\r\n" + encoded[128:] + "\n", ""},
		{"two certificates", "secret", ca + ca, ""},
		{"line end", "secret\n", "\n" + ca + "\n", ""},
		{"no token", "", ca, "key token is missing"},
		{"blank token", "\n", ca, "key token is missing"},
		{"no CA", "secret", "", "key certificate-authority-data is missing"},
		{"no base64", "secret", "x", "key certificate-authority-data has no certificate in PEM form, or in base64 of that"},
		{"base64 of something", "secret", base64.StdEncoding.EncodeToString([]byte("something")),
			"key certificate-authority-data has no certificate"},
		{"key", "secret", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
			`key certificate-authority-data: block 1 is "PRIVATE KEY", not a certificate`},
		{"glued", "secret", strings.TrimSpace(ca) + ca, "key certificate-authority-data: block 2 begins in the middle"},
		{"second one cut", "secret", ca + ca[:200], "key certificate-authority-data: block 2 is cut or damaged"},
		{"base64 of glued ones", "secret", base64.StdEncoding.EncodeToString([]byte(strings.TrimSpace(ca) + ca)),
			"key certificate-authority-data: block 2 begins in the middle"},
		{"byte order mark", "secret", "\xef\xbb\xbf" + ca, "key certificate-authority-data: a byte order mark"},
	} {
		token, got, err := parseCredentials(map[string][]byte{mesh.KeyToken: []byte(c.token), mesh.KeyCA: []byte(c.ca)})
		switch {
		case c.bad == "" && (err != nil || token != "secret" || !strings.Contains(got, strings.TrimSpace(ca))):
			t.Errorf("%s: %q %q %v", c.name, token, got, err)
		case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func FuzzAPICredentials(f *testing.F) {
	ca := someCA(f)
	f.Add([]byte("token"), []byte(ca))
	f.Add([]byte("token"), []byte(base64.StdEncoding.EncodeToString([]byte(ca))))
	f.Fuzz(func(t *testing.T, token, ca []byte) {
		got, pem, err := parseCredentials(map[string][]byte{mesh.KeyToken: token, mesh.KeyCA: ca})
		if err != nil {
			return
		}
		if got == "" {
			t.Error("an empty token")
		}
		// What is accepted can be used.
		tr := newTransport(apiSource{server: "https://100.64.16.1", token: got, ca: pem}, nil, func() {})
		if _, err := tr.newConfig(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// secretStore is a stub of the API as far as secrets are got from it.
type secretStore struct {
	client.Client
	mu      sync.Mutex
	secrets map[string]*corev1.Secret
	err     error
	gets    int
}

func (s *secretStore) Get(_ context.Context, key client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets++
	if s.err != nil {
		return s.err
	}
	secret := s.secrets[key.String()]
	if secret == nil {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, key.Name)
	}
	secret.DeepCopyInto(obj.(*corev1.Secret))
	return nil
}

func (s *secretStore) put(key string, version string, data map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	secret := &corev1.Secret{Data: map[string][]byte{}}
	secret.ResourceVersion = version
	for k, v := range data {
		secret.Data[k] = []byte(v)
	}
	if s.secrets == nil {
		s.secrets = map[string]*corev1.Secret{}
	}
	s.secrets[key] = secret
}

func (s *secretStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// Where the credentials of each cluster come from, and what is said of those that are not there.
func TestAccess(t *testing.T) {
	ca := someCA(t)
	link := func(name string, n int, namespace, secret string) v1alpha1.KubeLink {
		l := v1alpha1.KubeLink{}
		l.Name = name
		l.Spec = v1alpha1.KubeLinkSpec{
			ClusterAddress: fmt.Sprintf("192.168.0.%d/24", n), Endpoint: name + ".example",
			CIDR: fmt.Sprintf("100.64.%d.0/24", n),
		}
		if secret != "" {
			l.Spec.APIAccess = &corev1.SecretReference{Namespace: namespace, Name: secret}
		}
		return l
	}
	local := link("one", 11, "", "")
	local.Spec.Endpoint = v1alpha1.EndpointLocal
	items := []v1alpha1.KubeLink{local,
		link("two", 12, "", "two"), link("three", 13, "other", "three"), link("four", 14, "kube-system", "four"),
		link("five", 15, "", ""), link("six", 16, "", "six"),
	}
	self := mesh.Local{
		Mode: mesh.Bridge, Propagation: mesh.PropagateKubernetes, MeshDomain: "kubelink.", ClusterDomain: "cluster.local.",
	}
	state := mesh.Build(mesh.Objects{Links: items}, self)

	cached, direct := &secretStore{}, &secretStore{}
	cached.put("kube-system/two", "1", map[string]string{mesh.KeyToken: "token two", mesh.KeyCA: ca})
	cached.put("kube-system/four", "1", map[string]string{mesh.KeyCA: ca})
	direct.put("other/three", "1", map[string]string{mesh.KeyToken: "token three", mesh.KeyCA: ca})
	woken := make(chan struct{}, 10)
	secrets := NewSecrets(Config{Namespace: "kube-system"}, cached, direct, func() { woken <- struct{}{} })
	find := func(zone string) Access {
		t.Helper()
		for _, a := range secrets.FindAccesses(t.Context(), state.Zones, nil) {
			if a.zone == zone+".kubelink." {
				return a
			}
		}
		t.Fatalf("no access to %s", zone)
		return Access{}
	}
	if all := secrets.FindAccesses(t.Context(), state.Zones, nil); len(all) != 5 {
		t.Errorf("%d accesses; five has none", len(all))
	}
	if a := find("two"); a.err != nil || a.link != "two" || a.server != "https://100.64.12.1" || a.token != "token two" ||
		a.secret != "kube-system/two" || a.clusterDomain != "cluster.local." {
		t.Errorf("%v %s %s %s", a.err, a.link, a.server, a.secret)
	}
	if a := find("one"); a.err != nil || a.link != "" || a.server != "" {
		t.Errorf("%v %s %s", a.err, a.link, a.server)
	}
	for zone, want := range map[string]string{
		"four": "secret kube-system/four: key token is missing", "six": "secret kube-system/six does not exist",
	} {
		if a := find(zone); a.err == nil || !strings.HasPrefix(a.err.Error(), want) {
			t.Errorf("%s: %v", zone, a.err)
		}
	}

	// Those of other namespaces are read in the background, now and then, and last when they cannot be.
	if a := find("three"); !errors.Is(a.err, errPending) {
		t.Errorf("three: %v", a.err)
	}
	secrets.readAll(t.Context())
	<-woken
	if a := find("three"); a.err != nil || a.token != "token three" {
		t.Errorf("three: %v", a.err)
	}
	secrets.readAll(t.Context())
	direct.fail(errors.New("timeout"))
	secrets.readAll(t.Context())
	if a := find("three"); a.err != nil || len(woken) != 0 {
		t.Errorf("three: %v, woken %d", a.err, len(woken))
	}
	direct.fail(apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "three", errors.New("x")))
	secrets.readAll(t.Context())
	<-woken
	const forbidden = "secret other/three: the broker may not read it: allow"
	if a := find("three"); a.err == nil || !strings.Contains(a.err.Error(), forbidden) {
		t.Errorf("three: %v", a.err)
	}
	direct.fail(nil)
	direct.put("other/three", "2", map[string]string{mesh.KeyToken: "new", mesh.KeyCA: ca})
	secrets.readAll(t.Context())
	<-woken
	if a := find("three"); a.err != nil || a.token != "new" {
		t.Errorf("three: %v", a.err)
	}

	// What is not wanted any more is not read.
	state = mesh.Build(mesh.Objects{Links: items[:2]}, self)
	secrets.FindAccesses(t.Context(), state.Zones, nil)
	gets := direct.gets
	secrets.readAll(t.Context())
	if direct.gets != gets {
		t.Error("a secret is read that is not wanted")
	}

	// Without permission to watch the namespace, its secrets are read like the others.
	secrets.cached = nil
	direct.put("kube-system/two", "1", map[string]string{mesh.KeyToken: "direct", mesh.KeyCA: ca})
	find("two")
	secrets.readAll(t.Context())
	if a := find("two"); a.err != nil || a.token != "direct" {
		t.Errorf("two: %v", a.err)
	}
}

// The reader starts with what is wanted, and looks again when something else is.
func TestSecretReader(t *testing.T) {
	store := &secretStore{}
	store.put("a/b", "1", nil)
	woken := make(chan struct{}, 10)
	s := NewSecrets(Config{}, nil, store, func() { woken <- struct{}{} })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Start(ctx) }()
	key := types.NamespacedName{Namespace: "a", Name: "b"}
	s.SetWanted(map[types.NamespacedName]bool{key: true})
	<-woken
	if secret, err := s.getSecret(t.Context(), key); err != nil || secret == nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestStripSecret(t *testing.T) {
	cfg := Config{TLSSecret: "tls"}
	for _, c := range []struct {
		name string
		keys int
	}{{"tls", 3}, {"other", 2}} {
		s := &corev1.Secret{Data: map[string][]byte{mesh.KeyToken: nil, mesh.KeyCA: nil, "large": nil}}
		s.Name = c.name
		if got, err := cfg.stripSecret(s); err != nil || len(got.(*corev1.Secret).Data) != c.keys {
			t.Errorf("%s: %v %v", c.name, got, err)
		}
	}
}
