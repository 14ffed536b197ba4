package bridge

// What packets are decided by: immutable tables behind atomic pointers, replaced as a whole by
// Bridge.Set.

import (
	"net/netip"

	"github.com/gaissmai/bart"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// table leads destinations to peers.
type table struct {
	routes bart.Fast[*peer]
	peers  []*peer // all, as Set was told
}

// filter is what packets from one peer may carry.
type filter struct {
	sources map[netip.Addr]struct{}
	ingress bart.Table[bool] // the longest prefix decides; false denies
}

func newFilter(spec *mesh.Peer) *filter {
	f := &filter{sources: make(map[netip.Addr]struct{}, len(spec.Sources))}
	for _, a := range spec.Sources {
		f.sources[a] = struct{}{}
	}
	for _, r := range spec.Ingress {
		f.ingress.Insert(r.Prefix, r.Allow)
	}
	return f
}
