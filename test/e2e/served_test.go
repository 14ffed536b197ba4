package e2e

// Two brokers of one cluster, each on a node of its own and with links of its own: a mesh has its gateway there.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// secondPort of the first cluster's public address leads to its second broker.
const secondPort = 81

// What the brokers of the first cluster serve: the default mesh by its network, and the links of the second mesh, with
// its LocalLink, by their names. The default mesh reaches the third cluster's address through the second cluster; the
// second mesh reaches the services of the third cluster.
const secondLinks = "second--kubelink1,second--kubelink3"

// twoGateways are the brokers of the first cluster, on two nodes, and a node that is no gateway.
type twoGateways struct {
	first, second *fleet.Broker
	plain         *testbed.Node
}

func TestServedLinks(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	one, two, three := brokers[0], brokers[1], brokers[2]
	applyForTest(t, ctx, one, routerFiles)
	far, err := one.AddNode(ctx)
	must(t, err)
	w := &twoGateways{first: one}
	w.plain, err = one.AddNode(ctx)
	must(t, err)
	defer restoreMesh(t)
	linkTwoMeshes(t, ctx)
	must(t, one.WaitState(ctx, "second--kubelink1", v1alpha1.StateUp))
	firstLinks := one.MeshAddress.Masked().String()
	editCorefile(t, ctx, one, "dns-propagation dns", "dns-propagation dns\nserved-links "+firstLinks)
	for _, name := range []string{"second--kubelink1", "second--kubelink3"} {
		must(t, one.WaitState(ctx, name, v1alpha1.StateStale, "no other broker has taken it"))
	}
	w.waitGateways(t, one.Gateway()) // under another name: the former one would go on to lead to both meshes
	text := strings.NewReplacer("served-links "+firstLinks, "served-links "+secondLinks,
		"kubelink:1053 ", "second.example:1053 {\n kubelink\n}\nkubelink:1053 ").Replace(one.Corefile())
	w.second, err = one.Beside(ctx, "kubelink-served", far, text)
	must(t, err)
	t.Cleanup(func() { must(t, w.second.Host.Delete(context.Background())) })
	must(t, w.second.Start(ctx))
	defer func() { must(t, w.second.Kill(context.Background(), syscall.SIGTERM)) }()
	defer func() {
		_, err := one.Kubectl(context.Background(), "-n", fleet.Namespace, "delete", "linkgateways", "--all")
		must(t, err)
	}()
	must(t, one.WaitState(ctx, two.Name, v1alpha1.StateUp))
	must(t, one.WaitState(ctx, three.Name, v1alpha1.StateUp, "through "+two.Name))
	must(t, one.WaitState(ctx, "second--kubelink3", v1alpha1.StateUp))
	must(t, three.WaitState(ctx, "second--kubelink1", v1alpha1.StateUp))
	t.Run("statuses", func(t *testing.T) { w.testStatuses(t, ctx) })
	t.Run("addresses", func(t *testing.T) { w.testAddresses(t, ctx) })
	t.Run("names", func(t *testing.T) { w.testNames(t, ctx) })
	w.testPackets(t, ctx)
	t.Run("restart with another list", func(t *testing.T) { w.testOtherList(t, ctx) })
	// Clusters reach the services of the first one through its two gateways.
	for _, c := range clients[1:] {
		waitForReply(t, 5*time.Second, c, servers[0].service)
	}
}

// waitGateways waits until LinkGateways name these nodes, one each, and returns their names by node.
func (w *twoGateways) waitGateways(t *testing.T, nodes ...*testbed.Node) (names map[string]string) {
	t.Helper()
	within(t, 10*time.Second, "LinkGateways", func(ctx context.Context) error {
		var list v1alpha1.LinkGatewayList
		names = map[string]string{}
		err := w.first.Client.List(ctx, &list, client.InNamespace(fleet.Namespace))
		for _, g := range list.Items {
			if names[g.Spec.Node] != "" || g.Name == "kubelink" {
				err = fmt.Errorf("%s and %s name node %s", names[g.Spec.Node], g.Name, g.Spec.Node)
			}
			names[g.Spec.Node] = g.Name
		}
		for _, n := range nodes {
			if names[n.Name] == "" || len(names) != len(nodes) {
				err = fmt.Errorf("%v", names)
			}
		}
		return err
	})
	return names
}

