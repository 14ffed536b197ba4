package realnodes

// Tests of the test bed's real nodes: that they are what usual nodes are, and that nothing of them stays behind.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

func TestRealNodes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	t.Cleanup(cancel)
	before := listTraces(t)
	start := time.Now()
	b, err := fleet.Boot(ctx, fleet.InstallOptions{
		Nodes: 2,
		Clusters: []fleet.Installation{
			{ClusterOptions: testbed.ClusterOptions{PodNetwork: testbed.PointToPoint}},
			{ClusterOptions: testbed.ClusterOptions{PodNetwork: testbed.Bridge, ProxyMode: testbed.ProxyNFTables, MTU: 9000}},
		},
		Progress: func(what string) { t.Logf("%5.1fs %s", time.Since(start).Seconds(), what) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		check(t, b.Close())
		if after := listTraces(t); !slices.Equal(before, after) {
			t.Errorf("before the test bed there was\n%s\nand after it\n%s", strings.Join(before, "\n"),
				strings.Join(after, "\n"))
		}
	})
	b.DumpOnFailure(t)
	// Before the others, which make networks strict.
	t.Run("connect", func(t *testing.T) { checkConnect(t, ctx, b) })
	t.Run("migrate", func(t *testing.T) { checkMigrate(t, ctx, b) })
	t.Run("connect in mode wireguard", func(t *testing.T) { checkConnect(t, ctx, b, "--mode=wireguard", "--pod-mode") })
	for _, c := range b.Clusters {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			checkCluster(t, ctx, c)
		})
	}
	// In the cluster itself, and from the other one, and after the server of this one has another node.
	for _, c := range b.Clusters {
		t.Run("changes of "+c.Name, func(t *testing.T) {
			t.Parallel()
			checkChanges(t, ctx, c)
		})
	}
	for i, c := range b.Clusters {
		t.Run("load balancer of "+c.Name, func(t *testing.T) {
			t.Parallel()
			checkLoadBalancer(t, ctx, c, b.Clusters[1-i])
		})
	}
}

// checkLoadBalancer asks two services of type LoadBalancer from another cluster. One keeps the client's address and
// leads to nodes with an endpoint only. Both follow their endpoint to another node.
func checkLoadBalancer(t *testing.T, ctx context.Context, c, other *testbed.Cluster) {
	labels := map[string]string{"app": "balanced"}
	for port, policy := range map[int32]corev1.ServiceExternalTrafficPolicy{
		8001: corev1.ServiceExternalTrafficPolicyLocal, 8002: corev1.ServiceExternalTrafficPolicyCluster,
	} {
		check(t, c.Client.Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: strings.ToLower(string(policy))},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Selector: labels, ExternalTrafficPolicy: policy,
				Ports: []corev1.ServicePort{{Port: port, TargetPort: intstr.FromInt32(8080)}}},
		}))
	}
	for _, n := range c.Nodes {
		must(c.Deploy(ctx, "balanced", 1, n))(t)
		// Not sooner: connections of before may be with a node that has no endpoint any more.
		check(t, testbed.Until(ctx, "the load balancer to lead to "+n.Name, func(ctx context.Context) error {
			rules, err := c.Router.Iptables(ctx, "-t", "nat", "-S", "LOAD-BALANCER")
			if err != nil {
				return err
			}
			_, rule, _ := strings.Cut(rules, "--dport 8001 ")
			rule, rest, _ := strings.Cut(rule, "\n")
			if !strings.Contains(rule, " "+n.Address.String()+":") || strings.Contains(rest, "--dport 8001 ") {
				return errors.New(rules)
			}
			return nil
		}))
		seen := must(other.Nodes[1].Get(ctx, fmt.Sprintf("http://%s:8001", c.FQDN)))(t)
		if seen != other.PublicAddress.String() {
			t.Errorf("externalTrafficPolicy Local, server on %s: it saw %s, not %s", n.Name, seen, other.PublicAddress)
		}
		cluster := &corev1.Service{}
		check(t, c.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "cluster"}, cluster))
		for _, each := range c.Nodes {
			url := fmt.Sprintf("http://%s:%d", each.Address, cluster.Spec.Ports[0].NodePort)
			check(t, testbed.Until(ctx, "kube-proxy to know the server", func(ctx context.Context) error {
				_, err := c.Router.Get(ctx, url)
				return err
			}))
		}
		for range 4 { // some on each node
			seen := must(other.Nodes[1].Get(ctx, fmt.Sprintf("http://%s:8002", c.FQDN)))(t)
			if seen == other.PublicAddress.String() {
				t.Errorf("externalTrafficPolicy Cluster, server on %s: no node has hidden %s", n.Name, seen)
			}
		}
		_, err := c.Kubectl(ctx, "delete", "deployment", "balanced", "--cascade=foreground", "--wait")
		check(t, err)
	}
	service := &corev1.Service{}
	check(t, c.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "local"}, service))
	if in := service.Status.LoadBalancer.Ingress; len(in) != 1 || in[0].IP != c.PublicAddress.String() {
		t.Errorf("status %+v", service.Status)
	}
}

