package bridge

import (
	"sync"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// queuedPacket is a packet of size bytes that was queued at a time.
func queuedPacket(hash byte, id byte, size int, at time.Duration) *buffer {
	buf := newBuffer(size)
	buf.hash, buf.queued = uint32(hash)<<8, at
	buf.packet()[0] = id
	return buf
}

func newQueue() (*queue, *dropCounters) {
	drops := new(dropCounters)
	return &queue{stale: time.Second, drops: drops}, drops
}

func TestMailbox(t *testing.T) {
	var m mailbox
	if m.takeAll() != nil {
		t.Error("not empty")
	}
	const senders, each = 4, 1000
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				buf := newBuffer(4)
				buf.hash, buf.size = uint32(s), i
				m.putPacket(buf)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	next, total := [senders]int{}, 0
	for last := false; ; {
		for buf := m.takeAll(); buf != nil; buf = buf.next {
			if buf.size != next[buf.hash] {
				t.Fatalf("packet %d of sender %d instead of %d", buf.size, buf.hash, next[buf.hash])
			}
			next[buf.hash]++
			total++
		}
		if last {
			break
		}
		select {
		case <-done:
			last = true
		default:
		}
	}
	if total != senders*each {
		t.Errorf("%d packets", total)
	}
}

func TestQueueOrder(t *testing.T) {
	q, _ := newQueue()
	for i := range byte(100) {
		q.pushPacket(queuedPacket(i%3, i, 100, 0), 1<<20)
	}
	var last [3]byte
	for range 100 {
		buf := q.popPacket(0)
		id := buf.packet()[0]
		if id < last[id%3] {
			t.Errorf("%d after %d", id, last[id%3])
		}
		last[id%3] = id
	}
	if q.popPacket(0) != nil || q.bytes != 0 {
		t.Errorf("%d bytes left", q.bytes)
	}
}

// A full queue drops the oldest packets of the flow that holds most.
func TestQueueFull(t *testing.T) {
	q, drops := newQueue()
	q.pushPacket(queuedPacket(1, 1, 100, 0), 10*smallBuffer)
	for i := range byte(20) {
		q.pushPacket(queuedPacket(2, i, 100, 0), 10*smallBuffer)
	}
	if q.bytes != 10*smallBuffer || drops[DropQueueFull].Load() != 11 {
		t.Errorf("%d bytes, %d dropped", q.bytes, drops[DropQueueFull].Load())
	}
	if buf := q.popPacket(0); buf.packet()[0] != 1 {
		t.Errorf("%d instead of the other flow", buf.packet()[0])
	}
	if buf := q.popPacket(0); buf.packet()[0] != 11 {
		t.Errorf("%d is the oldest", buf.packet()[0])
	}
	// One packet is always taken.
	q, _ = newQueue()
	q.pushPacket(queuedPacket(1, 1, hello.MaxPayload, 0), 1)
	if q.popPacket(0) == nil {
		t.Error("large packet is gone")
	}
}

// A flow that sends little is not behind one that sends much, and two that send much share.
func TestQueueIsFair(t *testing.T) {
	q, _ := newQueue()
	for range 40 {
		q.pushPacket(queuedPacket(1, 1, 60000, 0), 1<<30)
		q.pushPacket(queuedPacket(2, 2, 1400, 0), 1<<30)
	}
	for range 2 {
		if q.popPacket(0) == nil {
			t.Fatal("empty")
		}
	}
	q.pushPacket(queuedPacket(3, 3, 60, 0), 1<<30)
	before := 0
	for buf := q.popPacket(0); buf.packet()[0] != 3; buf = q.popPacket(0) {
		before += buf.size
	}
	if before > 2*queueQuantum {
		t.Errorf("%d bytes come before the ping", before)
	}
	sent := map[byte]int{}
	for sent[2] < 16*1400 {
		buf := q.popPacket(0)
		sent[buf.packet()[0]] += buf.size
	}
	if sent[1] > 3*60000 {
		t.Errorf("%v bytes", sent)
	}
}

// CoDel drops when packets wait for longer than the target for an interval, the more often the longer, and stops
// when they do not. RFC 8289, section 5.
func TestQueueCoDel(t *testing.T) {
	q, drops := newQueue()
	now, id := time.Duration(0), byte(0)
	// each step takes 10 ms, and each packet waited for wait
	run := func(steps int, wait time.Duration) (dropped uint64) {
		before := drops[DropCoDel].Load()
		for range steps {
			now += 10 * time.Millisecond
			for q.bytes < 4*smallBuffer {
				q.pushPacket(queuedPacket(1, id, 100, now), 1<<20)
				id++
			}
			for buf := q.flows[1].first; buf != nil; buf = buf.next {
				buf.queued = now - wait
			}
			q.popPacket(now)
		}
		return drops[DropCoDel].Load() - before
	}
	if n := run(100, 4*time.Millisecond); n != 0 {
		t.Errorf("%d dropped below the target", n)
	}
	if n := run(9, 50*time.Millisecond); n != 0 {
		t.Errorf("%d dropped within the first interval", n)
	}
	first := run(50, 50*time.Millisecond)
	if first < 3 || first > 15 {
		t.Errorf("%d dropped in half a second", first)
	}
	if second := run(50, 50*time.Millisecond); second <= first {
		t.Errorf("%d dropped in the next half second, %d before", second, first)
	}
	for q.popPacket(now) != nil {
	}
	if n := run(100, 0); n > 1 {
		t.Errorf("%d dropped when there is no delay", n)
	}
	// What waited for too long is dropped in any case.
	for q.popPacket(now) != nil {
	}
	before := drops[DropStale].Load()
	q.pushPacket(queuedPacket(1, 1, 100, now-2*time.Second), 1<<20)
	if q.popPacket(now) != nil || drops[DropStale].Load() != before+1 {
		t.Error("stale packet is sent")
	}
}

func TestQueueEmpty(t *testing.T) {
	q, _ := newQueue()
	for i := range byte(10) {
		q.pushPacket(queuedPacket(i, i, 100, 0), 1<<20)
	}
	n := 0
	q.takeAll(func(buf *buffer) { n++; buf.free() })
	if n != 10 || q.bytes != 0 || q.popPacket(0) != nil {
		t.Errorf("%d packets, %d bytes left", n, q.bytes)
	}
	q.pushPacket(queuedPacket(1, 1, 100, 0), 1<<20)
	if q.popPacket(0) == nil {
		t.Error("lost")
	}
}
