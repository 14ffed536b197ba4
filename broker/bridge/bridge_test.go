package bridge

// Bridges against each other over TCP on the loopback, with TUNs in memory.

import (
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
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
	if s.Dialled+s.Accepted < 1 || s.Remote == "" || s.Reason != "" || s.Announced.Address.String() != "192.168.0.12/24" ||
		s.Announced.AdvertisedPort != 80 {
		t.Errorf("status %+v", s)
	}
	a.await("counters", func() bool {
		tx, rx := a.Stats().Links["b"], b.Stats().Links["a"]
		return tx.TxPackets == 3 && rx.RxPackets == 3 && tx.TxBytes == 65735 && rx.RxBytes == 65735 && tx.RxPackets == 1 &&
			tx.TxDelay > 0 && tx.TxDelay < time.Minute
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
	q.Ingress = append(q.Ingress, mesh.Rule{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Allow: true},
		mesh.Rule{Prefix: netip.MustParsePrefix("10.1.0.0/16")})
	b.set(q)
	a.tun.in <- packet("192.168.0.11", "10.1.1.1", 64, 60, 5)
	a.pass(b, "192.168.0.11", "10.2.1.1", 6)
	b.await("drop of a packet to a destination outside ingress",
		func() bool { return b.Stats().Links["a"].Drops[DropDestination] == 2 })
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
	// Both ends may have dialled, so there may be more than one session with the new process.
	a.await("end of the old sessions", func() bool {
		p := a.router.table.Load().peers[0]
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.sessions) > 0 && len(p.sessions) <= 2*DefaultStreams() &&
			!slices.ContainsFunc(p.sessions, func(s *session) bool { return s.instance != b.instance })
	})
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
}

func TestRemoval(t *testing.T) {
	_, a, b := newPair(t)
	b.set()
	a.awaitState("b", link.Down)
	if n := a.status("b").Downs; n != 1 {
		t.Errorf("the link went down %d times", n)
	}
	if s := b.status("a"); s.Link != "" || len(b.Statuses()) != 0 {
		t.Error("removed peer has a status")
	}
	a.awaitReason("b", "connect b.example:80: refused by peer: tls: bad certificate")
	b.await("counter", func() bool { return b.Stats().Refused[hello.RefusedName] > 0 })
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

// A wide egress gives the peer no address of this cluster.
func TestLocalNetworks(t *testing.T) {
	_, a, b := newPair(t)
	wide, pods, own := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"),
		netip.MustParsePrefix("10.9.0.0/16")
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
