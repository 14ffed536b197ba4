package hello

// Which one of several brokers of a cluster its peers follow.
//
// The brokers of a cluster share a Lease. The number of its transitions is the term of the broker that holds it; the
// hello tells it to peers. A peer follows the highest term: it ends the connections of a broker with a lower one,
// refuses its new connections, and tells it why. That needs no API server at either end. A term counts for the link
// that the sender is authenticated for, and for no other link: a hostile peer can only lose its own.

import (
	"fmt"
	"slices"
	"time"
)

const (
	maxEarlierBrokers = 4           // that a Leader remembers
	rivalMemory       = time.Minute // how long users are told of a second broker
)

// Leader is the broker of the peer's cluster that this end follows. The zero value follows none yet. The owner's lock
// guards it.
type Leader struct {
	Broker uint64 // its instance
	Term   uint32 // 0: it has none

	seen    time.Duration // when it last had a connection; 0: there was none
	earlier []uint64      // instances of the brokers before it, the latest one last
	rival   string        // what users are told of a second broker
	rivalAt time.Duration // when it was noticed last
}

// Moment is when a hello is looked at.
type Moment struct {
	Now       time.Duration // of a clock that does not jump, since its start
	Memory    time.Duration // for which a term counts after the connection of its broker
	Connected bool          // the broker that this end follows has a connection
}

// FollowedTerm is the term that our hello tells the sender of another hello; nil: that one has not come yet. 0: none.
func (l *Leader) FollowedTerm(theirs *Hello, m Moment) uint32 {
	if theirs != nil && l.IsSuperseded(theirs, m) || theirs == nil && m.Connected {
		return l.Term
	}
	return 0
}

// IsSuperseded tells whether the sender of the hello has a lower term than the broker that this end follows. A term
// counts while its broker has a connection, and for Moment.Memory after that: so a broker with a lower term does not
// get in while the other one connects again, and does when a Lease was made anew. A broker that knows of no terms has
// none to compare, and one that has no Lease only waits for the end of the other's connections.
func (l *Leader) IsSuperseded(h *Hello, m Moment) bool {
	if h.Terms == nil || h.Instance == l.Broker || h.Terms.Own >= l.Term {
		return false
	}
	remembered := l.seen != 0 && m.Now-l.seen < m.Memory
	return m.Connected || h.Terms.Own > 0 && remembered
}

// CheckTerms returns the reason to refuse the sender of a hello for its terms, a Refusal: it follows another broker of
// this cluster, which has the term own, or this end follows another broker of the peer's cluster. news tells that
// RivalNote has changed.
func (l *Leader) CheckTerms(h *Hello, own uint32, m Moment) (refused error, news bool) {
	switch {
	case h.Terms != nil && h.Terms.Followed > own:
		return NewRefusal(RefusedTerm, "superseded by term %d: the peer follows another broker of this cluster, "+
			"this one has term %d", h.Terms.Followed, own), false
	case l.IsSuperseded(h, m):
		news = l.noteRival(m.Now, fmt.Sprintf("a second broker of the cluster claims this link with term %d; "+
			"the link follows the broker with term %d: end one of them, or let both use the same Lease (lease-name)",
			h.Terms.Own, l.Term))
		return NewRefusal(RefusedTerm, "a broker with term %d answers for the peer, and term %d has the link",
			h.Terms.Own, l.Term), news
	}
	return nil, false
}

// FollowSender follows the sender of a hello. A process has one instance for its life: one that comes back after
// another one has taken its place, without a higher term, shows that both live.
func (l *Leader) FollowSender(h *Hello, now time.Duration) {
	if l.seen != 0 && h.Instance != l.Broker {
		if slices.Contains(l.earlier, h.Instance) && h.OwnTerm() <= l.Term {
			l.noteRival(now, "two brokers of the cluster claim this link in turns: end one of them, or let both use the "+
				"same Lease (lease-name)")
		}
		l.earlier = append(l.earlier, l.Broker)
		if n := len(l.earlier); n > maxEarlierBrokers {
			l.earlier = slices.Delete(l.earlier, 0, n-maxEarlierBrokers)
		}
	}
	l.Broker, l.Term, l.seen = h.Instance, h.OwnTerm(), now
}

// NoteEnd notes the end of a connection with a broker.
func (l *Leader) NoteEnd(broker uint64, now time.Duration) {
	if broker == l.Broker {
		l.seen = now
	}
}

// noteRival notes what users are told of a second broker, and tells whether that is news.
func (l *Leader) noteRival(now time.Duration, text string) (news bool) {
	news = l.RivalNote(now) != text
	l.rival, l.rivalAt = text, now
	return news
}

// RivalNote is what users are told of a second broker; empty: nothing.
func (l *Leader) RivalNote(now time.Duration) string {
	if l.rival == "" || now-l.rivalAt > rivalMemory {
		return ""
	}
	return l.rival
}
