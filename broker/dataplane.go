package broker

// The dataplane carries links. Another one, for another mode, implements the interface below; openDataplane opens it,
// and mesh.Mode.CarriesTraffic knows its mode.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/bridge"
	"github.com/mandelsoft/kubelink/broker/host"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/linkgateway"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/nodecheck"
	"github.com/mandelsoft/kubelink/broker/overlay"
	"github.com/mandelsoft/kubelink/broker/wireguard"
	"github.com/mandelsoft/kubelink/broker/writeback"
)

// dataplane carries links. Its methods may be called concurrently; none but Close waits for a peer.
type dataplane interface {
	// Configure changes how links are carried and what peers are told. Links that the change does not concern go on.
	Configure(link.Settings) error
	// SetCredentials sets what the next connection authenticates with. With nil no link is carried.
	SetCredentials(*link.Credentials)
	// Set tells all peers and the local networks, which no peer can take. The error is about this end; peers are set in
	// any case.
	Set(peers []mesh.Peer, local []netip.Prefix) error
	// Statuses are the states of the links, in the order of Set.
	Statuses() []link.Status
	// Collect sends the metrics that only this dataplane has.
	Collect(chan<- prometheus.Metric)
	// Close ends all links and awaits all goroutines. With keepDevice the device stays for the next process.
	Close(keepDevice bool) error
}

// kernelSetter brings states to the kernel, as a kernel.Worker does.
type kernelSetter interface {
	Set(kernel.State) error
	Forget(*kernel.Kernel)
	Wait()
	Clear() error
	Drops() kernel.Drops
	Backends() []kernel.Backend
}

// gateway is a dataplane and the kernel's state around it. There is one in a network namespace.
type gateway struct {
	dataplane
	kernel   kernelSetter
	host     hostWatcher        // nil: nothing is known of the node
	check    *nodecheck.Checker // nil: nothing checks the node
	place    linkgateway.Locator
	nodes    overlaySetter // packets come from nodes, and go to them, through it; nil: it cannot be
	log      *slog.Logger
	filters  bool            // the kernel filters what links send
	filtered kernel.Filtered // of which it has the chains; reconciler.mu guards it
}

// overlaySetter brings states of the overlay to the kernel, as an overlay.Worker does.
type overlaySetter interface {
	Set(overlay.State) (err, pending error)
	Counters() overlay.Counters
	Wait()
	Clear() error
}

// hostWatcher tells what the node has and needs, as a host.Watcher does.
type hostWatcher interface {
	Facts([]v1alpha1.KubeLink, []link.Status) mesh.Host
	Close()
}

// dataplaneEvents are the callbacks of a dataplane. They must not block.
type dataplaneEvents struct {
	changed   func()
	onUnknown func(link.UnknownPeer)
	checked   func(*nodecheck.Report)
}

// openGateway opens what the mode needs, nil if it carries no traffic; nothing is connected yet.
func openGateway(
	c *Config, events dataplaneEvents, wake func(), api *host.APIServer, log *slog.Logger,
) (*gateway, error) {
	if !c.Mode.CarriesTraffic() {
		return nil, nil
	}
	k, err := kernel.New(c.kernelConfig())
	if err != nil {
		return nil, err
	}
	end, err := overlay.New(overlay.Gateway)
	if err != nil {
		return nil, err
	}
	logLeft(k.FindLeft(), c, log)
	d, err := openDataplane(c, events, log)
	if err != nil {
		return nil, err
	}
	worker := kernel.NewWorker(k, kernel.WorkerConfig{
		Device: c.Interface, Repair: resync, Done: wake, Told: kernelUpdates.observe, Log: log,
	})
	h, err := host.Open(host.Config{
		Device: c.Interface, Protocols: []int{kernel.Protocol, kernel.RouterProtocol}, API: api,
		Changed: wake, Log: log,
	})
	if err != nil {
		return nil, errors.Join(err, d.Close(true))
	}
	g := &gateway{dataplane: d, kernel: worker, host: h, nodes: overlay.NewWorker(end, resync, wake), log: log,
		filters: c.Mode == mesh.WireGuard}
	g.check, err = nodecheck.Start(nodecheck.Config{
		Statuses: d.Statuses,
		Repair:   func() { worker.CompareSoon(); wake() },
		Changed:  events.checked,
		Log:      log,
	})
	if err != nil {
		log.Warn("nothing checks whether packets pass on this node", "error", err)
	}
	return g, nil
}

