package mesh

// Links to other clusters: what is refused, with the whole message, and that the older object wins.

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

func address(s string) mod  { return func(l *v1alpha1.KubeLink) { l.Spec.ClusterAddress = s } }
func endpoint(s string) mod { return func(l *v1alpha1.KubeLink) { l.Spec.Endpoint = s } }

// third is a link besides the pair, the youngest.
func third(mods ...mod) *objs { return pair().add("k3", "192.168.0.13/24", "c.example", mods...) }

// checkUndisturbed compares all that works with what worked without the broken object.
func checkUndisturbed(t *testing.T, got, without State) {
	t.Helper()
	checkEqual(t, "links", got.Links, without.Links)
	checkEqual(t, "peers", got.Peers, without.Peers)
	checkEqual(t, "routes", got.Routes, without.Routes)
	checkEqual(t, "zones", got.Zones, without.Zones)
	checkEqual(t, "local networks", got.Local, without.Local)
	checkEqual(t, "notes", got.Notes, without.Notes)
}

// TestLinkProblems: a young link with a problem leaves everything as it was without it.
func TestLinkProblems(t *testing.T) {
	const loop = ": its connection would run through a tunnel; narrow the network, or change the endpoint"
	for _, c := range []struct {
		name string
		mods []mod
		want string
	}{
		{"clusterAddress", []mod{address("192.168.0.13")}, `Invalid: spec.clusterAddress "192.168.0.13": ` +
			"expected the address of the cluster with the mask of the mesh, such as 192.168.0.12/24"},
		{"clusterAddress, wider mask", []mod{address("192.168.0.13/23")}, "Invalid: spec.clusterAddress 192.168.0.13/23: " +
			"the mask of the default mesh is /24, as its local address 192.168.0.11/24 says; use 192.168.0.13/24"},
		{"clusterAddress, longer mask", []mod{address("192.168.0.13/25")}, "Invalid: spec.clusterAddress 192.168.0.13/25: " +
			"the mask of the default mesh is /24, as its local address 192.168.0.11/24 says; use 192.168.0.13/24"},
		{"clusterAddress outside", []mod{address("192.168.1.13/24")}, "Invalid: spec.clusterAddress 192.168.1.13/24 " +
			"does not lie in the network 192.168.0.0/24 of the default mesh: set a free address of it"},
		{"clusterAddress of another family", []mod{address("fd00::3/64")}, "Invalid: spec.clusterAddress fd00::3/64: " +
			"the mask of the default mesh is /24, as its local address 192.168.0.11/24 says; use fd00::3/24"},
		{"clusterAddress is ours", []mod{address("192.168.0.11/24")}, "Invalid: spec.clusterAddress 192.168.0.11/24 " +
			"is the address of the local cluster: set the address of k3"},
		{"clusterAddress is another's", []mod{address("192.168.0.12/24")}, "Invalid: spec.clusterAddress 192.168.0.12/24 " +
			"is already used by the older link kubelink2: every cluster of a mesh has an address of its own, set a free one"},

		{"endpoint in lower case", []mod{endpoint("inbound")},
			`Invalid: spec.endpoint "inbound": did you mean Inbound? Upper and lower case matter`},
		{"a LocalLink in lower case", []mod{endpoint("locallink")},
			`Invalid: spec.endpoint "locallink": did you mean LocalLink? Upper and lower case matter`},

		{"cidr", []mod{cidr("100.64.32.0")},
			`Invalid: spec.cidr "100.64.32.0": expected a network in CIDR notation, such as 100.64.16.0/20`},
		{"cidr of another family", []mod{cidr("fd02::/112")}, "Invalid: spec.cidr fd02::/112 and spec.clusterAddress " +
			"192.168.0.13/24 are of different IP families: the source address of the mesh cannot be used towards it"},

		{"egress", []mod{egress("10.0.0.0/8", "10.0.0/8")},
			`Invalid: spec.egress "10.0.0/8": expected a network in CIDR notation, such as 100.64.16.0/20, or an address`},
		{"egress, loopback", []mod{egress("127.0.0.9/8")},
			`Invalid: spec.egress "127.0.0.9/8": loopback, link-local and multicast networks cannot be routed`},
		{"egress, default route", []mod{egress("0.0.0.0/0")}, "Invalid: spec.egress 0.0.0.0/0: a default route would lead " +
			"the tunnel's own connections into the tunnel; name the networks behind this cluster"},
		{"egress, default route of IPv6", []mod{egress("::/0")}, "Invalid: spec.egress ::/0: a default route would lead " +
			"the tunnel's own connections into the tunnel; name the networks behind this cluster"},
		{"egress, both halves of everything", []mod{egress("0.0.0.0/1", "128.0.0.0/1")}, "Invalid: spec.egress 0.0.0.0/1: " +
			"a network wider than /7 is a part of a default route, and would lead the tunnel's own connections into the " +
			"tunnel; name the networks behind this cluster"},
		{"egress, half of everything", []mod{egress("10.7.0.0/16", "8000::/1")}, "Invalid: spec.egress 8000::/1: " +
			"a network wider than /7 is a part of a default route, and would lead the tunnel's own connections into the " +
			"tunnel; name the networks behind this cluster"},
		{"egress, wider than /7", []mod{egress("100.0.0.0/6")}, "Invalid: spec.egress 100.0.0.0/6: " +
			"a network wider than /7 is a part of a default route, and would lead the tunnel's own connections into the " +
			"tunnel; name the networks behind this cluster"},
		{"cidr, half of everything", []mod{cidr("128.0.0.0/1")}, "Invalid: spec.cidr 128.0.0.0/1: " +
			"a network wider than /7 is a part of a default route, and would lead the tunnel's own connections into the " +
			"tunnel; name the networks behind this cluster"},
		{"egress of another family", []mod{egress("10.0.0.0/8", "fd02::/64")}, "Invalid: spec.egress fd02::/64 and " +
			"spec.clusterAddress 192.168.0.13/24 are of different IP families: " +
			"the source address of the mesh cannot be used towards it"},

		{"ingress", []mod{ingress("!!10.0.0.0/8")}, `Invalid: spec.ingress "!!10.0.0.0/8": ` +
			"expected a network in CIDR notation, such as 100.64.16.0/20, or an address; a leading ! denies"},

		{"endpoint is missing", []mod{endpoint("")}, "Invalid: spec.endpoint is missing: " +
			"set it to host[:port] of the peer's broker, or set spec.gatewayLink"},
		{"endpoint Inbound", []mod{endpoint("Inbound")}, "Invalid: spec.endpoint Inbound works in mode wireguard only: " +
			"in mode bridge give the host name in the peer's certificate"},
		{"endpoint", []mod{endpoint("c.example:x")},
			`Invalid: spec.endpoint "c.example:x": port "x" is not a number from 1 to 65535`},
		{"endpoint in another's cidr", []mod{endpoint("100.64.16.7:443")}, "Invalid: spec.endpoint 100.64.16.7 lies in " +
			"the network 100.64.16.0/20 that is routed to link kubelink2: the connection would run through a tunnel; " +
			"set an address outside of the meshes"},
		{"endpoint is another's clusterAddress", []mod{endpoint("192.168.0.12")}, "Invalid: spec.endpoint 192.168.0.12 " +
			"lies in the network 192.168.0.12/32 that is routed to link kubelink2: " +
			"the connection would run through a tunnel; set an address outside of the meshes"},
		{"endpoint in its own cidr", []mod{cidr("100.64.32.0/20"), endpoint("100.64.32.7")},
			"Invalid: the network 100.64.32.0/20 (spec.cidr, spec.egress) contains the endpoint 100.64.32.7 of link k3" + loop},
		{"endpoint in its own egress", []mod{egress("10.0.0.0/8"), endpoint("10.1.1.1:80")},
			"Invalid: the network 10.0.0.0/8 (spec.cidr, spec.egress) contains the endpoint 10.1.1.1 of link k3" + loop},
		{"mapped endpoint in its own egress", []mod{egress("10.0.0.0/8"), endpoint("[::ffff:10.1.1.1]:80")},
			"Invalid: the network 10.0.0.0/8 (spec.cidr, spec.egress) contains the endpoint 10.1.1.1 of link k3" + loop},

		{"dns.dnsIP", []mod{dns("100.64.16.256", "")},
			`Invalid: spec.dns.dnsIP "100.64.16.256": expected an IP address, such as 100.64.16.10`},
		{"dns.baseDomain", []mod{dns("", "a-.b")}, `Invalid: spec.dns.baseDomain "a-.b": label "a-" begins or ends with -`},
		{"dns.baseDomain in a mesh", []mod{dns("", "K3.Kubelink")}, `Invalid: spec.dns.baseDomain "K3.Kubelink": it lies ` +
			"in the mesh domain kubelink, but is the domain that the cluster uses for itself, such as cluster.local"},
		{"the first of many", []mod{cidr("x"), egress("y"), ingress("z"), endpoint("a b"), dns("q", "-")},
			`Invalid: spec.cidr "x": expected a network in CIDR notation, such as 100.64.16.0/20`},
		{"no note beside a problem", []mod{via("kubelink2"), ingress("10.0.0.0/8"), dns("q", "")},
			`Invalid: spec.dns.dnsIP "q": expected an IP address, such as 100.64.16.10`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := third(c.mods...).build(cluster1())
			checkProblem(t, s, "k3", c.want)
			checkEqual(t, "number of problems", len(s.Problems), 1)
			checkUndisturbed(t, s, pair().build(cluster1()))
			checkEqual(t, "members", s.Meshes[0].Members, []string{"k3", "kubelink2"})
		})
	}
}

