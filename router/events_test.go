package router

import (
	"fmt"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// A finding is one Event while it lasts, and one again after a pause or when it comes back. Many make no flood.
func TestReportFindings(t *testing.T) {
	e := &events{queue: make(chan link.Finding, maxEvents), told: map[link.Finding]time.Time{},
		limit: newEventLimit()}
	a, b := link.Finding{Reason: ForeignRoute, Text: "a"}, link.Finding{Reason: ForeignRoute, Text: "b"}
	report := func(want int, findings ...link.Finding) {
		t.Helper()
		e.reportFindings(findings)
		if n := len(e.queue); n != want {
			t.Errorf("%d Events, want %d", n, want)
		}
		for len(e.queue) > 0 {
			<-e.queue
		}
	}
	report(1, a)
	report(0, a)
	report(1, a, b)
	report(0)
	report(1, a)
	e.told[a] = time.Now().Add(-eventInterval)
	report(1, a)
	var many []link.Finding
	for i := range 100 {
		many = append(many, link.Finding{Reason: ForeignRoute, Text: fmt.Sprint(i)})
	}
	report(maxEvents, many...)
	report(maxListed-maxEvents, many...)
	report(0, many...)

	before := time.Now()
	flood := 0
	for range 1000 { // one that comes and goes
		e.reportFindings(link.Findings{a})
		e.reportFindings(nil)
		for ; len(e.queue) > 0; flood++ {
			<-e.queue
		}
	}
	if most := lineBurst + int(time.Since(before)/lineInterval) + 1; flood == 0 || flood > most {
		t.Errorf("%d Events, want %d at most", flood, most)
	}
}
