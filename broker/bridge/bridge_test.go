package bridge

// Bridges against each other over TCP on the loopback, with TUNs in memory.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

func TestTwoBridges(t *testing.T) {
	_, a, b := newPair(t)
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
	b.pass(a, "192.168.0.12", "192.168.0.11", 2)
	a.pass(b, "192.168.0.11", "100.64.2.7", 3)
	a.tun.in <- packet("192.168.0.11", "100.64.2.7", 64, 65535, 4) // a TUN with offloads could hand this over
	if got := b.receive(); packetMark(got) != 4 || len(got) != 65535 {
		t.Errorf("received %d bytes", len(got))
	}
	a.await("round-trip time", func() bool { return a.status("b").RTT > 0 })
	s := a.status("b")
	if s.Dialled+s.Accepted < 1 || s.Remote == "" || s.Reason != "" || s.Announced.Address.String() != "192.168.0.12/24" || s.Announced.AdvertisedPort != 80 {
		t.Errorf("status %+v", s)
	}
	a.await("counters", func() bool {
		tx, rx := a.Stats().Links["b"], b.Stats().Links["a"]
		return tx.TxPackets == 3 && rx.RxPackets == 3 && tx.TxBytes == 65735 && rx.RxBytes == 65735 && tx.RxPackets == 1
	})
}

// Both dial at once, and packets stay on one session.
func TestBothDial(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	b := i.start("b.example", i.ca.issue(t, "b.example"))
	var wg sync.WaitGroup
	wg.Go(func() { a.set(newLink("b", 1, 2, "b.example")) })
	wg.Go(func() { b.set(newLink("a", 2, 1, "a.example")) })
	wg.Wait()
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	for id := range uint64(50) {
		a.pass(b, "192.168.0.11", "192.168.0.12", id)
		b.pass(a, "192.168.0.12", "192.168.0.11", id)
	}
	if s := a.status("b"); s.Dialled > 2 || s.Accepted > 2 {
		t.Errorf("%d sessions dialled, %d accepted", s.Dialled, s.Accepted)
	}
}

func TestThreeBridgesWithGateway(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	g := i.start("g.example", i.ca.issue(t, "g.example"))
	c := i.start("c.example", i.ca.issue(t, "c.example"))
	c3 := netip.MustParseAddr("192.168.0.13")
	ag, cg := newLink("g", 1, 2, "g.example"), newLink("g", 3, 2, "g.example")
	ag.Networks = append(ag.Networks, netip.PrefixFrom(c3, 32))
	cg.Networks = append(cg.Networks, netip.MustParsePrefix("192.168.0.11/32"))
	a.set(ag)
	c.set(cg)
	g.set(newLink("a", 2, 1, "a.example"), newLink("c", 2, 3, "c.example"))
	g.awaitState("a", link.Up)
	g.awaitState("c", link.Up)
	a.awaitState("g", link.Up)
	c.awaitState("g", link.Up)
	a.tun.in <- packet("192.168.0.11", "192.168.0.13", 1, 60, 1) // ends at the gateway
	a.tun.in <- packet("192.168.0.11", "192.168.0.13", 64, 60, 2)
	got := c.receive()
	if packetMark(got) != 2 || got[8] != 63 || foldSum(sum16(got[:20], 0)) != 0xffff {
		t.Errorf("received %x", got)
	}
	if n := g.Stats().Links["a"].Drops[DropTTL]; n != 1 {
		t.Errorf("%d packets without hops", n)
	}
	c.pass(a, "192.168.0.13", "192.168.0.11", 3)
	a.tun.in <- packet("192.168.0.11", "192.168.0.12", 64, 60, 4) // and the gateway itself
	if packetMark(g.receive()) != 4 {
		t.Error("gateway did not get its packet")
	}
}

