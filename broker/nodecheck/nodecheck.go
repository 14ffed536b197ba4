// Package nodecheck asks the kernel whether packets pass between the pods of this cluster and the links. What the
// broker has set says little: a firewall, a sysctl, a rule of the pod network or a route of an administrator can stand
// in the way, and links are connected all the same.
//
// It only reads: routes as the kernel decides them for the packet of a pod (RTM_GETROUTE, rtnetlink(7)), sysctls,
// nftables, and the legacy iptables. What it cannot know for certain is no finding: a rule with a condition that may
// not hold for our packets, for example.
package nodecheck

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/netchange"
)

// The reasons of findings.
const (
	MissingCapability = "MissingCapability" // the process may not do what links need
	DeviceMissing     = "DeviceMissing"     // the network interface is gone, or down
	ForwardingOff     = "ForwardingOff"     // the kernel does not forward
	ReversePathFilter = "ReversePathFilter" // the kernel drops packets because of their source
	ForeignRoute      = "ForeignRoute"      // packets to a link would leave another way
	RouteMissing      = "RouteMissing"      // packets to a link find no route of ours
	PacketFilter      = "PacketFilter"      // a rule of iptables or nftables drops packets
	SourceNAT         = "SourceNAT"         // packets would leave with a source that the peer drops
	EndpointInTunnel  = "EndpointInTunnel"  // the connection of a link would lead through a link
)

// Reasons are all of them.
var Reasons = []string{MissingCapability, DeviceMissing, ForwardingOff, ReversePathFilter, ForeignRoute, RouteMissing,
	PacketFilter, SourceNAT, EndpointInTunnel}

// Report is the result of a check. It is not changed later.
type Report struct {
	Findings link.Findings // the ones about the node first
	// Incomplete is why a part could not be checked; nil: all was.
	Incomplete error
}

// Problem is an error with all findings; nil: there are none.
func (r *Report) Problem() error {
	if r == nil || len(r.Findings) == 0 {
		return nil
	}
	return errors.New(r.Findings.String())
}

// About returns the findings about a link; of a nil Report none.
func (r *Report) About(name string) link.Findings {
	if r == nil {
		return nil
	}
	return r.Findings.About(name)
}

// CountReasons counts the findings by reason, of all Reasons; a nil Report has no reason.
func (r *Report) CountReasons() map[string]int {
	if r == nil {
		return nil
	}
	count := map[string]int{}
	for _, reason := range Reasons {
		count[reason] = 0
	}
	for _, f := range r.Findings {
		count[f.Reason]++
	}
	return count
}

// Target is what is to be checked.
type Target struct {
	State  *mesh.State
	Device string        // the network interface
	Table  int           // that has our routes
	Pods   mesh.Prefixes // networks of pods; empty: not known
	// Pod is the interface through which packets of pods come where this is a pod itself (pod mode), and an address behind
	// it; zero: this is a node.
	Pod mesh.HostInterface
}

// equals ignores what a check does not look at.
func (t *Target) equals(o *Target) bool {
	return t.Device == o.Device && t.Table == o.Table && slices.Equal(t.Pods, o.Pods) && t.Pod == o.Pod &&
		slices.EqualFunc(t.State.Peers, o.State.Peers, samePeer) && slices.Equal(t.State.Routes, o.State.Routes)
}

// samePeer compares what a check looks at: an ingress list is no matter of the node.
func samePeer(a, b mesh.Peer) bool {
	return a.Link == b.Link && a.Host == b.Host && slices.Equal(a.Networks, b.Networks) &&
		slices.Equal(a.Services, b.Services) && slices.Equal(a.Addresses, b.Addresses)
}

const (
	// interval is how often the node is checked without any event: neither sysctls nor the legacy iptables tell of
	// changes.
	interval = 2 * time.Second
	// restFactor bounds the share of time that checks take: of a check that takes 100 ms, the next one comes after 2 s.
	restFactor = 20
	// repairTime is between new findings and the check that decides.
	repairTime = 500 * time.Millisecond
	// minPause is between two checks, however many events there are.
	minPause = 250 * time.Millisecond
)

// checks counts the looks at the node: one that stands still is to be seen.
var checks = promauto.NewCounter(prometheus.CounterOpts{
	Namespace: plugin.Namespace, Subsystem: "kubelink", Name: "node_checks_total",
	Help: "Counter of checks whether packets of links pass on this node.",
})

// Config says how a Checker works.
type Config struct {
	Statuses func() []link.Status // addresses that links are connected to
	// Repair is called when there are new findings, before they count: what is gone is to be set again within repairTime.
	Repair  func()
	Changed func(*Report) // tells of a report that differs from the last one; it must not block
	Log     *slog.Logger
}

