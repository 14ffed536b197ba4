package zone

// The path to an address: over which link it is reached, if it is reached at all.

import (
	"fmt"
	"hash/maphash"
	"math"
	"net/netip"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Network is a network that is routed to a link.
type Network struct {
	Prefix netip.Prefix
	Link   string
}

// Path is the way to an address.
type Path struct {
	Link    string // empty: no link leads to the address
	Status  Status // of the link
	Problem string // why nothing leads to the address in any state of links; empty: something may
}

// The ways to addresses that are not behind a link.
var (
	// localPath: the address is that of a service of this cluster, or the table knows no network with it.
	localPath Path
	// hostPath: the address is in a network of pods or nodes of this cluster. In other clusters it may be another host.
	hostPath Path
	// nowherePath: the address is in the network of a mesh, and no cluster has it.
	nowherePath = Path{Problem: "no cluster of the mesh has the address"}
)

func (p *Path) isUsable() bool { return p.Problem == "" && (p.Link == "" || p.Status.Usable) }

// describeProblem says why the path is not usable.
func (p *Path) describeProblem() string {
	if p.Problem != "" {
		return p.Problem
	}
	text := fmt.Sprintf("link %s is %s", p.Link, p.Status.State)
	if p.Status.Reason != "" {
		text += ": " + p.Status.Reason
	}
	return text
}

// sortDistance orders paths: local ones first, then by round-trip time, unknown times last.
func (p *Path) sortDistance() int64 {
	switch {
	case p.Link == "":
		return -1
	case !p.Status.Usable || p.Status.RTT <= 0:
		return math.MaxInt64
	}
	return int64(p.Status.RTT)
}

// addPaths adds all networks that something is known of: later ones replace equal ones.
func (b *builder) addPaths() {
	t := b.table
	b.carriers = make(map[string]string, len(t.opts.Links))
	for _, l := range t.opts.Links {
		if l.Peer != "" {
			b.carriers[l.Name] = l.Peer
		}
	}
	t.routes = hashRoutes(t)
	for i := range t.zones {
		b.addMeshPaths(&t.zones[i])
	}
	for _, n := range t.opts.Hosts {
		t.paths.Insert(n, &hostPath)
	}
	for _, n := range t.opts.Services {
		t.paths.Insert(n, &localPath)
	}
	paths := map[string]*Path{} // by link: one can have thousands of networks
	for _, n := range t.opts.Networks {
		p := paths[n.Link]
		if p == nil {
			p = b.newPath(n.Link)
			paths[n.Link] = p
		}
		t.paths.Insert(n.Prefix, p)
	}
}

// hashRoutes is the hash of what isReachable depends on.
func hashRoutes(t *Table) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, l := range t.opts.Links {
		maphash.WriteComparable(&h, l)
	}
	for _, n := range t.opts.Networks {
		maphash.WriteComparable(&h, n)
	}
	for _, networks := range [][]netip.Prefix{t.opts.Hosts, t.opts.Services} {
		maphash.WriteComparable(&h, len(networks))
		for _, n := range networks {
			maphash.WriteComparable(&h, n)
		}
	}
	return h.Sum64()
}

// addMeshPaths adds what is known by the clusters of a mesh alone: all there is to know where another system carries
// the traffic.
func (b *builder) addMeshPaths(z *mesh.Zone) {
	if len(b.carriers) > 0 {
		for _, n := range z.Networks {
			b.table.paths.Insert(n, &nowherePath)
		}
		return
	}
	for i := range z.Clusters {
		c := &z.Clusters[i]
		path := &localPath
		if c.Link != "" {
			path = b.newPath(c.Link)
		}
		for _, n := range c.Services {
			b.table.paths.Insert(n, path)
		}
		for _, a := range c.Addresses {
			b.table.paths.Insert(netip.PrefixFrom(a, a.BitLen()), path)
		}
	}
}

// newPath is the path over a link. A link that this process has not tried yet counts as usable where kubelink answers
// what an earlier process knew.
func (b *builder) newPath(link string) *Path {
	p := &Path{Link: link, Status: b.table.status[link]}
	if p.Status.State == stateIdle && !b.table.wasUsable[link] && b.table.persistent {
		p.Status.Usable = true
	}
	return p
}

// pathTo is the path to an address.
func (t *Table) pathTo(addr netip.Addr) *Path {
	if p, ok := t.paths.Lookup(addr.Unmap()); ok {
		return p
	}
	return &localPath
}

// isReachable tells whether an address that the cluster gives a name is one of that cluster, which this side reaches
// over the cluster's link. inside: the name is the cluster's own, and not one that an alias of it leads to.
func (c *cluster) isReachable(addr netip.Addr, inside bool) bool {
	addr = addr.Unmap()
	path, known := c.table.paths.Lookup(addr)
	switch {
	case c.link == "" && !c.isGlobal: // the local cluster
		return true
	case isHostLocal(addr):
		return false
	case c.isGlobal:
		return !known || path != &hostPath && path.isUsable()
	case known && path.Link != "":
		return path.Link == c.peer
	case known:
		return false
	case !inside:
		return isPublic(addr) || !c.carried
	}
	return !c.carried
}

// isHostLocal tells whether each host, or each link-layer network, has the address itself.
func isHostLocal(a netip.Addr) bool {
	return !a.IsValid() || a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast()
}

// sharedSpace is what private networks may use besides RFC 1918 (RFC 6598).
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

// isPublic tells whether the address is the same host for everyone.
func isPublic(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !sharedSpace.Contains(a)
}
