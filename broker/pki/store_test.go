package pki

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/link"
)

// secretReader has one secret; nil: none.
type secretReader struct {
	client.Reader
	secret *corev1.Secret
	err    error
}

func (r *secretReader) Get(_ context.Context, key client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	if r.err != nil {
		return r.err
	}
	if r.secret == nil || client.ObjectKeyFromObject(r.secret) != key {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, key.Name)
	}
	r.secret.DeepCopyInto(o.(*corev1.Secret))
	return nil
}

func refresh(t *testing.T, s *Store, r *secretReader, cfg Config, says string) *link.Credentials {
	t.Helper()
	credentials, err := s.Refresh(t.Context(), r, cfg)
	if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
		t.Fatalf("error %v, want %q", err, says)
	}
	return credentials
}

// With mode self an absent secret is made, used when it can be read, and stays in use when it is gone.
func TestRefreshSelf(t *testing.T) {
	cfg := Config{Namespace: "kube-system", Secret: "tls", SecretManageMode: ManageSelf, DNSName: "a.example"}
	s, r := &Store{}, &secretReader{}
	if refresh(t, s, r, cfg, "secret kube-system/tls is being written"); s.Usable() || !s.Making() {
		t.Fatalf("usable %v, to be written: %v", s.Usable(), s.Secret)
	}
	r.secret = s.Secret
	if c := refresh(t, s, r, cfg, ""); c == nil || c.Unencrypted || !s.Usable() || s.Secret != nil {
		t.Errorf("%v, usable %v, to be written: %v", c, s.Usable(), s.Secret)
	}
	if in := s.RenewIn(); in < leafLife/2 || in > leafLife {
		t.Errorf("to be renewed in %s", in)
	}
	if c := refresh(t, s, r, cfg, ""); c != nil {
		t.Error("the same credentials are told again")
	}
	// A new CA would cut this cluster off from its peers, which trust the one in use.
	for _, lost := range []*corev1.Secret{nil, {ObjectMeta: r.secret.ObjectMeta}} {
		r.secret = lost
		if c := refresh(t, s, r, cfg, "no ca.crt and ca.key any more"); c != nil || !s.Usable() || s.Secret != nil {
			t.Errorf("%v, usable %v, to be written: %v", c, s.Usable(), s.Secret)
		}
	}
	cfg.DNSName = "b.example" // with another configuration, the user has decided
	if c := refresh(t, s, r, cfg, ""); c != nil || s.Secret == nil {
		t.Errorf("%v, to be written: %v", c, s.Secret)
	}
}

// With mode self a CA that stands in the secret instead of another one is used, and one in a bundle that cannot be read
// is not.
func TestRefreshSelfBundle(t *testing.T) {
	cfg := Config{Namespace: "kube-system", Secret: "tls", SecretManageMode: ManageSelf, DNSName: "a.example"}
	s, r := &Store{}, &secretReader{}
	refresh(t, s, r, cfg, "is being written")
	r.secret = s.Secret
	refresh(t, s, r, cfg, "")
	mine, other := r.secret.Data[keyCA], newContent(t, "b.example", time.Now())
	r.secret.Data[keyCA] = join(cut(mine), other[keyCA])
	if c := refresh(t, s, r, cfg, "ca.crt: block 2 begins in the middle of a line"); c != nil || !s.Usable() {
		t.Errorf("%v, usable %v", c, s.Usable())
	}
	r.secret.Data[keyCA] = join(mine, other[keyCA])
	if c := refresh(t, s, r, cfg, ""); c == nil {
		t.Error("the bundle is not used")
	}
	r.secret.Data[keyCA], r.secret.Data[keyCAKey] = other[keyCA], other[keyCAKey]
	refresh(t, s, r, cfg, "") // a certificate of the other CA is being written
	r.secret = s.Secret
	if c := refresh(t, s, r, cfg, ""); c == nil {
		t.Error("the other CA is not used")
	}
}

func TestRefreshSecret(t *testing.T) {
	good := &corev1.Secret{}
	good.Namespace, good.Name = "kube-system", "tls"
	manage(t, good, "a.example", time.Now())
	bad := good.DeepCopy()
	bad.Data[keyCA] = []byte("x")
	for _, c := range []struct {
		mode          SecretManageMode
		secret        *corev1.Secret
		says          string
		request       bool
		fresh, usable bool // after the good secret was in use: usable anyway
	}{
		{ManageNone, nil, "create it with tls.crt", false, false, false},
		{ManageNone, good, "", false, true, true},
		{ManageNone, bad, "secret kube-system/tls: ca.crt", false, false, false},
		{ManageCert, bad, "secret kube-system/tls: ca.crt", true, false, false},
		{ManageCert, nil, "waiting for the certificate service", true, false, false},
		{ManageCert, good, "", true, true, true},
	} {
		cfg := Config{Namespace: "kube-system", Secret: "tls", SecretManageMode: c.mode}
		s := &Store{}
		got := refresh(t, s, &secretReader{secret: c.secret}, cfg, c.says)
		if (got != nil) != c.fresh || s.Usable() != c.usable || s.Request != c.request || s.Secret != nil {
			t.Errorf("%s: %v, %+v", c.mode, got, s)
		}
		refresh(t, s, &secretReader{secret: good}, cfg, "")
		if refresh(t, s, &secretReader{secret: c.secret}, cfg, c.says); !s.Usable() || s.RenewIn() != leafLife {
			t.Errorf("%s: what was in use is not any more: %+v", c.mode, s)
		}
	}
	unavailable := &secretReader{err: apierrors.NewServiceUnavailable("down")}
	refresh(t, &Store{}, unavailable, Config{Secret: "tls", SecretManageMode: ManageSelf}, "down")
}

