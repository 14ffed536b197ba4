package mesh

import (
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

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

func pfxs(s string) Prefixes    { return Prefixes{pfx(s)} }
func ips(s string) []netip.Addr { return []netip.Addr{ip(s)} }

// cluster1 is a local cluster without a mesh of its own in the stanza.
func cluster1() Local {
	return Local{
		Mode:          Bridge,
		Propagation:   PropagateDNS,
		MeshDomain:    "kubelink.",
		ServiceCIDRs:  pfxs("100.64.0.0/20"),
		PodCIDRs:      pfxs("100.96.0.0/11"),
		NodeCIDRs:     pfxs("10.250.0.0/16"),
		ClusterDomain: "cluster.local.",
		DefaultPort:   80,
	}
}

// obj makes KubeLinks, each a second younger than the one before.
type objs struct{ list []v1alpha1.KubeLink }

func (o *objs) add(name, address, endpoint string, mod ...func(*v1alpha1.KubeLink)) *objs {
	l := v1alpha1.KubeLink{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(int64(1000+len(o.list)), 0)},
		Spec:       v1alpha1.KubeLinkSpec{ClusterAddress: address, Endpoint: endpoint},
	}
	for _, m := range mod {
		m(&l)
	}
	o.list = append(o.list, l)
	return o
}

func (o *objs) build(local Local) State { return Build(Objects{Links: o.list}, local) }

type mod = func(*v1alpha1.KubeLink)

func cidr(s string) mod { return func(l *v1alpha1.KubeLink) { l.Spec.CIDR = s } }
func via(s string) mod  { return func(l *v1alpha1.KubeLink) { l.Spec.GatewayLink = s } }
func egress(s ...v1alpha1.EgressCIDR) mod {
	return func(l *v1alpha1.KubeLink) { l.Spec.Egress = s }
}
func ingress(s ...v1alpha1.IngressCIDR) mod {
	return func(l *v1alpha1.KubeLink) { l.Spec.Ingress = s }
}
func dns(ip, base string) mod {
	return func(l *v1alpha1.KubeLink) { l.Spec.DNS = &v1alpha1.KubeLinkDNS{DNSIP: ip, BaseDomain: base} }
}
func apiSecret(namespace, name string) mod {
	return func(l *v1alpha1.KubeLink) {
		l.Spec.APIAccess = &corev1.SecretReference{Namespace: namespace, Name: name}
	}
}
func omitDNS(l *v1alpha1.KubeLink) {
	l.Spec.DNS = &v1alpha1.KubeLinkDNS{OmitDNSPropagation: true}
}
func deleting(l *v1alpha1.KubeLink) { now := metav1.Unix(5000, 0); l.DeletionTimestamp = &now }
func pair() *objs {
	return new(objs).
		add("kubelink1", "192.168.0.11/24", "LocalLink", cidr("100.64.0.0/20")).
		add("kubelink2", "192.168.0.12/24", "kubelink.Two.example", cidr("100.64.16.0/20"))
}

