package bridge

// The packets that wait for one session: a mailbox that any goroutine puts packets into, and the queue that the
// goroutine that sends moves them to; and the bytes that the bridge holds in all of them.
//
// The queue is FQ-CoDel (RFC 8290). Flows take turns, and a flow that has just begun to wait comes first, so that a
// ping does not wait for a transfer. When packets of a flow wait for too long, it loses some of them, so that its
// sender slows down before the delay grows. When the queue is full, the flow that holds most of it loses its oldest
// packet.

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// mailbox is a list that any number of goroutines put packets into without waiting. One goroutine takes all of them.
type mailbox struct{ last atomic.Pointer[buffer] }

func (m *mailbox) putPacket(buf *buffer) {
	for {
		buf.next = m.last.Load()
		if m.last.CompareAndSwap(buf.next, buf) {
			return
		}
	}
}

// takeAll empties the mailbox, and returns the list of its packets, the oldest first.
func (m *mailbox) takeAll() *buffer {
	if m.last.Load() == nil {
		return nil
	}
	var first *buffer
	for buf := m.last.Swap(nil); buf != nil; {
		first, buf, buf.next = buf, buf.next, first
	}
	return first
}

const (
	maxSessionBytes = 4 << 20  // that the mailbox of a session holds, and its queue
	maxBridgeBytes  = 64 << 20 // that all sessions and peers hold together

	// maxTurnBytes is how much a TUN reader reads before it sends some of it. It is more than a batch: packets should wait
	// in our queues, where one flow can overtake another one, and not in the queue of the TUN.
	maxTurnBytes = 256 << 10

	// minSessionBytes is room for one turn of a TUN reader, even if it reads super-packets only: TCP starts with such
	// bursts.
	minSessionBytes = (maxTurnBytes/hello.MaxPayload + 1) * largeBuffer
)

// byteBudget counts the bytes that wait in all mailboxes, queues and backlogs, and in batches that the kernel does not
// accept yet.
type byteBudget struct {
	_    [64]byte // held changes with each packet: fields of the same cache line would become slow
	held atomic.Int64
	_    [64]byte
}

// sessionLimit is the number of bytes that the queue of a session may hold now while its peer is slow. It falls by the
// bytes that the bridge holds beyond three quarters of maxBridgeBytes, to minSessionBytes, and from there on with the
// room that is left: to nothing when there is none. So if n sessions wait for slow peers, each of them ends up with a
// part of the room, whatever n is ("dynamic thresholds", Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2),
// 1998).
func (b *byteBudget) sessionLimit() int {
	const reserve = maxBridgeBytes / 4
	room := max(0, maxBridgeBytes-b.held.Load())
	return int(max(min(room, reserve)*minSessionBytes/reserve, min(maxSessionBytes, room-reserve+maxSessionBytes)))
}

// burstLimit is the same for a session whose packets are sent at once: it may always take a burst.
func (b *byteBudget) burstLimit() int { return max(minSessionBytes, b.sessionLimit()) }

// Parameters of FQ-CoDel. The quantum is larger than in RFC 8290, as packets are larger.
const (
	queueFlows    = 64
	queueQuantum  = 16 << 10 // bytes that a flow sends per turn
	codelTarget   = 5 * time.Millisecond
	codelInterval = 100 * time.Millisecond
)

// flowQueue is the packets of flows with the same hash, the oldest first.
type flowQueue struct {
	first, last *buffer
	bytes       int        // in its buffers
	credit      int        // bytes that it may still send in this turn
	next        *flowQueue // in a flowList
	listed      bool       // is in a flowList

	// CoDel, with the names of RFC 8289.
	firstAbove, dropNext time.Duration // 0: not above
	count, lastCount     int
	dropping             bool
}

// flowList is a list of flows that take turns.
type flowList struct{ first, last *flowQueue }

func (l *flowList) push(f *flowQueue) {
	f.next = nil
	if l.first == nil {
		l.first = f
	} else {
		l.last.next = f
	}
	l.last = f
}

func (l *flowList) pop() {
	l.first = l.first.next
}

// queue belongs to the goroutine that sends.
type queue struct {
	flows      [queueFlows]flowQueue
	fresh, old flowList // flows that have packets; fresh ones began to wait lately
	bytes      int      // in the buffers of all flows
	largest    int      // size of the largest buffer so far
	stale      time.Duration
	drops      *dropCounters
}

