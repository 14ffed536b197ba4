package testbed

// This file issues certificates for the control planes and for the brokers of the tests.

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

// CA is a certificate authority.
type CA struct {
	PEM    []byte // the certificate
	KeyPEM []byte // its private key, PKCS #8

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a self-signed certificate authority.
func NewCA(name string) (*CA, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	template := newTemplate(name)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("create CA %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{PEM: encodePEM("CERTIFICATE", der), KeyPEM: keyPEM, cert: cert, key: key}, nil
}

// Issue makes a certificate for server and client use. Its common name is the first name, its subject alternative
// names are all of them and the addresses. Each edit may change the template before it is signed.
func (ca *CA) Issue(
	names []string, addrs []netip.Addr, edits ...func(*x509.Certificate),
) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template := newTemplate("")
	template.DNSNames = names
	if len(names) > 0 {
		template.Subject.CommonName = names[0]
	}
	for _, a := range addrs {
		template.IPAddresses = append(template.IPAddresses, a.AsSlice())
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, edit := range edits {
		edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("issue certificate for %v %v: %w", names, addrs, err)
	}
	return encodePEM("CERTIFICATE", der), keyPEM, nil
}

// issueUser makes a client certificate as Kubernetes reads it: user and groups.
func (ca *CA) issueUser(user string, groups ...string) (certPEM, keyPEM []byte, err error) {
	return ca.Issue(nil, nil, func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: user, Organization: groups} })
}

// TLSSecret creates or replaces a secret with the keys tls.crt, tls.key and ca.crt.
func (c *Cluster) TLSSecret(ctx context.Context, namespace, name string, certPEM, keyPEM, caPEM []byte) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	_, err := controllerutil.CreateOrUpdate(ctx, c.Client, secret, func() error {
		secret.Type = corev1.SecretTypeTLS
		secret.Data = map[string][]byte{"tls.crt": certPEM, "tls.key": keyPEM, "ca.crt": caPEM}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: write secret %s/%s: %w", c.Name, namespace, name, err)
	}
	return nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return key, encodePEM("PRIVATE KEY", der), nil
}

func newTemplate(name string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
