package testbed

// This file connects hosts: the internet, each cluster's router and node LAN, and pods in the way of calico.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The networks that are the same in all clusters, and their well-known addresses.
var (
	NodeCIDR = netip.MustParsePrefix("10.250.0.0/16")
	PodCIDR  = netip.MustParsePrefix("100.96.0.0/11")
	MeshCIDR = netip.MustParsePrefix("192.168.0.0/24")

	internetCIDR   = netip.MustParsePrefix("172.31.0.0/24")
	RouterAddress  = netip.MustParseAddr("10.250.0.1")
	controlAddress = netip.MustParseAddr("10.250.0.2")
	podGateway     = netip.MustParseAddr("169.254.1.1") // no host has it: the node answers for it (proxy ARP)
)

const (
	// BrokerPort is the port of the gateway node to which the load balancer forwards its TCP port 80.
	BrokerPort = 8088
	// WireguardPort is a UDP port that the load balancer forwards to the same port.
	WireguardPort = 8777
)

// forwarding are the settings of hosts that forward packets. newHost applies them before there are links, which
// inherit them.
var forwarding = []string{
	"net.ipv4.ip_forward=1",
	"net.ipv4.conf.all.rp_filter=0",
	"net.ipv4.conf.default.rp_filter=0",
}

// wireCluster makes the router, the control plane's host and the nodes of cluster i.
func (b *Testbed) wireCluster(i int) (_ *Cluster, err error) {
	name := fmt.Sprintf("kubelink%d", i)
	var opts ClusterOptions
	if i <= len(b.opts.Clusters) {
		opts = b.opts.Clusters[i-1]
	}
	services := opts.ServiceCIDR
	if !services.IsValid() {
		services = netip.PrefixFrom(nthAddress(netip.MustParseAddr("100.64.0.0"), (i-1)<<12), 20)
	}
	c := &Cluster{
		Name:           name,
		FQDN:           "kubelink." + name + ".example",
		PublicAddress:  nthAddress(internetCIDR.Addr(), i),
		MeshAddress:    netip.PrefixFrom(nthAddress(MeshCIDR.Addr(), 10+i), MeshCIDR.Bits()),
		ServiceCIDR:    services,
		APIAddress:     nthAddress(services.Addr(), 1),
		DNSAddress:     nthAddress(services.Addr(), 10),
		MeshDNSAddress: nthAddress(services.Addr(), 11),
		testbed:        b,
		opts:           opts,
	}
	if c.Router, err = b.newHost(name+"-router", resolver{}, nil, forwarding...); err != nil {
		return nil, err
	}
	if err := c.Router.addBridge("lan"); err != nil {
		return nil, err
	}
	if err := connectHosts(c.Router, "public", b.internet, name); err != nil {
		return nil, err
	}
	if err := errors.Join(
		b.internet.addToBridge(name, "internet"),
		c.Router.addAddress("lan", netip.PrefixFrom(RouterAddress, NodeCIDR.Bits())),
		c.Router.addAddress("public", netip.PrefixFrom(c.PublicAddress, internetCIDR.Bits())),
	); err != nil {
		return nil, err
	}
	// The last rule is for nodes that use the load balancer of their own cluster.
	_, err = c.Router.runWithInput(b.ctx, fmt.Sprintf(`*nat
%s-A POSTROUTING -o public -j MASQUERADE
-A POSTROUTING -s %[2]s -d %[2]s -m conntrack --ctstate DNAT -j MASQUERADE
COMMIT
`, c.loadBalancerRules(), NodeCIDR), "iptables-restore", "--wait")
	if err != nil {
		return nil, err
	}

	if c.ControlPlane, err = c.attachHost("control", controlAddress); err != nil {
		return nil, err
	}
	for j := 1; j <= b.opts.Nodes; j++ {
		if err := c.addNode(j); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// loadBalancerRules lead to the gateway node. In a cluster with real nodes, the load balancer makes its rules by the
// services.
func (c *Cluster) loadBalancerRules() string {
	if c.opts.isReal() {
		return ""
	}
	return fmt.Sprintf(`-A PREROUTING -d %[1]s -p tcp --dport 80 -j DNAT --to-destination %[2]s:%[3]d
-A PREROUTING -d %[1]s -p udp --dport %[4]d -j DNAT --to-destination %[2]s:%[4]d
`, c.PublicAddress, nodeAddress(1), BrokerPort, WireguardPort)
}

// attachHost makes a host on the cluster's node LAN.
func (c *Cluster) attachHost(name string, addr netip.Addr) (*Host, error) {
	dns := resolver{}
	if c.opts.isReal() {
		dns.server = RouterAddress // see serveInternetNames
	}
	h, err := c.testbed.newHost(c.Name+"-"+name, dns, nil, forwarding...)
	if err != nil {
		return nil, err
	}
	if err := connectHosts(h, "eth0", c.Router, name); err != nil {
		return nil, err
	}
	return h, errors.Join(
		h.setMTU("eth0", c.opts.mtu()),
		c.Router.setMTU(name, c.opts.mtu()),
		c.Router.addToBridge(name, "lan"),
		h.addAddress("eth0", netip.PrefixFrom(addr, NodeCIDR.Bits())),
		h.addRoute("eth0", netip.Prefix{}, RouterAddress),
	)
}

// addNode makes node j, and the routes between its pods and the pods of the other nodes.
func (c *Cluster) addNode(j int) error {
	h, err := c.attachHost(fmt.Sprintf("node%d", j), nodeAddress(j))
	if err != nil {
		return err
	}
	n := &Node{Host: h, Address: nodeAddress(j), Pods: netip.PrefixFrom(nthAddress(PodCIDR.Addr(), j<<8), 24), cluster: c,
		cable: fmt.Sprintf("node%d", j), cni: c.opts.PodNetwork}
	// The node hides its pods behind its own address when their packets leave the cluster.
	if _, err := n.runWithInput(c.testbed.ctx, n.masquerade(), "iptables-restore", "--wait"); err != nil {
		return err
	}
	for _, other := range c.Nodes {
		if err := errors.Join(n.addRoute("eth0", other.Pods, other.Address),
			other.addRoute("eth0", n.Pods, n.Address)); err != nil {
			return err
		}
	}
	c.testbed.mu.Lock()
	defer c.testbed.mu.Unlock()
	c.Nodes = append(c.Nodes, n) // the load balancer reads them
	return nil
}

// masquerade returns the rules that hide pods behind their node, for iptables-restore: those of Flannel, or those of
// Calico.
func (n *Node) masquerade() string {
	if n.cni == Bridge {
		return fmt.Sprintf(`*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
-A FLANNEL-POSTRTG -s %[2]s -d %[1]s -j RETURN
-A FLANNEL-POSTRTG -s %[1]s -d %[2]s -j RETURN
-A FLANNEL-POSTRTG ! -s %[1]s -d %[2]s -j RETURN
-A FLANNEL-POSTRTG -s %[1]s ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s %[1]s -d %[1]s -j MASQUERADE --random-fully
COMMIT
`, PodCIDR, n.Pods)
	}
	return fmt.Sprintf(`*nat
:cali-POSTROUTING - [0:0]
:cali-nat-outgoing - [0:0]
-A POSTROUTING -j cali-POSTROUTING
-A cali-POSTROUTING -j cali-nat-outgoing
-A cali-nat-outgoing -s %[1]s ! -d %[1]s -j MASQUERADE
COMMIT
`, PodCIDR)
}

// wirePod connects a pod to its node. The pod has a /32 address and reaches all other addresses through a gateway
// address, for which the node answers.
func (n *Node) wirePod(pod *Host, device string, addr netip.Addr) error {
	if err := connectHosts(pod, "eth0", n.Host, device); err != nil {
		return err
	}
	return errors.Join(
		pod.addAddress("eth0", hostPrefix(addr)),
		pod.addRoute("eth0", hostPrefix(podGateway), netip.Addr{}),
		pod.addRoute("eth0", netip.Prefix{}, podGateway),
		n.Sysctl("net.ipv4.conf."+device+".proxy_arp=1", "net.ipv4.neigh."+device+".proxy_delay=0"),
		n.addRoute(device, hostPrefix(addr), netip.Addr{}),
	)
}

// Unplug takes the node off the network of its cluster, as if it had lost its power. It keeps its routes.
func (n *Node) Unplug() error {
	return n.cluster.Router.onLink(n.cable, "unplug", n.cluster.Router.Net.LinkSetDown)
}

// Plug undoes Unplug.
func (n *Node) Plug() error { return n.cluster.Router.setUp(n.cable) }

// Disconnect takes the cluster off the internet: its router drops packets silently in both directions.
func (c *Cluster) Disconnect(ctx context.Context) error { return c.changeUplink(ctx, "-I") }

// Reconnect undoes Disconnect.
func (c *Cluster) Reconnect(ctx context.Context) error { return c.changeUplink(ctx, "-D") }

func (c *Cluster) changeUplink(ctx context.Context, command string) error {
	_, err1 := c.Router.Iptables(ctx, "-t", "raw", command, "PREROUTING", "-i", "public", "-j", "DROP")
	_, err2 := c.Router.Iptables(ctx, "-t", "mangle", command, "POSTROUTING", "-o", "public", "-j", "DROP")
	return errors.Join(err1, err2)
}

// ForgetConnections makes the host forget what it knows of connections with an address, their translation included. The
// next packet begins a new one.
func (h *Host) ForgetConnections(address netip.Addr) error {
	var errs []error
	for _, kind := range []netlink.ConntrackFilterType{netlink.ConntrackOrigDstIP, netlink.ConntrackOrigSrcIP} {
		filter := &netlink.ConntrackFilter{}
		errs = append(errs, filter.AddIP(kind, address.AsSlice()))
		_, err := h.Net.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (h *Host) addBridge(name string) error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := h.Net.LinkAdd(bridge); err != nil {
		return fmt.Errorf("%s: add bridge %s: %w", h.Name, name, err)
	}
	return h.setUp(name)
}

// connectHosts makes a virtual cable between two hosts. Both ends are up.
func connectHosts(a *Host, aDevice string, b *Host, bDevice string) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: aDevice},
		PeerName:      bDevice,
		PeerNamespace: netlink.NsFd(int(b.netns)),
	}
	if err := a.Net.LinkAdd(veth); err != nil {
		return fmt.Errorf("connect %s/%s and %s/%s: %w", a.Name, aDevice, b.Name, bDevice, err)
	}
	return errors.Join(a.setUp(aDevice), b.setUp(bDevice))
}

