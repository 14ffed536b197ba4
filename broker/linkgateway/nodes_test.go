package linkgateway

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// A router of ours can help the pods of a node that is ready, runs Linux, and runs DaemonSets.
func TestReadySince(t *testing.T) {
	for _, c := range []struct {
		system string
		status corev1.ConditionStatus
		ready  bool
	}{
		{"linux", corev1.ConditionTrue, true}, {"", corev1.ConditionTrue, true}, {"windows", corev1.ConditionTrue, false},
		{"virtual", corev1.ConditionTrue, false},
		{"linux", corev1.ConditionFalse, false}, {"linux", corev1.ConditionUnknown, false},
	} {
		n := &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: c.status, LastTransitionTime: metav1.NewTime(noon)}}}}
		if c.system == "virtual" {
			n.Labels = map[string]string{"type": "virtual-kubelet"}
		} else if c.system != "" {
			n.Labels = map[string]string{corev1.LabelOSStable: c.system}
		}
		if got := !readySince(n).IsZero(); got != c.ready {
			t.Errorf("%q %s: %v", c.system, c.status, got)
		}
	}
}

// Nodes have their first address of each family in node-cidr; what the cache keeps of them is enough.
func TestReadNodes(t *testing.T) {
	internal := func(name string, addresses ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		n.Labels = map[string]string{"zone": "a", corev1.LabelOSStable: "linux"}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionTrue},
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(noon),
				LastHeartbeatTime: metav1.Now()}}
		for _, a := range addresses {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		reduced, err := ReduceNode(n)
		if err != nil || len(reduced.(*corev1.Node).Labels) != 1 || len(reduced.(*corev1.Node).Status.Conditions) != 1 {
			t.Fatal(reduced, err)
		}
		return reduced.(*corev1.Node)
	}
	elsewhere := internal("node4")
	elsewhere.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeExternalIP, Address: "10.250.0.4"}}
	api := fake.NewClientBuilder().WithObjects(internal("node2", "192.0.2.7", "10.250.0.2", "10.250.0.9", "fd00::2"),
		internal("node1", "10.250.0.1"), internal("node3", "192.0.2.8"), elsewhere).Build()
	nodes, err := ReadNodes(t.Context(), api, cidrs("10.250.0.0/16", "fd00::/64"))
	got, want := "", "node1 [10.250.0.1] node2 [10.250.0.2 fd00::2] node3 [] node4 [] "
	for _, n := range nodes {
		got += fmt.Sprint(n.Name, " ", n.NodeIPs, " ")
		if !n.ReadySince.Equal(noon) {
			t.Errorf("%s is ready since %s", n.Name, n.ReadySince)
		}
	}
	if err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}
