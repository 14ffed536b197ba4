package service

// What links reach of mesh services, and what it costs where there are many of both.

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Other nodes have to be told of addresses that are in no mesh.
func TestOutside(t *testing.T) {
	addr := netip.MustParseAddr
	services := []Service{{Address: addr("198.18.0.9")}, {Address: addr("192.168.0.100")}, {Address: addr("198.18.0.1")},
		{Address: addr("192.168.2.100")}, {Address: addr("198.18.0.9")}, {Address: addr("fd00:9::1")}}
	got := Outside(testCluster().State.Meshes, services)
	want := []netip.Prefix{full(addr("198.18.0.1")), full(addr("198.18.0.9")), full(addr("fd00:9::1"))}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// manyLinks is a state with links to clusters of one mesh, some with a list.
func manyLinks(n int) mesh.State {
	s := mesh.State{Meshes: wideCluster().State.Meshes}
	own := mesh.Rule{Prefix: full(s.Meshes[0].Addresses.First().Addr()), Allow: true, Node: true}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 200, 254, byte(i)})
		p := mesh.Peer{Link: fmt.Sprintf("link%d", i), Local: s.Meshes[0].Addresses, Networks: []netip.Prefix{full(a)},
			Ingress:  []mesh.Rule{{Prefix: netip.MustParsePrefix("100.64.0.0/20"), Allow: true}, own},
			Unlisted: i%10 != 9}
		s.Peers = append(s.Peers, p)
	}
	return s
}

// Peers without a list share their rules, in which all services are, and peers with a list keep theirs.
func TestOpenShares(t *testing.T) {
	before := manyLinks(250)
	after := Open(before, Build(manyServices(t, 1000, 3), wideCluster()).Services)
	first := after.Peers[0].Ingress
	if len(first) != 1002 {
		t.Errorf("%d rules", len(first))
	}
	for i, p := range after.Peers {
		own := before.Peers[i].Ingress
		switch {
		case !p.Unlisted && !slices.Equal(p.Ingress, own):
			t.Errorf("%s has a list, and %d rules", p.Link, len(p.Ingress))
		case p.Unlisted && &p.Ingress[0] != &first[0]:
			t.Errorf("%s has rules of its own", p.Link)
		case len(own) != 2:
			t.Errorf("%s has %d rules before", p.Link, len(own))
		}
	}
}

// BenchmarkOpen: 250 links and 1,000 services.
func BenchmarkOpen(b *testing.B) {
	services := Build(manyServices(b, 1000, 3), wideCluster()).Services
	s := manyLinks(250)
	if len(services) != 1000 {
		b.Fatalf("%d services", len(services))
	}
	b.ReportAllocs()
	for b.Loop() {
		Open(s, services)
	}
}
