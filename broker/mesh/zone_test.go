package mesh

// Golden texts: which zones, clusters and global names a State has, and where their names come from.

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// zonesText lists zones with their clusters, a line each, and the notes of the objects.
func zonesText(s State, objects ...string) string {
	var b strings.Builder
	for _, z := range s.Zones {
		fmt.Fprintf(&b, "zone %s of mesh %q %s\n", z.Domain, z.Mesh, z.Networks)
		if g := z.Global; g.Name != "" {
			fmt.Fprintf(&b, "  global %s%s\n", g.Name, from(g.Upstream, g.Link))
		}
		for _, c := range z.Clusters {
			fmt.Fprintf(&b, "  %s %v services %s%s", c.Name, c.Addresses, c.Services, from(c.Upstream, c.Link))
			if c.API.Use {
				fmt.Fprintf(&b, " API %q secret %q", c.API.Server, c.API.Namespace+"/"+c.API.Secret)
			}
			fmt.Fprintf(&b, " as %s\n", c.ClusterDomain)
		}
	}
	for _, name := range objects {
		if note := s.Notes[name]; note != "" {
			fmt.Fprintf(&b, "note %s: %s\n", name, note)
		}
	}
	return b.String()
}

// from says where names come from, and which link leads there.
func from(upstream netip.AddrPort, link string) string {
	text := ""
	if upstream.IsValid() {
		text = " from " + upstream.String()
	}
	if link != "" {
		text += " through " + link
	}
	return text
}

func watchAPI(l *Local)  { l.Propagation = PropagateKubernetes }
func serveNone(l *Local) { l.Propagation = PropagateNone }
func omitted(l *v1alpha1.KubeLink) {
	l.Spec.DNS = &v1alpha1.KubeLinkDNS{OmitDNSPropagation: true, DNSIP: "10.1.1.1", BaseDomain: "x.example"}
}