func TestFilter(t *testing.T) {
	_, a, b := newPair(t)
	p := newLink("b", 1, 2, "b.example") // a sends more than b takes
	p.Networks = append(p.Networks, netip.MustParsePrefix("10.0.0.0/8"))
	a.set(p)
	a.tun.in <- packet("192.168.0.77", "192.168.0.12", 64, 60, 1)
	a.tun.in <- packet("192.168.0.11", "10.1.1.1", 64, 60, 2)
	a.pass(b, "192.168.0.11", "192.168.0.12", 4)
	b.await("drops", func() bool { // on another stream
		d := b.Stats().Links["a"].Drops
		return d[DropSource] == 1 && d[DropDestination] == 1
	})
	b.await("counter", func() bool { return b.Stats().Links["a"].RxPackets == 3 })
	// Other rules apply at once, and cost no connection.
	since := b.status("a").Since
	q := newLink("a", 2, 1, "a.example")
	q.Ingress = append(q.Ingress, mesh.Rule{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Allow: true}, mesh.Rule{Prefix: netip.MustParsePrefix("10.1.0.0/16")})
	b.set(q)
	a.tun.in <- packet("192.168.0.11", "10.1.1.1", 64, 60, 5)
	a.pass(b, "192.168.0.11", "10.2.1.1", 6)
	b.await("drop of a packet to a destination outside ingress", func() bool { return b.Stats().Links["a"].Drops[DropDestination] == 2 })
	if b.status("a").Since != since {
		t.Error("connection was lost")
	}
}

func TestUnreachableDestinations(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	a.set(newLink("b", 1, 2, "b.example"))
	a.awaitReason("b", "dial b.example:80: no such host")
	for id, dst := range []string{"192.168.0.99", "192.168.0.12"} { // no link, and one that is down
		a.tun.in <- packet("192.168.0.11", dst, 64, 60, uint64(id))
		if got := a.receive(); got[9] != 1 || got[20] != 3 || got[21] != 1 || packetMark(got) != uint64(id) {
			t.Errorf("%s: received %x", dst, got)
		}
	}
	if s := a.Stats(); s.Drops[DropNoLink] != 1 || s.Links["b"].Drops[DropNotConnected] != 1 {
		t.Errorf("stats %+v", s)
	}
}

// A packet for a link that is not connected waits, but neither for long nor in a crowd.
func TestPacketsWaitForConnection(t *testing.T) {
	i := newInternet(t)
	gate := make(chan struct{})
	a := i.start("a.example", i.ca.issue(t, "a.example"), func(c *Config) {
		dial := c.timing.dialer
		c.timing.dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			select {
			case <-gate:
			case <-ctx.Done():
			}
			return dial(ctx, network, address)
		}
	})
	b := i.start("b.example", i.ca.issue(t, "b.example"))
	b.set(newLink("a", 2, 1, "nowhere.example"), newLink("a'", 2, 1, "a.example")) // so that b does not connect first
	b.set(mesh.Peer{Link: "a", Host: "a.example", Local: mesh.Prefixes{netip.MustParsePrefix("192.168.0.12/24")}, Addresses: mesh.Prefixes{netip.MustParsePrefix("192.168.0.11/24")}, Networks: []netip.Prefix{netip.MustParsePrefix("192.168.0.11/32")}, Ingress: newLink("a", 2, 1, "").Ingress})
	i.name("a.example", "127.0.0.1:1")
	b.awaitReason("a", "connection refused")
	a.set(newLink("b", 1, 2, "b.example"))
	const parked = maxBacklog / smallBuffer
	for id := range uint64(parked + 10) {
		a.tun.in <- packet("192.168.0.11", "192.168.0.12", 64, 60, id)
	}
	a.await("drops", func() bool { return a.Stats().Links["b"].Drops[DropNotConnected] == 10 })
	close(gate)
	for id := uint64(10); id < parked+10; id++ {
		if got := packetMark(b.receive()); got != id {
			t.Fatalf("received %d instead of %d", got, id)
		}
	}
}

func TestStalePackets(t *testing.T) {
	_, a, b := newPair(t)
	p := a.router.table.Load().peers[0]
	old := copyBuffer(packet("192.168.0.11", "192.168.0.12", 64, 60, 1), vnetHeader{})
	old.queued = p.now() - 2*time.Second
	p.postPacket(old).kickSender()
	a.pass(b, "192.168.0.11", "192.168.0.12", 2)
	if n := a.Stats().Links["b"].Drops[DropStale]; n != 1 {
		t.Errorf("%d stale packets", n)
	}
}

