package wireguard

// Devices of this process, and of stand-alone wireguard-go, between hosts with namespaces of their own.

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

func makeKey(n byte) (k mesh.SecretKey) {
	for i := range k {
		k[i] = n + byte(i)
	}
	return k
}

var keyOne, keyTwo, keyThree = makeKey(1), makeKey(2), makeKey(3)

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
	fast     bool
	toOne    mesh.Peer // in the second cluster
	toTwo    mesh.Peer // in the first one
}

// newPair makes two hosts with brokers that are open, with their keys. With fast, durations that have no part in
// WireGuard are short.
func newPair(t testing.TB, fast bool) *pair {
	t.Helper()
	p := newHosts(t, fast)
	p.start(0, keyOne)
	p.start(1, keyTwo)
	return p
}

// newHosts makes two hosts without brokers.
func newHosts(t testing.TB, fast bool) *pair {
	t.Helper()
	p := &pair{
		hosts: [2]*host{newHost(t), newHost(t)}, fast: fast,
		settings: link.Settings{ListenPort: 8777, Keepalive: 21 * time.Second},
		toOne: mesh.Peer{Link: "one", Addresses: prefixes("192.168.0.1/24"), Host: "172.16.0.1", Port: 8777,
			Key: keyOne.Public(), Networks: prefixes("192.168.0.1/32", "100.64.0.0/20")},
		toTwo: mesh.Peer{Link: "two", Addresses: prefixes("192.168.0.2/24"), Host: "172.16.0.2", Port: 8777,
			Key: keyTwo.Public(), Networks: prefixes("192.168.0.2/32", "100.64.16.0/20")},
	}
	joinHosts(t, p.hosts[0], p.hosts[1], [2]string{"172.16.0.1/24", "172.16.0.2/24"},
		[2]string{"172.16.0.11/24", "172.16.0.12/24"}, [2]string{"fd00::1/64", "fd00::2/64"})
	return p
}

// start starts a broker, and gives the device the addresses and routes that the kernel's part gives it.
func (p *pair) start(i int, key mesh.SecretKey) {
	p.hosts[i].t.Helper()
	p.brokers[i] = p.hosts[i].startBroker()
	p.brokers[i].open(OpenArgs{Settings: p.settings, Fast: p.fast})
	p.brokers[i].setKey(key)
	p.hosts[i].route([]string{"192.168.0.1/32", "192.168.0.2/32"}[i])
}

// route sets address and routes of the device, whose queue has place for the packets of seconds.
func (h *host) route(address string) {
	h.t.Helper()
	h.run("ip addr replace " + address + " dev kubelink\nip link set kubelink txqueuelen 20000 up\n" +
		"ip route replace 192.168.0.0/24 dev kubelink\nip route replace 100.64.0.0/16 dev kubelink")
}

// connect links the clusters.
func (p *pair) connect() {
	p.hosts[0].t.Helper()
	p.brokers[0].set(p.toTwo)
	p.brokers[1].set(p.toOne)
	for _, b := range p.brokers {
		b.awaitStatus(link.Up, "", 10*time.Second)
	}
}

// probe sends packets from the first cluster to the second, and back, until it is finished.
func (p *pair) probe() *process {
	p.hosts[0].t.Helper()
	p.hosts[1].start("echo", "192.168.0.2").await("ready")
	probe := p.hosts[0].start("probe", "192.168.0.2")
	probe.await("ready")
	return probe
}

// finishWhole finishes a probe that must have lost nothing.
func (p *process) finishWhole() {
	p.t.Helper()
	fmt.Fprintln(p.stdin, "wait")
	if lost, sent := p.finish(); lost > 0 || sent == 0 {
		p.t.Errorf("lost %d of %d packets", lost, sent)
	}
}

// isSameSession tells whether a peer of a device was left alone.
func isSameSession(before, after wgtypes.Peer) bool {
	return after.LastHandshakeTime.Equal(before.LastHandshakeTime) && !after.LastHandshakeTime.IsZero() &&
		after.ReceiveBytes >= before.ReceiveBytes && after.TransmitBytes >= before.TransmitBytes
}

