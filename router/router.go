// Package router leads packets for the meshes from one node of a cluster to the gateway: kubelink-router runs it on
// each node. The API server says where the gateway is, and the kernel gets a route for each network of the meshes.
//
// What the node should have is a pure function of objects and facts (plan.go); watch.go follows the objects, node.go
// looks at the node, and kernel.Routes finds the difference and sets it. This file has the loop. A router that ends
// leaves the routes: the next one adopts them.
package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/kubeapi"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/netchange"
	"github.com/mandelsoft/kubelink/broker/overlay"
)

// Config says what a router does. Run needs all but what says otherwise.
type Config struct {
	REST      *rest.Config // of the API server
	Namespace string       // of LinkGateways, of Service, and of DaemonSet
	Service   string       // of a former broker
	DaemonSet string       // that runs the router; with it, the routes go
	Node      string       // name; empty: not known, then there are no Events
	NodeIP    netip.Addr   // invalid: the last address of an interface in NodeCIDRs
	NodeCIDRs []netip.Prefix
	PodCIDRs  []netip.Prefix // may be empty: then there is no check of packets of pods
	// ServiceCIDRs are those of the cluster's services; without them, those of LocalLinks count.
	ServiceCIDRs []netip.Prefix
	Device       string // of a broker on this node
	IPIP         string // one of IPIPNone, IPIPShared and IPIPConfigure
	Table        int    // routing table; 0: main
	Priority     int    // of the rule that leads to Table
	Datafile     string // of a former router; empty: none
	Listen       string // address of the HTTP server; empty: none
	Log          *slog.Logger
}

const (
	// repairInterval is how often the node is compared without any event.
	repairInterval = 30 * time.Second
	// settleTime is how long the router waits for further events after a first one that it has served at once.
	settleTime = 50 * time.Millisecond
	// maxListed bounds the findings that the log, Events and a page list. The metric counts all.
	maxListed = 32
	// restFactor bounds the share of time that the router works while events go on.
	restFactor = 4
)

// Router is the router of one node.
type Router struct {
	config Config
	routes *kernel.Routes
	vxlan  *vxlan
	node   *node
	api    *watcher
	events *events
	prober *prober
	former *formerFile
	wake   chan struct{}

	adopted bool // there were routes to a gateway at the start

	status atomic.Pointer[Status] // of the last look; nil: none yet
	looked atomic.Pointer[look]
}

// look is the end of a look at node and API, or the start of the router.
type look struct {
	at   time.Time
	next chan struct{} // closed at the end of the next look
}

func newLook() *look { return &look{at: time.Now(), next: make(chan struct{})} }

// Status is what a look at node and API has found. It is not changed later.
type Status struct {
	Findings link.Findings
	// Incomplete is why a part of the node could not be checked; nil: all was.
	Incomplete error
	Waiting    string // what the router waits for before it sets routes; empty: nothing
	Routes     int    // that lead to a gateway
	Unknown    []netip.Prefix
	Gateways   []string // where packets go, one line for each gateway
	places     []string // of the gateways, as Gateways has them
	Took       time.Duration
	Written    int // changes
}

// Ready is an error that says why the routes of the node are not what they should be; nil: they are.
func (s *Status) Ready() error {
	switch {
	case s == nil:
		return errors.New("the router has not looked at the node yet")
	case s.Waiting != "":
		return errors.New(s.Waiting)
	case len(s.Findings) > 0:
		return errors.New(s.Findings.String())
	}
	return nil
}

// Run sets the routes of this node until ctx ends. Then it leaves them, unless the API server says that the DaemonSet
// is gone, or is being deleted. An error means that the router could not start: for example, another one runs.
func Run(ctx context.Context, c Config) error {
	c.Log = limitLog(c.Log)
	kubeapi.SetLibraryLog(c.Log.Handler())
	former, err := readFormerFile(c.Datafile)
	if err != nil {
		return err
	}
	claim := &kernel.Claim{Router: true}
	if err := claim.Acquire(ctx, c.Log); err != nil {
		if ctx.Err() != nil {
			err = nil
		}
		return err
	}
	defer claim.Release()
	r, server, err := openRouter(c, former)
	if err != nil {
		return err
	}
	defer r.node.closeHandles()

	// The parts end before the routes go, if they go: nothing sets them again.
	working, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	apps, err := r.api.newClient(appsv1.SchemeGroupVersion, "/apis")
	if err != nil {
		return err
	}
	daemonSet := kubeapi.NewOwner(apps, "daemonsets", c.Namespace, c.DaemonSet) // with it, the routes go
	r.startParts(working, &wg, server, daemonSet)
	c.Log.Info("kubelink-router has started", "node", c.Node, "node-ip", r.node.address, "ipip", c.IPIP)
	r.lookAgain(working)
	stop()
	wg.Wait()
	if daemonSet.IsGone() {
		c.Log.Info("the DaemonSet is gone or is being deleted: routes are removed", "daemonset", c.DaemonSet)
		return r.removeAll()
	}
	c.Log.Info("kubelink-router ends, routes stay")
	return nil
}