func TestReplacedCertificate(t *testing.T) {
	_, a, b := newPair(t)
	since := a.status("b").Since
	other := newAuthority(t) // another CA, even
	ca, cb := other.issue(t, "cn=a.example"), other.issue(t, "*.example")
	a.SetCredentials(ca)
	b.SetCredentials(cb)
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
	if s := a.status("b"); s.Since != since || s.State != link.Up {
		t.Errorf("status %+v", s)
	}
	b.set() // and now the new ones are needed
	a.awaitState("b", link.Down)
	b.set(newLink("a", 2, 1, "a.example"))
	a.awaitState("b", link.Up)
	a.reach(b, "192.168.0.11", "192.168.0.12")
}

func TestWrongAuthority(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	b := i.start("b.example", newAuthority(t).issue(t, "b.example"))
	c := i.start("c.example", i.ca.issue(t, "c.example"))
	a.set(newLink("b", 1, 2, "b.example"), newLink("c", 1, 3, "c.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	c.set(newLink("a", 3, 1, "a.example"))
	a.awaitReason("b", "connect b.example:80: certificate of b.example:80: x509: certificate signed by unknown authority")
	b.awaitReason("a", "x509: certificate signed by unknown authority")
	a.await("counter", func() bool { return a.Stats().Refused[RefusedCertificate] > 2 })
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
	a.awaitReason("b", "certificate of b.example:80 names [x.example 10.0.0.1], not b.example")
	b.awaitReason("a", "connect a.example:80: refused by peer: tls: bad certificate")
	if s := a.Stats(); s.Refused[RefusedName] == 0 {
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
	a.awaitReason("b", "connect b.example:80: peer announces cluster address 192.168.0.12/24, this link expects 192.168.0.19")
	b.awaitReason("a", "connect a.example:80: peer closed the connection before its hello")
	b.await("refusal", func() bool { return b.status("a").Refused == "peer does not accept our hello: closed by peer" })
	if s := a.Stats(); s.Refused[RefusedAddress] == 0 {
		t.Errorf("refused %v", s.Refused)
	}
	// Neither end takes the other for connected, not even for a moment.
	if a.ups.Load()+b.ups.Load() != 0 {
		t.Errorf("was up %d and %d times", a.ups.Load(), b.ups.Load())
	}
	other := newLink("b", 1, 2, "b.example")
	other.Local, other.Addresses = mesh.Prefixes{netip.MustParsePrefix("10.0.0.1/24")}, mesh.Prefixes{netip.MustParsePrefix("10.0.0.2/24")}
	a.set(other)
	a.await("refusal", func() bool { return strings.Contains(a.status("b").Refused, "which is not in the mesh 10.0.0.0/24") })
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
		return mesh.Peer{Link: name, Host: host, Port: 80, Local: mesh.Prefixes{netip.MustParsePrefix(mine + "/24")}, Addresses: mesh.Prefixes{netip.MustParsePrefix(theirs + "/24")},
			Networks: []netip.Prefix{netip.MustParsePrefix(theirs + "/32")},
			Ingress:  []mesh.Rule{{Prefix: netip.MustParsePrefix(mine + "/32"), Allow: true}}}
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
	ba.Services = mesh.Prefixes{serviceIP}
	b.set(ba)
	u := <-a.unknown
	if u.Address.String() != "192.168.0.12/24" || u.ServiceCIDR != serviceIP || u.AdvertisedPort != 8080 || len(u.Names) != 1 || u.Names[0] != "b.example" || !u.Remote.Addr().IsLoopback() {
		t.Errorf("unknown peer %+v", u)
	}
	a.await("counter", func() bool { return a.Stats().Refused[RefusedUnknown] > 0 })
	a.set(newLink("b", 1, 2, "b.example"))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	// Not for somebody of another CA.
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
	a.await("counter", func() bool { return a.Stats().Refused[RefusedName] > 0 })
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
	good, old := newAuthority(t), newAuthorityAt(t, from, to)
	for _, test := range []struct {
		ca    *authority
		creds *link.Credentials
		want  string
	}{
		{good, good.issueAt(t, from, to, "b"), "certificate of b:80 is valid from 2024-01-02T03:04:05Z to 2024-02-03T04:05:06Z only, or the clock is wrong"},
		{old, old.issueAt(t, now.Add(-time.Hour), now.Add(time.Hour), "b"), "certificate of authority CN=CA, which signed for b:80, is valid from 2024-01-02T03:04:05Z to 2024-02-03T04:05:06Z only, or the clock is wrong"},
	} {
		leaf, err := x509.ParseCertificate(test.creds.Certificate.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		verify := tlsConfig(&link.Credentials{Roots: test.ca.pool}, "b:80", nil).VerifyConnection
		if err := verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}); err == nil || shortReason(err) != test.want {
			t.Errorf("%v, expected %s", err, test.want)
		}
	}
}

// Reasons name no ephemeral port either.
func TestShort(t *testing.T) {
	broken := func(err error) error {
		return &net.OpError{Op: "read", Net: "tcp", Source: &net.TCPAddr{Port: 40001}, Addr: &net.TCPAddr{Port: 40002}, Err: err}
	}
	for want, err := range map[string]error{
		"connection reset by peer":         broken(os.NewSyscallError("read", syscall.ECONNRESET)),
		"use of closed network connection": broken(net.ErrClosed),
		"strange":                          asRefusal(RefusedHello, broken(errors.New("strange"))),
		"timed out":                        asRefusal(RefusedHello, broken(os.ErrDeadlineExceeded)),
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
	if n.Bridge, err = Open(Config{Interface: "mem", open: openerOf(n.tun), timing: testTiming(i), Log: quiet}); err != nil {
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

func TestSilentPeer(t *testing.T) {
	i := newInternet(t)
	i.freezes, i.silence = true, 200*time.Millisecond
	a, b := i.pair()
	close(i.frozen)
	a.await("detection", func() bool { // by one end; the other may see that one close
		return strings.Contains(a.status("b").Reason+b.status("a").Reason, "connection lost: no answer for 200ms")
	})
	a.awaitState("b", link.Down)
	b.awaitState("a", link.Down)
	i.mu.Lock()
	i.frozen = make(chan struct{})
	i.mu.Unlock()
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	a.reach(b, "192.168.0.11", "192.168.0.12")
}

func TestPeerRestart(t *testing.T) {
	i, a, b := newPair(t)
	b.Close(true)
	if !b.tun.kept {
		t.Error("TUN was not kept")
	}
	a.awaitReason("b", "")
	b = i.start("b.example", i.ca.issue(t, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	a.awaitPeer(b)
	b.awaitPeer(a)
	a.reach(b, "192.168.0.11", "192.168.0.12")
}

// The machine of a peer dies without a word, and another process takes its place: what is left of the old one
// must not get packets.
func TestNewInstance(t *testing.T) {
	i := newInternet(t)
	patient := func(c *Config) { c.timing.silence = time.Hour }
	var dead atomic.Bool
	i.freezes = true
	a := i.start("a.example", i.ca.issue(t, "a.example"), patient)
	old := i.start("b.example", i.ca.issue(t, "b.example"), patient, func(c *Config) {
		dial := c.timing.dialer
		c.timing.dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			if dead.Load() {
				return nil, io.ErrClosedPipe
			}
			return dial(ctx, network, address)
		}
	})
	old.set(newLink("a", 2, 1, "a.example"))
	a.set(newLink("b", 1, 2, "b.example"))
	a.awaitState("b", link.Up)
	old.awaitState("a", link.Up)
	dead.Store(true)
	close(i.frozen)
	i.mu.Lock()
	i.frozen = make(chan struct{})
	i.mu.Unlock()
	b := i.start("b.example", i.ca.issue(t, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	b.awaitState("a", link.Up)
	a.awaitPeer(b)
	a.await("end of the old session", func() bool { return a.status("b").Dialled+a.status("b").Accepted == 1 })
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
}

func TestRemoval(t *testing.T) {
	_, a, b := newPair(t)
	b.set()
	a.awaitState("b", link.Down)
	if _, ok := b.Status("a"); ok || len(b.Statuses()) != 0 {
		t.Error("removed peer has a status")
	}
	a.awaitReason("b", "connect b.example:80: refused by peer: tls: bad certificate")
	b.await("counter", func() bool { return b.Stats().Refused[RefusedName] > 0 })
}

func TestChangedEndpoint(t *testing.T) {
	i, a, b := newPair(t)
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
	c := i.start("c.example", i.ca.issue(t, "c.example"))
	c.set(newLink("a", 2, 1, "a.example"))
	b.set()
	a.set(newLink("b", 1, 2, "c.example"))
	a.awaitState("b", link.Up)
	c.awaitState("a", link.Up)
	a.reach(c, "192.168.0.11", "192.168.0.12")
	a.await("counter that goes on", func() bool { return a.Stats().Links["b"].TxPackets >= 2 })
}

func TestMovedListener(t *testing.T) {
	i, a, b := newPair(t)
	since := a.status("b").Since
	free, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	old := a.address()
	config := a.config
	config.ListenPort = uint16(free.Addr().(*net.TCPAddr).Port)
	if err := a.Configure(config.Settings); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("port in use: %v", err)
	}
	if a.address() != old {
		t.Error("listener was given up")
	}
	free.Close()
	a.set(newLink("b", 1, 2, "b.example"))
	if _, err := net.Dial("tcp", old); err == nil {
		t.Error("old port is still open")
	}
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
	if a.status("b").Since != since {
		t.Error("connection was lost")
	}
	i.name("a.example", a.address())
	b.set()
	b.set(newLink("a", 2, 1, "a.example"))
	b.awaitState("a", link.Up)
}

func TestUpdatedAnnouncement(t *testing.T) {
	_, a, b := newPair(t)
	config := a.config
	config.DNS = &link.DNSInfo{ClusterDomain: "cluster.local", Address: netip.MustParseAddr("100.64.1.10")}
	config.API = &link.APIInfo{Token: "token", CACert: []byte("ca")}
	if err := a.Configure(config.Settings); err != nil {
		t.Fatal(err)
	}
	b.await("announcement", func() bool {
		s := b.status("a").Announced
		return s.DNS != nil && *s.DNS == *config.DNS && s.API != nil && s.API.Token == "token"
	})
	config.API = &link.APIInfo{Token: "token", CACert: make([]byte, 20000)}
	if a.Configure(config.Settings) == nil {
		t.Error("hello is too large")
	}
}

// A peer that announces something else all the time is heard now and then, with the latest.
func TestFrequentAnnouncements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changes := 0
		s := &shared{start: time.Now(), timing: &timing{announceInterval: 3 * time.Second}}
		s.config.Store(&Config{Changed: func() { changes++ }})
		p := &peer{shared: s, ctx: t.Context()}
		say := func(port uint16) (news bool) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.receiveAnnouncement(&link.Announcement{AdvertisedPort: port})
		}
		heard := func(want uint16, wantChanges int) {
			t.Helper()
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			if got := p.status.Announced.AdvertisedPort; got != want || changes != wantChanges {
				t.Errorf("heard %d, want %d; woken %d times, want %d", got, want, changes, wantChanges)
			}
		}
		if !say(1) {
			t.Error("the first is news")
		}
		for range 100 { // it says the same as before again and again
			if say(2) || say(1) {
				t.Error("heard at once")
			}
		}
		say(3)
		heard(1, 0)
		time.Sleep(3 * time.Second)
		heard(3, 1)
		if say(3) {
			t.Error("the same is no news")
		}
		say(4)
		say(3)
		time.Sleep(4 * time.Second)
		heard(3, 1)
		if !say(5) {
			t.Error("heard late, though it was quiet")
		}
		say(6)
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		time.Sleep(4 * time.Second)
		heard(5, 1)
	})
}

// A flood of connections that say nothing is bounded, links go on, and new ones come in.
func TestPendingConns(t *testing.T) {
	i, a, b := newPair(t)
	before := a.Stats().Refused[RefusedCertificate]
	var conns []net.Conn
	for range maxPendingPerAddr + 4 {
		c, err := net.Dial("tcp", a.address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	a.await("refusals", func() bool { return a.Stats().Refused[RefusedLimit] >= 4 })
	conns[0].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conns[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the oldest is open: %v", err)
	}
	conns[len(conns)-1].SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := conns[len(conns)-1].Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the newest is closed: %v", err)
	}
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
	c := i.start("c.example", i.ca.issue(t, "c.example"))
	i.name("c.example", "127.0.0.1:1") // so that c has to come in
	a.set(newLink("b", 1, 2, "b.example"), newLink("c", 1, 3, "c.example"))
	c.set(newLink("a", 3, 1, "a.example"))
	c.awaitState("a", link.Up)
	for _, c := range conns {
		c.Close()
	}
	a.await("room", func() bool {
		a.listener.pending.mu.Lock()
		defer a.listener.pending.mu.Unlock()
		return len(a.listener.pending.conns) == 0
	})
	if n := a.Stats().Refused[RefusedCertificate] - before; n > 2 { // some are of the start
		t.Errorf("%d probes count as refused", n)
	}
}

func TestMaxPendingConns(t *testing.T) {
	var s pendingConns
	enter := func(from byte, proven bool) (n, gone *pendingConn) {
		n = &pendingConn{conn: null{}, remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, from}), 1), authenticated: proven}
		return n, s.addConn(n)
	}
	proven, _ := enter(0, true)
	first, _ := enter(1, false)
	second, _ := enter(2, false)
	for range maxPendingPerAddr - 1 {
		enter(2, false)
	}
	if _, gone := enter(2, false); gone != second {
		t.Errorf("%+v has to go for one of its address", gone)
	}
	for i := byte(3); len(s.conns) < maxPendingConns; i++ {
		enter(i, false)
	}
	if _, gone := enter(200, false); gone != first {
		t.Errorf("%+v has to go for another address", gone)
	}
	for _, o := range s.conns {
		s.markAuthenticated(o)
	}
	if n, gone := enter(201, false); gone != n || len(s.conns) != maxPendingConns || s.conns[0] != proven {
		t.Errorf("%+v has to go when all others have certificates", gone)
	}
}

// Who does not even start TLS is not waited for as long as for a hello.
func TestSlowPendingConn(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"), func(c *Config) {
		c.timing.tls, c.timing.handshake = 20*time.Millisecond, time.Hour
	})
	c, err := net.Dial("tcp", a.address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("still open: %v", err)
	}
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
		h := &hello{}
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
	h := &hello{}
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