// TestLinkNames: problems of the name, and of the mesh that it names.
func TestLinkNames(t *testing.T) {
	const create = " has no LocalLink: create KubeLink %s with endpoint LocalLink " +
		"and the address of this cluster in the mesh"
	for _, c := range []struct {
		name, object string
		objs         *objs
		local        change
		want         string
	}{
		{"no cluster", "m--", pair(), nil,
			`Invalid: metadata.name "m--": the cluster is missing after "--"; name the object <mesh>--<cluster>`},
		{"no default mesh", "k2", new(objs), nil, "Stale: the default mesh" + fmt.Sprintf(create, "<local cluster>")},
		{"no such mesh", "m--k2", pair(), nil, "Stale: mesh m" + fmt.Sprintf(create, "m--<local cluster>")},
		{"broken mesh", "m--k2", pair().addLocal("m--a", "x").addLocal("m--b", "y"), nil,
			"Stale: LocalLink m--a of mesh m cannot be used (Invalid): repair it first"},
		{"local cluster of the stanza", "kubelink1", new(objs), inStanza, `Invalid: metadata.name "kubelink1": ` +
			"kubelink1 is the name of the local cluster in the default mesh; a link is named after the other cluster"},
		{"local cluster of another mesh", "kubelink9", pair().addLocal("m--kubelink9", "192.168.9.11/24"), nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.objs.add(c.object, "192.168.0.13/24", "c.example").build(changed(c.local))
			checkProblem(t, s, c.object, c.want)
		})
	}
}

