package mesh

// LocalLinks: what is refused, with the whole message, and what they make of a mesh.

import (
	"cmp"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// change modifies the local cluster.
type change = func(*Local)

func noServices(l *Local) { l.ServiceCIDRs = nil }

// inStanza makes the stanza define the default mesh.
func inStanza(l *Local) { l.Addresses, l.ClusterName = pfxs("192.168.0.11/24"), "kubelink1" }

// changed is the local cluster with the change; nil is none.
func changed(c change) Local {
	l := cluster1()
	if c != nil {
		c(&l)
	}
	return l
}

func (o *objs) addLocal(name, address string, mods ...mod) *objs {
	return o.add(name, address, v1alpha1.EndpointLocal, mods...)
}

// checkProblem compares state and message of an object, "Invalid: spec.cidr ..."; empty stands for no problem.
func checkProblem(t *testing.T, s State, object, want string) {
	t.Helper()
	got := ""
	if p, ok := s.Problems[object]; ok {
		got = string(p.State) + ": " + p.Message
	}
	if got != want {
		t.Errorf("problem of %s\n got %q\nwant %q", object, got, want)
	}
}

func TestLocalLinkProblems(t *testing.T) {
	for _, c := range []struct {
		name    string
		local   change
		address string // of the LocalLink "here"
		mods    []mod
		want    string
	}{
		{
			"clusterAddress", nil, "192.168.0.11", nil, `Invalid: spec.clusterAddress "192.168.0.11": ` +
				"expected the address of the cluster with the mask of the mesh, such as 192.168.0.12/24",
		},
		{
			"clusterAddress in service-cidr", nil, "100.64.0.5/24", nil, "Invalid: spec.clusterAddress 100.64.0.5/24 " +
				"overlaps with the local service-cidr 100.64.0.0/20: they must be disjoint",
		},
		{
			"clusterAddress around pod-cidr", nil, "100.127.0.1/10", nil, "Invalid: spec.clusterAddress 100.127.0.1/10 " +
				"overlaps with the local service-cidr 100.64.0.0/20: they must be disjoint",
		},
		{
			"clusterAddress in pod-cidr", nil, "100.97.0.1/16", nil, "Invalid: spec.clusterAddress 100.97.0.1/16 " +
				"overlaps with the local pod-cidr 100.96.0.0/11: they must be disjoint",
		},
		{
			"clusterAddress around node-cidr", nil, "10.1.0.1/8", nil, "Invalid: spec.clusterAddress 10.1.0.1/8 " +
				"overlaps with the local node-cidr 10.250.0.0/16: they must be disjoint",
		},
		{
			"gatewayLink", nil, "192.168.0.11/24", []mod{via("k2")},
			`Invalid: spec.gatewayLink "k2" cannot be used on a LocalLink: remove it`,
		},
		{
			"cidr", nil, "192.168.0.11/24", []mod{cidr("100.64.0.0")},
			`Invalid: spec.cidr "100.64.0.0": expected a network in CIDR notation, such as 100.64.16.0/20`,
		},
		{
			"cidr and service-cidr", nil, "192.168.0.11/24", []mod{cidr("100.64.0.0/21")}, "Invalid: spec.cidr " +
				"100.64.0.0/21 of the LocalLink differs from service-cidr 100.64.0.0/20 of the Corefile: " +
				"set both to the service network of this cluster, or remove one",
		},
		{
			"cidr and service-cidr of two families",
			func(l *Local) { l.ServiceCIDRs = Prefixes{pfx("100.64.0.0/20"), pfx("fd01::/112")} },
			"192.168.0.11/24", []mod{cidr("fd02::/112")}, "Invalid: spec.cidr " +
				"fd02::/112 of the LocalLink differs from service-cidr 100.64.0.0/20, fd01::/112 of the Corefile: " +
				"set both to the service network of this cluster, or remove one",
		},
		{
			"cidr around clusterAddress", noServices, "192.168.0.11/24", []mod{cidr("192.168.0.0/16")},
			"Invalid: spec.cidr 192.168.0.0/16 overlaps with the mesh network 192.168.0.0/24 of spec.clusterAddress: " +
				"they must be disjoint",
		},
		{
			"cidr in the mesh", noServices, "192.168.0.11/24", []mod{cidr("192.168.0.128/25")},
			"Invalid: spec.cidr 192.168.0.128/25 overlaps with the mesh network 192.168.0.0/24 of spec.clusterAddress: " +
				"they must be disjoint",
		},
		{
			"ingress", nil, "192.168.0.11/24", []mod{ingress("100.64.0.0/20", "!100.64.0.1/33")},
			`Invalid: spec.ingress "!100.64.0.1/33": ` +
				"expected a network in CIDR notation, such as 100.64.16.0/20, or an address; a leading ! denies",
		},
		{
			"dns.dnsIP", nil, "192.168.0.11/24", []mod{dns("dns", "")},
			`Invalid: spec.dns.dnsIP "dns": expected an IP address, such as 100.64.16.10`,
		},
		{
			"dns.baseDomain", nil, "192.168.0.11/24", []mod{dns("", "a b")},
			`Invalid: spec.dns.baseDomain "a b": label "a b": ' ' is not a letter, digit, - or _`,
		},
		{
			"dns.baseDomain is the cluster domain", nil, "192.168.0.11/24", []mod{dns("", "cluster.local")},
			`Invalid: spec.dns.baseDomain "cluster.local." contains the cluster domain cluster.local.: ` +
				"choose a domain of its own for the mesh",
		},
		{
			"dns.baseDomain contains the cluster domain", nil, "192.168.0.11/24", []mod{dns("", "Local")},
			`Invalid: spec.dns.baseDomain "local." contains the cluster domain cluster.local.: ` +
				"choose a domain of its own for the mesh",
		},
		{
			"the first of two", nil, "x", []mod{cidr("y"), ingress("z"), dns("q", "")}, `Invalid: spec.clusterAddress "x": ` +
				"expected the address of the cluster with the mask of the mesh, such as 192.168.0.12/24",
		},
		{"dns.baseDomain in the cluster domain", nil, "192.168.0.11/24", []mod{dns("", "mesh.cluster.local")}, ""},
		{"no cluster domain", func(l *Local) { l.ClusterDomain = "" }, "192.168.0.11/24", []mod{dns("", "local")}, ""},
		{"cidr is service-cidr", nil, "192.168.0.11/24", []mod{cidr("100.64.0.0/20")}, ""},
		{"cidr without service-cidr", noServices, "192.168.0.11/24", []mod{cidr("100.65.0.0/20")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := new(objs).addLocal("here", c.address, c.mods...).add("k2", "192.168.0.12/24", "b.example").
				build(changed(c.local))
			checkProblem(t, s, "here", c.want)
			if c.want == "" {
				checkProblem(t, s, "k2", "")
				return
			}
			checkProblem(t, s, "k2", "Stale: LocalLink here of the default mesh cannot be used (Invalid): repair it first")
			if len(s.Meshes)+len(s.Links)+len(s.Peers)+len(s.Routes)+len(s.Zones)+len(s.Notes) != 0 {
				t.Errorf("something of the mesh is left: %+v", s)
			}
		})
	}
}

// TestMeshDefinitions has what several definitions do to each other: the stanza comes first, then the older object.
func TestMeshDefinitions(t *testing.T) {
	const overlap = "; meshes must be disjoint"
	m2 := func(address string, mods ...mod) *objs {
		return new(objs).addLocal("here", "192.168.0.11/24").addLocal("m2--here", address, mods...)
	}
	for _, c := range []struct {
		name   string
		local  change
		objs   *objs
		object string
		want   string
		meshes string // names of the LocalLinks, "-" for the stanza
	}{
		{
			"two LocalLinks", nil, new(objs).addLocal("z", "192.168.0.11/24").addLocal("a", "192.168.9.11/24"),
			"a", "Stale: the default mesh already has the older LocalLink z: delete one of the two", "z",
		},
		{
			"two equal LocalLinks", nil, new(objs).addLocal("m--z", "192.168.0.11/24").addLocal("m--a", "192.168.0.11/24"),
			"m--a", "Stale: mesh m already has the older LocalLink m--z: delete one of the two", "m--z",
		},
		{
			"the older one is broken", nil, new(objs).addLocal("z", "192.168.0.0/24").addLocal("a", "192.168.9.11/24"),
			"a", "", "a",
		},
		{
			"stanza and LocalLink", inStanza, new(objs).addLocal("here", "192.168.9.11/24"), "here",
			"Stale: the default mesh is already defined by link-address 192.168.0.11/24 of the Corefile: " +
				"remove that property or this object", "-",
		},
		{
			"stanza with two addresses",
			func(l *Local) { l.Addresses = Prefixes{pfx("192.168.0.11/24"), pfx("fd00::1/64")} },
			new(objs).addLocal("here", "192.168.9.11/24"), "here",
			"Stale: the default mesh is already defined by link-address 192.168.0.11/24, fd00::1/64 of the Corefile: " +
				"remove that property or this object", "-",
		},
		{
			"stanza and another mesh", inStanza, new(objs).addLocal("m2--here", "192.168.9.11/24"),
			"m2--here", "", "- m2--here",
		},
		{
			"stanza overlaps", inStanza, new(objs).addLocal("m2--here", "192.168.0.11/24"), "m2--here",
			"Invalid: spec.clusterAddress 192.168.0.11/24: its network overlaps with 192.168.0.0/24 of " +
				"the default mesh" + overlap, "-",
		},
		{"disjoint", nil, m2("192.168.1.11/24"), "m2--here", "", "here m2--here"},
		{"other family", nil, m2("fd00::1/64"), "m2--here", "", "here m2--here"},
		{
			"part of another mesh", nil, m2("192.168.0.200/25"), "m2--here",
			"Invalid: spec.clusterAddress 192.168.0.200/25: its network overlaps with 192.168.0.0/24 of " +
				"the default mesh" + overlap, "here",
		},
		{
			"around another mesh", nil, m2("192.168.9.11/16"), "m2--here",
			"Invalid: spec.clusterAddress 192.168.9.11/16: its network overlaps with 192.168.0.0/24 of " +
				"the default mesh" + overlap, "here",
		},
		{
			"a named mesh", nil, new(objs).addLocal("m2--here", "fd00::1/64").addLocal("here", "fd00::2/48"), "here",
			"Invalid: spec.clusterAddress fd00::2/48: its network overlaps with fd00::/64 of mesh m2" + overlap, "m2--here",
		},
		{
			"no cluster in the name", nil, new(objs).addLocal("m2--", "192.168.0.11/24"), "m2--",
			`Invalid: metadata.name "m2--": the cluster is missing after "--"; name the object <mesh>--<cluster>`, "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.objs.build(changed(c.local))
			checkProblem(t, s, c.object, c.want)
			var meshes []string
			for _, m := range s.Meshes {
				meshes = append(meshes, cmp.Or(m.Link, "-"))
			}
			checkEqual(t, "meshes", strings.Join(meshes, " "), c.meshes)
			for name := range s.Problems {
				if name != c.object && c.meshes != "a" {
					t.Errorf("%s has a problem, too: %+v", name, s.Problems[name])
				}
			}
		})
	}
}

