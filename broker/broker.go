// Package broker runs kubelink in one process: the controller that turns KubeLinks into a
// mesh.State, the dataplane that the State is applied to, and the zone table that DNS answers
// come from.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/bridge"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// Broker is the running kubelink. There is one in a process: it owns the interface.
type Broker struct {
	log *slog.Logger

	// events wakes the reconciler of the running controllers; one pending wake-up is enough, as it
	// always looks at everything. Each start of the controllers has its own.
	events atomic.Pointer[chan event.GenericEvent]

	table  atomic.Pointer[zone.Table]
	health atomic.Pointer[health]
	// dataplane is bridge, for readers that do not belong to the reconciler.
	dataplane atomic.Pointer[bridge.Bridge]

	// lifecycle serialises Start, Update and Stop.
	lifecycle sync.Mutex
	stop      context.CancelFunc // of the controllers
	done      chan struct{}      // closed when they have ended

	// What follows is written by lifecycle while the controllers stand still, and read by them.
	cfg    Config
	bridge *bridge.Bridge
	kernel *kernel.Kernel

	// What follows belongs to the reconciler.
	creds    credentials
	unknowns unknownPeers
}

// health is why the broker is not ready.
type health struct {
	api     error // the API server cannot be reached
	applied error // the last state could not be applied in full, or there was none yet
}

var errNoState = errors.New("no state from the API server yet")

// New checks a configuration. It touches nothing of the system.
func New(cfg Config) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	b := &Broker{log: slog.Default().With("plugin", "kubelink"), cfg: cfg}
	b.health.Store(&health{applied: errNoState})
	return b, nil
}

// Start opens the dataplane and starts the controllers. An absent API server is no error: it is
// asked again until it answers. An error is something that time does not heal.
func (b *Broker) Start() error {
	b.lifecycle.Lock()
	defer b.lifecycle.Unlock()
	if err := b.openDataplane(); err != nil {
		return err
	}
	if err := b.startControllers(); err != nil {
		b.closeDataplane(true)
		return err
	}
	metricsSource.Store(b)
	return nil
}

// Update changes the configuration of the running broker. Only what the change concerns is
// restarted: tunnels and answers stay unless it is about them.
func (b *Broker) Update(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	b.lifecycle.Lock()
	defer b.lifecycle.Unlock()
	if reflect.DeepEqual(cfg, b.cfg) {
		return nil
	}
	b.stopControllers()
	old := b.cfg
	b.cfg = cfg
	var err error
	if cfg.Mode != old.Mode || cfg.Interface != old.Interface {
		b.closeDataplane(false)
		err = b.openDataplane()
	} else if cfg.Mode == mesh.Bridge && (cfg.RouteTable != old.RouteTable || cfg.RulePriority != old.RulePriority) {
		b.kernel, err = kernel.New(b.kernelConfig())
	}
	return errors.Join(err, b.startControllers())
}

// Stop ends everything. Unless the configuration says otherwise, interface, routes and rules go.
func (b *Broker) Stop() {
	b.lifecycle.Lock()
	defer b.lifecycle.Unlock()
	metricsSource.CompareAndSwap(b, nil)
	b.stopControllers()
	b.closeDataplane(b.cfg.KeepNetwork)
	if t := b.table.Swap(nil); t != nil {
		t.Close()
	}
}

// Table is what DNS answers come from: nil until the first state is known. It takes no lock.
func (b *Broker) Table() *zone.Table { return b.table.Load() }

