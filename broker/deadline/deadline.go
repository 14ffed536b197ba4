// Package deadline bounds requests to a server that may be slow: the limit grows as long as requests run into it, and
// shrinks when the server has been fast for a while. So what takes long happens late, and not never.
package deadline

import (
	"context"
	"errors"
	"net"
	"time"
)

const (
	// First is the usual limit for a server of which nothing is known.
	First = 5 * time.Second
	// longest is the usual limit for the slowest server.
	longest = 80 * time.Second
	// calm is how long no request may take longer than the first limit before that counts again.
	calm = 5 * time.Minute
)

// Limit is the limit of the next request. It has one user at a time.
type Limit struct {
	first, longest, now time.Duration
	slow                time.Time // when a request took longer than first
}

// New returns a limit that begins with first, which is First for most requests.
func New(first time.Duration) Limit { return NewBounded(first, longest) }

// NewBounded returns a limit that begins with first and grows to longest.
func NewBounded(first, longest time.Duration) Limit {
	return Limit{first: first, longest: longest, now: first}
}

// Do makes a request within the limit. A request may turn out to be none: that it is fast says nothing.
func (l *Limit) Do(ctx context.Context, request func(context.Context) error) error {
	start := time.Now()
	if start.Sub(l.slow) > calm {
		l.now = l.first
	}
	limited, cancel := context.WithTimeout(ctx, l.now)
	defer cancel()
	err := request(limited)
	switch {
	case err != nil && limited.Err() != nil && ctx.Err() == nil:
		l.now, l.slow = min(2*l.now, l.longest), time.Now()
	case err == nil && time.Since(start) > l.first:
		l.slow = time.Now()
	}
	return err
}

// IsTimeout tells whether a request failed because it took too long.
func IsTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}
