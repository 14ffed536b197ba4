package broker

// The one reconciler: objects to State, State to effects, outcome to the writer. Each time it looks at everything.

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mandelsoft/kubelink/broker/announce"
	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/broker/globalnames"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/kubeapi"
	"github.com/mandelsoft/kubelink/broker/lease"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/linkgateway"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
	"github.com/mandelsoft/kubelink/broker/meshservice"
	"github.com/mandelsoft/kubelink/broker/onchange"
	"github.com/mandelsoft/kubelink/broker/pki"
	"github.com/mandelsoft/kubelink/broker/snapshot"
	"github.com/mandelsoft/kubelink/broker/stubdomain"
	"github.com/mandelsoft/kubelink/broker/writeback"
)

// reconciler is what outlives the runs of the controllers.
type reconciler struct {
	log      *slog.Logger
	waker    *waker
	names    *publisher
	health   *healthState
	election *lease.Elector                    // whether this broker holds the links
	snapshot atomic.Pointer[snapshot.Snapshot] // nil: nothing survives
	found    atomic.Pointer[diagnosis.Outcome] // by the last reconciliation, for reports; nil: there was none

	// mu is held over a reconciliation and guards the fields below. The lifecycle changes them while the controllers
	// stand still. A reconciliation waits two seconds for the kernel at most, and for nothing else.
	mu         sync.Mutex
	cfg        Config
	holder     lease.View // as the last reconciliation saw it
	gateway    *gateway   // nil: the mode carries no traffic
	nodes      clusterNodes
	port       kubeapi.ServicePort
	peers      announcer
	creds      credentials
	former     writeback.Former
	preshared  pki.PresharedKeys
	globals    globalnames.Names
	services   meshservice.Services
	dnsRestart stubdomain.PendingRestart
}

// announcer knows what this cluster and its peers tell each other.
type announcer struct {
	tokens   *announce.TokenSource // peers are told its token; nil: none
	problem  onchange.Error        // why peers are not told all that they should be
	receiver announce.Receiver     // of what they announce
	offers   announce.Offers       // what they offer
	unknowns announce.UnknownPeers // the ones without a link; it has a lock of its own
}

// credentials are what is in use of certificates, or of keys.
type credentials struct {
	pki.Store
	problem onchange.Error // why they are not what the source has
}

// reconcilerRun is the reconciler in one run of the controllers.
type reconcilerRun struct {
	*reconciler
	client  client.Reader // of the cache: works without API server
	api     *rest.Config  // of the local API server
	watches *kubeapi.Watches
	synced  *atomic.Bool // the KubeLinks are known
	secrets *apizone.Secrets
	keys    *apizone.Secrets // with preshared keys
	writer  *writeback.Writer
	places  *linkgateway.Writer // of the LinkGateway
	watch   *globalnames.Watch
	offers  *meshservice.Watch
	keeper  *announce.Keeper       // of what peers announce
	dns     *stubdomain.Configurer // of the cluster's DNS
}

func newReconcilerRun(
	r *reconciler, cfg *Config, api *rest.Config, mgr ctrl.Manager, watch *globalnames.Watch, watches *kubeapi.Watches,
	allSecrets bool,
) *reconcilerRun {
	reader, direct := watches.Reader(mgr.GetClient()), kubeapi.Reader{Reader: mgr.GetAPIReader()}
	var cached client.Reader
	if allSecrets {
		cached = reader
	}
	return &reconcilerRun{
		reconciler: r, client: reader, api: api, watch: watch, watches: watches,
		secrets: apizone.NewSecrets(cfg.accessConfig(), cached, direct, r.waker.wake),
		keys:    apizone.NewSecrets(cfg.accessConfig(), nil, direct, r.waker.wake),
		writer: writeback.NewWriter(writeback.Config{
			Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("kubelink"), Log: r.log,
			NodeIP: cfg.NodeIP, NodeName: cfg.NodeName, Wake: r.waker.wake, MaxCreate: announce.MaxUnknown,
			MayWrite: func() bool { return r.election.State().MayWrite() },
		}),
		places: linkgateway.NewWriter(linkgateway.WriterConfig{
			Reader: direct, Client: mgr.GetClient(), Namespace: cfg.Namespace, Log: r.log, Wake: r.waker.wake,
			MayWrite:  func() bool { return r.election.State().MayWrite() },
			HeldSince: func(t time.Time) bool { return r.election.State().HeldSince(t) },
		}),
		keeper: &announce.Keeper{Client: mgr.GetClient(), Namespace: cfg.Namespace, Log: r.log},
		dns: &stubdomain.Configurer{
			Client: mgr.GetClient(), Reader: direct, Informers: mgr.GetCache(),
			Restart: &r.dnsRestart, Interval: resync, Wake: r.waker.wake, Log: r.log,
		},
	}
}

