package bridge

// The tables that decide where packets go: immutable, behind atomic pointers. Bridge.Set replaces them as a whole.

import (
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