// Ready is nil when the API server answers and all that it says is applied, else why not.
func (b *Broker) Ready() error {
	h := b.health.Load()
	return errors.Join(h.api, h.applied)
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

func (b *Broker) kernelConfig() kernel.Config {
	return kernel.Config{Device: b.cfg.Interface, MTU: bridge.DefaultMTU, Table: b.cfg.RouteTable, RulePriority: b.cfg.RulePriority}
}

// bridgeConfig is made anew each time: all but the interface can change while the bridge runs.
func (b *Broker) bridgeConfig(port uint16) bridge.Config {
	c := bridge.Config{
		Interface:      b.cfg.Interface,
		ListenPort:     port,
		AdvertisedPort: b.cfg.AdvertisedPort,
		AutoConnect:    b.cfg.AutoConnect,
		Log:            b.log,
		Changed:        b.wake,
		OnUnknown:      b.unknownPeer,
	}
	if b.cfg.DNSAdvertisement {
		c.DNS = &bridge.DNSInfo{ClusterDomain: b.cfg.ClusterDomain, Address: b.cfg.clusterDNS()}
	}
	return c
}

func (b *Broker) openDataplane() error {
	if b.cfg.Mode != mesh.Bridge {
		return nil
	}
	var err error
	if b.kernel, err = kernel.New(b.kernelConfig()); err != nil {
		return err
	}
	b.creds = credentials{} // the new bridge has none
	if b.bridge, err = bridge.Open(b.bridgeConfig(b.cfg.BrokerPort)); err != nil {
		return err
	}
	b.dataplane.Store(b.bridge)
	return nil
}

func (b *Broker) closeDataplane(keep bool) {
	if b.bridge == nil {
		return
	}
	if !keep {
		// NAT goes last: what is still on its way must not leave with a foreign source address.
		defer func(k *kernel.Kernel) {
			if err := k.Clear(); err != nil {
				b.log.Error("cannot remove kernel state", "error", err)
			}
		}(b.kernel)
	}
	if err := b.bridge.Close(keep); err != nil {
		b.log.Error("cannot close the bridge", "error", err)
	}
	b.dataplane.Store(nil)
	b.bridge, b.kernel = nil, nil
}

// apply is the one place that orders effects. Independent parts do not stop each other.
func (b *Broker) apply(s *mesh.State, port uint16) error {
	// Names of links that go are the first to go: nobody shall wait for what is being taken down.
	b.publish(s)
	var errs []error
	if b.bridge != nil {
		// Peers come before routes: dialling starts at once, and what the first routed packet
		// finds is a link. NAT comes before addresses and routes (kernel.Set sees to that), so that no
		// packet leaves with a foreign source address. On removal the order is harmless: what is
		// still routed for an instant is answered with unreachable.
		errs = append(errs, b.bridge.SetConfig(b.bridgeConfig(port)))
		errs = append(errs, b.bridge.Set(s.Peers))
		addresses := make([]netip.Prefix, 0, len(s.Meshes))
		for _, m := range s.Meshes {
			addresses = append(addresses, m.Address)
		}
		errs = append(errs, b.kernel.Set(kernel.State{Addresses: addresses, Routes: s.Routes}))
	}
	// Names of links that have come are the last: who gets an answer can use it.
	b.publish(s)
	return errors.Join(errs...)
}

// publish makes DNS answer from the state, with links as they are right now.
func (b *Broker) publish(s *mesh.State) {
	b.table.Store(zone.New(b.table.Load(), s.Zones, b.zoneStatus(s), zone.Options{
		NSAddresses: b.nsAddresses(),
		Serial:      uint32(time.Now().Unix()),
	}))
}

func (b *Broker) nsAddresses() []netip.Addr {
	a := b.cfg.DNSServiceAddress
	if !a.IsValid() && b.cfg.ServiceCIDR.IsValid() {
		a = mesh.Nth(b.cfg.ServiceCIDR, 11)
	}
	if !a.IsValid() {
		return nil
	}
	return []netip.Addr{a}
}

// zoneStatus tells the zone table which links can be used right now.
func (b *Broker) zoneStatus(s *mesh.State) func(link string) zone.Status {
	if b.bridge == nil {
		return func(string) zone.Status { return zone.Status{Usable: true} } // mode none: somebody else's traffic
	}
	peers := map[string]bridge.Status{}
	for _, st := range b.bridge.Statuses() {
		peers[st.Link] = st
	}
	links := make(map[string]zone.Status, len(s.Links))
	for _, l := range s.Links {
		st, ok := peers[l.Peer]
		switch {
		case ok:
			links[l.Name] = zone.Status{Usable: st.State == bridge.Up, State: string(st.State), Reason: st.Reason}
		case b.creds.usable():
			links[l.Name] = zone.Status{State: string(bridge.Idle), Reason: "it is about to be connected"}
		default:
			links[l.Name] = zone.Status{State: string(v1alpha1.StateError), Reason: "there is no usable certificate"}
		}
	}
	return func(link string) zone.Status { return links[link] }
}

// Validate checks what can be checked without the system. Messages name properties.
func (c *Config) Validate() error {
	if c.Address.IsValid() {
		if _, err := mesh.ClusterAddress(c.Address.String()); err != nil {
			return fmt.Errorf("link-address %s: %w", c.Address, err)
		}
		for _, n := range []struct {
			name string
			cidr netip.Prefix
		}{{"service-cidr", c.ServiceCIDR}, {"pod-cidr", c.PodCIDR}, {"node-cidr", c.NodeCIDR}} {
			if n.cidr.IsValid() && n.cidr.Overlaps(c.Address) {
				return fmt.Errorf("link-address %s overlaps with %s %s: the mesh network must be disjoint from the networks of its clusters", c.Address, n.name, n.cidr)
			}
		}
	}
	return nil
}

// clusterDNS is the address of the local cluster's DNS service.
func (c *Config) clusterDNS() netip.Addr {
	if c.ClusterDNS.IsValid() || !c.ServiceCIDR.IsValid() {
		return c.ClusterDNS
	}
	return mesh.Nth(c.ServiceCIDR, 10)
}
