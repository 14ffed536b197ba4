package e2e

// Pods on nodes that are not the gateway: a router leads their packets there.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const routerFiles = "components/router/rbac.yaml"

// farNode is a second node of a cluster, with a router, and a pod that is client and server.
type farNode struct {
	broker  *fleet.Broker
	router  *fleet.Router
	pod     *testbed.Pod
	service netip.Addr
	peer    int // another cluster
}

// startFarNode adds a node to a cluster. There is no router yet.
func startFarNode(t *testing.T, ctx context.Context, b *fleet.Broker, peer int) *farNode {
	t.Helper()
	applyForTest(t, ctx, b, routerFiles)
	n, err := b.AddNode(ctx)
	must(t, err)
	w := &farNode{broker: b, peer: peer}
	name := "far-" + n.Name[strings.LastIndex(n.Name, "-")+1:]
	w.pod, err = b.Pod(ctx, name, testbed.PodOptions{Node: n})
	must(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "far") })
	mux.HandleFunc("/bulk", serveBulk)
	must(t, w.pod.ServeHTTP(httpPort, mux))
	must(t, w.pod.ServeUDPEcho(udpPort))
	w.service, err = b.Service(ctx, name, map[string]string{"app": name}, []corev1.ServicePort{
		{Name: "http", Port: 80, TargetPort: intstr.FromInt32(httpPort)}, testbed.UDPPort(udpPort)}, testbed.ServiceOptions{})
	must(t, err)
	w.router, err = b.NodeRouter(ctx, n)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must(t, w.router.Host.Delete(ctx))
		must(t, w.pod.Delete(ctx))
	})
	return w
}

// routes are the routes of a router on its node.
func routesOf(ctx context.Context, n *testbed.Node) (string, error) {
	return n.Run(ctx, "ip", "route", "show", "table", "all", "proto", "114")
}

// waitRoutes waits until the routes of a node have all texts, and returns how long that took.
func waitRoutes(t *testing.T, limit time.Duration, n *testbed.Node, texts ...string) time.Duration {
	t.Helper()
	return within(t, limit, "routes of "+n.Name, func(ctx context.Context) error {
		got, err := routesOf(ctx, n)
		for _, text := range texts {
			if err == nil && !strings.Contains(got, text) {
				err = fmt.Errorf("no %q in\n%s\n", text, got)
			}
		}
		return err
	})
}

func TestRouter(t *testing.T) {
	ctx := startTest(t, 5*time.Minute)
	w := startFarNode(t, ctx, brokers[1], 0)
	short, cancel := context.WithTimeout(ctx, time.Second)
	_, err := w.pod.Get(short, "http://"+servers[w.peer].service.String()+"/")
	cancel()
	if err == nil {
		t.Fatal("a pod that is not on the gateway node reaches another cluster without router")
	}
	must(t, w.router.Launch())
	must(t, w.router.WaitReady(ctx))
	for _, step := range []struct {
		name string
		run  func(*testing.T, context.Context, *farNode)
	}{
		{"traffic", testFarTraffic},
		{"the router is killed, and ends", testRouterEnds},
		{"the API server is away", testRouterWithoutAPI},
		{"a route is removed", testRouteRemoved},
		{"a foreign route", testForeignRoute},
		{"rights", testRouterRights},
		{"a link goes and comes back", testLinkGoes},
		{"the DaemonSet is deleted", testDaemonSetDeleted},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, ctx, w) }) {
			t.Logf("--- router\n%s", w.router.Process.Log())
			return
		}
	}
}