// openRouter opens what a router works with.
func openRouter(c Config, former *formerFile) (*Router, *server, error) {
	routes, err := kernel.OpenRoutes(kernel.RoutesConfig{Table: c.Table, RulePriority: c.Priority,
		Former: former.destinations, Nodes: c.NodeCIDRs})
	if err != nil {
		return nil, nil, err
	}
	end, err := overlay.New(overlay.Node)
	if err != nil {
		return nil, nil, err
	}
	r := &Router{config: c, routes: routes, vxlan: &vxlan{end: end}, former: former, wake: make(chan struct{}, 1),
		adopted: routes.Exist()}
	r.looked.Store(newLook())
	if r.node, err = openNode(&c, r.requestLook); err != nil {
		return nil, nil, err
	}
	if r.api, err = newWatcher(&r.config, r.node.server, r.requestLook); err != nil {
		r.node.closeHandles()
		return nil, nil, err
	}
	admit, err := diagnosis.NewAdmission(r.api.config)
	if err != nil {
		r.node.closeHandles()
		return nil, nil, err
	}
	server, err := openServer(c.Listen, admit, r)
	if err != nil {
		r.node.closeHandles()
		return nil, nil, err
	}
	r.events = newEvents(r.api, c.Node, c.Log)
	r.prober = newProber(r.requestLook)
	return r, server, nil
}

// startParts starts all that works beside the loop.
func (r *Router) startParts(ctx context.Context, wg *sync.WaitGroup, server *server, daemonSet *kubeapi.Owner) {
	if err := netchange.Watch(ctx, wg, r.config.Log, r.requestLook); err != nil {
		r.config.Log.Warn("changes of routes and devices are noticed late", "interval", repairInterval, "error", err)
	}
	r.api.startInformers(ctx, wg)
	wg.Go(func() { r.events.writeAll(ctx) })
	wg.Go(func() { r.prober.run(ctx) })
	wg.Go(func() { server.serve(ctx, r.config.Log) })
	wg.Go(func() {
		if daemonSet.AwaitFirst(ctx) {
			r.config.Log.Info("the DaemonSet has been seen: with it, the routes go", "daemonset", r.config.DaemonSet)
		}
	})
	wg.Go(func() {
		r.node.server.AwaitEndpoints(ctx, r.api.config, r.config.Log)
		r.node.server.FollowEndpoints(ctx, r.api.config, r.config.Log)
	})
}

// Cleanup removes all that a router has set on this node.
func Cleanup(c Config) error {
	routes, err := kernel.OpenRoutes(kernel.RoutesConfig{})
	if err != nil {
		return err
	}
	end, err := overlay.New(overlay.Node)
	if err != nil {
		return err
	}
	return errors.Join(routes.Clear(), end.Clear(), newIPIP(c.IPIP, netip.Addr{}).releaseDevice())
}

// removeAll removes all that the router has set.
func (r *Router) removeAll() error {
	return errors.Join(r.routes.Clear(), r.vxlan.remove(), r.node.ipip.releaseDevice())
}

// requestLook asks for a look. It never blocks.
func (r *Router) requestLook() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// lookAgain looks after each event, and now and then, until ctx ends.
func (r *Router) lookAgain(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
		}
		s := r.lookOnce()
		r.publishStatus(s)
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(settleTime, restFactor*s.Took)):
		}
		timer.Reset(repairInterval)
	}
}

