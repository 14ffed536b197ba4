package wireguard

// What is known of a peer of the device: its endpoint, its handshakes, and what the state of its links follows from.

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// peer is one peer of the device: all links with one key. It belongs to the worker.
type peer struct {
	key, preshared wgtypes.Key
	networks       []netip.Prefix // of all its links
	endpoint       endpoint
	links          []string

	current wgtypes.Peer // as the device said last; zero: the device does not have it
	signs
	waiting time.Time // since when a handshake is waited for
	greeted time.Time // when the device was made to start one, where there is no keepalive
	renewed time.Time // the last channelStatus.Renew that was looked at
	ended   time.Time // when the session was ended last, for a new one
	alone   time.Time // since when there was no session, by that; zero: there is one
	aside   bool      // the peer follows another broker of this cluster: the device only answers

	// Bytes when waiting began.
	rxBefore, txBefore int64
	counters           byteCounters
}

// signs are those that a peer has given.
type signs struct {
	remote    netip.AddrPort // where its last packet came from; zero: not known
	met       netip.AddrPort // where its last handshake came from; zero: there was none
	left      netip.AddrPort // where its last handshake from elsewhere came from; zero: there was none
	handshake time.Time      // of the device's clock: of the last handshake that counts; zero: there was none
	void      time.Time      // of the device's clock: no handshake until then counts
	seen      time.Time      // when the last handshake was, by our clock
	wasUp     bool           // there was a handshake that counts
}

// byteCounters never go back: a device that is made anew counts from zero.
type byteCounters struct{ rx, tx, rxLast, txLast int64 }

func (b *byteCounters) add(p *wgtypes.Peer) {
	step := func(sum, last *int64, now int64) {
		if now < *last {
			*last = 0
		}
		*sum += now - *last
		*last = now
	}
	step(&b.rx, &b.rxLast, p.ReceiveBytes)
	step(&b.tx, &b.txLast, p.TransmitBytes)
}

// reset prepares the peer for the links that it has from now on; the first one is spec.
func (p *peer) reset(spec *mesh.Peer, now time.Time, t *timing) {
	p.links, p.networks = nil, nil
	if preshared := wgtypes.Key(spec.Preshared); p.preshared != preshared {
		p.preshared = preshared
		p.wait(now)
	}
	if p.endpoint.setHost(spec.Host, spec.Port) && !p.isFresh(now, t) {
		p.wait(now)
	}
}

// wait begins to wait for a handshake: none that there was counts.
func (p *peer) wait(now time.Time) {
	p.waiting, p.wasUp, p.void, p.handshake = now, false, p.current.LastHandshakeTime, time.Time{}
	p.rxBefore, p.txBefore = p.current.ReceiveBytes, p.current.TransmitBytes
}

// forget forgets what the device has said: it is there no more. Should it come back with its sessions, they count.
func (p *peer) forget(now time.Time) {
	p.current, p.signs, p.ended, p.alone, p.waiting = wgtypes.Peer{}, signs{}, time.Time{}, time.Time{}, now
	p.rxBefore, p.txBefore = 0, 0
}

// observe notes what the device says of the peer, and tells whether there was a handshake since the last time.
func (p *peer) observe(is *wgtypes.Peer, now time.Time, t *timing) (greeted bool) {
	before := p.current
	p.current = *is
	p.counters.add(is)
	if is.ReceiveBytes < before.ReceiveBytes || is.TransmitBytes < before.TransmitBytes { // the device is another one
		p.rxBefore, p.txBefore = 0, 0
	}
	if at := is.LastHandshakeTime; !at.IsZero() && !at.Equal(p.handshake) && !at.Equal(p.void) {
		greeted, p.wasUp, p.alone = true, true, time.Time{}
		p.handshake, p.seen = at, now
		if before.PublicKey == (wgtypes.Key{}) { // an earlier process has seen it
			p.seen = now.Add(-max(0, now.Sub(at)))
		}
	}
	// A device that was told an endpoint shows it before the peer has answered from there.
	at := toAddrPort(is.Endpoint)
	if greeted && at != p.met { // remote changes before the handshake ends, and when another broker sends in an old session
		p.met, p.left = at, p.met
	}
	if greeted || is.ReceiveBytes > before.ReceiveBytes && at == toAddrPort(before.Endpoint) {
		p.remote = at
	}
	if p.isFresh(now, t) && p.alone.IsZero() { // should the session end, what was before its end says nothing of why
		p.waiting = now
		p.rxBefore, p.txBefore = is.ReceiveBytes, is.TransmitBytes
	}
	return greeted
}

