package bridge

// Several sessions of a link: how many there are, which one a flow takes, and the loss of one.

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// newStreamPair is two bridges over sockets, not linked yet, with a number of streams each. a is the initiator.
func newStreamPair(t *testing.T, ours, theirs int, change ...func(*Config)) (i *internet, a, b *node,
	most *atomic.Int64) {
	t.Helper()
	i, most = newInternet(t), new(atomic.Int64)
	start := func(host string, streams int) *node {
		var n *node
		n = i.start(host, i.ca.issue(t, host), append(change, func(c *Config) {
			c.Streams = streams
			// a busy machine is no loss
			c.timing.silence, c.timing.write, c.timing.stale = 20*time.Second, 20*time.Second, time.Minute
			told := c.Changed
			c.Changed = func() {
				for _, s := range n.Statuses() {
					for now, had := int64(s.Dialled+s.Accepted), most.Load(); now > had &&
						!most.CompareAndSwap(had, now); had = most.Load() {
					}
				}
				told()
			}
		})...)
		return n
	}
	return i, start("a.example", ours), start("b.example", theirs), most
}

// nowhere makes a host one that cannot be dialled.
const nowhere = "127.0.0.1:1"

func (n *node) count() int { s := n.Statuses()[0]; return s.Dialled + s.Accepted }

// enough tells that the first link has so many sessions, and dials no more.
func (n *node) enough(want int) func() bool {
	return func() bool {
		if n.count() != want {
			return false
		}
		_, _, more := newDialer(n.router.table.Load().peers[0]).nextDial()
		return !more
	}
}

// keys is the keys of the sessions that flows belong to.
func (n *node) keys() (all [256]int) {
	for i := range n.router.table.Load().peers[0].flows.Load() {
		all[i] = n.router.table.Load().peers[0].flows.Load()[i].next.orderKey()
	}
	return all
}

// awaitAgreement waits until both ends assign flows to the same sessions, and use all of them.
func awaitAgreement(t *testing.T, a, b *node) {
	t.Helper()
	a.await("the same table at both ends", func() bool {
		keys, used := a.keys(), map[int]bool{}
		for _, k := range keys {
			used[k] = true
		}
		return keys == b.keys() && len(used) == a.count() && a.count() == b.count()
	})
}

func TestStreams(t *testing.T) {
	for _, test := range []struct{ ours, theirs, want int }{{1, 3, 1}, {3, 1, 1}, {4, 4, 4}, {16, 16, 16}, {2, 16, 2}} {
		t.Run(fmt.Sprintf("%d,%d", test.ours, test.theirs), func(t *testing.T) {
			i, a, b, most := newStreamPair(t, test.ours, test.theirs)
			i.name("a.example", nowhere) // only a dials
			b.set(newLink("a", 2, 1, "a.example"))
			b.awaitReason("a", "connection refused")
			a.set(newLink("b", 1, 2, "b.example"))
			a.await("sessions of a", a.enough(test.want))
			b.await("sessions of b", func() bool { return b.count() == test.want })
			if s, r := a.status("b"), b.status("a"); s.Accepted > 0 || r.Dialled > 0 || s.State != link.Up ||
				r.State != link.Up {
				t.Errorf("a: %+v, b: %+v", s, r)
			}
			awaitAgreement(t, a, b)
			for id := range uint64(50) {
				a.pass(b, fmt.Sprintf("100.64.1.%d", id), "100.64.2.7", id)
				b.pass(a, "100.64.2.7", fmt.Sprintf("100.64.1.%d", id), id)
			}
			if n := most.Load(); n > int64(test.want) || a.count() != test.want || b.count() != test.want {
				t.Errorf("%d sessions for a moment, %d and %d now", n, a.count(), b.count())
			}
		})
	}
}

// Both dial at once: there may be more than agreed on, but not without end.
func TestStreamsBothDial(t *testing.T) {
	for _, n := range []int{1, 4} {
		for range 5 {
			// for dials that are under way
			_, a, b, most := newStreamPair(t, n, n, func(c *Config) { c.timing.followDelay = time.Second })
			var wg sync.WaitGroup
			wg.Go(func() { a.set(newLink("b", 1, 2, "b.example")) })
			wg.Go(func() { b.set(newLink("a", 2, 1, "a.example")) })
			wg.Wait()
			a.await("sessions", func() bool { return a.enough(a.count())() && a.count() >= n && b.count() == a.count() })
			awaitAgreement(t, a, b)
			a.pass(b, "192.168.0.11", "192.168.0.12", 1)
			b.pass(a, "192.168.0.12", "192.168.0.11", 2)
			if m := most.Load(); m > int64(2*n) || a.count() > n+1 {
				t.Errorf("%d sessions of %d for a moment, %d now", m, n, a.count())
			}
		}
	}
}

