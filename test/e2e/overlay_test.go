package e2e

// A network of nodes that drops the addresses of meshes: with the property "ipip vxlan", packets of pods on all nodes
// pass all the same.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// dropForeign makes the network of a cluster's nodes drop what is from or to other addresses than those of nodes and
// pods, as clouds do.
func dropForeign(t *testing.T, ctx context.Context, b *fleet.Broker) {
	t.Helper()
	known := fmt.Sprintf("{ %s, %s }", testbed.NodeCIDR, testbed.PodCIDR)
	_, err := b.Router.Run(ctx, "nft", fmt.Sprintf("table bridge cloud { chain check { "+
		"type filter hook forward priority 0; ip saddr != %s drop; ip daddr != %[1]s drop; }; }", known))
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := b.Router.Run(ctx, "nft", "delete table bridge cloud")
		must(t, err)
	})
}

// waitDropped waits until a router says that the network drops addresses, and what to do.
func waitDropped(t *testing.T, limit time.Duration, r *fleet.Router) {
	t.Helper()
	read, err := r.NewReader(t.Context())
	must(t, err)
	took := within(t, limit, "router to say why", func(ctx context.Context) error {
		text, err := read(ctx)
		if err == nil && (!strings.Contains(text, "AddressesDropped") || !strings.Contains(text, "ipip vxlan")) {
			err = errors.New(text)
		}
		return err
	})
	t.Logf("%s: found after %s", r.Host.Node.Name, took)
}

func TestOverlay(t *testing.T) {
	ctx := startTest(t, 5*time.Minute)
	b := brokers[1]
	dropForeign(t, ctx, b)
	w := startFarNode(t, ctx, b, 0)
	must(t, w.router.Launch())
	waitDropped(t, 10*time.Second, w.router)
	// The other way round, kube-proxy has masqueraded what comes from outside of the cluster.
	short, cancel := context.WithTimeout(ctx, time.Second)
	_, err := w.pod.Get(short, "http://"+servers[w.peer].service.String()+"/")
	cancel()
	if err == nil {
		t.Fatal("a request passes without overlay: the network of nodes drops nothing")
	}
	waitForReply(t, 5*time.Second, clients[1], servers[w.peer].service) // on the gateway node

	addProperties(t, ctx, b, b.Corefile(), "ipip vxlan")
	waitRoutes(t, 10*time.Second, w.router.Host.Node, "192.168.0.0/24 via "+b.Gateway().Address.String()+" dev klvxlan")
	waitForReply(t, 5*time.Second, w.pod, servers[w.peer].service)
	must(t, w.router.WaitReady(ctx))
	for _, step := range []struct {
		name string
		run  func(*testing.T, context.Context, *farNode)
	}{
		{"traffic", testFarTraffic},
		{"large MTU", testOverlayLargeMTU},
		{"forged packets", testOverlayForged},
		{"kill and reload", testOverlayRestarts},
		{"node is healthy", testOverlayFindings},
		{"without overlay again", testOverlayRemoved},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, ctx, w) }) {
			t.Logf("--- router\n%s", w.router.Process.Log())
			return
		}
	}
}

// Pods with a larger MTU need no setting.
func testOverlayLargeMTU(t *testing.T, ctx context.Context, w *farNode) {
	undo, err := w.pod.SetMTU(9000)
	must(t, err)
	defer func() { must(t, undo()) }()
	must(t, transfer(ctx, w.pod, servers[w.peer].service, 10<<20, 0))
	must(t, transfer(ctx, clients[w.peer], w.service, 10<<20, 0))
}

// VXLAN packets of a pod are dropped by its own node, and counted.
func testOverlayForged(t *testing.T, ctx context.Context, w *farNode) {
	gateway := w.broker.Gateway().Address.String()
	for _, target := range []string{gateway + ":8780", w.router.Host.Node.Address.String() + ":8781"} {
		conn, err := w.pod.Dial("udp", target)
		must(t, err)
		_, err = conn.Write([]byte{0x08, 0, 0, 0, 0, 0, 107, 0})
		must(t, err)
		conn.Close()
	}
	within(t, 2*time.Second, "count of forged packets", func(ctx context.Context) error {
		out, err := w.router.Host.Node.Run(ctx, "iptables", "-t", "mangle", "-vS")
		for _, rule := range []string{"-A KLROUTER-VXLAN-GUARD -d 10.250.0.0/16 -c 1 ", "-A KLROUTER-VXLAN-INPUT -c 1 "} {
			if err == nil && !strings.Contains(out, rule) {
				err = fmt.Errorf("no %q in\n%s", rule, out)
			}
		}
		return err
	})
}

