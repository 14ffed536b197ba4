package bridge

// What a packet costs: no allocation, and how much time.

import (
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// null is a connection and a device that take everything.
type null struct{ net.Conn }

func (null) Write(b []byte) (int, error)      { return len(b), nil }
func (null) SetWriteDeadline(time.Time) error { return nil }
func (null) SetDeadline(time.Time) error      { return nil }
func (null) Close() error                     { return nil }
func (null) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

type nullTUN struct{ closed chan struct{} }

func (t nullTUN) Queues() []tunQueue          { return []tunQueue{t} }
func (t nullTUN) Offloads() Offloads          { return OffloadTSO | OffloadUSO }
func (t nullTUN) TryRead([]byte) (int, error) { return 0, nil }
func (t nullTUN) Read([]byte) (int, error)    { <-t.closed; return 0, os.ErrClosed }
func (t nullTUN) Write(b []byte) (int, error) { return len(b), nil }
func (t nullTUN) Close(bool) error            { close(t.closed); return nil }

// bare is a session of a bridge without goroutines of its own.
func bare(t testing.TB) (*outbound, *session) {
	b, err := Open(Config{Interface: "null", open: opens(nullTUN{make(chan struct{})}), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(false) })
	b.SetCredentials(nil)
	idle := spec
	idle.Host = "" // is not dialled
	if err := b.Set([]mesh.Peer{idle}); err != nil {
		t.Fatal(err)
	}
	p := b.table.Load().peers[0]
	h := &hello{capable: true, flags: b.flags(), streams: 1}
	raw := newGather(null{}, time.Second)
	raw.start()
	s := newSession(p, raw, raw, true, 0, h)
	if !p.attach(s, h) {
		t.Fatal("not attached")
	}
	return b.newOutbound(0, 0), s
}

func TestNoAllocations(t *testing.T) {
	o, s := bare(t)
	for _, size := range []int{60, 1500, 40000} {
		out := packet("192.168.0.11", "192.168.0.12", 64, size, 0)
		send := func() {
			for range 10 {
				o.packet(copy(o.room(), out))
			}
			o.send()
		}
		if n := testing.AllocsPerRun(1000, send); n >= 10 { // the race detector makes pools lose a part; without it there is none
			t.Errorf("%v allocations for 10 packets of %d bytes out", n, size)
		}
		frames := make([]byte, headroom)
		for range 10 {
			frames = appendFrame(frames, framePacket, packet("192.168.0.12", "100.64.0.1", 64, size, 0))
		}
		if n := testing.AllocsPerRun(1000, func() { s.frames(frames, headroom) }); n != 0 {
			t.Errorf("%v allocations for 10 packets of %d bytes in", n, size)
		}
	}
	lost := packet("192.168.0.11", "192.168.0.99", 64, 60, 0)
	if n := testing.AllocsPerRun(1000, func() { o.packet(copy(o.room(), lost)) }); n != 0 {
		t.Errorf("%v allocations for a packet without link", n)
	}
}

func BenchmarkOut(b *testing.B) {
	o, _ := bare(b)
	p := packet("192.168.0.11", "192.168.0.12", 64, 1500, 0)
	b.SetBytes(1500)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		o.packet(copy(o.room(), p))
		if i%32 == 31 {
			o.send()
		}
	}
}

func BenchmarkIn(b *testing.B) {
	_, s := bare(b)
	frames := appendFrame(make([]byte, headroom), framePacket, packet("192.168.0.12", "100.64.0.1", 64, 1500, 0))
	b.SetBytes(1500)
	b.ReportAllocs()
	for b.Loop() {
		s.frames(frames, headroom)
	}
}

// flowTUN is a source of equal packets, or the sink that they end in. As many are under way as there
// are tokens.
type flowTUN struct {
	memTUN
	packet []byte
	tokens chan struct{}
	left   int
	done   chan struct{}
}

func (f *flowTUN) Read(b []byte) (int, error) {
	if f.packet == nil {
		return f.memTUN.Read(b)
	}
	select {
	case <-f.tokens:
		return copy(b, f.packet), nil
	case <-f.closed:
		return 0, io.EOF
	}
}

func (f *flowTUN) Queues() []tunQueue { return []tunQueue{f} }

func (f *flowTUN) TryRead(b []byte) (int, error) {
	if f.packet == nil {
		return f.memTUN.TryRead(b)
	}
	select {
	case <-f.tokens:
		return copy(b, f.packet), nil
	default:
		return 0, nil
	}
}

func (f *flowTUN) Write(b []byte) (int, error) {
	if f.left--; f.left == 0 {
		close(f.done)
	} else if f.left > 0 {
		f.tokens <- struct{}{}
	}
	return len(b), nil
}

// BenchmarkLink is from TUN to TUN through TLS over the loopback, both ends on this machine.
func BenchmarkLink(b *testing.B) {
	for _, test := range []struct {
		size int
		tls  bool
	}{{60, true}, {1500, true}, {65000, true}, {1500, false}} {
		b.Run(fmt.Sprintf("%d,tls=%v", test.size, test.tls), func(b *testing.B) {
			tokens, done := make(chan struct{}, 256), make(chan struct{})
			i := newInternet(b)
			tuns := map[bool]*flowTUN{}
			start := func(source bool, host string) *node {
				f := &flowTUN{memTUN: memTUN{closed: make(chan struct{})}, tokens: tokens, done: done}
				if source {
					f.packet = packet("192.168.0.11", "192.168.0.12", 64, test.size, 0)
				}
				tuns[source] = f
				c := i.ca.issue(b, host)
				if !test.tls {
					c = nil
				}
				return i.start(host, c, func(c *Config) { c.open = opens(f); t := defaultTiming; t.dialer = i.plainDial; c.timing = &t })
			}
			a, z := start(true, "a.example"), start(false, "b.example")
			a.set(link("b", 1, 2, "b.example"))
			z.set(link("a", 2, 1, "a.example"))
			a.awaitState("b", Up)
			z.awaitState("a", Up)
			window := min(cap(tokens), max(4, 400_000/test.size)) // below the bounds of the queue
			tuns[false].left = b.N
			b.SetBytes(int64(test.size))
			b.ReportAllocs()
			b.ResetTimer()
			for range min(window, b.N) {
				tokens <- struct{}{}
			}
			select {
			case <-done:
			case <-time.After(time.Minute):
				b.Fatalf("%d packets lost: %+v", tuns[false].left, a.Stats())
			}
			b.StopTimer()
		})
	}
}
