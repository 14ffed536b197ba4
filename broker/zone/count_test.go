package zone

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// metricsOf collects from a table; Collect alone is no prometheus.Collector.
type metricsOf struct{ *Table }

func (metricsOf) Describe(chan<- *prometheus.Desc) {}

// Each answer counts once, at its zone and for its source. The counters outlive the table.
func TestCountAnswers(t *testing.T) {
	var asked atomic.Int64
	z := zones(serve(t, clusterDNS(t, &asked)))
	api := &backend{why: errors.New("being loaded")}
	o := options
	o.ServeStale, o.Replies = time.Hour, NewReplyCache()
	z[0].Clusters[0].API = mesh.API{Use: true}
	o.Backends = map[string]Backend{"a.deep.kubelink.": api}
	z[0].Global.Name = "svc.global.kubelink."
	down := false
	status := func(link string) Status { return Status{Usable: !down || link != "kubelink2"} }
	table := New(nil, z, status, o)
	defer func() { table.Close() }()
	ask := func(name string) {
		t.Helper()
		if _, err := queryTable(t, table, name, dns.TypeA, false, 0); err != nil {
			t.Error(err)
		}
	}
	ask("kubelink.")
	ask("_state.kubelink2.kubelink.")
	ask("any.svc.global.kubelink.")
	ask(web)
	ask(web)
	ask("web.default.svc.a.deep.kubelink.")
	api.why = nil
	ask("web.default.svc.a.deep.kubelink.")
	down = true
	table = New(table, z, status, o)
	ask(web)
	ask("another.default.svc.kubelink2.kubelink.")

	want := "# HELP coredns_kubelink_answers_total Counter of answered queries by zone (sub-domain of a cluster, " +
		"or mesh domain) and by where the answer comes from.\n# TYPE coredns_kubelink_answers_total counter\n"
	for zone, counts := range map[string]map[string]int{
		"kubelink.":            {"table": 1},
		"other.kubelink.":      {},
		"svc.global.kubelink.": {"global": 1},
		"a.deep.kubelink.":     {"none": 1, "api": 1},
		"kubelink1.kubelink.":  {},
		"kubelink2.kubelink.":  {"table": 1, "service": 1, "cache": 1, "stale": 1, "none": 1},
		"unknown.kubelink.":    {},
		"c.other.kubelink.":    {},
	} {
		for _, source := range []string{"table", "global", "service", "cache", "api", "stale", "none"} {
			want += fmt.Sprintf("coredns_kubelink_answers_total{source=%q,zone=%q} %d\n", source, zone, counts[source])
		}
	}
	if err := testutil.CollectAndCompare(metricsOf{table}, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.CollectAndLint(metricsOf{table}); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}
