package mesh

// Which destinations a link may reach: what lists of link, LocalLink and gateway let pass together.

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// ruleTexts are rules as users write them.
func ruleTexts(rules []Rule) string {
	var texts []string
	for _, r := range rules {
		text := r.Prefix.String()
		if !r.Allow {
			text = "!" + text
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, " ")
}

// ingressList is the inverse of ruleTexts.
func ingressList(text string) []v1alpha1.IngressCIDR {
	var list []v1alpha1.IngressCIDR
	for _, e := range strings.Fields(text) {
		list = append(list, v1alpha1.IngressCIDR(e))
	}
	return list
}

// probe is what rules let through to an address: all, ping (of an address of the node), replies, or nothing.
func probe(rules []Rule, a netip.Addr) string {
	var best Rule
	bits := -1
	for _, r := range rules {
		if r.Prefix.Contains(a) && r.Prefix.Bits() > bits {
			best, bits = r, r.Prefix.Bits()
		}
	}
	switch {
	case best.Node && best.Allow:
		return "ping"
	case best.Node:
		return "replies"
	case best.Allow:
		return "all"
	}
	return "nothing"
}

// checkReach compares what rules let through with a text of the form "all: ADDRESS...; ping: ...".
func checkReach(t *testing.T, rules []Rule, want string) {
	t.Helper()
	for part := range strings.SplitSeq(want, ";") {
		what, addresses, _ := strings.Cut(part, ":")
		for _, a := range strings.Fields(addresses) {
			if got := probe(rules, ip(a)); got != strings.TrimSpace(what) {
				t.Errorf("to %s gets %s, want %s, by %s", a, got, what, ruleTexts(rules))
			}
		}
	}
}

// TestIngress: both lists must let a packet pass, denials win, and denials alone allow the rest. 192.168.0.11 is the
// local cluster address, 192.168.9.11 the one in another mesh, 100.64.0.0/20 the service network.
func TestIngress(t *testing.T) {
	const (
		rest    = "all: 11.1.1.1 10.250.0.1 8.8.8.8 2001:db8::1 192.168.0.12"
		noRest  = "nothing: 11.1.1.1 8.8.8.8 2001:db8::1 192.168.0.12 192.168.9.11 192.168.9.12"
		outside = "nothing: 127.0.0.1 169.254.169.254 224.0.0.1 255.255.255.255 0.0.0.1 ::1 fe80::1 ff02::1"
	)
	for _, c := range []struct{ name, mesh, link, want string }{
		{"neither", "", "", "all: 100.64.0.1; ping: 192.168.0.11; nothing: 10.250.0.1 100.96.0.1;" + noRest},
		{"link", "", "10.0.0.0/8", "all: 10.1.1.1; ping: 192.168.0.11; nothing: 100.64.0.1;" + noRest},
		{"link, an address", "", "100.64.0.7", "all: 100.64.0.7; ping: 192.168.0.11; nothing: 100.64.0.6;" + noRest},
		{"link, host bits", "", "10.7.0.9/16", "all: 10.7.0.1 10.7.255.1; nothing: 10.8.0.1;" + noRest},
		{"link, everything", "", "0.0.0.0/0",
			"all: 10.1.1.1 8.8.8.8 192.168.0.12; ping: 192.168.0.11; nothing: 2001:db8::1"},
		{"link, exception", "", "10.0.0.0/8 !10.1.0.0/16", "all: 10.2.1.1; nothing: 10.1.1.1;" + noRest},
		{"link, a denial around", "", "!10.0.0.0/8 10.1.0.0/16 100.64.0.7",
			"all: 100.64.0.7; nothing: 10.1.1.1 10.2.1.1 100.64.0.1;" + noRest},
		{"link, the other order", "", "10.1.0.0/16 100.64.0.7 !10.0.0.0/8",
			"all: 100.64.0.7; nothing: 10.1.1.1 10.2.1.1 100.64.0.1;" + noRest},
		{"link, all that is allowed is denied", "", "!10.0.0.0/8 10.1.0.0/16", "nothing: 10.1.1.1 100.64.0.1;" + noRest},
		{"link, three deep", "", "10.0.0.0/8 !10.1.0.0/16 10.1.1.0/24",
			"all: 10.2.1.1; nothing: 10.1.1.1 10.1.2.1;" + noRest},
		{"link, allowed and denied", "", "!10.0.0.0/8 10.0.0.0/8", "nothing: 10.1.1.1;" + noRest},
		{"link, only a denial", "", "!100.64.1.0/24", "all: 100.64.0.1; nothing: 100.64.1.1; ping: 192.168.0.11;" + rest},
		{"link, only a denial of IPv6", "", "!2001:db8:1::/48", "nothing: 2001:db8:1::1;" + rest},
		{"link, denials are not the node", "", "!10.0.0.0/8", "ping: 192.168.0.11 192.168.9.11;" + outside},
		{"link, everything denied", "", "!0.0.0.0/0", "nothing: 10.1.1.1 100.64.0.1 192.168.9.11; replies: 192.168.0.11"},
		{"link, the local address denied", "", "10.0.0.0/8 !192.168.0.11", "all: 10.1.1.1; replies: 192.168.0.11"},
		{"link, only the local address", "", "192.168.0.11", "ping: 192.168.0.11; nothing: 100.64.0.1;" + noRest},
		{"link, the mesh network", "", "192.168.0.0/24", "all: 192.168.0.77; ping: 192.168.0.11"},
		{"link, the metadata service denied", "", "!169.254.169.254 !127.0.0.0/8", rest + ";" + outside},
		{"link, other mesh's address", "", "192.168.9.0/24", "ping: 192.168.9.11; all: 192.168.9.12"},
		{"link, IPv6", "", "fd00::/8", "all: fd00::1; nothing: 100.64.0.1; ping: 192.168.0.11;" + noRest},
		{"link, half of everything", "", "0.0.0.0/1 128.0.0.0/1", "all: 10.1.1.1; " + outside},

		{"mesh", "10.0.0.0/8", "", "all: 10.1.1.1; nothing: 100.64.0.1; ping: 192.168.0.11;" + noRest},
		{"mesh, only a denial", "!100.64.1.0/24", "", "all: 100.64.0.1; nothing: 100.64.1.1;" + rest + ";" + outside},
		{"mesh, everything denied", "!0.0.0.0/0", "", "nothing: 100.64.0.1 10.1.1.1; replies: 192.168.0.11"},
		{"mesh, the local address denied", "!192.168.0.0/24", "", "replies: 192.168.0.11; all: 100.64.0.1"},
		{"mesh, three deep", "!10.0.0.0/8 10.2.0.0/16", "10.0.0.0/8", "nothing: 10.1.1.1 10.2.1.1;" + noRest},

		{"disjoint", "10.1.0.0/16", "10.2.0.0/16", "nothing: 10.1.1.1 10.2.1.1 100.64.0.1; ping: 192.168.0.11;" + noRest},
		{"link in mesh", "10.0.0.0/8", "10.2.0.0/16", "all: 10.2.1.1; nothing: 10.1.1.1 100.64.0.1;" + noRest},
		{"link around mesh", "10.2.0.0/16", "10.0.0.0/8", "all: 10.2.1.1; nothing: 10.1.1.1 100.64.0.1;" + noRest},
		{"link denies in mesh", "10.0.0.0/8", "!10.2.0.0/16", "all: 10.1.1.1; nothing: 10.2.1.1 100.64.0.1;" + noRest},
		{"mesh denies, link in it", "!10.0.0.0/8", "10.2.0.0/16", "nothing: 10.2.1.1 11.1.1.1 100.64.0.1;" + noRest},
		{"mesh denies in link", "!10.2.0.0/16", "10.0.0.0/8", "all: 10.1.1.1; nothing: 10.2.1.1 100.64.0.1;" + noRest},
		{"denials of both", "!100.64.1.0/24", "!100.64.2.0/24",
			"all: 100.64.0.1; nothing: 100.64.1.1 100.64.2.1;" + rest + ";" + outside},
		{"the mesh's exception is not the link's", "10.0.0.0/8 !10.2.0.0/16", "10.2.3.0/24", "nothing: 10.2.3.1;" + noRest},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := new(objs).addLocal("here", "192.168.0.11/24", ingress(ingressList(c.mesh)...)).
				addLocal("m2--here", "192.168.9.11/24", dns("", "m2.example")).
				add("k2", "192.168.0.12/24", "b.example", ingress(ingressList(c.link)...)).build(cluster1())
			if len(s.Peers) != 1 {
				t.Fatalf("problems %+v", s.Problems)
			}
			checkReach(t, s.Peers[0].Ingress, c.want)
			checkExcluded(t, &s)
		})
	}
}

