package router

import (
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

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

// A pod that holds connections to the port has so many, and no more.
func TestConnectionsOfPod(t *testing.T) {
	s, err := openServer("127.0.0.1:0", &Router{vxlan: &vxlan{end: &droppingEnd{}}})
	if err != nil {
		t.Fatal(err)
	}
	go s.serve(t.Context(), slog.New(slog.DiscardHandler))
	defer s.http.Close()
	const many = 80
	closed := make(chan error, many)
	for range many {
		c, err := net.Dial("tcp", s.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			_, err := c.Read(make([]byte, 1))
			closed <- err
		}()
	}
	for range many / 2 {
		select {
		case <-closed:
		case <-time.After(requestTime / 2):
			t.Fatal("one source may hold many connections")
		}
	}
}
