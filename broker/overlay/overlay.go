// Package overlay carries packets between the nodes of a cluster and the gateway of its links in VXLAN (RFC 7348), for
// networks that drop addresses other than those of nodes or pods: source/destination checks of clouds, port security,
// pod networks that let nothing foreign into a pod.
//
// There is one device per role, so that a broker and a router in one network namespace never touch the same one: nodes
// send to the UDP port of the gateway, the gateway sends to the next port of the nodes. Inside, nodes have their own
// addresses: what a node sends has its address as source, so that the overlay needs no addresses of its own. The
// gateway leads what comes from the meshes for the address of a node back into the overlay, by a routing table of its
// own. The routes of nodes to the gateway are not set here: they lead to Device, via the gateway's address.
//
// Nothing is learned from packets: peers, their addresses and their MAC addresses are set here. VXLAN knows no keys. So
// the filters, which come before the device, take VXLAN packets only from addresses of peers that come in the way that
// leads to these peers, and no packet to these ports from a pod or a link leaves this node for another one. What
// remains: a network that lets one machine send with the address of another. See filter.go.
//
// From a State to commands: plan.go says what is wanted, filter.go which chains; system.go compares with what the
// kernel has, and tells it. Set is told the whole, also adopts what a killed process left, and touches only what is
// ours: the device with our name and alias, rules and routes with Protocol, chains with our names.
package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/kernel"
)

// Defaults of a State. No other program is known to have this port; Calico has 4789, Flannel and Cilium have 8472.
const (
	DefaultVNI  = 107
	DefaultPort = 8780
)

// Bounds of a State, which the CRD of LinkGateways has, too. The ports below belong to the system, for whose ports the
// filters are no means; and nodes have the next port.
const (
	MaxVNI  = 1<<24 - 1
	MinPort = 1024
	MaxPort = 65534
)

// Protocol marks our routes (rtm_protocol, rtnetlink(7)) and rules (FRA_PROTOCOL). It is 'v', not the one of the
// broker's routes: package kernel removes rules with that.
const Protocol = 'v'

// Role is what this end of the overlay is.
type Role int

// The two ends.
const (
	Node    Role = iota // it has one peer per gateway
	Gateway             // it has one peer per node
)

// Device is the name of the VXLAN device.
func (r Role) Device() string {
	if r == Gateway {
		return kernel.OverlayDevice
	}
	return "klvxlan"
}

// routeProtocol is the mark of the routes through the device: those of a node are the router's.
func (r Role) routeProtocol() netlink.RouteProtocol {
	if r == Gateway {
		return Protocol
	}
	return kernel.RouterProtocol
}

// State is what a caller wants. Without Peers there is no overlay.
type State struct {
	VNI          int            // VXLAN network identifier, 1 to MaxVNI
	Port         int            // UDP port of gateways, MinPort to MaxPort; nodes have the next one
	Addresses    []netip.Addr   // of this node, or of the gateway's pod; at most one per family
	Peers        []Peer         // one with an address of this end is left out
	NodeNetworks []netip.Prefix // no pod and no link may send VXLAN packets there
	TUN          string         // gateway only: device of the meshes
	Local        []netip.Addr   // gateway only: its addresses in the meshes
}

// Peer is the other end. VXLAN packets go to its IPv4 address, or to the IPv6 address if this end has no IPv4.
type Peer struct {
	Name      string       // for messages
	Addresses []netip.Addr // at most one per family
	// Sources are further addresses that its VXLAN packets can come from: pod networks masquerade what a pod sends to a
	// node.
	Sources []netip.Addr
}

// PeerError says why a peer is not served. Other peers are.
type PeerError struct {
	Peer string // its name
	Err  error
}

func (e *PeerError) Error() string { return "overlay to " + e.Peer + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *PeerError) Unwrap() error { return e.Err }

// SplitError divides an error of Set: unserved is about single peers, failed about all of them.
func SplitError(err error) (failed, unserved error) {
	switch x := err.(type) {
	case interface{ Unwrap() []error }:
		for _, one := range x.Unwrap() {
			f, u := SplitError(one)
			failed, unserved = errors.Join(failed, f), errors.Join(unserved, u)
		}
		return failed, unserved
	case *PeerError:
		return nil, err
	}
	return err, nil
}