// Each broker writes the status of its links, and of its LocalLink.
func (w *twoGateways) testStatuses(t *testing.T, ctx context.Context) {
	for name, broker := range map[string]*fleet.Broker{
		"kubelink1": w.first, "kubelink2": w.first, "kubelink3": w.first,
		"second--kubelink1": w.second, "second--kubelink3": w.second,
	} {
		must(t, w.first.WaitState(ctx, name, v1alpha1.StateUp))
		l, err := w.first.Link(ctx, name)
		must(t, err)
		if want := broker.Host.Node.Address.String(); l.Status.Gateway != want {
			t.Errorf("%s: gateway %s, want %s", name, l.Status.Gateway, want)
		}
	}
	// A link that no list names is told at the LocalLink.
	must(t, w.first.Apply(ctx, newKubeLink("second--nobody", "10.99.0.9/24", "nobody.example", nil)))
	defer func() { must(t, w.first.Remove(ctx, "second--nobody")) }()
	within(t, 15*time.Second, "message of the LocalLink", func(ctx context.Context) error {
		l, err := w.first.Link(ctx, "second--nobody") // each change has the brokers look again
		if err != nil {
			return err
		}
		metav1.SetMetaDataAnnotation(&l.ObjectMeta, "example.org/tried", time.Now().String())
		if err := w.first.Client.Update(ctx, l); err != nil {
			return err
		}
		l, err = w.first.Link(ctx, "second--kubelink1")
		if err == nil && !strings.Contains(l.Status.Message, "no broker serves second--nobody") {
			err = errors.New(l.Status.Message)
		}
		return err
	})
}

// Each node has the address of this cluster in the meshes of its broker only.
func (w *twoGateways) testAddresses(t *testing.T, ctx context.Context) {
	for _, b := range []*fleet.Broker{w.first, w.second} {
		got, err := b.Host.Node.Run(ctx, "ip", "-o", "address", "show", "dev", "kubelink")
		must(t, err)
		for address, own := range map[string]bool{
			w.first.MeshAddress.Addr().String(): b == w.first, "10.99.0.1": b == w.second,
		} {
			if strings.Contains(got, " "+address+"/") != own {
				t.Errorf("%s: address %s, want %v:\n%s", b.Host.Node.Name, address, own, got)
			}
		}
	}
}

// Each broker answers names of its meshes, and does not say that others do not exist.
func (w *twoGateways) testNames(t *testing.T, ctx context.Context) {
	const far = "server.default.svc.kubelink3.second.example."
	must(t, checkAnswer(ctx, w.first, serverName(1), servers[1].service))
	within(t, 2*time.Second, "name in the second mesh", func(ctx context.Context) error {
		return checkAnswer(ctx, w.second, far, servers[2].service)
	})
	m, _, err := queryBroker(ctx, w.second, "udp", serverName(1), dns.TypeA)
	must(t, err)
	if m.Rcode == dns.RcodeNameError || len(m.Answer) > 0 {
		t.Errorf("a broker answers for the mesh of another one: %v", m)
	}
}

// Packets from pods of all nodes take the right gateway.
func (w *twoGateways) testPackets(t *testing.T, ctx context.Context) {
	near, far := w.first.Host.Node, w.second.Host.Node
	toSecond := brokers[2].ServiceCIDR.String() + " via " + far.Address.String()
	toFirst := brokers[1].ServiceCIDR.String() + " via " + near.Address.String()
	routes := map[*testbed.Node][]string{near: {toSecond}, far: {toFirst}, w.plain: {toFirst, toSecond}}
	for i, n := range []*testbed.Node{near, far, w.plain} {
		startRouter(t, ctx, w.first, n)
		waitRoutes(t, 5*time.Second, n, routes[n]...)
		pod := clients[0]
		if i > 0 {
			var err error
			pod, err = w.first.Pod(ctx, fmt.Sprintf("served-%d", i), testbed.PodOptions{Node: n})
			must(t, err)
			t.Cleanup(func() { must(t, pod.Delete(context.Background())) })
		}
		t.Run(n.Name+", default mesh", func(t *testing.T) {
			countPackets(t, ctx, pod, servers[1].service, w.first, "kubelink2")
		})
		t.Run(n.Name+", second mesh", func(t *testing.T) {
			countPackets(t, ctx, pod, servers[2].service, w.second, "second--kubelink3")
		})
	}
}

