package bridge

// What an address of the node takes from a peer, where ingress lists lead, and what goes on to another link.

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// ipPacket is a packet of the peer 192.168.0.12 (fd00::12) to the node 192.168.0.11 (fd00::11). With IPv6, headers are
// extension headers that begin with the type of the first one.
func ipPacket(v6 bool, protocol byte, headers, payload []byte) []byte {
	if !v6 {
		b := packet("192.168.0.12", "192.168.0.11", 64, 28, 0)[:20]
		b[9] = protocol
		b = append(b, payload...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		return b
	}
	b := packet("fd00::12", "fd00::11", 64, 60, 0)[:40]
	if b[6] = protocol; len(headers) > 0 {
		b[6] = headers[0]
		b = append(b, headers[1:]...)
	}
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	return b
}

func tcpHeader(port uint16, flags byte) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, 40000)
	binary.BigEndian.PutUint16(h[2:], port)
	h[12], h[13] = 5<<4, flags
	return h
}

func udpHeader(port uint16) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h[2:], port)
	binary.BigEndian.PutUint16(h[4:], 20)
	return h
}

func icmpHeader(kind byte) []byte { return []byte{kind, 0, 0, 0, 0, 1, 0, 1} }

// fragmentOf sets offset, in bytes, and the flag for more fragments of an IPv4 packet.
func fragmentOf(b []byte, offset int, more bool) []byte {
	field := uint16(offset / 8)
	if more {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], field)
	return b
}

// fragmentHeader is an extension header of a fragment, with its type before it.
func fragmentHeader(next byte, offset int, more bool) []byte {
	h := []byte{44, next, 0, byte(offset >> 8), byte(offset), 0, 0, 0, 9}
	if more {
		h[4] |= 1
	}
	return h
}

const (
	fin, syn, rst, ack = 1, synFlag, 4, ackFlag
	tcp, udp           = protocolTCP, protocolUDP
)