// A node whose pods have no way to the links, as it has no router, is named with the remedy, until it has one. The
// gateway's node needs none. Other tests may have added nodes.
func TestNodeWithoutRouter(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	b, peer, command, text := brokers[2], brokers[0].Name, newCommandLine(t), brokers[2].Corefile()
	must(t, b.SetCorefile(strings.Replace(text, fleet.NoRouters+"\n", "", 1)))
	must(t, b.Reload(ctx))
	defer func() { must(t, b.SetCorefile(text)); must(t, b.Reload(context.Background())) }()
	lacking := func(want float64) {
		t.Helper()
		within(t, time.Minute, "nodes without router", func(ctx context.Context) error {
			n, err := b.Metric(ctx, `coredns_kubelink_nodes_without_router{reason="RouterMissing"}`)
			if err == nil && n != want {
				err = fmt.Errorf("%g nodes, want %g", n, want)
			}
			return err
		})
	}
	lacking(float64(len(b.Nodes) - 1))
	applyForTest(t, ctx, b, routerFiles)
	_, err := b.AddNode(ctx)
	must(t, err)
	others := b.Nodes[1:]
	lacking(float64(len(others)))
	var names []string
	for _, n := range others {
		names = append(names, n.Name)
	}
	nodes := "node " + names[0]
	if len(names) > 1 {
		nodes = "nodes " + strings.Join(names, ", ")
	}
	missing := "no kubelink-router runs on " + nodes + ": pods there have no way to the links"
	must(t, b.WaitState(ctx, b.Name, v1alpha1.StateUp, missing, "install the component router"))
	expectForwarding(t, ctx, b, b.Name, metav1.ConditionFalse, "RouterMissing")
	must(t, b.WaitState(ctx, peer, v1alpha1.StateUp)) // packets of all other pods get through
	found := command.diagnose(t, b.Name)
	if len(found) != 1 || found[0].Reason != "RouterMissing" || found[0].Message != missing ||
		found[0].Severity != "error" || !strings.Contains(found[0].Remedy, "install the component router") {
		t.Errorf("%+v", found)
	}
	if out, code, _ := command.run(t, "status", b.Name); code != 3 || !strings.Contains(out, missing) {
		t.Errorf("status: exit code %d\n%s", code, out)
	}
	if _, err := b.Host.Get(ctx, fleet.ReadyURL); err != nil {
		t.Errorf("the broker is not ready, and its names are gone: %v", err)
	}

	for _, n := range others {
		r, err := b.NodeRouter(ctx, n)
		must(t, err)
		defer func() { must(t, r.Host.Delete(context.Background())) }()
		must(t, r.Launch())
		must(t, r.WaitReady(ctx))
	}
	expectForwarding(t, ctx, b, b.Name, metav1.ConditionTrue, "NothingFound")
	lacking(0)
	command.expectHealthy(t)
}

// expectForwarding waits until the check of the nodes says that of a link.
func expectForwarding(
	t *testing.T, ctx context.Context, b *fleet.Broker, name string, status metav1.ConditionStatus, reason string,
) {
	t.Helper()
	within(t, 5*time.Second, "condition of "+name, func(context.Context) error {
		_, c, err := forwarding(ctx, b, name)
		if err == nil && (c.Status != status || c.Reason != reason) {
			err = fmt.Errorf("%+v", c)
		}
		return err
	})
}

// Both ways, by address and name, TCP and UDP, and 100 MiB.
func testFarTraffic(t *testing.T, ctx context.Context, w *farNode) {
	gateway := w.broker.Gateway().Address.String()
	waitRoutes(t, 5*time.Second, w.router.Host.Node, "192.168.0.0/24 via "+gateway, "metric 101",
		brokers[w.peer].ServiceCIDR.String()+" via "+gateway)
	for _, host := range []string{servers[w.peer].service.String(), strings.TrimSuffix(serverName(w.peer), ".")} {
		seen, err := w.pod.Get(ctx, "http://"+host+"/")
		must(t, err)
		checkClientAddress(t, seen)
	}
	for from, to := range map[*testbed.Pod]netip.Addr{w.pod: servers[w.peer].service, clients[w.peer]: w.service} {
		start := time.Now()
		must(t, transfer(ctx, from, to, 100<<20, 0))
		t.Logf("100 MiB to %s: %s", from.Name, formatMbit(100<<23/time.Since(start).Seconds()))
		conn, err := from.DialContext(ctx, "udp", netip.AddrPortFrom(to, udpPort).String())
		must(t, err)
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		_, err = conn.Write(make([]byte, min(1400, linkMTU()-28)))
		must(t, err)
		_, err = conn.Read(make([]byte, 64))
		must(t, err)
		conn.Close()
	}
	_, err := w.pod.Ping(ctx, brokers[w.peer].MeshAddress.Addr())
	must(t, err)
}

