package mesh

// Changes are compared with the world: what the gateway node has and needs, no object takes away, and the endpoint of
// an older link no younger object.

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// node are the facts of a gateway node in a network 10.250.0.0/16.
func node() Host {
	return Host{
		Networks: []HostNetwork{
			{pfx("10.250.0.0/16"), "eth0"}, {pfx("fd10::/64"), "eth0"}, {pfx("172.17.0.0/16"), "docker0"},
		},
		Routes: []netip.Prefix{pfx("0.0.0.0/0"), pfx("10.250.0.0/16"), pfx("172.17.0.0/16"), pfx("10.9.0.0/16"),
			pfx("fd10::/64"), pfx("::/0")},
		Needs: []HostAddress{
			{ip("10.250.0.1"), "the default gateway"}, {ip("10.250.0.2"), "the API server"},
			{ip("10.77.0.2"), "the API server"}, {ip("10.9.0.53"), "the DNS server"}, {ip("100.64.0.10"), "the DNS server"},
			{ip("fd10::1"), "the default gateway"},
		},
		Endpoints: map[string][]netip.Addr{},
		Remotes:   map[string]netip.Addr{},
	}
}

// unnamed is a cluster whose stanza says nothing of nodes and pods.
func unnamed(local *Local) { local.NodeCIDRs, local.PodCIDRs = nil, nil }

func buildOn(o *objs, local Local, host Host) State {
	return Build(Objects{Links: o.list, Host: host}, local)
}

const outside = " covers what the gateway node reaches outside of the mesh: "

func TestNetworksOfTheNode(t *testing.T) {
	const (
		apart  = "; name only networks that belong to the other cluster"
		choose = "; choose another network, or set node-cidr in the Corefile to the part that this cluster uses"
		lan    = "the network 10.250.0.0/16 of eth0"
	)
	ownTable := func(h *Host) { h.OwnTable = true }
	for _, c := range []struct {
		name    string
		local   change
		host    func(*Host)
		network v1alpha1.EgressCIDR
		cidr    string // what is said of it as spec.cidr; empty: nothing
		egress  string // as spec.egress
	}{
		{"a part of the LAN with its gateway and the API server", nil, nil, "10.250.0.0/24",
			"the default gateway 10.250.0.1, the API server 10.250.0.2, " + lan + apart,
			"the default gateway 10.250.0.1, the API server 10.250.0.2, " + lan + apart},
		{"the LAN", nil, nil, "10.250.0.0/16", "the default gateway 10.250.0.1, the API server 10.250.0.2, " + lan + apart,
			"the default gateway 10.250.0.1, the API server 10.250.0.2, " + lan + apart},
		{"around the LAN", nil, nil, "10.248.0.0/13",
			"the default gateway 10.250.0.1, the API server 10.250.0.2, " + lan + apart, ""},
		{"around the LAN, before the main table", nil, ownTable, "10.248.0.0/13",
			"the default gateway 10.250.0.1, the API server 10.250.0.2, " + lan + apart,
			"the default gateway 10.250.0.1, the API server 10.250.0.2, " + lan + apart},
		{"another part of the LAN", nil, nil, "10.250.7.0/24", lan + choose, lan + choose},
		{"a part of the LAN that node-cidr leaves out", func(l *Local) { l.NodeCIDRs = pfxs("10.250.0.0/20") }, nil,
			"10.250.77.0/24", "", ""},
		{"the same, and the part that it has", func(l *Local) { l.NodeCIDRs = pfxs("10.250.0.0/28") }, nil, "10.250.0.0/20",
			"NOTE", "the default gateway 10.250.0.1, the API server 10.250.0.2, " + lan + apart},
		{"an API server behind the gateway", nil, nil, "10.77.0.0/16", "the API server 10.77.0.2" + apart,
			"the API server 10.77.0.2" + apart},
		{"a DNS server with a route of its own", nil, nil, "10.8.0.0/15", "the DNS server 10.9.0.53" + apart, ""},
		{"a part of that route", nil, nil, "10.9.0.0/24",
			"the DNS server 10.9.0.53" + apart, "the DNS server 10.9.0.53" + apart},
		{"that route", nil, nil, "10.9.0.0/16", "the DNS server 10.9.0.53" + apart, "the DNS server 10.9.0.53" + apart},
		{"around the services, which are translated before they are routed", nil, nil, "100.64.0.0/14", "NOTE", ""},
		{"a bridge of another program", nil, nil, "172.17.16.0/20", "the network 172.17.0.0/16 of docker0" + choose,
			"the network 172.17.0.0/16 of docker0" + choose},
		{"nothing", nil, nil, "10.10.0.0/16", "", ""},
	} {
		for field, want := range map[string]string{"spec.cidr": c.cidr, "spec.egress": c.egress} {
			t.Run(c.name+" "+field, func(t *testing.T) {
				local, host := changed(unnamed), node()
				if c.local != nil {
					c.local(&local)
				}
				if c.host != nil {
					c.host(&host)
				}
				m := egress(c.network)
				if field == "spec.cidr" {
					m = cidr(string(c.network))
				}
				s := buildOn(third(m), local, host)
				p := s.Problems["k3"]
				switch want {
				case "NOTE": // another check comes first
					if !strings.Contains(s.Notes["k3"], "overlaps") {
						t.Errorf("problem %q, note %q", p.Message, s.Notes["k3"])
					}
				case "":
					checkProblem(t, s, "k3", "")
				default:
					checkProblem(t, s, "k3", "Invalid: "+field+" "+string(c.network)+outside+want)
					checkUndisturbed(t, s, buildOn(pair(), local, host))
				}
			})
		}
	}
}

