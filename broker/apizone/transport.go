package apizone

// This file has the way to an API server: all requests of an instance. The transport sees best what goes wrong, and
// tries again: client-go keeps the reason to itself and waits for up to a minute.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/connrotation"
)

const (
	dialTimeout = 5 * time.Second
	// A handshake has more time than a dial: when hundreds begin at once they take turns at the processor.
	handshakeTimeout = 20 * time.Second
	// pingAfter is the silence after which HTTP/2 sends a ping, and the time that it waits for the reply.
	pingAfter = 10 * time.Second
)

// retryBackoff gives the delays between attempts of a request: half to all of 250 ms, 500 ms, and so on to 5 s.
var retryBackoff = wait.Backoff{
	Duration: 250 * time.Millisecond / 2, Factor: 2, Jitter: 1, Steps: math.MaxInt, Cap: 5 * time.Second / 2,
}

// transport carries all requests of an instance. It implements http.RoundTripper for client-go.
type transport struct {
	apiSource
	errorChanged func() // the result of currentError is another one

	base   http.RoundTripper // the client's side of HTTP
	conns  *connrotation.ConnectionTracker
	limit  *loadLimit
	loaded atomic.Bool // the plugin has all names: watches tell what changes from now on

	failures *failures

	mu      sync.Mutex    // guards resumed
	resumed chan struct{} // not nil while the transport is suspended: closed at the end of that
}

func newTransport(source apiSource, budget *loadBudget, errorChanged func()) *transport {
	if source.own != nil {
		budget = nil // the own cluster's names are the first that matter here
	}
	return &transport{
		apiSource: source, errorChanged: errorChanged,
		conns: connrotation.NewConnectionTracker(), limit: newLoadLimit(budget), failures: newFailures(),
	}
}

// newConfig makes a client's configuration that leads all requests through RoundTrip, at any rate. No new connection
// stays after the end of ctx.
func (t *transport) newConfig(ctx context.Context) (*rest.Config, error) {
	const protobuf, json = runtime.ContentTypeProtobuf, runtime.ContentTypeJSON
	content := rest.ContentConfig{ContentType: protobuf, AcceptContentTypes: protobuf + "," + json}
	if t.own != nil {
		config := rest.CopyConfig(t.own)
		config.ContentConfig, config.QPS = content, -1
		config.Wrap(func(rt http.RoundTripper) http.RoundTripper {
			t.base = rt
			return t
		})
		return config, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(t.ca)) {
		return nil, errors.New("no CA certificate")
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	t.base = &http.Transport{
		// No proxy: the address lies in the mesh.
		DialContext: func(dialCtx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(dialCtx, network, address)
			if err != nil {
				return nil, err
			}
			conn = t.conns.Track(conn)
			if ctx.Err() != nil { // instance.stop may have been too early to close it
				conn.Close()
			}
			return conn, nil
		},
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: handshakeTimeout,
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter},
		IdleConnTimeout:     time.Minute,
	}
	return &rest.Config{
		Host: t.server, BearerToken: t.token, Transport: t, ContentConfig: content, QPS: -1, UserAgent: "kubelink",
	}, nil
}

// connect makes one request alone. The watches then share its connection: this is what starting costs most. And where
// no connection can be established, only one request waits for it.
func (t *transport) connect(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.server+"/api/v1/namespaces?limit=1", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+t.token)
	resp, err := t.RoundTrip(req)
	if err == nil {
		_, _ = io.Copy(io.Discard, resp.Body) // else the connection is not shared
		resp.Body.Close()
	}
	return err
}

// suspend is for a link that is lost: what would only wait for the link ends, and the transport sends nothing, as
// packets make the link connect again and again.
func (t *transport) suspend() {
	t.mu.Lock()
	if t.resumed == nil {
		t.resumed = make(chan struct{})
	}
	t.mu.Unlock()
	t.conns.CloseAll()
}

// resume is for a link that has come back.
func (t *transport) resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.resumed != nil {
		close(t.resumed)
		t.resumed = nil
	}
}

// suspension is nil, or closed at the end of the suspension.
func (t *transport) suspension() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.resumed
}

