package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// row is a query and the expected answer.
type row struct {
	question dns.Question
	want     outcome
	// answer records and rcode of a resolver in front of kubelink, if it adds to the answer
	front  *outcome
	size   int    // the answer is longer than this number of bytes
	reason string // part of the text of the Extended DNS Error
}

// outcome is the compared part of an answer. Records are "owner TYPE data", sorted.
type outcome struct {
	rcode         string
	authoritative bool
	answer        []string
	authority     []string
}

func (o outcome) String() string {
	aa := ""
	if o.authoritative {
		aa = " aa"
	}
	return fmt.Sprintf("%s%s, answer %q, authority %q", o.rcode, aa, o.answer, o.authority)
}

// answer returns a row. The question is "name type". Records without owner belong to that name.
func answer(question string, records ...string) row {
	name, kind, _ := strings.Cut(question, " ")
	q := dns.Question{Name: dns.Fqdn(name), Qtype: dns.StringToType[kind], Qclass: dns.ClassINET}
	return row{question: q, want: outcome{rcode: "NOERROR", authoritative: true, answer: withOwners(q, records)}}
}

// nodata returns a row for a name without records of the type.
func nodata(question, zone string) row {
	r := answer(question)
	r.want.authority = []string{dns.Fqdn(zone) + " SOA"}
	return r
}

// nxdomain returns a row for a name that does not exist.
func nxdomain(question, zone string) row {
	r := nodata(question, zone)
	r.want.rcode = "NXDOMAIN"
	return r
}

// servfail returns a row for a failure with its reason.
func servfail(question, reason string) row {
	r := answer(question)
	r.want.rcode, r.want.authoritative, r.reason = "SERVFAIL", false, reason
	return r
}

// referral returns a row for an answer that leads to the name servers of a delegated zone.
func referral(question, zone string, servers ...string) row {
	r := answer(question)
	r.want.authoritative = false
	for _, s := range servers {
		r.want.authority = append(r.want.authority, dns.Fqdn(zone)+" NS "+s)
	}
	return r
}

// isReferral says whether the row is a referral.
func (r row) isReferral() bool {
	return slices.ContainsFunc(r.want.authority, func(s string) bool { return strings.Contains(s, " NS ") })
}

// resolvedAs adds the records that a resolver in front of kubelink finds on its own.
func (r row) resolvedAs(records ...string) row {
	r.front = &outcome{rcode: r.want.rcode,
		answer: withOwners(r.question, append(slices.Clone(records), r.want.answer...))}
	return r
}

// largerThan marks an answer that does not fit a size.
func (r row) largerThan(size int) row {
	r.size = size
	return r
}

func withOwners(q dns.Question, records []string) (full []string) {
	for _, r := range records {
		first, _, _ := strings.Cut(r, " ")
		if _, isType := dns.StringToType[first]; isType {
			r = dns.CanonicalName(q.Name) + " " + r
		}
		full = append(full, r)
	}
	slices.Sort(full)
	return full
}

// changing matches data that differs with each run or query.
var changing = regexp.MustCompile(`"(since|rtt)=[^"]*"`)

// outcomeOf returns the outcome of an answer.
func outcomeOf(m *dns.Msg) outcome {
	o := outcome{rcode: dns.RcodeToString[m.Rcode], authoritative: m.Authoritative}
	for _, rr := range m.Answer {
		o.answer = append(o.answer, recordText(rr))
	}
	for _, rr := range m.Ns {
		if _, ok := rr.(*dns.SOA); ok {
			o.authority = append(o.authority, dns.CanonicalName(rr.Header().Name)+" SOA")
		} else {
			o.authority = append(o.authority, recordText(rr))
		}
	}
	slices.Sort(o.answer)
	slices.Sort(o.authority)
	return o
}

