package records

// All names of the global zones while they are made. A name in the tree counts the names below it.

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// nameTree has the names that are served.
type nameTree struct {
	served map[string]bool        // global zones
	owners map[string]*ownerEntry // by name; also names that have no records, but names below them

	tenancy Tenancy
	names   map[string]int // how many a namespace owns
}

// ownerEntry is a name in the making.
type ownerEntry struct {
	Owner
	ownership
	by    *types.NamespacedName // the oldest entry that has records here
	last  *types.NamespacedName // the entry that was placed here last
	apex  *Apex                 // nil: the name is inside of a zone
	zone  *types.NamespacedName // HostedZone that has the apex; nil: a served zone without HostedZone
	below int                   // apexes and names with records below this one
	first string                // the oldest object that has one of them
}

// isDelegated tells whether other name servers are the authority from here on.
func (o *ownerEntry) isDelegated() bool { return len(o.NS) > 0 && o.apex == nil }

// newNameTree makes the tree of the served zones, with room for so many names.
func newNameTree(served []string, room int, tenancy Tenancy) *nameTree {
	t := &nameTree{
		served: map[string]bool{}, owners: make(map[string]*ownerEntry, room), tenancy: tenancy, names: map[string]int{},
	}
	for _, name := range served {
		t.served[name] = true
		t.addName(name).apex = &Apex{Name: name, Refresh: 7200, Retry: 1800, Expire: 86400, Minimum: 5}
	}
	return t
}

// addName returns the name, which it adds if it is not there yet.
func (t *nameTree) addName(name string) *ownerEntry {
	o := t.owners[name]
	if o == nil {
		o = &ownerEntry{Owner: Owner{Name: name}}
		t.owners[name] = o
	}
	return o
}

// parentName is the name above. The names here have no escaped dots.
func parentName(name string) string {
	_, name, _ = strings.Cut(name, ".")
	return name
}

// servedZone is the smallest served zone that a name lies in, empty if there is none.
func (t *nameTree) servedZone(name string) string {
	for name != "" && !t.served[name] {
		name = parentName(name)
	}
	return name
}

// countBelow counts a name in the names above it, up to its served zone.
func (t *nameTree) countBelow(name, object string) {
	for !t.served[name] {
		name = parentName(name)
		o := t.addName(name)
		if o.below++; o.first == "" {
			o.first = object
		}
	}
}

// outsideProblem is the problem of a name that lies in no served zone.
func (t *nameTree) outsideProblem(field, name string) *problem {
	var zones []string
	for _, z := range slices.Sorted(maps.Keys(t.served)) {
		zones = append(zones, mesh.TrimDot(z))
	}
	if len(zones) == 0 {
		return stale("%s %q: no global zone is served in this cluster", field, name)
	}
	return stale("%s %q lies in no zone that is served here: write a name in %s",
		field, name, strings.Join(zones, " or "))
}

// mergeRecords adds records of an entry to the records that a name has.
func (t *nameTree) mergeRecords(entry *types.NamespacedName, add *Owner) {
	o := t.addName(add.Name)
	if o.by == nil {
		o.by = entry
		if o.apex == nil {
			t.countBelow(add.Name, "entry "+entry.String())
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
	o.TXT = appendMissing(o.TXT, add.TXT)
	o.NS = appendMissing(o.NS, add.NS)
	o.SRV = appendMissing(o.SRV, add.SRV)
}

// cnameLoop tells whether an alias leads back to its own name.
func (t *nameTree) cnameLoop(o *ownerEntry) bool {
	next := o
	for n := 0; n < maxAliases && next != nil && next.CNAME != ""; n++ {
		if next = t.owners[next.CNAME]; next == o {
			return true
		}
	}
	return false
}

// zones puts together what each served zone has.
func (t *nameTree) zones() []Zone {
	zones := make(map[string]*Zone, len(t.served))
	for name := range t.served {
		zones[name] = &Zone{Name: name, Owners: make([]Owner, 0, len(t.owners)/len(t.served))}
	}
	owners := make([]*ownerEntry, 0, len(t.owners))
	for _, o := range t.owners {
		owners = append(owners, o)
	}
	slices.SortFunc(owners, func(a, b *ownerEntry) int { return cmp.Compare(a.Name, b.Name) })
	for _, o := range owners {
		z := zones[t.servedZone(o.Name)]
		if o.apex != nil {
			z.Apexes = append(z.Apexes, *o.apex)
		}
		if o.hasRecords() {
			z.Owners = append(z.Owners, o.Owner)
		}
	}
	var result []Zone
	for _, name := range slices.Sorted(maps.Keys(zones)) {
		result = append(result, *zones[name])
	}
	return result
}

// appendMissing appends what is not there yet.
func appendMissing[T comparable](to, from []T) []T {
	for _, v := range from {
		if !slices.Contains(to, v) {
			to = append(to, v)
		}
	}
	return to
}
