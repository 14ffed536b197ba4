package wireguard

// Control connections that this end dials: when, and what follows from an attempt.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// redial is a part of channel: when it dials. Its lock guards it.
type redial struct {
	handshake time.Time     // the last one of WireGuard; zero: none yet
	due       time.Duration // when to dial next
	pause     time.Duration // after that, if it fails
	failures  int           // since the peer was alive last

	// Since when the peer is lost; after silence, when that began. A broker that this end has refused since then is no
	// peer.
	lostAt time.Duration
}

// wakeDialer has the dial loop look at everything.
func (ch *channel) wakeDialer() {
	select {
	case ch.wakeup <- struct{}{}:
	default:
	}
}

// noteHandshake notes a handshake of WireGuard. After a new one, the peer is dialled at once.
func (ch *channel) noteHandshake(at time.Time) {
	ch.mu.Lock()
	news := at.After(ch.handshake)
	if news {
		ch.handshake = at
		if ch.conn == nil {
			ch.dialSoon()
		}
	}
	ch.mu.Unlock()
	if news {
		ch.wakeDialer()
	}
}

// dialSoon has the peer dialled: at once by one end, and by the other one if that does not help. A peer that is lost is
// dialled by both. ch.mu is held.
func (ch *channel) dialSoon() {
	ch.due, ch.pause = ch.now(), ch.timing.backoff
	if !ch.isInitiator() && ch.state != channelLost {
		ch.due += ch.timing.follow
	}
}

// planRedial plans the next dial after a connection that has lasted for a time. ch.mu is held.
func (ch *channel) planRedial(lasted time.Duration) {
	if lasted >= ch.timing.stable {
		ch.dialSoon()
		return
	}
	ch.backOff()
}

// backOff plans the next dial after a failure. ch.mu is held.
func (ch *channel) backOff() {
	limit := ch.timing.backoffPlain
	switch {
	case ch.state == channelAlive, ch.state == channelLost && ch.now()-ch.lostAt < ch.timing.recently:
		limit = ch.timing.backoffLost
	case ch.state == channelLost:
		limit = 5 * ch.timing.backoffLost
	}
	pause := min(ch.pause, limit)
	ch.due = ch.now() + time.Duration((0.75+rand.Float64()/4)*float64(pause))
	ch.pause = 2 * pause
}

// dialLoop dials until the channel is closed.
func (ch *channel) dialLoop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ch.wakeup:
		case <-ch.ctx.Done():
			return
		}
		ch.checkSilence()
		if limit := ch.dialLimit(); limit > 0 {
			err := ch.dialPeer(limit)
			if ch.ctx.Err() == nil {
				ch.concludeDial(err)
			}
			ch.checkSilence()
		}
		timer.Reset(ch.nextLook())
	}
}

// dialLimit is how long an attempt may take that begins now; 0: it is not time to dial. Without a handshake within
// timing.fresh there is no tunnel: WireGuard tells that the link is Down.
func (ch *channel) dialLimit() time.Duration {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.closed || ch.conn != nil || !ch.hasTunnel() || ch.now() < ch.due {
		return 0
	}
	limit := ch.timing.dial
	if ch.state == channelAlive { // a loss shows in time
		limit = max(time.Millisecond, min(limit, ch.heard+ch.timing.silence-ch.now()))
	}
	return limit
}

// hasTunnel tells whether there was a handshake lately; of a peer that follows another broker, since it has said so.
// ch.mu is held.
func (ch *channel) hasTunnel() bool {
	aside := ch.isSuperseded(ch.own.Load().Term) && !ch.handshake.After(ch.superseded)
	return !aside && time.Since(ch.handshake) < ch.timing.fresh
}

// nextLook is when the dial loop has something to do next, if nothing wakes it.
func (ch *channel) nextLook() time.Duration {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	next := time.Hour
	if ch.conn == nil && ch.hasTunnel() {
		next = min(next, ch.due-ch.now())
	}
	if ch.conn == nil && ch.state == channelAlive {
		next = min(next, ch.heard+ch.timing.silence-ch.now())
	}
	return max(0, next)
}

// dialPeer connects, and starts a goroutine that serves the connection.
func (ch *channel) dialPeer(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ch.ctx, limit)
	defer cancel()
	peer := ch.addresses.First().Addr()
	conn, err := ch.system.Dial(ctx, ch.device, ch.local.SameFamily(peer).Addr(), peer)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ch.ctx, func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(ch.timing.hello))
	frame, err := ch.helloFrame(nil)
	if err == nil {
		_, err = conn.Write(frame)
	}
	var theirs *hello.Hello
	if err == nil {
		theirs, err = hello.ReadHello(conn, hello.MaxLegacyPayload)
	}
	if err == nil {
		err = ch.checkHello(theirs)
	}
	if err == nil {
		err = ch.checkTerms(theirs)
	}
	if err != nil {
		stop()
		dropConn(conn)
		return &exchangeError{err}
	}
	k := newChannelConn(ch, conn, false, theirs)
	attached := ch.attachConn(k, theirs)
	ch.wg.Go(func() {
		defer stop()
		if !attached {
			k.close(errReplaced)
			return
		}
		k.serveFrames()
		ch.detachConn(k)
	})
	return nil
}

// exchangeError is an error after the connection was made: something listens at the peer.
type exchangeError struct{ err error }

func (e *exchangeError) Error() string { return e.err.Error() }
func (e *exchangeError) Unwrap() error { return e.err }

// concludeDial concludes from an attempt. A peer where nothing listens is alive: it is a plain peer, or a kubelink that
// starts again.
func (ch *channel) concludeDial(err error) {
	ch.changeState(func() {
		if ch.conn != nil {
			return
		}
		if err == nil { // given up for a connection that has ended meanwhile
			ch.backOff()
			return
		}
		ch.failures++
		exchange, _ := errors.AsType[*exchangeError](err)
		refused, _ := errors.AsType[*hello.RefusalError](err)
		switch {
		case exchange == nil && errors.Is(err, syscall.ECONNREFUSED):
			ch.state, ch.heard, ch.rtt = channelPlain, ch.now(), 0
		case refused != nil && refused.Refusal == hello.RefusedTerm && ch.state == channelAlive:
			ch.refusals.CountError(err) // another broker has taken the session, and dials itself: see endRobbery
		case refused != nil && (refused.Refusal == hello.RefusedAddress || refused.Refusal == hello.RefusedTerm):
			ch.refusals.CountError(err)
			ch.concludeLoss(refused.Error())
		case ch.state == channelLost && exchange == nil && time.Since(ch.renew) >= ch.timing.dial:
			ch.renewLost(time.Now().Add(ch.lostAt - ch.now())) // by itself the device tries again every 5 s
		case ch.state == channelLost && exchange != nil:
			ch.concludeLoss(describeDial(exchange, err))
		case ch.state == channelUntried, ch.state == channelPlain:
			ch.trouble.Change(describeDial(exchange, err))
		}
		ch.backOff()
	})
}

// describeDial says why an attempt failed.
func describeDial(exchange *exchangeError, err error) string {
	if exchange != nil && isGone(err) {
		return "the peer closes the connection before its hello"
	}
	if exchange != nil {
		return fmt.Sprintf("after the connection was made: %s", describeFailure(exchange.err))
	}
	return describeFailure(err)
}

// isGone tells whether an error says that the other end has closed the connection without a word, or this end.
func isGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		isClosed(err)
}
