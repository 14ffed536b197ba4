package pki

// secret-manage-mode self: the broker makes CA and certificate and renews both in time.

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/mandelsoft/kubelink/broker/link"
)

const (
	leafLife = 90 * 24 * time.Hour
	caLife   = 10 * 365 * 24 * time.Hour
	// maxCommonName is the longest common name (RFC 5280, appendix A.1: ub-common-name).
	maxCommonName = 64
)

// authority is a CA with the key that signs.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// ManageSecret makes secret hold a CA and a certificate of that CA for name, both with enough life left. It returns
// whether it has changed the secret and when to look again. An existing ca.key signs, so that clusters which share it
// trust each other.
func ManageSecret(secret *corev1.Secret, name string, now time.Time) (changed bool, renewAt time.Time, err error) {
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	ca, err := readAuthority(secret)
	if err != nil {
		return false, time.Time{}, err
	}
	if ca.expires(now) {
		if ca, err = renewAuthority(secret, ca, now); err != nil {
			return false, time.Time{}, err
		}
		changed = true
	}
	leaf := readLeaf(secret)
	if !ca.accepts(leaf, name, now) {
		if leaf, err = renewLeaf(secret, ca, name, now); err != nil {
			return false, time.Time{}, err
		}
		changed = true
	}
	return changed, renewTime(leaf), nil
}

// readAuthority reads the CA of the secret. An empty secret has the zero authority.
func readAuthority(secret *corev1.Secret) (ca authority, err error) {
	if _, err = link.ParseBundle(secret.Data[keyCA]); err != nil {
		return authority{}, fmt.Errorf("%s: %w", keyCA, err)
	}
	if ca.cert, ca.key, err = readPair(secret.Data[keyCA], secret.Data[keyCAKey]); err != nil {
		return authority{}, fmt.Errorf("%s and %s: %w", keyCA, keyCAKey, err)
	}
	if ca.cert != nil && !ca.cert.IsCA {
		return authority{}, fmt.Errorf("%s: the first certificate is no CA: put the CA that %s belongs to first",
			keyCA, keyCAKey)
	}
	return ca, nil
}

// expires tells whether a tenth of the CA's life is left, or it was never made.
func (ca authority) expires(now time.Time) bool {
	return ca.cert == nil || now.After(ca.cert.NotAfter.Add(-caLife/10))
}

// renewAuthority puts a new CA before the old one. The same key signs the next CA, so certificates of the old one
// stay good. The old CA stays in the list: peers may still trust by it, and this end must trust peers by it.
func renewAuthority(secret *corev1.Secret, old authority, now time.Time) (ca authority, err error) {
	ca.key = old.key
	if ca.key == nil {
		if ca.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return authority{}, err
		}
	}
	subject := pkix.Name{CommonName: "kubelink CA"}
	if old.cert != nil {
		subject = old.cert.Subject
	}
	if ca.cert, err = signCertificate(&x509.Certificate{
		Subject: subject, NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil, ca.key, ca.key, now); err != nil {
		return authority{}, err
	}
	list := secret.Data[keyCA]
	if err := writePair(secret, keyCA, keyCAKey, ca.cert, ca.key); err != nil {
		return authority{}, err
	}
	secret.Data[keyCA] = append(secret.Data[keyCA], list...)
	return ca, nil
}

// readLeaf returns the certificate of the secret; nil if there is none with a key.
func readLeaf(secret *corev1.Secret) *x509.Certificate {
	leaf, _, err := readPair(secret.Data[keyCert], secret.Data[keyKey])
	if err != nil {
		return nil
	}
	return leaf
}

// accepts tells whether the certificate is for the name, of this CA, and young enough.
func (ca authority) accepts(leaf *x509.Certificate, name string, now time.Time) bool {
	if leaf == nil || leaf.VerifyHostname(name) != nil || !now.Before(renewTime(leaf)) {
		return false
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err == nil
}

// renewLeaf writes a new certificate with a new key to the secret.
func renewLeaf(secret *corev1.Secret, ca authority, name string, now time.Time) (*x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotAfter: now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if len(name) > maxCommonName { // peers look at the alternative name anyway
		t.Subject.CommonName = "kubelink"
	}
	if ip := net.ParseIP(name); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else {
		t.DNSNames = []string{name}
	}
	if t.NotAfter.After(ca.cert.NotAfter) {
		t.NotAfter = ca.cert.NotAfter
	}
	leaf, err := signCertificate(t, ca.cert, key, ca.key, now)
	if err != nil {
		return nil, err
	}
	return leaf, writePair(secret, keyCert, keyKey, leaf, key)
}

// renewTime is when two thirds of a certificate's life are over.
func renewTime(c *x509.Certificate) time.Time {
	return c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 3)
}

// signCertificate makes a certificate for key. Without parent it signs itself.
func signCertificate(
	t, parent *x509.Certificate, key, parentKey crypto.Signer, now time.Time,
) (*x509.Certificate, error) {
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
