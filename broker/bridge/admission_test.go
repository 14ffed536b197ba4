package bridge

// What strangers and peers with a certificate do to the peers that want to get in, to the log and to statuses.

import (
	"context"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// farConn is a connection with a round-trip time: the first bytes after a write come so much later.
type farConn struct {
	net.Conn
	rtt  time.Duration
	sent atomic.Bool
	once sync.Once
	done chan struct{}
}

func (s *farConn) Close() error {
	s.once.Do(func() { close(s.done) })
	return s.Conn.Close()
}

func (s *farConn) Write(b []byte) (int, error) {
	s.sent.Store(true)
	return s.Conn.Write(b)
}

func (s *farConn) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if s.sent.Swap(false) {
		select {
		case <-time.After(s.rtt):
		case <-s.done:
		}
	}
	return n, err
}

// productTiming is the timing of the product, in the internet of the tests.
func (i *internet) productTiming(c *Config) {
	timing := defaultTiming
	timing.dialer = i.dial
	c.timing = &timing
}

// A hub comes back behind a load balancer that shows one address for all its peers, which return at once from afar.
// Nothing is refused, and nothing dialled twice.
func TestManyPeersBehindOneAddress(t *testing.T) {
	const peers, rtt = 100, 300 * time.Millisecond
	i := newInternet(t)
	hub := i.start("hub.example", i.ca.issue(t, "hub.example"), i.productTiming)
	all := make([]mesh.Peer, peers)
	for k := range all {
		p := newLink(fmt.Sprint("c", k), 1, 2, fmt.Sprintf("c%d.example", k))
		addr := netip.AddrFrom4([4]byte{192, 168, 0, byte(100 + k)})
		p.Addresses = mesh.Prefixes{netip.PrefixFrom(addr, 24)}
		p.Networks = []netip.Prefix{netip.PrefixFrom(addr, 32)}
		all[k] = p
	}
	hub.set(all...)
	var dials atomic.Int64
	nodes := make([]*node, peers)
	for k := range all {
		nodes[k] = i.start(fmt.Sprintf("x%d.example", k), i.ca.issue(t, all[k].Host), i.productTiming, func(c *Config) {
			c.Streams = 1
			c.timing.dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
				dials.Add(1)
				conn, err := i.dial(ctx, network, address)
				if err != nil {
					return nil, err
				}
				return &farConn{Conn: conn, rtt: rtt, done: make(chan struct{})}, nil
			}
		})
	}
	begin := time.Now()
	for k, n := range nodes {
		p := newLink("hub", 2, 1, "hub.example")
		p.Local = all[k].Addresses
		n.set(p)
	}
	for _, n := range nodes {
		n.awaitState("hub", link.Up)
	}
	took, refused := time.Since(begin), hub.Stats().Refused
	t.Logf("%d peers are up after %s, %d dials, refused %v", peers, took, dials.Load(), refused)
	if refused[hello.RefusedLimit] != 0 || dials.Load() != peers {
		t.Errorf("%d dials, refused %v", dials.Load(), refused)
	}
}

// stranger connects to n with a certificate, and leaves the connection to use.
func (n *node) stranger(creds *link.Credentials, use func(*tls.Conn)) {
	conn, err := net.Dial("tcp", n.address())
	if err != nil {
		return // the bridge is closed
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	s := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{creds.Certificate}})
	if s.Handshake() == nil {
		use(s)
	}
}

// sayHello has a peer say hello, and returns the answer.
func sayHello(s *tls.Conn, address string) error {
	h := hello.Hello{Announcement: link.Announcement{Address: netip.MustParsePrefix(address)}}
	payload, err := h.AppendPayload(nil)
	if err == nil {
		_, err = s.Write(hello.AppendFrame(nil, hello.FrameHello, payload))
	}
	if err == nil {
		_, err = hello.ReadHello(s, hello.MaxPayload)
	}
	return err
}

