package link

// The bounds of what an end looks at of a peer that is not authenticated yet: every host that reaches the port can have
// that work done.

import (
	"crypto/x509"
	"fmt"
)

// The bounds of the certificates that an end sends: its own, and those of authorities below the root.
const (
	MaxCerts     = 5
	MaxCertBytes = 16 << 10 // in DER form
	MaxCertNames = 100      // DNS names and IP addresses of its own certificate; public authorities issue no more either
)

// CheckBounds tells why certificates that an end sends, its own first, are too many or too large.
func CheckBounds(certs []*x509.Certificate) error {
	size := 0
	for _, c := range certs {
		size += len(c.Raw)
	}
	const remedy = "tls.crt needs the own certificate and those of the authorities below the root only"
	switch names := len(certs[0].DNSNames) + len(certs[0].IPAddresses); {
	case len(certs) > MaxCerts:
		return fmt.Errorf("%d certificates, at most %d are accepted: %s", len(certs), MaxCerts, remedy)
	case size > MaxCertBytes:
		return fmt.Errorf("certificates of %d bytes, at most %d are accepted: %s", size, MaxCertBytes, remedy)
	case names > MaxCertNames:
		return fmt.Errorf("a certificate with %d names, at most %d are accepted", names, MaxCertNames)
	}
	return nil
}
