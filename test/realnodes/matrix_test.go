package realnodes

// Tests of kubelink as users install it, on real nodes, in all combinations of where the broker runs, of pod networks
// and of overlays.

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// allVar is set by `make matrix`: all rows are tested. `make test` tests the rows that have each pair of values.
const allVar = "KUBELINK_MATRIX"

// A row has two clusters, so that two combinations share a test bed. With vxlan, their networks are strict: they drop
// addresses that are not those of nodes and pods.
type row struct {
	name          string
	pairwise      bool
	overlay       string // a component; empty: none
	first, second fleet.Installation
}

var matrix = []row{
	{"node mode on ptp, pod mode on a bridge", true, "",
		install("node-mode", testbed.PointToPoint, testbed.ProxyIPTables, 1500),
		install("pod-mode", testbed.Bridge, testbed.ProxyNFTables, 9000)},
	{"vxlan, node mode on a bridge, pod mode on ptp", true, "vxlan",
		install("node-mode", testbed.Bridge, testbed.ProxyNFTables, 9000),
		install("pod-mode", testbed.PointToPoint, testbed.ProxyIPTables, 1500)},
	{"node mode on a bridge, pod mode on ptp", false, "",
		install("node-mode", testbed.Bridge, testbed.ProxyIPTables, 1500),
		install("pod-mode", testbed.PointToPoint, testbed.ProxyIPTables, 9000)},
	{"vxlan, node mode on ptp, pod mode on a bridge", false, "vxlan",
		install("node-mode", testbed.PointToPoint, testbed.ProxyIPTables, 9000),
		install("pod-mode", testbed.Bridge, testbed.ProxyIPTables, 1500)},
}

func install(mode, podNetwork, proxyMode string, mtu int) fleet.Installation {
	return fleet.Installation{
		ClusterOptions: testbed.ClusterOptions{PodNetwork: podNetwork, ProxyMode: proxyMode, MTU: mtu},
		Components:     []string{mode, "router"},
	}
}

func TestMatrix(t *testing.T) {
	for _, r := range matrix {
		if r.pairwise || os.Getenv(allVar) != "" {
			t.Run(r.name, r.check)
		}
	}
}

// makeStrict makes the networks of a cluster drop foreign addresses.
func makeStrict(ctx context.Context, c *testbed.Cluster) error {
	errs := []error{c.FilterNodeNetwork(ctx)}
	for _, n := range c.Nodes {
		errs = append(errs, n.FilterPodNetwork(ctx))
	}
	return errors.Join(errs...)
}

func (r row) check(t *testing.T) {
	clusters := []fleet.Installation{r.first, r.second}
	if r.overlay != "" {
		for i := range clusters {
			clusters[i].Components = append(clusters[i].Components, r.overlay)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	start := time.Now()
	progress := func(what string) { t.Logf("%5.1fs %s", time.Since(start).Seconds(), what) }
	f, err := fleet.Install(ctx, fleet.InstallOptions{Nodes: 2, Clusters: clusters, Progress: progress})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, f.Close()) })
	f.DumpOnFailure(t)
	progress("kubelink is installed")
	if r.overlay != "" {
		for _, c := range f.Clusters {
			check(t, makeStrict(ctx, c))
		}
	}
	check(t, f.Mesh(ctx))
	progress("links are up")
	w := deployWorld(t, ctx, f)
	t.Run("pods", w.checkPods) // it ends when its parallel tests have ended
	t.Run("the broker moves", w.moveBrokers)
	if r.overlay == "" {
		t.Run("routers are killed", w.killRouters)
		t.Run("the DaemonSet is rolled", w.rollRouters)
		t.Run("the API servers are away", w.stopAPIServers)
		t.Run("strict networks need an overlay", w.checkStrict)
	} else {
		t.Run("removal", w.checkRemoval) // after an outage of the API server, kubelet hears of it late
	}
}

// world is a fleet with servers and clients in pods: two of each in each cluster, on two nodes.
type world struct {
	ctx      context.Context
	fleet    *fleet.Fleet
	services []netip.Addr // of the servers, for each cluster
	clients  [][]*testbed.Pod
}

// internetPort is that of a server of the internet.
const internetPort = 9999

func deployWorld(t *testing.T, ctx context.Context, f *fleet.Fleet) *world {
	w := &world{ctx: ctx, fleet: f}
	for _, b := range f.Brokers {
		must(b.Deploy(ctx, "server", 2))(t)
		w.services = append(w.services, must(b.Service(ctx, "web", map[string]string{"app": "server"},
			[]corev1.ServicePort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(8080)},
				{Name: "datagrams", Protocol: corev1.ProtocolUDP, Port: 5353}}, testbed.ServiceOptions{}))(t))
		must(b.Kubectl(ctx, "patch", "service", "web", "-p", `{"spec":{"type":"NodePort"}}`))(t)
		w.clients = append(w.clients, must(b.Deploy(ctx, "client", 2))(t))
		check(t, b.Router.ServeHTTPEcho(internetPort))
	}
	return w
}

