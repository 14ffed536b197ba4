package router

// Which routes follow from objects and facts, without API server and kernel.

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// gateway makes a LinkGateway of a node with IPv4 address 10.250.0.<n>, which is n hours old.
func gateway(n int, networks ...string) *v1alpha1.LinkGateway {
	g := &v1alpha1.LinkGateway{Spec: v1alpha1.LinkGatewaySpec{Node: fmt.Sprintf("node%d", n),
		NodeIPs: []v1alpha1.GatewayIP{v1alpha1.GatewayIP(fmt.Sprintf("10.250.0.%d", n))}}}
	g.Name = fmt.Sprintf("g%d", n)
	g.CreationTimestamp = metav1.NewTime(time.Unix(1e9, 0).Add(-time.Duration(n) * time.Hour))
	for _, p := range networks {
		g.Spec.Networks = append(g.Spec.Networks, v1alpha1.GatewayNetwork(p))
	}
	return g
}

type list = []*v1alpha1.LinkGateway

// inPod makes the gateway one in a pod.
func inPod(g *v1alpha1.LinkGateway, address string) *v1alpha1.LinkGateway {
	g.Spec.Pod, g.Spec.PodIPs = "kubelink", []v1alpha1.GatewayIP{v1alpha1.GatewayIP(address)}
	return g
}

// inVXLAN makes the gateway one that packets reach in a VXLAN.
func inVXLAN(g *v1alpha1.LinkGateway) *v1alpha1.LinkGateway {
	g.Spec.VXLAN = &v1alpha1.GatewayVXLAN{VNI: 107, Port: 8780}
	return g
}

// kubeLink makes a link to a cluster in the mesh 192.168.0.0/24.
func kubeLink(name, cidr string, change ...func(*v1alpha1.KubeLink)) *v1alpha1.KubeLink {
	k := &v1alpha1.KubeLink{Spec: v1alpha1.KubeLinkSpec{CIDR: cidr, ClusterAddress: "192.168.0.12/24", Endpoint: "k2"}}
	k.Name = name
	for _, f := range change {
		f(k)
	}
	return k
}

func local(k *v1alpha1.KubeLink) { k.Spec.Endpoint = v1alpha1.EndpointLocal }

func state(s v1alpha1.State) func(*v1alpha1.KubeLink) {
	return func(k *v1alpha1.KubeLink) { k.Status.State = s }
}

func ledBy(address string) func(*v1alpha1.KubeLink) {
	return func(k *v1alpha1.KubeLink) { k.Status.Gateway = address }
}

// node3 are the facts of node 3 in a network of nodes on device 2, with a pod on device 7. Node 9 is behind a router.
func node3(change ...func(*facts)) *facts {
	f := &facts{name: "node3", ways: map[netip.Addr]lookup{}, addresses: []netip.Addr{netip.MustParseAddr("10.250.0.3")},
		apart: map[netip.Prefix]string{netip.MustParsePrefix("10.250.0.0/16"): titleNodes,
			netip.MustParsePrefix("100.96.0.0/11"): titlePods},
		host: mesh.Host{Networks: []mesh.HostNetwork{{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Device: "docker0"}}}}
	way := func(a string, w kernel.Way, err error) { f.ways[netip.MustParseAddr(a)] = lookup{w, err} }
	for n := 1; n < 9; n++ {
		way(fmt.Sprintf("10.250.0.%d", n), kernel.Way{Index: 2, Device: "eth0", MTU: 1500}, nil)
	}
	way("10.250.0.3", kernel.Way{Index: 1, Device: "lo", Local: true, MTU: 65536}, nil)
	way("10.250.0.9", kernel.Way{Index: 2, Device: "eth0", Gateway: netip.MustParseAddr("10.250.0.1"), MTU: 1500}, nil)
	way("100.96.3.5", kernel.Way{Index: 7, Device: "cali5", MTU: 1450}, nil)
	way("fd00:250::1", kernel.Way{}, unix.ENETUNREACH)
	for _, c := range change {
		c(f)
	}
	return f
}

