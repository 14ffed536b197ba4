package kernel

// What links may send where the kernel carries their packets, in a real network namespace: a TUN in place of the
// WireGuard device brings packets, and tests see where they get.

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// firewallTable is the file with which the filter of the bridge is tested, too.
type firewallTable struct {
	Local    mesh.Local
	Objects  mesh.Objects
	Services []service.Service
	Packets  []tablePacket
}

// tablePacket has in Want where it gets: "in", "on" to another link, or why it is dropped.
type tablePacket struct {
	Name, From, Src, Dst, Kind string
	Port                       uint16
	Want, Kernel               string // Kernel: where it is another way, "gone" if the kernel itself drops it
}

func readFirewallTable(t testing.TB) (table firewallTable, built mesh.State) {
	t.Helper()
	text, err := os.ReadFile("../mesh/testdata/firewall.json")
	if err == nil {
		err = json.Unmarshal(text, &table)
	}
	if err != nil {
		t.Fatal(err)
	}
	if built = mesh.Build(table.Objects, table.Local); len(built.Problems) > 0 {
		t.Fatal(built.Problems)
	}
	return table, service.Open(built, table.Services)
}

// firewallState is what the broker wants in mode wireguard.
func firewallState(built *mesh.State) State {
	s := NewState(built)
	s.FilterLinks(built)
	return s
}

// encode makes the packet. Source ports differ, so that no packet belongs to the connection of another one.
func (p *tablePacket) encode(port uint16) []byte {
	source := netip.MustParseAddr(p.Src)
	plain := packet{target: p.Dst, protocol: unix.IPPROTO_TCP, from: port, to: p.Port}
	ping, icmp := uint16(8), unix.IPPROTO_ICMP
	if source.Is6() {
		ping, icmp = 128, unix.IPPROTO_ICMPV6
	}
	switch p.Kind {
	case "udp":
		plain.protocol = unix.IPPROTO_UDP
	case "ping":
		plain.protocol, plain.from, plain.to = icmp, ping, port
	case "redirect":
		plain.protocol, plain.from, plain.to = icmp, 5, port
	}
	b := plain.encode(source)
	switch p.Kind {
	case "ack":
		b[33] = 0x10
		fixChecksum(b, 33, 0x02, 0x10)
	case "loose":
		options := []byte{1, 131, 7, 4, 8, 8, 8, 8}
		b = append(b[:20:20], append(options, b[20:]...)...)
		b[0], b[3], b[10], b[11] = 0x47, byte(len(b)), 0, 0
		sum := checksum{}
		sum.add(b[:28])
		binary.BigEndian.PutUint16(b[10:], sum.value())
	case "routing":
		header := append([]byte{unix.IPPROTO_TCP, 2, 2, 1}, make([]byte, 20)...)
		b = append(b[:40:40], append(header, b[40:]...)...)
		b[5], b[6] = byte(len(b)-40), unix.IPPROTO_ROUTING
	}
	return b
}

// fixChecksum corrects the checksum of a TCP segment over IPv4 for a changed byte at an odd place.
func fixChecksum(b []byte, _ int, before, after byte) {
	sum := uint32(^binary.BigEndian.Uint16(b[36:])) + uint32(^uint16(before)) + uint32(after)
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[36:], ^uint16(sum+sum>>16))
}

// firewallBed is a node with a device of links, and one that leads everywhere else.
type firewallBed struct {
	links, rest *os.File
	last        uint16              // source port
	leaves      netip.Addr          // with which source the last packet went on to another link
	endpoints   map[netip.Addr]bool // of mesh services
}