// recordText returns a record without the differences between equal records: age and upper case.
func recordText(rr dns.RR) string {
	if soa, ok := rr.(*dns.SOA); ok {
		soa = dns.Copy(soa).(*dns.SOA)
		soa.Serial = 0
		rr = soa
	}
	h := rr.Header()
	data := rr.String()[len(h.String()):]
	if h.Rrtype != dns.TypeTXT {
		data = strings.ToLower(data)
	}
	return dns.CanonicalName(h.Name) + " " + dns.TypeToString[h.Rrtype] + " " + changing.ReplaceAllString(data, `"$1=*"`)
}

// compareAnswer compares an answer with the expected one.
func (r row) compareAnswer(a querier, m *dns.Msg) error {
	want, got := r.want, outcomeOf(m)
	if !m.Response || len(m.Question) != 1 || m.Question[0] != r.question {
		return fmt.Errorf("an answer to %v", m.Question)
	}
	// The answer spells the name like the question.
	for _, rr := range m.Answer {
		if name := rr.Header().Name; name != r.question.Name && strings.EqualFold(name, r.question.Name) {
			return fmt.Errorf("the name comes back as %s", name)
		}
	}
	if a.front {
		// The resolver is not authoritative, and has reasons of its own.
		if want.authoritative, want.authority, got.authority = false, nil, nil; r.front != nil {
			want.rcode, want.answer = r.front.rcode, r.front.answer
		}
	}
	if cut := a.limit > 0 && r.size >= a.limit; m.Truncated != cut {
		return fmt.Errorf("the flag tc is %t", m.Truncated)
	} else if cut {
		m.Compress = true
		if wire, err := m.Pack(); err != nil || len(wire) > a.limit {
			return fmt.Errorf("%d bytes where %d fit: %v", len(wire), a.limit, err)
		}
		for _, record := range got.answer {
			if !slices.Contains(want.answer, record) {
				return fmt.Errorf("%s is in the truncated answer", record)
			}
		}
		got.answer, got.authority = want.answer, want.authority
	}
	if got.String() != want.String() {
		return fmt.Errorf("%s, want %s", got, want)
	}
	if !a.edns || r.reason == "" {
		return nil
	}
	if reason := extendedError(m); !strings.Contains(reason, r.reason) {
		return fmt.Errorf("the reason %q does not contain %q", reason, r.reason)
	}
	return nil
}

func extendedError(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				return ede.ExtraText
			}
		}
	}
	return ""
}

// aliasService returns a service that is a name for another name.
func aliasService(name, target string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: target},
	}
}

// createHeadless creates a headless service with endpoints that do not exist. Some have host names. Their addresses
// count in other clusters if they are in the service network, which is routed to the cluster.
func createHeadless(
	t *testing.T, ctx context.Context, b *fleet.Broker, name string, endpoints ...discoveryv1.Endpoint,
) {
	t.Helper()
	meta := metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name}
	createForTest(t, ctx, b, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		ClusterIP: corev1.ClusterIPNone,
		Ports:     []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
	}})
	meta.Labels = map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "test"}
	port, protocol, number := "http", corev1.ProtocolTCP, int32(8080)
	createForTest(t, ctx, b, &discoveryv1.EndpointSlice{
		ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{{Name: &port, Protocol: &protocol, Port: &number}},
	})
}

// database is a headless service whose pods have the addresses of pods of other clusters, as pod networks are the same,
// and an alias of an address, which is none.
const database = `
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIP: None, ports: [{name: pg, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: default, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: ["100.96.1.3"], hostname: db-0}, {addresses: ["100.96.1.2"]}]
ports: [{name: pg, port: 5432, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-6, namespace: default, labels: {kubernetes.io/service-name: db}}
addressType: IPv6
endpoints: [{addresses: ["fd00:96::"], conditions: {ready: true}}]
ports: [{name: pg, port: 5432, protocol: TCP}]
---
apiVersion: v1
kind: Service
metadata: {name: ext, namespace: default}
spec: {type: ExternalName, externalName: 192.0.2.7}
`