// isFresh tells whether the last handshake is young enough for a session.
func (p *peer) isFresh(now time.Time, t *timing) bool {
	return !p.handshake.IsZero() && now.Sub(p.seen) < t.fresh
}

// judge returns the state of the peer's links by its handshakes, and the reason of it. why explains that packets do not
// get to the endpoint; nil: they may.
func (p *peer) judge(now time.Time, t *timing, own mesh.PublicKey, why error) (link.State, string) {
	waited := now.Sub(p.waiting)
	switch {
	case p.isFresh(now, t):
		return link.Up, ""
	case p.wasUp:
		return link.Down, fmt.Sprintf("no handshake for %s: %s", t.fresh, p.explain(waited, t, own, why))
	case p.endpoint.failure != nil && len(p.endpoint.addresses) == 0: // no handshake can be sent
		return link.Down, p.explain(waited, t, own, why)
	case waited < t.grace || p.endpoint.host == "":
		return link.Idle, p.explain(waited, t, own, why)
	}
	return link.Down, fmt.Sprintf("no handshake for %s: %s", t.grace, p.explain(waited, t, own, why))
}

// renewSession tells whether the device has to end the session, for a new one: the control channel says so, and there
// was none since.
func (p *peer) renewSession(heard *channelStatus, now time.Time) bool {
	if !heard.Renew.After(p.renewed) {
		return false
	}
	p.renewed = heard.Renew
	if !heard.Silent.IsZero() && p.handshake.After(heard.Silent) {
		return false
	}
	if p.ended = now; p.alone.IsZero() {
		p.alone = now
	}
	return true
}

// explain says what is waited for, or why there is no handshake.
func (p *peer) explain(waited time.Duration, t *timing, own mesh.PublicKey, why error) string {
	sent := p.current.TransmitBytes > p.txBefore
	// In a session that ended for us only, because our key has changed, the peer still sends packets of another kind.
	oldSession := !p.void.IsZero() && p.current.LastHandshakeTime.Equal(p.void)
	heard := p.current.ReceiveBytes > p.rxBefore && !oldSession
	e := &p.endpoint
	target := fmt.Sprintf("%s (UDP port %d)", e.host, e.port)
	if a := toAddrPort(p.current.Endpoint); a.IsValid() && a.Addr().String() != e.host {
		target = fmt.Sprintf("%s (%s)", e.host, a)
	}
	switch {
	case heard && waited >= t.suspect:
		return "the peer's handshakes arrive and none completes: check that presharedKey is the same on both sides, that " +
			"the peer has publicKey " + own.String() + " of this cluster, and that no firewall drops the answers to " +
			toAddrPort(p.current.Endpoint).String()
	case e.host == "":
		preshared := ""
		if p.preshared != (wgtypes.Key{}) {
			preshared = ", the same presharedKey"
		}
		return fmt.Sprintf("waiting for the peer to connect: %s, with the key %s. Its link to this cluster needs publicKey "+
			"%s%s and an endpoint: if that is Inbound, as it is here, neither end connects",
			cutText(strings.Join(p.links, ", ")), p.key, own, preshared)
	case len(e.addresses) == 0 && e.failure != nil:
		return fmt.Sprintf("spec.endpoint %s: %s", e.host, cutText(e.failure.Error()))
	case len(e.addresses) == 0:
		return "looking up endpoint " + e.host
	case why != nil:
		return cutText(why.Error())
	case sent && waited >= t.suspect:
		return fmt.Sprintf("handshakes are sent to %s and none comes back: check that a WireGuard listens there and that "+
			"firewalls let UDP pass, or a key is wrong: publicKey of this link must be that of the peer, the peer needs %s as "+
			"publicKey of this cluster, and presharedKey must be the same on both sides", target, own)
	}
	return "waiting for a handshake with " + target
}

var errOwnKey = errors.New("publicKey is that of this cluster: set the one of the peer, which is in status.publicKey " +
	"of its LocalLink")

// maxText bounds texts of others in a reason, in bytes.
const maxText = 300

func cutText(s string) string {
	if len(s) > maxText {
		return s[:maxText] + "..."
	}
	return s
}
