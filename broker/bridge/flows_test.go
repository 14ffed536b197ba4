package bridge

// How packets find a session: the backlog before the first session, flows that move, and packets of a lost session.

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// A packet for a link that is not connected waits, but neither for long nor in a crowd.
func TestPacketsWaitForConnection(t *testing.T) {
	i := newInternet(t)
	gate := make(chan struct{})
	a := i.start("a.example", i.ca.issue(t, "a.example"), func(c *Config) {
		dial := c.timing.dialer
		c.timing.dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			select {
			case <-gate:
			case <-ctx.Done():
			}
			return dial(ctx, network, address)
		}
	})
	b := i.start("b.example", i.ca.issue(t, "b.example"))
	b.set(newLink("a", 2, 1, "nowhere.example"), newLink("a'", 2, 1, "a.example")) // so that b does not connect first
	b.set(mesh.Peer{Link: "a", Host: "a.example", Local: mesh.Prefixes{netip.MustParsePrefix("192.168.0.12/24")},
		Addresses: mesh.Prefixes{netip.MustParsePrefix("192.168.0.11/24")},
		Networks:  []netip.Prefix{netip.MustParsePrefix("192.168.0.11/32")},
		Ingress:   newLink("a", 2, 1, "").Ingress})
	i.name("a.example", "127.0.0.1:1")
	b.awaitReason("a", "connection refused")
	a.set(newLink("b", 1, 2, "b.example"))
	const waiting = maxBacklog / smallBuffer
	for id := range uint64(waiting + 10) {
		a.tun.in <- packet("192.168.0.11", "192.168.0.12", 64, 60, id)
	}
	a.await("drops", func() bool { return a.Stats().Links["b"].Drops[DropNotConnected] == 10 })
	close(gate)
	for id := uint64(10); id < waiting+10; id++ {
		if got := packetMark(b.receive()); got != id {
			t.Fatalf("received %d instead of %d", got, id)
		}
	}
}

func TestStalePackets(t *testing.T) {
	_, a, b := newPair(t)
	p := a.router.table.Load().peers[0]
	old := copyBuffer(packet("192.168.0.11", "192.168.0.12", 64, 60, 1), vnetHeader{})
	old.queued = p.now() - 2*time.Second
	p.postPacket(old).kickSender()
	a.pass(b, "192.168.0.11", "192.168.0.12", 2)
	if n := a.Stats().Links["b"].Drops[DropStale]; n != 1 {
		t.Errorf("%d stale packets", n)
	}
}

// A flow moves to a session that was added only after a pause, and at once when its own is lost.
func TestFlowPause(t *testing.T) {
	p, _ := newTestPeer(t)
	s := [2]*session{}
	for i := range s {
		s[i] = newSession(p, null{}, newBatchConn(null{}, time.Second), false, i, p.featureFlags(),
			&hello.Hello{Flags: hello.FlagStreams})
	}
	old := newFlowTable(s[:1], nil)
	for i := range old {
		old[i].pickSession(time.Second)
	}
	now := newFlowTable(s[:], old)
	moves := 0
	for i := range now {
		if now[i].next == s[0] {
			continue
		}
		moves++
		for at := time.Second; at < 2*time.Second; at += flowPause / 2 {
			if now[i].pickSession(at) != s[0] {
				t.Fatalf("moved after %s without a pause", at-time.Second)
			}
		}
		for range 2 { // and stays there
			if now[i].pickSession(2*time.Second+2*flowPause) != s[1] {
				t.Fatal("does not move")
			}
		}
		if next := newFlowTable(s[:], now); next[i].activeSession() != s[1] {
			t.Fatal("moved back")
		}
		if next := newFlowTable(s[:1], now); next[i].activeSession() != s[0] {
			t.Fatal("stays on a session that was lost")
		}
	}
	if moves < 90 || moves > 166 {
		t.Errorf("%d of 256 move", moves)
	}
}

// newBacklogPeer is a peer that is not connected yet, and a function that sends it packets.
func newBacklogPeer(t *testing.T) (p *peer, send func(id, size int)) {
	p, b := newTestPeer(t)
	return p, func(id, size int) {
		buf := copyBuffer(packet("192.168.0.11", "192.168.0.12", 64, size, uint64(id)), vnetHeader{})
		buf.queued = b.now()
		if s := p.sendPacket(buf); s != nil {
			s.kickSender()
		}
	}
}