// Routes stay, and the next router adopts them: it writes nothing.
func testRouterEnds(t *testing.T, ctx context.Context, w *farNode) {
	check := expectNoFailures(t, w.pod, servers[w.peer].service)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		before, err := routesOf(ctx, w.router.Host.Node)
		must(t, err)
		must(t, w.router.Kill(ctx, signal))
		must(t, w.router.Launch())
		must(t, w.router.WaitReady(ctx))
		after, err := routesOf(ctx, w.router.Host.Node)
		must(t, err)
		page, err := w.router.Host.Get(ctx, w.router.URL("metrics"))
		must(t, err)
		if before != after || !strings.Contains(page, "\nkubelink_router_route_changes_total 0\n") {
			t.Errorf("%s: routes\n%s, before\n%s", signal, after, before)
		}
	}
	check()
}

// Without API server all stays, also with a router that starts then.
func testRouterWithoutAPI(t *testing.T, ctx context.Context, w *farNode) {
	check := expectNoFailures(t, w.pod, servers[w.peer].service)
	before, err := routesOf(ctx, w.router.Host.Node)
	must(t, err)
	must(t, w.broker.StopAPIServer(ctx))
	must(t, w.router.Kill(ctx, syscall.SIGTERM))
	must(t, w.router.Launch())
	within(t, 10*time.Second, "router to wait", func(ctx context.Context) error {
		if _, err := w.router.Host.Get(ctx, w.router.URL("healthz")); err != nil {
			return err
		}
		_, err := w.router.Host.Get(ctx, w.router.URL("readyz"))
		if err == nil || !strings.Contains(err.Error(), "the API server has not told of") {
			return fmt.Errorf("readyz: %w", err)
		}
		return nil
	})
	during(t, 2*time.Second, "routes without API server", func(ctx context.Context) error {
		after, err := routesOf(ctx, w.router.Host.Node)
		if err == nil && after != before {
			err = errors.New(after)
		}
		return err
	})
	must(t, w.broker.StartAPIServer(ctx))
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	must(t, w.router.WaitReady(ready))
	check()
}

// What another program removes comes back.
func testRouteRemoved(t *testing.T, ctx context.Context, w *farNode) {
	n, network := w.router.Host.Node, brokers[w.peer].ServiceCIDR.String()
	_, err := n.Run(ctx, "ip", "route", "del", network, "proto", "114")
	must(t, err)
	t.Logf("back after %s", waitRoutes(t, 2*time.Second, n, network+" via"))
}

// A foreign route stays, is named in the findings and in an Event at the Node, and the rest is set.
func testForeignRoute(t *testing.T, ctx context.Context, w *farNode) {
	n, network := w.router.Host.Node, brokers[w.peer].ServiceCIDR.String()
	_, err := n.Run(ctx, "ip", "route", "add", "prohibit", network, "metric", "50")
	must(t, err)
	read, err := w.router.NewReader(ctx)
	must(t, err)
	within(t, 5*time.Second, "findings to name the route", func(ctx context.Context) error {
		text, err := read(ctx)
		if err == nil && !strings.Contains(text, "prohibit "+network) {
			err = errors.New(text)
		}
		return err
	})
	checkFindingsAccess(t, ctx, w)
	within(t, 5*time.Second, "Event at the Node", func(ctx context.Context) error {
		var list eventsv1.EventList
		if err := w.broker.Client.List(ctx, &list); err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Regarding.Kind == "Node" && e.Regarding.Name == n.Name && e.Reason == "ForeignRoute" &&
				strings.Contains(e.Note, "prohibit "+network) {
				return nil
			}
		}
		return fmt.Errorf("%d others", len(list.Items))
	})
	_, err = w.pod.Ping(ctx, brokers[w.peer].MeshAddress.Addr()) // the route to the mesh
	must(t, err)
	out, err := n.Run(ctx, "ip", "route", "show", "type", "prohibit")
	must(t, err)
	if !strings.Contains(out, network) {
		t.Error("the foreign route is gone")
	}
	_, err = n.Run(ctx, "ip", "route", "del", "prohibit", network, "metric", "50")
	must(t, err)
	must(t, w.router.WaitReady(ctx))
	waitForReply(t, 5*time.Second, w.pod, servers[w.peer].service)
}

