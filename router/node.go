package router

// What the node is: its address, and what it reaches outside of the meshes.

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/host"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/nodecheck"
)

// node is the node of the router.
type node struct {
	name     string
	address  netip.Addr
	ownTable bool                    // the kernel looks at our routes before those of the node
	apart    map[netip.Prefix]string // networks of the cluster that no mesh gets
	pods     []netip.Prefix
	host     *host.Watcher
	server   *host.APIServer
	ipip     *ipip
	netlink  *netlink.Handle
	filters  *nodecheck.TransitChecker
}

// openNode looks at the node, and calls changed when what it reaches outside of the meshes changes.
func openNode(c *Config, changed func()) (*node, error) {
	n := &node{name: c.Node, address: c.NodeIP, pods: c.PodCIDRs, apart: map[netip.Prefix]string{},
		server: host.NewAPIServer(), ownTable: c.Table != 0 && c.Table != kernel.MainTable}
	for _, p := range c.NodeCIDRs {
		n.apart[p] = titleNodes
	}
	for _, p := range c.PodCIDRs {
		n.apart[p] = titlePods
	}
	for _, p := range c.ServiceCIDRs {
		n.apart[p] = titleServices
	}
	// A process of the node looks for a route to a service before kube-proxy translates the address: where it is
	// unreachable, neither router nor broker would hear of a remedy.
	if a, err := netip.ParseAddr(os.Getenv("KUBERNETES_SERVICE_HOST")); err == nil {
		n.apart[netip.PrefixFrom(a, a.BitLen())] = titleAPI
	}
	var err error
	if !n.address.IsValid() {
		if n.address, err = findNodeIP(c.NodeCIDRs); err != nil {
			return nil, err
		}
	}
	n.ipip = newIPIP(c.IPIP, n.address)
	if n.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if n.filters, err = nodecheck.NewTransitChecker(); err != nil {
		n.netlink.Close()
		return nil, err
	}
	n.host, err = host.Open(host.Config{Device: c.Device, Protocols: []int{kernel.Protocol, kernel.RouterProtocol},
		API: n.server, Changed: changed, Log: c.Log})
	if err != nil {
		n.filters.Close()
		n.netlink.Close()
		return nil, err
	}
	return n, nil
}

func (n *node) closeHandles() {
	n.host.Close()
	n.filters.Close()
	n.netlink.Close()
}

// FlagError is a value of a flag that cannot work.
type FlagError struct {
	Flag, Value, Problem, Remedy string
}

func (e *FlagError) Error() string {
	return fmt.Sprintf("--%s %q: %s; %s", e.Flag, e.Value, e.Problem, e.Remedy)
}

// findNodeIP returns the last address of an interface that is in one of the networks.
func findNodeIP(networks []netip.Prefix) (found netip.Addr, err error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return found, fmt.Errorf("read the addresses of the interfaces: %w", err)
	}
	for _, a := range addresses {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		for _, n := range networks {
			if n.Contains(p.Addr().Unmap()) {
				found = p.Addr().Unmap()
			}
		}
	}
	if !found.IsValid() {
		return found, &FlagError{"node-cidr", fmt.Sprint(networks), "no interface of this node has an address in it",
			"give the network of the cluster's nodes, or set --node-ip (or the variable NODE_IP)"}
	}
	return found, nil
}

// addresses are that of the node, and the one of the other family that is in a network of nodes.
func (n *node) addresses() []netip.Addr {
	addresses := []netip.Addr{n.address}
	var others []netip.Prefix
	for p, title := range n.apart {
		if title == titleNodes && p.Addr().Is4() != n.address.Is4() {
			others = append(others, p)
		}
	}
	if other, err := findNodeIP(others); err == nil {
		addresses = append(addresses, other)
	}
	return addresses
}

// readFacts looks at the node: at the ways to the gateways, and what no mesh may take away.
func (n *node) readFacts(routes *kernel.Routes, leaders []leader) *facts {
	f := &facts{name: n.name, ways: map[netip.Addr]lookup{}, host: n.host.Facts(nil, nil), apart: n.apart,
		addresses: n.addresses()}
	f.host.OwnTable = n.ownTable
	for i := range leaders {
		for _, a := range leaders[i].allAddresses() {
			if _, known := f.ways[a]; !known {
				way, err := routes.FindWay(a)
				f.ways[a] = lookup{way, err}
			}
		}
	}
	if len(leaders) > 0 {
		t, err := n.ipip.prepareTunnel()
		if f.ipip = t; err != nil {
			f.noIPIP = &link.Finding{Reason: TunnelMissing, Text: err.Error(), Remedy: n.ipip.tellRemedy()}
		}
	}
	return f
}
