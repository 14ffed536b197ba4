package e2e

// The broker of the third cluster in a pod of its own (pod mode). Routers lead packets of all nodes to it.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// podMode is the third cluster with its broker in a pod on the gateway node.
type podMode struct {
	broker  *fleet.Broker
	other   *testbed.Node // not the gateway node
	clients []*testbed.Pod
	server  *server // on the other node
	routers []*fleet.Router
}

// startPodMode ends the broker of the third cluster and starts one in a pod.
func startPodMode(t *testing.T, ctx context.Context) *podMode {
	t.Helper()
	b := brokers[2]
	w := &podMode{clients: []*testbed.Pod{clients[2]}, server: &server{}}
	var err error
	w.other, err = b.AddNode(ctx)
	must(t, err)
	away, err := b.Pod(ctx, "client-pod-mode", testbed.PodOptions{Node: w.other})
	must(t, err)
	w.clients = append(w.clients, away)
	w.server.pod, err = b.Pod(ctx, "server-pod-mode", testbed.PodOptions{Node: w.other})
	must(t, err)
	must(t, w.server.pod.ServeHTTPEcho(httpPort))
	w.server.service, err = b.Service(ctx, "server-pod-mode", map[string]string{"app": "server-pod-mode"},
		[]corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(httpPort)}}, testbed.ServiceOptions{})
	must(t, err)
	applyForTest(t, ctx, b, routerFiles)
	for _, n := range []*testbed.Node{b.Gateway(), w.other} {
		r, err := b.NodeRouter(ctx, n)
		must(t, err)
		must(t, r.Launch())
		w.routers = append(w.routers, r)
	}
	must(t, b.Kill(ctx, syscall.SIGTERM))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		w.clearPort(ctx)
		for _, r := range w.routers {
			must(t, r.Kill(ctx, syscall.SIGTERM))
			must(t, r.Cleanup(ctx))
			must(t, r.Host.Delete(ctx))
		}
		service := &corev1.Service{}
		service.Namespace, service.Name = "default", "server-pod-mode"
		must(t, errors.Join(w.broker.Host.Delete(ctx), away.Delete(ctx), w.server.pod.Delete(ctx),
			b.Client.Delete(ctx, service)))
		must(t, b.Start(ctx))
		must(t, f.WaitMesh(ctx))
	})
	w.replace(t, ctx, "kubelink-pod-1")
	return w
}

// replace puts a broker in a new pod in the place of the one that runs, as the strategy Recreate does.
func (w *podMode) replace(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	b := brokers[2]
	if w.broker != nil {
		w.clearPort(ctx)
		must(t, w.broker.Kill(ctx, syscall.SIGTERM))
		must(t, w.broker.Host.Delete(ctx))
	}
	var err error
	w.broker, err = b.InPod(ctx, name, b.Gateway())
	must(t, err)
	must(t, w.broker.Host.Sysctl("net.ipv4.ip_forward=0")) // as in pods of most nodes
	must(t, w.broker.Launch())
	w.waitGateway(t, ctx)
}

// waitGateway waits for the LinkGateway of the broker's pod, and for the routes of all nodes. The node of the pod leads
// connections of peers to it, as a service does.
func (w *podMode) waitGateway(t *testing.T, ctx context.Context) {
	t.Helper()
	spec := v1alpha1.LinkGatewaySpec{}
	pod, gateway := w.broker.Host.Address.String(), w.broker.Host.Node
	must(t, testbed.Until(ctx, "LinkGateway with pod "+pod, func(ctx context.Context) error {
		o := &v1alpha1.LinkGateway{}
		err := w.broker.Client.Get(ctx, client.ObjectKey{Namespace: fleet.Namespace, Name: "kubelink"}, o)
		if spec = o.Spec; err == nil && !slices.Equal(spec.PodIPs, []v1alpha1.GatewayIP{v1alpha1.GatewayIP(pod)}) {
			err = fmt.Errorf("%+v", spec)
		}
		return err
	}))
	nodeIPs := []v1alpha1.GatewayIP{v1alpha1.GatewayIP(gateway.Address.String())}
	if spec.Node != gateway.Name || !slices.Equal(spec.NodeIPs, nodeIPs) ||
		!strings.HasPrefix(spec.Pod, "kubelink-pod-") || len(spec.Networks) != 3 || int(spec.MTU) != linkMTU() {
		t.Errorf("LinkGateway says %+v", spec)
	}
	for _, network := range spec.Networks {
		waitRoutes(t, time.Second, gateway, string(network)+" via "+pod)
		waitRoutes(t, time.Second, w.other, string(network)+" via "+gateway.Address.String())
	}
	for _, r := range w.routers {
		must(t, r.WaitReady(ctx))
	}
	protocol, port := brokerPort()
	_, err := gateway.Iptables(ctx, "-t", "nat", "-I", "PREROUTING", "-d", gateway.Address.String(), "-p", protocol,
		"--dport", port, "-m", "comment", "--comment", "pod-mode", "-j", "DNAT", "--to-destination", pod+":"+port)
	must(t, err)
}