func TestMeshFields(t *testing.T) {
	for _, c := range []struct {
		name  string
		local change
		mods  []mod
		want  func(*Mesh)
	}{
		{"defaults", nil, nil, nil},
		{"cidr", noServices, []mod{cidr("100.65.0.0/20")}, func(m *Mesh) { m.Services = pfxs("100.65.0.0/20") }},
		{"no cidr at all", noServices, nil, func(m *Mesh) { m.Services = nil }},
		{
			"both families of service-cidr stay",
			func(l *Local) { l.ServiceCIDRs = Prefixes{pfx("100.64.0.0/20"), pfx("fd01::/112")} },
			[]mod{cidr("fd01::/112")},
			func(m *Mesh) { m.Services = Prefixes{pfx("100.64.0.0/20"), pfx("fd01::/112")} },
		},
		{"dns.baseDomain", nil, []mod{dns("", "Mesh.Example.")}, func(m *Mesh) { m.Domain = "mesh.example." }},
		{"dns.dnsIP", nil, []mod{dns("100.64.0.53", "")}, func(m *Mesh) { m.DNS = ip("100.64.0.53") }},
		{
			"MeshDNS is that of the default mesh", func(l *Local) { l.MeshDNS = ip("10.1.1.1") }, []mod{dns("", "")}, nil,
		},
		{"no dns", nil, []mod{omitDNS}, func(m *Mesh) { m.Domain = "" }},
		{"no default domain", func(l *Local) { l.MeshDomain = "" }, nil, func(m *Mesh) { m.Domain = "" }},
		{"ingress", nil, []mod{ingress("10.0.0.0/8")}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := new(objs).addLocal("m2--here", "192.168.9.11/24", c.mods...).
				add("m2--z", "192.168.9.13/24", "z.example").add("m2--b", "broken", "b.example").
				add("m2--c", "192.168.9.12/24", "c.example", deleting).add("m3--d", "192.168.9.12/24", "d.example").
				build(changed(c.local))
			want := Mesh{
				Name: "m2", Link: "m2--here", Cluster: "here", Addresses: pfxs("192.168.9.11/24"),
				Services: pfxs("100.64.0.0/20"), Domain: "kubelink.", Members: []string{"m2--b", "m2--z"},
			}
			if c.want != nil {
				c.want(&want)
			}
			checkEqual(t, "meshes", s.Meshes, []Mesh{want})
			checkProblem(t, s, "m2--here", "")
		})
	}
}