// checkCluster deploys servers, and asks them from pods of all nodes.
func checkCluster(t *testing.T, ctx context.Context, c *testbed.Cluster) {
	server := must(c.Deploy(ctx, "server", 1, c.Nodes[1]))(t)[0]
	if server.Node != c.Nodes[1] || !server.Node.Pods.Contains(server.Address) {
		t.Errorf("%s has %s on %s", server.Name, server.Address, server.Node.Name)
	}
	web := testbed.TCPPort(80)
	web.TargetPort.IntVal = 8080
	addr := must(c.Service(ctx, "web", map[string]string{"app": "server"}, []corev1.ServicePort{web},
		testbed.ServiceOptions{}))(t)
	clients := must(c.Deploy(ctx, "client", 2))(t)
	if clients[0].Node == clients[1].Node {
		t.Errorf("all clients are on %s", clients[0].Node.Name)
	}
	clients = append(clients, must(c.Pod(ctx, "direct", testbed.PodOptions{}))(t)) // as on light nodes
	eth0 := must(clients[0].Net.LinkByName("eth0"))(t)
	if want := map[string]int{"kubelink1": 1500, "kubelink2": 9000}[c.Name]; eth0.Attrs().MTU != want {
		t.Errorf("pods of %s have MTU %d, not %d", c.Name, eth0.Attrs().MTU, want)
	}
	for _, client := range clients {
		for _, url := range []string{fmt.Sprintf("http://%s:8080", server.Address), fmt.Sprintf("http://%s", addr)} {
			if seen := must(client.Get(ctx, url))(t); seen != client.Address.String() {
				t.Errorf("%s: %s saw client %s, not %s", client.Name, url, seen, client.Address)
			}
			seen := must(c.Exec(ctx, "default", client.Object.Name, "/pod", "get", url))(t)
			if seen != client.Address.String() {
				t.Errorf("in the container of %s: %s saw client %s, not %s", client.Name, url, seen, client.Address)
			}
		}
		log := must(c.Logs(ctx, "default", server.Object.Name))(t)
		if want := "request from " + client.Address.String(); !strings.Contains(log, want) {
			t.Errorf("no %q in the log of the server:\n%s", want, log)
		}
		must(client.Ping(ctx, server.Address))(t)
		check(t, client.Delete(ctx))
	}
	check(t, testbed.Until(ctx, "the deleted pod to be gone", func(ctx context.Context) error {
		err := c.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "direct"}, &corev1.Pod{})
		if client.IgnoreNotFound(err) == nil && err != nil {
			return nil
		}
		return fmt.Errorf("still there (%v)", err)
	}))
}

// checkChanges looks at what tests do to pods and nodes.
func checkChanges(t *testing.T, ctx context.Context, c *testbed.Cluster) {
	labels := map[string]string{"app": "moved"}
	p := must(c.Deploy(ctx, "moved", 1))(t)[0]
	check(t, p.KillContainer(ctx))
	check(t, c.WaitFor(ctx, p.Object, func() error {
		s := p.Object.Status.ContainerStatuses
		if len(s) != 1 || s[0].RestartCount != 1 || !s[0].Ready {
			return fmt.Errorf("%+v", s)
		}
		return nil
	}))
	if seen := must(p.Node.Get(ctx, fmt.Sprintf("http://%s:8080", p.Address)))(t); seen == "" {
		t.Error("the new container does not answer")
	}
	check(t, p.Node.Drain(ctx, "app=moved", "--ignore-daemonsets"))
	if moved := must(c.PodsOf(ctx, 1, "default", labels))(t)[0]; moved.Node == p.Node {
		t.Errorf("the pod of the drained node is on %s", moved.Node.Name)
	}
	check(t, p.Node.Uncordon(ctx))

	check(t, c.FilterNodeNetwork(ctx))
	check(t, p.Node.FilterPodNetwork(ctx))
	stranger := must(c.Pod(ctx, "stranger", testbed.PodOptions{Node: p.Node}))(t)
	foreign := netip.MustParseAddr("192.168.9.9")
	for _, from := range []*testbed.Host{stranger.Host, p.Node.Host} {
		_, err := from.Run(ctx, "ip", "address", "add", foreign.String()+"/32", "dev", "eth0")
		check(t, err)
		for _, n := range c.Nodes {
			sendFrom(t, from, foreign, netip.AddrPortFrom(n.Address, 9))
		}
	}
	for what, drops := range map[string]func(context.Context) (int, error){
		"node network": c.NodeNetworkDrops, "pod network": p.Node.PodNetworkDrops,
	} {
		check(t, testbed.Until(ctx, what+" to drop foreign packets", func(ctx context.Context) error {
			n, err := drops(ctx)
			if err == nil && n == 0 {
				err = errors.New("none was dropped")
			}
			return err
		}))
	}
}

// sendFrom sends a datagram with a source address.
func sendFrom(t *testing.T, h *testbed.Host, from netip.Addr, to netip.AddrPort) {
	t.Helper()
	check(t, h.Do(func() error {
		conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("foreign"))
		return err
	}))
}

// listTraces lists what nodes leave on a machine when they do not clean up: processes, mounts, control groups and
// files.
func listTraces(t *testing.T) []string {
	mounts := string(must(os.ReadFile("/proc/self/mounts"))(t))
	traces := []string{"mounts: " + mounts}
	for _, pattern := range []string{"/sys/fs/cgroup/*/*testbed*", "/sys/fs/cgroup/*testbed*", "/sys/fs/cgroup/*/k8s.io",
		"/sys/fs/cgroup/*/kubepods*", "/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/var/log/pods",
		"/var/log/containers", "/etc/cni", "/opt/cni", "/opt/containerd", "/usr/libexec/kubernetes", "/run/containerd",
		"/run/netns/*"} {
		traces = append(traces, must(filepath.Glob(pattern))(t)...)
	}
	for _, file := range must(filepath.Glob("/proc/[0-9]*/comm"))(t) {
		if name, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(name), "containerd") {
			traces = append(traces, "a process of containerd")
		}
	}
	return traces
}
