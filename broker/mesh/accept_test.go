package mesh

// Which mesh services of other clusters are accepted.

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// offer is a service with a whole address, or with ports.
func offer(name, address string, ports ...OfferPort) Offer {
	return Offer{Namespace: "default", Name: name, Address: ip(address), Whole: len(ports) == 0, Ports: ports}
}

// offering are offers by link.
func offering(link string, list ...Offer) map[string]*Offers {
	return map[string]*Offers{link: {List: list}}
}

// threeClusters are this one, 192.168.0.11, and k2, k3, k4 after it in one mesh; m2--k5 is in another one.
func threeClusters() *objs {
	return new(objs).addLocal("here", "192.168.0.11/24").addLocal("m2--here", "10.7.0.1/24").
		add("k4", "192.168.0.14/24", "d.example").
		add("k2", "192.168.0.12/24", "b.example").
		add("k3", "192.168.0.13/24", "c.example", cidr("100.64.32.0/20"), egress("192.168.0.64/28", "192.168.0.0/16")).
		add("m2--k5", "10.7.0.5/24", "e.example").
		add("broken", "192.168.0.99/24", "")
}

var webPort = OfferPort{"web", 6, 80}

func TestAcceptOffers(t *testing.T) {
	for _, c := range []struct {
		name   string
		offers map[string]*Offers
		want   string // accepted networks of k2, besides its address
		reason OfferRefusal
		note   string // of k2
	}{
		{"whole address", offering("k2", offer("echo", "192.168.0.100")), "192.168.0.100/32", "", ""},
		{"two of one address", offering("k2", offer("echo", "192.168.0.100", webPort),
			offer("dns", "192.168.0.100", OfferPort{"", 17, 53})), "192.168.0.100/32", "", ""},
		{"ports of the cluster's address", offering("k2", offer("echo", "192.168.0.12", webPort)), "", "", ""},
		{"all of the cluster's address", offering("k2", offer("echo", "192.168.0.12")), "", OfferCluster,
			"1 of 1 mesh services that the peer offers is not accepted: default/echo at 192.168.0.12: it is the " +
				"address of the cluster itself, of which a service can have ports only"},
		{"outside", offering("k2", offer("echo", "192.168.0.100"), offer("out", "192.168.1.100"), offer("pod", "100.96.0.1")),
			"192.168.0.100/32", OfferOutside, "2 of 3 mesh services that the peer offers are not accepted, such as " +
				"default/out at 192.168.1.100: it does not lie in the network 192.168.0.0/24 of the default mesh"},
		{"broadcast", offering("k2", offer("echo", "192.168.0.255"), offer("web", "192.168.0.0")), "", OfferOutside,
			"2 of 2 mesh services that the peer offers are not accepted, such as default/echo at 192.168.0.255: it is the " +
				"network or broadcast address of 192.168.0.0/24"},
		{"another mesh of ours", offering("k2", offer("echo", "10.7.0.9")), "", OfferOutside,
			"1 of 1 mesh services that the peer offers is not accepted: default/echo at 10.7.0.9: it does not lie " +
				"in the network 192.168.0.0/24 of the default mesh"},
		{"another family", offering("k2", offer("echo", "fd00::1")), "", OfferOutside,
			"1 of 1 mesh services that the peer offers is not accepted: default/echo at fd00::1: it does not lie " +
				"in the network 192.168.0.0/24 of the default mesh"},
		{"our address", offering("k2", offer("echo", "192.168.0.11", webPort)), "", OfferCluster,
			"1 of 1 mesh services that the peer offers is not accepted: default/echo at 192.168.0.11: " +
				"it is the address of this cluster"},
		{"the address of another cluster", offering("k2", offer("echo", "192.168.0.13", webPort)), "", OfferCluster,
			"1 of 1 mesh services that the peer offers is not accepted: default/echo at 192.168.0.13: " +
				"it is the address of KubeLink k3"},
		{"the address of a cluster whose link is broken", offering("k2", offer("echo", "192.168.0.99")), "", OfferCluster,
			"1 of 1 mesh services that the peer offers is not accepted: default/echo at 192.168.0.99: " +
				"it is the address of KubeLink broken"},
		{"egress of another link", offering("k2", offer("echo", "192.168.0.70")), "", OfferNetwork,
			"1 of 1 mesh services that the peer offers is not accepted: default/echo at 192.168.0.70: " +
				"it lies in spec.egress 192.168.0.64/28 of link k3"},
		{"our mesh service", offering("k2", offer("echo", "192.168.0.200")), "", OfferLocal,
			"1 of 1 mesh services that the peer offers is not accepted: default/echo at 192.168.0.200: " +
				"it belongs to MeshService default/ours of this cluster"},
		{"malformed ones", map[string]*Offers{"k2": {List: []Offer{offer("echo", "192.168.0.100")}, LeftOut: 7}},
			"192.168.0.100/32", OfferLeftOut,
			"7 of 8 mesh services that the peer offers are not accepted; 7 are malformed or too many"},
		{"a malformed one", map[string]*Offers{"k2": {List: []Offer{offer("echo", "192.168.0.100")}, LeftOut: 1}},
			"192.168.0.100/32", OfferLeftOut,
			"1 of 2 mesh services that the peer offers is not accepted; 1 is malformed or too many"},
		{"of a link that there is not", offering("nope", offer("echo", "192.168.0.100")), "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := threeClusters()
			objects := Objects{Links: o.list, Offers: c.offers,
				Reserved: []Reserved{{Addr: ip("192.168.0.200"), Owner: "MeshService default/ours"}}}
			s := Build(objects, cluster1())
			p := s.Peers[slices.IndexFunc(s.Peers, func(p Peer) bool { return p.Link == "k2" })]
			want := []netip.Prefix{pfx("192.168.0.12/32")}
			if c.want != "" {
				want = append(want, pfx(c.want))
			}
			checkEqual(t, "networks", p.Networks, want)
			checkEqual(t, "routes", s.Routes, threeClusters().build(cluster1()).Routes)
			checkEqual(t, "note", s.Notes["k2"], c.note)
			if c.reason != "" && s.Offers.Refused[c.reason] == 0 {
				t.Errorf("refused %v", s.Offers.Refused)
			}
			if _, ok := s.Offers.Rivals[ip("192.168.0.200")]; ok != (c.reason == OfferLocal) || len(s.Offers.Rivals) > 1 {
				t.Errorf("rivals %v", s.Offers.Rivals)
			}
			for reason := range s.Offers.Refused {
				if reason != c.reason && s.Offers.Refused[reason] > 0 {
					t.Errorf("refused for %s, too", reason)
				}
			}
		})
	}
}

