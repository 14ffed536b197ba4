package kubelink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	"github.com/coredns/coredns/plugin/metadata"
	_ "github.com/coredns/coredns/plugin/metrics"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	"github.com/coredns/coredns/plugin/test"
	_ "github.com/coredns/coredns/plugin/transfer"
	"github.com/coredns/coredns/plugin/whoami"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/mandelsoft/kubelink/broker"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
	"github.com/mandelsoft/kubelink/broker/zone"
)

func init() {
	clog.Discard()
	caddy.Quiet, dnsserver.Quiet = true, true
	i := slices.Index(dnsserver.Directives, "k8s_external")
	dnsserver.Directives = slices.Insert(slices.Clone(dnsserver.Directives), i, pluginName)
}

// stateSource is a broker without links: a state source for the plugin, told by the test.
type stateSource struct {
	table atomic.Pointer[zone.Table]
	err   atomic.Pointer[error]

	mu     sync.Mutex
	calls  []string // what the plugin did, in order
	refuse error    // of the next Update
}

func (s *stateSource) recordCall(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
}

// takeCalls are the calls since the last time.
func (s *stateSource) takeCalls() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := strings.Join(s.calls, ", ")
	s.calls = nil
	return calls
}

func (s *stateSource) Start() error { s.recordCall("start"); return nil }

func (s *stateSource) Update(cfg broker.Config) error {
	s.recordCall("update %s", cfg.ClusterName)
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.refuse
	s.refuse = nil
	return err
}

func (s *stateSource) Stop() { s.recordCall("stop") }

func (s *stateSource) Table() *zone.Table { return s.table.Load() }

func (s *stateSource) Ready() error {
	if err := s.err.Load(); err != nil {
		return *err
	}
	return nil
}

// useStateSource makes Corefiles of this test use a state source instead of a broker.
func useStateSource(t *testing.T) *stateSource {
	s := &stateSource{}
	before := sharedLifecycle
	sharedLifecycle = &brokerLifecycle{newBroker: func(cfg broker.Config) (Broker, error) {
		s.recordCall("new %s", cfg.ClusterName)
		return s, nil
	}}
	t.Cleanup(func() { sharedLifecycle = before })
	return s
}

func corefile(body string) caddy.Input {
	return caddy.CaddyfileInput{Contents: []byte(body), Filepath: "Corefile", ServerTypeName: "dns"}
}

// startCoreDNS runs CoreDNS. The instance is what the caller replaces when it restarts.
func startCoreDNS(t *testing.T, body string) (instance **caddy.Instance, addr map[string]string) {
	t.Helper()
	i, err := caddy.Start(corefile(body))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		i.ShutdownCallbacks()
		i.Stop()
	})
	s := i.Servers()[0]
	addr = map[string]string{"udp": s.LocalAddr().String(), "tcp": s.Addr().String()}
	awaitServing(t, addr)
	return &i, addr
}

// awaitServing waits until a server answers in both protocols: a server that is stopped before it has begun to serve
// runs for ever.
func awaitServing(t *testing.T, addr map[string]string) {
	t.Helper()
	for network := range addr {
		exchangeQuery(t, network, addr, "example.net.", dns.TypeA, 0)
	}
}

// setTable makes a table with one cluster behind a link in the given state.
func (s *stateSource) setTable(upstream netip.AddrPort, status zone.Status) {
	s.table.Store(zone.New(s.table.Load(), []mesh.Zone{{Domain: "kubelink.", Clusters: []mesh.ClusterZone{
		{Name: "kubelink2.kubelink.", Link: "kubelink2", Upstream: upstream, ClusterDomain: "cluster.local."},
	}}}, func(string) zone.Status { return status }, zone.Options{Serial: 1}))
}