func newFirewallBed(t testing.TB) *firewallBed {
	t.Helper()
	bed := &firewallBed{links: tun(t, "kubelink"), rest: tun(t, "pods"), last: 1024}
	run(t, `ip link set pods up
		ip route add default dev pods
		ip route add 100.64.0.0/20 dev pods
		ip route add 100.96.0.0/16 dev pods
		ip route add 10.250.0.0/16 dev pods
		ip route add 10.7.0.0/16 dev pods
		ip -6 route add default dev pods
		ip -6 route add fd01::/112 dev pods
		ip -6 route add fd09::/64 dev pods
		ip addr add 10.250.0.5/32 dev pods
		ip addr add 100.64.0.10/32 dev lo
		sysctl -qw net.ipv4.ip_forward=1
		sysctl -qw net.ipv6.conf.all.forwarding=1
		sysctl -qw net.ipv4.conf.all.rp_filter=0
		sysctl -qw net.ipv4.conf.kubelink.rp_filter=0
		sysctl -qw net.ipv4.conf.pods.rp_filter=0
		sysctl -qw net.ipv4.conf.all.accept_source_route=1
		sysctl -qw net.ipv4.icmp_ratelimit=0
		sysctl -qw net.ipv6.icmp.ratelimit=0`)
	return bed
}

// send sends a packet of a link and returns where it gets: in, on to another link, or nowhere. Two packets behind it,
// one for each device, show that it is through.
func (bed *firewallBed) send(t testing.TB, p tablePacket) string {
	t.Helper()
	bed.last += 2
	marks := []tablePacket{{Src: "192.168.0.13", Dst: "100.64.0.1", Kind: "udp", Port: bed.last},
		{Src: "192.168.0.13", Dst: "100.64.64.1", Kind: "udp", Port: bed.last}}
	for _, b := range [][]byte{p.encode(bed.last), marks[0].encode(bed.last + 1), marks[1].encode(bed.last + 1)} {
		if _, err := bed.links.Write(b); err != nil {
			t.Fatalf("%s: %v", p.Name, err)
		}
	}
	got := "nowhere"
	for i, device := range []*os.File{bed.rest, bed.links} {
		for {
			next := nextPacket(t, device)
			if next.port == bed.last+1 {
				break
			}
			switch {
			case i == 0 && (next.target.String() == p.Dst || bed.endpoints[next.target]):
				got = "in"
			case i == 1 && next.target.String() == p.Dst:
				got, bed.leaves = "on", next.source
			case i == 1 && got == "nowhere" && next.source.String() == p.Dst && next.target.String() == p.Src:
				got = "in" // the node answers
			}
		}
	}
	return got
}

// seenPacket is one that the kernel has sent.
type seenPacket struct {
	source, target netip.Addr
	port           uint16 // source port of UDP over IPv4
}

func nextPacket(t testing.TB, device *os.File) (p seenPacket) {
	t.Helper()
	if err := device.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2000)
	if _, err := device.Read(b); err != nil {
		t.Fatalf("no packet: %v", err)
	}
	if b[0]>>4 == 6 {
		return seenPacket{netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), 0}
	}
	p = seenPacket{netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), 0}
	if b[9] == unix.IPPROTO_UDP {
		p.port = binary.BigEndian.Uint16(b[20:])
	}
	return p
}

// ownersOf are the allowed IPs of WireGuard: the longest one that has the source says from which peer it may come.
func ownersOf(peers []mesh.Peer) *bart.Table[string] {
	owners := new(bart.Table[string])
	for _, p := range peers {
		for _, n := range p.Networks {
			owners.Insert(n, p.Link)
		}
	}
	return owners
}

