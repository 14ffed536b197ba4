package bridge

// A peer: the link, its sessions, its dial loop, and what is known of its state.
//
// A link has several sessions where both ends can (streams): each flow is sent on one of them. Both ends dial
// while there are fewer than agreed on, one of them at once and the other one only if that
// does not help. A peer that knows of no streams has one session, or two when both ends dialled at the same
// time: packets are received from both and sent on one, which stays so while it lives.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

type peer struct {
	mesh.Peer // what does not change in the life of the peer: Link, Local, Address, Host, Port
	b         *Bridge
	endpoint  string
	ctx       context.Context
	cancel    context.CancelFunc

	// The packet path.
	filter   atomic.Pointer[ingressFilter]
	flows    atomic.Pointer[flowTable] // what packets are sent on; nil: not connected
	failed   atomic.Bool               // not connected, and the last dial failed
	wanted   atomic.Int64              // when a packet wanted a connection, in the bridge's time
	counters *counters

	wakeup chan struct{} // wakes the dial loop

	mu           sync.Mutex // guards what follows; nothing waits while it is held
	closed       bool
	sessions     []*session    // in the order of streams
	peerStreams  int           // streams that the peer wants; 0: it knows of none
	changedAt    time.Duration // when sessions was, in the bridge's time
	dialNow      bool          // dial at once, whatever the back-off
	flapped      bool          // a session ended soon after it had begun: back off
	status       link.Status
	lastReceived time.Duration      // when status.Announced was set, in the bridge's time
	pending      *link.Announcement // the latest, which has to wait; nil: status.Announced is

	backlogMu    sync.Mutex
	backlog      []*buffer // packets that wait for the first session, the oldest first
	backlogBytes int       // in their buffers
}

// flowTable leads flows to sessions, by the low bits of their hash. When a session is lost its flows move at
// once; when one is added those move there that pause, so that packets do not overtake others of their flow. Which
// ones is chosen by rendezvous hashing: few move, and both ends choose the same session for a flow, so
// that the kernel finds its packets and those of the way back in the same TUN queue.
type flowTable [256]flowSlot

type flowSlot struct {
	session  *session
	next     *session     // where flows belong
	moved    atomic.Bool  // they went there
	lastUsed atomic.Int64 // when they had a packet, about, in the bridge's time; 0: never
}

// activeSession returns the session.
func (p *flowSlot) activeSession() *session {
	if p.moved.Load() {
		return p.next
	}
	return p.session
}

// pickSession returns the session for a packet that is sent now.
func (p *flowSlot) pickSession(now time.Duration) *session {
	used := time.Duration(p.lastUsed.Load())
	pause := now - used
	if pause > flowPause/8 || used == 0 { // not for each packet: others look at it
		p.lastUsed.Store(int64(now))
	}
	if p.session != p.next && (pause > flowPause || used == 0) {
		p.moved.Store(true)
	}
	return p.activeSession()
}

const (
	maxBacklog = 2 * largeBuffer        // bytes that wait for the first session
	flowPause  = 100 * time.Millisecond // after that, the last packet of a flow has most likely arrived
)

// newFlowTable chooses sessions anew; old may be nil.
func newFlowTable(sessions []*session, old *flowTable) *flowTable {
	t := new(flowTable)
	for i := range t {
		pin := &t[i]
		var most uint64
		for _, s := range sessions {
			if weight := mixBits(uint64(i)<<16 | uint64(s.orderKey())); pin.next == nil || weight > most {
				pin.next, most = s, weight
			}
		}
		pin.session = pin.next
		if old != nil {
			pin.lastUsed.Store(old[i].lastUsed.Load())
			if s := old[i].activeSession(); slices.Contains(sessions, s) {
				pin.session = s
			}
		}
	}
	return t
}

// orderKey is what both ends call the session. It orders them.
func (s *session) orderKey() int {
	key := s.stream << 1
	if s.accepted == s.peer.isInitiator() {
		key |= 1
	}
	return key
}

