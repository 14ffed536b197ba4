package apizone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/zone"
)

// bench is backends that are watched.
type bench struct {
	*Zones
	changes chan struct{}
	up      bool // the links are usable
}

func newBench(t testing.TB) *bench {
	changes := make(chan struct{}, 1)
	zones := New(slog.New(slog.DiscardHandler), func() {
		select {
		case changes <- struct{}{}:
		default:
		}
	})
	t.Cleanup(zones.Close)
	return &bench{Zones: zones, changes: changes, up: true}
}

// want sets the accesses and returns the backend of the last one.
func (b *bench) want(all ...Access) zone.Backend {
	backends := b.Set(all, func(string) bool { return b.up })
	return backends[all[len(all)-1].zone]
}

// until waits for a condition that a change of the backends brings about.
func (b *bench) until(t testing.TB, what string, condition func() error) {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-b.changes:
		case <-timeout:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// eventually waits for what no change of the backends announces.
func eventually(t testing.TB, condition func() error) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// query asks a backend, and packs the reply as a server does.
func query(t testing.TB, b zone.Backend, name string, qtype uint16) (*dns.Msg, error) {
	t.Helper()
	req := new(dns.Msg)
	req.SetQuestion(name, qtype)
	req.Id = 4711
	state := request.Request{W: &test.ResponseWriter{}, Req: req}
	m, err := b.Answer(context.Background(), &state)
	if err != nil {
		return nil, err
	}
	if m.Id != 4711 || !m.Response || m.Question[0].Name != name {
		t.Fatalf("not a reply to %s: %v", name, m)
	}
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	out := new(dns.Msg)
	if err := out.Unpack(wire); err != nil {
		t.Fatal(err)
	}
	return out, nil
}

// answered is nil if the name has an answer.
func answered(t testing.TB, b zone.Backend, name string) error {
	t.Helper()
	m, err := query(t, b, name, dns.TypeA)
	if err == nil && len(m.Answer) == 0 {
		err = errors.New(dns.RcodeToString[m.Rcode])
	}
	return err
}

// says is nil if the backend cannot answer, and its reason has the text.
func says(t testing.TB, b zone.Backend, text string) error {
	t.Helper()
	switch _, err := query(t, b, web, dns.TypeA); {
	case err == nil:
		return errors.New("it answers")
	case !strings.Contains(err.Error(), text):
		return fmt.Errorf("it says %q, not %q", err, text)
	}
	return nil
}

const web = "web.default.svc.two.kubelink."

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
		{"_http._tcp." + web, dns.TypeSRV, 0, "_http._tcp." + web + " 5 IN SRV 0 100 80 " + web + " " + web + " 5 IN A 100.64.16.20"},
		{"_x._tcp." + web, dns.TypeSRV, dns.RcodeNameError, soa},
		{"nobody.default.svc.two.kubelink.", dns.TypeA, dns.RcodeNameError, soa},
		{"web.other.svc.two.kubelink.", dns.TypeA, dns.RcodeNameError, soa},
		{"1-2-3-4.default.pod.two.kubelink.", dns.TypeA, dns.RcodeNameError, soa},
		{"pods.default.svc.two.kubelink.", dns.TypeA, 0, "pods.default.svc.two.kubelink. 5 IN A 100.96.0.5 pods.default.svc.two.kubelink. 5 IN A 100.96.0.6"},
		{"pod-1.pods.default.svc.two.kubelink.", dns.TypeA, 0, "pod-1.pods.default.svc.two.kubelink. 5 IN A 100.96.0.6"},
		{"two.kubelink.", dns.TypeSOA, 0, soa},
		{"svc.two.kubelink.", dns.TypeA, 0, soa},
		{"dns-version.two.kubelink.", dns.TypeTXT, 0, `dns-version.two.kubelink. 5 IN TXT "1.1.0"`},
		{"alias.default.svc.two.kubelink.", dns.TypeA, 0, "alias.default.svc.two.kubelink. 5 IN CNAME " + web}, // to be followed by others
		{"alias.default.svc.two.kubelink.", dns.TypeCNAME, 0, "alias.default.svc.two.kubelink. 5 IN CNAME " + web},
		{"alias.default.svc.two.kubelink.", dns.TypeAAAA, 0, "alias.default.svc.two.kubelink. 5 IN CNAME " + web},
		{"alias2.default.svc.two.kubelink.", dns.TypeA, 0, "alias2.default.svc.two.kubelink. 5 IN CNAME alias.default.svc.two.kubelink."},
		{"outside.default.svc.two.kubelink.", dns.TypeA, 0, "outside.default.svc.two.kubelink. 5 IN CNAME www.example.com."},
		{"outside.default.svc.two.kubelink.", dns.TypeCNAME, 0, "outside.default.svc.two.kubelink. 5 IN CNAME www.example.com."},
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
				t.Errorf("%s %s\nwant %s %s", dns.RcodeToString[m.Rcode], strings.Join(got, " "), dns.RcodeToString[c.rcode], c.want)
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

// What is kept of the plugin's answers follows every change, and is nobody's to change.
func TestKeptAnswers(t *testing.T) {
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
		{"begin", func() {}, map[string]int{web: 1, pods: 1, pod1: 0, "_http._tcp." + web: 1, "_dns._udp." + web: 0, other: 0}},
		{"endpoint added", func() { stub.endpoint("pods", "pod-1", "100.96.0.6") }, map[string]int{web: 1, pods: 2, pod1: 1, "_http._tcp." + pods: 2}},
		{"endpoint removed", func() { stub.remove("endpointslices", newEndpoint("pods", "pod-0", "100.96.0.5")) }, map[string]int{pods: 1, pod1: 1, "_http._tcp." + pods: 1}},
		{"port changed", func() {
			stub.service("web", "100.64.16.20", func(s *corev1.Service) { s.Spec.Ports[0].Name, s.Spec.Ports[0].Protocol = "dns", corev1.ProtocolUDP })
		}, map[string]int{web: 1, "_http._tcp." + web: 0, "_dns._udp." + web: 1}},
		{"now an alias", func() { stub.service("web", "", external("pods.default.svc.cluster.local")) }, map[string]int{web: 1, "CNAME " + web: 1}},
		{"another endpoint", func() { stub.endpoint("pods", "pod-2", "100.96.0.7") }, map[string]int{web: 1, pods: 2}},
		{"service removed", func() { stub.remove("services", newService("web", "")) }, map[string]int{web: 0}},
		{"service added", func() { stub.service("other", "100.64.16.21") }, map[string]int{other: 1}},
		{"namespace removed", func() { stub.remove("namespaces", newNamespace("default")) }, map[string]int{other: 0, pods: 0, pod1: 0}},
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
		m, err := b.Answer(t.Context(), &request.Request{W: &test.ResponseWriter{}, Req: new(dns.Msg).SetQuestion(other, dns.TypeA)})
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

// Until all names are there, and where they cannot be loaded, the backend says why.
func TestBackendSaysWhy(t *testing.T) {
	for _, c := range []struct {
		name   string
		refuse func(*http.Request) (int, string)
		edit   func(*apiSource)
		says   string
	}{
		{"slow", func(r *http.Request) (int, string) { <-r.Context().Done(); return 0, "" }, nil, "names of cluster two.kubelink. are being loaded from its API server"},
		{"forbidden", forbid("services"), nil, `: services is forbidden: User "system:serviceaccount:default:nobody" cannot list resource "services"`},
		{"one forbidden", forbid("endpointslices"), nil, ": endpointslices is forbidden"},
		{"token", onlyToken("other"), nil, ": Unauthorized: the token of secret kube-system/two is not accepted"},
		{"busy", func(*http.Request) (int, string) { return http.StatusServiceUnavailable, "etcd is away" }, nil, ": etcd is away"},
		{"redirection", func(*http.Request) (int, string) { return http.StatusFound, "see\nthere" }, nil, ": see there"},
		{"long story", func(*http.Request) (int, string) { return http.StatusForbidden, strings.Repeat("x", 1000) }, nil, strings.Repeat("x", maxReason) + "..."},
		{"endless watch", endless("services", http.StatusOK, true), nil, ": it has more than 8 MiB of services: this is too much to load"},
		{"endless list", endless("services", http.StatusOK, false), nil, ": it has more than 8 MiB of services: this is too much to load"},
		{"endless pages", endless("services", http.StatusPartialContent, false), nil, ": it has more than 8 MiB of services: this is too much to load"},
		{"no API server", func(*http.Request) (int, string) { return http.StatusNotFound, "" }, nil, ": 404 Not Found"},
		{"CA", nil, func(s *apiSource) {
			s.ca = someCA(t)
		}, ": its certificate is not signed by the CA in certificate-authority-data of secret kube-system/two"},
		{"nobody there", nil, func(s *apiSource) { s.server = "https://127.0.0.1:1" }, "API server https://127.0.0.1:1: connect: connection refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			stub := newWebStub(t)
			stub.setRefuse(c.refuse)
			source := stub.source("t")
			if c.edit != nil {
				c.edit(&source)
			}
			bench := newBench(t)
			b := bench.want(Access{link: "two", apiSource: source})
			bench.until(t, "reason", func() error { return says(t, b, c.says) })
			if b.Loading() != (c.name == "slow") {
				t.Errorf("loading: %v", b.Loading())
			}
			// What a peer offers is no reason to give up its DNS service.
			if bench.want(Access{link: "two", apiSource: source, announced: true}); !b.Loading() {
				t.Error("announced access that cannot be used is")
			}
			bench.want(Access{link: "two", apiSource: source})
			if c.edit != nil || c.name == "slow" {
				return
			}
			// What was wrong is tried again before long.
			stub.setRefuse(nil)
			bench.until(t, "names", func() error { return answered(t, b, web) })
			bench.until(t, "end of trouble", func() (err error) {
				for _, s := range bench.Statuses() {
					err = s.Err
				}
				return err
			})
		})
	}
}

// What changes once the names are loaded may be as much as it is.
func TestLongWatch(t *testing.T) {
	stub := newWebStub(t)
	bench := newBench(t)
	b := bench.want(Access{link: "two", apiSource: stub.source("t")})
	bench.until(t, "names", func() error { return answered(t, b, web) })
	large := strings.Repeat("x", 1<<20)
	for range 2 * maxLoad >> 20 {
		stub.service("large", "100.64.16.30", func(s *corev1.Service) { s.Annotations = map[string]string{"large": large} })
	}
	stub.service("last", "100.64.16.21")
	eventually(t, func() error { return answered(t, b, "last.default.svc.two.kubelink.") })
	for _, s := range bench.Statuses() {
		if s.Err != nil {
			t.Error(s.Err)
		}
	}
}

// A watch that brings the names and what changes later, which the stub has none of, is bounded until the names are loaded.
func TestBoundedBody(t *testing.T) {
	for _, c := range []struct{ watch, loaded, ends bool }{{true, false, true}, {true, true, false}, {false, false, true}, {false, true, true}} {
		tr := newTransport(apiSource{}, func() {})
		tr.loaded.Store(c.loaded)
		body := io.NopCloser(strings.NewReader(strings.Repeat(" ", int(2*maxLoad))))
		n, err := io.Copy(io.Discard, &boundedBody{ReadCloser: body, transport: tr, resource: "services", watch: c.watch})
		if (err != nil) != c.ends || (n > maxLoad) == c.ends || (tr.currentError() != nil) != c.ends {
			t.Errorf("%v: %d bytes, %v, %v", c, n, err, tr.currentError())
		}
	}
}

// Other credentials take over when their names are loaded; until then, and if they cannot, the old
// ones go on.
func TestBackendReplacement(t *testing.T) {
	stub := newWebStub(t)
	bench := newBench(t)
	b := bench.want(Access{link: "two", apiSource: stub.source("old")})
	bench.until(t, "names", func() error { return answered(t, b, web) })
	old := b.(*backend).current.Load()

	done, failures := make(chan struct{}), atomic.Int64{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
				if answered(t, b, web) != nil {
					failures.Add(1)
				}
			}
		}
	}()
	stub.setRefuse(onlyToken("good"))
	bench.want(Access{link: "two", apiSource: stub.source("bad")})
	bench.until(t, "complaint", func() (err error) {
		for _, s := range bench.Statuses() {
			if !s.Loaded || s.Err == nil || !strings.Contains(s.Err.Error(), "not accepted") {
				err = fmt.Errorf("loaded: %v, error: %v", s.Loaded, s.Err)
			}
		}
		return err
	})
	if b.(*backend).current.Load() != old {
		t.Error("an instance that cannot work has taken over")
	}
	bench.want(Access{link: "two", err: errors.New("secret kube-system/two does not exist"), apiSource: apiSource{zone: "two.kubelink."}})
	bench.want(Access{link: "two", apiSource: stub.source("good")})
	bench.until(t, "replacement", func() error {
		if b.(*backend).current.Load() == old {
			return errors.New("the old one")
		}
		return nil
	})
	close(done)
	<-ended
	if n := failures.Load(); n > 0 {
		t.Errorf("%d queries failed", n)
	}
	// Back to what is in use: what was begun is given up.
	current := b.(*backend).current.Load()
	bench.want(Access{link: "two", apiSource: stub.source("bad")})
	bench.want(Access{link: "two", apiSource: stub.source("good")})
	if b := b.(*backend); b.next != nil || b.current.Load() != current {
		t.Error("the same credentials are no change")
	}
}