func TestMeshesOfTheNode(t *testing.T) {
	host := node()
	local := changed(unnamed)
	s := buildOn(new(objs).addLocal("here", "10.250.9.11/24").add("k2", "10.250.9.12/24", "c.example"), local, host)
	checkProblem(t, s, "here", "Invalid: spec.clusterAddress 10.250.9.11/24"+outside+"the network 10.250.0.0/16 of eth0; "+
		"choose another network, or set node-cidr in the Corefile to the part that this cluster uses")
	checkProblem(t, s, "k2", "Stale: LocalLink here of the default mesh cannot be used (Invalid): repair it first")
	s = buildOn(new(objs).addLocal("m6--here", "fd10::5/64"), local, host)
	checkProblem(t, s, "m6--here", "Invalid: spec.clusterAddress fd10::5/64"+outside+
		"the default gateway fd10::1, the network fd10::/64 of eth0; name only networks that belong to the other cluster")

	inStanza(&local)
	local.Addresses = pfxs("10.250.9.11/24")
	s = buildOn(new(objs).add("k2", "10.250.9.12/24", "c.example"), local, host)
	checkProblem(t, s, "k2", "Stale: the default mesh cannot be used: link-address 10.250.9.0/24"+outside+
		"the network 10.250.0.0/16 of eth0; "+
		"choose another network, or set node-cidr in the Corefile to the part that this cluster uses")
	if len(s.Routes) > 0 {
		t.Errorf("routes %v", s.Routes)
	}
}

// What the node has is local for peers: none may send from there.
func TestNetworksOfTheNodeAreLocal(t *testing.T) {
	host := Host{Networks: []HostNetwork{{pfx("10.250.0.0/16"), "eth0"}}}
	s := buildOn(third(egress("10.0.0.0/8")), changed(unnamed), host)
	checkProblem(t, s, "k3", "")
	if !slices.Contains(s.Local, pfx("10.250.0.0/16")) {
		t.Errorf("local networks %v", s.Local)
	}
}

