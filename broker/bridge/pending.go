package bridge

// Accepted connections before their hello has arrived. Their number is bounded, in total and per address.

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

const (
	maxPendingConns   = 64 // in total,
	maxPendingPerAddr = 16 // and from one address
)

// pendingConn is a connection before its hello has arrived.
type pendingConn struct {
	conn          net.Conn
	remote        netip.AddrPort
	authenticated bool // has a certificate that we accept; pendingConns.mu guards it
}

// pendingConns are all such connections.
type pendingConns struct {
	mu    sync.Mutex // guards conns, and authenticated of each
	conns []*pendingConn
}

// addConn adds a connection. At a limit it closes and returns the oldest connection that is not authenticated, so that
// idle connections keep no peer out. It is the new connection if all the older ones are authenticated.
func (p *pendingConns) addConn(c *pendingConn) (closed *pendingConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sameAddr := func(o *pendingConn) bool { return o.remote.Addr() == c.remote.Addr() }
	count := 0
	for _, o := range p.conns {
		if sameAddr(o) {
			count++
		}
	}
	p.conns = append(p.conns, c)
	if perAddr := count >= maxPendingPerAddr; perAddr || len(p.conns) > maxPendingConns {
		i := slices.IndexFunc(p.conns, func(o *pendingConn) bool { return !o.authenticated && (!perAddr || sameAddr(o)) })
		closed = p.conns[i]
		p.conns = slices.Delete(p.conns, i, i+1)
		closed.conn.Close()
	}
	return closed
}

func (p *pendingConns) markAuthenticated(c *pendingConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.authenticated = true
}

func (p *pendingConns) removeConn(c *pendingConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = slices.DeleteFunc(p.conns, func(o *pendingConn) bool { return o == c })
}