// overlapWorld has local networks of both families, three meshes, and older links. Links under test are k3 and m6--k3.
func overlapWorld() (*objs, Local) {
	local := cluster1()
	local.ServiceCIDRs = Prefixes{pfx("100.64.0.0/20"), pfx("fd01::/112")}
	local.PodCIDRs = Prefixes{pfx("10.96.0.0/16"), pfx("fd02::/64")}
	return new(objs).
		addLocal("here", "192.168.0.11/24").
		addLocal("m2--here", "192.168.9.11/24", dns("", "m2.example")).
		addLocal("m6--here", "fd00::1/64", dns("", "m6.example")).
		add("m2--old", "192.168.9.12/24", "172.31.0.2", cidr("100.80.0.0/20"), egress("10.20.0.0/16"), dns("", "x")).
		add("m6--old", "fd00::2/64", "[2001:db8::2]:80", cidr("fd08::/112"), egress("fd20::/64"), dns("", "x")), local
}

// TestOverlaps holds spec.cidr and spec.egress against all networks that are there already: with the same network, with
// one inside of it, and with one around it.
func TestOverlaps(t *testing.T) {
	const (
		older = "FIELD NETWORK is already routed to the older link OWNER: a network belongs to one link, " +
			"take it out of one of both"
		unrouted = "FIELD NETWORK is not routed, as it overlaps with the OWNER: what the cluster offers with MeshServices " +
			"is reached, and named"
		away     = "FIELD NETWORK lies in the OWNER: it would take local traffic away"
		meshes   = "FIELD NETWORK overlaps with the network OWNER: they must be disjoint"
		taken    = "FIELD NETWORK would take the network OWNER, or its local address, away"
		endpoint = "the network NETWORK (spec.cidr, spec.egress) contains the endpoint OWNER: " +
			"its connection would run through a tunnel; narrow the network, or change the endpoint"
	)
	for _, c := range []struct {
		name                   string
		inside, equal, around  string
		owner                  string // as the messages name it
		cidrSays, egressSays   string
		cidrBreaks, egressFits string // i, e and a: with which of the three
	}{
		{"service-cidr", "100.64.8.0/24", "100.64.0.0/20", "100.64.0.0/16", "local service network 100.64.0.0/20",
			unrouted, away, "", "a"},
		{"service-cidr, IPv6", "fd01::8/128", "fd01::/112", "fd01::/64", "local service network fd01::/112",
			unrouted, away, "", "a"},
		{"pod-cidr", "10.96.7.0/24", "10.96.0.0/16", "10.96.0.0/12", "pod-cidr 10.96.0.0/16",
			unrouted, away, "", "a"},
		{"pod-cidr, IPv6", "fd02::7/128", "fd02::/64", "fd02::/16", "pod-cidr fd02::/64",
			unrouted, away, "", "a"},
		{"node-cidr", "10.250.0.0/17", "10.250.0.0/16", "10.240.0.0/12", "node-cidr 10.250.0.0/16",
			unrouted, away, "", "a"},
		{"its mesh, the part with the local address", "192.168.0.0/28", "192.168.0.0/24", "192.168.0.0/20",
			"192.168.0.0/24 of the default mesh", meshes, taken, "iea", "a"},
		{"its mesh, another part", "192.168.0.128/25", "192.168.0.0/24", "192.168.0.0/20",
			"192.168.0.0/24 of the default mesh", meshes, taken, "iea", "ia"},
		{"its mesh, the local address", "192.168.0.11/32", "192.168.0.0/24", "192.168.0.0/23",
			"192.168.0.0/24 of the default mesh", meshes, taken, "iea", "a"},
		{"its mesh, IPv6", "fd00::/120", "fd00::/64", "fd00::/32", "fd00::/64 of mesh m6", meshes, taken, "iea", "a"},
		{"another mesh", "192.168.9.128/25", "192.168.9.0/24", "192.168.8.0/22",
			"192.168.9.0/24 of mesh m2", meshes, taken, "iea", "a"},
		{"another link's cidr", "100.80.8.0/24", "100.80.0.0/20", "100.80.0.0/16",
			"m2--old (100.80.0.0/20)", older, older, "iea", "a"},
		{"another link's cidr, IPv6", "fd08::8/128", "fd08::/112", "fd08::/64",
			"m6--old (fd08::/112)", older, older, "iea", "a"},
		{"another link's egress", "10.20.8.0/24", "10.20.0.0/16", "10.16.0.0/12",
			"m2--old (10.20.0.0/16)", older, older, "e", "ia"},
		{"another link's egress, IPv6", "fd20::8/128", "fd20::/64", "fd20::/32",
			"m6--old (fd20::/64)", older, older, "e", "ia"},
		{"another link's endpoint", "172.31.0.2/32", "172.31.0.0/24", "172.16.0.0/12",
			"172.31.0.2 of link m2--old", endpoint, endpoint, "iea", ""},
		{"another link's endpoint, IPv6", "2001:db8::2/128", "2001:db8::/64", "2001:db8::/32",
			"2001:db8::2 of link m6--old", endpoint, endpoint, "iea", ""},
		{"nothing", "100.81.8.0/24", "100.81.0.0/20", "100.81.0.0/16", "", "", "", "", "iea"},
	} {
		for which, network := range map[string]string{"i": c.inside, "e": c.equal, "a": c.around} {
			for _, f := range []struct {
				field, says string
				breaks      bool
				mod         mod
			}{
				{"spec.cidr", c.cidrSays, strings.Contains(c.cidrBreaks, which), cidr(network)},
				{"spec.egress", c.egressSays, !strings.Contains(c.egressFits, which), egress(v1alpha1.EgressCIDR(network))},
			} {
				t.Run(c.name+" "+f.field+" "+network, func(t *testing.T) {
					o, local := overlapWorld()
					name, address := "k3", "192.168.0.13/24"
					if pfx(network).Addr().Is6() {
						name, address = "m6--k3", "fd00::3/64"
					}
					s := o.add(name, address, "c.example", f.mod).build(local)
					want, note := "", ""
					text := strings.NewReplacer("FIELD", f.field, "NETWORK", network, "OWNER", c.owner)
					switch {
					case f.breaks:
						want = "Invalid: " + text.Replace(f.says)
					case f.says == unrouted:
						note = text.Replace(unrouted)
					}
					checkProblem(t, s, name, want)
					routed := slices.ContainsFunc(s.Routes, func(r Route) bool { return r.Destination == pfx(network) })
					if got := s.Notes[name]; note != "" && (got != note || routed) {
						t.Errorf("note %q, want %q; routed: %v", got, note, routed)
					}
				})
			}
		}
	}
}