// pushPacket queues buf, and makes room for it when the queue holds more than limit bytes.
func (q *queue) pushPacket(buf *buffer, limit int) {
	f := &q.flows[buf.hash>>8%queueFlows] // the low bits choose the session
	size := len(buf.data)
	buf.next = nil
	if f.first == nil {
		f.first = buf
	} else {
		f.last.next = buf
	}
	f.last = buf
	f.bytes += size
	q.bytes += size
	q.largest = max(q.largest, size)
	if !f.listed {
		f.listed, f.credit = true, queueQuantum
		q.fresh.push(f)
	}
	for q.bytes > limit && q.bytes > size {
		q.dropFromLongest()
	}
}

// trimTo drops packets until the queue holds limit bytes at most.
func (q *queue) trimTo(limit int) {
	for q.bytes > limit {
		q.dropFromLongest()
	}
}

// dropFromLongest drops the oldest packet of the flow that holds most bytes.
func (q *queue) dropFromLongest() {
	longest := &q.flows[0]
	for i := range q.flows {
		if q.flows[i].bytes > longest.bytes {
			longest = &q.flows[i]
		}
	}
	q.takeOldest(longest).free()
	q.drops.add(DropQueueFull)
}

// takeOldest takes the oldest packet of f.
func (q *queue) takeOldest(f *flowQueue) *buffer {
	buf := f.first
	if buf == nil {
		return nil
	}
	f.first = buf.next
	buf.next = nil
	f.bytes -= len(buf.data)
	q.bytes -= len(buf.data)
	return buf
}

// popPacket returns the packet to be sent next; nil: the queue is empty.
func (q *queue) popPacket(now time.Duration) *buffer {
	for {
		list := &q.fresh
		if list.first == nil {
			list = &q.old
		}
		f := list.first
		if f == nil {
			return nil
		}
		if f.credit <= 0 {
			f.credit += queueQuantum
			list.pop()
			q.old.push(f)
			continue
		}
		buf := q.popCoDel(f, now)
		if buf == nil {
			list.pop()
			if list == &q.fresh && q.old.first != nil { // else it would come first again and again
				q.old.push(f)
			} else {
				f.listed = false
			}
			continue
		}
		f.credit -= buf.size
		return buf
	}
}

// popCoDel takes the oldest packet of f that CoDel does not drop (RFC 8289, section 5).
func (q *queue) popCoDel(f *flowQueue, now time.Duration) *buffer {
	buf, above := q.takeUnstale(f, now)
	if f.dropping {
		if !above {
			f.dropping = false
		}
		for f.dropping && now >= f.dropNext {
			q.dropPacket(buf, DropCoDel)
			f.count++
			if buf, above = q.takeUnstale(f, now); !above {
				f.dropping = false
			} else {
				f.dropNext += f.dropPause()
			}
		}
		return buf
	}
	if above {
		q.dropPacket(buf, DropCoDel)
		buf, _ = q.takeUnstale(f, now)
		f.dropping = true
		more := f.count - f.lastCount
		f.count = 1
		if more > 1 && now-f.dropNext < 16*codelInterval { // the last drops were too few
			f.count = more
		}
		f.dropNext = now + f.dropPause()
		f.lastCount = f.count
	}
	return buf
}

// dropPause is the pause between drops, the shorter the more packets were dropped.
func (f *flowQueue) dropPause() time.Duration {
	return time.Duration(float64(codelInterval) / math.Sqrt(float64(f.count)))
}

// takeUnstale takes the oldest packet of f that is not stale. above tells that packets of f have been waiting for
// longer than the target for an interval.
func (q *queue) takeUnstale(f *flowQueue, now time.Duration) (buf *buffer, above bool) {
	for buf = q.takeOldest(f); buf != nil && now-buf.queued > q.stale; buf = q.takeOldest(f) {
		q.dropPacket(buf, DropStale)
	}
	switch {
	case buf == nil || now-buf.queued < codelTarget || q.bytes <= q.largest:
		f.firstAbove = 0
	case f.firstAbove == 0:
		f.firstAbove = now + codelInterval
	default:
		above = now >= f.firstAbove
	}
	return buf, above
}

func (q *queue) dropPacket(buf *buffer, why Drop) {
	if buf != nil {
		buf.free()
		q.drops.add(why)
	}
}

// takeAll gives each packet to take, in no particular order of flows.
func (q *queue) takeAll(take func(*buffer)) {
	for i := range q.flows {
		for buf := q.takeOldest(&q.flows[i]); buf != nil; buf = q.takeOldest(&q.flows[i]) {
			take(buf)
		}
	}
}
