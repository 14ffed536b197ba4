package wireguard

// A control connection after the hellos: pings, and hellos that change what was announced.

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// Causes of the end of a connection.
var (
	errReplaced = errors.New("replaced by a newer connection")
	errSilence  = errors.New("the peer is silent")
)

const (
	frameRate  = 50 // frames in a second that are read of a peer; it sends two or three
	frameBurst = 100
	lateBytes  = 20 * time.Millisecond // for bytes that have arrived while this process had no processor
)

// channelConn is a connection with the peer. Two goroutines belong to it: serveFrames, which reads, and writeFrames.
type channelConn struct {
	ch        *channel
	conn      net.Conn
	accepted  bool          // else dialled
	instance  uint64        // of the peer's process
	services  bool          // both ends say which mesh services they offer
	startedAt time.Duration // in the channels' time
	heard     atomic.Int64  // when the last byte came, in nanoseconds of the channels' time
	limit     *rate.Limiter // of frames
	lists     hello.ServiceReader

	due struct { // what the writer has to send
		pong     atomic.Pointer[uint64] // nil: none
		update   atomic.Bool            // our hello
		services atomic.Bool            // our list of mesh services
	}
	kick chan struct{} // wakes the writer

	once  sync.Once
	done  chan struct{}
	cause error // of the end; read after done
}

func newChannelConn(ch *channel, conn net.Conn, accepted bool, theirs *hello.Hello) *channelConn {
	k := &channelConn{
		ch: ch, conn: conn, accepted: accepted, instance: theirs.Instance, startedAt: ch.now(),
		limit: rate.NewLimiter(frameRate, frameBurst), kick: make(chan struct{}, 1), done: make(chan struct{}),
	}
	k.heard.Store(int64(k.startedAt))
	k.services = theirs.Flags&hello.FlagServices != 0
	k.due.services.Store(k.services)
	return k
}

// yieldsTo tells whether both ends keep the old connection, although k is newer: they have dialled at once, and the
// one of the end with the smaller address stays.
func (k *channelConn) yieldsTo(old *channelConn) bool {
	preferred := func(c *channelConn) bool { return c.accepted != c.ch.isInitiator() }
	silent := k.ch.now() - time.Duration(old.heard.Load())
	return preferred(old) && !preferred(k) && old.instance == k.instance && silent < 2*k.ch.timing.ping
}

// serveFrames serves the connection until its end. The caller has attached it to the channel.
func (k *channelConn) serveFrames() {
	written := make(chan struct{})
	go func() {
		defer close(written)
		k.close(k.writeFrames())
	}()
	k.close(k.readFrames())
	<-written
}

// close ends the connection; the cause of the first call counts.
func (k *channelConn) close(cause error) {
	k.once.Do(func() {
		k.cause = cause
		close(k.done)
		dropConn(k.conn)
	})
}

func (k *channelConn) kickWriter() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// Read reads from the connection. A peer that sends no byte for long enough is an error.
func (k *channelConn) Read(b []byte) (int, error) {
	k.conn.SetReadDeadline(time.Now().Add(k.ch.timing.silence))
	n, err := k.conn.Read(b)
	if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		k.conn.SetReadDeadline(time.Now().Add(lateBytes))
		n, err = k.conn.Read(b)
	}
	switch {
	case n > 0:
		k.heard.Store(int64(k.ch.now()))
		k.ch.endShared(k)
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = errSilence
	}
	return n, err
}

// readFrames handles frames until an error. A peer that sends more than it should has to wait.
func (k *channelConn) readFrames() error {
	for {
		typ, payload, err := hello.ReadFrame(k, hello.MaxLegacyPayload)
		if err != nil {
			return err
		}
		if err := k.handleFrame(typ, payload); err != nil {
			k.ch.refusals.CountError(err)
			return err
		}
		if err := k.limit.Wait(k.ch.ctx); err != nil {
			return err
		}
	}
}

// handleFrame handles a frame. It skips types that it does not know.
func (k *channelConn) handleFrame(typ byte, payload []byte) error {
	switch {
	case typ == hello.FramePing && len(payload) == 8:
		k.due.pong.Store(new(binary.BigEndian.Uint64(payload)))
		k.kickWriter()
	case typ == hello.FramePong && len(payload) == 8:
		rtt := k.ch.now() - time.Duration(binary.BigEndian.Uint64(payload))
		k.ch.changeState(func() {
			if k.ch.conn == k {
				k.ch.rtt = hello.SmoothRTT(k.ch.rtt, rtt)
			}
		})
	case typ == hello.FrameHello:
		return k.ch.receiveHello(payload)
	case typ == hello.FrameServices && k.services:
		if list := k.lists.AddFrame(payload); list != nil {
			k.ch.receiveServices(k, list)
		}
	case typ == hello.FramePacket:
		return hello.NewRefusal(hello.RefusedHello, "%s sends a packet in the control channel", sourceOf(k.conn))
	}
	return nil
}

// writeFrames sends pings, and what is due, until the end of the connection.
func (k *channelConn) writeFrames() error {
	tick := time.NewTicker(k.ch.timing.ping)
	defer tick.Stop()
	var services [][]byte // frames of the list that are left: pings and hellos do not wait for all of them
	for ping := true; ; {
		var out []byte
		if ping {
			out = hello.AppendFrame64(make([]byte, 0, 32), hello.FramePing, uint64(k.ch.now()))
		}
		if pong := k.due.pong.Swap(nil); pong != nil {
			out = append(out, hello.AppendFrame64(make([]byte, 0, 16), hello.FramePong, *pong)...)
		}
		if k.due.update.Swap(false) {
			frame, err := k.ch.helloFrame(nil)
			if err != nil {
				return err
			}
			out = append(out, frame...)
		}
		if k.due.services.Swap(false) {
			services = k.ch.ownServices.Load().AppendFrames(nil, k.ch.local)
		}
		if len(services) > 0 {
			out, services = append(out, services[0]...), services[1:]
		}
		if len(out) > 0 {
			k.conn.SetWriteDeadline(time.Now().Add(k.ch.timing.silence))
			if _, err := k.conn.Write(out); err != nil {
				return err
			}
		}
		if ping = false; len(services) > 0 {
			k.kickWriter()
		}
		select {
		case <-k.done:
			return nil
		case <-k.kick:
		case <-tick.C:
			ping = true
		}
	}
}
