// Package records is the pure model of global names: Build turns CoreDNSEntry and HostedZone objects into the names of
// the global zones, plain records name by name, and a report for each object. As with links, older objects win over
// younger ones: a mistake in a new object never breaks what works. No clock, no API, no network in here.
package records

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Bounds, as names multiply where zones with several names nest.
const (
	maxZoneNames  = 64      // of a HostedZone
	maxEntryNames = 256     // of a CoreDNSEntry
	maxNames      = 250_000 // of all together
	maxRecords    = 256     // of one type at one name: more hardly fit an answer
	maxText       = 4096    // bytes of a TXT record
	maxAliases    = 16      // that are followed
	maxName       = 254     // characters of a name with final dot (RFC 1035: 255 octets)
)

// Result is what the objects say about the global zones that are served here.
type Result struct {
	Zones       []Zone // by name
	Entries     map[types.NamespacedName]Report
	HostedZones map[types.NamespacedName]Report
}

// Zone has the names of one global zone. All names are fully qualified and in lower case.
type Zone struct {
	Name   string  // svc.global.<domain>
	Apexes []Apex  // the zone itself, and those that HostedZones cut out of it, by name
	Owners []Owner // names that have records, by name
}

// Apex is the top of a zone: what its SOA record says.
type Apex struct {
	Name                            string
	Mbox                            string // mail address as a domain name, in presentation form; empty: the default
	Refresh, Retry, Expire, Minimum uint32 // seconds
}

// Owner is a name and its records. A CNAME stands alone. NS records delegate the name and all below
// it, unless it is an apex; beside them and below are only the addresses of their name servers.
type Owner struct {
	Name      string // the first label may be *
	Addresses []Address
	TXT       []string
	CNAME     string
	NS        []string
	SRV       []SRV
	Fixed     bool // addresses stay in their order
}

// Address is the data of an A or AAAA record.
type Address struct {
	netip.Addr
	AnyLink bool // it is answered whatever the link to it is like
}

// SRV is the data of an SRV record.
type SRV struct {
	Priority, Weight, Port uint16
	Target                 string
}

// Report is what is to be said of an object.
type Report struct {
	State    coredns.State
	Message  string   // what is wrong, or good to know; one line
	RootZone string   // name of the HostedZone at the root
	Names    []string // that are served, without final dot
	// Foreign: it lies outside of all zones that are served here. Somebody else may serve it, and speak for it.
	Foreign bool
}

// Build computes the names of the served global zones (svc.global.<domain>). It does not
// change its arguments.
func Build(entries []coredns.CoreDNSEntry, zones []coredns.HostedZone, served []string) Result {
	b := &globalBuilder{
		served: map[string]bool{},
		zones:  make(map[types.NamespacedName]*zoneEntry, len(zones)),
		owners: make(map[string]*ownerEntry, 2*len(entries)+len(zones)),
	}
	for _, name := range served {
		b.served[name] = true
		b.owner(name).apex = &Apex{Name: name, Refresh: 7200, Retry: 1800, Expire: 86400, Minimum: 5}
	}

	hosted := make([]*zoneEntry, 0, len(zones))
	for i := range zones {
		if o := &zones[i]; o.DeletionTimestamp == nil {
			z := &zoneEntry{object: o, key: types.NamespacedName{Namespace: o.Namespace, Name: o.Name}}
			b.zones[z.key] = z
			hosted = append(hosted, z)
		}
	}
	slices.SortFunc(hosted, func(a, b *zoneEntry) int { return older(&a.object.ObjectMeta, &b.object.ObjectMeta) })
	for _, z := range hosted {
		b.resolve(z)
	}

	records := make([]*recordEntry, 0, len(entries))
	for i := range entries {
		if o := &entries[i]; o.DeletionTimestamp == nil {
			records = append(records, &recordEntry{object: o, key: types.NamespacedName{Namespace: o.Namespace, Name: o.Name}})
		}
	}
	slices.SortFunc(records, func(a, b *recordEntry) int { return older(&a.object.ObjectMeta, &b.object.ObjectMeta) })
	for _, e := range records {
		b.entry(e)
	}
	for _, e := range records {
		b.circle(e)
	}

	g := Result{
		Zones:       b.names(),
		Entries:     make(map[types.NamespacedName]Report, len(records)),
		HostedZones: make(map[types.NamespacedName]Report, len(hosted)),
	}
	for _, z := range hosted {
		g.HostedZones[z.key] = z.report
	}
	for _, e := range records {
		g.Entries[e.key] = e.report
	}
	return g
}