// TestOlderWins: of two links that cannot stand together the younger one has the problem, whichever that is.
func TestOlderWins(t *testing.T) {
	const one = ": a network belongs to one link, take it out of one of both"
	loop := "the network %s (spec.cidr, spec.egress) contains the endpoint %s of link %s: " +
		"its connection would run through a tunnel; narrow the network, or change the endpoint"
	inTunnel := "spec.endpoint %s lies in the network %s that is routed to link %s: " +
		"the connection would run through a tunnel; set an address outside of the meshes"
	for _, c := range []struct {
		name             string
		a, b             []mod
		bAfterA, aAfterB string // the problem of the younger one
	}{
		{"the same address", []mod{address("192.168.0.20/24")}, []mod{address("192.168.0.20/24")},
			"spec.clusterAddress 192.168.0.20/24 is already used by the older link a: " +
				"every cluster of a mesh has an address of its own, set a free one",
			"spec.clusterAddress 192.168.0.20/24 is already used by the older link b: " +
				"every cluster of a mesh has an address of its own, set a free one"},
		{"the same cidr", []mod{cidr("100.64.16.0/20")}, []mod{cidr("100.64.16.0/20")},
			"spec.cidr 100.64.16.0/20 is already routed to the older link a (100.64.16.0/20)" + one,
			"spec.cidr 100.64.16.0/20 is already routed to the older link b (100.64.16.0/20)" + one},
		{"cidr in cidr", []mod{cidr("100.64.16.0/20")}, []mod{cidr("100.64.17.0/24")},
			"spec.cidr 100.64.17.0/24 is already routed to the older link a (100.64.16.0/20)" + one,
			"spec.cidr 100.64.16.0/20 is already routed to the older link b (100.64.17.0/24)" + one},
		{"cidr and equal egress", []mod{cidr("100.64.16.0/20")}, []mod{egress("100.64.16.0/20")},
			"spec.egress 100.64.16.0/20 is already routed to the older link a (100.64.16.0/20)" + one,
			"spec.cidr 100.64.16.0/20 is already routed to the older link b (100.64.16.0/20)" + one},
		{"egress in cidr", []mod{cidr("100.64.16.0/20")}, []mod{egress("100.64.17.0/24")},
			"spec.egress 100.64.17.0/24 is already routed to the older link a (100.64.16.0/20)" + one, ""},
		{"egress around cidr", []mod{cidr("100.64.16.0/20")}, []mod{egress("100.64.0.0/16")}, "", ""},
		{"egress in egress", []mod{egress("10.0.0.0/8")}, []mod{egress("10.1.0.0/16")}, "", ""},
		{"egress has the address", []mod{egress("192.168.0.3/32")}, nil,
			"spec.clusterAddress 192.168.0.3/32 is already routed to the older link a (192.168.0.3/32)" + one,
			"spec.egress 192.168.0.3/32 is already routed to the older link b (192.168.0.3/32)" + one},
		{"egress has the endpoint", []mod{egress("172.16.0.0/12")}, []mod{endpoint("172.31.0.3")},
			fmt.Sprintf(inTunnel, "172.31.0.3", "172.16.0.0/12", "a"), fmt.Sprintf(loop, "172.16.0.0/12", "172.31.0.3", "b")},
		{"cidr has the endpoint", []mod{cidr("100.64.16.0/20")}, []mod{endpoint("100.64.16.3:443")},
			fmt.Sprintf(inTunnel, "100.64.16.3", "100.64.16.0/20", "a"),
			fmt.Sprintf(loop, "100.64.16.0/20", "100.64.16.3", "b")},
		{"a link without endpoint", []mod{egress("172.16.0.0/12")}, []mod{endpoint("172.31.0.3"), via("a")}, "", ""},
		{"the same endpoint", []mod{endpoint("172.31.0.3")}, []mod{endpoint("172.31.0.3")}, "", ""},
		{"a name as endpoint", []mod{egress("172.16.0.0/12")}, []mod{endpoint("b.example")}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := new(objs).addLocal("here", "192.168.0.11/24").add("a", "192.168.0.2/24", "a.example", c.a...).list[1]
			b := new(objs).addLocal("here", "192.168.0.11/24").add("b", "192.168.0.3/24", "b.example", c.b...).list[1]
			for _, order := range []struct {
				old, young v1alpha1.KubeLink
				want       string
			}{{a, b, c.bAfterA}, {b, a, c.aAfterB}} {
				o := new(objs).addLocal("here", "192.168.0.11/24")
				order.young.CreationTimestamp.Time = order.old.CreationTimestamp.Add(1)
				o.list = append(o.list, order.young, order.old)
				want := order.want
				if want != "" {
					want = "Invalid: " + want
				}
				s := o.build(cluster1())
				checkProblem(t, s, order.young.Name, want)
				checkProblem(t, s, order.old.Name, "")
				if want != "" {
					o.list = slices.Delete(o.list, 1, 2)
					checkUndisturbed(t, s, o.build(cluster1()))
				}
			}
		})
	}
}

