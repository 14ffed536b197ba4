package testbed

// This file makes pods on real nodes: containers that kubelet starts. The test bed enters the network of such a pod as
// it enters that of a light one, so that the same functions work in both.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// runContainer creates the pod's object, waits until its container is ready, and enters its network.
func (p *Pod) runContainer(ctx context.Context, name string, opts PodOptions) error {
	object := newPodObject(name, p.Node, opts)
	object.Spec.Containers = []corev1.Container{{Name: "main", Image: PodImage, Args: opts.Args,
		ImagePullPolicy: corev1.PullNever}}
	for _, e := range opts.Env {
		key, value, _ := strings.Cut(e, "=")
		object.Spec.Containers[0].Env = append(object.Spec.Containers[0].Env, corev1.EnvVar{Name: key, Value: value})
	}
	if err := p.cluster.Client.Create(ctx, object); err != nil {
		return err
	}
	p.Object = object
	return p.enterContainer(ctx, resolverOf(p.cluster, opts.Namespace))
}

// enterContainer waits until the pod is ready, and makes the host that shares its network.
func (p *Pod) enterContainer(ctx context.Context, dns resolver) error {
	c := p.cluster
	if err := awaitObject(ctx, c, p.Object, &corev1.PodList{}, func(is *corev1.Pod) error {
		p.Object = is
		return checkPodReady(is)
	}); err != nil {
		return err
	}
	p.Node = c.node(p.Object.Spec.NodeName)
	addr, err := netip.ParseAddr(p.Object.Status.PodIP)
	if err != nil || p.Node == nil {
		return fmt.Errorf("address %q on node %q", p.Object.Status.PodIP, p.Object.Spec.NodeName)
	}
	p.Address = addr
	hostName := hostNameOfPod(c, p.Object.Namespace, p.Object.Name)
	if p.Object.Spec.HostNetwork {
		p.Host, err = c.testbed.newHost(hostName, dns, p.Node.Host)
		return err
	}
	pid, err := p.Node.containerPID(ctx, p.Object)
	if err != nil {
		return err
	}
	network := &Host{Name: hostName + "-network", testbed: c.testbed}
	if network.netns, err = netns.GetFromPid(pid); err != nil {
		return fmt.Errorf("network of process %d: %w", pid, err)
	}
	if network.Net, err = netlink.NewHandleAt(network.netns); err != nil {
		network.netns.Close()
		return err
	}
	if p.Host, err = c.testbed.newHost(hostName, dns, network); err != nil {
		network.netns.Close()
		return err
	}
	p.onClose(&network.netns)
	return nil
}

// PodOf returns a pod on a real node that the test bed has not made, but a Deployment for example, when it is ready.
func (c *Cluster) PodOf(ctx context.Context, namespace, name string) (*Pod, error) {
	p := &Pod{cluster: c, Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}}
	if err := p.enterContainer(ctx, resolverOf(c, namespace)); err != nil {
		return nil, fmt.Errorf("%s: pod %s/%s: %w", c.Name, namespace, name, err)
	}
	return p, nil
}