// older sorts by age, and by name what was created in the same second.
func older(a, b *metav1.ObjectMeta) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// globalBuilder collects what objects claim.
type globalBuilder struct {
	served map[string]bool
	zones  map[types.NamespacedName]*zoneEntry
	owners map[string]*ownerEntry // by name; also those that only have others below them
}

// zoneEntry is a HostedZone.
type zoneEntry struct {
	object             *coredns.HostedZone
	key                types.NamespacedName
	visiting, resolved bool
	names              []string // in force
	report             Report
}

// recordEntry is a CoreDNSEntry.
type recordEntry struct {
	object *coredns.CoreDNSEntry
	key    types.NamespacedName
	report Report
}

// ownerEntry is a name in the making.
type ownerEntry struct {
	Owner
	by    *recordEntry // the oldest that has records here
	last  *recordEntry // that was asked for
	apex  *Apex        // nil: the name is inside of a zone
	zone  *zoneEntry   // that it is the apex of; nil: a served zone without HostedZone
	below int          // apexes and names with records below this one
	first string       // the oldest object that has one of them
}

func (o *ownerEntry) empty() bool {
	return len(o.Addresses) == 0 && len(o.NS) == 0 && o.CNAME == "" && len(o.TXT) == 0 && len(o.SRV) == 0
}

// delegated tells whether others are the authority from here on.
func (o *ownerEntry) delegated() bool { return len(o.NS) > 0 && o.apex == nil }

func (b *globalBuilder) owner(name string) *ownerEntry {
	o := b.owners[name]
	if o == nil {
		o = &ownerEntry{Owner: Owner{Name: name}}
		b.owners[name] = o
	}
	return o
}

// parent is the name above. The names here have no escaped dots.
func parent(name string) string {
	_, name, _ = strings.Cut(name, ".")
	return name
}

// zoneOf is the smallest served zone that a name lies in, empty if there is none.
func (b *globalBuilder) zoneOf(name string) string {
	for name != "" && !b.served[name] {
		name = parent(name)
	}
	return name
}

// occupy counts a name in those above it, up to its served zone.
func (b *globalBuilder) occupy(name, holder string) {
	for !b.served[name] {
		name = parent(name)
		o := b.owner(name)
		if o.below++; o.first == "" {
			o.first = holder
		}
	}
}

// fail reports what keeps a name, or a whole object, from being served. The first message stays, and the worst state.
func (r *Report) fail(state coredns.State, format string, args ...any) {
	if r.State == coredns.StateOk {
		r.Message = fmt.Sprintf(format, args...)
	}
	if r.State != coredns.StateInvalid {
		r.State = state
	}
}

// outside reports a name that lies in no served zone.
func (b *globalBuilder) outside(r *Report, field, name string) {
	var zones []string
	for _, z := range slices.Sorted(maps.Keys(b.served)) {
		zones = append(zones, mesh.TrimDot(z))
	}
	if len(zones) == 0 {
		r.fail(coredns.StateStale, "%s %q: no global zone is served in this cluster", field, name)
		return
	}
	r.fail(coredns.StateStale, "%s %q lies in no zone that is served here: write a name in %s", field, name, strings.Join(zones, " or "))
}

