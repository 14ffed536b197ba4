package testbed

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestSilentNode has a node of the load balancer leave checks unanswered, as one does on a busy machine.
func TestSilentNode(t *testing.T) {
	silent := fmt.Errorf("router: %w", context.DeadlineExceeded)
	start := time.Now()
	h := &nodeHealth{}
	for _, step := range []struct {
		after time.Duration
		err   error
		good  bool
	}{
		{0, silent, false}, // it has never answered
		{time.Second, nil, true},
		{2 * time.Second, silent, true},
		{time.Second + silenceLimit - 1, silent, true},
		{time.Second + silenceLimit, silent, false},
		{2 * silenceLimit, nil, true},
		{2*silenceLimit + time.Second, errors.New("503 Service Unavailable"), false},
		{2*silenceLimit + 2*time.Second, silent, false},
	} {
		if h.note(step.err, start.Add(step.after)); h.good != step.good {
			t.Errorf("after %s, %v: good is %t", step.after, step.err, h.good)
		}
	}
}