// Where the initiator cannot dial, the other one does.
func TestStreamsFollow(t *testing.T) {
	for _, test := range []string{"refused", "without name", "no endpoint"} {
		t.Run(test, func(t *testing.T) {
			i, a, b, _ := newStreamPair(t, 4, 4)
			ab := newLink("b", 1, 2, "b.example")
			switch test {
			case "refused":
				i.name("b.example", nowhere)
			case "without name":
				i.name("b.example", "")
			default: // TLS would not know whom to expect
				ab.Host = ""
				a.SetCredentials(unencrypted)
				b.SetCredentials(unencrypted)
			}
			a.set(ab)
			b.set(newLink("a", 2, 1, "a.example"))
			b.await("sessions", b.enough(4))
			a.await("sessions", func() bool { return a.count() == 4 })
			if s, r := a.status("b"), b.status("a"); s.Dialled > 0 || r.Accepted > 0 {
				t.Errorf("a: %+v, b: %+v", s, r)
			}
			awaitAgreement(t, a, b)
			a.pass(b, "192.168.0.11", "192.168.0.12", 1)
		})
	}
}

// dialAs connects to a as b, with a hello of its own, and returns the answer.
func dialAs(t *testing.T, i *internet, a *node, h *hello.Hello) (net.Conn, *hello.Hello, error) {
	t.Helper()
	c := i.ca.issue(t, "b.example")
	conn, err := tls.Dial("tcp", a.address(), &tls.Config{Certificates: []tls.Certificate{c.Certificate},
		RootCAs: i.ca.pool, ServerName: "a.example"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	h.Address = netip.MustParsePrefix("192.168.0.12/24")
	payload, err := h.AppendPayload(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(hello.AppendFrame(nil, hello.FrameHello, payload)); err != nil {
		t.Fatal(err)
	}
	theirs, err := hello.ReadHello(conn, hello.MaxPayload)
	if err == nil {
		conn.Write(hello.AppendFrame(nil, hello.FramePing, make([]byte, 8)))
	}
	return conn, theirs, err
}

// A kubelink that knows of no streams gets one session, and all packets on it.
func TestStreamsOfLegacyPeer(t *testing.T) {
	i, a, _, most := newStreamPair(t, 4, 4)
	i.name("b.example", nowhere)
	a.set(newLink("b", 1, 2, "b.example"))
	a.awaitReason("b", "connection refused")
	conn, theirs, err := dialAs(t, i, a,
		&hello.Hello{Capable: true, Flags: hello.FlagKeepalive | hello.FlagUpdates, Instance: 7})
	if err != nil || theirs.Flags&hello.FlagStreams == 0 || theirs.Streams != 4 || theirs.Stream != 0 {
		t.Fatalf("%+v, %v", theirs, err)
	}
	a.awaitState("b", link.Up)
	a.await("end of dialling", a.enough(1))
	i.mu.Lock()
	dials := i.dials["b.example"]
	i.mu.Unlock()
	for id := range uint64(100) {
		a.tun.in <- packet(fmt.Sprintf("100.64.1.%d", id), "192.168.0.12", 64, 100, id)
		for {
			typ, payload, err := hello.ReadFrame(conn, hello.MaxPayload)
			if err != nil {
				t.Fatal(err)
			}
			if typ == hello.FramePing {
				conn.Write(hello.AppendFrame(nil, hello.FramePong, payload))
			}
			if typ > hello.FramePong {
				t.Fatalf("frame of type %d", typ)
			}
			if typ == hello.FramePacket {
				if packetMark(payload) != id {
					t.Fatalf("packet %d instead of %d", packetMark(payload), id)
				}
				break
			}
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if most.Load() != 1 || i.dials["b.example"] > dials+1 { // one may have been about to start
		t.Errorf("%d sessions, %d dials", most.Load(), i.dials["b.example"]-dials)
	}
}

func TestStreamsTooMany(t *testing.T) {
	i, a, _, _ := newStreamPair(t, 4, 4)
	i.name("b.example", nowhere)
	a.set(newLink("b", 1, 2, "b.example"))
	a.awaitReason("b", "connection refused")
	newHello := func(stream int) *hello.Hello {
		return &hello.Hello{Capable: true, Flags: hello.FlagStreams, Instance: 7, Streams: 16, Stream: stream}
	}
	for stream := range 4 {
		if _, _, err := dialAs(t, i, a, newHello(stream)); err != nil {
			t.Errorf("stream %d: %v", stream, err)
		}
	}
	a.await("sessions", func() bool { return a.count() == 4 })
	for _, stream := range []int{4, 5, 255} {
		before := a.Stats().Refused[hello.RefusedLimit]
		if _, _, err := dialAs(t, i, a, newHello(stream)); err == nil {
			t.Errorf("stream %d was accepted", stream)
		}
		a.await("refusal", func() bool { return a.Stats().Refused[hello.RefusedLimit] == before+1 })
	}
	if _, _, err := dialAs(t, i, a, newHello(2)); err != nil { // again: takes the place of the former one
		t.Error(err)
	}
	a.await("sessions", func() bool { return a.count() == 4 })
}

// More and fewer streams, while the link is up.
func TestStreamsChange(t *testing.T) {
	i, a, b, _ := newStreamPair(t, 2, 16)
	i.name("a.example", nowhere)
	b.set(newLink("a", 2, 1, "a.example"))
	b.awaitReason("a", "connection refused")
	a.set(newLink("b", 1, 2, "b.example"))
	a.await("two sessions", a.enough(2))
	b.await("two sessions", func() bool { return b.count() == 2 })
	sinceA, sinceB := a.status("b").Since, b.status("a").Since
	id := uint64(0)
	for _, step := range []struct {
		n       *node
		streams int
		want    int
	}{{a, 5, 5}, {b, 3, 3}, {a, 1, 1}, {a, 16, 3}, {b, 16, 16}, {b, 1, 1}, {b, 16, 16}, {a, 2, 2}} {
		c := step.n.config
		c.Streams = step.streams
		if err := step.n.Configure(c.Settings); err != nil {
			t.Fatal(err)
		}
		a.await(fmt.Sprint(step.want, " sessions of a"), a.enough(step.want))
		b.await(fmt.Sprint(step.want, " sessions of b"), func() bool { return b.count() == step.want })
		awaitAgreement(t, a, b)
		for range 20 {
			id++
			a.pass(b, fmt.Sprintf("100.64.1.%d", byte(id)), "192.168.0.12", id)
			b.pass(a, "192.168.0.12", fmt.Sprintf("100.64.1.%d", byte(id)), id)
		}
	}
	if a.status("b").Since != sinceA || b.status("a").Since != sinceB {
		t.Error("link was down")
	}
}

// drain takes what arrives at n until the end of the test.
func (n *node) drain(got func([]byte)) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case p := <-n.tun.out:
				got(p)
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

// One session after the other is lost under traffic. The link stays up, other sessions carry on, each packet is
// sent or counted, and what was lost is dialled again.
func TestLostStreams(t *testing.T) {
	const streams, losses = 4, 50
	_, a, b, most := newStreamPair(t, streams, streams)
	a.set(newLink("b", 1, 2, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	a.await("sessions", func() bool { return a.count() >= streams && b.count() == a.count() })
	sinceA, sinceB := a.status("b").Since, b.status("a").Since
	var arrived atomic.Int64
	stop := b.drain(func([]byte) { arrived.Add(1) })
	end, ended := make(chan struct{}), make(chan uint64)
	go func() {
		for sent := uint64(0); ; sent++ {
			size := 100
			if sent%8 == 0 {
				size = 30000
			}
			select {
			case a.tun.in <- packet(fmt.Sprintf("100.64.1.%d", byte(sent)), "192.168.0.12", 64, size, sent):
			case <-end:
				ended <- sent
				return
			}
		}
	}()
	dialled, accepted := 0, 0
	for i := range losses {
		n := []*node{a, b}[i%2]
		p := n.router.table.Load().peers[0]
		p.mu.Lock()
		s := p.sessions[i/2%len(p.sessions)]
		p.mu.Unlock()
		if s.accepted {
			accepted++
		} else {
			dialled++
		}
		before := arrived.Load()
		s.raw.Conn.Close()
		n.await("end of the session", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, o := range p.sessions {
				if o == s {
					return false
				}
			}
			return true
		})
		n.await("traffic", func() bool { return arrived.Load() > before+100 })
		a.await("the lost session", func() bool { return a.count() >= streams && b.count() >= streams })
	}
	close(end)
	sent := <-ended
	t.Logf("%d packets sent, %d arrived, %d dialled and %d accepted sessions lost, at most %d; %v", sent, arrived.Load(),
		dialled, accepted, most.Load(), a.Stats().Links["b"].Drops)
	a.await("all packets are accounted for", func() bool {
		s := a.Stats().Links["b"]
		total := s.TxPackets
		for _, d := range s.Drops {
			total += d
		}
		return total == sent
	})
	stop()
	if a.status("b").Since != sinceA || b.status("a").Since != sinceB {
		t.Errorf("link was down: %+v %+v", a.status("b"), b.status("a"))
	}
	if most.Load() > 2*streams {
		t.Errorf("%d sessions", most.Load())
	}
	awaitAgreement(t, a, b)
	for id := sent + 1; id < sent+256; id++ {
		a.tun.in <- packet(fmt.Sprintf("100.64.1.%d", byte(id)), "192.168.0.12", 64, 100, id)
		for got := packetMark(b.receive()); got != id; got = packetMark(b.receive()) { // what was under way
			if got > sent {
				t.Fatalf("received %d instead of %d", got, id)
			}
		}
	}
}

// Packets of a flow arrive in their order while sessions are added.
func TestStreamsOrder(t *testing.T) {
	_, a, b, _ := newStreamPair(t, 1, 16)
	a.set(newLink("b", 1, 2, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	since := a.status("b").Since
	const flows, burst = 64, 1024 // a flow pauses for longer than flowPause
	var (
		next   [flows]uint64
		sent   [flows][burst]atomic.Int64 // when, by the number of the packet
		window = make(chan struct{}, 256)
		bad    atomic.Int64
	)
	stop := b.drain(func(p []byte) {
		f := p[15]
		took := time.Duration(time.Now().UnixNano() - sent[f][packetMark(p)%burst].Load())
		if packetMark(p) < next[f] && took < flowPause { // CoDel may have dropped some; a busy machine is slower than that
			if bad.Add(1) < 10 {
				t.Errorf("flow %d: packet %d instead of %d, %s under way", f, packetMark(p), next[f], took)
			}
		}
		next[f] = packetMark(p) + 1
		select {
		case <-window:
		default:
		}
	})
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		var seq [flows]uint64
		for i := 0; ; i++ {
			f := i / burst % flows
			select {
			case window <- struct{}{}:
			case <-time.After(20 * time.Millisecond): // what was dropped gives nothing back
			case <-end:
				return
			}
			sent[f][seq[f]%burst].Store(time.Now().UnixNano())
			select {
			case a.tun.in <- packet(fmt.Sprintf("100.64.1.%d", f), "192.168.0.12", 64, 200, seq[f]):
			case <-end:
				return
			}
			seq[f]++
		}
	}()
	for _, streams := range []int{2, 4, 8, 16} {
		c := a.config
		c.Streams = streams
		if err := a.Configure(c.Settings); err != nil {
			t.Fatal(err)
		}
		a.await("sessions", func() bool { return a.count() >= streams })
		a.await("flows move", func() bool {
			for i := range a.router.table.Load().peers[0].flows.Load() {
				if slot := &a.router.table.Load().peers[0].flows.Load()[i]; slot.session != slot.next && slot.moved.Load() {
					return true
				}
			}
			return false
		})
	}
	close(end)
	<-ended
	a.await("all packets", func() bool {
		tx, rx := a.Stats().Links["b"], b.Stats().Links["a"]
		return tx.TxPackets == rx.RxPackets
	})
	stop()
	if since != a.status("b").Since {
		t.Error("link was down")
	}
}

// A certificate is replaced, the peer restarts: no more streams than agreed on are left over.
func TestStreamsOfNewProcess(t *testing.T) {
	i, a, b, _ := newStreamPair(t, 4, 4)
	a.set(newLink("b", 1, 2, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	a.await("sessions", func() bool { return a.count() >= 4 && b.count() == a.count() })
	b.Close(false)
	b = i.start("b.example", i.ca.issue(t, "b.example"), func(c *Config) { c.Streams = 4 })
	b.set(newLink("a", 2, 1, "a.example"))
	b.await("sessions", func() bool { return b.count() >= 4 && b.count() == a.count() })
	a.awaitPeer(b)
	awaitAgreement(t, a, b)
	a.pass(b, "192.168.0.11", "192.168.0.12", 1)
}
