package bridge

// Which one of several brokers of a cluster has a link: the one that hello.Leader says.

import (
	"slices"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// followedTerm is the term that our hello tells the sender of another hello; nil: the peer has not sent it yet.
func (p *peer) followedTerm(theirs *hello.Hello) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leader.FollowedTerm(theirs, p.moment())
}

// moment is what hello.Leader has to know. p.mu is held.
func (p *peer) moment() hello.Moment {
	ofLeader := func(s *session) bool { return s.instance == p.leader.Broker }
	return hello.Moment{
		Now: p.now(), Memory: p.timing.termMemory, Connected: slices.ContainsFunc(p.sessions, ofLeader),
	}
}

// checkTerms returns the reason to refuse a peer for its terms.
func (p *peer) checkTerms(h *hello.Hello) error {
	p.mu.Lock()
	refused, news := p.leader.CheckTerms(h, p.config.Load().Term, p.moment())
	p.mu.Unlock()
	if news {
		p.notifyChanged()
	}
	return refused
}
