package gather

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// secrets makes secrets, and remembers all of them.
type secrets struct {
	mu  sync.Mutex // guards all
	all []string
}

func (s *secrets) add(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, text)
	return text
}

// text is a secret of its own.
func (s *secrets) text() string {
	raw := make([]byte, 18)
	rand.Read(raw)
	return s.add(base64.RawURLEncoding.EncodeToString(raw))
}

// jwt is a token.
func (s *secrets) jwt() string {
	return "eyJhbGciOiJSUzI1NiJ9." + s.text() + "." + s.text()
}

// wireguardKey is 32 bytes in base64.
func (s *secrets) wireguardKey() string {
	raw := make([]byte, 32)
	rand.Read(raw)
	return s.add(base64.StdEncoding.EncodeToString(raw))
}

// pem is a private key. Each of its lines is a secret.
func (s *secrets) pem(t *testing.T) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "-----") {
			s.add(line)
		}
	}
	return text
}

// wrap is base64 in lines of 64 characters, as the command base64 writes it. Each of them is a secret.
func (s *secrets) wrap(text string) string {
	var b strings.Builder
	for line := base64.StdEncoding.EncodeToString([]byte(text)); line != ""; {
		n := min(64, len(line))
		b.WriteString(line[:n] + "\n")
		s.add(line[:n])
		line = line[n:]
	}
	return b.String()
}

// pack is what Helm keeps of a release: base64 of base64 of gzip. None of it may be there.
func (s *secrets) pack(text string) string {
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	zip.Write([]byte(text))
	zip.Close()
	packed := base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString(b.Bytes())))
	s.add(packed)
	return packed
}

// The parts of a PEM text.
var (
	body  = regexp.MustCompile(`(?s)-----BEGIN.*?-----\n(.*)-----END.*`)
	lines = regexp.MustCompile(`-----.*-----|\n`)
)

// odd has secrets in texts that encoders, tools and people write in ways of their own.
func odd(t *testing.T, s *secrets) (objects []client.Object, log string) {
	crlf := strings.ReplaceAll(s.pem(t), "\n", "\r\n")
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelink", Name: "odd"}, Data: map[string]string{
		"wrapped": s.wrap(s.pem(t)), "indented": "a: |\n  " + strings.ReplaceAll(s.wrap(s.pem(t)), "\n", "\n  "),
		"crlf": crlf, "wrapped-crlf": s.wrap(crlf), "twice": s.wrap(s.wrap(s.pem(t))),
		"json-pem":     fmt.Sprintf("%q", s.pem(t)),
		"json-wrapped": fmt.Sprintf("%q", s.wrap(s.pem(t))), "url-pem": base64.URLEncoding.EncodeToString([]byte(s.pem(t))),
		"kubeconfig": base64.StdEncoding.EncodeToString([]byte("apiVersion: v1\nusers:\n- user:\n    token: " + s.text())),
		"release":    s.pack(s.text()),
		"nested":     fmt.Sprintf("%q", fmt.Sprintf(`{"token":%q,"other":"x"}`, s.text()+`\"`+s.text())),
		"block":      "password: |-\n  " + s.text() + " " + s.text() + "\n  " + s.text() + "\nafter: BLOCK-AFTER\n",
		"folded":     "- token: >\n    " + s.text() + "\n",
		"words":      "passphrase: " + s.text() + " " + s.text() + ", " + s.text() + "\n",
		"quotes":     `{"password":"` + s.text() + ",}'" + s.text() + `","a":1}`,
		"names": "client_secret=" + s.text() + "\nAWS_SECRET_ACCESS_KEY=" + s.text() + "\napi_key=" + s.text() +
			"\npsk: " + s.text() + "\nsecret: " + s.text() + "\nCookie: session=" + s.text() + "\n",
		"urls": "redis://:" + s.text() + "@host https://" + s.text() + "@host/x?sig=" + s.text(),
		"Corefile": "etcd {\n    credentials root " + s.text() + "\n}\nroute53 {\n    aws_access_key id " + s.text() +
			"\n}\n",
		"script": "exec tool --password " + s.text() + " --api-key '" + s.text() + "'\n",
		"body":   body.ReplaceAllString(s.pem(t), "$1"), "line": lines.ReplaceAllString(s.pem(t), ""),
		"pgp": "-----BEGIN PGP PRIVATE KEY BLOCK-----\n" + s.text() + "\n-----END PGP PRIVATE KEY BLOCK-----\n",
	}, BinaryData: map[string][]byte{"keystore": []byte(s.text())}}
	inConfig, inDocker, special := s.text(), s.text(), s.text()+"&<'\"%/"+s.text()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelink", Name: "odd",
		Annotations: map[string]string{"kapp.k14s.io/original": `{"stringData":{"a":"` + s.text() + `"}}`}}, Data: map[string][]byte{
		"kubeconfig": []byte("users:\n- user:\n    token: " + inConfig + "\n"), "special": []byte(special),
		".dockerconfigjson": []byte(`{"auths":{"r":{"username":"u","password":"` + inDocker + `"}}}`)}}
	html, err := json.Marshal(special)
	if err != nil {
		t.Fatal(err)
	}
	tail := s.pem(t) // its beginning is not among the last lines
	log = tail[strings.Index(tail, "\n")+1:] + "\nlooked for " + inConfig + " and " + inDocker + "\n" + string(html) +
		fmt.Sprintf(" %q %s %x\n", special, url.QueryEscape(special), special)
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelink", Name: "odd"}}
	deployment.Spec.Template.Spec.Containers = []corev1.Container{{Name: "odd", Args: []string{"--token", s.text(),
		"--auth-key", s.text(), "--name", "NAME-STAYS", "-c", "run --passwd=" + s.text()}}}
	return []client.Object{config, secret, deployment}, log
}