func TestBuildPair(t *testing.T) {
	got := pair().build(cluster1())
	want := State{
		Meshes: []Mesh{{
			Link: "kubelink1", Cluster: "kubelink1", Addresses: pfxs("192.168.0.11/24"), Services: pfxs("100.64.0.0/20"),
			Domain: "kubelink.", Members: []string{"kubelink2"},
		}},
		Links:    []Link{{Name: "kubelink2", Cluster: "kubelink2", Peer: "kubelink2"}},
		Networks: []LinkNetwork{{pfx("100.64.16.0/20"), "kubelink2"}, {pfx("192.168.0.12/32"), "kubelink2"}},
		Local:    []netip.Prefix{pfx("10.250.0.0/16"), pfx("100.64.0.0/20"), pfx("100.96.0.0/11"), pfx("192.168.0.0/24")},
		Peers: []Peer{{
			Link: "kubelink2", Local: pfxs("192.168.0.11/24"), Services: pfxs("100.64.0.0/20"),
			Addresses: pfxs("192.168.0.12/24"), Host: "kubelink.two.example", Port: 80,
			Networks: []netip.Prefix{pfx("100.64.16.0/20"), pfx("192.168.0.12/32")},
			Unlisted: true, Ingress: []Rule{{pfx("100.64.0.0/20"), true, false}, {pfx("192.168.0.11/32"), true, true}},
		}},
		Routes: []Route{{pfx("100.64.16.0/20"), ip("192.168.0.11")}, {pfx("192.168.0.0/24"), ip("192.168.0.11")}},
		Zones: []Zone{{Domain: "kubelink.", Networks: pfxs("192.168.0.0/24"), Clusters: []ClusterZone{
			{
				Name: "kubelink1.kubelink.", Addresses: ips("192.168.0.11"), Services: pfxs("100.64.0.0/20"),
				Upstream: netip.MustParseAddrPort("100.64.0.10:53"), ClusterDomain: "cluster.local.",
			},
			{
				Name: "kubelink2.kubelink.", Link: "kubelink2", Addresses: ips("192.168.0.12"), Services: pfxs("100.64.16.0/20"),
				Upstream: netip.MustParseAddrPort("100.64.16.10:53"), ClusterDomain: "cluster.local.",
			},
		}, Global: GlobalZone{Name: "svc.global.kubelink."}}},
		Problems: map[string]Problem{},
		Notes:    map[string]string{},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestProblems has a row for each rule: what is refused, with the field and the remedy named, while
// every other link goes on.
func TestProblems(t *testing.T) {
	two := "kubelink.two.example"
	for _, c := range []struct {
		name   string
		objs   *objs
		local  func(*Local)
		object string
		state  v1alpha1.State
		says   []string
	}{
		{
			"no mesh", new(objs).add("kubelink2", "192.168.0.12/24", two), nil, "kubelink2", "Stale",
			[]string{"the default mesh has no LocalLink", "create KubeLink <local cluster>"},
		},
		{
			"no such mesh", pair().add("m2--x", "192.168.0.13/24", two), nil, "m2--x", "Stale",
			[]string{"mesh m2 has no LocalLink", "m2--<local cluster>"},
		},
		{
			"local link broken",
			new(objs).add("kubelink1", "192.168.0.0/24", "LocalLink").add("kubelink2", "192.168.0.12/24", two), nil,
			"kubelink2", "Stale", []string{"LocalLink kubelink1", "Invalid", "repair"},
		},
		{
			"local address without host part", new(objs).add("kubelink1", "192.168.0.0/24", "LocalLink"), nil, "kubelink1",
			"Invalid", []string{`spec.clusterAddress "192.168.0.0/24"`, "network"},
		},
		{
			"local address without mask", new(objs).add("kubelink1", "192.168.0.11", "LocalLink"), nil, "kubelink1", "Invalid",
			[]string{`spec.clusterAddress "192.168.0.11"`, "/24"},
		},
		{
			"local address broadcast", new(objs).add("kubelink1", "192.168.0.255/24", "LocalLink"), nil, "kubelink1", "Invalid",
			[]string{"spec.clusterAddress", "broadcast"},
		},
		{
			"local address single", new(objs).add("kubelink1", "192.168.0.11/32", "LocalLink"), nil, "kubelink1", "Invalid",
			[]string{"spec.clusterAddress", "/32", "no room"},
		},
		{
			"local address loopback", new(objs).add("kubelink1", "127.0.0.1/8", "LocalLink"), nil, "kubelink1", "Invalid",
			[]string{"spec.clusterAddress", "loopback"},
		},
		{
			"local address mapped", new(objs).add("kubelink1", "::ffff:192.168.0.11/120", "LocalLink"), nil, "kubelink1",
			"Invalid", []string{"spec.clusterAddress", "its own form"},
		},
		{
			"local address in service network", new(objs).add("kubelink1", "100.64.0.5/24", "LocalLink"), nil, "kubelink1",
			"Invalid", []string{"spec.clusterAddress", "service-cidr", "disjoint"},
		},
		{
			"local address in node network", new(objs).add("kubelink1", "10.250.7.5/24", "LocalLink"), nil, "kubelink1",
			"Invalid", []string{"spec.clusterAddress", "node-cidr"},
		},
		{
			"local cidr differs", new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink", cidr("100.65.0.0/20")), nil,
			"kubelink1", "Invalid", []string{"spec.cidr 100.65.0.0/20", "service-cidr 100.64.0.0/20"},
		},
		{
			"local cidr is the mesh", new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink", cidr("192.168.0.0/16")),
			func(l *Local) { l.ServiceCIDRs = nil }, "kubelink1", "Invalid", []string{"spec.cidr", "disjoint"},
		},
		{
			"local gateway", new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink", via("x")), nil, "kubelink1", "Invalid",
			[]string{"spec.gatewayLink", "remove"},
		},
		{
			"local name without cluster", new(objs).add("m2--", "192.168.0.11/24", "LocalLink"), nil, "m2--", "Invalid",
			[]string{"metadata.name", "<mesh>--<cluster>"},
		},
		{
			"second local link", pair().add("other", "192.168.9.13/24", "LocalLink"), nil, "other", "Stale",
			[]string{"older LocalLink kubelink1", "delete one"},
		},
		{
			"stanza and local link", pair(), func(l *Local) { l.Addresses = pfxs("192.168.0.11/24") }, "kubelink1", "Stale",
			[]string{"link-address 192.168.0.11/24", "remove"},
		},
		{
			"meshes overlap", pair().add("m2--kubelink1", "192.168.0.200/25", "LocalLink"), nil, "m2--kubelink1", "Invalid",
			[]string{"spec.clusterAddress", "overlaps", "the default mesh"},
		},
		{
			"local ingress", new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink", ingress("!x")), nil, "kubelink1",
			"Invalid", []string{`spec.ingress "!x"`},
		},
		{
			"local dns ip", new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink", dns("1.2.3", "")), nil, "kubelink1",
			"Invalid", []string{`spec.dns.dnsIP "1.2.3"`},
		},
		{
			"local domain", new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink", dns("", "a..b")), nil, "kubelink1",
			"Invalid", []string{"spec.dns.baseDomain", "label"},
		},
		{
			"local domain hides the cluster's", new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink", dns("", "local")),
			nil, "kubelink1", "Invalid", []string{"spec.dns.baseDomain", "cluster.local."},
		},

		{
			"name without cluster", pair().add("m2--", "192.168.0.13/24", two), nil, "m2--", "Invalid",
			[]string{"metadata.name"},
		},
		{
			"named as the local cluster", pair(),
			func(l *Local) { l.Addresses = pfxs("192.168.0.11/24"); l.ClusterName = "kubelink2" }, "kubelink2", "Invalid",
			[]string{"metadata.name", "local cluster"},
		},
		{"address", pair().add("k3", "x", two), nil, "k3", "Invalid", []string{`spec.clusterAddress "x"`}},
		{
			"mask", pair().add("k3", "192.168.0.13/16", two), nil, "k3", "Invalid",
			[]string{"spec.clusterAddress 192.168.0.13/16", "use 192.168.0.13/24"},
		},
		{
			"other network", pair().add("k3", "192.168.1.13/24", two), nil, "k3", "Invalid",
			[]string{"spec.clusterAddress 192.168.1.13/24", "192.168.0.0/24"},
		},
		{
			"own address", pair().add("k3", "192.168.0.11/24", two), nil, "k3", "Invalid",
			[]string{"spec.clusterAddress", "local cluster"},
		},
		{
			"same address", pair().add("k3", "192.168.0.12/24", two), nil, "k3", "Invalid",
			[]string{"spec.clusterAddress", "older link kubelink2"},
		},
		{
			"cidr", pair().add("k3", "192.168.0.13/24", two, cidr("100.64.32.1/20")), nil, "k3", "Invalid",
			[]string{`spec.cidr "100.64.32.1/20"`, "did you mean 100.64.32.0/20"},
		},
		{
			"cidr is mesh", pair().add("k3", "192.168.0.13/24", two, cidr("192.168.0.0/16")), nil, "k3", "Invalid",
			[]string{"spec.cidr", "the default mesh"},
		},
		{
			"cidr is another's", pair().add("k3", "192.168.0.13/24", two, cidr("100.64.24.0/24")), nil, "k3", "Invalid",
			[]string{"spec.cidr 100.64.24.0/24", "older link kubelink2", "100.64.16.0/20"},
		},
		{
			"family", pair().add("k3", "192.168.0.13/24", two, cidr("fd00::/112")), nil, "k3", "Invalid",
			[]string{"spec.cidr", "IP families"},
		},
		{
			"egress", pair().add("k3", "192.168.0.13/24", two, egress("10.1.0")), nil, "k3", "Invalid",
			[]string{`spec.egress "10.1.0"`},
		},
		{
			"egress default route", pair().add("k3", "192.168.0.13/24", two, egress("0.0.0.0/0")), nil, "k3", "Invalid",
			[]string{"spec.egress 0.0.0.0/0", "default route"},
		},
		{
			"egress is local", pair().add("k3", "192.168.0.13/24", two, egress("10.250.1.0/24")), nil, "k3", "Invalid",
			[]string{"spec.egress", "node-cidr"},
		},
		{
			"egress is local services", pair().add("k3", "192.168.0.13/24", two, egress("100.64.0.0/20")), nil, "k3", "Invalid",
			[]string{"spec.egress", "local service network"},
		},
		{
			"egress is own mesh address", pair().add("k3", "192.168.0.13/24", two, egress("192.168.0.11/32")), nil, "k3",
			"Invalid", []string{"spec.egress"},
		},
		{
			"egress is the mesh", pair().add("k3", "192.168.0.13/24", two, egress("192.168.0.0/24")), nil, "k3", "Invalid",
			[]string{"spec.egress"},
		},
		{
			"egress is another's", pair().add("k3", "192.168.0.13/24", two, egress("100.64.16.0/20")), nil, "k3", "Invalid",
			[]string{"spec.egress 100.64.16.0/20", "older link kubelink2"},
		},
		{
			"egress is part of another's services", pair().add("k3", "192.168.0.13/24", two, egress("100.64.16.0/24")), nil,
			"k3", "Invalid", []string{"spec.egress 100.64.16.0/24", "older link kubelink2", "100.64.16.0/20"},
		},
		{
			"egress has its own endpoint", pair().add("k3", "192.168.0.13/24", "172.31.0.3", egress("172.16.0.0/12")), nil,
			"k3", "Invalid", []string{"172.16.0.0/12", "endpoint 172.31.0.3 of link k3"},
		},
		{
			"egress has another's endpoint",
			pair().add("k4", "192.168.0.14/24", "172.31.0.4").add("k3", "192.168.0.13/24", two, egress("172.16.0.0/12")), nil,
			"k3", "Invalid", []string{"172.16.0.0/12", "endpoint 172.31.0.4 of link k4"},
		},
		{
			"endpoint in another's egress",
			pair().add("k4", "192.168.0.14/24", two, egress("172.16.0.0/12")).add("k3", "192.168.0.13/24", "172.31.0.3"), nil,
			"k3", "Invalid", []string{"spec.endpoint 172.31.0.3", "172.16.0.0/12", "link k4"},
		},
		{
			"third without mesh",
			new(objs).add("m--a", "192.168.0.12/24", two).add("m--b", "192.168.0.13/24", two).
				add("m--c", "192.168.0.14/24", two), nil, "m--c", "Stale", []string{"mesh m has no LocalLink"},
		},
		{
			"ingress", pair().add("k3", "192.168.0.13/24", two, ingress("100.64.0.0/20", "!100.64.0")), nil, "k3", "Invalid",
			[]string{`spec.ingress "!100.64.0"`},
		},
		{"endpoint missing", pair().add("k3", "192.168.0.13/24", ""), nil, "k3", "Invalid", []string{"spec.endpoint"}},
		{
			"endpoint inbound", pair().add("k3", "192.168.0.13/24", "Inbound"), nil, "k3", "Invalid",
			[]string{"spec.endpoint Inbound", "wireguard"},
		},
		{
			"endpoint port", pair().add("k3", "192.168.0.13/24", "a.example:0"), nil, "k3", "Invalid",
			[]string{`spec.endpoint "a.example:0"`, "1 to 65535"},
		},
		{
			"endpoint host", pair().add("k3", "192.168.0.13/24", "a b"), nil, "k3", "Invalid",
			[]string{"spec.endpoint", "DNS name"},
		},
		{
			"dns ip", pair().add("k3", "192.168.0.13/24", two, dns("x", "")), nil, "k3", "Invalid",
			[]string{`spec.dns.dnsIP "x"`},
		},
		{
			"dns domain of the mesh", pair().add("k3", "192.168.0.13/24", two, dns("", "x.Kubelink")), nil, "k3", "Invalid",
			[]string{`spec.dns.baseDomain "x.Kubelink"`, "mesh domain kubelink", "such as cluster.local"},
		},
		{
			"dns domain", pair().add("k3", "192.168.0.13/24", two, dns("", "-x")), nil, "k3", "Invalid",
			[]string{`spec.dns.baseDomain "-x"`},
		},
		{
			"gateway missing", pair().add("k3", "192.168.0.13/24", "", via("nope")), nil, "k3", "Stale",
			[]string{"spec.gatewayLink nope", "create"},
		},
		{
			"gateway itself", pair().add("k3", "192.168.0.13/24", "", via("k3")), nil, "k3", "Invalid",
			[]string{"spec.gatewayLink", "itself"},
		},
		{
			"gateway local", pair().add("k3", "192.168.0.13/24", "", via("kubelink1")), nil, "k3", "Invalid",
			[]string{"spec.gatewayLink kubelink1", "LocalLink"},
		},
		{
			"gateway of other mesh", pair().add("k3", "192.168.0.13/24", "", via("m2--x")), nil, "k3", "Invalid",
			[]string{"spec.gatewayLink m2--x", "same mesh"},
		},
		{
			"gateway has a gateway",
			pair().add("k3", "192.168.0.13/24", "", via("kubelink2")).add("k4", "192.168.0.14/24", "", via("k3")), nil, "k4",
			"Invalid", []string{"spec.gatewayLink k3", "kubelink2"},
		},
		{
			"gateway broken", pair().add("k3", "192.168.0.13/8", two).add("k4", "192.168.0.14/24", "", via("k3")), nil, "k4",
			"Stale", []string{"spec.gatewayLink k3", "Invalid", "repair"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			local := cluster1()
			if c.local != nil {
				c.local(&local)
			}
			s := c.objs.build(local)
			p, ok := s.Problems[c.object]
			if !ok || p.State != c.state {
				t.Fatalf("problem of %s: %+v, want state %s", c.object, p, c.state)
			}
			for _, w := range c.says {
				if !strings.Contains(p.Message, w) {
					t.Errorf("message %q does not contain %q", p.Message, w)
				}
			}
			if strings.Contains(p.Message, "\n") {
				t.Errorf("message %q has more than one line", p.Message)
			}
			for _, l := range s.Links {
				if l.Name == c.object {
					t.Errorf("%s is still used", c.object)
				}
			}
			// The healthy pair is undisturbed, unless the row is about it.
			if len(c.objs.list) > 2 && c.object != "kubelink1" && c.object != "kubelink2" {
				isPair := func(p Peer) bool { return p.Link == "kubelink2" }
				if c.objs.list[1].Name == "kubelink2" && !slices.ContainsFunc(s.Peers, isPair) {
					t.Errorf("kubelink2 is no longer linked: %+v", s.Peers)
				}
			}
		})
	}
}

func TestLegacyNilAddress(t *testing.T) {
	o := new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink", dns("<nil>", "")).
		add("kubelink2", "192.168.0.12/24", "x.example", cidr("100.64.16.0/20"), dns("<nil>", ""))
	if s := o.build(cluster1()); len(s.Problems) != 0 || len(s.Peers) != 1 {
		t.Errorf("%+v", s)
	}
}

func TestGateway(t *testing.T) {
	// The link behind the gateway is older than the gateway.
	o := new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink").
		add("k3", "192.168.0.13/24", "", cidr("100.64.32.0/20"), via("kubelink2")).
		add("kubelink2", "192.168.0.12/24", "b.example:443", cidr("100.64.16.0/20"))
	s := o.build(cluster1())
	if len(s.Problems) != 0 || len(s.Peers) != 1 {
		t.Fatalf("%+v", s)
	}
	p := s.Peers[0]
	want := []netip.Prefix{
		pfx("100.64.16.0/20"), pfx("100.64.32.0/20"), pfx("192.168.0.12/32"), pfx("192.168.0.13/32"),
	}
	if !reflect.DeepEqual(p.Networks, want) {
		t.Errorf("networks %v", p.Networks)
	}
	if s.Links[0].Peer != "kubelink2" || p.Port != 443 {
		t.Errorf("%+v", s)
	}
}

func TestTwoMeshes(t *testing.T) {
	o := pair().
		add("m2--one", "192.168.9.1/24", "LocalLink", dns("", "mesh2.example")).
		add("m2--two", "192.168.9.2/24", "b.example", cidr("100.64.32.0/20"), dns("100.64.32.53", "k8s.example"))
	s := o.build(cluster1())
	if len(s.Problems) != 0 || len(s.Meshes) != 2 || len(s.Peers) != 2 || len(s.Zones) != 2 {
		t.Fatalf("%+v", s)
	}
	want := []Route{
		{pfx("100.64.16.0/20"), ip("192.168.0.11")}, {pfx("100.64.32.0/20"), ip("192.168.9.1")},
		{pfx("192.168.0.0/24"), ip("192.168.0.11")}, {pfx("192.168.9.0/24"), ip("192.168.9.1")},
	}
	if !reflect.DeepEqual(s.Routes, want) {
		t.Errorf("routes %v", s.Routes)
	}
	z := s.Zones[1]
	two := ClusterZone{
		Name: "two.mesh2.example.", Link: "m2--two", Addresses: ips("192.168.9.2"), Services: pfxs("100.64.32.0/20"),
		Upstream: netip.MustParseAddrPort("100.64.32.53:53"), ClusterDomain: "k8s.example.",
	}
	if z.Domain != "mesh2.example." || !z.Clusters[1].Equal(two) {
		t.Errorf("zone %+v", z)
	}
}

// A domain whose queries do not reach us is told at its LocalLink.
func TestUnservedDomain(t *testing.T) {
	objs := pair().add("m2--one", "192.168.9.1/24", "LocalLink", dns("", "mesh2.example"))
	for _, c := range []struct {
		domains []string
		off     bool
		says    string
	}{
		{nil, false, ""},
		{[]string{"kubelink.", "mesh2.example."}, false, ""},
		{[]string{"kubelink.", "example."}, false, ""},
		{
			[]string{"kubelink.", "x.mesh2.example.", "sh2.example."}, false,
			"no server block of the Corefile answers for mesh2.example: write a block with the key mesh2.example",
		},
		{[]string{"kubelink."}, true, ""},
	} {
		local := cluster1()
		local.Domains = c.domains
		if c.off {
			local.Propagation = PropagateNone
		}
		s := objs.build(local)
		note := s.Notes["m2--one"]
		if !strings.HasPrefix(note, c.says) || (note == "") != (c.says == "") || s.Notes["kubelink1"] != "" {
			t.Errorf("%v: %q", c.domains, s.Notes)
		}
	}
}

func TestSameDomainTwice(t *testing.T) {
	s := pair().add("m2--one", "192.168.9.1/24", "LocalLink").build(cluster1())
	if len(s.Zones) != 1 || len(s.Problems) != 0 || !strings.Contains(s.Notes["m2--one"], "spec.dns.baseDomain kubelink") {
		t.Errorf("%+v", s)
	}
}

func TestStanzaMesh(t *testing.T) {
	local := cluster1()
	local.Addresses, local.ClusterName = pfxs("192.168.0.11/24"), "kubelink1"
	s := Build(Objects{Links: pair().list[1:]}, local)
	if len(s.Peers) != 1 || len(s.Zones) != 1 || s.Zones[0].Clusters[0].Name != "kubelink1.kubelink." {
		t.Errorf("%+v", s)
	}
}

// The global zone is served here, unless the mesh DNS address is another one.
func TestGlobalZone(t *testing.T) {
	stanza := func(l *Local) { l.MeshDNS = ip("100.64.16.11") }
	for _, c := range []struct {
		name           string
		local          func(*Local)
		mods           []mod // of the LocalLink
		upstream, link string
		says           string
	}{
		{"default", nil, nil, "", "", ""},
		{"ours", nil, []mod{dns("100.64.0.11", "")}, "", "", ""},
		{"ours by configuration", func(l *Local) { l.OwnDNS = ip("100.64.0.12") }, []mod{dns("100.64.0.12", "")}, "", "", ""},
		{
			"not ours by configuration", func(l *Local) { l.OwnDNS = ip("100.64.0.12") }, []mod{dns("100.64.0.11", "")},
			"100.64.0.11:53", "", "",
		},
		{
			"ours by the link's cidr", func(l *Local) { l.ServiceCIDRs = nil },
			[]mod{cidr("100.65.0.0/20"), dns("100.65.0.11", "")}, "", "", "",
		},
		{"another cluster's", nil, []mod{dns("100.64.16.11", "")}, "100.64.16.11:53", "kubelink2", ""},
		{"at a mesh address", nil, []mod{dns("192.168.0.12", "")}, "192.168.0.12:53", "kubelink2", ""},
		{"behind a gateway", nil, []mod{dns("100.64.32.11", "")}, "100.64.32.11:53", "k3", ""},
		{"the smallest network", nil, []mod{dns("10.8.1.11", "")}, "10.8.1.11:53", "k3", ""},
		{"the larger network", nil, []mod{dns("10.8.2.11", "")}, "10.8.2.11:53", "kubelink2", ""},
		{"local", nil, []mod{dns("100.96.0.11", "")}, "100.96.0.11:53", "", ""},
		{"nowhere", nil, []mod{dns("10.1.1.1", "")}, "10.1.1.1:53", "", "the mesh DNS address 10.1.1.1 (spec.dns.dnsIP)"},
		{"nowhere, in mode none", func(l *Local) { l.Mode = None }, []mod{dns("10.1.1.1", "")}, "10.1.1.1:53", "", ""},
		{"of the stanza", stanza, nil, "100.64.16.11:53", "kubelink2", ""},
		{"of the stanza and the link", stanza, []mod{dns("100.64.32.11", "")}, "100.64.32.11:53", "k3", ""},
		{"long domain", nil, []mod{dns("", strings.Repeat("a.", 122)+"a")}, "", "-", "no global names"},
	} {
		local := cluster1()
		if c.local != nil {
			c.local(&local)
		}
		o := new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink", c.mods...).
			add("kubelink2", "192.168.0.12/24", "b.example", cidr("100.64.16.0/20"), egress("10.8.0.0/16")).
			add("k3", "192.168.0.13/24", "", cidr("100.64.32.0/20"), egress("10.8.1.0/24"), via("kubelink2"))
		s := o.build(local)
		if len(s.Problems) != 0 || len(s.Zones) != 1 {
			t.Fatalf("%s: %+v", c.name, s)
		}
		got, want := s.Zones[0].Global, GlobalZone{Name: "svc.global.kubelink.", Link: c.link}
		if c.upstream != "" {
			want.Upstream = netip.MustParseAddrPort(c.upstream)
		}
		if c.link == "-" {
			want = GlobalZone{}
		}
		if note := s.Notes["kubelink1"]; got != want || !strings.Contains(note, c.says) || (note == "") != (c.says == "") {
			t.Errorf("%s: got %+v, want %+v, note %q", c.name, got, want, note)
		}
	}
	// The address of the stanza is that of the default mesh, also without an object to say so at.
	local := cluster1()
	local.Addresses, local.ClusterName, local.MeshDNS = pfxs("192.168.0.11/24"), "kubelink1", ip("10.1.1.1")
	s := new(objs).add("m2--one", "192.168.9.1/24", "LocalLink", dns("", "mesh2.example")).build(local)
	if len(s.Notes) != 0 || !s.Zones[0].Global.Upstream.IsValid() || s.Zones[1].Global.Upstream.IsValid() ||
		s.Meshes[0].DNS != local.MeshDNS {
		t.Errorf("%+v", s)
	}
}

// A cluster cannot be called as another mesh, nor a mesh be where another one has its global names.
func TestDomainsClash(t *testing.T) {
	for _, c := range []struct{ domain, cluster, object, says string }{
		{"m2.kubelink", "m2", "m2", "no DNS: m2.kubelink is the domain of mesh m2; use another name for the cluster"},
		{"b.kubelink", "b", "b", "no DNS: b.kubelink is the domain of mesh m2"},
		{
			"kubelink1.kubelink", "m2", "m2--here",
			"no DNS: spec.dns.baseDomain kubelink1.kubelink is the local cluster in the default mesh; set another one",
		},
		{
			"svc.global.kubelink", "m2", "m2--here",
			"no DNS: spec.dns.baseDomain svc.global.kubelink, and kubelink of the default mesh: " +
				"one lies in the global names of the other",
		},
		{"xm2.kubelink", "m2", "", ""}, {"m2.example", "m2", "", ""}, {"x.m2.kubelink", "m2", "", ""},
	} {
		s := new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink").
			add("m2--here", "192.168.9.1/24", "LocalLink", dns("", c.domain)).
			add(c.cluster, "192.168.0.12/24", "b.example", cidr("100.64.16.0/20")).build(cluster1())
		if len(s.Problems) != 0 || len(s.Peers) != 1 || !strings.HasPrefix(s.Notes[c.object], c.says) ||
			len(s.Notes) != len(c.says[:min(1, len(c.says))]) {
			t.Errorf("%+v: %+v, notes %q", c, s.Problems, s.Notes)
		}
	}
	// The other way round: a cluster of a new mesh would be an older mesh.
	s := new(objs).add("m2--here", "192.168.9.1/24", "LocalLink", dns("", "kubelink1.kubelink")).
		add("kubelink1", "192.168.0.11/24", "LocalLink").build(cluster1())
	if len(s.Problems) != 0 || len(s.Zones) != 2 || s.Notes["kubelink1"] != "no DNS for the local cluster: "+
		"kubelink1.kubelink is the domain of mesh m2; use another name for it" {
		t.Errorf("%+v", s)
	}
}

// A cluster cannot be called as the global zone.
func TestGlobalIsReserved(t *testing.T) {
	s := new(objs).add("Global", "192.168.0.11/24", "LocalLink").
		add("x.svc.global", "192.168.0.12/24", "b.example", cidr("100.64.16.0/20")).build(cluster1())
	for _, name := range []string{"Global", "x.svc.global"} {
		if !strings.Contains(s.Notes[name], "global.kubelink is reserved for global names") {
			t.Errorf("%s: %q", name, s.Notes[name])
		}
	}
	if len(s.Problems) != 0 || len(s.Zones[0].Clusters) != 0 || len(s.Peers) != 1 {
		t.Errorf("%+v", s)
	}
}

func TestDeletion(t *testing.T) {
	o := new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink", deleting).
		add("kubelink2", "192.168.0.12/24", "b.example")
	if s := o.build(cluster1()); len(s.Peers) != 1 {
		t.Errorf("a LocalLink with members goes on working: %+v", s)
	}
	deleting(&o.list[1])
	if s := o.build(cluster1()); len(s.Meshes) != 0 || len(s.Peers) != 0 || len(s.Problems) != 0 {
		t.Errorf("nothing is left: %+v", s)
	}
}

func TestModeNone(t *testing.T) {
	local := cluster1()
	local.Mode = None
	s := pair().build(local)
	if len(s.Peers) != 0 || len(s.Routes) != 0 || len(s.Links) != 1 || len(s.Zones[0].Clusters) != 2 {
		t.Errorf("%+v", s)
	}
}

func TestDNSNotes(t *testing.T) {
	for _, c := range []struct {
		name string
		mods []mod
		says string
	}{
		{"no service network", nil, ""},
		{"tiny network", []mod{cidr("100.64.16.0/30")}, "set spec.dns.dnsIP"},
		{"not routed", []mod{cidr("100.64.16.0/20"), dns("10.1.1.1", "")}, "add it to spec.egress"},
		{"of this cluster", []mod{dns("100.64.0.10", "")}, "remove it: names of mesh services need none"},
		{"omitted", []mod{cidr("100.64.16.0/20"), omitDNS}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := new(objs).add("kubelink1", "192.168.0.11/24", "LocalLink").add("k2", "192.168.0.12/24", "b.example", c.mods...)
			s := o.build(cluster1())
			if len(s.Peers) != 1 || len(s.Zones[0].Clusters) != 1 {
				t.Errorf("%+v", s)
			}
			if !strings.Contains(s.Notes["k2"], c.says) || (c.says == "") != (s.Notes["k2"] == "") {
				t.Errorf("note %q", s.Notes["k2"])
			}
		})
	}
}

// TestAPIAccess: with PropagateKubernetes names come from the API servers, else from the DNS services,
// and a note says why.
func TestAPIAccess(t *testing.T) {
	access := func(server, namespace string) API {
		return API{Server: server, Namespace: namespace, Secret: "two", Use: true}
	}
	four, six := []mod{cidr("100.64.16.0/20")}, []mod{cidr("fd02::/112")}
	for _, c := range []struct {
		name     string
		ipv6     bool
		mods     []mod
		want     API
		upstream string // empty: there are no names without the API
		says     string
	}{
		{"secret", false, append(four, apiSecret("", "two")), access("https://100.64.16.1", ""), "100.64.16.10:53", ""},
		{
			"namespace", false, append(four, apiSecret("other", "two")), access("https://100.64.16.1", "other"),
			"100.64.16.10:53", "",
		},
		{"IPv6", true, append(six, apiSecret("", "two")), access("https://[fd02::1]", ""), "[fd02::a]:53", ""},
		{
			"without DNS service", false, []mod{cidr("100.64.16.0/30"), apiSecret("", "two")},
			access("https://100.64.16.1", ""), "", "",
		},
		{
			"DNS service not routed", false, append(four, apiSecret("", "two"), dns("10.1.1.1", "")),
			access("https://100.64.16.1", ""), "", "",
		},
		{"no secret", false, four, API{}, "100.64.16.10:53", "spec.apiAccess is not set"},
		{"no name", false, append(four, apiSecret("other", "")), API{}, "100.64.16.10:53", "spec.apiAccess.name is missing"},
		{
			"no network", false, []mod{egress("100.64.16.10/32"), dns("100.64.16.10", ""), apiSecret("", "two")}, API{},
			"100.64.16.10:53", "spec.cidr is missing",
		},
		{
			"tiny network", false,
			[]mod{cidr("100.64.16.1/32"), egress("100.64.16.10/32"), dns("100.64.16.10", ""), apiSecret("", "two")}, API{},
			"100.64.16.10:53", "spec.cidr 100.64.16.1/32 is too small",
		},
		{"nothing", false, nil, API{}, "", ""},
		{"omitted", false, append(four, apiSecret("", "two"), omitDNS), API{}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			local := cluster1()
			local.Propagation = PropagateKubernetes
			addresses := []string{"192.168.0.11/24", "192.168.0.12/24"}
			if c.ipv6 {
				local.ServiceCIDRs, addresses = pfxs("fd01::/112"), []string{"fd00::1/64", "fd00::2/64"}
			}
			o := new(objs).add("k1", addresses[0], "LocalLink").add("k2", addresses[1], "b.example", slices.Clone(c.mods)...)
			s := o.build(local)
			clusters := s.Zones[0].Clusters
			if len(s.Problems) != 0 || clusters[0].API != (API{Use: true}) {
				t.Errorf("%+v", s)
			}
			if !strings.Contains(s.Notes["k2"], c.says) || (c.says == "") != (s.Notes["k2"] == "") {
				t.Errorf("note %q", s.Notes["k2"])
			}
			if !c.want.Use && c.upstream == "" {
				if len(clusters) != 1 {
					t.Errorf("%+v", clusters)
				}
				return
			}
			upstream := ""
			if a := clusters[1].Upstream; a.IsValid() {
				upstream = a.String()
			}
			if clusters[1].API != c.want || upstream != c.upstream {
				t.Errorf("%+v", clusters[1])
			}
		})
	}

	// The local API server needs no service network; other kinds of propagation need no API.
	local := cluster1()
	local.Propagation, local.ServiceCIDRs = PropagateKubernetes, nil
	if s := new(objs).add("k1", "192.168.0.11/24", "LocalLink").build(local); len(s.Zones[0].Clusters) != 1 {
		t.Errorf("%+v", s.Zones)
	}
	// What a user has set is said not to be used; what the peer has told nobody asked for.
	for secret, want := range map[string]string{
		"two":                  "spec.apiAccess is not used: it is for dns-propagation kubernetes",
		AnnouncedSecret + "k2": "",
	} {
		s := new(objs).add("k1", "192.168.0.11/24", "LocalLink").
			add("k2", "192.168.0.12/24", "b.example", append(four, apiSecret("", secret))...).build(cluster1())
		if s.Zones[0].Clusters[1].API.Use || s.Notes["k2"] != want {
			t.Errorf("%+v", s)
		}
	}
}