func (b *Bridge) newPeer(spec *mesh.Peer) *peer {
	p := &peer{
		Peer: *spec, b: b, endpoint: net.JoinHostPort(spec.Host, strconv.Itoa(int(spec.Port))),
		counters: new(counters), wakeup: make(chan struct{}, 1),
		status: link.Status{Link: spec.Link, State: link.Idle, Since: time.Now()},
	}
	p.ctx, p.cancel = context.WithCancel(b.ctx)
	return p
}

// canServe tells whether p, as it is, can serve spec.
func (p *peer) canServe(spec *mesh.Peer) bool {
	return p.Local == spec.Local && p.Service == spec.Service && p.Address == spec.Address && p.Host == spec.Host && p.Port == spec.Port
}

// isInitiator tells whether this end is the one that dials further streams.
func (p *peer) isInitiator() bool { return p.Local.Addr().Less(p.Address.Addr()) }

// isReachable is false when there is no point in queuing a packet; that wakes the dial loop as well.
func (p *peer) isReachable() bool {
	if p.flows.Load() != nil {
		return true
	}
	if now := int64(p.b.now()); now-p.wanted.Load() > int64(p.b.timing.backoff) { // not for each packet
		p.wanted.Store(now)
		p.wakeDialer()
	}
	return !p.failed.Load()
}

// postPacket leaves a packet for the session of its flow, which is returned.
func (t *flowTable) postPacket(buf *buffer, now time.Duration) *session {
	s := t[buf.hash%uint32(len(t))].pickSession(now)
	s.postPacket(buf)
	return s
}

// sendPacket leaves a packet for a session and owns it from now on. It never waits. The caller kicks the session
// that it returns, if any.
func (p *peer) sendPacket(buf *buffer) *session {
	buf.queued = p.b.now()
	buf.hash = flowHash(buf.packet())
	return p.postPacket(buf)
}

// postPacket leaves a packet for the session of its flow.
func (p *peer) postPacket(buf *buffer) *session {
	t := p.flows.Load()
	if t == nil {
		if t = p.addBacklog(buf); t == nil {
			return nil
		}
	}
	return t.postPacket(buf, p.b.now())
}

// addBacklog keeps a packet until there is a session; if there is one now, it returns where packets go. Who comes
// before the first session is waited for, but neither for long nor in a crowd.
func (p *peer) addBacklog(buf *buffer) *flowTable {
	p.backlogMu.Lock()
	defer p.backlogMu.Unlock()
	if t := p.flows.Load(); t != nil {
		return t
	}
	p.backlog = append(p.backlog, buf)
	p.backlogBytes += len(buf.data)
	for p.backlogBytes > maxBacklog || p.ctx.Err() != nil && len(p.backlog) > 0 {
		p.dropOldest(DropNotConnected)
	}
	for len(p.backlog) > 0 && p.b.now()-p.backlog[0].queued > p.b.timing.stale {
		p.dropOldest(DropStale)
	}
	return nil
}

// dropOldest drops the packet that waits for longest. p.parkMu is held.
func (p *peer) dropOldest(why Drop) {
	p.backlogBytes -= len(p.backlog[0].data)
	p.backlog[0].free()
	p.backlog = slices.Delete(p.backlog, 0, 1)
	p.counters.drops.add(why)
}

// dropBacklog drops what waits, as nothing comes that it could wait for.
func (p *peer) dropBacklog() {
	p.backlogMu.Lock()
	defer p.backlogMu.Unlock()
	for len(p.backlog) > 0 {
		p.dropOldest(DropNotConnected)
	}
}

// setFlowTable has packets sent on the sessions of t from now on. What was parked is the first; a kick has to follow. Who
// was about to park meanwhile sees t.
func (p *peer) setFlowTable(t *flowTable) {
	p.backlogMu.Lock()
	defer p.backlogMu.Unlock()
	for _, buf := range p.backlog {
		t.postPacket(buf, p.b.now())
	}
	p.backlog, p.backlogBytes = nil, 0
	p.flows.Store(t)
}

