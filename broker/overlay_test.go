package broker

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/linkgateway"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/overlay"
)

// recordingOverlay notes what it is told.
type recordingOverlay struct {
	states []overlay.State
	err    error
}

func (o *recordingOverlay) Set(s overlay.State) (err, pending error) {
	o.states = append(o.states, s)
	return o.err, nil
}
func (o *recordingOverlay) Counters() overlay.Counters { return overlay.Counters{} }
func (o *recordingOverlay) Wait()                      {}
func (o *recordingOverlay) Clear() error               { return nil }

// The overlay leads to all nodes, from the node or from the pod; without it there is none, and while the nodes are not
// known it stays.
func TestSetOverlay(t *testing.T) {
	nodes := []linkgateway.Node{
		{Name: "node1", NodeIPs: []netip.Addr{netip.MustParseAddr("10.250.0.1")}},
		{Name: "node2", NodeIPs: []netip.Addr{netip.MustParseAddr("10.250.0.2")}},
	}
	onNode := linkgateway.Place{NodeIPs: nodes[0].NodeIPs}
	inPod := onNode
	inPod.InPod, inPod.PodIPs = true, []netip.Addr{netip.MustParseAddr("100.96.1.7")}
	const peers = "[{node node1 [10.250.0.1] []} {node node2 [10.250.0.2] []}]"
	meshState := &mesh.State{Meshes: []mesh.Mesh{{Addresses: mesh.Prefixes{netip.MustParsePrefix("192.168.0.11/24")}}}}
	for name, c := range map[string]struct {
		config VXLAN
		place  linkgateway.Place
		state  *mesh.State
		failed error
		want   string
	}{
		"not wanted": {VXLAN{}, onNode, meshState, nil, "0 0 [] [] []"},
		"node":       {VXLAN{Wanted: true}, onNode, meshState, nil, "107 8780 [10.250.0.1] [192.168.0.11] " + peers},
		"pod": {VXLAN{true, 7, 9000}, inPod, meshState, nil,
			"7 9000 [100.96.1.7] [192.168.0.11] " + peers},
		"no mesh":         {VXLAN{Wanted: true}, onNode, &mesh.State{}, nil, "0 0 [] [] []"},
		"nodes not known": {VXLAN{Wanted: true}, onNode, meshState, errors.New("forbidden"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := &recordingOverlay{}
			r := &reconciler{cfg: Config{GatewayConfig: GatewayConfig{VXLAN: c.config, Interface: "kubelink"}}}
			r.gateway = &gateway{nodes: o}
			r.gateway.place.Place = c.place
			r.nodes = clusterNodes{list: nodes, err: c.failed}
			if err, pending := r.setOverlay(c.state); !errors.Is(err, c.failed) || pending != nil {
				t.Errorf("error %v, pending %v", err, pending)
			}
			got := ""
			for _, s := range o.states {
				got += fmt.Sprint(s.VNI, " ", s.Port, " ", s.Addresses, " ", s.Local, " ", s.Peers)
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// A node that the overlay cannot lead to is named, and is no fault of the mesh; what fails for all nodes is one.
func TestUnservedNode(t *testing.T) {
	single := &overlay.PeerError{Peer: "node node2", Err: errors.New("no way")}
	general := errors.New("no device")
	for _, c := range []struct{ err, failed, unserved error }{
		{nil, nil, nil}, {single, nil, single}, {general, general, nil},
		{errors.Join(single, errors.Join(general)), general, single},
	} {
		var log bytes.Buffer
		r := &reconciler{cfg: Config{GatewayConfig: GatewayConfig{VXLAN: VXLAN{Wanted: true}}},
			gateway: &gateway{nodes: &recordingOverlay{err: c.err}}, log: slog.New(slog.NewTextHandler(&log, nil))}
		state := &mesh.State{Meshes: []mesh.Mesh{{}}}
		err, _ := r.setOverlay(state)
		if fmt.Sprint(err) != fmt.Sprint(c.failed) || fmt.Sprint(r.nodes.unserved.Get()) != fmt.Sprint(c.unserved) {
			t.Errorf("%v: failed %v, unserved %v", c.err, err, r.nodes.unserved.Get())
		}
		_, _ = r.setOverlay(state)
		if n := strings.Count(log.String(), "overlay to node node2: no way"); (n == 1) != (c.unserved != nil) {
			t.Errorf("%v: log:\n%s", c.err, log.String())
		}
	}
}
