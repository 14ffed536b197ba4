package kernel

// Of which IP versions the kernel filters what links send: a dataplane is told the networks of these only.

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Filtered are the IP versions for which the kernel has the chains of a Firewall. The zero value: it has none.
type Filtered struct{ v4, v6 bool }

// Note adds the versions that the kernel filters now, as it says of a state, and removes those that no mesh uses. What
// was filtered stays so: a Set that fails leaves the chains as they are.
func (f *Filtered) Note(s *State, err error) {
	f.v4 = s.Uses(4) && (f.v4 || !errors.Is(err, Unfiltered(4)))
	f.v6 = s.Uses(6) && (f.v6 || !errors.Is(err, Unfiltered(6)))
}

// Restrict returns the peers with their networks of these versions.
func (f Filtered) Restrict(peers []mesh.Peer) []mesh.Peer {
	if f.v4 && f.v6 {
		return peers
	}
	peers = slices.Clone(peers)
	for i := range peers {
		peers[i].Networks = slices.DeleteFunc(slices.Clone(peers[i].Networks), func(n netip.Prefix) bool {
			return n.Addr().Is4() && !f.v4 || n.Addr().Is6() && !f.v6
		})
	}
	return peers
}
