package nodecheck

// Do the connections of links lead through links? The carrier must not run by what it carries.

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

const (
	// lookupTime bounds all look-ups of one check.
	lookupTime = time.Second
	// lookupInterval is between two look-ups of one name.
	lookupInterval = 30 * time.Second
	// maxLookups bounds the look-ups at the same time.
	maxLookups = 16
)

// endpoint is what is known of the endpoint of a link.
type endpoint struct {
	host    string
	address netip.Addr // not valid: not known
	at      time.Time  // of the last look-up
}

// checkEndpoints asks for the way to the address that a link is connected to, was connected to, or has as its endpoint.
func checkEndpoints(ctx context.Context, l *look, statuses []link.Status) {
	l.node.refreshEndpoints(ctx, l.target.State.Peers, statuses)
	for _, p := range l.target.State.Peers {
		e := l.endpoints[p.Link]
		if e == nil || !e.address.IsValid() {
			continue
		}
		r, err := l.routeOf(e.address, nil)
		if err != nil || r.LinkIndex != l.index {
			continue
		}
		match, err := l.routeOf(e.address, &netlink.RouteGetOptions{FIBMatch: true})
		if err != nil {
			match = r
		}
		l.addFinding(p.Link, EndpointInTunnel, fmt.Sprintf("the address %s of its endpoint %s leads into the tunnel, by %s",
			e.address, p.Host, l.routeText(&match)), endpointRemedy(l, e.address, &match))
	}
}

// endpointRemedy names the link that has the network.
func endpointRemedy(l *look, address netip.Addr, match *netlink.Route) string {
	for _, n := range l.networks {
		if n.prefix.Contains(address) {
			return fmt.Sprintf("take %s out of the networks of link %s (spec.egress, spec.cidr)", n.prefix, n.link)
		}
	}
	return fmt.Sprintf("remove the route (ip route del %s)", l.routeText(match))
}

// refreshEndpoints brings the addresses of endpoints up to date: the ones of connections come first, names that were
// never connected are looked up.
func (n *node) refreshEndpoints(ctx context.Context, peers []mesh.Peer, statuses []link.Status) {
	remotes := map[string]netip.Addr{}
	for _, s := range statuses {
		if remote, err := netip.ParseAddrPort(s.Remote); err == nil {
			remotes[s.Link] = remote.Addr().Unmap()
		}
	}
	fresh := make(map[string]*endpoint, len(peers))
	var lookups []*endpoint
	for _, p := range peers {
		e := n.endpoints[p.Link]
		if e == nil || e.host != p.Host {
			e = &endpoint{host: p.Host}
		}
		if a, err := netip.ParseAddr(p.Host); err == nil {
			e.address = a.Unmap()
		} else if a, ok := remotes[p.Link]; ok {
			e.address, e.at = a, time.Now()
		} else if p.Host != "" && time.Since(e.at) > lookupInterval {
			e.at = time.Now()
			lookups = append(lookups, e)
		}
		fresh[p.Link] = e
	}
	n.endpoints = fresh
	lookUpAll(ctx, lookups)
}

// lookUpAll looks names up at the same time. An address that cannot be found stays.
func lookUpAll(ctx context.Context, endpoints []*endpoint) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	slots := make(chan struct{}, maxLookups)
	var wg sync.WaitGroup
	for _, e := range endpoints {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", e.host); err == nil && len(found) > 0 {
				e.address = found[0].Unmap()
			}
		})
	}
	wg.Wait()
}