func TestEgressForms(t *testing.T) {
	// Wider than the local networks, inside the mesh, the same twice: all fine.
	o := pair().add("k3", "192.168.0.13/24", "c.example", egress("10.0.0.0/8", "192.168.0.100/32", "10.0.0.0/8"))
	s := o.build(cluster1())
	if len(s.Problems) != 0 {
		t.Fatalf("%+v", s.Problems)
	}
	want := []netip.Prefix{pfx("10.0.0.0/8"), pfx("192.168.0.13/32"), pfx("192.168.0.100/32")}
	if !reflect.DeepEqual(s.Peers[0].Networks, want) {
		t.Errorf("%v", s.Peers[0].Networks)
	}
}

func TestIPv6(t *testing.T) {
	local := Local{
		Mode: Bridge, Propagation: PropagateDNS, MeshDomain: "kubelink.", ServiceCIDRs: pfxs("fd01::/112"),
		ClusterDomain: "cluster.local.", DefaultPort: 80,
	}
	o := new(objs).add("a", "fd00::1/64", "LocalLink").add("b", "fd00::2/64", "[2001:db8::2]:443", cidr("fd02::/112"))
	s := o.build(local)
	if len(s.Problems) != 0 || s.Peers[0].Host != "2001:db8::2" ||
		s.Zones[0].Clusters[1].Upstream.String() != "[fd02::a]:53" {
		t.Errorf("%+v", s)
	}
}

