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
	filter  atomic.Pointer[filter]
	streams atomic.Pointer[streams] // what packets are sent on; nil: not connected
	failed  atomic.Bool             // not connected, and the last dial failed
	wanted  atomic.Int64            // when a packet wanted a connection, in the bridge's time
	count   *counters

	kick chan struct{} // wakes the dial loop

	mu       sync.Mutex // guards what follows; nothing waits while it is held
	closed   bool
	sessions []*session    // in the order of streams
	most     int           // streams that the peer wants; 0: it knows of none
	changed  time.Duration // when sessions was, in the bridge's time
	eager    bool          // dial at once, whatever the back-off
	flapped  bool          // a session ended soon after it had begun: back off
	status   link.Status
	heard    time.Duration      // when status.Announced was set, in the bridge's time
	unheard  *link.Announcement // the latest, which has to wait; nil: status.Announced is

	parkMu      sync.Mutex
	parked      []*buffer // packets that wait for the first session, the oldest first
	parkedBytes int       // in their buffers
}

// streams leads flows to sessions, by the low bits of their hash. When a session is lost its flows move at
// once; when one is added those move there that pause, so that packets do not overtake others of their flow. Which
// ones is chosen by rendezvous hashing: few move, and both ends choose the same session for a flow, so
// that the kernel finds its packets and those of the way back in the same TUN queue.
type streams [256]pin

type pin struct {
	session *session
	next    *session     // where flows belong
	moved   atomic.Bool  // they went there
	used    atomic.Int64 // when they had a packet, about, in the bridge's time; 0: never
}

// at returns the session.
func (p *pin) at() *session {
	if p.moved.Load() {
		return p.next
	}
	return p.session
}

// use returns the session for a packet that is sent now.
func (p *pin) use(now time.Duration) *session {
	used := time.Duration(p.used.Load())
	pause := now - used
	if pause > flowPause/8 || used == 0 { // not for each packet: others look at it
		p.used.Store(int64(now))
	}
	if p.session != p.next && (pause > flowPause || used == 0) {
		p.moved.Store(true)
	}
	return p.at()
}

const (
	parkedMost = 2 * largeBuffer        // bytes that wait for the first session
	flowPause  = 100 * time.Millisecond // after that, the last packet of a flow has most likely arrived
)

// newStreams chooses sessions anew; old may be nil.
func newStreams(sessions []*session, old *streams) *streams {
	t := new(streams)
	for i := range t {
		pin := &t[i]
		var most uint64
		for _, s := range sessions {
			if weight := mix(uint64(i)<<16 | uint64(s.key())); pin.next == nil || weight > most {
				pin.next, most = s, weight
			}
		}
		pin.session = pin.next
		if old != nil {
			pin.used.Store(old[i].used.Load())
			if s := old[i].at(); slices.Contains(sessions, s) {
				pin.session = s
			}
		}
	}
	return t
}

// key is what both ends call the session. It orders them.
func (s *session) key() int {
	key := s.stream << 1
	if s.accepted == s.p.leads() {
		key |= 1
	}
	return key
}

func (b *Bridge) newPeer(spec *mesh.Peer) *peer {
	p := &peer{
		Peer: *spec, b: b, endpoint: net.JoinHostPort(spec.Host, strconv.Itoa(int(spec.Port))),
		count: new(counters), kick: make(chan struct{}, 1),
		status: link.Status{Link: spec.Link, State: link.Idle, Since: time.Now()},
	}
	p.ctx, p.cancel = context.WithCancel(b.ctx)
	return p
}

// serves tells whether p, as it is, can serve spec.
func (p *peer) serves(spec *mesh.Peer) bool {
	return p.Local == spec.Local && p.Service == spec.Service && p.Address == spec.Address && p.Host == spec.Host && p.Port == spec.Port
}

// leads tells whether this end is the one that dials further streams.
func (p *peer) leads() bool { return p.Local.Addr().Less(p.Address.Addr()) }

// reachable is false when there is no point in queuing a packet; that wakes the dial loop as well.
func (p *peer) reachable() bool {
	if p.streams.Load() != nil {
		return true
	}
	if now := int64(p.b.now()); now-p.wanted.Load() > int64(p.b.timing.backoff) { // not for each packet
		p.wanted.Store(now)
		p.wake()
	}
	return !p.failed.Load()
}

// post leaves a packet for the session of its flow, which is returned.
func (t *streams) post(buf *buffer, now time.Duration) *session {
	s := t[buf.hash%uint32(len(t))].use(now)
	s.post(buf)
	return s
}

