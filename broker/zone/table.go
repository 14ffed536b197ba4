// Package zone is the DNS side of the mesh: an immutable Table built from the zones of a
// mesh.State and the states of the links. Queries read it without a lock; a change of any link makes
// a new Table.
//
// For each mesh domain D the table is authoritative: SOA and NS at D, NXDOMAIN for unknown names.
// The names <cluster>.D and below are asked of that cluster's DNS service, rewritten into the
// cluster's own domain and back, and that service is believed about names of its own only; while the link to the cluster is not usable they are answered at
// once with SERVFAIL and an Extended DNS Error (RFC 8914) that says why.
package zone

import (
	"context"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/request"
	"github.com/gaissmai/bart"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Status is the state of a link as far as names are concerned.
type Status struct {
	Usable bool
	State  string        // as in the status of the KubeLink: Up, Down, ...
	Reason string        // why it is not usable; one line
	Since  time.Time     // when State began; zero: not known
	RTT    time.Duration // round-trip time; 0: not known
}

// stateIdle is the state of a link that was not tried yet.
const stateIdle = "Idle"

// sameForNames tells whether names look the same with another status: a round-trip time is never twice the same.
func (s Status) sameForNames(o Status) bool {
	return s.Usable == o.Usable && s.State == o.State && s.Reason == o.Reason && s.Since.Equal(o.Since) && s.rttClass() == o.rttClass()
}

// rttClass is the order of magnitude of the round-trip time: half and double are one class away.
func (s Status) rttClass() int { return bits.Len64(uint64(s.RTT / time.Microsecond)) }

// Options are the facts of the local cluster that zones show.
type Options struct {
	Serial      uint32       // of the SOA records, if anything has changed; at least one more than before
	NSAddresses []netip.Addr // of the local DNS service: what ns.dns.D resolves to; none: no glue

	// Networks lead to links: an address in one of them can be used while its link can.
	Networks []Network

	// Backends are the sources of clusters whose names come from their API, by the name of the cluster's
	// zone.
	Backends map[string]Backend
	// Globals are the global zones that are served here, by their name.
	Globals map[string]*Global

	// Replies is what clusters have answered, shared by all tables; nil: nothing is remembered.
	Replies *ReplyCache
	// ServeStale is for how long remembered answers are given when there is no other; 0: they are not. What an
	// earlier process left in Answers is given in any case until the link was usable once, or the local service has answered.
	ServeStale time.Duration
	// NoStateNames: there are no names _state.<cluster>.D.
	NoStateNames bool
}

// Network is one that is routed to a link.
type Network struct {
	Prefix netip.Prefix
	Link   string
}

// Backend answers for a cluster from its API: a kubernetes plugin of CoreDNS. It lives longer than tables.
type Backend interface {
	// Answer makes the reply to a query for a name of the cluster's zone. The error is why there is none yet or
	// any more: one line for the Extended DNS Error, such as a permission that is missing.
	Answer(ctx context.Context, state *request.Request) (*dns.Msg, error)
	// Services are the names of what has the address, in the cluster's zone.
	Services(address netip.Addr) ([]string, error)
	// Loading tells that there are no names yet, and that the DNS service of the cluster is to be asked meanwhile.
	Loading() bool
}

// Table answers for all mesh domains. It is immutable; only the connections to the DNS services of
// the clusters have state of their own, and they live on in the next Table.
type Table struct {
	nodes     map[string]*node // by name: fully qualified, in lower case
	upstreams map[netip.AddrPort]*upstream

	reverse    bart.Table[*node]
	paths      bart.Table[*Path]
	wasUsable  map[string]bool            // links that were usable since the process began
	persistent bool                       // what is remembered survives the process
	owners     func() map[string]*cluster // owners, made when it is needed first

	// What it was made from, to see whether the next one would be the same.
	zones  []mesh.Zone
	status map[string]Status // by link
	opts   Options
}

// node is a name that the table knows.
type node struct {
	domain       *meshDomain
	cluster      *cluster    // what is here and below belongs to this cluster
	stateOf      *cluster    // the name shows the state of the link to this cluster
	reverse      *reverseNet // the name is that of an address
	global       *Global     // what is here and below is a global name
	isNameServer bool        // the name server's own name
	isApex       bool        // D itself
}

// reverseNet is a network whose addresses have names in a mesh.
type reverseNet struct {
	cluster    *cluster // whose service network it is, or whose address; nil: the network of the mesh
	ownAddress bool     // it is the cluster's address
}

// meshDomain is a mesh domain.
type meshDomain struct {
	name        string
	serial      uint32
	nsAddresses []netip.Addr
}

// cluster is the sub-domain of a cluster.
type cluster struct {
	name          string       // <cluster>.D
	clusterDomain string       // what the cluster itself calls it
	link          string       // empty: the local cluster
	address       netip.Addr   // its address in the mesh
	network       netip.Prefix // of its services
	service       netip.AddrPort
	status        Status
	upstream      *upstream // nil: its address is not known, or the backend has names
	usesAPI       bool      // names come from its API: from
	backend       Backend   // which is nil until it is there

	replies   *ReplyCache
	maxFresh  uint32        // for how long answers are true at most, in seconds
	maxStale  time.Duration // for how long answers are given that were true once
	wasUsable bool          // the link was usable since the process began, and so its DNS service or its API
}

// New makes the table for the zones. It takes over connections from prev, which may be nil, and
// ends those that are not used any more; prev still answers queries that it has begun. If nothing
// has changed the result is prev itself. status is asked once for each link.
//
// The zones must not be modified afterwards. New must not be called concurrently with the same prev.
func New(prev *Table, zones []mesh.Zone, status func(link string) Status, opts Options) *Table {
	names, clusters := 0, 0
	for _, z := range zones {
		names += 5 + 2*len(z.Clusters) // D, dns.D, ns.dns.D, global.D and svc.global.D, and _state
		clusters += len(z.Clusters)
	}
	t := &Table{
		nodes:      make(map[string]*node, names),
		upstreams:  make(map[netip.AddrPort]*upstream, clusters),
		zones:      zones,
		status:     make(map[string]Status, clusters),
		opts:       opts,
		persistent: opts.Replies != nil && opts.Replies.Persistent.Load(),
	}
	ask := func(link string) {
		if _, known := t.status[link]; !known && link != "" {
			t.status[link] = status(link)
		}
	}
	for _, z := range zones {
		for _, c := range z.Clusters {
			ask(c.Link)
		}
		ask(z.Global.Link)
	}
	for _, n := range opts.Networks {
		ask(n.Link)
	}
	t.wasUsable = make(map[string]bool, len(t.status))
	for link, s := range t.status {
		t.wasUsable[link] = s.Usable || prev != nil && prev.wasUsable[link]
	}
	if prev != nil {
		if prev.sameInputs(t) && !prev.upstreamsOutdated() {
			return prev
		}
		t.opts.Serial = max(opts.Serial, prev.opts.Serial+1)
	}

	t.owners = sync.OnceValue(t.subtreeOwners)
	for _, n := range opts.Networks {
		t.paths.Insert(n.Prefix, t.newPath(n.Link))
	}
	for _, z := range zones {
		a := &meshDomain{name: dns.CanonicalName(z.Domain), serial: t.opts.Serial, nsAddresses: opts.NSAddresses}
		t.nodes[a.name] = &node{domain: a, isApex: true}
		for _, c := range z.Clusters {
			cl := &cluster{
				name: dns.CanonicalName(c.Name), clusterDomain: dns.CanonicalName(c.ClusterDomain), link: c.Link, address: c.Address, network: c.Service, service: c.Upstream,
				status: Status{Usable: true}, replies: opts.Replies, maxFresh: maxTTL, maxStale: opts.ServeStale,
				usesAPI: c.API.Use, backend: opts.Backends[c.Name],
			}
			t.attachLink(cl)
			if c.Upstream.IsValid() && (cl.backend == nil || cl.backend.Loading()) {
				cl.upstream = t.pickUpstream(prev, cl)
			}
			t.nodes[cl.name] = &node{domain: a, cluster: cl}
			if !opts.NoStateNames {
				t.nodes[stateLabel+cl.name] = &node{domain: a, stateOf: cl}
			}
			t.addAncestors(a, cl.name)
			if c.Service.IsValid() {
				t.reverse.Insert(c.Service, &node{domain: a, reverse: &reverseNet{cluster: cl}})
			}
			if c.Address.IsValid() {
				t.reverse.Insert(netip.PrefixFrom(c.Address, c.Address.BitLen()), &node{domain: a, reverse: &reverseNet{cluster: cl, ownAddress: true}})
			}
		}
		if z.Network.IsValid() {
			t.reverse.Insert(z.Network, &node{domain: a, reverse: &reverseNet{}})
		}
		if g := z.Global; g.Upstream.IsValid() {
			// It is asked as clusters are, but there is nothing to rewrite; and the answers follow links of the cluster
			// that serves it, of which we do not hear.
			cl := &cluster{
				name: dns.CanonicalName(g.Name), clusterDomain: dns.CanonicalName(g.Name), link: g.Link, service: g.Upstream,
				status: Status{Usable: true}, replies: opts.Replies, maxFresh: 0, maxStale: opts.ServeStale,
			}
			t.attachLink(cl)
			cl.upstream = t.pickUpstream(prev, cl)
			t.nodes[cl.name] = &node{domain: a, cluster: cl}
			t.addAncestors(a, cl.name)
		}
		if gz := z.Global; gz.Name != "" && !gz.Upstream.IsValid() {
			name := dns.CanonicalName(gz.Name)
			g := opts.Globals[name]
			if g == nil {
				g = NoGlobal(name, "the names of "+name+" are not known yet")
			}
			t.nodes[name] = &node{domain: a, global: g}
			t.addAncestors(a, name)
		}
		// Also where a cluster is called dns: the NS record must lead to us.
		name := "ns.dns." + a.name
		t.nodes[name] = &node{domain: a, isNameServer: true}
		t.addAncestors(a, name)
	}
	for _, z := range zones { // one domain may lie in another
		var above *node // the nearest one
		for _, other := range zones {
			n := t.nodes[dns.CanonicalName(other.Domain)]
			if z.Domain != other.Domain && inDomain(dns.CanonicalName(z.Domain), n.domain.name) && (above == nil || len(n.domain.name) > len(above.domain.name)) {
				above = n
			}
		}
		if above != nil {
			t.addAncestors(above.domain, dns.CanonicalName(z.Domain))
		}
	}
	if prev != nil {
		for addr, u := range prev.upstreams {
			if t.upstreams[addr] != u {
				u.stopChecks()
			}
		}
	}
	return t
}

// attachLink gives a cluster the state of its link.
func (t *Table) attachLink(c *cluster) {
	if c.link != "" {
		c.status = t.status[c.link]
	}
	c.wasUsable = c.link != "" && t.wasUsable[c.link] && (!c.usesAPI || c.backend != nil && !c.backend.Loading())
}

// pickUpstream finds the upstream of a cluster: the one of another cluster with the same address, the
// previous one, or a new one. A link that has just come back gets a new one, because the previous
// one remembers failures, and connections that died with the link.
func (t *Table) pickUpstream(prev *Table, c *cluster) *upstream {
	if u := t.upstreams[c.service]; u != nil {
		return u
	}
	var u *upstream
	if prev != nil {
		u = prev.upstreams[c.service]
		if before := prev.nodes[c.name]; before != nil && before.cluster != nil && c.status.Usable && !before.cluster.status.Usable {
			u = nil
		}
	}
	if u == nil {
		u = newUpstream(c.service, c.clusterDomain)
	}
	t.upstreams[c.service] = u
	return u
}

// answersFromAPI tells whether names come from the backend.
func (c *cluster) answersFromAPI() bool {
	return c.backend != nil && (c.upstream == nil || !c.backend.Loading())
}

// addAncestors adds the empty non-terminals between a name and its domain (RFC 8020: they exist).
func (t *Table) addAncestors(a *meshDomain, name string) {
	for {
		i, end := dns.NextLabel(name, 0)
		if end {
			return
		}
		name = name[i:]
		if _, known := t.nodes[name]; known {
			return
		}
		t.nodes[name] = &node{domain: a}
	}
}

// sameInputs tells whether both tables were made from the same things, whatever serial was proposed.
func (t *Table) sameInputs(u *Table) bool {
	if !slices.EqualFunc(t.zones, u.zones, func(a, b mesh.Zone) bool {
		return a.Domain == b.Domain && a.Network == b.Network && a.Global == b.Global && slices.Equal(a.Clusters, b.Clusters)
	}) || !slices.Equal(t.opts.NSAddresses, u.opts.NSAddresses) || !slices.Equal(t.opts.Networks, u.opts.Networks) || !maps.Equal(t.opts.Backends, u.opts.Backends) ||
		!maps.Equal(t.opts.Globals, u.opts.Globals) || t.opts.Replies != u.opts.Replies || t.persistent != u.persistent ||
		t.opts.ServeStale != u.opts.ServeStale || t.opts.NoStateNames != u.opts.NoStateNames {
		return false
	}
	for link, s := range u.status { // the zones are the same, and so the links
		if !t.status[link].sameForNames(s) {
			return false
		}
	}
	return true
}

// upstreamsOutdated tells whether the DNS service of a cluster is still held whose backend has names now, or is not yet asked while
// the backend loads.
func (t *Table) upstreamsOutdated() bool {
	for _, n := range t.nodes {
		if c := n.cluster; c != nil && c.backend != nil && c.service.IsValid() && c.backend.Loading() != (c.upstream != nil) {
			return true
		}
	}
	return false
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

// newPath is the way that a link is. One that was not tried yet in this process counts as usable where what an earlier one
// knew is answered.
func (t *Table) newPath(link string) *Path {
	p := &Path{link, t.status[link]}
	if p.Status.State == stateIdle && !t.wasUsable[link] && t.persistent {
		p.Status.Usable = true
	}
	return p
}

// pathTo is the path to an address.
func (t *Table) pathTo(addr netip.Addr) *Path {
	if p, ok := t.paths.Lookup(addr); ok {
		return p
	}
	return &localPath
}

// Match is what a table has for a name.
type Match struct {
	*node
	table   *Table
	name    string
	address netip.Addr // that the name is for, in reverse zones
	exact   bool       // the node is the name itself, not an ancestor
}

// Match finds the mesh domain or cluster that the name belongs to. The name is fully qualified and
// in lower case.
func (t *Table) Match(name string) (*Match, bool) {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		// What has no meaning for names below it is passed over on the way to the domain.
		if n, ok := t.nodes[name[off:]]; ok && (off == 0 || n.cluster != nil || n.global != nil || n.isApex) {
			return &Match{node: n, table: t, name: name, exact: off == 0}, true
		}
	}
	if addr, err := netip.ParseAddr(dnsutil.ExtractAddressFromReverse(name)); err == nil {
		if r, ok := t.reverse.Lookup(addr); ok {
			return &Match{node: r, table: t, name: name, address: addr, exact: true}, true
		}
	}
	return nil, false
}

// Transfer is all records of a global zone that is served here, or of a zone within: see Global.Transfer. The
// name is fully qualified and in lower case.
func (t *Table) Transfer(zone string, serial uint32) (rrs []dns.RR, ok bool) {
	if m, ok := t.Match(zone); ok && m.global != nil {
		return m.global.Transfer(zone, serial)
	}
	return nil, false
}

// Serials are those of the zones that can be transferred, by name.
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

// hasForeignBelow tells whether there are names at the owner or below that are ours and not the cluster's.
func (t *Table) hasForeignBelow(owner string, c *cluster) bool {
	of, known := t.owners()[dns.CanonicalName(owner)]
	return known && of != c
}

// subtreeOwners are, for each name that the table knows and those above, whose the names there and below are; nil: ours, or
// those of several clusters.
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

// Zone is the sub-domain of the cluster, the global zone, or else the mesh domain, that the name belongs to.
func (m *Match) Zone() string {
	switch c := m.aboutCluster(); {
	case c != nil:
		return c.name
	case m.global != nil:
		return m.global.name
	}
	return m.domain.name
}

// aboutCluster is the cluster that the name is about; nil: none.
func (m *Match) aboutCluster() *cluster {
	switch {
	case m.cluster != nil:
		return m.cluster
	case m.stateOf != nil:
		return m.stateOf
	case m.reverse != nil:
		return m.reverse.cluster
	}
	return nil
}

// Link is the KubeLink that the name is reached through, empty if it is answered locally.
func (m *Match) Link() string {
	if c := m.aboutCluster(); c != nil {
		return c.link
	}
	return ""
}

// Upstream is the DNS service that is asked for the name; not valid if none is.
func (m *Match) Upstream() netip.AddrPort {
	if c := m.aboutCluster(); c != nil && c.upstream != nil && !c.answersFromAPI() {
		return c.service
	}
	return netip.AddrPort{}
}
