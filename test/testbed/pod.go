package testbed

// This file makes pods and services. A pod is an object of the API with the status that kubelet would write, and a
// host connected to its node. Endpoints, cluster IPs and tokens are real.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// PodOptions are properties of a pod besides its name.
type PodOptions struct {
	Namespace      string            // default: default
	Node           *Node             // default: the gateway node
	Labels         map[string]string // default: app=<name>
	ServiceAccount string            // default: default; the pod has its token where in-cluster configuration looks for it
	HostNetwork    bool              // use the node's network
	Env            []string          // for the pod's programs
	Args           []string          // of the program of PodImage, on a real node

	Hostname, Subdomain string // for its name below a headless service
}

// Pod is a pod of a cluster.
type Pod struct {
	*Host
	Node    *Node
	Address netip.Addr
	Object  *corev1.Pod

	cluster *Cluster
	device  string // the node's end of its cable
}

// Pod creates a ready pod. The test decides what runs in it: see Listen, ServeHTTPEcho, Start.
func (c *Cluster) Pod(ctx context.Context, name string, opts PodOptions) (_ *Pod, err error) {
	if opts.Namespace == "" {
		opts.Namespace = metav1.NamespaceDefault
	}
	if opts.Node == nil {
		opts.Node = c.Gateway()
	}
	if opts.Labels == nil {
		opts.Labels = map[string]string{"app": name}
	}
	if opts.ServiceAccount == "" {
		opts.ServiceAccount = "default"
	}
	p := &Pod{Node: opts.Node, cluster: c}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: pod %s/%s: %w", c.Name, opts.Namespace, name, err)
			p.remove(ctx)
		}
	}()
	start := p.makeHost
	if p.Node.isReal() {
		start = p.runContainer
	}
	if err := start(ctx, name, opts); err != nil {
		return nil, err
	}
	names := map[string]netip.Addr{name: p.Address}
	for _, other := range c.testbed.Clusters {
		names[other.FQDN] = other.PublicAddress
	}
	if err := p.SetHosts(names); err != nil {
		return nil, err
	}
	if err := p.mountToken(ctx, opts.Namespace, opts.ServiceAccount); err != nil {
		return nil, err
	}
	p.env = append([]string{
		"HOSTNAME=" + name,
		"KUBERNETES_SERVICE_HOST=" + c.APIAddress.String(),
		"KUBERNETES_SERVICE_PORT=443",
	}, opts.Env...)
	if !p.Node.isReal() {
		if err := p.createObject(ctx, name, opts); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// makeHost makes the pod's host and connects it to the node, or to the node's network with HostNetwork.
func (p *Pod) makeHost(_ context.Context, name string, opts PodOptions) (err error) {
	c, n := p.cluster, p.Node
	dns, hostName := resolverOf(c, opts.Namespace), hostNameOfPod(c, opts.Namespace, name)
	if opts.HostNetwork {
		p.Address = n.Address
		p.Host, err = c.testbed.newHost(hostName, dns, n.Host)
		return err
	}
	c.testbed.mu.Lock()
	n.pods++
	number := n.pods
	c.testbed.mu.Unlock()
	p.Address, p.device = nthAddress(n.Pods.Addr(), 1+number), fmt.Sprintf("cali%d", number)
	if !n.Pods.Contains(p.Address) {
		return fmt.Errorf("the node has no more addresses for pods")
	}
	if p.Host, err = c.testbed.newHost(hostName, dns, nil, "net.ipv4.conf.default.rp_filter=0"); err != nil {
		return err
	}
	return n.wirePod(p.Host, p.device, p.Address)
}

// resolverOf returns what pods of a namespace have in their resolv.conf.
func resolverOf(c *Cluster, namespace string) resolver {
	if !c.hasDNS() {
		return resolver{}
	}
	return resolver{server: c.DNSAddress,
		search: []string{namespace + ".svc.cluster.local", "svc.cluster.local", "cluster.local"}}
}

func hostNameOfPod(c *Cluster, namespace, name string) string {
	if namespace == metav1.NamespaceDefault {
		return c.Name + "-" + name
	}
	return c.Name + "-" + namespace + "-" + name
}

func newPodObject(name string, n *Node, opts PodOptions) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: opts.Namespace, Name: name, Labels: opts.Labels},
		Spec: corev1.PodSpec{
			NodeName:           n.Name,
			ServiceAccountName: opts.ServiceAccount,
			HostNetwork:        opts.HostNetwork,
			Hostname:           opts.Hostname,
			Subdomain:          opts.Subdomain,
			Containers:         []corev1.Container{{Name: "main", Image: "test-bed"}},
		},
	}
}

