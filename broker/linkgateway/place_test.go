package linkgateway

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

var ip = netip.MustParseAddr

func cidrs(texts ...string) (p mesh.Prefixes) {
	for _, t := range texts {
		p = append(p, netip.MustParsePrefix(t))
	}
	return p
}

// interfaces parses "ADDRESS DEVICE MTU" for each.
func interfaces(texts ...string) (all []mesh.HostInterface) {
	for _, t := range texts {
		var address string
		var i mesh.HostInterface
		fmt.Sscan(t, &address, &i.Device, &i.MTU)
		i.Addr = ip(address)
		all = append(all, i)
	}
	return all
}

// onNode is the configuration of deploy/base; without change it is that of pod mode, too.
func config() Config {
	return Config{Node: "node1", NodeIP: ip("10.250.0.5"), Pod: "kubelink-abc", NodeCIDRs: cidrs("10.250.0.0/16"),
		PodCIDRs: cidrs("100.96.0.0/11")}
}

func TestLocate(t *testing.T) {
	node := interfaces("10.250.0.5 ens5 9001", "100.96.0.1 cni0 1450")
	pod := interfaces("100.96.1.7 eth0 1450", "fd00::7 eth0 1450")
	for _, c := range []struct {
		name       string
		change     func(*Config)
		interfaces []mesh.HostInterface
		want       string   // node addresses, pod addresses, device, MTU
		problem    []string // parts of its texts
	}{
		{"node", nil, node, "[10.250.0.5] [] - 9001", nil},
		{"node without node-ip", func(c *Config) { c.NodeIP = netip.Addr{} }, node, "[10.250.0.5] [] - 9001", nil},
		{"node without node-cidr", func(c *Config) { c.NodeCIDRs = nil }, node, "[10.250.0.5] [] - 9001", nil},
		{"node with a wrong node-cidr", func(c *Config) { c.NodeCIDRs = cidrs("10.0.0.0/24") }, node,
			"[10.250.0.5] [] - 9001", nil},
		{"node with both families", func(c *Config) { c.NodeCIDRs = cidrs("10.250.0.0/16", "fd01::/64") },
			interfaces("10.250.0.4 lan 1400", "10.250.0.5 ens5 1500", "fd01::5 ens6 1450"),
			"[10.250.0.5 fd01::5] [] - 1450", nil},
		{"nothing is known", nil, nil, "[10.250.0.5] [] - 0", nil},
		{"pod", nil, pod, "[10.250.0.5] [100.96.1.7] eth0 1450", nil},
		{"pod with both families", func(c *Config) { c.PodIPs = []netip.Addr{ip("fd00::7"), ip("100.96.1.7")} }, pod,
			"[10.250.0.5] [fd00::7 100.96.1.7] eth0 1450", nil},
		{"pod with another interface", nil, interfaces("10.9.0.1 net1 1500", "100.96.1.7 pod0 8900"),
			"[10.250.0.5] [100.96.1.7] pod0 8900", nil},
		{"pod without node-ip", func(c *Config) { c.NodeIP = netip.Addr{} }, pod, "[] [100.96.1.7] eth0 1450",
			[]string{"no interface has an address in node-cidr 10.250.0.0/16", "node-ip is missing", "status.hostIP"}},
		{"pod with a foreign node-ip", func(c *Config) { c.NodeIP = ip("10.9.9.9") }, pod,
			"[10.9.9.9] [100.96.1.7] eth0 1450", []string{"node-ip 10.9.9.9 does not lie in it"}},
		{"pod without pod-cidr", func(c *Config) { c.PodCIDRs = nil }, pod, "[10.250.0.5] [] - 0",
			[]string{"pod-cidr is missing"}},
		{"pod with a wrong pod-cidr", func(c *Config) { c.PodCIDRs = cidrs("10.96.0.0/16") }, pod, "[10.250.0.5] [] - 0",
			[]string{"pod-cidr 10.96.0.0/16 has none of its addresses (100.96.1.7 of eth0, fd00::7 of eth0)"}},
		{"pod without anything", func(c *Config) { *c = Config{Node: "p", Pod: "p", NodeCIDRs: c.NodeCIDRs} }, pod,
			"[] [] - 0", []string{"node-ip is missing", "pod-cidr is missing", "variable NODE_NAME"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config()
			if c.change != nil {
				c.change(&cfg)
			}
			p := findPlace(cfg, c.interfaces)
			device := p.Device
			if device == "" {
				device = "-"
			}
			if got := fmt.Sprintf("%v %v %s %d", p.NodeIPs, p.PodIPs, device, p.MTU); got != c.want {
				t.Errorf("%s, not %s", got, c.want)
			}
			if isPod := strings.HasPrefix(c.name, "pod"); p.InPod != isPod || p.Node != cfg.Node || (p.Pod != "") != isPod {
				t.Errorf("%+v", p)
			}
			if (p.Problem != nil) != (c.problem != nil) {
				t.Errorf("problem %v", p.Problem)
			}
			for _, text := range c.problem {
				if p.Problem == nil || !strings.Contains(p.Problem.Error(), text) {
					t.Errorf("problem %v does not say %q", p.Problem, text)
				}
			}
		})
	}
}