// Reconcile computes the state and applies it. It only reads from the cache; the writer writes to the API server. So
// an API server that hangs holds up no link and no name.
func (r *reconcilerRun) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := ctx.Err(); err != nil { // a newer run has taken over
		return reconcile.Result{}, err
	}
	var list v1alpha1.KubeLinkList
	if err := r.client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil { // nothing here writes to them
		return reconcile.Result{}, err
	}
	if r.synced != nil {
		r.synced.Store(true)
	}
	if !r.watches.Ready() { // it wakes the reconciler
		return reconcile.Result{}, nil
	}
	known := r.services.Read(ctx, r.offers)
	// The cache has no order.
	slices.SortFunc(list.Items, func(a, b v1alpha1.KubeLink) int { return cmp.Compare(a.Name, b.Name) })
	r.nodes.read(ctx, r.client, &r.cfg)
	objects, complete := r.readKeyedObjects(list.Items)
	if !complete || !known {
		return reconcile.Result{RequeueAfter: time.Second}, nil
	}
	state := mesh.Build(objects, r.cfg.Local)
	r.peers.offers.Keep(&state, time.Now())
	r.services.Build(ctx, service.Surroundings{
		Mode: r.cfg.Mode, State: &state, Host: &objects.Host, Partial: r.cfg.Local.Served != nil,
	})
	state.NameOffers(r.services.Offers())
	r.holder = r.election.State().ViewLinks(&objects, &state)
	entrance, portErr := r.listenPort(ctx)
	credErr := r.refreshCredentials(ctx)
	accesses := r.secrets.FindAccesses(ctx, state.Zones, r.api)
	globalErr := r.updateGlobalNames(ctx, state.Zones)
	open := service.Open(state, r.services.List())
	began := time.Now()
	err, pending := r.apply(&open, accesses, entrance)
	applies.observe(time.Since(began), err)
	r.noteApplied(errors.Join(err, portErr), credErr, globalErr, pending)
	r.writePlace(&state, pending)
	r.snapshot.Load().KeepLinks(list.Items)
	routers := r.checkRouters(ctx, &state)
	outcome := r.newOutcome(&objects, &state, routers, errors.Join(err, portErr), pending, credErr)
	r.found.Store(r.newFindings(&objects, &state, routers, outcome, credErr))
	r.writer.SetOutcome(outcome)
	r.reportServices(ctx)
	if err != nil && !errors.Is(err, kernel.ErrStuck) { // the kernel's worker wakes the reconciler when it is done
		return reconcile.Result{}, err
	}
	// Other programs flush chains and reorder hooks, and no event tells.
	again := min(resync, r.creds.RenewIn())
	if pending != nil {
		again = min(again, kernel.Grace)
	}
	if routers != nil && routers.Again > 0 {
		again = min(again, routers.Again)
	}
	return reconcile.Result{RequeueAfter: again}, nil
}

// noteApplied tells the health checks what has failed, and what is pending.
func (r *reconcilerRun) noteApplied(failed, credErr, globalErr, pending error) {
	if r.creds.Usable() { // with the former credentials, links and names go on
		credErr = nil
	}
	failed = errors.Join(failed, credErr, globalErr)
	if r.holder.Role == lease.Unknown {
		failed = errors.Join(failed, errNoHolder)
	}
	r.health.change(func(h *health) {
		if h.applied != nil { // a broker that was ready stays so while the kernel is being told
			failed = errors.Join(failed, pending)
		}
		h.controllers, h.applied = nil, failed
	})
}

