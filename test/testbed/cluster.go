package testbed

// This file defines a cluster: its names and addresses, the order in which it boots, and the access to its API.

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Cluster is a Kubernetes cluster of the test bed. All clusters have the same node and pod networks.
type Cluster struct {
	Name          string // kubelink1, kubelink2, ...
	FQDN          string // of its load balancer, which forwards to the broker on the gateway node; in every /etc/hosts
	PublicAddress netip.Addr
	MeshAddress   netip.Prefix // for its broker, with the mesh's mask
	ServiceCIDR   netip.Prefix

	APIAddress     netip.Addr // first address of the service network: service kubernetes
	DNSAddress     netip.Addr // 10th: service kube-dns
	MeshDNSAddress netip.Addr // 11th: for kubelink's own DNS service

	Router       *Host
	ControlPlane *Host
	Nodes        []*Node

	Client client.WithWatch // as administrator
	Config *rest.Config     // the same; its connections start inside of the cluster

	testbed   *Testbed
	opts      ClusterOptions
	pki       pki
	apiserver *Process
	customDNS map[string]string // files that the cluster DNS imports; nil: not written yet
}

// Node is a machine that runs pods.
type Node struct {
	*Host
	Address netip.Addr
	Pods    netip.Prefix // the addresses of its pods

	cluster   *Cluster
	cable     string // the router's end of its cable
	pods      int    // number of pods created so far
	proxy     *Process
	proxyMode string
	cni       string   // how pods are connected to a real node; empty: the node is light
	kubelet   *Process // of a real node
}

// Gateway returns the node to which the load balancer forwards.
func (c *Cluster) Gateway() *Node { return c.Nodes[0] }

// boot starts the control plane and waits until pods and services work.
func (c *Cluster) boot(ctx context.Context) error {
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"certificates", c.issueCertificates},
		{"etcd", c.startEtcd},
		{"API server", c.StartAPIServer},
		{"API client", c.connectClient},
		{"nodes", c.createNodes},
		{"controllers and nodes", c.startPrograms},
		{"load balancer", c.startLoadBalancer},
		{"cluster DNS", c.startDNS},
	} {
		c.testbed.reportProgress("%s: %s", c.Name, step.what)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %s: %w", c.Name, step.what, err)
		}
	}
	c.testbed.reportProgress("%s: ready", c.Name)
	return nil
}

func (c *Cluster) connectClient(context.Context) error {
	scheme := runtime.NewScheme()
	for _, add := range append(c.testbed.opts.AddToScheme, clientgoscheme.AddToScheme) {
		if err := add(scheme); err != nil {
			return err
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.filePath("admin.kubeconfig"))
	if err != nil {
		return err
	}
	config.Dial = c.ControlPlane.DialContext
	config.QPS = -1
	c.Config = config
	c.Client, err = client.NewWithWatch(config, client.Options{Scheme: scheme})
	return err
}

// createNodes creates the Node objects that kubelets would create: without them, kube-proxy does not know its own
// address.
func (c *Cluster) createNodes(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.createObject(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) createObject(ctx context.Context) error {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{"kubernetes.io/hostname": n.Name}},
		Spec:       corev1.NodeSpec{PodCIDR: n.Pods.String(), PodCIDRs: []string{n.Pods.String()}},
	}
	if err := n.cluster.Client.Create(ctx, node); err != nil {
		return fmt.Errorf("create node %s: %w", n.Name, err)
	}
	if n.isReal() {
		return nil // kubelet writes the status
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.Address.String()},
		{Type: corev1.NodeHostName, Address: n.Name}}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue,
		Reason: "TestBed", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}
	if err := n.cluster.Client.Status().Update(ctx, node); err != nil {
		return fmt.Errorf("set status of node %s: %w", n.Name, err)
	}
	return nil
}

// AddNode adds a node to the running cluster, and waits until services work on it.
func (c *Cluster) AddNode(ctx context.Context) (*Node, error) {
	if err := c.addNode(len(c.Nodes) + 1); err != nil {
		return nil, err
	}
	n := c.Nodes[len(c.Nodes)-1]
	if err := n.createObject(ctx); err != nil {
		return nil, err
	}
	if n.isReal() {
		if err := n.startRuntime(ctx); err != nil {
			return nil, err
		}
		if err := n.startKubelet(ctx); err != nil {
			return nil, err
		}
	}
	if err := n.startProxy(c.proxyMode()); err != nil {
		return nil, err
	}
	return n, n.waitProxy(ctx)
}

// Kubeconfig writes the administrator's kubeconfig. It works for programs on the cluster's nodes and pods.
func (c *Cluster) Kubeconfig(path string) error {
	text, err := os.ReadFile(c.filePath("admin.kubeconfig"))
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// KubeconfigFor writes a kubeconfig for a service account and returns its path. It works for programs on the
// cluster's nodes and pods.
func (c *Cluster) KubeconfigFor(ctx context.Context, namespace, account string) (string, error) {
	token, err := c.createToken(ctx, namespace, account)
	if err != nil {
		return "", err
	}
	name := namespace + "-" + account
	return c.writeKubeconfig(name, clientcmdapi.AuthInfo{Token: token})
}

func (c *Cluster) createToken(ctx context.Context, namespace, account string) (string, error) {
	day := int64(24 * 60 * 60)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &day}}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}
	if err := c.Client.SubResource("token").Create(ctx, sa, request); err != nil {
		return "", fmt.Errorf("%s: token for service account %s/%s: %w", c.Name, namespace, account, err)
	}
	return request.Status.Token, nil
}

// Kubectl runs kubectl as administrator and returns its output. Paths in args are absolute.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.KubectlInput(ctx, "", args...)
}

// KubectlInput is Kubectl with standard input, as in `kubectl apply -f -`.
func (c *Cluster) KubectlInput(ctx context.Context, input string, args ...string) (string, error) {
	return c.ControlPlane.runWithInput(ctx, input, c.testbed.binaryPath("kubectl"),
		append([]string{"--kubeconfig", c.filePath("admin.kubeconfig"), "--cache-dir", c.filePath("kubectl")}, args...)...)
}

// Helm runs Helm as administrator and returns its output. Paths in args are absolute.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	helm, err := helmBinary(cmp.Or(c.opts.Helm, Helm4))
	if err != nil {
		return "", err
	}
	home := c.filePath("helm")
	return c.ControlPlane.Run(ctx, "env", append([]string{"HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home,
		"HELM_DATA_HOME=" + home, helm, "--kubeconfig", c.filePath("admin.kubeconfig")}, args...)...)
}

// WaitFor waits until the object exists, reads it into obj, and waits until the condition is met. Without condition,
// the object only has to exist.
func (c *Cluster) WaitFor(ctx context.Context, obj client.Object, condition func() error) error {
	key := client.ObjectKeyFromObject(obj)
	return Until(ctx, fmt.Sprintf("%T %s in %s", obj, strings.TrimPrefix(key.String(), "/"), c.Name),
		func(ctx context.Context) error {
			if err := c.Client.Get(ctx, key, obj); err != nil || condition == nil {
				return err
			}
			return condition()
		})
}

// filePath returns the path of one of the cluster's own files.
func (c *Cluster) filePath(name string) string {
	return filepath.Join(workDir, "cluster", c.Name, name)
}

func (b *Testbed) binaryPath(name string) string { return filepath.Join(b.binaries, name) }