// TestMeshDNS: the address of the stanza is that of the default mesh; its LocalLink may name another one.
func TestMeshDNS(t *testing.T) {
	local := changed(func(l *Local) { l.MeshDNS = ip("10.1.1.1") })
	for text, want := range map[string]string{"": "10.1.1.1", "<nil>": "10.1.1.1", "10.1.1.2": "10.1.1.2"} {
		s := new(objs).addLocal("here", "192.168.0.11/24", dns(text, "")).build(local)
		checkEqual(t, "dnsIP "+text, s.Meshes[0].DNS, ip(want))
	}
}

func TestLocalLinkNotes(t *testing.T) {
	asked := func(l *Local) { l.Domains = []string{"kubelink."} }
	const missing = "no server block of the Corefile answers for mesh.example: " +
		"write a block with the key mesh.example and kubelink in it, or add the key to one"
	for _, c := range []struct {
		name  string
		local change
		mods  []mod
		want  string
	}{
		{"nothing", nil, nil, ""},
		{"egress", nil, []mod{egress("10.0.0.0/8")}, "spec.egress has no meaning on a LocalLink"},
		{"egress is not even parsed", nil, []mod{egress("x")}, "spec.egress has no meaning on a LocalLink"},
		{"domain", asked, []mod{dns("", "mesh.example")}, missing},
		{"both", asked, []mod{egress("10.0.0.0/8"), dns("", "mesh.example")},
			"spec.egress has no meaning on a LocalLink; " + missing},
		{"a problem hides notes", asked, []mod{egress("10.0.0.0/8"), dns("", "mesh.example"), cidr("x")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := new(objs).addLocal("here", "192.168.0.11/24", c.mods...).build(changed(c.local))
			checkEqual(t, "note", s.Notes["here"], c.want)
		})
	}
}

