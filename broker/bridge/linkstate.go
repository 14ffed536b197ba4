package bridge

// The state of a link, and what its peer announces.

import (
	"fmt"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// linkLines are the limits of the lines about a link in the log, by cause.
type linkLines struct{ up, down, lost, failed hello.LineLimit }

func newLinkLines(every time.Duration) linkLines {
	one := func() hello.LineLimit { return hello.NewLineLimit(every) }
	return linkLines{one(), one(), one(), one()}
}

// linkState is a part of peer. The lock of the peer guards it.
type linkState struct {
	status   link.Status    // without what sessions and received know
	received hello.Received // announcements, in the bridge's time
	offers   linkOffers

	whyDown, whyRefused hello.SettledReason // status.Reason of a link that is Down, and status.Refused
}

// linkUp makes the state Up. p.mu is held.
func (l *linkState) linkUp() {
	l.status.Reason, l.status.Refused = "", ""
	l.whyDown.Reset()
	l.whyRefused.Reset()
	l.setState(link.Up)
}

// linkDown makes the state Down as the connection was lost for a reason; that of the next attempt is shown instead.
// p.mu is held.
func (l *linkState) linkDown(reason string) {
	l.whyDown.Reset()
	l.status.Reason = reason
	l.setState(link.Down)
}

// setState sets the state. The lock of the peer is held.
func (l *linkState) setState(s link.State) {
	if l.status.State != s {
		l.status.State, l.status.Since = s, time.Now()
	}
}

// currentStatus returns the status of the link.
func (p *peer) currentStatus() link.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.status
	st.Note, st.Announced = p.leader.RivalNote(p.now()), p.received.Announced
	st.Offers, st.Downs = p.offers.received.Offers, p.counters.downs.Load()
	st.RxBytes, st.TxBytes = p.counters.rxBytes.Load(), p.counters.txBytes.Load()
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
			st.Remote = s.remote
		}
	}
	return st
}

// lossReason is the reason of a link that is Down since its last session ended with cause.
func (p *peer) lossReason(cause error) string {
	if cause == errSilent {
		return fmt.Sprintf("connection lost: no answer for %s", p.timing.silence)
	}
	return "connection lost: " + shortReason(cause)
}

// dialFailed notes the reason why there is no connection, and logs each change of the reason that is shown.
func (p *peer) dialFailed(err error) {
	p.mu.Lock()
	down, news := !p.closed && len(p.sessions) == 0, false
	if down {
		p.failed.Store(true)
		news = p.whyDown.Change(hello.CutText(err.Error(), hello.MaxReason)) || p.status.State != link.Down
		p.status.Reason = p.whyDown.Shown
		p.setState(link.Down)
	}
	reason := p.status.Reason
	p.mu.Unlock()
	if down {
		p.dropBacklog(false)
	}
	if !news {
		return
	}
	p.lines.failed.Log(p.log.Warn, "link cannot be connected", "link", p.Link, "reason", reason)
	p.notifyChanged()
}

// noteRefusal notes that this end refused a connection from the peer. The state remains that of our own attempts.
func (p *peer) noteRefusal(err error) {
	p.mu.Lock()
	news := len(p.sessions) == 0 && p.whyRefused.Change(err.Error())
	if news {
		p.status.Refused = p.whyRefused.Shown
	}
	p.mu.Unlock()
	if news {
		p.notifyChanged()
	}
}

// receiveHello handles a hello within a session: the announcement of the peer has changed.
func (p *peer) receiveHello(payload []byte) error {
	h, err := hello.ParsePayload(payload)
	if err == nil {
		err = h.CheckAddress(p.Local, p.Addresses)
	}
	if err == nil {
		err = p.checkTerms(h)
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.leader.FollowSender(h, p.now())
	news := p.receiveAnnouncement(&h.Announcement)
	p.peerStreams = h.WantedStreams()
	p.mu.Unlock()
	p.wakeup.notify()
	if news {
		p.notifyChanged()
	}
	return nil
}

// receiveAnnouncement stores the announcement of the peer, and tells whether it is news. p.mu is held.
func (p *peer) receiveAnnouncement(a *link.Announcement) (news bool) {
	news, wait := p.received.Take(a, p.now(), p.timing.announceInterval)
	if wait > 0 {
		p.wg.Go(func() {
			if p.pauseFor(wait) {
				p.receivePending()
			}
		})
	}
	return news
}

// pauseFor waits; false: the peer has ended.
func (p *peer) pauseFor(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// receivePending stores the pending announcement.
func (p *peer) receivePending() {
	p.mu.Lock()
	news := !p.closed && p.received.TakePending(p.now())
	p.mu.Unlock()
	if news {
		p.notifyChanged()
	}
}
