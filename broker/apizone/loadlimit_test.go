package apizone

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// What changes once the names are loaded may be as much as it is.
func TestLongWatch(t *testing.T) {
	stub := newWebStub(t)
	bench := newBench(t)
	b := bench.want(Access{link: "two", apiSource: stub.source("t")})
	bench.until(t, "names", func() error { return answered(t, b, web) })
	large := strings.Repeat("x", 1<<20)
	for range 2 * maxLoad >> 20 {
		stub.service("large", "100.64.16.30", func(s *corev1.Service) { s.Annotations = map[string]string{"large": large} })
	}
	stub.service("last", "100.64.16.21")
	eventually(t, func() error { return answered(t, b, "last.default.svc.two.kubelink.") })
	for _, s := range bench.Statuses() {
		if s.Err != nil {
			t.Error(s.Err)
		}
	}
}

// A watch that brings the names and what changes later, which the stub has none of, is bounded until the names are
// loaded.
func TestBoundedBody(t *testing.T) {
	for _, c := range []struct{ watch, loaded, ends bool }{
		{true, false, true}, {true, true, false}, {false, false, true}, {false, true, true},
	} {
		tr := newTransport(apiSource{}, func() {})
		tr.loaded.Store(c.loaded)
		body := io.NopCloser(strings.NewReader(strings.Repeat(" ", int(2*maxLoad))))
		n, err := io.Copy(io.Discard, &boundedBody{ReadCloser: body, transport: tr, resource: "services", watch: c.watch})
		if (err != nil) != c.ends || (n > maxLoad) == c.ends || (tr.currentError() != nil) != c.ends {
			t.Errorf("%v: %d bytes, %v, %v", c, n, err, tr.currentError())
		}
	}
}

// Pages of a list count together, another list counts anew, and what was too large is tried again after a pause.
func TestLoadLimit(t *testing.T) {
	l := newLoadLimit()
	const half = 4 << 20 // of maxLoad
	for _, step := range []struct {
		name     string
		resource string
		begin    bool
		bytes    int
		fits     bool
	}{
		{"first page", "services", true, half, true},
		{"second page", "services", false, half, true},
		{"third page", "services", false, 1, false},
		{"another resource", "namespaces", true, half, true},
		{"another list", "services", true, 2 * half, true},
		{"large", "services", true, 2*half + 1, false},
	} {
		if step.begin {
			l.beginList(step.resource)
		}
		if fits := l.addBytes(step.resource, step.bytes); fits != step.fits {
			t.Errorf("%s: fits: %v", step.name, fits)
		}
	}
	if err := l.awaitPause(t.Context(), "namespaces"); err != nil {
		t.Error(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := l.awaitPause(ended, "services"); !errors.Is(err, context.Canceled) {
		t.Errorf("services: %v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		l.addBytes("services", 1)
		start := time.Now()
		if err := l.awaitPause(t.Context(), "services"); err != nil || time.Since(start) != overloadPause {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
	l.beginList("services")
	if err := l.awaitPause(ended, "services"); err != nil {
		t.Error(err)
	}
}
