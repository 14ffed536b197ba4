package bridge

// The way from the queue to the socket: which goroutine sends when, and bytes that the kernel does not accept at once.

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// sockets is the ends of a connection whose buffers are small.
func sockets(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	x, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, b = x.(*net.TCPConn), y.(*net.TCPConn)
	a.SetWriteBuffer(64 << 10)
	b.SetReadBuffer(256 << 10) // with less, the kernel waits for timers
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// newTestPeer is a peer whose sessions are made by the test.
func newTestPeer(t testing.TB, change ...func(*timing)) (*peer, *Bridge) {
	t.Helper()
	timing := defaultTiming
	for _, f := range change {
		f(&timing)
	}
	b, err := Open(Config{Interface: "null", open: openerOf(newNullTUN(OffloadTSO | OffloadUSO)), Log: quiet,
		timing: &timing})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(false) })
	b.SetCredentials(unencrypted)
	idle := spec
	idle.Host = ""
	if err := b.Set([]mesh.Peer{idle}, nil); err != nil {
		t.Fatal(err)
	}
	return b.router.table.Load().peers[0], b
}

// serveSession makes conn a session of the peer, without pings, and serves it.
func serveSession(t testing.TB, p *peer, conn net.Conn, stream int) (*session, chan struct{}) {
	t.Helper()
	h := &hello.Hello{Capable: true, Flags: hello.FlagStreams | hello.FlagOffload | hello.FlagUSO, Streams: MaxStreams}
	raw := newBatchConn(conn, p.timing.write)
	s := newSession(p, raw, raw, true, stream, p.featureFlags(), h)
	if !p.attachSession(s, h) {
		t.Fatal("not attached")
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.run()
		p.detachSession(s, s.cause)
	}()
	return s, ended
}

// within waits for cond.
func within(t testing.TB, what string, d time.Duration, cond func() bool) {
	t.Helper()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(d); !cond(); <-poll.C {
		if time.Now().After(deadline) {
			t.Fatal("not in time: ", what)
		}
	}
}