func TestUnchangedSetTouchesNothing(t *testing.T) {
	p := newPair(t, false)
	began := time.Now()
	p.connect()
	t.Logf("Up on both sides after %s", time.Since(began))
	probe := p.probe()
	before, changes := p.brokers[0].peer(keyTwo.Public()), call[int64](p.brokers[0], "Changes", None{})
	for range 10 { // as reloads do
		call[None](p.brokers[0], "Configure", p.settings)
		p.brokers[0].setKey(keyOne)
		p.brokers[0].set(p.toTwo)
	}
	if after := p.brokers[0].peer(keyTwo.Public()); !isSameSession(before, after) {
		t.Errorf("%+v became %+v", before, after)
	}
	if now := call[int64](p.brokers[0], "Changes", None{}); now != changes {
		t.Errorf("%d calls of Changed", now-changes)
	}
	probe.finishWhole()
}

func TestChangeTouchesThatPeerOnly(t *testing.T) {
	p := newPair(t, false)
	third := mesh.Peer{Link: "three", Host: "172.16.0.3", Port: 8777, Key: keyThree.Public(),
		Networks: prefixes("192.168.0.3/32")}
	p.connect()
	p.brokers[0].set(p.toTwo, third)
	probe := p.probe()
	before := p.brokers[0].peer(keyTwo.Public())
	for _, c := range []struct {
		name   string
		change func()
		check  func(wgtypes.Peer) bool
	}{
		{"preshared key", func() { third.Preshared = makeKey(7) },
			func(is wgtypes.Peer) bool { return is.PresharedKey == wgtypes.Key(makeKey(7)) }},
		{"no preshared key", func() { third.Preshared = mesh.SecretKey{} },
			func(is wgtypes.Peer) bool { return is.PresharedKey == wgtypes.Key{} }},
		{"endpoint", func() { third.Host = "172.16.0.4" },
			func(is wgtypes.Peer) bool { return is.Endpoint.String() == "172.16.0.4:8777" }},
		{"IPv6 endpoint", func() { third.Host = "fd00::4" },
			func(is wgtypes.Peer) bool { return is.Endpoint.String() == "[fd00::4]:8777" }},
		{"port", func() { third.Port = 1 },
			func(is wgtypes.Peer) bool { return is.Endpoint.String() == "[fd00::4]:1" }},
		{"networks", func() { third.Networks = prefixes("192.168.0.3/32", "100.64.32.0/20", "fd00:3::/64") },
			func(is wgtypes.Peer) bool { return len(is.AllowedIPs) == 3 }},
		{"fewer networks", func() { third.Networks = prefixes("100.64.32.0/20") },
			func(is wgtypes.Peer) bool { return len(is.AllowedIPs) == 1 }},
	} {
		c.change()
		p.brokers[0].set(p.toTwo, third)
		if is := p.brokers[0].peer(third.Key); !c.check(is) {
			t.Errorf("%s: the device has %+v", c.name, is)
		}
		if after := p.brokers[0].peer(keyTwo.Public()); !isSameSession(before, after) {
			t.Errorf("%s: %+v became %+v", c.name, before, after)
		}
	}
	p.brokers[0].set(p.toTwo)
	if n := len(p.brokers[0].show().Peers); n != 1 {
		t.Errorf("%d peers", n)
	}
	probe.finishWhole()
}

