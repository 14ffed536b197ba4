package kernel

// What a linked cluster reaches of the node itself, in a real network namespace.

import (
	"encoding/binary"
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

// packet is one of a peer, or a reply to the node's own.
type packet struct {
	name     string
	target   string
	protocol int
	from, to uint16 // ports; of ICMP: type, and an identifier
	open     bool
}

// encode makes the packet with a source.
func (p packet) encode(source netip.Addr) []byte {
	target := netip.MustParseAddr(p.target)
	payload := make([]byte, 20)
	binary.BigEndian.PutUint16(payload[0:], p.from)
	binary.BigEndian.PutUint16(payload[2:], p.to)
	sum := checksum{}
	if p.protocol != unix.IPPROTO_ICMP {
		sum.add(source.AsSlice())
		sum.add(target.AsSlice())
		sum.add([]byte{0, byte(p.protocol), 0, 20})
	}
	at := 6 // of the checksum
	switch p.protocol {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		at = 2
		payload[0], payload[1] = byte(p.from), 0
		binary.BigEndian.PutUint16(payload[2:], 0)
		binary.BigEndian.PutUint16(payload[4:], p.to)
	case unix.IPPROTO_TCP:
		at = 16
		payload[12], payload[13] = 0x50, 2 // SYN
	case unix.IPPROTO_UDP:
		binary.BigEndian.PutUint16(payload[4:], 20)
	}
	sum.add(payload)
	binary.BigEndian.PutUint16(payload[at:], sum.value())
	if target.Is6() {
		header := make([]byte, 40)
		header[0], header[5], header[6], header[7] = 0x60, 20, byte(p.protocol), 64
		copy(header[8:], source.AsSlice())
		copy(header[24:], target.AsSlice())
		return append(header, payload...)
	}
	header := make([]byte, 20)
	header[0], header[3], header[8], header[9] = 0x45, 40, 64, byte(p.protocol)
	copy(header[12:], source.AsSlice())
	copy(header[16:], target.AsSlice())
	sum = checksum{}
	sum.add(header)
	binary.BigEndian.PutUint16(header[10:], sum.value())
	return append(header, payload...)
}

// checksum is the one of RFC 1071.
type checksum struct{ sum uint32 }

func (c *checksum) add(b []byte) {
	for i := 0; i < len(b); i += 2 {
		c.sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
}

func (c *checksum) value() uint16 {
	for c.sum > 0xffff {
		c.sum = c.sum>>16 + c.sum&0xffff
	}
	return ^uint16(c.sum)
}

// arrivals sends packets into the device, each with a source of its own, and returns which of them the node took or
// forwarded: rules of INPUT and FORWARD count them. Behind them it sends one to an open port, which shows that the
// rest is through.
func arrivals(t *testing.T, device *os.File, packets []packet, open netip.AddrPort) (arrived []bool) {
	t.Helper()
	tables := map[bool]string{false: "iptables", true: "ip6tables"}
	sources := make([]netip.Addr, len(packets))
	run(t, `iptables -w -Z
		ip6tables -w -Z`)
	for i, p := range packets {
		is6 := netip.MustParseAddr(p.target).Is6()
		sources[i] = netip.MustParseAddr(fmt.Sprintf("100.64.16.%d", i+1))
		if is6 {
			sources[i] = netip.MustParseAddr(fmt.Sprintf("fd00:5::%x", i+1))
		}
		for _, chain := range []string{"INPUT", "FORWARD"} {
			run(t, fmt.Sprintf("%s -w -I %s -s %s -i kubelink", tables[is6], chain, sources[i]))
		}
		if _, err := device.Write(p.encode(sources[i])); err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
	}
	marker, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(open))
	if err != nil {
		t.Fatal(err)
	}
	defer marker.Close()
	last := packet{target: open.Addr().String(), protocol: unix.IPPROTO_UDP, from: 9, to: open.Port()}
	if _, err := device.Write(last.encode(netip.MustParseAddr("100.64.16.250"))); err != nil {
		t.Fatal(err)
	}
	if err := marker.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := marker.ReadFrom(make([]byte, 100)); err != nil {
		t.Fatalf("the last packet, to an open port: %v", err)
	}
	for _, source := range sources {
		counted := false
		for line := range strings.Lines(run(t, tables[source.Is6()]+"-save -c -t filter")) {
			counted = counted || strings.Contains(line, " -s "+source.String()+"/") && !strings.HasPrefix(line, "[0:")
		}
		arrived = append(arrived, counted)
	}
	return arrived
}

// A linked cluster reaches no port of the gateway node but LocalPorts: not with the address of the cluster, not
// with another one of the node, not by a node port, and no tunnel of the pod network. Ping and replies arrive.
func TestGuard(t *testing.T) {
	for backend, prepare := range map[string]func(testing.TB){"nft": func(testing.TB) {}, "legacy": useLegacy} {
		inNamespace(t, backend, func(t *testing.T) {
			prepare(t)
			testGuard(t)
		})
	}
}

func testGuard(t *testing.T) {
	device := tun(t, "kubelink")
	tun(t, "cali0")
	tun(t, "eth0")
	run(t, `ip link set cali0 up
		ip route add 100.96.0.5/32 dev cali0
		ip route add 100.64.0.80/32 dev cali0
		ip addr add 10.250.0.5/24 dev eth0
		ip link set eth0 up
		sysctl -qw net.ipv4.ip_forward=1
		sysctl -qw net.ipv6.conf.all.forwarding=1
		sysctl -qw net.ipv4.conf.all.rp_filter=0
		sysctl -qw net.ipv4.conf.all.route_localnet=1
		ip addr add fd00:250::5/64 dev eth0 nodad
		ip addr add 10.96.0.10/32 dev lo
		iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p udp --dport 30080 -j DNAT --to 100.96.0.5:80
		iptables -t nat -A PREROUTING -d 10.96.0.80 -p tcp --dport 80 -j DNAT --to 100.96.0.5:80
		nft add table ip kube-proxy
		nft add chain ip kube-proxy nat { type nat hook prerouting priority dstnat ; }
		nft add rule ip kube-proxy nat fib daddr type local udp dport 30081 dnat to 100.96.0.5:80`)
	s := twoMeshes
	s.LocalPorts = []mesh.LocalPort{{Protocol: "tcp", Port: 9153}, {Protocol: "udp", Port: 9}}
	s.ServiceNetworks = addresses("10.96.0.0/16")
	k, _ := open(t, config)
	set(t, k, s)
	const tcp, udp, icmp, icmp6 = unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6
	packets := []packet{
		{"ssh", "192.168.0.11", tcp, 4000, 22, false},
		{"kubelet", "192.168.0.11", tcp, 4000, 10250, false},
		{"metrics, as local-ports says", "192.168.0.11", tcp, 4000, 9153, true},
		{"the same port by UDP", "192.168.0.11", udp, 4000, 9153, false},
		{"the same port of the other mesh", "10.99.0.1", tcp, 4000, 9153, true},
		{"the same port of another address", "10.250.0.5", tcp, 4000, 9153, false},
		{"VXLAN of flannel", "192.168.0.11", udp, 4000, 8472, false},
		{"VXLAN", "192.168.0.11", udp, 4000, 4789, false},
		{"a tunnel of IPIP", "192.168.0.11", unix.IPPROTO_IPIP, 0, 0, false},
		{"a node port", "192.168.0.11", udp, 4000, 30080, false},
		{"a node port at the node's address", "10.250.0.5", udp, 4000, 30080, false},
		{"a node port of kube-proxy in nftables mode", "192.168.0.11", udp, 4000, 30081, false},
		{"kubelet at the node's address", "10.250.0.5", tcp, 4000, 10250, false},
		{"kubelet at the loopback address", "127.0.0.1", tcp, 4000, 10250, false},
		{"broadcast in the node's network", "10.250.0.255", udp, 4000, 9, false},
		{"multicast", "224.0.0.251", udp, 4000, 5353, false},
		{"ping", "192.168.0.11", icmp, 8, 1, true},
		{"timestamp request", "192.168.0.11", icmp, 13, 1, false},
		{"a pod", "100.96.0.5", udp, 4000, 22, true},
		{"a service", "10.96.0.80", tcp, 4000, 80, true},
		{"DNS at a service's address that the node has (NodeLocal DNSCache)", "10.96.0.10", udp, 4000, 53, true},
		{"ssh at this address", "10.96.0.10", tcp, 4000, 22, false},
		{"a node port at this address", "10.96.0.10", udp, 4000, 30080, false},
		{"ssh, IPv6", "fd00:99::1", tcp, 4000, 22, false},
		{"metrics, IPv6", "fd00:99::1", tcp, 4000, 9153, true},
		{"ping, IPv6", "fd00:99::1", icmp6, 128, 1, true},
		{"kubelet at the node's address, IPv6", "fd00:250::5", tcp, 4000, 10250, false},
		{"the routers' anycast address, IPv6", "fd00:250::", tcp, 4000, 10250, false},
		{"multicast ping, IPv6", "ff02::1", icmp6, 128, 1, false},
	}
	openPort := netip.MustParseAddrPort("192.168.0.11:9")
	arrived := arrivals(t, device, packets, openPort)
	refused := uint64(0)
	for i, p := range packets {
		if arrived[i] != p.open {
			t.Errorf("%s (%s port %d): arrives %t, want %t", p.name, p.target, p.to, arrived[i], p.open)
		}
		if !p.open {
			refused++
		}
	}
	if got := k.Drops().Node; got != refused { // without a Set
		t.Errorf("%d packets were refused, and %d counted", refused, got)
	}
	// A chain that is made anew counts from zero.
	before := k.Drops().Node
	s.LocalPorts = s.LocalPorts[1:]
	set(t, k, s)
	arrivals(t, device, []packet{{"ssh", "192.168.0.11", tcp, 4000, 22, false}}, openPort)
	set(t, k, s)
	if got := k.Drops().Node; got != before+1 {
		t.Errorf("%d packets counted, want %d", got, before+1)
	}
	successor, _ := open(t, config)
	if set(t, successor, s); successor.Drops().Node != 0 {
		t.Errorf("the next process has counted %d packets", successor.Drops().Node)
	}
}

// With IPVS all services' addresses are the node's own, on a device of kube-proxy or kube-router: linked clusters reach
// them. Which ports they have, kube-proxy knows.
func TestGuardWithIPVS(t *testing.T) {
	for _, name := range []string{"kube-ipvs0", "kube-dummy-if"} {
		inNamespace(t, name, func(t *testing.T) {
			device := tun(t, "kubelink")
			k, _ := open(t, config)
			s := oneMesh
			s.ServiceNetworks = addresses("10.96.0.0/16", "fd00:96::/112")
			s.LocalPorts = []mesh.LocalPort{{Protocol: "udp", Port: 9}}
			packets := []packet{
				{"a service", "10.96.0.80", unix.IPPROTO_TCP, 4000, 80, true},
				{"ssh", "192.168.0.11", unix.IPPROTO_TCP, 4000, 22, false},
			}
			run(t, fmt.Sprintf(`ip tuntap add dev %s mode tun
				ip link set %[1]s up
				ip addr add 10.96.0.80/32 dev %[1]s`, name))
			set(t, k, s)
			for i, arrived := range arrivals(t, device, packets, netip.MustParseAddrPort("192.168.0.11:9")) {
				if arrived != packets[i].open {
					t.Errorf("%s: arrives %t, want %t", packets[i].name, arrived, packets[i].open)
				}
			}
			run(t, fmt.Sprintf(`ip link del %s
				ip addr add 10.96.0.80/32 dev lo`, name))
			set(t, k, s)
			packets[0].open = false // another program's address now
			for i, arrived := range arrivals(t, device, packets, netip.MustParseAddrPort("192.168.0.11:9")) {
				if arrived != packets[i].open {
					t.Errorf("without IPVS, %s: arrives %t, want %t", packets[i].name, arrived, packets[i].open)
				}
			}
		})
	}
}

// What the node has asked is answered. What a peer has begun ends with the port that was open for it.
func TestGuardKnowsDirections(t *testing.T) {
	enter(t)
	device := tun(t, "kubelink")
	k, _ := open(t, config)
	s := oneMesh
	s.LocalPorts = []mesh.LocalPort{{Protocol: "udp", Port: 9}, {Protocol: "udp", Port: 5353}}
	set(t, k, s)
	listen := func(port int) *net.UDPConn {
		t.Helper()
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(192, 168, 0, 11), Port: port})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	far := netip.MustParseAddr("100.64.16.7")
	send := func(from, to uint16) {
		t.Helper()
		p := packet{target: "192.168.0.11", protocol: unix.IPPROTO_UDP, from: from, to: to}
		if _, err := device.Write(p.encode(far)); err != nil {
			t.Fatal(err)
		}
	}
	get := func(conn *net.UDPConn) (from string) {
		t.Helper()
		_, address, err := conn.ReadFrom(make([]byte, 100))
		if err != nil {
			t.Fatal(err)
		}
		return address.String()
	}

	asks, serves := listen(4444), listen(5353)
	if _, err := asks.WriteToUDPAddrPort([]byte("a question"), netip.AddrPortFrom(far, 53)); err != nil {
		t.Fatal(err)
	}
	received(t, device, far)
	send(54, 4444) // from another port: no reply
	send(53, 4444)
	if got := get(asks); got != "100.64.16.7:53" {
		t.Errorf("a packet from %s comes first, want the reply", got)
	}

	send(4000, 5353)
	if _, err := serves.WriteToUDPAddrPort([]byte("an answer"), netip.MustParseAddrPort(get(serves))); err != nil {
		t.Fatal(err)
	}
	received(t, device, far) // now the connection is established
	s.LocalPorts = s.LocalPorts[:1]
	set(t, k, s)
	send(4000, 5353)
	open := listen(9)
	send(4000, 9)
	get(open)
	if got := k.Drops().Node; got != 2 { // without a Set
		t.Errorf("%d packets refused, want the one that was no reply, and the one to the port that has been closed", got)
	}
}
