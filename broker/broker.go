// Package broker runs kubelink in one process: the controller that turns KubeLinks into a
// mesh.State, the dataplane that the State is applied to, and the zone table that DNS answers
// come from.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/mandelsoft/kubelink/broker/announce"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/bridge"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/pki"
	"github.com/mandelsoft/kubelink/broker/snapshot"
	"github.com/mandelsoft/kubelink/broker/stubdomain"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// Broker is the running kubelink. There is one in a process: it owns the interface.
type Broker struct {
	log *slog.Logger

	// events wakes the reconciler of the running controllers; one pending wake-up is enough, as it
	// always looks at everything. Each start of the controllers has its own.
	events atomic.Pointer[chan event.GenericEvent]

	table    atomic.Pointer[zone.Table]
	answers  *zone.ReplyCache
	snapshot atomic.Pointer[snapshot.Snapshot] // nil: nothing survives
	health   atomic.Pointer[health]
	// dataplane is bridge, for readers that do not belong to the reconciler.
	dataplane atomic.Pointer[bridge.Bridge]

	// publishing tells that links have changed since DNS was told.
	publishing atomic.Bool

	// lifecycle serialises Start, Update and Stop.
	lifecycle sync.Mutex
	stop      context.CancelFunc // of the controllers
	done      chan struct{}      // closed when they have ended

	// What follows is written by lifecycle while the controllers stand still, with reconciling held, and read by them.
	cfg    Config
	api    *rest.Config   // of the local API server
	bridge *bridge.Bridge // nil in mode none
	kernel *kernel.Kernel
	lock   net.Listener          // that there is no second one in this network namespace; nil in mode none
	tokens *announce.TokenSource // whose token is announced; nil: none

	// apiZones are the sources of names from the APIs of the clusters.
	apiZones *apizone.Zones

	// What follows belongs to the reconciler that holds reconciling.
	reconciling  sync.Mutex
	accesses     []apizone.Access // to those APIs
	creds        pki.Store
	last         *mesh.State // that the API server told; nil: none yet
	inKernel     inKernel
	warned       error // what the kernel warned of
	unknowns     unknownPeers
	globals      globals
	receiver     announce.Receiver // of what peers announce
	unadvertised string            // why we do not announce all that we should, as logged

	// dnsRestart is the configuration for which the cluster's DNS is still to be restarted. It belongs to the writer, and
	// outlives it.
	dnsRestart stubdomain.PendingRestart
}

// health is why the broker is not ready.
type health struct {
	api         error // the API server cannot be reached
	controllers error // the controllers do not run
	applied     error // the last state could not be applied in full, or there was none yet
}

var errNoState = errors.New("no state from the API server yet")

// New checks a configuration. It touches nothing of the system.
func New(cfg Config) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	b := &Broker{log: slog.Default().With("plugin", "kubelink"), cfg: cfg, answers: zone.NewReplyCache()}
	b.apiZones = apizone.New(b.log, b.wake)
	b.tokens = announce.NewTokenSource(cfg.ServiceAccount, cfg.TokenLifetime, b.log)
	b.health.Store(&health{applied: errNoState})
	return b, nil
}

// Start opens the dataplane and starts the controllers. An absent API server is no error: it is
// asked again until it answers. An error is something that time does not heal.
func (b *Broker) Start() error {
	b.lifecycle.Lock()
	defer b.lifecycle.Unlock()
	api, err := b.cfg.restConfig()
	if err != nil {
		return err
	}
	br, k, err := b.openDataplane(&b.cfg)
	if err != nil {
		b.unlock()
		return err
	}
	b.setDataplane(br, k)
	if err := b.setSnapshot(b.cfg.StateDir); err != nil {
		closeDataplane(br, k, true, b.log)
		b.unlock()
		return err
	}
	b.startControllers(api)
	metricsSource.Store(b)
	return nil
}

