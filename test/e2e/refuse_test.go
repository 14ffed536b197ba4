package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/peer"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// expectCount waits until a counter of the first broker has grown.
func expectCount(t *testing.T, series string, action func()) {
	t.Helper()
	ctx := context.Background()
	before, err := brokers[0].Metric(ctx, series)
	must(t, err)
	action()
	within(t, countTime(), series+" to grow", func(ctx context.Context) error {
		v, err := brokers[0].Metric(ctx, series)
		if err == nil && v <= before {
			err = fmt.Errorf("it is %g", v)
		}
		return err
	})
}

func refusedSeries(reason string) string {
	return fmt.Sprintf(`coredns_kubelink_refused_connections_total{reason=%q}`, reason)
}

// tcpSegment is a segment without payload.
func tcpSegment(port uint16, flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, 40000)
	binary.BigEndian.PutUint16(b[2:], port)
	b[12], b[13] = 5<<4, flags
	return b
}

// ipv4Packet is a packet of any protocol. field has flags and offset of a fragment.
func ipv4Packet(from, to netip.Addr, protocol byte, field uint16, payload []byte) []byte {
	b := peer.UDP(netip.AddrPortFrom(from, 1), netip.AddrPortFrom(to, 1), payload)
	b = append(b[:20], payload...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], field)
	b[9] = protocol
	peer.SetChecksum(b)
	return b
}

// sendToNode sends packets to the gateway node itself that are neither ping nor replies: each is dropped and counted.
func sendToNode(t *testing.T, p *peer.Peer, from netip.AddrPort) {
	inner := peer.UDP(from, netip.AddrPortFrom(servers[0].service, udpPort), []byte("evil"))
	for _, c := range []struct {
		name     string
		protocol byte
		field    uint16 // flags and offset of a fragment
		payload  []byte
	}{
		{"SYN to SSH", 6, 0, tcpSegment(22, 0x02)},
		{"SYN to the kubelet", 6, 0, tcpSegment(10250, 0x02)},
		{"SYN with FIN", 6, 0, tcpSegment(22, 0x03)},
		{"flags in a later fragment", 6, 0x2000, tcpSegment(22, 0x10)[:8]},
		{"a fragment over the flags", 6, 1, tcpSegment(22, 0x02)},
		{"IPIP", 4, 0, inner},
		{"GRE", 47, 0, append([]byte{0, 0, 8, 0}, inner...)},
		{"ESP", 50, 0, make([]byte, 32)},
		{"ICMP redirect", 1, 0, []byte{5, 1, 0, 0, 192, 168, 0, 12}},
		{"ICMP timestamp", 1, 0, []byte{13, 0, 0, 0, 0, 1, 0, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			packet := ipv4Packet(from.Addr(), brokers[0].MeshAddress.Addr(), c.protocol, c.field, c.payload)
			send := func() { must(t, p.Send(peer.Packet, packet)) }
			if inWireGuard() && c.field != 0 {
				send() // the kernel waits for the other fragments, and decides about the whole
				return
			}
			expectCount(t, droppedSeries(brokers[2].Name, "node"), send)
		})
	}
}

// The broker refuses a peer without the right to connect before any packet, and counts it. The healthy link goes on.
func TestRefusedConnections(t *testing.T) {
	ctx := startTest(t, time.Minute)
	check := expectNoFailures(t, clients[0], servers[1].service)
	defer check()
	from := brokers[2].Gateway().Host
	third := brokers[2]

	t.Run("wrong CA", func(t *testing.T) {
		other, err := testbed.NewCA("somebody else")
		must(t, err)
		expectCount(t, refusedSeries("certificate"), func() {
			p, err := dialRaw(ctx, from, brokers[0], other, third.FQDN)
			if err == nil { // with TLS 1.3, the client learns this with its first read
				err = p.Ended()
			} else {
				err = nil
			}
			must(t, err)
		})
	})
	t.Run("unknown name", func(t *testing.T) {
		expectCount(t, refusedSeries("name"), func() {
			p, err := dialRaw(ctx, from, brokers[0], f.CA, "nobody.example")
			must(t, err)
			must(t, p.Hello(third.MeshAddress, third.ServiceCIDR))
			must(t, p.Ended())
		})
	})
	t.Run("wrong mesh address", func(t *testing.T) {
		expectCount(t, refusedSeries("address"), func() {
			p, err := dialRaw(ctx, from, brokers[0], f.CA, third.FQDN)
			must(t, err)
			must(t, p.Hello(netip.MustParsePrefix("192.168.0.77/24"), third.ServiceCIDR))
			must(t, p.Ended())
		})
	})
	t.Run("garbage", func(t *testing.T) {
		expectCount(t, refusedSeries("hello"), func() {
			p, err := dialRaw(ctx, from, brokers[0], f.CA, third.FQDN)
			must(t, err)
			must(t, p.Send(peer.Hello, []byte("hello?")))
			must(t, p.Ended())
		})
	})
}

