package bridge

// What packets are decided by: immutable tables behind atomic pointers, replaced as a whole by
// Bridge.Set.

import (
	"github.com/gaissmai/bart"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// table leads destinations to peers, and says which peer a source may come from: the one that is
// routed to (as WireGuard's allowed IPs). Requests come from cluster addresses; answers of services come
// from where the request went.
type table struct {
	routes bart.Fast[*peer] // nil: a local network, of no peer
	peers  []*peer          // all, as Set was told
}

// filter is what packets from one peer may carry.
type filter struct {
	ingress bart.Table[bool] // the longest prefix decides; false denies
}

func newFilter(spec *mesh.Peer) *filter {
	f := &filter{}
	for _, r := range spec.Ingress {
		f.ingress.Insert(r.Prefix, r.Allow)
	}
	return f
}