// resendQueue sends what waits in the queue of a session that is lost.
func (p *peer) resendQueue(q *queue) {
	var sessions []*session
	q.takeAll(func(buf *buffer) {
		if s := p.postPacket(buf); s != nil && !slices.Contains(sessions, s) {
			sessions = append(sessions, s)
		}
	})
	for _, s := range sessions {
		s.kickSender()
	}
}

func (p *peer) wakeDialer() {
	select {
	case p.wakeup <- struct{}{}:
	default:
	}
}

// backoff is the pause between dials: it grows with attempts that fail, and with sessions that end soon.
type backoff struct {
	failed, flapped time.Duration
	last            time.Duration // the last attempt, in the bridge's time; 0: do not wait
	jitter          float64
}

// dialLoop keeps the peer connected until it is closed. Between attempts it backs off: for a short
// time when the link was in use lately, so that a peer that returns is found soon.
func (p *peer) dialLoop() {
	t := p.b.timing
	back := backoff{failed: t.backoff, flapped: t.backoff}
	p.wanted.Store(int64(p.b.now()))
	for p.ctx.Err() == nil {
		stream, from, ready := p.nextDial(&back)
		most := t.backoffIdle
		if p.b.now()-time.Duration(p.wanted.Load()) < t.recently {
			most = t.backoffUsed
		}
		pause := time.Hour
		if ready {
			pause = from - p.b.now()
			if back.last != 0 {
				wait := float64(min(max(back.failed, back.flapped), most)) * back.jitter
				pause = max(pause, back.last+time.Duration(wait)-p.b.now())
			}
		}
		if pause > 0 {
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-p.wakeup:
			case <-p.ctx.Done():
			}
			timer.Stop()
			continue
		}
		back.last, back.jitter = p.b.now(), 0.75+rand.Float64()/4
		if err := p.dialStream(stream); err == nil {
			back.failed = t.backoff
		} else if p.ctx.Err() == nil {
			back.failed = min(2*back.failed, t.backoffIdle)
			p.dialFailed(err)
		}
	}
}

// nextDial tells which stream to dial, and from when on; ok is false when there is no need. It changes
// back where something has happened since the last attempt.
func (p *peer) nextDial(back *backoff) (stream int, from time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.Host == "" || p.b.credentials.Load() == nil:
		return 0, 0, false
	case len(p.sessions) > 0:
		if len(p.sessions) >= min(p.peerStreams, p.b.config.Load().Streams) {
			return 0, 0, false
		}
		for slices.ContainsFunc(p.sessions, func(s *session) bool { return !s.accepted && s.stream == stream }) {
			stream++
		}
		if from = p.changedAt; !p.isInitiator() {
			from += p.b.timing.followDelay
		}
	}
	if p.flapped {
		back.flapped = min(2*back.flapped, p.b.timing.backoffIdle)
	}
	if p.dialNow {
		*back = backoff{failed: p.b.timing.backoff, flapped: p.b.timing.backoff}
	}
	p.dialNow, p.flapped = false, false
	return stream, from, true
}

// dialAtOnce dials at once.
func (p *peer) dialAtOnce() {
	p.mu.Lock()
	p.dialNow = true
	p.mu.Unlock()
	p.wakeDialer()
}

// dialStream connects, and has the session served until its end. The error is why there is none.
func (p *peer) dialStream(stream int) (err error) {
	t := p.b.timing
	ctx, cancel := context.WithTimeout(p.ctx, t.dial)
	conn, err := p.b.timing.dialer(ctx, "tcp", p.endpoint)
	cancel()
	if err != nil {
		return fmt.Errorf("dial %s: %s", p.endpoint, shortReason(err))
	}
	stop := context.AfterFunc(p.ctx, func() { conn.Close() })
	s, theirs, err := p.handshake(conn, stream)
	if s == nil {
		stop()
		conn.Close()
		return err
	}
	if !p.attachSession(s, theirs) { // before it is thought about the next one
		stop()
		return nil
	}
	p.b.wg.Go(func() {
		defer conn.Close()
		defer stop()
		s.run()
		p.detachSession(s, s.cause)
	})
	return nil
}