func TestZones(t *testing.T) {
	const noDNS = "note k3: no DNS: the address of the cluster's DNS service is unknown; " +
		"set spec.dns.dnsIP, or spec.dns.omitDNSPropagation: true\n"
	const pairZone = `
zone kubelink. of mesh "" 192.168.0.0/24
  global svc.global.kubelink.
  kubelink1.kubelink. [192.168.0.11] services 100.64.0.0/20 from 100.64.0.10:53 as cluster.local.
  kubelink2.kubelink. [192.168.0.12] services 100.64.16.0/20 from 100.64.16.10:53 through kubelink2 as cluster.local.
`
	for _, c := range []struct {
		name  string
		local change
		objs  *objs
		want  string
	}{
		{"no mesh", nil, new(objs), ""},
		{"pair", nil, pair(), pairZone},
		{"propagation none", serveNone, pair(), ""},
		{"propagation none, mesh DNS nowhere", func(l *Local) { serveNone(l); l.MeshDNS = ip("10.1.1.1") }, pair(), ""},
		{"no domain", func(l *Local) { l.MeshDomain = "" }, pair(), ""},
		{"mesh without DNS", nil, pair().addLocal("m2--here", "192.168.9.11/24", omitted).
			add("m2--k3", "192.168.9.13/24", "c.example", dns("192.168.9.13", "")), pairZone},
		{"link without DNS", nil, third(omitted), pairZone},
		{"no service network", nil, third(), pairZone},
		{"service network too small", nil, third(cidr("100.64.32.0/30")), pairZone + noDNS},
		{"DNS service not routed", nil, third(cidr("100.64.32.0/20"), dns("10.1.1.1", "")), pairZone +
			"note k3: no DNS: spec.dns.dnsIP 10.1.1.1 is not routed to this link; add it to spec.egress\n"},
		{"DNS service of another link", nil, third(cidr("100.64.32.0/20"), dns("100.64.16.10", "")), pairZone +
			"note k3: no DNS: spec.dns.dnsIP 100.64.16.10 is not routed to this link; add it to spec.egress\n"},
		{"DNS service routed", nil, third(egress("10.1.0.0/16"), dns("10.1.1.1", "K8s.Example")), `
zone kubelink. of mesh "" 192.168.0.0/24
  global svc.global.kubelink.
  k3.kubelink. [192.168.0.13] services  from 10.1.1.1:53 through k3 as k8s.example.
` + strings.SplitAfterN(pairZone, "\n", 4)[3]},
		{"other mode", func(l *Local) { l.Mode = None }, third(dns("10.1.1.1", "")), `
zone kubelink. of mesh "" 192.168.0.0/24
  global svc.global.kubelink.
  k3.kubelink. [192.168.0.13] services  from 10.1.1.1:53 through k3 as cluster.local.
` + strings.SplitAfterN(pairZone, "\n", 4)[3]},
		{"local DNS service", func(l *Local) { l.ClusterDNS, l.ClusterDomain = ip("10.9.9.9"), "k8s.here." },
			new(objs).addLocal("Here", "192.168.0.11/24"), `
zone kubelink. of mesh "" 192.168.0.0/24
  global svc.global.kubelink.
  here.kubelink. [192.168.0.11] services 100.64.0.0/20 from 10.9.9.9:53 as k8s.here.
`},
		{"local DNS service unknown", noServices, new(objs).addLocal("here", "192.168.0.11/24"), `
zone kubelink. of mesh "" 192.168.0.0/24
  global svc.global.kubelink.
`},
		{"local service network too small", func(l *Local) { l.ServiceCIDRs = pfxs("100.64.0.0/29") },
			new(objs).addLocal("here", "192.168.0.11/24"), `
zone kubelink. of mesh "" 192.168.0.0/24
  global svc.global.kubelink.
`},
		{"stanza without cluster name", func(l *Local) { l.Addresses = pfxs("192.168.0.11/24") },
			new(objs).add("k2", "192.168.0.12/24", "b.example", cidr("100.64.16.0/20")), `
zone kubelink. of mesh "" 192.168.0.0/24
  global svc.global.kubelink.
  k2.kubelink. [192.168.0.12] services 100.64.16.0/20 from 100.64.16.10:53 through k2 as cluster.local.
`},
		{"two meshes by domain", nil, pair().addLocal("m2--here", "192.168.9.11/24", dns("100.64.16.53", "a.example")).
			add("m2--k3", "192.168.9.13/24", "c.example", cidr("100.64.32.0/20")), `
zone a.example. of mesh "m2" 192.168.9.0/24
  global svc.global.a.example. from 100.64.16.53:53 through kubelink2
  here.a.example. [192.168.9.11] services 100.64.0.0/20 from 100.64.0.10:53 as cluster.local.
  k3.a.example. [192.168.9.13] services 100.64.32.0/20 from 100.64.32.10:53 through m2--k3 as cluster.local.` +
			pairZone},
		{"API servers", watchAPI, third(cidr("100.64.32.0/20"), apiSecret("", "three")), `
zone kubelink. of mesh "" 192.168.0.0/24
  global svc.global.kubelink.
  k3.kubelink. [192.168.0.13] services 100.64.32.0/20 from 100.64.32.10:53 through k3 ` +
			`API "https://100.64.32.1" secret "/three" as cluster.local.
  kubelink1.kubelink. [192.168.0.11] services 100.64.0.0/20 from 100.64.0.10:53 API "" secret "/" as cluster.local.
  kubelink2.kubelink. [192.168.0.12] services 100.64.16.0/20 from 100.64.16.10:53 through kubelink2 as cluster.local.
note kubelink2: names come from the DNS service of the cluster, not from its API server: spec.apiAccess is not set
`},
		{"API servers, no service networks", func(l *Local) { watchAPI(l); noServices(l) },
			new(objs).addLocal("here", "192.168.0.11/24").add("k3", "192.168.0.13/24", "c.example", apiSecret("x", "three")), `
zone kubelink. of mesh "" 192.168.0.0/24
  global svc.global.kubelink.
  here.kubelink. [192.168.0.11] services  API "" secret "/" as cluster.local.
`},
		{"both families", func(l *Local) { inStanza(l); l.Addresses = append(l.Addresses, pfx("fd00::b/64")) },
			new(objs).add("six", "fd00::c/64", "c.example", cidr("fd02::/112")), `
zone kubelink. of mesh "" 192.168.0.0/24, fd00::/64
  global svc.global.kubelink.
  kubelink1.kubelink. [192.168.0.11 fd00::b] services 100.64.0.0/20 from 100.64.0.10:53 as cluster.local.
  six.kubelink. [fd00::c] services fd02::/112 from [fd02::a]:53 through six as cluster.local.
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.objs.build(changed(c.local))
			checkEqual(t, "problems", s.Problems, map[string]Problem{})
			checkText(t, zonesText(s, "kubelink1", "kubelink2", "k3"), c.want)
		})
	}
}

// TestGlobalNotes has the whole messages; TestGlobalZone has the places of the mesh DNS service.
func TestGlobalNotes(t *testing.T) {
	long := strings.TrimSuffix(strings.Repeat("a.", 122), ".")
	const nowhere = "no global names: the mesh DNS address %s (spec.dns.dnsIP) is neither in this cluster " +
		"nor routed to a link; add it to spec.egress of the link that leads there"
	for _, c := range []struct{ name, dns, domain, want string }{
		{"nowhere", "10.1.1.1", "", fmt.Sprintf(nowhere, "10.1.1.1")},
		{"in the mesh, but of no cluster", "192.168.0.99", "", fmt.Sprintf(nowhere, "192.168.0.99")},
		{"IPv6", "fd00::1", "", fmt.Sprintf(nowhere, "fd00::1")},
		{"the local address", "192.168.0.11", "", ""},
		{"in the local service network", "100.64.0.99", "", ""},
		{"in the local pod network", "100.96.0.1", "", ""},
		{"on a local node", "10.250.0.1", "", ""},
		{"too long", "", long, "no global names: svc.global." + long +
			".: a domain name has 1 to 253 characters, this one has 254"},
		{"just fits", "", "a" + long[2:], ""},
	} {
		s := new(objs).addLocal("here", "192.168.0.11/24", dns(c.dns, c.domain)).build(cluster1())
		checkEqual(t, c.name, s.Notes["here"], c.want)
		checkEqual(t, c.name+": there are global names", s.Zones[0].Global.Name != "", c.domain != long)
	}
}