func TestEndpoint(t *testing.T) {
	for _, c := range []struct {
		in, host string
		port     uint16
		bad      bool
	}{
		{"a.example", "a.example", 80, false},
		{"A.Example.:8088", "a.example", 8088, false},
		{"10.0.0.1", "10.0.0.1", 80, false},
		{"10.0.0.1:99", "10.0.0.1", 99, false},
		{"2001:db8::1", "2001:db8::1", 80, false},
		{"[2001:db8::1]", "2001:db8::1", 80, false},
		{"[2001:db8::1]:99", "2001:db8::1", 99, false},
		{"a.example:", "", 0, true},
		{"a.example:70000", "", 0, true},
		{"a.example:http", "", 0, true},
		{"[10.0.0.1]:80", "", 0, true},
		{"[a.example]:80", "", 0, true},
		{"0.0.0.0:80", "", 0, true},
		{":80", "", 0, true},
		{"a_b.example", "a_b.example", 80, false},
		{"http://a.example", "", 0, true},
		{strings.Repeat("a", 64) + ".example", "", 0, true},
	} {
		host, port, err := Endpoint(c.in, 80)
		if host != c.host || port != c.port || (err != nil) != c.bad {
			t.Errorf("%q: %q %d %v", c.in, host, port, err)
		}
	}
}

