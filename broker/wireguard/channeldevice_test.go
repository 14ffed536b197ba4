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