// lookOnce makes the routes of the node what they should be. While the API server has not told what there is, the
// routes of a former start stay.
func (r *Router) lookOnce() *Status {
	start := time.Now()
	s := &Status{}
	o, waiting, denied := r.api.readObjects(r.adopted)
	if s.Waiting = waiting; waiting != "" {
		s.Findings, s.Took = denied, time.Since(start)
		return s
	}
	leaders := findLeaders(o, r.node.apart)
	f := r.node.readFacts(r.routes, leaders)
	through, refused := wantedOverlay(leaders, f)
	if len(through.Peers) > 0 { // the device comes before the routes through it, and goes after them
		f.overlay, f.noOverlay = r.vxlan.prepare(through)
	}
	want := makeRouting(o, f)
	var errs []error
	s.Written, errs = r.routes.Set(want.routes)
	if len(through.Peers) == 0 {
		errs = append(errs, r.vxlan.remove())
	}
	s.Findings = slices.Concat(denied, refused, want.findings, findingsOf(errs))
	if errors.Join(errs...) == nil {
		var found link.Findings
		found, s.Incomplete = r.node.checkPackets(want.routes)
		s.Findings = append(s.Findings, found...)
		r.former.renameFile(r.config.Log)
	}
	s.Findings = append(s.Findings, r.prober.set(probeTargets(want, f, o.links))...)
	s.Routes, s.Unknown = countGateways(want.routes), want.unknown
	for i := range want.leaders {
		s.places = append(s.places, describePlace(&want.leaders[i]))
		s.Gateways = append(s.Gateways, fmt.Sprintf("%s, %d networks", s.places[i], len(want.leaders[i].networks)))
	}
	s.Took = time.Since(start)
	if last := r.status.Load(); last == nil || !slices.Equal(s.places, last.places) { // another link moves no gateway
		r.forgetFlows(want.routes) // it takes longer than all the rest, which need not wait for it
	}
	return s
}

// forgetFlows has packets of flows that go on take the new way, when it is set. Without that, new flows still do.
func (r *Router) forgetFlows(routes []kernel.NodeRoute) {
	n, err := kernel.ForgetFlows(routes)
	if err != nil {
		r.config.Log.Warn("flows of pods that began before the gateway moved may fail", "error", err,
			"remedy", "the node needs the kernel module nf_conntrack_netlink")
	}
	if n > 0 {
		r.config.Log.Info("flows take the way to the new gateway", "flows", n)
	}
}

// countGateways is the number of routes that lead to a gateway.
func countGateways(routes []kernel.NodeRoute) (n int) {
	for _, r := range routes {
		if r.Gateway.IsValid() {
			n++
		}
	}
	return n
}

func describePlace(l *leader) string {
	text := fmt.Sprintf("%s: node %s %v", l.name, l.node, l.nodeIPs)
	if len(l.podIPs) > 0 {
		text += fmt.Sprintf(", pod %v", l.podIPs)
	}
	return text
}

// findingsOf makes findings of errors of the kernel.
func findingsOf(errs []error) (findings link.Findings) {
	for _, err := range errs {
		if err == nil {
			continue
		}
		f := link.Finding{Reason: RouteNotSet, Text: err.Error(), Remedy: "it is tried again"}
		if foreign := (&kernel.ForeignRouteError{}); errors.As(err, &foreign) {
			f = link.Finding{Reason: ForeignRoute,
				Text: fmt.Sprintf("packets to %s take a route that is not kubelink's: %s", foreign.Destination, foreign.Route),
				Remedy: fmt.Sprintf("remove it (ip route del %s), or take %s out of the networks of the links",
					foreign.Route, foreign.Destination)}
		}
		findings = append(findings, f)
	}
	return findings
}

// publishStatus logs what is new, and makes Events of it.
func (r *Router) publishStatus(s *Status) {
	last := r.status.Swap(s)
	close(r.looked.Swap(newLook()).next)
	if last == nil {
		last = &Status{}
	}
	log := r.config.Log
	for _, f := range s.Findings[:min(len(s.Findings), maxListed)] {
		if !slices.Contains(last.Findings, f) {
			log.Warn("packets to the meshes do not all pass", "reason", f.Reason, "problem", f.Text, "remedy", f.Remedy)
		}
	}
	if last.Ready() != nil && s.Ready() == nil {
		log.Info("the routes of this node are what they should be", "routes", s.Routes, "unreachable", len(s.Unknown))
	}
	if s.Waiting != "" && s.Waiting != last.Waiting {
		log.Info("routes stay as they are", "reason", s.Waiting)
	}
	if s.Written > 0 || !slices.Equal(s.Gateways, last.Gateways) {
		log.Info("routes are set", "changes", s.Written, "routes", s.Routes, "gateways", s.Gateways, "took", s.Took)
	}
	r.events.reportFindings(s.Findings)
	countLook(s)
}