// createDatabase creates the objects of database.
func createDatabase(t *testing.T, ctx context.Context, b *fleet.Broker) {
	t.Helper()
	_, err := b.KubectlInput(ctx, database, "apply", "-f", "-")
	must(t, err)
	t.Cleanup(func() {
		_, err := b.KubectlInput(context.Background(), database, "delete", "--ignore-not-found", "-f", "-")
		must(t, err)
	})
}

// manyEndpoints returns n endpoints, and the records of their addresses.
func manyEndpoints(n int) (endpoints []discoveryv1.Endpoint, records []string) {
	addr := netip.MustParseAddr("100.64.24.1")
	for range n {
		endpoints = append(endpoints, discoveryv1.Endpoint{Addresses: []string{addr.String()}})
		records = append(records, "A "+addr.String())
		addr = addr.Next()
	}
	return endpoints, records
}

// absent is the name of a link to a cluster that does not exist.
const absent = "absent"

// Every way to query a name gets the same answer, independent of the program, the transport and the size. Resolvers
// in front of kubelink can work with the answers.
func TestResolvers(t *testing.T) {
	ctx := startTest(t, 5*time.Minute)
	one, two, three := brokers[0], brokers[1], brokers[2]
	internet, trust, err := startInternet(ctx, one)
	must(t, err)
	zones := []string{"kubelink", "168.192.in-addr.arpa", "64.100.in-addr.arpa"}

	first, second := "first", "second"
	createHeadless(t, ctx, two, "peers",
		discoveryv1.Endpoint{Addresses: []string{"100.64.30.1"}, Hostname: &first},
		discoveryv1.Endpoint{Addresses: []string{"100.64.30.2"}, Hostname: &second},
		discoveryv1.Endpoint{Addresses: []string{"100.64.30.3"}})
	createDatabase(t, ctx, two)
	crowds := map[int][]string{}
	for _, n := range []int{40, 100, 300} {
		endpoints, records := manyEndpoints(n)
		crowds[n] = records
		createHeadless(t, ctx, two, fmt.Sprintf("crowd-%d", n), endpoints...)
	}
	for name, target := range map[string]string{
		"outside": "www.outside.example",
		"inside":  "server.default.svc.cluster.local",
		"across":  "server.default.svc.kubelink3.kubelink",
		"zigzag":  "zag.default.svc.kubelink3.kubelink",
		"lost":    "nobody.default.svc.kubelink3.kubelink",
		"dead":    "server.default.svc.absent.kubelink",
		"itself":  "itself.default.svc.cluster.local",
		"loop-a":  "loop-b.default.svc.cluster.local",
		"loop-b":  "loop-a.default.svc.cluster.local",
	} {
		createForTest(t, ctx, two, aliasService(name, target))
	}
	createForTest(t, ctx, three, aliasService("zag", "server.default.svc.kubelink1.kubelink"))

	createGlobals(t, ctx, internet)
	t.Cleanup(func() { restoreMesh(t) })
	l := two.LinkTo()
	l.Name = absent
	l.Spec.ClusterAddress, l.Spec.CIDR, l.Spec.Endpoint = "192.168.0.99/24", "100.64.240.0/20", two.FQDN+":9"
	l.Spec.PublicKey = strangersKey(absent)
	must(t, one.Apply(ctx, l))
	t.Cleanup(func() { must(t, one.Remove(context.Background(), absent)) })
	must(t, one.WaitState(ctx, absent, v1alpha1.StateDown))

	pod, err := one.Pod(ctx, "asker", testbed.PodOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, pod.Delete(context.Background())) })
	all := append(newQueriers(pod, netip.AddrPortFrom(one.MeshDNSAddress, 53)),
		startResolvers(t, ctx, one, internet, trust, zones)...)
	for _, fromAPI := range []bool{false, true} {
		t.Run(fmt.Sprintf("fromAPI=%t", fromAPI), func(t *testing.T) {
			if fromAPI { // for two clusters: the third goes on with its DNS service
				useAPIServers(t, ctx)
				must(t, one.WaitState(ctx, absent, v1alpha1.StateDown))
			}
			within(t, 10*time.Second, "what the test has made", func(ctx context.Context) error {
				for _, q := range []string{
					"crowd-300.default.svc.kubelink2.kubelink. A", "peers.default.svc.kubelink2.kubelink. A",
					"across.default.svc.kubelink2.kubelink. A",
					"outside.default.svc.kubelink2.kubelink. CNAME", "zag.default.svc.kubelink3.kubelink. A",
					"wine.cellar.store.svc.global.kubelink. TXT",
				} {
					name, kind, _ := strings.Cut(q, " ")
					m, err := pod.QueryAt(ctx, "tcp", netip.AddrPortFrom(one.MeshDNSAddress, 53), name, dns.StringToType[kind])
					if err != nil {
						return err
					}
					if len(m.Answer) == 0 {
						return errors.New(m.String())
					}
				}
				return nil
			})
			compareAll(t, ctx, all, append(meshTable(one, fromAPI, crowds), globalTable()...))
		})
	}
}

