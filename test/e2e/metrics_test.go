package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/mandelsoft/kubelink/test/fleet"
)

// TestMetricsLint checks the metrics of a broker with links against the conventions of Prometheus.
func TestMetricsLint(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	_, _, err := queryBroker(ctx, b, "udp", "kubelink.", dns.TypeSOA)
	must(t, err)
	within(t, 10*time.Second, "round-trip time", func(ctx context.Context) error {
		_, err := b.Metric(ctx, `coredns_kubelink_link_rtt_seconds{link="kubelink2"}`)
		return err
	})
	text, err := b.Host.Get(ctx, fleet.MetricsURL)
	must(t, err)
	var names []string
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); strings.HasPrefix(line, "# TYPE coredns_kubelink_") {
			names = append(names, strings.TrimPrefix(fields[2], "coredns_kubelink_"))
		}
	}
	for _, name := range []string{
		"api_up", "applied", "dropped_packets_total", "link_bytes_total", "link_packets_total", "link_rtt_seconds",
		"link_sessions", "link_up", "links", "node_refused_packets_total", "queries_total", "refused_connections_total", "tun_info",
	} {
		if !slices.Contains(names, name) {
			t.Errorf("no coredns_kubelink_%s in %q", name, names)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	must(t, err)
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "coredns_kubelink_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
