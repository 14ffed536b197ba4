package zone

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// offering are clusters of which kubelink1, the local one, and kubelink2 offer mesh services. No service network of
// kubelink2 is routed here, and no DNS service of it.
func offering(upstream netip.AddrPort) []mesh.Zone {
	z := clusters(upstream)
	z[0].Clusters[2].Services, z[0].Clusters[2].Upstream = nil, netip.AddrPort{}
	address := netip.MustParseAddr
	http := mesh.OfferPort{Name: "http", Protocol: 6, Port: 80}
	z[0].Clusters[1].Offers = []mesh.Offer{
		{Namespace: "default", Name: "own", Address: address("192.168.0.101"), Whole: true}}
	z[0].Clusters[2].Offers = []mesh.Offer{
		{Namespace: "default", Name: "echo", StandsFor: "web", Address: address("192.168.0.102"), Whole: true,
			Ports: []mesh.OfferPort{http, {Name: "dns", Protocol: 17, Port: 53}}},
		{Namespace: "default", Name: "echo6", StandsFor: "web", Address: address("fd00::102"), Whole: true},
		{Namespace: "default", Name: "Ports", Address: address("192.168.0.12"),
			Ports: []mesh.OfferPort{{Protocol: 6, Port: 8080}, {Name: "admin", Protocol: 6, Port: 8081}}},
		{Namespace: "other", Name: "a.b", Address: address("192.168.0.102")},
		{Namespace: "default", Name: strings.Repeat("x.", 120) + "x", Address: address("192.168.0.103"), Whole: true},
	}
	return z
}

