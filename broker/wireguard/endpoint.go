package wireguard

// The endpoint of a peer: when the device is told which address.

import (
	"net/netip"
	"slices"
	"time"
)

// endpoint follows the address of one peer. It belongs to the worker.
type endpoint struct {
	host string // DNS name or IP; empty: the peer connects
	port uint16

	addresses []netip.Addr // of host, in the order of preference; empty: not known yet
	failure   error        // of the look-up of host, while its addresses are not known

	told  netip.AddrPort // what the device has, or had before the peer moved; zero: nothing yet
	since time.Time      // of told
	left  netip.AddrPort // what the device had then
}

// circumstances are what the choice of an address depends on.
type circumstances struct {
	current netip.AddrPort // what the device has: the peer may have moved there; zero: none
	fresh   bool           // there was a handshake lately
	up      bool           // packets of the peer arrive
	now     time.Time
	retry   time.Duration          // how long an address is tried
	blocked func(netip.Addr) error // why no packet gets to an address; nil: one may
}

// choose returns the address that the device has to be told; the zero AddrPort: it keeps what it has. A peer that moved
// stays where it is while there are handshakes, unless its name has left the address that it was told.
func (e *endpoint) choose(c circumstances) netip.AddrPort {
	if len(e.addresses) == 0 {
		return netip.AddrPort{}
	}
	known := func(a netip.AddrPort) bool { return a.Port() == e.port && slices.Contains(e.addresses, a.Addr()) }
	switch {
	case !e.told.IsValid() && c.current.IsValid() && (c.fresh || known(c.current)):
		// An earlier process has told it, or the peer has come by itself.
		e.told, e.since = e.pick(c, 0), c.now
		if known(c.current) {
			e.told = c.current
		}
	case e.told.IsValid() && known(e.told) && c.current.IsValid() && c.current == e.left && c.now.Sub(e.since) < c.retry:
		return e.told // a packet that was on its way has led the device back
	case e.told.IsValid() && known(e.told) && c.current.IsValid() && (c.up || c.now.Sub(e.since) < c.retry):
	case e.told.IsValid() && known(e.told) && c.fresh && !known(c.current) && c.current.IsValid():
		// It has moved, and is silent: only its next packet tells where it is.
	case e.told.IsValid() && !known(e.told) && known(c.current): // its name has followed it
		e.told, e.since = c.current, c.now
	default:
		next := 0
		if known(e.told) {
			next = slices.Index(e.addresses, e.told.Addr()) + 1
		}
		e.told, e.since, e.left = e.pick(c, next), c.now, netip.AddrPort{}
		if e.told != c.current {
			e.left = c.current
			return e.told
		}
	}
	return netip.AddrPort{}
}

// pick returns the first address, from that number on, that packets get to; if there is none, that address.
func (e *endpoint) pick(c circumstances, from int) netip.AddrPort {
	for i := range e.addresses {
		if a := e.addresses[(from+i)%len(e.addresses)]; c.blocked(a) == nil {
			return netip.AddrPortFrom(a, e.port)
		}
	}
	return netip.AddrPortFrom(e.addresses[from%len(e.addresses)], e.port)
}

// setHost changes the endpoint. The device is told the new one at once.
func (e *endpoint) setHost(host string, port uint16) (changed bool) {
	if e.host == host && e.port == port {
		return false
	}
	first := e.host == "" && !e.told.IsValid()
	*e = endpoint{host: host, port: port}
	if !first {
		e.told = netip.AddrPortFrom(netip.IPv4Unspecified(), 1) // no address of the host: it has moved
	}
	if a, err := netip.ParseAddr(host); err == nil {
		e.addresses = []netip.Addr{a.Unmap()}
	}
	return true
}

// setAddresses stores what a look-up has found. What was found stays when a look-up fails.
func (e *endpoint) setAddresses(found []netip.Addr, err error) {
	if err == nil && len(found) > 0 {
		e.addresses, e.failure = found, nil
	} else if len(e.addresses) == 0 {
		e.failure = err
	}
}
