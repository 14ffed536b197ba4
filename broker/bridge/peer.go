package bridge

// A peer: the link, its sessions, its dial loop, and what is known of its state.
//
// Both ends dial, so there may be two sessions: one dialled, one accepted. Packets are received from
// both and sent on one, which stays so while it lives. It is dialled only while there is none.

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

	"github.com/mandelsoft/kubelink/broker/mesh"
)

type peer struct {
	mesh.Peer // what does not change in the life of the peer: Link, Local, Address, Host, Port
	b         *Bridge
	endpoint  string
	ctx       context.Context
	cancel    context.CancelFunc

	// The packet path.
	filter atomic.Pointer[filter]
	queue  queue
	sends  atomic.Pointer[session] // the session that packets are sent on; nil: none
	failed atomic.Bool             // not connected, and the last dial failed
	wanted atomic.Int64            // when a packet wanted a connection, in the bridge's time
	count  *counters

	kick chan struct{} // wakes the dial loop

	mu       sync.Mutex // guards what follows; nothing waits while it is held
	closed   bool
	sessions []*session
	eager    bool // dial at once, whatever the back-off
	status   Status
}

func (b *Bridge) newPeer(spec *mesh.Peer) *peer {
	p := &peer{
		Peer: *spec, b: b, endpoint: net.JoinHostPort(spec.Host, strconv.Itoa(int(spec.Port))),
		queue: queue{packets: make(chan *buffer, queuePackets)},
		count: new(counters), kick: make(chan struct{}, 1),
		status: Status{Link: spec.Link, State: Idle, Since: time.Now()},
	}
	p.ctx, p.cancel = context.WithCancel(b.ctx)
	return p
}

// serves tells whether p, as it is, can serve spec.
func (p *peer) serves(spec *mesh.Peer) bool {
	return p.Local == spec.Local && p.Service == spec.Service && p.Address == spec.Address && p.Host == spec.Host && p.Port == spec.Port
}

// reachable is false when there is no point in queuing a packet; that wakes the dial loop as well.
func (p *peer) reachable() bool {
	if p.sends.Load() != nil {
		return true
	}
	if now := int64(p.b.now()); now-p.wanted.Load() > int64(p.b.timing.backoff) { // not for each packet
		p.wanted.Store(now)
		p.wake()
	}
	return !p.failed.Load()
}

// send queues a packet and owns it from now on. It never blocks.
func (p *peer) send(buf *buffer) {
	most, why := queuePackets, DropQueueFull
	if p.sends.Load() == nil {
		most, why = pendingMax, DropNotConnected
	}
	buf.queued = p.b.now()
	if n := p.queue.push(buf, most); n > 0 {
		p.count.drops[why].Add(uint64(n))
	}
}