// send leaves a packet for a session and owns it from now on. It never waits. The caller kicks the session
// that it returns, if any.
func (p *peer) send(buf *buffer) *session {
	buf.queued = p.b.now()
	buf.hash = flowHash(buf.packet())
	return p.pin(buf)
}

// pin leaves a packet for the session of its flow.
func (p *peer) pin(buf *buffer) *session {
	t := p.streams.Load()
	if t == nil {
		if t = p.park(buf); t == nil {
			return nil
		}
	}
	return t.post(buf, p.b.now())
}

// park keeps a packet until there is a session; if there is one now, it returns where packets go. Who comes
// before the first session is waited for, but neither for long nor in a crowd.
func (p *peer) park(buf *buffer) *streams {
	p.parkMu.Lock()
	defer p.parkMu.Unlock()
	if t := p.streams.Load(); t != nil {
		return t
	}
	p.parked = append(p.parked, buf)
	p.parkedBytes += len(buf.data)
	for p.parkedBytes > parkedMost || p.ctx.Err() != nil && len(p.parked) > 0 {
		p.unpark(DropNotConnected)
	}
	for len(p.parked) > 0 && p.b.now()-p.parked[0].queued > p.b.timing.stale {
		p.unpark(DropStale)
	}
	return nil
}

// unpark drops the packet that waits for longest. p.parkMu is held.
func (p *peer) unpark(why Drop) {
	p.parkedBytes -= len(p.parked[0].data)
	p.parked[0].free()
	p.parked = slices.Delete(p.parked, 0, 1)
	p.count.drops.add(why)
}

// unparkAll drops what waits, as nothing comes that it could wait for.
func (p *peer) unparkAll() {
	p.parkMu.Lock()
	defer p.parkMu.Unlock()
	for len(p.parked) > 0 {
		p.unpark(DropNotConnected)
	}
}

// lead has packets sent on the sessions of t from now on. What was parked is the first; a kick has to follow. Who
// was about to park meanwhile sees t.
func (p *peer) lead(t *streams) {
	p.parkMu.Lock()
	defer p.parkMu.Unlock()
	for _, buf := range p.parked {
		t.post(buf, p.b.now())
	}
	p.parked, p.parkedBytes = nil, 0
	p.streams.Store(t)
}

// resend sends what waits in the queue of a session that is lost.
func (p *peer) resend(q *queue) {
	var sessions []*session
	q.empty(func(buf *buffer) {
		if s := p.pin(buf); s != nil && !slices.Contains(sessions, s) {
			sessions = append(sessions, s)
		}
	})
	for _, s := range sessions {
		s.kick()
	}
}

func (p *peer) wake() {
	select {
	case p.kick <- struct{}{}:
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
		stream, from, ready := p.wantsDial(&back)
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
			case <-p.kick:
			case <-p.ctx.Done():
			}
			timer.Stop()
			continue
		}
		back.last, back.jitter = p.b.now(), 0.75+rand.Float64()/4
		if err := p.dial(stream); err == nil {
			back.failed = t.backoff
		} else if p.ctx.Err() == nil {
			back.failed = min(2*back.failed, t.backoffIdle)
			p.dialFailed(err)
		}
	}
}

// wantsDial tells which stream to dial, and from when on; ok is false when there is no need. It changes
// back where something has happened since the last attempt.
func (p *peer) wantsDial(back *backoff) (stream int, from time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.Host == "" || p.b.credentials.Load() == nil:
		return 0, 0, false
	case len(p.sessions) > 0:
		if len(p.sessions) >= min(p.most, p.b.config.Load().Streams) {
			return 0, 0, false
		}
		for slices.ContainsFunc(p.sessions, func(s *session) bool { return !s.accepted && s.stream == stream }) {
			stream++
		}
		if from = p.changed; !p.leads() {
			from += p.b.timing.follow
		}
	}
	if p.flapped {
		back.flapped = min(2*back.flapped, p.b.timing.backoffIdle)
	}
	if p.eager {
		*back = backoff{failed: p.b.timing.backoff, flapped: p.b.timing.backoff}
	}
	p.eager, p.flapped = false, false
	return stream, from, true
}

// retry dials at once.
func (p *peer) retry() {
	p.mu.Lock()
	p.eager = true
	p.mu.Unlock()
	p.wake()
}