// Update changes the configuration of the running broker. Only what the change concerns is
// restarted: tunnels and answers stay unless it is about them. After an error all is as before.
func (b *Broker) Update(cfg Config) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	b.lifecycle.Lock()
	defer b.lifecycle.Unlock()
	old := b.cfg
	if reflect.DeepEqual(cfg, old) {
		return nil
	}
	same := old
	if same.Domains = cfg.Domains; reflect.DeepEqual(cfg, same) { // other server blocks are no other stanza
		b.reconciling.Lock()
		b.cfg.Domains = cfg.Domains
		b.reconciling.Unlock()
		b.wake()
		return nil
	}
	api, err := cfg.restConfig()
	if err != nil {
		return err
	}
	if cfg.StateDir != old.StateDir {
		if err := b.setSnapshot(cfg.StateDir); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, b.setSnapshot(old.StateDir))
			}
		}()
	}
	if cfg.Mode != old.Mode || cfg.Interface != old.Interface {
		// The controllers see the new dataplane with the new configuration only.
		br, k, err := b.openDataplane(&cfg)
		if err != nil {
			return err
		}
		b.stopControllers()
		b.reconciling.Lock()
		defer b.reconciling.Unlock()
		closeDataplane(b.bridge, b.kernel, false, b.log)
		b.cfg = cfg
		b.setDataplane(br, k)
	} else {
		k := b.kernel
		if k != nil && (cfg.RouteTable != old.RouteTable || cfg.RulePriority != old.RulePriority) {
			if k, err = kernel.New(cfg.kernelConfig()); err != nil {
				return err
			}
		}
		b.stopControllers()
		b.reconciling.Lock()
		defer b.reconciling.Unlock()
		b.cfg, b.kernel, b.inKernel = cfg, k, inKernel{}
		if b.bridge != nil && !old.pkiConfig().Configured() && cfg.pkiConfig().Configured() {
			// Nothing goes on in plain text, even if the certificate is not there yet.
			b.bridge.SetCredentials(nil)
			b.creds = pki.Store{}
		}
	}
	b.setTokenSource(&old)
	b.startControllers(api)
	return nil
}

// Stop ends everything. Unless the configuration says otherwise, interface, routes and rules go.
func (b *Broker) Stop() {
	b.lifecycle.Lock()
	defer b.lifecycle.Unlock()
	metricsSource.CompareAndSwap(b, nil)
	b.stopControllers()
	b.reconciling.Lock()
	defer b.reconciling.Unlock()
	br, k := b.bridge, b.kernel
	b.last = nil
	b.setDataplane(nil, nil)
	closeDataplane(br, k, b.cfg.KeepNetwork, b.log)
	b.unlock()
	if old := b.snapshot.Swap(nil); old != nil {
		old.Close()
	}
	if t := b.table.Swap(nil); t != nil {
		t.Close()
	}
	b.apiZones.Close()
}

// setSnapshot keeps what has to survive a restart in another folder; empty: nowhere. As long as the API server has told
// nothing, names are what an earlier process knew.
func (b *Broker) setSnapshot(dir string) error {
	var next *snapshot.Snapshot
	if dir != "" {
		var last *snapshot.Objects
		var err error
		if next, last, err = snapshot.Open(dir, b.answers, b.log); err != nil {
			return err
		}
		b.answers.Persistent.Store(true)
		if b.table.Load() == nil && last != nil {
			b.reconciling.Lock()
			defer b.reconciling.Unlock()
			s := mesh.Build(mesh.Objects{Links: last.Links}, b.cfg.Local)
			b.restoreGlobals(last, s.Zones)
			b.log.Info("answering what an earlier process knew, until the API server is heard", "links", len(s.Links))
			b.publish(&s)
		}
	}
	if next == nil {
		b.answers.Persistent.Store(false)
	}
	if old := b.snapshot.Swap(next); old != nil {
		old.Close()
	}
	return nil
}

// Table is what DNS answers come from: nil until the first state is known. It takes no lock.
func (b *Broker) Table() *zone.Table { return b.table.Load() }

// Ready is nil when the API server answers and all that it says is applied, else why not.
func (b *Broker) Ready() error {
	h := b.health.Load()
	return errors.Join(h.api, h.controllers, h.applied)
}

func (b *Broker) setHealth(change func(*health)) {
	for {
		old := b.health.Load()
		h := *old
		change(&h)
		if b.health.CompareAndSwap(old, &h) {
			return
		}
	}
}

// wake lets the reconciler look again. It never blocks.
func (b *Broker) wake() {
	if events := b.events.Load(); events != nil {
		select {
		case *events <- event.GenericEvent{Object: theKey}:
		default:
		}
	}
}

func (c *Config) kernelConfig() kernel.Config {
	return kernel.Config{Device: c.Interface, MTU: bridge.DefaultMTU, Table: c.RouteTable, RulePriority: c.RulePriority}
}

