package bridge

// What packets are decided by: immutable tables behind atomic pointers, replaced as a whole by
// Bridge.Set.

import (
	"github.com/gaissmai/bart"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// routingTable leads destinations to peers, and says which peer a source may come from: the one that is
// routed to (as WireGuard's allowed IPs). Requests come from cluster addresses; answers of services come
// from where the request went.
type routingTable struct {
	routes bart.Fast[*peer] // nil: a local network, of no peer
	peers  []*peer          // all, as Set was told
}

// ingressFilter is what packets from one peer may carry.
type ingressFilter struct {
	ingress bart.Table[bool] // the longest prefix decides; false denies
}

func newIngressFilter(spec *mesh.Peer) *ingressFilter {
	f := &ingressFilter{}
	for _, r := range spec.Ingress {
		f.ingress.Insert(r.Prefix, r.Allow)
	}
	return f
}
