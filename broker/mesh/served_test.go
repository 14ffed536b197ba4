package mesh

import (
	"fmt"
	"testing"
)

// twoMeshes are a default mesh with two links, and the mesh m with one.
func twoMeshes() *objs {
	return new(objs).addLocal("here", "192.168.0.11/24").addLocal("m--here", "10.99.0.1/24").
		add("k2", "192.168.0.12/24", "b.example", cidr("100.64.16.0/20")).
		add("k3", "192.168.0.13/24", "c.example", cidr("100.64.32.0/20")).
		add("m--k4", "10.99.0.4/24", "d.example", cidr("100.64.48.0/20"))
}

// TestServedLinks: an entry names a link, a mesh or the network of a mesh. A broker is the gateway of meshes in which
// it serves a link, or which its list names; it writes the status of LocalLinks that it serves whole or by name.
func TestServedLinks(t *testing.T) {
	for _, c := range []struct {
		served []string
		want   string // links, meshes (* other brokers may share it), zones, LocalLinks of other brokers
	}{
		{nil, "[k2 k3 m--k4] [here m--here] [kubelink. m.example.] []"},
		{[]string{}, "[] [] [] [here m--here]"},
		{[]string{"nobody"}, "[] [] [] [here m--here]"},
		{[]string{"k3"}, "[k3] [here*] [kubelink.] [here m--here]"},
		{[]string{"here", "k3"}, "[k3] [here*] [kubelink.] [m--here]"},
		{[]string{"here"}, "[] [here*] [kubelink.] [m--here]"},
		{[]string{"m--k4"}, "[m--k4] [m--here*] [m.example.] [here m--here]"},
		{[]string{"m"}, "[m--k4] [m--here] [m.example.] [here]"},
		{[]string{DefaultMesh}, "[k2 k3] [here] [kubelink.] [m--here]"},
		{[]string{"192.168.0.0/24"}, "[k2 k3] [here] [kubelink.] [m--here]"},
		{[]string{"10.99.0.0/24", "k2"}, "[k2 m--k4] [here* m--here] [kubelink. m.example.] [here]"},
		{[]string{"10.99.0.0/16"}, "[] [] [] [here m--here]"},
	} {
		local := changed(func(l *Local) { l.Served = c.served })
		o := twoMeshes()
		dns("", "m.example")(&o.list[1])
		s := o.build(local)
		var links, meshes, zones, foreign []string
		for _, l := range s.Links {
			links = append(links, l.Name)
		}
		for _, m := range s.Meshes {
			if m.Shared {
				m.Link += "*"
			}
			meshes = append(meshes, m.Link)
		}
		for _, z := range s.Zones {
			zones = append(zones, z.Domain)
		}
		for _, name := range []string{"here", "m--here"} {
			if s.Foreign[name] {
				foreign = append(foreign, name)
			}
		}
		checkEqual(t, fmt.Sprintf("%q", c.served), fmt.Sprint(links, meshes, zones, foreign), c.want)
		checkEqual(t, fmt.Sprintf("%q: problems", c.served), len(s.Problems), 0)
		checkEqual(t, fmt.Sprintf("%q: domains", c.served), len(s.Elsewhere)+len(s.Zones), 2)
		for _, r := range s.Routes { // of the links that are served, and of their meshes
			own := false
			for _, m := range s.Meshes {
				own = own || m.Addresses.First().Addr() == r.Source
			}
			if !own {
				t.Errorf("%q: route to %s from %s", c.served, r.Destination, r.Source)
			}
		}
	}
}

// A mesh of another broker still counts in the checks, and its address is that of a node, which a link may not reach
// but for ping.
func TestMeshOfAnotherBroker(t *testing.T) {
	local := changed(func(l *Local) { l.Served = []string{DefaultMesh} })
	s := twoMeshes().add("k5", "192.168.0.15/24", "e.example", cidr("10.99.0.0/25")).
		add("k6", "192.168.0.16/24", "f.example", ingress("10.0.0.0/8")).build(local)
	checkProblem(t, s, "k5",
		"Invalid: spec.cidr 10.99.0.0/25 overlaps with the network 10.99.0.0/24 of mesh m: they must be disjoint")
	found := false
	for _, p := range s.Peers {
		for _, r := range p.Ingress {
			found = found || p.Link == "k6" && r.Prefix == pfx("10.99.0.1/32") && r.Node
		}
	}
	if !found {
		t.Errorf("%+v", s.Peers)
	}
}

// The mesh of the stanza is served as others are.
func TestServedStanzaMesh(t *testing.T) {
	for _, c := range []struct {
		served []string
		want   int
	}{{nil, 1}, {[]string{"m"}, 0}, {[]string{DefaultMesh}, 1}, {[]string{"192.168.0.0/24"}, 1}, {[]string{"k2"}, 1},
		{[]string{"k3"}, 0}} {
		local := changed(inStanza)
		local.Served = c.served
		s := new(objs).add("k2", "192.168.0.12/24", "b.example").build(local)
		checkEqual(t, fmt.Sprintf("%q", c.served), len(s.Meshes), c.want)
	}
}

// The network of a mesh without LocalLink is that of its links: one broker says what is missing.
func TestServedWithoutLocalLink(t *testing.T) {
	local := changed(func(l *Local) { l.Served = []string{"10.99.0.0/24"} })
	s := new(objs).add("m--k4", "10.99.0.4/24", "d.example").add("m--k5", "x", "e.example").
		add("k2", "192.168.0.12/24", "b.example").build(local)
	checkEqual(t, "problems", len(s.Problems), 2)
	checkProblem(t, s, "m--k4", "Stale: mesh m has no LocalLink: create KubeLink m--<local cluster> "+
		"with endpoint LocalLink and the address of this cluster in the mesh")
}
