package main

// This file has the steps of the demo, in their order.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const name = "web.default.svc.kubelink2.kubelink"

// demo is two clusters, with a client in the first one and a server in the second one.
type demo struct {
	*fleet.Fleet
	real   bool // nodes have kubelet and containerd
	mode   mesh.Mode
	client *testbed.Pod
	server netip.Addr // the service's address
}

func (d *demo) show(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, step := range []func(context.Context) error{
		d.bootClusters, d.startPods, d.linkClusters, d.showTables, d.showTraffic, d.showState,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// bootClusters boots two clusters with kubelink.
func (d *demo) bootClusters(ctx context.Context) (err error) {
	printStep("booting two Kubernetes clusters with the same node network %s and pod network %s", testbed.NodeCIDR,
		testbed.PodCIDR)
	progress := func(s string) { printStep("%s", s) }
	if d.real {
		components := []string{"node-mode", "router"}
		shown := strings.Join(components, " and ")
		if d.mode == mesh.WireGuard { // Install adds it
			shown = strings.Join(components, ", ") + " and wireguard"
		}
		printIndented("Each has two nodes with kubelet and containerd. kubectl apply -k installs kubelink from deploy,\n" +
			"with the components " + shown + ", and the image of make image.")
		d.Fleet, err = fleet.Install(ctx, fleet.InstallOptions{
			Nodes: 2, Mode: d.mode,
			Clusters: []fleet.Installation{
				{ClusterOptions: testbed.ClusterOptions{PodNetwork: testbed.PointToPoint}, Components: components},
				{ClusterOptions: testbed.ClusterOptions{PodNetwork: testbed.Bridge}, Components: components},
			},
			Progress: progress,
		})
	} else {
		if err := checkTUN(); err != nil {
			return err
		}
		printIndented("Not root: each has one node, a network namespace without kubelet and containerd. kubelink is a\n" +
			"program there, not a pod. The API server, the controllers and kube-proxy are real. As root, the demo shows\n" +
			"an installation on real nodes, and a request from a node that is not the gateway.")
		d.Fleet, err = fleet.New(ctx, 2, fleet.Options{Mode: d.mode, Progress: progress})
	}
	if err != nil {
		return err
	}
	for _, b := range d.Brokers {
		printStep("%s: services %s, mesh address %s, endpoint %s, gateway %s", b.Name, b.ServiceCIDR, b.MeshAddress,
			b.FQDN, b.Host.Node.Name)
	}
	return nil
}

// checkTUN looks whether this user may open tunnels. kubelink would try again for minutes.
func checkTUN() error {
	device, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: be root, or let this user read and write it", err)
	}
	return device.Close()
}

// startPods starts client and server: on real nodes far from the gateways.
func (d *demo) startPods(ctx context.Context) (err error) {
	where := ""
	if d.real {
		where = ", both on the node that is not the gateway"
	}
	printStep("a client in kubelink1, a web server in kubelink2%s", where)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		d.client, err = d.startPod(ctx, d.Brokers[0], "client")
		return err
	})
	g.Go(func() (err error) {
		if _, err = d.startPod(ctx, d.Brokers[1], "web"); err != nil {
			return err
		}
		d.server, err = d.Brokers[1].Service(ctx, "web", map[string]string{"app": "web"},
			[]corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}, testbed.ServiceOptions{})
		return err
	})
	if d.real {
		for _, b := range d.Brokers {
			g.Go(func() error {
				_, err := b.Kubectl(ctx, "-n", fleet.Namespace, "rollout", "status", "daemonset/kubelink-router")
				return err
			})
		}
	}
	return g.Wait()
}

// startPod starts a web server whose answer is the client's address.
func (d *demo) startPod(ctx context.Context, b *fleet.Broker, name string) (*testbed.Pod, error) {
	if !d.real {
		pod, err := b.Pod(ctx, name, testbed.PodOptions{})
		if err != nil {
			return nil, err
		}
		return pod, pod.ServeHTTPEcho(8080)
	}
	for _, n := range b.Nodes {
		if n != b.Host.Node {
			pods, err := b.Deploy(ctx, name, 1, n)
			if err != nil {
				return nil, err
			}
			return pods[0], nil
		}
	}
	return nil, errors.New(b.Name + " has no node but the gateway")
}