// A peer with the right to connect may send only from its cluster address, and only to destinations within ingress.
// The bare wire format of a legacy peer carries packets both ways.
func TestInboundFilter(t *testing.T) {
	ctx := startTest(t, time.Minute)
	third := brokers[2]
	// The raw peer replaces the broker of the third cluster.
	must(t, third.Kill(ctx, syscall.SIGTERM))
	defer func() {
		must(t, third.Start(ctx))
		must(t, f.WaitMesh(ctx))
	}()
	check := expectNoFailures(t, clients[0], servers[1].service)
	defer check()

	p := replaceThird(t, ctx)
	defer p.Close()
	must(t, brokers[0].WaitState(ctx, third.Name, v1alpha1.StateUp))

	self := netip.AddrPortFrom(third.MeshAddress.Addr(), 7777)
	service := netip.AddrPortFrom(servers[0].service, udpPort)
	must(t, p.Send(peer.Packet, peer.UDP(self, service, []byte("hello"))))
	from, text, err := p.Datagram(2 * time.Second)
	must(t, err)
	if from != service {
		t.Errorf("answer from %s, want %s", from, service)
	}
	checkClientAddress(t, string(text))
	must(t, p.Send(99, []byte("of a type unknown: skipped")))
	recorder, recorded := startRecorder(t, ctx)
	must(t, p.Send(peer.Packet, peer.UDP(self, recorder, []byte("good"))))

	for _, c := range []struct {
		name     string
		from, to netip.AddrPort
		reason   string
	}{
		{"spoofed source of another cluster", netip.AddrPortFrom(brokers[1].MeshAddress.Addr(), 7777), recorder, "source"},
		{"spoofed source of a pod", netip.AddrPortFrom(clients[0].Address, 7777), recorder, "source"},
		{"spoofed source of the receiver", netip.AddrPortFrom(brokers[0].MeshAddress.Addr(), 7777), recorder, "source"},
		{"to a pod", self, netip.AddrPortFrom(servers[0].pod.Address, udpPort), "destination"},
		{"to a node", self, netip.AddrPortFrom(brokers[0].Gateway().Address, 1053), "destination"},
		{"to the API server", self, netip.AddrPortFrom(netip.MustParseAddr("8.8.8.8"), 53), "destination"},
		{"to loopback", self, netip.MustParseAddrPort("127.0.0.1:1053"), "destination"},
	} {
		t.Run(c.name, func(t *testing.T) {
			send := func() { must(t, p.Send(peer.Packet, peer.UDP(c.from, c.to, []byte("evil")))) }
			if inWireGuard() && c.reason == "source" {
				send() // the device drops it, and does not count
				return
			}
			expectCount(t, droppedSeries(third.Name, c.reason), send)
		})
	}
	sendToNode(t, p, self)
	t.Run("malformed", func(t *testing.T) {
		send := func() { must(t, p.Send(peer.Packet, []byte{0x45, 0, 0})) }
		if inWireGuard() {
			send() // this, too
			return
		}
		expectCount(t, droppedSeries(third.Name, "malformed"), send)
	})
	// None of these packets broke the session.
	must(t, p.Send(peer.Packet, peer.UDP(self, service, []byte("hello"))))
	_, _, err = p.Datagram(2 * time.Second)
	must(t, err)
	if got := recorded(); got != "good" {
		t.Errorf("a server got %q", got)
	}
}

