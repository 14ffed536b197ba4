package e2e

// Certificates that are to replace good ones, and sessions whose certificates are good no longer.

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// issuePair issues a certificate for the broker's endpoint.
func issuePair(t *testing.T, ca *testbed.CA, b *fleet.Broker, edits ...func(*x509.Certificate)) (cert, key []byte) {
	t.Helper()
	cert, key, err := ca.Issue([]string{b.FQDN}, nil, edits...)
	must(t, err)
	return cert, key
}

// newAuthority makes a CA.
func newAuthority(t *testing.T, name string) *testbed.CA {
	t.Helper()
	ca, err := testbed.NewCA(name)
	must(t, err)
	return ca
}

// restoreCertificates gives all brokers good certificates again.
func restoreCertificates(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, b := range brokers {
		must(t, b.NewCertificate(ctx, f.CA, b.FQDN))
	}
	must(t, f.WaitMesh(ctx))
}

// What stands in the secret while a certificate is being renewed, or by mistake, does not replace a good certificate:
// the LocalLink says why, and the link connects again with the old one.
func TestBadCredentials(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	t.Cleanup(func() { restoreCertificates(t) })
	b, other, third := brokers[0], newAuthority(t, "other"), newAuthority(t, "third")
	glued := bytes.Join([][]byte{bytes.TrimSpace(f.CA.PEM), other.PEM, third.PEM}, nil)
	for _, c := range []struct {
		name   string
		signer *testbed.CA // nil: the certificate signs itself
		edit   func(*x509.Certificate)
		ca     []byte
		says   string
	}{
		{"no CA", f.CA, nil, []byte{}, "ca.crt is missing or empty"},
		{"temporary certificate", nil, nil, f.CA.PEM, "tls.crt signs itself, and is not signed by a CA in ca.crt"},
		{"expired certificate", f.CA, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, f.CA.PEM,
			"tls.crt is valid from"},
		{"of another CA", other, nil, f.CA.PEM, "tls.crt is not signed by a CA in ca.crt"},
		{"glued CAs", f.CA, nil, glued, "ca.crt: block 2 begins in the middle of a line"},
	} {
		var cert, key []byte
		edit := func(template *x509.Certificate) {
			if c.edit != nil {
				c.edit(template)
			}
		}
		if c.signer != nil {
			cert, key = issuePair(t, c.signer, b, edit)
		} else {
			own, err := testbed.NewCA(b.FQDN)
			must(t, err)
			cert, key = own.PEM, own.KeyPEM
		}
		must(t, b.TLSSecret(ctx, fleet.Namespace, fleet.Secret, cert, key, c.ca))
		must(t, b.WaitState(ctx, b.Name, v1alpha1.StateError, "secret kubelink/kubelink-tls: "+c.says,
			"; the certificate in use stays so, it is valid until "))
		must(t, b.Remove(ctx, "kubelink2")) // an interruption
		must(t, b.Apply(ctx, brokers[1].LinkTo()))
		must(t, b.WaitState(ctx, "kubelink2", v1alpha1.StateUp))
		waitForReply(t, 5*time.Second, clients[0], servers[1].service)
		t.Log(c.name, "is refused, and the link is Up")
	}
	must(t, b.WaitReady(ctx)) // with the old one all goes on
	must(t, b.TLSSecret(ctx, fleet.Namespace, fleet.Secret, []byte("x"), []byte("y"), f.CA.PEM))
	must(t, b.Kill(ctx, 9)) // at a start there is no old one
	must(t, b.Launch())
	must(t, b.WaitState(ctx, b.Name, v1alpha1.StateError, "tls.crt"))
	must(t, b.WaitState(ctx, "kubelink2", v1alpha1.StateError, "tls.crt"))
}