// serveCluster is the DNS service of a cluster: every A question has one answer, many. has sixty.
func serveCluster(t *testing.T) netip.AddrPort {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", pc.LocalAddr().String())
	for errors.Is(err, syscall.EADDRINUSE) { // by a connection of another process
		pc.Close()
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err == nil {
			ln, err = net.Listen("tcp", pc.LocalAddr().String())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Authoritative = true
		n := 1
		if strings.HasPrefix(r.Question[0].Name, "many.") {
			n = 60
		}
		for i := range n {
			m.Answer = append(m.Answer, test.A(fmt.Sprintf("%s 3600 IN A 100.64.16.%d", r.Question[0].Name, 20+i)))
		}
		state := request.Request{W: w, Req: r}
		state.SizeAndDo(m)
		state.Scrub(m)
		w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: ln, Handler: handler}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

func exchangeQuery(t *testing.T, network string, addr map[string]string, name string, qtype, edns uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	if edns > 0 {
		m.SetEdns0(edns, false)
	}
	reply, _, err := (&dns.Client{Net: network, UDPSize: max(edns, 512)}).Exchange(m, addr[network])
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return reply
}

// summarizeReply is rcode, Extended DNS Error and first answer.
func summarizeReply(m *dns.Msg) string {
	s := dns.RcodeToString[m.Rcode]
	if o := m.IsEdns0(); o != nil {
		for _, option := range o.Option {
			if e, ok := option.(*dns.EDNS0_EDE); ok {
				s += fmt.Sprintf(" EDE %d %q", e.InfoCode, e.ExtraText)
			}
		}
	}
	if len(m.Answer) > 0 {
		s += " " + strings.Join(strings.Fields(m.Answer[0].String()), " ")
	}
	return s
}

// fullCorefile is a server block with the usual plugins.
const fullCorefile = `.:0 {
	bind 127.0.0.1
	metadata
	errors
	log
	health 127.0.0.1:0
	prometheus 127.0.0.1:0
	cache 30
	reload
	loop
	kubelink {
		dns-propagation dns
	}
	whoami
}`

func TestServe(t *testing.T) {
	s := useStateSource(t)
	cluster := serveCluster(t)
	notYet := errors.New("no state from the API server yet")
	s.err.Store(&notYet)
	_, addr := startCoreDNS(t, fullCorefile)
	up := zone.Status{Usable: true, State: "Up"}
	down := zone.Status{State: "Down", Reason: "dial kubelink.b.example:80: connection refused"}
	const web = "web.default.svc.kubelink2.kubelink."

	for _, step := range []struct {
		name string
		set  func()
		ask  []struct {
			name  string
			qtype uint16
			want  string
		}
	}{
		{"not ready", func() {}, []struct {
			name  string
			qtype uint16
			want  string
		}{
			{web, dns.TypeA, `SERVFAIL EDE 14 "kubelink is not ready: no state from the API server yet"`},
			{"kubelink.", dns.TypeSOA, `SERVFAIL EDE 14 "kubelink is not ready: no state from the API server yet"`},
			{"example.org.", dns.TypeA, "NOERROR"}, // whoami
		}},
		{"up", func() { s.err.Store(nil); s.setTable(cluster, up) }, []struct {
			name  string
			qtype uint16
			want  string
		}{
			{web, dns.TypeA, "NOERROR " + web + " 5 IN A 100.64.16.20"},
			{"Web.Default.svc.Kubelink2.KUBELINK.", dns.TypeA,
				"NOERROR Web.Default.svc.Kubelink2.KUBELINK. 5 IN A 100.64.16.20"},
			{"kubelink.", dns.TypeSOA, "NOERROR kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 1 7200 1800 86400 5"},
			{"nobody.kubelink.", dns.TypeA, "NXDOMAIN"},
			{"kubelink.", dns.TypeA, "NOERROR"},
			{"example.org.", dns.TypeA, "NOERROR"},
			{"kubelink2.kubelink.", dns.TypeIXFR, "REFUSED"},
		}},
		// The cache in front does not hold back what the links do.
		{"down", func() { s.setTable(cluster, down) }, []struct {
			name  string
			qtype uint16
			want  string
		}{
			{web, dns.TypeA, `SERVFAIL EDE 22 "link kubelink2 is Down: dial kubelink.b.example:80: connection refused"`},
			{web, dns.TypeA, `SERVFAIL EDE 22 "link kubelink2 is Down: dial kubelink.b.example:80: connection refused"`},
			{"nobody.kubelink.", dns.TypeA, "NXDOMAIN"},
		}},
		{"up again", func() { s.setTable(cluster, up) }, []struct {
			name  string
			qtype uint16
			want  string
		}{
			{web, dns.TypeA, "NOERROR " + web + " 5 IN A 100.64.16.20"},
		}},
	} {
		step.set()
		for _, network := range []string{"udp", "tcp"} {
			for _, q := range step.ask {
				if got := summarizeReply(exchangeQuery(t, network, addr, q.name, q.qtype, 1232)); got != q.want {
					t.Errorf("%s: %s %s %s\n got %s\nwant %s", step.name, network, q.name, dns.TypeToString[q.qtype], got, q.want)
				}
			}
		}
	}
	if m := exchangeQuery(t, "tcp", addr, "kubelink.", dns.TypeAXFR, 0); m.Rcode != dns.RcodeRefused {
		t.Errorf("AXFR: %v", m)
	}

	for _, c := range []struct {
		network string
		edns    uint16
		tc      bool
	}{{"udp", 0, true}, {"udp", 512, true}, {"udp", 1232, false}, {"udp", 4096, false}, {"tcp", 0, false}} {
		m := exchangeQuery(t, c.network, addr, "many.svc.kubelink2.kubelink.", dns.TypeA, c.edns)
		if m.Truncated != c.tc || !c.tc && len(m.Answer) != 60 {
			t.Errorf("%+v: tc %v, %d answers", c, m.Truncated, len(m.Answer))
		}
	}
	s.table.Load().Close()
}

// setGlobal makes a table of two meshes with global zones and a cluster.
func (s *stateSource) setGlobal(cluster netip.AddrPort, status zone.Status, names ...records.Owner) {
	s.setSerial(7, cluster, status, names...)
}

func (s *stateSource) setSerial(serial uint32, cluster netip.AddrPort, status zone.Status, names ...records.Owner) {
	globals := map[string]*zone.Global{}
	for _, domain := range []string{"kubelink.", "other.kubelink."} {
		name := "svc.global." + domain
		var own []records.Owner
		for _, o := range names {
			if strings.HasSuffix(o.Name, "."+name) {
				own = append(own, o)
			}
		}
		globals[name] = zone.NewGlobal(domain, records.Zone{
			Name:   name,
			Apexes: []records.Apex{{Name: name, Refresh: 1, Retry: 2, Expire: 3, Minimum: 4}},
			Owners: own,
		}, serial, nil, nil)
	}
	s.table.Store(zone.New(s.table.Load(), []mesh.Zone{
		{Domain: "kubelink.", Global: mesh.GlobalZone{Name: "svc.global.kubelink."}, Clusters: []mesh.ClusterZone{
			{Name: "kubelink2.kubelink.", Link: "kubelink2", Upstream: cluster, ClusterDomain: "cluster.local."},
		}},
		{Domain: "other.kubelink.", Global: mesh.GlobalZone{Name: "svc.global.other.kubelink."}},
	}, func(string) zone.Status { return status }, zone.Options{Serial: 1, Globals: globals}))
}

// An alias is followed to wherever this server has an answer.
func TestGlobalAliases(t *testing.T) {
	s := useStateSource(t)
	cluster := serveCluster(t)
	alias := func(name, target string) records.Owner { return records.Owner{Name: name, CNAME: target} }
	names := []records.Owner{
		{Name: "web.svc.global.other.kubelink.", Addresses: []records.Address{{Addr: netip.MustParseAddr("10.0.0.1")}}},
		alias("cluster.svc.global.kubelink.", "web.default.svc.kubelink2.kubelink."),
		alias("mesh.svc.global.kubelink.", "web.svc.global.other.kubelink."),
		alias("nobody.svc.global.kubelink.", "nobody.svc.global.other.kubelink."),
		alias("who.svc.global.kubelink.", "example.org."),
		alias("far.svc.global.kubelink.", "example.com."),
		alias("many.svc.global.kubelink.", "many.svc.kubelink2.kubelink."),
		alias("loop.svc.global.kubelink.", "loop.svc.global.other.kubelink."),
		alias("loop.svc.global.other.kubelink.", "loop.svc.global.kubelink."),
	}
	_, addr := startCoreDNS(t, "kubelink:0 {\nbind 127.0.0.1\nkubelink\n}\nexample.org:0 {\nbind 127.0.0.1\nwhoami\n}")
	up, down := zone.Status{Usable: true, State: "Up"}, zone.Status{State: "Down", Reason: "closed"}
	for _, c := range []struct {
		name   string
		status zone.Status
		n      int // records of the answer
		want   string
	}{
		{"cluster", up, 2, "NOERROR cluster.svc.global.kubelink. 5 IN CNAME web.default.svc.kubelink2.kubelink."},
		{"CLUSTER", up, 2, "NOERROR CLUSTER.svc.global.kubelink. 5 IN CNAME web.default.svc.kubelink2.kubelink."},
		{"cluster", down, 0, `SERVFAIL EDE 22 "link kubelink2 is Down: closed"`},
		{"mesh", up, 2, "NOERROR mesh.svc.global.kubelink. 5 IN CNAME web.svc.global.other.kubelink."},
		{"nobody", up, 1, "NXDOMAIN nobody.svc.global.kubelink. 5 IN CNAME nobody.svc.global.other.kubelink."},
		{"who", up, 1, "NOERROR who.svc.global.kubelink. 5 IN CNAME example.org."},
		{"far", up, 1, "NOERROR far.svc.global.kubelink. 5 IN CNAME example.com."}, // refused here: for the client to follow
		{"loop", up, 0, `SERVFAIL EDE 24 "the aliases of loop.svc.global.kubelink. lead in a circle"`},
	} {
		s.setGlobal(cluster, c.status, names...)
		for _, network := range []string{"udp", "tcp"} {
			m := exchangeQuery(t, network, addr, c.name+".svc.global.kubelink.", dns.TypeA, 1232)
			if got := summarizeReply(m); got != c.want || len(m.Answer) != c.n || len(m.Answer) > 0 && !m.Authoritative {
				t.Errorf("%s %s: %d records\n got %s\nwant %s", network, c.name, len(m.Answer), got, c.want)
			}
		}
	}
	// So it is where names of all domains come to kubelink, and nobody follows it.
	_, all := startCoreDNS(t, ".:0 {\nbind 127.0.0.1\nkubelink\n}")
	s.setGlobal(cluster, up, names...)
	const want = "NOERROR far.svc.global.kubelink. 5 IN CNAME example.com."
	if m := exchangeQuery(t, "udp", all, "far.svc.global.kubelink.", dns.TypeA, 1232); summarizeReply(m) != want {
		t.Errorf("%v", m)
	}
	if m := exchangeQuery(t, "udp", addr, "many.svc.global.kubelink.", dns.TypeA, 512); !m.Truncated {
		t.Errorf("not truncated: %d records", len(m.Answer))
	}
	if m := exchangeQuery(t, "tcp", addr, "many.svc.global.kubelink.", dns.TypeA, 0); m.Truncated || len(m.Answer) != 61 {
		t.Errorf("truncated %v: %d records", m.Truncated, len(m.Answer))
	}
	s.table.Load().Close()
}

// packer is a client that looks at nothing.
type packer struct{ test.ResponseWriter }

func (p *packer) WriteMsg(m *dns.Msg) error {
	_, err := m.Pack()
	return err
}

// BenchmarkGlobal is a query to one of 10,000 global names, from the plugin to the packed answer, and as a
// measure the same for whoami.
func BenchmarkGlobal(b *testing.B) {
	s := &stateSource{}
	var names []records.Owner
	for i := range 10_000 {
		names = append(names, records.Owner{
			Name:      fmt.Sprintf("name-%d.svc.global.kubelink.", i),
			Addresses: []records.Address{{Addr: netip.MustParseAddr("10.0.0.1")}},
		})
	}
	s.setGlobal(netip.AddrPort{}, zone.Status{}, names...)
	k := &Kubelink{
		stanza:    &stanza{config: defaultConfig()},
		lifecycle: &brokerLifecycle{newBroker: func(broker.Config) (Broker, error) { return s, nil }},
	}
	if err := k.lifecycle.applyStanza(k.stanza); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name, query string
		handler     plugin.Handler
	}{
		{"whoami", "name-%d.svc.global.kubelink.", whoami.Whoami{}},
		{"positive", "name-%d.svc.global.kubelink.", k},
		{"mixed-case", "Name-%d.svc.global.kubelink.", k},
		{"negative", "nobody-%d.svc.global.kubelink.", k},
	} {
		b.Run(c.name, func(b *testing.B) {
			var queries []*dns.Msg
			for i := range 1000 {
				queries = append(queries, new(dns.Msg).SetQuestion(fmt.Sprintf(c.query, i*10), dns.TypeA))
			}
			w := &packer{}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				q := queries[i%1000]
				if _, err := c.handler.ServeDNS(b.Context(), request.NewScrubWriter(q, w), q); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// A zone is transferred to whom the transfer plugin allows it.
func TestTransfer(t *testing.T) {
	s := useStateSource(t)
	_, addr := startCoreDNS(t, "kubelink:0 {\nbind 127.0.0.1\ntransfer svc.global.kubelink {\nto *\n}\nkubelink\n}")
	transfer := func(m *dns.Msg) (rrs []dns.RR, err error) {
		in, err := new(dns.Transfer).In(m, addr["tcp"])
		if err != nil {
			return nil, err
		}
		for e := range in {
			if e.Error != nil {
				return rrs, e.Error
			}
			rrs = append(rrs, e.RR...)
		}
		return rrs, nil
	}
	axfr := new(dns.Msg).SetAxfr("SVC.global.kubelink.")
	if rrs, err := transfer(axfr); err == nil {
		t.Errorf("before there is a table: %v", rrs)
	}
	var names []records.Owner
	for i := range 10_000 {
		names = append(names, records.Owner{
			Name:      fmt.Sprintf("name-%d.svc.global.kubelink.", i),
			Addresses: []records.Address{{Addr: netip.MustParseAddr("10.0.0.1")}},
		})
	}
	s.setGlobal(netip.AddrPort{}, zone.Status{}, names...)
	if rrs, err := transfer(axfr); err != nil || len(rrs) != 10_003 {
		t.Errorf("%d records, %v", len(rrs), err)
	}
	for serial, n := range map[uint32]int{6: 10_003, 7: 1} {
		m := new(dns.Msg).SetIxfr("svc.global.kubelink.", serial, "ns.", "hostmaster.")
		if rrs, err := transfer(m); err != nil || len(rrs) != n {
			t.Errorf("from %d: %d records, %v", serial, len(rrs), err)
		}
	}
	for _, name := range []string{"svc.global.other.kubelink.", "kubelink.", "name-1.svc.global.kubelink."} {
		if m := exchangeQuery(t, "tcp", addr, name, dns.TypeAXFR, 0); m.Rcode != dns.RcodeRefused {
			t.Errorf("%s: %v", name, m)
		}
	}
	if m := exchangeQuery(t, "udp", addr, "svc.global.kubelink.", dns.TypeAXFR, 0); m.Rcode != dns.RcodeRefused {
		t.Errorf("over UDP: %v", m)
	}
	s.table.Load().Close()
}

func TestServeConcurrently(t *testing.T) {
	s := useStateSource(t)
	cluster := serveCluster(t)
	s.setTable(cluster, zone.Status{Usable: true})
	_, addr := startCoreDNS(t, fullCorefile)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				m := new(dns.Msg)
				m.SetQuestion("web.kubelink2.kubelink.", dns.TypeA)
				reply, err := dns.Exchange(m, addr["udp"])
				if err != nil || reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeServerFailure {
					t.Errorf("%v %v", reply, err)
				}
			}
		})
	}
	for i := range 100 {
		s.setTable(cluster, zone.Status{Usable: i%2 == 1, State: "Down"})
	}
	wg.Wait()
	s.table.Load().Close()
}

func TestNotReadyInItsZone(t *testing.T) {
	useStateSource(t)
	_, addr := startCoreDNS(t, "mesh.example:0 {\nbind 127.0.0.1\nkubelink\n}\n"+
		"other.example:0 {\nbind 127.0.0.1\nwhoami\n}")
	const want = `SERVFAIL EDE 14 "kubelink is not ready: the links are not known yet"`
	if got := summarizeReply(exchangeQuery(t, "udp", addr, "x.mesh.example.", dns.TypeA, 512)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := summarizeReply(exchangeQuery(t, "udp", addr, "x.mesh.example.", dns.TypeA, 0)); got != "SERVFAIL" {
		t.Errorf("without EDNS: %s", got)
	}
}

func TestOtherClassesAndOpcodesAreNotOurs(t *testing.T) {
	s := useStateSource(t)
	s.setTable(netip.AddrPort{}, zone.Status{Usable: true})
	next := 0
	count := func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
		next++
		return dns.RcodeSuccess, nil
	}
	k := &Kubelink{
		stanza: &stanza{config: defaultConfig()}, lifecycle: sharedLifecycle, Next: test.HandlerFunc(count),
	}
	if err := sharedLifecycle.applyStanza(k.stanza); err != nil {
		t.Fatal(err)
	}
	for i, change := range []func(m *dns.Msg){
		func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY },
		func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify },
		func(m *dns.Msg) { m.Question[0].Name = "mykubelink." },
	} {
		m := new(dns.Msg)
		m.SetQuestion("kubelink.", dns.TypeSOA)
		change(m)
		if _, err := k.ServeDNS(context.Background(), &test.ResponseWriter{}, m); err != nil || next != i+1 {
			t.Errorf("%d: %v, next %d", i, err, next)
		}
	}
	k.Next = nil
	m := new(dns.Msg)
	m.SetQuestion("example.org.", dns.TypeA)
	if rcode, err := k.ServeDNS(context.Background(), &test.ResponseWriter{}, m); rcode != dns.RcodeRefused || err != nil {
		t.Errorf("without next: %d %v", rcode, err)
	}
}

