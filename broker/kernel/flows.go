package kernel

// What connection tracking remembers of packets to the meshes: it translates the packets of a flow as its first one,
// also when the gateway, which alone translates, has moved to or from this node. A flow that goes on sending would be
// lost for ever: no other gateway takes its source, and no peer.

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetFlows makes the kernel forget the flows to networks of routes of this node whose source is not translated as
// the routes want it. Their next packets are translated anew. It returns how many flows those were. It reads all flows
// of the node, which takes some 10 ms, so it is for changes of the gateway.
func ForgetFlows(routes []NodeRoute) (forgotten int, err error) {
	ways := newFlowWays(routes)
	var errs []error
	networks := map[netlink.InetFamily]int{unix.AF_INET: ways.own.Size4(), unix.AF_INET6: ways.own.Size6()}
	for family, n := range networks {
		if n == 0 {
			continue
		}
		n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, ways)
		forgotten += int(n)
		if err != nil {
			errs = append(errs, fmt.Errorf("forget flows of the former gateway (IPv%d): %w", IPVersion(int(family)), err))
		}
	}
	return forgotten, errors.Join(errs...)
}

// flowWays tells which flows are to be forgotten.
type flowWays struct {
	own bart.Table[bool] // of networks: this node leads their packets into the meshes
}

func newFlowWays(routes []NodeRoute) *flowWays {
	w := &flowWays{}
	for _, r := range routes {
		if r.Fallback || r.Gateway.IsValid() {
			w.own.Insert(r.Destination, r.Fallback)
		}
	}
	return w
}

// MatchConntrackFlow tells whether a flow is to be forgotten. The gateway gives packets an address of a mesh as their
// source, if they have none; other nodes must not.
//
// TCP is left alone: a connection cannot get another source, and one that lives would be reset.
func (w *flowWays) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol == unix.IPPROTO_TCP {
		return false
	}
	source, destination := flowAddress(flow.Forward.SrcIP), flowAddress(flow.Forward.DstIP)
	server, client := flowAddress(flow.Reverse.SrcIP), flowAddress(flow.Reverse.DstIP) // as those see it that answer
	own, ok := w.own.Lookup(destination)
	if !ok || server != destination { // a service of this cluster, whatever its address
		return false
	}
	_, translated := w.own.Lookup(client)
	if own {
		return !translated
	}
	return translated && client != source
}

func flowAddress(ip []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
