package pki

// The content of a TLS secret: keys, PEM, credentials.

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/mandelsoft/kubelink/broker/link"
)

// Keys of the TLS secret.
const (
	keyCert  = corev1.TLSCertKey
	keyKey   = corev1.TLSPrivateKeyKey
	keyCA    = "ca.crt"
	keyCAKey = "ca.key" // for certificates that the broker makes itself
)

// Parse makes credentials of the content of a TLS secret: tls.crt, tls.key and ca.crt in PEM form. Without ca.crt the
// system's roots are trusted.
func Parse(data map[string][]byte) (*link.Credentials, error) {
	for _, key := range []string{keyCert, keyKey} {
		if len(data[key]) == 0 {
			return nil, fmt.Errorf("%s is missing", key)
		}
	}
	cert, err := tls.X509KeyPair(data[keyCert], data[keyKey])
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", keyCert, keyKey, err)
	}
	credentials := &link.Credentials{Certificate: cert}
	if ca := data[keyCA]; len(ca) > 0 { // else the certificate is of a public certificate authority
		credentials.Roots = x509.NewCertPool()
		if !credentials.Roots.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s has no certificate in PEM form", keyCA)
		}
	}
	return credentials, nil
}

// readPair reads certificate and key. If both are absent the certificate is nil.
func readPair(cert, key []byte) (*x509.Certificate, crypto.Signer, error) {
	switch {
	case len(cert) == 0 && len(key) == 0:
		return nil, nil, nil
	case len(key) == 0:
		return nil, nil, errors.New("the certificate is there, its key is not: add it, or remove both")
	case len(cert) == 0:
		return nil, nil, errors.New("the key is there, its certificate is not: add it, or remove both")
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, nil, err
	}
	return pair.Leaf, pair.PrivateKey.(crypto.Signer), nil // X509KeyPair knows no other keys
}

// writePair stores certificate and key in PEM form.
func writePair(secret *corev1.Secret, certField, keyField string, cert *x509.Certificate, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	secret.Data[certField] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	secret.Data[keyField] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return nil
}