// checkExcluded compares what lists say of addresses, one by one, with what they do together.
func checkExcluded(t *testing.T, s *State) {
	t.Helper()
	for _, text := range []string{"100.64.0.7", "100.64.1.1", "10.1.1.1", "10.2.1.1", "192.168.0.77", "192.168.0.11"} {
		a, excluded := ip(text), false
		own := s.Meshes[0].Addresses.First().Addr() == a
		for i := range s.Lists {
			out, denial := s.Lists[i].Excludes(a, own)
			excluded = excluded || out
			if denial.IsValid() && (!out || !denial.Contains(a)) {
				t.Errorf("%s is denied by %s", a, denial)
			}
		}
		if got := probe(s.Peers[0].Ingress, a); len(s.Lists) > 0 && excluded != (got == "nothing" || got == "replies") {
			t.Errorf("to %s gets %s, excluded: %v", a, got, excluded)
		}
	}
}

// TestIngressOfMeshes: each mesh has its own list, and all addresses of the local cluster in it.
func TestIngressOfMeshes(t *testing.T) {
	for _, c := range []struct {
		name  string
		local change
		link  mod
		want  string
	}{
		{"services unknown", noServices, ingress(), "192.168.0.11/32"},
		{"services of both families", func(l *Local) { l.ServiceCIDRs = Prefixes{pfx("fd01::/112"), pfx("100.64.0.0/20")} },
			ingress(), "100.64.0.0/20 192.168.0.11/32 fd01::/112"},
		{"addresses of both families",
			func(l *Local) { l.Addresses = Prefixes{pfx("fd00::11/64"), pfx("192.168.0.11/24")} },
			ingress("!::/0", "100.64.0.0/20"), "100.64.0.0/20 192.168.0.11/32 !fd00::11/128"},
		{"services of the LocalLink", noServices, nil, "100.65.0.0/20 192.168.0.11/32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			local := changed(c.local)
			o := new(objs).addLocal("m2--here", "192.168.9.11/24", ingress("10.9.0.0/16"), dns("", "m2.example"))
			if c.link == nil {
				o.addLocal("here", "192.168.0.11/24", cidr("100.65.0.0/20"))
				c.link = ingress()
			} else if local.Addresses == nil {
				o.addLocal("here", "192.168.0.11/24")
			}
			s := o.add("k2", "192.168.0.12/24", "b.example", c.link).add("m2--k2", "192.168.9.12/24", "b.example").build(local)
			if len(s.Peers) != 2 {
				t.Fatalf("problems %+v", s.Problems)
			}
			checkEqual(t, "rules", ruleTexts(s.Peers[0].Ingress), c.want)
			checkEqual(t, "rules of the other mesh", ruleTexts(s.Peers[1].Ingress), "10.9.0.0/16 192.168.9.11/32")
		})
	}
}

