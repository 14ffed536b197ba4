package bridge

// Authentication: certificates, names and addresses, and the reasons that users read.

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

func TestWrongAuthority(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	b := i.start("b.example", newAuthority(t).issue(t, "b.example"))
	c := i.start("c.example", i.ca.issue(t, "c.example"))
	a.set(newLink("b", 1, 2, "b.example"), newLink("c", 1, 3, "c.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	c.set(newLink("a", 3, 1, "a.example"))
	a.awaitReason("b", "connect b.example:80: certificate of b.example:80: x509: certificate signed by unknown authority")
	a.awaitReason("b", ": both clusters need the same CA (ca.crt)")
	b.awaitReason("a", "x509: certificate signed by unknown authority")
	a.await("counter", func() bool { return a.Stats().Refused[hello.RefusedCertificate] > 2 })
	a.awaitState("c", link.Up)
	c.awaitState("a", link.Up)
	a.pass(c, "192.168.0.11", "192.168.0.13", 1)
}

func TestWrongName(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	b := i.start("b.example", i.ca.issue(t, "x.example", "10.0.0.1"))
	a.set(newLink("b", 1, 2, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	a.awaitReason("b", "certificate of b.example:80 names [x.example 10.0.0.1], not b.example: "+
		"give the peer a certificate of that name, or put one of its names into spec.endpoint")
	b.awaitReason("a", "connect a.example:80: refused by peer: tls: bad certificate")
	if s := a.Stats(); s.Refused[hello.RefusedName] == 0 {
		t.Errorf("refused %v", s.Refused)
	}
}

func TestWrongAddress(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	b := i.start("b.example", i.ca.issue(t, "b.example"))
	a.set(newLink("b", 1, 9, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	a.await("refusal", func() bool {
		return a.status("b").Refused == "peer announces cluster address 192.168.0.12/24, this link expects 192.168.0.19"
	})
	a.awaitReason("b", "connect b.example:80: "+
		"peer announces cluster address 192.168.0.12/24, this link expects 192.168.0.19")
	b.awaitReason("a", "connect a.example:80: peer closed the connection before its hello")
	b.await("refusal", func() bool { return b.status("a").Refused == "peer does not accept our hello: closed by peer" })
	if s := a.Stats(); s.Refused[hello.RefusedAddress] == 0 {
		t.Errorf("refused %v", s.Refused)
	}
	// Neither end takes the other for connected, not even for a moment.
	if a.ups.Load()+b.ups.Load() != 0 {
		t.Errorf("was up %d and %d times", a.ups.Load(), b.ups.Load())
	}
	other := newLink("b", 1, 2, "b.example")
	other.Local = mesh.Prefixes{netip.MustParsePrefix("10.0.0.1/24")}
	other.Addresses = mesh.Prefixes{netip.MustParsePrefix("10.0.0.2/24")}
	a.set(other)
	a.await("refusal", func() bool {
		return strings.Contains(a.status("b").Refused,
			"which is not in the mesh 10.0.0.0/24")
	})
}

func TestAddressAsEndpoint(t *testing.T) {
	i := newInternet(t)
	a := i.start("127.0.0.1", i.ca.issue(t, "127.0.0.1"))
	b := i.start("b.example", i.ca.issue(t, "cn=b.example"))
	a.set(newLink("b", 1, 2, "b.example"))
	b.set(newLink("a", 2, 1, "127.0.0.1"))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	b.pass(a, "192.168.0.12", "192.168.0.11", 1)
}

// Two clusters that meet in two meshes have the same names there: the address tells.
func TestTwoMeshes(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	b := i.start("b.example", i.ca.issue(t, "b.example"))
	second := func(name string, mine, theirs, host string) mesh.Peer {
		return mesh.Peer{Link: name, Host: host, Port: 80, Local: mesh.Prefixes{netip.MustParsePrefix(mine + "/24")},
			Addresses: mesh.Prefixes{netip.MustParsePrefix(theirs + "/24")},
			Networks:  []netip.Prefix{netip.MustParsePrefix(theirs + "/32")},
			Ingress:   []mesh.Rule{{Prefix: netip.MustParsePrefix(mine + "/32"), Allow: true}}}
	}
	a.set(newLink("b", 1, 2, "b.example"), second("m--b", "10.0.0.1", "10.0.0.2", "b.example"))
	b.set(newLink("a", 2, 1, "a.example"), second("m--a", "10.0.0.2", "10.0.0.1", "a.example"))
	for _, l := range []string{"b", "m--b"} {
		a.awaitState(l, link.Up)
	}
	b.awaitState("a", link.Up)
	b.awaitState("m--a", link.Up)
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
	a.pass(b, "10.0.0.1", "10.0.0.2", 2)
	a.await("counters", func() bool { d := a.Stats().Links; return d["b"].TxPackets == 1 && d["m--b"].TxPackets == 1 })
}

func TestAutoConnect(t *testing.T) {
	i := newInternet(t)
	auto := func(c *Config) { c.AutoConnect = true }
	a := i.start("a.example", i.ca.issue(t, "a.example"), auto)
	b := i.start("b.example", i.ca.issue(t, "b.example"), func(c *Config) { c.AdvertisedPort = 8080 })
	ba := newLink("a", 2, 1, "a.example")
	services := netip.MustParsePrefix("100.64.16.0/20")
	ba.Services = mesh.Prefixes{services}
	b.set(ba)
	u := <-a.unknown
	if u.Address.String() != "192.168.0.12/24" || u.ServiceCIDR != services || u.AdvertisedPort != 8080 ||
		len(u.Names) != 1 || u.Names[0] != "b.example" || !u.Remote.Addr().IsLoopback() {
		t.Errorf("unknown peer %+v", u)
	}
	a.await("counter", func() bool { return a.Stats().Refused[hello.RefusedUnknown] > 0 })
	a.set(newLink("b", 1, 2, "b.example"))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	// Not for an end with a certificate of another CA.
	c := i.start("c.example", newAuthority(t).issue(t, "c.example"))
	c.SetCredentials(&link.Credentials{Certificate: c.credentials.Load().Certificate, Roots: i.ca.pool})
	c.set(newLink("a", 3, 1, "a.example"))
	c.awaitReason("a", "refused by peer")
	for len(a.unknown) > 0 {
		if u := <-a.unknown; u.Names[0] != "b.example" {
			t.Errorf("unknown peer %+v", u)
		}
	}
}

// With the system's roots a certificate proves no membership: it takes a link.
func TestAutoConnectPublic(t *testing.T) {
	i, ca := newInternet(t), publicAuthority(t)
	creds := func(host string) *link.Credentials {
		return &link.Credentials{Certificate: ca.issue(t, host).Certificate}
	}
	a := i.start("a.example", creds("a.example"), func(c *Config) { c.AutoConnect = true })
	b := i.start("b.example", creds("b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	b.awaitReason("a", "refused by peer: tls: bad certificate")
	a.await("counter", func() bool { return a.Stats().Refused[hello.RefusedName] > 0 })
	if len(a.unknown) > 0 {
		t.Errorf("unknown peer %+v", <-a.unknown)
	}
	a.set(newLink("b", 1, 2, "b.example"))
	a.awaitState("b", link.Up)
}

// Reasons do not change with the time, or each would be written to the status of a link.
func TestExpiredCertificate(t *testing.T) {
	now := time.Now()
	from, to := time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)
	const validity = "is valid from 2024-01-02T03:04:05Z to 2024-02-03T04:05:06Z only, or the clock is wrong"
	good, old := newAuthority(t), newAuthorityAt(t, from, to)
	for _, test := range []struct {
		ca    *authority
		creds *link.Credentials
		want  string
	}{
		{good, good.issueAt(t, from, to, "b"), "certificate of b:80 " + validity},
		{old, old.issueAt(t, now.Add(-time.Hour), now.Add(time.Hour), "b"),
			"certificate of authority CN=CA, which signed for b:80, " + validity},
	} {
		leaf, err := x509.ParseCertificate(test.creds.Certificate.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		named := func(*x509.Certificate) error { return nil }
		verify := tlsConfig(&link.Credentials{Roots: test.ca.pool}, "b:80", new(authorization), named).VerifyConnection
		if err := verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}); err == nil ||
			shortReason(err) != test.want {
			t.Errorf("%v, expected %s", err, test.want)
		}
	}
}

// Reasons name no ephemeral port either.
func TestShortReason(t *testing.T) {
	broken := func(err error) error {
		return &net.OpError{Op: "read", Net: "tcp", Source: &net.TCPAddr{Port: 40001}, Addr: &net.TCPAddr{Port: 40002},
			Err: err}
	}
	for want, err := range map[string]error{
		"connection reset by peer":         broken(os.NewSyscallError("read", syscall.ECONNRESET)),
		"use of closed network connection": broken(net.ErrClosed),
		"strange":                          hello.AsRefusal(hello.RefusedHello, broken(errors.New("strange"))),
		"timed out":                        hello.AsRefusal(hello.RefusedHello, broken(os.ErrDeadlineExceeded)),
		"no such host":                     &net.DNSError{Server: "10.0.0.1:53", IsNotFound: true},
		"closed by peer":                   io.ErrUnexpectedEOF,
	} {
		if got := shortReason(err); got != want {
			t.Errorf("%q, expected %q", got, want)
		}
	}
}

func TestUnencrypted(t *testing.T) {
	i := newInternet(t)
	var log syncBuffer
	a := i.start("a.example", unencrypted, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	if !strings.Contains(log.String(), "neither encrypted nor authenticated") {
		t.Errorf("logged %q", log.String())
	}
	b := i.start("b.example", unencrypted)
	a.set(newLink("b", 1, 2, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
	c := i.start("c.example", unencrypted)
	c.set(newLink("a", 3, 1, "a.example")) // no link at a, and another address than b's
	c.awaitReason("a", "peer closed the connection before its hello")
}

func TestNoCredentialsYet(t *testing.T) {
	i := newInternet(t)
	b := i.start("b.example", i.ca.issue(t, "b.example"))
	n := &node{t: t, tun: newMemTUN(), events: make(chan struct{}, 1)}
	var err error
	if n.Bridge, err = Open(Config{Interface: "mem", open: openerOf(n.tun), timing: testTiming(i),
		Log: quiet}); err != nil {
		t.Fatal(err)
	}
	defer n.Close(false)
	n.set(newLink("b", 1, 2, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	i.name("a.example", n.address())
	b.awaitState("a", link.Down)
	if s := n.status("b"); s.State != link.Idle {
		t.Errorf("status %+v", s)
	}
	n.SetCredentials(i.ca.issue(t, "a.example"))
	n.awaitState("b", link.Up)
}

// Connections without certificate end where there is one, also one that was being made.
func TestCertificateAfterUnencrypted(t *testing.T) {
	i := newInternet(t)
	a, b := i.start("a.example", unencrypted), i.start("b.example", unencrypted)
	a.set(newLink("b", 1, 2, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	a.SetCredentials(i.ca.issue(t, "a.example"))
	a.awaitReason("b", "b.example:80: ")
	p := a.router.table.Load().peers[0]
	for _, accepted := range []bool{false, true} {
		h := &hello.Hello{}
		if p.attachSession(newSession(p, null{}, newBatchConn(null{}, time.Second), accepted, 0, p.featureFlags(), h), h) {
			t.Error("connection without certificate")
		}
	}
	b.SetCredentials(i.ca.issue(t, "b.example"))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	a.reach(b, "192.168.0.11", "192.168.0.12")
}

func TestSuspend(t *testing.T) {
	i, a, b := newPair(t)
	p := a.router.table.Load().peers[0]
	a.SetCredentials(nil)
	a.awaitReason("b", "connection lost: waiting for the certificate")
	b.awaitReason("a", "connect a.example:80: ")
	i.mu.Lock()
	dials := i.dials["b.example"]
	i.mu.Unlock()
	if err := newDialer(p).dialStream(0); err != nil { // one that was being made
		t.Error(err)
	}
	h := &hello.Hello{}
	if p.attachSession(newSession(p, null{}, newBatchConn(null{}, time.Second), false, 0, p.featureFlags(), h), h) {
		t.Error("connected while suspended")
	}
	p.dialAtOnce()
	a.await("end of sessions", func() bool { return a.status("b").Dialled+a.status("b").Accepted == 0 })
	i.mu.Lock()
	if n := i.dials["b.example"]; n > dials+1 {
		t.Errorf("%d dials while suspended", n-dials-1)
	}
	i.mu.Unlock()
	a.SetCredentials(i.ca.issue(t, "a.example"))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	a.reach(b, "192.168.0.11", "192.168.0.12")
}
