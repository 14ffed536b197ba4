package bridge

// Connections that peers dial: the listener, and how an accepted connection becomes a session of a peer.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// listener accepts connections from peers.
type listener struct {
	*shared
	router  *router
	pending pendingConns
	reports unknownReports

	mu     sync.Mutex   // guards the fields below; it is held while a port is opened, but on no path of packets
	socket net.Listener // nil: not listening
	port   uint16       // that was configured for socket
}

// openPort ensures that the configured port is listened on. It opens another port before it closes the old one;
// sessions do not notice.
func (l *listener) openPort() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	port := l.config.Load().ListenPort
	if l.socket != nil && l.port == port {
		return nil
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	socket, err := lc.Listen(l.ctx, "tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return fmt.Errorf("listen for peers: %w", err)
	}
	if l.socket != nil {
		l.socket.Close()
	}
	l.socket, l.port = socket, port
	l.log.Info("listening for peers", "address", socket.Addr())
	l.wg.Go(func() { l.acceptLoop(socket) })
	return nil
}

// movePort opens another port if one is open and another one is configured.
func (l *listener) movePort() error {
	if l.addr() == nil {
		return nil
	}
	return l.openPort()
}

// addr returns the address of the socket; nil: not listening.
func (l *listener) addr() net.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.socket == nil {
		return nil
	}
	return l.socket.Addr()
}

func (l *listener) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.socket != nil {
		l.socket.Close()
	}
}

// acceptLoop accepts connections until the socket is closed.
func (l *listener) acceptLoop(socket net.Listener) {
	for {
		conn, err := socket.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) || l.ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return
		case err != nil: // out of file descriptors, most likely
			select {
			case <-time.After(100 * time.Millisecond):
			case <-l.ctx.Done():
			}
			continue
		}
		c := newPendingConn(conn)
		closed := l.pending.addConn(c)
		if closed != nil {
			l.refusals.Count(hello.RefusedLimit)
		}
		if closed != c {
			l.wg.Go(func() { l.serveInbound(c) })
		}
	}
}

// serveInbound serves one connection from a peer until its end.
func (l *listener) serveInbound(c *pendingConn) {
	defer c.conn.Close()
	defer context.AfterFunc(l.ctx, func() { c.conn.Close() })()
	p, s, theirs, err := l.handshake(c)
	l.pending.removeConn(c)
	if err != nil {
		l.countRefusal(err)
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

// handshake makes an accepted connection a session of a peer. The peer sends its hello first, even if its certificate
// identifies it: a dialler does so at once, and our hello tells it that it is accepted. With an error, the peer is the
// refused one, if it is known. Neither a peer nor an error is returned while there are no credentials.
func (l *listener) handshake(c *pendingConn) (*peer, *session, *hello.Hello, error) {
	remote := c.remote
	tuneTCP(c.conn)
	raw := newBatchConn(c.conn, l.timing.write)
	raw.SetDeadline(time.Now().Add(l.timing.tls))
	creds := l.credentials.Load()
	if creds == nil {
		return nil, nil, nil, nil
	}
	auto := l.config.Load().AutoConnect && creds.Roots != nil
	raw.guard = newGuard(&l.pending, c)
	end, err := acceptTLS(l.ctx, creds, raw, remote.String(), l.router.table.Load().peers, auto)
	if err != nil {
		return nil, nil, nil, err
	}
	if end.authenticated {
		limit := 2 * l.config.Load().Streams * max(1, len(end.candidates))
		if l.pending.authenticate(c, hashNames(end.names), limit) != nil {
			l.refusals.Count(hello.RefusedLimit)
		}
	}
	conn, answer := end.conn, l.timing.hello+2*measureRTT(c.conn)
	raw.SetDeadline(time.Now().Add(answer))
	theirs, err := hello.ReadHello(conn, hello.MaxPayload)
	if err != nil {
		return nil, nil, nil, hello.NewRefusal(hello.RefusedHello, "hello of %s: %w", remote, err)
	}
	p, err := l.identifyPeer(theirs, end, remote)
	if err != nil {
		return p, nil, nil, err
	}
	ours, flags, err := p.helloFrame(theirs.Stream, theirs)
	if err == nil {
		_, err = conn.Write(ours)
	}
	if refused := p.checkTerms(theirs); err == nil && refused != nil {
		return p, nil, nil, refused // our hello has told the peer which term we follow
	}
	if err == nil && theirs.Flags&hello.FlagKeepalive != 0 {
		raw.SetDeadline(time.Now().Add(answer))
		_, _, err = hello.ReadFrame(conn, hello.MaxPayload) // a ping: see hello.FlagKeepalive
	}
	if err != nil {
		return p, nil, nil, hello.NewRefusal(hello.RefusedHello, "peer does not accept our hello: %s", shortReason(err))
	}
	s := newSession(p, conn, raw, true, theirs.Stream, flags, theirs)
	s.authorization = end.authorization
	return p, s, theirs, nil
}

// identifyPeer finds the peer with this hello among the candidates. With an error, the peer is the refused one, if it
// is known.
func (l *listener) identifyPeer(theirs *hello.Hello, end inboundEnd, remote netip.AddrPort) (*peer, error) {
	var p *peer
	var err error
	for _, p = range end.candidates {
		if err = theirs.CheckAddress(p.Local, p.Addresses); err == nil {
			break
		}
	}
	config := l.config.Load()
	switch {
	case p == nil && end.authenticated:
		if f := config.OnUnknown; f != nil && l.reports.allow(hashNames(end.names), l.timing.reportInterval) {
			f(link.UnknownPeer{Announcement: theirs.Announcement, Names: usableNames(end.names), Remote: remote})
		}
		return nil, hello.NewRefusal(hello.RefusedUnknown, "%s %s announces %s: no link for it yet",
			remote, quoteNames(end.names), theirs.Address)
	case p == nil || err != nil && len(end.candidates) > 1:
		return nil, hello.NewRefusal(hello.RefusedUnknown,
			"%s announces cluster address %s: no link for it", remote, theirs.Address)
	case err != nil:
		return p, err
	case theirs.Stream > 0 && theirs.Stream >= config.Streams:
		return p, hello.NewRefusal(hello.RefusedLimit,
			"%s dials stream %d, of %d", remote.Addr(), theirs.Stream, config.Streams)
	}
	return p, nil
}
