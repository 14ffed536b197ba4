package nodecheck

// Which networks are looked at.

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Of thousands of mesh services that a peer offers a few are looked at, and all else that is routed to it.
func TestNetworksOfOffers(t *testing.T) {
	address := mesh.Prefixes{netip.MustParsePrefix("10.0.0.2/8")}
	p := mesh.Peer{Link: "k2", Addresses: address, Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}}
	offers := []mesh.Offer{{Address: address[0].Addr()}}
	for i := range 4096 {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		offers = append(offers, mesh.Offer{Address: a})
		p.Networks = append(p.Networks, netip.PrefixFrom(a, 32))
	}
	p.Networks = append(p.Networks, netip.MustParsePrefix("10.9.9.9/32"), netip.MustParsePrefix("100.64.0.0/20"))
	own := netip.MustParseAddr("10.0.0.1")
	s := &mesh.State{Peers: []mesh.Peer{p}, Offers: mesh.Acceptance{Links: map[string][]mesh.Offer{"k2": offers}},
		Routes: []mesh.Route{{Destination: netip.MustParsePrefix("10.0.0.0/8"), Source: own},
			{Destination: netip.MustParsePrefix("100.64.0.0/20"), Source: own}}}
	got := networksOf(s)
	if len(got) != 3+maxOffers {
		t.Errorf("%d networks are looked at", len(got))
	}
	for _, want := range []string{"10.0.0.2/32", "10.1.0.0/32", "10.9.9.9/32", "100.64.0.0/20"} {
		if !slices.Contains(got, network{"k2", netip.MustParsePrefix(want), own}) {
			t.Errorf("%s is not looked at", want)
		}
	}
}

// A check is made again when what it looks at has changed: another ingress list is no such change.
func TestTargetEquals(t *testing.T) {
	target := func(change func(*mesh.State)) *Target {
		n := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/20")}
		s := &mesh.State{Peers: []mesh.Peer{{Link: "k2", Host: "b.example", Networks: n, Services: n, Addresses: n}},
			Routes: []mesh.Route{{Destination: n[0]}}}
		change(s)
		return &Target{State: s, Device: "kubelink"}
	}
	other := []netip.Prefix{netip.MustParsePrefix("100.64.16.0/20")}
	for _, c := range []struct {
		name   string
		change func(*mesh.State)
		same   bool
	}{
		{"nothing", func(*mesh.State) {}, true},
		{"ingress", func(s *mesh.State) { s.Peers[0].Ingress = []mesh.Rule{{Prefix: other[0], Allow: true}} }, true},
		{"networks", func(s *mesh.State) { s.Peers[0].Networks = other }, false},
		{"services", func(s *mesh.State) { s.Peers[0].Services = other }, false},
		{"addresses", func(s *mesh.State) { s.Peers[0].Addresses = other }, false},
		{"endpoint", func(s *mesh.State) { s.Peers[0].Host = "c.example" }, false},
		{"another peer", func(s *mesh.State) { s.Peers = append(s.Peers, mesh.Peer{Link: "k3"}) }, false},
		{"routes", func(s *mesh.State) { s.Routes[0].Destination = other[0] }, false},
	} {
		if got := target(func(*mesh.State) {}).equals(target(c.change)); got != c.same {
			t.Errorf("%s: equal %v", c.name, got)
		}
	}
}