// countPackets makes requests, and waits until the gateway has counted their packets.
func countPackets(
	t *testing.T, ctx context.Context, pod *testbed.Pod, to netip.Addr, gateway *fleet.Broker, link string,
) {
	t.Helper()
	series := fmt.Sprintf("coredns_kubelink_link_bytes_total{direction=%q,link=%q}", "tx", link)
	before, err := gateway.Metric(ctx, series)
	must(t, err)
	const requests, bytes = 20, 20 * 200 // what else is sent meanwhile is less
	for range requests {
		_, err := pod.Get(ctx, "http://"+to.String()+"/")
		must(t, err)
	}
	within(t, 2*time.Second, "packets to be counted", func(ctx context.Context) error {
		after, err := gateway.Metric(ctx, series)
		if err == nil && after < before+bytes {
			err = fmt.Errorf("%g bytes of %d", after-before, bytes)
		}
		return err
	})
}

// A broker that is killed and has another list at its start has another LinkGateway. The former one goes.
func (w *twoGateways) testOtherList(t *testing.T, ctx context.Context) {
	nodes := []*testbed.Node{w.first.Host.Node, w.second.Host.Node}
	before := w.waitGateways(t, nodes...)
	must(t, w.second.SetCorefile(strings.Replace(w.second.Corefile(), secondLinks, "second", 1)))
	must(t, w.second.Kill(ctx, syscall.SIGKILL))
	must(t, w.second.Start(ctx))
	within(t, 10*time.Second, "another LinkGateway", func(context.Context) error {
		after := w.waitGateways(t, nodes...)
		if name := nodes[1].Name; after[name] == before[name] {
			return fmt.Errorf("it is still %s", after[name])
		}
		return nil
	})
	waitRoutes(t, 5*time.Second, w.plain, brokers[2].ServiceCIDR.String()+" via "+nodes[1].Address.String())
}

// linkTwoMeshes makes the links of the brokers. The third cluster gives its services to the second mesh, and takes the
// services of the first cluster from there.
func linkTwoMeshes(t *testing.T, ctx context.Context) {
	t.Helper()
	one, two, three := brokers[0], brokers[1], brokers[2]
	forwardSecondPort(t, ctx, one)
	for _, pair := range [][2]*fleet.Broker{{one, three}, {three, one}} {
		l := pair[1].LinkTo()
		l.Spec.Endpoint, l.Spec.GatewayLink, l.Spec.CIDR = "", two.Name, ""
		must(t, pair[0].Apply(ctx, l))
	}
	addresses := map[*fleet.Broker]string{one: "10.99.0.1/24", three: "10.99.0.3/24"}
	endpoints := map[*fleet.Broker]string{one: fmt.Sprintf("%s:%d", one.FQDN, secondPort), three: three.FQDN}
	for _, pair := range [][2]*fleet.Broker{{one, three}, {three, one}} {
		for _, of := range pair { // the LocalLink is the first, so the test removes it last
			l := newKubeLink("second--"+of.Name, addresses[of], endpoints[of], withCIDR(of.ServiceCIDR.String()))
			l.Spec.PublicKey = of.LinkTo().Spec.PublicKey
			if of == pair[0] {
				l.Spec.PublicKey = ""
				l.Spec.Endpoint, l.Spec.DNS = v1alpha1.EndpointLocal, &v1alpha1.KubeLinkDNS{BaseDomain: "second.example"}
			}
			must(t, pair[0].Apply(ctx, l))
			t.Cleanup(func() { must(t, pair[0].Remove(context.Background(), l.Name)) })
		}
	}
}

// forwardSecondPort has the load balancer of a cluster lead secondPort to the second node.
func forwardSecondPort(t *testing.T, ctx context.Context, b *fleet.Broker) {
	t.Helper()
	protocol, port := brokerPort()
	rule := func(action string) error {
		_, err := b.Router.Iptables(context.WithoutCancel(ctx), "-t", "nat", action, "PREROUTING", "-d",
			b.PublicAddress.String(), "-p", protocol, "--dport", fmt.Sprint(secondPort), "-j", "DNAT", "--to-destination",
			b.Nodes[len(b.Nodes)-2].Address.String()+":"+port)
		return err
	}
	must(t, rule("-A"))
	t.Cleanup(func() { must(t, rule("-D")) })
}

// startRouter of a node, which removes what it has set at the end of the test.
func startRouter(t *testing.T, ctx context.Context, b *fleet.Broker, n *testbed.Node) {
	t.Helper()
	r, err := b.NodeRouter(ctx, n)
	must(t, err)
	must(t, r.Launch())
	t.Cleanup(func() {
		ctx := context.Background()
		if t.Failed() {
			t.Logf("--- router on %s\n%s", n.Name, r.Process.Log())
		}
		must(t, errors.Join(r.Kill(ctx, syscall.SIGTERM), r.Cleanup(ctx), r.Host.Delete(ctx)))
	})
	must(t, r.WaitReady(ctx))
}
