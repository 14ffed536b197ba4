package bridge

// Accepted connections: the port, and the bounds of pending connections.

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

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
		n = &pendingConn{conn: null{}, remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, from}), 1),
			authenticated: proven}
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
