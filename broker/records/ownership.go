package records

// Who may have a name. A namespace must not add to the names of another one, hide them, or use up all names: a name
// belongs to the namespace of the oldest object that has it. A HostedZone and a wildcard take all names below theirs.
// An object that has a name already, as its status says, comes before all that want it: an older object that is changed
// must not take it.

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Tenancy says which namespaces may have global names.
type Tenancy struct {
	// Home is the namespace of kubelink. It may have any name.
	Home string
	// Allowed are the other namespaces that may have names, any names. Without any, all namespaces may, except for the
	// served zones themselves and wildcards right below these.
	Allowed []string
}

// mayHaveNames tells whether objects of the namespace may have names.
func (t *Tenancy) mayHaveNames(namespace string) bool {
	return len(t.Allowed) == 0 || t.mayHaveZones(namespace)
}

// mayHaveZones tells whether objects of the namespace may have the names of served zones.
func (t *Tenancy) mayHaveZones(namespace string) bool {
	return namespace == t.Home || slices.Contains(t.Allowed, namespace)
}

// ownership is what a name knows of its owners.
type ownership struct {
	owner    *types.NamespacedName // the oldest object that has the name; nil: none
	wildcard *types.NamespacedName // the oldest object that has all names below, but for those of older ones
	inside   *types.NamespacedName // the oldest object that has a name below
	stranger *types.NamespacedName // the oldest one of another namespace
}

// claimAll finds the owner of each name. It also finds the names of the HostedZones: zone names count from when the
// zone and the zones above it are there, and names in them, too.
func (t *nameTree) claimAll(zones *zoneSet, entries []*recordEntry) {
	type claimant struct {
		since, own *metav1.ObjectMeta
		rank       int    // zones before entries
		keep       func() // claims the names that the object has
		claim      func() // claims all names of the object
	}
	list := make([]claimant, 0, len(zones.byAge)+len(entries))
	for _, z := range zones.byAge {
		list = append(list, claimant{zones.sinceWhen(z), &z.object.ObjectMeta, 0,
			func() { zones.keepNames(z) }, func() { zones.resolveZone(z) }})
	}
	for _, e := range entries {
		since := &e.object.ObjectMeta
		if z := zones.findZone(e.key.Namespace, e.object.Spec.ZoneRef); z != nil && e.object.Spec.ZoneRef != "" {
			since = younger(since, zones.sinceWhen(z))
		}
		list = append(list, claimant{since, &e.object.ObjectMeta, 1,
			func() { e.keepNames(t, zones) }, func() { e.claimNames(t, zones) }})
	}
	slices.SortStableFunc(list, func(a, b claimant) int {
		return cmp.Or(compareAge(a.since, b.since), cmp.Compare(a.rank, b.rank), compareAge(a.own, b.own))
	})
	for _, c := range list {
		c.keep()
	}
	for _, c := range list {
		c.claim()
	}
}

// keepNames makes the zone the owner of the names that it has and still wants.
func (s *zoneSet) keepNames(z *zoneEntry) {
	if has := z.object.Status.EffectiveDomainNames; len(has) > 0 {
		for _, name := range s.wantedNames(z) {
			s.tree.keepName(&z.key, name, true, has)
		}
	}
}

// keepNames makes the entry the owner of the names that it has and still wants.
func (e *recordEntry) keepNames(t *nameTree, zones *zoneSet) {
	has := e.object.Status.EffectiveDomainNames
	if len(has) == 0 {
		return
	}
	var bases []string
	if ref := e.object.Spec.ZoneRef; ref != "" {
		z := zones.findZone(e.key.Namespace, ref)
		if z == nil {
			return
		}
		bases = zones.wantedNames(z)
	}
	if _, p := e.readRecords(len(bases)); p != nil || e.object.Spec.ZoneRef != "" && len(bases) == 0 {
		return
	}
	for _, s := range e.object.Spec.DNSNames {
		names, _ := qualifyOwner(string(s), bases) // placeEntry reports the error
		for _, q := range names {
			t.keepName(&e.key, q.name, false, has)
		}
	}
}

// keepName claims a name that the object has.
func (t *nameTree) keepName(object *types.NamespacedName, name string, zone bool, has []string) {
	if t.servedZone(name) != "" && slices.Contains(has, mesh.TrimDot(name)) {
		t.claimName(object, name, zone) // a problem shows when it claims all its names
	}
}

// wantedNames are the names of a HostedZone, whether it gets them or not; none if it has no good ones, or a circle is
// above it.
func (s *zoneSet) wantedNames(z *zoneEntry) []string {
	if !z.wantsKnown {
		z.wantsKnown = true
		z.wants = s.findWantedNames(z)
	}
	return z.wants
}

func (s *zoneSet) findWantedNames(z *zoneEntry) (names []string) {
	var parents []string
	if ref := z.object.Spec.ParentRef; ref != "" {
		parent := s.findZone(z.key.Namespace, ref)
		if parent == nil {
			return nil
		}
		if parents = s.wantedNames(parent); len(parents) == 0 {
			return nil
		}
	}
	if _, p := z.readApex(len(parents)); p != nil {
		return nil
	}
	for _, d := range z.object.Spec.DomainNames {
		qualified, _ := qualifyName(string(d), parents) // resolveZone reports the error
		for _, q := range qualified {
			names = append(names, q.name)
		}
	}
	return names
}