// A secret that cannot be used is the reason; the link that is down is not asked.
func TestBackendWithoutAccess(t *testing.T) {
	stub := newWebStub(t)
	bench := newBench(t)
	wrong := errors.New("secret kube-system/two: key token is missing")
	b := bench.want(Access{link: "two", err: wrong, apiSource: apiSource{zone: "two.kubelink."}})
	if err := says(t, b, wrong.Error()); err != nil {
		t.Error(err)
	}
	bench.up = false
	bench.want(Access{link: "two", apiSource: stub.source("t")})
	if b.(*backend).next != nil {
		t.Error("an API server behind a link that is down is asked")
	}
	bench.up = true
	bench.want(Access{link: "two", apiSource: stub.source("t")})
	bench.until(t, "names", func() error { return answered(t, b, web) })

	// The link goes and comes back: connections are made anew, names stay, and so does the instance.
	watches := func(n int) {
		t.Helper()
		eventually(t, func() error {
			if busy := stub.busy(); busy != n {
				return fmt.Errorf("%d requests are under way, want %d", busy, n)
			}
			return nil
		})
	}
	watches(3)
	current := b.(*backend).current.Load()
	bench.up = false
	bench.want(Access{link: "two", apiSource: stub.source("t")})
	watches(0)
	stub.service("late", "100.64.16.21")
	bench.up = true
	bench.want(Access{link: "two", apiSource: stub.source("t")})
	if err := answered(t, b, web); err != nil || b.(*backend).current.Load() != current {
		t.Error(err)
	}
	watches(3)
	eventually(t, func() error { return answered(t, b, "late.default.svc.two.kubelink.") })
}

