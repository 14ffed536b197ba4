package main

// This file puts a tunnel that is not kubelink's between the gateway nodes of two clusters: its device, addresses,
// routes and packet filter at both ends, which are as kubelink's.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// tunnelEnd is one end of a tunnel.
type tunnelEnd struct {
	*fleet.Broker
	device  string
	mtu     int // 0: as the device has it
	address netip.Prefix
	routed  []netip.Prefix // to the other end
}

// setUpDevice sets address and routes of the device in the gateway node.
func (e *tunnelEnd) setUpDevice() error {
	gateway := e.Gateway()
	link, err := gateway.Net.LinkByName(e.device)
	if err != nil {
		return err
	}
	if e.mtu > 0 {
		if err := gateway.Net.LinkSetMTU(link, e.mtu); err != nil {
			return err
		}
	}
	if err := errors.Join(
		gateway.Net.AddrAdd(link, &netlink.Addr{IPNet: ipNet(e.address)}),
		gateway.Net.LinkSetUp(link),
	); err != nil {
		return err
	}
	for _, network := range e.routed {
		if err := gateway.Net.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(network)}); err != nil {
			return err
		}
	}
	return nil
}

// setFilter sets the packet filter for the device in the gateway node, and the way to the port of the tunnel. It stays
// when the device goes.
func (e *tunnelEnd) setFilter(ctx context.Context, protocol string, port int) error {
	gateway := e.Gateway()
	// Deployments of tunnels clamp the MSS: pods have the larger MTU.
	if _, err := gateway.Iptables(ctx, "-t", "mangle", "-A", "FORWARD", "-o", e.device, "-p", "tcp",
		"--tcp-flags", "SYN,RST", "SYN", "-j", "TCPMSS", "--clamp-mss-to-pmtu"); err != nil {
		return err
	}
	if _, err := gateway.Iptables(ctx, "-t", "nat", "-I", "POSTROUTING", "-o", e.device, "-j", "MASQUERADE"); err != nil {
		return err
	}
	_, err := e.Router.Iptables(ctx, "-t", "nat", "-I", "PREROUTING", "-d", e.PublicAddress.String(), "-p", protocol,
		"--dport", fmt.Sprint(port), "-j", "DNAT", "--to-destination", gateway.Address.String())
	return err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// endProcesses ends processes. Devices, addresses and routes go with them.
func endProcesses(ctx context.Context, all []*testbed.Process) error {
	for _, p := range all {
		if err := p.Kill(syscall.SIGTERM); err != nil {
			return err
		}
		select {
		case <-p.Done():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// checkRunning returns an error when a process has ended.
func checkRunning(all []*testbed.Process) error {
	for _, p := range all {
		select {
		case <-p.Done():
			return fmt.Errorf("%s has ended:\n%s", p.Name, p.Log())
		default:
		}
	}
	return nil
}
