package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

var day0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func manage(t *testing.T, s *corev1.Secret, name string, now time.Time) (changed bool) {
	t.Helper()
	changed, _, err := ManageSecret(s, name, now)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func first(t *testing.T, s *corev1.Secret, key string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(s.Data[key])
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestManageSecret(t *testing.T) {
	s := &corev1.Secret{}
	if !manage(t, s, "a.example", day0) {
		t.Error("an empty secret is filled")
	}
	if _, _, err := (candidate{Config: Config{DNSName: "a.example"}, data: s.Data}).judge(day0); err != nil {
		t.Error(err)
	}
	if manage(t, s, "a.example", day0.Add(leafLife/2)) {
		t.Error("half its life is no reason to renew")
	}
	ca := s.Data[keyCA]
	old := first(t, s, keyCert)
	if !manage(t, s, "a.example", day0.Add(leafLife*3/4)) || !bytes.Equal(ca, s.Data[keyCA]) {
		t.Error("at three quarters the certificate, not the CA, is renewed")
	}
	if !manage(t, s, "10.0.0.1", day0.Add(leafLife*3/4)) || len(first(t, s, keyCert).IPAddresses) != 1 {
		t.Error("another name needs another certificate; an address becomes an IP SAN")
	}
	late := day0.Add(caLife - 100*24*time.Hour)
	if !manage(t, s, "a.example", late) {
		t.Error("the CA is renewed before its end")
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.Data[keyCA])
	anyUse := x509.VerifyOptions{Roots: roots, CurrentTime: day0, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if _, err := old.Verify(anyUse); err != nil {
		t.Error("certificates of the old CA stay good:", err)
	}
}

// Two clusters that start with the same CA trust each other, whatever kind of key it has.
func TestManageSecretSharedRSACA(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "shared"}, NotAfter: day0.Add(caLife), IsCA: true, BasicConstraintsValid: true,
	}
	ca, err := signCertificate(template, nil, key, key, day0)
	if err != nil {
		t.Fatal(err)
	}
	a, b := &corev1.Secret{Data: map[string][]byte{}}, &corev1.Secret{Data: map[string][]byte{}}
	for name, s := range map[string]*corev1.Secret{"a.example": a, "b.example": b} {
		if err := writePair(s, keyCA, keyCAKey, ca, key); err != nil {
			t.Fatal(err)
		}
		manage(t, s, name, day0)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.Data[keyCA])
	options := x509.VerifyOptions{Roots: roots, CurrentTime: day0, DNSName: "b.example"}
	if _, err := first(t, b, keyCert).Verify(options); err != nil {
		t.Error(err)
	}
}

func TestManageSecretRefuses(t *testing.T) {
	good := &corev1.Secret{}
	manage(t, good, "a.example", day0)
	for _, c := range []struct {
		name string
		data map[string][]byte
		says string
	}{
		{"no key", map[string][]byte{keyCA: good.Data[keyCA]}, "its key is not"},
		{"no certificate", map[string][]byte{keyCAKey: good.Data[keyCAKey]}, "its certificate is not"},
		{"not a CA", map[string][]byte{keyCA: good.Data[keyCert], keyCAKey: good.Data[keyKey]}, "no CA"},
		{"not a pair", map[string][]byte{keyCA: good.Data[keyCA], keyCAKey: good.Data[keyKey]}, "ca.key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := ManageSecret(&corev1.Secret{Data: c.data}, "a.example", day0)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Error(err)
			}
		})
	}
}