// The broker's own API server, with its own credentials.
func TestBackendOfLocalCluster(t *testing.T) {
	stub := newAPIStub(t)
	stub.namespace("default")
	stub.service("web", "100.64.0.20")
	stub.setRefuse(onlyToken("own"))
	config := &rest.Config{Host: stub.URL, BearerToken: "own", TLSClientConfig: rest.TLSClientConfig{CAData: []byte(stub.ca)}}
	bench := newBench(t)
	b := bench.want(Access{apiSource: apiSource{zone: "two.kubelink.", clusterDomain: "cluster.local.", own: config}})
	bench.until(t, "names", func() error { return answered(t, b, web) })
}

// Instances end with the links: nothing of them is left.
func TestBackendsEnd(t *testing.T) {
	good, bad := newAPIStub(t), newAPIStub(t)
	good.namespace("default")
	good.service("web", "100.64.16.20")
	bad.setRefuse(forbid("services"))
	bench := newBench(t)
	before := runtime.NumGoroutine()
	for range 3 {
		other := bad.source("t")
		other.zone = "bad.kubelink."
		dead := other
		dead.zone, dead.server = "dead.kubelink.", "https://127.0.0.1:1"
		b := bench.want(Access{link: "bad", apiSource: other}, Access{link: "dead", apiSource: dead}, Access{link: "two", apiSource: good.source("t")})
		bench.until(t, "names", func() error { return answered(t, b, web) })
		bench.Set(nil, nil)
		if err := answered(t, b, web); err != nil {
			t.Errorf("a query that was under way: %v", err)
		}
	}
	eventually(t, func() error {
		if after := runtime.NumGoroutine(); after > before {
			buf := make([]byte, 1<<20)
			return fmt.Errorf("%d goroutines before, %d after\n%s", before, after, buf[:runtime.Stack(buf, true)])
		}
		return nil
	})
}

// A hundred start, half of them in vain, and none waits for another.
func TestHundredBackends(t *testing.T) {
	good, bad := newAPIStub(t), newAPIStub(t)
	good.namespace("default")
	for i := range 10 {
		good.service(fmt.Sprint("web", i), fmt.Sprint("100.64.16.", 20+i))
	}
	bad.setRefuse(forbid("services"))
	bench := newBench(t)
	var all []Access
	for i := range 100 {
		a := Access{link: fmt.Sprint(i), apiSource: good.source("t")}
		if i%2 == 0 {
			a.apiSource = bad.source("t")
		}
		a.zone = fmt.Sprintf("c%d.kubelink.", i)
		all = append(all, a)
	}
	start := time.Now()
	bench.want(all...)
	set := time.Since(start)
	if set > time.Second {
		t.Errorf("whoever starts them waits for %v", set)
	}
	bench.until(t, "names", func() error {
		n := 0
		for _, s := range bench.Statuses() {
			if s.Loaded {
				n++
			}
		}
		if n < 50 {
			return fmt.Errorf("%d are loaded", n)
		}
		return nil
	})
	t.Logf("started in %v, loaded after %v", set, time.Since(start))
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