// Clients that ask for the name of a refused offer are told why: of some of a peer's.
func TestRefusedNames(t *testing.T) {
	list := []Offer{offer("echo", "192.168.0.100")}
	for range 100 {
		list = append(list, offer("theirs", "192.168.0.200"))
	}
	s := Build(Objects{Links: threeClusters().list, Offers: offering("k3", list...),
		Reserved: []Reserved{{Addr: ip("192.168.0.200"), Owner: "MeshService default/ours"}}}, cluster1())
	for _, c := range s.Zones[0].Clusters {
		switch {
		case c.Link != "k3":
			checkEqual(t, c.Name, c.Refused, nil)
		case len(c.Refused) != maxRefused:
			t.Errorf("%d refused offers are told", len(c.Refused))
		default:
			checkEqual(t, c.Name, c.Refused[0], RefusedOffer{Namespace: "default", Name: "theirs", Address: ip("192.168.0.200"),
				Reason: "it belongs to MeshService default/ours of this cluster"})
			if !slices.EqualFunc(c.Offers, list[:1], Offer.Equal) {
				t.Errorf("accepted %v", c.Offers)
			}
			other := c
			if !c.Equal(other) {
				t.Error("a zone differs from its copy")
			}
			if other.Refused = nil; c.Equal(other) {
				t.Error("zones with other refused offers are equal")
			}
		}
	}
}

// An egress of the link itself may have the address: users of the former system typed it.
func TestOfferInOwnEgress(t *testing.T) {
	o := threeClusters()
	s := Build(Objects{Links: o.list, Offers: offering("k3", offer("echo", "192.168.0.65"))}, cluster1())
	checkEqual(t, "accepted", s.Offers.Links["k3"], []Offer{offer("echo", "192.168.0.65")})
	checkEqual(t, "note", s.Notes["k3"], "")
}

// A peer that offers the addresses of all mesh services of this cluster is noted at some of them.
func TestManyRivals(t *testing.T) {
	var reserved []Reserved
	var list []Offer
	for i := range 100 {
		a := netip.AddrFrom4([4]byte{192, 168, 0, byte(100 + i)})
		reserved = append(reserved, Reserved{Addr: a, Owner: "MeshService default/ours"})
		list = append(list, offer("theirs", a.String()))
	}
	s := Build(Objects{Links: threeClusters().list, Offers: offering("k2", list...), Reserved: reserved}, cluster1())
	if len(s.Offers.Rivals) != maxRivals || s.Offers.Refused[OfferLocal] != 100 {
		t.Errorf("%d rivals, refused %v", len(s.Offers.Rivals), s.Offers.Refused)
	}
}

