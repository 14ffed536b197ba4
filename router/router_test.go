package router

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/kernel"
)

// logFunc is called with each line of a log.
type logFunc func(line string)

func (f logFunc) Write(b []byte) (int, error) { f(string(b)); return len(b), nil }

// A router waits for another one in its network namespace before it looks at anything, and ends when it is to end.
func TestNamespaceTwoRouters(t *testing.T) {
	enter(t)
	first := &kernel.Claim{Router: true}
	if err := first.Acquire(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	defer first.Release()
	ctx, end := context.WithCancelCause(t.Context())
	waits := errors.New("it waits")
	log := logFunc(func(line string) {
		if strings.Contains(line, "another kubelink-router sets routes in this network namespace: waiting for its end") {
			end(waits)
		}
	})
	if err := Run(ctx, Config{Log: slog.New(slog.NewTextHandler(log, nil))}); err != nil || context.Cause(ctx) != waits {
		t.Errorf("%v, %v", err, context.Cause(ctx))
	}
}