// TestIngressBehindGateway: a cluster behind a gateway is judged by its own list, and by that of the gateway.
func TestIngressBehindGateway(t *testing.T) {
	for _, c := range []struct{ name, mesh, gateway, link, wantGateway, wantLink string }{
		{"no list", "", "", "", "all: 100.64.0.1; ping: 192.168.0.11", "all: 100.64.0.1; ping: 192.168.0.11"},
		{"own list", "", "", "100.64.0.80", "all: 100.64.0.1 100.64.0.80", "all: 100.64.0.80; nothing: 100.64.0.1"},
		{"own list, another network", "", "", "10.1.0.0/16", "nothing: 10.1.1.1", "all: 10.1.1.1; nothing: 100.64.0.1"},
		{"own denial", "", "100.64.0.0/20", "!100.64.0.80", "all: 100.64.0.80",
			"all: 100.64.0.1; nothing: 100.64.0.80 8.8.8.8"},
		{"list of the gateway", "", "100.64.0.80", "", "all: 100.64.0.80", "all: 100.64.0.80; nothing: 100.64.0.1"},
		{"both", "", "100.64.0.0/24", "100.64.0.0/20 !100.64.0.7", "all: 100.64.0.7",
			"all: 100.64.0.1; nothing: 100.64.0.7 100.64.1.1"},
		{"all three", "!100.64.0.9", "100.64.0.0/24", "!100.64.0.8", "all: 100.64.0.8; nothing: 100.64.0.9",
			"all: 100.64.0.1; nothing: 100.64.0.8 100.64.0.9 8.8.8.8"},
		{"no ping", "", "", "!192.168.0.11", "ping: 192.168.0.11", "replies: 192.168.0.11"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := new(objs).addLocal("here", "192.168.0.11/24", ingress(ingressList(c.mesh)...)).
				add("gw", "192.168.0.12/24", "gw.example", cidr("100.64.16.0/20"), ingress(ingressList(c.gateway)...)).
				add("k3", "192.168.0.13/24", "", cidr("100.64.32.0/20"), via("gw"), ingress(ingressList(c.link)...)).
				build(cluster1())
			if len(s.Peers) != 1 || len(s.Peers[0].Carried) != 2 {
				t.Fatalf("peers %+v, problems %+v", s.Peers, s.Problems)
			}
			p := s.Peers[0]
			checkEqual(t, "sources of the gateway", Prefixes(p.Carried[0].Networks).String(), "100.64.16.0/20, 192.168.0.12/32")
			checkEqual(t, "sources of the link", Prefixes(p.Carried[1].Networks).String(), "100.64.32.0/20, 192.168.0.13/32")
			checkReach(t, p.Ingress, c.wantGateway)
			checkReach(t, p.Carried[0].Ingress, c.wantGateway)
			checkReach(t, p.Carried[1].Ingress, c.wantLink)
		})
	}
}