func TestMakeRouting(t *testing.T) {
	withMTU := gateway(1, "100.64.16.0/20")
	withMTU.Spec.MTU = 1380
	withVXLAN := inVXLAN(gateway(1, "100.64.16.0/20"))
	vxlanDevice := func(f *facts) { f.overlay = &tunnel{index: 9, mtu: 1450} }
	dual := gateway(1, "100.64.16.0/20", "fd00:16::/64")
	dual.Spec.NodeIPs = append(dual.Spec.NodeIPs, "fd00:250::1")
	tunl0 := func(f *facts) { f.ipip = &tunnel{index: 5, mtu: 1440} }
	noTunl0 := func(f *facts) { f.noIPIP = &link.Finding{Reason: TunnelMissing, Text: "no tunl0", Remedy: "wait"} }
	for name, c := range map[string]struct {
		objects objects
		facts   *facts
		want    string // routes, one in a line
		reasons string
	}{
		"nothing": {objects{}, node3(), "", ""},
		"gateway on another node": {objects{gateways: list{gateway(1, "192.168.0.0/24", "100.64.16.0/20")}},
			node3(), "100.64.16.0/20 via 10.250.0.1 dev 2\n192.168.0.0/24 via 10.250.0.1 dev 2", ""},
		"MTU of the gateway": {objects{gateways: list{withMTU}}, node3(),
			"100.64.16.0/20 via 10.250.0.1 dev 2 mtu 1380", ""},
		"gateway here, node mode": {objects{gateways: list{gateway(3, "192.168.0.0/24")}}, node3(),
			"fallback 192.168.0.0/24", ""},
		"gateway here, known by its address only": {objects{gateways: list{gateway(3, "192.168.0.0/24")}},
			node3(func(f *facts) { f.name = "" }), "fallback 192.168.0.0/24", ""},
		"gateway here, pod mode": {
			objects{gateways: list{inPod(gateway(3, "192.168.0.0/24"), "100.96.3.5")}},
			node3(), "192.168.0.0/24 via 100.96.3.5 dev 7 onlink", ""},
		"gateway on another node, pod mode": {
			objects{gateways: list{inPod(gateway(1, "192.168.0.0/24"), "100.96.1.5")}},
			node3(), "192.168.0.0/24 via 10.250.0.1 dev 2", ""},
		"pod with the network of its node": {
			objects{gateways: list{inPod(gateway(3, "192.168.0.0/24"), "10.250.0.3")}}, node3(),
			"fallback 192.168.0.0/24", ""},
		"pod not known to the kernel": {
			objects{gateways: list{inPod(gateway(3, "192.168.0.0/24"), "100.96.3.6")}},
			node3(), "unreachable 192.168.0.0/24", GatewayNotOnLink},
		"gateway behind a router": {objects{gateways: list{gateway(9, "192.168.0.0/24", "100.64.16.0/20")}},
			node3(), "unreachable 100.64.16.0/20\nunreachable 192.168.0.0/24", GatewayNotOnLink},
		"gateway behind a router, IPIP": {objects{gateways: list{gateway(9, "192.168.0.0/24")}},
			node3(tunl0), "192.168.0.0/24 via 10.250.0.9 dev 5 onlink", ""},
		"IPIP, and the gateway is here": {
			objects{gateways: list{inPod(gateway(3, "192.168.0.0/24"), "100.96.3.5")}},
			node3(tunl0), "192.168.0.0/24 via 100.96.3.5 dev 7 onlink", ""},
		"IPIP is not there yet": {objects{gateways: list{gateway(1, "192.168.0.0/24")}},
			node3(noTunl0), "unreachable 192.168.0.0/24", TunnelMissing},
		"VXLAN": {objects{gateways: list{withVXLAN}}, node3(vxlanDevice),
			"100.64.16.0/20 via 10.250.0.1 dev 9 onlink", ""},
		"VXLAN without a device": {objects{gateways: list{withVXLAN}}, node3(), "unreachable 100.64.16.0/20", TunnelMissing},
		"VXLAN, gateway behind a router": {objects{gateways: list{inVXLAN(gateway(9, "192.168.0.0/24"))}},
			node3(vxlanDevice), "192.168.0.0/24 via 10.250.0.9 dev 9 onlink", ""},
		"VXLAN, gateway on another node in a pod": {
			objects{gateways: list{inVXLAN(inPod(gateway(1, "192.168.0.0/24"), "100.96.1.5"))}},
			node3(vxlanDevice), "192.168.0.0/24 via 100.96.1.5 dev 9 onlink", ""},
		"VXLAN, gateway here in a pod": {
			objects{gateways: list{inVXLAN(inPod(gateway(3, "192.168.0.0/24"), "100.96.3.5"))}},
			node3(vxlanDevice), "192.168.0.0/24 via 100.96.3.5 dev 9 onlink", ""},
		"VXLAN, gateway here": {objects{gateways: list{inVXLAN(gateway(3, "192.168.0.0/24"))}}, node3(vxlanDevice),
			"fallback 192.168.0.0/24", ""},
		"VXLAN, no address of the family": {objects{gateways: list{inVXLAN(gateway(1, "fd00:16::/64"))}},
			node3(vxlanDevice), "unreachable fd00:16::/64", GatewayAddress},
		"no address of the family": {objects{gateways: list{gateway(1, "100.64.16.0/20", "fd00:16::/64")}},
			node3(), "100.64.16.0/20 via 10.250.0.1 dev 2\nunreachable fd00:16::/64", GatewayAddress},
		"no way of the family": {objects{gateways: list{dual}}, node3(),
			"100.64.16.0/20 via 10.250.0.1 dev 2\nunreachable fd00:16::/64", GatewayNotOnLink},
		"two gateways name one network": {objects{gateways: list{
			gateway(1, "192.168.0.0/24", "100.64.16.0/20"), gateway(2, "192.168.0.0/24", "192.168.0.12/32")}}, node3(),
			"100.64.16.0/20 via 10.250.0.1 dev 2\n192.168.0.0/24 via 10.250.0.2 dev 2\n" +
				"192.168.0.12/32 via 10.250.0.2 dev 2", ""},
		"one place with two names": {objects{
			gateways: list{gateway(2, "192.168.0.0/24", "100.64.16.0/20"), gateway(2, "100.64.16.0/20")},
			links:    []*v1alpha1.KubeLink{kubeLink("k2", "100.64.16.0/20")}}, node3(),
			"100.64.16.0/20 via 10.250.0.2 dev 2\n192.168.0.0/24 via 10.250.0.2 dev 2", ""},
		"two gateways lead to one link": {objects{gateways: list{
			gateway(1, "192.168.0.0/24", "100.64.16.0/20", "100.64.32.0/20"),
			gateway(2, "192.168.0.0/24", "100.64.16.0/20", "100.64.32.0/20")},
			links: []*v1alpha1.KubeLink{kubeLink("k2", "100.64.16.0/20"), kubeLink("k3", "100.64.32.0/20")}}, node3(),
			"100.64.16.0/20 via 10.250.0.2 dev 2\n100.64.32.0/20 via 10.250.0.2 dev 2\n" +
				"192.168.0.0/24 via 10.250.0.2 dev 2", TwoGateways},
		"two gateways lead to one mesh": {objects{gateways: list{
			gateway(1, "192.168.0.0/24", "100.64.16.0/20"), gateway(2, "192.168.0.0/24", "100.64.32.0/20")},
			links: []*v1alpha1.KubeLink{kubeLink("k2", "100.64.16.0/20"), kubeLink("k3", "100.64.32.0/20")}}, node3(),
			"100.64.16.0/20 via 10.250.0.1 dev 2\n100.64.32.0/20 via 10.250.0.2 dev 2\n" +
				"192.168.0.0/24 via 10.250.0.2 dev 2", ""},
		"this node is the older of them": {objects{gateways: list{
			gateway(1, "192.168.0.0/24", "100.64.16.0/20"), gateway(3, "192.168.0.0/24")}}, node3(),
			"100.64.16.0/20 via 10.250.0.1 dev 2\nfallback 192.168.0.0/24", ""},
		"networks that this cluster has": {objects{gateways: list{
			gateway(1, "10.250.7.0/24", "100.96.0.0/12", "172.17.1.0/24", "100.64.16.0/20")}}, node3(),
			"100.64.16.0/20 via 10.250.0.1 dev 2", NetworkRefused + " " + NetworkRefused + " " + NetworkRefused},
		"a network wider than one of this cluster": {objects{gateways: list{gateway(1, "100.64.0.0/10")}},
			node3(), "100.64.0.0/11 via 10.250.0.1 dev 2", ""},
		"default routes in parts": {objects{gateways: list{gateway(1, "0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1",
			"128.0.0.0/6", "100.0.0.0/8")}}, node3(), "100.0.0.0/10 via 10.250.0.1 dev 2\n100.64.0.0/11 via 10.250.0.1 dev 2\n" +
			"100.128.0.0/9 via 10.250.0.1 dev 2", strings.TrimSpace(strings.Repeat(NetworkRefused+" ", 5))},
		"default routes": {objects{gateways: list{gateway(1, "0.0.0.0/0", "::/0")}}, node3(), "",
			NetworkRefused + " " + NetworkRefused},
		"a default route of a link that no broker has seen yet": {objects{links: []*v1alpha1.KubeLink{
			kubeLink("k2", "100.64.16.0/20", func(k *v1alpha1.KubeLink) { k.Spec.Egress = []v1alpha1.EgressCIDR{"0.0.0.0/0"} }),
		}}, node3(), "fallback 100.64.16.0/20\nfallback 192.168.0.0/24", NetworkRefused},
		"networks that lead to no cluster": {objects{gateways: list{gateway(1, "127.0.0.0/8", "169.254.169.254/32",
			"224.0.0.0/4", "255.255.255.255/32", "::1/128", "fe80::/64", "ff02::/16", "169.0.0.0/8")}},
			node3(func(f *facts) { f.apart[netip.MustParsePrefix("169.0.0.0/9")] = titleAPI }),
			"169.128.0.0/10 via 10.250.0.1 dev 2\n169.192.0.0/11 via 10.250.0.1 dev 2\n" +
				"169.224.0.0/12 via 10.250.0.1 dev 2\n169.240.0.0/13 via 10.250.0.1 dev 2\n" +
				"169.248.0.0/14 via 10.250.0.1 dev 2\n169.252.0.0/15 via 10.250.0.1 dev 2\n" +
				"169.255.0.0/16 via 10.250.0.1 dev 2", strings.TrimSpace(strings.Repeat(NetworkRefused+" ", 7))},
		"wider than a network of the node, in the main table": {objects{gateways: list{gateway(1, "172.16.0.0/12")}},
			node3(), "172.16.0.0/12 via 10.250.0.1 dev 2", ""},
		"wider than a network of the node, in a table that comes first": {
			objects{gateways: list{gateway(1, "172.16.0.0/12")}},
			node3(func(f *facts) { f.host.OwnTable = true }), "", NetworkRefused},
		"no gateway": {objects{links: []*v1alpha1.KubeLink{kubeLink("k1", "100.64.0.0/20", local),
			kubeLink("k2", "100.64.16.0/20", state(v1alpha1.StateDown)), kubeLink("k3", "100.64.0.0/21")}}, node3(),
			"fallback 100.64.16.0/20\nfallback 192.168.0.0/24", ""},
		"a link that the gateway does not lead to": {objects{gateways: list{gateway(1, "192.168.0.0/16")},
			links: []*v1alpha1.KubeLink{kubeLink("k2", "100.64.16.0/20")}}, node3(),
			"fallback 100.64.16.0/20\n192.168.0.0/16 via 10.250.0.1 dev 2", ""},
		"a link that the gateway is about to list": {objects{
			gateways: list{gateway(1), gateway(2, "192.168.0.0/24"), gateway(3)}, links: []*v1alpha1.KubeLink{
				kubeLink("k2", "100.64.16.0/20", ledBy("10.250.0.1")), kubeLink("k3", "100.64.32.0/20", ledBy("10.250.0.3"))}},
			node3(), "100.64.16.0/20 via 10.250.0.1 dev 2\nfallback 100.64.32.0/20\n192.168.0.0/24 via 10.250.0.2 dev 2", ""},
		"a link that one of two gateways of a node is about to list": {objects{
			gateways: list{inPod(gateway(3), "100.96.3.5"), inPod(gateway(3), "100.96.3.6")},
			links:    []*v1alpha1.KubeLink{kubeLink("k2", "100.64.16.0/20", ledBy("10.250.0.3"))}}, node3(),
			"fallback 100.64.16.0/20\nfallback 192.168.0.0/24", GatewayNotOnLink},
		"links to clusters with networks of this one": {objects{gateways: list{gateway(1, "192.168.0.0/24")},
			links: []*v1alpha1.KubeLink{kubeLink("k2", "100.64.0.0/20", ledBy("10.250.0.1")),
				kubeLink("k3", "100.96.0.0/16"), kubeLink("k4", "100.64.4.0/22")}},
			node3(func(f *facts) { f.apart[netip.MustParsePrefix("100.64.0.0/20")] = titleServices }),
			"192.168.0.0/24 via 10.250.0.1 dev 2", ""},
		"links that the broker refuses": {objects{links: []*v1alpha1.KubeLink{
			kubeLink("a", "8.8.8.0/24", state(v1alpha1.StateInvalid)), kubeLink("b", "8.8.9.0/24", state(v1alpha1.StateStale))}},
			node3(), "", ""},
		"former broker on another node": {objects{links: []*v1alpha1.KubeLink{
			kubeLink("k2", "100.64.16.0/20", ledBy("10.250.0.1")), kubeLink("k3", "100.64.32.0/20", ledBy("10.250.0.2")),
			kubeLink("k4", "100.64.48.0/20")}}, node3(), "100.64.16.0/20 via 10.250.0.1 dev 2\n" +
			"100.64.32.0/20 via 10.250.0.2 dev 2\nfallback 100.64.48.0/20\n192.168.0.0/24 via 10.250.0.1 dev 2", ""},
		"former broker here, node mode": {objects{
			links:  []*v1alpha1.KubeLink{kubeLink("k2", "100.64.16.0/20", ledBy("10.250.0.3"))},
			former: []formerEndpoint{{netip.MustParseAddr("10.250.0.3"), "node3"}}}, node3(), "", ""},
		"former broker here, pod mode": {objects{
			links:  []*v1alpha1.KubeLink{kubeLink("k2", "100.64.16.0/20", ledBy("10.250.0.3"))},
			former: []formerEndpoint{{netip.MustParseAddr("100.96.3.5"), "node3"}}}, node3(),
			"100.64.16.0/20 via 100.96.3.5 dev 7 onlink\n192.168.0.0/24 via 100.96.3.5 dev 7 onlink", ""},
		"a LinkGateway ends the time of former brokers": {objects{gateways: list{gateway(1, "192.168.0.0/24")},
			links: []*v1alpha1.KubeLink{kubeLink("k2", "100.64.16.0/20", ledBy("10.250.0.2"))}}, node3(),
			"fallback 100.64.16.0/20\n192.168.0.0/24 via 10.250.0.1 dev 2", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := makeRouting(&c.objects, c.facts)
			var lines, reasons []string
			for _, n := range r.routes {
				lines = append(lines, routeText(n))
			}
			for _, f := range r.findings {
				reasons = append(reasons, f.Reason)
				if s := f.String(); strings.Contains(s, "\n") || len(s) > 1000 || f.Remedy == "" {
					t.Errorf("finding %q", s)
				}
			}
			if got := strings.Join(lines, "\n"); got != c.want {
				t.Errorf("routes\n%s\nwant\n%s", got, c.want)
			}
			if got := strings.Join(reasons, " "); got != c.reasons {
				t.Errorf("findings %v, want %s", r.findings, c.reasons)
			}
		})
	}
}