// resolve finds the names of a HostedZone, those of its parent first, and claims them.
func (b *globalBuilder) resolve(z *zoneEntry) {
	if z.resolved {
		return
	}
	z.visiting = true
	defer func() { z.visiting, z.resolved = false, true }()

	spec, r := &z.object.Spec, &z.report
	r.State = coredns.StateOk
	var bases []string
	r.RootZone = z.key.Name
	if spec.ParentRef != "" {
		p := b.zones[types.NamespacedName{Namespace: z.key.Namespace, Name: spec.ParentRef}]
		r.RootZone = ""
		switch {
		case p == nil:
			r.fail(coredns.StateStale, "spec.parentRef %q: there is no such HostedZone in namespace %s; create it, or remove the field and write fully qualified names", spec.ParentRef, z.key.Namespace)
			return
		case p.visiting:
			r.fail(coredns.StateInvalid, "spec.parentRef %q leads in a circle back to this zone: one of the zones must have no parent", spec.ParentRef)
			return
		}
		b.resolve(p)
		if r.RootZone = p.report.RootZone; len(p.names) == 0 {
			r.fail(coredns.StateStale, "spec.parentRef %s cannot be used (%s): repair that zone first", spec.ParentRef, p.report.State)
			r.Foreign = p.report.Foreign
			return
		}
		bases = p.names
	}
	apex, err := apexOf(spec)
	n := len(spec.DomainNames) * max(1, len(bases))
	switch {
	case err != nil:
		r.fail(coredns.StateInvalid, "%v", err)
		return
	case n == 0:
		r.fail(coredns.StateInvalid, "spec.domainNames is empty: name the zone, such as svc.global.kubelink")
		return
	case n > maxZoneNames:
		r.fail(coredns.StateInvalid, "spec.domainNames are %d names together with those of the zones above, and %d is the most: remove some", n, maxZoneNames)
		return
	}
	r.Foreign = true
	for _, d := range spec.DomainNames {
		names, err := qualify(string(d), bases)
		if err != nil {
			r.fail(coredns.StateInvalid, "spec.domainNames %q: %v", string(d), err)
			r.Foreign = false
			continue
		}
		for _, q := range names {
			name := q.name
			if b.zoneOf(name) == "" {
				b.outside(r, "spec.domainNames", string(d))
				continue
			}
			r.Foreign = false
			o := b.owner(name)
			if o.zone == z {
				continue // written twice
			}
			if o.zone != nil {
				r.fail(coredns.StateStale, "spec.domainNames %q: %s is already the name of HostedZone %s; remove it from one of the two", string(d), mesh.TrimDot(name), o.zone.key)
				continue
			}
			if o.apex == nil {
				b.occupy(name, "HostedZone "+z.key.String())
			}
			a := apex
			a.Name = name
			o.apex, o.zone = &a, z
			z.names = append(z.names, name)
			r.Names = append(r.Names, mesh.TrimDot(name))
		}
	}
}

// entry adds the records of a CoreDNSEntry at all of its names.
func (b *globalBuilder) entry(e *recordEntry) {
	spec, r := &e.object.Spec, &e.report
	r.State = coredns.StateOk
	var bases []string
	if spec.ZoneRef != "" {
		z := b.zones[types.NamespacedName{Namespace: e.key.Namespace, Name: spec.ZoneRef}]
		if z == nil {
			r.fail(coredns.StateStale, "spec.zoneRef %q: there is no such HostedZone in namespace %s; create it, or remove the field and write fully qualified names", spec.ZoneRef, e.key.Namespace)
			return
		}
		if r.RootZone = z.report.RootZone; len(z.names) == 0 {
			r.fail(coredns.StateStale, "spec.zoneRef %s cannot be used (%s): repair that zone first", spec.ZoneRef, z.report.State)
			r.Foreign = z.report.Foreign
			return
		}
		bases = z.names
	}
	records, err := e.records()
	n := len(spec.DNSNames) * max(1, len(bases))
	switch {
	case err != nil:
		r.fail(coredns.StateInvalid, "%v", err)
		return
	case n == 0:
		r.fail(coredns.StateInvalid, "spec.dnsNames is empty: name what has the records")
		return
	case n > maxEntryNames:
		r.fail(coredns.StateInvalid, "spec.dnsNames are %d names together with those of the zone, and %d is the most: remove some", n, maxEntryNames)
		return
	}
	r.Foreign = true
	for _, s := range spec.DNSNames {
		names, err := ownerNames(string(s), bases)
		if err != nil {
			r.fail(coredns.StateInvalid, "spec.dnsNames %q: %v", string(s), err)
			r.Foreign = false
			continue
		}
		for _, q := range names {
			if b.zoneOf(q.name) == "" {
				b.outside(r, "spec.dnsNames", string(s))
				continue
			}
			r.Foreign = false
			o := b.owner(q.name)
			if o.last == e {
				continue // written twice
			}
			if o.last = e; b.place(e, q, records) {
				r.Names = append(r.Names, mesh.TrimDot(q.name))
			}
		}
	}
	e.annotations()
}

