package bridge

// The tables that decide where packets go: immutable, behind atomic pointers. Bridge.Set replaces them as a whole.

import (
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// router has the routes of all links.
type router struct {
	table atomic.Pointer[routingTable]
	drops dropCounters // packets of no known link
}

// routingTable assigns destinations to peers. It also tells from which peer a source may come: from the peer that the
// source is routed to (as WireGuard's allowed IPs). Requests come from cluster addresses; replies of services come from
// the address that the request went to.
type routingTable struct {
	routes bart.Fast[*peer] // nil: a local network, of no peer
	peers  []*peer          // all, in the order of Set
}

// ingressFilter tells to which local addresses packets from one peer may go.
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