// handshake makes a dialled connection a session. Without session and error there is nothing to do.
func (p *peer) handshake(conn net.Conn, stream int) (*session, *hello, error) {
	c := p.b.credentials.Load()
	if c == nil { // suspended meanwhile
		return nil, nil, nil
	}
	tuneTCP(conn)
	raw := newBatchConn(conn, p.b.timing.write)
	raw.SetDeadline(time.Now().Add(p.b.timing.handshake))
	secure, err := dialTLS(p.ctx, c, raw, p.Host, p.endpoint)
	if err != nil {
		p.b.countRefusal(err)
		return nil, nil, fmt.Errorf("connect %s: %s", p.endpoint, shortReason(err))
	}
	ours, flags, err := p.helloFrame(stream)
	if err != nil {
		return nil, nil, err
	}
	if _, err = secure.Write(ours); err != nil {
		return nil, nil, fmt.Errorf("connect %s: %s", p.endpoint, shortReason(err))
	}
	theirs, err := readHello(secure)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return nil, nil, fmt.Errorf("connect %s: peer closed the connection before its hello: does it have a link for %s with the endpoint that our certificate names?", p.endpoint, p.Local)
	case err != nil && isAlert(err): // of TLS 1.3, where the client is told so late
		err = asRefusal(RefusedCertificate, err)
	case err != nil:
		err = asRefusal(RefusedHello, err)
	default:
		err = p.checkHello(theirs)
	}
	if err != nil {
		p.b.countRefusal(err)
		return nil, nil, fmt.Errorf("connect %s: %s", p.endpoint, shortReason(err))
	}
	return newSession(p, secure, raw, false, stream, flags, theirs), theirs, nil
}

// helloFrame is our hello for this peer, as a frame, and the flags in it.
func (p *peer) helloFrame(stream int) ([]byte, uint32, error) {
	h := p.b.ownHello()
	h.Address, h.ServiceCIDR, h.stream = p.Local, p.Service, stream
	payload, err := h.appendPayload(nil)
	if err != nil {
		return nil, 0, err
	}
	return appendFrame(nil, frameHello, payload), h.flags, nil
}

// checkHello tells whether a hello is that of the peer.
func (p *peer) checkHello(h *hello) error {
	switch {
	case !p.Local.Masked().Contains(h.Address.Addr()):
		return newRefusal(RefusedAddress, "peer announces cluster address %s, which is not in the mesh %s", h.Address, p.Local.Masked())
	case h.Address.Addr() != p.Address.Addr():
		return newRefusal(RefusedAddress, "peer announces cluster address %s, this link expects %s", h.Address, p.Address.Addr())
	}
	return nil
}

// attachSession makes s a session of the peer; false: the peer is gone, or s is not what the credentials
// or the TUN demand now. Those change before sessions are dropped (under p.mu), so none slips through. Older
// sessions end that are the same stream, or of a process that is not the one that now speaks.
func (p *peer) attachSession(s *session, h *hello) bool {
	s.raw.SetDeadline(time.Time{})
	s.raw.startBatching()
	p.mu.Lock()
	if c := p.b.credentials.Load(); p.closed || c == nil || !c.Unencrypted && s.isUnencrypted() || s.ourFlags != p.b.featureFlags() {
		p.mu.Unlock()
		s.close(nil)
		return false
	}
	var replaced []*session
	p.sessions = slices.DeleteFunc(p.sessions, func(old *session) bool {
		gone := old.accepted == s.accepted && old.stream == s.stream || old.instance != 0 && s.instance != 0 && old.instance != s.instance
		if gone {
			old.close(errReplaced)
			replaced = append(replaced, old)
		}
		return gone
	})
	p.sessions = append(p.sessions, s)
	p.peerStreams = h.wantedStreams()
	p.updateFlowTable()
	p.failed.Store(false)
	first := p.status.State != link.Up
	p.receiveAnnouncement(&h.Announcement)
	p.status.Reason, p.status.Refused = "", ""
	p.setState(link.Up)
	p.mu.Unlock()
	if first {
		p.b.log.Info("link is up", "link", p.Link, "remote", s.raw.RemoteAddr())
	}
	p.drainSessions(replaced...)
	s.kickSender()
	p.wakeDialer()
	p.b.notifyChanged()
	return true
}

