package bridge

// The packets that wait for one session: a mailbox that any goroutine puts packets in, and the queue that
// the one that sends sorts them into.
//
// The queue is FQ-CoDel (RFC 8290): flows take turns, those that have just begun to wait come first, so that a
// ping does not wait for a transfer; and a flow whose packets wait for too long loses some, so that its sender
// slows down before the delay grows. When the queue is full, the flow that holds most of it loses its oldest.

import (
	"math"
	"sync/atomic"
	"time"
)

// mailbox is a list that any number of goroutines put into without waiting. One takes all.
type mailbox struct{ last atomic.Pointer[buffer] }

func (m *mailbox) putPacket(buf *buffer) {
	for {
		buf.next = m.last.Load()
		if m.last.CompareAndSwap(buf.next, buf) {
			return
		}
	}
}

// takeAll returns what is in the mailbox, the oldest first.
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
	maxSessionBytes = 4 << 20  // most that a mailbox and a queue hold each,
	maxBridgeBytes  = 64 << 20 // unless all of them hold more than this;
	// a turn of a TUN reader finds room in any case, even if it is all super-packets: their senders send
	// such bursts to begin with.
	minSessionBytes = (maxTurnBytes/maxPayload + 1) * largeBuffer
)

// byteBudget is of the bytes that wait for all sessions.
type byteBudget struct {
	_    [64]byte // each packet changes it: what is next to it shall not suffer
	held atomic.Int64
	_    [64]byte
}

// sessionLimit is the most that the mailbox of a session may hold now, and its queue. It falls by what the bridge holds
// beyond bridgeBytes. So if n sessions wait for peers that are slow, each of them ends up with its share of about
// bridgeBytes/n, whatever n is, while one that was idle takes as much at once ("dynamic thresholds", Choudhury and
// Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
func (a *byteBudget) sessionLimit() int {
	return int(max(minSessionBytes, min(maxSessionBytes, maxBridgeBytes+maxSessionBytes-a.held.Load())))
}

// Parameters of FQ-CoDel. The quantum is larger than in RFC 8290, as packets are.
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
	listed      bool       // is in one

	// CoDel, with the names of RFC 8289.
	firstAbove, dropNext time.Duration // 0: not above
	count, lastCount     int
	dropping             bool
}

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
	fresh, old flowList // flows that have packets; fresh ones began lately
	bytes      int      // in the buffers of all
	largest    int      // buffer so far
	stale      time.Duration
	drops      *dropCounters
}

// pushPacket queues buf, and makes room for it when there are more than limit bytes.
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

// dropFromLongest drops the oldest packet of the flow that holds most.
func (q *queue) dropFromLongest() {
	most := &q.flows[0]
	for i := range q.flows {
		if q.flows[i].bytes > most.bytes {
			most = &q.flows[i]
		}
	}
	q.takeOldest(most).free()
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

// popPacket returns the packet to be sent next; nil: there is none.
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

// popCoDel takes the oldest packet of f that is not to be dropped (RFC 8289, section 5).
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
		if more > 1 && now-f.dropNext < 16*codelInterval { // it was not enough the last time
			f.count = more
		}
		f.dropNext = now + f.dropPause()
		f.lastCount = f.count
	}
	return buf
}

// dropPause between drops, the shorter the more were dropped.
func (f *flowQueue) dropPause() time.Duration {
	return time.Duration(float64(codelInterval) / math.Sqrt(float64(f.count)))
}

// takeUnstale takes the oldest packet of f that is not stale. It is above when packets of f have been
// waiting for longer than the target for an interval.
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

// takeAll takes all packets, in no particular order of flows.
func (q *queue) takeAll(take func(*buffer)) {
	for i := range q.flows {
		for buf := q.takeOldest(&q.flows[i]); buf != nil; buf = q.takeOldest(&q.flows[i]) {
			take(buf)
		}
	}
}