// replaceThird puts a raw peer in the place of the broker of the third cluster.
func replaceThird(t *testing.T, ctx context.Context) *peer.Peer {
	t.Helper()
	one, third := brokers[0], brokers[2]
	if inWireGuard() {
		far := farEnd(one)
		far.Allowed = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} // it sends anywhere
		p, err := peer.DialTunnel(third.Gateway().Host, third.PrivateKey(), testbed.WireguardPort, far)
		must(t, err)
		return p
	}
	p, err := dialRaw(ctx, third.Gateway().Host, one, f.CA, third.FQDN)
	must(t, err)
	must(t, p.Hello(third.MeshAddress, third.ServiceCIDR))
	kind, payload, err := p.Receive()
	must(t, err)
	if kind != peer.Hello || len(payload) < 80 ||
		netip.AddrFrom4([4]byte(payload[12:16])) != one.MeshAddress.Addr() {
		t.Fatalf("first frame: type %d, %x", kind, payload)
	}
	return p
}

// startRecorder starts a service of the first cluster that notes all datagrams that reach it.
func startRecorder(t *testing.T, ctx context.Context) (service netip.AddrPort, recorded func() string) {
	t.Helper()
	const port = 9101
	b := brokers[0]
	conn, err := servers[0].pod.ListenPacket("udp4", fmt.Sprintf(":%d", port))
	must(t, err)
	var all []byte
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for buffer := make([]byte, 1500); ; {
			n, _, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			all = append(all, buffer[:n]...)
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		must(t, b.Client.Delete(context.Background(),
			&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "recorder"}}))
	})
	addr, err := b.Service(ctx, "recorder", map[string]string{"app": "server"},
		[]corev1.ServicePort{testbed.UDPPort(port)}, testbed.ServiceOptions{})
	must(t, err)
	return netip.AddrPortFrom(addr, port), func() string { conn.Close(); <-ended; return string(all) }
}

// A session from a time without certificate ends when there is a certificate.
func TestPlainSessionsEndWithCertificate(t *testing.T) {
	ctx := startTest(t, time.Minute)
	one, third := brokers[0], brokers[2]
	must(t, third.Kill(ctx, syscall.SIGTERM))
	t.Cleanup(func() { must(t, third.Start(context.Background())); restoreMesh(t) })
	text := one.Corefile()
	must(t, one.SetCorefile(strings.Replace(text, "secret kubelink-tls", "", 1)))
	must(t, one.Reload(ctx))
	must(t, one.Process.WaitLog(ctx, "neither encrypted nor authenticated"))
	var p *peer.Peer
	within(t, 5*time.Second, "plain session", func(ctx context.Context) error {
		conn, err := third.Gateway().DialContext(ctx, "tcp", one.FQDN+":80")
		if err != nil {
			return err
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		p = &peer.Peer{Conn: conn}
		if err = p.Hello(third.MeshAddress, third.ServiceCIDR); err == nil {
			_, _, err = p.Receive()
		}
		return err
	})
	must(t, one.WaitState(ctx, third.Name, v1alpha1.StateUp))
	must(t, one.SetCorefile(text))
	must(t, one.Reload(ctx))
	must(t, p.Ended())
}

// ingress limits what a link may reach. A change takes effect at once.
func TestIngress(t *testing.T) {
	ctx := startTest(t, time.Minute)
	check := expectNoFailures(t, clients[2], servers[1].service)
	defer check()
	link := brokers[1].LinkTo() // as the first cluster has it
	defer func() { must(t, brokers[0].Apply(ctx, link)) }()

	closed := link.DeepCopy()
	closed.Spec.Ingress = []v1alpha1.IngressCIDR{v1alpha1.IngressCIDR("!" + servers[0].service.String() + "/32")}
	must(t, brokers[0].Apply(ctx, closed))
	within(t, 2*time.Second, "ingress to close", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		if _, err := clients[1].Get(ctx, "http://"+servers[0].service.String()+"/"); err == nil {
			return fmt.Errorf("still answered")
		}
		return nil
	})
	within(t, countTime(), "dropped packets to be counted", func(ctx context.Context) error {
		v, err := brokers[0].Metric(ctx, droppedSeries("kubelink2", "destination"))
		if err == nil && v == 0 {
			err = errors.New("not counted")
		}
		return err
	})
	must(t, brokers[0].Apply(ctx, link))
	waitForReply(t, 2*time.Second, clients[1], servers[0].service)

	// A link can reach a pod if its ingress allows it.
	open := link.DeepCopy()
	pod := servers[0].pod.Address.String() + "/32"
	open.Spec.Ingress = []v1alpha1.IngressCIDR{v1alpha1.IngressCIDR(brokers[0].ServiceCIDR.String()),
		v1alpha1.IngressCIDR(pod)}
	must(t, brokers[0].Apply(ctx, open))
}

