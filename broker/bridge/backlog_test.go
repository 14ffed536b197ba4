package bridge

// Packets that wait for a session: the first one, or another one when theirs is lost.

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

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

// attachWriter makes a session of the peer that writes to a function and is served by nobody.
func attachWriter(t *testing.T, p *peer, stream int, write func([]byte)) *session {
	t.Helper()
	raw := newBatchConn(&writerConn{write: write}, time.Second)
	h := &hello{capable: true, flags: flagStreams | flagOffload, streams: 2}
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
				_, payload, rest, ok := cutFrame(b)
				if !ok {
					break
				}
				got = append(got, binary.BigEndian.Uint64(payload[len(payload)-8:]))
				b = rest
			}
		})
		<-done
		for s.kicks.Load() != 0 { // a visitor left
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
	if bytes.Load() != packets*(frameHeader+100) || writes.Load() > 10 {
		t.Errorf("%d bytes were sent in %d writes", bytes.Load(), writes.Load())
	}
}