// nodeCases are packets to the node, whether they come in, and whether they do where a list denies the node.
var nodeCases = []struct {
	name         string
	packet       []byte
	ping, denied bool
}{
	{"echo request", ipPacket(false, protocolICMP, nil, icmpHeader(8)), true, false},
	{"echo reply", ipPacket(false, protocolICMP, nil, icmpHeader(0)), true, true},
	{"unreachable", ipPacket(false, protocolICMP, nil, icmpHeader(3)), true, true},
	{"time exceeded", ipPacket(false, protocolICMP, nil, icmpHeader(11)), true, true},
	{"parameter problem", ipPacket(false, protocolICMP, nil, icmpHeader(12)), true, true},
	{"redirect", ipPacket(false, protocolICMP, nil, icmpHeader(5)), false, false},
	{"source quench", ipPacket(false, protocolICMP, nil, icmpHeader(4)), false, false},
	{"timestamp", ipPacket(false, protocolICMP, nil, icmpHeader(13)), false, false},
	{"ICMP cut", ipPacket(false, protocolICMP, nil, icmpHeader(8)[:7]), false, false},
	{"ICMPv6 over IPv4", ipPacket(false, protocolICMPv6, nil, icmpHeader(128)), false, false},

	{"echo request, IPv6", ipPacket(true, protocolICMPv6, nil, icmpHeader(128)), true, false},
	{"echo reply, IPv6", ipPacket(true, protocolICMPv6, nil, icmpHeader(129)), true, true},
	{"unreachable, IPv6", ipPacket(true, protocolICMPv6, nil, icmpHeader(1)), true, true},
	{"too big, IPv6", ipPacket(true, protocolICMPv6, nil, icmpHeader(2)), true, true},
	{"time exceeded, IPv6", ipPacket(true, protocolICMPv6, nil, icmpHeader(3)), true, true},
	{"parameter problem, IPv6", ipPacket(true, protocolICMPv6, nil, icmpHeader(4)), true, true},
	{"neighbour advertisement", ipPacket(true, protocolICMPv6, nil, icmpHeader(136)), false, false},
	{"router advertisement", ipPacket(true, protocolICMPv6, nil, icmpHeader(134)), false, false},
	{"redirect, IPv6", ipPacket(true, protocolICMPv6, nil, icmpHeader(137)), false, false},
	{"listener query", ipPacket(true, protocolICMPv6, nil, icmpHeader(130)), false, false},
	{"ICMP over IPv6", ipPacket(true, protocolICMP, nil, icmpHeader(8)), false, false},

	{"SYN", ipPacket(false, tcp, nil, tcpHeader(22, syn)), false, false},
	{"SYN, kubelet", ipPacket(false, tcp, nil, tcpHeader(10250, syn)), false, false},
	{"SYN, IPv6", ipPacket(true, tcp, nil, tcpHeader(22, syn)), false, false},
	{"SYN with FIN", ipPacket(false, tcp, nil, tcpHeader(22, syn|fin)), false, false},
	{"SYN with RST", ipPacket(false, tcp, nil, tcpHeader(22, syn|rst)), false, false},
	{"SYN with ECN", ipPacket(false, tcp, nil, tcpHeader(22, syn|0xc0)), false, false},
	{"SYN-ACK", ipPacket(false, tcp, nil, tcpHeader(22, syn|ack)), true, true},
	{"ACK", ipPacket(false, tcp, nil, tcpHeader(22, ack)), true, true},
	{"RST", ipPacket(false, tcp, nil, tcpHeader(22, rst)), true, true},
	{"SYN, open port", ipPacket(false, tcp, nil, tcpHeader(53, syn)), true, false},
	{"SYN, open port, IPv6", ipPacket(true, tcp, nil, tcpHeader(53, syn)), true, false},
	{"SYN, port open for UDP", ipPacket(false, tcp, nil, tcpHeader(54, syn)), false, false},
	{"TCP cut", ipPacket(false, tcp, nil, tcpHeader(22, ack)[:19]), false, false},
	{"TCP without header", ipPacket(false, tcp, nil, nil), false, false},

	{"UDP", ipPacket(false, udp, nil, udpHeader(40000)), true, true}, // the kernel decides
	{"UDP, IPv6", ipPacket(true, udp, nil, udpHeader(40000)), true, true},
	{"UDP, open port", ipPacket(false, udp, nil, udpHeader(54)), true, false},
	{"UDP cut", ipPacket(false, udp, nil, udpHeader(40000)[:7]), false, false},

	{"SCTP INIT", ipPacket(false, protocolSCTP, nil, append(make([]byte, 12), 1, 0, 0, 20)), false, false},
	{"SCTP INIT ACK", ipPacket(false, protocolSCTP, nil, append(make([]byte, 12), 2, 0, 0, 20)), true, true},
	{"SCTP cut", ipPacket(false, protocolSCTP, nil, make([]byte, 12)), false, false},
	{"IGMP", ipPacket(false, 2, nil, icmpHeader(0x11)), false, false},
	{"IPIP", ipPacket(false, 4, nil, tcpHeader(0, 0)), false, false},
	{"IPv6 in IPv4", ipPacket(false, 41, nil, make([]byte, 40)), false, false},
	{"GRE", ipPacket(false, 47, nil, make([]byte, 20)), false, false},
	{"ESP", ipPacket(false, 50, nil, make([]byte, 20)), false, false},
	{"AH", ipPacket(false, 51, nil, make([]byte, 20)), false, false},
	{"IPv4 in IPv6", ipPacket(true, 4, nil, make([]byte, 20)), false, false},
	{"ESP over IPv6", ipPacket(true, 50, nil, make([]byte, 20)), false, false},
	{"VRRP", ipPacket(false, 112, nil, make([]byte, 20)), false, false},
	{"UDP-Lite", ipPacket(false, 136, nil, udpHeader(53)), false, false},
	{"nothing more", ipPacket(true, 59, nil, nil), false, false},
}