// checkFindingsAccess asks for what the router has found about its node without the right to know it.
func checkFindingsAccess(t *testing.T, ctx context.Context, w *farNode) {
	t.Helper()
	if _, err := w.pod.Get(ctx, w.router.URL("readyz")); err == nil ||
		!strings.Contains(err.Error(), "ForeignRoute: 1") || strings.Contains(err.Error(), "prohibit") {
		t.Errorf("readyz tells a pod %v", err)
	}
	stranger, err := w.broker.Kubectl(ctx, "-n", "default", "create", "token", "default", "--audience", "kubelink")
	must(t, err)
	for token, want := range map[string]string{
		"": "401 Unauthorized", "made-up": "401 Unauthorized", strings.TrimSpace(stranger): "403 Forbidden",
	} {
		if text, err := w.router.Findings(ctx, token); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with token %.9q: %s, %v, want %s", token, text, err, want)
		}
	}
}

// What the router may not do is refused.
func testRouterRights(t *testing.T, ctx context.Context, w *farNode) {
	as := "--as=system:serviceaccount:" + fleet.Namespace + ":" + fleet.RouterAccount
	for question, want := range map[string]string{
		"list kubelinks": "yes", "watch linkgateways -n kubelink": "yes", "get daemonsets/kubelink-router -n kubelink": "yes",
		"get endpoints/kubelink -n kubelink": "yes", "create events.events.k8s.io -n default": "yes",
		"create tokenreviews": "yes", "create subjectaccessreviews": "yes",
		"patch kubelinks": "no", "list linkgateways -A": "no", "update linkgateways -n kubelink": "no",
		"get secrets -n kubelink": "no", "list nodes": "no", "list pods -n kubelink": "no",
		"get endpoints/other -n kubelink": "no", "get daemonsets/other -n kubelink": "no",
		"delete daemonsets/kubelink-router -n kubelink": "no", "create events.events.k8s.io -n kubelink": "no",
		"list configmaps -n kubelink": "no", "list endpointslices -A": "no",
	} {
		out, err := w.broker.Kubectl(ctx, append([]string{"auth", "can-i", as}, strings.Fields(question)...)...)
		if got := strings.TrimSpace(out); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q (%v), want %s", question, got, err, want)
		}
	}
}

// A network that no gateway leads to is unreachable at once, and does not take the default route.
func testLinkGoes(t *testing.T, ctx context.Context, w *farNode) {
	far := newKubeLink("nowhere", "192.168.0.77/24", "x.example", withCIDR("100.77.0.0/20"))
	must(t, w.broker.Apply(ctx, far))
	took := waitRoutes(t, 3*time.Second, w.router.Host.Node, "100.77.0.0/20")
	must(t, w.broker.Remove(ctx, far.Name))
	within(t, 3*time.Second, "route to go", func(ctx context.Context) error {
		got, err := routesOf(ctx, w.router.Host.Node)
		if err == nil && strings.Contains(got, "100.77.0.0/20") {
			err = errors.New(got)
		}
		return err
	})
	t.Logf("a route for a new link after %s", took)
}

// The routes go with the DaemonSet, not with a pod of it.
func testDaemonSetDeleted(t *testing.T, ctx context.Context, w *farNode) {
	n := w.router.Host.Node
	text, err := w.broker.Manifest("components/router/daemonset.yaml")
	must(t, err)
	text, _, _ = strings.Cut(text, "\n---\n")
	_, err = w.broker.KubectlInput(ctx, text, "apply", "-f", "-")
	must(t, err)
	must(t, w.router.Kill(ctx, syscall.SIGTERM))
	must(t, w.router.Launch())
	must(t, w.router.WaitReady(ctx))
	must(t, w.router.Process.WaitLog(ctx, "DaemonSet has been seen"))
	must(t, w.router.Kill(ctx, syscall.SIGTERM)) // the pod is replaced
	waitRoutes(t, time.Second, n, "192.168.0.0/24 via")
	must(t, w.router.Launch())
	must(t, w.router.WaitReady(ctx))
	must(t, w.router.Process.WaitLog(ctx, "DaemonSet has been seen"))
	_, err = w.broker.KubectlInput(ctx, text, "delete", "-f", "-")
	must(t, err)
	must(t, w.router.Kill(ctx, syscall.SIGTERM))
	if got, err := routesOf(ctx, n); err != nil || got != "" {
		t.Errorf("routes %q, %v", got, err)
	}
}