// What an object that cannot be used, that is not served or that goes has claimed is free.
func TestUnusedClaimsAreFree(t *testing.T) {
	for _, c := range []struct {
		name string
		mods []mod // of the older link k2 with the same fields
		want int   // problems
	}{
		{"broken", []mod{endpoint("a b")}, 1},
		{"broken by its names", []mod{dns("x", "")}, 1},
		{"deleted", []mod{deleting}, 0},
		{"not served", nil, 0},
	} {
		same := []mod{cidr("100.64.16.0/20"), egress("10.0.0.0/8")}
		local := changed(func(l *Local) { l.Served = []string{"k3"} })
		if c.mods != nil {
			local.Served = nil
		}
		s := new(objs).addLocal("here", "192.168.0.11/24").
			add("k2", "192.168.0.12/24", "b.example", append(same, c.mods...)...).
			add("k3", "192.168.0.12/24", "c.example", same...).build(local)
		checkProblem(t, s, "k3", "")
		checkEqual(t, c.name+": problems", len(s.Problems), c.want)
		checkEqual(t, c.name+": links", s.Links, []Link{{Name: "k3", Cluster: "k3", Peer: "k3"}})
	}
}

// TestEgressNetworks has what is routed to a link, in the order of networks.
func TestEgressNetworks(t *testing.T) {
	for _, c := range []struct {
		name string
		mods []mod
		want string
	}{
		{"none", nil, "192.168.0.13/32"},
		{"cidr", []mod{cidr("100.64.32.0/20")}, "100.64.32.0/20, 192.168.0.13/32"},
		{"single addresses of the mesh", []mod{egress("192.168.0.200/32", "192.168.0.100/32")},
			"192.168.0.13/32, 192.168.0.100/32, 192.168.0.200/32"},
		{"twice", []mod{egress("10.0.0.0/8", "10.0.0.0/8")}, "10.0.0.0/8, 192.168.0.13/32"},
		{"addresses", []mod{egress("192.168.0.101", "10.7.0.9")}, "10.7.0.9/32, 192.168.0.13/32, 192.168.0.101/32"},
		{"host bits", []mod{egress("10.7.0.9/16", "10.7.200.1/16")}, "10.7.0.0/16, 192.168.0.13/32"},
		{"the cidr again", []mod{cidr("100.64.32.0/20"), egress("100.64.32.0/20")}, "100.64.32.0/20, 192.168.0.13/32"},
		{"the address again", []mod{egress("192.168.0.13/32")}, "192.168.0.13/32"},
		{"a part of the cidr", []mod{cidr("100.64.32.0/20"), egress("100.64.33.0/24")},
			"100.64.32.0/20, 100.64.33.0/24, 192.168.0.13/32"},
		{"around local networks", []mod{egress("10.0.0.0/8", "100.0.0.0/7")}, "10.0.0.0/8, 100.0.0.0/7, 192.168.0.13/32"},
	} {
		s := third(c.mods...).build(cluster1())
		checkProblem(t, s, "k3", "")
		checkEqual(t, c.name, Prefixes(s.Peers[0].Networks).String(), c.want)
	}
}