func TestMetadata(t *testing.T) {
	s := useStateSource(t)
	k := &Kubelink{stanza: &stanza{config: defaultConfig()}, lifecycle: sharedLifecycle}
	state := request.Request{W: &test.ResponseWriter{}, Req: new(dns.Msg)}
	state.Req.SetQuestion("x.kubelink2.kubelink.", dns.TypeA)
	k.Metadata(context.Background(), state) // before there is a broker
	if err := sharedLifecycle.applyStanza(k.stanza); err != nil {
		t.Fatal(err)
	}
	s.setTable(netip.MustParseAddrPort("127.0.0.1:53"), zone.Status{Usable: true})
	ctx := k.Metadata(metadata.ContextWithMetadata(context.Background()), state)
	for label, want := range map[string]string{
		"kubelink/zone": "kubelink2.kubelink.", "kubelink/link": "kubelink2", "kubelink/upstream": "127.0.0.1:53",
	} {
		if f := metadata.ValueFunc(ctx, label); f == nil || f() != want {
			t.Errorf("%s is not %s", label, want)
		}
	}
	s.table.Load().Close()
}

func TestMetrics(t *testing.T) {
	s := useStateSource(t)
	s.setTable(netip.AddrPort{}, zone.Status{State: "Idle"})
	_, addr := startCoreDNS(t, ".:0 {\nbind 127.0.0.1\nkubelink\n}")
	value := func(zone, rcode string) float64 {
		var m dto.Metric
		if err := queries.WithLabelValues(zone, rcode).Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.Counter.GetValue()
	}
	before := []float64{value("kubelink.", "NXDOMAIN"), value("kubelink2.kubelink.", "SERVFAIL")}
	exchangeQuery(t, "udp", addr, "nobody.kubelink.", dns.TypeA, 0)
	exchangeQuery(t, "udp", addr, "x.kubelink2.kubelink.", dns.TypeA, 0)
	exchangeQuery(t, "udp", addr, "y.kubelink2.kubelink.", dns.TypeA, 0)
	if n := value("kubelink.", "NXDOMAIN") - before[0]; n != 1 {
		t.Errorf("%v NXDOMAIN", n)
	}
	if n := value("kubelink2.kubelink.", "SERVFAIL") - before[1]; n != 2 {
		t.Errorf("%v SERVFAIL", n)
	}
}

