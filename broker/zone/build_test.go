package zone

import (
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

func TestConnectionsAreReused(t *testing.T) {
	var asked atomic.Int64
	var seen atomic.Value
	answer := clusterDNS(t, &asked)
	addr := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		seen.Store(w.RemoteAddr().String())
		answer(w, r)
	})
	table := New(nil, zones(addr), up, options)
	defer func() { table.Close() }()
	var ports []any
	for i := range 3 {
		if _, err := queryTable(t, table, "web.default.svc.kubelink2.kubelink.", dns.TypeA, true, 0); err != nil {
			t.Fatal(err)
		}
		ports = append(ports, seen.Load())
		z := zones(addr)
		z[0].Clusters = z[0].Clusters[i:3] // other zones, same upstream
		table = New(table, z, up, options)
	}
	if ports[0] != ports[1] || ports[1] != ports[2] {
		t.Errorf("connections from %v", ports)
	}
	if len(table.upstreams) != 1 {
		t.Errorf("%d upstreams", len(table.upstreams))
	}
}

// TestUpstreamEnds: the connection manager of an upstream ends when no table holds it.
func TestUpstreamEnds(t *testing.T) {
	before := runtime.NumGoroutine()
	table := many(nil, 50, up)
	if n := runtime.NumGoroutine(); n < before+40 { // those of earlier tests may end meanwhile
		t.Fatalf("%d goroutines, %d before", n, before)
	}
	table = New(table, nil, up, options)
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before+5; runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
	table.Close()
	(*Table)(nil).Close()
}

func TestUnchanged(t *testing.T) {
	addr := netip.MustParseAddrPort("127.0.0.1:1")
	status := Status{Usable: true, State: "Up"}
	same := func(string) Status { return status }
	table := New(nil, zones(addr), same, options)
	if New(table, zones(addr), same, Options{Serial: 99, NSAddresses: options.NSAddresses}) != table {
		t.Error("another table of the same things")
	}
	status = Status{State: "Down", Reason: "x"}
	next := New(table, zones(addr), same, options) // within the same second
	if next == table {
		t.Fatal("the same table though a link went down")
	}
	if m, _ := queryTable(t, next, "kubelink.", dns.TypeSOA, false, 0); m.Answer[0].(*dns.SOA).Serial != 8 {
		t.Errorf("serial of %v", m.Answer[0])
	}
	status.Reason = "y"
	if New(next, zones(addr), same, options) == next {
		t.Error("the same table though the reason changed")
	}
	other := New(next, zones(addr)[:1], same, options)
	if other == next || New(other, zones(addr)[:1], same, Options{}) == other {
		t.Error("the same table though zones or addresses changed")
	}
	other.Close()
}

// many makes n zones of a cluster each.
func many(prev *Table, n int, status func(string) Status) *Table {
	var z []mesh.Zone
	for i := range n {
		d := fmt.Sprintf("mesh%d.", i)
		z = append(z, mesh.Zone{Domain: d, Clusters: []mesh.ClusterZone{{
			Name: "c." + d, Link: "c." + d, ClusterDomain: "cluster.local.",
			Upstream: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), 53),
		}}})
	}
	return New(prev, z, status, options)
}

// BenchmarkNew is one change of a link among 250 zones with an upstream each.
func BenchmarkNew(b *testing.B) {
	changed := false
	status := func(link string) Status {
		return Status{Usable: true, State: "Up", Reason: fmt.Sprint(link == "c.mesh7." && changed)}
	}
	table := many(nil, 250, status)
	defer func() { table.Close() }()
	z := table.zones
	b.ReportAllocs()
	for b.Loop() {
		changed = !changed
		table = New(table, z, status, options)
	}
}

// Each option but the serial makes another table.
func TestSameOptions(t *testing.T) {
	addr := netip.MustParseAddr("100.64.0.11")
	changes := []func(*Options){
		func(o *Options) { o.NSAddresses = []netip.Addr{addr} },
		func(o *Options) { o.Networks = []Network{{netip.PrefixFrom(addr, 24), "k1"}} },
		func(o *Options) { o.Links = []mesh.Link{{Name: "k1", Peer: "k1"}} },
		func(o *Options) { o.Services = []netip.Prefix{netip.PrefixFrom(addr, 24)} },
		func(o *Options) { o.Hosts = []netip.Prefix{netip.PrefixFrom(addr, 24)} },
		func(o *Options) { o.Backends = map[string]Backend{"c.kubelink.": &backend{}} },
		func(o *Options) {
			o.Globals = map[string]*Global{"svc.global.kubelink.": NoGlobal("svc.global.kubelink.", "")}
		},
		func(o *Options) { o.Replies = NewReplyCache() },
		func(o *Options) { o.ServeStale = time.Second },
		func(o *Options) { o.NoStateNames = true },
	}
	if n := reflect.TypeFor[Options]().NumField() - 1; len(changes) != n {
		t.Errorf("%d options are changed, there are %d", len(changes), n)
	}
	for i, change := range changes {
		var o Options
		change(&o)
		if sameOptions(&o, &Options{}) || !sameOptions(&o, &o) {
			t.Errorf("change %d: %+v", i, o)
		}
	}
	if !sameOptions(&Options{Serial: 1}, &Options{Serial: 2}) {
		t.Error("another serial")
	}
}
