package apizone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

// What changes once the names are loaded may be as much as it is: the objects are listed anew in between, and are
// bounded as they are then.
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

// A watch that brings the names and what changes later, which the stub has none of, is bounded. When it has brought too
// many changes, the next one makes the client list the objects anew, and that is no failure.
func TestBoundedBody(t *testing.T) {
	for _, c := range []struct{ watch, loaded, ends bool }{
		{true, false, true}, {true, true, true}, {false, false, true}, {false, true, true},
	} {
		tr := newTransport(apiSource{}, nil, func() {})
		tr.loaded.Store(c.loaded)
		body := io.NopCloser(strings.NewReader(strings.Repeat(" ", int(2*maxLoad))))
		n, err := io.Copy(io.Discard, &boundedBody{ReadCloser: body, transport: tr, resource: "services", watch: c.watch})
		changes := c.watch && c.loaded
		if (err != nil) != c.ends || (n > maxLoad) == c.ends || (tr.currentError() == nil) != changes {
			t.Errorf("%v: %d bytes, %v, %v", c, n, err, tr.currentError())
		}
		if tr.limit.isOutdated("services") != changes {
			t.Errorf("%v: to be listed anew is not %v", c, changes)
		}
		if !changes {
			continue
		}
		const watch = "https://x.example/api/v1/services?watch=true"
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, watch, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req) // which asks no server
		if err != nil || resp.StatusCode != http.StatusGone {
			t.Errorf("%v, %v", resp, err)
		}
		resp.Body.Close()
		tr.limit.beginList("services")
		if tr.limit.isOutdated("services") || tr.limit.addChanges("services", int(maxLoad)+1) {
			t.Error("not counted anew")
		}
		if tr.limit.overloaded["services"].IsZero() {
			t.Error("listed anew again and again, without a pause")
		}
	}
}

// All other clusters share a bound. The one that exceeds it does not load, and the others keep what they have.
func TestLoadOfAllClusters(t *testing.T) {
	z := New(slog.New(slog.DiscardHandler), func() {})
	limits := map[string]*loadLimit{}
	n := int(maxLoadOfAll / maxLoad)
	for i := range n {
		l := newLoadLimit(&z.budget)
		limits[fmt.Sprint(i)] = l
		if problem := l.addBytes("services", int(maxLoad)); problem != "" {
			t.Fatalf("cluster %d: %s", i, problem)
		}
	}
	late := newLoadLimit(&z.budget)
	want := "its services and what all other clusters have are more than 512 MiB: this is too much to load"
	if problem := late.addBytes("services", 1); problem != want {
		t.Errorf("%q", problem)
	}
	if limits["0"].addChanges("services", 1) {
		t.Error("changes are not counted")
	}
	limits["0"].beginList("services")
	if problem := late.addBytes("services", 1); problem != "" {
		t.Errorf("not after the other one is smaller: %s", problem)
	}
	limits["1"].release()
	limits["1"].release()
	limits["1"].addBytes("services", 1) // of an answer that was on its way
	if z.budget.used != int64(n-2)*maxLoad+1 {
		t.Errorf("%d bytes are counted", z.budget.used)
	}
	if own := newTransport(apiSource{own: &rest.Config{}}, &z.budget, func() {}); own.limit.budget != nil {
		t.Error("the own cluster is bounded by what others have")
	}
}

// Pages of a list count together, another list counts anew, and what was too large is tried again after a pause.
func TestLoadLimit(t *testing.T) {
	l := newLoadLimit(nil)
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
		if problem := l.addBytes(step.resource, step.bytes); (problem == "") != step.fits {
			t.Errorf("%s: %q", step.name, problem)
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
		l.addBytes("services", 2*half+1)
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