// A wide egress gives the peer no address of this cluster.
func TestLocalNetworks(t *testing.T) {
	_, a, b := newPair(t)
	wide, pods, own := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.9.0.0/16")
	p, q := newLink("b", 1, 2, "b.example"), newLink("a", 2, 1, "a.example")
	p.Networks = append(p.Networks, wide, own)
	q.Networks = append(q.Networks, wide)
	b.set(q)
	if err := a.Set([]mesh.Peer{p}, []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24"), pods, own}); err != nil {
		t.Fatal(err)
	}
	b.tun.in <- packet("10.1.2.3", "192.168.0.11", 64, 60, 1)     // as if it were from a pod of a,
	b.tun.in <- packet("192.168.0.11", "192.168.0.11", 64, 60, 2) // and from a itself
	b.tun.in <- packet("192.168.0.12", "10.1.2.3", 64, 60, 3)     // a pod is not within ingress
	b.pass(a, "10.2.3.4", "192.168.0.11", 4)
	b.pass(a, "10.9.3.4", "192.168.0.11", 5) // the very network of the peer
	if d := a.Stats().Links["b"].Drops; d[DropSource] != 2 || d[DropDestination] != 1 {
		t.Errorf("drops %v", d)
	}
	a.tun.in <- packet("192.168.0.11", "10.1.2.3", 64, 60, 6)
	if got := a.receive(); got[9] != 1 || got[20] != 3 || packetMark(got) != 6 {
		t.Errorf("received %x", got)
	}
	if n := a.Stats().Drops[DropNoLink]; n != 1 {
		t.Errorf("%d packets without link", n)
	}
}

