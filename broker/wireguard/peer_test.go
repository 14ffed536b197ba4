package wireguard

// What a peer's state and reason are, by what the device has said of it.

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// The reason why a session has ended follows from what came after its end: bytes of the good session explain nothing.
func TestReasonAfterSession(t *testing.T) {
	for _, c := range []struct {
		name     string
		received int64 // after the end of the session
		says     string
	}{
		{"killed", 0, "handshakes are sent to 172.16.0.2 (UDP port 8777) and none comes back"},
		{"with another key", 148, "the peer's handshakes arrive and none completes"},
	} {
		timing, now := defaultTiming, time.Now()
		p := &peer{waiting: now, endpoint: endpoint{
			host: "172.16.0.2", port: 8777, addresses: []netip.Addr{netip.MustParseAddr("172.16.0.2")}}}
		is := wgtypes.Peer{LastHandshakeTime: now}
		for end := now.Add(timing.fresh); now.Before(end); now = now.Add(timing.poll) {
			is.ReceiveBytes, is.TransmitBytes = is.ReceiveBytes+1000, is.TransmitBytes+1000
			p.observe(&is, now, &timing)
			if state, why := p.judge(now, &timing, mesh.PublicKey{}, nil); state != link.Up || why != "" {
				t.Fatalf("%s: %s %q in the session", c.name, state, why)
			}
		}
		for end := now.Add(2 * timing.suspect); now.Before(end); now = now.Add(timing.poll) {
			is.ReceiveBytes, is.TransmitBytes = is.ReceiveBytes+c.received, is.TransmitBytes+148
			p.observe(&is, now, &timing)
		}
		state, why := p.judge(now, &timing, mesh.PublicKey{}, nil)
		if want := "no handshake for 3m0s: " + c.says; state != link.Down || !strings.HasPrefix(why, want) {
			t.Errorf("%s: %s %q, want %q", c.name, state, why, want)
		}
	}
}

// A link that waits for its peer says what the peer needs.
func TestReasonInbound(t *testing.T) {
	for preshared, says := range map[wgtypes.Key]string{
		{}:     mesh.PublicKey{}.String() + " and an endpoint: ",
		{1: 1}: mesh.PublicKey{}.String() + ", the same presharedKey and an endpoint: ",
	} {
		timing, now := defaultTiming, time.Now()
		p := &peer{waiting: now, preshared: preshared, links: []string{"two"}}
		state, why := p.judge(now, &timing, mesh.PublicKey{}, nil)
		if state != link.Idle || !strings.Contains(why, "Its link to this cluster needs publicKey "+says) {
			t.Errorf("%s %q, want %q", state, why, says)
		}
	}
}

// Two brokers of one cluster take the session from each other: the device knows where the one is that has lost it.
func TestPlaceOfOtherBroker(t *testing.T) {
	right, other := netip.MustParseAddrPort("172.16.0.2:8777"), netip.MustParseAddrPort("172.16.1.2:8777")
	timing, now := defaultTiming, time.Now()
	p := &peer{waiting: now}
	var is wgtypes.Peer
	observe := func(at netip.AddrPort, handshake bool) {
		now = now.Add(timing.poll)
		is.Endpoint, is.ReceiveBytes = net.UDPAddrFromAddrPort(at), is.ReceiveBytes+148
		if handshake {
			is.LastHandshakeTime = now
		}
		p.observe(&is, now, &timing)
	}
	for _, step := range []struct {
		name      string
		at        netip.AddrPort
		handshake bool
		left      netip.AddrPort
	}{
		{"the first session", other, true, netip.AddrPort{}},
		{"the right one takes it", right, true, other},
		{"the other one sends in its session", other, false, other},
		{"it still does", other, false, other},
		{"it takes the session", other, true, right},
		{"it does so again", other, true, right},
		{"the right one sends in its session", right, false, right},
		{"the other one does", other, false, right},
		{"the right one has the session", right, true, other},
		{"half a handshake", other, false, other},
		{"more of it", other, false, other},
		{"the other one has taken the session", other, true, right},
	} {
		if observe(step.at, step.handshake); p.left != step.left {
			t.Errorf("%s: left %s, want %s", step.name, p.left, step.left)
		}
	}
}