func (d *demo) linkClusters(ctx context.Context) error {
	printStep("applying the KubeLinks")
	applied := time.Now()
	if err := d.Mesh(ctx); err != nil {
		return err
	}
	printStep("all links are Up after %d ms", time.Since(applied).Milliseconds())
	for _, b := range d.Brokers { // after the first start of a broker it may take seconds
		_, err := b.Kubectl(ctx, "-n", fleet.Namespace, "wait", "--for=create", "linkgateway/kubelink", "--timeout=30s")
		if err != nil {
			return err
		}
	}
	return nil
}

// showTables prints what users look at.
func (d *demo) showTables(ctx context.Context) error {
	for _, b := range d.Brokers {
		for _, command := range []string{"get pods -A -o wide", "get kubelinks", "get linkgateways -A"} {
			table, err := b.Kubectl(ctx, strings.Fields(command)...)
			if err != nil {
				return err
			}
			printStep("%s$ kubectl %s", b.Name, command)
			printIndented(table)
		}
	}
	return nil
}

// showTraffic looks up the server's name, sends a request to it and pings the other cluster.
func (d *demo) showTraffic(ctx context.Context) error {
	prompt := fmt.Sprintf("client of kubelink1, on %s$", d.client.Node.Name)
	answer, err := d.query(ctx, name, dns.TypeA)
	if err != nil {
		return err
	}
	printStep("%s dig %s", prompt, name)
	printIndented(answer.String())
	if a, ok := answer.(*dns.A); !ok || a.A.String() != d.server.String() {
		return fmt.Errorf("%s should be %s", name, d.server)
	}

	seen, err := d.fetch(ctx, "http://"+name+"/")
	if err != nil {
		return err
	}
	printStep("%s curl http://%s/", prompt, name)
	printIndented(fmt.Sprintf("the server in kubelink2 saw client address %s, of %s (the client's own is %s)", seen,
		d.ownerOf(seen), d.client.Address))
	if seen == d.client.Address.String() {
		return errors.New("the pod's own address crossed the mesh")
	}

	peer := d.Brokers[1].MeshAddress.Addr()
	rtt, err := d.client.Ping(ctx, peer)
	if err != nil {
		return err
	}
	printStep("%s ping %s", prompt, peer)
	printIndented(fmt.Sprintf("answered after %.2f ms", float64(rtt.Microseconds())/1000))
	return nil
}

// ownerOf says which part of kubelink2, or of the mesh, has an address.
func (d *demo) ownerOf(addr string) string {
	if addr == d.Brokers[0].MeshAddress.Addr().String() {
		return "kubelink1 in the mesh"
	}
	for _, n := range d.Brokers[1].Nodes {
		if addr == n.Address.String() {
			return "its cluster's node " + n.Name
		}
	}
	return "its cluster's pod network"
}

// showState prints the state of the link as DNS has it.
func (d *demo) showState(ctx context.Context) error {
	answer, err := d.query(ctx, "_state.kubelink2.kubelink", dns.TypeTXT)
	if err != nil {
		return err
	}
	printStep("client of kubelink1$ dig TXT _state.kubelink2.kubelink")
	printIndented(answer.String())
	return nil
}

// query waits until a name has an answer for the client, and returns its first record.
func (d *demo) query(ctx context.Context, name string, kind uint16) (answer dns.RR, err error) {
	err = testbed.Until(ctx, name, func(ctx context.Context) error {
		reply, err := d.client.Query(ctx, name+".", kind)
		if err != nil {
			return err
		}
		if len(reply.Answer) == 0 {
			return errors.New(dns.RcodeToString[reply.Rcode])
		}
		answer = reply.Answer[0]
		return nil
	})
	return answer, err
}

// fetch requests a URL from the client, on a real node in its container, until it has an answer: routes of nodes follow
// the LinkGateway within a second.
func (d *demo) fetch(ctx context.Context, url string) (body string, err error) {
	err = testbed.Until(ctx, url, func(ctx context.Context) (err error) {
		if d.real {
			body, err = d.Brokers[0].Exec(ctx, "default", d.client.Object.Name, "/pod", "get", url)
		} else {
			body, err = d.client.Get(ctx, url)
		}
		return err
	})
	return body, err
}