// Brokers that share a mesh know of the networks of each other's links, if these are accepted.
func TestNetworksOfOtherBrokers(t *testing.T) {
	for state, taken := range map[v1alpha1.State]bool{v1alpha1.StateUp: true, v1alpha1.StateDown: true, "": false,
		v1alpha1.StateInvalid: false} {
		o := threeClusters()
		for i := range o.list {
			if o.list[i].Name == "k3" {
				o.list[i].Status.State = state
			}
		}
		local := cluster1()
		local.Served = []string{"k2"}
		s := Build(Objects{Links: o.list, Offers: offering("k2", offer("echo", "192.168.0.70"))}, local)
		if refused := s.Offers.Refused[OfferNetwork] == 1; refused != taken {
			t.Errorf("state %q of the other link: refused %t", state, refused)
		}
		for _, n := range []string{"192.168.0.13/32", "192.168.0.64/28"} {
			if slices.Contains(s.Networks, LinkNetwork{pfx(n), "k3"}) != taken {
				t.Errorf("state %q of the other link: networks %v", state, s.Networks)
			}
		}
		if len(s.Links) != 1 || len(s.Peers) != 1 {
			t.Errorf("links %v", s.Links)
		}
	}
}

// Of several links that offer an address, the one that had it keeps it, else the smaller cluster address wins, at every
// member. Both links tell it.
func TestOffersOfOneAddress(t *testing.T) {
	both := map[string]*Offers{}
	for _, name := range []string{"k4", "k3", "k2"} {
		both[name] = &Offers{List: []Offer{offer("b-of-"+name, "192.168.0.100"), offer("a-of-"+name, "192.168.0.101")}}
	}
	build := func(settled map[netip.Addr]string) State {
		return Build(Objects{Links: threeClusters().list, Offers: both, Settled: settled}, cluster1())
	}
	s := build(nil)
	checkEqual(t, "owner", s.Offers.Links, map[string][]Offer{
		"k2": {offer("a-of-k2", "192.168.0.101"), offer("b-of-k2", "192.168.0.100")},
	})
	checkEqual(t, "refused", s.Offers.Refused[OfferTaken], 4)
	checkEqual(t, "note of a loser", s.Notes["k3"], "2 of 2 mesh services that the peer offers are not accepted, such as "+
		"default/b-of-k3 at 192.168.0.100: link k2 offers it, too, and has the smaller cluster address")
	checkEqual(t, "note of the winner", s.Notes["k2"], "other links offer 4 of its mesh addresses as well, such as link "+
		"k3 with default/b-of-k3 at 192.168.0.100: these offers are not accepted")

	s = build(map[netip.Addr]string{ip("192.168.0.100"): "k4", ip("192.168.0.101"): "gone"})
	checkEqual(t, "owner", s.Offers.Links, map[string][]Offer{
		"k4": {offer("b-of-k4", "192.168.0.100")}, "k2": {offer("a-of-k2", "192.168.0.101")},
	})
	checkEqual(t, "note of a loser", s.Notes["k2"], "1 of 2 mesh services that the peer offers is not accepted: "+
		"default/b-of-k2 at 192.168.0.100: link k4 has it already; other links offer 2 of its mesh addresses as well, such "+
		"as link k3 with default/a-of-k3 at 192.168.0.101: these offers are not accepted")
}

// What is accepted is a part of the peer, of its gateway's list of carried links, and of the cluster's names. A cluster
// without a known DNS service has these names only.
func TestAcceptedOffers(t *testing.T) {
	list := []Offer{offer("echo", "192.168.0.100"), offer("web", "192.168.0.12", webPort)}
	o := threeClusters().add("behind", "192.168.0.15/24", "", via("k2"))
	build := func(offers map[string]*Offers) State {
		return Build(Objects{Links: o.list, Offers: offers}, cluster1())
	}
	s := build(map[string]*Offers{"k2": {List: list}, "behind": {List: []Offer{offer("echo", "192.168.0.101")}}})
	checkProblem(t, s, "behind", "")
	p := s.Peers[slices.IndexFunc(s.Peers, func(p Peer) bool { return p.Link == "k2" })]
	checkEqual(t, "networks", p.Networks,
		[]netip.Prefix{pfx("192.168.0.12/32"), pfx("192.168.0.15/32"), pfx("192.168.0.100/32")})
	checkEqual(t, "carried", p.Carried[1].Networks, []netip.Prefix{pfx("192.168.0.12/32"), pfx("192.168.0.100/32")})
	zone := func(s State) ClusterZone {
		for _, c := range s.Zones[0].Clusters {
			if c.Link == "k2" {
				return c
			}
		}
		return ClusterZone{}
	}
	checkEqual(t, "names", zone(s).Offers, list)
	checkEqual(t, "note", s.Notes["k2"], "")
	checkEqual(t, "zone without offers", zone(build(nil)).Name, "")
	checkEqual(t, "note without offers", build(nil).Notes["k2"], "")
	s = build(offering("k2"))
	checkEqual(t, "zone of a peer that may offer", zone(s).Name, "k2.kubelink.")
	checkEqual(t, "note of a peer that may offer", s.Notes["k2"], "")
}

