package mesh

// Links behind a gateway: which link carries them, and what is told of a gateway that cannot.

import "testing"

// behind is a mesh with a gateway gw, a link k3 behind it, and another mesh.
func behind(gateway string, mods ...mod) *objs {
	return new(objs).addLocal("here", "192.168.0.11/24").
		add("k3", "192.168.0.13/24", "", append(mods, via(gateway))...).
		add("gw", "192.168.0.12/24", "gw.example").
		addLocal("m2--here", "192.168.9.11/24", dns("", "m2.example")).
		add("m2--gw", "192.168.9.12/24", "gw.example").
		add("x--y", "192.168.0.15/24", "y.example")
}

func TestGatewayProblems(t *testing.T) {
	for _, c := range []struct {
		name string
		objs *objs
		link string
		want string
	}{
		{"works", behind("gw"), "k3", ""},
		{"itself", behind("k3"), "k3",
			"Invalid: spec.gatewayLink names this link itself: name the link of the cluster that forwards for it"},
		{"LocalLink", behind("here"), "k3",
			"Invalid: spec.gatewayLink here is the LocalLink: name the link of another cluster, or set spec.endpoint"},
		{"other mesh", behind("m2--gw"), "k3",
			"Invalid: spec.gatewayLink m2--gw belongs to mesh m2: a gateway must be in the same mesh"},
		{"missing", behind("nope"), "k3",
			"Stale: spec.gatewayLink nope does not exist, or another broker serves it: create that link, " +
				"or name both links in served-links of one broker"},
		{"broken", behind("k4").add("k4", "192.168.0.14/24", "a b"), "k3",
			"Stale: spec.gatewayLink k4 cannot be used (Invalid): repair that link first"},
		{"broken LocalLink", behind("other").addLocal("other", "192.168.9.9/24"), "k3",
			"Stale: spec.gatewayLink other cannot be used (Stale): repair that link first"},
		{"deleted", behind("k4").add("k4", "192.168.0.14/24", "d.example", deleting), "k3",
			"Stale: spec.gatewayLink k4 does not exist, or another broker serves it: create that link, " +
				"or name both links in served-links of one broker"},
		{"has a gateway", behind("gw").add("k4", "192.168.0.14/24", "", via("k3")), "k4",
			"Invalid: spec.gatewayLink k3 has a gateway itself (gw): name that one"},
		{"each other", behind("k4").add("k4", "192.168.0.14/24", "", via("k3")), "k4",
			"Invalid: spec.gatewayLink k3 has a gateway itself (k4): name that one"},
		{"has a broken gateway", behind("z").add("k4", "192.168.0.14/24", "", via("k3")), "k4",
			"Invalid: spec.gatewayLink k3 has a gateway itself (z): name that one"},
		{"the same with names in another order", behind("z").add("a", "192.168.0.14/24", "", via("k3")), "a",
			"Invalid: spec.gatewayLink k3 has a gateway itself (z): name that one"},
		{"named mesh, missing", behind("gw").add("m2--k3", "192.168.9.13/24", "", via("nope")), "m2--k3",
			"Stale: spec.gatewayLink m2--nope does not exist, or another broker serves it: create that link, " +
				"or name both links in served-links of one broker"},
		{"named mesh, itself", behind("gw").add("m2--k3", "192.168.9.13/24", "", via("k3")), "m2--k3",
			"Invalid: spec.gatewayLink names this link itself: name the link of the cluster that forwards for it"},
		{"named mesh, LocalLink", behind("gw").add("m2--k3", "192.168.9.13/24", "", via("here")), "m2--k3",
			"Invalid: spec.gatewayLink m2--here is the LocalLink: name the link of another cluster, or set spec.endpoint"},
		{"named mesh, other mesh", behind("gw").add("m2--k3", "192.168.9.13/24", "", via("x--y")), "m2--k3",
			"Invalid: spec.gatewayLink x--y belongs to mesh x: a gateway must be in the same mesh"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.objs.build(cluster1())
			checkProblem(t, s, c.link, c.want)
			checkProblem(t, s, "gw", "")
			for _, l := range s.Links {
				if l.Name == c.link && c.want != "" {
					t.Errorf("%s is used", c.link)
				}
			}
			for _, z := range s.Zones {
				for _, cluster := range z.Clusters {
					if cluster.Link == c.link && c.want != "" {
						t.Errorf("%s has names: %+v", c.link, cluster)
					}
				}
			}
		})
	}
}

