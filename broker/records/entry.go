package records

// CoreDNSEntries: their records, at all of their names.

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// recordEntry is a CoreDNSEntry.
type recordEntry struct {
	object *coredns.CoreDNSEntry
	key    types.NamespacedName
	report Report

	bases   []string            // names of the zone that the names are relative to
	set     *recordSet          // nil: the entry has no names
	refused map[string]*problem // names that belong to others
}

// entriesByAge are the entries that are not about to go.
func entriesByAge(entries []coredns.CoreDNSEntry) []*recordEntry {
	list := make([]*recordEntry, 0, len(entries))
	for i := range entries {
		if o := &entries[i]; o.DeletionTimestamp == nil {
			list = append(list, &recordEntry{object: o, key: keyOf(&o.ObjectMeta)})
		}
	}
	slices.SortFunc(list, func(a, b *recordEntry) int {
		return compareAge(&a.object.ObjectMeta, &b.object.ObjectMeta)
	})
	return list
}

// claimNames reads the entry, and makes it the owner of its names, as far as they are not those of other namespaces.
func (e *recordEntry) claimNames(t *nameTree, zones *zoneSet) {
	e.report.State = coredns.StateOk
	var p *problem
	if e.bases, p = e.zoneNames(zones); p == nil {
		e.set, p = e.readRecords(len(e.bases))
	}
	if p != nil {
		e.report.addProblem(p)
		return
	}
	for _, s := range e.object.Spec.DNSNames {
		names, _ := qualifyOwner(string(s), e.bases) // placeEntry reports the error
		for _, q := range names {
			if t.servedZone(q.name) == "" {
				continue
			}
			if p := t.claimName(&e.key, q.name, false); p != nil {
				if e.refused == nil {
					e.refused = map[string]*problem{}
				}
				e.refused[q.name] = p
			}
		}
	}
}

// placeEntry adds the records of the entry at all of its names.
func (e *recordEntry) placeEntry(t *nameTree) {
	if e.set == nil {
		return
	}
	e.report.Foreign = true
	for _, s := range e.object.Spec.DNSNames {
		names, err := qualifyOwner(string(s), e.bases)
		if err != nil {
			e.report.addProblem(invalid("spec.dnsNames %q: %v", string(s), err))
			e.report.Foreign = false
			continue
		}
		for _, q := range names {
			e.placeName(t, string(s), q, e.set)
		}
	}
	e.noteAnnotations()
}

// zoneNames are the names of the zone that spec.zoneRef refers to; none without the field.
func (e *recordEntry) zoneNames(zones *zoneSet) ([]string, *problem) {
	ref, r := e.object.Spec.ZoneRef, &e.report
	if ref == "" {
		return nil, nil
	}
	z := zones.findZone(e.key.Namespace, ref)
	if z == nil {
		return nil, stale("spec.zoneRef %q: there is no such HostedZone in namespace %s; "+
			"create it, or remove the field and write fully qualified names", ref, e.key.Namespace)
	}
	if r.RootZone = z.report.RootZone; len(z.names) == 0 {
		r.Foreign = z.report.Foreign
		return nil, stale("spec.zoneRef %s cannot be used (%s): repair that zone first", ref, z.report.State)
	}
	return z.names, nil
}

// readRecords reads the records, and checks the number of names that the entry has in so many zones.
func (e *recordEntry) readRecords(zones int) (*recordSet, *problem) {
	set, err := parseRecords(e.object)
	n := len(e.object.Spec.DNSNames) * max(1, zones)
	switch {
	case err != nil:
		return nil, invalid("%v", err)
	case n == 0:
		return nil, invalid("spec.dnsNames is empty: name what has the records")
	case n > maxEntryNames:
		return nil, invalid("spec.dnsNames are %d names together with those of the zone, "+
			"and %d is the most: remove some", n, maxEntryNames)
	}
	return set, nil
}

// placeName adds the records at one name, or none of them. written is the name as it is in the object.
func (e *recordEntry) placeName(t *nameTree, written string, at qualified, set *recordSet) {
	r := &e.report
	if t.servedZone(at.name) == "" {
		r.addProblem(t.outsideProblem("spec.dnsNames", written))
		return
	}
	r.Foreign = false
	if p := e.refused[at.name]; p != nil {
		r.addProblem(p)
		return
	}
	o := t.addName(at.name)
	if o.last == &e.key { // written twice
		return
	}
	o.last = &e.key
	owners, p := e.fittingRecords(t, o, at, set)
	if p != nil {
		r.addProblem(p)
		return
	}
	for i := range owners {
		t.mergeRecords(&e.key, &owners[i])
	}
	r.Names = append(r.Names, mesh.TrimDot(at.name))
}

// fittingRecords are the records for a name and for the services below it, if all of them can be there.
func (e *recordEntry) fittingRecords(t *nameTree, o *ownerEntry, at qualified, set *recordSet) ([]Owner, *problem) {
	owners, err := set.recordsAt(at)
	if err != nil {
		return nil, invalid("%v", err)
	}
	if len(set.NS) > 0 && len(set.services) > 0 && o.apex == nil {
		return nil, invalid("spec.NS delegates %s to other name servers, so spec.SRV belongs there: "+
			"remove one or the other", mesh.TrimDot(at.name))
	}
	for i := range owners {
		if p := t.checkFit(&owners[i]); p != nil {
			return nil, p
		}
	}
	return owners, nil
}

// reportCNAMELoop reports the aliases of an entry that never come to an end. They stay as they are: the DNS answer says
// so, too.
func (e *recordEntry) reportCNAMELoop(t *nameTree) {
	if e.object.Spec.CNAME == "" {
		return
	}
	for _, name := range e.report.Names {
		if o := t.owners[name+"."]; t.cnameLoop(o) {
			e.report.addProblem(invalid("spec.CNAME makes %s an alias of itself, by way of %s: "+
				"point it to a name with addresses", name, mesh.TrimDot(o.CNAME)))
			return
		}
	}
}

// noteAnnotations notes what has no effect.
func (e *recordEntry) noteAnnotations() {
	r := &e.report
	for _, a := range []struct{ name, off, on string }{
		{coredns.AnnotationFollowLinks, "true", "false"}, {coredns.AnnotationOrder, "nearest", coredns.OrderFixed},
	} {
		v, set := e.object.Annotations[a.name]
		if set && v != a.on && v != a.off && r.State == coredns.StateOk {
			r.Message = fmt.Sprintf("annotation %s %q has no effect: it is %q or %q", a.name, v, a.off, a.on)
		}
	}
}
