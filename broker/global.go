package broker

// The global names: CoreDNSEntry and HostedZone objects are watched beside the reconciler's other
// kinds, because neither their number nor a permission that is missing for them may hold up links.
// Names are built again only when the objects, or the zones served here, have changed, or a serial is due.

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
	"github.com/mandelsoft/kubelink/broker/snapshot"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// globalWatch watches the objects of global names, from when a zone is served here on.
type globalWatch struct {
	cache  cache.Cache
	wake   func()
	log    *slog.Logger
	wanted chan struct{} // closed when they are
	once   sync.Once

	synced  atomic.Bool
	version atomic.Uint64         // counts changes
	failure atomic.Pointer[error] // why they cannot be read
}

// globalKinds are what is watched.
var globalKinds = []client.Object{&coredns.CoreDNSEntry{}, &coredns.HostedZone{}}

func newGlobalWatch(b *Broker) *globalWatch {
	return &globalWatch{wake: b.wake, log: b.log, wanted: make(chan struct{})}
}

func (w *globalWatch) want() { w.once.Do(func() { close(w.wanted) }) }

// Start runs until the objects are known, or ctx ends; the informers live on with the cache.
func (w *globalWatch) Start(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-w.wanted:
	}
	var known []toolscache.InformerSynced
	for _, kind := range globalKinds {
		for {
			// It must not wait for objects that may never come, such as when they are forbidden.
			informer, err := w.cache.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
			if err == nil {
				handler, err := informer.AddEventHandler(w)
				if err != nil {
					return err
				}
				known = append(known, handler.HasSynced)
				break
			}
			w.fail(err) // the kind is not known, for example
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(apiTimeout):
			}
		}
	}
	if toolscache.WaitForCacheSync(ctx.Done(), known...) {
		w.synced.Store(true)
		w.wake()
	}
	return nil
}

// fail tells why the objects cannot be read; it is tried again all the time.
func (w *globalWatch) fail(err error) {
	if old := w.failure.Swap(&err); !w.synced.Load() && (old == nil || (*old).Error() != err.Error()) {
		w.log.Warn("cannot read the objects of global names, trying again", "error", err)
		w.wake()
	}
}

// watchFailed is the handler for failures of all watches of the cache.
func (w *globalWatch) watchFailed(ctx context.Context, r *toolscache.Reflector, err error) {
	toolscache.DefaultWatchErrorHandler(ctx, r, err)
	for _, kind := range globalKinds {
		if r.TypeDescription() == fmt.Sprintf("%T", kind) {
			w.fail(err)
		}
	}
}

func (w *globalWatch) OnAdd(any, bool) { w.changed() }
func (w *globalWatch) OnDelete(any)    { w.changed() }

// OnUpdate passes over what does not change names, such as the status that we write.
func (w *globalWatch) OnUpdate(before, after any) {
	a, b := before.(client.Object), after.(client.Object)
	if a.GetUID() != b.GetUID() || a.GetGeneration() != b.GetGeneration() || !maps.Equal(a.GetAnnotations(), b.GetAnnotations()) {
		w.changed()
	}
}

func (w *globalWatch) changed() {
	w.version.Add(1)
	if w.synced.Load() {
		w.wake()
	}
}

// globals are the global names as they were built last. They stay when the API server is away.
type globals struct {
	zones   map[string]*zone.Global // by name
	reports records.Result          // of all objects
	serial  uint32                  // the highest so far
	early   bool                    // a zone needs a higher one
	from    globalSource
	built   time.Time
	took    time.Duration
}

// globalSource is what they were built from; equal ones make the same names.
type globalSource struct {
	watch         *globalWatch // nil: nothing was built yet
	version       uint64
	served, addrs string
}

// globals brings the global names up to date. The error is why they are not known yet, if that is
// about to change.
func (r *reconciler) globals(ctx context.Context, zones []mesh.Zone) error {
	b, g := r.b, &r.b.globals
	served, domains := servedHere(zones)
	if len(domains) == 0 && g.from.watch == nil { // and so were none
		g.zones = nil
		return nil
	}
	r.watch.want()
	addrs := b.nsAddresses()
	from := globalSource{r.watch, r.watch.version.Load(), fmt.Sprint(served), fmt.Sprint(addrs)}
	if !r.watch.synced.Load() {
		return g.unknown(served, r.watch.failure.Load())
	}
	if from == g.from && !g.early {
		return nil
	}
	// A burst of changes must not keep the processor busy with names that are old at once.
	changes, pause := g.from, 4*g.took
	if changes.version = from.version; from == g.from {
		pause = max(pause, time.Second)
	}
	if rest := time.Until(g.built.Add(pause)); changes == from && rest > 0 {
		time.AfterFunc(rest, b.wake)
		return nil
	}

	begin := time.Now()
	var entries coredns.CoreDNSEntryList
	var hosted coredns.HostedZoneList
	for _, list := range []client.ObjectList{&entries, &hosted} {
		if err := r.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil { // nobody here writes to them
			return err
		}
	}
	b.snapshot.Load().Keep(func(o *snapshot.Objects) { o.Entries, o.Zones = entries.Items, hosted.Items })
	names := records.Build(entries.Items, hosted.Items, served)
	next := newGlobals(&names, domains, nextSerial(g.serial, begin), addrs, g.zones)
	next.from, next.serial = from, max(next.serial, g.serial)
	r.writer.wantReports(differing(entries.Items, hosted.Items, &names, &g.reports))
	next.built = time.Now()
	next.took = next.built.Sub(begin)
	if b.globals = next; next.early {
		time.AfterFunc(time.Second, b.wake) // nothing else may happen until then
	}
	return nil
}

