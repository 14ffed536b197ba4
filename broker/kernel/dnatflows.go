package kernel

// What connection tracking remembers of packets to mesh services: it leads the packets of a flow to the endpoint of the
// first one, also when that is gone. A client that goes on sending from one port would be lost for ever.

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// forgetServiceFlows makes the kernel forget flows to mesh services that do not lead to an endpoint: it is gone, there
// was none, or the service is gone. It reads all flows of the node, so it does so when services have changed only.
func forgetServiceFlows(before, now []service.Service) error {
	if len(before)+len(now) == 0 || reflect.DeepEqual(before, now) {
		return nil
	}
	var errs []error
	for _, f := range families {
		flows := newServiceFlows(before, now, f)
		if len(flows.before)+len(flows.now) == 0 {
			continue
		}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(f), flows); err != nil {
			errs = append(errs, fmt.Errorf("forget flows to endpoints that are gone (IPv%d): %w", IPVersion(f), err))
		}
	}
	return errors.Join(errs...)
}

// serviceFlows tells which flows are to be forgotten.
type serviceFlows struct {
	before map[netip.Addr]bool
	now    map[netip.Addr]*serviceAddress
}

func newServiceFlows(before, now []service.Service, family int) *serviceFlows {
	w := &serviceFlows{map[netip.Addr]bool{}, map[netip.Addr]*serviceAddress{}}
	for _, s := range before {
		w.before[s.Address] = FamilyOf(s.Address) == family
	}
	for _, a := range groupServices(now, family) {
		w.now[a.addr] = &a
	}
	return w
}

// MatchConntrackFlow tells whether a flow is to be forgotten. TCP is left alone, as kube-proxy leaves it: a connection
// whose endpoint ends in good order goes on until it has ended.
func (w *serviceFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol == unix.IPPROTO_TCP {
		return false
	}
	destination := flowAddress(flow.Forward.DstIP)
	server := netip.AddrPortFrom(flowAddress(flow.Reverse.SrcIP), flow.Reverse.SrcPort)
	a := w.now[destination]
	if a == nil {
		return w.before[destination] && server.Addr() != destination
	}
	for _, p := range a.ports {
		if p.Protocol == flow.Forward.Protocol && p.Port.Port == flow.Forward.DstPort {
			return !slices.Contains(p.Targets, server)
		}
	}
	if a.whole != nil {
		return !slices.Contains(a.whole.Targets, server.Addr())
	}
	return server.Addr() != destination
}
