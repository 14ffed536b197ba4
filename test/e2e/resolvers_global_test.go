package e2e

// The global names of TestResolvers: objects in the first cluster, and the answers that resolvers must get.

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
)

const global = "svc.global.kubelink"

// deadAddress is an address behind the link to a cluster that does not exist.
const deadAddress = "100.64.240.5"

// longText is the data of a TXT record with three strings.
var longText = strings.Repeat("all that is to be said ", 25)

// createGlobals creates the objects: fully qualified names, a zone with two names, and a zone inside of it.
func createGlobals(t *testing.T, ctx context.Context, internet netip.Addr) {
	t.Helper()
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name}
	}
	three := int32(3)
	createForTest(t, ctx, brokers[0], &coredns.HostedZone{ObjectMeta: meta("shop"), Spec: coredns.HostedZoneSpec{
		DomainNames: []coredns.DomainName{"shop." + global, "Store." + global}, EMail: "dns.admin@example.com",
		Refresh: 100, Retry: 10, Expire: 1000, MinimumTTL: &three,
	}})
	createForTest(t, ctx, brokers[0], &coredns.HostedZone{ObjectMeta: meta("cellar"), Spec: coredns.HostedZoneSpec{
		ParentRef: "shop", DomainNames: []coredns.DomainName{"cellar"},
	}})

	n := 0
	entry := func(names string, spec coredns.CoreDNSEntrySpec) {
		for name := range strings.FieldsSeq(names) {
			if spec.ZoneRef == "" {
				name += "." + global
			}
			spec.DNSNames = append(spec.DNSNames, coredns.DNSName(name))
		}
		n++
		createForTest(t, ctx, brokers[0], &coredns.CoreDNSEntry{ObjectMeta: meta(fmt.Sprintf("entry-%d", n)), Spec: spec})
	}
	addresses := func(addrs ...string) (spec coredns.CoreDNSEntrySpec) {
		for _, a := range addrs {
			spec.A = append(spec.A, coredns.IPv4Address(a))
		}
		return spec
	}
	alias := func(target string) coredns.CoreDNSEntrySpec { return coredns.CoreDNSEntrySpec{CNAME: target} }

	web := addresses(servers[0].service.String(), servers[1].service.String())
	web.AAAA = []coredns.IPv6Address{"fd00:64::80"}
	entry("web WWW", web)
	entry("text", coredns.CoreDNSEntrySpec{TXT: []coredns.Text{"short", coredns.Text(longText),
		`quoted "and" back\slash`}})
	entry("directory", coredns.CoreDNSEntrySpec{SRV: &coredns.Service{Service: "ldap", Records: []coredns.SRVRecord{
		{Protocol: "TCP", Priority: 1, Weight: 2, Port: 389, Host: "web." + global},
		{Protocol: "TCP", Priority: 2, Weight: 1, Port: 636, Host: "server.default.svc.kubelink2.kubelink"},
		{Protocol: "UDP", Port: 389, Host: "www.outside.example"},
	}}})
	entry("alias", alias("web."+global))
	entry("chain", alias("Alias."+global))
	entry("broken", alias("nobody."+global))
	entry("circle-a", alias("circle-b."+global))
	entry("circle-b", alias("circle-a."+global))
	entry("itself", alias("itself."+global))
	entry("across", alias("server.default.svc.kubelink2.kubelink"))
	entry("twice", alias("across.default.svc.kubelink2.kubelink"))
	entry("lost", alias("nobody.default.svc.kubelink2.kubelink"))
	entry("dead", alias("server.default.svc.absent.kubelink"))
	entry("outside", alias("www.outside.example"))
	entry("*.wild", addresses("192.0.2.1"))
	entry("exact.wild leaf.inner.wild", addresses("192.0.2.2"))
	entry("*.astray", alias("web."+global))
	entry("leaf.a.b.deep", addresses("192.0.2.3"))
	entry("branch", coredns.CoreDNSEntrySpec{NS: []coredns.NameServer{"ns.branch." + global}})
	entry("ns.branch", addresses(internet.String()))
	entry("unreachable", addresses(deadAddress))
	entry("partly", addresses(deadAddress, servers[0].service.String()))
	var many coredns.CoreDNSEntrySpec
	for i := range 100 {
		many.A = append(many.A, coredns.IPv4Address(fmt.Sprintf("192.0.2.%d", 100+i)))
	}
	entry("many", many)

	inShop := func(spec coredns.CoreDNSEntrySpec) coredns.CoreDNSEntrySpec {
		spec.ZoneRef = "shop"
		return spec
	}
	entry("@", inShop(addresses("192.0.2.10")))
	entry("till Till-2", inShop(addresses("192.0.2.11")))
	entry("counter", inShop(alias("till")))
	entry("*.shelf", inShop(addresses("192.0.2.12")))
	wine := coredns.CoreDNSEntrySpec{TXT: []coredns.Text{"red"}}
	wine.ZoneRef = "cellar"
	entry("wine", wine)
}