// everywhere has secrets in all places where one can be.
func everywhere(t *testing.T, s *secrets) ([]client.Object, string) {
	in := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "kubelink", Name: name} }
	known, psk := s.text(), s.wireguardKey()
	secret := &corev1.Secret{ObjectMeta: in("kubelink-tls"), Data: map[string][]byte{
		"tls.key": []byte(s.pem(t)), "ca.key": []byte(s.pem(t)), "WireguardPrivateKey": []byte(s.wireguardKey() + "\n"),
		"token": []byte(s.jwt()), "anything": []byte(known), "ca.crt": []byte("-----BEGIN CERTIFICATE-----")}}
	secret.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": fmt.Sprintf(
		`{"stringData":{"a":%q}}`, s.text()), "example/token": s.text()}
	link := &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: "peer"}}
	link.Spec.PresharedKey, link.Spec.PublicKey, link.Spec.Endpoint = psk, publicKey, "host"
	link.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": fmt.Sprintf(
		`{"spec":{"presharedKey":%q}}`, psk)}
	link.Status.Message = "bad key " + s.wireguardKey()
	elsewhere := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "psk"},
		Data: map[string][]byte{"psk": []byte(s.text())}}
	named := &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: "named"}}
	named.Spec.PresharedKeySecretRef = &v1alpha1.SecretKeyRef{Namespace: "other", Name: "psk", Key: "psk"}
	named.Spec.APIAccess = &corev1.SecretReference{Namespace: "other", Name: "missing"}
	config := &corev1.ConfigMap{ObjectMeta: in("kubelink"), Data: map[string]string{
		"Corefile": "tsig {\n    secret key.example. " + s.wireguardKey() + "\n    secret short.example. " + s.text() + "\n}",
		"kubeconfig": "users:\n- user:\n    token: " + s.text() + "\n    password: \"" + s.text() + "\"\n" +
			"    client-key-data: " + base64.StdEncoding.EncodeToString([]byte(s.pem(t))) + "\n",
		"json": `{"token": "` + s.text() + `", "server": "https://admin:` + s.text() + `@10.0.0.1"}`,
		"pem":  s.pem(t), "copy": base64.StdEncoding.EncodeToString([]byte(known)),
	}}
	deployment := &appsv1.Deployment{ObjectMeta: in("kubelink")}
	container := corev1.Container{Name: "kubelink", Args: []string{"--token=" + s.text(), "--api-key", "x"},
		Env: []corev1.EnvVar{{Name: "API_TOKEN", Value: s.text()}, {Name: "NODE_CIDR", Value: "10.250.0.0/16"}}}
	deployment.Spec.Template.Spec.Containers = []corev1.Container{container}
	pod := &corev1.Pod{ObjectMeta: in("kubelink-1")}
	pod.Spec.Containers = []corev1.Container{container}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "kubelink", RestartCount: 1}}
	event := &corev1.Event{ObjectMeta: in("event"), Message: "said " + known + " and Authorization: Bearer " + s.text()}
	dns := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"},
		Data: map[string]string{"Corefile": "secret key.example. " + s.text()}}
	more, log := odd(t, s)
	log += "the token " + s.jwt() + "\n" + string(secret.Data["tls.key"]) + "\n    " + string(secret.Data["ca.key"]) +
		"psk " + psk + " of " + string(elsewhere.Data["psk"]) + "\npublic " + publicKey + "\n" + s.pem(t)
	return append(more, secret, link, elsewhere, named, config, deployment, pod, event, dns), log
}

