package apizone

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Which requests bring all objects, and which failures replace each other.
func TestParseRequest(t *testing.T) {
	for _, c := range []struct {
		url  string
		want apiRequest
		kind string
	}{
		{"/api/v1/services?limit=500", apiRequest{resource: "services", list: true}, "services"},
		{"/api/v1/services?limit=500&continue=x", apiRequest{resource: "services", list: true, nextPage: true}, "services"},
		{"/api/v1/namespaces?watch=true&resourceVersion=7", apiRequest{resource: "namespaces", watch: true},
			"namespaces watch"},
		{"/api/v1/services?watch=true&sendInitialEvents=true", apiRequest{resource: "services", watch: true, list: true},
			"services watch"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://127.0.0.1"+c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := parseRequest(req); got != c.want || got.failureKind() != c.kind {
			t.Errorf("%s: %+v %s", c.url, got, got.failureKind())
		}
	}
}

// The delays double from 250 ms to 5 s, and each is between half and all of that.
func TestRetryBackoff(t *testing.T) {
	backoff, full := retryBackoff, 250*time.Millisecond
	for n := range 100 {
		if d := backoff.Step(); d < full/2 || d > full {
			t.Errorf("delay %d is %v, want %v to %v", n, d, full/2, full)
		}
		full = min(2*full, 5*time.Second)
	}
	if retryBackoff.Steps != math.MaxInt {
		t.Error("a request has changed the back-off of all")
	}
}

// What a response means: the text for users, and whether the transport tries again.
func TestJudgeResponse(t *testing.T) {
	remote, local := &apiSource{secret: "kube-system/two"}, &apiSource{own: &rest.Config{}}
	const status = `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no way"}`
	for _, c := range []struct {
		name   string
		source *apiSource
		code   int
		body   string
		err    error
		reason string
		retry  bool
	}{
		{"success", remote, http.StatusOK, "", nil, "", false},
		{"expired list", remote, http.StatusGone, status, nil, "", false},
		{"busy", remote, http.StatusTooManyRequests, status, nil, "", false},
		{"token", remote, http.StatusUnauthorized, status, nil,
			"no way: the token of secret kube-system/two is not accepted", true},
		{"own token", local, http.StatusUnauthorized, status, nil, "no way", false},
		{"forbidden", remote, http.StatusForbidden, status, nil, "no way", true},
		{"redirection", remote, http.StatusFound, "<html>", nil, "302 Found", true},
		{"no response", remote, 0, "", errors.New("EOF"), "EOF", true},
	} {
		var resp *http.Response
		if c.err == nil {
			resp = &http.Response{StatusCode: c.code, Body: io.NopCloser(strings.NewReader(c.body))}
			resp.Status = "302 Found"
		}
		if reason, retry := judgeResponse(c.source, resp, c.err); reason != c.reason || retry != c.retry {
			t.Errorf("%s: %q, retry: %v", c.name, reason, retry)
		}
	}
}

// Each change of a failure is told once, and what users see is one line of bounded length.
func TestReportFailure(t *testing.T) {
	changes := 0
	tr := newTransport(apiSource{server: "https://100.64.16.1"}, nil, func() { changes++ })
	for _, step := range []struct {
		kind, reason string
		changes      int
		want         string // empty: no error
	}{
		{"services", "", 0, ""},
		{"services", "see\n there ", 1, "see there"},
		{"services", "see there", 1, "see there"},
		{"services watch", "x", 2, "see there"},
		{"services", "", 3, "x"},
		{overloadKind + "services", "too much", 4, "x"},
		{"services watch", "", 5, "too much"},
		{overloadKind + "services", strings.Repeat("ä", maxReason), 6, strings.Repeat("ä", maxReason/2) + "..."},
	} {
		tr.reportFailure(step.kind, step.reason)
		got := ""
		if err := tr.currentError(); err != nil {
			got = strings.TrimPrefix(err.Error(), "API server https://100.64.16.1: ")
		}
		if changes != step.changes || got != step.want {
			t.Errorf("%s %q: %d changes, %q", step.kind, step.reason, changes, got)
		}
	}
	if tr.setLoaded(); tr.currentError() != nil {
		t.Error(tr.currentError())
	}
}

// A transport that is suspended sends nothing until it is resumed.
func TestSuspend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, sent := newTransport(apiSource{}, nil, func() {}), 0
		tr.base = roundTripFunc(func(*http.Request) (*http.Response, error) {
			sent++
			return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
		})
		if tr.suspension() != nil {
			t.Error("suspended from the beginning")
		}
		tr.suspend()
		tr.suspend()
		ended := make(chan error, 1)
		go func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://127.0.0.1/api/v1/services", nil)
			if err != nil {
				ended <- err
				return
			}
			resp, err := tr.RoundTrip(req)
			if err == nil {
				resp.Body.Close()
			}
			ended <- err
		}()
		synctest.Wait()
		if sent != 0 {
			t.Error("a request is sent")
		}
		tr.resume()
		if err := <-ended; err != nil || sent != 1 {
			t.Errorf("%v, %d requests are sent", err, sent)
		}
	})
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// What cannot be a list is asked for again, and what can be one is passed on as it is.
func TestJudgeList(t *testing.T) {
	const jsonText = "application/json"
	long := `{"items":[` + strings.Repeat(" ", 600) + `]}`
	for _, c := range []struct {
		body, kind string
		status     int
		retry      bool
	}{
		{"{}", jsonText, 200, true},
		{"", jsonText, 200, true},
		{`{"kind":"ServiceList","metadata":{},"items":[]}`, jsonText, 200, true},
		{`{"kind":"ServiceList","metadata":{"resourceVersion":""},"items":null}`, jsonText, 200, true},
		{`{"kind":"ServiceList","metadata":{"resourceVersion":"7"},"items":[]}`, jsonText, 200, false},
		{long, jsonText, 200, false},
		{"k8s\x00", "application/vnd.kubernetes.protobuf", 200, false},
		{"{}", jsonText, 410, false},
	} {
		resp := &http.Response{
			StatusCode: c.status, Header: http.Header{"Content-Type": {c.kind}}, Body: io.NopCloser(strings.NewReader(c.body)),
		}
		reason, retry := judgeList(resp)
		if retry != c.retry || (reason != "") != c.retry {
			t.Errorf("%.80s: %s, %v", c.body, reason, retry)
		}
		if rest, err := io.ReadAll(resp.Body); !retry && (err != nil || string(rest) != c.body) {
			t.Errorf("%.80s: read %.80s, %v", c.body, rest, err)
		}
	}
}

// An API server that cannot say whether secrets may be listed holds up nothing.
func TestCachedSecrets(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, c := range []struct {
		propagation mesh.Propagation
		err         error
		ok          bool
	}{
		{mesh.PropagateDNS, nil, false},
		{mesh.PropagateKubernetes, nil, true},
		{mesh.PropagateKubernetes, apierrors.NewForbidden(schema.GroupResource{}, "", nil), false},
		{mesh.PropagateKubernetes, apierrors.NewInternalError(errors.New("a webhook refuses")), false},
		{mesh.PropagateKubernetes, context.DeadlineExceeded, false},
	} {
		cfg := Config{Namespace: "ns", Propagation: c.propagation}
		by, ok := CachedSecrets(t.Context(), failingReader{err: c.err}, cfg, log)
		if ok != c.ok || (len(by.Namespaces) == 1) != c.ok {
			t.Errorf("%s, %v: %v %v", c.propagation, c.err, by, ok)
		}
	}
}

type failingReader struct {
	client.Reader
	err error
}

func (r failingReader) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return r.err
}
