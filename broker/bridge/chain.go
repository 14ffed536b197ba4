package bridge

// The certificates of a peer that is not authenticated yet: how many of them this end looks at, and how it verifies
// them. All work is bounded: everybody who reaches the port can have it done.

import (
	"crypto/x509"
	"fmt"
	"slices"
)

const (
	maxCerts     = 5        // that a peer sends, its own included,
	maxCertBytes = 16 << 10 // and their size
	maxCertNames = 100      // of one certificate; public authorities issue no more either

	// maxHandshakeBytes is what a peer sends until it is authenticated: its certificates, and the rest of the handshake.
	maxHandshakeBytes = maxCertBytes + 8<<10
)

var errHandshakeTooLong = fmt.Errorf("more than %d bytes before the end of the handshake: send at most %d certificates "+
	"with %d bytes, and no root certificate", maxHandshakeBytes, maxCerts, maxCertBytes)

// checkCerts refuses certificates that are too many or too large, before anything else looks at them.
func checkCerts(certs []*x509.Certificate, remote string) error {
	size := 0
	for _, c := range certs {
		size += len(c.Raw)
	}
	switch names := len(certs[0].DNSNames) + len(certs[0].IPAddresses); {
	case len(certs) > maxCerts:
		return newRefusal(RefusedCertificate, "%s sends %d certificates, at most %d are accepted: "+
			"its tls.crt may have its own certificate and those of the authorities below the root", remote, len(certs), maxCerts)
	case size > maxCertBytes:
		return newRefusal(RefusedCertificate, "%s sends certificates of %d bytes, at most %d are accepted: "+
			"its tls.crt may have its own certificate and those of the authorities below the root", remote, size, maxCertBytes)
	case names > maxCertNames:
		return newRefusal(RefusedCertificate, "certificate of %s has %d names, at most %d are accepted",
			remote, names, maxCertNames)
	}
	return nil
}

// verifyChain verifies the certificates that a peer has sent, its own first, against roots; nil: the system's. Each
// signature is checked with a key that leads to the roots itself: from the roots down, and never with a key that a
// stranger has made, which may be as slow as he likes.
func verifyChain(certs []*x509.Certificate, roots *x509.CertPool) error {
	trusted := x509.VerifyOptions{
		Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	rest := slices.Clone(certs[1:])
	for found := true; found; {
		found = false
		for i := len(rest) - 1; i >= 0; i-- { // the usual order begins below the root
			if c := rest[i]; c.IsCA {
				if _, err := c.Verify(trusted); err != nil {
					continue
				}
				trusted.Intermediates.AddCert(c)
				found = true
			}
			rest = slices.Delete(rest, i, i+1)
		}
	}
	_, err := certs[0].Verify(trusted)
	if err == nil {
		return nil
	}
	for _, c := range rest { // it may be the reason
		if string(c.RawSubject) == string(certs[0].RawIssuer) {
			if _, invalid := c.Verify(trusted); isExpired(invalid) {
				return invalid
			}
		}
	}
	return err
}