// createObject creates the pod's object and writes the status that kubelet would write.
func (p *Pod) createObject(ctx context.Context, name string, opts PodOptions) error {
	c, n := p.cluster, p.Node
	object := newPodObject(name, n, opts)
	if err := c.Client.Create(ctx, object); err != nil {
		return err
	}
	p.Object = object
	before := object.DeepCopy()
	now := metav1.Now()
	object.Status.Phase = corev1.PodRunning
	object.Status.StartTime = &now
	object.Status.HostIP, object.Status.HostIPs = n.Address.String(), []corev1.HostIP{{IP: n.Address.String()}}
	object.Status.PodIP, object.Status.PodIPs = p.Address.String(), []corev1.PodIP{{IP: p.Address.String()}}
	for _, kind := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady,
		corev1.PodReady} {
		object.Status.Conditions = append(object.Status.Conditions,
			corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	object.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: "main", Image: "test-bed", Ready: true,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
	}}
	if err := c.Client.Status().Patch(ctx, object, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("set status: %w", err)
	}
	return nil
}

// mountToken writes the service account's credentials to the folder that kubelet would use.
func (p *Pod) mountToken(ctx context.Context, namespace, account string) error {
	token, err := p.cluster.createToken(ctx, namespace, account)
	if err != nil {
		return err
	}
	dir := filepath.Join(p.dir, "run/secrets/kubernetes.io/serviceaccount")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{"token": token, "ca.crt": string(p.cluster.pki.ca.PEM),
		"namespace": namespace} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Delete kills the programs that run in the pod, and deletes the pod and its host.
func (p *Pod) Delete(ctx context.Context) error {
	if err := p.remove(ctx); err != nil {
		return fmt.Errorf("delete pod %s: %w", p.Name, err)
	}
	return nil
}

func (p *Pod) remove(ctx context.Context) (err error) {
	if p.Object != nil {
		err = client.IgnoreNotFound(p.cluster.Client.Delete(ctx, p.Object, client.GracePeriodSeconds(0)))
	}
	if p.Host == nil {
		return err
	}
	err = errors.Join(err, p.testbed.stopProcesses(ctx, p.Name+"/"))
	if p.device != "" {
		err = errors.Join(err, p.Node.onLink(p.device, "delete", p.Node.Net.LinkDel))
	}
	p.testbed.removeHost(p.Host)
	return err
}

// ServiceOptions are properties of a service besides its name, selector and ports.
type ServiceOptions struct {
	Namespace string     // default: default
	ClusterIP netip.Addr // default: the API server chooses
	Headless  bool
	NodePorts bool // its type is NodePort
	NotReady  bool // it leads to pods that are not ready, too
}

// TCPPort returns a port of a service that is the same on its pods. Its name is tcp-<port>.
func TCPPort(port int32) corev1.ServicePort {
	return corev1.ServicePort{Name: fmt.Sprintf("tcp-%d", port), Protocol: corev1.ProtocolTCP, Port: port}
}

// UDPPort is TCPPort for UDP.
func UDPPort(port int32) corev1.ServicePort {
	return corev1.ServicePort{Name: fmt.Sprintf("udp-%d", port), Protocol: corev1.ProtocolUDP, Port: port}
}

// Service creates a service and waits until it has a ready endpoint and every node forwards its address there. It
// returns that address, or the zero address for a headless service.
func (c *Cluster) Service(
	ctx context.Context, name string, selector map[string]string, ports []corev1.ServicePort, opts ServiceOptions,
) (netip.Addr, error) {
	service := newService(name, ports, opts)
	service.Spec.Selector = selector
	return c.createService(ctx, service)
}

// ServiceToNode creates a service with a fixed address for a program that runs on a node without a pod: it has a
// manual endpoint instead of a selector.
func (c *Cluster) ServiceToNode(
	ctx context.Context, namespace, name string, ip netip.Addr, ports []corev1.ServicePort, node *Node,
) error {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name + "-node",
			Labels: map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "test-bed"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{node.Address.String()}, NodeName: &node.Name}},
	}
	for _, p := range ports {
		target := p.TargetPort.IntVal
		if target == 0 {
			target = p.Port
		}
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &target})
	}
	if err := c.Client.Create(ctx, slice); err != nil {
		return fmt.Errorf("%s: endpoints of service %s/%s: %w", c.Name, namespace, name, err)
	}
	_, err := c.createService(ctx, newService(name, ports, ServiceOptions{Namespace: namespace, ClusterIP: ip}))
	return err
}

