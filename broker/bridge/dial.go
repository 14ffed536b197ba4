package bridge

// Connections that this end dials: when, and how one becomes a session.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// backoff is the pause between dials. It grows with attempts that fail, and with sessions that end soon.
type backoff struct {
	failed, flapped time.Duration
	last            time.Duration // of the last attempt, in the bridge's time; 0: do not wait
	jitter          float64
}

// dialer keeps a peer connected. It belongs to one goroutine.
type dialer struct {
	peer *peer
	back backoff
}

func newDialer(p *peer) *dialer {
	d := &dialer{peer: p}
	d.resetBackoff()
	return d
}

func (d *dialer) resetBackoff() {
	first := d.peer.timing.backoff
	d.back = backoff{failed: first, flapped: first}
}

// dialLoop dials until the peer is closed. Between attempts it backs off: for a short time only when the link was in
// use lately, so that a peer that returns is found soon.
func (d *dialer) dialLoop() {
	p := d.peer
	p.wanted.Store(int64(p.now()))
	for p.ctx.Err() == nil {
		stream, pause := d.nextPause()
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
		d.back.last, d.back.jitter = p.now(), 0.75+rand.Float64()/4
		if err := d.dialStream(stream); err == nil {
			d.back.failed = p.timing.backoff
		} else if p.ctx.Err() == nil {
			d.back.failed = min(2*d.back.failed, p.timing.backoffIdle)
			p.dialFailed(err)
		}
	}
}

// nextPause returns the stream to dial, and how long to wait before that.
func (d *dialer) nextPause() (stream int, pause time.Duration) {
	p := d.peer
	stream, from, ready := d.nextDial()
	if !ready {
		return 0, time.Hour
	}
	limit := p.timing.backoffIdle
	if p.now()-time.Duration(p.wanted.Load()) < p.timing.recently {
		limit = p.timing.backoffUsed
	}
	pause = from - p.now()
	if d.back.last != 0 {
		wait := float64(min(max(d.back.failed, d.back.flapped), limit)) * d.back.jitter
		pause = max(pause, d.back.last+time.Duration(wait)-p.now())
	}
	return stream, pause
}

// nextDial returns the stream to dial, and the time from when on; ok is false when no dial is needed. It adapts the
// back-off to events since the last attempt.
func (d *dialer) nextDial() (stream int, from time.Duration, ok bool) {
	p := d.peer
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.Host == "" || p.credentials.Load() == nil:
		return 0, 0, false
	case len(p.sessions) > 0:
		if len(p.sessions) >= min(p.peerStreams, p.config.Load().Streams) {
			return 0, 0, false
		}
		taken := func(s *session) bool { return !s.accepted && s.stream == stream }
		for slices.ContainsFunc(p.sessions, taken) {
			stream++
		}
		if from = p.changedAt; !p.isInitiator() {
			from += p.timing.followDelay
		}
	}
	if p.flapped {
		d.back.flapped = min(2*d.back.flapped, p.timing.backoffIdle)
	}
	if p.dialNow {
		d.resetBackoff()
	}
	p.dialNow, p.flapped = false, false
	return stream, from, true
}

// dialStream connects, and starts a goroutine that runs the session. The error is the reason why there is no session.
func (d *dialer) dialStream(stream int) (err error) {
	p := d.peer
	ctx, cancel := context.WithTimeout(p.ctx, p.timing.dial)
	conn, err := d.dialEndpoint(ctx)
	cancel()
	if err != nil {
		return fmt.Errorf("dial %s: %s", p.endpoint, shortReason(err))
	}
	stop := context.AfterFunc(p.ctx, func() { conn.Close() })
	s, theirs, err := d.handshake(conn, stream)
	if s == nil {
		stop()
		conn.Close()
		return err
	}
	if !p.attachSession(s, theirs) { // before the next dial is considered
		stop()
		return nil
	}
	p.wg.Go(func() {
		defer conn.Close()
		defer stop()
		s.run()
		p.detachSession(s, s.cause)
	})
	return nil
}

// dialEndpoint connects to the endpoint of the peer. It looks the name up each time, tries IPv6 and IPv4 (RFC 8305),
// and passes over addresses that lead into the TUN.
func (d *dialer) dialEndpoint(ctx context.Context) (net.Conn, error) {
	p := d.peer
	if dial := p.timing.dialer; dial != nil {
		return dial(ctx, "tcp", p.endpoint)
	}
	system := net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		return link.CheckCarrier(netip.MustParseAddrPort(address).Addr(), p.router.table.Load())
	}}
	return system.DialContext(ctx, "tcp", p.endpoint)
}

// handshake makes a dialled connection a session. It returns neither a session nor an error when the bridge was
// suspended meanwhile.
func (d *dialer) handshake(conn net.Conn, stream int) (*session, *hello.Hello, error) {
	p := d.peer
	c := p.credentials.Load()
	if c == nil {
		return nil, nil, nil
	}
	tuneTCP(conn)
	raw := newBatchConn(conn, p.timing.write)
	raw.SetDeadline(time.Now().Add(p.timing.handshake))
	secure, auth, err := dialTLS(p.ctx, c, raw, p.Host, p.endpoint)
	if err != nil {
		p.countRefusal(err)
		return nil, nil, fmt.Errorf("connect %s: %s", p.endpoint, shortReason(err))
	}
	ours, flags, err := p.helloFrame(stream, nil)
	if err != nil {
		return nil, nil, err
	}
	if _, err = secure.Write(ours); err != nil {
		return nil, nil, fmt.Errorf("connect %s: %s", p.endpoint, shortReason(err))
	}
	theirs, err := hello.ReadHello(secure, hello.MaxPayload)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil, nil, fmt.Errorf("connect %s: peer closed the connection before its hello: check that it has "+
			"a KubeLink for %s whose endpoint host is a name in our certificate", p.endpoint, p.Local)
	}
	if err = d.checkReply(theirs, err); err != nil {
		p.countRefusal(err)
		return nil, nil, fmt.Errorf("connect %s: %s", p.endpoint, shortReason(err))
	}
	s := newSession(p, secure, raw, false, stream, flags, theirs)
	s.authorization = auth
	return s, theirs, nil
}

// checkReply returns the reason to refuse the peer, after its hello was read with err.
func (d *dialer) checkReply(theirs *hello.Hello, err error) error {
	switch {
	case err != nil && isAlert(err): // of TLS 1.3, where the client learns only now that it was refused
		return hello.AsRefusal(hello.RefusedCertificate, err)
	case err != nil:
		return hello.AsRefusal(hello.RefusedHello, err)
	}
	if err = theirs.CheckAddress(d.peer.Local, d.peer.Addresses); err == nil {
		err = d.peer.checkTerms(theirs)
	}
	return err
}
