package pki

// Whether credentials may be used, and so replace the ones in use. What replaces something good must be good: else the
// broker goes on with what it has, and tells why.

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// candidate is the content of a TLS secret, tls.crt, tls.key and ca.crt in PEM form, that may come into use.
type candidate struct {
	Config
	data map[string][]byte
	used map[string][]byte // the content in use; nil: none
}

// judge accepts the candidate if all of the text can be read, key and certificate belong together, and a peer with the
// same CA would accept the certificate now. The result is valid until a certificate of its chain expires.
func (c candidate) judge(now time.Time) (credentials *link.Credentials, until time.Time, err error) {
	pair, chain, err := c.readCertificate()
	if err != nil {
		return nil, until, err
	}
	credentials = &link.Credentials{Certificate: pair}
	if !c.SystemCAs {
		if credentials.Roots, err = c.readRoots(); err != nil {
			return nil, until, err
		}
	}
	leaf, crt := chain[0], c.field(keyCert)
	switch {
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		return nil, until, fmt.Errorf("%s is %s, or the clock is wrong", crt, describeValidity(leaf))
	case c.DNSName != "" && !link.CertCovers(leaf, c.DNSName):
		names := strings.Join(link.CertNames(leaf), " ")
		return nil, until, fmt.Errorf("%s names %.200q, not dns-name %s", crt, names, c.DNSName)
	}
	if err := link.CheckBounds(chain); err != nil { // peers would refuse it
		return nil, until, fmt.Errorf("%s has %w", crt, err)
	}
	if until, err = link.VerifyChain(chain, credentials.Roots, now); err != nil {
		return nil, until, c.explainChain(leaf, err)
	}
	return credentials, until, nil
}

// readCertificate reads tls.crt and tls.key. chain is what peers get: the certificate, and authorities that signed.
func (c candidate) readCertificate() (pair tls.Certificate, chain []*x509.Certificate, err error) {
	for _, key := range []string{keyCert, keyKey} {
		if len(c.data[key]) == 0 {
			return pair, nil, fmt.Errorf("%s is missing", c.field(key))
		}
	}
	if chain, err = link.ParseChain(c.data[keyCert]); err != nil {
		return pair, nil, fmt.Errorf("%s: %w", c.field(keyCert), err)
	}
	if pair, err = tls.X509KeyPair(c.data[keyCert], c.data[keyKey]); err != nil {
		return pair, nil, fmt.Errorf("%s and %s: %w", c.field(keyCert), c.field(keyKey), err)
	}
	return pair, chain, nil
}

// readRoots reads ca.crt. A CA that is missing never means that other ones are trusted.
func (c candidate) readRoots() (*x509.CertPool, error) {
	certs, err := link.ParseBundle(c.data[keyCA])
	bundle := c.field(keyCA)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", bundle, err)
	case len(certs) == 0 && len(c.data[keyCA]) == 0:
		return nil, fmt.Errorf("%s is missing or empty: add the CA of the peers; "+
			"if their certificates are of public CAs, set trust-system-cas", bundle)
	case len(certs) == 0:
		return nil, fmt.Errorf("%s has no certificate in PEM form: add the CA of the peers", bundle)
	}
	roots := x509.NewCertPool()
	for i, cert := range certs {
		if err := checkAuthority(cert); err != nil {
			return nil, fmt.Errorf("%s: block %d, %.100q, %w", bundle, i+1, cert.Subject.String(), err)
		}
		roots.AddCert(cert)
	}
	isCA := func(c *x509.Certificate) bool { return c.IsCA }
	before, _ := link.ParseBundle(c.used[keyCA])
	if slices.ContainsFunc(before, isCA) && !slices.ContainsFunc(certs, isCA) {
		return nil, fmt.Errorf("%s has no CA any more, only a certificate that signs itself: add the CA of the peers", bundle)
	}
	return roots, nil
}

// checkAuthority tells whether a certificate can be in ca.crt: as a CA, or as a certificate that signs itself, which is
// then trusted alone.
func checkAuthority(cert *x509.Certificate) error {
	selfIssued := slices.Equal(cert.RawSubject, cert.RawIssuer)
	otherKey := len(cert.AuthorityKeyId) > 0 && !slices.Equal(cert.AuthorityKeyId, cert.SubjectKeyId)
	switch {
	case !selfIssued && !cert.IsCA:
		return errors.New("is not a CA: remove it, or add the CA that signed it instead")
	case !selfIssued || otherKey: // another CA signed it, or its own former key did
		return nil
	}
	err := checkOwnSignature(cert)
	if _, old := errors.AsType[x509.InsecureAlgorithmError](err); err == nil || old { // roots are not trusted by it
		return nil
	}
	return fmt.Errorf("is damaged, copy it anew: %w", err)
}

// checkOwnSignature tells whether a certificate signs itself.
func checkOwnSignature(cert *x509.Certificate) error {
	return cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature)
}

// explainChain says why peers would not accept the certificate. The text is the same each time: that of crypto/x509
// includes the current time.
func (c candidate) explainChain(leaf *x509.Certificate, err error) error {
	crt, by := c.field(keyCert), "a CA in "+c.field(keyCA)+": add the CA that signed it"
	if c.SystemCAs {
		by = "a public CA that this system knows (trust-system-cas): use another certificate, or set the CA"
	}
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case link.IsExpired(err):
		return fmt.Errorf("the CA %.100q, which signed for %s, is %s, or the clock is wrong",
			invalid.Cert.Subject.String(), crt, describeValidity(invalid.Cert))
	case ok && invalid.Reason == x509.IncompatibleUsage:
		return fmt.Errorf("%s, or a CA that signed for it, is neither for servers nor for clients "+
			"(extended key usage)", crt)
	case checkOwnSignature(leaf) == nil:
		return fmt.Errorf("%s signs itself, and is not signed by %s", crt, by)
	}
	return fmt.Errorf("%s is not signed by %s (%w)", crt, by, err)
}

// describeValidity says from when to when a certificate is valid.
func describeValidity(c *x509.Certificate) string {
	return fmt.Sprintf("valid from %s to %s only", formatTime(c.NotBefore), formatTime(c.NotAfter))
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }
