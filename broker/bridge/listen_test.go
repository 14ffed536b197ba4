package bridge

// Accepted connections: the port, and the bounds of pending connections.

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

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

// A flood of connections that say nothing is bounded, links go on, and new ones come in.
func TestPendingConns(t *testing.T) {
	i, a, b := newPair(t, func(c *Config) { // a busy machine takes longer than usual limits
		c.timing.handshake, c.timing.tls, c.timing.hello = time.Minute, time.Minute, time.Minute
	})
	before := a.Stats().Refused[hello.RefusedCertificate]
	var conns []net.Conn
	for range maxStrangers + 100 {
		c, err := net.Dial("tcp", a.address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	a.await("refusals", func() bool { return a.Stats().Refused[hello.RefusedLimit] >= 100 })
	if n := a.listener.pending.count(); n > maxStrangers {
		t.Errorf("%d connections are pending, of %d at most", n, maxStrangers)
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
	a.await("room", func() bool { return a.listener.pending.count() == 0 })
	if n := a.Stats().Refused[hello.RefusedCertificate] - before; n > 2 { // some are of the start
		t.Errorf("%d probes count as refused", n)
	}
}

// count returns the number of connections.
func (p *pendingConns) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.strangers) + len(p.members)
}

// pendingFrom is a new connection from 10.0.0.from.
func pendingFrom(from byte) *pendingConn {
	return &pendingConn{conn: null{}, remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, from}), 1),
		late: lateAfter}
}

// A late connection makes room; without a late one, some new ones are dropped, and never a handshake that was begun.
func TestAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pendingConns
		begun := pendingFrom(1)
		for n := range startDropping {
			c := pendingFrom(1)
			if n == 0 {
				c = begun
			}
			if p.addConn(c) != nil {
				t.Fatalf("connection %d is dropped", n)
			}
		}
		p.awaitAnswer(begun, askedCertificate)
		dropped := 0
		for range 4 * maxStrangers {
			c := pendingFrom(1)
			switch gone := p.addConn(c); {
			case gone == c:
				dropped++
			case gone != nil:
				t.Fatal("a connection is closed that is not late")
			}
		}
		if n := p.count(); n > maxStrangers || n < maxStrangers*3/4 || dropped < 2*maxStrangers {
			t.Errorf("%d are pending, %d were dropped", n, dropped)
		}
		// An address with a small part in the flood has a small part in the drops.
		others := 0
		for range 1000 {
			c := pendingFrom(2)
			if p.addConn(c) == c {
				others++
			}
			p.removeConn(c)
		}
		if others > 50 {
			t.Errorf("%d of 1000 from another address are dropped", others)
		}
		time.Sleep(lateAfter / 2)
		p.startWork(begun)
		time.Sleep(lateAfter) // is not the peer's time
		p.awaitAnswer(begun, askedCertificate)
		for range 100 {
			if gone := p.addConn(pendingFrom(1)); gone == nil || gone == begun || time.Since(gone.since) <= lateAfter {
				t.Fatalf("%+v is closed, and not a late one", gone)
			}
		}
		// Byte by byte is late all the same.
		time.Sleep(lateAfter)
		for range 3 {
			p.startWork(begun)
			p.awaitAnswer(begun, askedCertificate)
		}
		var gone []*pendingConn
		for range maxStrangers {
			gone = append(gone, p.addConn(pendingFrom(1)))
		}
		if !slices.Contains(gone, begun) {
			t.Error("a connection that is late for longer than others is not closed")
		}
	})
}

// A certificate has few connections that wait for a hello: its own oldest ones make room, and no others.
func TestPendingOfOneName(t *testing.T) {
	var p pendingConns
	member := func(name byte) (c, closed *pendingConn) {
		c = pendingFrom(1)
		p.addConn(c)
		return c, p.authenticate(c, nameHash{name}, 4)
	}
	honest, _ := member(1)
	var evil []*pendingConn
	for n := range 72 {
		c, closed := member(2)
		evil = append(evil, c)
		if n < 4 && closed != nil || n >= 4 && closed != evil[n-4] {
			t.Fatalf("connection %d closes %v", n, closed)
		}
	}
	if n := p.count(); n != 5 {
		t.Errorf("%d are pending", n)
	}
	for n := range 2 * maxMembers {
		member(byte(3 + n%200))
	}
	if n := p.count(); n > maxMembers {
		t.Errorf("%d are pending, of %d at most", n, maxMembers)
	}
	p.removeConn(honest) // which was closed for the others in the end
}

// A certificate without link is reported once in an interval; the memory for that is bounded.
func TestUnknownReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u unknownReports
		if !u.allow(nameHash{1}, time.Second) || u.allow(nameHash{1}, time.Second) || !u.allow(nameHash{2}, time.Second) {
			t.Error("not once for each")
		}
		for n := range 2 * maxReports {
			u.allow(nameHash{3, byte(n), byte(n >> 8)}, time.Second)
		}
		if len(u.last) > maxReports {
			t.Errorf("remembers %d", len(u.last))
		}
		time.Sleep(time.Second)
		if !u.allow(nameHash{1}, time.Second) || !u.allow(nameHash{9}, time.Second) {
			t.Error("not again")
		}
	})
}

// A connection that does not even start TLS is closed sooner than one that sends no hello.
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
