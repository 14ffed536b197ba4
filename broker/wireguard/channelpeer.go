package wireguard

// The control channel of one link: which connection it has, and what is concluded from that.

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// channelState says what the control channel tells of the peer.
type channelState string

// The states.
const (
	channelUntried channelState = ""      // nothing yet: handshakes alone tell whether the link is Up
	channelAlive   channelState = "alive" // the peer answers
	channelLost    channelState = "lost"  // the peer has answered and does so no more, or it is not the right one: Down
	channelPlain   channelState = "plain" // nothing listens: a plain peer, a former kubelink, or one that starts again
)

// channelStatus is what the control channel knows of the peer.
type channelStatus struct {
	State     channelState
	Reason    string             // of channelLost, one line
	Refused   string             // why this end refused the peer's last connection; empty since the channel is alive
	Note      string             // what to know in any State, one line; empty: nothing
	RTT       time.Duration      // smoothed; 0: unknown
	Announced *link.Announcement // the latest that counts, in any State; nil: none yet
	Offers    *mesh.Offers       // mesh services of the peer, in any State; nil: it cannot say, or did not yet
	Dialled   int                // connections that this end has dialled, 0 or 1,
	Accepted  int                // and that the peer has dialled

	Superseded time.Time // when the peer said that it follows another broker of this cluster; zero: it does not
	Renew      time.Time // since when the device has to have a new session; zero: never
	Robbed     bool      // that one is with the broker that had it before another one has taken it
	Silent     time.Time // that one is needed if there was no handshake since then; zero: in any case
}

const (
	maxPendingConns = 2 // of a peer, before their hello
	arrivalRate     = 5 // connections that a peer may make in a second,
	arrivalBurst    = 20
	manyFailures    = 3 // dials that failed before users are told that a peer does not answer
)

// linkEnds are a link and its ends. They never change.
type linkEnds struct {
	link             string
	key              mesh.PublicKey // of the peer
	local, addresses mesh.Prefixes  // of this end, and of the peer
}

// channel is the control channel of a link.
type channel struct {
	*channels
	linkEnds
	ctx      context.Context
	cancel   context.CancelFunc
	arrivals *rate.Limiter
	wakeup   chan struct{} // of the dial loop

	mu       sync.Mutex // guards the fields below; nothing waits under it
	closed   bool
	services mesh.Prefixes            // of this end
	inbound  struct{ own, peer bool } // which ends have no endpoint of the other one
	conn     *channelConn             // nil: none
	pending  []net.Conn               // accepted, before their hello; the oldest first
	leader   hello.Leader
	received hello.Received
	offered  hello.ReceivedServices
	rivalry
	conclusion
	redial
}

// conclusion is a part of channel. Its lock guards it.
type conclusion struct {
	state   channelState
	heard   time.Duration // when the peer gave the last sign of life
	rtt     time.Duration // 0: unknown
	lost    hello.SettledReason
	refused hello.SettledReason
	trouble hello.SettledReason // of dials to a peer that was never alive
}

func newChannel(c *channels, spec *mesh.Peer) *channel {
	ch := &channel{
		channels: c, linkEnds: linkEnds{spec.Link, spec.Key, spec.Local, spec.Addresses},
		arrivals: rate.NewLimiter(arrivalRate, arrivalBurst), wakeup: make(chan struct{}, 1),
		redial: redial{pause: c.timing.backoff},
	}
	ch.ctx, ch.cancel = context.WithCancel(c.ctx)
	return ch
}

// canServe tells whether the channel, as it is, can serve spec. Another key is another peer.
func (ch *channel) canServe(spec *mesh.Peer) bool {
	return ch.key == spec.Key && slices.Equal(ch.local, spec.Local) && slices.Equal(ch.addresses, spec.Addresses)
}

// isInitiator tells whether this end dials at once.
func (ch *channel) isInitiator() bool {
	return ch.local.First().Addr().Less(ch.addresses.First().Addr())
}

// setOwn changes what our hello tells: the service networks, and whether this end has no endpoint of the peer.
func (ch *channel) setOwn(services mesh.Prefixes, inbound bool) {
	ch.mu.Lock()
	same := slices.Equal(ch.services, services) && ch.inbound.own == inbound
	ch.services, ch.inbound.own = services, inbound
	ch.mu.Unlock()
	if !same {
		ch.sendAnnouncement()
	}
}

// sendAnnouncement sends our changed announcement, if there is a connection.
func (ch *channel) sendAnnouncement() {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.conn != nil {
		ch.conn.due.update.Store(true)
		ch.conn.kickWriter()
	}
}

// helloFrame returns our hello as a frame: the answer to theirs, if that is not nil.
func (ch *channel) helloFrame(theirs *hello.Hello) ([]byte, error) {
	h := makeHello(ch.own.Load(), ch.instance)
	h.Address = ch.local.First()
	ch.mu.Lock()
	h.ServiceCIDR = ch.services.First()
	if ch.inbound.own {
		h.Flags |= hello.FlagInbound
	}
	h.Terms.Followed = ch.leader.FollowedTerm(theirs, ch.moment())
	ch.mu.Unlock()
	payload, err := h.AppendPayload(nil)
	if err != nil {
		return nil, err
	}
	return hello.AppendFrame(nil, hello.FrameHello, payload), nil
}

