package bridge

// A peer: the sessions of a link, how they come and go, and the flows on them.
//
// A link has several sessions (streams) where both ends can: each flow is sent on one of them. Both ends dial while
// there are fewer sessions than agreed on: the initiator at once, and the other end only if that does not help. A peer
// without streams has one session, or two when both ends dialled at the same time: then packets are received from both
// and sent on the first one while it lives.

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// peer is the other end of a link.
type peer struct {
	mesh.Peer // only fields that never change are read: Link, Local, Services, Addresses, Host, Port
	*shared
	router   *router
	iface    *iface
	endpoint string
	ctx      context.Context // ends when the peer is closed; shared.ctx when the bridge is
	cancel   context.CancelFunc

	outbox
	filter atomic.Pointer[ingressFilter] // of packets from the peer
	warned atomic.Bool                   // of a wildcard certificate
	lines  linkLines

	mu          sync.Mutex // guards the fields below; no goroutine waits while it holds it
	closed      bool
	sessions    []*session    // in the order of streams
	peerStreams int           // that the peer wants; 0: it has no streams
	changedAt   time.Duration // when sessions changed, in the bridge's time
	dialNow     bool          // regardless of the back-off
	flapped     bool          // a session ended soon after its start: back off
	linkState
	leader hello.Leader // in the bridge's time
}

func newPeer(s *shared, r *router, f *iface, spec *mesh.Peer) *peer {
	p := &peer{
		Peer: *spec, shared: s, router: r, iface: f,
		endpoint:  net.JoinHostPort(spec.Host, strconv.Itoa(int(spec.Port))),
		outbox:    outbox{shared: s, counters: new(counters), wakeup: newSignal()},
		linkState: linkState{status: link.Status{Link: spec.Link, State: link.Idle, Since: time.Now()}},
		lines:     newLinkLines(s.timing.logInterval),
	}
	p.ctx, p.cancel = context.WithCancel(s.ctx)
	return p
}

// canServe tells whether the peer, as it is, can serve spec.
func (p *peer) canServe(spec *mesh.Peer) bool {
	return slices.Equal(p.Local, spec.Local) && slices.Equal(p.Services, spec.Services) &&
		slices.Equal(p.Addresses, spec.Addresses) &&
		p.Host == spec.Host && p.Port == spec.Port
}

// isInitiator tells whether this end dials further streams at once.
func (p *peer) isInitiator() bool { return p.Local.First().Addr().Less(p.Addresses.First().Addr()) }

// helloFrame returns our hello for this peer as a frame, and the flags in it. It is the answer to theirs, if that is
// not nil.
func (p *peer) helloFrame(stream int, theirs *hello.Hello) ([]byte, uint32, error) {
	h := p.ownHello()
	h.Address, h.ServiceCIDR, h.Stream = p.Local.First(), p.Services.First(), stream
	h.Terms.Followed = p.followedTerm(theirs)
	payload, err := h.AppendPayload(nil)
	if err != nil {
		return nil, 0, err
	}
	return hello.AppendFrame(nil, hello.FrameHello, payload), h.Flags, nil
}

// attachSession makes s a session of the peer. It returns false when the peer is closed, when the credentials have
// changed since the handshake of s began and do not trust the peer, when the TUN has changed, or when another broker of
// the peer's cluster has a higher term. As credentials and TUN change before sessions are looked through (under p.mu),
// no session remains that is not allowed.
func (p *peer) attachSession(s *session, h *hello.Hello) bool {
	s.raw.SetDeadline(time.Time{})
	s.raw.startBatching()
	verified, trusted := s.verifyAgain(s.credentials)
	p.mu.Lock()
	for trusted && p.credentials.Load() != verified { // certificates are not verified under the lock
		p.mu.Unlock()
		verified, trusted = s.verifyAgain(verified)
		p.mu.Lock()
	}
	if p.closed || !trusted || s.ourFlags != p.featureFlags() || p.leader.IsSuperseded(h, p.moment()) {
		p.mu.Unlock()
		s.close(nil)
		return false
	}
	p.leader.FollowSender(h, p.now())
	replaced := p.removeReplaced(s)
	p.sessions = append(p.sessions, s)
	p.peerStreams = h.WantedStreams()
	p.updateFlowTable()
	p.failed.Store(false)
	first := p.status.State != link.Up
	p.receiveAnnouncement(&h.Announcement)
	if s.flags&hello.FlagServices == 0 {
		p.offers.received.Forget()
	}
	offering := p.chooseOffering()
	p.linkUp()
	p.mu.Unlock()
	if first {
		p.lines.up.Log(p.log.Info, "link is up", "link", p.Link, "remote", s.remote)
	}
	s.warnOfWildcard()
	drainSessions(replaced...)
	s.kickSender()
	offering.kickServices()
	p.wakeup.notify()
	p.notifyChanged()
	return true
}

