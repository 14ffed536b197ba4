package bridge

// The state of a link, and what its peer announces.

import (
	"fmt"
	"reflect"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// linkLines are the limits of the lines about a link in the log, by cause.
type linkLines struct{ up, down, lost, failed lineLimit }

func newLinkLines(every time.Duration) linkLines {
	return linkLines{newLineLimit(every), newLineLimit(every), newLineLimit(every), newLineLimit(every)}
}

// linkState is a part of peer. The lock of the peer guards it.
type linkState struct {
	status       link.Status        // without the facts that sessions know
	lastReceived time.Duration      // when status.Announced was set, in the bridge's time
	pending      *link.Announcement // the latest announcement, which has to wait; nil: status.Announced is the latest

	whyDown, whyRefused settledReason // status.Reason of a link that is Down, and status.Refused
}

// linkUp makes the state Up. p.mu is held.
func (l *linkState) linkUp() {
	l.status.Reason, l.status.Refused = "", ""
	l.whyDown.reset()
	l.whyRefused.reset()
	l.setState(link.Up)
}

// linkDown makes the state Down as the connection was lost for a reason; that of the next attempt is shown instead.
// p.mu is held.
func (l *linkState) linkDown(reason string) {
	l.whyDown.reset()
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
	st.Note = p.rivalNote()
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
		news = p.whyDown.change(cutText(err.Error(), maxReason)) || p.status.State != link.Down
		p.status.Reason = p.whyDown.shown
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
	p.lines.failed.log(p.log.Warn, "link cannot be connected", "link", p.Link, "reason", reason)
	p.notifyChanged()
}

// noteRefusal notes that this end refused a connection from the peer. The state remains that of our own attempts.
func (p *peer) noteRefusal(err error) {
	p.mu.Lock()
	news := len(p.sessions) == 0 && p.whyRefused.change(err.Error())
	if news {
		p.status.Refused = p.whyRefused.shown
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
		err = p.checkHello(h)
	}
	if err == nil {
		err = p.checkTerms(h)
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.followTerm(h)
	news := p.receiveAnnouncement(&h.Announcement)
	p.peerStreams = h.WantedStreams()
	p.mu.Unlock()
	p.wakeup.notify()
	if news {
		p.notifyChanged()
	}
	return nil
}

// receiveAnnouncement stores the announcement of the peer, and tells whether it is news. Each change causes work in the
// broker, so an announcement that changes soon after the last change has to wait; the latest one then counts. p.mu is
// held.
func (p *peer) receiveAnnouncement(a *link.Announcement) (news bool) {
	news = !reflect.DeepEqual(p.status.Announced, a)
	wait := p.lastReceived + p.timing.announceInterval - p.now()
	if p.status.Announced != nil && wait > 0 && (news || p.pending != nil) {
		if p.pending == nil {
			p.wg.Go(func() { p.receivePending(wait) })
		}
		p.pending = a
		return false
	}
	p.pending = nil
	if news {
		p.status.Announced, p.lastReceived = a, p.now()
	}
	return news
}

// receivePending stores the pending announcement after wait.
func (p *peer) receivePending(wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.ctx.Done():
		return
	}
	p.mu.Lock()
	news := !p.closed && p.pending != nil && p.receiveAnnouncement(p.pending)
	p.mu.Unlock()
	if news {
		p.notifyChanged()
	}
}