func (h *Host) onLink(name, action string, f func(netlink.Link) error) error {
	link, err := h.Net.LinkByName(name)
	if err == nil {
		err = f(link)
	}
	if err != nil {
		return fmt.Errorf("%s: %s %s: %w", h.Name, action, name, err)
	}
	return nil
}

func (h *Host) setUp(name string) error {
	return h.onLink(name, "set up", h.Net.LinkSetUp)
}

func (h *Host) setMTU(name string, mtu int) error {
	return h.onLink(name, "set MTU of", func(l netlink.Link) error { return h.Net.LinkSetMTU(l, mtu) })
}

func (h *Host) addToBridge(name, bridge string) error {
	return h.onLink(bridge, "add "+name+" to", func(master netlink.Link) error {
		return h.onLink(name, "attach", func(l netlink.Link) error { return h.Net.LinkSetMaster(l, master) })
	})
}

func (h *Host) addAddress(name string, addr netip.Prefix) error {
	return h.onLink(name, "add address to", func(l netlink.Link) error {
		return h.Net.AddrAdd(l, &netlink.Addr{IPNet: ipNet(addr)})
	})
}

// addRoute adds a route to a network (the zero prefix: to everywhere), by a gateway or directly.
func (h *Host) addRoute(name string, to netip.Prefix, gateway netip.Addr) error {
	return h.onLink(name, fmt.Sprintf("add route to %s by", to), func(l netlink.Link) error {
		route := &netlink.Route{LinkIndex: l.Attrs().Index}
		if to.IsValid() {
			route.Dst = ipNet(to)
		}
		if gateway.IsValid() {
			route.Gw = gateway.AsSlice()
		} else {
			route.Scope = unix.RT_SCOPE_LINK
		}
		return h.Net.RouteAdd(route)
	})
}

func nodeAddress(j int) netip.Addr { return nthAddress(NodeCIDR.Addr(), 10+j) }

func hostPrefix(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// nthAddress is the n-th IPv4 address after addr.
func nthAddress(addr netip.Addr, n int) netip.Addr {
	a := addr.As4()
	value := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	value += uint32(n)
	return netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)})
}
