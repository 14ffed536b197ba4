package hello

// What a peer has announced, and how often that changes.

import (
	"reflect"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// Received is what a peer has announced. Each change causes work in the broker, so an announcement that changes soon
// after the last change has to wait; the latest one then counts. The zero value has none; the owner's lock guards it.
type Received struct {
	Announced *link.Announcement // what counts; nil: nothing yet. It is not changed

	since   time.Duration      // when it has changed
	pending *link.Announcement // the latest announcement, which has to wait; nil: Announced is the latest
}

// Take takes an announcement. It tells whether Announced has changed, and, if wait is not 0, that the owner has to call
// TakePending after that time. Changes are an interval apart. now is of a clock that does not jump.
func (r *Received) Take(a *link.Announcement, now, interval time.Duration) (news bool, wait time.Duration) {
	news = !reflect.DeepEqual(r.Announced, a)
	left := r.since + interval - now
	if r.Announced != nil && left > 0 && (news || r.pending != nil) {
		if r.pending == nil {
			wait = left
		}
		r.pending = a
		return false, wait
	}
	r.pending = nil
	if news {
		r.Announced, r.since = a, now
	}
	return news, 0
}

// TakePending takes the announcement that had to wait, and tells whether Announced has changed.
func (r *Received) TakePending(now time.Duration) (news bool) {
	if r.pending == nil {
		return false
	}
	news, _ = r.Take(r.pending, now, 0)
	return news
}

// SmoothRTT adds a sample to a smoothed round-trip time, as RFC 6298 does; old is 0 without one. A sample that no ping
// of ours can have changes nothing.
func SmoothRTT(old, sample time.Duration) time.Duration {
	switch {
	case sample <= 0 || sample > time.Minute:
		return old
	case old == 0:
		return sample
	}
	return old + (sample-old)/8
}
