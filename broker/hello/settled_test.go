package hello

// Reasons of links that cannot be connected: how often what users see changes.

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestSettledReason(t *testing.T) {
	for _, test := range []struct {
		what    string
		reasons []string
		changes int
		shown   string
	}{
		{"the same", []string{"a", "a", "a", "a"}, 1, "a"},
		{"another one that stays", []string{"a", "a", "b", "b", "b"}, 2, "b"},
		{"another one for once", []string{"a", "a", "b", "a", "a", "a"}, 1, "a"},
		{"in turns", []string{"a", "b", "a", "b", "a", "b", "a", "b", "a", "b", "a", "b"}, 1, "a"},
		{"in turns of two", []string{"a", "a", "b", "b", "a", "a", "b", "b", "a", "a", "b", "b"}, 2, "b"},
		{"back for good", []string{"a", "b", "b", "a", "a", "a", "a", "a", "a", "a", "a"}, 3, "a"},
	} {
		var s SettledReason
		changes := 0
		for _, r := range test.reasons {
			if s.Change(r) {
				changes++
			}
		}
		if changes != test.changes || s.Shown != test.shown {
			t.Errorf("%s: %d changes, shows %q", test.what, changes, s.Shown)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	count := func(n int, reason func(int) string) (changes int) {
		var s SettledReason
		for i := range n {
			if s.Change(reason(i)) {
				changes++
			}
		}
		return changes
	}
	// An hour of a link that is dialled each 5 s, at an address that is not there; and with a peer that makes them up.
	if n := count(720, func(int) string { return []string{"timed out", "no route to host"}[random.IntN(2)] }); n > 15 {
		t.Errorf("two reasons at random: %d changes in 720 attempts", n)
	}
	if n := count(720, func(i int) string { return fmt.Sprint("certificate names x", i) }); n > 720/(MaxReasons-1) {
		t.Errorf("always another one: %d changes in 720 attempts", n)
	}
}
