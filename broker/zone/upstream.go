package zone

// The DNS service of a cluster as an upstream: CoreDNS' proxy library keeps and reuses connections;
// this file adds the deadline and fails at once while the service is known to be dead.

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
	tries      = 2

	// After a failed query the library checks the health of the service in the background. From the
	// second failed check on, until one succeeds, queries fail without waiting.
	healthInterval = 500 * time.Millisecond
	maxFails       = 1

	// maxWaiting bounds the queries that wait: each has a socket, and one cluster that does not answer must leave enough
	// of them for the others.
	maxWaiting = 1024
)

// upstream is the DNS service of a cluster. Its connections are closed by the library's finalizer
// once no table and no query holds it any more: no query loses its connection when a table goes.
type upstream struct {
	serial  uint64 // answers that are remembered hold this, not the upstream
	proxy   *proxy.Proxy
	lastErr atomic.Pointer[error]

	answered atomic.Bool // at least once

	mu       sync.Mutex
	inflight map[string]*inflight // by protocol and query
	waiting  int                  // of these, for a reply
}

// inflight is a query that waits for its reply, or has failed a while ago.
type inflight struct {
	done   chan struct{} // closed when there is one of the following
	reply  *dns.Msg
	err    error
	shared bool // others wait, too
}

// lastSerial is that of the last upstream.
var lastSerial atomic.Uint64

// newUpstream starts an upstream. The health of a cluster's DNS service shows in any answer about
// its own domain; the library's default, the root, would ask for what the cluster may not reach.
func newUpstream(addr netip.AddrPort, clusterDomain string) *upstream {
	p := proxy.NewProxy("kubelink", addr.String(), transport.DNS)
	p.SetReadTimeout(tryTimeout)
	p.GetHealthchecker().SetDomain(clusterDomain)
	p.GetHealthchecker().SetRecursionDesired(false)
	p.Start(healthInterval)
	return &upstream{serial: lastSerial.Add(1), proxy: p, inflight: map[string]*inflight{}}
}

// stopChecks ends the health checks. Connections are closed later: see upstream.
func (u *upstream) stopChecks() { u.proxy.Stop() }

// exchangeShared asks the upstream, in the protocol of the client. The same query is asked once at a time, and its failure is
// believed for as long as it took (RFC 9520). That is not only for speed: clusters follow aliases themselves, by way of
// the kubelinks of their own, and where aliases lead from one cluster to another and back, all would ask each other
// until there are no more sockets, and go on for ever.
func (u *upstream) exchangeShared(ctx context.Context, state request.Request) (*dns.Msg, error) {
	wire, err := state.Req.Pack() // its ID is 0
	if err != nil {
		return nil, err
	}
	key := state.Proto() + string(wire)
	u.mu.Lock()
	a := u.inflight[key]
	switch {
	case a != nil:
		a.shared = true
		u.mu.Unlock()
		<-a.done
	case u.waiting >= maxWaiting:
		u.mu.Unlock()
		return nil, fmt.Errorf("no answer yet to %d queries before this one", maxWaiting)
	default:
		a = &inflight{done: make(chan struct{}), err: errors.New("given up")}
		u.inflight[key] = a
		u.waiting++
		u.mu.Unlock()
		u.exchangeForAll(ctx, key, a, state)
	}
	switch {
	case a.err != nil:
		return nil, a.err
	case a.shared:
		return a.reply.Copy(), nil // callers rewrite it
	}
	return a.reply, nil
}

// exchangeForAll asks for all who wait.
func (u *upstream) exchangeForAll(ctx context.Context, key string, a *inflight, state request.Request) {
	begin := time.Now()
	defer close(a.done)
	defer func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.waiting--
		if a.err == nil {
			delete(u.inflight, key)
			return
		}
		time.AfterFunc(time.Since(begin), func() {
			u.mu.Lock()
			defer u.mu.Unlock()
			delete(u.inflight, key)
		})
	}()
	a.reply, a.err = u.exchangeRetried(context.WithoutCancel(ctx), state)
}

// exchangeRetried is exchange for one query.
func (u *upstream) exchangeRetried(ctx context.Context, state request.Request) (*dns.Msg, error) {
	if u.proxy.Down(maxFails) {
		if err := u.lastErr.Load(); err != nil {
			return nil, fmt.Errorf("no answer for a while: %w", *err)
		}
	}
	var err error
	begin := time.Now()
	for try := 0; try < tries; try++ {
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

// exchangeOnce is one attempt: at most tryTimeout to connect, and as much for the answer. That a pooled
// connection was closed by the other side in the meantime is no attempt; each is found only once.
func (u *upstream) exchangeOnce(ctx context.Context, state request.Request) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	for {
		reply, _, _, err := u.proxy.Connect(ctx, state, proxy.Options{})
		if !errors.Is(err, proxy.ErrCachedClosed) {
			return reply, err
		}
	}
}

// briefError leaves out what a reader does not need: the local port and, as callers name it, the address.
func briefError(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return op.Err
	}
	return err
}
