package router

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mandelsoft/kubelink/broker/overlay"
)

// droppingEnd has dropped one more packet each time that it is asked.
type droppingEnd struct{ dropped uint64 }

func (*droppingEnd) Set(overlay.State) error { return nil }
func (*droppingEnd) MTU() int                { return 0 }
func (d *droppingEnd) Counters() overlay.Counters {
	d.dropped++
	return overlay.Counters{Dropped: d.dropped}
}

// Each scrape asks the overlay.
func TestDroppedCounter(t *testing.T) {
	const name = "kubelink_router_vxlan_dropped_packets_total"
	g := newDroppedCounter(&droppingEnd{})
	for _, want := range []string{"1", "2"} {
		text := "# HELP " + name + " VXLAN packets of the overlay that this node has dropped: they came from no gateway, " +
			"or pods sent them.\n# TYPE " + name + " counter\n" + name + " " + want + "\n"
		if err := testutil.GatherAndCompare(g, strings.NewReader(text), name); err != nil {
			t.Error(err)
		}
	}
}
