package wireguard

// Control channels in the tunnels of devices, between two brokers: each is a process, with wireguard-go in it.

import (
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// The state of a link follows the control channel: it tells what peers announce, and a loss soon.
func TestLinkFollowsChannel(t *testing.T) {
	p := newPair(t, false)
	p.toOne.Local, p.toTwo.Local = prefixes("192.168.0.2/24"), prefixes("192.168.0.1/24")
	connect := func() {
		t.Helper()
		p.brokers[0].set(p.toTwo)
		p.brokers[1].set(p.toOne)
	}
	connect()
	awaitChannel := func(b *broker) link.Status {
		t.Helper()
		for ; ; <-time.After(10 * time.Millisecond) {
			if st := b.awaitStatus(link.Up, "", 20*time.Second); st.Announced != nil && st.RTT > 0 {
				return st
			}
		}
	}
	for i, want := range prefixes("192.168.0.2/24", "192.168.0.1/24") {
		if st := awaitChannel(p.brokers[i]); st.Announced.Address != want {
			t.Errorf("%+v announces %+v", st, st.Announced)
		}
	}
	settings, changed := p.settings, time.Now()
	settings.DNS = &link.DNSInfo{ClusterDomain: "cluster.two"}
	call[None](p.brokers[1], "Configure", settings)
	for awaitChannel(p.brokers[0]).Announced.DNS == nil {
		if time.Since(changed) > 10*time.Second {
			t.Fatal("the change is not announced")
		}
	}

	// A killed broker takes its device along.
	killed := time.Now()
	p.brokers[1].kill()
	st := p.brokers[0].awaitStatus(link.Down, "no answer for 4s", 10*time.Second)
	if took := time.Since(killed); took > 6*time.Second || st.Announced == nil {
		t.Errorf("Down after %s: %+v", took, st)
	} else {
		t.Logf("Down after %s", took)
	}
	p.start(1, keyTwo)
	began := time.Now()
	connect()
	p.brokers[0].awaitStatus(link.Up, "", 20*time.Second)
	t.Logf("Up %s after the start", time.Since(began))
	for _, b := range p.brokers {
		awaitChannel(b)
	}
}

// A peer that comes back with another key has no session and gives no answer: the link says what to check before
// WireGuard itself counts the session as over.
func TestSilenceIsExplained(t *testing.T) {
	p := newPair(t, true)
	p.toOne.Local, p.toTwo.Local = prefixes("192.168.0.2/24"), prefixes("192.168.0.1/24")
	p.connect()
	talks := func(b *broker) {
		t.Helper()
		await(t, "the channel", func() bool { return b.statuses()[0].Announced != nil })
	}
	talks(p.brokers[0])
	p.brokers[1].kill()
	p.start(1, keyThree)
	p.brokers[1].set(p.toOne)
	p.brokers[0].awaitStatus(link.Down, "no answer for 4s: handshakes are sent to 172.16.0.2 (UDP port 8777) and none "+
		"comes back: check that a WireGuard listens there", 30*time.Second)
	p.toTwo.Key = keyThree.Public()
	p.brokers[0].set(p.toTwo)
	p.brokers[0].awaitStatus(link.Up, "", 10*time.Second)
	talks(p.brokers[0])

	// What the peer answers afterwards counts for the next silence.
	p.brokers[1].kill()
	p.brokers[0].awaitStatus(link.Down, "no answer for 4s", 10*time.Second)
	p.start(1, keyThree)
	p.toOne.Preshared = makeKey(9)
	p.brokers[1].set(p.toOne)
	p.brokers[0].awaitStatus(link.Down, "no answer for 4s: the peer's handshakes arrive and none completes: "+
		"check that presharedKey", 30*time.Second)
}
