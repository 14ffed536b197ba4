package zone

// The DNS service of a cluster as an upstream: CoreDNS' proxy library keeps and reuses connections; this file adds the
// deadline, fails at once while the service is known to be dead, and sends equal queries once.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin/pkg/proxy"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
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
	answers  atomic.Uint64 // how many there have been
	failures failureNews

	queries queryGroup
	lost    chan struct{} // closed when no link leads to the service any more
	whyLost error         // set before lost is closed
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
	return &upstream{serial: lastSerial.Add(1), proxy: p, lost: make(chan struct{})}
}

// isLost tells whether loseLink was called.
func (u *upstream) isLost() bool {
	select {
	case <-u.lost:
		return true
	default:
		return false
	}
}

// loseLink makes queries fail for good, those that wait for an answer, too. The link that comes back gets another
// upstream. There must be one caller at a time.
func (u *upstream) loseLink(why error) {
	if !u.isLost() {
		u.whyLost = why
		close(u.lost)
	}
}

// stopChecks ends the health checks. Connections are closed later: see upstream.
func (u *upstream) stopChecks() { u.proxy.Stop() }

// exchangeShared sends a query to the upstream, in the protocol of the client, unless the same query waits already or
// has failed a while ago. The caller may modify the reply.
//
// That is not only for speed: clusters follow aliases themselves, by way of their own kubelinks. Where aliases lead
// from one cluster to another and back, all clusters would ask each other until there are no more sockets, and go on
// for ever.
func (u *upstream) exchangeShared(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	wire, err := state.Req.Pack() // its ID is 0
	if err != nil {
		return nil, err
	}
	key := state.Proto() + string(wire)
	result := make(chan exchangeResult, 1)
	go func() { // nothing ends the library's read but its deadline
		var r exchangeResult
		defer func() {
			r.panicked = recover()
			result <- r
		}()
		r.reply, r.err = u.queries.runOnce(key, func() (*dns.Msg, error) {
			return u.exchangeRetried(context.WithoutCancel(ctx), state)
		})
	}()
	select {
	case <-u.lost:
		return nil, u.whyLost
	case r := <-result:
		if r.panicked != nil {
			panic(r.panicked) // CoreDNS recovers in the goroutine of the query
		}
		return r.reply, r.err
	}
}

// exchangeResult is what a goroutine of exchangeShared has got.
type exchangeResult struct {
	reply    *dns.Msg
	err      error
	panicked any
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
			u.answers.Add(1)
			dropEmptyRecords(reply)
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

// dropEmptyRecords removes records that have come without data, and are nothing without: the library reads them, but
// a message that it packs them into cannot be read again.
func dropEmptyRecords(m *dns.Msg) {
	isEmpty := func(rr dns.RR) bool {
		switch rr.(type) {
		case *dns.OPT, *dns.APL, *dns.NULL, *dns.RFC3597:
			return false
		}
		return rr.Header().Rdlength == 0
	}
	for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
		*section = slices.DeleteFunc(*section, isEmpty)
	}
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

// failureNews tells which failures are news for the log. Any client can have queries fail, as many as it likes.
type failureNews struct {
	mu   sync.Mutex // guards said
	said map[string]toldFailure
}

// toldFailure is when a failure was told, and how many answers there had been.
type toldFailure struct {
	at      time.Time
	answers uint64
}

// maxTold bounds the failures that are told apart.
const maxTold = 16

// pickNews returns a failure of the upstream if the log does not have it: one that is new, or that is there again after
// answers. Each comes once a second at most.
func (u *upstream) pickNews(err error) error {
	f := &u.failures
	f.mu.Lock()
	defer f.mu.Unlock()
	now, text := toldFailure{time.Now(), u.answers.Load()}, err.Error()
	told, known := f.said[text]
	switch {
	case known && (told.answers == now.answers || now.at.Sub(told.at) < time.Second):
		return nil
	case !known && len(f.said) >= maxTold:
		return nil
	case f.said == nil:
		f.said = map[string]toldFailure{}
	}
	f.said[text] = now
	return err
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
	flights singleflight.Group // by protocol and query

	mu       sync.Mutex       // guards all below
	waiting  int              // flights that wait for a reply
	failures map[string]error // of flights that have failed a while ago
}

// runOnce calls exchange, or waits for a call with the same key and shares its result.
func (g *queryGroup) runOnce(key string, exchange func() (*dns.Msg, error)) (*dns.Msg, error) {
	if err := g.recentFailure(key); err != nil {
		return nil, err
	}
	v, err, shared := g.flights.Do(key, func() (any, error) {
		if err := g.beginFlight(key); err != nil {
			return nil, err
		}
		began, err := time.Now(), errGivenUp
		defer func() { g.endFlight(key, time.Since(began), err) }()
		var reply *dns.Msg
		reply, err = exchange()
		return reply, err
	})
	switch {
	case err != nil:
		return nil, err
	case shared:
		return v.(*dns.Msg).Copy(), nil
	}
	return v.(*dns.Msg), nil
}

// errGivenUp is the failure of a flight that panics.
var errGivenUp = errors.New("given up")

func (g *queryGroup) recentFailure(key string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failures[key]
}

// beginFlight counts a flight, unless it must not begin: one with the same key may have failed just now.
func (g *queryGroup) beginFlight(key string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch err := g.failures[key]; {
	case err != nil:
		return err
	case g.waiting >= maxWaiting:
		return fmt.Errorf("no answer yet to %d queries before this one", maxWaiting)
	}
	g.waiting++
	return nil
}

// endFlight counts a flight no longer. It keeps a failure for as long as the flight took.
func (g *queryGroup) endFlight(key string, took time.Duration, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting--
	if err == nil {
		return
	}
	if g.failures == nil {
		g.failures = map[string]error{}
	}
	g.failures[key] = err
	time.AfterFunc(took, func() { g.forgetFailure(key) })
}

func (g *queryGroup) forgetFailure(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.failures, key)
}