// publicKey is no secret.
const publicKey = "PnCsvsNSxWV+ZDgmSSjxNTE7vGBLz8Lb3MVQTkI2mVM="

// unpack returns the files of an archive.
func unpack(t *testing.T, archive io.Reader) map[string]string {
	zip, err := gzip.NewReader(archive)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(zip); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = string(text)
	}
}

func newTestClient(t *testing.T, objects ...client.Object) client.Client {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		v1alpha1.AddToScheme, coredns.AddToScheme, clientgoscheme.AddToScheme,
	} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	return fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).Build()
}

// TestSecrets gathers from clusters that have secrets everywhere. The archive has no byte of them, and what a reader
// needs.
func TestSecrets(t *testing.T) {
	s := &secrets{}
	var clusters []*Cluster
	for _, name := range []string{"c1", "admin@c/2"} {
		objects, log := everywhere(t, s)
		clusters = append(clusters, &Cluster{Name: name, Namespace: "kubelink", Client: newTestClient(t, objects...),
			Logs: func(_ context.Context, _ *corev1.Pod, _ string, previous bool) ([]byte, error) {
				if previous {
					return nil, errors.New("gone, it had " + s.jwt())
				}
				return []byte(log), nil
			},
			Extra: map[string]func(context.Context) ([]byte, error){
				"report.json": func(context.Context) ([]byte, error) {
					return []byte(`{"accessToken":"` + s.text() + `"}`), errors.New("half of it")
				},
			}})
	}
	var archive bytes.Buffer
	missing, err := Write(context.Background(), &archive, clusters, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if len(missing) != 2 {
		t.Fatalf("%+v", missing)
	}
	problems := ""
	for _, m := range missing { // a missing secret, a former log, and half a report
		if problems += strings.Join(m.Problems, "\n"); len(m.Problems) < 3 || m.All {
			t.Errorf("%+v", m)
		}
	}
	files := unpack(t, &archive)
	files["what Write returns"] = problems
	for _, secret := range s.all {
		forms := []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)),
			base64.RawURLEncoding.EncodeToString([]byte(secret)), hex.EncodeToString([]byte(secret))}
		for name, text := range files {
			for _, form := range forms {
				if i := strings.Index(text, form); i >= 0 {
					t.Errorf("%s has the secret %s: %s", name, form, text[max(0, i-80):i+len(form)])
				}
			}
		}
	}
	if len(s.all) < 70 {
		t.Errorf("%d secrets only", len(s.all))
	}
	for file, want := range map[string]string{
		"c1/kubelinks.yaml": publicKey, "c1/deployments.yaml": "10.250.0.0/16",
		"c1/logs/kubelink-1-kubelink.log": publicKey,
		"c1/secrets.yaml":                 "tls.key: REDACTED", "c1/cluster-dns.yaml": "key.example.",
		"admin@c-2/configmaps.yaml": "10.0.0.1",
		"c1/errors.txt":             "Secret other/missing, which KubeLink named names", "c1/pods.yaml": "restartCount: 1",
		"c1/events.yaml": "said ", "c1/report.json": "accessToken", "c1/configmaps.yaml": "BLOCK-AFTER",
		"admin@c-2/deployments.yaml": "NAME-STAYS", "admin@c-2/pods.yaml": "restartCount: 1",
	} {
		if !strings.Contains(files[file], want) {
			t.Errorf("%s has no %q:\n%s", file, want, files[file])
		}
	}
}

