package mesh

// Names of other clusters: which clusters have none, and where the names come from.

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// TestClusterName: a cluster whose name cannot be a name of the mesh has a link, but no names.
func TestClusterName(t *testing.T) {
	label := strings.Repeat("a", 63)
	for _, c := range []struct{ cluster, zone, note string }{
		{"two", "two.kubelink.", ""},
		{"TWO", "two.kubelink.", ""},
		{"a.b", "a.b.kubelink.", ""},
		{"globals", "globals.kubelink.", ""},
		{"svc", "svc.kubelink.", ""},
		{label, label + ".kubelink.", ""},
		{"global", "", "no DNS: global.kubelink is reserved for global names; use another name for the cluster"},
		{"x.Global", "", "no DNS: x.global.kubelink is reserved for global names; use another name for the cluster"},
		{"dns", "dns.kubelink.", ""},
		{"ns.dns", "", "no DNS: ns.dns.kubelink is the name of the mesh's name server; use another name for the cluster"},
		{"svc.global", "", "no DNS: svc.global.kubelink is reserved for global names; use another name for the cluster"},
		{"m2", "", "no DNS: m2.kubelink is the domain of mesh m2; use another name for the cluster, " +
			"or another spec.dns.baseDomain there"},
		{"M2", "", "no DNS: m2.kubelink is the domain of mesh m2; use another name for the cluster, " +
			"or another spec.dns.baseDomain there"},
		{label + "a", "", "no DNS: " + label + `a.kubelink.: label "` + label + `a": a label has 1 to 63 characters`},
		{"a_b.", "", `no DNS: a_b..kubelink.: label "": a label has 1 to 63 characters`},
		{"a b", "", `no DNS: a b.kubelink.: label "a b": ' ' is not a letter, digit, - or _`},
	} {
		t.Run(c.cluster, func(t *testing.T) {
			s := new(objs).addLocal("here", "192.168.0.11/24").
				add(c.cluster, "192.168.0.12/24", "b.example", cidr("100.64.16.0/20")).
				addLocal("m2--here", "192.168.9.11/24", dns("", "m2.kubelink")).build(cluster1())
			zone := ""
			for _, z := range s.Zones[0].Clusters {
				if z.Link == c.cluster {
					zone = z.Name
				}
			}
			checkEqual(t, "zone", zone, c.zone)
			checkEqual(t, "notes", s.Notes[c.cluster], c.note)
			checkEqual(t, "peers", len(s.Peers), 1)
		})
	}
}

// TestLocalClusterName: the same for the local cluster, told at its LocalLink.
func TestLocalClusterName(t *testing.T) {
	for _, c := range []struct{ cluster, note string }{
		{"here", ""},
		{"global", "no DNS for the local cluster: global.kubelink is reserved for global names; use another name for it"},
		{"ns.dns", "no DNS for the local cluster: ns.dns.kubelink is the name of the mesh's name server; " +
			"use another name for it"},
		{"a.global", "no DNS for the local cluster: a.global.kubelink is reserved for global names; use another name for it"},
		{"m2", "no DNS for the local cluster: m2.kubelink is the domain of mesh m2; use another name for it"},
	} {
		s := new(objs).addLocal("m2--here", "192.168.9.11/24", dns("", "m2.kubelink")).
			addLocal(c.cluster, "192.168.0.11/24").build(cluster1())
		checkEqual(t, c.cluster, s.Notes[c.cluster], c.note)
		checkEqual(t, c.cluster+": clusters", len(s.Zones[0].Clusters), len(s.Zones[1].Clusters)-min(1, len(c.note)))
	}
}

