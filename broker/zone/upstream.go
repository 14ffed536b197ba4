package zone

// The DNS service of a cluster as an upstream: CoreDNS' proxy library keeps and reuses connections; this file adds the
// deadline, fails at once while the service is known to be dead, and sends equal queries once.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin/pkg/proxy"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

const (
	// A query is tried twice, a second each: one lost packet costs a second, a dead service two.
	tryTimeout = time.Second
	maxTries   = 2

	// After a failed query the library checks the health of the service in the background. From the second failed check
	// on, until one succeeds, queries fail without waiting.
	healthInterval = 500 * time.Millisecond
	maxFails       = 1

	// maxWaiting bounds the queries that wait: each has a socket, and one cluster that does not answer must leave enough
	// of them for other clusters.
	maxWaiting = 1024
)

// upstream is the DNS service of a cluster. The library's finalizer closes its connections once no table and no query
// holds it any more: no query loses its connection when a table goes.
type upstream struct {
	serial   uint64 // cached replies hold this, not the upstream
	proxy    *proxy.Proxy
	lastErr  atomic.Pointer[error]
	answered atomic.Bool // at least once

	queries queryGroup
}

// lastSerial is the serial of the newest upstream.
var lastSerial atomic.Uint64

// newUpstream starts an upstream. The health of a cluster's DNS service shows in any answer about its own domain; the
// library's default, the root, would ask for names that the cluster may not reach.
func newUpstream(addr netip.AddrPort, clusterDomain string) *upstream {
	p := proxy.NewProxy("kubelink", addr.String(), transport.DNS)
	p.SetReadTimeout(tryTimeout)
	p.GetHealthchecker().SetDomain(clusterDomain)
	p.GetHealthchecker().SetRecursionDesired(false)
	p.Start(healthInterval)
	return &upstream{serial: lastSerial.Add(1), proxy: p}
}

// stopChecks ends the health checks. Connections are closed later: see upstream.
func (u *upstream) stopChecks() { u.proxy.Stop() }

// exchangeShared sends a query to the upstream, in the protocol of the client, unless the same query waits already or
// has failed a while ago. The caller may modify the reply.
//
// That is not only for speed: clusters follow aliases themselves, by way of their own kubelinks. Where aliases lead from
// one cluster to another and back, all clusters would ask each other until there are no more sockets, and go on for
// ever.
func (u *upstream) exchangeShared(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	wire, err := state.Req.Pack() // its ID is 0
	if err != nil {
		return nil, err
	}
	return u.queries.runOnce(state.Proto()+string(wire), func() (*dns.Msg, error) {
		return u.exchangeRetried(context.WithoutCancel(ctx), state)
	})
}

// exchangeRetried sends a query at most maxTries times.
func (u *upstream) exchangeRetried(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	if u.proxy.Down(maxFails) {
		if err := u.lastErr.Load(); err != nil {
			return nil, fmt.Errorf("no answer for a while: %w", *err)
		}
	}
	var err error
	begin := time.Now()
	for range maxTries {
		var reply *dns.Msg
		reply, err = u.exchangeOnce(ctx, state)
		if err == nil {
			if !state.Match(reply) {
				return nil, errors.New("answer to another question")
			}
			u.answered.Store(true)
			return reply, nil
		}
		if ctx.Err() != nil {
			break
		}
		// A dial and a read that both took their time leave none for another try.
		if time.Since(begin) > tryTimeout+tryTimeout/2 {
			break
		}
	}
	err = briefError(err)
	u.lastErr.Store(&err)
	u.proxy.Healthcheck()
	return nil, err
}

// exchangeOnce is one try: at most tryTimeout to connect, and as much for the answer. That the other side has closed a
// pooled connection in the meantime does not count as a try; each is found only once.
func (u *upstream) exchangeOnce(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	for {
		reply, _, _, err := u.proxy.Connect(ctx, *state, proxy.Options{})
		if !errors.Is(err, proxy.ErrCachedClosed) {
			return reply, err
		}
	}
}

// briefError leaves out what a reader does not need: the local port and, because callers name it, the address.
func briefError(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return op.Err
	}
	return err
}

// queryGroup runs equal queries once at a time, and believes a failure for as long as it took (RFC 9520).
type queryGroup struct {
	mu       sync.Mutex           // guards inflight and waiting, and inflightQuery.shared
	inflight map[string]*inflight // by protocol and query; failed ones stay for a while
	waiting  int                  // the ones in inflight that wait for a reply
}

// inflight is a query that waits for its reply, or has failed a while ago.
type inflight struct {
	done   chan struct{} // closed when there is a reply or an error
	reply  *dns.Msg
	err    error
	shared bool // several callers wait
}

// runOnce calls exchange, or waits for a call with the same key and shares its result.
func (g *queryGroup) runOnce(key string, exchange func() (*dns.Msg, error)) (*dns.Msg, error) {
	g.mu.Lock()
	q := g.inflight[key]
	switch {
	case q != nil:
		q.shared = true
		g.mu.Unlock()
		<-q.done
	case g.waiting >= maxWaiting:
		g.mu.Unlock()
		return nil, fmt.Errorf("no answer yet to %d queries before this one", maxWaiting)
	default:
		q = &inflight{done: make(chan struct{}), err: errors.New("given up")}
		if g.inflight == nil {
			g.inflight = map[string]*inflight{}
		}
		g.inflight[key] = q
		g.waiting++
		g.mu.Unlock()
		g.runFirst(key, q, exchange)
	}
	switch {
	case q.err != nil:
		return nil, q.err
	case q.shared:
		return q.reply.Copy(), nil
	}
	return q.reply, nil
}

// runFirst calls exchange for all callers that wait for q. If exchange panics they get an error.
func (g *queryGroup) runFirst(key string, q *inflight, exchange func() (*dns.Msg, error)) {
	begin := time.Now()
	defer func() {
		g.mu.Lock()
		g.waiting--
		if q.err == nil {
			delete(g.inflight, key)
		} else {
			time.AfterFunc(time.Since(begin), func() { g.forgetQuery(key) })
		}
		g.mu.Unlock()
		close(q.done)
	}()
	q.reply, q.err = exchange()
}

func (g *queryGroup) forgetQuery(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.inflight, key)
}
