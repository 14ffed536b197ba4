package router

// Do packets with addresses of meshes pass between this node and the gateway? Networks of nodes, or of pods, may drop
// them. The router sends a packet to the address of this cluster in a mesh, which the gateway has: its kernel answers
// that nobody listens (RFC 792), from this address. Where the router does not know it, for a mesh that is defined in a
// Corefile, it takes another one of the mesh. The packet dies at the gateway, whose kernel says so from its own
// address: that tells of packets to meshes only. Neither needs a right, or an answer of a peer.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
)

const (
	probeInterval = 30 * time.Second
	probeTries    = 3
	probeTime     = 300 * time.Millisecond // for an answer
	probePort     = 33434                  // of UDP, where nobody listens: that of traceroute(8)
)

// probeTarget is a gateway that packets go to without a tunnel.
type probeTarget struct {
	name    string
	address netip.Addr // of the gateway
	mesh    netip.Addr // of the gateway in a mesh, or the gateway leads there
	mtu     int        // of the way to the gateway, in bytes; 0: not known
}

// prober asks in a goroutine of its own: no answer takes a while.
type prober struct {
	changed func()
	wake    chan struct{}

	mu       sync.Mutex // guards the fields below; held to read or to assign them only
	targets  []probeTarget
	findings link.Findings
}

func newProber(changed func()) *prober {
	return &prober{changed: changed, wake: make(chan struct{}, 1)}
}

// set says where packets go, and returns what is known of these targets. It does not block.
func (p *prober) set(targets []probeTarget) link.Findings {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(targets, p.targets) {
		p.targets, p.findings = targets, nil
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	return p.findings
}

// run asks until ctx ends.
func (p *prober) run(ctx context.Context) {
	timer := time.NewTimer(probeInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
		}
		p.mu.Lock()
		targets := p.targets
		p.mu.Unlock()
		var findings link.Findings
		for _, t := range targets {
			if f := t.probe(ctx); f != nil {
				findings = append(findings, *f)
			}
		}
		p.mu.Lock()
		news := ctx.Err() == nil && slices.Equal(targets, p.targets) && !slices.Equal(findings, p.findings)
		if news {
			p.findings = findings
		}
		p.mu.Unlock()
		if news {
			p.changed()
		}
		timer.Reset(probeInterval)
	}
}

// probe returns a finding where the gateway answers at its address in this cluster, and not at that of a mesh, or not
// to large packets. A gateway that does not answer at all proves nothing.
func (t *probeTarget) probe(ctx context.Context) *link.Finding {
	if answers(ctx, t.mesh, 0) {
		return t.probeLarge(ctx)
	}
	if !answers(ctx, t.address, 0) {
		return nil
	}
	return &link.Finding{Reason: AddressesDropped, Text: fmt.Sprintf("%s answers at %s, but not at %s: "+
		"the network in between drops packets with addresses of meshes", t.name, t.address, t.mesh),
		Remedy: "set the property ipip vxlan in the Corefile of the broker (component vxlan), or let the network take " +
			"other addresses than those of nodes and pods (source/destination check, port security)"}
}

// probeLarge returns a finding where packets as large as they may be get lost, and no kernel on the way says so: the
// senders do not learn to send smaller ones.
func (t *probeTarget) probeLarge(ctx context.Context) *link.Finding {
	if t.mtu == 0 || answers(ctx, t.mesh, t.mtu) || !answers(ctx, t.mesh, 0) {
		return nil
	}
	return &link.Finding{Reason: LargeDropped, Text: fmt.Sprintf("packets of %d bytes to %s (%s) get lost between this "+
		"node and the gateway, small ones do not", t.mtu, t.name, t.mesh),
		Remedy: "give the interface of the node the MTU that the network between the nodes carries, or mend that network; " +
			"or set the property mtu in the Corefile of the broker to what passes"}
}

// answers tells whether a kernel on the way to an address says that a packet of so many bytes, 0: a small one, has no
// hop left, that nobody listens, or that the packet is too large.
func answers(ctx context.Context, to netip.Addr, size int) bool {
	for range probeTries {
		if ctx.Err() != nil {
			return false
		}
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, probePort)))
		if err == nil {
			err = sendProbe(conn, to.Is4(), size)
			conn.Close()
		}
		for _, answer := range []error{unix.EHOSTUNREACH, unix.ECONNREFUSED, unix.ENETUNREACH, unix.EACCES,
			unix.EMSGSIZE} {
			if errors.Is(err, answer) {
				return true
			}
		}
	}
	return false
}

// sendProbe sends a packet with one hop, and returns the error that comes back: ip(7), IP_RECVERR. It is not fragmented.
func sendProbe(conn *net.UDPConn, is4 bool, size int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	headers := 20 + 8 // RFC 791, RFC 768
	failed := raw.Control(func(fd uintptr) {
		set := func(level, option, value int) {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), level, option, value))
		}
		if is4 {
			set(unix.IPPROTO_IP, unix.IP_TTL, 1)
			set(unix.IPPROTO_IP, unix.IP_RECVERR, 1)
			set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		} else {
			headers = 40 + 8 // RFC 8200
			set(unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 1)
			set(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
			set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		}
	})
	if err := errors.Join(failed, err); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(probeTime)); err != nil {
		return err
	}
	content := append([]byte("kubelink"), make([]byte, max(0, size-headers-len("kubelink")))...)
	if _, err := conn.Write(content); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// probeTargets are the gateways that routes lead to, each with an address of a mesh.
func probeTargets(r *routing, f *facts, links []*v1alpha1.KubeLink) (targets []probeTarget) {
	own := clusterAddresses(links)
	for _, n := range r.routes {
		known := func(t probeTarget) bool { return t.address == n.Gateway }
		if !n.Gateway.IsValid() || f.overlay != nil && n.Index == f.overlay.index || slices.ContainsFunc(targets, known) {
			continue
		}
		t := probeTarget{name: "the gateway", address: n.Gateway, mesh: firstHost(n.Destination), mtu: wayMTU(&n, f)}
		for _, a := range own {
			leads := func(o kernel.NodeRoute) bool { return o.Gateway == n.Gateway && o.Destination.Contains(a) }
			if slices.ContainsFunc(r.routes, leads) {
				t.mesh = a
			}
		}
		for i := range r.leaders {
			if slices.Contains(r.leaders[i].allAddresses(), n.Gateway) {
				t.name = r.leaders[i].name
			}
		}
		targets = append(targets, t)
	}
	return targets
}

// wayMTU is the MTU of a route; 0: it is not known.
func wayMTU(r *kernel.NodeRoute, f *facts) int {
	switch {
	case r.MTU > 0:
		return r.MTU
	case f.ipip != nil && r.Index == f.ipip.index:
		return f.ipip.mtu
	}
	return f.ways[r.Gateway].way.MTU
}

// clusterAddresses are the addresses of this cluster in meshes.
func clusterAddresses(links []*v1alpha1.KubeLink) (addresses []netip.Addr) {
	for _, k := range links {
		if p, err := netip.ParsePrefix(k.Spec.ClusterAddress); err == nil && k.Spec.Endpoint == v1alpha1.EndpointLocal {
			addresses = append(addresses, p.Addr())
		}
	}
	return addresses
}
