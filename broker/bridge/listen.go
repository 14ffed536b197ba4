package bridge

// Connections from peers, until it is known who they are. What is not authenticated yet is bounded
// in number and time.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/link"
)

const (
	maxPendingConns   = 64 // connections whose hello did not come yet,
	maxPendingPerAddr = 16 // and from one address
)

// pendingConn is a connection whose hello did not come yet.
type pendingConn struct {
	conn          net.Conn
	remote        netip.AddrPort
	authenticated bool // has a certificate that we accept; strangers.mu guards it
}

// pendingConns are all of them, the oldest first.
type pendingConns struct {
	mu    sync.Mutex
	conns []*pendingConn
}

// addConn adds a stranger. At a limit the oldest without certificate has to go, so that idle connections
// keep nobody out: it is closed and returned. It is the new one if all others have certificates.
func (s *pendingConns) addConn(n *pendingConn) (gone *pendingConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := func(o *pendingConn) bool { return o.remote.Addr() == n.remote.Addr() }
	count := 0
	for _, o := range s.conns {
		if same(o) {
			count++
		}
	}
	s.conns = append(s.conns, n)
	if crowd := count >= maxPendingPerAddr; crowd || len(s.conns) > maxPendingConns {
		i := slices.IndexFunc(s.conns, func(o *pendingConn) bool { return !o.authenticated && (!crowd || same(o)) })
		gone = s.conns[i]
		s.conns = slices.Delete(s.conns, i, i+1)
		gone.conn.Close()
	}
	return gone
}

func (s *pendingConns) markAuthenticated(n *pendingConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.authenticated = true
}

func (s *pendingConns) removeConn(n *pendingConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = slices.DeleteFunc(s.conns, func(o *pendingConn) bool { return o == n })
}

// ensureListener sees to it that the configured port is listened on. Another port is opened before the old
// one is closed; sessions do not notice. b.mu is held.
func (b *Bridge) ensureListener() error {
	port := b.config.Load().ListenPort
	if b.listener != nil && b.port == port {
		return nil
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(b.ctx, "tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return fmt.Errorf("listen for peers: %w", err)
	}
	if b.listener != nil {
		b.listener.Close()
	}
	b.listener, b.port = l, port
	b.log.Info("listening for peers", "address", l.Addr())
	b.wg.Go(func() { b.acceptLoop(l) })
	return nil
}

// Addr is what is listened on; nil when nothing is.
func (b *Bridge) Addr() net.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listener == nil {
		return nil
	}
	return b.listener.Addr()
}

func (b *Bridge) acceptLoop(l net.Listener) {
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) || b.ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return
		case err != nil: // out of file descriptors, most likely
			select {
			case <-time.After(100 * time.Millisecond):
			case <-b.ctx.Done():
			}
			continue
		}
		remote := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		n := &pendingConn{conn: conn, remote: netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())}
		gone := b.pending.addConn(n)
		if gone != nil {
			b.refused[RefusedLimit].Add(1)
		}
		if gone != n {
			b.wg.Go(func() { b.serveInbound(n) })
		}
	}
}

// serveInbound serves one connection from a peer until its end.
func (b *Bridge) serveInbound(n *pendingConn) {
	defer n.conn.Close()
	defer context.AfterFunc(b.ctx, func() { n.conn.Close() })()
	p, s, theirs, err := b.identifyPeer(n)
	b.pending.removeConn(n)
	if err != nil {
		b.countRefusal(err)
		if p != nil {
			p.noteRefusal(err)
		}
		return
	}
	if p != nil && p.attachSession(s, theirs) {
		s.run()
		p.detachSession(s, s.cause)
	}
}

// identifyPeer finds out which peer is at the other end. The peer speaks first, also one that is known
// by its certificate: a dialler does so at once, and learns from our hello that it is welcome.
// With an error, the peer is the one that was refused, if it is known.
func (b *Bridge) identifyPeer(n *pendingConn) (*peer, *session, *hello, error) {
	remote, start := n.remote, time.Now()
	tuneTCP(n.conn)
	raw := newBatchConn(n.conn, b.timing.write)
	raw.SetDeadline(start.Add(b.timing.tls))
	c := b.credentials.Load()
	if c == nil { // not told yet: neither refuse nor trust
		return nil, nil, nil, nil
	}
	auto := b.config.Load().AutoConnect && c.Roots != nil
	conn, links, names, err := acceptTLS(b.ctx, c, raw, remote.String(), b.table.Load().peers, auto)
	if err != nil {
		return nil, nil, nil, err
	}
	raw.SetDeadline(start.Add(b.timing.handshake))
	if !c.Unencrypted {
		b.pending.markAuthenticated(n)
	}
	theirs, err := readHello(conn)
	if err != nil {
		return nil, nil, nil, newRefusal(RefusedHello, "hello of %s: %w", remote, err)
	}
	var p *peer
	for _, p = range links {
		if err = p.checkHello(theirs); err == nil {
			break
		}
	}
	switch {
	case p == nil && !c.Unencrypted:
		if f := b.config.Load().OnUnknown; f != nil {
			f(link.UnknownPeer{Announcement: theirs.Announcement, Names: names, Remote: remote})
		}
		return nil, nil, nil, newRefusal(RefusedUnknown, "%s %v announces %s: no link for it yet", remote, names, theirs.Address)
	case p == nil || err != nil && len(links) > 1:
		return nil, nil, nil, newRefusal(RefusedUnknown, "%s announces cluster address %s: no link for it", remote, theirs.Address)
	case err != nil:
		return p, nil, nil, err
	case theirs.stream > 0 && theirs.stream >= b.config.Load().Streams:
		return p, nil, nil, newRefusal(RefusedLimit, "%s dials stream %d, of %d", remote, theirs.stream, b.config.Load().Streams)
	}
	ours, flags, err := p.helloFrame(theirs.stream)
	if err == nil {
		_, err = conn.Write(ours)
	}
	if err == nil && theirs.flags&flagKeepalive != 0 {
		_, _, err = readFrame(conn) // a ping: see flagKeepalive
	}
	if err != nil {
		return p, nil, nil, newRefusal(RefusedHello, "peer does not accept our hello: %s", shortReason(err))
	}
	return p, newSession(p, conn, raw, true, theirs.stream, flags, theirs), theirs, nil
}

// countRefusal counts a refused connection, and tells of it now and then.
func (b *Bridge) countRefusal(err error) {
	var r *refusal
	if !errors.As(err, &r) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		return // closed without a word: a load balancer looks whether we are there; or by us, see strangers
	}
	b.refused[r.Refusal].Add(1)
	b.refuseMu.Lock()
	tell := b.refuseLog.allow(b.now())
	b.refuseMu.Unlock()
	if tell {
		b.log.Warn("connection refused", "reason", r.Refusal.String(), "error", err)
	}
}

// setUserTimeout sets TCP_USER_TIMEOUT (tcp(7)). Without it a dead peer is only noticed later.
func setUserTimeout(conn *net.TCPConn, d time.Duration) {
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		})
	}
}
