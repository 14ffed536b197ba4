package link

// What carries links must not run through a link. Where a name leads is known when it is looked up, and what the kernel
// makes of the address only the kernel knows.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// Carrier says what a dataplane carries.
type Carrier interface {
	// IsLocal tells whether a cluster address is one of this end.
	IsLocal(netip.Addr) bool
	// FindNetwork returns the network in which an address lies, and the link that has it; no link: it is that of a mesh.
	FindNetwork(netip.Addr) (netip.Prefix, string)
}

// ErrTunnel is in the error of CheckCarrier if there is a route, which is that of a link.
var ErrTunnel = errors.New("the connection would run through a tunnel")

// CheckCarrier refuses the address of an endpoint that packets do not get to: the kernel has no route, or takes that of
// a link.
func CheckCarrier(to netip.Addr, carried Carrier) error {
	to = to.Unmap()
	const discard = 9 // any port does: this sends nothing, the kernel looks for a route and its source address
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, discard)))
	if err != nil {
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			err = errno
		}
		return fmt.Errorf("no route to %s: %w", to, err)
	}
	source := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	conn.Close()
	if !carried.IsLocal(source) {
		return nil
	}
	title := "a mesh network"
	if network, link := carried.FindNetwork(to); link != "" {
		title = fmt.Sprintf("the network %s of link %s", network, link)
	} else if network.IsValid() {
		title = "the mesh network " + network.String()
	}
	return fmt.Errorf("%s lies in %s, so that %w: "+
		"give the endpoint another address, or remove that network", to, title, ErrTunnel)
}
