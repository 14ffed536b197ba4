package router

// The log of a router. Routes of another program that come and go, or a gateway that moves to and fro, must not fill
// the disk of the node.

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A message is logged lineBurst times at once, and then once in each lineInterval.
const (
	lineBurst    = 64
	lineInterval = 5 * time.Second
	maxMessages  = 256 // that have a budget of their own; the ones after these share one
)

// limitedLog is the handler of a log that bounds the lines of each message. The next line says how many were left out.
type limitedLog struct {
	slog.Handler
	budgets *lineBudgets
}

// lineBudgets are the budgets of messages.
type lineBudgets struct {
	mu        sync.Mutex // guards the field below
	byMessage map[string]*lineBudget
}

// lineBudget is what a message may still be logged.
type lineBudget struct {
	*rate.Limiter
	omitted int // lines since the last one
}

// limitLog returns a log that writes to another one.
func limitLog(log *slog.Logger) *slog.Logger {
	return slog.New(&limitedLog{log.Handler(), &lineBudgets{byMessage: map[string]*lineBudget{}}})
}

// takeLine tells whether the message may be logged now, and how many lines of it were left out before.
func (b *lineBudgets) takeLine(message string, now time.Time) (allowed bool, omitted int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.byMessage) >= maxMessages && b.byMessage[message] == nil {
		message = ""
	}
	budget := b.byMessage[message]
	if budget == nil {
		budget = &lineBudget{Limiter: rate.NewLimiter(rate.Every(lineInterval), lineBurst)}
		b.byMessage[message] = budget
	}
	if !budget.AllowN(now, 1) {
		budget.omitted++
		return false, 0
	}
	omitted, budget.omitted = budget.omitted, 0
	return true, omitted
}

// Handle implements slog.Handler.
func (l *limitedLog) Handle(ctx context.Context, r slog.Record) error {
	allowed, omitted := l.budgets.takeLine(r.Message, r.Time)
	if !allowed {
		return nil
	}
	if omitted > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("lines left out", omitted))
	}
	return l.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (l *limitedLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &limitedLog{l.Handler.WithAttrs(attrs), l.budgets}
}

// WithGroup implements slog.Handler.
func (l *limitedLog) WithGroup(name string) slog.Handler {
	return &limitedLog{l.Handler.WithGroup(name), l.budgets}
}