func routeText(n kernel.NodeRoute) string {
	if n.Fallback {
		return "fallback " + n.Destination.String()
	}
	if !n.Gateway.IsValid() {
		return "unreachable " + n.Destination.String()
	}
	text := fmt.Sprintf("%s via %s dev %d", n.Destination, n.Gateway, n.Index)
	if n.OnLink {
		text += " onlink"
	}
	if n.MTU != 0 {
		text += fmt.Sprintf(" mtu %d", n.MTU)
	}
	return text
}

// TestManyNetworks: links of 10,000 networks that no gateway leads to. The log says
// what a look costs: it compares none with all others.
func TestManyNetworks(t *testing.T) {
	o := &objects{gateways: list{gateway(1, "23.0.0.0/16")}}
	for i := range 10000 {
		o.links = append(o.links, kubeLink(fmt.Sprintf("k%d", i), fmt.Sprintf("23.%d.%d.0/24", i/256, i%256)))
	}
	start := time.Now()
	r := makeRouting(o, node3())
	if want := 10000 - 256 + 2; len(r.routes) != want { // the first 256 are of the gateway, and there is the mesh
		t.Errorf("%d routes, want %d", len(r.routes), want)
	}
	t.Logf("%d routes after %s", len(r.routes), time.Since(start))
}

