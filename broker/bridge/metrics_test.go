package bridge

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// metricsOf collects from a bridge; Collect alone is no prometheus.Collector.
type metricsOf struct{ *Bridge }

func (metricsOf) Describe(chan<- *prometheus.Desc) {}

// A counter that appears with its first packet would hide that packet from an increase over time.
func TestCollectZeros(t *testing.T) {
	_, a, _ := newPair(t)
	n := testutil.CollectAndCount(metricsOf{a.Bridge}, "coredns_kubelink_dropped_packets_total")
	if want := 2 * int(NumDrops); n != want { // of the link, and of no known link
		t.Errorf("%d series of dropped packets, not %d", n, want)
	}
	problems, err := testutil.CollectAndLint(metricsOf{a.Bridge})
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	err = testutil.CollectAndCompare(metricsOf{a.Bridge}, strings.NewReader(`
# HELP coredns_kubelink_link_queue_delay_seconds For how long IP packets to the peer waited before they were sent.
# TYPE coredns_kubelink_link_queue_delay_seconds summary
coredns_kubelink_link_queue_delay_seconds_sum{link="b"} 0
coredns_kubelink_link_queue_delay_seconds_count{link="b"} 0
`), "coredns_kubelink_link_queue_delay_seconds")
	if err != nil {
		t.Error(err)
	}
}
