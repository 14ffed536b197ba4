package mesh

// Random objects. Each field takes one of a few values, so that objects often conflict with each other.

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// dice takes choices from the input of the fuzzer.
type dice struct{ data []byte }

// roll returns a number from 0 to n-1; 0 when the input has come to its end.
func (d *dice) roll(n int) int {
	if len(d.data) == 0 {
		return 0
	}
	v := int(d.data[0]) % n
	d.data = d.data[1:]
	return v
}

// pick returns one of the values, and four times out of five the first one: one that works.
func pick[T any](d *dice, values ...T) T { return values[max(0, d.roll(5*len(values))-4*len(values))] }

func randomLocal(d *dice) Local {
	l := cluster1()
	l.Mode = pick(d, Bridge, None, WireGuard, WireGuard, Mode("unknown"))
	l.Propagation = pick(d, PropagateDNS, PropagateKubernetes, PropagateNone)
	l.ServiceCIDRs = pick(d, l.ServiceCIDRs, nil, pfxs("fd01::/112"), Prefixes{pfx("100.64.0.0/20"), pfx("fd01::/112")})
	if d.roll(3) == 1 {
		l.Addresses = pick(d, pfxs("192.168.0.11/24"), pfxs("fd00::1/64"),
			Prefixes{pfx("192.168.0.11/24"), pfx("fd00::1/64")})
		l.ClusterName = pick(d, "one", "two", "Global", "")
	}
	l.Domains = pick(d, nil, []string{"kubelink."}, []string{})
	l.MeshDNS = pick(d, netip.Addr{}, ip("100.64.16.11"), ip("10.9.9.9"))
	l.OwnDNS = pick(d, netip.Addr{}, ip("100.64.16.11"))
	l.ClusterDNS = pick(d, netip.Addr{}, ip("100.64.0.53"))
	l.Served = pick(d, nil, []string{"two", "m--two", "three"}, []string{"m"}, []string{DefaultMesh, "m--one"},
		[]string{"192.168.9.0/24"})
	return l
}

func randomLink(d *dice, age int) v1alpha1.KubeLink {
	var o v1alpha1.KubeLink
	names := []string{"two", "three", "m--one", "m--two", "m--three", "one", "m--", "svc.global", "other--here", "FOUR"}
	o.Name = names[d.roll(len(names))] + pick(d, "", fmt.Sprint(age))
	o.CreationTimestamp = metav1.Unix(int64(1000+age-d.roll(2)), 0)
	if d.roll(12) == 1 {
		now := metav1.Unix(5000, 0)
		o.DeletionTimestamp = &now
	}
	s := &o.Spec
	mesh := 0
	if strings.HasPrefix(o.Name, "m--") {
		mesh = 9
	}
	s.ClusterAddress = pick(d, fmt.Sprintf("192.168.%d.%d/24", mesh, 12+age), "192.168.0.11/24", "192.168.9.1/24",
		fmt.Sprintf("fd00::%d/64", 12+age), "192.168.0.0/16", "100.64.0.7/24", "x")
	s.Endpoint = pick(d, "two.example", "LocalLink", "172.31.0.3", "172.31.0.4:99", "Inbound", "", "a b")
	s.CIDR = pick(d, fmt.Sprintf("100.64.%d.0/20", 16+16*age), "", "100.64.16.0/20", "100.64.24.0/24", "fd02::/112",
		"100.64.0.0/20", "100.64.8.0/24", "100.64.16.1/32", "192.168.0.0/16", "y")
	for range d.roll(4) {
		s.Egress = append(s.Egress, pick[v1alpha1.EgressCIDR](d, "10.0.0.0/8", "172.16.0.0/12", "100.64.16.0/20",
			"192.168.0.100/32", "192.168.9.0/25", "0.0.0.0/0", "10.250.0.0/17", "fd00::/16", "100.0.0.0/8", "z"))
	}
	for range d.roll(3) {
		s.Ingress = append(s.Ingress, pick[v1alpha1.IngressCIDR](d, "100.64.0.0/20", "!100.64.0.10/32", "10.0.0.0/8",
			"!0.0.0.0/0", "100.64.0.0/24", "!"))
	}
	s.GatewayLink = pick(d, "", "two", "m--two", "three", o.Name)
	if d.roll(2) == 1 {
		s.DNS = &v1alpha1.KubeLinkDNS{
			DNSIP:              pick(d, "", "100.64.16.10", "10.1.1.1", "<nil>", "q"),
			BaseDomain:         pick(d, "", "m.example", "kubelink", "two.kubelink", "global.kubelink", "local", "-"),
			OmitDNSPropagation: d.roll(5) == 1,
		}
	}
	s.PublicKey = pick(d, testKey(byte(1+age)).Public().String(), testKey(2).Public().String(), "", "k")
	s.PresharedKey = pick(d, "", testKey(9).Base64(), "k")
	if d.roll(9) == 1 {
		s.PresharedKeySecretRef = &v1alpha1.SecretKeyRef{Name: "psk", Key: "psk"}
	}
	if d.roll(3) == 1 {
		s.APIAccess = &corev1.SecretReference{Name: pick(d, "access", AnnouncedSecret+"two", "")}
	}
	return o
}