// wantedStreams is how many streams the sender of the hello wants; 0: it knows of none.
func (h *hello) wantedStreams() int {
	if h.flags&flagStreams == 0 {
		return 0
	}
	return max(1, h.streams)
}

// drainSessions sends what waits on sessions that are not used any more on others.
func (p *peer) drainSessions(sessions ...*session) {
	for _, s := range sessions {
		s.detached.Store(true)
		s.kickSender()
		s.reclaimTurn()
	}
}

var errReplaced = errors.New("replaced by a newer connection")

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

// retireSession has a session of which the other end does not know yet that it ends send what it has begun, and no more. If
// it is the only one it has to go on, unless it must end.
func (p *peer) retireSession(s *session, must bool) {
	p.mu.Lock()
	others := len(p.sessions) > 1
	p.mu.Unlock()
	if others || must {
		p.detachSession(s, errSpent)
	}
}

// detachSession removes a session that ended, or is to do so.
func (p *peer) detachSession(s *session, cause error) {
	p.mu.Lock()
	before := len(p.sessions)
	p.sessions = slices.DeleteFunc(p.sessions, func(o *session) bool { return o == s })
	if p.closed || before == len(p.sessions) { // replaced
		p.mu.Unlock()
		p.drainSessions(s)
		return
	}
	p.updateFlowTable()
	now := p.b.now()
	p.dialNow = now-s.startedAt > p.b.timing.stable
	p.flapped = !p.dialNow
	if len(p.sessions) > 0 {
		p.mu.Unlock()
		p.b.log.Info("one connection of the link is lost, others carry on", "link", p.Link, "reason", shortReason(cause))
		p.drainSessions(s)
		p.wakeDialer()
		p.b.notifyChanged()
		return
	}
	p.wanted.Store(int64(now))
	p.status.Reason = "connection lost: " + shortReason(cause)
	if cause == errSilent {
		p.status.Reason = fmt.Sprintf("connection lost: no answer for %s", p.b.timing.silence)
	}
	reason := p.status.Reason
	p.setState(link.Down)
	p.mu.Unlock()
	p.drainSessions(s)
	p.b.log.Warn("link is down", "link", p.Link, "reason", reason)
	p.wakeDialer()
	p.b.notifyChanged()
}

// updateFlowTable leads flows to the sessions that live. p.mu is held.
func (p *peer) updateFlowTable() {
	p.changedAt = p.b.now()
	if len(p.sessions) == 0 {
		p.flows.Store(nil)
		return
	}
	if p.peerStreams == 0 { // the first one stays while it lives
		p.setFlowTable(newFlowTable(p.sessions[:1], nil))
		return
	}
	slices.SortFunc(p.sessions, func(a, b *session) int { return a.orderKey() - b.orderKey() })
	for i, s := range p.sessions {
		s.tunQueue.Store(int32(i))
	}
	p.setFlowTable(newFlowTable(p.sessions, p.flows.Load()))
}

// setState sets the state. p.mu is held.
func (p *peer) setState(s link.State) {
	if p.status.State != s {
		p.status.State, p.status.Since = s, time.Now()
	}
}

// dialFailed notes why there is no connection. It tells so once per reason.
func (p *peer) dialFailed(err error) {
	reason := err.Error()
	p.mu.Lock()
	down := !p.closed && len(p.sessions) == 0
	news := down && (p.status.State != link.Down || p.status.Reason != reason)
	if down {
		p.failed.Store(true)
		p.status.Reason = reason
		p.setState(link.Down)
	}
	p.mu.Unlock()
	if down {
		p.dropBacklog()
	}
	if !news {
		return
	}
	p.b.log.Warn("link cannot be connected", "link", p.Link, "reason", reason)
	p.b.notifyChanged()
}

