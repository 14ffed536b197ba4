package onchange

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

func TestErrorSet(t *testing.T) {
	lost, forbidden := errors.New("lost"), errors.New("forbidden")
	for _, c := range []struct {
		name    string
		errs    []error
		changed []bool
	}{
		{"never any error", []error{nil, nil}, []bool{false, false}},
		{"appears and stays", []error{lost, lost, lost}, []bool{true, false, false}},
		{"the same text from another attempt", []error{lost, errors.New("lost")}, []bool{true, false}},
		{"changes", []error{lost, forbidden, lost}, []bool{true, true, true}},
		{"wrapped anew", []error{lost, fmt.Errorf("again: %w", lost)}, []bool{true, true}},
		{"ends", []error{nil, lost, nil, nil}, []bool{false, true, true, false}},
		{"comes back after its end", []error{lost, nil, lost}, []bool{true, true, true}},
		{"no text", []error{errors.New(""), nil}, []bool{false, false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var e Error
			if err := e.Get(); err != nil {
				t.Errorf("the zero value has %v", err)
			}
			for i, err := range c.errs {
				if changed := e.Set(err); changed != c.changed[i] {
					t.Errorf("step %d: changed %v", i, changed)
				}
				if got := e.Get(); got != err {
					t.Errorf("step %d: got %v, want %v", i, got, err)
				}
			}
		})
	}
}

// Of many goroutines that set the same error at once, one logs it.
func TestErrorSetConcurrently(t *testing.T) {
	var e Error
	var changes atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if e.Set(errors.New("lost")) {
				changes.Add(1)
			}
		})
	}
	wg.Wait()
	if n := changes.Load(); n != 1 || e.Get() == nil {
		t.Errorf("%d changes, %v", n, e.Get())
	}
}