// cpuTime is the CPU time that a process has used, in seconds: fields 14 and 15 of proc(5), in 1/100 s.
func cpuTime(t *testing.T, p *testbed.Process) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	must(t, err)
	_, rest, _ := strings.Cut(string(text), ") ")
	words := strings.Fields(rest)
	user, err1 := strconv.Atoi(words[11])
	kernel, err2 := strconv.Atoi(words[12])
	must(t, errors.Join(err1, err2))
	return float64(user+kernel) / 100
}

// manyLinks is a mesh with 250 links of three networks each, and its gateway. No broker runs.
const manyLinks = 250

func createManyLinks(t *testing.T, ctx context.Context, b *fleet.Broker, node *testbed.Node) *v1alpha1.LinkGateway {
	t.Helper()
	g := &v1alpha1.LinkGateway{Spec: v1alpha1.LinkGatewaySpec{Node: node.Name,
		NodeIPs: []v1alpha1.GatewayIP{v1alpha1.GatewayIP(node.Address.String())}}}
	g.Namespace, g.Name = fleet.Namespace, "many"
	for i := range manyLinks {
		l := newKubeLink(fmt.Sprintf("many--c%d", i), fmt.Sprintf("10.200.1.%d/16", i+1), "x.example",
			func(s *v1alpha1.KubeLinkSpec) {
				s.CIDR = fmt.Sprintf("10.64.%d.0/24", i)
				s.Egress = []v1alpha1.EgressCIDR{v1alpha1.EgressCIDR(fmt.Sprintf("10.65.%d.0/24", i)),
					v1alpha1.EgressCIDR(fmt.Sprintf("10.66.%d.0/24", i))}
			})
		must(t, b.Client.Create(ctx, l))
		for _, n := range append([]v1alpha1.EgressCIDR{v1alpha1.EgressCIDR(l.Spec.CIDR)}, l.Spec.Egress...) {
			g.Spec.Networks = append(g.Spec.Networks, v1alpha1.GatewayNetwork(n))
		}
	}
	g.Spec.Networks = append(g.Spec.Networks, "10.200.0.0/16")
	must(t, b.Client.Create(ctx, g))
	return g
}

// countRoutes waits until a node has so many routes of a router to the many links via an address.
func countRoutes(t *testing.T, limit time.Duration, n *testbed.Node, via string, want int) time.Duration {
	t.Helper()
	return within(t, limit, fmt.Sprintf("%d routes via %s", want, via), func(ctx context.Context) error {
		got, err := routesOf(ctx, n)
		count := 0
		for line := range strings.Lines(got) {
			if strings.HasPrefix(line, "10.") && strings.Contains(line, " via "+via+" ") {
				count++
			}
		}
		if err == nil && count != want {
			err = fmt.Errorf("%d", count)
		}
		return err
	})
}

