package main

import (
	"slices"
	"testing"
	"time"
)

// Each flow that shares a connection with the load makes the median longer by the same.
func TestJoinEchoes(t *testing.T) {
	const fast, slow = time.Millisecond, 5 * time.Millisecond
	for shared, want := range []time.Duration{fast, 2 * fast, 3 * fast, 4 * fast, slow} {
		var flows [][]time.Duration
		for i := range 4 {
			typical := fast
			if i < shared {
				typical = slow
			}
			flows = append(flows, []time.Duration{20 * fast, typical, 0, typical})
		}
		e, err := joinEchoes(flows)
		if err != nil || e.median != want || len(e.times) != 16 || !slices.IsSorted(e.times) {
			t.Errorf("%d of 4 shared: %+v, %v, want %s", shared, e, err, want)
		}
		if quantile(e.times, 0.99) != 20*fast || e.lost != 0 {
			t.Errorf("%d of 4 shared: %+v", shared, e)
		}
	}
}

// An echo that is lost has waited at least as long as the bench.
func TestJoinLostEchoes(t *testing.T) {
	answered := []time.Duration{1000, 1000, 1000}
	for _, c := range []struct {
		times  []time.Duration // of the second of two flows
		count  int             // of lost echoes
		median time.Duration
		fails  bool
	}{
		{[]time.Duration{never, 1000, 1000}, 1, 1000, false},
		{[]time.Duration{never, never, 1000}, 2, (1000 + echoPatience) / 2, false},
		{[]time.Duration{never, never, never}, 3, (1000 + echoPatience) / 2, true},
	} {
		e, err := joinEchoes([][]time.Duration{slices.Clone(answered), c.times})
		if e.median != c.median || e.lost != c.count || (err != nil) != c.fails {
			t.Errorf("%v: %+v, %v", c.times, e, err)
		}
	}
}