// Counters are numbers since New.
type Counters struct {
	Dropped uint64 // VXLAN packets that came from no peer, or that a pod or a link has sent
}

// Overlay is one end. Its methods may be called concurrently.
type Overlay struct {
	role   Role
	system *system
	chains *kernel.Chains

	mu   sync.Mutex // held over a Set
	used bool       // Set may have made something

	mtu atomic.Int64 // of the device; 0: there is none
}

// New returns an end in the network namespace that the calling thread is in. Set and Clear must be called in the same
// one, for they run iptables(8). It needs CAP_NET_ADMIN.
func New(role Role) (*Overlay, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	chains, err := kernel.NewChains()
	if err != nil {
		return nil, err
	}
	return &Overlay{role: role, system: &system{handle}, chains: chains, used: true}, nil
}

// Clear removes all that is ours.
func (o *Overlay) Clear() error { return o.Set(State{}) }

// Counters asks the kernel, at most once in a second, and in the network namespace of New. It does not wait for a Set:
// while one runs, it tells what was known before.
func (o *Overlay) Counters() Counters { return Counters{o.chains.Refused()} }

// otherPeers returns the peers without this end. The only node of a cluster has none.
func (s *State) otherPeers() []Peer {
	own := func(a netip.Addr) bool { return slices.Contains(s.Addresses, a) }
	return slices.DeleteFunc(slices.Clone(s.Peers), func(p Peer) bool { return slices.ContainsFunc(p.Addresses, own) })
}

// MTU is that of the device in bytes; 0: there is none. It does not wait for a Set.
func (o *Overlay) MTU() int { return int(o.mtu.Load()) }

// Set makes the overlay what s says. Where all is right it writes nothing. A peer that cannot be served does not stop
// the others: errors are joined, and its own is a PeerError. A Set may take 12 s per family: another program can hold
// the xtables lock.
func (o *Overlay) Set(s State) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s.Peers = s.otherPeers(); len(s.Peers) == 0 {
		return o.remove()
	}
	if err := s.validate(); err != nil {
		return err
	}
	o.used = true
	p, errs := o.makePlan(s)
	if len(p.peers) > 0 {
		if err := o.system.checkPort(p); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := o.system.removeOutdated(p); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	// The device takes packets as soon as it is up: filters come first. Without them there is no new device.
	unfiltered := o.setFilters(p)
	errs = append(errs, unfiltered...)
	index, err := o.system.setDevice(p, len(unfiltered) == 0)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	o.mtu.Store(int64(p.mtu))
	for _, f := range p.families {
		if err := kernel.PrepareDevice(index, p.device, f); err != nil {
			errs = append(errs, fmt.Errorf("settings of %s: %w", p.device, err))
		}
	}
	errs = append(errs, o.system.setPeers(p, index)...)
	if o.role == Gateway {
		errs = append(errs, o.system.setRoutes(p, index)...)
		errs = append(errs, o.system.setRules(p.rules())...)
	}
	return errors.Join(errs...)
}

// setFilters sets the chains of the families in use, and removes those of the other ones.
func (o *Overlay) setFilters(p *plan) (errs []error) {
	for _, f := range families {
		_, err := o.chains.Set(f, p.chains(f), p.uses(f))
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// remove removes all that is ours, the filters last. It looks for what a killed process left, once.
func (o *Overlay) remove() error {
	if !o.used {
		return nil
	}
	errs := []error{o.system.removeDevice(o.role.Device())}
	if o.role == Gateway {
		errs = append(errs, o.system.setRules(nil)...)
	}
	if errs[0] == nil {
		none := &plan{role: o.role, device: o.role.Device(), state: State{Port: DefaultPort}}
		errs = append(errs, o.setFilters(none)...)
		o.mtu.Store(0)
	}
	err := errors.Join(errs...)
	o.used = err != nil
	return err
}
