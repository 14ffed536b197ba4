package router

// This node's end of the overlay: a gateway that says so takes packets in a VXLAN only.

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/overlay"
)

// vxlan is the end of the overlay. It has one user at a time.
type vxlan struct {
	end   vxlanEnd
	set   overlay.State // as set last without error
	index int           // of the device then
	at    time.Time     // of the last try
	err   error         // of the last try
}

// vxlanEnd is an overlay.Overlay as the router needs it.
type vxlanEnd interface {
	Set(overlay.State) error
	MTU() int
	Counters() overlay.Counters
}

// prepare sets the overlay, and returns the device. Each Set costs processes, so it comes after a change, and now and
// then.
func (v *vxlan) prepare(s overlay.State) (*tunnel, error) {
	if index := overlayIndex(); v.err != nil || index == 0 || index != v.index || !reflect.DeepEqual(s, v.set) ||
		time.Since(v.at) >= repairInterval {
		v.err, v.at = v.end.Set(s), time.Now()
		v.set, v.index = s, overlayIndex()
	}
	if mtu := v.end.MTU(); mtu > 0 && v.index != 0 {
		return &tunnel{index: v.index, mtu: mtu}, v.err
	}
	return nil, v.err
}

// remove removes the overlay, if there is one.
func (v *vxlan) remove() error {
	v.set, v.index = overlay.State{}, 0
	v.err = v.end.Set(overlay.State{})
	return v.err
}

// overlayIndex is the index of the device; 0: there is none.
func overlayIndex() int {
	d, err := netlink.LinkByName(overlay.Node.Device())
	if err != nil {
		return 0
	}
	return d.Attrs().Index
}

// wantedOverlay is the overlay to the gateways that want packets in one. All of them have one VNI and port.
func wantedOverlay(leaders []leader, f *facts) (s overlay.State, findings link.Findings) {
	first := ""
	for i := range leaders {
		l := &leaders[i]
		next, own := l.nextAddresses(f)
		if l.vxlan == nil || own {
			continue
		}
		vni, port := int(l.vxlan.VNI), int(l.vxlan.Port)
		if first == "" {
			first, s.VNI, s.Port = l.name, vni, port
			s.Addresses, s.NodeNetworks = f.addresses, f.nodeNetworks()
		}
		if vni != s.VNI || port != s.Port {
			findings = append(findings, link.Finding{Reason: TunnelMissing, Text: fmt.Sprintf(
				"%s wants VXLAN packets with VNI %d and port %d, %s with VNI %d and port %d",
				l.name, vni, port, first, s.VNI, s.Port),
				Remedy: "give all brokers of the cluster the same vxlan-vni and vxlan-port in their Corefiles"})
			continue
		}
		s.Peers = append(s.Peers, overlay.Peer{Name: l.name, Addresses: next,
			Sources: slices.DeleteFunc(slices.Clone(l.nodeIPs), func(a netip.Addr) bool { return slices.Contains(next, a) })})
	}
	return s, findings
}

// nodeNetworks are the networks of the cluster's nodes.
func (f *facts) nodeNetworks() (networks []netip.Prefix) {
	for n, title := range f.apart {
		if title == titleNodes {
			networks = append(networks, n)
		}
	}
	slices.SortFunc(networks, netip.Prefix.Compare)
	return networks
}

// findOverlayHops finds the ways to a gateway through the overlay.
func (h *hops) findOverlayHops(next []netip.Addr, f *facts) {
	if f.overlay == nil {
		h.missing[true], h.missing[false] = true, true
		text := "there is no VXLAN device"
		if f.noOverlay != nil {
			text = f.noOverlay.Error()
		}
		h.findings = append(h.findings, link.Finding{Reason: TunnelMissing,
			Text: fmt.Sprintf("%s wants packets in a VXLAN: %s", h.leader.name, text), Remedy: "it is tried again"})
		return
	}
	for is4, family := range map[bool]int{true: unix.AF_INET, false: unix.AF_INET6} {
		if hop := overlay.NextHop(f.addresses, next, family); hop.IsValid() {
			h.via[is4] = kernel.NodeRoute{Gateway: hop, Index: f.overlay.index, OnLink: true,
				MTU: lowerMTU(h.leader.mtu, f.overlay.mtu)}
		}
	}
	if f.noOverlay != nil {
		h.findings = append(h.findings, link.Finding{Reason: TunnelMissing, Text: f.noOverlay.Error(),
			Remedy: "it is tried again"})
	}
}
