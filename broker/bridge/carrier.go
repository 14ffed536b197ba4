package bridge

// The connections that carry links must not run through a link. Where a name leads is known when it is looked up, and
// what the kernel makes of the address only the kernel knows.

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// checkCarrier refuses an address and port to which the kernel takes a route of a link.
func (t *routingTable) checkCarrier(address string) error {
	conn, err := net.Dial("udp", address) // this sends nothing: the kernel looks for a route and its source address
	if err != nil {
		return nil // what is wrong, the connection tells
	}
	source := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	conn.Close()
	if !slices.ContainsFunc(t.peers, func(p *peer) bool { return slices.Contains(p.Local.Addrs(), source) }) {
		return nil
	}
	to := netip.MustParseAddrPort(address).Addr().Unmap()
	title := "a mesh network"
	if network, p, ok := t.routes.LookupPrefixLPM(netip.PrefixFrom(to, to.BitLen())); ok && p != nil {
		title = fmt.Sprintf("the network %s of link %s", network, p.Link)
	} else if ok {
		title = "the mesh network " + network.String()
	}
	return fmt.Errorf("%s lies in %s, so that the connection would run through a tunnel: "+
		"give the endpoint another address, or remove that network", to, title)
}
