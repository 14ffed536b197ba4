package bridge

// Authorization: which certificates let a peer in, and for how long.

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// issueTemplate issues credentials for a changed template of a certificate for b.example.
func (ca *authority) issueTemplate(t testing.TB, change func(*x509.Certificate)) *link.Credentials {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{"b.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return &link.Credentials{Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, Roots: ca.pool}
}

// trust returns the credentials with other roots.
func trust(c *link.Credentials, all ...*authority) *link.Credentials {
	roots := x509.NewCertPool()
	for _, ca := range all {
		roots.AddCert(ca.cert)
	}
	return &link.Credentials{Certificate: c.Certificate, Roots: roots}
}

// awaitNewSessions waits until n and its first peer have two sessions or more, all of them made with the
// credentials of now, at both ends. With one session, an end that replaces it may meet the other end doing the same.
// other is the node of that peer, and n is its first peer.
func (n *node) awaitNewSessions(other *node) {
	n.t.Helper()
	p, theirs := n.router.table.Load().peers[0], other.router.table.Load().peers[0]
	credentials := p.credentials.Load()
	n.await("sessions with the new certificate", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.sessions) >= 2 && !slices.ContainsFunc(p.sessions, func(s *session) bool {
			return s.credentials != credentials
		})
	})
	other.await("the same at the other end", func() bool {
		theirs.mu.Lock()
		defer theirs.mu.Unlock()
		return len(theirs.sessions) >= 2 && !slices.ContainsFunc(theirs.sessions, func(s *session) bool {
			chain := s.peerChain()
			return len(chain) == 0 || !bytes.Equal(chain[0].Raw, credentials.Certificate.Certificate[0])
		})
	})
}

// A CA is replaced: first it is trusted beside the old one, then certificates are replaced, then the old one goes. The
// link is Up all the time.
func TestReplaceAuthority(t *testing.T) {
	i, a, b := newPair(t)
	// A handshake during a change of credentials counts for nothing: it would have to begin again.
	a.await("both connections", func() bool { s := a.status("b"); return s.Dialled+s.Accepted >= 2 })
	b.await("both connections", func() bool { s := b.status("a"); return s.Dialled+s.Accepted >= 2 })
	sinceA, sinceB := a.status("b").Since, b.status("a").Since
	old, next := i.ca, newAuthority(t)
	credsA, credsB := next.issue(t, "cn=a.example"), next.issue(t, "b.example")
	a.SetCredentials(trust(a.credentials.Load(), old, next))
	b.SetCredentials(trust(b.credentials.Load(), old, next))
	a.SetCredentials(trust(credsA, old, next))
	a.awaitNewSessions(b)
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
	b.SetCredentials(trust(credsB, old, next))
	b.awaitNewSessions(a)
	a.SetCredentials(trust(credsA, next))
	b.SetCredentials(trust(credsB, next))
	a.pass(b, "192.168.0.11", "192.168.0.12", 2)
	if s := a.status("b"); s.Since != sinceA || s.State != link.Up {
		t.Errorf("at a: %+v", s)
	}
	if s := b.status("a"); s.Since != sinceB || s.State != link.Up {
		t.Errorf("at b: %+v", s)
	}
	b.set() // and now the new ones are needed
	a.awaitState("b", link.Down)
	b.set(newLink("a", 2, 1, "a.example"))
	a.awaitState("b", link.Up)
	a.reach(b, "192.168.0.11", "192.168.0.12")
}