func TestEndpointsInTunnels(t *testing.T) {
	const (
		tunnel = ": the connection would run through a tunnel; set an address outside of the meshes"
		its    = ": its connection would run through a tunnel; narrow the network, or change the endpoint"
	)
	for _, c := range []struct {
		name  string
		objs  *objs
		names map[string]string // addresses of names
		last  map[string]string // address of peers
		link  string
		want  string
	}{
		{"a young network takes the named endpoint of an older link", third(egress("172.16.0.0/12")),
			map[string]string{"kubelink.two.example": "172.31.0.2"}, nil, "k3",
			"Invalid: the network 172.16.0.0/12 (spec.cidr, spec.egress) contains the endpoint " +
				"kubelink.two.example (172.31.0.2) of link kubelink2" + its},
		{"one of its addresses", third(egress("172.16.0.0/12")),
			map[string]string{"kubelink.two.example": "198.51.100.2 172.31.0.2"}, nil, "k3",
			"Invalid: the network 172.16.0.0/12 (spec.cidr, spec.egress) contains the endpoint " +
				"kubelink.two.example (172.31.0.2) of link kubelink2" + its},
		{"its own endpoint", third(egress("172.16.0.0/12")), map[string]string{"c.example": "172.31.0.3"}, nil, "k3",
			"Invalid: the network 172.16.0.0/12 (spec.cidr, spec.egress) contains the endpoint c.example (172.31.0.3) " +
				"of link k3" + its},
		{"the address that an older peer dials from", third(egress("172.16.0.0/12")), nil,
			map[string]string{"kubelink2": "172.31.0.9"}, "k3",
			"Invalid: the network 172.16.0.0/12 (spec.cidr, spec.egress) contains the endpoint " +
				"kubelink.two.example (172.31.0.9) of link kubelink2" + its},
		{"a name that is changed to an address in the network of an older link",
			third(egress("172.16.0.0/12")).add("k4", "192.168.0.14/24", "d.example"),
			map[string]string{"d.example": "172.31.0.4"}, nil, "k4",
			"Invalid: spec.endpoint d.example (172.31.0.4) lies in the network 172.16.0.0/12 " +
				"that is routed to link k3" + tunnel},
		{"the same, but another address of it can be reached",
			third(egress("172.16.0.0/12")).add("k4", "192.168.0.14/24", "d.example"),
			map[string]string{"d.example": "172.31.0.4 198.51.100.4"}, nil, "k4", ""},
		{"an address in the mesh", third(endpoint("192.168.0.77")), nil, nil, "k3",
			"Invalid: spec.endpoint 192.168.0.77 lies in the network 192.168.0.0/24 of the default mesh" + tunnel},
		{"a name in the mesh", third(), map[string]string{"c.example": "192.168.0.77"}, nil, "k3",
			"Invalid: spec.endpoint c.example (192.168.0.77) lies in the network 192.168.0.0/24 of the default mesh" + tunnel},
		{"an address in the LAN, around which another link has a network",
			third(egress("10.248.0.0/13")).add("k4", "192.168.0.14/24", "10.250.0.9"), nil, nil, "k4", ""},
		{"a young network around the LAN with an endpoint", pair().add("k4", "192.168.0.14/24", "10.250.0.9").
			add("k3", "192.168.0.13/24", "c.example", egress("10.248.0.0/13")), nil, nil, "k3", ""},
		{"a young mesh takes the endpoint of an older link",
			pair().add("k3", "192.168.0.13/24", "172.31.0.3").addLocal("m2--here", "172.31.0.50/24", dns("", "m2.example")),
			nil, nil, "m2--here",
			"Invalid: spec.clusterAddress: its network 172.31.0.0/24 contains the endpoint 172.31.0.3 of the older link k3, " +
				"whose connection would run through a tunnel; choose another network for the mesh"},
		{"a young mesh takes a named endpoint", pair().addLocal("m2--here", "172.31.0.50/24", dns("", "m2.example")),
			map[string]string{"kubelink.two.example": "172.31.0.2"}, nil, "m2--here",
			"Invalid: spec.clusterAddress: its network 172.31.0.0/24 contains the endpoint kubelink.two.example (172.31.0.2) " +
				"of the older link kubelink2, whose connection would run through a tunnel; choose another network for the mesh"},
		{"an older name comes into an accepted network", accepted(third(egress("172.16.0.0/12")), "k3"),
			map[string]string{"kubelink.two.example": "172.31.0.2"}, nil, "k3", ""},
		{"an older peer comes into an accepted network", accepted(third(egress("172.16.0.0/12")), "k3"), nil,
			map[string]string{"kubelink2": "172.31.0.9"}, "k3", ""},
		{"an accepted network and its own endpoint", accepted(third(egress("172.16.0.0/12")), "k3"),
			map[string]string{"c.example": "172.31.0.3"}, nil, "k3",
			"Invalid: the network 172.16.0.0/12 (spec.cidr, spec.egress) contains the endpoint c.example (172.31.0.3) " +
				"of link k3" + its},
		{"an accepted network and the address of an older link", accepted(pair().add("a", "192.168.0.20/24", "172.31.0.2").
			add("k3", "192.168.0.13/24", "c.example", egress("172.16.0.0/12")), "k3"), nil, nil, "k3",
			"Invalid: the network 172.16.0.0/12 (spec.cidr, spec.egress) contains the endpoint 172.31.0.2 of link a" + its},
	} {
		t.Run(c.name, func(t *testing.T) {
			host := node()
			for name, list := range c.names {
				for a := range strings.FieldsSeq(list) {
					host.Endpoints[name] = append(host.Endpoints[name], ip(a))
				}
			}
			for name, a := range c.last {
				host.Remotes[name] = ip(a)
			}
			s := buildOn(c.objs, changed(unnamed), host)
			checkProblem(t, s, c.link, c.want)
			checkProblem(t, s, "kubelink2", "")
			checkProblem(t, s, "kubelink1", "")
		})
	}
}