// writePlace says to the API where the gateway is. While the kernel is still being told, packets of other nodes would
// find no route here.
func (r *reconcilerRun) writePlace(s *mesh.State, pending error) {
	name := r.cfg.leaseConfig().Name
	if r.gateway == nil || r.holder.Role != lease.Holder {
		r.places.Set(name, nil, nil)
	} else if pending == nil {
		own := service.Outside(s.Meshes, r.services.List())
		spec, err := linkgateway.NewSpec(&r.gateway.place.Place, s, own, r.holder.Term, r.cfg.kernelConfig().MTU)
		if v := r.cfg.VXLAN; v.Wanted {
			spec.VXLAN = &v1alpha1.GatewayVXLAN{VNI: int32(v.vni()), Port: int32(v.port())}
		}
		r.places.Set(name, spec, err)
	}
}

// setConfig and setGateway are for the lifecycle, while the controllers stand still.

func (r *reconciler) setConfig(cfg Config) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cfg, r.holder = cfg, lease.View{State: r.election.State()}
}

// setGateway also sees to it that the next reconciliation gives the credentials to the gateway.
func (r *reconciler) setGateway(g *gateway) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gateway = g
	r.creds.Retell()
}

// readObjects are what a State is made of.
func (r *reconciler) readObjects(links []v1alpha1.KubeLink) mesh.Objects {
	objects := mesh.Objects{Links: links, Reserved: r.services.Reserved()}
	objects.Keys.Own = r.creds.PublicKey()
	g := r.gateway
	if g == nil {
		return objects
	}
	statuses := g.Statuses()
	if !r.cfg.IgnoreAnnounced {
		r.peers.offers.AddTo(&objects, statuses, time.Now())
	}
	if g.host != nil {
		objects.Host = g.host.Facts(links, statuses)
		objects.Host.OwnTable = r.cfg.RouteTable != kernel.MainTable
		g.place.Locate(r.cfg.placeConfig(), &objects.Host)
	}
	return objects
}

// readKeyedObjects also reads preshared keys. The objects are not complete while one is read for the first time: what
// an earlier process left goes on until then.
func (r *reconcilerRun) readKeyedObjects(links []v1alpha1.KubeLink) (objects mesh.Objects, complete bool) {
	objects = r.readObjects(links)
	keys, pending := r.preshared.Read(r.keys, r.cfg.Namespace, &r.cfg.Local, links, time.Now())
	objects.Keys.Preshared = keys
	return objects, !pending
}

