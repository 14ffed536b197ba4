package linkgateway

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/mandelsoft/kubelink/broker/link"
)

var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// readyNode is a node that is ready since a time before noon.
func readyNode(name, address string, before time.Duration) Node {
	return Node{Name: name, NodeIPs: []netip.Addr{netip.MustParseAddr(address)}, ReadySince: noon.Add(-before)}
}

// routerOn is the pod of a router, as the cache has it.
func routerOn(t *testing.T, node string, ready corev1.ConditionStatus, before time.Duration) corev1.Pod {
	t.Helper()
	reduced, err := ReduceRouter(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kubelink", Name: "router-" + node, Labels: RouterLabels(),
			CreationTimestamp: metav1.NewTime(noon.Add(-before)), Annotations: map[string]string{"big": "text"}},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "router"}}},
		Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
			{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.NewTime(noon.Add(-before))}}},
	})
	if p, ok := reduced.(*corev1.Pod); err == nil && ok && p.Annotations == nil && p.Spec.Containers == nil {
		return *p
	}
	t.Fatal(reduced, err)
	return corev1.Pod{}
}

// Each node but that of the gateway needs a router that is ready. One that is about to start has some time for it.
func TestRoutersOfNodes(t *testing.T) {
	gateway, other := readyNode("node1", "10.250.0.1", time.Hour), readyNode("node2", "10.250.0.2", time.Hour)
	onNode := Place{Node: "node1", NodeIPs: gateway.NodeIPs}
	inPod := Place{Node: "node1", NodeIPs: gateway.NodeIPs, InPod: true}
	dead := other
	dead.ReadySince = time.Time{}
	many := []Node{gateway}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		many = append(many, readyNode(name, "10.250.0.9", time.Hour))
	}
	for name, c := range map[string]struct {
		nodes  []Node
		pods   []corev1.Pod
		place  Place
		reason string // empty: nothing is found
		says   string
		again  time.Duration
	}{
		"the only node":                {[]Node{gateway}, nil, onNode, "", "", 0},
		"the only node, pod mode":      {[]Node{gateway}, nil, inPod, link.RouterMissing, "on node node1: pods there", 0},
		"the gateway has another name": {[]Node{gateway}, nil, Place{Node: "host1", NodeIPs: gateway.NodeIPs}, "", "", 0},
		"no router":                    {[]Node{gateway, other}, nil, onNode, link.RouterMissing, "on node node2: pods", 0},
		"no routers":                   {many, nil, onNode, link.RouterMissing, "on nodes a, b, c, d, e and 2 more: pods", 0},
		"a router": {[]Node{gateway, other}, []corev1.Pod{routerOn(t, "node2", corev1.ConditionTrue, time.Hour)}, onNode,
			"", "", 0},
		"a router of another node": {[]Node{gateway, other},
			[]corev1.Pod{routerOn(t, "node1", corev1.ConditionTrue, time.Hour)}, onNode, link.RouterMissing, "node2", 0},
		"a router that is not ready": {[]Node{gateway, other},
			[]corev1.Pod{routerOn(t, "node2", corev1.ConditionFalse, time.Minute)}, onNode, link.RouterNotReady,
			"kubelink-router is not ready on node node2", 0},
		"a router that starts": {[]Node{gateway, other},
			[]corev1.Pod{routerOn(t, "node2", corev1.ConditionFalse, time.Second)}, onNode, "", "", routerGrace - time.Second},
		"a router that is being replaced": {[]Node{gateway, other},
			[]corev1.Pod{routerOn(t, "node2", corev1.ConditionFalse, time.Second),
				routerOn(t, "node2", corev1.ConditionFalse, time.Hour)}, onNode, "", "", routerGrace - time.Second},
		"a new router beside the old one": {[]Node{gateway, other},
			[]corev1.Pod{routerOn(t, "node2", corev1.ConditionTrue, time.Second),
				routerOn(t, "node2", corev1.ConditionFalse, time.Hour)}, onNode, "", "", 0},
		"a node that has rebooted": {[]Node{gateway, readyNode("node2", "10.250.0.2", time.Second)},
			[]corev1.Pod{routerOn(t, "node2", corev1.ConditionFalse, 5*time.Minute)}, onNode, "", "", routerGrace - time.Second},
		"a dead node": {[]Node{gateway, dead}, nil, onNode, "", "", 0},
		"a new node": {[]Node{gateway, readyNode("node2", "10.250.0.2", 20*time.Second)}, nil, onNode, "", "",
			routerGrace - 20*time.Second},
		"a clock that is behind": {[]Node{gateway, readyNode("node2", "10.250.0.2", -time.Hour)}, nil, onNode, "", "",
			routerGrace},
	} {
		t.Run(name, func(t *testing.T) {
			report := (&Routers{Namespace: "kubelink"}).judge(c.nodes, c.pods, &c.place, noon)
			if report.Again != c.again || (c.reason == "") != (len(report.Findings) == 0) {
				t.Fatalf("%+v, want again after %s", report, c.again)
			}
			if c.reason == "" {
				return
			}
			f := report.Findings[0]
			if f.Reason != c.reason || !strings.Contains(f.Text, c.says) || f.Remedy == "" || len(report.Findings) > 1 {
				t.Errorf("%+v", report.Findings)
			}
			if (report.Missing > 0) != (c.reason == link.RouterMissing) || report.Missing+report.NotReady != len(c.nodes)-1+
				map[bool]int{true: 1}[c.place.InPod] {
				t.Errorf("%d nodes without router, %d with one that is not ready", report.Missing, report.NotReady)
			}
		})
	}
}

