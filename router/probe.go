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

// probe returns a finding where the gateway answers at its address in this cluster, and not at that of a mesh. A
// gateway that does not answer at all proves nothing.
func (t *probeTarget) probe(ctx context.Context) *link.Finding {
	if answers(ctx, t.mesh) || !answers(ctx, t.address) {
		return nil
	}
	return &link.Finding{Reason: AddressesDropped, Text: fmt.Sprintf("%s answers at %s, but not at %s: "+
		"the network in between drops packets with addresses of meshes", t.name, t.address, t.mesh),
		Remedy: "set the property ipip vxlan in the Corefile of the broker (component vxlan), or let the network take " +
			"other addresses than those of nodes and pods (source/destination check, port security)"}
}

// answers tells whether a kernel on the way to an address says that a packet has no hop left, or that nobody listens.
func answers(ctx context.Context, to netip.Addr) bool {
	for range probeTries {
		if ctx.Err() != nil {
			return false
		}
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, probePort)))
		if err == nil {
			err = sendProbe(conn, to.Is4())
			conn.Close()
		}
		for _, answer := range []error{unix.EHOSTUNREACH, unix.ECONNREFUSED, unix.ENETUNREACH, unix.EACCES} {
			if errors.Is(err, answer) {
				return true
			}
		}
	}
	return false
}

// sendProbe sends a packet with one hop, and returns the error that comes back: ip(7), IP_RECVERR.
func sendProbe(conn *net.UDPConn, is4 bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) {
		set := func(level, option int) {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), level, option, 1))
		}
		if is4 {
			set(unix.IPPROTO_IP, unix.IP_TTL)
			set(unix.IPPROTO_IP, unix.IP_RECVERR)
		} else {
			set(unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS)
			set(unix.IPPROTO_IPV6, unix.IPV6_RECVERR)
		}
	})
	if err := errors.Join(failed, err); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(probeTime)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("kubelink")); err != nil {
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
		t := probeTarget{name: "the gateway", address: n.Gateway, mesh: n.Destination.Addr()}
		if !n.Destination.IsSingleIP() {
			t.mesh = t.mesh.Next()
		}
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

// clusterAddresses are the addresses of this cluster in meshes.
func clusterAddresses(links []*v1alpha1.KubeLink) (addresses []netip.Addr) {
	for _, k := range links {
		if p, err := netip.ParsePrefix(k.Spec.ClusterAddress); err == nil && k.Spec.Endpoint == v1alpha1.EndpointLocal {
			addresses = append(addresses, p.Addr())
		}
	}
	return addresses
}