// moment is what hello.Leader has to know. ch.mu is held.
func (ch *channel) moment() hello.Moment {
	return hello.Moment{
		Now: ch.now(), Memory: ch.timing.termMemory,
		Connected: ch.conn != nil && ch.conn.instance == ch.leader.Broker,
	}
}

// checkHello returns the reason to refuse the sender of a hello.
func (ch *channel) checkHello(h *hello.Hello) error {
	if err := h.CheckAddress(ch.local, ch.addresses); err != nil {
		return err
	}
	if h.Flags&hello.FlagKeepalive == 0 {
		return hello.NewRefusal(hello.RefusedHello, "hello of %s: the peer answers no pings", h.Address.Addr())
	}
	return nil
}

// checkTerms returns the reason to refuse the sender of a hello for its terms.
func (ch *channel) checkTerms(h *hello.Hello) (refused error) {
	own := ch.own.Load().Term
	ch.changeState(func() {
		refused, _ = ch.leader.CheckTerms(h, own, ch.moment())
		if refused != nil && h.Terms.Followed > own {
			ch.stepAside(own, refused)
		} else if refused != nil && ch.state == channelLost { // the sender leaves the session: it counts no more
			ch.lostAt = ch.now()
		}
	})
	return refused
}

// changeState changes what the lock guards, and tells if the status is another one then.
func (ch *channel) changeState(f func()) {
	ch.mu.Lock()
	before := ch.makeStatus()
	f()
	after := ch.makeStatus()
	news := !ch.closed && before.isOther(&after)
	ch.mu.Unlock()
	if news && ch.changed != nil {
		ch.changed()
	}
}

// isOther tells whether both say something else to users. A round-trip time changes with each ping.
func (s channelStatus) isOther(o *channelStatus) bool {
	other := *o
	s.RTT, other.RTT = min(s.RTT, 1), min(other.RTT, 1)
	s.Dialled, s.Accepted = other.Dialled, other.Accepted
	return s != other
}

// currentStatus returns the status of the channel.
func (ch *channel) currentStatus() channelStatus {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.makeStatus()
}

// makeStatus makes the status of the channel. ch.mu is held.
func (ch *channel) makeStatus() channelStatus {
	st := channelStatus{
		State: ch.state, Refused: ch.refused.Shown, Note: ch.composeNote(), RTT: ch.rtt, Announced: ch.received.Announced,
		Offers: ch.offered.Offers,
	}
	st.Renew, st.Robbed, st.Silent = ch.renew, ch.robbed, ch.silent
	if ch.state == channelLost {
		st.Reason = ch.lost.Shown
	}
	if ch.isSuperseded(ch.own.Load().Term) {
		st.State, st.Reason, st.Superseded = channelLost, ch.why, ch.superseded
	}
	switch {
	case ch.conn == nil:
	case ch.conn.accepted:
		st.Accepted = 1
	default:
		st.Dialled = 1
	}
	return st
}

// composeNote says what to know of the peer in any state. ch.mu is held.
func (ch *channel) composeNote() string {
	if rival := ch.leader.RivalNote(ch.now()); rival != "" {
		return rival
	}
	switch {
	case ch.state == channelAlive && ch.inbound.own && ch.inbound.peer:
		return "spec.endpoint is Inbound at both ends: as soon as both devices are made anew, neither end connects; set " +
			"the endpoint at one of them"
	case !ch.hasTunnel(): // the link is Down, or waits for its peer: that has a reason of its own
	case ch.state == channelPlain && ch.received.Announced != nil:
		return "the peer's WireGuard is there and its kubelink is not: a loss of the link shows late"
	case ch.state == channelUntried && ch.failures >= manyFailures && ch.trouble.Shown != "":
		return fmt.Sprintf("no control channel with %s, TCP port %d (%s): if the peer is a kubelink, check the cluster "+
			"addresses at both ends, and firewalls; without it a loss of the link shows late",
			ch.addresses.First().Addr(), mesh.ControlPort, ch.trouble.Shown)
	}
	return ""
}

// concludeSilence concludes that the peer is lost, which has said nothing for long enough. It may have the session with
// another device by now. ch.mu is held.
func (ch *channel) concludeSilence() {
	first := ch.state != channelLost
	ch.concludeLoss(fmt.Sprintf("no answer for %s", ch.timing.silence))
	if first { // a session that was made since then is one with the peer's next process: it must not be forgotten
		ch.lostAt -= ch.timing.silence
	}
	if ch.isInitiator() { // handshakes of both ends at once would fail, and the next ones come 5 s later
		ch.renewLost(time.Now().Add(ch.lostAt - ch.now()))
	}
	ch.dialSoon()
	ch.due += ch.timing.renew
}

// endRobbery has the device make a new session with the broker that this end follows, if that is alive: another one has
// taken the session, and knows by now that it is superseded.
func (ch *channel) endRobbery() {
	ch.changeState(func() {
		if ch.state == channelAlive {
			ch.renewSession(true)
		}
	})
}