func TestRefreshFiles(t *testing.T) {
	good := &corev1.Secret{}
	manage(t, good, "a.example", time.Now())
	dir := t.TempDir()
	file := func(key string) string { return filepath.Join(dir, key) }
	cfg := Config{CertFile: file(keyCert), KeyFile: file(keyKey), CAFile: file(keyCA)}
	s := &Store{}
	refresh(t, s, nil, cfg, "no such file")
	for _, key := range []string{keyCert, keyKey, keyCA} {
		if err := os.WriteFile(file(key), good.Data[key], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c := refresh(t, s, nil, cfg, ""); c == nil || c.Roots == nil {
		t.Errorf("%+v", c)
	}
	if err := os.WriteFile(file(keyCA), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if c := refresh(t, s, nil, cfg, "cacertfile is missing or empty"); c != nil || !s.Usable() {
		t.Errorf("%+v", c)
	}
	if err := os.Remove(file(keyKey)); err != nil {
		t.Fatal(err)
	}
	if refresh(t, s, nil, cfg, "no such file"); !s.Usable() {
		t.Error("what was in use is not any more")
	}
}

// What replaces something good must be good: else that stays, the error says until when, and another dataplane gets it.
func TestRefreshKeepsWhatIsGood(t *testing.T) {
	cfg := Config{Secret: "tls", DNSName: "a.example"}
	secret := &corev1.Secret{}
	secret.Name, secret.Data = "tls", newContent(t, "a.example", time.Now())
	s, r := &Store{}, &secretReader{secret: secret.DeepCopy()}
	used := refresh(t, s, r, cfg, "")
	until := "stays so, it is valid until " + formatTime(used.Certificate.Leaf.NotAfter)
	r.secret.Data[keyCA] = nil
	refresh(t, s, r, cfg, until)
	s.Retell()
	if c := refresh(t, s, r, cfg, until); c != used {
		t.Errorf("told %v", c)
	}
	if c := refresh(t, s, r, cfg, until); c != nil {
		t.Errorf("told %v again", c)
	}
	r.secret = secret.DeepCopy()
	if c := refresh(t, s, r, cfg, ""); c != nil {
		t.Errorf("told %v again", c)
	}
	cfg.DNSName = "b.example"
	refresh(t, s, r, cfg, "not dns-name b.example; the certificate in use stays so")

	// The certificate in use expires, and then something else is wrong, too.
	cfg.DNSName = "a.example"
	s.until = time.Now().Add(-time.Hour)
	refresh(t, s, r, cfg, "secret /tls: the certificate, or the CA that signed it, expired at ")
	r.secret.Data[keyCA] = nil
	refresh(t, s, r, cfg, "; the certificate in use expired at ")
	if !s.Usable() {
		t.Error("not usable") // peers decide
	}
}

// Plain text ends with the configuration that asks for it, even if the certificate is missing.
func TestRefreshUnencrypted(t *testing.T) {
	s := &Store{}
	if s.Usable() {
		t.Error("nothing was asked for yet")
	}
	if c := refresh(t, s, nil, Config{}, ""); c == nil || !c.Unencrypted || !s.Unencrypted() || !s.Usable() {
		t.Errorf("%+v, %+v", c, s)
	}
	if c := refresh(t, s, nil, Config{}, ""); c != nil {
		t.Error("told again")
	}
	refresh(t, s, &secretReader{}, Config{Secret: "tls"}, "does not exist")
	if s.Unencrypted() || s.Usable() {
		t.Errorf("%+v", s)
	}
}

func TestWatchFiles(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{CertFile: filepath.Join(dir, "tls.crt")}
	ctx, stop := context.WithCancel(t.Context())
	woken, done := make(chan struct{}, 100), make(chan struct{})
	go func() {
		defer close(done)
		cfg.WatchFiles(ctx, func() { woken <- struct{}{} }, time.Minute, nil)
	}()
	<-woken // it watches
	if err := os.WriteFile(cfg.CertFile, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	<-woken
	stop()
	<-done
}
