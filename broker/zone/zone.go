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
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Status is the state of a link as far as names are concerned.
type Status struct {
	Usable bool
	State  string // as in the status of the KubeLink: Up, Down, ...
	Reason string // why it is not usable; one line
}

// Options are the facts of the local cluster that zones show.
type Options struct {
	Serial      uint32       // of the SOA records, if anything has changed; at least one more than before
	NSAddresses []netip.Addr // of the local DNS service: what ns.dns.D resolves to; none: no glue
}

// Table answers for all mesh domains. It is immutable; only the connections to the DNS services of
// the clusters have state of their own, and they live on in the next Table.
type Table struct {
	nodes     map[string]node // by name: fully qualified, in lower case
	upstreams map[netip.AddrPort]*upstream

	// What it was made from, to see whether the next one would be the same.
	zones  []mesh.Zone
	status map[string]Status // by link
	opts   Options
}

// node is a name that the table knows.
type node struct {
	zone    *apex
	cluster *cluster // what is here and below belongs to this cluster
	ns      bool     // the name server's own name
	top     bool     // D itself
}

// apex is a mesh domain.
type apex struct {
	domain string
	serial uint32
	ns     []netip.Addr
}

// cluster is the sub-domain of a cluster.
type cluster struct {
	name     string // <cluster>.D
	domain   string // what the cluster itself calls it
	link     string // empty: the local cluster
	addr     netip.AddrPort
	status   Status
	upstream *upstream // nil: its address is not known
}

// New makes the table for the zones. It takes over connections from prev, which may be nil, and
// ends those that are not used any more; prev still answers queries that it has begun. If nothing
// has changed the result is prev itself. status is asked once for each link.
//
// The zones must not be modified afterwards. New must not be called concurrently with the same prev.
func New(prev *Table, zones []mesh.Zone, status func(link string) Status, opts Options) *Table {
	names, clusters := 0, 0
	for _, z := range zones {
		names += 3 + len(z.Clusters) // D, dns.D and ns.dns.D
		clusters += len(z.Clusters)
	}
	t := &Table{
		nodes:     make(map[string]node, names),
		upstreams: make(map[netip.AddrPort]*upstream, clusters),
		zones:     zones,
		status:    make(map[string]Status, clusters),
		opts:      opts,
	}
	for _, z := range zones {
		for _, c := range z.Clusters {
			if _, known := t.status[c.Link]; !known && c.Link != "" {
				t.status[c.Link] = status(c.Link)
			}
		}
	}
	if prev != nil {
		if prev.same(t) {
			return prev
		}
		t.opts.Serial = max(opts.Serial, prev.opts.Serial+1)
	}

	for _, z := range zones {
		a := &apex{domain: canonical(z.Domain), serial: t.opts.Serial, ns: opts.NSAddresses}
		t.nodes[a.domain] = node{zone: a, top: true}
		for _, c := range z.Clusters {
			cl := &cluster{
				name: canonical(c.Name), domain: canonical(c.ClusterDomain), link: c.Link, addr: c.Upstream,
				status: Status{Usable: true},
			}
			if c.Link != "" {
				cl.status = t.status[c.Link]
			}
			if c.Upstream.IsValid() {
				cl.upstream = t.connect(prev, cl)
			}
			t.nodes[cl.name] = node{zone: a, cluster: cl}
			t.fill(a, cl.name)
		}
		// Also where a cluster is called dns: the NS record must lead to us.
		name := "ns.dns." + a.domain
		t.nodes[name] = node{zone: a, ns: true}
		t.fill(a, name)
	}
	if prev != nil {
		for addr, u := range prev.upstreams {
			if t.upstreams[addr] != u {
				u.stop()
			}
		}
	}
	return t
}

// connect finds the upstream of a cluster: the one of another cluster with the same address, the
// previous one, or a new one. A link that has just come back gets a new one, because the previous
// one remembers failures, and connections that died with the link.
func (t *Table) connect(prev *Table, c *cluster) *upstream {
	if u := t.upstreams[c.addr]; u != nil {
		return u
	}
	var u *upstream
	if prev != nil {
		u = prev.upstreams[c.addr]
		if before := prev.nodes[c.name].cluster; before != nil && c.status.Usable && !before.status.Usable {
			u = nil
		}
	}
	if u == nil {
		u = newUpstream(c.addr, c.domain)
	}
	t.upstreams[c.addr] = u
	return u
}

// fill adds the empty non-terminals between a name and its domain (RFC 8020: they exist).
func (t *Table) fill(a *apex, name string) {
	for {
		i, end := dns.NextLabel(name, 0)
		if end {
			return
		}
		name = name[i:]
		if _, known := t.nodes[name]; known {
			return
		}
		t.nodes[name] = node{zone: a}
	}
}

// same tells whether both tables were made from the same things, whatever serial was proposed.
func (t *Table) same(u *Table) bool {
	if !slices.EqualFunc(t.zones, u.zones, func(a, b mesh.Zone) bool {
		return a.Domain == b.Domain && slices.Equal(a.Clusters, b.Clusters)
	}) || !slices.Equal(t.opts.NSAddresses, u.opts.NSAddresses) {
		return false
	}
	for link, s := range u.status { // the zones are the same, and so the links
		if t.status[link] != s {
			return false
		}
	}
	return true
}

// Close ends what the table does in the background. Queries that it has begun are still answered.
func (t *Table) Close() {
	if t == nil {
		return
	}
	for _, u := range t.upstreams {
		u.stop()
	}
}

// Match is what a table has for a name.
type Match struct {
	node
	table *Table
	exact bool // the node is the name itself, not an ancestor
}

// Match finds the mesh domain or cluster that the name belongs to. The name is fully qualified and
// in lower case.
func (t *Table) Match(name string) (Match, bool) {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		// What has no meaning for names below it is passed over on the way to the domain.
		if n, ok := t.nodes[name[off:]]; ok && (off == 0 || n.cluster != nil || n.top) {
			return Match{node: n, table: t, exact: off == 0}, true
		}
	}
	return Match{}, false
}

// covers tells whether there are names below the owner that are ours and not the cluster's.
func (t *Table) covers(owner string, c *cluster) bool {
	for name, n := range t.nodes {
		if n.cluster != c && in(name, owner) {
			return true
		}
	}
	return false
}

// Zone is the sub-domain of the cluster, or else the mesh domain, that the name belongs to.
func (m Match) Zone() string {
	if m.cluster != nil {
		return m.cluster.name
	}
	return m.zone.domain
}

// Link is the KubeLink that the name is reached through, empty if it is answered locally.
func (m Match) Link() string {
	if m.cluster != nil {
		return m.cluster.link
	}
	return ""
}

// Upstream is the DNS service that is asked for the name; not valid if none is.
func (m Match) Upstream() netip.AddrPort {
	if m.cluster != nil {
		return m.cluster.addr
	}
	return netip.AddrPort{}
}

func canonical(name string) string { return dns.CanonicalName(name) }
