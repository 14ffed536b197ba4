package bridge

// Which one of several brokers of a cluster has a link.
//
// The brokers of a cluster share a Lease. The number of its transitions is the term of the broker that holds it; the
// hello tells it to peers. A peer follows the highest term: it ends the sessions of a broker with a lower one, refuses
// its new connections, and tells it why. That needs no API server at either end. A term counts for the link whose
// certificate the sender has, and for no other link: a hostile peer can only lose its own.

import (
	"fmt"
	"slices"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

const (
	maxEarlierBrokers = 4           // that a peer remembers
	rivalMemory       = time.Minute // how long users are told of a second broker
)

// termState is a part of peer. The lock of the peer guards it.
type termState struct {
	broker   uint64        // instance of the broker that this end follows
	term     uint32        // its term
	followed time.Duration // when it last had a session, in the bridge's time; 0: never
	earlier  []uint64      // instances of the brokers before it, the latest one last
	rival    string        // what users are told of a second broker
	rivalAt  time.Duration // when it was noticed last, in the bridge's time
}

// followedTerm is the term that our hello tells the sender of another hello; nil: the peer has not sent it yet.
func (p *peer) followedTerm(theirs *hello.Hello) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if theirs != nil && p.isSuperseded(theirs) || theirs == nil && p.hasLeader() {
		return p.term
	}
	return 0
}

// hasLeader tells whether the broker that this end follows has a session. p.mu is held.
func (p *peer) hasLeader() bool {
	return slices.ContainsFunc(p.sessions, func(s *session) bool { return s.instance == p.broker })
}

// remembersLeader tells whether the broker that this end follows has had a session lately. p.mu is held.
func (p *peer) remembersLeader() bool {
	return p.followed != 0 && p.now()-p.followed < p.timing.termMemory
}

// isSuperseded tells whether the sender of the hello has a lower term than the broker that this end follows. A term
// counts while its broker has a session, and for timing.termMemory after that: so a broker with a lower term does not
// get in while the other one connects again, and does when a Lease was made anew. A broker that knows of no terms has
// none to compare, and one that has no Lease only waits for the end of the other's sessions. p.mu is held.
func (p *peer) isSuperseded(h *hello.Hello) bool {
	if h.Terms == nil || h.Instance == p.broker || h.Terms.Own >= p.term {
		return false
	}
	return p.hasLeader() || h.Terms.Own > 0 && p.remembersLeader()
}

// checkTerms returns the reason to refuse a peer for its terms: it follows another broker of this cluster, or this end
// follows another broker of the peer's cluster.
func (p *peer) checkTerms(h *hello.Hello) error {
	if own := p.config.Load().Term; h.Terms != nil && h.Terms.Followed > own {
		return newRefusal(RefusedTerm, "superseded by term %d: the peer follows another broker of this cluster, "+
			"this one has term %d", h.Terms.Followed, own)
	}
	p.mu.Lock()
	superseded, term, news := p.isSuperseded(h), p.term, false
	if superseded {
		news = p.noteRival(fmt.Sprintf("a second broker of the cluster claims this link with term %d; "+
			"the link follows the broker with term %d", h.Terms.Own, term))
	}
	p.mu.Unlock()
	if news {
		p.notifyChanged()
	}
	if superseded {
		return newRefusal(RefusedTerm, "a broker with term %d answers for the peer, and term %d has the link",
			h.Terms.Own, term)
	}
	return nil
}

// followTerm follows the sender of a hello. A process has one instance for its life: one that comes back after another
// one has taken its place, without a higher term, shows that both live. p.mu is held.
func (p *peer) followTerm(h *hello.Hello) {
	if p.followed != 0 && h.Instance != p.broker {
		if slices.Contains(p.earlier, h.Instance) && h.OwnTerm() <= p.term {
			p.noteRival("two brokers of the cluster claim this link in turns: end one of them, or let both use the same " +
				"Lease (lease-name)")
		}
		p.earlier = append(p.earlier, p.broker)
		if n := len(p.earlier); n > maxEarlierBrokers {
			p.earlier = slices.Delete(p.earlier, 0, n-maxEarlierBrokers)
		}
	}
	p.broker, p.term, p.followed = h.Instance, h.OwnTerm(), p.now()
}

// leaveSession notes the end of a session. p.mu is held.
func (p *peer) leaveSession(s *session) {
	if s.instance == p.broker {
		p.followed = p.now()
	}
}

// noteRival notes what users are told of a second broker, and tells whether that is news. p.mu is held.
func (p *peer) noteRival(text string) (news bool) {
	news = p.rivalNote() != text
	p.rival, p.rivalAt = text, p.now()
	return news
}

// rivalNote is what users are told of a second broker; empty: nothing. p.mu is held.
func (p *peer) rivalNote() string {
	if p.rival == "" || p.now()-p.rivalAt > rivalMemory {
		return ""
	}
	return p.rival
}
