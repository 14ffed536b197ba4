// Package broker runs kubelink in one process: the controllers that turn objects of the API into a mesh.State, the
// dataplane that the State is applied to, and the zone table that DNS answers come from. README.md is the map.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/announce"
	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/broker/eventlog"
	"github.com/mandelsoft/kubelink/broker/host"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/lease"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/nodecheck"
	"github.com/mandelsoft/kubelink/broker/snapshot"
	"github.com/mandelsoft/kubelink/broker/writeback"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// Broker is the running kubelink. There is one in a process: it owns the interface.
type Broker struct {
	log      *slog.Logger
	names    *publisher
	health   *healthState
	r        *reconciler
	server   *host.APIServer // where the API server is
	identity atomic.Pointer[diagnosis.Identity]
	probe    atomic.Pointer[diagnosis.NameProbe]

	lifecycle   sync.Mutex // serialises Start, Update and Stop, and guards the fields below
	cfg         Config
	api         *rest.Config   // of the local API server
	claim       namespaceClaim // of openGateway
	controllers *controllers   // nil: they do not run
	reports     reporter
}

// New checks a configuration. It touches nothing of the system.
func New(cfg Config) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log := eventlog.New("kubelink")
	waker := &waker{}
	apis := apizone.New(log, waker.wake)
	names := newPublisher(zone.NewReplyCache(), apis)
	health := newHealthState()
	r := &reconciler{log: log, waker: waker, names: names, health: health,
		peers: announcer{tokens: announce.NewTokenSource(cfg.ServiceAccount, cfg.TokenLifetime, log)},
	}
	r.election = lease.NewElector(log, waker.wake)
	b := &Broker{log: log, names: names, health: health, r: r, claim: &kernel.Claim{}, server: host.NewAPIServer()}
	b.setConfig(cfg)
	return b, nil
}

// Start opens the dataplane and starts the controllers. An absent API server is no error: the controllers
// ask again until it answers. An error is something that time does not heal.
func (b *Broker) Start() error {
	b.lifecycle.Lock()
	defer b.lifecycle.Unlock()
	eventlog.Configure(b.cfg.LogLevel, b.cfg.LogFormat)
	id := b.identity.Load()
	b.log.Info("kubelink starts", "version", id.Version, "CoreDNS", id.CoreDNSVersion, "mode", id.Mode,
		"device", id.Device, "node", id.Node, "namespace", id.Namespace)
	api, err := b.cfg.restConfig()
	if err != nil {
		return err
	}
	g, err := b.openGateway(&b.cfg)
	if err != nil {
		b.claim.Release()
		return err
	}
	b.setGateway(g)
	b.setSnapshot(b.cfg.StateDir)
	b.names.followLinks()
	b.startControllers(api)
	metricsSource.Store(b)
	return nil
}

// Update changes the configuration of the running broker. Only what the change concerns is
// restarted: tunnels and answers stay unless it is about them. After an error all is as before.
func (b *Broker) Update(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	b.lifecycle.Lock()
	defer b.lifecycle.Unlock()
	old := b.cfg
	lost := b.api != nil && b.r.gateway == nil && old.Mode.CarriesTraffic() // an earlier Update could not open it again
	if reflect.DeepEqual(cfg, old) && !lost {
		return nil
	}
	eventlog.Configure(cfg.LogLevel, cfg.LogFormat)
	same := old // other server blocks are no other stanza, and another log restarts nothing
	if same.Domains, same.LogConfig = cfg.Domains, cfg.LogConfig; reflect.DeepEqual(cfg, same) && !lost {
		b.setConfig(cfg)
		b.r.waker.wake()
		return nil
	}
	api, err := cfg.restConfig()
	if err != nil {
		return err
	}
	if cfg.Mode != old.Mode || cfg.Interface != old.Interface || lost {
		err = b.replaceGateway(cfg)
	} else {
		err = b.keepGateway(cfg)
	}
	if err != nil {
		return err
	}
	if cfg.StateDir != old.StateDir {
		b.setSnapshot(cfg.StateDir)
	}
	b.r.setTokenSource(&old)
	b.startControllers(api)
	return nil
}