// noteRefusal notes that a connection from the peer was refused. The state is that of our own attempts.
func (p *peer) noteRefusal(err error) {
	p.mu.Lock()
	news := p.status.Refused != err.Error() && len(p.sessions) == 0
	if news {
		p.status.Refused = err.Error()
	}
	p.mu.Unlock()
	if news {
		p.b.notifyChanged()
	}
}

// receiveHello takes a hello within a session: the peer announces new facts.
func (p *peer) receiveHello(payload []byte) error {
	h, err := parseHello(payload)
	if err == nil {
		err = p.checkHello(h)
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	news := p.receiveAnnouncement(&h.Announcement)
	p.peerStreams = h.wantedStreams()
	p.mu.Unlock()
	p.wakeDialer()
	if news {
		p.b.notifyChanged()
	}
	return nil
}

// receiveAnnouncement takes what the peer tells of itself, and says whether it is news. p.mu is held. Others work on each change:
// whoever changes all the time is heard now and then, with the latest.
func (p *peer) receiveAnnouncement(a *link.Announcement) (news bool) {
	news = !reflect.DeepEqual(p.status.Announced, a)
	wait := p.lastReceived + p.b.timing.announceInterval - p.b.now()
	if p.status.Announced != nil && wait > 0 && (news || p.pending != nil) {
		if p.pending == nil {
			time.AfterFunc(wait, p.receivePending)
		}
		p.pending = a
		return false
	}
	p.pending = nil
	if news {
		p.status.Announced, p.lastReceived = a, p.b.now()
	}
	return news
}

// receivePending takes what had to wait.
func (p *peer) receivePending() {
	p.mu.Lock()
	news := !p.closed && p.pending != nil && p.receiveAnnouncement(p.pending)
	p.mu.Unlock()
	if news {
		p.b.notifyChanged()
	}
}

// sendAnnouncement tells the peer that our announcement changed, where it understands that.
func (p *peer) sendAnnouncement() {
	p.mu.Lock()
	sessions := slices.Clone(p.sessions)
	p.mu.Unlock()
	for _, s := range sessions {
		if s.flags&flagUpdates != 0 {
			s.update.Store(true)
			s.kickSender()
		}
	}
}

func (p *peer) currentStatus() link.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.status
	for i, s := range p.sessions {
		if s.accepted {
			st.Accepted++
		} else {
			st.Dialled++
		}
		if rtt := time.Duration(s.rtt.Load()); st.RTT == 0 || rtt > 0 && rtt < st.RTT {
			st.RTT = rtt
		}
		if i == 0 {
			st.Remote = s.raw.RemoteAddr().String()
		}
	}
	return st
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
	p.cancel() // from now on nothing is parked
	p.dropBacklog()
}

// tuneTCP sets the options of a connection. A peer that does not answer keepalives of TCP, or
// does not acknowledge what was sent, is gone after 15 s: legacy peers have no pings.
func tuneTCP(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3})
	setUserTimeout(tcp, 15*time.Second)
}

// isAlert tells whether err is a TLS alert from the peer.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// shortReason says what went wrong in few words, the same each time: no addresses, no ephemeral ports.
func shortReason(err error) string {
	var (
		r       *refusal
		name    *net.DNSError
		errno   syscall.Errno
		op      *net.OpError
		timeout net.Error
	)
	switch {
	case err == nil:
		return "closed"
	case errors.As(err, &r) && !errors.As(err, &op) && !errors.Is(err, io.EOF):
		return r.Error()
	case errors.As(err, &name) && name.IsNotFound:
		return "no such host"
	case errors.As(err, &name):
		return "name look-up failed"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed by peer"
	case isAlert(err):
		errors.As(err, &op)
		// It does not tell strangers more.
		return "refused by peer: " + op.Err.Error() + ": has it a link whose endpoint our certificate names, and the same CA?"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return "timed out"
	case errors.As(err, &op) && op.Err != nil:
		return op.Err.Error()
	}
	return err.Error()
}