// dial connects, and has the session served until its end. The error is why there is none.
func (p *peer) dial(stream int) (err error) {
	t := p.b.timing
	ctx, cancel := context.WithTimeout(p.ctx, t.dial)
	conn, err := p.b.timing.dialer(ctx, "tcp", p.endpoint)
	cancel()
	if err != nil {
		return fmt.Errorf("dial %s: %s", p.endpoint, short(err))
	}
	stop := context.AfterFunc(p.ctx, func() { conn.Close() })
	s, theirs, err := p.greet(conn, stream)
	if s == nil {
		stop()
		conn.Close()
		return err
	}
	if !p.attach(s, theirs) { // before it is thought about the next one
		stop()
		return nil
	}
	p.b.wg.Go(func() {
		defer conn.Close()
		defer stop()
		s.run()
		p.detach(s, s.cause)
	})
	return nil
}

// greet makes a dialled connection a session. Without session and error there is nothing to do.
func (p *peer) greet(conn net.Conn, stream int) (*session, *hello, error) {
	c := p.b.credentials.Load()
	if c == nil { // suspended meanwhile
		return nil, nil, nil
	}
	tune(conn)
	raw := newGather(conn, p.b.timing.write)
	raw.SetDeadline(time.Now().Add(p.b.timing.handshake))
	secure, err := dialTLS(p.ctx, c, raw, p.Host, p.endpoint)
	if err != nil {
		p.b.refuse(err)
		return nil, nil, fmt.Errorf("connect %s: %s", p.endpoint, short(err))
	}
	ours, flags, err := p.hello(stream)
	if err != nil {
		return nil, nil, err
	}
	if _, err = secure.Write(ours); err != nil {
		return nil, nil, fmt.Errorf("connect %s: %s", p.endpoint, short(err))
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
		err = p.check(theirs)
	}
	if err != nil {
		p.b.refuse(err)
		return nil, nil, fmt.Errorf("connect %s: %s", p.endpoint, short(err))
	}
	return newSession(p, secure, raw, false, stream, flags, theirs), theirs, nil
}

// hello is our hello for this peer, as a frame, and the flags in it.
func (p *peer) hello(stream int) ([]byte, uint32, error) {
	h := p.b.announcement()
	h.Address, h.ServiceCIDR, h.stream = p.Local, p.Service, stream
	payload, err := h.append(nil)
	if err != nil {
		return nil, 0, err
	}
	return appendFrame(nil, frameHello, payload), h.flags, nil
}

// check tells whether a hello is that of the peer.
func (p *peer) check(h *hello) error {
	switch {
	case !p.Local.Masked().Contains(h.Address.Addr()):
		return refuse(RefusedAddress, "peer announces cluster address %s, which is not in the mesh %s", h.Address, p.Local.Masked())
	case h.Address.Addr() != p.Address.Addr():
		return refuse(RefusedAddress, "peer announces cluster address %s, this link expects %s", h.Address, p.Address.Addr())
	}
	return nil
}