func TestSubtract(t *testing.T) {
	for _, c := range []struct{ n, other, want string }{
		{"10.0.0.0/8", "11.0.0.0/8", "[10.0.0.0/8]"},
		{"10.0.0.0/8", "10.0.0.0/8", "[]"},
		{"10.1.0.0/16", "10.0.0.0/8", "[]"},
		{"10.0.0.0/8", "10.128.0.0/9", "[10.0.0.0/9]"},
		{"10.0.0.0/14", "10.2.0.0/16", "[10.0.0.0/15 10.3.0.0/16]"},
		{"0.0.0.0/0", "255.255.255.255/32", ""},
		{"fd00::/16", "fd00:8000::/17", "[fd00::/17]"},
		{"fd00::/16", "10.0.0.0/8", "[fd00::/16]"},
	} {
		n, other := netip.MustParsePrefix(c.n), netip.MustParsePrefix(c.other)
		got := subtractNetwork(n, other)
		if text := fmt.Sprint(got); c.want != "" && text != c.want {
			t.Errorf("%s without %s: %s, want %s", n, other, text, c.want)
		}
		for _, p := range got {
			if p.Overlaps(other) || p != p.Masked() {
				t.Errorf("%s without %s has %s", n, other, p)
			}
		}
	}
}

// The remedy for a pod whose route is gone is to wait first: so it is while a broker moves.
func TestPodThatMoves(t *testing.T) {
	gone := node3(func(f *facts) {
		f.ways[netip.MustParseAddr("100.96.3.5")] = lookup{kernel.Way{Index: 2, Device: "eth0",
			Gateway: netip.MustParseAddr("10.250.0.254"), MTU: 1500}, nil}
	})
	r := makeRouting(&objects{gateways: list{inPod(gateway(3, "100.64.16.0/20"), "100.96.3.5")}}, gone)
	const want = "LinkGateway g3: its pod 100.96.3.5 is not on this node: " +
		"the way to it leads to 10.250.0.254 (device eth0): " +
		"wait while the broker's pod moves, or is replaced; if this stays, look at the routes of the pod network on this node"
	if got := r.findings.String(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}
