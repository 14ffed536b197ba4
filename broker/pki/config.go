// Package pki provides what this cluster authenticates itself with. That is a certificate, with the CA that it trusts:
// they come from files or from a TLS secret. The broker fills the secret itself, asks a certificate service to do so,
// or leaves it to the user. In mode wireguard it is a private key from a secret.
package pki

import (
	"log/slog"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mandelsoft/kubelink/broker/link"
)

// SecretManageMode says which party writes the TLS secret.
type SecretManageMode string

// The modes.
const (
	ManageNone SecretManageMode = "none" // the user
	ManageSelf SecretManageMode = "self" // the broker: CA and certificate
	ManageCert SecretManageMode = "cert" // the certificate service, on request by a Certificate object
)

// Config says where the certificate comes from. The zero value asks for no certificate.
type Config struct {
	WireGuard                 bool   // Secret has a private key instead of a certificate
	Namespace                 string // of Secret
	Secret                    string // name of the TLS secret
	CertFile, KeyFile, CAFile string // instead of Secret
	SecretManageMode          SecretManageMode
	DNSName                   string // name or IP address that the certificate must have
	SystemCAs                 bool   // the CAs of the system are trusted, and no other
}

// Title is how messages call what comes from the secret.
func (c Config) Title() string {
	if c.WireGuard {
		return "WireGuard key"
	}
	return "certificate"
}

// Configured tells whether links need a certificate.
func (c Config) Configured() bool { return c.Secret != "" || c.CertFile != "" }

// Location names the source of the certificate for messages.
func (c Config) Location() string {
	if c.Secret != "" {
		return "secret " + c.Namespace + "/" + c.Secret
	}
	return "certfile " + c.CertFile
}

// field is what users know a key of the secret by.
func (c Config) field(key string) string {
	if c.CertFile == "" {
		return key
	}
	return map[string]string{keyCert: "certfile", keyKey: "keyfile", keyCA: "cacertfile"}[key]
}

// LogUse logs which certificate or key is in use from now on; without any, nothing.
func (c Config) LogUse(credentials *link.Credentials, log *slog.Logger) {
	if c.WireGuard {
		log.Info("WireGuard key in use from now on", "source", c.Location(), "publicKey", credentials.PrivateKey.Public())
		return
	}
	leaf := credentials.Certificate.Leaf
	if leaf == nil {
		return
	}
	log.Info("certificate in use from now on", "source", c.Location(), "notAfter", leaf.NotAfter)
	if names := link.CertNames(leaf); slices.ContainsFunc(names, isWildcard) {
		log.Warn("this is a wildcard certificate: its owner can be every link whose endpoint the wildcard covers; "+
			"a certificate for the endpoint's host alone is safer", "source", c.Location(), "names", names)
	}
}

func isWildcard(name string) bool { return strings.HasPrefix(name, "*.") }

// CertificateRequest is the object that asks the certificate service to fill the secret
// (cert.gardener.cloud/v1alpha1).
func (c Config) CertificateRequest() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "cert.gardener.cloud/v1alpha1",
		"kind":       "Certificate",
		"metadata":   map[string]any{"namespace": c.Namespace, "name": c.Secret},
		"spec":       map[string]any{"commonName": c.DNSName, "secretName": c.Secret},
	}}
}