// PodsOf returns the pods with these labels, without the ones that are being deleted, when all are ready. There have to
// be as many as that.
func (c *Cluster) PodsOf(ctx context.Context, count int, namespace string, labels map[string]string) ([]*Pod, error) {
	var pods []*Pod
	list := &corev1.PodList{}
	err := Until(ctx, fmt.Sprintf("%d pods with %v in %s", count, labels, c.Name), func(ctx context.Context) error {
		if err := c.Client.List(ctx, list, client.InNamespace(namespace), client.MatchingLabels(labels)); err != nil {
			return err
		}
		n := 0
		for i := range list.Items {
			if list.Items[i].DeletionTimestamp == nil {
				list.Items[n] = list.Items[i]
				n++
			}
		}
		list.Items = list.Items[:n]
		if n != count {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		p, err := c.PodOf(ctx, namespace, list.Items[i].Name)
		if err != nil {
			return nil, err
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// Deploy makes a Deployment of PodImage's server, with the label app=<name>, and returns its pods when all are ready.
// The scheduler chooses among all nodes, or among the given ones.
func (c *Cluster) Deploy(ctx context.Context, name string, replicas int, nodes ...*Node) ([]*Pod, error) {
	labels := map[string]string{"app": name}
	count, atOnce := int32(replicas), int64(0)
	spec := corev1.PodSpec{
		Containers: []corev1.Container{{Name: "main", Image: PodImage, Args: []string{"serve"},
			ImagePullPolicy: corev1.PullNever,
			ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
				HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}}}}},
		TerminationGracePeriodSeconds: &atOnce,
		TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: corev1.LabelHostname,
			WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: &metav1.LabelSelector{MatchLabels: labels}}},
	}
	if len(nodes) > 0 {
		var names []string
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname,
					Operator: corev1.NodeSelectorOpIn, Values: names}}}}}}}
	}
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name, Labels: labels},
		Spec: appsv1.DeploymentSpec{Replicas: &count, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec}},
	}
	if err := c.Client.Create(ctx, deployment); err != nil {
		return nil, fmt.Errorf("%s: deployment %s: %w", c.Name, name, err)
	}
	return c.PodsOf(ctx, replicas, metav1.NamespaceDefault, labels)
}

// node returns the node with a name, or nil.
func (c *Cluster) node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// containerPID returns the process of the pod's first container, as the test bed numbers it. Containerd leaves tasks
// whose shims are slow to answer out of the list.
func (n *Node) containerPID(ctx context.Context, pod *corev1.Pod) (pid int, err error) {
	if len(pod.Status.ContainerStatuses) == 0 {
		return 0, errors.New("no container")
	}
	id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
	return pid, Until(ctx, "a process of "+pod.Name, func(ctx context.Context) error {
		tasks, err := n.ctr(ctx, "tasks", "list")
		if err != nil {
			return err
		}
		_, line, _ := strings.Cut(tasks, id)
		if _, err := fmt.Sscan(line, &pid); err != nil {
			return fmt.Errorf("no process of container %q in:\n%s", id, tasks)
		}
		return nil
	})
}

// KillContainer kills the program of a pod on a real node, as the kernel does that is out of memory. Kubelet starts it
// again, and the pod keeps its network.
func (p *Pod) KillContainer(ctx context.Context) error {
	pid, err := p.Node.containerPID(ctx, p.Object)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// Drain lets no new pods come to the node, and evicts the ones that a label selector matches, as `kubectl drain` does
// with these flags.
func (n *Node) Drain(ctx context.Context, selector string, flags ...string) error {
	_, err := n.cluster.Kubectl(ctx, append([]string{"drain", n.Name, "--pod-selector=" + selector}, flags...)...)
	return err
}

// Uncordon undoes Drain: pods may come again.
func (n *Node) Uncordon(ctx context.Context) error {
	_, err := n.cluster.Kubectl(ctx, "uncordon", n.Name)
	return err
}

func checkPodReady(pod *corev1.Pod) error {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return nil
		}
	}
	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Waiting != nil {
			return fmt.Errorf("%s: %s %s", pod.Status.Phase, s.State.Waiting.Reason, s.State.Waiting.Message)
		}
	}
	return fmt.Errorf("%s and not ready", pod.Status.Phase)
}

// Exec runs a program in a container through the API server and kubelet, and returns its output. The target is a pod's
// name, or deploy/NAME.
func (c *Cluster) Exec(ctx context.Context, namespace, target string, command ...string) (string, error) {
	return c.Kubectl(ctx, append([]string{"exec", "--namespace", namespace, target, "--"}, command...)...)
}

// Logs returns the output of a container, as Exec gets there.
func (c *Cluster) Logs(ctx context.Context, namespace, target string) (string, error) {
	return c.Kubectl(ctx, "logs", "--namespace", namespace, target)
}
