package broker

// The certificate of the bridge: from the TLS secret, from files, or made here.

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Keys of the TLS secret.
const (
	keyCert  = corev1.TLSCertKey
	keyKey   = corev1.TLSPrivateKeyKey
	keyCA    = "ca.crt"
	keyCAKey = "ca.key"
)

const (
	certLife = 90 * 24 * time.Hour
	caLife   = 10 * 365 * 24 * time.Hour
)

// credentials is what the reconciler knows of the certificate.
type credentials struct {
	data    map[string][]byte // what is in use
	plain   bool              // none is wanted
	wanted  *corev1.Secret    // to be written
	request bool              // a Certificate object is wanted
	renewAt time.Time
}

// usable says whether links may be made.
func (c *credentials) usable() bool { return c.plain || c.data != nil }

// renewIn is the time until the certificate is to be renewed by us.
func (c *credentials) renewIn() time.Duration {
	if c.renewAt.IsZero() {
		return certLife
	}
	return max(time.Until(c.renewAt), time.Second)
}

// credentials reads the certificate and hands a new one to the bridge. What is unusable is
// reported, and the last usable one stays in use.
func (r *reconciler) credentials(ctx context.Context) error {
	b, cfg, c := r.b, &r.b.cfg, &r.b.creds
	c.wanted, c.request, c.renewAt = nil, false, time.Time{}
	if cfg.Mode != mesh.Bridge {
		c.plain, c.data = true, nil
		return nil
	}
	if !cfg.wantsCertificate() {
		if !c.plain {
			c.plain, c.data = true, nil
			b.bridge.SetCredentials(&link.Credentials{Unencrypted: true})
		}
		return nil
	}
	c.plain = false // even if it was: never go on in plain text
	data, err := r.certificateData(ctx)
	if err != nil {
		return err
	}
	if reflect.DeepEqual(data, c.data) {
		return nil
	}
	creds, err := parseCredentials(data)
	if err != nil {
		return fmt.Errorf("%s: %w", cfg.credentialSource(), err)
	}
	b.bridge.SetCredentials(creds)
	c.data = data
	b.log.Info("certificate in use from now on", "source", cfg.credentialSource(), "notAfter", creds.Certificate.Leaf.NotAfter)
	return nil
}

func (c *Config) credentialSource() string {
	if c.Secret != "" {
		return "secret " + c.Namespace + "/" + c.Secret
	}
	return "certfile " + c.CertFile
}

// certificateData reads files or secret; with secret-manage-mode self it says what to write.
func (r *reconciler) certificateData(ctx context.Context) (map[string][]byte, error) {
	cfg, c := &r.b.cfg, &r.b.creds
	if cfg.CertFile != "" {
		data := map[string][]byte{}
		for key, file := range map[string]string{keyCert: cfg.CertFile, keyKey: cfg.KeyFile, keyCA: cfg.CAFile} {
			if file == "" {
				continue
			}
			var err error
			if data[key], err = os.ReadFile(file); err != nil {
				return nil, err
			}
		}
		return data, nil
	}
	var secret corev1.Secret
	err := r.client.Get(ctx, types.NamespacedName{Namespace: cfg.Namespace, Name: cfg.Secret}, &secret)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	switch cfg.SecretManageMode {
	case ManageSelf:
		if err != nil {
			secret = corev1.Secret{Type: corev1.SecretTypeTLS}
			secret.Namespace, secret.Name = cfg.Namespace, cfg.Secret
		}
		changed, renewAt, err := manageSecret(&secret, cfg.DNSName, time.Now())
		c.renewAt = renewAt
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cfg.credentialSource(), err)
		}
		if changed {
			c.wanted = &secret
			if c.data == nil {
				return nil, fmt.Errorf("%s is being written", cfg.credentialSource())
			}
			return c.data, nil // until the new one is read back
		}
	case ManageCert:
		c.request = true
	}
	if err != nil {
		remedy := "create it with tls.crt, tls.key and ca.crt"
		if cfg.SecretManageMode == ManageCert {
			remedy = "waiting for the certificate service"
		}
		return nil, fmt.Errorf("%s does not exist: %s", cfg.credentialSource(), remedy)
	}
	return map[string][]byte{keyCert: secret.Data[keyCert], keyKey: secret.Data[keyKey], keyCA: secret.Data[keyCA]}, nil
}

// parseCredentials checks what the bridge gets.
func parseCredentials(data map[string][]byte) (*link.Credentials, error) {
	for _, key := range []string{keyCert, keyKey} {
		if len(data[key]) == 0 {
			return nil, fmt.Errorf("%s is missing", key)
		}
	}
	cert, err := tls.X509KeyPair(data[keyCert], data[keyKey])
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", keyCert, keyKey, err)
	}
	creds := &link.Credentials{Certificate: cert}
	if ca := data[keyCA]; len(ca) > 0 { // else the system's: a public certificate authority
		creds.Roots = x509.NewCertPool()
		if !creds.Roots.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s has no certificate in PEM form", keyCA)
		}
	}
	return creds, nil
}