// What is announced again, and is the same, is no change.
func TestSameAnnouncement(t *testing.T) {
	_, s := newTestSession(t)
	p, calls := s.peer, 0
	config := *p.config.Load()
	config.Changed = func() { calls++ }
	p.config.Store(&config)
	p.lastReceived = -time.Hour // the one that it began with
	h := p.ownHello()
	h.Address = p.Addresses.First()
	h.API, h.DNS = &link.APIInfo{Token: "token", CACert: []byte("ca")}, &link.DNSInfo{ClusterDomain: "c", Address: netip.MustParseAddr("100.64.2.10")}
	payload, err := h.appendPayload(nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := p.receiveHello(payload); err != nil {
			t.Fatal(err)
		}
	}
	if calls != 1 {
		t.Errorf("%d changes", calls)
	}
}

// Packets for a dead link do not make more dials than the back-off allows.
func TestNoDialStorm(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"), func(c *Config) {
		c.timing.backoff, c.timing.backoffUsed, c.timing.backoffIdle = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	})
	a.set(newLink("b", 1, 2, "b.example"))
	a.awaitState("b", link.Down)
	start := time.Now()
	for time.Since(start) < 300*time.Millisecond {
		a.tun.in <- packet("192.168.0.11", "192.168.0.12", 64, 60, 1)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if n := i.dials["b.example"]; n < 2 || n > 7 {
		t.Errorf("%d dials", n)
	}
}

