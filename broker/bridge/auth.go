package bridge

// Who is at the other end: TLS 1.3 with certificates on both sides.
//
// The chain is verified against our roots, for any key usage: certificates from ACME services are
// often for servers only, and here both ends use them. A dialler then wants the host that it
// dialled among the names of the certificate; an acceptor wants the endpoint host of a link there.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// Refusal is why a connection was refused before any packet.
type Refusal uint8

// The reasons; String gives the label for metrics.
const (
	RefusedCertificate Refusal = iota // TLS failed, or the chain does not lead to our roots
	RefusedName                       // the certificate names no link, or not the dialled host
	RefusedAddress                    // announced cluster address is not that of the link
	RefusedHello                      // hello is malformed, missing or late
	RefusedUnknown                    // no link with this address; with auto-connect it was reported
	RefusedLimit                      // too many connections that are not authenticated yet
	NumRefusals
)

func (r Refusal) String() string {
	return [...]string{"certificate", "name", "address", "hello", "unknown", "limit"}[r]
}

// refusal is an error that refuses a connection.
type refusal struct {
	Refusal
	err error
}

func newRefusal(why Refusal, format string, args ...any) error {
	return &refusal{why, fmt.Errorf(format, args...)}
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// tlsConfig is what both sides of the handshake have in common. An error of check ends the handshake.
func tlsConfig(c *link.Credentials, remote string, check func(leaf *x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{c.Certificate},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // VerifyConnection verifies
		SessionTicketsDisabled: true, // a resumed session would skip the certificates
		// Records of full size from the start: a batch is meant to be few system calls.
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			leaf := cs.PeerCertificates[0]
			pool := x509.NewCertPool()
			for _, c := range cs.PeerCertificates[1:] {
				pool.AddCert(c)
			}
			if _, err := leaf.Verify(x509.VerifyOptions{
				Roots: c.Roots, Intermediates: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
			}); err != nil {
				return verifyRefusal(leaf, remote, err)
			}
			return check(leaf)
		},
	}
}

// verifyRefusal words why the certificate of remote is not trusted. What crypto/x509 says of an expired
// one tells the current time: a reason has to be the same each time.
func verifyRefusal(leaf *x509.Certificate, remote string, err error) error {
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		return newRefusal(RefusedCertificate, "certificate of %s: %w", remote, err)
	}
	who, old := remote, invalid.Cert
	if old != leaf {
		who = fmt.Sprintf("authority %s, which signed for %s,", old.Subject, remote)
	}
	return newRefusal(RefusedCertificate, "certificate of %s is valid from %s to %s only, or the clock is wrong",
		who, old.NotBefore.UTC().Format(time.RFC3339), old.NotAfter.UTC().Format(time.RFC3339))
}

// dialTLS makes conn a session with host. Unencrypted it is conn itself.
func dialTLS(ctx context.Context, c *link.Credentials, conn net.Conn, host, remote string) (net.Conn, error) {
	if c.Unencrypted {
		return conn, nil
	}
	secure := tls.Client(conn, tlsConfig(c, remote, func(leaf *x509.Certificate) error {
		if !certCovers(leaf, host) {
			return newRefusal(RefusedName, "certificate of %s names %v, not %s", remote, certNames(leaf), host)
		}
		return nil
	}))
	err := secure.HandshakeContext(ctx)
	if op, ok := errors.AsType[*net.OpError](err); ok && !isAlert(op) {
		return secure, err // of the connection: nobody is refused
	}
	return secure, asRefusal(RefusedCertificate, err)
}

// acceptTLS makes conn a session with a peer whose certificate names are returned, and the peers of
// the links whose endpoint it may be: one at least, unless unknown are welcome.
func acceptTLS(ctx context.Context, c *link.Credentials, conn net.Conn, remote string, peers []*peer, unknown bool) (net.Conn, []*peer, []string, error) {
	if c.Unencrypted {
		return conn, peers, nil, nil
	}
	var links []*peer
	var who []string
	secure := tls.Server(conn, tlsConfig(c, remote, func(leaf *x509.Certificate) error {
		who = certNames(leaf)
		for _, p := range peers {
			if certCovers(leaf, p.Host) {
				links = append(links, p)
			}
		}
		if len(links) == 0 && !unknown {
			return newRefusal(RefusedName, "certificate of %s names %v, which is no link's endpoint", remote, who)
		}
		return nil
	}))
	return secure, links, who, asRefusal(RefusedCertificate, secure.HandshakeContext(ctx))
}

// asRefusal makes err a refusal unless it is one.
func asRefusal(why Refusal, err error) error {
	var r *refusal
	if err == nil || errors.As(err, &r) {
		return err
	}
	return newRefusal(why, "%w", err)
}

// certNames of a certificate: DNS names and IP addresses, or the common name when it has none.
func certNames(leaf *x509.Certificate) []string {
	all := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 && leaf.Subject.CommonName != "" {
		all = append(all, leaf.Subject.CommonName)
	}
	return all
}

// certCovers tells whether a certificate is for host, by the rules of RFC 6125 as x509 has them, and
// by its common name when it has no other name.
func certCovers(leaf *x509.Certificate, host string) bool {
	if cn := leaf.Subject.CommonName; len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 && cn != "" {
		leaf = &x509.Certificate{DNSNames: []string{cn}}
		if ip := net.ParseIP(cn); ip != nil {
			leaf = &x509.Certificate{IPAddresses: []net.IP{ip}}
		}
	}
	return leaf.VerifyHostname(host) == nil
}
