package broker

import (
	"errors"
	"testing"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/nodecheck"
)

// wake never blocks, whether controllers run or not, and one event stands for all.
func TestWaker(t *testing.T) {
	w := &waker{}
	w.wake()
	first := w.newChannel()
	if len(first) > 0 {
		t.Error("a new run is woken by what was before")
	}
	w.wake()
	w.wake()
	if len(first) != 1 || (<-first).Object != theKey {
		t.Error("no event, or more than one")
	}
	second := w.newChannel()
	if w.wake(); len(first) > 0 || len(second) != 1 {
		t.Errorf("%d events for the run before, %d for this run", len(first), len(second))
	}
}

// A broker is not ready for each reason that there is.
func TestReady(t *testing.T) {
	b, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Ready(); !errors.Is(err, errNoState) {
		t.Errorf("at the start: %v", err)
	}
	api, controllers, applied := errors.New("api"), errors.New("controllers"), errors.New("applied")
	for _, c := range []struct {
		health health
		want   string
	}{
		{health{}, ""},
		{health{api: api}, "api"},
		{health{controllers: controllers}, "controllers"},
		{health{applied: applied}, "applied"},
		{health{node: &nodecheck.Report{}}, ""},
		{health{node: &nodecheck.Report{Findings: link.Findings{{Link: "b", Text: "a route", Remedy: "remove it"}}}},
			"link b: a route: remove it"},
		{health{api: api, controllers: controllers, applied: applied, crds: errors.New("crds")},
			"api\ncontrollers\napplied"},
	} {
		b.health.change(func(h *health) { *h = c.health })
		got := ""
		if err := b.Ready(); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}
