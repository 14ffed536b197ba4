package wireguard

// Control connections that peers dial.

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// channelListener listens on a local cluster address.
type channelListener struct {
	net.Listener
	done chan struct{} // closed by the accepting goroutine at its end
}

// listen listens on a local cluster address. c.mu is held.
func (c *channels) listen(local netip.Addr) (*channelListener, error) {
	socket, err := c.system.Listen(c.device, local)
	if err != nil {
		return nil, err
	}
	l := &channelListener{Listener: socket}
	c.wg.Go(func() { c.acceptConns(l) })
	return l, nil
}

// acceptConns accepts connections until the listener is closed.
func (c *channels) acceptConns(l *channelListener) {
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			c.admit(conn)
		case isClosed(err) || c.ctx.Err() != nil:
			return
		default: // out of file descriptors, most likely
			select {
			case <-time.After(100 * time.Millisecond):
			case <-c.ctx.Done():
			}
		}
	}
}

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }

// admit gives a connection to the channel of its source, before a byte of it is read. What comes from any other source,
// or too often, is dropped.
func (c *channels) admit(conn net.Conn) {
	source, local := sourceOf(conn), addrOf(conn.LocalAddr())
	ch := c.table.Load().sources[source]
	if ch == nil || !ch.isLocal(local) {
		c.refusals.CountError(hello.NewRefusal(hello.RefusedUnknown,
			"%s connects to the control channel at %s: no link has this address", source, local))
		dropConn(conn)
		return
	}
	if !ch.arrivals.Allow() || !ch.addPending(conn) {
		c.refusals.Count(hello.RefusedLimit)
		dropConn(conn)
		return
	}
	c.wg.Go(func() { ch.serveInbound(conn) })
}

// addPending adds a connection that waits for its hello. If there are many, the oldest one makes room.
func (ch *channel) addPending(conn net.Conn) bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.closed {
		return false
	}
	if len(ch.pending) == maxPendingConns {
		dropConn(ch.pending[0])
		ch.pending = slices.Delete(ch.pending, 0, 1)
		ch.refusals.Count(hello.RefusedLimit)
	}
	ch.pending = append(ch.pending, conn)
	return true
}

func (ch *channel) removePending(conn net.Conn) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.pending = slices.DeleteFunc(ch.pending, func(o net.Conn) bool { return o == conn })
}

// serveInbound serves one connection that the peer has dialled, until its end.
func (ch *channel) serveInbound(conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ch.ctx, func() { conn.Close() })()
	theirs, err := ch.exchangeHellos(conn)
	ch.removePending(conn)
	if err != nil {
		ch.refusePeer(err)
		return
	}
	k := newChannelConn(ch, conn, true, theirs)
	if ch.attach(k, theirs) {
		k.run()
		ch.detach(k)
	}
}

// exchangeHellos reads the hello of the peer, answers it, and reads the ping that says that the peer accepts the
// answer.
func (ch *channel) exchangeHellos(conn net.Conn) (*hello.Hello, error) {
	conn.SetDeadline(time.Now().Add(ch.timing.hello))
	theirs, err := hello.ReadHello(conn, hello.MaxLegacyPayload)
	if err == nil {
		err = ch.checkHello(theirs)
	}
	if err != nil {
		return nil, refuseHello("no hello", err)
	}
	frame, err := ch.helloFrame(theirs)
	if err == nil {
		_, err = conn.Write(frame)
	}
	if refused := ch.checkTerms(theirs); refused != nil {
		return nil, refused // our hello has told the peer which term we follow
	}
	if err == nil {
		_, _, err = hello.ReadFrame(conn, hello.MaxLegacyPayload)
	}
	if err != nil {
		return nil, refuseHello("the peer does not accept our hello", err)
	}
	return theirs, nil
}

// refuseHello makes a refusal of an error, unless it is one or the connection is closed. The text has no ports: the
// same failure shows in the same words.
func refuseHello(what string, err error) error {
	if _, refused := errors.AsType[*hello.RefusalError](err); refused || isGone(err) {
		return err
	}
	return hello.NewRefusal(hello.RefusedHello, "%s: %s", what, describeFailure(err))
}
