package apizone

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
)

func TestInstanceAnswers(t *testing.T) {
	stub := newWebStub(t)
	stub.service("pods", "None")
	stub.endpoint("pods", "pod-0", "100.96.0.5")
	stub.endpoint("pods", "pod-1", "100.96.0.6")
	stub.service("alias", "", external("web.default.svc.cluster.local"))
	stub.service("alias2", "", external("alias.default.svc.Cluster.Local"))
	stub.service("outside", "", external("www.example.com"))
	stub.service("long", "", external(strings.Repeat(strings.Repeat("x", 59)+".", 4)+"cluster.local"))
	bench := newBench(t)
	b := bench.want(Access{link: "two", apiSource: stub.source("t")})
	bench.until(t, "names", func() error { return answered(t, b, web) })

	const soa = "two.kubelink. 5 IN SOA ns.dns.two.kubelink. hostmaster.two.kubelink. N 7200 1800 86400 5"
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string
	}{
		{web, dns.TypeA, 0, web + " 5 IN A 100.64.16.20"},
		{"Web.DEFAULT.svc.Two.kubelink.", dns.TypeA, 0, "Web.DEFAULT.svc.Two.kubelink. 5 IN A 100.64.16.20"},
		{web, dns.TypeAAAA, 0, soa},
		{web, dns.TypeMX, 0, soa},
		{"_http._tcp." + web, dns.TypeSRV, 0,
			"_http._tcp." + web + " 5 IN SRV 0 100 80 " + web + " " + web + " 5 IN A 100.64.16.20"},
		{"_x._tcp." + web, dns.TypeSRV, dns.RcodeNameError, soa},
		{"nobody.default.svc.two.kubelink.", dns.TypeA, dns.RcodeNameError, soa},
		{"web.other.svc.two.kubelink.", dns.TypeA, dns.RcodeNameError, soa},
		{"1-2-3-4.default.pod.two.kubelink.", dns.TypeA, dns.RcodeNameError, soa},
		{"pods.default.svc.two.kubelink.", dns.TypeA, 0,
			"pods.default.svc.two.kubelink. 5 IN A 100.96.0.5 pods.default.svc.two.kubelink. 5 IN A 100.96.0.6"},
		{"pod-1.pods.default.svc.two.kubelink.", dns.TypeA, 0, "pod-1.pods.default.svc.two.kubelink. 5 IN A 100.96.0.6"},
		{"two.kubelink.", dns.TypeSOA, 0, soa},
		{"svc.two.kubelink.", dns.TypeA, 0, soa},
		{"dns-version.two.kubelink.", dns.TypeTXT, 0, `dns-version.two.kubelink. 5 IN TXT "1.1.0"`},
		// Package zone follows aliases.
		{"alias.default.svc.two.kubelink.", dns.TypeA, 0, "alias.default.svc.two.kubelink. 5 IN CNAME " + web},
		{"alias.default.svc.two.kubelink.", dns.TypeCNAME, 0, "alias.default.svc.two.kubelink. 5 IN CNAME " + web},
		{"alias.default.svc.two.kubelink.", dns.TypeAAAA, 0, "alias.default.svc.two.kubelink. 5 IN CNAME " + web},
		{"alias2.default.svc.two.kubelink.", dns.TypeA, 0,
			"alias2.default.svc.two.kubelink. 5 IN CNAME alias.default.svc.two.kubelink."},
		{"outside.default.svc.two.kubelink.", dns.TypeA, 0,
			"outside.default.svc.two.kubelink. 5 IN CNAME www.example.com."},
		{"outside.default.svc.two.kubelink.", dns.TypeCNAME, 0,
			"outside.default.svc.two.kubelink. 5 IN CNAME www.example.com."},
	} {
		t.Run(dns.TypeToString[c.qtype]+" "+c.name, func(t *testing.T) {
			m, err := query(t, b, c.name, c.qtype)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
				for _, rr := range section {
					if soa, ok := rr.(*dns.SOA); ok {
						soa.Serial = 0
						got = append(got, strings.Replace(strings.Join(strings.Fields(rr.String()), " "), " 0 7200", " N 7200", 1))
						continue
					}
					got = append(got, strings.Join(strings.Fields(rr.String()), " "))
				}
			}
			if strings.HasPrefix(c.name, "pods.") { // they come in any order
				slices.Sort(got)
			}
			if m.Rcode != c.rcode || strings.Join(got, " ") != c.want {
				t.Errorf("%s %s\nwant %s %s",
					dns.RcodeToString[m.Rcode], strings.Join(got, " "), dns.RcodeToString[c.rcode], c.want)
			}
		})
	}
	if _, err := query(t, b, "long.default.svc.two.kubelink.", dns.TypeA); err != nil {
		t.Error(err) // it fits
	}

	services := func(address string) string {
		names, err := b.(*backend).Services(netip.MustParseAddr(address))
		return fmt.Sprint(names, err)
	}
	if got := services("100.64.16.20"); got != "["+web+"] <nil>" {
		t.Error(got)
	}
	if got := services("100.64.16.21"); got != "[] <nil>" {
		t.Error(got)
	}

	// What comes is there at once.
	stub.service("late", "100.64.16.21")
	eventually(t, func() error { return answered(t, b, "late.default.svc.two.kubelink.") })
}

