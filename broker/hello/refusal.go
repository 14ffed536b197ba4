package hello

// Refused connections: the reasons, their counters, and the words that users read.

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/time/rate"
)

// Refusal is the reason why an end refused a connection before any packet.
type Refusal uint8

// The reasons; String gives the label for metrics.
const (
	RefusedCertificate Refusal = iota // TLS failed, or the chain does not lead to our roots
	RefusedName                       // the certificate names no link, or not the dialled host
	RefusedAddress                    // the announced cluster address is not that of the link
	RefusedHello                      // the hello is malformed, missing or late
	RefusedUnknown                    // no link has this address; with auto-connect the peer was reported
	RefusedLimit                      // too many connections, or too many that are not authenticated yet
	RefusedTerm                       // another broker of the same cluster has a higher term
	NumRefusals
)

func (r Refusal) String() string {
	return [...]string{"certificate", "name", "address", "hello", "unknown", "limit", "term"}[r]
}

// RefusalError is an error that refuses a connection.
type RefusalError struct {
	Refusal
	err error
}

// NewRefusal makes a RefusalError; the text is made as fmt.Errorf does.
func NewRefusal(why Refusal, format string, args ...any) error {
	return &RefusalError{why, fmt.Errorf(format, args...)}
}

func (r *RefusalError) Error() string { return CutText(r.err.Error(), MaxReason) }
func (r *RefusalError) Unwrap() error { return r.err }

// AsRefusal makes err a RefusalError unless it is one, or nil.
func AsRefusal(why Refusal, err error) error {
	var r *RefusalError
	if err == nil || errors.As(err, &r) {
		return err
	}
	return NewRefusal(why, "%w", err)
}

// Refusals counts refused connections, and logs some of them.
type Refusals struct {
	log    *slog.Logger
	lines  [NumRefusals]LineLimit
	counts [NumRefusals]atomic.Uint64
}

// NewRefusals makes counters that log each reason once in an interval.
func NewRefusals(log *slog.Logger, every time.Duration) *Refusals {
	r := &Refusals{log: log}
	for i := range r.lines {
		r.lines[i] = NewLineLimit(every)
	}
	return r
}

// Count counts a connection that was refused without a line in the log.
func (r *Refusals) Count(why Refusal) { r.counts[why].Add(1) }

// CountError counts a connection that failed with err, if err is a RefusalError.
func (r *Refusals) CountError(err error) {
	if refused, ok := errors.AsType[*RefusalError](err); ok {
		r.Count(refused.Refusal)
		r.lines[refused.Refusal].Log(r.log.Warn, "connection refused", "reason", refused.Refusal.String(), "error", err)
	}
}

// Counts are the numbers of refused connections by reason.
func (r *Refusals) Counts() (counts [NumRefusals]uint64) {
	for i := range counts {
		counts[i] = r.counts[i].Load()
	}
	return counts
}

// LineLimit lets one line about a cause through in an interval: peers and strangers cause as many as they like.
type LineLimit struct{ limiter *rate.Limiter }

// NewLineLimit makes a limit of one line in an interval.
func NewLineLimit(every time.Duration) LineLimit {
	return LineLimit{rate.NewLimiter(rate.Every(every), 1)}
}

// Log writes the line with a method of slog, unless there was one a moment ago.
func (l LineLimit) Log(log func(msg string, args ...any), msg string, args ...any) {
	if l.limiter.Allow() {
		log(msg, args...)
	}
}

// MaxReason is the most bytes of a text that a user reads.
const MaxReason = 1 << 10

// CutText makes one line of a text that a peer has a part in: at most limit bytes, and the rest of it shows as "...".
func CutText(text string, limit int) string {
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit-3], "") + "..."
	}
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return '?'
		}
		return c
	}, text)
}
