package wireguard

// The endpoint of a peer: when the device is told which address.

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// endpoint follows the address of one peer. It belongs to the worker.
type endpoint struct {
	host string // DNS name or IP; empty: the peer connects
	port uint16

	addresses []netip.Addr // of host, in the order of preference; empty: not known yet
	failure   error        // of the look-up of host, while its addresses are not known
	tunnel    error        // why choose has found none to tell: each lies behind a link; nil: they do not

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
	e.tunnel = nil
	if len(e.addresses) == 0 {
		return netip.AddrPort{}
	}
	known := func(a netip.AddrPort) bool { return a.Port() == e.port && slices.Contains(e.addresses, a.Addr()) }
	held := e.told.IsValid() && known(e.told) && c.current.IsValid()
	// A peer that has moved, and is silent: only its next packet tells where it is.
	stays := c.up || c.fresh && !known(c.current)
	switch {
	case !e.told.IsValid() && c.current.IsValid() && (c.fresh || known(c.current)):
		// An earlier process has told it, or the peer has come by itself.
		e.adopt(c, known(c.current))
	case held && c.current == e.left && e.isTried(c):
		return e.told // a packet that was on its way has led the device back
	case held && (e.isTried(c) || stays):
	case e.told.IsValid() && !known(e.told) && known(c.current): // its name has followed it
		e.adopt(c, true)
	default:
		return e.tryNext(c, known(e.told))
	}
	return netip.AddrPort{}
}

// adopt takes over what the device has.
func (e *endpoint) adopt(c circumstances, known bool) {
	if e.since = c.now; known {
		e.told = c.current
	} else {
		e.told = e.pick(c, 0)
	}
}

// tryNext chooses the address after the one that was told last, if it is known, or else the first one. It returns the
// zero AddrPort if the device has it.
func (e *endpoint) tryNext(c circumstances, known bool) netip.AddrPort {
	next := 0
	if known {
		next = slices.Index(e.addresses, e.told.Addr()) + 1
	}
	to := e.pick(c, next)
	if !to.IsValid() {
		return to
	}
	e.told, e.since, e.left = to, c.now, netip.AddrPort{}
	if e.told == c.current {
		return netip.AddrPort{}
	}
	e.left = c.current
	return e.told
}

// isTried tells whether the address that was told last still has time to show that it works.
func (e *endpoint) isTried(c circumstances) bool { return c.now.Sub(e.since) < c.retry }

// pick returns the first address, from that number on, that packets get to; if there is none, the first one without a
// route, which may come. It never returns one behind a link: what the device sends there it would encrypt again and
// again. The zero AddrPort: all of them are.
func (e *endpoint) pick(c circumstances, from int) (unrouted netip.AddrPort) {
	var tunnel error
	for i := range e.addresses {
		a := netip.AddrPortFrom(e.addresses[(from+i)%len(e.addresses)], e.port)
		switch err := c.blocked(a.Addr()); {
		case err == nil:
			return a
		case errors.Is(err, link.ErrTunnel):
			tunnel = cmp.Or(tunnel, err)
		case !unrouted.IsValid():
			unrouted = a
		}
	}
	if !unrouted.IsValid() {
		e.tunnel = tunnel
	}
	return unrouted
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