func TestNth(t *testing.T) {
	for _, c := range []struct {
		p    string
		n    int64
		want string
	}{
		{"100.64.0.0/20", 10, "100.64.0.10"}, {"100.64.0.248/29", 10, "invalid IP"},
		{"fd00::/112", 11, "fd00::b"}, {"255.255.255.250/29", 10, "invalid IP"},
	} {
		if got := Nth(pfx(c.p), c.n).String(); got != c.want {
			t.Errorf("%s %d: %s", c.p, c.n, got)
		}
	}
}

// TestPure: equal input gives equal output in any order of the objects, and input is not changed.
func TestPure(t *testing.T) {
	a := pair().add("k3", "192.168.0.13/24", "c.example", egress("10.0.0.0/8")).add("k4", "192.168.0.14/24", "", via("k3"))
	want := a.build(cluster1())
	for i := range a.list {
		list := append(append([]v1alpha1.KubeLink{}, a.list[i:]...), a.list[:i]...)
		if got := Build(Objects{Links: list}, cluster1()); !reflect.DeepEqual(got, want) {
			t.Errorf("rotated by %d: %+v", i, got)
		}
	}
}

// rich is an input with all kinds of objects: two meshes, a gateway, notes and problems.
func rich() *objs {
	return pair().
		add("k3", "192.168.0.13/24", "c.example", egress("10.8.0.0/16"), ingress("10.0.0.0/8", "!10.1.0.0/16")).
		add("k4", "192.168.0.14/24", "", cidr("100.64.64.0/20"), via("k3"), ingress("10.0.0.0/8")).
		addLocal("m2--here", "192.168.9.11/24", dns("", "m2.example"), ingress("10.250.0.0/16")).
		add("m2--two", "192.168.9.12/24", "two.example", cidr("100.64.80.0/20"), apiSecret("", "two")).
		add("m2--three", "192.168.9.12/24", "three.example").
		add("m3--four", "192.168.7.12/24", "four.example").
		addLocal("other", "192.168.6.11/24").
		add("gone", "192.168.0.15/24", "gone.example", deleting)
}

