package linkgateway

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// Nodes are peers by their first address of each family in node-cidr; what the cache keeps of them is enough.
func TestReadNodes(t *testing.T) {
	internal := func(name string, addresses ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		n.Labels = map[string]string{"zone": "a"}
		for _, a := range addresses {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		reduced, err := ReduceNode(n)
		if err != nil || reduced.(*corev1.Node).Labels != nil {
			t.Fatal(reduced, err)
		}
		return reduced.(*corev1.Node)
	}
	elsewhere := internal("node4")
	elsewhere.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeExternalIP, Address: "10.250.0.4"}}
	api := fake.NewClientBuilder().WithObjects(internal("node2", "192.0.2.7", "10.250.0.2", "10.250.0.9", "fd00::2"),
		internal("node1", "10.250.0.1"), internal("node3", "192.0.2.8"), elsewhere).Build()
	nodes, err := ReadNodes(t.Context(), api, cidrs("10.250.0.0/16", "fd00::/64"))
	if got, want := fmt.Sprint(nodes), "[{node1 [10.250.0.1]} {node2 [10.250.0.2 fd00::2]}]"; err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}
