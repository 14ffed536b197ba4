package linkgateway

// The nodes of the cluster, whose packets come to the gateway.

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Node is one of them.
type Node struct {
	Name       string
	NodeIPs    []netip.Addr // in node-cidr, one of each family at most; empty: no overlay leads there
	ReadySince time.Time    // zero: it is not ready, or none on which a router can run
}

// ReadNodes returns the nodes, by name.
func ReadNodes(ctx context.Context, reader client.Reader, nodeCIDRs mesh.Prefixes) (nodes []Node, err error) {
	var list corev1.NodeList
	if err := reader.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("%w%s", err, remedyOfRefusal(err))
	}
	for i := range list.Items {
		n := Node{Name: list.Items[i].Name, ReadySince: readySince(&list.Items[i])}
		for _, a := range list.Items[i].Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if ip = ip.Unmap(); err == nil && a.Type == corev1.NodeInternalIP && nodeCIDRs.Contains(ip) {
				addAddress(&n.NodeIPs, ip)
			}
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes, nil
}

// remedyOfRefusal is what to do where the API server refuses to tell.
func remedyOfRefusal(err error) string {
	if apierrors.IsForbidden(err) || strings.Contains(err.Error(), "forbidden") {
		return ": allow it as deploy/base/rbac.yaml does"
	}
	return ""
}

// withoutDaemonSets are labels of nodes, and their values, on which no DaemonSet runs: virtual ones.
var withoutDaemonSets = map[string]string{"type": "virtual-kubelet", "eks.amazonaws.com/compute-type": "fargate"}

// readySince is the time from which on a node is ready.
func readySince(n *corev1.Node) time.Time {
	if system := n.Labels[corev1.LabelOSStable]; system != "" && system != "linux" {
		return time.Time{}
	}
	for label, value := range withoutDaemonSets {
		if n.Labels[label] == value {
			return time.Time{}
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Time
		}
	}
	return time.Time{}
}

// ReduceNode leaves of a node what ReadNodes reads: a heartbeat changes nothing of that.
func ReduceNode(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	reduced := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
	}
	for label, value := range n.Labels {
		if _, reads := withoutDaemonSets[label]; reads || label == corev1.LabelOSStable {
			metav1.SetMetaDataLabel(&reduced.ObjectMeta, label, value)
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			reduced.Status.Conditions = []corev1.NodeCondition{
				{Type: c.Type, Status: c.Status, LastTransitionTime: c.LastTransitionTime}}
		}
	}
	return reduced, nil
}