// Checker checks the node in a goroutine of its own.
type Checker struct {
	config Config
	node   *node
	report atomic.Pointer[Report] // nil: none yet
	stop   context.CancelFunc
	wg     sync.WaitGroup
	signal chan struct{} // something has changed

	mu     sync.Mutex // guards target; held to read or to assign it only
	target *Target    // nil: nothing to check yet
}

// Start starts a Checker. It checks the network namespace that the process is in.
func Start(c Config) (*Checker, error) {
	n, err := openNode()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	k := &Checker{config: c, node: n, stop: stop, signal: make(chan struct{}, 1)}
	if err := netchange.Watch(ctx, &k.wg, c.Log, k.wake); err != nil {
		c.Log.Warn("changes of routes and devices are noticed late", "interval", interval, "error", err)
	}
	k.wg.Go(func() { k.run(ctx) })
	return k, nil
}

// Stop ends the checks and awaits their end. A nil Checker has none.
func (k *Checker) Stop() {
	if k == nil {
		return
	}
	k.stop()
	k.wg.Wait()
	k.node.close()
}

// Set says what to check from now on. It never blocks.
func (k *Checker) Set(t Target) {
	if k == nil {
		return
	}
	k.mu.Lock()
	same := k.target != nil && k.target.equals(&t)
	k.target = &t
	k.mu.Unlock()
	if !same {
		k.wake()
	}
}

// Report is the result of the last check; nil: there was none. That of a nil Checker is nil, too.
func (k *Checker) Report() *Report {
	if k == nil {
		return nil
	}
	return k.report.Load()
}

// wake asks for a check.
func (k *Checker) wake() {
	select {
	case k.signal <- struct{}{}:
	default:
	}
}

func (k *Checker) currentTarget() *Target {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.target
}

// run checks until ctx ends.
func (k *Checker) run(ctx context.Context) {
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.signal:
		case <-timer.C:
		}
		pause := minPause
		if t := k.currentTarget(); t != nil {
			pause = max(pause, restFactor*k.checkOnce(ctx, t))
			checks.Inc()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		timer.Reset(max(0, interval-pause))
	}
}

// checkOnce makes a report, and tells of it when it differs from the last one. It returns how long a look took.
func (k *Checker) checkOnce(ctx context.Context, t *Target) time.Duration {
	started := time.Now()
	r := k.node.check(ctx, t, k.config.Statuses())
	took := time.Since(started)
	last := k.report.Load()
	if last == nil {
		last = &Report{}
	}
	if len(r.Findings) > 0 && !slices.Equal(r.Findings, last.Findings) {
		k.config.Repair()
		select {
		case <-ctx.Done():
		case <-time.After(repairTime):
		}
		r = k.node.check(ctx, t, k.config.Statuses())
	}
	if ctx.Err() != nil {
		return took
	}
	first := k.report.Swap(r) == nil
	if !first && slices.Equal(r.Findings, last.Findings) && errorText(r.Incomplete) == errorText(last.Incomplete) {
		return took
	}
	k.logChange(last, r)
	k.config.Changed(r)
	return took
}

func (k *Checker) logChange(last, r *Report) {
	for _, f := range r.Findings {
		if !slices.Contains(last.Findings, f) {
			k.config.Log.Warn("packets do not pass", "reason", f.Reason, "link", f.Link, "problem", f.Text, "remedy", f.Remedy)
		}
	}
	if len(r.Findings) == 0 && len(last.Findings) > 0 {
		k.config.Log.Info("nothing stands in the way of packets any more")
	}
	if text := errorText(r.Incomplete); text != "" && text != errorText(last.Incomplete) {
		k.config.Log.Warn("the node cannot be checked in full", "error", text)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// node is the network namespace that is checked.
type node struct {
	netlink   *netlink.Handle
	filters   filterCache
	endpoints map[string]*endpoint // by link
}

func openNode() (*node, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &node{netlink: handle}, nil
}

func (n *node) close() { n.netlink.Close() }

// check looks at the whole node.
func (n *node) check(ctx context.Context, t *Target, statuses []link.Status) *Report {
	r := &Report{Findings: checkCapabilities()}
	l := &look{node: n, target: t, networks: networksOf(t.State)}
	if len(l.networks) > 0 {
		steps := []struct {
			what string
			do   func() error
		}{
			{"device", l.checkDevice},
			{"routes", l.checkRoutes},
			{"packet filters", func() error { return checkFilters(ctx, l) }},
			{"endpoints", func() error { checkEndpoints(ctx, l, statuses); return nil }},
		}
		var errs []error
		for _, s := range steps {
			if err := s.do(); errors.Is(err, errNoDevice) {
				break
			} else if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", s.what, err))
			}
		}
		r.Incomplete = errors.Join(errs...)
	}
	r.Findings = append(r.Findings, l.findings...)
	slices.SortStableFunc(r.Findings, func(a, b link.Finding) int { return strings.Compare(a.Link, b.Link) })
	return r
}
