package mesh

// Golden texts: what a whole State leads where.

import (
	"fmt"
	"strings"
	"testing"
)

// trafficText lists peers, routes and local networks of a State, a line each.
func trafficText(s State) string {
	var b strings.Builder
	for _, p := range s.Peers {
		fmt.Fprintf(&b, "peer %s %s at %s:%d", p.Link, p.Addresses, p.Host, p.Port)
		fmt.Fprintf(&b, ", hello %s services %s\n", p.Local, p.Services)
		fmt.Fprintf(&b, "  networks %s\n  ingress %s\n", Prefixes(p.Networks), ruleTexts(p.Ingress))
	}
	for _, r := range s.Routes {
		fmt.Fprintf(&b, "route %s from %s\n", r.Destination, r.Source)
	}
	for _, l := range s.Links {
		fmt.Fprintf(&b, "link %s of cluster %s in mesh %q through %q\n", l.Name, l.Cluster, l.Mesh, l.Peer)
	}
	return b.String() + "local " + Prefixes(s.Local).String() + "\n"
}

// checkText compares lines; the first line of want is empty, so that a text begins below its name.
func checkText(t *testing.T, got, want string) {
	t.Helper()
	if want = strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTraffic(t *testing.T) {
	dual := func(l *Local) {
		l.Addresses, l.ClusterName = Prefixes{pfx("192.168.0.11/24"), pfx("fd00::b/64")}, "here"
		l.ServiceCIDRs = Prefixes{pfx("100.64.0.0/20"), pfx("fd01::/112")}
		l.PodCIDRs, l.NodeCIDRs = nil, nil
	}
	for _, c := range []struct {
		name  string
		local change
		objs  *objs
		want  string
	}{
		{"nothing", nil, new(objs), `
local 10.250.0.0/16, 100.64.0.0/20, 100.96.0.0/11
`},
		{"no links", nil, new(objs).addLocal("here", "192.168.0.11/24"), `
route 192.168.0.0/24 from 192.168.0.11
local 10.250.0.0/16, 100.64.0.0/20, 100.96.0.0/11, 192.168.0.0/24
`},
		{"three clusters", nil, third(cidr("100.64.32.0/20"), endpoint("203.0.113.3:4443"), ingress("10.250.0.0/16")), `
peer k3 192.168.0.13/24 at 203.0.113.3:4443, hello 192.168.0.11/24 services 100.64.0.0/20
  networks 100.64.32.0/20, 192.168.0.13/32
  ingress 10.250.0.0/16 192.168.0.11/32
peer kubelink2 192.168.0.12/24 at kubelink.two.example:80, hello 192.168.0.11/24 services 100.64.0.0/20
  networks 100.64.16.0/20, 192.168.0.12/32
  ingress 100.64.0.0/20 192.168.0.11/32
route 100.64.16.0/20 from 192.168.0.11
route 100.64.32.0/20 from 192.168.0.11
route 192.168.0.0/24 from 192.168.0.11
link k3 of cluster k3 in mesh "" through "k3"
link kubelink2 of cluster kubelink2 in mesh "" through "kubelink2"
local 10.250.0.0/16, 100.64.0.0/20, 100.96.0.0/11, 192.168.0.0/24
`},
		{"a gateway", nil, third(cidr("100.64.32.0/20"), via("kubelink2"), egress("10.0.0.0/8", "192.168.0.77/32")), `
peer kubelink2 192.168.0.12/24 at kubelink.two.example:80, hello 192.168.0.11/24 services 100.64.0.0/20
  networks 10.0.0.0/8, 100.64.16.0/20, 100.64.32.0/20, 192.168.0.12/32, 192.168.0.13/32, 192.168.0.77/32
  ingress 100.64.0.0/20 192.168.0.11/32
route 10.0.0.0/8 from 192.168.0.11
route 100.64.16.0/20 from 192.168.0.11
route 100.64.32.0/20 from 192.168.0.11
route 192.168.0.0/24 from 192.168.0.11
link k3 of cluster k3 in mesh "" through "kubelink2"
link kubelink2 of cluster kubelink2 in mesh "" through "kubelink2"
local 10.250.0.0/16, 100.64.0.0/20, 100.96.0.0/11, 192.168.0.0/24
`},
		{"two meshes, one without service network", noServices, new(objs).
			addLocal("m2--here", "192.168.9.11/24", ingress("10.250.0.0/16")).
			addLocal("here", "192.168.0.11/24", cidr("100.65.0.0/20")).
			add("m2--two", "192.168.9.12/24", "two.example", egress("10.9.0.0/16")).
			add("two", "192.168.0.12/24", "two.example", egress("10.8.0.0/16", "10.8.1.0/24")), `
peer m2--two 192.168.9.12/24 at two.example:80, hello 192.168.9.11/24 services 
  networks 10.9.0.0/16, 192.168.9.12/32
  ingress 10.250.0.0/16 192.168.9.11/32
peer two 192.168.0.12/24 at two.example:80, hello 192.168.0.11/24 services 100.65.0.0/20
  networks 10.8.0.0/16, 10.8.1.0/24, 192.168.0.12/32
  ingress 100.65.0.0/20 192.168.0.11/32
route 10.8.0.0/16 from 192.168.0.11
route 10.8.1.0/24 from 192.168.0.11
route 10.9.0.0/16 from 192.168.9.11
route 192.168.0.0/24 from 192.168.0.11
route 192.168.9.0/24 from 192.168.9.11
link m2--two of cluster two in mesh "m2" through "m2--two"
link two of cluster two in mesh "" through "two"
local 10.250.0.0/16, 100.65.0.0/20, 100.96.0.0/11, 192.168.0.0/24, 192.168.9.0/24
`},
		{"both families", dual, new(objs).
			add("four", "192.168.0.12/24", "203.0.113.2", cidr("100.64.16.0/20")).
			add("six", "fd00::c/64", "[2001:db8::c]", cidr("fd02::/112"), egress("fd00::77/128", "fd09::/64")), `
peer four 192.168.0.12/24 at 203.0.113.2:80, hello 192.168.0.11/24, fd00::b/64 services 100.64.0.0/20, fd01::/112
  networks 100.64.16.0/20, 192.168.0.12/32
  ingress 100.64.0.0/20 192.168.0.11/32 fd00::b/128 fd01::/112
peer six fd00::c/64 at 2001:db8::c:80, hello 192.168.0.11/24, fd00::b/64 services 100.64.0.0/20, fd01::/112
  networks fd00::c/128, fd00::77/128, fd02::/112, fd09::/64
  ingress 100.64.0.0/20 192.168.0.11/32 fd00::b/128 fd01::/112
route 100.64.16.0/20 from 192.168.0.11
route 192.168.0.0/24 from 192.168.0.11
route fd00::/64 from fd00::b
route fd02::/112 from fd00::b
route fd09::/64 from fd00::b
link four of cluster four in mesh "" through "four"
link six of cluster six in mesh "" through "six"
local 100.64.0.0/20, 192.168.0.0/24, fd00::/64, fd01::/112
`},
		{"no traffic", func(l *Local) { l.Mode = None }, third(via("kubelink2")), `
link k3 of cluster k3 in mesh "" through ""
link kubelink2 of cluster kubelink2 in mesh "" through ""
local 10.250.0.0/16, 100.64.0.0/20, 100.96.0.0/11, 192.168.0.0/24
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.objs.build(changed(c.local))
			checkEqual(t, "problems", s.Problems, map[string]Problem{})
			checkText(t, trafficText(s), c.want)
		})
	}
}

// A network that two properties of the local cluster name is there once.
func TestLocalNetworksOnce(t *testing.T) {
	s := new(objs).build(changed(func(l *Local) { l.NodeCIDRs, l.PodCIDRs = l.ServiceCIDRs, nil }))
	checkEqual(t, "local networks", Prefixes(s.Local), pfxs("100.64.0.0/20"))
}
