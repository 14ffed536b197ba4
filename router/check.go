package router

// Do packets of pods take our routes? The kernel is asked for the packet of a pod on this node: its answer counts
// rules, the reverse path filter and forwarding.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/nodecheck"
)

const (
	// maxChecked bounds the routes that a look asks for: rules and sysctls concern all alike.
	maxChecked = 32
	// maxPods bounds the pods of a family that a look asks for.
	maxPods = 4
	// filterTime bounds the time for reading rules of iptables and nftables.
	filterTime = 5 * time.Second
)

// pod is a pod of this node, or a network of its pods.
type pod struct {
	address netip.Addr
	index   int // of the device that leads there
}

// checkPackets asks for the ways of packets of pods: for the routes of one pod, and for rules that drop packets of all.
// An error says what could not be checked.
func (n *node) checkPackets(routes []kernel.NodeRoute) (findings link.Findings, err error) {
	pods := n.findPods()
	names := map[int]string{}
	nameOf := func(index int) string {
		if names[index] == "" {
			names[index] = n.deviceName(index)
		}
		return names[index]
	}
	var transits [][]nodecheck.Transit
	checked := 0
	for _, r := range routes {
		some := pods[r.Destination.Addr().Is4()]
		if len(some) == 0 || r.Fallback || checked == maxChecked {
			continue
		}
		checked++
		f := n.checkPacket(&r, some[0], nameOf(some[0].index))
		if f != nil && !hasReason(findings, f.Reason) {
			findings = append(findings, *f)
		}
		if f != nil || !r.Gateway.IsValid() {
			continue
		}
		var ways []nodecheck.Transit
		for _, p := range some {
			ways = append(ways, nodecheck.Transit{Pod: p.address, In: nameOf(p.index), To: firstHost(r.Destination),
				Network: r.Destination, Out: nameOf(r.Index)})
		}
		transits = append(transits, ways)
	}
	ctx, cancel := context.WithTimeout(context.Background(), filterTime)
	defer cancel()
	dropped, err := n.filters.FindDrops(ctx, transits)
	return append(findings, dropped...), err
}

// firstHost is an address in a network.
func firstHost(p netip.Prefix) netip.Addr {
	if p.IsSingleIP() {
		return p.Addr()
	}
	return p.Addr().Next()
}

func hasReason(findings link.Findings, reason string) bool {
	for _, f := range findings {
		if f.Reason == reason {
			return true
		}
	}
	return false
}

// findPods returns some pods of each family, by Is4: the ends of routes that lead straight to one.
func (n *node) findPods() map[bool][]pod {
	pods := map[bool][]pod{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		see := func(r netlink.Route) bool {
			if r.Dst == nil || len(r.Gw) > 0 || r.LinkIndex == 0 || r.Type != unix.RTN_UNICAST {
				return true
			}
			a, _ := netip.AddrFromSlice(r.Dst.IP)
			bits, size := r.Dst.Mask.Size()
			for _, p := range n.pods {
				if a = a.Unmap(); p.Contains(a) && bits >= p.Bits() {
					pods[a.Is4()] = append(pods[a.Is4()], pod{podAddress(a, bits, size), r.LinkIndex})
					return len(pods[a.Is4()]) < maxPods
				}
			}
			return true
		}
		main := &netlink.Route{Table: unix.RT_TABLE_MAIN}
		_ = n.netlink.RouteListFilteredIter(family, main, netlink.RT_FILTER_TABLE, see) // the next look sees more
	}
	return pods
}

// podAddress is an address in a network of pods that is probably none of the node, which has the first one.
func podAddress(a netip.Addr, bits, size int) netip.Addr {
	if bits == size {
		return a
	}
	return a.Next().Next()
}

func (n *node) deviceName(index int) string {
	dev, err := n.netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("if%d", index)
	}
	return dev.Attrs().Name
}

// checkPacket asks for the way of a packet of a pod to the first address of a route. nil: it takes the route.
func (n *node) checkPacket(r *kernel.NodeRoute, p pod, device string) *link.Finding {
	to := firstHost(r.Destination)
	found, err := n.netlink.RouteGetWithOptions(to.AsSlice(),
		&netlink.RouteGetOptions{IifIndex: p.index, SrcAddr: p.address.AsSlice()})
	if err == nil && len(found) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return n.explainError(err, r, p, device)
	}
	via := net.IP(r.Gateway.AsSlice())
	if r.Gateway.IsValid() && found[0].LinkIndex == r.Index && (found[0].Gw.Equal(via) || to == r.Gateway) {
		return nil
	}
	way := "dev " + n.deviceName(found[0].LinkIndex)
	if len(found[0].Gw) > 0 {
		way = "via " + found[0].Gw.String() + " " + way
	}
	return &link.Finding{Reason: PacketsTakenAway,
		Text: fmt.Sprintf("packets of pods (%s, device %s) to %s (for example %s) leave %s (table %d)", p.address, device,
			r.Destination, to, way, found[0].Table),
		Remedy: "look at ip rule and ip route get; set --route-table (such as 107) and a --rule-priority below that of " +
			"the rule in the way, so that the routes of kubelink come first"}
}

// explainError says why the kernel has no way for a packet. Where the route leads nowhere, that is right.
func (n *node) explainError(err error, r *kernel.NodeRoute, p pod, device string) *link.Finding {
	family := "ipv4"
	if p.address.Is6() {
		family = "ipv6"
	}
	switch {
	case !r.Gateway.IsValid():
		return nil
	case errors.Is(err, unix.EHOSTUNREACH) && readSetting(family, device, "forwarding") == "0":
		return &link.Finding{Reason: ForwardingOff,
			Text:   fmt.Sprintf("forwarding is off for packets of pods (device %s)", device),
			Remedy: fmt.Sprintf("sysctl -w net.%s.conf.all.forwarding=1", family)}
	case (errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL)) &&
		(readSetting(family, "all", "rp_filter") == "1" || readSetting(family, device, "rp_filter") == "1"):
		return &link.Finding{Reason: ReversePathFilter,
			Text: fmt.Sprintf("the strict reverse path filter of device %s drops packets of pods (%s), "+
				"because answers would leave another way", device, p.address),
			Remedy: fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2 (loose)", device)}
	}
	return &link.Finding{Reason: PacketsTakenAway,
		Text:   fmt.Sprintf("packets of pods (%s, device %s) to %s do not leave: %v", p.address, device, r.Destination, err),
		Remedy: "look at ip rule for what is before the routes of kubelink"}
}

// readSetting reads a setting of a device; empty: there is none.
func readSetting(family, device, name string) string {
	text, _ := os.ReadFile(filepath.Join("/proc/sys/net", family, "conf", device, name))
	return strings.TrimSpace(string(text))
}