// A network gets a route of its own unless it lies in that of the mesh, of whose addresses it may be the first.
func TestEgressRoutes(t *testing.T) {
	for _, c := range []struct{ egress, want string }{
		{"192.168.0.100", "100.64.16.0/20, 192.168.0.0/24"},
		{"192.168.0.128/25", "100.64.16.0/20, 192.168.0.0/24"},
		{"192.168.0.0/16", "100.64.16.0/20, 192.168.0.0/16, 192.168.0.0/24"},
		{"192.0.0.0/8", "100.64.16.0/20, 192.0.0.0/8, 192.168.0.0/24"},
		{"192.168.0.99/23", "100.64.16.0/20, 192.168.0.0/23, 192.168.0.0/24"},
		{"192.168.1.0/24", "100.64.16.0/20, 192.168.0.0/24, 192.168.1.0/24"},
	} {
		s := third(egress(v1alpha1.EgressCIDR(c.egress))).build(cluster1())
		checkProblem(t, s, "k3", "")
		var routes Prefixes
		for _, r := range s.Routes {
			checkEqual(t, "source", r.Source, ip("192.168.0.11"))
			routes = append(routes, r.Destination)
		}
		checkEqual(t, c.egress, routes.String(), c.want)
	}
}

// Endpoints are those of peers; a mode that carries no traffic parses them, too.
func TestEndpointsOfModes(t *testing.T) {
	for _, c := range []struct {
		mode           Mode
		endpoint, want string
	}{
		{None, "Inbound", ""},
		{"wireguard", "Inbound", ""},
		{None, "c.example:0", `Invalid: spec.endpoint "c.example:0": port "0" is not a number from 1 to 65535`},
		{None, "", "Invalid: spec.endpoint is missing: set it to host[:port] of the peer's broker, or set spec.gatewayLink"},
		{None, "100.64.16.7", "Invalid: spec.endpoint 100.64.16.7 lies in the network 100.64.16.0/20 that is routed to " +
			"link kubelink2: the connection would run through a tunnel; set an address outside of the meshes"},
	} {
		o := third(endpoint(c.endpoint))
		for i := range o.list { // mode wireguard needs keys
			o.list[i].Spec.PublicKey = testKey(byte(1 + i)).Public().String()
		}
		s := o.build(changed(func(l *Local) { l.Mode = c.mode }))
		checkProblem(t, s, "k3", c.want)
		for _, l := range s.Links {
			want := ""
			if c.mode.CarriesTraffic() {
				want = l.Name
			}
			checkEqual(t, "peer of "+l.Name, l.Peer, want)
		}
	}
	s := third(endpoint("C.Example.")).build(changed(func(l *Local) { l.DefaultPort = 4443 }))
	checkEqual(t, "host", s.Peers[0].Host, "c.example")
	checkEqual(t, "port", s.Peers[0].Port, 4443)
}