// fragmentCases: later fragments are of no use without a first one, on which the filter decides. No later fragment may
// lie over the header of the first one, and no header may be in a later one.
var fragmentCases = []struct {
	name   string
	packet []byte
	want   bool
}{
	{"first fragment of an echo request", fragmentOf(ipPacket(false, protocolICMP, nil, icmpHeader(8)), 0, true), true},
	{"first fragment of UDP", fragmentOf(ipPacket(false, udp, nil, udpHeader(40000)), 0, true), true},
	{"first fragment of a SYN", fragmentOf(ipPacket(false, tcp, nil, tcpHeader(22, syn)), 0, true), false},
	{"tiny first fragment", fragmentOf(ipPacket(false, tcp, nil, tcpHeader(22, syn)[:8]), 0, true), false},
	{"tiny first fragment, with flags", fragmentOf(ipPacket(false, tcp, nil, tcpHeader(22, ack)[:16]), 0, true), false},
	{"over the flags", fragmentOf(ipPacket(false, tcp, nil, tcpHeader(22, syn)), 8, false), false},
	{"over the end of the header", fragmentOf(ipPacket(false, tcp, nil, make([]byte, 20)), 16, false), false},
	{"over options", fragmentOf(ipPacket(false, tcp, nil, make([]byte, 20)), 32, false), false},
	{"second fragment", fragmentOf(ipPacket(false, tcp, nil, make([]byte, 20)), 48, false), true},
	{"second fragment of UDP", fragmentOf(ipPacket(false, udp, nil, make([]byte, 20)), 1480, true), true},
	{"second fragment of GRE", fragmentOf(ipPacket(false, 47, nil, make([]byte, 20)), 1480, false), false},

	{"first fragment, IPv6", ipPacket(true, udp, fragmentHeader(udp, 0, true), udpHeader(40000)), true},
	{"first fragment of a SYN, IPv6", ipPacket(true, tcp, fragmentHeader(tcp, 0, true), tcpHeader(22, syn)), false},
	{"only fragment of a SYN, IPv6", ipPacket(true, tcp, fragmentHeader(tcp, 0, false), tcpHeader(22, syn)), false},
	{"tiny first fragment, IPv6", ipPacket(true, tcp, fragmentHeader(tcp, 0, true), tcpHeader(22, ack)[:8]), false},
	{"header in a later fragment, IPv6", ipPacket(true, tcp, fragmentHeader(60, 0, true),
		[]byte{tcp, 9, 0, 0, 0, 0, 0, 0}), false},
	{"second fragment, IPv6", ipPacket(true, udp, fragmentHeader(udp, 1232, false), make([]byte, 20)), true},
	{"over the flags, IPv6", ipPacket(true, tcp, fragmentHeader(tcp, 8, false), tcpHeader(22, syn)), false},
	{"second fragment of ESP, IPv6", ipPacket(true, 50, fragmentHeader(50, 1232, false), make([]byte, 20)), false},
	{"second fragment of options, IPv6", ipPacket(true, 60, fragmentHeader(60, 1232, false), make([]byte, 20)), false},
	{"fragment of a fragment", ipPacket(true, udp,
		append(fragmentHeader(44, 0, true), fragmentHeader(udp, 0, true)[1:]...), udpHeader(40000)), false},
	{"fragment header cut", ipPacket(true, 44, nil, make([]byte, 7)), false},

	{"SYN behind options", ipPacket(true, tcp, []byte{60, tcp, 0, 1, 4, 0, 0, 0, 0}, tcpHeader(22, syn)), false},
	{"ACK behind options", ipPacket(true, tcp, []byte{60, tcp, 0, 1, 4, 0, 0, 0, 0}, tcpHeader(22, ack)), true},
	{"SYN behind hop-by-hop options", ipPacket(true, tcp, []byte{0, tcp, 0, 1, 4, 0, 0, 0, 0}, tcpHeader(22, syn)), false},
	{"SYN behind a routing header", ipPacket(true, tcp, []byte{43, tcp, 0, 4, 0, 0, 0, 0, 0}, tcpHeader(22, syn)), false},
	{"ACK behind an authentication header",
		ipPacket(true, tcp, []byte{51, tcp, 4, 0, 0, 0, 0, 0, 0}, tcpHeader(22, ack)), false},
	{"options that are cut", ipPacket(true, tcp, []byte{60, tcp, 9, 1, 4, 0, 0, 0, 0}, tcpHeader(22, ack)), false},
}

