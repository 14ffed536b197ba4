package zone

// How a Table is made, and what it takes over from the one before.

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// New makes the table for the zones. It takes over connections from prev, which may be nil, and ends the ones that are
// not used any more; prev still answers queries that it has begun. If nothing has changed the result is prev itself.
// New calls status once for each link.
//
// The zones must not be modified afterwards. New must not be called concurrently with the same prev.
func New(prev *Table, zones []mesh.Zone, status func(link string) Status, opts Options) *Table {
	t := newTable(zones, opts)
	t.status = collectStatuses(zones, opts.Networks, status)
	t.wasUsable = make(map[string]bool, len(t.status))
	for link, s := range t.status {
		t.wasUsable[link] = s.Usable || prev != nil && prev.wasUsable[link]
	}
	if prev != nil {
		if sameInputs(prev, t) && !upstreamsOutdated(prev) {
			return prev
		}
		t.opts.Serial = max(opts.Serial, prev.opts.Serial+1)
	}

	b := builder{table: t, prev: prev}
	b.addPaths()
	for i := range zones {
		b.addZone(&zones[i])
	}
	b.nestDomains()
	b.loseLinks()
	b.stopUnused()
	t.countAnswers(prev)
	return t
}

// newTable makes a table that knows no name yet.
func newTable(zones []mesh.Zone, opts Options) *Table {
	names, clusters := 0, 0
	for i := range zones {
		names += 5 + 2*len(zones[i].Clusters) // D, dns.D, ns.dns.D, global.D and svc.global.D, and _state
		clusters += len(zones[i].Clusters)
	}
	t := &Table{
		nodes:      make(map[string]*node, names),
		upstreams:  make(map[netip.AddrPort]*upstream, clusters),
		enclosing:  map[netip.Prefix]enclosingZone{},
		zones:      zones,
		opts:       opts,
		persistent: opts.Replies != nil && opts.Replies.Persistent.Load(),
	}
	t.owners = sync.OnceValue(t.subtreeOwners)
	return t
}

// collectStatuses is the status of each link that zones or networks name.
func collectStatuses(zones []mesh.Zone, networks []Network, status func(link string) Status) map[string]Status {
	result := make(map[string]Status, len(networks)) // each link has one or more
	addLink := func(link string) {
		if _, known := result[link]; !known && link != "" {
			result[link] = status(link)
		}
	}
	for i := range zones {
		for j := range zones[i].Clusters {
			addLink(zones[i].Clusters[j].Link)
		}
		addLink(zones[i].Global.Link)
	}
	for _, n := range networks {
		addLink(n.Link)
	}
	return result
}

// sameInputs tells whether both tables are made from the same things, apart from the serial.
func sameInputs(t, u *Table) bool {
	return slices.EqualFunc(t.zones, u.zones, sameZone) && sameOptions(&t.opts, &u.opts) && t.persistent == u.persistent &&
		maps.EqualFunc(t.status, u.status, Status.sameForNames)
}

func sameZone(a, b mesh.Zone) bool {
	return a.Domain == b.Domain && a.Global == b.Global && slices.Equal(a.Networks, b.Networks) &&
		slices.EqualFunc(a.Clusters, b.Clusters, mesh.ClusterZone.Equal)
}

func sameOptions(a, b *Options) bool {
	return slices.Equal(a.NSAddresses, b.NSAddresses) && slices.Equal(a.Networks, b.Networks) &&
		slices.Equal(a.Links, b.Links) && slices.Equal(a.Services, b.Services) && slices.Equal(a.Hosts, b.Hosts) &&
		maps.Equal(a.Backends, b.Backends) && maps.Equal(a.Globals, b.Globals) &&
		a.Replies == b.Replies && a.ServeStale == b.ServeStale && a.NoStateNames == b.NoStateNames
}

// upstreamsOutdated tells whether the table holds an upstream of a cluster with a backend that has names now, or has
// none while the backend loads.
func upstreamsOutdated(t *Table) bool {
	for _, n := range t.nodes {
		if c := n.cluster; c != nil && c.backend != nil && c.service.IsValid() && c.backend.Loading() != (c.upstream != nil) {
			return true
		}
	}
	return false
}

// builder makes a table. prev is the one before, or nil.
type builder struct {
	table, prev *Table
	carriers    map[string]string // the peer that carries a link; none where another system carries the traffic
}

// addZone adds all names of a mesh domain.
func (b *builder) addZone(z *mesh.Zone) {
	t := b.table
	d := &meshDomain{name: dns.CanonicalName(z.Domain), serial: t.opts.Serial, nsAddresses: t.opts.NSAddresses}
	t.nodes[d.name] = &node{domain: d, isApex: true}
	for i := range z.Clusters {
		b.addCluster(d, &z.Clusters[i])
	}
	for _, n := range z.Networks {
		b.addReverse(d, n, &reverseNet{})
	}
	switch {
	case z.Global.Upstream.IsValid():
		b.addForwardedGlobal(d, &z.Global)
	case z.Global.Name != "":
		b.addServedGlobal(d, z.Global.Name)
	}
	// It comes last because a cluster may be called dns: the NS record must lead to the local DNS service.
	b.addNode("ns.dns."+d.name, &node{domain: d, isNameServer: true})
}

// addNode adds a name and the empty non-terminals between it and its domain (RFC 8020: they exist).
func (b *builder) addNode(name string, n *node) {
	b.table.nodes[name] = n
	b.addAncestors(n.domain, name)
}

func (b *builder) addAncestors(d *meshDomain, name string) {
	for {
		i, end := dns.NextLabel(name, 0)
		if end {
			return
		}
		name = name[i:]
		if _, known := b.table.nodes[name]; known {
			return
		}
		b.table.nodes[name] = &node{domain: d}
	}
}

