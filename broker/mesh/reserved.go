package mesh

// Addresses that belong to older objects of other kinds: those of MeshServices.

import (
	"net/netip"
	"slices"
	"sort"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// Reserved is an address that no younger link gets.
type Reserved struct {
	Addr    netip.Addr
	Owner   string // as messages call it
	Created metav1.Time
}

// sortReserved returns the addresses in order, the older owners of one first.
func sortReserved(list []Reserved) []Reserved {
	return slices.SortedFunc(slices.Values(list), func(a, b Reserved) int {
		if order := a.Addr.Compare(b.Addr); order != 0 {
			return order
		}
		return a.Created.Compare(b.Created.Time)
	})
}

// checkReserved refuses a link to whose networks an address belongs that an older object has. A network that is wider
// than a mesh takes no address of the mesh.
func (s *linkSet) checkReserved(l *linkEntry, o *v1alpha1.KubeLink) *Problem {
	for _, c := range l.claims {
		first := c.prefix.Masked().Addr()
		i := sort.Search(len(s.reserved), func(i int) bool { return s.reserved[i].Addr.Compare(first) >= 0 })
		for _, r := range s.reserved[i:] {
			if !c.prefix.Contains(r.Addr) {
				break
			}
			if s.isWiderThanMesh(c.prefix, r.Addr) || !IsAutoLink(o) && r.Created.Compare(o.CreationTimestamp.Time) >= 0 {
				continue
			}
			return invalid("%s %s has the address %s, which belongs to the older %s: "+
				"give another one, or delete the other object",
				c.field, c.prefix, r.Addr, r.Owner)
		}
	}
	return nil
}

// isWiderThanMesh tells whether the address lies in a mesh whose network is longer than n.
func (s *linkSet) isWiderThanMesh(n netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(s.meshes.list, func(m *meshEntry) bool {
		own := m.Addresses.SameFamily(a)
		return own.Contains(a) && n.Bits() < own.Bits()
	})
}