func (p *peer) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// dialLoop keeps the peer connected until it is closed. Between attempts it backs off: for a short
// time when the link was in use lately, so that a peer that returns is found soon.
func (p *peer) dialLoop() {
	var (
		t       = p.b.timing
		backoff = t.backoff
		last    time.Duration // the last attempt
		jitter  float64       // of the pause after it
	)
	p.wanted.Store(int64(p.b.now()))
	for p.ctx.Err() == nil {
		ready, eager := p.wantsDial()
		if eager {
			backoff, last = t.backoff, 0
		}
		most := t.backoffIdle
		if p.b.now()-time.Duration(p.wanted.Load()) < t.recently {
			most = t.backoffUsed
		}
		pause := time.Hour
		if ready {
			pause = 0
			if last != 0 {
				pause = last + time.Duration(float64(min(backoff, most))*jitter) - p.b.now()
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
		last, jitter = p.b.now(), 0.75+rand.Float64()/4
		backoff = min(2*backoff, t.backoffIdle)
		if err := p.dial(); err != nil && p.ctx.Err() == nil {
			p.dialFailed(err)
		}
	}
}

// wantsDial tells whether to dial, and whether to do it at once.
func (p *peer) wantsDial() (ready, eager bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.Host == "" || p.b.credentials.Load() == nil || len(p.sessions) > 0 {
		return false, false
	}
	eager, p.eager = p.eager, false
	return true, eager
}

// retry dials at once.
func (p *peer) retry() {
	p.mu.Lock()
	p.eager = true
	p.mu.Unlock()
	p.wake()
}

// dial connects and serves the session until its end. The error is why there was none.
func (p *peer) dial() error {
	t := p.b.timing
	ctx, cancel := context.WithTimeout(p.ctx, t.dial)
	raw, err := p.b.timing.dialer(ctx, "tcp", p.endpoint)
	cancel()
	if err != nil {
		return fmt.Errorf("dial %s: %s", p.endpoint, short(err))
	}
	defer raw.Close()
	defer context.AfterFunc(p.ctx, func() { raw.Close() })()
	c := p.b.credentials.Load()
	if c == nil { // suspended meanwhile
		return nil
	}
	tune(raw)
	raw.SetDeadline(time.Now().Add(t.handshake))
	conn, err := c.dial(p.ctx, raw, p.Host, p.endpoint)
	if err != nil {
		p.b.refuse(err)
		return fmt.Errorf("connect %s: %s", p.endpoint, short(err))
	}
	ours, err := p.hello()
	if err != nil {
		return err
	}
	if _, err = conn.Write(ours); err != nil {
		return fmt.Errorf("connect %s: %s", p.endpoint, short(err))
	}
	theirs, err := readHello(conn)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("connect %s: peer closed the connection before its hello: does it have a link for %s with the endpoint that our certificate names?", p.endpoint, p.Local)
	case err != nil && isAlert(err): // of TLS 1.3, where the client is told so late
		err = asRefusal(RefusedCertificate, err)
	case err != nil:
		err = asRefusal(RefusedHello, err)
	default:
		err = p.check(theirs)
	}
	if err != nil {
		p.b.refuse(err)
		return fmt.Errorf("connect %s: %s", p.endpoint, short(err))
	}
	p.serve(newSession(p, conn, raw, false, theirs), theirs)
	return nil
}

// serve runs a session until its end.
func (p *peer) serve(s *session, theirs *hello) {
	s.raw.SetDeadline(time.Time{})
	if p.attach(s, theirs) {
		s.run()
		p.detach(s)
	}
}

// hello is our hello for this peer, as a frame.
func (p *peer) hello() ([]byte, error) {
	h := p.b.announcement()
	h.Address, h.ServiceCIDR = p.Local, p.Service
	payload, err := h.append(nil)
	if err != nil {
		return nil, err
	}
	return appendFrame(nil, frameHello, payload), nil
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
// demand now. They are swapped before sessions are dropped (under p.mu), so none slips through. Older sessions end that are of the
// same side, or of a process that is not the one that now speaks.
func (p *peer) attach(s *session, h *hello) bool {
	p.mu.Lock()
	if c := p.b.credentials.Load(); p.closed || c == nil || c != plain && s.plain() {
		p.mu.Unlock()
		s.close(nil)
		return false
	}
	p.sessions = slices.DeleteFunc(p.sessions, func(old *session) bool {
		gone := old.accepted == s.accepted || old.instance != 0 && s.instance != 0 && old.instance != s.instance
		if gone {
			old.close(errReplaced)
		}
		return gone
	})
	p.sessions = append(p.sessions, s)
	p.choose()
	p.failed.Store(false)
	first := p.status.State != Up
	p.status.Announced, p.status.Reason, p.status.Refused = &h.Announcement, "", ""
	p.setState(Up)
	p.mu.Unlock()
	if first {
		p.b.log.Info("link is up", "link", p.Link, "remote", s.raw.RemoteAddr())
	}
	p.b.changed()
	return true
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

// detach removes a session that ended.
func (p *peer) detach(s *session) {
	p.mu.Lock()
	before := len(p.sessions)
	p.sessions = slices.DeleteFunc(p.sessions, func(o *session) bool { return o == s })
	if p.closed || before == len(p.sessions) { // replaced
		p.mu.Unlock()
		return
	}
	p.choose()
	if len(p.sessions) > 0 {
		p.mu.Unlock()
		return
	}
	now := p.b.now()
	p.eager = now-s.born > p.b.timing.stable
	p.wanted.Store(int64(now))
	p.status.Reason = "connection lost: " + short(s.cause)
	if s.cause == errSilent {
		p.status.Reason = fmt.Sprintf("connection lost: no answer for %s", p.b.timing.silence)
	}
	reason := p.status.Reason
	p.setState(Down)
	p.mu.Unlock()
	p.b.log.Warn("link is down", "link", p.Link, "reason", reason)
	p.wake()
	p.b.changed()
}

// choose sees to it that packets are sent on a session that lives. p.mu is held.
func (p *peer) choose() {
	if s := p.sends.Load(); s != nil && slices.Contains(p.sessions, s) {
		return
	}
	if len(p.sessions) == 0 {
		p.sends.Store(nil)
		return
	}
	s := p.sessions[0]
	p.sends.Store(s)
	close(s.sends) // only here, and a session is chosen once: it stays until it ends
}

// setState sets the state. p.mu is held.
func (p *peer) setState(s State) {
	if p.status.State != s {
		p.status.State, p.status.Since = s, time.Now()
	}
}

// dialFailed notes why there is no connection. It tells so once per reason.
func (p *peer) dialFailed(err error) {
	reason := err.Error()
	p.mu.Lock()
	down := !p.closed && len(p.sessions) == 0
	news := down && (p.status.State != Down || p.status.Reason != reason)
	if down {
		p.failed.Store(true)
		p.status.Reason = reason
		p.setState(Down)
	}
	p.mu.Unlock()
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
	news := !reflect.DeepEqual(p.status.Announced, &h.Announcement)
	p.status.Announced = &h.Announcement
	p.mu.Unlock()
	if news {
		p.b.changed()
	}
	return nil
}

// announce tells the peer that our announcement changed, where it understands that.
func (p *peer) announce() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sessions {
		if s.flags&flagUpdates != 0 {
			select {
			case s.update <- struct{}{}:
			default:
			}
		}
	}
}

func (p *peer) getStatus() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status
	s.Sessions = len(p.sessions)
	if c := p.sends.Load(); c != nil {
		s.RTT, s.Remote = time.Duration(c.rtt.Load()), c.raw.RemoteAddr().String()
	}
	return s
}

// close ends the peer and its sessions.
func (p *peer) close() {
	p.mu.Lock()
	p.closed = true
	for _, s := range p.sessions {
		s.close(nil)
	}
	p.sends.Store(nil)
	p.mu.Unlock()
	p.cancel()
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
