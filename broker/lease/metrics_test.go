package lease

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// metricsOf collects from a broker; Collect alone is no prometheus.Collector.
type metricsOf struct{ *Elector }

func (metricsOf) Describe(chan<- *prometheus.Desc) {}

// A broker counts why it has taken the links, and tells of which Lease.
func TestCountTakeovers(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		takes := func(name, reason string, term int) {
			t.Helper()
			w.awaitHolder(name)
			synctest.Wait()
			want := fmt.Sprintf("# HELP coredns_kubelink_leader Whether this broker holds the links (1) "+
				"or another broker of the cluster does (0).\n# TYPE coredns_kubelink_leader gauge\n"+
				"coredns_kubelink_leader{lease=\"kubelink\"} 1\n"+
				"# HELP coredns_kubelink_term Term of the broker that holds the links: the number of transitions of its Lease.\n"+
				"# TYPE coredns_kubelink_term gauge\ncoredns_kubelink_term{lease=\"kubelink\"} %d\n"+
				"# HELP coredns_kubelink_takeovers_total How often this broker has taken the links by reason "+
				"(new, released, restart, expired).\n# TYPE coredns_kubelink_takeovers_total counter\n", term)
			for _, why := range []string{"new", "released", "restart", "expired"} {
				want += fmt.Sprintf("coredns_kubelink_takeovers_total{lease=\"kubelink\",reason=%q} %d\n", why,
					map[bool]int{true: 1}[why == reason])
			}
			if err := testutil.CollectAndCompare(metricsOf{w.all[name].Elector}, strings.NewReader(want)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		w.start("a", "node1")
		takes("a", "new", 1)
		w.all["a"].stop()
		w.start("restarted", "node1")
		takes("restarted", "restart", 2)
		w.start("b", "node2")
		w.all["restarted"].stop()
		takes("b", "expired", 3)
		w.all["b"].stop()
		w.all["b"].Release(context.Background())
		w.start("c", "node3")
		takes("c", "released", 4)
	})
}