// A network moves between two peers that are both connected, one by IPv4 and one by IPv6. Each packet to it arrives at
// one of them, and each packet to one of them arrives there.
func TestMovedNetworkLosesNoPacket(t *testing.T) {
	p := newPair(t, false)
	three := newHost(t)
	p.hosts[0].run("ip link add eth1 type veth peer name eth0 netns " + three.pid +
		"\nip addr add fd01::1/64 dev eth1 nodad\nip link set eth1 up")
	three.run("ip addr add fd01::3/64 dev eth0 nodad\nip link set eth0 up")
	b := three.startBroker()
	b.open(OpenArgs{Settings: p.settings})
	b.setKey(keyThree)
	three.route("192.168.0.3/32")
	toOne := p.toOne
	toOne.Host = "fd01::1"
	b.set(toOne)
	toThree := mesh.Peer{Link: "three", Host: "fd01::3", Port: 8777, Key: keyThree.Public(),
		Networks: prefixes("192.168.0.3/32")}
	p.brokers[0].set(p.toTwo, toThree)
	p.brokers[1].set(p.toOne)
	p.brokers[1].awaitStatus(link.Up, "", 10*time.Second)
	b.awaitStatus(link.Up, "", 10*time.Second)

	three.start("echo", "192.168.0.3").await("ready")
	p.hosts[1].start("echo", "192.168.0.2").await("ready")
	both := p.hosts[0].start("probe", "192.168.0.2", "192.168.0.3")
	both.await("ready")
	const moving = "100.64.16.5"
	var echoes []*process
	for _, h := range []*host{p.hosts[1], three} {
		h.run("ip addr add " + moving + "/32 dev lo")
		e := h.start("echo", moving)
		e.await("ready")
		echoes = append(echoes, e)
	}
	probe := p.hosts[0].start("probe", moving)
	probe.await("ready")
	networks := []([]netip.Prefix){p.toTwo.Networks[:1], p.toTwo.Networks, toThree.Networks,
		append(toThree.Networks[:1:1], p.toTwo.Networks[1])}
	moves := 0
	for began := time.Now(); moves < 500 && time.Since(began) < 10*time.Second; moves++ {
		two, three := p.toTwo, toThree
		two.Networks, three.Networks = networks[(moves+1)%2], networks[2+moves%2]
		p.brokers[0].set(two, three)
	}
	both.finishWhole()
	_, sent := probe.finish()
	got := 0
	for _, e := range echoes {
		e.stdin.Close()
		var n int
		if _, err := fmt.Sscanf(e.await("got"), "got %d", &n); err != nil || n == 0 {
			t.Errorf("a peer got %d packets: %v", n, err)
		}
		got += n
	}
	if got != sent {
		t.Errorf("%d of %d packets arrived", got, sent)
	}
	t.Logf("%d packets, %d moves", sent, moves)
}

func TestEndpointOfPeerThatMovesStays(t *testing.T) {
	p := newPair(t, true)
	p.connect()
	// Packets come from its other address now, which has gone with the first one, too.
	p.hosts[1].run("ip addr del 172.16.0.2/24 dev eth0\nip addr replace 172.16.0.12/24 dev eth0")
	p.hosts[0].start("echo", "192.168.0.1").await("ready")
	probe := p.hosts[1].start("probe", "192.168.0.1")
	probe.await("ready")
	moved := func() bool { return p.brokers[0].peer(keyTwo.Public()).Endpoint.String() == "172.16.0.12:8777" }
	await(t, "the move", moved)
	for range 20 {
		p.brokers[0].set(p.toTwo)
		if !moved() {
			t.Fatal("the peer was sent back")
		}
	}
	if st := p.brokers[0].statuses()[0]; st.State != link.Up || st.Remote != "172.16.0.12:8777" {
		t.Errorf("%+v", st)
	}
	probe.finish()
}

// await waits until the condition holds.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no end of waiting for %s", what)
		}
	}
}

