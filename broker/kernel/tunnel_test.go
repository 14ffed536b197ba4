package kernel

// A peer sends packets of its tunnel through the tunnel, in a real network namespace.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// tunnelBed is a node with a service that leads to the port which carries links, 8777, and to port 5353, as kube-proxy
// has it do. Both are open.
type tunnelBed struct {
	device *os.File
	port   uint16 // source of the last packet
}

const testTunnel = 8777

func newTunnelBed(t *testing.T) *tunnelBed {
	t.Helper()
	bed := &tunnelBed{device: tun(t, "kubelink"), port: 4000}
	run(t, `ip addr add 10.250.0.5/32 dev lo
		ip addr add fd00:250::5/128 dev lo nodad
		sysctl -qw net.ipv4.conf.all.rp_filter=0
		sysctl -qw net.ipv4.conf.kubelink.rp_filter=0`)
	settle(t, netip.MustParseAddr("fd00:250::5"))
	for _, to := range []string{
		"iptables -t nat -A PREROUTING -d 10.96.0.80 -p %s --dport %d -j DNAT --to 10.250.0.5:%d",
		"ip6tables -t nat -A PREROUTING -d fd01::80 -p %s --dport %d -j DNAT --to [fd00:250::5]:%d"} {
		run(t, fmt.Sprintf(to, "udp", testTunnel, testTunnel))
		run(t, fmt.Sprintf(to, "tcp", testTunnel, testTunnel))
		run(t, fmt.Sprintf(to, "udp", 53, 5353))
	}
	return bed
}

// send sends a packet of a peer to the service.
func (bed *tunnelBed) send(t *testing.T, service, peer string, protocol int, port uint16) {
	t.Helper()
	bed.port++
	p := packet{target: service, protocol: protocol, from: bed.port, to: port}
	if _, err := bed.device.Write(p.encode(netip.MustParseAddr(peer))); err != nil {
		t.Fatal(err)
	}
}

// leaves reads what leaves through the device until a packet has this target. It tells whether one had another one.
func (bed *tunnelBed) leaves(t *testing.T, other, target string) (found bool) {
	t.Helper()
	for a := netip.MustParseAddr(target); ; {
		next := nextPacket(t, bed.device)
		if next.target == a {
			return found
		}
		found = found || next.target.String() == other
	}
}