// sinceWhen is the youngest of the zone and the zones above: without any of them, the zone has no names. In a circle,
// where no zone has names, it is some zone of it.
func (s *zoneSet) sinceWhen(z *zoneEntry) *metav1.ObjectMeta {
	if z.since == nil {
		z.since = &z.object.ObjectMeta
		if ref := z.object.Spec.ParentRef; ref != "" {
			if parent := s.findZone(z.key.Namespace, ref); parent != nil {
				z.since = younger(z.since, s.sinceWhen(parent))
			}
		}
	}
	return z.since
}

func younger(a, b *metav1.ObjectMeta) *metav1.ObjectMeta {
	if compareAge(a, b) < 0 {
		return b
	}
	return a
}

// claimName makes an object the owner of a name, if its namespace may have it. zone: it is a HostedZone.
func (t *nameTree) claimName(object *types.NamespacedName, name string, zone bool) *problem {
	served := t.servedZone(name)
	parent, isWildcard := strings.CutPrefix(name, "*.")
	top := name == served || isWildcard && parent == served
	shown := mesh.TrimDot(name)
	switch {
	case !t.tenancy.mayHaveNames(object.Namespace):
		return stale("%s: namespace %s may have no global names: add it to global-namespaces of kubelink's stanza, "+
			"or use another namespace", shown, object.Namespace)
	case top && !t.tenancy.mayHaveZones(object.Namespace):
		return stale("%s is for namespace %s: use a name below %s, or add namespace %s to global-namespaces of kubelink's "+
			"stanza", shown, t.tenancy.Home, mesh.TrimDot(served), object.Namespace)
	}
	if owner := t.findOther(object.Namespace, name, served, zone); owner != nil {
		return stale("%s belongs to %s, as namespace %s had it first: use another name, or namespace %[3]s",
			shown, owner, owner.Namespace)
	}
	o := t.addName(name)
	if o.owner != nil {
		return nil
	}
	if n := t.names[object.Namespace]; n >= maxNamespaceNames && object.Namespace != t.tenancy.Home {
		return stale("%s: namespace %s has %d global names already, and that is the most of one namespace; remove some",
			shown, object.Namespace, n)
	}
	t.names[object.Namespace]++
	o.owner = object
	if isWildcard {
		t.addName(parent).wildcard = object
	}
	t.noteInside(object, name, served)
	return nil
}

// noteInside notes the owner of a name at the names above.
func (t *nameTree) noteInside(object *types.NamespacedName, name, served string) {
	for name != served {
		name = parentName(name)
		switch o := t.addName(name); {
		case o.inside == nil:
			o.inside = object
		case o.stranger == nil && o.inside.Namespace != object.Namespace:
			o.stranger = object
		}
	}
}

// findOther finds the older object of another namespace that a name belongs to; nil: there is none.
func (t *nameTree) findOther(namespace, name, served string, zone bool) *types.NamespacedName {
	other := func(owner *types.NamespacedName) bool { return owner != nil && owner.Namespace != namespace }
	parent, isWildcard := strings.CutPrefix(name, "*.")
	if o := t.owners[name]; o != nil && other(o.owner) {
		return o.owner
	}
	if isWildcard && parent == served { // it belongs to the owner of the zone, and tenants have names beside it
		if o := t.owners[served]; other(o.owner) {
			return o.owner
		}
		return nil
	}
	if name == served {
		if o := t.owners[served]; other(o.wildcard) {
			return o.wildcard
		}
		return nil
	}
	if owner := t.findAbove(name, served, other); owner != nil {
		return owner
	}
	if isWildcard || zone { // it takes the names below
		top := name
		if isWildcard {
			top = parent
		}
		if o := t.owners[top]; o != nil {
			for _, owner := range []*types.NamespacedName{o.owner, o.inside, o.stranger} {
				if other(owner) {
					return owner
				}
			}
		}
	}
	return nil
}

// findAbove finds the owner of a name above that has the names below it, too: the nearest zone, a wildcard, or the name
// of which labels with an underscore say something (RFC 8552).
func (t *nameTree) findAbove(name, served string, other func(*types.NamespacedName) bool) *types.NamespacedName {
	scoped := true // no label so far but ones with an underscore
	for at := name; at != served; {
		scoped = scoped && strings.HasPrefix(at, "_")
		if at = parentName(at); at == served {
			return nil
		}
		o := t.owners[at]
		switch {
		case o == nil:
		case other(o.wildcard):
			return o.wildcard
		case (scoped || o.zone != nil) && other(o.owner):
			return o.owner
		case o.zone != nil:
			return nil
		}
	}
	return nil
}

// String describes the tenancy; equal ones have the same description.
func (t Tenancy) String() string { return fmt.Sprintf("%s %q", t.Home, t.Allowed) }