// A name that comes into the network of a mesh, which was there before, is a matter of its own link.
func TestNameInAcceptedMesh(t *testing.T) {
	o := accepted(pair().addLocal("m2--here", "172.31.0.50/24", dns("", "m2.example")), "m2--here")
	host := node()
	host.Endpoints["kubelink.two.example"] = []netip.Addr{ip("172.31.0.2")}
	s := buildOn(o, changed(unnamed), host)
	checkProblem(t, s, "m2--here", "")
	checkProblem(t, s, "kubelink2", "Invalid: spec.endpoint kubelink.two.example (172.31.0.2) lies in the network "+
		"172.31.0.0/24 of mesh m2: the connection would run through a tunnel; set an address outside of the meshes")
}

// accepted gives an object the status of one that a broker has accepted.
func accepted(o *objs, name string) *objs {
	for i := range o.list {
		if l := &o.list[i]; l.Name == name {
			l.Generation = 3
			l.Status.Conditions = []metav1.Condition{
				{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, ObservedGeneration: 3}}
		}
	}
	return o
}

// Without facts, the stanza tells that nodes have a longer route.
func TestEndpointInNodeCIDR(t *testing.T) {
	s := third(egress("10.0.0.0/8")).add("k4", "192.168.0.14/24", "10.250.0.9").build(cluster1())
	checkProblem(t, s, "k4", "")
	s = third(egress("10.0.0.0/8")).add("k4", "192.168.0.14/24", "10.3.0.9").build(cluster1())
	checkProblem(t, s, "k4", "Invalid: spec.endpoint 10.3.0.9 lies in the network 10.0.0.0/8 that is routed to link k3: "+
		"the connection would run through a tunnel; set an address outside of the meshes")
}

// Two links can make one name. The older one has it.
func TestOneNameOfTwoLinks(t *testing.T) {
	old := []struct{ name, address string }{{"x.m2", "192.168.0.20/24"}, {"m2--x", "192.168.9.20/24"}}
	for range 2 {
		s := new(objs).addLocal("here", "192.168.0.11/24").
			addLocal("m2--here", "192.168.9.11/24", dns("", "m2.kubelink")).
			add(old[0].name, old[0].address, "a.example", cidr("100.64.16.0/20")).
			add(old[1].name, old[1].address, "b.example", cidr("100.64.32.0/20")).
			build(cluster1())
		checkEqual(t, "note", s.Notes[old[1].name], "no DNS: x.m2.kubelink is the name of the older link "+old[0].name+
			"; use another name for the cluster")
		checkEqual(t, "note of the older link", s.Notes[old[0].name], "")
		slices.Reverse(old)
	}
	s := new(objs).addLocal("here", "192.168.0.11/24").
		addLocal("m2--there", "192.168.9.11/24", dns("", "m2.kubelink")).
		add("there.m2", "192.168.0.20/24", "a.example", cidr("100.64.16.0/20")).build(cluster1())
	checkEqual(t, "note", s.Notes["there.m2"], "no DNS: there.m2.kubelink is the local cluster in mesh m2; "+
		"use another name for the cluster")
}