// With 250 links of three networks each, the routes are there soon, follow the gateway soon, and cost little.
func TestRouterManyLinks(t *testing.T) {
	ctx := startTest(t, 4*time.Minute)
	b := brokers[1]
	w := startFarNode(t, ctx, b, 0)
	must(t, b.Kill(ctx, syscall.SIGTERM)) // it would dial all of them
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for i := range manyLinks {
			l := newKubeLink(fmt.Sprintf("many--c%d", i), "", "", nil)
			must(t, client.IgnoreNotFound(b.Client.Delete(ctx, l)))
		}
		g := &v1alpha1.LinkGateway{}
		g.Namespace, g.Name = fleet.Namespace, "many"
		must(t, client.IgnoreNotFound(b.Client.Delete(ctx, g)))
		must(t, b.Start(ctx))
		must(t, f.WaitMesh(ctx))
	})
	g := createManyLinks(t, ctx, b, b.Gateway())
	const routes = 3*manyLinks + 1
	n := w.router.Host.Node
	start := time.Now()
	must(t, w.router.Launch())
	countRoutes(t, 5*time.Second, n, b.Gateway().Address.String(), routes)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("%d routes after %s", routes, took)
	} else {
		t.Logf("%d routes after %s", routes, took)
	}
	must(t, w.router.WaitReady(ctx))
	patch := client.MergeFrom(g.DeepCopy())
	g.Spec.Node, g.Spec.NodeIPs = "elsewhere", []v1alpha1.GatewayIP{"10.250.0.99"}
	must(t, b.Client.Patch(ctx, g, patch))
	if took := countRoutes(t, 5*time.Second, n, "10.250.0.99", routes); took > time.Second {
		t.Errorf("the routes follow the gateway after %s", took)
	} else {
		t.Logf("the routes follow the gateway after %s", took)
	}
	before, idle := cpuTime(t, w.router.Process), 20*time.Second
	<-time.After(idle)
	used := cpuTime(t, w.router.Process) - before
	memory, err := residentMemory(w.router.Process)
	must(t, err)
	t.Logf("%.2f s of CPU in %s idle, %d MB resident", used, idle, memory>>20)
	if used > 0.5*idle.Minutes() || memory > 40<<20 {
		t.Errorf("want at most 0.5 s of CPU in a minute, and 40 MB")
	}
}

// The broker moves to another node: pods of both nodes go on.
func TestRouterFollowsBroker(t *testing.T) {
	ctx := startTest(t, 4*time.Minute)
	two := startTwoBrokers(t, ctx)
	applyForTest(t, ctx, two.first, routerFiles)
	nodes := []*testbed.Node{two.first.Gateway(), two.second.Host.Node}
	for _, n := range nodes {
		r, err := two.first.NodeRouter(ctx, n)
		must(t, err)
		t.Cleanup(func() { must(t, r.Host.Delete(context.Background())) })
		must(t, r.Launch())
		must(t, r.WaitReady(ctx))
		defer func() {
			if t.Failed() {
				t.Logf("--- router on %s\n%s", n.Name, r.Process.Log())
			}
			must(t, r.Kill(ctx, syscall.SIGTERM))
			must(t, r.Cleanup(ctx))
			if got, err := routesOf(ctx, n); err != nil || got != "" {
				t.Errorf("cleanup left %q, %v", got, err)
			}
		}()
	}
	waitRoutes(t, 3*time.Second, nodes[1], "192.168.0.0/24 via "+nodes[0].Address.String())
	to := servers[0].service
	pods := []*testbed.Pod{clients[2], two.server.pod}
	// The routes of the broker go with its interface: then the mesh is unreachable, also on its node.
	must(t, two.first.Kill(ctx, syscall.SIGKILL))
	_, err := nodes[0].Run(ctx, "ip", "link", "del", "kubelink")
	must(t, err)
	waitRoutes(t, time.Second, nodes[0], "unreachable 192.168.0.0/24", "unreachable "+brokers[0].ServiceCIDR.String())
	must(t, two.first.Start(ctx))
	within(t, 5*time.Second, "routes of the broker only", func(ctx context.Context) error {
		got, err := routesOf(ctx, nodes[0])
		if err == nil && got != "" {
			err = errors.New(got)
		}
		return err
	})
	must(t, two.second.Start(ctx))
	for i, move := range []struct{ from, to *fleet.Broker }{{two.first, two.second}, {two.second, two.first}} {
		for _, p := range pods {
			waitForReply(t, 5*time.Second, p, to)
		}
		start := time.Now()
		must(t, move.from.Kill(ctx, syscall.SIGTERM))
		far := nodes[i]
		via := waitRoutes(t, 15*time.Second, far, "192.168.0.0/24 via "+move.to.Host.Node.Address.String())
		var waited []string
		for _, p := range pods {
			waitForReply(t, 15*time.Second, p, to)
			waited = append(waited, fmt.Sprintf("%s after %s", p.Name, time.Since(start).Round(time.Millisecond)))
		}
		t.Logf("routes of %s after %s, requests: %s", far.Name, via.Round(time.Millisecond), strings.Join(waited, ", "))
		if time.Since(start) > 5*time.Second {
			t.Errorf("pods wait %s", time.Since(start))
		}
		must(t, move.from.Start(ctx))
	}
}