// manageSecret makes secret hold a CA and a certificate of it for name, both with enough life
// left, and says whether it had to change something and when to look again. An existing ca.key
// signs, so that clusters which share it trust each other.
func manageSecret(secret *corev1.Secret, name string, now time.Time) (changed bool, renewAt time.Time, err error) {
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	ca, caKey, err := readPair(secret.Data[keyCA], secret.Data[keyCAKey])
	if err != nil {
		return false, time.Time{}, fmt.Errorf("%s and %s: %w", keyCA, keyCAKey, err)
	}
	if ca != nil && !ca.IsCA {
		return false, time.Time{}, fmt.Errorf("%s: the first certificate is no CA: put the CA that %s belongs to first", keyCA, keyCAKey)
	}
	if ca == nil || now.After(ca.NotAfter.Add(-caLife/10)) {
		// The same key signs the next CA, so certificates of the old one stay good.
		if caKey == nil {
			if caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
				return false, time.Time{}, err
			}
		}
		subject := pkix.Name{CommonName: "kubelink CA"}
		if ca != nil {
			subject = ca.Subject
		}
		if ca, err = sign(&x509.Certificate{
			Subject: subject, NotAfter: now.Add(caLife),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}, nil, caKey, caKey, now); err != nil {
			return false, time.Time{}, err
		}
		old := secret.Data[keyCA] // others may still trust by it, and it by others
		if err := writePair(secret, keyCA, keyCAKey, ca, caKey); err != nil {
			return false, time.Time{}, err
		}
		secret.Data[keyCA] = append(secret.Data[keyCA], old...)
		changed = true
	}

	roots := x509.NewCertPool()
	roots.AddCert(ca)
	cert, _, err := readPair(secret.Data[keyCert], secret.Data[keyKey])
	good := err == nil && cert != nil && cert.VerifyHostname(name) == nil && now.Before(renewal(cert))
	if good {
		_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		good = err == nil
	}
	if !good {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return false, time.Time{}, err
		}
		t := &x509.Certificate{
			Subject: pkix.Name{CommonName: name}, NotAfter: now.Add(certLife),
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if len(name) > 64 { // the longest common name (RFC 5280); the alternative name counts anyway
			t.Subject.CommonName = "kubelink"
		}
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = []net.IP{ip}
		} else {
			t.DNSNames = []string{name}
		}
		if t.NotAfter.After(ca.NotAfter) {
			t.NotAfter = ca.NotAfter
		}
		if cert, err = sign(t, ca, key, caKey, now); err != nil {
			return false, time.Time{}, err
		}
		if err := writePair(secret, keyCert, keyKey, cert, key); err != nil {
			return false, time.Time{}, err
		}
		changed = true
	}
	return changed, renewal(cert), nil
}

// renewal is when two thirds of a certificate's life are over.
func renewal(c *x509.Certificate) time.Time {
	return c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 3)
}

// sign makes a certificate for key; without parent it signs itself.
func sign(t, parent *x509.Certificate, key, parentKey crypto.Signer, now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	t.SerialNumber, t.NotBefore = serial, now.Add(-time.Hour) // clocks differ
	if parent == nil {
		parent = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), parentKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// readPair reads certificate and key; both may be absent.
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

func writePair(secret *corev1.Secret, certField, keyField string, cert *x509.Certificate, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	secret.Data[certField] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	secret.Data[keyField] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return nil
}

// certificate is the request to the certificate service (cert.gardener.cloud/v1alpha1).
func (c *Config) certificate() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "cert.gardener.cloud/v1alpha1",
		"kind":       "Certificate",
		"metadata":   map[string]any{"namespace": c.Namespace, "name": c.Secret},
		"spec":       map[string]any{"commonName": c.DNSName, "secretName": c.Secret},
	}}
}

// watchFiles wakes the reconciler when one of the files changes. It watches their folders, as
// files are replaced, and mounted secrets are switched by a link beside them.
func watchFiles(wake func(), files ...string) manager.RunnableFunc {
	// Without watches (a node may be out of them) the resync reads the files: no reason to end.
	return func(ctx context.Context) error {
		w, err := fsnotify.NewWatcher()
		if err != nil {
			slog.Warn("cannot watch the certificate files; they are read every "+resync.String(), "plugin", "kubelink", "error", err)
			return nil
		}
		defer w.Close()
		for _, f := range files {
			if f == "" {
				continue
			}
			if err := w.Add(filepath.Dir(f)); err != nil {
				slog.Warn("cannot watch the certificate files; they are read every "+resync.String(), "plugin", "kubelink", "folder", filepath.Dir(f), "error", err)
			}
		}
		for {
			wake()
			select {
			case <-ctx.Done():
				return nil
			case <-w.Events:
			case err := <-w.Errors:
				slog.Warn("changes of the certificate files were lost; reading them now", "plugin", "kubelink", "error", err)
			}
		}
	}
}
