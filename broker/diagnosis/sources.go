package diagnosis

// No client keeps others out: each address has a share of connections and of questions to the API server.

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"
)

const (
	// The API server of an operator is one address. A pod that asks without end has another one.
	connectionsOfSource = 32
	maxSources          = 256 // that have shares of their own
	sharesAtOnce        = 3   // that all sources have together
)

// sourceOf is the address of a client; of IPv6 its network, of which a node has all addresses.
func sourceOf(remote string) netip.Addr {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	if a := at.Addr().Unmap().WithZone(""); a.Is4() {
		return a
	}
	network, _ := at.Addr().WithZone("").Prefix(64) // it is IPv6
	return network.Addr()
}

// turns says who may have the API server asked now.
type turns struct {
	together *rate.Limiter

	mu  sync.Mutex // guards own
	own map[netip.Addr]*rate.Limiter
}

func newTurns() *turns {
	return &turns{together: rate.NewLimiter(sharesAtOnce*maxReviews, sharesAtOnce*burst),
		own: map[netip.Addr]*rate.Limiter{}}
}

// await tells whether a source may have the API server asked, now or soon. With too many in line it says no at once.
func (t *turns) await(ctx context.Context, source netip.Addr) bool {
	ctx, cancel := context.WithTimeout(ctx, reviewWait)
	defer cancel()
	return t.find(source).Wait(ctx) == nil && t.together.Wait(ctx) == nil
}

// find returns the limiter of a source. With too many sources, the new ones share one.
func (t *turns) find(source netip.Addr) *rate.Limiter {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.own) >= maxSources {
		maps.DeleteFunc(t.own, func(_ netip.Addr, l *rate.Limiter) bool { return l.Tokens() >= burst })
	}
	if t.own[source] == nil && len(t.own) >= maxSources {
		source = netip.Addr{}
	}
	l := t.own[source]
	if l == nil {
		l = rate.NewLimiter(maxReviews, burst)
		t.own[source] = l
	}
	return l
}

// ShareConnections bounds the open connections of a listener, and those of each source. More of a source are closed.
func ShareConnections(l net.Listener, most int) net.Listener {
	return newFairListener(netutil.LimitListener(l, most))
}

// fairListener closes connections of a source that has many already.
type fairListener struct {
	net.Listener

	mu   sync.Mutex // guards open
	open map[netip.Addr]int
}

func newFairListener(l net.Listener) *fairListener {
	return &fairListener{Listener: l, open: map[netip.Addr]int{}}
}

func (l *fairListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := sourceOf(c.RemoteAddr().String())
		if l.add(source, 1) {
			return &fairConn{Conn: c, release: sync.OnceFunc(func() { l.add(source, -1) })}, nil
		}
		c.Close()
	}
}

// add counts a connection, if the source may have one more.
func (l *fairListener) add(source netip.Addr, n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n > 0 && l.open[source] >= connectionsOfSource {
		return false
	}
	if l.open[source] += n; l.open[source] == 0 {
		delete(l.open, source)
	}
	return true
}

type fairConn struct {
	net.Conn
	release func()
}

func (c *fairConn) Close() error {
	c.release()
	return c.Conn.Close()
}