// When a CA goes, the sessions with its certificates end, and the other links do not notice.
func TestRemovedAuthority(t *testing.T) {
	i, other := newInternet(t), newAuthority(t)
	a := i.start("a.example", trust(i.ca.issue(t, "a.example"), i.ca, other))
	b := i.start("b.example", trust(other.issue(t, "b.example"), i.ca, other))
	c := i.start("c.example", trust(i.ca.issue(t, "c.example"), i.ca, other))
	a.set(newLink("b", 1, 2, "b.example"), newLink("c", 1, 3, "c.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	c.set(newLink("a", 3, 1, "a.example"))
	a.awaitState("b", link.Up)
	a.awaitState("c", link.Up)
	c.awaitState("a", link.Up)
	since := a.status("c").Since
	a.SetCredentials(trust(a.credentials.Load(), i.ca))
	a.awaitReason("b", "x509: certificate signed by unknown authority")
	b.awaitState("a", link.Down)
	a.await("end of all sessions", func() bool { s := a.status("b"); return s.Accepted+s.Dialled == 0 })
	a.pass(c, "192.168.0.11", "192.168.0.13", 1)
	if s := a.status("c"); s.Since != since || s.State != link.Up {
		t.Errorf("the other link: %+v", s)
	}
	a.SetCredentials(trust(a.credentials.Load(), i.ca, other))
	a.awaitState("b", link.Up)
}

// A session ends when the first certificate of the peer's chain expires; one with a newer certificate goes on.
func TestExpiredSession(t *testing.T) {
	// Certificates have whole seconds.
	soon := time.Now().Truncate(time.Second).Add(4 * time.Second)
	hour := time.Now().Add(time.Hour)
	for _, c := range []struct {
		name            string
		leaf, authority time.Time
		says            string
	}{
		{"certificate", soon, hour, "certificate of b.example:80 is valid from "},
		{"authority between", hour, soon, "certificate of authority CN=CA, which signed for b.example:80, is valid from "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			i := newInternet(t)
			begin := time.Now().Add(-time.Hour)
			a := i.start("a.example", i.ca.issue(t, "a.example"))
			between := newAuthorityAt(t, begin, c.authority)
			der, err := x509.CreateCertificate(rand.Reader, between.cert, i.ca.cert, &between.key.PublicKey, i.ca.key)
			if err != nil {
				t.Fatal(err)
			}
			creds := trust(between.issueAt(t, begin, c.leaf, "b.example"), i.ca)
			creds.Certificate.Certificate = append(creds.Certificate.Certificate, der)
			b := i.start("b.example", creds)
			a.set(newLink("b", 1, 2, "b.example"))
			b.set(newLink("a", 2, 1, "a.example"))
			a.awaitState("b", link.Up)
			a.awaitReason("b", c.says)
			if now := time.Now(); now.Before(soon) {
				t.Errorf("ended %s early", soon.Sub(now))
			}
			a.await("end of all sessions", func() bool { s := a.status("b"); return s.Accepted+s.Dialled == 0 })
		})
	}
}

// A peer that has renewed its certificate is not cut off when the old one, with which its sessions began, expires.
func TestRenewedBeforeExpiry(t *testing.T) {
	for life := 3 * time.Second; !renewBeforeExpiry(t, life); life *= 2 {
		if life > time.Minute {
			t.Fatalf("sessions are not renewed within %s", life)
		}
	}
}

// renewBeforeExpiry tells whether all sessions were renewed in time. Else the machine was too slow to say anything.
func renewBeforeExpiry(t *testing.T, life time.Duration) bool {
	i := newInternet(t)
	end := time.Now().Truncate(time.Second).Add(life) // certificates have whole seconds
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	b := i.start("b.example", i.ca.issueAt(t, time.Now().Add(-time.Hour), end, "b.example"))
	a.set(newLink("b", 1, 2, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	sinceA, sinceB := a.status("b").Since, b.status("a").Since
	b.SetCredentials(i.ca.issue(t, "b.example"))
	b.awaitNewSessions(a)
	if time.Until(end) < life/4 {
		return false
	}
	<-time.After(time.Until(end) + 200*time.Millisecond) // the certificate ends by the clock
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
	if s := a.status("b"); s.Since != sinceA || s.State != link.Up {
		t.Errorf("at a: %+v", s)
	}
	if s := b.status("a"); s.Since != sinceB || s.State != link.Up {
		t.Errorf("at b: %+v", s)
	}
	return true
}

// A handshake that began before the credentials changed makes a session only if they trust the peer.
func TestHandshakeOfOldCredentials(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, i *internet, a *node)
		trusts bool
	}{
		{"another CA", func(t *testing.T, _ *internet, a *node) {
			a.SetCredentials(newAuthority(t).issue(t, "a.example"))
		}, false},
		{"a renewed certificate", func(t *testing.T, i *internet, a *node) {
			a.SetCredentials(i.ca.issue(t, "a.example"))
		}, true},
		{"one more CA", func(t *testing.T, i *internet, a *node) {
			a.SetCredentials(trust(a.credentials.Load(), i.ca, newAuthority(t)))
		}, true},
		{"another CA, and back", func(t *testing.T, i *internet, a *node) {
			a.SetCredentials(newAuthority(t).issue(t, "a.example"))
			a.SetCredentials(i.ca.issue(t, "a.example"))
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, a, b := newPair(t)
			p := a.router.table.Load().peers[0]
			conn, err := net.Dial("tcp", b.address())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			s, theirs, err := newDialer(p).handshake(conn, 1)
			if err != nil {
				t.Fatal(err)
			}
			c.change(t, i, a)
			if trusts := p.attachSession(s, theirs); trusts != c.trusts {
				t.Errorf("the session is accepted: %v, want %v", trusts, c.trusts)
			}
		})
	}
}

// A connection is never resumed: that would skip the certificates.
func TestNoResumption(t *testing.T) {
	i, a, _ := newPair(t)
	conf := &tls.Config{
		InsecureSkipVerify: true, ServerName: "a.example", ClientSessionCache: tls.NewLRUClientSessionCache(8),
		Certificates: []tls.Certificate{i.ca.issue(t, "b.example").Certificate},
	}
	for range 3 {
		conn, err := tls.Dial("tcp", a.address(), conf)
		if err != nil {
			t.Fatal(err)
		}
		if conn.ConnectionState().DidResume {
			t.Error("resumed")
		}
		h := &hello.Hello{Announcement: link.Announcement{Address: newLink("b", 1, 2, "b.example").Addresses.First()}}
		payload, _ := h.AppendPayload(nil)
		conn.Write(hello.AppendFrame(nil, hello.FrameHello, payload))
		if _, err := hello.ReadHello(conn, hello.MaxPayload); err != nil { // a ticket would come with the first data
			t.Error(err)
		}
		conn.Close()
	}
}

func TestAcceptedCertificates(t *testing.T) {
	i := newInternet(t)
	var log syncBuffer
	a := i.start("a.example", i.ca.issue(t, "a.example"),
		func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	a.set(newLink("b", 1, 2, "b.example"))
	for _, c := range []struct {
		name   string
		change func(*x509.Certificate)
		says   string // in the reason for the refusal; empty: accepted
	}{
		{"no use", func(*x509.Certificate) {}, ""},
		{"any use", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, ""},
		{"for servers", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, ""},
		{"for clients", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, ""},
		{"for e-mail", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} },
			"incompatible key usage"},
		{"for code", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} },
			"incompatible key usage"},
		{"common name alone", func(c *x509.Certificate) { c.DNSNames, c.Subject.CommonName = nil, "b.example" }, ""},
		{"common name beside e-mail", func(c *x509.Certificate) {
			c.DNSNames, c.Subject.CommonName, c.EmailAddresses = nil, "b.example", []string{"eve@example"}
		}, "no link's endpoint"},
		{"common name beside another name", func(c *x509.Certificate) {
			c.DNSNames, c.Subject.CommonName = []string{"c.example"}, "b.example"
		}, "no link's endpoint"},
		{"wildcard", func(c *x509.Certificate) { c.DNSNames = []string{"*.example"} }, ""},
		{"wildcard again", func(c *x509.Certificate) { c.DNSNames = []string{"*.example"} }, ""},
	} {
		conn, err := net.Dial("tcp", a.address())
		if err != nil {
			t.Fatal(err)
		}
		b := i.ca.issueTemplate(t, c.change)
		if err = handshakeAs(b, conn); (err == nil) != (c.says == "") {
			t.Errorf("%s: %v", c.name, err)
		}
		a.await(c.name+": "+c.says, func() bool { return strings.Contains(log.String(), c.says) })
		conn.Close()
	}
	if n := strings.Count(log.String(), "wildcard certificate"); n != 1 {
		t.Errorf("%d warnings of wildcards:\n%s", n, log.String())
	}
}

