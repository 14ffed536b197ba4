package bridge

// What a packet costs: no allocation, and how much time.

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// null is a connection and a device that take everything.
type null struct{ net.Conn }

func (null) Write(b []byte) (int, error)      { return len(b), nil }
func (null) SetWriteDeadline(time.Time) error { return nil }
func (null) SetDeadline(time.Time) error      { return nil }
func (null) Close() error                     { return nil }
func (null) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

type nullTUN struct {
	closed   chan struct{}
	queues   []tunQueue
	offloads Offloads
}

func newNullTUN(offloads Offloads) *nullTUN {
	t := &nullTUN{closed: make(chan struct{}), offloads: offloads}
	t.queues = []tunQueue{t}
	return t
}

func (t *nullTUN) Queues() []tunQueue          { return t.queues }
func (t *nullTUN) Offloads() Offloads          { return t.offloads }
func (t *nullTUN) TryRead([]byte) (int, error) { return 0, nil }
func (t *nullTUN) Read([]byte) (int, error)    { <-t.closed; return 0, os.ErrClosed }
func (t *nullTUN) Write(b []byte) (int, error) { return len(b), nil }
func (t *nullTUN) SetMTU(int) error            { return nil }
func (t *nullTUN) Close(bool) error            { close(t.closed); return nil }

// newTestSession is a session of a bridge without goroutines of its own.
func newTestSession(t testing.TB) (*tunReader, *session) {
	return newTestSessionOn(t, newNullTUN(OffloadTSO|OffloadUSO))
}

func newTestSessionOn(t testing.TB, dev device) (*tunReader, *session) {
	b := newTestBridge(t, dev)
	b.SetCredentials(unencrypted)
	idle := spec
	idle.Host = "" // is not dialled
	if err := b.Set([]mesh.Peer{idle}, nil); err != nil {
		t.Fatal(err)
	}
	p := b.router.table.Load().peers[0]
	h := &hello.Hello{Capable: true, Flags: b.featureFlags(), Streams: 1}
	raw := newBatchConn(null{}, time.Second)
	raw.startBatching()
	s := newSession(p, raw, raw, true, 0, b.featureFlags(), h)
	if !p.attachSession(s, h) {
		t.Fatal("not attached")
	}
	return newTUNReader(0, 0, b.iface, b.router), s
}

// newTestBridge is a bridge without peers, which is closed at the end of the test.
func newTestBridge(t testing.TB, dev device) *Bridge {
	b, err := Open(Config{Interface: "null", open: openerOf(dev), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(false) })
	return b
}

// withRaceDetector: the race detector makes pools lose a part of what is put in.
var withRaceDetector = func() bool {
	var pool sync.Pool
	lost := 0
	for range 200 {
		pool.Put(new(int))
		if pool.Get() == nil {
			lost++
		}
	}
	return lost > 10
}()

func TestNoAllocations(t *testing.T) {
	o, s := newTestSession(t)
	runs := 1000
	if withRaceDetector { // it looks at each byte that is copied
		runs = 100
	}
	for _, size := range []int{60, 1500, 40000} {
		out := packet("192.168.0.11", "192.168.0.12", 64, size, 0)
		send := func() {
			for range 10 {
				o.routePacket(copy(o.readRoom(), out))
			}
			for o.sendBatches() {
			}
		}
		if n := testing.AllocsPerRun(runs, send); n > 0 && !withRaceDetector {
			t.Errorf("%v allocations for 10 packets of %d bytes out", n, size)
		}
		frames := make([]byte, headroom)
		for range 10 {
			frames = hello.AppendFrame(frames, hello.FramePacket, packet("192.168.0.12", "100.64.0.1", 64, size, 0))
		}
		if n := testing.AllocsPerRun(runs, func() { s.handleFrames(frames, headroom) }); n != 0 {
			t.Errorf("%v allocations for 10 packets of %d bytes in", n, size)
		}
	}
	lost := packet("192.168.0.11", "192.168.0.99", 64, 60, 0)
	if n := testing.AllocsPerRun(runs, func() { o.routePacket(copy(o.readRoom(), lost)) }); n != 0 {
		t.Errorf("%v allocations for a packet without link", n)
	}
}