// linkSettings are the settings that the dataplane gets. It announces no names and no API yet.
func (c *Config) linkSettings(port uint16) link.Settings {
	return link.Settings{
		NoOffload:      c.NoOffload,
		Streams:        c.Streams,
		ListenPort:     port,
		AdvertisedPort: c.AdvertisedPort,
		AutoConnect:    c.AutoConnect,
	}
}

// openDataplane opens what the mode needs; nothing is connected yet.
func (b *Broker) openDataplane(c *Config) (*bridge.Bridge, *kernel.Kernel, error) {
	if !c.Mode.CarriesTraffic() {
		return nil, nil, nil
	}
	if b.lock == nil {
		// Abstract sockets (unix(7)) belong to the network namespace, as our chains and rules do.
		lock, err := net.Listen("unix", "@kubelink")
		if err != nil {
			return nil, nil, fmt.Errorf("another kubelink with mode bridge runs in this network namespace: end it first (%w)", err)
		}
		b.lock = lock
	}
	k, err := kernel.New(c.kernelConfig())
	if err != nil {
		return nil, nil, err
	}
	br, err := bridge.Open(bridge.Config{
		Settings: c.linkSettings(c.BrokerPort), Interface: c.Interface, Log: b.log, Changed: b.linksChanged, OnUnknown: b.unknownPeer,
	})
	if err != nil {
		return nil, nil, err
	}
	return br, k, nil
}

func (b *Broker) unlock() {
	if b.lock != nil {
		b.lock.Close()
		b.lock = nil
	}
}

func (b *Broker) setDataplane(br *bridge.Bridge, k *kernel.Kernel) {
	b.bridge, b.kernel, b.inKernel = br, k, inKernel{}
	b.creds = pki.Store{} // a new bridge has none
	b.dataplane.Store(br)
}

func closeDataplane(br *bridge.Bridge, k *kernel.Kernel, keep bool, log *slog.Logger) {
	if br == nil {
		return
	}
	if err := br.Close(keep); err != nil {
		log.Error("cannot close the bridge", "error", err)
	}
	if !keep {
		// NAT goes last: what is still on its way must not leave with a foreign source address.
		if err := k.Clear(); err != nil {
			log.Error("cannot remove kernel state", "error", err)
		}
	}
}

// inKernel is what the kernel was last told, to tell it again only when there is a reason: each
// time costs processes, and events of links can be many.
type inKernel struct {
	state kernel.State
	index int // of the interface
	at    time.Time
}

// setKernel brings addresses, routes and NAT to the kernel, and repairs them now and then.
func (b *Broker) setKernel(s *mesh.State) error {
	want := inKernel{at: time.Now()}
	want.state.Routes = s.Routes
	for _, m := range s.Meshes {
		want.state.Addresses = append(want.state.Addresses, m.Addresses...)
	}
	if i, err := net.InterfaceByName(b.cfg.Interface); err == nil {
		want.index = i.Index
	}
	last := &b.inKernel
	if want.index == last.index && reflect.DeepEqual(want.state, last.state) && want.at.Sub(last.at) < resync-time.Second {
		return nil
	}
	*last = inKernel{}
	if err := b.kernel.Set(want.state); err != nil {
		return err
	}
	if err := b.kernel.Warning(); fmt.Sprint(err) != fmt.Sprint(b.warned) {
		if b.warned = err; err != nil {
			b.log.Warn("TCP connections of pods with a large MTU rely on path MTU discovery", "error", err)
		}
	}
	*last = want
	return nil
}

// apply is the one place that orders effects. Independent parts do not stop each other.
func (b *Broker) apply(s *mesh.State, port uint16) error {
	b.last = s
	// Names of links that go are the first to go: nobody shall wait for what is being taken down.
	b.publish(s)
	var errs []error
	if b.bridge != nil {
		// Peers come before routes: dialling starts at once, and what the first routed packet
		// finds is a link. NAT comes before addresses and routes (kernel.Set sees to that), so that no
		// packet leaves with a foreign source address. On removal the order is harmless: what is
		// still routed for an instant is answered with unreachable.
		settings := b.cfg.linkSettings(port)
		settings.DNS, settings.API, _ = b.advertised(s) // what is missing is told by the LocalLinks
		errs = append(errs, b.bridge.Configure(settings))
		peers := s.Peers
		if !b.creds.Usable() {
			peers = nil // better no link than one without authentication
		}
		errs = append(errs, b.bridge.Set(peers, s.Local))
		errs = append(errs, b.setKernel(s))
	}
	// Names of links that have come are the last: who gets an answer can use it.
	b.publish(s)
	return errors.Join(errs...)
}

