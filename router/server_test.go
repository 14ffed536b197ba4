package router

import (
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mandelsoft/kubelink/broker/link"
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

func admitAll(serve http.HandlerFunc) http.HandlerFunc { return serve }

func admitNobody(http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }
}

// What the router has found on the node is for users with a token: without one, no page has an address or a rule.
func TestPagesWithoutToken(t *testing.T) {
	secret := link.Finding{Reason: PacketFilter, Text: "rule -s 10.250.0.7 drops", Remedy: "remove it"}
	ready := &Status{Routes: 3, Gateways: []string{"kubelink: node node1 [10.250.0.1], 3 networks"},
		Unknown: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}}
	for name, c := range map[string]struct {
		status *Status
		code   int
		says   string
	}{
		"no look yet": {nil, 503, "the router has not looked at the node yet\n"},
		"ready":       {ready, 200, "ok: 3 routes to gateways, 1 networks are unreachable, as no gateway is known\n"},
		"waiting": {&Status{Waiting: "the API server has not told of kubelinks yet: dial tcp 10.250.0.2:443"}, 503,
			"the API server has not told of kubelinks yet\n"},
		"findings": {&Status{Findings: link.Findings{secret, secret, {Reason: ForwardingOff, Text: "on 10.250.0.7"}}}, 503,
			"ForwardingOff: 1\nPacketFilter: 2\nkubectl kubelink diagnose and the log say more\n"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Router{vxlan: &vxlan{end: &droppingEnd{}}}
			r.looked.Store(newLook())
			r.status.Store(c.status)
			s, err := openServer("", admitNobody, r)
			if err != nil {
				t.Fatal(err)
			}
			for path, want := range map[string]int{"/readyz": c.code, "/healthz": 200, "/metrics": 200, "/findings": 401,
				"/": 404} {
				w := httptest.NewRecorder()
				s.http.Handler.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
				body := w.Body.String()
				if w.Code != want || path == "/readyz" && body != c.says || strings.Contains(body, "10.") {
					t.Errorf("%s: %d %q", path, w.Code, body)
				}
				w = httptest.NewRecorder()
				s.http.Handler.ServeHTTP(w, httptest.NewRequest("POST", path, nil))
				if w.Code/100 != 4 {
					t.Errorf("POST %s: %d", path, w.Code)
				}
			}
		})
	}
}

// A pod that holds connections to the port has so many, and no more.
func TestConnectionsOfPod(t *testing.T) {
	s, err := openServer("127.0.0.1:0", admitAll, &Router{vxlan: &vxlan{end: &droppingEnd{}}})
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