// A router that is killed and started again, and one that ends, cost no request; nor does a restart of the broker more
// than usual.
func testOverlayRestarts(t *testing.T, ctx context.Context, w *farNode) {
	device := func() string {
		out, err := w.router.Host.Node.Run(ctx, "ip", "-o", "link", "show", "klvxlan")
		must(t, err)
		index, _, _ := strings.Cut(out, ":")
		return index
	}
	before := device()
	check := expectNoFailures(t, w.pod, servers[w.peer].service)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		must(t, w.router.Kill(ctx, signal))
		must(t, w.router.Launch())
		must(t, w.router.WaitReady(ctx))
	}
	check()
	if after := device(); after != before {
		t.Errorf("device %s became %s", before, after)
	}
	must(t, w.broker.Kill(ctx, syscall.SIGKILL))
	must(t, w.broker.Start(ctx))
	t.Logf("broker killed: requests from the other node pass again %s after it is ready",
		waitForReply(t, 5*time.Second, w.pod, servers[w.peer].service))
	must(t, f.WaitMesh(ctx))
}

// The overlay is nothing in the way of packets.
func testOverlayFindings(t *testing.T, ctx context.Context, w *farNode) {
	must(t, w.broker.WaitChecked(ctx))
	must(t, w.broker.WaitState(ctx, w.broker.Name, v1alpha1.StateUp))
	l, err := w.broker.Link(ctx, w.broker.Name)
	must(t, err)
	if l.Status.Message != "" {
		t.Errorf("LocalLink: %+v", l.Status)
	}
}

// Without the property all of it goes, on both sides.
func testOverlayRemoved(t *testing.T, ctx context.Context, w *farNode) {
	must(t, w.broker.SetCorefile(strings.Replace(w.broker.Corefile(), "ipip vxlan", "ipip none", 1)))
	must(t, w.broker.Reload(ctx))
	within(t, 10*time.Second, "overlay to go", func(ctx context.Context) error {
		o := &v1alpha1.LinkGateway{}
		err := w.broker.Client.Get(ctx, client.ObjectKey{Namespace: fleet.Namespace, Name: "kubelink"}, o)
		if err == nil && o.Spec.VXLAN != nil {
			err = fmt.Errorf("LinkGateway says %+v", o.Spec.VXLAN)
		}
		for _, h := range []*testbed.Node{w.broker.Gateway(), w.router.Host.Node} {
			out, e := h.Run(ctx, "sh", "-c", "ip link; ip rule; ip route show table all; iptables-save")
			for _, text := range []string{"klvxlan", "-VXLAN-", "118107", "KLINK-MASQUERADE"} {
				if strings.Contains(out, text) {
					e = fmt.Errorf("%s has %s", h.Name, text)
				}
			}
			err = errors.Join(err, e)
		}
		return err
	})
	waitForReply(t, 5*time.Second, clients[1], servers[w.peer].service)
}

// A gateway in a pod, behind a network of pods that lets nothing out of a pod but its own address, and a network of
// nodes that drops foreign addresses: all nodes, that of the pod, too, reach it through the overlay.
func TestOverlayPodMode(t *testing.T) {
	ctx := startTest(t, 4*time.Minute)
	b := brokers[2]
	w := startPodMode(t, ctx)
	w.waitUp(t, ctx)
	dropForeign(t, ctx, b)
	gateway, pod := b.Gateway(), w.broker.Host.Address.String()
	way, err := gateway.Run(ctx, "ip", "-o", "route", "get", pod)
	must(t, err)
	_, device, _ := strings.Cut(way, " dev ")
	rule := []string{"PREROUTING", "-i", strings.Fields(device)[0], "!", "-s", pod, "-j", "DROP"}
	_, err = gateway.Iptables(ctx, append([]string{"-t", "raw", "-A"}, rule...)...)
	must(t, err)
	text := w.broker.Corefile()
	t.Cleanup(func() {
		_, err := gateway.Iptables(context.Background(), append([]string{"-t", "raw", "-D"}, rule...)...)
		must(t, errors.Join(err, w.broker.SetCorefile(text)))
	})
	for i, c := range w.clients {
		waitDropped(t, 40*time.Second, w.routers[i]) // it asks every 30 s
		short, cancel := context.WithTimeout(ctx, time.Second)
		_, err := c.Get(short, "http://"+servers[0].service.String()+"/")
		cancel()
		if err == nil {
			t.Fatalf("a request of %s passes without overlay", c.Name)
		}
	}
	addProperties(t, ctx, w.broker, text, "ipip vxlan")
	for _, n := range []*testbed.Node{gateway, w.other} {
		waitRoutes(t, 10*time.Second, n, "192.168.0.0/24 via "+pod+" dev klvxlan")
	}
	w.waitUp(t, ctx)
	w.checkTraffic(t, ctx)
	for _, r := range w.routers {
		must(t, r.WaitReady(ctx))
	}
}