// The chains decide as the bridge does. They also drop what WireGuard would not have let in, if no link has the source.
func TestFirewallTable(t *testing.T) {
	for backend, prepare := range map[string]func(testing.TB){"nft": func(testing.TB) {}, "legacy": useLegacy} {
		inNamespace(t, backend, func(t *testing.T) {
			prepare(t)
			table, built := readFirewallTable(t)
			bed := newFirewallBed(t)
			k, _ := open(t, config)
			s := firewallState(&built)
			s.Services = table.Services
			bed.endpoints = map[netip.Addr]bool{}
			for _, x := range s.Services {
				for _, a := range x.Targets {
					bed.endpoints[a] = true
				}
				for _, p := range x.Ports {
					for _, a := range p.Targets {
						bed.endpoints[a.Addr()] = true
					}
				}
			}
			set(t, k, s)
			if err := k.Warning(); err != nil {
				t.Error(err)
			}
			owners := ownersOf(built.Peers)
			for _, p := range table.Packets {
				want := p.Want
				if p.Kernel != "" {
					want = p.Kernel
				}
				if owner, known := owners.Lookup(netip.MustParseAddr(p.Src)); known && owner != p.From {
					if want != "source" {
						t.Errorf("%s: WireGuard drops it, want %s", p.Name, want)
					}
					continue
				}
				before := k.Drops()
				got := bed.send(t, p)
				set(t, k, s)
				after := k.Drops()
				for reason, n := range map[string]uint64{"source": after.Source - before.Source,
					"destination": after.Destination - before.Destination, "node": after.Node - before.Node} {
					if n > 0 && got != "nowhere" || n > 1 {
						t.Errorf("%s: gets %s, and %d packets are dropped: %s", p.Name, got, n, reason)
					} else if n > 0 {
						got = reason
					}
				}
				if got == "nowhere" {
					got = "gone"
				}
				if got != want {
					t.Errorf("%s (%s: %s to %s): %s, want %s", p.Name, p.From, p.Src, p.Dst, got, want)
				}
			}
			if t.Failed() {
				t.Log(run(t, "iptables-save -c -t mangle"))
			}
		})
	}
}

// What goes on to another link of the mesh keeps its source, for the lists there are about that. All else that leaves
// has the address of this cluster.
func TestFirewallKeepsSources(t *testing.T) {
	enter(t)
	_, built := readFirewallTable(t)
	bed := newFirewallBed(t)
	k, _ := open(t, config)
	s := firewallState(&built)
	set(t, k, s)
	for _, c := range []struct{ name, src, dst, leaves string }{
		{"a cluster", "192.168.0.12", "100.64.32.1", "192.168.0.12"},
		{"a service of one", "100.64.16.9", "100.64.32.1", "100.64.16.9"},
		{"a cluster behind a link", "192.168.0.18", "192.168.0.12", "192.168.0.18"},
		{"its service", "100.64.96.9", "192.168.0.12", "100.64.96.9"},
		{"a network that has local ones in it", "10.1.2.3", "100.64.32.1", "192.168.0.11"},
		{"a cluster, to a wide network", "192.168.0.12", "10.1.2.3", "192.168.0.12"},
		{"into another mesh", "192.168.0.16", "172.31.0.2", "172.31.0.1"},
		{"within the other mesh", "172.31.0.3", "100.64.48.1", "172.31.0.3"},
		{"IPv6", "fd02::7", "fd03::7", "fd02::7"},
	} {
		got := bed.send(t, tablePacket{Name: c.name, Src: c.src, Dst: c.dst, Kind: "udp", Port: 7})
		if got != "on" || bed.leaves.String() != c.leaves {
			t.Errorf("%s: %s to %s gets %s with source %s, want %s", c.name, c.src, c.dst, got, bed.leaves, c.leaves)
		}
	}
	// A pod, through the other device.
	pod, far := netip.MustParseAddr("100.96.0.5"), netip.MustParseAddr("100.64.32.200")
	if _, err := bed.rest.Write(udp4(pod, far)); err != nil {
		t.Fatal(err)
	}
	if got := received(t, bed.links, far); got.String() != "192.168.0.11" {
		t.Errorf("a pod's packet leaves with source %s", got)
	}
}

// The segment size of connections between two links fits the device, too, which they enter and leave by.
func TestFirewallMSS(t *testing.T) {
	enter(t)
	_, built := readFirewallTable(t)
	bed := newFirewallBed(t)
	k, _ := open(t, Config{Device: "kubelink", MTU: 1420})
	set(t, k, firewallState(&built))
	for _, c := range []struct {
		src, dst string
		want     uint16
	}{{"192.168.0.12", "100.64.32.1", 1380}, {"fd00::2", "fd03::7", 1360}} {
		p := tablePacket{Src: c.src, Dst: c.dst, Kind: "tcp", Port: 80}
		b := p.encode(5000)
		tcp := len(b) - 20
		b = append(b, 2, 4, 8960>>8, 8960&0xff) // the option, RFC 9293 section 3.7.1
		b[tcp+12] = 6 << 4
		if tcp == 20 {
			b[3], b[10], b[11] = byte(len(b)), 0, 0
			sum := checksum{}
			sum.add(b[:20])
			binary.BigEndian.PutUint16(b[10:], sum.value())
		} else {
			b[5] = byte(len(b) - 40)
		}
		if _, err := bed.links.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := bed.links.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for got := make([]byte, 2000); ; {
			n, err := bed.links.Read(got)
			if err != nil {
				t.Fatal(err)
			}
			if n == len(b) && bytes.Equal(got[tcp:tcp+4], b[tcp:tcp+4]) {
				if mss := binary.BigEndian.Uint16(got[tcp+22:]); mss != c.want {
					t.Errorf("%s to %s: segment size %d, want %d", c.src, c.dst, mss, c.want)
				}
				break
			}
		}
	}
}