// compareAll sends all queries in all ways.
func compareAll(t *testing.T, ctx context.Context, all []querier, rows []row) {
	t.Helper()
	questions := make([]dns.Question, len(rows))
	seen := map[dns.Question]bool{}
	for i, r := range rows {
		if questions[i] = r.question; seen[r.question] {
			t.Errorf("%v is asked twice", r.question)
		}
		seen[r.question] = true
	}
	type failure struct {
		question, what string
	}
	var mu sync.Mutex
	failures := map[failure][]string{} // with the queriers that saw them
	var wg sync.WaitGroup
	for _, a := range all {
		wg.Go(func() {
			start := time.Now()
			answers, err := a.query(ctx, questions)
			if err != nil {
				t.Errorf("%s: %v", a.name, err)
				return
			}
			t.Logf("%s: %d questions in %s", a.name, len(rows), time.Since(start).Round(time.Millisecond))
			mu.Lock()
			defer mu.Unlock()
			for i, m := range answers {
				r := rows[i]
				if a.name == "unbound forwarding" && r.isReferral() { // it expects clients that follow referrals themselves
					r.front = &outcome{rcode: r.want.rcode}
				}
				if err := r.compareAnswer(a, m); err != nil {
					f := failure{questions[i].Name + " " + dns.TypeToString[questions[i].Qtype], err.Error()}
					failures[f] = append(failures[f], a.name)
				}
			}
		})
	}
	wg.Wait()
	for f, seen := range failures {
		t.Errorf("%s: %s (%s)", f.question, f.what, strings.Join(seen, ", "))
	}
}

