package kubelink

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

const unreachableAPI = `apiVersion: v1
kind: Config
clusters:
- name: nowhere
  cluster:
    server: http://127.0.0.1:1
contexts:
- name: nowhere
  context:
    cluster: nowhere
    user: ""
current-context: nowhere
`

// TestMetricsLint checks the metrics of the plugin and of a broker without links against the conventions of Prometheus.
// The test of the same name in test/e2e has the metrics of links and dataplane.
func TestMetricsLint(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(unreachableAPI), 0o600); err != nil {
		t.Fatal(err)
	}
	_, addr := startCoreDNS(t, ".:0 {\nbind 127.0.0.1\nkubelink {\nmode none\ndns-propagation dns\nkubeconfig "+
		kubeconfig+"\n}\n}")
	if m := exchangeQuery(t, "udp", addr, "web.kubelink.", dns.TypeA, 0); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("without a state: %v", m)
	}

	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "coredns_kubelink_") {
			names = append(names, f.GetName())
		}
	}
	for _, name := range []string{
		"coredns_kubelink_api_up", "coredns_kubelink_applied", "coredns_kubelink_queries_total",
		"coredns_kubelink_build_info", "coredns_kubelink_apply_duration_seconds", "coredns_kubelink_apply_errors_total",
		"coredns_kubelink_takeovers_total",
	} {
		if !slices.Contains(names, name) {
			t.Errorf("no %s in %q", name, names)
		}
	}
	problems, err := testutil.GatherAndLint(prometheus.DefaultGatherer, names...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