func (w *world) checkPods(t *testing.T) {
	for i, b := range w.fleet.Brokers {
		for _, client := range w.clients[i] {
			t.Run(fmt.Sprintf("%s, gateway %s", client.Node.Name, b.Host.Node.Name), func(t *testing.T) {
				t.Parallel()
				peer := w.fleet.Brokers[1-i]
				t.Run("remote", func(t *testing.T) { checkRemote(t, w.ctx, client, peer, w.services[1-i]) })
				t.Run("local", func(t *testing.T) { checkLocal(t, w.ctx, client, b, peer, w.services[i]) })
			})
		}
	}
}

// checkStrict makes networks strict that have no overlay: packets to the meshes get lost between the nodes.
func (w *world) checkStrict(t *testing.T) {
	ctx, brokers := w.ctx, w.fleet.Brokers
	for i, b := range brokers {
		check(t, makeStrict(ctx, b.Cluster))
		for _, client := range w.clients[i] {
			if client.Node == b.Host.Node {
				continue
			}
			if rtt, err := client.Ping(ctx, brokers[1-i].MeshAddress.Addr()); err == nil {
				t.Errorf("%s reaches the mesh in %s", client.Name, rtt)
			}
		}
		if n := must(b.NodeNetworkDrops(ctx))(t); n == 0 {
			t.Errorf("the node network of %s has dropped nothing", b.Name)
		}
	}
}

// checkRemote asks the services of another cluster from a pod.
func checkRemote(t *testing.T, ctx context.Context, client *testbed.Pod, peer *fleet.Broker, service netip.Addr) {
	name := fmt.Sprintf("http://web.default.svc.%s.kubelink", peer.Name)
	// The router of this node may still have to set its routes.
	check(t, testbed.Until(ctx, "the way to "+peer.Name, func(ctx context.Context) error {
		_, err := client.Ping(ctx, peer.MeshAddress.Addr())
		return err
	}))
	must(client.Get(ctx, fmt.Sprintf("http://%s", service)))(t)
	must(client.Get(ctx, name))(t)
	must(askDatagram(client, service))(t)
	body := must(client.HTTPClient().Get(name + "/bytes/100000000"))(t)
	defer body.Body.Close()
	got, want := sha256.New(), sha256.New()
	if n := must(io.Copy(got, body.Body))(t); n != 1e8 {
		t.Errorf("%d bytes of %s", n, body.Request.URL)
	}
	io.CopyN(want, rand.NewChaCha8([32]byte{}), 1e8)
	if string(got.Sum(nil)) != string(want.Sum(nil)) {
		t.Error("100 MB have another checksum")
	}
}

// checkLocal looks whether what a pod reaches without kubelink is as before.
func checkLocal(t *testing.T, ctx context.Context, client *testbed.Pod, own, peer *fleet.Broker, service netip.Addr) {
	if seen := must(client.Get(ctx, fmt.Sprintf("http://%s", service)))(t); seen != client.Address.String() {
		t.Errorf("a service of the own cluster saw %s, not %s", seen, client.Address)
	}
	must(askDatagram(client, service))(t)
	must(client.Ping(ctx, peer.PublicAddress))(t) // the internet
	seen := must(client.Get(ctx, fmt.Sprintf("http://%s:%d", peer.PublicAddress, internetPort)))(t)
	if seen != own.PublicAddress.String() {
		t.Errorf("a server of the internet saw %s, not %s", seen, own.PublicAddress)
	}
	web := &corev1.Service{}
	check(t, own.Client.Get(ctx, types.NamespacedName{Namespace: "default", Name: "web"}, web))
	for _, n := range own.Nodes {
		must(client.Ping(ctx, n.Address))(t)
		url := fmt.Sprintf("http://%s:%d", n.Address, web.Spec.Ports[0].NodePort)
		for _, from := range []*testbed.Host{client.Host, own.Router} { // node ports, also from outside of the cluster
			for range 4 { // some on each node
				must(from.Get(ctx, url))(t)
			}
		}
	}
	for _, p := range must(own.PodsOf(ctx, 2, "default", map[string]string{"app": "server"}))(t) {
		if seen := must(client.Get(ctx, fmt.Sprintf("http://%s:8080", p.Address)))(t); seen != client.Address.String() {
			t.Errorf("pod %s saw %s, not %s", p.Name, seen, client.Address)
		}
	}
}

// askDatagram asks the UDP server of a service for the address that it sees.
func askDatagram(client *testbed.Pod, service netip.Addr) (string, error) {
	conn, err := client.Dial("udp", netip.AddrPortFrom(service, 5353).String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("who am I?")); err != nil {
		return "", err
	}
	buffer := make([]byte, 100)
	n, err := conn.Read(buffer)
	return string(buffer[:n]), err
}