// apiRequest is what the transport needs to know of a request.
type apiRequest struct {
	resource string
	watch    bool
	list     bool // it brings all objects: in pages, or as the events of a watch
	nextPage bool
}

func parseRequest(req *http.Request) apiRequest {
	query := req.URL.Query()
	r := apiRequest{resource: path.Base(req.URL.Path), nextPage: query.Get("continue") != ""}
	r.watch = query.Get("watch") != ""
	// Where there were too many objects by list, there are as many by watch.
	r.list = !r.watch || query.Get("sendInitialEvents") != ""
	return r
}

// failureKind tells failures of lists and watches apart.
func (r apiRequest) failureKind() string {
	if r.watch {
		return r.resource + " watch"
	}
	return r.resource
}

// RoundTrip implements http.RoundTripper. All requests are lists and watches: they have no body and can be repeated.
// It tries again until there is a response that client-go can use, or the request's context ends.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, r, backoff := req.Context(), parseRequest(req), retryBackoff
	if r.list {
		if err := t.limit.awaitPause(ctx, r.resource); err != nil {
			return nil, err
		}
	} else if t.limit.isOutdated(r.resource) {
		return expiredResponse(req), nil
	}
	for {
		if resumed := t.suspension(); resumed != nil {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-resumed:
				backoff = retryBackoff
			}
		}
		resp, err := t.base.RoundTrip(req)
		if ctx.Err() != nil {
			return resp, err
		}
		if err != nil && t.suspension() != nil {
			continue // suspend has closed its connection
		}
		reason, retry := judgeResponse(&t.apiSource, resp, err)
		if !retry && !r.watch {
			reason, retry = judgeList(resp)
		}
		t.reportFailure(r.failureKind(), reason)
		if !retry {
			t.boundResponse(r, resp)
			return resp, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(backoff.Step()):
		}
	}
}

// expiredResponse makes client-go list the objects anew: a watch cannot go on.
func expiredResponse(req *http.Request) *http.Response {
	const status = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410,` +
		`"message":"so much has changed that the objects are to be listed anew"}`
	return &http.Response{
		Status: "410 Gone", StatusCode: http.StatusGone, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {runtime.ContentTypeJSON}}, Body: io.NopCloser(strings.NewReader(status)),
		ContentLength: int64(len(status)),
	}
}

// boundResponse counts the bytes of a response as they are read. A watch without objects means that a list was
// complete.
func (t *transport) boundResponse(r apiRequest, resp *http.Response) {
	switch {
	case r.list && !r.nextPage:
		t.limit.beginList(r.resource)
	case !r.list && resp.StatusCode < 300:
		t.reportFailure(overloadKind+r.resource, "")
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, transport: t, resource: r.resource, watch: r.watch}
}

// boundedBody is the body of a response with objects. It ends with an error when there is more to load than the bounds
// allow, or when so much has changed that the objects have to be listed anew.
type boundedBody struct {
	io.ReadCloser
	transport *transport
	resource  string
	watch     bool
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.watch && b.transport.loaded.Load() { // a watch goes on with what changes
		if !b.transport.limit.addChanges(b.resource, n) {
			return 0, errors.New("so much has changed that the objects are to be listed anew")
		}
		return n, err
	}
	reason := b.transport.limit.addBytes(b.resource, n)
	if reason == "" {
		return n, err
	}
	b.transport.reportFailure(overloadKind+b.resource, reason)
	return 0, errors.New(reason)
}

// reportFailure keeps how a kind of request went; an empty reason means success.
func (t *transport) reportFailure(kind, reason string) {
	if t.failures.setReason(kind, reason) {
		t.errorChanged()
	}
}

// setLoaded tells that the plugin has all names: nothing was too large to load.
func (t *transport) setLoaded() {
	t.loaded.Store(true)
	t.failures.deleteKinds(overloadKind)
}

// currentError is the present failure of the API server, or of the way to it: one line.
func (t *transport) currentError() error {
	reason := t.failures.firstReason()
	if reason == "" {
		return nil
	}
	server := t.server
	if t.own != nil {
		server = t.own.Host
	}
	return fmt.Errorf("API server %s: %s", server, reason)
}