func TestMeshServices(t *testing.T) {
	var asked atomic.Int64
	table := New(nil, offering(serve(t, clusterDNS(t, &asked))), up, cachingOptions())
	defer table.Close()
	const soa = "kubelink2.kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /"
	const msvc = ".msvc.kubelink2.kubelink."
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string
		why   string
	}{
		{"echo.default" + msvc, dns.TypeA, 0, "echo.default" + msvc + " 5 IN A 192.168.0.102 / / /", ""},
		{"ECHO.default" + msvc, dns.TypeA, 0, "ECHO.default" + msvc + " 5 IN A 192.168.0.102 / / /", ""},
		{"echo.default" + msvc, dns.TypeAAAA, 0, "/ " + soa, ""},
		{"echo6.default" + msvc, dns.TypeAAAA, 0, "echo6.default" + msvc + " 5 IN AAAA fd00::102 / / /", ""},
		{"_http._tcp.echo.default" + msvc, dns.TypeSRV, 0, "_http._tcp.echo.default" + msvc + " 5 IN SRV 0 100 80 " +
			"echo.default" + msvc + " / / echo.default" + msvc + " 5 IN A 192.168.0.102 /", ""},
		{"_dns._udp.echo.default" + msvc, dns.TypeSRV, 0, "_dns._udp.echo.default" + msvc + " 5 IN SRV 0 100 53 " +
			"echo.default" + msvc + " / / echo.default" + msvc + " 5 IN A 192.168.0.102 /", ""},
		{"_tcp.echo.default" + msvc, dns.TypeSRV, 0, "/ " + soa, ""},
		{"_dns._tcp.echo.default" + msvc, dns.TypeSRV, dns.RcodeNameError, "/ " + soa,
			"what link kubelink2 offers as default/echo has no port with the name and protocol dns/tcp"},
		{"ports.default" + msvc, dns.TypeSRV, 0, "ports.default" + msvc + " 5 IN SRV 0 100 8080 ports.default" + msvc +
			" ports.default" + msvc + " 5 IN SRV 0 100 8081 ports.default" + msvc + " / / ports.default" + msvc +
			" 5 IN A 192.168.0.12 /", ""},
		{"a.b.other" + msvc, dns.TypeA, 0, "a.b.other" + msvc + " 5 IN A 192.168.0.102 / / /", ""},
		{"b.other" + msvc, dns.TypeA, 0, "/ " + soa, ""},
		{"other" + msvc, dns.TypeA, 0, "/ " + soa, ""},
		{msvc[1:], dns.TypeA, 0, "/ " + soa, ""},
		{"nothing" + msvc, dns.TypeA, dns.RcodeNameError, "/ " + soa, "names of services are SERVICE.NAMESPACE" + msvc},
		{"web.default" + msvc, dns.TypeA, dns.RcodeNameError, "/ " + soa,
			"link kubelink2 offers no mesh service default/web"},

		// They stand for the services of a cluster whose service network is not routed.
		{web, dns.TypeA, 0, web + " 5 IN A 192.168.0.102 / / /", ""},
		{web, dns.TypeAAAA, 0, web + " 5 IN AAAA fd00::102 / / /", ""},
		{"_http._tcp." + web, dns.TypeSRV, 0, "_http._tcp." + web + " 5 IN SRV 0 100 80 " + web + " / / " + web +
			" 5 IN A 192.168.0.102 " + web + " 5 IN AAAA fd00::102 /", ""},
		{"db.default.svc.kubelink2.kubelink.", dns.TypeA, dns.RcodeNameError, "/ " + soa,
			"no service network of link kubelink2 is routed here, and it offers no mesh service for default/db"},
		{"web-0." + web, dns.TypeA, dns.RcodeNameError, "/ " + soa,
			"mesh services have no names of endpoints: ask for " + web},
		{"web-0.echo.default" + msvc, dns.TypeA, dns.RcodeNameError, "/ " + soa,
			"mesh services have no names of endpoints: ask for echo.default" + msvc},

		{"own.default.msvc.kubelink1.kubelink.", dns.TypeA, 0,
			"own.default.msvc.kubelink1.kubelink. 5 IN A 192.168.0.101 / / /", ""},

		{"102.0.168.192.in-addr.arpa.", dns.TypePTR, 0, "102.0.168.192.in-addr.arpa. 5 IN PTR echo.default" + msvc +
			" 102.0.168.192.in-addr.arpa. 5 IN PTR a.b.other" + msvc + " / / /", ""},
		{"12.0.168.192.in-addr.arpa.", dns.TypePTR, 0, "12.0.168.192.in-addr.arpa. 5 IN PTR kubelink2.kubelink. / / /", ""},
		{"101.0.168.192.in-addr.arpa.", dns.TypePTR, 0,
			"101.0.168.192.in-addr.arpa. 5 IN PTR own.default.msvc.kubelink1.kubelink. / / /", ""},
	} {
		m, err := queryTable(t, table, c.name, c.qtype, false, 1232)
		_, why := ede(m)
		if err != nil || m.Rcode != c.rcode || sections(m) != c.want || why != c.why {
			t.Errorf("%s %s: %v, %v, %q\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], m.MsgHdr, err, why,
				sections(m), c.want)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("a DNS service was asked %d times", n)
	}
	// A service network that is routed has names of its own.
	z := offering(serve(t, clusterDNS(t, &asked)))
	z[0].Clusters[2].Services = mesh.Prefixes{netip.MustParsePrefix("100.64.16.0/20")}
	z[0].Clusters[2].Upstream = z[0].Clusters[1].Upstream
	routed := New(table, z, up, cachingOptions())
	defer routed.Close()
	if m, _ := queryTable(t, routed, web, dns.TypeA, false, 0); sections(m) != web+" 5 IN A 100.64.16.20 / / /" {
		t.Errorf("%s with a routed service network: %s", web, sections(m))
	}
}

// A cluster that offers nothing, or not yet, has no names, if nothing else knows names of it.
func TestNoMeshServices(t *testing.T) {
	z := offering(netip.AddrPort{})
	z[0].Clusters[2].Offers = nil
	before := New(nil, z, up, options)
	z = slices.Clone(z)
	z[0].Clusters = slices.Clone(z[0].Clusters)
	z[0].Clusters[2].Refused = []mesh.RefusedOffer{
		{Namespace: "default", Name: "Refused", StandsFor: "other", Address: netip.MustParseAddr("192.168.0.99"),
			Reason: "it is the address of KubeLink k3"}}
	const refused = "the mesh service default/Refused at 192.168.0.99 that link kubelink2 offers is not accepted: " +
		"it is the address of KubeLink k3"
	table := New(before, z, up, options)
	for _, c := range []struct {
		name  string
		rcode int
		why   string
	}{
		{web, dns.RcodeNameError,
			"no service network of link kubelink2 is routed here, and it offers no mesh service for default/web"},
		{"echo.default.msvc.kubelink2.kubelink.", dns.RcodeNameError, "link kubelink2 offers no mesh service default/echo"},
		{"refused.default.msvc.kubelink2.kubelink.", dns.RcodeNameError, refused},
		{"_http._tcp.refused.default.msvc.kubelink2.kubelink.", dns.RcodeNameError, refused},
		{"other.default.svc.kubelink2.kubelink.", dns.RcodeNameError, refused},
		{"svc.kubelink2.kubelink.", 0, ""},
		{"kubelink2.kubelink.", 0, ""},
	} {
		m, _ := queryTable(t, table, c.name, dns.TypeTXT, false, 1232)
		if _, why := ede(m); m.Rcode != c.rcode || why != c.why || len(m.Answer) > 0 || len(m.Ns) != 1 {
			t.Errorf("%s: %v, %q", c.name, m, why)
		}
	}
}

