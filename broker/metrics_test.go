package broker

import (
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// The metrics are those of the broker that runs, with one series for each link.
func TestCollect(t *testing.T) {
	const head = "# HELP coredns_kubelink_"
	names := []string{
		"coredns_kubelink_links", "coredns_kubelink_link_up", "coredns_kubelink_link_rtt_seconds",
		"coredns_kubelink_api_up", "coredns_kubelink_applied",
	}
	b, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	check := func(name, want string) {
		t.Helper()
		if err := testutil.CollectAndCompare(collector{}, strings.NewReader(want), names...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	check("no broker runs", "")
	metricsSource.Store(b)
	defer metricsSource.Store(nil)
	b.health.change(func(h *health) { h.applied = nil })
	ready := head + `api_up Whether the API server answers (1) or not (0).
# TYPE coredns_kubelink_api_up gauge
coredns_kubelink_api_up 1
` + head + `applied Whether the last state was applied in full (1) or not (0).
# TYPE coredns_kubelink_applied gauge
coredns_kubelink_applied 1
`
	check("mode none", ready)
	calls := []string{}
	d := &fakeDataplane{calls: &calls}
	d.setStatus(link.Status{Link: "one", State: link.Up, RTT: 250e6}, link.Status{Link: "two", State: link.Up},
		link.Status{Link: "three", State: link.Down})
	b.setGateway(newFakeGateway(d, &recordingKernel{}))
	b.names.changeSource(func(from *nameSource) {
		from.setRouted(&mesh.State{Links: []mesh.Link{{Name: "one"}, {Name: "three"}}})
	})
	check("links", ready+head+`links Number of links by state.
# TYPE coredns_kubelink_links gauge
coredns_kubelink_links{state="Down"} 1
coredns_kubelink_links{state="Idle"} 1
coredns_kubelink_links{state="Up"} 1
`+head+`link_up Whether the link is connected and the kernel has its routes (1) or not (0).
# TYPE coredns_kubelink_link_up gauge
coredns_kubelink_link_up{link="one"} 1
coredns_kubelink_link_up{link="three"} 0
coredns_kubelink_link_up{link="two"} 0
`+head+`link_rtt_seconds Smoothed round-trip time of the link's keepalive, in seconds.
# TYPE coredns_kubelink_link_rtt_seconds gauge
coredns_kubelink_link_rtt_seconds{link="one"} 0.25
`)
	if calls[len(calls)-1] != "Collect" {
		t.Errorf("the dataplane's own metrics are missing: %q", calls)
	}
	b.setGateway(nil)
	not := strings.NewReplacer("api_up 1", "api_up 0", "applied 1", "applied 0").Replace(ready)
	b.health.change(func(h *health) { h.api, h.controllers = errors.New("refused"), errors.New("ended") })
	check("not ready", not)
}