// A TUN that is gone is opened again, links go on.
func TestTUNFailure(t *testing.T) {
	_, a, b := newPair(t)
	since := a.status("b").Since
	peers := []mesh.Peer{newLink("b", 1, 2, "b.example")}
	next := make(chan device, 1)
	a.iface.openDevice = func() (device, error) { // called by the reader only, once it fails
		select {
		case d := <-next:
			return d, nil
		default:
			return nil, io.ErrUnexpectedEOF
		}
	}
	a.tun.Close(true)
	a.await("error", func() bool {
		err := a.Set(peers, nil)
		return err != nil && strings.Contains(err.Error(), "read TUN mem")
	})
	b.tun.in <- packet("192.168.0.12", "192.168.0.11", 64, 60, 1)
	a.await("drop", func() bool { return a.Stats().Links["b"].Drops[DropTUNWrite] == 1 })
	tun := newMemTUN()
	next <- tun
	a.await("end of the error", func() bool { return a.Set(peers, nil) == nil })
	a.tun = tun
	a.pass(b, "192.168.0.11", "192.168.0.12", 2)
	b.pass(a, "192.168.0.12", "192.168.0.11", 3)
	if a.status("b").Since != since {
		t.Error("connection was lost")
	}
}

// One that is opened while the bridge is closed is kept if that was wanted: it may be the one that was there before.
func TestTUNOpenedTooLate(t *testing.T) {
	for _, keep := range []bool{true, false} {
		i := newInternet(t)
		a := i.start("a.example", i.ca.issue(t, "a.example"))
		late := newMemTUN()
		opening := make(chan struct{})
		a.iface.openDevice = func() (device, error) {
			close(opening)
			<-a.ctx.Done()
			return late, nil
		}
		a.tun.Close(true)
		<-opening
		if err := a.Close(keep); err != nil {
			t.Error(err)
		}
		if <-late.closed; late.kept != keep {
			t.Errorf("kept %v, expected %v", late.kept, keep)
		}
	}
}

// A TUN has the MTU that is configured now, also when that changes while it is opened.
func TestMTU(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	set := func(mtu int) {
		t.Helper()
		c := a.config
		c.MTU = mtu
		if err := a.Configure(c.Settings); err != nil {
			t.Error(err)
		}
	}
	set(1400)
	if mtu := a.tun.mtu.Load(); mtu != 1400 {
		t.Errorf("MTU %d", mtu)
	}
	late := newMemTUN()
	opening, opened := make(chan struct{}), make(chan struct{})
	a.iface.openDevice = func() (device, error) {
		close(opening)
		<-opened
		return late, nil
	}
	a.tun.Close(true)
	<-opening
	set(1300)
	close(opened)
	a.await("MTU", func() bool { return late.mtu.Load() == 1300 })
}

func TestNoSecrets(t *testing.T) {
	api := &link.APIInfo{Token: "s3cret", CACert: nil}
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "api", api, "announced", link.Announcement{API: api})
	io.WriteString(&b, link.Status{Announced: &link.Announcement{API: api}}.Reason)
	if strings.Contains(b.String(), "s3cret") {
		t.Error(b.String())
	}
}