// place adds records at one name, if it can have them all.
func (b *globalBuilder) place(e *recordEntry, at qualified, set *recordSet) bool {
	owners, err := set.at(at)
	if err == nil && len(set.NS) > 0 && len(set.service) > 0 && b.owner(at.name).apex == nil {
		err = fmt.Errorf("spec.NS delegates %s to other name servers, so spec.SRV belongs there: remove one or the other", mesh.TrimDot(at.name))
	}
	if err != nil {
		e.report.fail(coredns.StateInvalid, "%v", err)
		return false
	}
	for i := range owners {
		if !b.fits(e, &ownerEntry{Owner: owners[i]}) {
			return false
		}
	}
	for i := range owners {
		b.merge(e, &owners[i])
	}
	return true
}

// fits tells whether a name can have the records besides what older entries say, and reports it if not.
func (b *globalBuilder) fits(e *recordEntry, add *ownerEntry) bool {
	r, shown := &e.report, mesh.TrimDot(add.Name)
	if len(b.owners) >= maxNames {
		r.fail(coredns.StateStale, "%s: there are %d global names already, and that is the most; remove some", shown, maxNames)
		return false
	}
	for at := add.Name; !b.served[at]; {
		at = parent(at)
		o := b.owners[at]
		if o == nil {
			continue
		}
		if o.apex != nil {
			break
		}
		if o.delegated() && (len(add.NS) > 0 || !add.glue(o.NS)) {
			r.fail(coredns.StateStale, "%s: the older entry %s delegates %s to other name servers, so the name belongs there; use another one, or remove one of the two", shown, o.by.key, mesh.TrimDot(at))
			return false
		}
	}
	o := b.owner(add.Name)
	switch {
	case add.CNAME != "" && o.apex != nil:
		r.fail(coredns.StateInvalid, "spec.CNAME cannot stand at %s, which is the name of a zone: write addresses instead", shown)
	case add.CNAME != "" && !o.empty() && o.CNAME != add.CNAME:
		r.fail(coredns.StateStale, "%s: the older entry %s has records of that name, and an alias has none beside it; remove the name from one of the two", shown, o.by.key)
	case add.CNAME == "" && o.CNAME != "":
		r.fail(coredns.StateStale, "%s: the older entry %s makes that name an alias, which has no other records; remove the name from one of the two", shown, o.by.key)
	case len(o.Addresses) >= maxRecords && len(add.Addresses) > 0, len(o.TXT) >= maxRecords && len(add.TXT) > 0,
		len(o.NS) >= maxRecords && len(add.NS) > 0, len(o.SRV) >= maxRecords && len(add.SRV) > 0:
		r.fail(coredns.StateStale, "%s: older entries have %d records of that name already, and that is the most; use another name", shown, maxRecords)
	case o.apex == nil && (len(o.NS) > 0 || len(add.NS) > 0):
		return b.delegates(e, o, add)
	default:
		return true
	}
	return false
}