// replaceGateway closes the dataplane that runs, which may have the TUN or the port that the other one needs, and opens
// another one in its place. Where that fails, the former one is opened again. The controllers see it with the new
// configuration only; they stand still afterwards, after an error they run as before.
func (b *Broker) replaceGateway(cfg Config) error {
	if cfg.Mode.CarriesTraffic() { // what is wrong in any case is found before links are closed
		if _, err := kernel.New(cfg.kernelConfig()); err != nil {
			return err
		}
	}
	b.stopControllers(nil)
	b.r.gateway.close(false)
	g, err := b.openGateway(&cfg)
	if err == nil {
		b.setConfig(cfg)
	} else {
		err = nameGatewayChange(&b.cfg, &cfg, err)
		var lost error
		if g, lost = b.openGateway(&b.cfg); lost != nil {
			err = errors.Join(err, nameGatewayChange(&cfg, &b.cfg, lost))
		}
	}
	b.setGateway(g)
	if g == nil {
		b.claim.Release()
	}
	b.names.linksChanged() // events of the gateway that was closed are over
	if err != nil {
		b.startControllers(b.api)
	}
	return err
}

// nameGatewayChange adds to an error which property has asked for another dataplane.
func nameGatewayChange(from, to *Config, err error) error {
	if from.Mode != to.Mode {
		return fmt.Errorf("mode %s: %w", to.Mode, err)
	}
	return fmt.Errorf("ifce-name %s: %w", to.Interface, err)
}

// keepGateway changes the configuration around the dataplane that runs. The controllers stand still afterwards.
func (b *Broker) keepGateway(cfg Config) error {
	old, g := b.cfg, b.r.gateway
	var k *kernel.Kernel
	if g != nil && cfg.kernelConfig() != old.kernelConfig() {
		var err error
		if k, err = kernel.New(cfg.kernelConfig()); err != nil {
			return err
		}
	}
	b.stopControllers(nil)
	b.setConfig(cfg)
	if g == nil {
		return nil
	}
	g.kernel.Forget(k)
	if !old.pkiConfig().Configured() && cfg.pkiConfig().Configured() {
		// Nothing goes on unencrypted, even if the certificate is not there yet.
		g.SetCredentials(nil)
		b.setGateway(g)
	}
	return nil
}

// Stop ends everything. Unless the configuration says otherwise, interface, routes and rules go.
func (b *Broker) Stop() {
	b.lifecycle.Lock()
	defer b.lifecycle.Unlock()
	metricsSource.CompareAndSwap(b, nil)
	b.reports.server.Stop()
	runs := b.controllers
	b.stopControllers(errBrokerEnds)
	b.names.stopFollowing() // what the end of links looks like is not to be shown
	g := b.r.gateway
	b.setGateway(nil)
	var last sync.WaitGroup
	abandoned := make(chan struct{})
	last.Go(func() {
		defer close(abandoned)
		b.abandonObjects(runs)
	})
	g.endLinks(b.cfg.KeepNetwork)
	if !b.cfg.KeepNetwork { // else the next process on this node is to go on
		last.Go(func() { // the broker of another node takes the links while this one still cleans up
			<-abandoned
			b.releaseLease()
		})
	}
	g.clearKernel(b.cfg.KeepNetwork)
	b.claim.Release()
	last.Wait()
	if m := b.r.snapshot.Swap(nil); m != nil {
		m.Close()
	}
	b.names.close()
	eventlog.Flush()
}