// clearPort removes the way of connections to the pod.
func (w *podMode) clearPort(ctx context.Context) {
	brokers[2].Gateway().Run(ctx, "sh", "-c",
		"iptables -t nat -S PREROUTING | sed -n 's/^-A \\(.*pod-mode.*\\)/iptables -t nat -D \\1/p' | sh")
}

// checkTraffic sends requests from and to pods of all nodes.
func (w *podMode) checkTraffic(t *testing.T, ctx context.Context) {
	t.Helper()
	for _, from := range w.clients {
		for _, to := range servers[:2] {
			waitForReply(t, 5*time.Second, from, to.service)
			seen, err := from.Get(ctx, "http://"+to.service.String()+"/")
			must(t, err)
			checkClientAddress(t, seen)
		}
		_, err := from.Ping(ctx, brokers[0].MeshAddress.Addr())
		must(t, err)
	}
	for _, from := range clients[:2] {
		for _, to := range []*server{servers[2], w.server} {
			seen, err := from.Get(ctx, "http://"+to.service.String()+"/")
			must(t, err)
			if a, err := netip.ParseAddr(seen); err != nil || a != w.broker.Host.Address && !testbed.NodeCIDR.Contains(a) {
				t.Errorf("the server saw %s, want the address of the pod or of a node", seen)
			}
		}
		_, err := from.Ping(ctx, w.broker.MeshAddress.Addr())
		must(t, err)
	}
	must(t, checkAnswer(ctx, w.broker, serverName(0), servers[0].service))
	must(t, checkAnswer(ctx, brokers[0], serverName(2), servers[2].service))
}

// waitUp waits until all links of the broker are up, and nothing is in the way of packets.
func (w *podMode) waitUp(t *testing.T, ctx context.Context) {
	t.Helper()
	must(t, w.broker.WaitReady(ctx))
	for _, peer := range brokers[:2] {
		must(t, w.broker.WaitState(ctx, peer.Name, v1alpha1.StateUp))
		must(t, peer.WaitState(ctx, w.broker.Name, v1alpha1.StateUp))
	}
	must(t, w.broker.WaitChecked(ctx))
	must(t, w.broker.WaitState(ctx, w.broker.Name, v1alpha1.StateUp))
	l, err := w.broker.Link(ctx, w.broker.Name)
	must(t, err)
	if l.Status.Message != "" || l.Status.Gateway != w.broker.Host.Node.Address.String() {
		t.Errorf("LocalLink: %+v", l.Status)
	}
}

// checkService checks that no link gets to the broker by its service, whose packets would come back from a node.
func (w *podMode) checkService(t *testing.T, ctx context.Context) {
	t.Helper()
	s := &corev1.Service{}
	must(t, w.broker.Client.Get(ctx, client.ObjectKey{Namespace: fleet.Namespace, Name: "kubelink"}, s))
	rules, err := w.broker.Host.Iptables(ctx, "-t", "mangle", "-S", "KLINK-LOCAL")
	must(t, err)
	protocol, _ := brokerPort()
	to := func(network string, port int32) string {
		return fmt.Sprintf("-A KLINK-LOCAL -d %s -p %s -m %[2]s --dport %d -j DROP\n", network, protocol, port)
	}
	for _, p := range s.Spec.Ports {
		for _, rule := range []string{to(s.Spec.ClusterIP+"/32", p.Port), to(testbed.NodeCIDR.String(), p.NodePort)} {
			if !strings.Contains(rules, rule) {
				t.Errorf("there is no %s in %s", rule, rules)
			}
		}
	}
}

func TestPodMode(t *testing.T) {
	ctx := startTest(t, 4*time.Minute)
	w := startPodMode(t, ctx)
	w.waitUp(t, ctx)
	w.checkService(t, ctx)
	w.checkTraffic(t, ctx)
	for _, c := range []struct {
		name   string
		signal syscall.Signal
		limit  time.Duration
	}{{"killed", syscall.SIGKILL, returnTime()}, {"ended in order", syscall.SIGTERM, 5 * time.Second}} {
		must(t, w.broker.Kill(ctx, c.signal))
		must(t, w.broker.Launch())
		took := waitForReply(t, c.limit, w.clients[1], servers[0].service)
		back := waitForReply(t, c.limit, clients[0], w.server.service)
		t.Logf("%s: requests from another node pass again after %s, those to it after another %s", c.name, took, back)
		w.waitUp(t, ctx)
		w.checkTraffic(t, ctx)
	}
	start := time.Now()
	w.replace(t, ctx, "kubelink-pod-2")
	took := waitForReply(t, 5*time.Second, w.clients[1], servers[0].service)
	t.Logf("a new pod: requests from another node pass again after %s, of which %s are since the routes lead to it",
		time.Since(start), took)
	w.waitUp(t, ctx)
	w.checkTraffic(t, ctx)
	t.Run("two meshes", func(t *testing.T) { testPodInTwoMeshes(t, ctx, w) })
	t.Run("what a pod lacks", func(t *testing.T) { testPodLacks(t, ctx, w) })
}