// A change concerns the next packet, also of connections that are there. The next process adopts the chains and counts
// on. A state without firewall, and the end, leave nothing of it.
func TestFirewallChanges(t *testing.T) {
	for backend, prepare := range map[string]func(testing.TB){"nft": func(testing.TB) {}, "legacy": useLegacy} {
		inNamespace(t, backend, func(t *testing.T) {
			prepare(t)
			table, _ := readFirewallTable(t)
			bed := newFirewallBed(t)
			before := state(t)
			k, w := open(t, config)
			build := func(change func(*mesh.Objects)) State {
				t.Helper()
				table, _ = readFirewallTable(t)
				change(&table.Objects)
				built := mesh.Build(table.Objects, table.Local)
				if len(built.Problems) > 0 {
					t.Fatal(built.Problems)
				}
				return firewallState(&built)
			}
			ingress := func(name, entry string) func(*mesh.Objects) {
				return func(o *mesh.Objects) {
					for i := range o.Links {
						if spec := &o.Links[i].Spec; o.Links[i].Name == name {
							spec.Ingress = nil
							_ = json.Unmarshal([]byte(`["`+entry+`"]`), &spec.Ingress)
						}
					}
				}
			}
			whole := build(func(*mesh.Objects) {})
			web := tablePacket{Name: "web", Src: "192.168.0.12", Dst: "100.64.0.1", Kind: "tcp", Port: 80}
			expect := func(step, want string) {
				t.Helper()
				if got := bed.send(t, web); got != want {
					t.Errorf("%s: %s, want %s", step, got, want)
				}
			}
			set(t, k, whole)
			expect("no list", "in")
			set(t, k, build(ingress("b", "100.64.0.2")))
			expect("another list", "nowhere")
			set(t, k, build(ingress("b", "!100.64.0.2")))
			expect("a list of denials", "in")
			set(t, k, build(func(o *mesh.Objects) { o.Links = o.Links[1:] }))
			expect("without the link", "nowhere")

			set(t, k, whole)
			web.Dst = "8.8.8.8"
			expect("elsewhere", "nowhere")
			set(t, k, whole)
			if d := k.Drops(); d != (Drops{Source: 1, Destination: 2}) {
				t.Errorf("dropped %+v", d)
			}
			// kill -9
			successor, sw := open(t, config)
			set(t, successor, whole)
			w.writes = 0
			expect("adopted", "nowhere")
			set(t, successor, whole)
			if d := successor.Drops(); sw.writes > 0 || d != (Drops{Destination: 1}) {
				t.Errorf("the next process writes %d times, and counts %+v", sw.writes, d)
			}
			bridge := whole
			bridge.Firewall = nil
			set(t, successor, bridge)
			if now := state(t); strings.Contains(now, linkChains) || strings.Contains(now, translateChains) ||
				strings.Contains(now, "KLINK-ROUTING") || !strings.Contains(now, "-j KLINK-LOCAL") {
				t.Errorf("without firewall:\n%s", now)
			}
			set(t, successor, whole)
			wantErrors(t, "Clear", successor.Clear())
			if now := state(t); strings.Contains(now, "KLINK") || strings.Contains(before, "KLINK") {
				t.Errorf("Clear leaves:\n%s", now)
			}
		})
	}
}