// Without prefix a gateway is in the mesh of its link. The gateway carries what is routed to the link.
func TestGatewayCarries(t *testing.T) {
	const (
		more     = "10.4.0.0/16, 100.64.64.0/20, "
		first    = "192.168.0.12/32, 192.168.0.13/32"
		gateway2 = "192.168.9.12/32"
	)
	for _, c := range []struct{ name, gateway, link, address, peer, networks, networks2 string }{
		{"default mesh", "gw", "k4", "192.168.0.14/24", "gw", more + first + ", 192.168.0.14/32", gateway2},
		{"named mesh", "gw", "m2--k4", "192.168.9.14/24", "m2--gw", first, more + gateway2 + ", 192.168.9.14/32"},
		{"whole name", "m2--gw", "m2--k4", "192.168.9.14/24", "m2--gw", first, more + gateway2 + ", 192.168.9.14/32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := behind("gw").add(c.link, c.address, "not read", via(c.gateway), cidr("100.64.64.0/20"), egress("10.4.0.0/16")).
				build(cluster1())
			checkProblem(t, s, c.link, "")
			peers := map[string]string{}
			for _, l := range s.Links {
				peers[l.Name] = l.Peer
			}
			want := map[string]string{"gw": "gw", "m2--gw": "m2--gw", "k3": "gw", c.link: c.peer}
			checkEqual(t, "peers of links", peers, want)
			networks := map[string]string{}
			for _, p := range s.Peers {
				networks[p.Link] = Prefixes(p.Networks).String()
			}
			checkEqual(t, "networks of peers", networks, map[string]string{"gw": c.networks, "m2--gw": c.networks2})
		})
	}
	// A mode that carries no traffic needs the gateway, too, but has no peer.
	none := changed(func(l *Local) { l.Mode = None })
	checkEqual(t, "links", behind("gw").build(none).Links[1], Link{Name: "k3", Cluster: "k3"})
	checkProblem(t, behind("nope").build(none), "k3",
		"Stale: spec.gatewayLink nope does not exist, or another broker serves it: create that link, "+
			"or name both links in served-links of one broker")
	// A gateway that is not served is none.
	served := changed(func(l *Local) { l.Served = []string{"k3"} })
	checkProblem(t, behind("gw").build(served), "k3",
		"Stale: spec.gatewayLink gw does not exist, or another broker serves it: create that link, "+
			"or name both links in served-links of one broker")
}

// A link whose gateway cannot be used keeps no network from others, which may be gateways themselves.
func TestOrphansClaimNothing(t *testing.T) {
	s := new(objs).addLocal("here", "192.168.0.11/24").
		add("broken", "192.168.0.12/24", "a b").
		add("orphan", "192.168.0.13/24", "", via("broken"), cidr("100.64.16.0/20")).
		add("lost", "192.168.0.14/24", "", via("nowhere"), cidr("100.64.32.0/20")).
		add("gw", "192.168.0.15/24", "gw.example", cidr("100.64.16.0/20"), egress("100.64.32.0/20")).
		add("behind", "192.168.0.16/24", "", via("gw"), cidr("100.64.48.0/20")).
		build(cluster1())
	checkProblem(t, s, "orphan", "Stale: spec.gatewayLink broken cannot be used (Invalid): repair that link first")
	checkProblem(t, s, "lost", "Stale: spec.gatewayLink nowhere does not exist, or another broker serves it: "+
		"create that link, "+
		"or name both links in served-links of one broker")
	checkProblem(t, s, "gw", "")
	checkProblem(t, s, "behind", "")
}
