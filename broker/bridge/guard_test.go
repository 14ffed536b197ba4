package bridge

// Certificates of peers that are not authenticated yet: what is refused before it costs anything.

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// signer is a certificate and its key.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// sign makes a certificate like template, with a new key. Without a parent it is signed by itself.
func sign(t testing.TB, curve elliptic.Curve, template *x509.Certificate, parent *signer) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := *template
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	made := &signer{&c, key}
	if parent == nil {
		parent = made
	}
	der, err := x509.CreateCertificate(rand.Reader, &c, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		t.Fatal(err)
	}
	if made.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return made
}

func authorityNamed(name string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}
}

// chainOf is the credentials of the first one, with the certificates of all.
func chainOf(all ...*signer) *link.Credentials {
	c := &link.Credentials{Certificate: tls.Certificate{PrivateKey: all[0].key}}
	for _, s := range all {
		c.Certificate.Certificate = append(c.Certificate.Certificate, s.cert.Raw)
	}
	return c
}

func certsOf(all ...*signer) (certs []*x509.Certificate) {
	for _, s := range all {
		certs = append(certs, s.cert)
	}
	return certs
}

// handshakeWith has a stranger connect with credentials, and returns when the connection has ended.
func (n *node) handshakeWith(creds *link.Credentials) {
	n.t.Helper()
	conn, err := net.Dial("tcp", n.address())
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	s := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{creds.Certificate}})
	if err = s.Handshake(); err == nil {
		_, err = s.Read(make([]byte, 1))
	}
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		n.t.Error("the connection is still open")
	}
}

// What is too much is refused by its number, whatever is in it and signed it; what is just not too much gets in.
func TestCertificateBounds(t *testing.T) {
	i := newInternet(t)
	var log syncBuffer
	a := i.start("a.example", i.ca.issue(t, "a.example"),
		func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	a.set(newLink("b", 1, 2, "b.example"))
	parents := []*signer{{i.ca.cert, i.ca.key}}
	for n := range link.MaxCerts {
		parents = append(parents, sign(t, elliptic.P256(), authorityNamed(fmt.Sprint("CA", n)), parents[n]))
	}
	leaf := func(names int, parent *signer) *signer {
		c := &x509.Certificate{DNSNames: []string{"b.example"}}
		for n := range names - 1 {
			c.DNSNames = append(c.DNSNames, fmt.Sprintf("x%d.example", n))
		}
		return sign(t, elliptic.P256(), c, parent)
	}
	below := func(n int) []*signer { // the root
		all := []*signer{leaf(1, parents[n])}
		for ; n > 0; n-- {
			all = append(all, parents[n])
		}
		return all
	}
	large := authorityNamed("large")
	large.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Value: make([]byte, link.MaxCertBytes)}}
	huge := authorityNamed("huge")
	huge.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Value: make([]byte, 3*link.MaxCertBytes)}}
	for _, test := range []struct {
		what  string
		chain []*signer
		want  string // empty: gets in
	}{
		{"5 certificates", below(link.MaxCerts - 1), ""},
		{"6 certificates", below(link.MaxCerts), "sends 6 certificates, at most 5 are accepted"},
		{"over 16 KiB", []*signer{leaf(1, parents[0]), sign(t, elliptic.P256(), large, parents[0])},
			"at most 16384 are accepted"},
		{"over 24 KiB", []*signer{leaf(1, parents[0]), sign(t, elliptic.P256(), huge, parents[0])},
			"more than 24576 bytes before the end of the handshake"},
		{"100 names", []*signer{leaf(link.MaxCertNames, parents[0])}, ""},
		{"101 names", []*signer{leaf(link.MaxCertNames+1, parents[0])},
			"a certificate with 101 names, at most 100 are accepted"},
	} {
		creds := chainOf(test.chain...)
		if test.want != "" {
			before := len(log.String())
			a.handshakeWith(creds)
			a.await(test.what+" is refused: "+test.want, func() bool {
				return strings.Contains(log.String()[before:], test.want)
			})
			continue
		}
		creds.Roots = i.ca.pool
		b := i.start("b.example", creds)
		b.set(newLink("a", 2, 1, "a.example"))
		b.awaitState("a", link.Up)
		a.awaitState("b", link.Up)
		b.Close(false)
		a.awaitState("b", link.Down)
	}
	// The other direction: what a dialled peer sends is bounded, too.
	c := i.start("c.example", chainOf(append(below(1), sign(t, elliptic.P256(), huge, nil))...))
	c.set(newLink("a", 3, 1, "a.example"))
	a.set(newLink("c", 1, 3, "c.example"))
	a.awaitReason("c", "more than 24576 bytes before the end of the handshake: send at most 5 certificates")
}

