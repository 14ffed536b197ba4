package wireguard

// Devices of this process, and of stand-alone wireguard-go, between two hosts with namespaces of their own.

import (
	"net/netip"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

func makeKey(n byte) (k mesh.SecretKey) {
	for i := range k {
		k[i] = n + byte(i)
	}
	return k
}

var keyOne, keyTwo = makeKey(1), makeKey(2)

func prefixes(all ...string) (list []netip.Prefix) {
	for _, p := range all {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

// pair is two clusters, joined by a cable.
type pair struct {
	hosts    [2]*host
	brokers  [2]*broker
	settings link.Settings
	toOne    mesh.Peer // in the second cluster
	toTwo    mesh.Peer // in the first one
}

// newPair makes two hosts with brokers that are open, with their keys.
func newPair(t testing.TB, fast bool) *pair {
	t.Helper()
	p := &pair{
		hosts:    [2]*host{newHost(t), newHost(t)},
		settings: link.Settings{ListenPort: 8777, Keepalive: 21 * time.Second, Device: link.UserspaceDevice},
		toOne: mesh.Peer{Link: "one", Addresses: prefixes("192.168.0.1/24"), Host: "172.16.0.1", Port: 8777,
			Key: keyOne.Public(), Networks: prefixes("192.168.0.1/32", "100.64.0.0/20")},
		toTwo: mesh.Peer{Link: "two", Addresses: prefixes("192.168.0.2/24"), Host: "172.16.0.2", Port: 8777,
			Key: keyTwo.Public(), Networks: prefixes("192.168.0.2/32", "100.64.16.0/20")},
	}
	joinHosts(t, p.hosts[0], p.hosts[1], [2]string{"172.16.0.1/24", "172.16.0.2/24"},
		[2]string{"172.16.0.11/24", "172.16.0.12/24"}, [2]string{"fd00::1/64", "fd00::2/64"})
	for i, key := range []mesh.SecretKey{keyOne, keyTwo} {
		p.start(i, fast, key)
	}
	return p
}

// start starts a broker, and gives the device the addresses and routes that the kernel's part gives it.
func (p *pair) start(i int, fast bool, key mesh.SecretKey) {
	h := p.hosts[i]
	h.t.Helper()
	p.brokers[i] = h.startBroker()
	p.brokers[i].open(OpenArgs{Settings: p.settings, Fast: fast})
	p.brokers[i].setKey(key)
	own := []string{"192.168.0.1/32", "192.168.0.2/32"}[i]
	h.run("ip addr replace " + own + " dev kubelink\nip route replace 192.168.0.0/24 dev kubelink")
}

func TestLink(t *testing.T) {
	p := newPair(t, false)
	began := time.Now()
	p.brokers[0].set(p.toTwo)
	p.brokers[1].set(p.toOne)
	for i, b := range p.brokers {
		st := b.awaitStatus(link.Up, "", 10*time.Second)
		t.Logf("%d after %s: %+v", i, time.Since(began), st)
	}
	p.hosts[1].start("echo", "192.168.0.2").await("ready")
	probe := p.hosts[0].start("probe", "192.168.0.2")
	probe.await("ready")

	// Nothing changes the second time.
	before := p.brokers[0].peer(keyTwo.Public())
	for range 10 {
		p.brokers[0].setKey(keyOne)
		p.brokers[0].set(p.toTwo)
	}
	if after := p.brokers[0].peer(keyTwo.Public()); !after.LastHandshakeTime.Equal(before.LastHandshakeTime) ||
		after.ReceiveBytes < before.ReceiveBytes {
		t.Errorf("%+v became %+v", before, after)
	}
	if lost, sent := probe.finish(); lost > 0 || sent == 0 {
		t.Errorf("lost %d of %d packets", lost, sent)
	}
}
