package deadline

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A server that takes longer than the limit gets more time with each attempt, and less again when it is fast.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(First)
		ask := func(ctx context.Context, takes time.Duration) error {
			return l.Do(ctx, func(ctx context.Context) error {
				select {
				case <-ctx.Done():
					return fmt.Errorf("asked: %w", ctx.Err())
				case <-time.After(takes):
					return nil
				}
			})
		}
		for _, step := range []struct {
			pause, takes time.Duration
			fails        bool
			limit        time.Duration // afterwards
		}{
			{0, time.Second, false, 5 * time.Second},
			{0, 8 * time.Second, true, 10 * time.Second},
			{0, 0, false, 10 * time.Second}, // it was none
			{0, 8 * time.Second, false, 10 * time.Second},
			{4 * time.Minute, 8 * time.Second, false, 10 * time.Second},
			{4 * time.Minute, 8 * time.Second, false, 10 * time.Second},
			{0, 2 * time.Hour, true, 20 * time.Second},
			{0, 2 * time.Hour, true, 40 * time.Second},
			{0, 2 * time.Hour, true, 80 * time.Second},
			{0, 2 * time.Hour, true, 80 * time.Second},
			{0, time.Second, false, 80 * time.Second},
			{calm, time.Second, false, 5 * time.Second},
			{0, 8 * time.Second, true, 10 * time.Second},
		} {
			time.Sleep(step.pause)
			err := ask(t.Context(), step.takes)
			if IsTimeout(err) != step.fails || l.now != step.limit {
				t.Errorf("%s after %s: %v, limit %s; want %s", step.takes, step.pause, err, l.now, step.limit)
			}
		}
		// An error of the server, and the end of the caller, say nothing about its speed.
		l.Do(t.Context(), func(context.Context) error { return errors.New("no") })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := ask(ctx, time.Hour); err == nil || l.now != 2*First {
			t.Errorf("%v, limit %s", err, l.now)
		}
	})
}

func TestIsTimeout(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("no"), false},
		{context.Canceled, false},
		{fmt.Errorf("asked: %w", context.DeadlineExceeded), true},
		{&net.OpError{Op: "dial", Err: &net.DNSError{IsTimeout: true}}, true},
		{&net.OpError{Op: "dial", Err: errors.New("refused")}, false},
	} {
		if got := IsTimeout(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
