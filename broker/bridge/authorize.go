package bridge

// How long a session is authorized. The handshake verifies the certificates of the peer; the session may carry packets
// only while they would be accepted again. They are verified again when our credentials change and when the first of
// them expires, and a session that fails ends, whatever other sessions do. The peer does the same with ours: so, when
// our certificate was renewed, new sessions replace those that began with the old one, before that one expires.

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// authorization is a part of session. The mu of the peer guards until and replaceAt once the session is attached.
type authorization struct {
	credentials *link.Credentials // of this end, in the handshake; nil: without TLS
	until       time.Time         // when a certificate of the peer's chain expires
	replaceAt   time.Time         // when a new session is to replace this one; zero: our certificate is the same
}

// verifyRefusal describes why the certificate of remote is not trusted. The error of crypto/x509 for an expired
// certificate includes the current time, but a reason has to be the same each time.
func verifyRefusal(leaf *x509.Certificate, remote string, err error) error {
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		return hello.NewRefusal(hello.RefusedCertificate,
			"certificate of %s: %w: both clusters need the same CA (ca.crt)", remote, err)
	}
	if !link.IsExpired(err) {
		return hello.NewRefusal(hello.RefusedCertificate, "certificate of %s: %w", remote, err)
	}
	invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
	owner, expired := remote, invalid.Cert
	if expired != leaf {
		name := hello.CutText(expired.Subject.String(), maxNameText)
		owner = fmt.Sprintf("authority %s, which signed for %s,", name, remote)
	}
	return hello.NewRefusal(hello.RefusedCertificate,
		"certificate of %s is valid from %s to %s only, or the clock is wrong",
		owner, expired.NotBefore.UTC().Format(time.RFC3339), expired.NotAfter.UTC().Format(time.RFC3339))
}

// peerChain returns the certificates of the peer; nil: without TLS.
func (s *session) peerChain() []*x509.Certificate {
	secure, ok := s.conn.(*tls.Conn)
	if !ok {
		return nil
	}
	return secure.ConnectionState().PeerCertificates
}

// verifySessions ends the sessions, of one peer, whose certificates the credentials do not trust.
func verifySessions(sessions []*session, c *link.Credentials) {
	var chain []*x509.Certificate // that was verified last: most sessions of a peer have the same
	var until time.Time
	var err error
	for _, s := range sessions {
		next := s.peerChain()
		if next == nil {
			continue
		}
		if !slices.EqualFunc(chain, next, (*x509.Certificate).Equal) {
			chain = next
			until, err = link.VerifyChain(chain, c.Roots, time.Now())
		}
		s.setVerified(until, err)
	}
}

// verifyAgain tells whether the credentials of now, which it returns, trust the peer of a session that is not attached
// yet. verified are those that did already; nil: none, or without TLS.
func (s *session) verifyAgain(verified *link.Credentials) (c *link.Credentials, trusted bool) {
	c = s.peer.credentials.Load()
	switch chain := s.peerChain(); {
	case c == nil:
		return c, false
	case c.Unencrypted || c == verified:
		return c, true
	case chain == nil:
		return c, false
	default:
		until, err := link.VerifyChain(chain, c.Roots, time.Now())
		s.until = until
		return c, err == nil
	}
}

// setVerified notes how the peer's chain was verified, and ends the session after an error.
func (s *session) setVerified(until time.Time, err error) {
	p := s.peer
	if err != nil {
		s.close(verifyRefusal(s.peerChain()[0], p.endpoint, err))
		return
	}
	p.mu.Lock()
	s.until = until
	p.mu.Unlock()
}

// checkAuthorization ends the session when the peer's certificates are no longer valid, and has it replaced when it is
// time. It looks at the clock each time, as clocks are set, and computers sleep.
func (s *session) checkAuthorization(now time.Time) {
	c := s.peer.credentials.Load()
	if s.credentials == nil || c == nil || c.Unencrypted {
		return
	}
	p := s.peer
	p.mu.Lock()
	renewed := !slices.EqualFunc(c.Certificate.Certificate, s.credentials.Certificate.Certificate, slices.Equal)
	expired, replace := !now.Before(s.until), renewed && !s.replaceAt.IsZero() && now.After(s.replaceAt)
	if renewed && (replace || s.replaceAt.IsZero()) { // again later, if it is the only session now
		s.replaceAt = now.Add(rand.N(p.timing.renewal)) // not all at once: handshakes take time
	}
	p.mu.Unlock()
	switch {
	case expired: // there may be another way to the roots now
		until, err := link.VerifyChain(s.peerChain(), c.Roots, now)
		s.setVerified(until, err)
	case replace && !s.detached.Load():
		p.retireSession(s, errRenewed, false)
	}
}

// warnOfWildcard logs once that the certificate of the peer covers its endpoint host by a wildcard only.
func (s *session) warnOfWildcard() {
	p, chain := s.peer, s.peerChain()
	if len(chain) == 0 {
		return
	}
	if name := link.Wildcard(chain[0], p.Host); name != "" && !p.warned.Swap(true) {
		p.log.Warn("the peer has a wildcard certificate: its owner can be every link whose endpoint the wildcard covers; "+
			"a certificate for the endpoint's host alone is safer", "link", p.Link, "wildcard", name, "host", p.Host)
	}
}