// testPodInTwoMeshes links the third cluster with the first one in a second mesh, and with the second one in the
// default mesh. A peer drops what does not come from the address that the third cluster has in its mesh.
func testPodInTwoMeshes(t *testing.T, ctx context.Context, w *podMode) {
	one, two, three := brokers[0], brokers[1], w.broker
	must(t, errors.Join(one.Remove(ctx, three.Name), three.Remove(ctx, one.Name)))
	defer func() {
		must(t, errors.Join(one.Apply(ctx, three.LinkTo()), three.Apply(ctx, one.LinkTo())))
		w.waitUp(t, ctx)
		w.checkTraffic(t, ctx)
	}()
	defer joinSecondMesh(t, ctx, one, three)()
	must(t, three.WaitState(ctx, "second--kubelink1", v1alpha1.StateUp))
	must(t, one.WaitState(ctx, "second--kubelink3", v1alpha1.StateUp))
	for _, n := range []*testbed.Node{three.Host.Node, w.other} {
		via := three.Host.Node.Address
		if n == three.Host.Node {
			via = three.Host.Address
		}
		waitRoutes(t, 2*time.Second, n, "10.99.0.0/24 via "+via.String())
	}
	for i, addresses := range [][2]netip.Addr{
		{netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.3")},
		{two.MeshAddress.Addr(), three.MeshAddress.Addr()},
	} {
		for _, from := range w.clients {
			waitForReply(t, 5*time.Second, from, servers[i].service)
			_, err := from.Ping(ctx, addresses[0])
			must(t, err)
		}
		for _, to := range []*server{servers[2], w.server} {
			waitForReply(t, 5*time.Second, clients[i], to.service)
		}
		_, err := clients[i].Ping(ctx, addresses[1])
		must(t, err)
	}
	must(t, checkAnswer(ctx, three, serverName(1), servers[1].service))
	text := three.Corefile()
	defer func() { must(t, errors.Join(three.SetCorefile(text), three.Reload(ctx))) }()
	must(t, three.SetCorefile("second.example:1053 {\n kubelink\n}\n"+text))
	must(t, three.Reload(ctx))
	within(t, 2*time.Second, "name in the second mesh", func(ctx context.Context) error {
		return checkAnswer(ctx, three, "server.default.svc.kubelink1.second.example.", servers[0].service)
	})
	must(t, checkAnswer(ctx, three, serverName(1), servers[1].service))
}

// testPodLacks takes away what pod mode needs: it is named with the remedy, names are served, and it is enough to give
// it back.
func testPodLacks(t *testing.T, ctx context.Context, w *podMode) {
	text := w.broker.Corefile()
	defer func() { must(t, w.broker.SetCorefile(text)) }()
	for _, c := range []struct {
		name    string
		remove  string // from the Corefile
		command string // runs before the broker, in its mount namespace
		undo    string
		want    []string
	}{
		{"node-ip", "node-ip", "", "",
			[]string{"no interface has an address in node-cidr 10.250.0.0/16", "node-ip is missing"}},
		{"pod-cidr", "pod-cidr", "", "", []string{"pod-cidr is missing"}},
		{"the device", "", "mount -t tmpfs none /dev/net", "umount /dev/net",
			[]string{"open TUN kubelink", "/dev/net/tun", "volume hostPath, type CharDevice"}},
	} {
		var lines []string
		for line := range strings.Lines(text) {
			if c.remove == "" || !strings.HasPrefix(strings.TrimSpace(line), c.remove+" ") {
				lines = append(lines, line)
			}
		}
		must(t, w.broker.SetCorefile(strings.Join(lines, "")))
		must(t, w.broker.Kill(ctx, syscall.SIGTERM))
		run := func(command string) {
			if command != "" {
				_, err := w.broker.Host.Run(ctx, "sh", "-c", command)
				must(t, err)
			}
		}
		run(c.command)
		must(t, w.broker.Launch())
		within(t, 10*time.Second, "finding about "+c.name, func(ctx context.Context) error {
			l, err := w.broker.Link(ctx, w.broker.Name)
			if err != nil {
				return err
			}
			_, ready := w.broker.Host.Get(ctx, fleet.ReadyURL)
			for _, text := range c.want {
				if l.Status.State != v1alpha1.StateError || !strings.Contains(l.Status.Message, text) || ready == nil ||
					!strings.Contains(w.broker.Process.Log(), text) {
					return fmt.Errorf("%q is missing: %+v, ready %v", text, l.Status, ready)
				}
			}
			return checkAnswer(ctx, w.broker, "kubelink3.kubelink.", w.broker.MeshAddress.Addr())
		})
		run(c.undo)
		must(t, w.broker.SetCorefile(text))
		if c.remove != "" {
			must(t, w.broker.Reload(ctx))
		}
		w.waitUp(t, ctx)
		w.waitGateway(t, ctx)
		w.checkTraffic(t, ctx)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Error(err)
	}
}