// The order of intermediates does not matter, and one that has expired is named.
func TestVerifyChain(t *testing.T) {
	ca := newAuthority(t)
	root := &signer{ca.cert, ca.key}
	first := sign(t, elliptic.P256(), authorityNamed("first"), root)
	second := sign(t, elliptic.P256(), authorityNamed("second"), first)
	third := sign(t, elliptic.P256(), authorityNamed("third"), second)
	leaf := sign(t, elliptic.P256(), &x509.Certificate{DNSNames: []string{"b"}}, third)
	old := authorityNamed("old")
	old.NotBefore, old.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	expired := sign(t, elliptic.P256(), old, root)
	ofExpired := sign(t, elliptic.P256(), &x509.Certificate{DNSNames: []string{"b"}}, expired)
	noCA := sign(t, elliptic.P256(), &x509.Certificate{Subject: pkix.Name{CommonName: "peer"}}, root)
	ofPeer := sign(t, elliptic.P256(), &x509.Certificate{DNSNames: []string{"b"}}, noCA)
	self := sign(t, elliptic.P256(), authorityNamed("CA"), nil) // as our root is named
	ofSelf := sign(t, elliptic.P256(), &x509.Certificate{DNSNames: []string{"b"}}, self)
	for _, test := range []struct {
		what  string
		chain []*signer
		want  string
	}{
		{"in order", []*signer{leaf, third, second, first}, ""},
		{"reversed", []*signer{leaf, first, second, third}, ""},
		{"mixed, with the root and one that has nothing to do with it", []*signer{leaf, second, self, third, first}, ""},
		{"one is missing", []*signer{leaf, third, first}, "unknown authority"},
		{"expired", []*signer{ofExpired, expired}, "expired"},
		{"signed by a peer", []*signer{ofPeer, noCA}, "unknown authority"},
		{"signed by a stranger with the name of the root", []*signer{ofSelf, self}, "unknown authority"},
	} {
		_, err := link.VerifyChain(certsOf(test.chain...), ca.pool, time.Now())
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, expected %q", test.what, err, test.want)
		}
	}
}

// A stranger's own authorities are slow to verify: large keys, and one name and one key for all, so that each may have
// signed each. None of that is verified: it costs no more than an honest chain of this length.
func TestHostileChainCost(t *testing.T) {
	ca := newAuthority(t)
	slow := &signer{}
	*slow = *sign(t, elliptic.P521(), authorityNamed("CA"), nil)
	hostile := []*signer{sign(t, elliptic.P256(), &x509.Certificate{DNSNames: []string{"b"}}, slow)}
	for n := range link.MaxCerts - 1 {
		c := authorityNamed("CA")
		c.DNSNames = []string{fmt.Sprint("x", n)} // else they count as the same one
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(int64(n)), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, c, slow.cert, &slow.key.PublicKey, slow.key)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		hostile = append(hostile, &signer{parsed, slow.key})
	}
	honest := []*signer{{ca.cert, ca.key}}
	for n := range link.MaxCerts {
		honest = append(honest, sign(t, elliptic.P256(), authorityNamed(fmt.Sprint("CA", n)), honest[n]))
	}
	honest = honest[1:]
	chain := make([]*x509.Certificate, 0, link.MaxCerts)
	for n := len(honest) - 1; n >= 0; n-- {
		chain = append(chain, honest[n].cert)
	}
	cost := func(certs []*x509.Certificate) time.Duration {
		best := time.Hour
		for range 20 { // the least of some: other processes take time, too
			begin := time.Now()
			link.VerifyChain(certs, ca.pool, time.Now())
			best = min(best, time.Since(begin))
		}
		return best
	}
	good, bad := cost(chain), cost(certsOf(hostile...))
	t.Logf("honest %s, hostile %s", good, bad)
	if bad > 2*good {
		t.Errorf("a hostile chain costs %s, an honest one of its length %s", bad, good)
	}
}
