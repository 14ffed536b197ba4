package pki

// When what is in use ends.

import (
	"cmp"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// End is when a certificate begins and expires.
type End struct {
	Kind                string // certificate, ca
	Name                string // of its subject, or the first of its names
	NotBefore, NotAfter time.Time
}

// maxEnds bounds the certificates that are told of.
const maxEnds = 64

// Ends are those of the certificate in use and of the CAs; none: there are none, as with keys of WireGuard.
func (s *Store) Ends() (ends []End) {
	if s.used == nil || s.used.Certificate.Leaf == nil {
		return nil
	}
	leaf := s.used.Certificate.Leaf
	name := leaf.Subject.CommonName
	if names := link.CertNames(leaf); len(names) > 0 {
		name = names[0]
	}
	ends = append(ends, End{"certificate", name, leaf.NotBefore, leaf.NotAfter})
	cas, _ := link.ParseBundle(s.data[keyCA]) // it was read before
	for _, ca := range cas {
		if len(ends) < maxEnds {
			ends = append(ends, End{"ca", cmp.Or(ca.Subject.CommonName, ca.Subject.String()), ca.NotBefore, ca.NotAfter})
		}
	}
	return ends
}