// A node whose network is away for a while is no pod. Another configuration is looked at anew.
func TestNodeStaysNode(t *testing.T) {
	cfg, l := config(), Locator{}
	at := func(texts ...string) Place {
		l.Locate(cfg, &mesh.Host{Addresses: interfaces(texts...)})
		return l.Place
	}
	on := at("10.250.0.5 ens5 1500", "100.96.0.1 cni0 1450")
	if away := at("100.96.0.1 cni0 1450"); on.InPod || !reflect.DeepEqual(away, on) {
		t.Errorf("%+v, before %+v", away, on)
	}
	cfg.NodeCIDRs = cidrs("10.251.0.0/16")
	if p := at("100.96.0.1 cni0 1450"); !p.InPod {
		t.Errorf("%+v", p)
	}
	if p := at("100.96.0.1 cni0 1450", "10.251.0.5 ens5 1500"); p.InPod {
		t.Errorf("%+v: a pod stays one", p)
	}
}

// Networks are those of meshes, of routes and of the gateway itself: canonical, sorted, each once.
func TestNewSpec(t *testing.T) {
	state := &mesh.State{
		Meshes: []mesh.Mesh{{Addresses: cidrs("192.168.0.11/24")}, {Addresses: cidrs("fd02::1/64")}},
		Routes: []mesh.Route{{Destination: netip.MustParsePrefix("192.168.0.0/24")},
			{Destination: netip.MustParsePrefix("100.64.16.0/20")}, {Destination: netip.MustParsePrefix("10.7.0.9/16")},
			{Destination: netip.MustParsePrefix("fd02::/64")}, {Destination: netip.MustParsePrefix("100.64.16.0/20")}},
	}
	node := Place{Node: "node1", NodeIPs: []netip.Addr{ip("10.250.0.5")}, MTU: 9001}
	got, err := NewSpec(&node, state, []netip.Prefix{netip.MustParsePrefix("198.18.0.1/32")}, 3, 1500)
	want := &v1alpha1.LinkGatewaySpec{Node: "node1", NodeIPs: []v1alpha1.GatewayIP{"10.250.0.5"}, Term: 3, MTU: 1500,
		Networks: []v1alpha1.GatewayNetwork{"10.7.0.0/16", "100.64.16.0/20", "192.168.0.0/24", "198.18.0.1/32",
			"fd02::/64"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	pod := Place{Node: "node1", InPod: true, Pod: "kubelink-abc", PodIPs: []netip.Addr{ip("100.96.1.7")}, MTU: 1450}
	got, err = NewSpec(&pod, &mesh.State{}, nil, 0, 1500)
	want = &v1alpha1.LinkGatewaySpec{Node: "node1", Pod: "kubelink-abc", MTU: 1450,
		PodIPs: []v1alpha1.GatewayIP{"100.96.1.7"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

// What there is no room for is said, and the widest networks stay.
func TestTooManyNetworks(t *testing.T) {
	state := &mesh.State{Routes: []mesh.Route{{Destination: netip.MustParsePrefix("192.168.0.0/24")}}}
	for i := range 5000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})
		state.Routes = append(state.Routes, mesh.Route{Destination: netip.PrefixFrom(a, 32)})
	}
	spec, err := NewSpec(&Place{Node: "node1"}, state, nil, 0, 1500)
	if n := len(spec.Networks); n != maxNetworks || spec.Networks[n-1] != "192.168.0.0/24" || err == nil ||
		!strings.Contains(err.Error(), "5001 networks") {
		t.Errorf("%d networks, %v", n, err)
	}
}

// Mesh services take no room of links: neither those that a peer offers, nor those that users of this cluster make.
func TestServicesTakeNoRoom(t *testing.T) {
	address := func(a, i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(a), byte(i >> 8), byte(i)}) }
	full := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, 32) }
	own := netip.MustParsePrefix("10.255.0.1/8")
	peer := mesh.Peer{Link: "z", Local: mesh.Prefixes{own},
		Addresses: mesh.Prefixes{netip.MustParsePrefix("10.200.0.1/8")}, Networks: []netip.Prefix{full(address(200, 1))}}
	state := &mesh.State{Meshes: []mesh.Mesh{{Addresses: mesh.Prefixes{own}, Shared: true}}}
	offers := []mesh.Offer{{Address: address(200, 1)}}
	var outside []netip.Prefix
	for i := range 4094 {
		offers = append(offers, mesh.Offer{Address: address(1, i)})
		peer.Networks = append(peer.Networks, full(address(1, i)))
		outside = append(outside, netip.PrefixFrom(netip.AddrFrom4([4]byte{9, 0, byte(i >> 8), byte(i)}), 32))
	}
	state.Offers.Links, state.Peers = map[string][]mesh.Offer{"a": offers}, []mesh.Peer{peer}
	spec, err := NewSpec(&Place{Node: "node1"}, state, outside, 0, 1500)
	for _, want := range []v1alpha1.GatewayNetwork{"10.0.0.0/8", "10.200.0.1/32", "9.0.15.253/32"} {
		if !slices.Contains(spec.Networks, want) {
			t.Errorf("%s is left out", want)
		}
	}
	if len(spec.Networks) != maxNetworks || err == nil {
		t.Errorf("%d networks, %v", len(spec.Networks), err)
	}
}
