package bridge

// The certificates of a peer that is not authenticated yet: how many of them this end looks at. All work is bounded:
// everybody who reaches the port can have it done.

import (
	"crypto/x509"
	"fmt"
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
