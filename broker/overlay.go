package broker

// The overlay between the gateway and the nodes, as the configuration wants it.

import (
	"cmp"
	"fmt"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/overlay"
)

func (v *VXLAN) vni() int  { return cmp.Or(v.VNI, overlay.DefaultVNI) }
func (v *VXLAN) port() int { return cmp.Or(v.Port, overlay.DefaultPort) }

// setOverlay sets the overlay to all nodes, or removes it. While the nodes are not known, it stays as it is. A node
// that it cannot lead to is no fault of the mesh: the LocalLinks tell of it.
func (r *reconciler) setOverlay(s *mesh.State) (err, pending error) {
	err, pending = r.changeOverlay(s)
	failed, unserved := overlay.SplitError(err)
	if r.nodes.unserved.Set(unserved) && unserved != nil {
		r.log.Warn("pods of some nodes do not reach the meshes", "error", unserved)
	}
	return failed, pending
}

func (r *reconciler) changeOverlay(s *mesh.State) (err, pending error) {
	g := r.gateway
	switch {
	case g.nodes == nil:
		return nil, nil
	case !r.cfg.VXLAN.Wanted || len(s.Meshes) == 0:
		return g.nodes.Set(overlay.State{})
	case r.nodes.err != nil:
		return fmt.Errorf("ipip vxlan needs the nodes of the cluster: %w", r.nodes.err), nil
	}
	want := overlay.State{
		VNI: r.cfg.VXLAN.vni(), Port: r.cfg.VXLAN.port(), TUN: r.cfg.Interface, NodeNetworks: r.cfg.NodeCIDRs,
		Addresses: g.place.NodeIPs,
	}
	if g.place.InPod {
		want.Addresses = g.place.PodIPs
	}
	for _, m := range s.Meshes {
		for _, a := range m.Addresses {
			want.Local = append(want.Local, a.Addr())
		}
	}
	for _, n := range r.nodes.list {
		if len(n.NodeIPs) > 0 {
			want.Peers = append(want.Peers, overlay.Peer{Name: "node " + n.Name, Addresses: n.NodeIPs})
		}
	}
	return g.nodes.Set(want)
}

// leaveOverlay removes it: another broker is the gateway.
func (r *reconciler) leaveOverlay() (err, pending error) {
	r.nodes.unserved.Set(nil)
	if r.gateway.nodes == nil {
		return nil, nil
	}
	return r.gateway.nodes.Set(overlay.State{})
}