var errReplaced = errors.New("replaced by a newer connection")

// removeReplaced closes and returns the sessions that s replaces: with the same stream, or of an earlier process of the
// peer. p.mu is held.
func (p *peer) removeReplaced(s *session) (replaced []*session) {
	p.sessions = slices.DeleteFunc(p.sessions, func(old *session) bool {
		sameStream := old.accepted == s.accepted && old.stream == s.stream
		otherProcess := old.instance != 0 && s.instance != 0 && old.instance != s.instance
		if sameStream || otherProcess {
			old.close(errReplaced)
			replaced = append(replaced, old)
		}
		return sameStream || otherProcess
	})
	return replaced
}

// drainSessions sends the packets that wait on sessions which are no longer used on other sessions.
func drainSessions(sessions ...*session) {
	for _, s := range sessions {
		s.detached.Store(true)
		s.kickSender()
		s.reclaimTurn()
	}
}

// closeSessions ends the sessions that are unwanted.
func (p *peer) closeSessions(cause error, unwanted func(*session) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sessions {
		if unwanted(s) {
			s.close(cause)
		}
	}
}

// retireSession ends a session that a new one is to replace: it sends the packets that it has begun, and no more. Unless
// it must end, it goes on while there is no other one that has lived for a while: the peer may not have that one yet.
func (p *peer) retireSession(s *session, cause error, must bool) {
	p.mu.Lock()
	now := p.now()
	another := slices.ContainsFunc(p.sessions, func(o *session) bool {
		return o != s && now-o.startedAt > p.timing.stable
	})
	p.mu.Unlock()
	if another || must {
		p.detachSession(s, cause)
	}
	if s.detached.Load() { // the peer closes when it has read the last bytes; a peer that does not is cut off
		s.raw.SetReadDeadline(time.Now().Add(p.timing.silence))
	}
}

// detachSession removes a session that has ended, or is to end.
func (p *peer) detachSession(s *session, cause error) {
	p.mu.Lock()
	before := len(p.sessions)
	p.sessions = slices.DeleteFunc(p.sessions, func(o *session) bool { return o == s })
	p.leader.NoteEnd(s.instance, p.now())
	if p.closed || before == len(p.sessions) { // replaced
		p.mu.Unlock()
		drainSessions(s)
		return
	}
	p.updateFlowTable()
	now := p.now()
	p.dialNow = now-s.startedAt > p.timing.stable
	p.flapped = !p.dialNow
	down := len(p.sessions) == 0
	if down {
		p.wanted.Store(int64(now))
		p.linkDown(p.lossReason(cause))
		p.counters.downs.Add(1)
	}
	reason, offering := p.status.Reason, p.chooseOffering()
	p.mu.Unlock()
	drainSessions(s)
	offering.kickServices()
	if down {
		p.lines.down.Log(p.log.Warn, "link is down", "link", p.Link, "reason", reason)
	} else {
		p.lines.lost.Log(p.log.Info, "one connection of the link is lost, the other connections carry on",
			"link", p.Link, "reason", shortReason(cause))
	}
	p.wakeup.notify()
	p.notifyChanged()
}

// updateFlowTable assigns flows to the sessions that live. p.mu is held.
func (p *peer) updateFlowTable() {
	p.changedAt = p.now()
	if len(p.sessions) == 0 {
		p.flows.Store(nil)
		return
	}
	if p.peerStreams == 0 { // the first session keeps all flows while it lives
		p.setFlowTable(newFlowTable(p.sessions[:1], nil))
		return
	}
	slices.SortFunc(p.sessions, func(a, b *session) int { return a.orderKey() - b.orderKey() })
	for i, s := range p.sessions {
		s.tunQueue.Store(int32(i))
	}
	p.setFlowTable(newFlowTable(p.sessions, p.flows.Load()))
}

func (p *peer) currentSessions() []*session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sessions)
}

// sendAnnouncement sends our changed announcement on the sessions with hello.FlagUpdates.
func (p *peer) sendAnnouncement() {
	for _, s := range p.currentSessions() {
		if s.flags&hello.FlagUpdates != 0 {
			s.due.update.Store(true)
			s.kickSender()
		}
	}
}

// dialAtOnce dials regardless of the back-off.
func (p *peer) dialAtOnce() {
	p.mu.Lock()
	p.dialNow = true
	p.mu.Unlock()
	p.wakeup.notify()
}

// close ends the peer and its sessions.
func (p *peer) close() {
	p.mu.Lock()
	p.closed = true
	for _, s := range p.sessions {
		s.close(nil)
	}
	p.flows.Store(nil)
	p.mu.Unlock()
	p.cancel()
	p.dropBacklog(true)
}