// nextSerial is the time in seconds: one that runs ahead of the clock would fall back when the process starts anew. But a
// clock that was put back must not keep secondaries from changes.
func nextSerial(highest uint32, now time.Time) uint32 {
	serial := uint32(now.Unix())
	if highest > serial+60 {
		return highest + 1
	}
	return serial
}

// newGlobals makes the zones of names; domains are by the names of the zones, and so are the zones from before.
func newGlobals(names *records.Result, domains map[string]string, serial uint32, addrs []netip.Addr, before map[string]*zone.Global) globals {
	g := globals{zones: map[string]*zone.Global{}, reports: *names, serial: serial}
	for _, known := range names.Zones {
		z := zone.NewGlobal(domains[known.Name], known, serial, addrs, before[known.Name])
		g.zones[known.Name] = z
		g.early = g.early || z.SerialPending()
	}
	g.reports.Zones = nil // the zones have it all
	return g
}

// servedHere lists the global zones that are served here, and the domains that they are in.
func servedHere(zones []mesh.Zone) (names []string, domains map[string]string) {
	domains = map[string]string{}
	for _, z := range zones {
		if z.Global.Name != "" && !z.Global.Upstream.IsValid() {
			domains[z.Global.Name] = z.Domain
		}
	}
	return slices.Sorted(maps.Keys(domains)), domains
}

// restoreGlobals makes the global names that an earlier process knew.
func (b *Broker) restoreGlobals(o *snapshot.Objects, zones []mesh.Zone) {
	served, domains := servedHere(zones)
	names := records.Build(o.Entries, o.Zones, served)
	b.globals = newGlobals(&names, domains, uint32(time.Now().Unix()), b.nsAddresses(), nil)
	for name, g := range b.globals.zones {
		g.MarkStale(fmt.Sprintf("the names of %s are those that an earlier process knew: the API server has not told them yet", strings.TrimSuffix(name, ".")))
	}
}

// unknown keeps the zones that were known before; of the others it says why they are not.
func (g *globals) unknown(served []string, failure *error) (pending error) {
	before := g.zones
	g.zones = map[string]*zone.Global{}
	for _, name := range served {
		shown := strings.TrimSuffix(name, ".")
		reason := ""
		if failure != nil {
			reason = fmt.Sprintf("the names of %s are not known: %v", shown, *failure)
		}
		switch old := before[name]; {
		case old != nil && (old.Missing() == "" || old.Missing() == reason):
			g.zones[name] = old
		case failure != nil:
			g.zones[name] = zone.NoGlobal(name, reason)
		default: // the table says so by itself
			pending = fmt.Errorf("the names of %s are not known yet", shown)
		}
	}
	return pending
}

// reportOutcome is what is to be written to the status of an object.
type reportOutcome struct {
	object client.Object // as read from the cache, not to be modified
	report records.Report
}

// differing lists the objects whose status is not what it should be.
func differing(entries []coredns.CoreDNSEntry, zones []coredns.HostedZone, now, before *records.Result) (outcomes []reportOutcome) {
	add := func(o client.Object, now, before map[types.NamespacedName]records.Report) {
		key := client.ObjectKeyFromObject(o)
		report, ok := now[key]
		if !ok {
			return // about to go
		}
		st := globalStatus(o)
		if report.Foreign && st.State != "" && st.State != coredns.StateStale {
			// Somebody else serves it, or another broker, unless we did so far.
			if old, ours := before[key]; !ours || old.Foreign {
				return
			}
		}
		want := conditionOf(report)
		if c := meta.FindStatusCondition(st.Conditions, want.Type); c == nil || c.Status != want.Status || st.State != report.State || st.Message != report.Message ||
			st.RootZone != report.RootZone || st.ObservedGeneration != o.GetGeneration() || !slices.Equal(st.EffectiveDomainNames, report.Names) {
			outcomes = append(outcomes, reportOutcome{o, report})
		}
	}
	for i := range zones {
		add(&zones[i], now.HostedZones, before.HostedZones)
	}
	for i := range entries {
		add(&entries[i], now.Entries, before.Entries)
	}
	return outcomes
}

// globalStatus is the status of a CoreDNSEntry or HostedZone.
func globalStatus(o client.Object) *coredns.Status {
	if z, ok := o.(*coredns.HostedZone); ok {
		return &z.Status
	}
	return &o.(*coredns.CoreDNSEntry).Status
}

func conditionOf(r records.Report) metav1.Condition {
	c := metav1.Condition{Type: coredns.ConditionAccepted, Status: metav1.ConditionFalse, Reason: string(r.State), Message: r.Message}
	if r.State == coredns.StateOk {
		c.Status = metav1.ConditionTrue
	}
	return c
}

// write brings a report to the API server.
func (o *reportOutcome) write(ctx context.Context, c client.Client) error {
	obj := o.object.DeepCopyObject().(client.Object)
	st := globalStatus(obj)
	st.State, st.Message, st.RootZone = o.report.State, o.report.Message, o.report.RootZone
	st.EffectiveDomainNames, st.ObservedGeneration = o.report.Names, obj.GetGeneration()
	condition := conditionOf(o.report)
	condition.ObservedGeneration = obj.GetGeneration()
	meta.SetStatusCondition(&st.Conditions, condition)
	return c.Status().Patch(ctx, obj, client.MergeFrom(o.object))
}