// The series of a zone go with it.
func TestMetricsOfWhatIsGone(t *testing.T) {
	s := useStateSource(t)
	s.setTable(netip.AddrPort{}, zone.Status{State: "Idle"})
	_, addr := startCoreDNS(t, ".:0 {\nbind 127.0.0.1\nkubelink\n}")
	zones := func() (names []string) {
		t.Helper()
		families, err := prometheus.DefaultGatherer.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.Metric {
				if f.GetName() == "coredns_kubelink_queries_total" && m.Label[1].GetName() == "zone" {
					names = append(names, m.Label[1].GetValue())
				}
			}
		}
		slices.Sort(names)
		return slices.Compact(names)
	}
	exchangeQuery(t, "udp", addr, "x.kubelink2.kubelink.", dns.TypeA, 0)
	exchangeQuery(t, "udp", addr, "nobody.kubelink.", dns.TypeA, 0)
	if got := strings.Join(zones(), " "); got != "kubelink. kubelink2.kubelink." {
		t.Errorf("series of %s", got)
	}
	s.table.Store(zone.New(s.table.Load(), []mesh.Zone{{Domain: "kubelink."}}, nil, zone.Options{Serial: 1}))
	if got := strings.Join(zones(), " "); got != "kubelink." {
		t.Errorf("after the end of the link: series of %s", got)
	}
	s.table.Store(nil) // as after a failed start: what there is, is not known
	if got := strings.Join(zones(), " "); got != "kubelink." {
		t.Errorf("without a table: series of %s", got)
	}
}

