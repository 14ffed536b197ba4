package zone

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
)

// globalNames reads records in the form of zone files. A name with a SOA record is an apex; addresses of names in fixed
// keep their order, and those in anyLink do not follow links.
func globalNames(t testing.TB, text string, fixed, anyLink string) records.Zone {
	t.Helper()
	names := records.Zone{Name: "svc.global.kubelink."}
	var order []string
	owners := map[string]*records.Owner{}
	parser := dns.NewZoneParser(strings.NewReader(text), "svc.global.kubelink.", "")
	parser.SetDefaultTTL(5)
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		name := rr.Header().Name
		if soa, ok := rr.(*dns.SOA); ok {
			names.Apexes = append(names.Apexes, records.Apex{Name: name, Mbox: soa.Mbox, Refresh: soa.Refresh, Retry: soa.Retry,
				Expire: soa.Expire, Minimum: soa.Minttl})
			continue
		}
		if owners[name] == nil {
			owners[name] = &records.Owner{Name: name, Fixed: fixed == name}
			order = append(order, name)
		}
		o := owners[name]
		switch rr := rr.(type) {
		case *dns.A:
			a, _ := netip.AddrFromSlice(rr.A)
			o.Addresses = append(o.Addresses, records.Address{Addr: a.Unmap(), AnyLink: anyLink == name})
		case *dns.AAAA:
			a, _ := netip.AddrFromSlice(rr.AAAA)
			o.Addresses = append(o.Addresses, records.Address{Addr: a, AnyLink: anyLink == name})
		case *dns.CNAME:
			o.CNAME = rr.Target
		case *dns.TXT:
			o.TXT = append(o.TXT, strings.Join(rr.Txt, ""))
		case *dns.NS:
			o.NS = append(o.NS, rr.Ns)
		case *dns.SRV:
			o.SRV = append(o.SRV, records.SRV{Priority: rr.Priority, Weight: rr.Weight, Port: rr.Port, Target: rr.Target})
		}
	}
	if err := parser.Err(); err != nil {
		t.Fatal(err)
	}
	for _, name := range order {
		names.Owners = append(names.Owners, *owners[name])
	}
	return names
}

// globalTable serves the names in a table of one mesh domain.
func globalTable(t testing.TB, names records.Zone, state links) *Table {
	t.Helper()
	g := NewGlobal("kubelink.", names, 7, options.NSAddresses, nil)
	opts := options
	opts.Globals = map[string]*Global{names.Name: g}
	for n := byte(1); n <= 3; n++ {
		link := fmt.Sprintf("k%d", n)
		opts.Networks = append(opts.Networks, Network{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n}), 16), link},
			Network{netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, n}), 32), link})
	}
	return New(nil, []mesh.Zone{{Domain: "kubelink.", Global: mesh.GlobalZone{Name: names.Name}}},
		func(link string) Status { return state[link] }, opts)
}

// links is a mesh of three other clusters: addresses 10.<n>.x.x and fd00:<n>:: lie behind link n.
type links map[string]Status

func TestGlobalText(t *testing.T) {
	texts := []string{"", `back\slash "quoted" \065`, strings.Repeat("x", 255), strings.Repeat("y", 256),
		strings.Repeat(`\`, 300), "ü\x00\xff"}
	n := records.Zone{Name: "svc.global.kubelink.", Apexes: []records.Apex{{Name: "svc.global.kubelink."}}}
	for i, text := range texts {
		n.Owners = append(n.Owners, records.Owner{Name: fmt.Sprintf("t%d.svc.global.kubelink.", i), TXT: []string{text}})
	}
	table := globalTable(t, n, nil)
	defer table.Close()
	for i, text := range texts {
		m, err := queryTable(t, table, fmt.Sprintf("t%d.svc.global.kubelink.", i), dns.TypeTXT, true, 0)
		if err != nil || len(m.Answer) != 1 {
			t.Fatal(m, err)
		}
		wire := make([]byte, 1000)
		end, err := dns.PackRR(m.Answer[0], wire, 0, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		// The data is a sequence of strings, each after its length.
		data, got := wire[wireLength(m.Answer[0].Header().Name)+10:end], ""
		for len(data) > 0 {
			n := 1 + int(data[0])
			got, data = got+string(data[1:n]), data[n:]
		}
		if got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestGlobalNotKnown(t *testing.T) {
	z := []mesh.Zone{{Domain: "kubelink.", Global: mesh.GlobalZone{Name: "svc.global.kubelink."}}}
	table := New(nil, z, up, Options{Serial: 1})
	m, _ := queryTable(t, table, "web.svc.global.kubelink.", dns.TypeA, false, 1232)
	if code, text := ede(m); m.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeNotReady ||
		text != "the names of svc.global.kubelink. are not known yet" {
		t.Errorf("%v", m)
	}
	if _, ok := table.Transfer("svc.global.kubelink.", 0); ok {
		t.Error("a zone is transferred that is not known")
	}
	g := NoGlobal("svc.global.kubelink.", "no permission")
	next := New(table, z, up, Options{Serial: 1, Globals: map[string]*Global{"svc.global.kubelink.": g}})
	m, _ = queryTable(t, next, "web.svc.global.kubelink.", dns.TypeA, false, 1232)
	if _, text := ede(m); text != "no permission" || next == table {
		t.Errorf("%v", m)
	}
	if New(next, z, up, Options{Globals: map[string]*Global{"svc.global.kubelink.": g}}) != next {
		t.Error("another table of the same things")
	}
	// A zone that is asked of another cluster is not ours to deny.
	z = []mesh.Zone{{Domain: "kubelink.", Global: mesh.GlobalZone{Name: "svc.global.kubelink.",
		Upstream: netip.MustParseAddrPort("100.64.16.11:53")}}}
	if table := New(next, z, up, Options{}); table == next || table.nodes["svc.global.kubelink."].global != nil {
		t.Error("served here, too")
	}
}

// manyNames makes names with an address each.
func manyNames(n int) records.Zone {
	names := records.Zone{Name: "svc.global.kubelink.", Apexes: []records.Apex{{Name: "svc.global.kubelink.", Minimum: 5}}}
	for i := range n {
		names.Owners = append(names.Owners, records.Owner{
			Name:      fmt.Sprintf("name-%d.svc.global.kubelink.", i),
			Addresses: []records.Address{{Addr: netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})}},
		})
	}
	return names
}

func BenchmarkNewGlobal(b *testing.B) {
	names := manyNames(10_000)
	before := NewGlobal("kubelink.", names, 1, nil, nil)
	b.ReportAllocs()
	for b.Loop() {
		NewGlobal("kubelink.", names, 2, nil, before)
	}
}