func newService(name string, ports []corev1.ServicePort, opts ServiceOptions) *corev1.Service {
	if opts.Namespace == "" {
		opts.Namespace = metav1.NamespaceDefault
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: opts.Namespace, Name: name},
		Spec:       corev1.ServiceSpec{Ports: ports, PublishNotReadyAddresses: opts.NotReady},
	}
	if opts.ClusterIP.IsValid() {
		service.Spec.ClusterIP = opts.ClusterIP.String()
	}
	if opts.Headless {
		service.Spec.ClusterIP = corev1.ClusterIPNone
	}
	if opts.NodePorts {
		service.Spec.Type = corev1.ServiceTypeNodePort
	}
	return service
}

func (c *Cluster) createService(ctx context.Context, service *corev1.Service) (netip.Addr, error) {
	fail := func(err error) (netip.Addr, error) {
		return netip.Addr{}, fmt.Errorf("%s: service %s/%s: %w", c.Name, service.Namespace, service.Name, err)
	}
	if err := c.Client.Create(ctx, service); err != nil {
		return fail(err)
	}
	err := Until(ctx, "endpoints", func(ctx context.Context) error {
		var slices discoveryv1.EndpointSliceList
		if err := c.Client.List(ctx, &slices, client.InNamespace(service.Namespace),
			client.MatchingLabels{discoveryv1.LabelServiceName: service.Name}); err != nil {
			return err
		}
		for _, slice := range slices.Items {
			for _, endpoint := range slice.Endpoints {
				if ready := endpoint.Conditions.Ready; ready == nil || *ready {
					return nil
				}
			}
		}
		return errors.New("no ready endpoint")
	})
	if err != nil {
		return fail(err)
	}
	addr, err := netip.ParseAddr(service.Spec.ClusterIP)
	if err != nil {
		return netip.Addr{}, nil // headless
	}
	for _, n := range c.Nodes {
		if err := Until(ctx, "kube-proxy", func(ctx context.Context) error { return n.checkService(ctx, addr) }); err != nil {
			return fail(err)
		}
	}
	return addr, nil
}

// stopProcesses kills the processes with this prefix in their name.
func (b *Testbed) stopProcesses(ctx context.Context, prefix string) error {
	b.mu.Lock()
	var stop []*Process
	b.processes = slices.DeleteFunc(b.processes, func(p *Process) bool {
		if !strings.HasPrefix(p.Name, prefix) {
			return false
		}
		stop = append(stop, p)
		return true
	})
	b.mu.Unlock()
	var errs []error
	for _, p := range stop {
		errs = append(errs, p.stop(ctx))
	}
	return errors.Join(errs...)
}