// copyLocal shares nothing with the original.
func copyLocal(l Local) Local {
	for _, p := range []*Prefixes{&l.Addresses, &l.ServiceCIDRs, &l.PodCIDRs, &l.NodeCIDRs} {
		*p = slices.Clone(*p)
	}
	l.Domains, l.Served = slices.Clone(l.Domains), slices.Clone(l.Served)
	return l
}

// TestArgumentsUnchanged: Build leaves objects and Local as they are, also what they point to.
func TestArgumentsUnchanged(t *testing.T) {
	for _, local := range []Local{cluster1(), changed(inStanza), changed(watchAPI), {}} {
		local.Domains = []string{"z.", "kubelink."}
		local.Served = []string{"m2--two", "kubelink2", "k4", "k3", "m2--three", "m3--four"}
		// Space behind the end, into which an append would write.
		local.PodCIDRs = append(make(Prefixes, 0, 4), pfx("100.112.0.0/12"))
		objects := Objects{Links: slices.Clone(rich().list)}
		slices.Reverse(objects.Links)
		beforeLocal, before := copyLocal(local), copyOf(objects)
		Build(objects, local)
		checkEqual(t, "local", local, beforeLocal)
		checkEqual(t, "space behind the pod networks", local.PodCIDRs[:4], Prefixes{pfx("100.112.0.0/12"), {}, {}, {}})
		checkEqual(t, "objects", objects, before)
	}
}