// The rules of the API server (CEL) reject what could never work, with a helpful message. Problems that depend on the
// mesh show in state and message. Every other link stays up.
func TestInvalidObjects(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	b := brokers[0]
	check := expectNoFailures(t, clients[0], servers[1].service)
	defer check()

	apply := func(name, spec string) error {
		if inWireGuard() && strings.Contains(spec, `"endpoint":`) && !strings.Contains(spec, "LocalLink") &&
			!strings.Contains(spec, "publicKey") {
			spec += fmt.Sprintf(`,"publicKey":%q`, strangersKey(name))
		}
		_, err := b.KubectlInput(ctx,
			fmt.Sprintf(`{"apiVersion":"kubelink.mandelsoft.org/v1alpha1","kind":"KubeLink","metadata":{"name":%q},"spec":{%s}}`,
				name, spec), "apply", "-f", "-")
		return err
	}
	for _, c := range []struct{ name, spec, says string }{
		{"no-address", `"endpoint":"x.example"`, "spec.clusterAddress: Required value"},
		{"no-mask", `"clusterAddress":"192.168.0.50","endpoint":"x.example"`,
			"spec.clusterAddress must be the address of the cluster in the mesh"},
		{"no-host", `"clusterAddress":"192.168.0.0/24","endpoint":"x.example"`, "spec.clusterAddress has no host part"},
		{"no-mask-bits", `"clusterAddress":"192.168.0.50/0","endpoint":"x.example"`, "the mask /0 of spec.clusterAddress"},
		{"no-endpoint", `"clusterAddress":"192.168.0.50/24"`, "spec.endpoint is missing"},
		{"bad-endpoint", `"clusterAddress":"192.168.0.50/24","endpoint":"http://x.example"`,
			"spec.endpoint must be host[:port]"},
		{"bad-cidr", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","cidr":"100.64.48.1/20"`,
			"spec.cidr must be a network"},
		{"cidr-is-mesh", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","cidr":"192.168.0.0/16"`,
			"spec.clusterAddress lies in spec.cidr"},
		{"bad-egress", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","egress":["10.1.0"]`,
			"spec.egress must be networks"},
		{"bad-ingress", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","ingress":["!10.1.0.1/33"]`,
			"spec.ingress must be networks"},
		{"self-gateway", `"clusterAddress":"192.168.0.50/24","gatewayLink":"self-gateway"`,
			"spec.gatewayLink names this link itself"},
		{"local-gateway", `"clusterAddress":"192.168.0.50/24","endpoint":"LocalLink","gatewayLink":"kubelink2"`,
			"spec.gatewayLink cannot be used on a LocalLink"},
		{"bad-key", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","publicKey":"abc"`,
			"spec.publicKey must be a WireGuard key"},
		{"bad-psk", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","presharedKey":"abc"`,
			"spec.presharedKey must be a WireGuard key"},
		{"two-psks", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example",` +
			`"presharedKey":"y5tH3zqUoG0kKfJqk1o7f0Jc0hS3d2m1n9pQe8rT4wA=","presharedKeySecretRef":{"name":"a","key":"b"}`,
			"spec.presharedKey and spec.presharedKeySecretRef are both set"},
		{"psk-without-key", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","presharedKeySecretRef":{"name":"a"}`,
			"spec.presharedKeySecretRef.key: Required value"},
		{"bad-dns-ip", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","dns":{"dnsIP":"1.2.3"}`,
			"spec.dns.dnsIP must be an IP address"},
		{"bad-dns-domain", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","dns":{"baseDomain":"a..b"}`,
			"spec.dns.baseDomain must be a DNS domain name"},
	} {
		t.Run("refused/"+c.name, func(t *testing.T) {
			err := apply(c.name, c.spec)
			if err == nil {
				b.Remove(ctx, c.name)
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("kubectl apply says: %v\nwant %q", err, c.says)
			}
		})
	}
	for _, c := range []struct{ name, spec, says string }{
		{"nothing", `"ports":[{"port":80}]`, "nothing to expose"},
		{"no-ports", `"service":"server"`, "spec.ports is missing"},
		{"bad-mesh-address", `"service":"server","meshAddress":"x"`, "spec.meshAddress must be an IP address"},
		{"bad-endpoint-address", `"ports":[{"port":80}],"endpoints":[{"address":"x"}]`,
			"spec.endpoints[].address must be an IP address"},
		{"loopback-mesh-address", `"service":"server","meshAddress":"127.0.0.1"`, "spec.meshAddress cannot be a loopback"},
		{"loopback-endpoint", `"ports":[{"port":80}],"endpoints":[{"address":"::1"}]`,
			"spec.endpoints[].address cannot be a loopback"},
		{"service-and-address", `"service":"server","ports":[{"port":80}],"endpoints":[{"address":"10.1.1.1"}]`,
			"with spec.service, spec.endpoints may have one entry, with portMappings only"},
		{"service-and-endpoints", `"service":"server","ports":[{"port":80}],"endpoints":[{},{}]`,
			"with spec.service, spec.endpoints may have one entry, with portMappings only"},
		{"endpoint-without-address", `"ports":[{"port":80}],"endpoints":[{"address":"10.1.1.1"},{}]`,
			"without spec.service, each of spec.endpoints needs an address"},
		{"bad-protocol", `"service":"server","ports":[{"port":80,"protocol":"SCTP"}]`, "protocol must be TCP or UDP"},
		{"bad-port", `"service":"server","ports":[{"port":0}]`, "should be greater than or equal to 1"},
	} {
		t.Run("refused MeshService/"+c.name, func(t *testing.T) {
			_, err := b.KubectlInput(ctx,
				fmt.Sprintf(
					`{"apiVersion":"kubelink.mandelsoft.org/v1alpha1","kind":"MeshService","metadata":{"name":%q},"spec":{%s}}`,
					c.name, c.spec), "apply", "-f", "-")
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("kubectl apply says: %v\nwant %q", err, c.says)
			}
		})
	}
	inboundState, inboundSays := "Invalid", "wireguard"
	if inWireGuard() {
		inboundState, inboundSays = "Idle", "waiting for the peer to connect"
	}
	// A gateway link behind another gateway link takes two objects.
	must(t, apply("behind", `"clusterAddress":"192.168.0.60/24","gatewayLink":"kubelink2"`))
	defer func() { must(t, b.Remove(ctx, "behind")) }()
	for _, c := range []struct{ name, spec, state, says string }{
		{"gateway-behind-gateway", `"clusterAddress":"192.168.0.50/24","gatewayLink":"behind"`, "Invalid",
			"has a gateway itself"},
		{"gateway-of-other-mesh", `"clusterAddress":"192.168.0.50/24","gatewayLink":"m9--x"`, "Invalid", "same mesh"},
		{"bad-name", `"clusterAddress":"192.168.0.50/24","endpoint":"a..b"`, "Invalid", "label"},
		{"cidr-in-mesh", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","cidr":"192.168.0.128/25"`, "Invalid",
			"overlaps with the network 192.168.0.0/24"},
		{"egress-own-address", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","egress":["192.168.0.11/32"]`,
			"Invalid", "its local address"},
		{"egress-local-services", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","egress":["100.64.0.0/24"]`,
			"Invalid", "local service network"},
		{"egress-part-of-cidr", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","egress":["100.64.16.0/24"]`,
			"Invalid", "older link kubelink2"},
		{"egress-loop", `"clusterAddress":"192.168.0.50/24","endpoint":"172.31.0.9","egress":["172.16.0.0/12"]`, "Invalid",
			"contains the endpoint 172.31.0.9"},
		{"m9--a", `"clusterAddress":"100.64.0.5/24","endpoint":"LocalLink"`, "Invalid", "service-cidr"},
		{"m9--b", `"clusterAddress":"10.77.0.1/24","endpoint":"LocalLink","cidr":"100.65.0.0/20"`, "Invalid",
			"differs from service-cidr"},
		{"m9--c", `"clusterAddress":"10.77.0.255/24","endpoint":"LocalLink"`, "Invalid", "broadcast"},
		{"m9--d", `"clusterAddress":"127.0.0.1/8","endpoint":"LocalLink"`, "Invalid", "loopback"},
		{"m9--e", `"clusterAddress":"10.77.0.1/32","endpoint":"LocalLink"`, "Invalid", "no room"},
		{"m9--f", `"clusterAddress":"10.77.0.1/24","endpoint":"LocalLink","dns":{"baseDomain":"local"}`, "Invalid",
			"cluster domain"},
		{"mask", `"clusterAddress":"192.168.0.50/16","endpoint":"x.example"`, "Invalid", "use 192.168.0.50/24"},
		{"network", `"clusterAddress":"192.168.7.50/24","endpoint":"x.example"`, "Invalid",
			"does not lie in the network 192.168.0.0/24"},
		{"own-address", `"clusterAddress":"192.168.0.11/24","endpoint":"x.example"`, "Invalid",
			"address of the local cluster"},
		{"same-address", `"clusterAddress":"192.168.0.12/24","endpoint":"x.example"`, "Invalid", "older link kubelink2"},
		{"local-cidr", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","cidr":"100.64.0.0/24"`, "",
			"is not routed, as it overlaps with the local service network"},
		{"same-cidr", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","cidr":"100.64.16.0/24"`, "Invalid",
			"older link kubelink2"},
		{"pod-cidr", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","cidr":"100.96.0.0/16"`, "",
			"is not routed, as it overlaps with the pod-cidr"},
		{"family", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","cidr":"fd00::/112"`, "Invalid", "IP families"},
		{"default-route", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","egress":["0.0.0.0/0"]`, "Invalid",
			"default route"},
		{"default-route-in-parts",
			`"clusterAddress":"192.168.0.50/24","endpoint":"x.example","egress":["0.0.0.0/1","128.0.0.0/1"]`, "Invalid",
			"part of a default route"},
		{"local-egress", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","egress":["10.250.0.0/24"]`, "Invalid",
			"node-cidr"},
		{"same-egress", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example","egress":["100.64.16.0/20"]`, "Invalid",
			"older link kubelink2"},
		{"inbound", `"clusterAddress":"192.168.0.50/24","endpoint":"Inbound"`, inboundState, inboundSays},
		{"bad-port", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example:99999"`, "Invalid", "1 to 65535"},
		{"no-gateway", `"clusterAddress":"192.168.0.50/24","gatewayLink":"nope"`, "Stale", "does not exist"},
		{"local-as-gateway", `"clusterAddress":"192.168.0.50/24","gatewayLink":"kubelink1"`, "Invalid", "LocalLink"},
		{"second-local", `"clusterAddress":"192.168.77.1/24","endpoint":"LocalLink"`, "Stale", "older LocalLink kubelink1"},
		{"m9--x", `"clusterAddress":"192.168.0.50/24","endpoint":"x.example"`, "Stale", "mesh m9 has no LocalLink"},
		{"m9--overlap", `"clusterAddress":"192.168.0.50/24","endpoint":"LocalLink"`, "Invalid", "overlaps"},
	} {
		t.Run("shown/"+c.name, func(t *testing.T) {
			must(t, apply(c.name, c.spec))
			defer func() { must(t, b.Remove(ctx, c.name)) }()
			within(t, 3*time.Second, "message of "+c.name, func(ctx context.Context) error {
				out, err := b.Kubectl(ctx, "get", "kubelink", c.name, "-o", "wide")
				if err != nil {
					return err
				}
				if !strings.Contains(out, c.state) || !strings.Contains(out, c.says) {
					return fmt.Errorf("kubectl get says:\n%s", out)
				}
				return nil
			})
			for _, other := range []string{"kubelink2", "kubelink3"} {
				if l, err := b.Link(ctx, other); err != nil || l.Status.State != v1alpha1.StateUp {
					t.Errorf("%s: %v %v", other, l.Status, err)
				}
			}
		})
	}
}
