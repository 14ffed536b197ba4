package main

import "testing"

// Rates have the unit that people read, per second.
func TestRates(t *testing.T) {
	for rate, want := range map[float64]string{0: "0 B/s", 0.4: "0 B/s", 999.6: "1000 B/s", 1536: "1.5 KiB/s",
		125e6: "119.2 MiB/s"} {
		if got := describeRate(rate); got != want {
			t.Errorf("%v: %s, want %s", rate, got, want)
		}
	}
}
