package bridge

// Authentication: TLS 1.3 with certificates on both sides.
//
// Each end verifies the chain of the other end against its roots, as link.VerifyChain says. A dialler then requires the
// host that it has dialled among the names of the certificate; an acceptor requires the endpoint host of a link there.
// authorize.go looks after the chain for as long as the session lives.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// tlsConfig is common to both sides of the handshake. An error of check ends the handshake; then auth says how long
// the other end is authorized.
func tlsConfig(
	c *link.Credentials, remote string, auth *authorization, check func(leaf *x509.Certificate) error,
) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{c.Certificate},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // VerifyConnection verifies
		SessionTicketsDisabled: true, // a resumed session would skip the certificates
		// Records of full size from the start: a batch should take few system calls.
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			certs := cs.PeerCertificates
			if err := link.CheckBounds(certs); err != nil {
				return hello.NewRefusal(hello.RefusedCertificate, "%s sends %w", remote, err)
			}
			if err := check(certs[0]); err != nil { // the name first: it costs nearly nothing
				return err
			}
			var err error
			if auth.until, err = link.VerifyChain(certs, c.Roots, time.Now()); err != nil {
				return verifyRefusal(certs[0], remote, err)
			}
			auth.credentials = c
			return nil
		},
	}
}

// dialTLS makes conn a TLS session with host. Without encryption it returns conn.
func dialTLS(ctx context.Context, c *link.Credentials, conn *batchConn, host, remote string) (
	secured net.Conn, auth authorization, err error,
) {
	if c.Unencrypted {
		return conn, auth, nil
	}
	conn.guard = &handshakeGuard{left: maxHandshakeBytes}
	defer conn.endGuard()
	config := tlsConfig(c, remote, &auth, func(leaf *x509.Certificate) error {
		if !link.CertCovers(leaf, host) {
			names := quoteNames(link.CertNames(leaf))
			return hello.NewRefusal(hello.RefusedName, "certificate of %s names %s, not %s: "+
				"give the peer a certificate of that name, or put one of its names into spec.endpoint", remote, names, host)
		}
		return nil
	})
	// A front end between the two may route by the name. The library sends no IP address as a name (RFC 6066, section 3).
	config.ServerName = host
	secure := tls.Client(conn, config)
	err = secure.HandshakeContext(ctx)
	if op, ok := errors.AsType[*net.OpError](err); ok && !isAlert(op) {
		return secure, auth, err // of the connection: neither end refused the other
	}
	return secure, auth, hello.AsRefusal(hello.RefusedCertificate, err)
}

// inboundEnd is the other end of an accepted connection after the TLS handshake.
type inboundEnd struct {
	conn          net.Conn
	candidates    []*peer  // peers that it may be
	names         []string // of its certificate
	authenticated bool
	authorization
}

// acceptTLS makes conn a TLS session with a peer. A peer is a candidate if the certificate names its endpoint host;
// there is at least one, unless unknown peers are accepted. Without encryption all peers are candidates.
func acceptTLS(
	ctx context.Context, c *link.Credentials, conn *batchConn, remote string, peers []*peer, unknown bool,
) (inboundEnd, error) {
	defer conn.endGuard()
	if c.Unencrypted {
		return inboundEnd{conn: conn, candidates: peers}, nil
	}
	end := inboundEnd{authenticated: true}
	config := tlsConfig(c, remote, &end.authorization, func(leaf *x509.Certificate) error {
		end.names = link.CertNames(leaf)
		for _, p := range peers {
			if link.CertCovers(leaf, p.Host) {
				end.candidates = append(end.candidates, p)
			}
		}
		if len(end.candidates) == 0 && !unknown {
			return hello.NewRefusal(hello.RefusedName, "certificate of %s names %s, which is no link's endpoint",
				remote, quoteNames(end.names))
		}
		return nil
	})
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		conn.guard.asked = askedCertificate
		return nil, nil
	}
	secure := tls.Server(conn, config)
	end.conn = secure
	err := secure.HandshakeContext(ctx)
	return end, hello.AsRefusal(hello.RefusedCertificate, err)
}

// usableNames are the names, of a certificate, that an endpoint can have; the first maxNameTexts of them.
func usableNames(names []string) []string {
	const maxHost = 253 // RFC 1035, as text
	usable := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return len(n) > maxHost })
	return usable[:min(len(usable), maxNameTexts)]
}