// linksChanged shows in DNS what the bridge has noticed. The controllers do that and more, but there may be none: they
// start only where an API server answers. It never blocks.
func (b *Broker) linksChanged() {
	b.wake()
	if !b.publishing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		b.reconciling.Lock()
		defer b.reconciling.Unlock()
		b.publishing.Store(false) // what changes from now on is for the next one
		if b.last != nil {
			b.publish(b.last)
		}
	}()
}

// publish makes DNS answer from the state, with links as they are right now.
func (b *Broker) publish(s *mesh.State) {
	status := b.zoneStatus(s)
	opts := zone.Options{
		NSAddresses:  b.nsAddresses(),
		Serial:       uint32(time.Now().Unix()),
		Backends:     b.apiZones.Set(b.accesses, func(link string) bool { return status(link).Usable }),
		Globals:      b.globals.zones,
		Replies:      b.answers,
		ServeStale:   b.cfg.ServeStale,
		NoStateNames: b.cfg.NoStateNames,
	}
	for _, p := range s.Peers {
		for _, n := range p.Networks {
			opts.Networks = append(opts.Networks, zone.Network{Prefix: n, Link: p.Link})
		}
	}
	b.table.Store(zone.New(b.table.Load(), s.Zones, status, opts))
}

func (b *Broker) nsAddresses() []netip.Addr {
	a := b.cfg.DNSAddress(b.cfg.ServiceCIDRs)
	if !a.IsValid() {
		return nil
	}
	return []netip.Addr{a}
}

// zoneStatus tells the zone table which links can be used right now.
func (b *Broker) zoneStatus(s *mesh.State) func(link string) zone.Status {
	if !b.cfg.Mode.CarriesTraffic() {
		return func(string) zone.Status { return zone.Status{Usable: true} } // somebody else's traffic
	}
	peers := map[string]link.Status{}
	if b.bridge != nil {
		for _, st := range b.bridge.Statuses() {
			peers[st.Link] = st
		}
	}
	links := make(map[string]zone.Status, len(s.Links))
	for _, l := range s.Links {
		st, ok := peers[l.Peer]
		switch {
		case ok:
			links[l.Name] = zone.Status{Usable: st.State == link.Up, State: string(st.State), Reason: st.Reason, Since: st.Since, RTT: st.RTT}
		case b.last == nil:
			links[l.Name] = zone.Status{State: string(link.Idle), Reason: "kubelink has just started, and the API server has not told the links yet"}
		case b.creds.Usable():
			links[l.Name] = zone.Status{State: string(link.Idle), Reason: "it is about to be connected"}
		default:
			links[l.Name] = zone.Status{State: string(v1alpha1.StateError), Reason: "there is no usable certificate"}
		}
	}
	return func(link string) zone.Status { return links[link] }
}

// Validate checks what can be checked without the system. Messages name properties.
func (c *Config) Validate() error {
	for _, n := range []struct {
		name  string
		cidrs mesh.Prefixes
	}{{"pod-cidr", c.PodCIDRs}, {"node-cidr", c.NodeCIDRs}} { // these may contain that of the services
		for _, cidr := range n.cidrs {
			if services := c.ServiceCIDRs.SameFamily(cidr.Addr()); services.Overlaps(cidr) && services.Bits() <= cidr.Bits() {
				return fmt.Errorf("service-cidr %s contains %s %s: addresses of services are those of nothing else", services, n.name, cidr)
			}
		}
	}
	for _, address := range c.Addresses {
		if _, err := mesh.ClusterAddress(address.String()); err != nil {
			return fmt.Errorf("link-address %s: %w", address, err)
		}
		for _, n := range []struct {
			name  string
			cidrs mesh.Prefixes
		}{{"service-cidr", c.ServiceCIDRs}, {"pod-cidr", c.PodCIDRs}, {"node-cidr", c.NodeCIDRs}} {
			if cidr := n.cidrs.SameFamily(address.Addr()); cidr.Overlaps(address) {
				return fmt.Errorf("link-address %s overlaps with %s %s: the mesh network must be disjoint from the networks of its clusters", address, n.name, cidr)
			}
		}
	}
	return nil
}

// clusterDNS is the address of the local cluster's DNS service.
func (c *Config) clusterDNS() netip.Addr {
	if c.ClusterDNS.IsValid() {
		return c.ClusterDNS
	}
	return mesh.Nth(c.ServiceCIDRs.First(), 10)
}
