package bridge

// Refused connections: the reasons, their counters, and the words that users read.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
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
	RefusedLimit                      // too many connections that are not authenticated yet, or too many streams
	RefusedTerm                       // another broker of the same cluster has a higher term
	NumRefusals
)

func (r Refusal) String() string {
	return [...]string{"certificate", "name", "address", "hello", "unknown", "limit", "term"}[r]
}

// refusal is an error that refuses a connection.
type refusal struct {
	Refusal
	err error
}

func newRefusal(why Refusal, format string, args ...any) error {
	return &refusal{why, fmt.Errorf(format, args...)}
}

func (r *refusal) Error() string { return cutText(r.err.Error(), maxReason) }
func (r *refusal) Unwrap() error { return r.err }

// asRefusal makes err a refusal unless it is one.
func asRefusal(why Refusal, err error) error {
	var r *refusal
	if err == nil || errors.As(err, &r) {
		return err
	}
	return newRefusal(why, "%w", err)
}

// refusals counts refused connections, and logs some of them.
type refusals struct {
	log    *slog.Logger
	lines  [NumRefusals]lineLimit
	counts [NumRefusals]atomic.Uint64
}

func (r *refusals) init(log *slog.Logger, every time.Duration) {
	r.log = log
	for i := range r.lines {
		r.lines[i] = newLineLimit(every)
	}
}

// lineLimit lets one line about a cause through in an interval: peers and strangers cause as many as they like.
type lineLimit struct{ limiter *rate.Limiter }

func newLineLimit(every time.Duration) lineLimit {
	return lineLimit{rate.NewLimiter(rate.Every(every), 1)}
}

// log writes the line, unless there was one a moment ago.
func (l lineLimit) log(log func(msg string, args ...any), msg string, args ...any) {
	if l.limiter.Allow() {
		log(msg, args...)
	}
}

// countError counts a connection that failed with err, if err is a refusal. A connection that was closed without a
// word is none: a load balancer probes the port so, and pendingConns closes connections so.
func (r *refusals) countError(err error) {
	var refused *refusal
	if !errors.As(err, &refused) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, net.ErrClosed) {
		return
	}
	r.counts[refused.Refusal].Add(1)
	r.lines[refused.Refusal].log(r.log.Warn, "connection refused", "reason", refused.Refusal.String(), "error", err)
}

// isAlert tells whether err is a TLS alert from the peer.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// shortReason describes err in few words, in maxReason bytes at most. The same error gives the same words each time,
// without addresses and ephemeral ports: each change of a reason is written to the status of the link.
func shortReason(err error) string { return cutText(describeError(err), maxReason) }

func describeError(err error) string {
	var (
		r       *refusal
		name    *net.DNSError
		errno   syscall.Errno
		op      *net.OpError
		timeout net.Error
	)
	switch {
	case err == nil:
		return "closed"
	case errors.As(err, &r) && !errors.As(err, &op) && !errors.Is(err, io.EOF):
		return r.Error()
	case errors.As(err, &name) && name.IsNotFound:
		return "no such host"
	case errors.As(err, &name):
		return "name look-up failed"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed by peer"
	case isAlert(err): // a peer tells no more to an end that it does not trust
		errors.As(err, &op)
		return "refused by peer: " + op.Err.Error() + ": check that the peer has a KubeLink whose endpoint host " +
			"is a name in our certificate, and that both ends use the same CA"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return "timed out"
	case errors.As(err, &op) && op.Err != nil:
		return op.Err.Error()
	}
	return err.Error()
}

const (
	maxReason    = 1 << 10 // bytes of a text that a user reads
	maxNameText  = 64      // bytes of a name in it that a peer has chosen,
	maxNameTexts = 10      // and how many names
)

// cutText makes one line of a text that a peer has a part in: at most limit bytes, and the rest of it shows as "...".
func cutText(text string, limit int) string {
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

// quoteNames lists the names of a certificate, or as many of them as a user reads.
func quoteNames(names []string) string {
	shown := make([]string, 0, maxNameTexts)
	for _, n := range names[:min(len(names), maxNameTexts)] {
		shown = append(shown, cutText(n, maxNameText))
	}
	text := strings.Join(shown, " ")
	if more := len(names) - len(shown); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return "[" + text + "]"
}
