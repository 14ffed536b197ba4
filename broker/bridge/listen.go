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
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mostStrangers        = 64 // connections that are not authenticated yet,
	mostStrangersPerAddr = 16 // and from one address
)

// UnknownPeer is an authenticated peer that no link is for.
type UnknownPeer struct {
	Announcement
	Names  []string // of its certificate
	Remote netip.AddrPort
}

// strangers counts connections that are not authenticated yet.
type strangers struct {
	mu    sync.Mutex
	total int
	from  map[netip.Addr]int
}

func (s *strangers) enter(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= mostStrangers || s.from[a] >= mostStrangersPerAddr {
		return false
	}
	s.total++
	s.from[a]++
	return true
}

func (s *strangers) leave(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.from[a]--; s.from[a] == 0 {
		delete(s.from, a)
	}
}

// listen sees to it that the configured port is listened on. Another port is opened before the old
// one is closed; sessions do not notice. b.mu is held.
func (b *Bridge) listen() error {
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
	b.wg.Go(func() { b.accept(l) })
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

func (b *Bridge) accept(l net.Listener) {
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
		remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
		if !b.strangers.enter(remote.Addr()) {
			b.refused[RefusedLimit].Add(1)
			conn.Close()
			continue
		}
		b.wg.Go(func() { b.meet(conn, remote) })
	}
}

// meet serves one connection from a peer until its end.
func (b *Bridge) meet(raw net.Conn, remote netip.AddrPort) {
	defer raw.Close()
	defer context.AfterFunc(b.ctx, func() { raw.Close() })()
	p, s, theirs, err := b.identify(raw, remote)
	b.strangers.leave(remote.Addr())
	if err != nil {
		b.refuse(err)
		if p != nil {
			p.refused(err)
		}
		return
	}
	if p != nil {
		p.serve(s, theirs)
	}
}

// identify finds out which peer is at the other end. The peer speaks first, also one that is known
// by its certificate: a dialler does so at once, and learns from our hello that it is welcome.
// With an error, the peer is the one that was refused, if it is known.
func (b *Bridge) identify(raw net.Conn, remote netip.AddrPort) (*peer, *session, *hello, error) {
	tune(raw)
	raw.SetDeadline(time.Now().Add(b.timing.handshake))
	c := b.credentials.Load()
	if c == nil { // not told yet: neither refuse nor trust
		return nil, nil, nil, nil
	}
	auto := b.config.Load().AutoConnect
	conn, links, names, err := c.accept(b.ctx, raw, remote.String(), b.table.Load().peers, auto)
	if err != nil {
		return nil, nil, nil, err
	}
	theirs, err := readHello(conn)
	if err != nil {
		return nil, nil, nil, refuse(RefusedHello, "hello of %s: %w", remote, err)
	}
	var p *peer
	for _, p = range links {
		if err = p.check(theirs); err == nil {
			break
		}
	}
	switch {
	case p == nil && c != plain:
		if f := b.config.Load().OnUnknown; f != nil {
			f(UnknownPeer{theirs.Announcement, names, remote})
		}
		return nil, nil, nil, refuse(RefusedUnknown, "%s %v announces %s: no link for it yet", remote, names, theirs.Address)
	case p == nil || err != nil && len(links) > 1:
		return nil, nil, nil, refuse(RefusedUnknown, "%s announces cluster address %s: no link for it", remote, theirs.Address)
	case err != nil:
		return p, nil, nil, err
	}
	ours, err := p.hello()
	if err == nil {
		_, err = conn.Write(ours)
	}
	if err == nil && theirs.flags&flagKeepalive != 0 {
		_, _, err = readFrame(conn) // a ping: see flagKeepalive
	}
	if err != nil {
		return p, nil, nil, refuse(RefusedHello, "peer does not accept our hello: %s", short(err))
	}
	return p, newSession(p, conn, raw, true, theirs), theirs, nil
}

// refuse counts a refused connection, and tells of it now and then.
func (b *Bridge) refuse(err error) {
	var r *refusal
	if !errors.As(err, &r) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return // closed without a word: a load balancer looks whether we are there
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
