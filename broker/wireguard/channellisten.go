package wireguard

// Control connections that peers dial.

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// openListener listens on a local cluster address. c.mu is held.
func (c *channels) openListener(local netip.Addr) (net.Listener, error) {
	l, err := c.system.Listen(c.device, local)
	if err != nil {
		return nil, err
	}
	c.wg.Go(func() { c.acceptConns(l) })
	return l, nil
}

// acceptConns accepts connections until the listener is closed.
func (c *channels) acceptConns(l net.Listener) {
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			c.admitConn(conn)
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

// admitConn gives a connection to the channel of its source, before a byte of it is read. What comes from any other
// source, or too often, is dropped.
func (c *channels) admitConn(conn net.Conn) {
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
	c.wg.Go(inbound{ch, conn}.serveConn)
}

// inbound is a connection that the peer of a channel has dialled.
type inbound struct {
	*channel
	conn net.Conn
}

// serveConn serves the connection until its end.
func (in inbound) serveConn() {
	ch, conn := in.channel, in.conn
	defer conn.Close()
	defer context.AfterFunc(ch.ctx, func() { conn.Close() })()
	theirs, err := in.exchangeHellos()
	ch.removePending(conn)
	if err != nil {
		ch.refusePeer(err)
		return
	}
	k := newChannelConn(ch, conn, true, theirs)
	if ch.attachConn(k, theirs) {
		k.serveFrames()
		ch.detachConn(k)
	}
}

// exchangeHellos reads the hello of the peer, answers it, and reads the ping that says that the peer accepts the
// answer.
func (in inbound) exchangeHellos() (*hello.Hello, error) {
	ch, conn := in.channel, in.conn
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
		in.awaitEnd(ch.timing.renew)
		ch.endRobbery()
		return nil, refused
	}
	if err == nil {
		_, _, err = hello.ReadFrame(conn, hello.MaxLegacyPayload)
	}
	if err != nil {
		return nil, refuseHello("the peer does not accept our hello", err)
	}
	return theirs, nil
}

// awaitEnd gives our hello the time to leave the device: it tells the peer which term we follow. A peer that has read
// it ends the connection, or is silent.
func (in inbound) awaitEnd(limit time.Duration) {
	in.conn.SetDeadline(time.Now().Add(limit))
	_, _ = io.CopyN(io.Discard, in.conn, hello.MaxLegacyPayload) // it ends with an error
}

// refuseHello makes a refusal of an error, unless it is one or the connection is closed. The text has no ports: the
// same failure shows in the same words.
func refuseHello(what string, err error) error {
	if _, refused := errors.AsType[*hello.RefusalError](err); refused || isGone(err) {
		return err
	}
	return hello.NewRefusal(hello.RefusedHello, "%s: %s", what, describeFailure(err))
}
