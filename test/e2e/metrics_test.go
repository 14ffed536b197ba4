package e2e

import (
	"context"
	"fmt"
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
	var text string
	within(t, 10*time.Second, "all metrics", func(ctx context.Context) error { // the round-trip time needs a moment
		if text, err = b.Host.Get(ctx, fleet.MetricsURL); err != nil {
			return err
		}
		ofMode := []string{
			"certificate_expiry_timestamp_seconds", "link_packets_total", "link_queue_delay_seconds", "link_sessions", "tun_info",
		}
		if inWireGuard() {
			ofMode = []string{"wireguard_info"}
		}
		for _, name := range append(ofMode,
			"answers_total", "api_up", "applied", "apply_duration_seconds", "build_info",
			"dropped_packets_total", "iptables_backend_info", "kernel_update_duration_seconds",
			"kernel_update_errors_total", "leader", "link_bytes_total", "link_downs_total", "link_info", "link_rtt_seconds",
			"link_up", "links", "node_refused_packets_total", "objects", "queries_total", "refused_connections_total",
			"takeovers_total", "term",
		) {
			if !strings.Contains(text, "# TYPE coredns_kubelink_"+name+" ") {
				return fmt.Errorf("no coredns_kubelink_%s", name)
			}
		}
		return nil
	})
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	must(t, err)
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "coredns_kubelink_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
