package globalnames

// The zones of global names as the broker has built them last. They are built again only when the objects, or the zones
// served here, have changed, or a serial is due.

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// Names are the global names that this cluster serves. They stay when the API server is away. The zero value has none.
// Its methods may not be called concurrently.
type Names struct {
	zones   map[string]*zone.Global // by name
	reports records.Result          // on all objects
	left    []*Report               // told last, of objects that others may serve from now on
	told    bool                    // which statuses differ, since this broker holds the links
	serial  uint32                  // the highest so far
	early   bool                    // a zone needs a higher one
	from    source
	built   time.Time
	took    time.Duration
}

// source is what the names were built from; equal sources make the same names.
type source struct {
	watch                  *Watch // nil: nothing was built yet
	version                uint64
	served, addrs, tenancy string
}

// Reports are what users see of CoreDNSEntries and HostedZones. Readers do not change them.
func (n *Names) Reports() records.Result { return n.reports }

// Refresh says what Update works with.
type Refresh struct {
	Reader      client.Reader
	Watch       *Watch
	Zones       []mesh.Zone
	NSAddresses []netip.Addr // of kubelink's DNS service
	Tenancy     records.Tenancy
	Holds       bool   // this broker holds the links: the statuses are its own
	Wake        func() // called when names are to be updated again
	// Keep gets the objects that new names were built from; nothing may change them.
	Keep func(entries []coredns.CoreDNSEntry, zones []coredns.HostedZone)
	// Report gets the statuses that are to be written; none unless this broker holds the links.
	Report func([]*Report)
}

// Zones are the zones by their name. Readers do not change the map.
func (n *Names) Zones() map[string]*zone.Global { return n.zones }

// Update brings the names up to date. The error is why they are not known yet, if that is about to change.
func (n *Names) Update(ctx context.Context, r *Refresh) error {
	served, domains := servedHere(r.Zones)
	if len(domains) == 0 && n.from.watch == nil { // and so were none
		n.zones = nil
		return nil
	}
	r.Watch.request()
	from := source{r.Watch, r.Watch.version.Load(), fmt.Sprint(served), fmt.Sprint(r.NSAddresses), r.Tenancy.String()}
	if !r.Watch.synced.Load() {
		return n.setUnknown(served, r.Watch.failure.Get())
	}
	// What the broker that held the links before has written last is not known here.
	if n.told = n.told && r.Holds; from == n.from && !n.early && n.told == r.Holds || n.postpone(from, r.Wake) {
		return nil
	}
	begin := time.Now()
	var entries coredns.CoreDNSEntryList
	var hosted coredns.HostedZoneList
	if err := listAll(ctx, r.Reader, &entries, &hosted); err != nil {
		return err
	}
	r.Keep(entries.Items, hosted.Items)
	built := records.Build(entries.Items, hosted.Items, served, r.Tenancy)
	next := newNames(&built, domains, nextSerial(n.serial, begin), r.NSAddresses, n.zones)
	next.from, next.serial = from, max(next.serial, n.serial)
	reports := next.reports // the field may get another value, while the watch reads this one
	r.Watch.reports.Store(&reports)
	var told []*Report
	if next.told = r.Holds; next.told {
		latest, err := readLatest(ctx, r.Reader)
		if err != nil {
			return err
		}
		told = r.Watch.differingReports(entries.Items, hosted.Items, &built, &n.reports, n.left, latest)
	}
	r.Report(told)
	for _, report := range told {
		if report.report.Foreign {
			next.left = append(next.left, report)
		}
	}
	next.built = time.Now()
	next.took = next.built.Sub(begin)
	if *n = next; next.early {
		time.AfterFunc(time.Second, r.Wake) // nothing else may happen until then
	}
	return nil
}

// postpone says whether new names have to wait, and wakes the reconciler then: a burst of changes must not keep the
// processor busy with names that are old at once.
func (n *Names) postpone(from source, wake func()) bool {
	changes, pause := n.from, 4*n.took
	if changes.version = from.version; from == n.from {
		pause = max(pause, time.Second)
	}
	rest := time.Until(n.built.Add(pause))
	if changes != from || rest <= 0 {
		return false
	}
	time.AfterFunc(rest, wake)
	return true
}

// Restore makes the names from the objects that an earlier process knew.
func (n *Names) Restore(
	entries []coredns.CoreDNSEntry, hosted []coredns.HostedZone, zones []mesh.Zone, nsAddresses []netip.Addr,
	tenancy records.Tenancy,
) {
	served, domains := servedHere(zones)
	built := records.Build(entries, hosted, served, tenancy)
	*n = newNames(&built, domains, uint32(time.Now().Unix()), nsAddresses, nil)
	for name, g := range n.zones {
		g.MarkStale(fmt.Sprintf(
			"the names of %s are those that an earlier process knew: the API server has not told them yet",
			strings.TrimSuffix(name, ".")))
	}
}

// setUnknown keeps the zones that were known before; of the other zones it says why they are not.
func (n *Names) setUnknown(served []string, failure error) (pending error) {
	before := n.zones
	n.zones = map[string]*zone.Global{}
	for _, name := range served {
		shown := strings.TrimSuffix(name, ".")
		reason := ""
		if failure != nil {
			reason = fmt.Sprintf("the names of %s are not known: %v", shown, failure)
		}
		switch old := before[name]; {
		case old != nil && (old.Missing() == "" || old.Missing() == reason):
			n.zones[name] = old
		case failure != nil:
			n.zones[name] = zone.NoGlobal(name, reason)
		default: // the table says so by itself
			pending = fmt.Errorf("the names of %s are not known yet", shown)
		}
	}
	return pending
}

// nextSerial is the time in seconds: a serial that runs ahead of the clock would fall back when the process starts
// anew. But a clock that was put back must not keep secondaries from changes.
func nextSerial(highest uint32, now time.Time) uint32 {
	serial := uint32(now.Unix())
	if highest > serial+60 {
		return highest + 1
	}
	return serial
}

// newNames makes the zones; domains are by the names of the zones, and so are the zones from before.
func newNames(
	built *records.Result, domains map[string]string, serial uint32, addrs []netip.Addr, before map[string]*zone.Global,
) Names {
	n := Names{zones: map[string]*zone.Global{}, reports: *built, serial: serial}
	for _, known := range built.Zones {
		z := zone.NewGlobal(domains[known.Name], known, serial, addrs, before[known.Name])
		n.zones[known.Name] = z
		n.early = n.early || z.SerialPending()
	}
	n.reports.Zones = nil // the zones have it all
	return n
}

// servedHere lists the global zones that this cluster serves, and the domains that they are in.
func servedHere(zones []mesh.Zone) (names []string, domains map[string]string) {
	domains = map[string]string{}
	for _, z := range zones {
		if z.Global.Name != "" && !z.Global.Upstream.IsValid() {
			domains[z.Global.Name] = z.Domain
		}
	}
	return slices.Sorted(maps.Keys(domains)), domains
}