// A DNS service that is reached by way of spec.egress knows the services that have no mesh service; egress may lead to
// them, too.
func TestMeshServicesBesideDNSService(t *testing.T) {
	var asked atomic.Int64
	z := offering(serve(t, clusterDNS(t, &asked)))
	z[0].Clusters[2].Upstream = z[0].Clusters[1].Upstream
	z[0].Clusters[2].Offers[0].StandsFor, z[0].Clusters[2].Offers[1].StandsFor = "other", "other"
	o := cachingOptions()
	o.Networks = []Network{{netip.MustParsePrefix("100.64.16.0/20"), "kubelink2"}}
	table := New(nil, z, up, o)
	defer table.Close()
	if m, _ := queryTable(t, table, web, dns.TypeA, false, 0); sections(m) != web+" 5 IN A 100.64.16.20 / / /" {
		t.Errorf("%s: %s", web, sections(m))
	}
	const other = "other.default.svc.kubelink2.kubelink."
	before := asked.Load()
	m, _ := queryTable(t, table, other, dns.TypeA, false, 0)
	no, _ := queryTable(t, table, "_none._tcp."+other, dns.TypeSRV, false, 0)
	if sections(m) != other+" 5 IN A 192.168.0.102 / / /" || no.Rcode != dns.RcodeNameError || asked.Load() != before {
		t.Errorf("%s: %s, %v; asked %d times", other, sections(m), no, asked.Load()-before)
	}
}

// Of several mesh services of a Kubernetes service, those at one address have its name.
func TestChooseOffers(t *testing.T) {
	offer := func(name, service, address string, whole bool) mesh.Offer {
		return mesh.Offer{Namespace: "default", Name: name, StandsFor: service, Address: netip.MustParseAddr(address),
			Whole: whole}
	}
	all := []mesh.Offer{
		offer("a", "web", "192.168.0.12", false), offer("b", "web", "192.168.0.102", false),
		offer("c", "web", "192.168.0.103", true), offer("d", "web", "192.168.0.104", true),
		offer("e", "", "192.168.0.105", true), offer("f", "web", "fd00::1", false),
		offer("g", "db", "192.168.0.12", false), offer("h", "db", "192.168.0.106", false),
		offer("i", "db", "192.168.0.106", false), offer("j", "db", "192.168.0.107", false),
		offer("k", "dns", "192.168.0.12", false), offer("l", "dns", "192.168.0.12", false),
	}
	var got []string
	for _, o := range chooseOffers(all, []netip.Addr{netip.MustParseAddr("192.168.0.12")}) {
		got = append(got, o.Name)
	}
	if want := "c f h i k l"; strings.Join(got, " ") != want {
		t.Errorf("chosen %s, not %s", got, want)
	}
}

