package kernel

// What links may send where the kernel carries their packets, in a real network namespace: a TUN in place of the
// WireGuard device brings packets, and tests see where they get.

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// firewallTable is the file with which the filter of the bridge is tested, too.
type firewallTable struct {
	Local   mesh.Local
	Objects mesh.Objects
	Packets []tablePacket
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
	return table, built
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
	last        uint16 // source port
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
	marks := []tablePacket{{Src: "192.168.0.12", Dst: "100.64.0.1", Kind: "udp", Port: bed.last},
		{Src: "192.168.0.12", Dst: "100.64.32.1", Kind: "udp", Port: bed.last}}
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
			case i == 0 && next.target.String() == p.Dst:
				got = "in"
			case i == 1 && next.target.String() == p.Dst:
				got = "on"
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
	for backend, prepare := range map[string]func(*testing.T){"nft": func(*testing.T) {}, "legacy": useLegacy} {
		inNamespace(t, backend, func(t *testing.T) {
			prepare(t)
			table, built := readFirewallTable(t)
			bed := newFirewallBed(t)
			k, _ := open(t, config)
			s := firewallState(&built)
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