// handshakeAs says hello on conn as cluster b.
func handshakeAs(b *link.Credentials, conn net.Conn) error {
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{b.Certificate}})
	h := &hello.Hello{Announcement: link.Announcement{Address: newLink("b", 1, 2, "b.example").Addresses.First()}}
	payload, err := h.AppendPayload(nil)
	if err == nil {
		_, err = secure.Write(hello.AppendFrame(nil, hello.FrameHello, payload))
	}
	if err == nil {
		_, err = hello.ReadHello(secure, hello.MaxPayload)
	}
	return err
}

// A front end that routes by the server name finds the endpoint's host in the ClientHello, unless it is an address.
func TestServerName(t *testing.T) {
	ca := newAuthority(t)
	for _, c := range []struct{ host, want string }{
		{"b.example", "b.example"}, {"b.example.", "b.example"}, {"127.0.0.1", ""}, {"::1", ""},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		names := make(chan string, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			conf := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, c.host).Certificate}}
			conf.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				names <- h.ServerName
				return nil, nil
			}
			tls.Server(conn, conf).Handshake()
		}()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, _, err := dialTLS(ctx, ca.issue(t, "a.example"), newBatchConn(conn, time.Second), c.host, "b:80"); err != nil {
			t.Errorf("%s: %v", c.host, err)
		}
		cancel()
		if got := <-names; got != c.want {
			t.Errorf("%s: server name %q, expected %q", c.host, got, c.want)
		}
		conn.Close()
		l.Close()
	}
}

// The session of a legacy peer, without pings and streams, ends in the same way.
func TestExpiredLegacySession(t *testing.T) {
	t.Parallel()
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	a.set(newLink("b", 1, 2, "b.example"))
	soon := time.Now().Truncate(time.Second).Add(3 * time.Second)
	conn, err := net.Dial("tcp", a.address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := handshakeAs(i.ca.issueAt(t, time.Now().Add(-time.Hour), soon, "b.example"), conn); err != nil {
		t.Fatal(err)
	}
	a.awaitState("b", link.Up)
	a.awaitState("b", link.Down)
	if now := time.Now(); now.Before(soon) {
		t.Errorf("ended %s early", soon.Sub(now))
	}
}

// A link whose endpoint becomes another host loses the sessions of the certificate for the former one.
func TestSessionsOfFormerEndpoint(t *testing.T) {
	_, a, b := newPair(t)
	a.set(newLink("b", 1, 2, "c.example"))
	b.awaitReason("a", "connect a.example:80: ")
	a.await("end of all sessions", func() bool { s := a.status("b"); return s.Accepted+s.Dialled == 0 })
	if s := a.status("b"); s.State == link.Up {
		t.Errorf("status %+v", s)
	}
}