// TestStatesShareNothing: what a caller does to the lists and maps of a State does not show in the next one.
func TestStatesShareNothing(t *testing.T) {
	objects, local := Objects{Links: rich().list}, cluster1()
	want := Build(objects, local)
	s := Build(objects, local)
	clear(s.Problems)
	s.Notes["kubelink2"] = "changed"
	for i := range s.Meshes {
		clear(s.Meshes[i].Members)
	}
	for i := range s.Peers {
		clear(s.Peers[i].Networks)
		clear(s.Peers[i].Ingress)
		clear(s.Peers[i].Carried)
	}
	for i := range s.Zones {
		for _, c := range s.Zones[i].Clusters {
			clear(c.Addresses)
		}
		clear(s.Zones[i].Networks)
		clear(s.Zones[i].Clusters)
	}
	clear(s.Local)
	clear(s.Routes)
	clear(s.Links)
	checkEqual(t, "next State", Build(objects, local), want)
	empty := State{Problems: map[string]Problem{}, Notes: map[string]string{}}
	checkEqual(t, "State of nothing", Build(Objects{}, Local{}), empty)
}

// TestShuffled: the order of the objects has no meaning, only their age; objects of one second go by name.
func TestShuffled(t *testing.T) {
	for _, sameAge := range []bool{false, true} {
		list := rich().list
		if sameAge {
			for i := range list {
				list[i].CreationTimestamp = list[0].CreationTimestamp
			}
		}
		want := Build(Objects{Links: list}, cluster1())
		random := rand.New(rand.NewPCG(7, 11))
		for range 50 {
			random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			if got := Build(Objects{Links: list}, cluster1()); !reflect.DeepEqual(got, want) {
				t.Fatalf("another order gives\n%+v\nwant\n%+v", got, want)
			}
		}
		older := map[bool]string{false: "m2--three", true: "m2--two"}[sameAge]
		if _, broken := want.Problems[older]; !broken {
			t.Errorf("of two links with one address the younger one, or the later name, has a problem: %+v", want.Problems)
		}
	}
}

