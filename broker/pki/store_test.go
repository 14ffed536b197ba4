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
	if refresh(t, s, r, cfg, "secret kube-system/tls is being written"); s.Usable() || s.Secret == nil {
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
	r.secret = nil
	if c := refresh(t, s, r, cfg, ""); c != nil || !s.Usable() || s.Secret == nil {
		t.Errorf("%v, usable %v, to be written: %v", c, s.Usable(), s.Secret)
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
	cfg.CAFile = ""
	if c := refresh(t, s, nil, cfg, ""); c == nil || c.Roots != nil {
		t.Errorf("%+v", c)
	}
	if err := os.Remove(file(keyKey)); err != nil {
		t.Fatal(err)
	}
	if refresh(t, s, nil, cfg, "no such file"); !s.Usable() {
		t.Error("what was in use is not any more")
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