// concludeLoss concludes that the peer is lost. ch.mu is held.
func (ch *channel) concludeLoss(reason string) {
	if ch.state != channelLost {
		ch.lost.Reset()
		ch.lostAt = ch.now()
	}
	ch.lost.Change(reason)
	ch.state, ch.rtt = channelLost, 0
}

// checkSilence concludes that a peer without connection is lost when there was no sign of it for long enough.
func (ch *channel) checkSilence() {
	ch.changeState(func() {
		if ch.conn == nil && ch.state == channelAlive && ch.now() >= ch.heard+ch.timing.silence {
			ch.concludeSilence()
		}
	})
}

// attachConn makes k the connection of the channel; it replaces an older one. It returns false when the channel is
// closed, when another broker of the peer's cluster has a higher term, or when both ends have dialled at once and k is
// the connection that both ends give up.
func (ch *channel) attachConn(k *channelConn, h *hello.Hello) (attached bool) {
	ch.changeState(func() {
		if ch.closed || ch.leader.IsSuperseded(h, ch.moment()) || ch.conn != nil && k.yieldsTo(ch.conn) {
			return
		}
		attached = true
		if old := ch.conn; old != nil {
			old.close(errReplaced)
			ch.shared = old.instance != k.instance
		}
		ch.conn, ch.superseded = k, time.Time{}
		ch.receiveFacts(h)
		if !k.services {
			ch.offered.Forget()
		}
		ch.state, ch.heard, ch.failures = channelAlive, ch.now(), 0
		ch.lost.Reset()
		ch.refused.Reset()
		ch.trouble.Reset()
	})
	return attached
}

// detachConn notes the end of a connection. A peer that was silent is lost; one that has closed the connection has time
// to come back: its kubelink may start again, while packets pass.
func (ch *channel) detachConn(k *channelConn) {
	ch.changeState(func() {
		ch.leader.NoteEnd(k.instance, ch.now())
		if ch.conn != k { // replaced
			return
		}
		ch.conn = nil
		ch.heard = time.Duration(k.heard.Load())
		if k.cause == errSilence {
			ch.concludeSilence()
			return
		}
		ch.planRedial(ch.now() - k.startedAt)
	})
	ch.wakeDialer()
}

// endShared has the device make a new session, so that what another broker sends in an old one is void: it would lead
// the device back to that broker. The right one has just sent something on k, so the device knows where it is.
func (ch *channel) endShared(k *channelConn) {
	ch.mu.Lock()
	shared := ch.shared && ch.conn == k
	ch.mu.Unlock()
	if shared {
		ch.changeState(func() {
			ch.shared = false
			ch.renewSession(false)
		})
	}
}

// receiveFacts stores what a hello says of the peer. ch.mu is held.
func (ch *channel) receiveFacts(h *hello.Hello) {
	ch.leader.FollowSender(h, ch.now())
	ch.inbound.peer = h.Flags&hello.FlagInbound != 0
	ch.receiveAnnouncement(&h.Announcement)
}

// receiveAnnouncement stores what the peer announces. ch.mu is held.
func (ch *channel) receiveAnnouncement(a *link.Announcement) {
	if _, wait := ch.received.Take(a, ch.now(), ch.timing.announce); wait > 0 {
		ch.wg.Go(func() {
			if ch.pauseFor(wait) {
				ch.changeState(func() { ch.received.TakePending(ch.now()) })
			}
		})
	}
}

// pauseFor waits for a time, and returns false when the channel is closed meanwhile.
func (ch *channel) pauseFor(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ch.ctx.Done():
		return false
	}
}

// receiveHello handles a hello on a connection: the announcement of the peer has changed.
func (ch *channel) receiveHello(payload []byte) error {
	h, err := hello.ParsePayload(payload)
	if err != nil {
		return hello.AsRefusal(hello.RefusedHello, err)
	}
	if err = ch.checkHello(h); err == nil {
		err = ch.checkTerms(h)
	}
	if err != nil {
		return err
	}
	ch.changeState(func() { ch.receiveFacts(h) })
	return nil
}

// closeConnections ends the connection, and those that wait for their hello.
func (ch *channel) closeConnections(cause error) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.conn != nil {
		ch.conn.close(cause)
	}
	for _, conn := range ch.pending {
		dropConn(conn)
	}
}

// close ends the channel.
func (ch *channel) close() {
	ch.mu.Lock()
	ch.closed = true
	ch.mu.Unlock()
	ch.cancel()
	ch.closeConnections(errClosed)
}

// refusePeer counts a connection of the peer that failed, and notes why this end refused it.
func (ch *channel) refusePeer(err error) {
	if isGone(err) {
		return
	}
	ch.refusals.CountError(err)
	ch.changeState(func() {
		if ch.conn == nil {
			ch.refused.Change(err.Error())
		}
	})
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

// isLocal tells whether an address of this end is one that the peer may connect to.
func (ch *channel) isLocal(a netip.Addr) bool { return ch.local.SameFamily(a).Addr() == a }
