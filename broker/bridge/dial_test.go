package bridge

// Pauses between dials.

import (
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// Packets for a dead link do not make more dials than the back-off allows.
func TestNoDialStorm(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"), func(c *Config) {
		c.timing.backoff, c.timing.backoffUsed, c.timing.backoffIdle = 100*time.Millisecond, 100*time.Millisecond,
			100*time.Millisecond
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

// A peer that says hello and goes, again and again, is dialled less and less often.
func TestFlappingPeer(t *testing.T) {
	i := newInternet(t)
	c := i.ca.issue(t, "b.example")
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := tls.NewListener(tcp, &tls.Config{Certificates: []tls.Certificate{c.Certificate},
		ClientAuth: tls.RequireAnyClientCert})
	defer l.Close()
	a := i.start("a.example", i.ca.issue(t, "a.example"), func(c *Config) {
		c.timing.backoff, c.timing.backoffUsed, c.timing.backoffIdle, c.timing.stable = 4*time.Millisecond,
			150*time.Millisecond, 150*time.Millisecond, time.Hour
	})
	i.name("b.example", l.Addr().String())
	h := &hello.Hello{Capable: true, Flags: hello.FlagStreams, Instance: 7, Streams: 1,
		Announcement: link.Announcement{Address: netip.MustParsePrefix("192.168.0.12/24")}}
	payload, err := h.AppendPayload(nil)
	if err != nil {
		t.Fatal(err)
	}
	a.set(newLink("b", 1, 2, "b.example"))
	start := time.Now()
	const dials = 12
	for range dials {
		tcp.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := hello.ReadHello(conn, hello.MaxPayload); err != nil {
			t.Fatal(err)
		}
		conn.Write(hello.AppendFrame(nil, hello.FrameHello, payload))
		a.awaitState("b", link.Up)
		conn.Close()
		a.awaitState("b", link.Down)
	}
	if d := time.Since(start); d < 400*time.Millisecond {
		t.Errorf("%d dials within %s", dials, d)
	}
}