// superPacket is a TCP super-packet with its virtio_net_hdr, as a TUN with offloads hands it over.
func superPacket(src, dst string, size int) []byte {
	h, b := flow{tcp: true, mss: 1448, flags: 0x10, tcpOptions: 12, fragment: 0x4000}.super(make([]byte, size-52))
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	copy(b[12:], s.AsSlice())
	copy(b[16:], d.AsSlice())
	checksumIPv4(b)
	copy(b[20+csumTCP:], binary.BigEndian.AppendUint16(nil, pseudoSum(b, protocolTCP, len(b)-20)))
	out := make([]byte, vnetSize, vnetSize+len(b))
	h.putBytes(out)
	return append(out, b...)
}

// newTLSSession is a session with TLS over a loopback connection, and the other end of the connection. Only the test
// uses them.
func newTLSSession(t testing.TB, dev device, flags uint32) (o *tunReader, s *session, far *tls.Conn) {
	b, err := Open(Config{Interface: "null", open: openerOf(dev), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(false) })
	ca := newAuthority(t)
	b.SetCredentials(ca.issue(t, "b"))
	idle := spec
	idle.Host = ""
	if err := b.Set([]mesh.Peer{idle}, nil); err != nil {
		t.Fatal(err)
	}
	x, y := sockets(t)
	x.SetWriteBuffer(4 << 20)
	y.SetReadBuffer(4 << 20)
	p := b.router.table.Load().peers[0]
	raw := newBatchConn(x, time.Second)
	creds := &link.Credentials{Certificate: ca.issue(t, "b").Certificate, Roots: ca.pool}
	conf := func() *tls.Config {
		return tlsConfig(creds, "b", new(authorization), func(*x509.Certificate) error { return nil })
	}
	near := tls.Server(raw, conf())
	far = tls.Client(y, conf())
	errs := make(chan error, 1)
	go func() { errs <- far.Handshake() }()
	if err := errors.Join(near.Handshake(), <-errs); err != nil {
		t.Fatal(err)
	}
	h := &hello.Hello{Capable: true, Flags: flags, Streams: 1}
	s = newSession(p, near, raw, true, 0, p.featureFlags(), h)
	s.credentials = b.credentials.Load()
	if !p.attachSession(s, h) {
		t.Fatal("not attached")
	}
	return newTUNReader(0, dev.Offloads(), b.iface, b.router), s, far
}

// Out through TLS and the socket, with a super-packet as it is and cut for a peer without offloads.
func TestNoAllocationsOut(t *testing.T) {
	for _, flags := range []uint32{hello.FlagOffload | hello.FlagUSO, 0} {
		o, _, far := newTLSSession(t, newNullTUN(OffloadTSO|OffloadUSO), flags)
		buf := make([]byte, 1<<17)
		for _, size := range []int{60, 1500, 40000, -65000} {
			in := append(make([]byte, vnetSize), packet("192.168.0.11", "192.168.0.12", 64, max(size, 60), 0)...)
			if size < 0 {
				in = superPacket("192.168.0.11", "192.168.0.12", -size)
			}
			p := o.router.table.Load().peers[0]
			send := func() {
				want := 0 // not more than the kernel holds
				for range 2 {
					o.routePacket(copy(o.readRoom(), in))
					want += len(in) - vnetSize
				}
				for o.sendBatches() {
				}
				for want > 0 { // headers come on top of that: what is left is read the next time
					n, err := far.NetConn().Read(buf) // TLS allocates for each record that it reads
					if want -= n; err != nil {
						t.Fatal(err)
					}
				}
			}
			for range 50 {
				send()
			}
			if n := testing.AllocsPerRun(300, send); n >= 1 && !withRaceDetector {
				t.Errorf("%v allocations for 2 packets of %d bytes out, flags %x", n, size, flags)
			}
			if d := p.counters.drops.load(); d != ([NumDrops]uint64{}) {
				t.Errorf("size %d, flags %x: drops %v", size, flags, d)
			}
		}
		far.Close()
	}
}