func randomObjects(d *dice) Objects {
	var o Objects
	add := func(name, address string) {
		o.Links = append(o.Links, new(objs).add(name, address, v1alpha1.EndpointLocal).list...)
	}
	if d.roll(4) > 0 {
		add("one", "192.168.0.11/24")
	}
	if d.roll(2) > 0 {
		add("m--one", "192.168.9.1/24")
		o.Links[len(o.Links)-1].Spec.DNS = &v1alpha1.KubeLinkDNS{BaseDomain: "m.example"}
	}
	for i := range 2 + d.roll(8) {
		l := randomLink(d, i)
		if !slices.ContainsFunc(o.Links, func(old v1alpha1.KubeLink) bool { return old.Name == l.Name }) {
			o.Links = append(o.Links, l)
		}
	}
	o.Keys.Own = testKey(3).Public()
	o.Keys.Preshared = map[string]PresharedKey{o.Links[len(o.Links)-1].Name: {Key: testKey(9)}}
	return o
}

func copyOf(o Objects) Objects {
	c := Objects{Keys: o.Keys}
	for i := range o.Links {
		c.Links = append(c.Links, *o.Links[i].DeepCopy())
	}
	return c
}

// FuzzBuild: whatever the objects are like, the State is in order.
func FuzzBuild(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		data := make([]byte, 40+random.IntN(300))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &dice{data}
		local := randomLocal(d)
		objects := randomObjects(d)
		before := copyOf(objects)
		s := Build(objects, local)
		if !reflect.DeepEqual(objects, before) {
			t.Error("Build has changed its input")
		}
		if again := Build(shuffled(objects, d), local); !reflect.DeepEqual(again, s) {
			t.Errorf("another order of the objects gives another State:\n%+v\n%+v", again, s)
		}
		checkObjects(t, objects, local, s)
		checkTraffic(t, local, s)
		checkKeys(t, local, s)
		checkZones(t, local, s)
		checkOlderWins(t, objects, local, s)
	})
}

func shuffled(o Objects, d *dice) Objects {
	c := copyOf(o)
	random := rand.New(rand.NewPCG(uint64(d.roll(256)), 3))
	random.Shuffle(len(c.Links), func(i, j int) { c.Links[i], c.Links[j] = c.Links[j], c.Links[i] })
	return c
}