// The cached replies of the plugin follow every change of its objects, and their users cannot change them.
func TestReplyCache(t *testing.T) {
	stub := newWebStub(t)
	stub.service("pods", "None")
	stub.endpoint("pods", "pod-0", "100.96.0.5")
	bench := newBench(t)
	b := bench.want(Access{link: "two", apiSource: stub.source("t")})
	bench.until(t, "names", func() error { return answered(t, b, web) })
	const (
		pods  = "pods.default.svc.two.kubelink."
		pod1  = "pod-1.pods.default.svc.two.kubelink."
		other = "other.default.svc.two.kubelink."
	)
	for _, step := range []struct {
		what   string
		change func()
		want   map[string]int // number of records of a name; none: it does not exist
	}{
		{"begin", func() {},
			map[string]int{web: 1, pods: 1, pod1: 0, "_http._tcp." + web: 1, "_dns._udp." + web: 0, other: 0}},
		{"endpoint added", func() { stub.endpoint("pods", "pod-1", "100.96.0.6") },
			map[string]int{web: 1, pods: 2, pod1: 1, "_http._tcp." + pods: 2}},
		{"endpoint removed", func() { stub.remove("endpointslices", newEndpoint("pods", "pod-0", "100.96.0.5")) },
			map[string]int{pods: 1, pod1: 1, "_http._tcp." + pods: 1}},
		{"port changed", func() {
			stub.service("web", "100.64.16.20", func(s *corev1.Service) {
				s.Spec.Ports[0].Name, s.Spec.Ports[0].Protocol = "dns", corev1.ProtocolUDP
			})
		}, map[string]int{web: 1, "_http._tcp." + web: 0, "_dns._udp." + web: 1}},
		{"now an alias", func() { stub.service("web", "", external("pods.default.svc.cluster.local")) },
			map[string]int{web: 1, "CNAME " + web: 1}},
		{"another endpoint", func() { stub.endpoint("pods", "pod-2", "100.96.0.7") }, map[string]int{web: 1, pods: 2}},
		{"service removed", func() { stub.remove("services", newService("web", "")) }, map[string]int{web: 0}},
		{"service added", func() { stub.service("other", "100.64.16.21") }, map[string]int{other: 1}},
		{"namespace removed", func() { stub.remove("namespaces", newNamespace("default")) },
			map[string]int{other: 0, pods: 0, pod1: 0}},
		{"namespace added", func() { stub.namespace("default") }, map[string]int{other: 1, pods: 2, pod1: 1}},
	} {
		step.change()
		for name, want := range step.want {
			qtype := dns.TypeA
			if strings.HasPrefix(name, "_") {
				qtype = dns.TypeSRV
			} else if alias, ok := strings.CutPrefix(name, "CNAME "); ok {
				name, qtype = alias, dns.TypeCNAME
			}
			eventually(t, func() error {
				for range 3 { // one is made, two are kept
					m, err := query(t, b, name, qtype)
					if err != nil || len(m.Answer) != want || (m.Rcode == dns.RcodeNameError) != (want == 0) {
						return fmt.Errorf("%s: %s: want %d records: %v %v", step.what, name, want, m, err)
					}
				}
				return nil
			})
		}
	}

	for range 2 {
		req := new(dns.Msg).SetQuestion(other, dns.TypeA)
		m, err := b.Answer(t.Context(), &request.Request{W: &test.ResponseWriter{}, Req: req})
		if err != nil || m.Answer[0].Header().Name != other || m.Answer[0].(*dns.A).A.String() != "100.64.16.21" {
			t.Error(m, err)
		}
		_ = append(m.Answer, m.Answer[0]) // CoreDNS' plugins add to sections, but change no record
	}
	if n := bench.replies.cache.Len(); n == 0 || n > maxReplies {
		t.Errorf("%d answers are kept", n)
	}
}

// An alias cannot become longer than a name may be.
func TestLongAlias(t *testing.T) {
	stub := newAPIStub(t)
	stub.namespace("default")
	stub.service("long", "", external(strings.Repeat(strings.Repeat("x", 59)+".", 4)+"local"))
	bench := newBench(t)
	source := stub.source("t")
	source.zone, source.clusterDomain = "long.kubelink.example.", "local."
	b := bench.want(Access{link: "two", apiSource: source})
	bench.until(t, "reason", func() error {
		_, err := query(t, b, "long.default.svc.long.kubelink.example.", dns.TypeA)
		if err == nil || !strings.Contains(err.Error(), "255 octets") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
}

func BenchmarkBackendAnswer(b *testing.B) {
	stub := newAPIStub(b)
	stub.namespace("default")
	for i := range 1000 {
		stub.service(fmt.Sprint("web", i), fmt.Sprintf("100.64.%d.%d", 16+i/250, 1+i%250))
	}
	stub.service("web", "100.64.16.251")
	stub.service("alias", "", external("web.default.svc.cluster.local"))
	bench := newBench(b)
	backend := bench.want(Access{link: "two", apiSource: stub.source("t")})
	bench.until(b, "names", func() error { return answered(b, backend, web) })
	for _, c := range []struct{ name, qname string }{
		{"service", web}, {"nxdomain", "nobody.default.svc.two.kubelink."}, {"alias", "alias.default.svc.two.kubelink."},
	} {
		b.Run(c.name, func(b *testing.B) {
			req := new(dns.Msg)
			req.SetQuestion(c.qname, dns.TypeA)
			w := &test.ResponseWriter{}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := backend.Answer(context.Background(), &request.Request{W: w, Req: req}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
