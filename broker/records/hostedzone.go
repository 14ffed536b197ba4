package records

// HostedZones: the zones that they cut out of the global zones. A zone may be relative to another one, its parent.

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// zoneEntry is a HostedZone.
type zoneEntry struct {
	object             *coredns.HostedZone
	key                types.NamespacedName
	visiting, resolved bool
	names              []string // in force
	report             Report

	since      *metav1.ObjectMeta // as sinceWhen says; nil: not known yet
	wants      []string           // as wantedNames says
	wantsKnown bool
}

// zoneSet has the HostedZones that are not about to go.
type zoneSet struct {
	tree  *nameTree
	byKey map[types.NamespacedName]*zoneEntry
	byAge []*zoneEntry
}

func newZoneSet(zones []coredns.HostedZone, tree *nameTree) *zoneSet {
	s := &zoneSet{
		tree:  tree,
		byKey: make(map[types.NamespacedName]*zoneEntry, len(zones)),
		byAge: make([]*zoneEntry, 0, len(zones)),
	}
	for i := range zones {
		if o := &zones[i]; o.DeletionTimestamp == nil {
			z := &zoneEntry{object: o, key: keyOf(&o.ObjectMeta)}
			s.byKey[z.key] = z
			s.byAge = append(s.byAge, z)
		}
	}
	slices.SortFunc(s.byAge, func(a, b *zoneEntry) int {
		return compareAge(&a.object.ObjectMeta, &b.object.ObjectMeta)
	})
	return s
}

// findZone finds the zone of a reference in an object of the namespace.
func (s *zoneSet) findZone(namespace, ref string) *zoneEntry {
	return s.byKey[types.NamespacedName{Namespace: namespace, Name: ref}]
}

// resolveZone finds the names of a HostedZone, after the names of its parent, and claims them.
func (s *zoneSet) resolveZone(z *zoneEntry) {
	if z.resolved {
		return
	}
	z.visiting = true
	defer func() { z.visiting, z.resolved = false, true }()

	z.report.State = coredns.StateOk
	parents, p := s.parentNames(z)
	if p != nil {
		z.report.addProblem(p)
		return
	}
	apex, p := z.readApex(len(parents))
	if p != nil {
		z.report.addProblem(p)
		return
	}
	z.report.Foreign = true
	for _, d := range z.object.Spec.DomainNames {
		names, err := qualifyName(string(d), parents)
		if err != nil {
			z.report.addProblem(invalid("spec.domainNames %q: %v", string(d), err))
			z.report.Foreign = false
			continue
		}
		for _, q := range names {
			s.claimName(z, string(d), q.name, apex)
		}
	}
}

// parentNames are the names of the zone that spec.parentRef refers to; none without the field.
func (s *zoneSet) parentNames(z *zoneEntry) ([]string, *problem) {
	ref, r := z.object.Spec.ParentRef, &z.report
	if ref == "" {
		r.RootZone = z.key.Name
		return nil, nil
	}
	parent := s.findZone(z.key.Namespace, ref)
	switch {
	case parent == nil:
		return nil, stale("spec.parentRef %q: there is no such HostedZone in namespace %s; "+
			"create it, or remove the field and write fully qualified names", ref, z.key.Namespace)
	case parent.visiting:
		return nil, invalid("spec.parentRef %q leads in a circle back to this zone: "+
			"one of the zones must have no parent", ref)
	}
	s.resolveZone(parent)
	if r.RootZone = parent.report.RootZone; len(parent.names) == 0 {
		r.Foreign = parent.report.Foreign
		return nil, stale("spec.parentRef %s cannot be used (%s): repair that zone first", ref, parent.report.State)
	}
	return parent.names, nil
}

// readApex reads what the SOA record says, and checks the number of names that the zone has below so many parents.
func (z *zoneEntry) readApex(parents int) (Apex, *problem) {
	spec := &z.object.Spec
	apex, err := parseApex(spec)
	n := len(spec.DomainNames) * max(1, parents)
	switch {
	case err != nil:
		return apex, invalid("%v", err)
	case n == 0:
		return apex, invalid("spec.domainNames is empty: name the zone, such as svc.global.kubelink")
	case n > maxZoneNames:
		return apex, invalid("spec.domainNames are %d names together with those of the zones above, "+
			"and %d is the most: remove some", n, maxZoneNames)
	}
	return apex, nil
}

// claimName makes a name the apex of the zone, unless it is the apex of an older zone. written is the name as it is in
// the object.
func (s *zoneSet) claimName(z *zoneEntry, written, name string, apex Apex) {
	r := &z.report
	if s.tree.servedZone(name) == "" {
		r.addProblem(s.tree.outsideProblem("spec.domainNames", written))
		return
	}
	r.Foreign = false
	if p := s.tree.claimName(&z.key, name, true); p != nil {
		r.addProblem(p)
		return
	}
	o := s.tree.addName(name)
	switch {
	case o.zone == &z.key: // written twice
		return
	case o.zone != nil:
		r.addProblem(stale("spec.domainNames %q: %s is already the name of HostedZone %s; remove it from one of the two",
			written, mesh.TrimDot(name), o.zone))
		return
	case o.apex == nil:
		s.tree.countBelow(name, "HostedZone "+z.key.String())
	}
	apex.Name = name
	o.apex, o.zone = &apex, &z.key
	z.names = append(z.names, name)
	r.Names = append(r.Names, mesh.TrimDot(name))
}