// A peer cannot make names, replies, or the work for them larger than a message.
func TestHostileMeshServices(t *testing.T) {
	z := offering(netip.AddrPort{})
	var offers []mesh.Offer
	for i := range 4096 {
		o := mesh.Offer{Namespace: "default", Name: fmt.Sprintf("s%04d", i), StandsFor: "web", Whole: true,
			Address: netip.AddrFrom4([4]byte{192, 168, 0, 200})}
		if i > 2048 {
			o.Name, o.Address = "one", netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		}
		for port := range 256 {
			o.Ports = append(o.Ports, mesh.OfferPort{Protocol: 6, Port: uint16(1 + (i*256+port)%65535)})
		}
		offers = append(offers, o)
	}
	longest := 255 - len(".default.msvc.kubelink2.kubelink.") - 1
	label := strings.Repeat("x", 63)
	long := strings.Join([]string{label, label, label, label}, ".")
	offers = append(offers, mesh.Offer{Namespace: "default", Name: "x." + long[:longest-2], Whole: true,
		Address: netip.MustParseAddr("192.168.0.201")},
		mesh.Offer{Namespace: "default", Name: "x." + long[:longest-1], Whole: true,
			Address: netip.MustParseAddr("192.168.0.201")})
	measure := func(offers []mesh.Offer) (*Table, time.Duration) {
		z[0].Clusters[2].Offers = offers
		begin := time.Now()
		table := New(nil, z, up, options)
		took := time.Since(begin)
		t.Cleanup(table.Close)
		return table, took
	}
	var few []mesh.Offer
	for i := 0; i < len(offers); i += 8 {
		few = append(few, offers[i])
	}
	_, short := measure(few)
	table, took := measure(offers)
	if took > 32*short { // eight times the work, or so, and not 64 times
		t.Errorf("the table took %s, %s with an eighth of the offers", took, short)
	}
	for _, name := range []string{web, "one.default.msvc.kubelink2.kubelink.", "200.0.168.192.in-addr.arpa.",
		"201.0.168.192.in-addr.arpa."} {
		m, _ := queryTable(t, table, name, dns.TypeANY, false, 0)
		if size := m.Len(); m.Rcode != 0 || len(m.Answer) == 0 || size > dns.MaxMsgSize {
			t.Errorf("%s: %v, %d records, %d bytes", name, m.MsgHdr, len(m.Answer), size)
		}
		for _, rr := range m.Answer {
			if ptr, ok := rr.(*dns.PTR); ok && wireLength(ptr.Ptr) > maxNameLength {
				t.Errorf("%s leads to a name of %d octets", name, wireLength(ptr.Ptr))
			}
		}
	}
}

// The link rules the names, as all names of its cluster; serve-stale does, too.
func TestMeshServicesOfLostLink(t *testing.T) {
	z := offering(netip.AddrPort{})
	o := cachingOptions()
	table := New(nil, z, up, o)
	queryTable(t, table, web, dns.TypeA, false, 0)
	lost := New(table, z, down, o)
	for _, name := range []string{web, "echo.default.msvc.kubelink2.kubelink.", "102.0.168.192.in-addr.arpa."} {
		m, _ := queryTable(t, lost, name, dns.TypeANY, false, 1232)
		code, why := ede(m)
		if m.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeNoReachableAuthority ||
			why != "link kubelink2 is Down: connection lost" {
			t.Errorf("%s: %v, %d %q", name, m.MsgHdr, code, why)
		}
	}
	o.ServeStale = time.Hour
	queryTable(t, New(nil, z, up, o), web, dns.TypeA, false, 0)
	lost = New(nil, z, down, o)
	m, _ := queryTable(t, lost, web, dns.TypeA, false, 1232)
	if code, _ := ede(m); sections(m) != web+" 5 IN A 192.168.0.102 / / /" || code != dns.ExtendedErrorCodeStaleAnswer {
		t.Errorf("%s: %s, %d", web, sections(m), code)
	}
	if m, _ := queryTable(t, lost, "own.default.msvc.kubelink1.kubelink.", dns.TypeA, false, 0); len(m.Answer) != 1 {
		t.Errorf("a service of this cluster: %v", m)
	}
}

// A change of a link makes no names anew, a change of what is offered does.
func TestMeshServicesAreKept(t *testing.T) {
	z := offering(netip.AddrPort{})
	table := New(nil, z, up, options)
	lost := New(table, z, down, options)
	const name = "msvc.kubelink2.kubelink."
	if lost == table || lost.nodes[name].services != table.nodes[name].services {
		t.Error("names were made anew")
	}
	z = offering(netip.AddrPort{})
	z[0].Clusters[2].Offers[0].Ports[0].Port = 81
	changed := New(lost, z, up, options)
	m, _ := queryTable(t, changed, "_http._tcp.echo.default."+name, dns.TypeSRV, false, 0)
	if len(m.Answer) != 1 || m.Answer[0].(*dns.SRV).Port != 81 {
		t.Errorf("%v", m)
	}
}

// BenchmarkMeshServices: a query for one of 10,000 mesh services.
func BenchmarkMeshServices(b *testing.B) {
	z := offering(netip.AddrPort{})
	for i := range 10_000 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		z[0].Clusters[2].Offers = append(z[0].Clusters[2].Offers, mesh.Offer{Namespace: "default",
			Name: fmt.Sprint("s", i), Address: a, Whole: true, Ports: []mesh.OfferPort{{Name: "http", Protocol: 6, Port: 80}}})
	}
	table := New(nil, z, up, options)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		queryTable(b, table, fmt.Sprintf("s%d.default.msvc.kubelink2.kubelink.", i%10_000), dns.TypeA, false, 0)
	}
}
