package globalnames

import (
	"context"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// fuzzObjects reads an object a line, in a form in which most texts mean something: the name, that of
// a HostedZone with a leading !, and words for the fields, each after a letter.
func fuzzObjects(text string) (entries []coredns.CoreDNSEntry, zones []coredns.HostedZone) {
	lines := strings.Split(text, "\n")
	for i, line := range lines[:min(len(lines), 30)] {
		name, rest, _ := strings.Cut(line, " ")
		var e coredns.CoreDNSEntry
		var z coredns.HostedZone
		for _, word := range strings.Split(rest, " ") {
			if word == "" {
				continue
			}
			switch v := word[1:]; word[0] {
			case '^':
				e.Spec.ZoneRef, z.Spec.ParentRef = v, v
			case 'n':
				e.Spec.DNSNames, z.Spec.DomainNames = append(
					e.Spec.DNSNames,
					coredns.DNSName(v),
				), append(
					z.Spec.DomainNames,
					coredns.DomainName(v),
				)
			case '4':
				e.Spec.A = append(e.Spec.A, coredns.IPv4Address(v))
			case '6':
				e.Spec.AAAA = append(e.Spec.AAAA, coredns.IPv6Address(v))
			case 't':
				e.Spec.TXT = append(e.Spec.TXT, coredns.Text(v))
			case 'c':
				e.Spec.CNAME = v
			case 'd':
				e.Spec.NS = append(e.Spec.NS, coredns.NameServer(v))
			case 's':
				service, host, _ := strings.Cut(v, "/")
				if e.Spec.SRV == nil {
					e.Spec.SRV = &coredns.Service{Service: service}
				}
				e.Spec.SRV.Records = append(e.Spec.SRV.Records, coredns.SRVRecord{Protocol: "TCP", Port: int32(len(v)), Host: host})
			case 'm':
				z.Spec.EMail, z.Spec.Refresh = v, int32(len(v))
			case 'o':
				e.Annotations = map[string]string{coredns.AnnotationOrder: v, coredns.AnnotationFollowLinks: v}
			}
		}
		name, hosted := strings.CutPrefix(name, "!")
		meta := metav1.ObjectMeta{
			Namespace:         "ns",
			Name:              name,
			CreationTimestamp: metav1.Unix(int64(i/2), 0),
			Annotations:       e.Annotations,
		}
		if hosted {
			z.ObjectMeta = meta
			zones = append(zones, z)
		} else {
			e.ObjectMeta = meta
			entries = append(entries, e)
		}
	}
	return entries, zones
}

// tenancy: all objects are in the namespace of kubelink.
var tenancy = records.Tenancy{Home: "ns"}

// FuzzGlobal leads objects all the way to answers: nothing panics, every answer can be sent, equal
// objects make equal names, and what an object is said to serve is there.
func FuzzGlobal(f *testing.F) {
	for _, seed := range []string{
		"a na.svc.global.kubelink n*.svc.global.kubelink 410.1.0.1 410.2.0.3 6fd00::1 tt ofixed\n" +
			"b nb.svc.global.kubelink ca.svc.global.kubelink",
		"!r nsvc.global.kubelink nsvc.global.other.example ma.b@c\n" +
			"!t ^r nt nu.t\na ^t n@ nx n* 410.2.0.3\ns ^r ns sl/x.t sl/s sl/a.example.\nx ^r nt dn.t.",
		"a nd.svc.global.kubelink dn.d.svc.global.kubelink dx.example\n" +
			"b nn.d.svc.global.kubelink 410.2.0.3\nc nc.svc.global.kubelink cx.d.svc.global.kubelink\n" +
			"l n*.l.svc.global.kubelink cx.l.svc.global.kubelink",
		"!a ^b na\n!b ^a nb\n!c nsvc.global.kubelink.\n" +
			"e ^c nx.svc.global.kubelink. nx cx\ne2 ^c ny tback\\\\slash " + strings.Repeat("t", 300),
	} {
		f.Add(seed, "X.y.a.svc.global.kubelink.", dns.TypeA)
	}
	f.Fuzz(func(t *testing.T, text, name string, qtype uint16) {
		entries, zones := fuzzObjects(text)
		const top = "svc.global.kubelink."
		served := []string{top, "svc.global.other.example."}
		g := records.Build(entries, zones, served, tenancy)
		slices.Reverse(entries)
		slices.Reverse(zones)
		// The API server sees to it that names are unique.
		if len(g.Entries) == len(entries) && len(g.HostedZones) == len(zones) &&
			!reflect.DeepEqual(records.Build(entries, zones, served, tenancy), g) {
			t.Error("another order of the objects makes other names")
		}
		globals := map[string]*zone.Global{}
		newGlobal := func(z records.Zone, serial uint32) *zone.Global {
			return zone.NewGlobal(
				strings.TrimPrefix(z.Name, "svc.global."),
				z,
				serial,
				[]netip.Addr{netip.MustParseAddr("10.0.0.11")},
				globals[z.Name],
			)
		}
		for _, z := range g.Zones {
			globals[z.Name] = newGlobal(z, 1)
		}
		table := zone.New(nil, []mesh.Zone{
			{
				Domain: "kubelink.",
				Global: mesh.GlobalZone{Name: served[0]},
			}, {Domain: "other.example.", Global: mesh.GlobalZone{Name: served[1]}},
		}, func(link string) zone.Status { return zone.Status{Usable: link == "up", State: "Down", RTT: 1} }, zone.Options{
			Globals: globals, Networks: []zone.Network{
				{
					Prefix: netip.MustParsePrefix("10.1.0.0/16"),
					Link:   "down",
				}, {Prefix: netip.MustParsePrefix("10.2.0.0/16"), Link: "up"},
				{
					Prefix: netip.MustParsePrefix("128.0.0.0/1"),
					Link:   "down",
				}, {Prefix: netip.MustParsePrefix("f000::/4"), Link: "up"},
			},
		})

		ask := func(name string, qtype uint16) *dns.Msg {
			req := new(dns.Msg).SetQuestion(name, qtype)
			req.SetEdns0(1232, true)
			wire, err := req.Pack()
			if err != nil || req.Unpack(wire) != nil {
				return nil // no question of DNS
			}
			for _, tcp := range []bool{true, false} {
				state := request.Request{W: &test.ResponseWriter{TCP: tcp}, Req: req}
				match, ok := table.Match(state.Name())
				if !ok {
					return nil
				}
				reply, _ := match.Answer(context.Background(), &state)
				if tcp && len(reply.Answer) > 0 && reply.Answer[0].Header().Name != req.Question[0].Name {
					t.Errorf("%s %d: %v", name, qtype, reply)
				}
				state.SizeAndDo(reply)
				state.Scrub(reply)
				if wire, err = reply.Pack(); err != nil || len(wire) > state.Size() {
					t.Fatalf("%s %d: %d octets, %v", name, qtype, len(wire), err)
				}
			}
			reply := new(dns.Msg)
			if err := reply.Unpack(wire); err != nil {
				t.Fatalf("%s %d: %v", name, qtype, err)
			}
			return reply
		}
		ask(name, qtype)
		for _, z := range g.Zones {
			for _, owner := range z.Owners {
				for _, qtype := range []uint16{
					dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeCNAME, dns.TypeSRV, dns.TypeNS, dns.TypeSOA, dns.TypeDS,
					dns.TypeANY, qtype,
				} {
					if m := ask(owner.Name, qtype); m == nil ||
						m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeServerFailure && owner.CNAME == "" {
						t.Errorf("%s %d: %v", owner.Name, qtype, m)
					}
				}
				ask(name+owner.Name, qtype)
			}
			for _, apex := range z.Apexes {
				rrs, ok := table.Transfer(apex.Name, 0)
				if !ok || len(rrs) < 3 {
					t.Errorf("transfer of %s: %v", apex.Name, rrs)
				}
				for _, rr := range rrs {
					if _, err := dns.PackRR(rr, make([]byte, dns.MaxMsgSize), 0, nil, false); err != nil {
						t.Errorf("%v: %v", rr, err)
					}
				}
			}
		}
		// The serial of a zone changes with what is transferred of it, and with nothing else.
		for _, z := range records.Build(entries[len(entries)/2:], zones, served, tenancy).Zones {
			now := newGlobal(z, 2)
			for _, apex := range z.Apexes {
				rrs, _ := now.Transfer(apex.Name, 0)
				before, _ := globals[z.Name].Transfer(apex.Name, 0)
				serial := rrs[0].(*dns.SOA).Serial
				same := slices.EqualFunc(rrs, before, func(a, b dns.RR) bool {
					a, b = dns.Copy(a), dns.Copy(b)
					for _, rr := range []dns.RR{a, b} {
						if soa, ok := rr.(*dns.SOA); ok {
							soa.Serial = 0
						}
					}
					return a.Header().Ttl == b.Header().Ttl && dns.IsDuplicate(a, b)
				})
				if same != (serial == 1) {
					t.Errorf("serial %d of %s:\n%v\nbefore\n%v", serial, apex.Name, rrs, before)
				}
			}
		}
		for _, e := range entries {
			r := g.Entries[types.NamespacedName{Namespace: e.Namespace, Name: e.Name}]
			if strings.Contains(r.Message, "\n") {
				t.Errorf("message %q", r.Message)
			}
			if r.Foreign && len(r.Names) > 0 || r.State == coredns.StateOk && len(r.Names) == 0 {
				t.Errorf("%s: %+v", e.Name, r)
			}
		}
	})
}

// BenchmarkGlobals is a change of one of 10,000 entries, from the objects to the zone.
func BenchmarkGlobals(b *testing.B) {
	var entries []coredns.CoreDNSEntry
	for i := range 10_000 {
		e := coredns.CoreDNSEntry{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "ns",
				Name:      "e" + string(rune('a'+i%26)) + netip.AddrFrom4([4]byte{0, 0, byte(i >> 8), byte(i)}).String(),
			},
		}
		e.Spec.DNSNames = []coredns.DNSName{
			coredns.DNSName("n" + strings.ReplaceAll(e.Name, ".", "-") + ".svc.global.kubelink"),
		}
		e.Spec.A = []coredns.IPv4Address{coredns.IPv4Address(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String())}
		entries = append(entries, e)
	}
	b.ReportAllocs()
	for b.Loop() {
		names := records.Build(entries, nil, []string{"svc.global.kubelink."}, tenancy)
		zone.NewGlobal("kubelink.", names.Zones[0], 1, nil, nil)
		if n := len((&Watch{}).differingReports(entries, nil, &names, &records.Result{}, nil, nil)); n != len(entries) {
			b.Fatal(n)
		}
	}
}
