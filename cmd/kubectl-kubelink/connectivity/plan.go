package connectivity

// What is tested from where.

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/survey"
	"github.com/mandelsoft/kubelink/cmd/kubelink/probe"
)

// Bounds of a test, for each cluster.
const (
	maxNodes = 100
	maxLinks = 128  // of a pod
	maxPairs = 4000 // of nodes and links
)

// target is a link to try, and what of it cannot be tried.
type target struct {
	probe.Link
	skipped map[string]string // why, by check
}

// newTarget makes the checks of a link. Every cluster has a service for its API server, at the first address of its
// service network. Without such a network, the mesh services that it offers are reachable.
func newTarget(l *survey.Link, hasDNS bool) target {
	t := target{Link: probe.Link{Name: l.Name}, skipped: map[string]string{}}
	skip := func(why string, checks ...string) {
		for _, check := range checks {
			t.skipped[check] = why
		}
	}
	if l.Names != nil {
		t.Zone = strings.TrimSuffix(l.Names.Zone, ".")
	}
	if network, ok := routedNetwork(l); ok {
		t.Address, t.Port = network.Masked().Addr().Next(), 443
		if t.Zone != "" {
			t.Service = "kubernetes.default.svc." + t.Zone
		}
	} else if l.Names != nil {
		if name, port, err := net.SplitHostPort(l.Names.MeshService); err == nil {
			n, _ := strconv.ParseUint(port, 10, 16)
			t.Service, t.Port = name, uint16(n)
		}
	}
	if t.Port == 0 {
		skip("no service network of the cluster is routed here, and it offers no mesh service with a TCP port",
			probe.ClusterDNS, probe.KubelinkDNS, probe.Connect)
	}
	if !hasDNS {
		skip("there is no service kubelink-dns with an address", probe.KubelinkDNS)
	}
	if t.Zone == "" {
		skip("the other cluster has no names here", probe.ClusterDNS, probe.KubelinkDNS, probe.StateName)
	}
	if network, err := netip.ParsePrefix(l.ClusterAddress); err == nil {
		t.Ping = network.Addr()
	} else {
		skip("the link has no cluster address", probe.Ping)
	}
	if l.Mode == "none" {
		t.Ping, t.Port = netip.Addr{}, 0
		skip("in mode none another system carries the traffic", probe.Connect, probe.Ping)
	}
	return t
}

// routedNetwork is the service network of the other cluster, if packets to it go through the link. In mode none they do
// if they go anywhere.
func routedNetwork(l *survey.Link) (netip.Prefix, bool) {
	network, err := netip.ParsePrefix(l.CIDR)
	return network, err == nil && (l.Routed || l.Mode == "none")
}

// findNodes finds the nodes to test from, by name, and says why others are left out.
func findNodes(ctx context.Context, k kubernetes.Interface, wanted []string) (names []string, unfit []Check, err error) {
	list, err := k.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("list nodes: %w", err)
	}
	for i := range list.Items {
		n := &list.Items[i]
		if len(wanted) > 0 && !slices.Contains(wanted, n.Name) {
			continue
		}
		if why := describeUnfit(n); why != "" {
			unfit = append(unfit, Check{Node: n.Name, Check: checkNode, Result: NotTested, Message: why})
			continue
		}
		names = append(names, n.Name)
	}
	if len(names)+len(unfit) == 0 {
		unfit = []Check{{Check: checkNode, Result: NotTested, Message: "the cluster has no such node"}}
	}
	slices.Sort(names)
	return names, unfit, nil
}

// describeUnfit says why a node gets no pod; empty: it gets one.
func describeUnfit(n *corev1.Node) string {
	if os := n.Labels[corev1.LabelOSStable]; os != "" && os != "linux" {
		return "the node runs " + os
	}
	if n.Spec.Unschedulable {
		return "the node is unschedulable: kubectl uncordon makes it schedulable"
	}
	for _, k := range n.Status.Conditions {
		if k.Type == corev1.NodeReady && k.Status == corev1.ConditionTrue {
			return ""
		}
	}
	return "the node is not Ready"
}

// task is what the pod on a node tries.
type task struct {
	node  string
	links []target
}

// planTasks bounds the test: of too many links each node tests a part, so that nodes together test all, if they can. It
// says what it leaves out.
func planTasks(nodes []string, links []target) (tasks []task, leftOut []string) {
	if n := len(nodes); n > maxNodes {
		leftOut = append(leftOut, fmt.Sprintf("%d of %d nodes: the first %d by name are tested; --node chooses",
			n-maxNodes, n, maxNodes))
		nodes = nodes[:maxNodes]
	}
	if len(nodes) == 0 {
		return nil, leftOut
	}
	each := min(len(links), maxLinks, maxPairs/len(nodes))
	if n := len(links); each < n {
		leftOut = append(leftOut, fmt.Sprintf("each of %d nodes tests %d of %d links, together %d of them; --link chooses",
			len(nodes), each, n, min(n, each*len(nodes))))
	}
	for i, node := range nodes {
		t := task{node: node}
		for j := range each {
			t.links = append(t.links, links[(i*each+j)%len(links)])
		}
		tasks = append(tasks, t)
	}
	return tasks, leftOut
}