func (b *builder) addReverse(d *meshDomain, prefix netip.Prefix, r *reverseNet) {
	b.table.reverse.Insert(prefix, &node{domain: d, reverse: r})
	b.addEnclosing(d, prefix)
}

// addCluster adds the sub-domain of a cluster, the name of its state, and its networks.
func (b *builder) addCluster(d *meshDomain, z *mesh.ClusterZone) {
	opts := &b.table.opts
	c := &cluster{
		name: dns.CanonicalName(z.Name), clusterDomain: dns.CanonicalName(z.ClusterDomain), table: b.table,
		clusterLink: clusterLink{link: z.Link}, soa: []dns.RR{d.subdomainSOA(dns.CanonicalName(z.Name))},
		addresses: z.Addresses, networks: z.Services, service: z.Upstream,
		replies: opts.Replies, maxFresh: maxTTL, maxStale: opts.ServeStale,
		usesAPI: z.API.Use, backend: opts.Backends[z.Name],
	}
	b.attachLink(c)
	if c.service.IsValid() && (c.backend == nil || c.backend.Loading()) {
		c.upstream = b.pickUpstream(c)
	}
	b.addNode(c.name, &node{domain: d, cluster: c})
	if !opts.NoStateNames {
		b.table.nodes[stateLabel+c.name] = &node{domain: d, stateOf: c}
	}
	for _, n := range c.networks {
		b.addReverse(d, n, &reverseNet{cluster: c})
	}
	for _, own := range c.addresses {
		b.addReverse(d, netip.PrefixFrom(own, own.BitLen()), &reverseNet{cluster: c, ownAddress: true})
	}
	b.addOffers(d, c, z)
}

// addForwardedGlobal adds a global zone that another cluster serves. Kubelink asks for its names as for names of a
// cluster, but there is nothing to rewrite. It takes no reply for fresh, because answers follow the links of the
// cluster that serves the zone, and that cluster does not tell of its links.
func (b *builder) addForwardedGlobal(d *meshDomain, z *mesh.GlobalZone) {
	name := dns.CanonicalName(z.Name)
	c := &cluster{
		name: name, clusterDomain: name, isGlobal: true, soa: []dns.RR{d.subdomainSOA(name)}, table: b.table,
		clusterLink: clusterLink{link: z.Link}, service: z.Upstream,
		replies: b.table.opts.Replies, maxFresh: 0, maxStale: b.table.opts.ServeStale,
	}
	b.attachLink(c)
	c.upstream = b.pickUpstream(c)
	b.addNode(name, &node{domain: d, cluster: c})
}

// addServedGlobal adds a global zone that this cluster serves.
func (b *builder) addServedGlobal(d *meshDomain, name string) {
	name = dns.CanonicalName(name)
	g := b.table.opts.Globals[name]
	if g == nil {
		g = NoGlobal(name, "the names of "+name+" are not known yet")
	}
	b.addNode(name, &node{domain: d, global: g})
}

// attachLink gives a cluster the status of its link.
func (b *builder) attachLink(c *cluster) {
	if c.link == "" {
		c.status = Status{Usable: true}
		return
	}
	c.peer, c.carried = b.carriers[c.link]
	c.peer = cmp.Or(c.peer, c.link)
	c.status = b.table.status[c.link]
	c.wasUsable = b.table.wasUsable[c.link] && (!c.usesAPI || c.backend != nil && !c.backend.Loading())
}

// pickUpstream finds the upstream of a cluster: the one of another cluster with the same address, the previous one, or
// a new one. A link that has just come back gets a new one, because the previous one knows failures and connections
// that died with the link.
func (b *builder) pickUpstream(c *cluster) *upstream {
	t := b.table
	u := t.upstreams[c.service]
	if u == nil && b.prev != nil && !b.linkCameBack(c) {
		u = b.prev.upstreams[c.service]
	}
	if u == nil || u.isLost() && c.status.Usable {
		u = newUpstream(c.service, c.clusterDomain)
	}
	t.upstreams[c.service] = u
	return u
}

func (b *builder) linkCameBack(c *cluster) bool {
	before := b.prev.nodes[c.name]
	return before != nil && before.cluster != nil && c.status.Usable && !before.cluster.status.Usable
}

// loseLinks makes what waits for a DNS service fail where no usable link leads to it any more.
func (b *builder) loseLinks() {
	unusable := map[*upstream]*cluster{}
	for _, n := range b.table.nodes {
		if c := n.cluster; c != nil && c.upstream != nil && !c.status.Usable {
			unusable[c.upstream] = c
		}
	}
	for _, n := range b.table.nodes {
		if c := n.cluster; c != nil && c.status.Usable {
			delete(unusable, c.upstream)
		}
	}
	for u, c := range unusable {
		path := Path{Link: c.link, Status: c.status}
		u.loseLink(errors.New(path.describeProblem()))
	}
}

// nestDomains connects a mesh domain that lies in another one with the nearest domain above.
func (b *builder) nestDomains() {
	zones := b.table.zones
	for i := range zones {
		name := dns.CanonicalName(zones[i].Domain)
		var above *meshDomain
		for j := range zones {
			d := b.table.nodes[dns.CanonicalName(zones[j].Domain)].domain
			if zones[i].Domain != zones[j].Domain && inDomain(name, d.name) &&
				(above == nil || len(d.name) > len(above.name)) {
				above = d
			}
		}
		if above != nil {
			b.addAncestors(above, name)
		}
	}
}

// stopUnused ends the upstreams of the previous table that this one has not taken over.
func (b *builder) stopUnused() {
	if b.prev == nil {
		return
	}
	for addr, u := range b.prev.upstreams {
		if b.table.upstreams[addr] != u {
			u.stopChecks()
		}
	}
}
