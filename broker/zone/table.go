// Package zone is the DNS side of the mesh: an immutable Table made from the zones of a mesh.State and the states of
// the links. Queries read it without a lock; a change of any link makes a new Table.
//
// For each mesh domain D the table is authoritative: SOA and NS at D, NXDOMAIN for unknown names. For <cluster>.D and
// the names below, kubelink asks that cluster's DNS service. It rewrites names into the cluster's own domain and back,
// and believes the service about its own names only. While the link to the cluster is not usable, the answer comes at
// once: SERVFAIL with an Extended DNS Error (RFC 8914) that says why.
//
// A query goes from Table.Match to Match.Answer (answer.go), and from there to the DNS service of a cluster
// (upstream.go, rewrite.go), to its API (Backend), or to a global zone (global.go).
package zone

// The table: what names there are, and where each of them leads.

import (
	"net/netip"
	"time"

	"github.com/gaissmai/bart"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Options are the facts of the local cluster that zones show.
type Options struct {
	// Serial is that of the SOA records if anything has changed; it is at least one more than before.
	Serial uint32
	// NSAddresses are the addresses of the local DNS service, which ns.dns.D resolves to; none: no glue.
	NSAddresses []netip.Addr

	// Networks lead to links: an address in one of them is usable while its link is.
	Networks []Network
	// Links say which peer carries which link. None of them has a peer where another system carries the traffic: which
	// networks that routes is not known.
	Links []mesh.Link
	// Services are the service networks and addresses of the local cluster in its meshes, Hosts its networks of pods and
	// nodes, which other clusters may have as well.
	Services, Hosts []netip.Prefix

	// Backends are the sources of names for clusters that answer from their API, by the name of the cluster's zone.
	Backends map[string]Backend
	// Globals are the global zones that this cluster serves, by their name.
	Globals map[string]*Global

	// Replies is what clusters have answered, shared by all tables; nil: nothing is cached.
	Replies *ReplyCache
	// ServeStale is for how long replies are given after their TTL when there is no other; 0: not at all. Replies that
	// were loaded into Replies are given in any case until the link was usable once, or until the local service has
	// answered.
	ServeStale time.Duration
	// NoStateNames: there are no names _state.<cluster>.D.
	NoStateNames bool
}

// Table answers for all mesh domains. It is immutable; only the connections to the DNS services of the clusters have
// state of their own, and they live on in the next Table.
type Table struct {
	nodes     map[string]*node // by name: fully qualified, in lower case
	upstreams map[netip.AddrPort]*upstream

	reverse    bart.Table[*node]
	enclosing  map[netip.Prefix]enclosingZone // of networks that are no reverse zone themselves
	paths      bart.Table[*Path]
	routes     uint64                     // hash of what paths were made from, apart from the states of links
	wasUsable  map[string]bool            // links that were usable since the process began
	persistent bool                       // replies survive the process
	answers    map[string]*answerCounts   // by zone, as HasZone knows them
	owners     func() map[string]*cluster // subtreeOwners, made by the first call

	// What the table was made from, to see whether the next one would be the same.
	zones  []mesh.Zone
	status map[string]Status // by link
	opts   Options
}

// node is a name that the table knows.
type node struct {
	domain       *meshDomain
	cluster      *cluster      // the name and all names below belong to this cluster
	services     *serviceNames // with cluster: the names below are of its mesh services
	stateOf      *cluster      // the name shows the state of the link to this cluster
	reverse      *reverseNet   // the name is that of an address
	global       *Global       // the name and all names below are global names
	isNameServer bool          // the name server's own name, ns.dns.D
	isApex       bool          // D itself
}

// HasZone tells whether the name is one that Match.Zone gives.
func (t *Table) HasZone(name string) bool {
	n := t.nodes[name]
	return n != nil && (n.isApex || n.cluster != nil || n.global != nil)
}

// nodeOf is what the name belongs to; nil: nothing that the table knows.
func (t *Table) nodeOf(name string) *node {
	n, _ := t.findNode(name)
	if n == nil {
		if m, ok := t.matchReverse(name); ok {
			return m.node
		}
	}
	return n
}

// hasForeignBelow tells whether the owner name or names below it are in a mesh domain, but not the cluster's.
func (t *Table) hasForeignBelow(owner string, c *cluster) bool {
	of, known := t.owners()[dns.CanonicalName(owner)]
	return known && of != c
}

// subtreeOwners are, for each name that the table knows and for the names above, the cluster that this name and all
// names below belong to; nil: the mesh domain, or several clusters.
func (t *Table) subtreeOwners() map[string]*cluster {
	owners := make(map[string]*cluster, 2*len(t.nodes))
	for name, n := range t.nodes {
		for off, end := 0, false; ; off, end = dns.NextLabel(name, off) {
			at := name[off:]
			if end {
				at = "."
			}
			if of, known := owners[at]; known && of != n.cluster {
				owners[at] = nil
			} else {
				owners[at] = n.cluster
			}
			if end {
				break
			}
		}
	}
	return owners
}

// Transfer is all records of a global zone that this cluster serves, or of a zone within: see Global.Transfer. The name
// is fully qualified and in lower case.
func (t *Table) Transfer(zone string, serial uint32) (rrs []dns.RR, ok bool) {
	if n, _ := t.findNode(zone); n != nil && n.global != nil {
		return n.global.Transfer(zone, serial)
	}
	return nil, false
}

// Serials are the serials of the zones that can be transferred, by name.
func (t *Table) Serials() map[string]uint32 {
	serials := map[string]uint32{}
	for _, n := range t.nodes {
		if n.global == nil {
			continue
		}
		for _, o := range n.global.sorted {
			if o.apex {
				serials[o.name] = o.zone.soa[0].(*dns.SOA).Serial
			}
		}
	}
	return serials
}

// Close ends what the table does in the background. Queries that it has begun are still answered.
func (t *Table) Close() {
	if t == nil {
		return
	}
	for _, u := range t.upstreams {
		u.stopChecks()
	}
}