// An answer to a datagram has 1232 bytes at most, whatever size a forged query offers.
func TestAmplification(t *testing.T) {
	s := useStateSource(t)
	var fat records.Owner
	fat.Name = "fat.svc.global.kubelink."
	for i := range 200 {
		fat.TXT = append(fat.TXT, fmt.Sprint(i, strings.Repeat("x", 200)))
	}
	_, addr := startCoreDNS(t, ".:0 {\nbind 127.0.0.1\nkubelink {\ndns-propagation dns\n}\nwhoami\n}")
	s.setGlobal(netip.MustParseAddrPort("127.0.0.1:1"), zone.Status{Usable: true}, fat)
	for _, c := range []struct {
		network string
		size    uint16
		tc      bool
	}{{"udp", 65535, true}, {"udp", 4096, true}, {"udp", 512, true}, {"tcp", 65535, false}} {
		for _, qtype := range []uint16{dns.TypeTXT, dns.TypeANY} {
			m := exchangeQuery(t, c.network, addr, fat.Name, qtype, c.size)
			m.Compress = true
			if n := m.Len(); m.Truncated != c.tc || c.tc && n > 1232 {
				t.Errorf("%+v: %d bytes, tc %v", c, n, m.Truncated)
			}
		}
	}
}

// Reverse zones that are ours in part are answered where no other plugin is asked.
func TestSharedReverseZones(t *testing.T) {
	s := useStateSource(t)
	_, addr := startCoreDNS(t, ".:0 {\nbind 127.0.0.1\nkubelink\n}")
	set := func() {
		s.table.Store(zone.New(s.table.Load(), []mesh.Zone{{Domain: "kubelink.", Clusters: []mesh.ClusterZone{
			{Name: "c.kubelink.", Link: "c", Services: mesh.Prefixes{netip.MustParsePrefix("100.64.16.0/20")}}}}},
			func(string) zone.Status { return zone.Status{} }, zone.Options{Serial: 1}))
	}
	set()
	const soa = "NOERROR 64.100.in-addr.arpa. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 1 7200 1800 86400 5"
	for name, want := range map[string]string{"64.100.in-addr.arpa.": soa, "1.1.64.100.in-addr.arpa.": "NXDOMAIN",
		"65.100.in-addr.arpa.": "REFUSED"} {
		if got := summarizeReply(exchangeQuery(t, "udp", addr, name, dns.TypeSOA, 0)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	_, addr = startCoreDNS(t, ".:0 {\nbind 127.0.0.1\nkubelink\nwhoami\n}")
	m := exchangeQuery(t, "udp", addr, "64.100.in-addr.arpa.", dns.TypeSOA, 0)
	if m.Rcode != 0 || len(m.Answer) != 0 || len(m.Extra) == 0 { // of whoami
		t.Errorf("not passed on: %v", m)
	}
}

// A DNS service that does not answer costs a line in the log, however many queries there are.
func TestFailuresInTheLog(t *testing.T) {
	s := useStateSource(t)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent := netip.MustParseAddrPort(pc.LocalAddr().String())
	pc.Close() // queries are refused at once
	k := &Kubelink{stanza: &stanza{config: defaultConfig()}, lifecycle: sharedLifecycle}
	if err := sharedLifecycle.applyStanza(k.stanza); err != nil {
		t.Fatal(err)
	}
	s.setTable(silent, zone.Status{Usable: true})
	defer s.table.Load().Close()
	lines := map[string]int{}
	for i := range 10_000 {
		req := new(dns.Msg)
		req.SetQuestion(fmt.Sprintf("n%d.kubelink2.kubelink.", i), dns.TypeA)
		if _, err := k.ServeDNS(t.Context(), &test.ResponseWriter{}, req); err != nil { // the errors plugin logs it
			lines[err.Error()]++
		}
	}
	for text, n := range lines {
		if n > 1 {
			t.Errorf("%d times %s", n, text)
		}
	}
	if len(lines) == 0 || len(lines) > 3 {
		t.Errorf("lines %v", lines)
	}
}

func TestReady(t *testing.T) {
	s := useStateSource(t)
	away := errors.New("the API server does not answer")
	s.err.Store(&away)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().String()
	ln.Close()
	startCoreDNS(t, ".:0 {\nbind 127.0.0.1\nready "+at+" {\nmonitor continuously\n}\nkubelink\n}\n"+
		"mesh.example:0 {\nbind 127.0.0.1\nkubelink\n}")
	for _, step := range []struct {
		err  *error
		code int
	}{{&away, 503}, {nil, 200}, {&away, 503}} {
		s.err.Store(step.err)
		r, err := http.Get("http://" + at + "/ready")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != step.code {
			t.Errorf("%v: %s", step.err, r.Status)
		}
	}
	if (&Kubelink{lifecycle: &brokerLifecycle{}}).Ready() {
		t.Error("ready without broker")
	}
}