// In through TLS to the TUN, with and without offloads.
func TestNoAllocationsIn(t *testing.T) {
	for _, noOffload := range []bool{false, true} {
		dev := newNullTUN(OffloadTSO | OffloadUSO)
		if noOffload {
			dev = newNullTUN(0)
		}
		_, s, far := newTLSSession(t, dev, hello.FlagOffload|hello.FlagUSO)
		if noOffload { // a frame that comes after the TUN has changed
			s.flags = hello.FlagOffload | hello.FlagUSO
		}
		buf := make([]byte, headroom+4*largeBuffer)
		for _, size := range []int{60, 1500, 40000, -65000} {
			frames := hello.AppendFrame(nil, hello.FramePacket, packet("192.168.0.12", "100.64.0.1", 64, max(size, 60), 0))
			if size < 0 {
				p := superPacket("192.168.0.12", "100.64.0.1", -size)
				frames = hello.AppendFrame(nil, hello.FrameOffload, p[:vnetSize])
				frames = hello.AppendFrame(frames, hello.FramePacket, p[vnetSize:])
			}
			before := s.peer.counters.rxPackets.Load()
			pass := func() {
				if _, err := far.Write(frames); err != nil {
					t.Fatal(err)
				}
				for end := headroom; ; {
					n, err := s.conn.Read(buf[end:])
					if err != nil {
						t.Fatal(err)
					}
					end += n
					if end-headroom == len(frames) {
						if used, err := s.handleFrames(buf[:end], headroom); used != end || err != nil {
							t.Fatal(used, err)
						}
						return
					}
				}
			}
			for range 50 {
				pass()
			}
			records := (len(frames) + recordBytes - 1) / recordBytes // TLS allocates an atLeastReader for each
			if n := testing.AllocsPerRun(300, pass); n > float64(records) && !withRaceDetector {
				t.Errorf("%v allocations for a packet of %d bytes, %d records, in, noOffload %v", n, size, records, noOffload)
			}
			if n := s.peer.counters.rxPackets.Load() - before; n != 351 || s.peer.counters.drops.load() != ([NumDrops]uint64{}) {
				t.Errorf("size %d: %d packets, drops %v", size, n, s.peer.counters.drops.load())
			}
		}
	}
}

func BenchmarkOut(b *testing.B) {
	o, _ := newTestSession(b)
	p := packet("192.168.0.11", "192.168.0.12", 64, 1500, 0)
	b.SetBytes(1500)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		o.routePacket(copy(o.readRoom(), p))
		if i%32 == 31 {
			for o.sendBatches() {
			}
		}
	}
}

func BenchmarkIn(b *testing.B) {
	_, s := newTestSession(b)
	frames := hello.AppendFrame(make([]byte, headroom), hello.FramePacket,
		packet("192.168.0.12", "100.64.0.1", 64, 1500, 0))
	b.SetBytes(1500)
	b.ReportAllocs()
	for b.Loop() {
		hello.PutHeader(frames[headroom:], 1500, hello.FramePacket) // the virtio_net_hdr took its place
		s.handleFrames(frames, headroom)
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
	super  bool // packet has a virtio_net_hdr
	queues []tunQueue
}

func (f *flowTUN) Offloads() Offloads {
	if f.super {
		return OffloadTSO | OffloadUSO
	}
	return 0
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

func (f *flowTUN) Queues() []tunQueue { return f.queues }

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
		size       int
		tls, super bool
	}{{60, true, false}, {1500, true, false}, {65000, true, false}, {1500, false, false}, {65000, true, true},
		{65000, false, true}} {
		b.Run(fmt.Sprintf("%d,tls=%v,super=%v", test.size, test.tls, test.super), func(b *testing.B) {
			tokens, done := make(chan struct{}, 256), make(chan struct{})
			i := newInternet(b)
			tuns := map[bool]*flowTUN{}
			start := func(source bool, host string) *node {
				f := &flowTUN{memTUN: memTUN{closed: make(chan struct{})}, tokens: tokens, done: done, super: test.super}
				f.queues = []tunQueue{f}
				if source {
					f.packet = packet("192.168.0.11", "192.168.0.12", 64, test.size, 0)
					if test.super {
						f.packet = superPacket("192.168.0.11", "192.168.0.12", test.size)
					}
				}
				tuns[source] = f
				c := i.ca.issue(b, host)
				if !test.tls {
					c = unencrypted
				}
				return i.start(host, c, func(c *Config) {
					timing := defaultTiming
					timing.dialer = i.dial
					c.open, c.timing = openerOf(f), &timing
				})
			}
			a, z := start(true, "a.example"), start(false, "b.example")
			a.set(newLink("b", 1, 2, "b.example"))
			z.set(newLink("a", 2, 1, "a.example"))
			a.awaitState("b", link.Up)
			z.awaitState("a", link.Up)
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
