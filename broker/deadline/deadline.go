// Package deadline bounds requests to a server that may be slow: the limit grows as long as requests run into it, and
// shrinks when the server is fast again. So what takes long happens late, and not never.
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
	// longest is the limit for the slowest server.
	longest = 80 * time.Second
	// ample is how much longer than a request its limit should be before it shrinks.
	ample = 4
)

// Limit is the limit of the next request. It has one user at a time.
type Limit struct{ first, now time.Duration }

// New returns a limit that begins with first, which is First for most requests.
func New(first time.Duration) Limit { return Limit{first, first} }

// Do makes a request within the limit.
func (l *Limit) Do(ctx context.Context, request func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, l.now)
	defer cancel()
	start := time.Now()
	err := request(limited)
	switch took := time.Since(start); {
	case err != nil && limited.Err() != nil && ctx.Err() == nil:
		l.now = min(2*l.now, longest)
	case err == nil && ample*took < l.now:
		l.now = max(l.now/2, l.first)
	}
	return err
}

// IsTimeout tells whether a request failed because it took too long.
func IsTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}