func TestMembersByMesh(t *testing.T) {
	members := map[string][]string{}
	for _, m := range rich().build(cluster1()).Meshes {
		members[m.Name] = m.Members
	}
	checkEqual(t, "members", members, map[string][]string{"": {"k3", "k4", "kubelink2"}, "m2": {"m2--three", "m2--two"}})
}

// Links that the broker made for peers take nothing from links of users, however old they are.
func TestAutoLinksAreYounger(t *testing.T) {
	auto := func(l *v1alpha1.KubeLink) {
		l.Annotations = map[string]string{v1alpha1.AnnotationAutoConnect: "true"}
	}
	for _, c := range []struct{ name, address, cidr, says string }{
		{"address", "192.168.0.13/24", "100.64.48.0/20",
			"spec.clusterAddress 192.168.0.13/24 is already used by the older link user"},
		{"network", "192.168.0.14/24", "100.64.32.0/20", "spec.cidr 100.64.32.0/20 is already routed to the older link user"},
		{"part of the network", "192.168.0.14/24", "100.64.40.0/21", "is already routed to the older link user"},
		{"around the network", "192.168.0.14/24", "100.64.32.0/19", "is already routed to the older link user"},
		{"nothing", "192.168.0.14/24", "100.64.48.0/20", ""},
	} {
		s := new(objs).addLocal("here", "192.168.0.11/24").
			add("auto", c.address, "c.example", cidr(c.cidr), auto).
			add("user", "192.168.0.13/24", "c.example", cidr("100.64.32.0/20")).build(cluster1())
		checkProblem(t, s, "user", "")
		if got := s.Problems["auto"].Message; !strings.Contains(got, c.says) || c.says == "" && got != "" {
			t.Errorf("%s: %q", c.name, got)
		}
	}
	// The place of the cluster in the mesh is always a user's.
	s := new(objs).addLocal("here", "192.168.0.11/24", auto).addLocal("other", "192.168.0.11/24").build(cluster1())
	checkProblem(t, s, "here", "")
}