// A cluster whose API server is silent takes no time from the other ones.
func TestDeadCluster(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	silent := interceptor.NewClient(newTestClient(t).(client.WithWatch), interceptor.Funcs{
		List: func(ctx context.Context, _ client.WithWatch, _ client.ObjectList, _ ...client.ListOption) error {
			<-ctx.Done()
			return ctx.Err()
		}})
	live := interceptor.NewClient(newTestClient(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "NODE-1"}}).(client.WithWatch), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, o ...client.ListOption) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return c.List(ctx, l, o...)
		}})
	var archive bytes.Buffer
	missing, err := Write(ctx, &archive, []*Cluster{{Name: "dead", Namespace: "kubelink", Client: silent},
		{Name: "live", Namespace: "kubelink", Client: live}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if len(missing) != 2 || !missing[0].All || missing[0].Cluster != "dead" || missing[1].All ||
		!strings.Contains(missing[0].Problems[0], context.DeadlineExceeded.Error()) ||
		strings.Join(missing[1].Problems, "") != "ConfigMap kube-system/coredns: configmaps \"coredns\" not found"+
			"ConfigMap kube-system/coredns-custom: configmaps \"coredns-custom\" not found" {
		t.Errorf("%+v", missing)
	}
	files := unpack(t, &archive)
	if !strings.Contains(files["live/nodes.yaml"], "NODE-1") || !strings.Contains(files["dead/errors.txt"], "list Node") {
		t.Errorf("%v", files)
	}
}

// Short secrets are hidden by what fields and names tell, and as words of texts. What only looks alike stays.
func TestShortSecrets(t *testing.T) {
	in := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "kubelink", Name: name} }
	secret := &corev1.Secret{ObjectMeta: in("short"), Data: map[string][]byte{
		"one": []byte("~"), "two": []byte("q~"), "three": []byte("q~9\n"), "four": []byte("q~9x"), "five": []byte("q~9xZ"),
		"number": []byte("80"), "word": []byte("kube"), "url": []byte("http://u:~q@host"), "plain": []byte("true")}}
	config := &corev1.ConfigMap{ObjectMeta: in("short"), Data: map[string]string{
		"a": "q~", "b": "q~9\n", "c": "login with q~9x failed", "d": "password: ~q\nother: STAYS-1\n", "e": `{"token":~q}`,
		"f": "x --api-key ~q --name STAYS-2", "g": "cookie=~q&x=1", "h": "tsig {\n  secret key.example. ~q\n}\n",
		"i": "Authorization: Basic ~q", "j": "port 80 of kubelink", "k": `{"Authorization": "Bearer ~q"}`, "l": "(q~9xZ)",
		"m": "secret kubelink-tls\n  secret-manage-mode STAYS-3\n", "n": "ports 8080,80", "o": "auth: false",
	}}
	pod := &corev1.Pod{ObjectMeta: in("short")}
	pod.Spec.Containers = []corev1.Container{{Name: "c", Args: []string{"--x", "q~9", "--pin-token=~q"},
		Env: []corev1.EnvVar{{Name: "PIN", Value: "q~"}, {Name: "API_TOKEN", Value: "~"}, {Name: "MODE", Value: "true"}}}}
	logs := func(context.Context, *corev1.Pod, string, bool) ([]byte, error) {
		return []byte("tried q~9xZ, then q~9x.\nsecret=~q\nmode: true\n"), nil
	}
	var archive bytes.Buffer
	if _, err := Write(t.Context(), &archive, []*Cluster{{Name: "c", Namespace: "kubelink", Logs: logs,
		Client: newTestClient(t, secret, config, pod)}}, time.Now()); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, &archive)
	for name, text := range files {
		if i := strings.Index(text, "~"); i >= 0 {
			t.Errorf("%s has a secret: %s", name, text[max(0, i-60):i+2])
		}
	}
	all := files["c/configmaps.yaml"] + files["c/pods.yaml"] + files["c/logs/short-c.log"]
	for _, want := range []string{"STAYS-1", "STAYS-2", "secret-manage-mode STAYS-3", "port 80 of kubelink", "ports 8080,80",
		"auth: false", `value: "true"`, "tried REDACTED, then REDACTED.", "login with REDACTED failed", "mode: true"} {
		if !strings.Contains(all, want) {
			t.Errorf("there is no %q:\n%s", want, all)
		}
	}
}