// meshTable has the expected answers of a cluster's kubelink. Names of the first two clusters come from their API
// servers, or all names come from DNS services.
func meshTable(of *fleet.Broker, fromAPI bool, crowds map[int][]string) []row {
	one, two, three := brokers[0], brokers[1], brokers[2]
	a := func(addr netip.Addr) string { return "A " + addr.String() }
	ptr := func(addr string) string {
		name, err := dns.ReverseAddr(addr)
		if err != nil {
			panic(err)
		}
		return name + " PTR"
	}
	lost := func(question string) row {
		r := nxdomain(question, "kubelink3.kubelink")
		r.want.answer = withOwners(r.question, []string{"CNAME nobody.default.svc.kubelink3.kubelink."})
		return r
	}
	leftOut := func(question, addr string) row {
		r := nodata(question, "kubelink2.kubelink")
		r.reason = addr
		return r
	}
	rows := []row{
		// The mesh.
		answer("kubelink SOA", "SOA ns.dns.kubelink. hostmaster.kubelink. 0 7200 1800 86400 5"),
		answer("kubelink NS", "NS ns.dns.kubelink."),
		nodata("kubelink A", "kubelink"),
		nodata("kubelink AAAA", "kubelink"),
		nodata("kubelink TXT", "kubelink"),
		nodata("kubelink MX", "kubelink"),
		answer("ns.dns.kubelink A", a(of.MeshDNSAddress)),
		nodata("ns.dns.kubelink AAAA", "kubelink"),
		nodata("dns.kubelink A", "kubelink"), // an empty non-terminal
		nodata("dns.kubelink NS", "kubelink"),
		nxdomain("other.dns.kubelink A", "kubelink"),
		nxdomain("nobody.kubelink A", "kubelink"),
		nxdomain("nobody.kubelink TXT", "kubelink"),
		nxdomain("a.b.c.nobody.kubelink A", "kubelink"),
		nxdomain("_state.nobody.kubelink TXT", "kubelink"),
		nxdomain("server.default.svc.kubelink A", "kubelink"),
		nxdomain(`kubelink2\.kubelink.kubelink A`, "kubelink"),
		answer("KUBElink SOA", "SOA ns.dns.kubelink. hostmaster.kubelink. 0 7200 1800 86400 5"),
		nxdomain("NoBody.KubeLink AAAA", "kubelink"),

		// Clusters.
		answer("kubelink1.kubelink A", a(one.MeshAddress.Addr())),
		answer("kubelink2.kubelink A", a(two.MeshAddress.Addr())),
		answer("kubelink3.kubelink A", a(three.MeshAddress.Addr())),
		answer("KubeLink2.kubelink A", a(two.MeshAddress.Addr())),
		nodata("kubelink2.kubelink AAAA", "kubelink"),
		nodata("kubelink2.kubelink TXT", "kubelink2.kubelink"),
		nodata("kubelink2.kubelink MX", "kubelink2.kubelink"),
		answer("kubelink2.kubelink SOA", "SOA ns.dns.kubelink. hostmaster.kubelink. 0 7200 1800 86400 5"),
		answer("kubelink2.kubelink NS", "NS ns.dns.kubelink."), // and not its own DNS service, which knows no mesh
		answer("KubeLink3.kubelink NS", "NS ns.dns.kubelink."),
		answer("dns-version.kubelink2.kubelink TXT", `TXT "1.1.0"`),
		nodata("dns-version.kubelink2.kubelink A", "kubelink2.kubelink"),
		nodata("_state.kubelink2.kubelink A", "kubelink"),
		nxdomain("x._state.kubelink2.kubelink TXT", "kubelink2.kubelink"),

		// Services.
		answer("server.default.svc.kubelink1.kubelink A", a(servers[0].service)),
		answer("server.default.svc.kubelink2.kubelink A", a(servers[1].service)),
		answer("server.default.svc.kubelink3.kubelink A", a(servers[2].service)),
		answer("kubernetes.default.svc.kubelink1.kubelink A", a(one.APIAddress)),
		answer("kubernetes.default.svc.kubelink2.kubelink A", a(two.APIAddress)),
		answer("kubernetes.default.svc.kubelink3.kubelink A", a(three.APIAddress)),
		answer("kube-dns.kube-system.svc.kubelink2.kubelink A", a(two.DNSAddress)),
		answer("SERVER.Default.SVC.kubelink2.KUBELINK A", a(servers[1].service)),
		answer("sErVeR.dEfAuLt.sVc.kUbElInK3.kUbElInK A", a(servers[2].service)),
		nodata("server.default.svc.kubelink2.kubelink AAAA", "kubelink2.kubelink"),
		nodata("server.default.svc.kubelink2.kubelink TXT", "kubelink2.kubelink"),
		nodata("server.default.svc.kubelink2.kubelink MX", "kubelink2.kubelink"),
		nodata("server.default.svc.kubelink2.kubelink HTTPS", "kubelink2.kubelink"),
		nodata("server.default.svc.kubelink2.kubelink CNAME", "kubelink2.kubelink"),
		nodata("server.default.svc.kubelink2.kubelink NS", "kubelink2.kubelink"),
		answer("_http._tcp.server.default.svc.kubelink2.kubelink SRV", "SRV 0 100 80 server.default.svc.kubelink2.kubelink."),
		answer("_udp-9000._udp.server.default.svc.kubelink2.kubelink SRV",
			"SRV 0 100 9000 server.default.svc.kubelink2.kubelink."),
		answer("_https._tcp.kubernetes.default.svc.kubelink3.kubelink SRV",
			"SRV 0 100 443 kubernetes.default.svc.kubelink3.kubelink."),
		answer("_HTTP._TCP.server.default.svc.kubelink2.kubelink SRV", "SRV 0 100 80 server.default.svc.kubelink2.kubelink."),
		nxdomain("_nothing._tcp.server.default.svc.kubelink2.kubelink SRV", "kubelink2.kubelink"),
		nxdomain("nobody.default.svc.kubelink2.kubelink A", "kubelink2.kubelink"),
		nxdomain("nobody.default.svc.kubelink2.kubelink SRV", "kubelink2.kubelink"),
		nxdomain("server.nobody.svc.kubelink2.kubelink A", "kubelink2.kubelink"),
		nxdomain("x.y.server.default.svc.kubelink2.kubelink A", "kubelink2.kubelink"),
		nxdomain(`a\.b.default.svc.kubelink2.kubelink A`, "kubelink2.kubelink"),
		nxdomain("NoBody.Default.svc.kubelink2.kubelink AAAA", "kubelink2.kubelink"),
		nodata("svc.kubelink2.kubelink A", "kubelink2.kubelink"),
		nodata("default.svc.kubelink2.kubelink A", "kubelink2.kubelink"),
		nxdomain("nobody.kubelink2.kubelink A", "kubelink2.kubelink"),
		nodata("_tcp.server.default.svc.kubelink2.kubelink A", "kubelink2.kubelink"), // there is _http._tcp below
		nodata("_TCP.server.default.svc.kubelink3.kubelink SRV", "kubelink3.kubelink"),
		nodata("_tcp.server.default.svc.kubelink1.kubelink NS", "kubelink1.kubelink"),
		nxdomain("_tcp.nobody.default.svc.kubelink2.kubelink A", "kubelink2.kubelink"),

		// Their endpoints.
		leftOut("db.default.svc.kubelink2.kubelink A", "100.96.1.3"),
		leftOut("db.default.svc.kubelink2.kubelink AAAA", "fd00:96::"),
		leftOut("db-0.db.default.svc.kubelink2.kubelink A", "100.96.1.3"),
		leftOut("100-96-1-2.db.default.svc.kubelink2.kubelink A", "100.96.1.2"),
		answer("peers.default.svc.kubelink2.kubelink A", "A 100.64.30.1", "A 100.64.30.2", "A 100.64.30.3"),
		nodata("peers.default.svc.kubelink2.kubelink AAAA", "kubelink2.kubelink"),
		answer("first.peers.default.svc.kubelink2.kubelink A", "A 100.64.30.1"),
		answer("second.peers.default.svc.kubelink2.kubelink A", "A 100.64.30.2"),
		answer("100-64-30-3.peers.default.svc.kubelink2.kubelink A", "A 100.64.30.3"),
		answer("First.Peers.default.svc.kubelink2.kubelink A", "A 100.64.30.1"),
		nxdomain("third.peers.default.svc.kubelink2.kubelink A", "kubelink2.kubelink"),
		nxdomain("100-64-30-1.peers.default.svc.kubelink2.kubelink A", "kubelink2.kubelink"),
		answer("_http._tcp.peers.default.svc.kubelink2.kubelink SRV",
			"SRV 0 33 8080 first.peers.default.svc.kubelink2.kubelink.",
			"SRV 0 33 8080 second.peers.default.svc.kubelink2.kubelink.",
			"SRV 0 33 8080 100-64-30-3.peers.default.svc.kubelink2.kubelink."),
		answer("crowd-40.default.svc.kubelink2.kubelink A", crowds[40]...).largerThan(512),
		answer("crowd-100.default.svc.kubelink2.kubelink A", crowds[100]...).largerThan(1232),
		answer("crowd-300.default.svc.kubelink2.kubelink A", crowds[300]...).largerThan(4096),
		nodata("crowd-300.default.svc.kubelink2.kubelink AAAA", "kubelink2.kubelink"),

		// Aliases.
		answer("outside.default.svc.kubelink2.kubelink A",
			"CNAME www.outside.example.").resolvedAs("www.outside.example. A 192.0.2.80"),
		answer("outside.default.svc.kubelink2.kubelink CNAME", "CNAME www.outside.example."),
		answer("inside.default.svc.kubelink2.kubelink A",
			"CNAME server.default.svc.kubelink2.kubelink.", "server.default.svc.kubelink2.kubelink. "+a(servers[1].service)),
		answer("across.default.svc.kubelink2.kubelink A",
			"CNAME server.default.svc.kubelink3.kubelink.", "server.default.svc.kubelink3.kubelink. "+a(servers[2].service)),
		answer("across.default.svc.kubelink2.kubelink CNAME", "CNAME server.default.svc.kubelink3.kubelink."),
		answer("Across.Default.svc.kubelink2.kubelink A",
			"CNAME server.default.svc.kubelink3.kubelink.", "server.default.svc.kubelink3.kubelink. "+a(servers[2].service)),
		answer("zigzag.default.svc.kubelink2.kubelink A",
			"CNAME zag.default.svc.kubelink3.kubelink.",
			"zag.default.svc.kubelink3.kubelink. CNAME server.default.svc.kubelink1.kubelink.",
			"server.default.svc.kubelink1.kubelink. "+a(servers[0].service)),
		lost("lost.default.svc.kubelink2.kubelink A"),
		servfail("dead.default.svc.kubelink2.kubelink A", "link absent is Down"),

		// A cluster that cannot be reached.
		servfail("absent.kubelink A", "link absent is Down"),
		servfail("absent.kubelink SOA", "link absent is Down"),
		servfail("server.default.svc.absent.kubelink A", "link absent is Down"),
		servfail("_http._tcp.server.default.svc.absent.kubelink SRV", "link absent is Down"),
		servfail("Server.default.svc.Absent.kubelink AAAA", "link absent is Down"),
		servfail(ptr("192.168.0.99"), "link absent is Down"),
		servfail(ptr("100.64.240.1"), "link absent is Down"),
		nodata("_state.absent.kubelink A", "kubelink"),

		// Addresses.
		answer(ptr("192.168.0.11"), "PTR kubelink1.kubelink."),
		answer(ptr("192.168.0.12"), "PTR kubelink2.kubelink."),
		answer(ptr("192.168.0.13"), "PTR kubelink3.kubelink."),
		nxdomain(ptr("192.168.0.77"), "0.168.192.in-addr.arpa"),
		answer(ptr(servers[0].service.String()), "PTR server.default.svc.kubelink1.kubelink."),
		answer(ptr(servers[1].service.String()), "PTR server.default.svc.kubelink2.kubelink."),
		answer(ptr(servers[2].service.String()), "PTR server.default.svc.kubelink3.kubelink."),
		answer(ptr(two.APIAddress.String()), "PTR kubernetes.default.svc.kubelink2.kubelink."),
		nodata(strings.Replace(ptr("192.168.0.12"), "PTR", "A", 1), "0.168.192.in-addr.arpa"),
		answer("0.168.192.in-addr.arpa SOA", "SOA ns.dns.kubelink. hostmaster.kubelink. 0 7200 1800 86400 5"),
		answer("0.168.192.in-addr.arpa NS", "NS ns.dns.kubelink."),
		answer("16.64.100.in-addr.arpa SOA", "SOA ns.dns.kubelink. hostmaster.kubelink. 0 7200 1800 86400 5"),
		answer("64.100.in-addr.arpa SOA", "SOA ns.dns.kubelink. hostmaster.kubelink. 0 7200 1800 86400 5"),
		answer("64.100.in-addr.arpa NS", "NS ns.dns.kubelink."),
		nodata("64.100.in-addr.arpa PTR", "64.100.in-addr.arpa"),
		nxdomain(ptr("100.64.200.1"), "64.100.in-addr.arpa"), // of no cluster
	}
	if fromAPI {
		rows = append(rows,
			servfail("itself.default.svc.kubelink2.kubelink A", "circle"),
			servfail("loop-a.default.svc.kubelink2.kubelink A", "circle"),
			nxdomain(ptr("100.64.16.250"), "16.64.100.in-addr.arpa"),
		)
	} else {
		rows = append(rows,
			nodata("itself.default.svc.kubelink2.kubelink A", "kubelink2.kubelink"),
			nodata("loop-a.default.svc.kubelink2.kubelink A", "kubelink2.kubelink"),
			// which has no upstream server
			servfail(ptr("100.64.16.250"), "answer of DNS service 100.64.16.10:53 of link kubelink2"),
		)
	}
	for _, b := range brokers {
		facts := `TXT "state=Up" "since=*" "rtt=*"`
		if b == of {
			facts = `TXT "state=Local"`
		}
		rows = append(rows, answer("_state."+b.Name+".kubelink TXT", facts))
	}

	// Names outside of the mesh.
	foreign := answer("www.outside.example A").resolvedAs("A 192.0.2.80")
	foreign.want.rcode, foreign.want.authoritative, foreign.front.rcode = "REFUSED", false, "NOERROR"
	through := answer("alias.outside.example A").resolvedAs("CNAME www.outside.example.",
		"www.outside.example. A 192.0.2.80")
	through.want.rcode, through.want.authoritative, through.front.rcode = "REFUSED", false, "NOERROR"
	return append(rows, foreign, through)
}

