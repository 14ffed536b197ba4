package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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
			"link_up", "links", "node_refused_packets_total", "objects", "peer_info", "queries_total", "refused_connections_total",
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

// What rules can name that the broker of this bed does not have, and why.
func absentMetrics() []string {
	absent := []string{"cluster_names_up", // needs dns-propagation kubernetes: see TestKubernetesDNS
		"nodes_without_router"} // needs routers on all nodes: see TestNodeWithoutRouter
	if inWireGuard() {
		return append(absent, "certificate_expiry_timestamp_seconds", "tun_info", "link_packets_total",
			"link_queue_delay_seconds_sum", "link_queue_delay_seconds_count")
	}
	return append(absent, "wireguard_info")
}

var (
	metricName  = regexp.MustCompile(`coredns_kubelink_\w+`)
	labelValues = regexp.MustCompile(`(\w+)=~?"([\w|-]+)"`)
	selector    = regexp.MustCompile(`(coredns_kubelink_\w+)\{([^}]*)\}`)
)

// TestMetricsOfRules compares the alerts and their runbooks with the metrics of a broker: it has each metric that they
// name, and series with each value of a label that rules select.
func TestMetricsOfRules(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	_, _, err := queryBroker(ctx, b, "udp", "kubelink.", dns.TypeSOA)
	must(t, err)
	live, err := b.Host.Get(ctx, fleet.MetricsURL)
	must(t, err)
	absent := absentMetrics()
	files, err := filepath.Glob("../../deploy/monitoring/runbooks/*.md")
	must(t, err)
	named := 0
	for _, file := range append(files, "../../deploy/monitoring/rules.yaml") {
		text, err := os.ReadFile(file)
		must(t, err)
		for _, name := range metricName.FindAllString(string(text), -1) {
			if short := strings.TrimPrefix(name, "coredns_kubelink_"); slices.Contains(absent, short) {
				continue
			}
			if named++; !strings.Contains(live, "\n"+name+"{") && !strings.Contains(live, "\n"+name+" ") {
				t.Errorf("%s: the broker has no %s", filepath.Base(file), name)
			}
		}
		if filepath.Ext(file) != ".yaml" {
			continue
		}
		for _, m := range selector.FindAllStringSubmatch(string(text), -1) {
			checkLabels(t, live, m[1], m[2])
		}
	}
	if named < 20 {
		t.Errorf("rules and runbooks name %d metrics", named)
	}
}

// checkLabels checks that a metric has series with all values that a selector names, if only with the value zero.
func checkLabels(t *testing.T, live, metric, labels string) {
	for _, label := range labelValues.FindAllStringSubmatch(labels, -1) {
		for value := range strings.SplitSeq(label[2], "|") {
			series := regexp.MustCompile(`(?m)^` + metric + `\{[^}\n]*\b` + label[1] + `="` + value + `"`)
			// Queries have no zeros: with all links Up, none fails. In mode wireguard, the queues are those of the kernel.
			if value != "SERVFAIL" && !series.MatchString(live) && !inWireGuard() {
				t.Errorf("no series of %s has %s=%q", metric, label[1], value)
			}
		}
	}
}