// A domain belongs to the older mesh; the younger one has links, but no names.
func TestMeshDomainsClash(t *testing.T) {
	const (
		set    = "; set another one"
		global = " of mesh b: one lies in the global names of the other" + set
	)
	for _, c := range []struct{ name, older, younger, want string }{
		{"same", "mesh.example", "Mesh.Example.", "mesh.example is already used by mesh b" + set},
		{"in the global names", "mesh.example", "x.global.mesh.example", "x.global.mesh.example, and mesh.example" + global},
		{"the global names", "mesh.example", "global.mesh.example", "global.mesh.example, and mesh.example" + global},
		{"around the global names", "svc.global.example", "example", "example, and svc.global.example" + global},
		{"the local cluster", "mesh.example", "here.mesh.example", "here.mesh.example is the local cluster in mesh b" + set},
		{"another cluster", "mesh.example", "there.mesh.example", ""},
		{"in the local cluster", "mesh.example", "x.here.mesh.example", ""},
		{"no domain", "mesh.example", "", ""},
		{"no older domain", "", "here", ""},
		{"no older domain, a name like the global ones", "", "x.global", ""},
		{"another one", "mesh.example", "global.example", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			local := changed(func(l *Local) { l.MeshDomain = "" })
			s := new(objs).addLocal("b--Here", "192.168.0.11/24", dns("", c.older)).
				addLocal("a--here", "192.168.9.11/24", dns("", c.younger)).
				add("a--two", "192.168.9.12/24", "b.example", dns("192.168.9.12", "")).build(local)
			note, younger := "", c.younger
			if c.want != "" {
				note, younger = "no DNS: spec.dns.baseDomain "+c.want, ""
			}
			checkEqual(t, "note", s.Notes["a--here"], note)
			checkEqual(t, "younger mesh", TrimDot(s.Meshes[0].Domain), strings.ToLower(TrimDot(younger)))
			checkEqual(t, "older mesh", TrimDot(s.Meshes[1].Domain), c.older)
			checkEqual(t, "peers", len(s.Peers), 1)
		})
	}
	// A third mesh is held against all of them, and told once.
	s := new(objs).addLocal("a--here", "192.168.1.1/24", dns("", "mesh.example")).
		addLocal("b--here", "192.168.2.1/24", dns("", "global.mesh.example")).
		addLocal("c--here", "192.168.3.1/24", dns("", "mesh.example")).build(cluster1())
	checkEqual(t, "note", s.Notes["c--here"],
		"no DNS: spec.dns.baseDomain mesh.example is already used by mesh a; set another one")
	checkEqual(t, "zones", len(s.Zones), 1)
}