// delegates tells whether a delegation, old or new, hides nothing: at its name and below there may only
// be addresses of its name servers.
func (b *globalBuilder) delegates(e *recordEntry, o, add *ownerEntry) bool {
	r, shown := &e.report, mesh.TrimDot(o.Name)
	servers := slices.Concat(o.NS, add.NS)
	switch {
	case !add.glue(servers) && len(o.NS) > 0:
		r.fail(coredns.StateStale, "%s: the older entry %s delegates that name to other name servers, so its records belong there; remove the name from one of the two", shown, o.by.key)
		return false
	case !add.glue(servers):
		r.fail(coredns.StateInvalid, "spec.NS delegates %s to other name servers, so its other records belong there: remove them, or make an entry of its own for another name", shown)
		return false
	case !o.glue(servers):
		r.fail(coredns.StateStale, "spec.NS would delegate %s, which has records of the older entry %s; remove the name from one of the two", shown, o.by.key)
		return false
	}
	slices.Sort(servers)
	hidden := o.below
	for _, s := range slices.Compact(servers) {
		if below := b.owners[s]; s != o.Name && mesh.InDomain(s, o.Name) && below != nil && below.apex == nil && len(below.Addresses) > 0 && len(below.NS) == 0 && below.glue(servers) {
			hidden--
		}
	}
	if hidden > 0 {
		r.fail(coredns.StateStale, "spec.NS would delegate %s, below which there are names of the older %s; delegate another name, or remove those", shown, o.first)
		return false
	}
	return true
}

// glue tells whether the records may stay in a delegation to the servers: none but NS and, if it is the
// name of one of the servers, addresses.
func (o *ownerEntry) glue(servers []string) bool {
	return o.CNAME == "" && len(o.TXT) == 0 && len(o.SRV) == 0 && (len(o.Addresses) == 0 || slices.Contains(servers, o.Name))
}

// merge adds records to those that a name has.
func (b *globalBuilder) merge(e *recordEntry, add *Owner) {
	o := b.owner(add.Name)
	if o.by == nil {
		o.by = e
		if o.apex == nil {
			b.occupy(add.Name, "entry "+e.key.String())
		}
	}
	o.CNAME = add.CNAME
	o.Fixed = o.Fixed || add.Fixed
	for _, a := range add.Addresses {
		i := slices.IndexFunc(o.Addresses, func(old Address) bool { return old.Addr == a.Addr })
		if i < 0 {
			o.Addresses = append(o.Addresses, a)
		} else if a.AnyLink {
			o.Addresses[i].AnyLink = true
		}
	}
	o.TXT = union(o.TXT, add.TXT)
	o.NS = union(o.NS, add.NS)
	o.SRV = union(o.SRV, add.SRV)
}

// union appends what is not there yet.
func union[T comparable](to, from []T) []T {
	for _, v := range from {
		if !slices.Contains(to, v) {
			to = append(to, v)
		}
	}
	return to
}

// circle reports aliases that never come to an end. They stay as they are: the answer says so, too.
func (b *globalBuilder) circle(e *recordEntry) {
	if e.object.Spec.CNAME == "" {
		return
	}
	for _, name := range e.report.Names {
		o := b.owners[name+"."]
		for next, n := o, 0; n < maxAliases && next != nil && next.CNAME != ""; n++ {
			if next = b.owners[next.CNAME]; next == o {
				e.report.fail(coredns.StateInvalid, "spec.CNAME makes %s an alias of itself, by way of %s: point it to a name with addresses", name, mesh.TrimDot(o.CNAME))
				return
			}
		}
	}
}

// names puts together what each served zone has.
func (b *globalBuilder) names() []Zone {
	zones := make(map[string]*Zone, len(b.served))
	for name := range b.served {
		zones[name] = &Zone{Name: name, Owners: make([]Owner, 0, len(b.owners)/len(b.served))}
	}
	owners := make([]*ownerEntry, 0, len(b.owners))
	for _, o := range b.owners {
		owners = append(owners, o)
	}
	slices.SortFunc(owners, func(a, b *ownerEntry) int { return cmp.Compare(a.Name, b.Name) })
	for _, o := range owners {
		z := zones[b.zoneOf(o.Name)]
		if o.apex != nil {
			z.Apexes = append(z.Apexes, *o.apex)
		}
		if !o.empty() {
			z.Owners = append(z.Owners, o.Owner)
		}
	}
	var result []Zone
	for _, name := range slices.Sorted(maps.Keys(zones)) {
		result = append(result, *zones[name])
	}
	return result
}