// A peer that holds 72 connections without a hello, and makes each anew, keeps nobody out, not even a second process
// with its own certificate.
func TestIdleMember(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"), i.productTiming)
	a.set(newLink("b", 1, 2, "b.example"), newLink("c", 1, 3, "c.example"))
	evil := i.ca.issue(t, "c.example")
	var wg sync.WaitGroup
	defer wg.Wait()
	var made atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 72 {
		wg.Go(func() {
			for ctx.Err() == nil {
				a.stranger(evil, func(s *tls.Conn) {
					made.Add(1)
					defer context.AfterFunc(ctx, func() { s.NetConn().Close() })()
					s.Read(make([]byte, 1)) // until it is thrown out
				})
			}
		})
	}
	a.await("the attack", func() bool { return made.Load() > 100 })
	for _, test := range []struct{ host, address string }{
		{"b.example", "192.168.0.12/24"}, {"c.example", "192.168.0.13/24"},
	} {
		creds := i.ca.issue(t, test.host)
		for try := range 10 {
			begin, in := time.Now(), false
			a.stranger(creds, func(s *tls.Conn) { in = sayHello(s, test.address) == nil })
			if took := time.Since(begin); test.host == "b.example" && !in || took > 5*time.Second {
				t.Errorf("%s, try %d: in %v after %s", test.host, try, in, took)
			}
		}
	}
	a.listener.pending.mu.Lock()
	n := len(a.listener.pending.members)
	a.listener.pending.mu.Unlock()
	if limit := 2 * a.config.Streams; n > 2*max(limit, 2*DefaultStreams()) {
		t.Errorf("%d connections of two certificates are pending", n)
	}
}

// A peer that says nothing after its certificate is cut off soon.
func TestLateHello(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"), func(c *Config) { c.timing.hello = 50 * time.Millisecond })
	a.set(newLink("b", 1, 2, "b.example"))
	begin := time.Now()
	a.stranger(i.ca.issue(t, "b.example"), func(s *tls.Conn) { s.Read(make([]byte, 1)) })
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("ended after %s", took)
	}
	a.await("refusal", func() bool { return a.Stats().Refused[hello.RefusedHello] > 0 })
	// A hello alone is not all: the ping has to follow that a keepalive begins with.
	begin = time.Now()
	a.stranger(i.ca.issue(t, "b.example"), func(s *tls.Conn) {
		h := hello.Hello{Announcement: link.Announcement{Address: netip.MustParsePrefix("192.168.0.12/24")},
			Capable: true, Flags: hello.FlagKeepalive}
		payload, err := h.AppendPayload(nil)
		if err != nil {
			t.Error(err)
		}
		s.Write(hello.AppendFrame(nil, hello.FrameHello, payload))
		io.Copy(io.Discard, s)
	})
	if took := time.Since(begin); took > 4*time.Second || a.ups.Load() != 0 {
		t.Errorf("without a ping it ended after %s, and was up %d times", took, a.ups.Load())
	}
	a.await("refusal", func() bool { return a.Stats().Refused[hello.RefusedHello] > 1 })
}