func TestAPIAccessErrors(t *testing.T) {
	secret := &corev1.SecretReference{Namespace: "n", Name: "s"}
	for _, c := range []struct {
		name     string
		access   *corev1.SecretReference
		services Prefixes
		server   string
		says     string
	}{
		{"no secret", nil, pfxs("100.64.16.0/20"), "", "spec.apiAccess is not set"},
		{"no name", &corev1.SecretReference{Namespace: "n"}, pfxs("100.64.16.0/20"), "",
			"spec.apiAccess.name is missing; set it to the name of the secret"},
		{"no network", secret, nil, "", "spec.cidr is missing, whose first address is that of the API server"},
		{"one address", secret, pfxs("100.64.16.7/32"), "",
			"spec.cidr 100.64.16.7/32 is too small to have an address for the API server"},
		{"two addresses", secret, pfxs("100.64.16.6/31"), "https://100.64.16.7", ""},
		{"IPv4", secret, pfxs("100.64.16.0/20"), "https://100.64.16.1", ""},
		{"IPv6", secret, pfxs("fd02::/112"), "https://[fd02::1]", ""},
		{"the first family", secret, Prefixes{pfx("fd02::/112"), pfx("100.64.16.0/20")}, "https://[fd02::1]", ""},
	} {
		got, err := apiAccess(&v1alpha1.KubeLinkSpec{APIAccess: c.access}, c.services)
		checkError(t, c.name, err, c.says)
		want := API{Server: c.server, Namespace: "n", Secret: "s", Use: true}
		if c.server == "" {
			want = API{}
		}
		checkEqual(t, c.name, got, want)
	}
}

// TestAPINotes: a user is told why names do not come from where the configuration says.
func TestAPINotes(t *testing.T) {
	const (
		unused = "spec.apiAccess is not used: it is for dns-propagation kubernetes"
		fromIP = "names come from the DNS service of the cluster, not from its API server: "
		noDNS  = "no DNS: the address of the cluster's DNS service is unknown; " +
			"set spec.dns.dnsIP, or spec.dns.omitDNSPropagation: true"
	)
	for _, c := range []struct {
		name  string
		local change
		mods  []mod
		want  string
	}{
		{"dns, none", nil, []mod{cidr("100.64.32.0/20")}, ""},
		{"dns, secret", nil, []mod{cidr("100.64.32.0/20"), apiSecret("", "s")}, unused},
		{"dns, announced secret", nil, []mod{cidr("100.64.32.0/20"), apiSecret("", AnnouncedSecret+"x")}, ""},
		{"dns, secret and no DNS service", nil, []mod{cidr("100.64.32.0/30"), apiSecret("", "s")}, unused + "; " + noDNS},
		{"dns, secret and no service network", nil, []mod{apiSecret("", "s")}, unused},
		{"no names at all", serveNone, []mod{apiSecret("", "s")}, ""},
		{"no names of the cluster", nil, []mod{apiSecret("", "s"), omitted}, ""},
		{"kubernetes, no secret", watchAPI, []mod{cidr("100.64.32.0/20")}, fromIP + "spec.apiAccess is not set"},
		{"kubernetes, no network", watchAPI, []mod{dns("192.168.0.13", ""), apiSecret("", "s")},
			fromIP + "spec.cidr is missing, whose first address is that of the API server"},
		{"kubernetes, nothing", watchAPI, nil, ""},
		{"mode none, nothing", func(l *Local) { l.Mode = None }, nil, noDNS},
		{"kubernetes, secret", watchAPI, []mod{cidr("100.64.32.0/20"), apiSecret("", "s")}, ""},
		{"kubernetes, DNS service not routed", watchAPI,
			[]mod{cidr("100.64.32.0/20"), apiSecret("", "s"), dns("10.1.1.1", "")}, ""},
		{"kubernetes, DNS service not routed, no secret", watchAPI, []mod{cidr("100.64.32.0/20"), dns("10.1.1.1", "")},
			"no DNS: spec.dns.dnsIP 10.1.1.1 is not routed to this link; add it to spec.egress"},
	} {
		s := third(c.mods...).build(changed(c.local))
		checkProblem(t, s, "k3", "")
		checkEqual(t, c.name, s.Notes["k3"], c.want)
	}
}

// Every mesh domain is closed to the domains that clusters use for themselves, that of a younger mesh, too.
func TestClusterDomainsOfMeshes(t *testing.T) {
	for domain, mesh := range map[string]string{
		"kubelink": "kubelink", "x.m2.example": "m2.example", "m2.example": "m2.example", "example": "", "m3.example": "",
	} {
		s := third(dns("192.168.0.13", domain)).addLocal("m2--here", "192.168.9.11/24", dns("", "m2.example")).
			addLocal("m3--here", "192.168.8.11/24", omitDNS).build(cluster1())
		want := ""
		if mesh != "" {
			want = `Invalid: spec.dns.baseDomain "` + domain + `": it lies in the mesh domain ` + mesh +
				", but is the domain that the cluster uses for itself, such as cluster.local"
		}
		checkProblem(t, s, "k3", want)
	}
}