func TestNameOfEndpointIsFollowed(t *testing.T) {
	p := newPair(t, true)
	p.hosts[1].start("echo", "fd00::2").await("ready")
	neighbour := p.hosts[0].start("probe", "fd00::2") // a new host takes a second to answer to IPv6
	neighbour.await("ready")
	neighbour.finish()
	p.toTwo.Host = "two.example.org"
	b := p.brokers[0]
	name := func(addresses ...string) {
		var found []netip.Addr
		for _, a := range addresses {
			found = append(found, netip.MustParseAddr(a))
		}
		call[None](b, "SetName", map[string][]netip.Addr{p.toTwo.Host: found})
	}
	b.set(p.toTwo)
	b.awaitStatus(link.Down, "endpoint two.example.org: no such host", 2*time.Second)
	p.toOne.Host = "" // Inbound
	p.brokers[1].set(p.toOne)
	name("172.16.0.2")
	b.awaitStatus(link.Up, "", 10*time.Second)
	p.hosts[1].start("echo", "192.168.0.2").await("ready")
	for _, to := range []string{"fd00::2", "172.16.0.2", "fd00::2", "172.16.0.2"} {
		name(to)
		want := netip.AddrPortFrom(netip.MustParseAddr(to), 8777).String()
		await(t, want, func() bool { return b.peer(keyTwo.Public()).Endpoint.String() == want })
		// No packet goes through the link meanwhile: while both addresses work, one on its way would lead the device back to
		// the old one, and the next one the peer, and so on.
		probe := p.hosts[0].start("probe", "192.168.0.2")
		probe.await("ready")
		probe.finishWhole()
	}
	before := b.peer(keyTwo.Public())
	name() // look-ups fail
	for range 10 {
		b.set(p.toTwo)
	}
	if after := b.peer(keyTwo.Public()); !isSameSession(before, after) || after.Endpoint.String() != "172.16.0.2:8777" {
		t.Errorf("%+v became %+v", before, after)
	}
	b.awaitStatus(link.Up, "", 5*time.Second)

	// The peer gets another address, and says nothing.
	p.hosts[1].run("ip addr flush dev eth0\nip addr add 172.16.0.12/24 dev eth0")
	name("172.16.0.12")
	again := p.hosts[0].start("probe", "192.168.0.2")
	again.await("ready")
	again.finish()
}

func TestReasonsOfLinksThatDoNotConnect(t *testing.T) {
	p := newHosts(t, true)
	p.start(0, keyOne)
	p.start(1, keyTwo)
	wrong := makeKey(9)
	for _, c := range []struct {
		name       string
		change     func(toTwo, toOne *mesh.Peer)
		one, two   link.State
		why1, why2 string // part of the reason at the end
	}{
		{"wrong public key here", func(two, _ *mesh.Peer) { two.Key = wrong.Public() }, link.Down, link.Down,
			"handshakes are sent to 172.16.0.2 (UDP port 8777) and none comes back",
			"the peer needs " + keyTwo.Public().String()},
		{"wrong preshared key, both dial", func(two, _ *mesh.Peer) { two.Preshared = wrong }, link.Down, link.Down,
			"presharedKey", "presharedKey"}, // the end that answers hears the other one, and keeps silent itself
		{"wrong preshared key, one dials", func(two, one *mesh.Peer) { two.Preshared, one.Host = wrong, "" },
			link.Down, link.Idle, "presharedKey must be the same on both sides",
			"the peer's handshakes arrive and none completes"},
		{"nobody dials", func(two, one *mesh.Peer) { two.Host, one.Host = "", "" }, link.Idle, link.Idle,
			"waiting for the peer to connect: two, with the key " + keyTwo.Public().String(),
			"needs publicKey " + keyTwo.Public().String() + " and an endpoint: if that is Inbound"},
		{"no route", func(two, one *mesh.Peer) { two.Host, one.Host = "203.0.113.1", "" }, link.Down, link.Idle,
			"no route to 203.0.113.1: network is unreachable", "waiting for the peer to connect"},
		{"through itself", func(two, one *mesh.Peer) {
			two.Local, two.Host, one.Host = prefixes("192.168.0.1/24"), "100.64.16.1", ""
		}, link.Down, link.Idle, "100.64.16.1 lies in the network 100.64.16.0/20 of link two, so that the connection",
			"waiting for the peer to connect"},
		{"own key", func(two, one *mesh.Peer) { two.Key, one.Host = keyOne.Public(), "" }, link.Down, link.Idle,
			"publicKey is that of this cluster", "waiting for the peer to connect"},
	} {
		t.Run(c.name, func(t *testing.T) {
			two, one := p.toTwo, p.toOne
			c.change(&two, &one)
			p.brokers[0].set(two)
			p.brokers[1].set(one)
			for i, b := range p.brokers {
				st := b.awaitStatus([]link.State{c.one, c.two}[i], []string{c.why1, c.why2}[i], 15*time.Second)
				if st.Remote != "" {
					t.Errorf("a peer that never answered is at %s", st.Remote)
				}
			}
			for _, b := range p.brokers { // the next case begins anew
				b.set()
			}
		})
	}
	// They connect when what was wrong is right.
	p.connect()
}