func newNodeFilter() *ingressFilter {
	return newIngressFilter(&mesh.Peer{Open: []mesh.LocalPort{{Protocol: "tcp", Port: 53}, {Protocol: "udp", Port: 54}}},
		verdictTables{})
}

func TestAllowsNode(t *testing.T) {
	f := newNodeFilter()
	for _, c := range nodeCases {
		if _, _, ok := parseAddresses(c.packet); !ok {
			t.Errorf("%s: not sound", c.name)
			continue
		}
		if got := f.allowsNode(nodePing, c.packet, vnetHeader{}); got != c.ping {
			t.Errorf("%s: %v", c.name, got)
		}
		if got := f.allowsNode(nodeReplies, c.packet, vnetHeader{}); got != c.denied {
			t.Errorf("%s, where a list denies the node: %v", c.name, got)
		}
	}
	for _, c := range fragmentCases {
		if _, _, ok := parseAddresses(c.packet); !ok {
			t.Errorf("%s: not sound", c.name)
		} else if got := f.allowsNode(nodePing, c.packet, vnetHeader{}); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// A checksum that is left to the kernel would be written over the type of an ICMP message: after the filter.
func TestNodeChecksumOverType(t *testing.T) {
	p := ipPacket(false, protocolICMP, nil, icmpHeader(0))
	vnet := vnetHeader{flags: needsCsum, csumStart: 20, csumOffset: 0}
	if !vnet.validateFor(p) {
		t.Fatal("the header is refused already")
	}
	if newNodeFilter().allowsNode(nodePing, p, vnet) {
		t.Error("passed")
	}
	tcp := ipPacket(false, protocolTCP, nil, tcpHeader(22, ack))
	vnet = vnetHeader{flags: needsCsum, csumStart: 20, csumOffset: csumTCP}
	if !vnet.validateFor(tcp) || !newNodeFilter().allowsNode(nodePing, tcp, vnet) {
		t.Error("a segment without checksum is dropped")
	}
}

// TestNodeFilter: what is dropped is counted, and reaches neither the TUN nor the node; without allocations.
func TestNodeFilter(t *testing.T) {
	tun := newMemTUN()
	_, s := newTestSessionOn(t, tun)
	node := spec
	node.Ingress = append(slices.Clone(spec.Ingress),
		mesh.Rule{Prefix: netip.MustParsePrefix("192.168.0.11/32"), Allow: true, Node: true},
		mesh.Rule{Prefix: netip.MustParsePrefix("fd00::11/128"), Allow: true, Node: true})
	s.peer.filter.Store(newIngressFilter(&node, verdictTables{}))
	drops := &s.peer.counters.drops[DropNode]
	receive := func(p []byte) bool {
		before := drops.Load()
		s.receivePacket(append(make([]byte, vnetSize), p...), vnetHeader{})
		select {
		case <-tun.out:
			return true
		default:
			if drops.Load() != before+1 {
				t.Errorf("%x: neither received nor counted", p)
			}
			return false
		}
	}
	for _, c := range nodeCases {
		if c.packet[0] != 0x45 && c.packet[6] == 43 {
			continue // dropped before, if segments are left
		}
		open := c.name == "SYN, open port" || c.name == "SYN, open port, IPv6"
		if got := receive(c.packet); got != (c.ping && !open) {
			t.Errorf("%s: received %v", c.name, got)
		}
	}
	hidden := ipPacket(true, tcp, []byte{60, tcp, 0, 1, 4, 0, 0, 0, 0}, tcpHeader(22, syn))
	room := append(make([]byte, vnetSize), hidden...)
	if n := testing.AllocsPerRun(100, func() { s.receivePacket(room, vnetHeader{}) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzNode: the filter takes any packet, and what comes in is no SYN to a closed port at the place where the kernel
// looks for it in a packet without extension headers.
func FuzzNode(f *testing.F) {
	for _, c := range nodeCases {
		f.Add(c.packet)
	}
	for _, c := range fragmentCases {
		f.Add(c.packet)
	}
	filter := newIngressFilter(&mesh.Peer{}, verdictTables{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, ok := parseAddresses(b); !ok || !filter.allowsNode(nodePing, b, vnetHeader{}) {
			return
		}
		protocol, start, ok := parseTransport(b)
		if !ok { // a fragment
			return
		}
		known := []byte{protocolICMP, protocolICMPv6, protocolTCP, protocolUDP, protocolSCTP}
		if !slices.Contains(known, protocol) || protocol == protocolTCP && b[start+13]&(synFlag|ackFlag) == synFlag {
			t.Errorf("passed: %x", b)
		}
	})
}

// TestTransit: the more specific of ingress and routes decides whether a packet goes on to another link, so that a list
// that allows the rest leads here what is here only. Links of other meshes are no way on. A cluster behind the peer has
// rules of its own.
func TestTransit(t *testing.T) {
	pfx := netip.MustParsePrefix
	tun := newMemTUN()
	b := newTestBridge(t, tun)
	b.SetCredentials(unencrypted)
	rules := []mesh.Rule{{Prefix: pfx("0.0.0.0/0"), Allow: true}, {Prefix: pfx("10.2.0.0/16"), Allow: true},
		{Prefix: pfx("10.3.0.0/16")}, {Prefix: pfx("192.168.0.11/32"), Allow: true, Node: true}}
	local := mesh.Prefixes{pfx("192.168.0.11/24")}
	own := mesh.Peer{Link: "b", Local: local, Addresses: mesh.Prefixes{pfx("192.168.0.12/24")}, Ingress: rules,
		Networks: []netip.Prefix{pfx("192.168.0.12/32"), pfx("192.168.0.14/32"), pfx("172.16.0.0/12"), pfx("172.16.1.0/24")},
		Carried: []mesh.Carried{
			{Networks: []netip.Prefix{pfx("192.168.0.12/32"), pfx("172.16.1.0/24")}, Ingress: rules},
			{Networks: []netip.Prefix{pfx("192.168.0.14/32"), pfx("172.16.0.0/12")},
				Ingress: []mesh.Rule{{Prefix: pfx("100.64.0.80/32"), Allow: true}}},
		}}
	other := mesh.Peer{Link: "c", Local: local, Addresses: mesh.Prefixes{pfx("192.168.0.13/24")},
		Networks: []netip.Prefix{pfx("192.168.0.13/32"), pfx("10.0.0.0/8")}}
	stranger := mesh.Peer{Link: "d", Local: mesh.Prefixes{pfx("192.168.9.11/24")},
		Addresses: mesh.Prefixes{pfx("192.168.9.12/24")}, Networks: []netip.Prefix{pfx("192.168.9.12/32"), pfx("fd00::/64")}}
	if err := b.Set([]mesh.Peer{own, other, stranger},
		[]netip.Prefix{pfx("192.168.0.0/24"), pfx("100.64.0.0/20"), pfx("192.168.9.0/24")}); err != nil {
		t.Fatal(err)
	}
	p := b.router.table.Load().peers[0]
	b.router.table.Load().peers[1].failed.Store(true) // it counts what it gets
	raw := newBatchConn(null{}, 0)
	h := &hello.Hello{Capable: true, Flags: b.featureFlags(), Streams: 1}
	s := newSession(p, raw, raw, true, 0, b.featureFlags(), h)
	for _, c := range []struct{ src, dst, want string }{
		{"192.168.0.12", "100.64.0.1", "here"},
		{"192.168.0.12", "8.8.8.8", "here"},
		{"192.168.0.12", "192.168.0.11", "here"},
		{"192.168.0.12", "192.168.0.13", "c"},
		{"192.168.0.12", "10.1.1.1", "c"},
		{"192.168.0.12", "10.2.1.1", "here"}, // a part of another link's network that is here
		{"192.168.0.12", "10.3.1.1", "c"},    // what lists deny is local
		{"192.168.0.12", "192.168.0.12", "destination"},
		{"192.168.0.12", "172.16.9.9", "destination"}, // back to the peer
		{"192.168.0.12", "192.168.9.12", "here"},      // another mesh counts as any other network
		{"192.168.0.14", "100.64.0.80", "here"},
		{"192.168.0.14", "100.64.0.1", "destination"},
		{"192.168.0.14", "192.168.0.13", "c"},
		{"192.168.0.14", "192.168.9.12", "destination"},
		{"172.16.9.9", "100.64.0.1", "destination"},
		{"172.16.9.9", "100.64.0.80", "here"},
		{"172.16.1.9", "100.64.0.1", "here"}, // in a network of the other, but the peer's
		{"192.168.0.13", "100.64.0.1", "source"},
	} {
		before := b.Stats()
		s.receivePacket(append(make([]byte, vnetSize), packet(c.src, c.dst, 64, 60, 0)...), vnetHeader{})
		got := "nowhere"
		after := b.Stats()
		for why := range after.Links["b"].Drops {
			if after.Links["b"].Drops[why] > before.Links["b"].Drops[why] {
				got = Drop(why).String()
			}
		}
		if len(tun.out) > 0 {
			<-tun.out
			got = "here"
		}
		if after.Links["c"].Drops[DropNotConnected] > before.Links["c"].Drops[DropNotConnected] {
			got = "c"
		}
		if got != c.want {
			t.Errorf("%s to %s: %s, want %s", c.src, c.dst, got, c.want)
		}
	}
}

// TestPacketsThatMayNotPass: addresses that no list and no link leads to, with the rules that mesh makes of lists: of
// none, of denials only, and of everything.
func TestPacketsThatMayNotPass(t *testing.T) {
	pfx := netip.MustParsePrefix
	for kind := range 3 {
		var objects mesh.Objects
		objects.Links = slices.Grow(objects.Links, 2)[:2]
		me, other := &objects.Links[0], &objects.Links[1]
		me.Name, other.Name = "me", "b"
		me.Spec.ClusterAddress, me.Spec.Endpoint = "192.168.0.11/24", "LocalLink"
		other.Spec.ClusterAddress, other.Spec.Endpoint = "192.168.0.12/24", "203.0.113.2"
		switch kind {
		case 1:
			other.Spec.Ingress = append(other.Spec.Ingress, "!10.77.0.0/16")
		case 2:
			other.Spec.Ingress = append(other.Spec.Ingress, "0.0.0.0/0", "::/0")
		}
		list := other.Spec.Ingress
		local := mesh.Local{Mode: mesh.Bridge, ServiceCIDRs: mesh.Prefixes{pfx("100.64.0.0/20")}}
		state := mesh.Build(objects, local)
		tun := newMemTUN()
		b := newTestBridge(t, tun)
		if err := b.Set(state.Peers, state.Local); err != nil {
			t.Fatal(err)
		}
		p, raw := b.router.table.Load().peers[0], newBatchConn(null{}, 0)
		h := &hello.Hello{Capable: true, Flags: b.featureFlags(), Streams: 1}
		s := newSession(p, raw, raw, true, 0, b.featureFlags(), h)
		for _, c := range []struct {
			name, src, dst string
			why            Drop
		}{
			{"own address", "192.168.0.11", "192.168.0.11", DropSource},
			{"third cluster", "192.168.0.13", "192.168.0.11", DropSource},
			{"loopback", "127.0.0.1", "192.168.0.11", DropSource},
			{"pod", "100.96.0.1", "192.168.0.11", DropSource},
			{"unspecified", "0.0.0.0", "192.168.0.11", DropSource},
			{"multicast source", "224.0.0.1", "192.168.0.11", DropSource},
			{"mapped", "::ffff:192.168.0.12", "::ffff:192.168.0.11", DropSource},
			{"IPv6", "fd00::12", "fd00::11", DropSource},
			{"to metadata", "192.168.0.12", "169.254.169.254", DropDestination},
			{"to loopback", "192.168.0.12", "127.0.0.1", DropDestination},
			{"to this network", "192.168.0.12", "0.0.0.0", DropDestination},
			{"to broadcast", "192.168.0.12", "255.255.255.255", DropDestination},
			{"to multicast", "192.168.0.12", "224.0.0.1", DropDestination},
			{"to itself", "192.168.0.12", "192.168.0.12", DropDestination},
			{"to mesh broadcast", "192.168.0.12", "192.168.0.255", DropDestination},
			{"to third", "192.168.0.12", "192.168.0.13", DropDestination},
			{"to pod", "192.168.0.12", "100.96.0.1", DropDestination},
			{"to node", "192.168.0.12", "10.250.0.11", DropDestination},
		} {
			before := p.counters.drops[c.why].Load()
			s.receivePacket(append(make([]byte, vnetSize), packet(c.src, c.dst, 64, 60, 2)...), vnetHeader{})
			dropped := len(tun.out) == 0 && p.counters.drops[c.why].Load() == before+1
			for len(tun.out) > 0 {
				<-tun.out
			}
			// A list that allows the rest allows this, too.
			rest := list != nil && slices.Contains([]string{"to mesh broadcast", "to third", "to pod", "to node"}, c.name)
			if dropped == rest {
				t.Errorf("%s, ingress %v: dropped %v", c.name, list, dropped)
			}
		}
	}
}

// Links with one list share its table, and no others do.
func TestSharedVerdicts(t *testing.T) {
	rules := []mesh.Rule{{Prefix: netip.MustParsePrefix("100.64.0.0/20"), Allow: true},
		{Prefix: netip.MustParsePrefix("192.168.0.100/32"), Allow: true}}
	tables := verdictTables{}
	one, two := newIngressFilter(&mesh.Peer{Ingress: rules}, tables), newIngressFilter(&mesh.Peer{Ingress: rules}, tables)
	shorter := newIngressFilter(&mesh.Peer{Ingress: rules[:1]}, tables)
	none := newIngressFilter(&mesh.Peer{}, tables)
	if one.verdicts != two.verdicts {
		t.Error("two tables of one list")
	}
	for _, c := range []struct {
		filter *ingressFilter
		want   verdict
	}{{one, allowed}, {shorter, denied}, {none, denied}} {
		if v, _ := c.filter.verdicts.Lookup(netip.MustParseAddr("192.168.0.100")); v != c.want {
			t.Errorf("verdict %d, want %d", v, c.want)
		}
	}
}

// BenchmarkFilters: 250 links reach 1,000 mesh services.
func BenchmarkFilters(b *testing.B) {
	var rules []mesh.Rule
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})
		rules = append(rules, mesh.Rule{Prefix: netip.PrefixFrom(a, 32), Allow: true})
	}
	for b.Loop() {
		tables := verdictTables{}
		for range 250 {
			newIngressFilter(&mesh.Peer{Ingress: rules}, tables)
		}
	}
}