// attach makes s a session of the peer; false: the peer is gone, or s is not what the credentials
// or the TUN demand now. Those change before sessions are dropped (under p.mu), so none slips through. Older
// sessions end that are the same stream, or of a process that is not the one that now speaks.
func (p *peer) attach(s *session, h *hello) bool {
	s.raw.SetDeadline(time.Time{})
	s.raw.start()
	p.mu.Lock()
	if c := p.b.credentials.Load(); p.closed || c == nil || !c.Unencrypted && s.plain() || s.ours != p.b.flags() {
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
	p.most = h.wants()
	p.choose()
	p.failed.Store(false)
	first := p.status.State != link.Up
	p.hear(&h.Announcement)
	p.status.Reason, p.status.Refused = "", ""
	p.setState(link.Up)
	p.mu.Unlock()
	if first {
		p.b.log.Info("link is up", "link", p.Link, "remote", s.raw.RemoteAddr())
	}
	p.leave(replaced...)
	s.kick()
	p.wake()
	p.b.changed()
	return true
}

// wants is how many streams the sender of the hello wants; 0: it knows of none.
func (h *hello) wants() int {
	if h.flags&flagStreams == 0 {
		return 0
	}
	return max(1, h.streams)
}

// leave sends what waits on sessions that are not used any more on others.
func (p *peer) leave(sessions ...*session) {
	for _, s := range sessions {
		s.gone.Store(true)
		s.kick()
		s.reclaim()
	}
}

var errReplaced = errors.New("replaced by a newer connection")

// drop ends the sessions that are unwanted.
func (p *peer) drop(cause error, unwanted func(*session) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sessions {
		if unwanted(s) {
			s.close(cause)
		}
	}
}

// retire has a session of which the other end does not know yet that it ends send what it has begun, and no more. If
// it is the only one it has to go on, unless it must end.
func (p *peer) retire(s *session, must bool) {
	p.mu.Lock()
	others := len(p.sessions) > 1
	p.mu.Unlock()
	if others || must {
		p.detach(s, errSpent)
	}
}

// detach removes a session that ended, or is to do so.
func (p *peer) detach(s *session, cause error) {
	p.mu.Lock()
	before := len(p.sessions)
	p.sessions = slices.DeleteFunc(p.sessions, func(o *session) bool { return o == s })
	if p.closed || before == len(p.sessions) { // replaced
		p.mu.Unlock()
		p.leave(s)
		return
	}
	p.choose()
	now := p.b.now()
	p.eager = now-s.born > p.b.timing.stable
	p.flapped = !p.eager
	if len(p.sessions) > 0 {
		p.mu.Unlock()
		p.b.log.Info("one connection of the link is lost, others carry on", "link", p.Link, "reason", short(cause))
		p.leave(s)
		p.wake()
		p.b.changed()
		return
	}
	p.wanted.Store(int64(now))
	p.status.Reason = "connection lost: " + short(cause)
	if cause == errSilent {
		p.status.Reason = fmt.Sprintf("connection lost: no answer for %s", p.b.timing.silence)
	}
	reason := p.status.Reason
	p.setState(link.Down)
	p.mu.Unlock()
	p.leave(s)
	p.b.log.Warn("link is down", "link", p.Link, "reason", reason)
	p.wake()
	p.b.changed()
}

// choose leads flows to the sessions that live. p.mu is held.
func (p *peer) choose() {
	p.changed = p.b.now()
	if len(p.sessions) == 0 {
		p.streams.Store(nil)
		return
	}
	if p.most == 0 { // the first one stays while it lives
		p.lead(newStreams(p.sessions[:1], nil))
		return
	}
	slices.SortFunc(p.sessions, func(a, b *session) int { return a.key() - b.key() })
	for i, s := range p.sessions {
		s.tun.Store(int32(i))
	}
	p.lead(newStreams(p.sessions, p.streams.Load()))
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
		p.unparkAll()
	}
	if !news {
		return
	}
	p.b.log.Warn("link cannot be connected", "link", p.Link, "reason", reason)
	p.b.changed()
}

// refused notes that a connection from the peer was refused. The state is that of our own attempts.
func (p *peer) refused(err error) {
	p.mu.Lock()
	news := p.status.Refused != err.Error() && len(p.sessions) == 0
	if news {
		p.status.Refused = err.Error()
	}
	p.mu.Unlock()
	if news {
		p.b.changed()
	}
}

// updated takes a hello within a session: the peer announces new facts.
func (p *peer) updated(payload []byte) error {
	h, err := parseHello(payload)
	if err == nil {
		err = p.check(h)
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	news := p.hear(&h.Announcement)
	p.most = h.wants()
	p.mu.Unlock()
	p.wake()
	if news {
		p.b.changed()
	}
	return nil
}

// hear takes what the peer tells of itself, and says whether it is news. p.mu is held. Others work on each change:
// whoever changes all the time is heard now and then, with the latest.
func (p *peer) hear(a *link.Announcement) (news bool) {
	news = !reflect.DeepEqual(p.status.Announced, a)
	wait := p.heard + p.b.timing.hear - p.b.now()
	if p.status.Announced != nil && wait > 0 && (news || p.unheard != nil) {
		if p.unheard == nil {
			time.AfterFunc(wait, p.hearLatest)
		}
		p.unheard = a
		return false
	}
	p.unheard = nil
	if news {
		p.status.Announced, p.heard = a, p.b.now()
	}
	return news
}

// hearLatest takes what had to wait.
func (p *peer) hearLatest() {
	p.mu.Lock()
	news := !p.closed && p.unheard != nil && p.hear(p.unheard)
	p.mu.Unlock()
	if news {
		p.b.changed()
	}
}

// announce tells the peer that our announcement changed, where it understands that.
func (p *peer) announce() {
	p.mu.Lock()
	sessions := slices.Clone(p.sessions)
	p.mu.Unlock()
	for _, s := range sessions {
		if s.flags&flagUpdates != 0 {
			s.update.Store(true)
			s.kick()
		}
	}
}

func (p *peer) getStatus() link.Status {
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
	p.streams.Store(nil)
	p.mu.Unlock()
	p.cancel() // from now on nothing is parked
	p.unparkAll()
}

// tune sets the options of a connection. A peer that does not answer keepalives of TCP, or
// does not acknowledge what was sent, is gone after 15 s: former peers have no pings.
func tune(conn net.Conn) {
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

// short says what went wrong in few words, the same each time: no addresses, no ephemeral ports.
func short(err error) string {
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
