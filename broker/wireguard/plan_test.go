package wireguard

// Plans as text, as wg(8) would say them; and random changes told to a device in memory.

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// named is the key of a name.
func named(name string) (k wgtypes.Key) {
	copy(k[:], name)
	return k
}

func keyName(k wgtypes.Key) string {
	if k == nobody {
		return "nobody"
	}
	return strings.TrimRight(string(k[:]), "\x00")
}

// printPlan prints a line per command.
func printPlan(plan []wgtypes.Config) string {
	var b strings.Builder
	for i, c := range plan {
		fmt.Fprintf(&b, "%d", i+1)
		if c.PrivateKey != nil {
			fmt.Fprintf(&b, " key %s", keyName(*c.PrivateKey))
		}
		if c.ListenPort != nil {
			fmt.Fprintf(&b, " port %d", *c.ListenPort)
		}
		b.WriteString("\n")
		for _, p := range c.Peers {
			fmt.Fprintf(&b, "  %s", keyName(p.PublicKey))
			if p.Remove {
				b.WriteString(" remove")
			}
			if p.UpdateOnly {
				b.WriteString(" update")
			}
			if p.PresharedKey != nil {
				fmt.Fprintf(&b, " psk %s", keyName(*p.PresharedKey))
			}
			if p.Endpoint != nil {
				fmt.Fprintf(&b, " endpoint %s", p.Endpoint)
			}
			if p.PersistentKeepaliveInterval != nil {
				fmt.Fprintf(&b, " keepalive %s", *p.PersistentKeepaliveInterval)
			}
			for _, n := range p.AllowedIPs {
				fmt.Fprintf(&b, " %s", toPrefix(n))
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// model is a device in memory. It does what WireGuard does with a configuration.
type model struct{ wgtypes.Device }

func (m *model) tell(c wgtypes.Config) {
	if c.PrivateKey != nil {
		m.PrivateKey = *c.PrivateKey
	}
	if c.ListenPort != nil {
		m.ListenPort = *c.ListenPort
	}
	if c.ReplacePeers {
		m.Peers = nil
	}
	for _, p := range c.Peers {
		at := slices.IndexFunc(m.Peers, func(is wgtypes.Peer) bool { return is.PublicKey == p.PublicKey })
		switch {
		case p.Remove && at >= 0:
			m.Peers = slices.Delete(m.Peers, at, at+1)
			continue
		case p.Remove || p.UpdateOnly && at < 0:
			continue
		case at < 0:
			at = len(m.Peers)
			m.Peers = append(m.Peers, wgtypes.Peer{PublicKey: p.PublicKey})
		}
		is := &m.Peers[at]
		if p.PresharedKey != nil {
			is.PresharedKey = *p.PresharedKey
		}
		if p.Endpoint != nil {
			is.Endpoint = p.Endpoint
		}
		if p.PersistentKeepaliveInterval != nil {
			is.PersistentKeepaliveInterval = *p.PersistentKeepaliveInterval
		}
		for _, n := range p.AllowedIPs {
			for i := range m.Peers {
				m.Peers[i].AllowedIPs = slices.DeleteFunc(m.Peers[i].AllowedIPs, func(o net.IPNet) bool {
					return toPrefix(o) == toPrefix(n)
				})
			}
			is.AllowedIPs = append(is.AllowedIPs, n)
		}
	}
}

// text is the device as text.
func (m *model) text() string {
	var lines []string
	for _, p := range m.Peers {
		var networks []string
		for _, n := range p.AllowedIPs {
			networks = append(networks, toPrefix(n).String())
		}
		slices.Sort(networks)
		lines = append(lines, fmt.Sprintf("%s psk %q endpoint %s keepalive %s %s\n", keyName(p.PublicKey),
			keyName(p.PresharedKey), p.Endpoint, p.PersistentKeepaliveInterval, strings.Join(networks, " ")))
	}
	slices.Sort(lines)
	return fmt.Sprintf("key %s port %d\n%s", keyName(m.PrivateKey), m.ListenPort, strings.Join(lines, ""))
}

func TestPlan(t *testing.T) {
	peer := func(name string, networks ...string) targetPeer {
		return targetPeer{key: named(name), networks: prefixes(networks...)}
	}
	base := func() *target {
		a, b := peer("a", "10.0.0.1/32", "10.1.0.0/16"), peer("b", "10.0.0.2/32", "fd00:2::/64")
		b.preshared = named("secret")
		return &target{key: named("own"), port: 8777, keepalive: 21 * time.Second, peers: []targetPeer{a, b}}
	}
	to := netip.MustParseAddrPort
	for _, c := range []struct {
		name   string
		change func(*target)
		want   string
	}{
		{"the same", func(*target) {}, ""},
		{"another private key: all peers are greeted", func(w *target) { w.key = named("other") }, `1 key other
  a update keepalive 0s
  b update keepalive 0s
2
  a update keepalive 21s
  b update keepalive 21s
`},
		{"another port", func(w *target) { w.port = 1 }, "1 port 1\n"},
		{"any port", func(w *target) { w.port = 0 }, ""},
		{"no private key", func(w *target) { w.key = named("") }, "1\n  a remove\n  b remove\n"},
		{"a new peer", func(w *target) {
			p := peer("c", "10.3.0.0/16")
			p.endpoint, p.preshared = to("[fd00::3]:8777"), named("new")
			w.peers = append(w.peers, p)
		}, "1\n  c psk new endpoint [fd00::3]:8777 keepalive 21s 10.3.0.0/16\n"},
		{"a peer less", func(w *target) { w.peers = w.peers[1:] }, "1\n  a remove\n"},
		{"an endpoint", func(w *target) { w.peers[0].endpoint = to("172.16.0.9:1") },
			"1\n  a update endpoint 172.16.0.9:1\n"},
		{"the endpoint that it has", func(w *target) { w.peers[0].endpoint = to("172.16.0.1:8777") }, ""},
		{"another preshared key: the peer is made anew where it is", func(w *target) { w.peers[0].preshared = named("x") },
			"1\n  a remove\n2\n  a psk x endpoint 172.16.0.1:8777 keepalive 21s 10.0.0.1/32 10.1.0.0/16\n"},
		{"a new session", func(w *target) { w.peers[0].renew = true },
			"1\n  a remove\n2\n  a endpoint 172.16.0.1:8777 keepalive 21s 10.0.0.1/32 10.1.0.0/16\n"},
		{"no session: the device answers only", func(w *target) {
			w.peers[0] = targetPeer{key: named("a"), aside: true}
		}, "1\n  a remove\n  nobody 10.0.0.1/32 10.1.0.0/16\n2\n  a\n  nobody remove\n"},
		{"no preshared key", func(w *target) { w.peers[1].preshared = named("") },
			"1\n  b remove\n2\n  b endpoint [fd00::2]:8777 keepalive 21s 10.0.0.2/32 fd00:2::/64\n"},
		{"another keepalive", func(w *target) { w.keepalive = 5 * time.Second },
			"1\n  a update keepalive 5s\n  b update keepalive 5s\n"},
		{"no keepalive", func(w *target) { w.keepalive = 0 },
			"1\n  a update keepalive 0s\n  b update keepalive 0s\n"},
		{"a greeting", func(w *target) { w.peers[0].greet = true },
			"1\n  a update keepalive 0s\n2\n  a update keepalive 21s\n"},
		{"a network more", func(w *target) { w.peers[0].networks = append(w.peers[0].networks, prefixes("10.9.0.0/16")...) },
			"1\n  a update 10.9.0.0/16\n"},
		{"a network less: nobody takes it", func(w *target) { w.peers[0].networks = w.peers[0].networks[:1] },
			"1\n  nobody 10.1.0.0/16\n2\n  nobody remove\n"},
		{"a network moves: the one that gets it takes it", func(w *target) {
			w.peers[0].networks = w.peers[0].networks[:1]
			w.peers[1].networks = append(w.peers[1].networks, prefixes("10.1.0.0/16")...)
		}, "1\n  b update 10.1.0.0/16\n"},
		{"the public key of a peer: its networks move", func(w *target) { w.peers[0].key = named("c") },
			"1\n  c 10.0.0.1/32 10.1.0.0/16\n2\n  a remove\n"},
		{"a network of two peers: the first has it", func(w *target) {
			w.peers[1].networks = append(w.peers[1].networks, prefixes("10.1.0.0/16")...)
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &model{}
			w := base()
			w.peers[0].endpoint, w.peers[1].endpoint = to("172.16.0.1:8777"), to("[fd00::2]:8777")
			for _, config := range w.plan(&m.Device) {
				m.tell(config)
			}
			w = base()
			c.change(w)
			if got := printPlan(w.plan(&m.Device)); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

// A device that only answers has an endpoint when it has answered: the session of that handshake must not be lost. One
// that has a session, or a keepalive, sends by itself.
func TestPlanAside(t *testing.T) {
	for _, c := range []struct {
		is   wgtypes.Peer
		want string
	}{
		{wgtypes.Peer{}, ""},
		{wgtypes.Peer{Endpoint: &net.UDPAddr{IP: net.IPv4(172, 16, 0, 1), Port: 8777}}, ""},
		{wgtypes.Peer{LastHandshakeTime: time.Now()}, "1\n  a remove\n2\n  a\n"},
		{wgtypes.Peer{PersistentKeepaliveInterval: time.Second}, "1\n  a remove\n2\n  a\n"},
	} {
		w := &target{key: named("own"), peers: []targetPeer{{key: named("a"), aside: true}}}
		c.is.PublicKey = named("a")
		if got := printPlan(w.plan(&wgtypes.Device{PrivateKey: w.key, Peers: []wgtypes.Peer{c.is}})); got != c.want {
			t.Errorf("%+v: got\n%swant\n%s", c.is, got, c.want)
		}
	}
}

// Whatever changes, the device becomes what a new one would be, no key is twice in a configuration, a plan that was
// carried out leaves nothing to do, and a network that both have is never without its peer.
func TestPlanOfRandomChanges(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	m := &model{}
	for round := range 3000 {
		w := &target{key: named([]string{"own", "own", "own", "other"}[random.IntN(4)]), port: 8777,
			keepalive: []time.Duration{0, 21 * time.Second}[random.IntN(2)]}
		for i := range 6 {
			if random.IntN(4) == 0 {
				continue
			}
			p := targetPeer{key: named(string(rune('a' + i))), greet: random.IntN(4) == 0, renew: random.IntN(9) == 0,
				preshared: named([]string{"", "", "psk"}[random.IntN(3)])}
			for range random.IntN(4) {
				p.networks = append(p.networks, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(random.IntN(12))}), 16))
			}
			if p.aside = random.IntN(9) == 0; p.aside {
				p.networks = nil
			} else if random.IntN(3) == 0 {
				p.endpoint = netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, 0, byte(random.IntN(3))}), 8777)
			}
			w.peers = append(w.peers, p)
		}
		before := m.owners()
		fresh := &model{}
		for range 2 {
			for _, c := range w.plan(&fresh.Device) {
				fresh.tell(c)
			}
		}
		for _, c := range w.plan(&m.Device) {
			seen := map[wgtypes.Key]bool{}
			for _, p := range c.Peers {
				if seen[p.PublicKey] {
					t.Fatalf("round %d: %s is twice in\n%s", round, keyName(p.PublicKey), printPlan([]wgtypes.Config{c}))
				}
				seen[p.PublicKey] = true
			}
			m.tell(c)
			for n, owner := range fresh.owners() {
				if before[n] == owner && m.owners()[n] != owner && !isRenewed(w, m, owner) {
					t.Fatalf("round %d: %s was taken from %s", round, n, keyName(owner))
				}
			}
		}
		for i := range w.peers {
			w.peers[i].greet, w.peers[i].renew, w.peers[i].endpoint = false, false, netip.AddrPort{}
		}
		for _, c := range w.plan(&m.Device) { // the end of greetings without keepalive
			m.tell(c)
		}
		if again := printPlan(w.plan(&m.Device)); again != "" {
			t.Fatalf("round %d: there is still to do\n%s", round, again)
		}
		for i := range w.peers { // a device keeps an endpoint
			is := fresh.peer(w.peers[i].key)
			is.Endpoint = m.peer(is.PublicKey).Endpoint
			is.PersistentKeepaliveInterval = w.keepalive
			if is.Endpoint == nil || w.peers[i].aside {
				is.PersistentKeepaliveInterval = 0
			}
		}
		if m.text() != fresh.text() {
			t.Fatalf("round %d: got\n%swant\n%s", round, m.text(), fresh.text())
		}
	}
}

// isRenewed tells whether the peer is being made anew.
func isRenewed(w *target, m *model, key wgtypes.Key) bool {
	for i := range w.peers {
		if w.peers[i].key == key {
			p := m.peer(key)
			return p == nil || p.PresharedKey != w.peers[i].preshared || w.peers[i].renew
		}
	}
	return false
}

func (m *model) peer(k wgtypes.Key) *wgtypes.Peer {
	for i := range m.Peers {
		if m.Peers[i].PublicKey == k {
			return &m.Peers[i]
		}
	}
	return nil
}

// owners are the peers that have the networks.
func (m *model) owners() map[netip.Prefix]wgtypes.Key {
	all := map[netip.Prefix]wgtypes.Key{}
	for _, p := range m.Peers {
		for _, n := range p.AllowedIPs {
			all[toPrefix(n)] = p.PublicKey
		}
	}
	return maps.Clone(all)
}
