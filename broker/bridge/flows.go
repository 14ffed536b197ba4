package bridge

// How packets for a peer find a session: each flow belongs to one session, and packets wait for the first session.

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

const (
	maxBacklog = 2 * largeBuffer        // bytes that wait for the first session
	flowPause  = 100 * time.Millisecond // after it, the last packet of a flow has most likely arrived
)

// flowTable assigns flows to sessions, by the low bits of their hash. When a session is lost, its flows move at once.
// When a session is added, flows that belong to it move when they pause, so that no packet overtakes an earlier one of
// its flow. Rendezvous hashing chooses the session: few flows move, and both ends choose the same session for a flow,
// so that the kernel finds packets of both directions in the same TUN queue.
type flowTable [256]flowSlot

// flowSlot is the session of some flows.
type flowSlot struct {
	session  *session
	next     *session     // that the flows belong to
	moved    atomic.Bool  // the flows have moved to next
	lastUsed atomic.Int64 // time of their last packet, approximately, in the bridge's time; 0: never
}

func (f *flowSlot) activeSession() *session {
	if f.moved.Load() {
		return f.next
	}
	return f.session
}

// pickSession returns the session for a packet that is sent now.
func (f *flowSlot) pickSession(now time.Duration) *session {
	used := time.Duration(f.lastUsed.Load())
	pause := now - used
	if pause > flowPause/8 || used == 0 { // not for each packet: other goroutines read it
		f.lastUsed.Store(int64(now))
	}
	if f.session != f.next && (pause > flowPause || used == 0) {
		f.moved.Store(true)
	}
	return f.activeSession()
}

// newFlowTable assigns flows anew; old may be nil.
func newFlowTable(sessions []*session, old *flowTable) *flowTable {
	t := new(flowTable)
	for i := range t {
		slot := &t[i]
		var best uint64
		for _, s := range sessions {
			weight := mixBits(uint64(i)<<16 | uint64(s.orderKey()))
			if slot.next == nil || weight > best {
				slot.next, best = s, weight
			}
		}
		slot.session = slot.next
		if old != nil {
			slot.lastUsed.Store(old[i].lastUsed.Load())
			if s := old[i].activeSession(); slices.Contains(sessions, s) {
				slot.session = s
			}
		}
	}
	return t
}

// postPacket leaves a packet for the session of its flow, and returns the session.
func (t *flowTable) postPacket(buf *buffer, now time.Duration) *session {
	s := t[buf.hash%uint32(len(t))].pickSession(now)
	s.postPacket(buf)
	return s
}

// outbox takes the packets for a peer. Any goroutine uses it.
type outbox struct {
	shared   *shared
	counters *counters
	wakeup   signal // wakes the dialer

	flows  atomic.Pointer[flowTable] // nil: not connected
	failed atomic.Bool               // not connected, and the last dial failed
	wanted atomic.Int64              // time when a packet wanted a connection, in the bridge's time

	backlogMu    sync.Mutex // guards the fields below, and setting flows to another value than nil
	backlog      []*buffer  // packets that wait for the first session, the oldest first
	backlogBytes int        // in their buffers
	ended        bool       // no session will come
}

// isReachable is false when it is pointless to queue a packet. It also wakes the dialer.
func (o *outbox) isReachable() bool {
	if o.flows.Load() != nil {
		return true
	}
	now := int64(o.shared.now())
	if now-o.wanted.Load() > int64(o.shared.timing.backoff) { // not for each packet
		o.wanted.Store(now)
		o.wakeup.notify()
	}
	return !o.failed.Load()
}

// takesUSO tells whether the peer takes super-packets of UDP.
func (o *outbox) takesUSO() bool {
	t := o.flows.Load()
	return t != nil && t[0].activeSession().flags&hello.FlagUSO != 0
}

// sendPacket takes the packet over, and leaves it for a session. It never waits. The caller kicks the session that it
// returns, if any.
func (o *outbox) sendPacket(buf *buffer) *session {
	buf.queued = o.shared.now()
	buf.hash = flowHash(buf.packet())
	return o.postPacket(buf)
}

// postPacket leaves a packet for the session of its flow.
func (o *outbox) postPacket(buf *buffer) *session {
	t := o.flows.Load()
	if t == nil {
		if t = o.addBacklog(buf); t == nil {
			return nil
		}
	}
	return t.postPacket(buf, o.shared.now())
}

// addBacklog keeps a packet until there is a session. If there is one by now, it returns the flow table instead. It
// keeps few packets, and not for long.
func (o *outbox) addBacklog(buf *buffer) *flowTable {
	o.backlogMu.Lock()
	defer o.backlogMu.Unlock()
	if t := o.flows.Load(); t != nil {
		return t
	}
	o.backlog = append(o.backlog, buf)
	o.backlogBytes += len(buf.data)
	o.shared.budget.held.Add(int64(len(buf.data)))
	limit := min(maxBacklog, o.shared.budget.sessionLimit())
	for o.backlogBytes > limit || o.ended && len(o.backlog) > 0 {
		o.dropOldest(DropNotConnected)
	}
	for len(o.backlog) > 0 && o.shared.now()-o.backlog[0].queued > o.shared.timing.stale {
		o.dropOldest(DropStale)
	}
	return nil
}

// dropOldest drops the oldest packet of the backlog. o.backlogMu is held.
func (o *outbox) dropOldest(why Drop) {
	size := len(o.backlog[0].data)
	o.backlogBytes -= size
	o.shared.budget.held.Add(-int64(size))
	o.backlog[0].free()
	o.backlog = slices.Delete(o.backlog, 0, 1)
	o.counters.drops.add(why)
}

// dropBacklog drops all packets of the backlog, as there will be no session for them; ended: never again.
func (o *outbox) dropBacklog(ended bool) {
	o.backlogMu.Lock()
	defer o.backlogMu.Unlock()
	o.ended = o.ended || ended
	for len(o.backlog) > 0 {
		o.dropOldest(DropNotConnected)
	}
}

// setFlowTable has packets sent on the sessions of t from now on, the backlog first. The caller kicks the sessions. A
// goroutine that is about to add to the backlog meanwhile gets t.
func (o *outbox) setFlowTable(t *flowTable) {
	o.backlogMu.Lock()
	defer o.backlogMu.Unlock()
	o.shared.budget.held.Add(-int64(o.backlogBytes))
	for _, buf := range o.backlog {
		t.postPacket(buf, o.shared.now())
	}
	o.backlog, o.backlogBytes = nil, 0
	o.flows.Store(t)
}

// resendQueue sends the packets in the queue of a lost session on other sessions.
func (o *outbox) resendQueue(q *queue) {
	var sessions []*session
	q.takeAll(func(buf *buffer) {
		if s := o.postPacket(buf); s != nil && !slices.Contains(sessions, s) {
			sessions = append(sessions, s)
		}
	})
	for _, s := range sessions {
		s.kickSender()
	}
}