// A LocalLink that is being deleted stays in force until no link of its mesh is left.
func TestLocalLinkDeletion(t *testing.T) {
	for _, c := range []struct {
		name          string
		objs          *objs
		meshes        int
		object, wants string
	}{
		{"no members", new(objs).addLocal("here", "192.168.0.11/24", deleting), 0, "here", ""},
		{"broken, no members", new(objs).addLocal("here", "x", deleting, via("y")), 0, "here", ""},
		{"members", pairWith(deleting), 1, "here", ""},
		{"members that go, too", pairWith(deleting).add("k3", "192.168.0.13/24", "c.example", deleting), 1, "k3", ""},
		{"only members that go", new(objs).addLocal("here", "192.168.0.11/24", deleting).
			add("k2", "192.168.0.12/24", "b.example", deleting), 0, "k2", ""},
		{"broken members", new(objs).addLocal("here", "192.168.0.11/24", deleting).add("k2", "x", ""), 1, "here", ""},
		{"members of another mesh", new(objs).addLocal("here", "192.168.0.11/24", deleting).
			addLocal("m2--here", "192.168.0.11/24").add("m2--k2", "192.168.0.12/24", "b.example"), 1, "m2--here", ""},
		{"broken, with members", pairWith(deleting, via("y")), 0, "here",
			`Invalid: spec.gatewayLink "y" cannot be used on a LocalLink: remove it`},
		{"the next one waits", pairWith(deleting).addLocal("next", "192.168.9.11/24"), 1, "next",
			"Stale: the default mesh already has the older LocalLink here: delete one of the two"},
		{"the next one comes", new(objs).addLocal("here", "192.168.0.11/24", deleting).
			addLocal("next", "192.168.9.11/24"), 1, "next", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.objs.build(cluster1())
			checkEqual(t, "meshes", len(s.Meshes), c.meshes)
			checkProblem(t, s, c.object, c.wants)
		})
	}
}

// pairWith is a LocalLink "here" with the modifications, and a link.
func pairWith(mods ...mod) *objs {
	return new(objs).addLocal("here", "192.168.0.11/24", mods...).add("k2", "192.168.0.12/24", "b.example")
}

// A service network that one LocalLink names is that of the local cluster in all meshes.
func TestServicesOfOneLocalLink(t *testing.T) {
	const own = "100.65.0.0/20"
	begin := func() *objs {
		return new(objs).addLocal("m1--here", "192.168.0.11/24", cidr(own), dns("", "m1.example")).
			addLocal("m2--here", "192.168.9.11/24", dns("", "m2.example"))
	}
	for _, c := range []struct {
		name string
		objs *objs
		link string
		want string
	}{
		{"cidr", begin().add("m2--a", "192.168.9.12/24", "a.example", cidr("100.65.8.0/24")), "m2--a",
			""},
		{"egress", begin().add("m2--a", "192.168.9.12/24", "a.example", egress("100.65.8.9")), "m2--a",
			"Invalid: spec.egress 100.65.8.9/32 lies in the local service network 100.65.0.0/20: " +
				"it would take local traffic away"},
		{"egress around it", begin().add("m2--a", "192.168.9.12/24", "a.example", egress("100.0.0.0/8")), "m2--a", ""},
		{"address of a third mesh", begin().addLocal("m3--here", "100.65.1.1/24"), "m3--here",
			"Invalid: spec.clusterAddress 100.65.1.1/24 overlaps with the local service network 100.65.0.0/20: " +
				"they must be disjoint"},
		{"the network of another mesh", begin().addLocal("m3--here", "192.168.5.11/24", cidr("192.168.9.0/25")), "m3--here",
			"Invalid: spec.cidr 192.168.9.0/25 overlaps with the network 192.168.9.0/24 of mesh m2: they must be disjoint"},
		{"the same network", begin().addLocal("m3--here", "192.168.5.11/24", cidr(own)), "m3--here", ""},
		{"an older link keeps its network", begin().add("m2--a", "192.168.9.12/24", "a.example", cidr("100.66.0.0/20")).
			addLocal("m3--here", "192.168.5.11/24", cidr("100.66.0.0/21")), "m3--here",
			"Invalid: spec.cidr 100.66.0.0/21 overlaps with spec.cidr 100.66.0.0/20 of the older link m2--a: " +
				"give the service network of this cluster, or delete that link"},
		{"an older link keeps its network, its own problem", begin().
			add("m2--a", "192.168.9.12/24", "a.example", cidr("100.66.0.0/20")).
			addLocal("m3--here", "192.168.5.11/24", cidr("100.66.0.0/21")), "m2--a", ""},
	} {
		t.Run(c.name, func(t *testing.T) { checkProblem(t, c.objs.build(changed(noServices)), c.link, c.want) })
	}
}