// A router that goes has time to be replaced, whatever the age of the node. The finding ends when it is back.
func TestRouterGoes(t *testing.T) {
	nodes := []Node{readyNode("node1", "10.250.0.1", time.Hour), readyNode("node2", "10.250.0.2", time.Hour)}
	place, r := &Place{Node: "node1"}, &Routers{Namespace: "kubelink"}
	router := []corev1.Pod{routerOn(t, "node2", corev1.ConditionTrue, time.Hour)}
	for _, step := range []struct {
		at    time.Duration
		pods  []corev1.Pod
		found bool
		again time.Duration
	}{
		{0, router, false, 0},
		{time.Second, nil, false, routerGrace},
		{11 * time.Second, nil, false, routerGrace - 10*time.Second},
		{12 * time.Second, router, false, 0},
		{13 * time.Second, nil, false, routerGrace},
		{13*time.Second + routerGrace, nil, true, 0},
		{time.Minute, router, false, 0},
	} {
		report := r.judge(nodes, step.pods, place, noon.Add(step.at))
		if (len(report.Findings) > 0) != step.found || report.Again != step.again {
			t.Errorf("after %s: %+v", step.at, report)
		}
	}
}

// What the API server does not tell is no finding, and has its remedy.
func TestRoutersUnknown(t *testing.T) {
	r, p := &Routers{Namespace: "kubelink"}, &Place{Node: "node1"}
	nodes := []Node{readyNode("node2", "10.250.0.2", time.Hour)}
	for _, c := range []struct {
		reader   client.Reader
		nodesErr error
		says     string
	}{
		{fake.NewClientBuilder().Build(), errors.New("no"), "the nodes of the cluster are not known: no"},
		{refusingReader{}, nil,
			"the routers of the nodes are not known: pods is forbidden: allow it as deploy/base/rbac.yaml"},
	} {
		report := r.Check(t.Context(), c.reader, nodes, c.nodesErr, p, noon)
		if len(report.Findings) > 0 || report.Unknown == nil || !strings.HasPrefix(report.Unknown.Error(), c.says) {
			t.Errorf("%+v, want %s", report, c.says)
		}
	}
	if report := r.Check(t.Context(), fake.NewClientBuilder().Build(), nodes, nil, p, noon); report.Missing != 1 {
		t.Errorf("%+v", report)
	}
}

// refusingReader is an API server that gives no rights.
type refusingReader struct{ client.Reader }

func (refusingReader) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return errors.New("pods is forbidden")
}