// logLeft logs what an earlier process has left, which this one adopts.
func logLeft(left kernel.Left, c *Config, log *slog.Logger) {
	if left == (kernel.Left{}) {
		log.Info("no earlier process has left anything to adopt", "device", c.Interface)
		return
	}
	log.Info("adopting what an earlier process has left", "device", c.Interface, "exists", left.Device,
		"addresses", left.Addresses, "routes", left.Routes, "rules", left.Rules)
}

func openDataplane(c *Config, events dataplaneEvents, log *slog.Logger) (dataplane, error) {
	switch c.Mode {
	case mesh.Bridge:
		if err := wireguard.RemoveDevices(); err != nil {
			log.Warn("cannot remove the device of mode wireguard", "error", err)
		}
		return bridge.Open(bridge.Config{
			Settings:  c.linkSettings(c.BrokerPort),
			Interface: c.Interface,
			Log:       log,
			Changed:   events.changed,
			OnUnknown: events.onUnknown,
		})
	case mesh.WireGuard:
		return wireguard.Open(wireguard.Config{
			Settings:  c.linkSettings(c.BrokerPort),
			Interface: c.Interface,
			Log:       log,
			Changed:   events.changed,
		})
	default:
		return nil, fmt.Errorf("mode %s has no dataplane", c.Mode)
	}
}

// Collect adds to the metrics of the dataplane what the kernel has dropped, and which iptables it uses.
func (g *gateway) Collect(ch chan<- prometheus.Metric) {
	g.dataplane.Collect(ch)
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	drops := g.kernel.Drops()
	count(refusedDesc, drops.Node)
	if g.filters { // else the dataplane counts by link
		count(dropsDesc, drops.Source, "", "source")
		count(dropsDesc, drops.Destination, "", "destination")
		count(dropsDesc, drops.Node, "", "node")
	}
	if g.nodes != nil {
		count(vxlanDesc, g.nodes.Counters().Dropped)
	}
	for _, b := range g.kernel.Backends() {
		ch <- prometheus.MustNewConstMetric(backendDesc, prometheus.GaugeValue, 1,
			fmt.Sprintf("IPv%d", b.Family), cmp.Or(b.Name, "unknown"))
	}
}

// observe adds what the gateway says of links and returns their states: none if the gateway is nil.
func (g *gateway) observe(seen *writeback.Observations) []link.Status {
	if g == nil {
		return nil
	}
	if report := g.check.Report(); report != nil {
		seen.Checked, seen.Findings, seen.Unchecked = true, report.Findings, report.Incomplete
	}
	statuses := g.Statuses()
	seen.SetStatuses(statuses)
	return statuses
}

// close ends the links, and removes what is for them from the kernel. With keep, device, routes and rules stay for the
// next process.
func (g *gateway) close(keep bool) {
	g.endLinks(keep)
	g.clearKernel(keep)
}

// endLinks ends the links.
func (g *gateway) endLinks(keep bool) {
	if g == nil {
		return
	}
	if g.host != nil {
		g.host.Close()
	}
	g.check.Stop()
	g.kernel.Wait() // links go on until the kernel is done
	if g.nodes != nil {
		g.nodes.Wait()
	}
	if err := g.Close(keep); err != nil {
		g.log.Error("cannot close the dataplane", "error", err)
	}
}

// clearKernel removes all of ours from the kernel. It comes after the end of links: a packet that is still on its way
// must not leave with a foreign source address.
func (g *gateway) clearKernel(keep bool) {
	if g == nil || keep {
		return
	}
	err := g.kernel.Clear()
	if g.nodes != nil {
		err = errors.Join(err, g.nodes.Clear())
	}
	if err != nil {
		g.log.Error("cannot remove kernel state", "error", err)
	}
}

// namespaceClaim makes sure that no other kubelink carries links in this network namespace, as a kernel.Claim does.
type namespaceClaim interface {
	Acquire(context.Context, *slog.Logger) error
	Release()
}
