package mesh

// Which destinations a link may reach: the rules in force for each list of the mesh and of the link.

import (
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

// TestEffectiveIngress: the list of the link, else that of the mesh, else the local service network. The local address
// is always among them.
func TestEffectiveIngress(t *testing.T) {
	const (
		own      = "192.168.0.11/32"
		services = "100.64.0.0/20 192.168.0.11/32"
	)
	for _, c := range []struct{ name, mesh, link, want string }{
		{"neither", "", "", services},
		{"link", "", "10.0.0.0/8", "10.0.0.0/8 " + own},
		{"link, two networks", "", "10.1.0.0/16 10.0.0.0/8", "10.0.0.0/8 10.1.0.0/16 " + own},
		{"link, everything", "", "0.0.0.0/0", "0.0.0.0/0 " + own},
		{"link, with exception", "", "10.0.0.0/8 !10.1.0.0/16", "10.0.0.0/8 !10.1.0.0/16 " + own},
		{"link, only a denial", "", "!100.64.1.0/24", "100.64.0.0/20 !100.64.1.0/24 " + own},
		{"link, only the default denied", "", "!100.64.0.0/20", "!100.64.0.0/20 " + own},
		{"link, everything denied", "", "!0.0.0.0/0", "!0.0.0.0/0 " + services},
		{"link, the same twice", "", "10.0.0.0/8 10.0.0.0/8", "10.0.0.0/8 " + own},
		{"link, allowed and denied", "", "!10.0.0.0/8 10.0.0.0/8", "!10.0.0.0/8 " + own},
		{"link, the local address denied", "", "10.0.0.0/8 !192.168.0.11/32", "10.0.0.0/8 " + own},

		{"mesh", "10.0.0.0/8", "", "10.0.0.0/8 " + own},
		{"mesh, only a denial", "!100.64.1.0/24", "", "100.64.0.0/20 !100.64.1.0/24 " + own},
		{"mesh, everything denied", "!0.0.0.0/0", "", "!0.0.0.0/0 !" + services},
		{"mesh, the local address denied", "!192.168.0.0/24", "", "100.64.0.0/20 !192.168.0.0/24 " + own},

		{"link instead of mesh", "10.1.0.0/16", "10.2.0.0/16", "!10.1.0.0/16 10.2.0.0/16 " + own},
		{"link in mesh", "10.0.0.0/8", "10.2.0.0/16", "!10.0.0.0/8 10.2.0.0/16 " + own},
		{"link around mesh", "10.2.0.0/16", "10.0.0.0/8", "10.0.0.0/8 10.2.0.0/16 " + own},
		{"denial of the link, list of the mesh", "10.0.0.0/8", "!10.2.0.0/16", "10.0.0.0/8 !10.2.0.0/16 " + own},
		{"denial of the mesh, link in it", "!10.0.0.0/8", "10.2.0.0/16", "!10.0.0.0/8 !10.2.0.0/16 " + own},
		{"denial of the mesh, link around it", "!10.2.0.0/16", "10.0.0.0/8", "10.0.0.0/8 !10.2.0.0/16 " + own},
		{"denial of the mesh, the same network", "!10.0.0.0/8", "10.0.0.0/8", "!10.0.0.0/8 " + own},
		{"denials of both", "!100.64.1.0/24", "!100.64.2.0/24", "100.64.0.0/20 !100.64.1.0/24 !100.64.2.0/24 " + own},
		{"exception of the mesh's denial", "!10.0.0.0/8 10.2.0.0/16", "10.0.0.0/8", "!10.0.0.0/8 10.2.0.0/16 " + own},
		{"exception of the mesh's denial, link in it", "!10.0.0.0/8 10.2.0.0/16", "10.2.3.0/24",
			"!10.0.0.0/8 !10.2.0.0/16 10.2.3.0/24 " + own},
		{"exception of the link's denial", "10.0.0.0/8", "!10.2.0.0/16 10.2.3.0/24",
			"!10.0.0.0/8 !10.2.0.0/16 10.2.3.0/24 " + own},
		{"other family", "", "fd00::/8 10.0.0.0/8", "10.0.0.0/8 " + own + " fd00::/8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := new(objs).addLocal("here", "192.168.0.11/24", ingress(ingressList(c.mesh)...)).
				add("k2", "192.168.0.12/24", "b.example", ingress(ingressList(c.link)...)).build(cluster1())
			if len(s.Peers) != 1 {
				t.Fatalf("problems %+v", s.Problems)
			}
			if got := ruleTexts(s.Peers[0].Ingress); got != c.want {
				t.Errorf("rules\n got %s\nwant %s", got, c.want)
			}
		})
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
		{"services unknown, denial", noServices, ingress("!10.0.0.0/8"), "!10.0.0.0/8 192.168.0.11/32"},
		{"services of both families", func(l *Local) { l.ServiceCIDRs = Prefixes{pfx("fd01::/112"), pfx("100.64.0.0/20")} },
			ingress(), "100.64.0.0/20 192.168.0.11/32 fd01::/112"},
		{"addresses of both families",
			func(l *Local) { l.Addresses = Prefixes{pfx("fd00::11/64"), pfx("192.168.0.11/24")} },
			ingress("!::/0"), "100.64.0.0/20 192.168.0.11/32 !::/0 fd00::11/128"},
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

func TestDecideIngress(t *testing.T) {
	for _, c := range []struct{ rules, network, want string }{
		{"", "10.0.0.0/8", "unknown"},
		{"10.0.0.0/8", "10.0.0.0/8", "allow"},
		{"10.0.0.0/8", "10.1.1.1/32", "allow"},
		{"10.0.0.0/8", "11.0.0.0/8", "unknown"},
		{"10.0.0.0/8", "8.0.0.0/6", "unknown"}, // a network around the rule is not covered by it
		{"!10.0.0.0/8", "10.1.1.1/32", "deny"},
		{"10.0.0.0/8 !10.1.0.0/16", "10.1.1.1/32", "deny"},
		{"!10.1.0.0/16 10.0.0.0/8", "10.1.1.1/32", "deny"},
		{"!10.0.0.0/8 10.1.0.0/16", "10.1.1.1/32", "allow"},
		{"10.1.0.0/16 !10.0.0.0/8", "10.1.1.1/32", "allow"},
		{"!10.0.0.0/8 10.1.0.0/16", "10.2.1.1/32", "deny"},
		{"10.0.0.0/8 !10.0.0.0/8", "10.1.1.1/32", "deny"},
		{"!10.0.0.0/8 10.0.0.0/8", "10.1.1.1/32", "deny"},
		{"0.0.0.0/0", "10.1.1.1/32", "allow"},
		{"0.0.0.0/0", "fd00::1/128", "unknown"},
		{"::/0", "10.1.1.1/32", "unknown"},
		{"!::/0 fd00::/8", "fd00::1/128", "allow"},
	} {
		rules, p := parseIngress(ingressList(c.rules))
		if p != nil {
			t.Fatalf("%+v", p)
		}
		allow, known := decideIngress(rules, pfx(c.network))
		if allow != (c.want == "allow") || known != (c.want != "unknown") {
			t.Errorf("%q says of %s: allow %v, known %v, want %s", c.rules, c.network, allow, known, c.want)
		}
	}
}

// The order of a list has no meaning.
func TestIngressOrder(t *testing.T) {
	rules, _ := parseIngress(ingressList("!10.0.0.0/8 10.1.0.0/16 !10.1.0.0/16 !10.1.1.0/24 10.1.1.1/32 fd00::/8"))
	m := &meshEntry{Mesh: Mesh{Addresses: pfxs("192.168.0.11/24")}, ingress: []Rule{{pfx("10.1.1.0/25"), false}}}
	want := effectiveIngress(rules, m)
	for range rules {
		rules = append(rules[1:len(rules):len(rules)], rules[0])
		checkEqual(t, "rules", ruleTexts(effectiveIngress(rules, m)), ruleTexts(want))
	}
}
