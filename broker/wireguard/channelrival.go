package wireguard

// Two brokers of one cluster have one key, and a peer has one session with it: the broker that greets last takes the
// session away from the other one, whichever the peer follows. So a broker that is told that the peer follows another
// one leaves the peer alone, and a peer makes its session anew when a broker that it does not follow has taken it. To
// be told, a broker whose peer is silent takes the session once.

import "time"

// rivalry is a part of channel: what is known of sessions with the wrong broker. Its lock guards it.
type rivalry struct {
	superseded time.Time // when the peer said that it follows another broker of this cluster; zero: it does not
	term       uint32    // that this end had then
	why        string    // superseded

	shared bool      // another broker of the peer's cluster has an old session, and sends on
	renew  time.Time // since when there has to be a new session; zero: never
	robbed bool      // because another broker of the peer's cluster has taken it
	silent time.Time // because the peer is lost since then, if there was no handshake later; zero: for another reason
}

// stepAside notes that the peer follows another broker of this cluster, while this one has a term.
func (r *rivalry) stepAside(own uint32, why error) {
	r.superseded, r.term, r.why = time.Now(), own, why.Error()
}

// isSuperseded tells whether the peer follows another broker of this cluster: with another term, this one tries again.
func (r *rivalry) isSuperseded(own uint32) bool { return !r.superseded.IsZero() && r.term == own }

// renewSession has the device make a new session. robbed: with the broker that had it before, which the
// device finds where the last handshake from elsewhere came from.
func (r *rivalry) renewSession(robbed bool) {
	r.renew, r.robbed, r.silent = time.Now(), robbed, time.Time{}
}

// renewLost has the device make a new session with a peer that is lost since then, if that has none.
func (r *rivalry) renewLost(since time.Time) { r.renew, r.robbed, r.silent = time.Now(), false, since }