// Texts of a machine in the middle and of strangers: what a user reads is a line of at most 1 KB.
func TestLongTexts(t *testing.T) {
	i := newInternet(t)
	var log syncBuffer
	a := i.start("a.example", i.ca.issue(t, "a.example"),
		func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	long := strings.Repeat("x", 2000) + "\nforged"
	authority := authorityNamed(long)
	authority.NotBefore, authority.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	expired := sign(t, elliptic.P256(), authority, nil)
	names := &x509.Certificate{DNSNames: []string{"b.example"}}
	for n := range link.MaxCertNames - 1 {
		names.DNSNames = append(names.DNSNames, fmt.Sprintf("%s%d.example", strings.Repeat("y", 60), n))
	}
	unknown := sign(t, elliptic.P256(), authorityNamed(long), nil)
	others := *names
	others.DNSNames = names.DNSNames[1:]
	root := &signer{i.ca.cert, i.ca.key}
	for what, creds := range map[string]*link.Credentials{
		"authority with a long subject": chainOf(sign(t, elliptic.P256(), names, expired), expired),
		"unknown authority":             chainOf(sign(t, elliptic.P256(), names, unknown)),
		"many names":                    chainOf(sign(t, elliptic.P256(), &others, root)),
		"long common name": chainOf(sign(t, elliptic.P256(),
			&x509.Certificate{Subject: pkix.Name{CommonName: long}}, root)),
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				s := tls.Server(conn, &tls.Config{ClientAuth: tls.RequestClientCert,
					Certificates: []tls.Certificate{creds.Certificate}})
				conn.SetDeadline(time.Now().Add(5 * time.Second))
				s.Handshake()
				conn.Close()
			}
		})
		i.name("b.example", listener.Addr().String())
		a.set()
		a.set(newLink("b", 1, 2, "b.example"))
		a.await(what, func() bool { return strings.Contains(a.status("b").Reason, "certificate of ") })
		if r := a.status("b").Reason; len(r) > 1<<10 || strings.ContainsAny(r, "\n\r") {
			t.Errorf("%s: reason has %d bytes: %q", what, len(r), r)
		}
		a.set()
		for range 5 {
			a.stranger(creds, func(s *tls.Conn) { io.Copy(io.Discard, s) })
		}
		listener.Close()
		wg.Wait()
	}
	for line := range strings.Lines(log.String()) {
		if len(line) > 1<<10+300 {
			t.Errorf("a line of %d bytes: %.200q", len(line), line)
		}
	}
}

// A peer that connects and goes as fast as it can, and strangers that do, cause a line per second and cause, and few
// calls of Changed.
func TestFlappingInbound(t *testing.T) {
	i := newInternet(t)
	var log syncBuffer
	var changes atomic.Int64
	const interval = 50 * time.Millisecond
	a := i.start("a.example", i.ca.issue(t, "a.example"), func(c *Config) {
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
		c.timing.logInterval, c.timing.changeInterval = time.Hour, interval
		tell := c.Changed
		c.Changed = func() { changes.Add(1); tell() }
	})
	a.set(newLink("b", 1, 2, "b.example"))
	i.name("b.example", "")
	creds, stranger := i.ca.issue(t, "b.example"), newAuthority(t).issue(t, "b.example")
	begin, sessions := time.Now(), 0
	for range 100 {
		a.stranger(creds, func(s *tls.Conn) {
			if sayHello(s, "192.168.0.12/24") == nil {
				sessions++
			}
		})
		a.stranger(stranger, func(s *tls.Conn) { s.Read(make([]byte, 1)) })
	}
	a.awaitState("b", link.Down)
	if sessions < 90 {
		t.Errorf("%d sessions only", sessions)
	}
	if n, most := changes.Load(), int64(time.Since(begin)/interval)+2; n > most {
		t.Errorf("%d sessions: %d calls of Changed, at most %d are right", sessions, n, most)
	}
	// Listening; up, down, one connection of several, and cannot be connected; a certificate that is refused.
	if n := strings.Count(log.String(), "\n"); n > 6 {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
	if !strings.Contains(log.String(), "link is up") || !strings.Contains(log.String(), "connection refused") {
		t.Errorf("logged %s", log.String())
	}
}

// A peer that announces another wrong address each time changes the status now and then only.
func TestChangingRefusals(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	a.set(newLink("b", 1, 2, "b.example"))
	i.name("b.example", "")
	creds := i.ca.issue(t, "b.example")
	seen := map[string]bool{}
	for n := range 64 {
		a.stranger(creds, func(s *tls.Conn) { sayHello(s, fmt.Sprintf("192.168.0.%d/24", 100+n)) })
		a.await("refusal", func() bool { return a.status("b").Refused != "" })
		seen[a.status("b").Refused] = true
	}
	if len(seen) > 64/(hello.MaxReasons-1)+1 {
		t.Errorf("64 refusals, %d statuses", len(seen))
	}
}
