package pki

// The content of a TLS secret: its keys, and pairs of certificate and key in PEM form.

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"

	corev1 "k8s.io/api/core/v1"
)

// Keys of the TLS secret.
const (
	keyCert  = corev1.TLSCertKey
	keyKey   = corev1.TLSPrivateKeyKey
	keyCA    = "ca.crt"
	keyCAKey = "ca.key" // for certificates that the broker makes itself
)

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