// globalTable has the expected answers for global names, in every cluster.
func globalTable() []row {
	in := func(name string) string { return name + "." + global }
	web := []string{"A " + servers[0].service.String(), "A " + servers[1].service.String()}
	at := func(name string, records ...string) (owned []string) {
		for _, r := range records {
			owned = append(owned, in(name)+". "+r)
		}
		return owned
	}
	with := func(first string, more ...string) []string { return append([]string{first}, more...) }
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("A 192.0.2.%d", 100+i))
	}
	broken := nxdomain(in("broken")+" A", global)
	broken.want.answer = withOwners(broken.question, []string{"CNAME " + in("nobody") + "."})
	lost := nxdomain(in("lost")+" A", "kubelink2.kubelink")
	lost.want.answer = withOwners(lost.question, []string{"CNAME nobody.default.svc.kubelink2.kubelink."})
	soa := "SOA ns.dns.kubelink. hostmaster.kubelink. 0 7200 1800 86400 5"
	shopSOA := `SOA ns.dns.kubelink. dns\.admin.example.com. 0 100 10 1000 3`
	server := "server.default.svc.kubelink2.kubelink. A " + servers[1].service.String()
	return []row{
		// The zone.
		answer(global+" SOA", soa),
		answer(global+" NS", "NS ns.dns.kubelink."),
		nodata(global+" A", global),
		nodata("global.kubelink A", "kubelink"),
		nxdomain("svc.kubelink A", "kubelink"),
		nxdomain(in("nobody")+" A", global),
		nxdomain(in("NoBody")+" TXT", global),
		nxdomain(in("x.web")+" A", global),

		// Records.
		answer(in("web")+" A", web...),
		answer(in("www")+" A", web...),
		answer(in("wEb")+" A", web...),
		answer(in("web")+" AAAA", "AAAA fd00:64::80"),
		nodata(in("web")+" TXT", global),
		nodata(in("web")+" HTTPS", global),
		nodata(in("web")+" CNAME", global),
		answer(in("text")+" TXT", `TXT "short"`,
			fmt.Sprintf("TXT %q %q %q", longText[:255], longText[255:510], longText[510:]),
			`TXT "quoted \"and\" back\\slash"`).largerThan(512),
		nodata(in("text")+" A", global),
		answer(in("_ldap._tcp.directory")+" SRV", "SRV 1 2 389 "+in("web")+".",
			"SRV 2 1 636 server.default.svc.kubelink2.kubelink."),
		answer(in("_LDAP._udp.Directory")+" SRV", "SRV 0 0 389 www.outside.example."),
		nodata(in("directory")+" SRV", global),
		nodata(in("_tcp.directory")+" A", global),
		nxdomain(in("_http._tcp.directory")+" SRV", global),
		answer(in("many")+" A", many...).largerThan(1232),
		nodata(in("deep")+" A", global),
		nodata(in("a.b.deep")+" TXT", global),
		answer(in("leaf.a.b.deep")+" A", "A 192.0.2.3"),
		nxdomain(in("x.a.b.deep")+" A", global),

		// Aliases.
		answer(in("alias")+" A", with("CNAME "+in("web")+".", at("web", web...)...)...),
		answer(in("alias")+" AAAA", with("CNAME "+in("web")+".", at("web", "AAAA fd00:64::80")...)...),
		answer(in("alias")+" CNAME", "CNAME "+in("web")+"."),
		answer(in("Chain")+" A",
			with("CNAME "+in("alias")+".", append(at("alias", "CNAME "+in("web")+"."), at("web", web...)...)...)...),
		broken,
		servfail(in("circle-a")+" A", "circle"),
		servfail(in("itself")+" AAAA", "circle"),
		answer(in("circle-a")+" CNAME", "CNAME "+in("circle-b")+"."),
		answer(in("across")+" A", "CNAME server.default.svc.kubelink2.kubelink.", server),
		answer(in("twice")+" A", "CNAME across.default.svc.kubelink2.kubelink.",
			"across.default.svc.kubelink2.kubelink. CNAME server.default.svc.kubelink3.kubelink.",
			"server.default.svc.kubelink3.kubelink. A "+servers[2].service.String()),
		lost,
		servfail(in("dead")+" A", "link absent is Down"),
		answer(in("outside")+" A", "CNAME www.outside.example.").resolvedAs("www.outside.example. A 192.0.2.80"),

		// Wildcards (RFC 4592).
		answer(in("any.wild")+" A", "A 192.0.2.1"),
		answer(in("Any.Thing.Wild")+" A", "A 192.0.2.1"),
		answer(in("*.wild")+" A", "A 192.0.2.1"),
		nodata(in("any.wild")+" TXT", global),
		answer(in("exact.wild")+" A", "A 192.0.2.2"),
		nodata(in("exact.wild")+" AAAA", global),
		nxdomain(in("x.exact.wild")+" A", global),
		nodata(in("inner.wild")+" A", global), // the wildcard does not cover an empty non-terminal
		nxdomain(in("x.inner.wild")+" A", global),
		nodata(in("wild")+" A", global),
		answer(in("any.astray")+" A", with("CNAME "+in("web")+".", at("web", web...)...)...),
		answer(in("any.astray")+" CNAME", "CNAME "+in("web")+"."),

		// A delegation. Resolvers find its names on their own.
		referral(in("desk.branch")+" A", in("branch"), in("ns.branch")+".").resolvedAs("A 192.0.2.81"),
		referral(in("Desk.Branch")+" TXT", in("branch"), in("ns.branch")+".").resolvedAs(`TXT "of the branch"`),
		referral(in("branch")+" NS", in("branch"), in("ns.branch")+".").resolvedAs("NS " + in("ns.branch") + "."),
		nodata(in("branch")+" DS", global),

		// Addresses behind a link that is not usable.
		servfail(in("unreachable")+" A", "link absent is Down"),
		answer(in("partly")+" A", web[0]),

		// Zones inside.
		answer(in("shop")+" SOA", shopSOA),
		answer(in("store")+" SOA", shopSOA),
		answer(in("shop")+" NS", "NS ns.dns.kubelink."),
		answer(in("shop")+" A", "A 192.0.2.10"),
		answer(in("store")+" A", "A 192.0.2.10"),
		nodata(in("shop")+" TXT", in("shop")),
		nodata(in("shop")+" DS", global),
		answer(in("till.shop")+" A", "A 192.0.2.11"),
		answer(in("till-2.store")+" A", "A 192.0.2.11"),
		answer(in("counter.shop")+" A", "CNAME "+in("till.shop")+".", in("till.shop")+". A 192.0.2.11"),
		answer(in("counter.store")+" A", "CNAME "+in("till.store")+".", in("till.store")+". A 192.0.2.11"),
		answer(in("x.shelf.store")+" A", "A 192.0.2.12"),
		nodata(in("x.shelf.store")+" TXT", in("store")),
		nxdomain(in("nobody.shop")+" A", in("shop")),
		answer(in("cellar.shop")+" SOA", soa),
		answer(in("wine.cellar.shop")+" TXT", `TXT "red"`),
		answer(in("WINE.Cellar.Store")+" TXT", `TXT "red"`),
		nodata(in("wine.cellar.store")+" A", in("cellar.store")),
		nxdomain(in("beer.cellar.store")+" A", in("cellar.store")),
	}
}