// checkObjects: each object that is served is in use or has a problem, and what is said of it fits a line.
func checkObjects(t *testing.T, objects Objects, local Local, s State) {
	used := map[string]int{}
	for _, l := range s.Links {
		used[l.Name]++
	}
	for _, m := range s.Meshes {
		if m.Link != "" {
			used[m.Link]++
		}
	}
	in := newInput(objects, &local)
	for _, o := range objects.Links {
		_, problem := s.Problems[o.Name]
		gone := o.DeletionTimestamp != nil
		switch isLocal := o.Spec.Endpoint == v1alpha1.EndpointLocal; {
		case gone && isLocal: // kept only while there are links
		case isLocal && s.Foreign[o.Name]: // its problem is not told here
		case gone, !isLocal && !in.served.servesLink(&o):
			if used[o.Name] != 0 || problem {
				t.Errorf("%s is not served, but used %d times, problem %v", o.Name, used[o.Name], problem)
			}
		case used[o.Name] > 1 || (used[o.Name] == 1) == problem:
			t.Errorf("%s is used %d times, problem %v", o.Name, used[o.Name], problem)
		}
		if _, note := s.Notes[o.Name]; note && problem {
			t.Errorf("%s has a note besides its problem", o.Name)
		}
	}
	for name, p := range s.Problems {
		if p.Message == "" || strings.Contains(p.Message, "\n") || p.State != "Invalid" && p.State != "Stale" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	for name, note := range s.Notes {
		if note == "" || strings.Contains(note, "\n") || strings.Contains(note, "%!") {
			t.Errorf("%s: %q", name, note)
		}
	}
}

// checkTraffic: no local traffic is led away, and each destination leads to one peer.
func checkTraffic(t *testing.T, local Local, s State) {
	if !local.Mode.CarriesTraffic() && len(s.Peers)+len(s.Routes) > 0 {
		t.Errorf("mode %s has peers or routes", local.Mode)
	}
	own := slices.Concat(local.PodCIDRs, local.NodeCIDRs)
	var addresses []netip.Addr
	for _, m := range s.Meshes {
		own = append(own, m.Services...)
		addresses = append(addresses, m.Addresses.Addrs()...)
	}
	for i, r := range s.Routes {
		for _, n := range own {
			if n.Bits() <= r.Destination.Bits() && n.Overlaps(r.Destination) {
				t.Errorf("the route to %s takes addresses of the local network %s", r.Destination, n)
			}
		}
		if i > 0 && s.Routes[i-1].Destination.Compare(r.Destination) >= 0 {
			t.Errorf("route %s comes after %s", r.Destination, s.Routes[i-1].Destination)
		}
		if !slices.Contains(addresses, r.Source) || r.Source.Is4() != r.Destination.Addr().Is4() {
			t.Errorf("the route to %s has the source %s", r.Destination, r.Source)
		}
	}
	owners := map[netip.Prefix]string{}
	for _, p := range s.Peers {
		for _, n := range p.Networks {
			if owners[n] != "" {
				t.Errorf("%s leads to %s and to %s", n, owners[n], p.Link)
			}
			owners[n] = p.Link
			// The nodes have a longer route than a network around node-cidr.
			if endpoint, err := netip.ParseAddr(p.Host); err == nil && n.Contains(endpoint) &&
				!local.NodeCIDRs.Contains(endpoint) {
				t.Errorf("the endpoint %s of %s would be in its own tunnel (%s)", endpoint, p.Link, n)
			}
		}
		for _, a := range p.Local.Addrs() {
			if got := probe(p.Ingress, a); got != "ping" && got != "replies" {
				t.Errorf("%s gets of %s: %s", p.Link, a, got)
			}
		}
	}
	for _, l := range s.Links {
		isPeer := slices.ContainsFunc(s.Peers, func(p Peer) bool { return p.Link == l.Peer })
		if isPeer != local.Mode.CarriesTraffic() {
			t.Errorf("peer %q of %s: there is one: %v", l.Peer, l.Name, isPeer)
		}
	}
}

// checkKeys: in mode wireguard peers have keys, and with one key one endpoint and one preshared key.
func checkKeys(t *testing.T, local Local, s State) {
	for _, p := range s.Peers {
		if (p.Key != PublicKey{}) != (local.Mode == WireGuard) || p.Key == testKey(3).Public() {
			t.Errorf("mode %s: the key of %s is %s", local.Mode, p.Link, p.Key)
		}
		for _, q := range s.Peers {
			if p.Key == q.Key && local.Mode == WireGuard &&
				(p.Host != q.Host || p.Port != q.Port || p.Preshared != q.Preshared) {
				t.Errorf("%s and %s have one key, but are not one peer", p.Link, q.Link)
			}
		}
	}
}

// checkZones: names are unique, none takes global names, and what is asked for them is routed to the link.
func checkZones(t *testing.T, local Local, s State) {
	if local.Propagation == PropagateNone && len(s.Zones) > 0 {
		t.Error("there are zones without propagation")
	}
	domains := map[string]bool{}
	for _, z := range s.Zones {
		if domains[z.Domain] {
			t.Errorf("%s is there twice", z.Domain)
		}
		domains[z.Domain] = true
	}
	for _, z := range s.Zones {
		for _, c := range z.Clusters {
			if domains[c.Name] || !strings.HasSuffix(c.Name, "."+z.Domain) || InDomain(c.Name, "global."+z.Domain) {
				t.Errorf("the name %s cannot be in %s", c.Name, z.Domain)
			}
			if unrouted := strings.Contains(s.Notes[c.Link], "is not routed, as it overlaps"); !c.Upstream.IsValid() &&
				!c.API.Use && !unrouted { // of mesh services only
				t.Errorf("nothing has the names of %s", c.Name)
			}
			if c.Link == "" || !c.Upstream.IsValid() || !local.Mode.CarriesTraffic() {
				continue
			}
			i := slices.IndexFunc(s.Links, func(l Link) bool { return l.Name == c.Link })
			p := slices.IndexFunc(s.Peers, func(p Peer) bool { return p.Link == s.Links[i].Peer })
			routed := func(n netip.Prefix) bool { return n.Contains(c.Upstream.Addr()) }
			if !slices.ContainsFunc(s.Peers[p].Networks, routed) {
				t.Errorf("the DNS service %s of %s is not routed to %s", c.Upstream, c.Name, c.Link)
			}
		}
	}
}

// checkOlderWins: without the youngest link nothing works that does not work with it.
func checkOlderWins(t *testing.T, objects Objects, local Local, s State) {
	links := slices.Clone(objects.Links)
	slices.SortFunc(links, func(a, b v1alpha1.KubeLink) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	youngest := links[len(links)-1]
	keeps := func(o v1alpha1.KubeLink) bool { return o.DeletionTimestamp != nil && o.Spec.Endpoint == "LocalLink" }
	if youngest.Spec.Endpoint == v1alpha1.EndpointLocal || slices.ContainsFunc(links, keeps) {
		return // meshes come first, however young they are
	}
	without := Build(Objects{Links: links[:len(links)-1], Keys: objects.Keys}, local)
	for _, l := range without.Links {
		if !slices.ContainsFunc(s.Links, func(m Link) bool { return m.Name == l.Name }) {
			t.Errorf("%s works no longer because of the youngest link %s: %+v", l.Name, youngest.Name, s.Problems[l.Name])
		}
	}
}
