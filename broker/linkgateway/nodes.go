package linkgateway

// The nodes of the cluster, whose packets come to the gateway.

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Node is one of them.
type Node struct {
	Name    string
	NodeIPs []netip.Addr // in node-cidr, one of each family at most
}

// ReadNodes returns the nodes that have an address in node-cidr, by name.
func ReadNodes(ctx context.Context, reader client.Reader, nodeCIDRs mesh.Prefixes) (nodes []Node, err error) {
	var list corev1.NodeList
	if err := reader.List(ctx, &list); err != nil {
		remedy := ""
		if apierrors.IsForbidden(err) || strings.Contains(err.Error(), "forbidden") {
			remedy = ": allow it as deploy/components/vxlan does"
		}
		return nil, fmt.Errorf("ipip vxlan needs the nodes of the cluster: %w%s", err, remedy)
	}
	for i := range list.Items {
		n := Node{Name: list.Items[i].Name}
		for _, a := range list.Items[i].Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if ip = ip.Unmap(); err == nil && a.Type == corev1.NodeInternalIP && nodeCIDRs.Contains(ip) {
				addAddress(&n.NodeIPs, ip)
			}
		}
		if len(n.NodeIPs) > 0 {
			nodes = append(nodes, n)
		}
	}
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes, nil
}

// ReduceNode leaves of a node what ReadNodes reads: a heartbeat changes nothing of that.
func ReduceNode(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
	}, nil
}
