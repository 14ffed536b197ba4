package bridge

// The tables that decide where packets go: immutable, behind atomic pointers. Bridge.Set replaces them as a whole.

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/gaissmai/bart"
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

// IsLocal and FindNetwork are what link.CheckCarrier asks for.
func (t *routingTable) IsLocal(a netip.Addr) bool {
	return slices.ContainsFunc(t.peers, func(p *peer) bool { return slices.Contains(p.Local.Addrs(), a) })
}

func (t *routingTable) FindNetwork(a netip.Addr) (netip.Prefix, string) {
	network, p, found := t.routes.LookupPrefixLPM(netip.PrefixFrom(a, a.BitLen()))
	if !found || p == nil {
		return network, ""
	}
	return network, p.Link
}