// Each cluster follows aliases on its own, with its own kubelink. If two aliases lead to each other, the queries end.
func TestAliasesInACircle(t *testing.T) {
	ctx := startTest(t, time.Minute)
	two, three := brokers[1], brokers[2]
	createForTest(t, ctx, two, aliasService("circle", "circle.default.svc.kubelink3.kubelink"))
	createForTest(t, ctx, three, aliasService("circle", "circle.default.svc.kubelink2.kubelink"))
	asked := func(ctx context.Context) (n float64, err error) {
		for _, b := range []*fleet.Broker{two, three} {
			v, err := b.Metric(ctx,
				`coredns_dns_requests_total{family="1",proto="udp",server="dns://:1053",type="A",view="",zone="kubelink."}`)
			if err != nil {
				return 0, err
			}
			n += v
		}
		return n, nil
	}
	before, err := asked(ctx)
	must(t, err)
	question := answer("circle.default.svc.kubelink2.kubelink A").question
	within(t, 10*time.Second, "failure", func(ctx context.Context) error {
		got, err := queryDig(ctx, clients[0], netip.AddrPortFrom(brokers[0].MeshDNSAddress, 53), "udp", 1232,
			[]dns.Question{question})
		if err != nil {
			return err
		}
		if got[0].Rcode != dns.RcodeServerFailure || !strings.Contains(extendedError(got[0]), "kubelink2") {
			return errors.New(got[0].String())
		}
		return nil
	})
	last, since := before, time.Now()
	within(t, 10*time.Second, "an end of the questions", func(ctx context.Context) error {
		n, err := asked(ctx)
		if err != nil {
			return err
		}
		if n != last {
			last, since = n, time.Now()
		}
		if time.Since(since) < 3*time.Second {
			return fmt.Errorf("%g questions", n-before)
		}
		return nil
	})
	t.Logf("%g questions", last-before)
	if last-before > 100 {
		t.Errorf("it took %g questions", last-before)
	}
}
