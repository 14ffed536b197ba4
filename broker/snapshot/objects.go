package snapshot

// Which objects are kept, and without which of their fields.

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// Objects are the objects that names come from.
type Objects struct {
	Links   []v1alpha1.KubeLink    `json:"kubeLinks"`
	Entries []coredns.CoreDNSEntry `json:"coreDNSEntries,omitempty"`
	Zones   []coredns.HostedZone   `json:"hostedZones,omitempty"`
}

// sameLinks tells whether the links differ in nothing that the snapshot keeps. Most changes are of their status,
// which it does not keep.
func sameLinks(a, b []v1alpha1.KubeLink) bool {
	return slices.EqualFunc(a, b, func(a, b v1alpha1.KubeLink) bool {
		return a.UID == b.UID && a.Generation == b.Generation &&
			(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil)
	})
}

// encode makes the content of the file. It leaves out what names do not need: most of the statuses, and secrets above
// all. The same objects always have the same content. The receiver's lists belong to a cache: encode changes copies.
func (o Objects) encode() ([]byte, error) {
	kept := Objects{Links: slices.Clone(o.Links), Entries: slices.Clone(o.Entries), Zones: slices.Clone(o.Zones)}
	for i := range kept.Links {
		l := &kept.Links[i]
		stripMeta(&l.ObjectMeta)
		l.Annotations = nil // kubectl keeps the whole spec in one
		l.Status, l.Spec.PresharedKey = v1alpha1.KubeLinkStatus{}, ""
	}
	for i := range kept.Entries {
		stripMeta(&kept.Entries[i].ObjectMeta)
		kept.Entries[i].Status = stripStatus(&kept.Entries[i].Status)
	}
	for i := range kept.Zones {
		stripMeta(&kept.Zones[i].ObjectMeta)
		kept.Zones[i].Status = stripStatus(&kept.Zones[i].Status)
	}
	// The cache lists them in no order.
	slices.SortFunc(kept.Entries, func(a, b coredns.CoreDNSEntry) int {
		return compareNames(&a.ObjectMeta, &b.ObjectMeta)
	})
	slices.SortFunc(kept.Zones, func(a, b coredns.HostedZone) int {
		return compareNames(&a.ObjectMeta, &b.ObjectMeta)
	})
	return json.Marshal(kept)
}

// stripStatus keeps the names that an object has: no other one takes them.
func stripStatus(s *coredns.Status) coredns.Status {
	return coredns.Status{EffectiveDomainNames: s.EffectiveDomainNames}
}

// stripMeta removes what changes without the spec, and the copy of the spec that kubectl keeps.
func stripMeta(m *metav1.ObjectMeta) {
	m.ManagedFields, m.ResourceVersion = nil, ""
	m.Annotations = maps.Clone(m.Annotations) // the map belongs to the cache
	delete(m.Annotations, corev1.LastAppliedConfigAnnotation)
}

// compareNames orders objects of one kind.
func compareNames(a, b *metav1.ObjectMeta) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