// arrivesAt returns what arrives next, and from where.
func arrivesAt(t *testing.T, socket *net.UDPConn) (from netip.AddrPort) {
	t.Helper()
	if err := socket.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, from, err := socket.ReadFromUDPAddrPort(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// openUDP opens a port of this node for a family.
func openUDP(t *testing.T, version string, port uint16) *net.UDPConn {
	t.Helper()
	socket, err := net.ListenUDP("udp"+version, &net.UDPAddr{Port: int(port)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	return socket
}

// tunnelCases have a service, and two addresses of a peer, for each family.
var tunnelCases = []struct{ version, service, peer, next, loopback string }{
	{"4", "10.96.0.80", "100.64.16.20", "100.64.16.21", "127.0.0.1"},
	{"6", "fd01::80", "fd00:5::20", "fd00:5::21", "::1"},
}

// What a peer sends in its tunnel to the service of the tunnels does not get to their port, and what leaves that port
// does not enter a tunnel: it would be the answer to itself. Other ports of the service go on.
func TestTunnelInTunnel(t *testing.T) {
	for backend, prepare := range map[string]func(testing.TB){"nft": func(testing.TB) {}, "legacy": useLegacy} {
		inNamespace(t, backend, func(t *testing.T) {
			prepare(t)
			bed := newTunnelBed(t)
			k, _ := open(t, config)
			s := twoMeshes
			s.LocalPorts = []mesh.LocalPort{{Protocol: "udp", Port: 5353}}
			s.Tunnel.LocalPort = mesh.LocalPort{Protocol: "udp", Port: testTunnel}
			set(t, k, s)
			var tunnel *net.UDPConn
			for _, c := range tunnelCases {
				service, peer, next := c.service, c.peer, c.next
				other := openUDP(t, c.version, 5353)
				tunnel = openUDP(t, c.version, testTunnel)
				bed.send(t, service, peer, unix.IPPROTO_UDP, testTunnel)
				bed.send(t, service, next, unix.IPPROTO_UDP, 53)
				from := arrivesAt(t, other)
				mark := &net.UDPAddr{IP: net.ParseIP(c.loopback), Port: testTunnel}
				if _, err := openUDP(t, c.version, 0).WriteTo([]byte("mark"), mark); err != nil {
					t.Fatal(err)
				}
				if first := arrivesAt(t, tunnel); !first.Addr().IsLoopback() {
					t.Errorf("the tunnel gets a packet of %s", first)
				}
				to := netip.AddrPortFrom(netip.MustParseAddr(peer), bed.port-1)
				if _, err := tunnel.WriteToUDPAddrPort([]byte("outer"), to); !errors.Is(err, unix.EPERM) {
					t.Errorf("a packet of the tunnel to %s: %v", to, err)
				}
				if _, err := other.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
					t.Fatal(err)
				}
				if bed.leaves(t, peer, next) {
					t.Errorf("a packet of the tunnel to %s leaves through the tunnel", peer)
				}
			}
			if n := k.Drops().Node; n != 2 {
				t.Errorf("%d packets are counted, want 2", n)
			}
			s.Tunnel.Port++
			set(t, k, s)
			bed.send(t, "fd01::80", "fd00:5::20", unix.IPPROTO_UDP, testTunnel)
			if from := arrivesAt(t, tunnel); from.Addr().String() != "fd00:5::20" {
				t.Errorf("a port that carries links no more gets a packet of %s", from)
			}
			wantErrors(t, "Clear", k.Clear())
			if now := state(t); strings.Contains(now, "KLINK") {
				t.Errorf("Clear leaves:\n%s", now)
			}
		})
	}
}

// In mode bridge it is a connection: neither its first packet arrives, nor the answer to it.
func TestConnectionInTunnel(t *testing.T) {
	enter(t)
	bed := newTunnelBed(t)
	k, _ := open(t, config)
	s := twoMeshes
	s.LocalPorts = []mesh.LocalPort{{Protocol: "udp", Port: 5353}}
	s.Tunnel.LocalPort = mesh.LocalPort{Protocol: "tcp", Port: testTunnel}
	set(t, k, s)
	other := map[string]*net.UDPConn{}
	for _, c := range tunnelCases {
		listener, err := net.ListenTCP("tcp"+c.version, &net.TCPAddr{Port: testTunnel})
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		other[c.version] = openUDP(t, c.version, 5353)
	}
	for _, tool := range []string{"", "iptables", "ip6tables"} { // with what the first chain has let in, too
		if tool != "" {
			run(t, tool+" -t mangle -F KLINK-INPUT")
		}
		for _, c := range tunnelCases {
			socket := other[c.version]
			bed.send(t, c.service, c.peer, unix.IPPROTO_TCP, testTunnel)
			bed.send(t, c.service, c.next, unix.IPPROTO_UDP, 53)
			if _, err := socket.WriteToUDPAddrPort([]byte("answer"), arrivesAt(t, socket)); err != nil {
				t.Fatal(err)
			}
			if bed.leaves(t, c.peer, c.next) {
				t.Errorf("%s: a connection of the tunnel to %s goes through the tunnel", tool, c.peer)
			}
		}
	}
}

// From a pod, a peer's packet to the port of tunnels would leave and come back as one of a node: it does not leave.
// Other packets to the same addresses, ports and networks do.
func TestTunnelAddresses(t *testing.T) {
	for _, protocol := range []int{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		name, other := "udp", unix.IPPROTO_TCP
		if protocol == unix.IPPROTO_TCP {
			name, other = "tcp", unix.IPPROTO_UDP
		}
		inNamespace(t, name, func(t *testing.T) {
			device := tun(t, "kubelink")
			tun(t, "pod0")
			run(t, `ip addr add 100.96.1.7/32 dev pod0
				ip addr add fd00:96::7/128 dev pod0 nodad
				ip link set pod0 up
				ip route add default dev pod0
				ip -6 route add default dev pod0
				sysctl -qw net.ipv6.conf.all.forwarding=1`)
			k, _ := open(t, config)
			s := twoMeshes
			s.LocalPorts = []mesh.LocalPort{{Protocol: "udp", Port: 9}}
			s.Pod = Pod{Is: true, Device: "pod0"}
			s.Tunnel.LocalPort = mesh.LocalPort{Protocol: name, Port: testTunnel}
			packets := []packet{
				{"the service", "10.96.0.80", protocol, 4000, 443, false},
				{"its other protocol", "10.96.0.80", other, 4000, 443, true},
				{"its other port", "10.96.0.80", protocol, 4000, 53, true},
				{"its target port", "10.96.0.80", protocol, 4000, testTunnel, true},
				{"another service", "10.96.0.81", protocol, 4000, 443, true},
				{"the load balancer", "203.0.113.9", protocol, 4000, 443, false},
				{"the node port", "10.250.0.5", protocol, 4000, 30777, false},
				{"the node port of another node", "10.250.7.6", protocol, 4000, 30777, false},
				{"another node port", "10.250.7.6", protocol, 4000, 30778, true},
				{"that port of a pod", "100.96.2.5", protocol, 4000, 30777, true},
				{"the service, IPv6", "fd01::80", protocol, 4000, 443, false},
				{"another service, IPv6", "fd01::81", protocol, 4000, 443, true},
			}
			check := func(when string) {
				t.Helper()
				for i, arrived := range arrivals(t, device, packets, netip.MustParseAddrPort("192.168.0.11:9")) {
					if p := packets[i]; arrived != (p.open || len(s.Tunnel.Addresses) == 0) {
						t.Errorf("%s: %s (%s port %d): leaves %t", when, p.name, p.target, p.to, arrived)
					}
				}
			}
			set(t, k, s)
			check("no address is known")
			for network, port := range map[string]uint16{"10.96.0.80/32": 443, "203.0.113.9/32": 443, "10.250.0.0/16": 30777,
				"10.250.0.5/32": 30777, "fd01::80/128": 443} {
				s.Tunnel.Addresses = append(s.Tunnel.Addresses, TunnelAddress{netip.MustParsePrefix(network), port})
			}
			set(t, k, s)
			check("addresses are known")
			if n := k.Drops().Node; n != 5 {
				t.Errorf("%d packets are counted, want 5", n)
			}
			next, writes := open(t, config)
			if set(t, next, s); writes.writes != 0 {
				t.Errorf("the next process writes %d times", writes.writes)
			}
		})
	}
}
