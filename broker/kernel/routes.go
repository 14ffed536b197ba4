package kernel

// The routes of a node to the gateway. They go the way of the broker's own: what is wanted is compared with one look at
// the kernel, what is new is set before anything goes, and foreign routes stay.

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// RouterMetric is the metric of a router's routes to IPv4 networks. A broker's own routes have a lower one and win.
const RouterMetric = 101

// routerMetric is RouterMetric, above the metric that the broker's routes have.
func routerMetric(destination netip.Prefix) int { return defaultMetric(destination) + RouterMetric }

// RoutesConfig is what does not change with the networks of the mesh. There is one router per network namespace.
type RoutesConfig struct {
	Table        int // routing table for the routes; 0: MainTable
	RulePriority int // of the ip-rule(8) that leads to Table when that is not MainTable
	// Former are destinations of a former router. Its routes to them are taken for ours: metric 101, protocol boot, in
	// the main table or in Table, via an address in Nodes.
	Former []netip.Prefix
	Nodes  []netip.Prefix // networks of the cluster's nodes
}

// NodeRoute is a route that a node is to have.
type NodeRoute struct {
	Destination netip.Prefix
	Gateway     netip.Addr // invalid: the destination is unreachable
	Index       int        // of the device that leads to Gateway
	OnLink      bool       // Gateway need not be in a network of the device
	MTU         int        // in bytes; 0: that of the device
	Fallback    bool       // it is set only where a broker on this node has no route to the destination
}

// ForeignRouteError says that a route of another program is where a wanted one should be.
type ForeignRouteError struct {
	Destination netip.Prefix
	Route       string // the foreign one, as ip(8) takes it
}

func (e *ForeignRouteError) Error() string {
	return fmt.Sprintf("there is a route that is not kubelink's: %s; remove it (ip route del %s), "+
		"or take %s out of the networks of the links", e.Route, e.Route, e.Destination)
}

// Way is how the kernel reaches an address.
type Way struct {
	Index   int        // of the device
	Device  string     // its name
	Local   bool       // the address is one of this node
	Gateway netip.Addr // on the way; invalid: the address is on the network of the device
	MTU     int        // of the device, in bytes
}

// Routes are the routes of one node. Its methods may be called concurrently.
type Routes struct {
	config RoutesConfig
	system routeSystem

	mu sync.Mutex // held over a call of system, which talks with the kernel
}

// routeSystem is the kernel as Routes needs it.
type routeSystem interface {
	Dump(device, pod string) *objects
	Change(verb string, object any) error
	DeviceName(index int) string
	FindWay(to netip.Addr) (Way, error)
}

// OpenRoutes returns the routes of the network namespace that the calling thread is in. To set them needs
// CAP_NET_ADMIN.
func OpenRoutes(config RoutesConfig) (*Routes, error) {
	if config.Table == 0 {
		config.Table = MainTable
	}
	if config.Table < 0 || config.Table == unix.RT_TABLE_LOCAL {
		return nil, fmt.Errorf("route table %d: want %d (main) or another table that the kernel does not fill",
			config.Table, MainTable)
	}
	s, err := newSystem()
	if err != nil {
		return nil, err
	}
	return &Routes{config: config, system: s}, nil
}

// FindWay asks the kernel how it reaches an address, such as that of a gateway. It does not look at packets of pods.
func (r *Routes) FindWay(to netip.Addr) (Way, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.system.FindWay(to)
}

// Exist tells whether the kernel has a route to a gateway that is ours. One that cannot be read may be there.
func (r *Routes) Exist() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := r.system.Dump("", "")
	ours := func(x route) bool { return x.Protocol == RouterProtocol && x.Gateway.IsValid() }
	return found.failed[unix.AF_INET] != nil || slices.ContainsFunc(found.routes, ours)
}

// Clear removes all routes and rules that are ours.
func (r *Routes) Clear() error {
	_, errs := r.Set(nil)
	return errors.Join(errs...)
}

