package apizone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
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

// checkAbsence is nil if the backend cannot answer, and its reason has the text.
func checkAbsence(t testing.TB, b zone.Backend, text string) error {
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

// Until all names are there, and where they cannot be loaded, the backend says why.
func TestBackendSaysWhy(t *testing.T) {
	for _, c := range []struct {
		name   string
		refuse func(*http.Request) (int, string)
		edit   func(*apiSource)
		says   string
	}{
		{"slow", func(r *http.Request) (int, string) { <-r.Context().Done(); return 0, "" }, nil,
			"names of cluster two.kubelink. are being loaded from its API server"},
		{"forbidden", forbid("services"), nil,
			`: services is forbidden: User "system:serviceaccount:default:nobody" cannot list resource "services"`},
		{"one forbidden", forbid("endpointslices"), nil, ": endpointslices is forbidden"},
		{"token", onlyToken("other"), nil, ": Unauthorized: the token of secret kube-system/two is not accepted"},
		{"busy", func(*http.Request) (int, string) { return http.StatusServiceUnavailable, "etcd is away" }, nil,
			": etcd is away"},
		{"redirection", func(*http.Request) (int, string) { return http.StatusFound, "see\nthere" }, nil, ": see there"},
		{"long story", func(*http.Request) (int, string) { return http.StatusForbidden, strings.Repeat("x", 1000) }, nil,
			strings.Repeat("x", maxReason) + "..."},
		{"endless watch", endless("services", http.StatusOK, true), nil,
			": it has more than 8 MiB of services: this is too much to load"},
		{"endless list", endless("services", http.StatusOK, false), nil,
			": it has more than 8 MiB of services: this is too much to load"},
		{"endless pages", endless("services", http.StatusPartialContent, false), nil,
			": it has more than 8 MiB of services: this is too much to load"},
		{"no API server", func(*http.Request) (int, string) { return http.StatusNotFound, "" }, nil, ": 404 Not Found"},
		{"CA", nil, func(s *apiSource) {
			s.ca = someCA(t)
		}, ": its certificate is not signed by the CA in certificate-authority-data of secret kube-system/two"},
		{"nobody there", nil, func(s *apiSource) { s.server = "https://127.0.0.1:1" },
			"API server https://127.0.0.1:1: connect: connection refused"},
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
			bench.until(t, "reason", func() error { return checkAbsence(t, b, c.says) })
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
	missing := errors.New("secret kube-system/two does not exist")
	bench.want(Access{link: "two", err: missing, apiSource: apiSource{zone: "two.kubelink."}})
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
	if err := checkAbsence(t, b, wrong.Error()); err != nil {
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
	config := &rest.Config{
		Host: stub.URL, BearerToken: "own", TLSClientConfig: rest.TLSClientConfig{CAData: []byte(stub.ca)},
	}
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
		b := bench.want(
			Access{link: "bad", apiSource: other}, Access{link: "dead", apiSource: dead},
			Access{link: "two", apiSource: good.source("t")},
		)
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
		t.Errorf("Set takes %v", set)
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

// Close waits for the goroutines of all instances: those that have their names, that load them, and that cannot.
func TestClose(t *testing.T) {
	stub := newWebStub(t)
	bench := newBench(t)
	loaded, dead, suspended, broken := stub.source("t"), stub.source("t"), stub.source("t"), stub.source("t")
	dead.zone, dead.server = "dead.kubelink.", "https://127.0.0.1:1"
	suspended.zone, suspended.server = "suspended.kubelink.", "https://127.0.0.1:1"
	broken.zone, broken.ca = "broken.kubelink.", "no CA"
	all := []Access{
		{link: "dead", apiSource: dead}, {link: "suspended", apiSource: suspended}, {link: "broken", apiSource: broken},
		{link: "two", apiSource: loaded},
	}
	b := bench.want(all...)
	bench.until(t, "names", func() error { return answered(t, b, web) })
	bench.Set(all, func(link string) bool { return link != "suspended" })
	bench.Close()
	buf := make([]byte, 1<<20)
	stacks := string(buf[:runtime.Stack(buf, true)])
	if strings.Contains(stacks, "apizone.(*instance).run(") {
		t.Errorf("an instance still runs:\n%s", stacks)
	}
	if err := answered(t, b, web); err != nil {
		t.Errorf("a query that was under way: %v", err)
	}
	if len(bench.Statuses()) != 0 {
		t.Error(bench.Statuses())
	}
}
