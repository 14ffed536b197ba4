package bridge

// A legacy peer, written from the description of the wire format alone: it knows nothing of this package.

import (
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

type legacyPeer struct {
	t    *testing.T
	conn net.Conn
}

// dialLegacy connects to a bridge and says hello at once.
func dialLegacy(t *testing.T, i *internet, n *node) *legacyPeer {
	c := i.ca.issue(t, "b.example")
	conn, err := tls.Dial("tcp", n.address(), &tls.Config{Certificates: []tls.Certificate{c.Certificate},
		RootCAs: i.ca.pool, ServerName: "a.example"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f := &legacyPeer{t, conn}
	f.hello()
	return f
}

func (f *legacyPeer) hello() {
	// 192.168.0.12/24, mask in its long form, no service network, port 80, extension 2
	f.write(1, unhex(f.t, "00000000000000000000ffff c0a8000c ffffffffffffffffffffffff ffffff00"+
		"00000000000000000000000000000000 00000000000000000000000000000000"+"0050 000000000000000000000000"+"0015"+
		"02 0012"+"636c75737465722e6c6f63616c 00 6440200a"))
}

// unhex decodes hex digits; blanks are for the reader.
func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (f *legacyPeer) write(typ byte, payload []byte) {
	f.t.Helper()
	b := append([]byte{byte(len(payload) >> 8), byte(len(payload)), typ}, payload...)
	if _, err := f.conn.Write(b); err != nil {
		f.t.Fatal(err)
	}
}

// read returns the next frame. A legacy peer ends where a payload is larger than its buffer.
func (f *legacyPeer) read() (byte, []byte) {
	f.t.Helper()
	f.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	var h [3]byte
	if _, err := io.ReadFull(f.conn, h[:]); err != nil {
		f.t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint16(h[:]))
	if len(b) > 17000 {
		f.t.Fatalf("payload of %d bytes", len(b))
	}
	if _, err := io.ReadFull(f.conn, b); err != nil {
		f.t.Fatal(err)
	}
	if h[2] > 1 {
		f.t.Errorf("frame of type %d", h[2])
	}
	return h[2], b
}

func (f *legacyPeer) exchangePackets(a *node) {
	t := f.t
	typ, hello := f.read()
	if typ != 1 || len(hello) < 80 || string(hello[10:16]) != "\xff\xff\xc0\xa8\x00\x0b" ||
		string(hello[28:32]) != "\xff\xff\xff\x00" {
		t.Fatalf("hello: type %d, %x", typ, hello)
	}
	a.awaitState("b", link.Up)
	if d := a.status("b").Announced.DNS; d == nil || d.ClusterDomain != "cluster.local" ||
		d.Address.String() != "100.64.32.10" {
		t.Errorf("announced %+v", d)
	}
	a.tun.in <- packet("192.168.0.11", "192.168.0.12", 64, 17001, 1)
	a.tun.in <- packet("192.168.0.11", "192.168.0.12", 64, 17000, 2)
	if typ, p := f.read(); typ != 0 || packetMark(p) != 2 {
		t.Errorf("type %d, %d bytes", typ, len(p))
	}
	if n := a.Stats().Links["b"].Drops[DropTooBig]; n != 1 {
		t.Errorf("%d packets are too big", n)
	}
	f.write(7, []byte("what is this"))
	f.write(0, packet("192.168.0.12", "192.168.0.11", 64, 1500, 3))
	if got := packetMark(a.receive()); got != 3 {
		t.Errorf("received %d", got)
	}
	config := a.config
	config.AdvertisedPort, config.Offers = 81, offersOf("192.168.0.9", 3)
	a.Configure(config.Settings) // a legacy peer would not understand a second hello, nor other frames
	a.tun.in <- packet("192.168.0.11", "192.168.0.12", 64, 60, 4)
	if typ, p := f.read(); typ != 0 || packetMark(p) != 4 {
		t.Errorf("type %d, %d bytes", typ, len(p))
	}
	f.conn.Close()
	a.awaitState("b", link.Down)
}

func TestLegacyPeerDials(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"), offering(offersOf("192.168.0.9", 2)))
	a.set(newLink("b", 1, 2, "b.example"))
	a.awaitState("b", link.Down)
	dialLegacy(t, i, a).exchangePackets(a)
}

func TestLegacyPeerAccepts(t *testing.T) {
	i := newInternet(t)
	c := i.ca.issue(t, "b.example")
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{c.Certificate},
		ClientAuth: tls.RequireAnyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	a := i.start("a.example", i.ca.issue(t, "cn=a.example"), offering(offersOf("192.168.0.9", 2)))
	i.name("b.example", l.Addr().String())
	a.set(newLink("b", 1, 2, "b.example"))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	f := &legacyPeer{t, conn}
	f.hello() // as one that knows the link does
	f.exchangePackets(a)
}

// A peer that does not read: its link ends, its queue keeps the newest, and other links do not notice.
func TestPeerThatDoesNotRead(t *testing.T) {
	i := newInternet(t)
	var log syncBuffer
	a := i.start("a.example", i.ca.issue(t, "a.example"),
		func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	c := i.start("c.example", i.ca.issue(t, "c.example"))
	a.set(newLink("b", 1, 2, "b.example"), newLink("c", 1, 3, "c.example"))
	c.set(newLink("a", 3, 1, "a.example"))
	a.awaitState("c", link.Up)
	c.awaitState("a", link.Up)
	a.awaitState("b", link.Down)
	i.name("b.example", "127.0.0.1:1") // refused
	f := dialLegacy(t, i, a)
	f.read()
	a.awaitState("b", link.Up)
	deadline := time.After(20 * time.Second)
	for n := uint64(0); a.status("b").State == link.Up; n++ {
		select {
		case a.tun.in <- packet("192.168.0.11", "192.168.0.12", 64, 16000, n):
		case <-deadline:
			t.Fatal("still up")
		}
		if n%1000 == 0 {
			a.pass(c, "192.168.0.11", "192.168.0.13", n)
		}
	}
	a.await("reason", func() bool { return strings.Contains(log.String(), "connection lost: peer does not read") })
	// On a slow machine the connection ends before the queue is full, and then the queue has no session left.
	if d := a.Stats().Links["b"].Drops; d[DropQueueFull]+d[DropStale]+d[DropNotConnected] == 0 {
		t.Errorf("drops %v", d)
	}
	a.pass(c, "192.168.0.11", "192.168.0.13", 1)
}