// A session lasts as long as the certificates of the peer: it ends when their CA goes, or when they expire. The other
// link does not notice.
func TestEndOfTrust(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	t.Cleanup(func() { restoreCertificates(t) })
	a, b, other := brokers[0], brokers[1], newAuthority(t, "other")
	both := bytes.Join([][]byte{f.CA.PEM, other.PEM}, nil)
	setCredentials := func(b *fleet.Broker, signer *testbed.CA, ca []byte, edits ...func(*x509.Certificate)) {
		t.Helper()
		cert, key := issuePair(t, signer, b, edits...)
		const line = "certificate in use"
		uses := strings.Count(b.Process.Log(), line)
		must(t, b.TLSSecret(ctx, fleet.Namespace, fleet.Secret, cert, key, ca))
		within(t, 5*time.Second, "new certificate to be used", func(context.Context) error {
			if strings.Count(b.Process.Log(), line) == uses {
				return errors.New("not yet")
			}
			return nil
		})
	}
	// A CA that is added and a new certificate drop no link.
	steady := expectNoFailures(t, clients[0], servers[2].service)
	for _, x := range brokers {
		setCredentials(x, f.CA, both)
	}
	setCredentials(b, other, both)
	must(t, a.Remove(ctx, "kubelink2"))
	must(t, a.Apply(ctx, b.LinkTo()))
	must(t, a.WaitState(ctx, "kubelink2", v1alpha1.StateUp))
	busy := expectNoFailures(t, clients[0], servers[1].service)
	setCredentials(a, f.CA, both)
	busy()

	setCredentials(a, f.CA, f.CA.PEM)
	must(t, a.WaitState(ctx, "kubelink2", v1alpha1.StateDown, "certificate signed by unknown authority"))
	must(t, a.WaitState(ctx, "kubelink3", v1alpha1.StateUp))
	steady()

	setCredentials(b, f.CA, both, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(8 * time.Second) })
	must(t, a.WaitState(ctx, "kubelink2", v1alpha1.StateUp))
	must(t, a.WaitState(ctx, "kubelink2", v1alpha1.StateDown, "is valid from"))
	must(t, b.WaitState(ctx, b.Name, v1alpha1.StateError, "expired at", "was not renewed"))
	must(t, a.WaitState(ctx, "kubelink3", v1alpha1.StateUp))
}

// A front end that routes TLS by the server name, as an ingress controller with TLS passthrough does, can stand before
// a broker.
func TestFrontByServerName(t *testing.T) {
	ctx := startTest(t, time.Minute)
	defer restoreMesh(t)
	a, b := brokers[0], brokers[1]
	front, err := b.Router.Listen("tcp", ":8443")
	must(t, err)
	var served sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		front.Close()
		cancel()
		served.Wait()
	}()
	names := make(chan string, 100)
	served.Go(func() {
		for {
			conn, err := front.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				defer conn.Close()
				hello, name := readServerName(conn)
				names <- name
				if name != b.FQDN {
					return
				}
				back, err := b.Router.Dial("tcp", netip.AddrPortFrom(b.Gateway().Address, testbed.BrokerPort).String())
				if err != nil {
					return
				}
				defer context.AfterFunc(ctx, func() { back.Close() })()
				defer back.Close()
				back.Write(hello)
				go io.Copy(back, conn)
				io.Copy(conn, back)
			})
		}
	})
	away := a.LinkTo()
	away.Spec.Endpoint = a.FQDN + ":9" // nothing listens there: only the first cluster connects
	must(t, b.Apply(ctx, away))
	through := b.LinkTo()
	through.Spec.Endpoint = b.FQDN + ":8443"
	must(t, a.Apply(ctx, through))
	select {
	case name := <-names:
		if name != b.FQDN {
			t.Errorf("server name %q, expected %q", name, b.FQDN)
		}
	case <-ctx.Done():
		t.Fatal("no connection")
	}
	must(t, a.WaitState(ctx, "kubelink2", v1alpha1.StateUp))
	waitForReply(t, 5*time.Second, clients[0], servers[1].service)
}

// readServerName reads a ClientHello, and the name in it.
func readServerName(conn net.Conn) (hello []byte, name string) {
	var read bytes.Buffer
	tls.Server(recordedConn{conn, io.TeeReader(conn, &read)}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name = h.ServerName
			return nil, errors.New("this is all that a front end wants to know")
		},
	}).Handshake()
	return read.Bytes(), name
}

// recordedConn is a connection to which nothing is written.
type recordedConn struct {
	net.Conn
	reader io.Reader
}

func (c recordedConn) Read(b []byte) (int, error)  { return c.reader.Read(b) }
func (c recordedConn) Write(b []byte) (int, error) { return len(b), nil }