// The order of a list has no meaning, and no rule stands in a network with the same answer.
func TestIngressOrder(t *testing.T) {
	list := "!10.0.0.0/8 10.1.0.0/16 100.64.0.0/20 !100.64.1.0/24 100.64.1.1/32 100.64.2.0/24 fd00::/8"
	rules, _ := parseIngress(ingressList(list))
	m := &meshEntry{Mesh: Mesh{Addresses: pfxs("192.168.0.11/24")}}
	for range rules {
		rules = append(rules[1:len(rules):len(rules)], rules[0])
		got := effectiveIngress(m, ips("192.168.0.11"), rules)
		checkEqual(t, "rules", ruleTexts(got), "100.64.0.0/20 !100.64.1.0/24 192.168.0.11/32 fd00::/8")
	}
}

// An entry that lies in a denial of its list has no effect, and a note says so.
func TestDeniedEntryNote(t *testing.T) {
	for _, c := range []struct{ list, want string }{
		{"10.0.0.0/8 !10.1.0.0/16", ""},
		{"!10.0.0.0/8", ""},
		{"!10.0.0.0/8 11.0.0.0/8", ""},
		{"!10.0.0.0/8 10.1.0.9/16 10.2.0.0/16",
			"10.1.0.0/16 of spec.ingress has no effect: !10.0.0.0/8 denies it, whatever the order of the list"},
		{"10.1.0.0/16 !10.1.0.0/16",
			"10.1.0.0/16 of spec.ingress has no effect: !10.1.0.0/16 denies it, whatever the order of the list"},
	} {
		list := ingress(ingressList(c.list)...)
		s := new(objs).addLocal("here", "192.168.0.11/24", list).
			add("k2", "192.168.0.12/24", "b.example", list, omitDNS).build(cluster1())
		checkEqual(t, "note of the link", s.Notes["k2"], c.want)
		checkEqual(t, "note of the LocalLink", s.Notes["here"], c.want)
	}
}
