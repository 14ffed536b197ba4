package router

// The HTTP server: health, readiness and metrics.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
)

const (
	// maxLookAge is how old the last look may be of a router that is healthy: it looks every 30 s.
	maxLookAge  = 2 * time.Minute
	requestTime = 10 * time.Second
	// maxConnections is far below what fills the memory of the container. Every pod can reach the port.
	maxConnections = 512
	// A request for findings gets those of a look that is not older than freshTime, if one ends within awaitTime.
	freshTime = 2 * time.Second
	awaitTime = time.Second
)

// metrics of the router. A process has one.
var (
	registry = prometheus.NewRegistry()
	looks    = prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "kubelink", Subsystem: "router",
		Name: "look_seconds", Help: "Time to compare the routes of the node with the wanted ones, and to set them.",
		Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3}})
	changes = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "kubelink", Subsystem: "router",
		Name: "route_changes_total", Help: "Routes and rules that the router has added, replaced or removed."})
	wanted = prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "kubelink", Subsystem: "router",
		Name: "routes", Help: "Routes that this node should have, by where they lead: to a gateway or nowhere."},
		[]string{"to"})
	problems = prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "kubelink", Subsystem: "router",
		Name: "findings", Help: "What is in the way of packets to the meshes on this node, by reason."}, []string{"reason"})
	ready = prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "kubelink", Subsystem: "router",
		Name: "ready", Help: "1: the routes of this node are what they should be."})
	lastLook = prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "kubelink", Subsystem: "router",
		Name: "last_look_timestamp_seconds", Help: "When the router looked at the node last (Unix time)."})
)

func init() {
	registry.MustRegister(looks, changes, wanted, problems, ready, lastLook,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}

// countLook brings a look to the metrics.
func countLook(s *Status) {
	looks.Observe(s.Took.Seconds())
	changes.Add(float64(s.Written))
	wanted.WithLabelValues("unreachable").Set(float64(len(s.Unknown)))
	wanted.WithLabelValues("gateway").Set(float64(s.Routes))
	count := map[string]int{}
	for _, f := range s.Findings {
		count[f.Reason]++
	}
	for _, reason := range reasons {
		problems.WithLabelValues(reason).Set(float64(count[reason]))
	}
	ready.Set(0)
	if s.Ready() == nil {
		ready.Set(1)
	}
	lastLook.SetToCurrentTime()
}

// newDroppedCounter returns the metric of an overlay, which is asked at each scrape.
func newDroppedCounter(o vxlanEnd) prometheus.Gatherer {
	own := prometheus.NewRegistry()
	own.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "kubelink", Subsystem: "router",
		Name: "vxlan_dropped_packets_total",
		Help: "VXLAN packets of the overlay that this node has dropped: they came from no gateway, or pods sent them."},
		func() float64 { return float64(o.Counters().Dropped) }))
	return own
}

// server is the HTTP server.
type server struct {
	http     *http.Server
	listener net.Listener // nil: none
}

// openServer opens the port. What the router has found is for users that are admitted.
func openServer(address string, admit func(http.HandlerFunc) http.HandlerFunc, r *Router) (*server, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", r.serveHealth)
	mux.HandleFunc("GET /readyz", r.serveReady)
	mux.HandleFunc("GET "+diagnosis.NodePath, admit(r.serveFindings))
	all := prometheus.Gatherers{registry, newDroppedCounter(r.vxlan.end)}
	mux.Handle("GET /metrics", promhttp.HandlerFor(all, promhttp.HandlerOpts{}))
	s := &server{http: &http.Server{Handler: mux, ReadTimeout: requestTime, WriteTimeout: requestTime}}
	if address == "" {
		return s, nil
	}
	var err error
	if s.listener, err = net.Listen("tcp", address); err != nil {
		return nil, &FlagError{"server-port-http", address, "the port cannot be opened: " + err.Error(),
			"choose a free port of the node, or another --bind-address-http"}
	}
	s.listener = diagnosis.ShareConnections(s.listener, maxConnections)
	return s, nil
}

// serve serves until ctx ends.
func (s *server) serve(ctx context.Context, log *slog.Logger) {
	if s.listener == nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { s.http.Close() })
	defer stop()
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		log.Error("health and metrics are not served any more", "error", err)
	}
}

// serveHealth says whether the loop goes on.
func (r *Router) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if age := time.Since(r.looked.Load().at); age > maxLookAge {
		http.Error(w, fmt.Sprintf("the router has not looked at the node for %s", age.Round(time.Second)),
			http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// serveReady says whether the routes are what they should be. kubelet has no token, so all that reach the port may ask:
// they learn no more than from the metrics, neither addresses nor rules of the node.
func (r *Router) serveReady(w http.ResponseWriter, _ *http.Request) {
	s := r.status.Load()
	if s.Ready() != nil {
		http.Error(w, s.summarize(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintf(w, "ok: %d routes to gateways, %d networks are unreachable, as no gateway is known\n", s.Routes,
		len(s.Unknown))
}

// summarize says in general why the routes are not what they should be.
func (s *Status) summarize() string {
	if s == nil || s.Waiting != "" {
		text, _, _ := strings.Cut(s.Ready().Error(), ":")
		return text
	}
	count := map[string]int{}
	for _, f := range s.Findings {
		count[f.Reason]++
	}
	var lines []string
	for _, reason := range slices.Sorted(maps.Keys(count)) {
		lines = append(lines, fmt.Sprintf("%s: %d", reason, count[reason]))
	}
	return strings.Join(append(lines, "kubectl kubelink diagnose and the log say more"), "\n")
}

// serveFindings says what is in the way of packets, and what to do.
func (r *Router) serveFindings(w http.ResponseWriter, request *http.Request) {
	r.awaitLook(request.Context())
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(r.status.Load().report(r.config.Node)) // the client may be gone
}

// awaitLook waits for a look that has begun by now, unless there was one a moment ago: nothing tells the router of
// changes of sysctls and rules.
func (r *Router) awaitLook(ctx context.Context) {
	last := r.looked.Load()
	if time.Since(last.at) < freshTime {
		return
	}
	r.requestLook()
	ctx, cancel := context.WithTimeout(ctx, awaitTime)
	defer cancel()
	select {
	case <-ctx.Done():
	case <-last.next:
	}
}

// report makes the report of a look on a node; nil: there was none yet.
func (s *Status) report(name string) *diagnosis.NodeReport {
	r := &diagnosis.NodeReport{Node: name, Ready: s.Ready() == nil, Findings: []diagnosis.Finding{}}
	about := diagnosis.Object{Kind: "Node", Name: name}
	add := func(reason string, severity diagnosis.Severity, message, remedy string) {
		r.Findings = append(r.Findings, diagnosis.Finding{Reason: reason, Severity: severity, Object: about,
			Message: strings.ReplaceAll(message, "\n", "; "), Remedy: remedy})
	}
	if s == nil || s.Waiting != "" {
		add(diagnosis.RouterNotReady, diagnosis.Error, "the routes of the node stay as they are: "+s.Ready().Error(),
			"see that the API server answers, that a broker holds the links, and the log of the router on the node")
		return r
	}
	for _, f := range s.Findings[:min(len(s.Findings), maxListed)] {
		add(f.Reason, diagnosis.Error, f.Text, f.Remedy)
	}
	if s.Incomplete != nil {
		add(diagnosis.NodeNotChecked, diagnosis.Warning, "not all rules of the node can be read: "+s.Incomplete.Error(),
			"look at iptables-legacy-save on the node, which needs the capability NET_RAW")
	}
	return r
}