// A cluster whose service network is not routed, because it is the own one, has the names of what it offers.
func TestNamesWithoutNetwork(t *testing.T) {
	o := new(objs).addLocal("here", "192.168.0.11/24").add("k2", "192.168.0.12/24", "b.example", cidr("100.64.0.0/20"))
	list := []Offer{offer("web", "192.168.0.100", webPort)}
	for name, c := range map[string]struct {
		offers map[string]*Offers
		names  []string
		want   []Offer
	}{
		"a peer that offers nothing":    {offering("k2"), []string{"here.kubelink.", "k2.kubelink."}, nil},
		"a peer that offers":            {offering("k2", list...), []string{"here.kubelink.", "k2.kubelink."}, list},
		"a peer that was not heard yet": {nil, []string{"here.kubelink.", "k2.kubelink."}, nil}, // denials say why
	} {
		s := Build(Objects{Links: o.list, Offers: c.offers}, cluster1())
		var names []string
		var got []Offer
		for _, z := range s.Zones[0].Clusters {
			names, got = append(names, z.Name), append(got, z.Offers...)
		}
		checkEqual(t, name, names, c.names)
		checkEqual(t, name, got, c.want)
		if z := s.Zones[0].Clusters[1]; z.Upstream.IsValid() || len(z.Services) > 0 { // they are those of this cluster
			t.Errorf("%s: names come from %s, services are in %s", name, z.Upstream, z.Services)
		}
	}
}

// The local cluster has the names of what it offers in a mesh, and of nothing else.
func TestNameOffers(t *testing.T) {
	s := threeClusters().build(cluster1())
	s.NameOffers([]Offer{offer("z", "192.168.0.100"), offer("a", "192.168.0.101"), offer("m2", "10.7.0.9")})
	for _, c := range s.Zones[0].Clusters {
		if c.Link == "" {
			checkEqual(t, "names", c.Offers, []Offer{offer("a", "192.168.0.101"), offer("z", "192.168.0.100")})
		} else if c.Offers != nil {
			t.Errorf("%s offers %v", c.Link, c.Offers)
		}
	}
}

// Offers of hostile peers cost little: none of 20 takes what is of another one.
func TestHostileOffers(t *testing.T) {
	o, all := new(objs).addLocal("here", "10.0.0.1/8"), map[string]*Offers{}
	local := cluster1()
	local.NodeCIDRs, local.PodCIDRs = nil, nil
	for i := range 20 {
		name, address := string(rune('a'+i)), netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})
		o.add(name, netip.PrefixFrom(address, 8).String(), name+".example")
		all[name] = &Offers{}
		for j := range 4096 {
			all[name].List = append(all[name].List, Offer{Namespace: "x", Name: "y", Whole: true,
				Address: netip.AddrFrom4([4]byte{10, 0, byte(j >> 8), byte(j)})})
		}
	}
	s := Build(Objects{Links: o.list, Offers: all}, local)
	checkEqual(t, "links that can be used", len(s.Links), 20)
	checkEqual(t, "refused as clusters", s.Offers.Refused[OfferCluster], 20*(20+1))
	checkEqual(t, "accepted", len(s.Offers.Links["a"]), 4096-22)
	checkEqual(t, "accepted of others", len(s.Offers.Links), 1)
}

// Build changes no offer, and equal input gives an equal State.
func TestOffersUnchanged(t *testing.T) {
	offers := offering("k2", offer("z", "192.168.0.100"), offer("a", "192.168.0.101"))
	for range 2 {
		s := Build(Objects{Links: threeClusters().list, Offers: offers}, cluster1())
		checkEqual(t, "accepted", s.Offers.Links["k2"], []Offer{offer("a", "192.168.0.101"), offer("z", "192.168.0.100")})
	}
	checkEqual(t, "offers", offers["k2"].List[0].Name, "z")
}