// Writes of several goroutines, flushed by one, arrive whole and in order, through a socket that takes little.
func TestBatchConnOrder(t *testing.T) {
	const total, writers = 40 << 20, 3
	a, b := sockets(t)
	g := newBatchConn(a, 10*time.Second)
	g.startBatching()
	// A message: length, writer, number, checksum, content.
	message := func(buf []byte, writer byte, number uint32, r *rand.Rand) []byte {
		size := 13 + r.IntN(100)
		if r.IntN(4) == 0 {
			size = 13 + r.IntN(70000)
		}
		if writer > 0 {
			size = 13 + r.IntN(50)
		}
		m := buf[:size]
		binary.BigEndian.PutUint32(m, uint32(size))
		m[4] = writer
		binary.BigEndian.PutUint32(m[5:], number)
		for i := 13; i+8 <= size; i += 8 {
			binary.LittleEndian.PutUint64(m[i:], r.Uint64())
		}
		binary.BigEndian.PutUint32(m[9:], crc32.ChecksumIEEE(m[13:]))
		return m
	}
	var sent [writers]atomic.Uint32
	type end struct {
		got [writers]uint32
		err error
	}
	received := make(chan end, 1)
	go func() {
		var e end
		buf := make([]byte, 70100)
		r := rand.New(rand.NewPCG(9, 9))
		in := func(n int) bool { // in parts of any size
			for n0 := 0; n0 < n && e.err == nil; {
				m, err := b.Read(buf[n0:min(n, n0+1+r.IntN(20000))])
				n0, e.err = n0+m, err
			}
			return e.err == nil
		}
		for in(13) {
			size, writer, number, sum := int(binary.BigEndian.Uint32(buf)), buf[4], binary.BigEndian.Uint32(buf[5:]),
				binary.BigEndian.Uint32(buf[9:])
			if writer >= writers || size < 13 || size > len(buf) || number != e.got[writer] {
				e.err = errors.New("out of order")
				break
			}
			if size > 13 && !in(size-13) {
				break
			}
			if crc32.ChecksumIEEE(buf[:size-13]) != sum {
				e.err = errors.New("content changed")
				break
			}
			e.got[writer]++
		}
		received <- e
	}()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := byte(1); w < writers; w++ {
		wg.Go(func() { // as TLS does with alerts
			r := rand.New(rand.NewPCG(uint64(w), 2))
			buf := make([]byte, 100)
			for n := uint32(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := g.Write(message(buf, w, n, r)); err != nil {
					t.Error(err)
					return
				}
				sent[w].Add(1)
				if n%8 == 7 {
					select { // not more than the other end takes
					case <-stop:
						return
					case <-time.After(50 * time.Microsecond):
					}
				}
			}
		})
	}
	r, buf, waits, partly := rand.New(rand.NewPCG(1, 1)), make([]byte, 70100), 0, 0
	flush := func() {
		for {
			done, err := g.flushBatch()
			if err != nil {
				t.Fatal(err)
			}
			if done {
				return
			}
			g.mu.Lock()
			if waits++; g.sent > 0 {
				partly++
			}
			g.mu.Unlock()
			if err := g.awaitSend(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for bytes := 0; bytes < total; {
		for range 1 + r.IntN(8) {
			m := message(buf, 0, sent[0].Load(), r)
			if _, err := g.Write(m); err != nil {
				t.Fatal(err)
			}
			bytes += len(m)
			sent[0].Add(1)
		}
		flush()
	}
	close(stop)
	wg.Wait()
	flush()
	if g.batch != nil || g.sent != 0 {
		t.Errorf("%d bytes are left", len(*g.batch)-g.sent)
	}
	a.Close()
	select {
	case e := <-received:
		if !errors.Is(e.err, io.EOF) {
			t.Error(e.err)
		}
		for w := range writers {
			if e.got[w] != sent[w].Load() || e.got[w] == 0 {
				t.Errorf("writer %d: %d of %d messages", w, e.got[w], sent[w].Load())
			}
		}
		t.Logf("%v messages, %d waits, %d of them in the middle", e.got, waits, partly)
	case <-time.After(30 * time.Second):
		t.Fatal("no end")
	}
	if waits == 0 {
		t.Error("the socket took all")
	}
}

// Before start, writes pass; the first one after it waits for flush.
func TestBatchConnStart(t *testing.T) {
	a, b := sockets(t)
	g := newBatchConn(a, time.Second)
	buf := make([]byte, 10)
	b.SetDeadline(time.Now().Add(10 * time.Second))
	g.Write([]byte("one"))
	if n, err := io.ReadFull(b, buf[:3]); err != nil || string(buf[:n]) != "one" {
		t.Fatalf("%s, %v", buf[:n], err)
	}
	g.startBatching()
	if done, err := g.flushBatch(); !done || err != nil {
		t.Error("nothing to flush: ", done, err)
	}
	g.Write([]byte("two"))
	g.Write([]byte("three"))
	b.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := b.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s, %v", buf[:n], err)
	}
	if done, err := g.flushBatch(); !done || err != nil {
		t.Error(done, err)
	}
	b.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := io.ReadFull(b, buf[:8]); err != nil || string(buf[:n]) != "twothree" {
		t.Fatalf("%s, %v", buf[:n], err)
	}
}

// A peer that does not read: flush does not wait, sendSome not for longer than the timeout; after that,
// the connection still works.
func TestBatchConnStuck(t *testing.T) {
	a, b := sockets(t)
	g := newBatchConn(a, 50*time.Millisecond)
	g.startBatching()
	fill := func() (bytes int) {
		for {
			n, _ := g.Write(make([]byte, 60000))
			bytes += n
			done, err := g.flushBatch()
			if err != nil {
				t.Fatal(err)
			}
			if !done {
				return bytes
			}
		}
	}
	total := fill()
	for range 3 {
		var err error
		start := time.Now()
		for err == nil { // the kernel may still take some
			start = time.Now()
			err = g.awaitSend()
			if err == nil && g.batch == nil {
				total += fill()
			}
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 40*time.Millisecond || d > 5*time.Second {
			t.Errorf("after %s", d)
		}
		if done, err := g.flushBatch(); done || err != nil {
			t.Errorf("flush: %v, %v", done, err)
		}
	}
	read := make(chan int64)
	go func() { n, _ := io.Copy(io.Discard, b); read <- n }()
	g.timeout = 10 * time.Second
	for {
		done, err := g.flushBatch()
		if err == nil && !done {
			err = g.awaitSend()
		}
		if err != nil {
			t.Fatal(err)
		}
		if done {
			break
		}
	}
	a.Close()
	if n := <-read; n != int64(total) {
		t.Errorf("%d of %d bytes", n, total)
	}
}

// A peer that has TLS write all the time (a key update is answered), and does not read: what waits is bounded.
func TestBatchConnFlood(t *testing.T) {
	a, b := sockets(t)
	g := newBatchConn(a, 10*time.Second)
	g.startBatching()
	for done := true; done; {
		g.Write(make([]byte, 60000))
		done, _ = g.flushBatch()
	}
	g.Write(make([]byte, 512<<10))
	for buf := make([]byte, 10000); g.sent == 0; { // until a part of what is left was sent
		if _, err := b.Read(buf); err != nil {
			t.Fatal(err)
		}
		if done, err := g.flushBatch(); done || err != nil {
			t.Fatal(done, err)
		}
	}
	ended := make(chan error, 1)
	go func() {
		_, err := g.Read(make([]byte, 1))
		ended <- err
	}()
	var err error
	n := 0
	for before := cap(*g.batch); err == nil && n < 1<<20; n++ {
		if _, err = g.Write(make([]byte, 30)); n == 0 && cap(*g.batch) > before {
			t.Error("grew without need")
		}
	}
	if !errors.Is(err, errKeyUpdates) || len(*g.batch) > maxBuffered {
		t.Errorf("%d bytes wait after %d key updates: %v", len(*g.batch), n, err)
	}
	if err := <-ended; !errors.Is(err, errKeyUpdates) {
		t.Errorf("end of the session: %v", err)
	}
	b.Close()
}

// The longest batch that there is may wait: segments that are mostly headers.
func TestBatchConnLongest(t *testing.T) {
	_, s := newTestSession(t)
	s.flags = 0 // it is cut
	n := 0
	for _, size := range []int{maxBatchBytes - 20000, hello.MaxPayload} { // together a batch
		h, b := flow{tcp: true, mss: minSegmentTCP, ipOptions: 40, tcpOptions: 40}.super(make([]byte, size-120))
		if !h.validateFor(b) {
			t.Fatal("not sound")
		}
		buf := copyBuffer(b, h)
		seg := h.splitPacket(b)
		n += seg.countLeft()
		buf.hash = 1 << 8
		s.postPacket(buf)
	}
	s.kickSender()
	if s.raw.broken != nil || s.kicks.Load() != 0 {
		t.Errorf("%d segments: %v", n, s.raw.broken)
	}
}

// The end of the connection ends waiting.
func TestBatchConnClosed(t *testing.T) {
	for _, ours := range []bool{true, false} {
		a, b := sockets(t)
		g := newBatchConn(a, time.Hour)
		g.startBatching()
		for done := true; done; {
			g.Write(make([]byte, 60000))
			done, _ = g.flushBatch()
		}
		ended := make(chan error, 1)
		go func() {
			for {
				if err := g.awaitSend(); err != nil {
					ended <- err
					return
				}
				if g.batch == nil {
					g.Write(make([]byte, 60000))
				}
			}
		}()
		if ours {
			g.Close()
		} else {
			b.SetLinger(0)
			b.Close()
		}
		select {
		case err := <-ended:
			if ours && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("still waits")
		}
	}
}

// What is no socket is waited for.
func TestBatchConnNoSocket(t *testing.T) {
	x, y := net.Pipe()
	defer x.Close()
	defer y.Close()
	g := newBatchConn(x, 10*time.Second)
	g.startBatching()
	read := make(chan int64)
	go func() { n, _ := io.Copy(io.Discard, y); read <- n }()
	for range 100 {
		g.Write(make([]byte, 10000))
		if done, err := g.flushBatch(); !done || err != nil {
			t.Fatal(done, err)
		}
	}
	x.Close()
	if n := <-read; n != 100*10000 {
		t.Errorf("%d bytes", n)
	}
	g.Write([]byte("x"))
	if done, err := g.flushBatch(); done || err == nil {
		t.Error(done, err)
	}
}

// countFrames reads frames from a connection, as slowly as pace lets it, and counts packets.
func countFrames(conn net.Conn, packets *atomic.Uint64, pace func()) {
	buf, end := make([]byte, 1<<18), 0
	for {
		n, err := conn.Read(buf[end:])
		if err != nil {
			return
		}
		end += n
		rest := buf[:end]
		for {
			typ, _, after, ok := hello.CutFrame(rest)
			if !ok {
				break
			}
			if typ == hello.FramePacket {
				packets.Add(1)
			}
			rest = after
		}
		end = copy(buf, rest)
		if pace != nil {
			pace()
		}
	}
}

// sendFromMany sends packets from several goroutines, each to its own flows, as several TUN readers do.
func sendFromMany(p *peer, goroutines, each int, size func(n int) int) *sync.WaitGroup {
	wg := new(sync.WaitGroup)
	for g := range goroutines {
		wg.Go(func() {
			for n := range each {
				buf := copyBuffer(packet("192.168.0.11", "192.168.0.12", 64, size(n), uint64(n)), vnetHeader{})
				buf.packet()[14], buf.packet()[15] = byte(g), byte(n)
				if s := p.sendPacket(buf); s != nil {
					s.kickSender()
				}
			}
		})
	}
	return wg
}

// countPackets is how many packets were given to connections or dropped.
func countPackets(p *peer) (sent, dropped uint64) {
	for _, d := range p.counters.drops.load() {
		dropped += d
	}
	return p.counters.txPackets.Load(), dropped
}

// A packet that is posted while another goroutine sends is not forgotten.
func TestConcurrentSenders(t *testing.T) {
	const goroutines, each = 8, 100_000
	p, _ := newTestPeer(t)
	a, b := sockets(t)
	a.SetWriteBuffer(1 << 20)
	b.SetReadBuffer(1 << 20)
	s, ended := serveSession(t, p, a, 0)
	var arrived atomic.Uint64
	go countFrames(b, &arrived, nil)
	start := time.Now()
	sendFromMany(p, goroutines, each, func(int) int { return 60 }).Wait()
	within(t, "all packets", 30*time.Second, func() bool {
		sent, dropped := countPackets(p)
		return sent+dropped == goroutines*each && arrived.Load() == sent && s.kicks.Load() == 0
	})
	t.Logf("%d arrived, %v dropped, %s", arrived.Load(), p.counters.drops.load(), time.Since(start))
	if n := s.posted.Load(); n != 0 || s.queue.bytes != 0 || s.raw.batch != nil || p.budget.held.Load() != 0 {
		t.Errorf("%d bytes in the mailbox, %d in the queue", n, s.queue.bytes)
	}
	b.Close()
	<-ended
}

// The same through a socket that takes little, and an end that reads now and then: blocked and free again.
func TestConcurrentSendersBlocked(t *testing.T) {
	const goroutines, each = 4, 5000
	p, _ := newTestPeer(t)
	a, b := sockets(t)
	s, ended := serveSession(t, p, a, 0)
	var arrived atomic.Uint64
	n := 0
	go countFrames(b, &arrived, func() {
		if n++; n%64 == 0 {
			<-time.After(time.Millisecond)
		}
	})
	sendFromMany(p, goroutines, each, func(n int) int { return []int{60, 1500, 6000, 60000}[n%4] }).Wait()
	within(t, "all packets", 60*time.Second, func() bool {
		sent, dropped := countPackets(p)
		return sent+dropped == goroutines*each && arrived.Load() == sent && s.kicks.Load() == 0
	})
	t.Logf("%d arrived, %v dropped", arrived.Load(), p.counters.drops.load())
	b.Close()
	<-ended
}

// A goroutine that posts packets does not send for long: after some batches the session's goroutine goes on.
func TestSenderHandsOver(t *testing.T) {
	_, s := newTestSession(t)
	p := s.peer
	for n := range 12 {
		p.sendPacket(queuedPacket(byte(n), 0, 60000, 0)) // see below
	}
	_ = p
	if s.kicks.Load() != 0 {
		t.Fatal("another goroutine sends")
	}
	s.kickSender()
	if sent, _ := countPackets(p); sent == 0 || sent > 2*maxRounds || len(s.turn) != 1 || s.kicks.Load() == 0 {
		t.Fatalf("%d packets were sent, %d is to go on", sent, len(s.turn))
	}
	s.kickSender() // another goroutine
	<-s.turn
	s.sendLoop()
	if sent, dropped := countPackets(p); sent+dropped != 12 || sent < 2*maxRounds || s.kicks.Load() != 0 {
		t.Errorf("%d packets sent, %d dropped, work %d", sent, dropped, s.kicks.Load())
	}
}

// A session that ends after a goroutine has handed over loses nothing: its packets go to another session.
func TestEndAfterHandOver(t *testing.T) {
	_, s := newTestSession(t)
	p := s.peer
	for n := range 12 {
		p.sendPacket(queuedPacket(byte(n), 0, 60000, 0))
	}
	s.kickSender() // the session's goroutine would go on; it ends instead
	if len(s.turn) != 1 {
		t.Fatal("nothing is left to do")
	}
	raw := newBatchConn(null{}, time.Second)
	h := &hello.Hello{Capable: true, Flags: hello.FlagStreams, Streams: 2}
	next := newSession(p, raw, raw, true, 1, p.featureFlags(), h)
	if !p.attachSession(next, h) {
		t.Fatal("not attached")
	}
	s.close(io.EOF)
	p.detachSession(s, s.cause)
	for range 10 { // in the place of its goroutine
		select {
		case <-next.turn:
			next.sendLoop()
		default:
		}
	}
	if sent, dropped := countPackets(p); sent+dropped != 12 || s.kicks.Load() != 0 {
		t.Errorf("%d packets sent, %d dropped of 12; work %d", sent, dropped, s.kicks.Load())
	}
}

// Sessions come and go while all that goes on: each packet is sent or counted once, and nothing is left.
func TestSessionsComeAndGo(t *testing.T) {
	const goroutines, each = 8, 20_000
	p, _ := newTestPeer(t)
	var arrived, killed atomic.Uint64
	type live struct {
		s     *session
		conn  net.Conn
		ended chan struct{}
	}
	var all []live
	add := func(stream int) live {
		a, b := sockets(t)
		go countFrames(b, &arrived, nil)
		s, ended := serveSession(t, p, a, stream)
		l := live{s, b, ended}
		all = append(all, l)
		return l
	}
	now := [3]live{add(0), add(1), add(2)}
	done := make(chan struct{})
	wg := sendFromMany(p, goroutines, each, func(n int) int { return []int{60, 60, 60, 9000, 60000}[n%5] })
	go func() { wg.Wait(); close(done) }()
	for i := 0; ; i++ {
		select {
		case <-done:
			sent, dropped := countPackets(p)
			t.Logf("%d sessions lost; %d packets sent, %d arrived, %v dropped", killed.Load(), sent, arrived.Load(),
				p.counters.drops.load())
			for _, l := range now {
				within(t, "nothing is left to do", 10*time.Second, func() bool { return l.s.kicks.Load() == 0 })
			}
			awaitEqual(t, func() (uint64, uint64) {
				sent, dropped = countPackets(p)
				return sent + dropped, goroutines * each
			})
			for _, l := range now {
				l.conn.Close()
				<-l.ended
			}
			for n, l := range all {
				if l.s.kicks.Load() != 0 || l.s.posted.Load() != 0 || l.s.queue.bytes != 0 {
					t.Errorf("session %d: work %d, %d bytes posted, %d queued", n, l.s.kicks.Load(), l.s.posted.Load(),
						l.s.queue.bytes)
				}
			}
			return
		default:
		}
		l := &now[i%3]
		before := countAllPackets(p)
		switch i % 4 {
		case 0:
			l.s.raw.Conn.Close()
		case 1:
			l.conn.Close()
		case 2:
			l.s.close(errSilent)
		case 3: // replaced by the next one
			old := *l
			*l = add(i % 3)
			<-old.ended
			old.conn.Close()
			killed.Add(1)
			continue
		}
		<-l.ended
		l.conn.Close()
		killed.Add(1)
		*l = add(i % 3)
		within(t, "traffic", 10*time.Second, func() bool {
			select {
			case <-done:
				return true
			default:
				return countAllPackets(p) > before+500
			}
		})
	}
}

func countAllPackets(p *peer) uint64 { sent, dropped := countPackets(p); return sent + dropped }

// awaitEqual waits until two numbers are equal.
func awaitEqual(t testing.TB, f func() (got, want uint64)) {
	t.Helper()
	var got, want uint64
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-poll.C {
		if got, want = f(); got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%d packets are accounted for, of %d", got, want)
			return
		}
	}
}

// What a slow peer does not take waits in the queue, where it can be overtaken, and not behind it.
func TestBatchConnBound(t *testing.T) {
	for _, size := range []int{60, 1500, 60000} {
		p, _ := newTestPeer(t)
		a, b := sockets(t)
		a.SetWriteBuffer(8 << 10)
		s, ended := serveSession(t, p, a, 0)
		stop, slow := make(chan struct{}), make(chan int)
		go func() {
			buf, n := make([]byte, 20000), 0
			for range 150 {
				m, err := b.Read(buf)
				if n += m; err != nil {
					t.Error(err)
					break
				}
				<-time.After(500 * time.Microsecond) // a slow reader
			}
			slow <- n
		}()
		var wg sync.WaitGroup
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				sendFromMany(p, 1, 50, func(int) int { return size }).Wait()
				<-time.After(100 * time.Microsecond)
			}
		})
		read := <-slow
		dropped := p.counters.drops[DropQueueFull].Load() // while the peer has read
		within(t, "a full queue, as the peer does not read", 10*time.Second, func() bool {
			return p.counters.drops[DropQueueFull].Load() > dropped && s.raw.unsentBytes() > 0
		})
		close(stop)
		wg.Wait()
		b.Close()
		<-ended
		if s.raw.batch == nil {
			t.Fatalf("packets of %d bytes: nothing waits for the socket", size)
		}
		if held := len(*s.raw.batch); held > batchBufferBytes {
			t.Errorf("packets of %d bytes: %d bytes wait for the socket, after %d were read", size, held, read)
		}
	}
}

// While the peer does not read, its batch takes no more memory than the bytes in it.
func TestBatchOfSlowPeer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := newBatchConn(conn, 2*shrinkAfter)
	c.startBatching()
	data := make([]byte, 10000)
	for done := true; done; {
		if _, err = c.Write(data); err == nil {
			done, err = c.flushBatch()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	rest := c.unsentBytes()
	if err := c.awaitSend(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("awaitSend: %v", err)
	}
	if n := c.unsentBytes(); n != rest || rest == 0 || cap(*c.batch) > 2*rest+4096 {
		t.Errorf("%d bytes wait, %d before, in memory for %d", n, rest, cap(*c.batch))
	}
}