// Both ends get another preshared key: the link says what is wrong in between, and goes on at once afterwards. So it is
// with the key of a peer, and with our own.
func TestKeysChange(t *testing.T) {
	p := newPair(t, true)
	p.connect()
	one, two := p.brokers[0], p.brokers[1]
	p.toTwo.Preshared, p.toOne.Preshared = keyThree, keyThree
	one.set(p.toTwo)
	one.awaitStatus(link.Down, "presharedKey", 15*time.Second)
	began := time.Now()
	two.set(p.toOne)
	for _, b := range p.brokers {
		b.awaitStatus(link.Up, "", 10*time.Second)
	}
	t.Logf("preshared key: Up %s after the second side", time.Since(began))

	another := makeKey(5)
	two.setKey(another) // status.publicKey of the peer
	two.set(p.toOne)
	two.awaitStatus(link.Down, "the peer needs "+another.Public().String(), 15*time.Second)
	p.toTwo.Key = another.Public()
	began = time.Now()
	one.set(p.toTwo)
	for _, b := range p.brokers {
		b.awaitStatus(link.Up, "", 10*time.Second)
	}
	t.Logf("key: Up %s after the second side", time.Since(began))

	two.setKey(mesh.SecretKey{})
	two.set(p.toOne)
	if st := two.statuses()[0]; st.State != link.Idle || len(two.show().Peers) > 0 {
		t.Errorf("without key: %+v", st)
	}
	two.setKey(another)
	two.set(p.toOne)
	two.awaitStatus(link.Up, "", 10*time.Second)
}

// Without keepalive a link is Up and finds its way back, though no packet crosses it.
func TestLinkWithoutKeepalive(t *testing.T) {
	p := newHosts(t, true)
	p.settings.Keepalive = 0
	p.start(0, keyOne)
	p.start(1, keyTwo)
	p.connect()
	if k := p.brokers[0].peer(keyTwo.Public()).PersistentKeepaliveInterval; k != 0 {
		await(t, "the end of the greeting", func() bool {
			return p.brokers[0].peer(keyTwo.Public()).PersistentKeepaliveInterval == 0
		})
	}
	p.brokers[1].kill()
	p.start(1, keyTwo)
	p.brokers[1].set(p.toOne)
	p.brokers[1].awaitStatus(link.Up, "", 10*time.Second)
}

func TestSettingsChange(t *testing.T) {
	p := newPair(t, true)
	p.connect()
	b := p.brokers[0]
	p.settings.ListenPort, p.settings.MTU, p.settings.Keepalive = 9999, 1300, 5*time.Second
	call[None](b, "Configure", p.settings)
	b.set(p.toTwo)
	if is := b.show(); is.ListenPort != 9999 || is.Peers[0].PersistentKeepaliveInterval != 5*time.Second {
		t.Errorf("%+v", is)
	}
	if !strings.Contains(p.hosts[0].run("ip link show kubelink"), "mtu 1300") {
		t.Error("the MTU is another one")
	}
	probe := p.probe()
	// A port that somebody has is an error, and the link goes on when it is free.
	echo := p.hosts[0].start("echo", "0.0.0.0")
	echo.await("ready")
	p.settings.ListenPort = 7
	call[None](b, "Configure", p.settings)
	if reply := call[SetReply](b, "Set", []mesh.Peer{p.toTwo}); !strings.Contains(reply.Error,
		"cannot open UDP port 7: address already in use: end the program that has it, or choose another broker-port") {
		t.Errorf("error %q", reply.Error)
	}
	echo.kill()
	await(t, "the port", func() bool { return b.show().ListenPort == 7 })
	b.set(p.toTwo)
	probe.finish()
}
