package bridge

// Mesh services: what this end offers to a peer, and what the peer offers.

import (
	"slices"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// linkOffers is a part of linkState.
type linkOffers struct {
	offering *session // has sent our list, or is to send it; nil: none
	received hello.ReceivedServices
}

// offerServices has our changed list sent.
func (p *peer) offerServices() {
	p.mu.Lock()
	p.offers.offering = nil
	s := p.chooseOffering()
	p.mu.Unlock()
	s.kickServices()
}

// chooseOffering chooses another session for our list when the one that had it has gone: the peer may not have read all
// of it. kickServices has to follow. nil: no session has to send it. p.mu is held.
func (p *peer) chooseOffering() *session {
	if slices.Contains(p.sessions, p.offers.offering) {
		return nil
	}
	p.offers.offering = nil
	for _, s := range p.sessions {
		if s.flags&hello.FlagServices != 0 {
			p.offers.offering = s
			return s
		}
	}
	return nil
}

// kickServices sends our list, unless the session is nil.
func (s *session) kickServices() {
	if s != nil {
		s.due.services.Store(true)
		s.kickSender()
	}
}

// serviceFrames are the frames of our list for the peer.
func (p *peer) serviceFrames() [][]byte { return p.ownServices.Load().AppendFrames(nil, p.Local) }

// receiveServices takes the list that the peer has sent on a session.
func (p *peer) receiveServices(s *session, list *hello.ServiceList) {
	var admitted *hello.ServiceList
	var wait time.Duration
	p.mu.Lock()
	if slices.Contains(p.sessions, s) {
		admitted, wait = p.offers.received.Admit(list, s.instance, p.now(), p.timing.offerInterval)
	}
	p.mu.Unlock()
	if wait > 0 {
		p.wg.Go(func() {
			if p.pauseFor(wait) {
				p.admitServices()
			}
		})
	}
	p.keepServices(admitted)
}

// admitServices takes the list that had to wait.
func (p *peer) admitServices() {
	p.mu.Lock()
	admitted := p.offers.received.AdmitPending(p.now(), p.timing.offerInterval)
	p.mu.Unlock()
	p.keepServices(admitted)
}

// keepServices makes a list count; nil is none. It is parsed without the lock.
func (p *peer) keepServices(list *hello.ServiceList) {
	if list == nil {
		return
	}
	offers := list.Parse()
	p.mu.Lock()
	news := !p.closed && p.offers.received.Keep(list, offers)
	p.mu.Unlock()
	if news {
		p.notifyChanged()
	}
}
