package linkgateway

// Do the pods of the other nodes have a way to the gateway? kubelink-router gives them one. The API server tells on
// which nodes one runs, and whether it says itself that its routes are right.

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/link"
)

const (
	// routerGrace is how long a node may be without a router that is ready: it is about to start, or is being replaced.
	routerGrace = 30 * time.Second
	// maxNamed bounds the nodes that a message names.
	maxNamed = 5
)

// RouterLabels are those of the pods of routers.
func RouterLabels() map[string]string { return map[string]string{"app": link.RouterName} }

// ReduceRouter leaves of the pod of a router what Routers reads.
func ReduceRouter(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	reduced := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: RouterLabels(),
			ResourceVersion: p.ResourceVersion, CreationTimestamp: p.CreationTimestamp},
		Spec: corev1.PodSpec{NodeName: p.Spec.NodeName},
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			reduced.Status.Conditions = []corev1.PodCondition{
				{Type: c.Type, Status: c.Status, LastTransitionTime: c.LastTransitionTime}}
		}
	}
	return reduced, nil
}

// Routers watches whether all nodes have a router that is ready.
type Routers struct {
	Namespace string // of the pods of routers
	lacking   map[string]time.Time
	served    map[string]bool // nodes that had a router once
}

// Check looks at the nodes of a cluster whose gateway is at a place. nodesErr is why these are not known.
func (r *Routers) Check(
	ctx context.Context, reader client.Reader, nodes []Node, nodesErr error, p *Place, now time.Time,
) *link.RouterReport {
	if nodesErr != nil {
		return &link.RouterReport{Unknown: fmt.Errorf("the nodes of the cluster are not known: %w", nodesErr)}
	}
	var pods corev1.PodList
	err := reader.List(ctx, &pods, client.InNamespace(r.Namespace), client.MatchingLabels(RouterLabels()))
	if err != nil {
		err = fmt.Errorf("the routers of the nodes are not known: %w%s", err, remedyOfRefusal(err))
		return &link.RouterReport{Unknown: err}
	}
	return r.judge(nodes, pods.Items, p, now)
}

// judge is Check with the pods of routers.
func (r *Routers) judge(nodes []Node, pods []corev1.Pod, p *Place, now time.Time) *link.RouterReport {
	states := map[string]routerState{}
	for i := range pods {
		if on := pods[i].Spec.NodeName; on != "" {
			states[on] = states[on].merge(stateOf(&pods[i]))
		}
	}
	report, lacking, served := &link.RouterReport{}, map[string]time.Time{}, map[string]bool{}
	var missing, notReady []string
	for i := range nodes {
		n := &nodes[i]
		state, runs := states[n.Name]
		served[n.Name] = r.served[n.Name] || runs
		if n.ReadySince.IsZero() || p.needsNoRouter(n) || state.ready {
			continue
		}
		since := r.lackingSince(n, state, now)
		lacking[n.Name] = since
		if left := routerGrace - now.Sub(since); left > 0 {
			if report.Again == 0 || left < report.Again {
				report.Again = left
			}
		} else if runs {
			notReady = append(notReady, n.Name)
		} else {
			missing = append(missing, n.Name)
		}
	}
	r.lacking, r.served = lacking, served
	report.Missing, report.NotReady = len(missing), len(notReady)
	if len(missing) > 0 {
		report.Findings = append(report.Findings, link.Finding{Reason: link.RouterMissing,
			Text: fmt.Sprintf("no kubelink-router runs on %s: pods there have no way to the links", nameNodes(missing)),
			Remedy: fmt.Sprintf("install the component router (kubectl -n %s get daemonset %s), or set routers none if "+
				"these pods need no links or have other routes to the gateway", r.Namespace, link.RouterName)})
	}
	if len(notReady) > 0 {
		report.Findings = append(report.Findings, link.Finding{Reason: link.RouterNotReady,
			Text: fmt.Sprintf("kubelink-router is not ready on %s: pods there may have no way to the links",
				nameNodes(notReady)),
			Remedy: fmt.Sprintf("see kubectl kubelink diagnose, and kubectl -n %s describe pods -l app=%s", r.Namespace,
				link.RouterName)})
	}
	return report
}

// lackingSince is the time from which on a node has no router that is ready: as seen here, or earlier, as the objects
// tell. So a broker that starts anew says at once what its predecessor said.
func (r *Routers) lackingSince(n *Node, state routerState, now time.Time) time.Time {
	since, known := r.lacking[n.Name]
	if !known {
		since = now
	}
	told := state.since
	if told.IsZero() && r.served[n.Name] {
		return since
	}
	if told.Before(n.ReadySince) { // before, no router could be ready
		told = n.ReadySince
	}
	if told.Before(since) {
		return told
	}
	return since
}

// needsNoRouter tells whether a node is that of a gateway in the network of its node: pods there have its routes.
func (p *Place) needsNoRouter(n *Node) bool {
	if p.InPod {
		return false
	}
	for _, a := range p.NodeIPs {
		if slices.Contains(n.NodeIPs, a) {
			return true
		}
	}
	return n.Name == p.Node
}

// routerState is how the router of a node is.
type routerState struct {
	ready bool
	since time.Time // from which on it is so; zero: there is none
}

// merge is how a node is on which there are two, as one is being replaced.
func (s routerState) merge(o routerState) routerState {
	if o.ready || !s.ready && o.since.After(s.since) {
		return o
	}
	return s
}

func stateOf(p *corev1.Pod) routerState {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return routerState{ready: c.Status == corev1.ConditionTrue, since: c.LastTransitionTime.Time}
		}
	}
	return routerState{since: p.CreationTimestamp.Time}
}

// nameNodes names some of the nodes.
func nameNodes(names []string) string {
	text := "node "
	if len(names) > 1 {
		text = "nodes "
	}
	more := len(names) - maxNamed
	if more > 0 {
		names = names[:maxNamed]
	}
	if text += strings.Join(names, ", "); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