// What waits for a connection is bounded, and goes when there will be none.
func TestBacklog(t *testing.T) {
	p, send := newBacklogPeer(t)
	sent := uint64(0)
	some := func() {
		t.Helper()
		for _, size := range []int{60, 1500, 20000, 65000} {
			for range 100 {
				send(0, size)
				sent++
			}
		}
		bytes := 0
		for _, buf := range p.backlog {
			bytes += len(buf.data)
		}
		if bytes != p.backlogBytes || bytes > maxBacklog || bytes < maxBacklog-largeBuffer {
			t.Errorf("%d packets wait, of %d bytes (%d)", len(p.backlog), bytes, p.backlogBytes)
		}
	}
	none := func(when string) {
		t.Helper()
		if d := p.counters.drops[DropNotConnected].Load(); len(p.backlog) != 0 || p.backlogBytes != 0 || d != sent {
			t.Errorf("%s: %d packets wait, of %d bytes; %d of %d are counted", when, len(p.backlog), p.backlogBytes, d, sent)
		}
	}
	some()
	p.dialFailed(errors.New("refused"))
	none("dial failed")
	some()
	p.close()
	none("link was removed")
	send(0, 60)
	sent++
	none("and then a packet came")
}

// What waited for too long goes when another packet comes.
func TestBacklogStale(t *testing.T) {
	p, send := newBacklogPeer(t)
	for range 3 {
		old := copyBuffer(packet("192.168.0.11", "192.168.0.12", 64, 60, 0), vnetHeader{})
		old.queued = p.now() - p.timing.stale - time.Second
		p.postPacket(old)
	}
	send(7, 60)
	if n := p.counters.drops[DropStale].Load(); n != 3 || len(p.backlog) != 1 || packetMark(p.backlog[0].packet()) != 7 {
		t.Errorf("%d stale packets; %d wait", n, len(p.backlog))
	}
}

// writerConn is a connection that hands over what is written.
type writerConn struct {
	null
	write func([]byte)
}

func (c *writerConn) Write(b []byte) (int, error) { c.write(b); return len(b), nil }

// attachWriter makes a session of the peer that writes to a function. No goroutine serves it.
func attachWriter(t *testing.T, p *peer, stream int, write func([]byte)) *session {
	t.Helper()
	raw := newBatchConn(&writerConn{write: write}, time.Second)
	h := &hello.Hello{Capable: true, Flags: hello.FlagStreams | hello.FlagOffload, Streams: 2}
	s := newSession(p, raw, raw, true, stream, p.featureFlags(), h)
	if !p.attachSession(s, h) {
		t.Fatal("not attached")
	}
	return s
}

// Packets that waited for the first session are not overtaken by one that comes when it is there.
func TestBacklogFirst(t *testing.T) {
	for range 100 {
		p, send := newBacklogPeer(t)
		const before, all = 60, 200
		var got []uint64
		for id := range before {
			send(id, 100)
		}
		started := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			close(started)
			for p.flows.Load() == nil {
			}
			for id := before; id < all; id++ {
				send(id, 100)
			}
		}()
		<-started
		s := attachWriter(t, p, 0, func(b []byte) {
			for {
				_, payload, rest, ok := hello.CutFrame(b)
				if !ok {
					break
				}
				got = append(got, binary.BigEndian.Uint64(payload[len(payload)-8:]))
				b = rest
			}
		})
		<-done
		for s.kicks.Load() != 0 { // a goroutine has handed over
			<-s.turn
			s.sendLoop()
		}
		for id := range all {
			if id >= len(got) || got[id] != uint64(id) {
				t.Fatalf("packets arrived as %v", got)
			}
		}
	}
}

// What waited on a session that is lost goes on in batches.
func TestResend(t *testing.T) {
	p, send := newBacklogPeer(t)
	var writes, bytes atomic.Int64
	s := attachWriter(t, p, 0, func([]byte) {})
	s.blocked = true
	const packets = 1000
	for range packets {
		send(0, 100)
	}
	attachWriter(t, p, 1, func(b []byte) { writes.Add(1); bytes.Add(int64(len(b))) })
	p.detachSession(s, s.cause)
	if bytes.Load() != packets*(hello.FrameHeader+100) || writes.Load() > 10 {
		t.Errorf("%d bytes were sent in %d writes", bytes.Load(), writes.Load())
	}
}