// Set makes the routes of the node what is wanted. Where all is right it writes nothing: written is the number of
// changes. A part that fails does not stop the rest, and the next Set tries it again. An error about a place that
// another program has is a ForeignRouteError.
func (r *Routes) Set(want []NodeRoute) (written int, errs []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := r.system.Dump("", "")
	for _, f := range families {
		used := slices.ContainsFunc(want, func(n NodeRoute) bool { return FamilyOf(n.Destination.Addr()) == f })
		if err := found.failed[f]; err != nil && (used || !errors.Is(err, unix.EAFNOSUPPORT)) {
			errs = append(errs, fmt.Errorf("read the routes of IPv%d: %w", IPVersion(f), err))
		}
	}
	p := planChanges(r.wantedObjects(want, found), r.divideRoutes(found), nil)
	for _, c := range p.conflicts {
		errs = append(errs, &ForeignRouteError{c.wanted.Destination, c.foreign.text(r.system.DeviceName)})
	}
	for _, c := range p.changes {
		if err := r.system.Change(c.verb, c.object); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", ipCommand(c.verb, c.object, r.system.DeviceName), err))
		} else {
			written++
		}
	}
	return written, errs
}

// wantedObjects returns the objects that Set wants to see of ours, without the families that failed.
func (r *Routes) wantedObjects(want []NodeRoute, found *objects) (wanted objects) {
	used, broker := map[int]bool{}, brokerRoutes(found)
	for _, n := range want {
		family := FamilyOf(n.Destination.Addr())
		if found.failed[family] != nil || n.Fallback && broker.lead(n.Destination) {
			continue
		}
		used[family] = true
		o := route{Table: r.config.Table, Destination: n.Destination.Masked(), Gateway: n.Gateway, Index: n.Index,
			OnLink: n.OnLink, MTU: n.MTU, Metric: routerMetric(n.Destination), Protocol: RouterProtocol}
		if !n.Gateway.IsValid() {
			o.Type, o.Index, o.OnLink, o.MTU = unix.RTN_UNREACHABLE, 0, false, 0
		}
		wanted.routes = append(wanted.routes, o)
	}
	for _, f := range families {
		if used[f] && r.config.Table != MainTable {
			wanted.rules = append(wanted.rules, rule{f, r.config.RulePriority, r.config.Table, RouterProtocol})
		}
	}
	return wanted
}

// destinations are those of routes.
type destinations map[netip.Prefix]bool

// brokerRoutes are the destinations of a broker's own routes.
func brokerRoutes(found *objects) destinations {
	d := destinations{}
	for _, x := range found.routes {
		if isMarked(x) {
			d[x.Destination] = true
		}
	}
	return d
}

// lead tells whether a route leads to a network.
func (d destinations) lead(n netip.Prefix) bool {
	for bits := n.Bits(); bits >= 0; bits-- {
		if wider, _ := n.Addr().Prefix(bits); d[wider] {
			return true
		}
	}
	return false
}

// divideRoutes divides what the kernel has. A broker's routes are in the way of none: they win by their metric.
func (r *Routes) divideRoutes(found *objects) (o ownership) {
	for _, x := range found.routes {
		switch {
		case x.Protocol == RouterProtocol || r.isFormer(x):
			o.ours.routes = append(o.ours.routes, x)
		case !isMarked(x):
			o.foreign.routes = append(o.foreign.routes, x)
		}
	}
	o.divideRules(found.rules, RouterProtocol)
	return o
}

// isFormer tells whether a former router has made a route.
func (r *Routes) isFormer(x route) bool {
	return x.Metric == RouterMetric && x.Protocol == unix.RTPROT_BOOT && x.Gateway.IsValid() && !x.Source.IsValid() &&
		(x.Table == MainTable || x.Table == r.config.Table) && slices.Contains(r.config.Former, x.Destination) &&
		slices.ContainsFunc(r.config.Nodes, func(n netip.Prefix) bool { return n.Contains(x.Gateway) })
}