// newOutcome is all that a reconciliation wants to have written.
func (r *reconcilerRun) newOutcome(
	objects *mesh.Objects, s *mesh.State, routers *link.RouterReport, applyErr, pending, credErr error,
) *writeback.Outcome {
	items := objects.Links
	if r.holder.Role == lease.Standby {
		return r.standbyOutcome(items, s)
	}
	seen := &writeback.Observations{Apply: applyErr, Pending: pending, Creds: credErr, Usable: r.creds.Usable()}
	if key := r.creds.PublicKey(); key != (mesh.PublicKey{}) {
		seen.PublicKey = key.String()
	}
	_, _, seen.Announce = r.newAnnouncement(s)
	seen.Contested = r.peers.offers.Contested()
	r.logUnadvertised(seen.Announce)
	apizone.NoteNames(s, r.names.apis.Statuses(), seen.AddNote)
	r.noteProblems(s, seen)
	for link, note := range r.services.LinkNotes() {
		seen.AddNote(link, note)
	}
	statuses := r.gateway.observe(seen)
	seen.Unrouted = r.names.findUnrouted(s)
	if routers != nil {
		seen.Nodes, seen.NodesUnknown = routers.Findings, routers.Unknown
	}
	keyNote := r.creds.KeyNote(items, statuses, time.Now())
	for _, m := range s.Meshes {
		seen.AddNote(m.Link, keyNote)
	}
	policy := r.cfg.announcePolicy(r.creds.Unencrypted())
	received := r.peers.receiver.ReceiveAll(*objects, s, statuses, policy, r.log)
	for name := range received {
		seen.AddNote(name, received[name].Note)
	}
	out := &writeback.Outcome{
		Links:  r.former.AddOutcomes(items, writeback.LinkOutcomes(items, s, seen)),
		Create: r.peers.unknowns.MakeLinks(*objects, s, policy, r.log),
		Secret: r.creds.Secret,
	}
	for i := range out.Links {
		l := &out.Links[i]
		l.Term = r.holder.Term
		if facts := received[l.Object.Name].Facts; facts != (announce.Facts{}) {
			l.Adopt = func(ctx context.Context) (string, error) { return r.keeper.Keep(ctx, l.Object, facts) }
		}
	}
	if r.creds.Request {
		out.Certificate = r.cfg.pkiConfig().CertificateRequest()
	}
	if r.cfg.ConfigureDNS {
		out.ClusterDNS = r.noteClusterDNS(r.dns.NewTask(s, r.cfg.nsAddresses()))
	} else {
		r.health.change(func(h *health) { h.clusterDNS = "" })
	}
	return out
}

// noteProblems adds what is wrong with the whole broker to each LocalLink.
func (r *reconcilerRun) noteProblems(s *mesh.State, seen *writeback.Observations) {
	for _, m := range s.Meshes {
		seen.AddNote(m.Link, r.holder.Problem)
		if err := r.places.Problem(); err != nil {
			seen.AddNote(m.Link, writeback.OneLine(err))
		}
		if err := r.services.Problem(); err != nil {
			seen.AddNote(m.Link, "MeshServices: "+writeback.OneLine(err))
		}
		if err := r.nodes.unserved.Get(); err != nil {
			seen.AddNote(m.Link, writeback.OneLine(err))
		}
	}
}

// noteClusterDNS keeps what only a user can mend, for reports.
func (r *reconciler) noteClusterDNS(
	task func(context.Context) (string, error),
) func(context.Context) (note string, err error) {
	return func(ctx context.Context) (string, error) {
		note, err := task(ctx)
		if err == nil {
			r.health.change(func(h *health) { h.clusterDNS = note })
		}
		return note, err
	}
}

// standbyOutcome is what a broker writes that does not hold the links.
func (r *reconciler) standbyOutcome(items []v1alpha1.KubeLink, s *mesh.State) *writeback.Outcome {
	links := writeback.StandbyOutcomes(items, s.Foreign, r.cfg.NodeName, r.holder.Holder, r.holder.Term)
	return &writeback.Outcome{Links: links, Standby: true}
}

// logUnadvertised logs why this cluster does not announce all that it should, when that changes.
func (r *reconcilerRun) logUnadvertised(err error) {
	if r.peers.problem.Set(err) && err != nil {
		r.log.Warn("peers are not told all that they should be", "problem", writeback.OneLine(err))
	}
}

// updateGlobalNames brings the names that belong to no cluster up to date.
func (r *reconcilerRun) updateGlobalNames(ctx context.Context, zones []mesh.Zone) error {
	return r.globals.Update(ctx, &globalnames.Refresh{
		Reader: r.client, Watch: r.watch, Zones: zones, NSAddresses: r.cfg.nsAddresses(), Wake: r.waker.wake,
		Tenancy: r.cfg.tenancy(), Holds: r.holder.Role == lease.Holder,
		Keep: func(entries []coredns.CoreDNSEntry, zones []coredns.HostedZone) {
			r.snapshot.Load().Keep(func(o *snapshot.Objects) { o.Entries, o.Zones = entries, zones })
		},
		Report: func(reports []*globalnames.Report) {
			writeback.SetReports(r.writer, "global names", reports)
		},
	})
}