// abandonObjects says that nobody keeps the links any more, nor serves MeshServices, if this broker has done so and its
// Deployment goes. At a restart, states stay what they are until the next process writes them.
func (b *Broker) abandonObjects(runs *controllers) {
	found := b.r.found.Load()
	if runs == nil || found == nil || found.Standby || !b.r.election.State().MayWrite() || !runs.owner.IsGone() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), abandonTimeout)
	defer cancel()
	api := rest.CopyConfig(b.api)
	api.QPS = -1 // the time is short, and Abandon bounds its requests itself
	c, err := client.New(api, client.Options{Scheme: scheme, Mapper: runs.mapper})
	n := 0
	if err == nil {
		n, err = writeback.Abandon(ctx, c, slices.Collect(maps.Keys(found.Told)), found.Kept)
	}
	b.log.Info("the Deployment goes: links are Down, MeshServices are not served", "objects", n)
	if err != nil {
		b.log.Warn("the Deployment goes, and states stay of objects that nobody keeps", "error", err)
	}
}

func (b *Broker) releaseLease() {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	b.r.election.Release(ctx)
}

// Table is what DNS answers come from: nil until the first state is known. It takes no lock.
func (b *Broker) Table() *zone.Table { return b.names.table.Load() }

// Ready is nil when the API server answers, all that it says is applied, and nothing on the node keeps packets from
// passing; else why not.
func (b *Broker) Ready() error {
	h := b.health.Load()
	return errors.Join(h.api, h.controllers, h.applied, h.node.Problem())
}

func (b *Broker) startControllers(api *rest.Config) {
	api.UserAgent = "kubelink"
	// A hundred links change their state at once when the network breaks.
	api.QPS, api.Burst = 50, 300
	if !reflect.DeepEqual(api, b.api) { // else what uses it goes on
		b.api = api
	}
	b.controllers = startControllers(b.cfg, b.api, b.r, b.server, b.log)
	b.serveReports()
}

// stopControllers ends the controllers; the cause is nil if others follow.
func (b *Broker) stopControllers(cause error) {
	b.controllers.stopAndWait(cause)
	b.controllers = nil
}

// openGateway opens the dataplane of a configuration and takes the claim that it needs.
func (b *Broker) openGateway(cfg *Config) (*gateway, error) {
	if cfg.Mode.CarriesTraffic() {
		if err := b.claim.Acquire(context.Background(), b.log); err != nil {
			return nil, err
		}
	}
	changed := func() { b.r.waker.wake(); b.names.linksChanged() }
	onUnknown := func(p link.UnknownPeer) { b.r.peers.unknowns.Add(p); b.r.waker.wake() }
	checked := func(report *nodecheck.Report) {
		b.health.change(func(h *health) { h.node = report })
		changed()
	}
	return openGateway(cfg, dataplaneEvents{changed, onUnknown, checked}, b.r.waker.wake, b.server, b.log)
}

// setGateway makes a gateway, which may be nil, that of the controllers and of DNS. It has no credentials yet.
func (b *Broker) setGateway(g *gateway) {
	b.r.setGateway(g)
	b.names.changeSource(func(from *nameSource) {
		from.dataplane, from.check, from.credentials, from.routed = nil, nil, false, nil
		if g != nil {
			from.dataplane, from.check = g, g.check
		}
	})
	b.health.change(func(h *health) { h.node = nil })
}

// setConfig makes a configuration that of the broker, of the controllers and of DNS.
func (b *Broker) setConfig(cfg Config) {
	b.cfg = cfg
	b.identity.Store(identityOf(&cfg))
	probe := cfg.nameProbe()
	b.probe.Store(&probe)
	if cfg.LeaseDuration == 0 {
		b.r.election.Omit(cfg.NodeName)
	}
	b.r.setConfig(cfg)
	b.names.changeSource(func(from *nameSource) { from.setConfig(&cfg) })
}

// setSnapshot keeps what has to survive a restart in another folder; empty: nowhere. Until the API server tells a
// state, names are what an earlier process knew.
func (b *Broker) setSnapshot(dir string) {
	var m *snapshot.Snapshot
	if dir != "" {
		var last *snapshot.Objects
		m, last = snapshot.Open(dir, b.names.replies, b.log)
		b.names.replies.Persistent.Store(true)
		if last != nil {
			b.r.restoreNames(last)
		}
	} else {
		b.names.replies.Persistent.Store(false)
	}
	if old := b.r.snapshot.Swap(m); old != nil {
		old.Close()
	}
}