// reportServices has the statuses of MeshServices written, if this broker holds the links.
func (r *reconcilerRun) reportServices(ctx context.Context) {
	if r.holder.Role != lease.Holder {
		r.services.Forget()
		return
	}
	r.services.Report(ctx, r.writer.Recorder, func(reports []*meshservice.Report) {
		writeback.SetReports(r.writer, "MeshServices", reports)
	})
}

// refreshCredentials hands new credentials to the dataplane. A source that is unusable is reported, and the last usable
// credentials stay in use. Without dataplane, and while another broker holds the links, no credentials are needed, and
// no secret is managed.
func (r *reconcilerRun) refreshCredentials(ctx context.Context) error {
	switch {
	case r.gateway == nil:
		r.creds = credentials{}
		return nil
	case r.holder.Role != lease.Holder:
		r.creds.Retell() // when this broker takes the links
		return nil
	}
	cfg := r.cfg.pkiConfig()
	fresh, err := r.creds.Refresh(ctx, r.client, cfg)
	switch changed := r.creds.problem.Set(err); {
	case !changed || err == nil:
	case r.creds.Making():
		r.log.Info("making the " + cfg.Title())
	default:
		r.log.Warn(cfg.Title()+" cannot be used", "problem", writeback.OneLine(err))
	}
	if fresh == nil {
		return err
	}
	r.gateway.SetCredentials(fresh)
	if cfg.WireGuard { // no link may have this key
		r.waker.wake()
	}
	cfg.LogUse(fresh, r.log)
	return err
}

// listenPort is broker-port, or the target port of the service's port for the mode.
func (r *reconcilerRun) listenPort(ctx context.Context) (kubeapi.Entrance, error) {
	cfg := &r.cfg
	if cfg.Service == "" || !cfg.Mode.CarriesTraffic() {
		return kubeapi.Entrance{Port: cfg.BrokerPort}, nil
	}
	service := types.NamespacedName{Namespace: cfg.Namespace, Name: cfg.Service}
	return r.port.Find(ctx, r.client, service, cfg.Mode, cfg.BrokerPort)
}

// newAnnouncement is what this cluster announces, and why a part of it is missing.
func (r *reconciler) newAnnouncement(s *mesh.State) (dns *link.DNSInfo, api *link.APIInfo, problem error) {
	if r.cfg.DNSAdvertisement {
		address := r.cfg.clusterDNS()
		for _, m := range s.Meshes { // without service-cidr, a LocalLink may know it
			if !address.IsValid() && len(m.Services) > 0 {
				address = mesh.Nth(m.Services.First(), 10)
			}
		}
		dns, problem = announce.NameLookup(r.cfg.ClusterDomain, address)
	}
	api, err := r.peers.tokens.Access()
	return dns, api, errors.Join(problem, err)
}

// setTokenSource follows a change of the configuration. Peers are told the token of the same account until
// there is a new one.
func (r *reconciler) setTokenSource(old *Config) {
	cfg, before := &r.cfg, r.peers.tokens
	same := cfg.ServiceAccount == old.ServiceAccount && cfg.Kubeconfig == old.Kubeconfig &&
		cfg.Context == old.Context && cfg.Server == old.Server
	if same && cfg.TokenLifetime == old.TokenLifetime {
		return
	}
	r.peers.tokens = announce.NewTokenSource(cfg.ServiceAccount, cfg.TokenLifetime, r.log)
	if same && before != nil {
		r.peers.tokens.Adopt(before)
	}
}

// restoreNames makes names from the objects that an earlier process knew, unless there are names already.
func (r *reconciler) restoreNames(o *snapshot.Objects) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names.table.Load() != nil {
		return
	}
	s := mesh.Build(r.readObjects(o.Links), r.cfg.Local)
	r.globals.Restore(o.Entries, o.Zones, s.Zones, r.cfg.nsAddresses(), r.cfg.tenancy())
	r.log.Info("answering what an earlier process knew, until the API server is heard", "links", len(s.Links))
	r.names.publish(func(from *nameSource) { from.state, from.restored, from.globals = &s, true, r.globals.Zones() })
}
