package testbed

// This file runs the real control plane of a cluster: etcd, kube-apiserver, kube-controller-manager, and kube-proxy
// on each node. Each has its own certificate and the rights that Kubernetes gives it.

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// pki holds the certificates of the cluster's components.
type pki struct {
	ca *CA
}

var apiURL = fmt.Sprintf("https://%s:6443", controlAddress)

// issueCertificates makes the certificates and kubeconfigs.
func (c *Cluster) issueCertificates(context.Context) (err error) {
	if err := os.MkdirAll(c.filePath("pki"), 0o755); err != nil {
		return err
	}
	if c.pki.ca, err = NewCA(c.Name + " kubernetes"); err != nil {
		return err
	}
	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		"localhost"}
	addrs := []netip.Addr{controlAddress, c.APIAddress, netip.MustParseAddr("127.0.0.1")}
	serving, servingKey, err := c.pki.ca.Issue(names, addrs)
	if err != nil {
		return err
	}
	signing, signingKey, err := c.pki.ca.Issue([]string{"service-accounts"}, nil)
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		"ca.crt": c.pki.ca.PEM, "serving.crt": serving, "serving.key": servingKey, "sa.crt": signing, "sa.key": signingKey,
	} {
		if err := os.WriteFile(c.filePath("pki/"+name), text, 0o600); err != nil {
			return err
		}
	}
	for _, u := range []struct{ file, user, group string }{
		{"admin", "admin", "system:masters"},
		{"controllers", "system:kube-controller-manager", ""},
		{"scheduler", "system:kube-scheduler", ""},
		{"proxy", "system:kube-proxy", ""},
	} {
		cert, key, err := c.pki.ca.issueUser(u.user, u.group)
		if err != nil {
			return err
		}
		if _, err := c.writeKubeconfig(u.file,
			clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}); err != nil {
			return err
		}
	}
	return nil
}

// ServingCertificate returns the certificate of the API server, which is good for 127.0.0.1, too.
func (c *Cluster) ServingCertificate() (tls.Certificate, error) {
	return tls.LoadX509KeyPair(c.filePath("pki/serving.crt"), c.filePath("pki/serving.key"))
}

// APIServerURL is where the API server listens on the node LAN.
func APIServerURL() string { return apiURL }

func (c *Cluster) writeKubeconfig(name string, user clientcmdapi.AuthInfo) (string, error) {
	config := clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{c.Name: {Server: apiURL, CertificateAuthorityData: c.pki.ca.PEM}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: &user},
		Contexts:       map[string]*clientcmdapi.Context{c.Name: {Cluster: c.Name, AuthInfo: name}},
		CurrentContext: c.Name,
	}
	path := c.filePath(name + ".kubeconfig")
	return path, clientcmd.WriteToFile(config, path)
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	etcd, err := c.ControlPlane.Start(c.testbed.ctx, "etcd", nil, c.testbed.binaryPath("etcd"),
		"--data-dir="+c.filePath("etcd"),
		"--unsafe-no-fsync", // the data need not survive the machine
		"--log-level=warn")
	if err != nil {
		return err
	}
	return etcd.waitUntil(ctx, "etcd", func(ctx context.Context) error {
		conn, err := c.ControlPlane.DialContext(ctx, "tcp", "127.0.0.1:2379")
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// StartAPIServer starts the API server, for the first time or after StopAPIServer, and waits until it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) (err error) {
	c.apiserver, err = c.ControlPlane.Start(c.testbed.ctx, "apiserver", nil, c.testbed.binaryPath("kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0",
		"--secure-port=6443",
		"--advertise-address="+controlAddress.String(),
		"--tls-cert-file="+c.filePath("pki/serving.crt"),
		"--tls-private-key-file="+c.filePath("pki/serving.key"),
		"--client-ca-file="+c.filePath("pki/ca.crt"),
		"--service-cluster-ip-range="+c.ServiceCIDR.String(),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+c.filePath("pki/sa.crt"),
		"--service-account-signing-key-file="+c.filePath("pki/sa.key"),
		"--authorization-mode=Node,RBAC",
		"--kubelet-preferred-address-types=InternalIP",
		"--allow-privileged=true",
		"--profiling=false")
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.filePath("admin.kubeconfig"))
	if err != nil {
		return err
	}
	config.Dial = c.ControlPlane.DialContext
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	defer httpClient.CloseIdleConnections()
	return c.apiserver.waitUntil(ctx, "API server of "+c.Name, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, apiURL+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := httpClient.Do(request)
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
}

// StopAPIServer kills the API server: its connections end, and new connections are refused. etcd keeps its data.
func (c *Cluster) StopAPIServer(ctx context.Context) error {
	return c.apiserver.stop(ctx)
}

// startPrograms starts all that a cluster has besides its API.
func (c *Cluster) startPrograms(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.startControllers(ctx) })
	g.Go(func() error { return c.startNodes(ctx) })
	return g.Wait()
}

// startControllers starts the programs that act on the API's objects: the controllers, and kube-proxy on every node.
func (c *Cluster) startControllers(ctx context.Context) error {
	controllers, err := c.ControlPlane.Start(c.testbed.ctx, "controllers", nil,
		c.testbed.binaryPath("kube-controller-manager"),
		"--kubeconfig="+c.filePath("controllers.kubeconfig"),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--use-service-account-credentials",
		"--service-account-private-key-file="+c.filePath("pki/sa.key"),
		"--root-ca-file="+c.filePath("pki/ca.crt"),
		"--flex-volume-plugin-dir="+c.filePath("plugins"),
		"--controllers="+strings.Join(c.controllers(), ","))
	if err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := n.startProxy(c.proxyMode()); err != nil {
			return err
		}
	}

	// Without these objects the API server accepts no pod.
	for _, namespace := range []string{"default", "kube-system"} {
		for _, obj := range []client.Object{
			&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "default"}},
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "kube-root-ca.crt"}},
		} {
			if err := controllers.waitUntil(ctx, "controllers of "+c.Name, func(ctx context.Context) error {
				return c.Client.Get(ctx, client.ObjectKeyFromObject(obj), obj)
			}); err != nil {
				return err
			}
		}
	}
	for _, n := range c.Nodes {
		if err := n.waitProxy(ctx); err != nil {
			return err
		}
	}
	return nil
}

// The modes of kube-proxy.
const (
	ProxyIPTables = "iptables"
	ProxyNFTables = "nftables"
	ProxyNone     = "none" // there is no kube-proxy: addresses of services, cluster DNS included, lead nowhere
)

// controllers returns which controllers the cluster has.
func (c *Cluster) controllers() []string {
	if c.opts.isReal() {
		return []string{"*", "-node-ipam-controller", "-node-route-controller", "-service-lb-controller",
			"-cloud-node-lifecycle-controller"}
	}
	// Without kubelet there must be no node lifecycle controller.
	return []string{
		"endpoints-controller", "endpointslice-controller", "serviceaccount-controller", "serviceaccount-token-controller",
		"root-ca-certificate-publisher-controller", "namespace-controller", "garbage-collector-controller",
	}
}

func (c *Cluster) proxyMode() string {
	return cmp.Or(c.opts.ProxyMode, c.testbed.opts.ProxyMode, ProxyIPTables)
}

// startProxy starts kube-proxy on the node.
func (n *Node) startProxy(mode string) (err error) {
	b := n.cluster.testbed
	n.proxyMode = mode
	if mode == ProxyNone {
		n.proxy = nil
		return nil
	}
	healthz := ""
	if n.isReal() {
		healthz = "0.0.0.0:10256" // the health check of services with externalTrafficPolicy Local is a part of it
	}
	n.proxy, err = n.Start(b.ctx, "kube-proxy", nil, b.binaryPath("kube-proxy"), append(n.proxyFlags(),
		"--iptables-min-sync-period=100ms",
		"--healthz-bind-address="+healthz)...)
	return err
}

func (n *Node) proxyFlags() []string {
	return []string{
		"--kubeconfig=" + n.cluster.filePath("proxy.kubeconfig"),
		"--proxy-mode=" + n.proxyMode,
		"--cluster-cidr=" + PodCIDR.String(),
		"--hostname-override=" + n.Name,
		"--conntrack-max-per-core=0", // this setting belongs to the machine
	}
}

// waitProxy waits until kube-proxy forwards the first service of the cluster.
func (n *Node) waitProxy(ctx context.Context) error {
	if n.proxy == nil {
		return nil
	}
	return n.proxy.waitUntil(ctx, "kube-proxy on "+n.Name,
		func(ctx context.Context) error { return n.checkService(ctx, n.cluster.APIAddress) })
}

// SetProxyMode starts kube-proxy of the node anew in another mode, without what the former mode has left.
func (n *Node) SetProxyMode(ctx context.Context, mode string) error {
	if err := n.proxy.stop(ctx); err != nil {
		return err
	}
	b := n.cluster.testbed
	if _, err := n.Run(ctx, b.binaryPath("kube-proxy"), append(n.proxyFlags(), "--cleanup")...); err != nil {
		return err
	}
	if err := n.startProxy(mode); err != nil {
		return err
	}
	return n.waitProxy(ctx)
}

// checkService returns nil if kube-proxy on the node forwards the service address to endpoints, or if there is none.
func (n *Node) checkService(ctx context.Context, service netip.Addr) error {
	if n.proxyMode == ProxyNone {
		return nil
	}
	if n.proxyMode == ProxyNFTables {
		services, err := n.Run(ctx, "nft", "list", "map", "ip", "kube-proxy", "service-ips")
		if err == nil && !strings.Contains(services, service.String()+" ") {
			err = fmt.Errorf("kube-proxy on %s does not know %s", n.Name, service)
		}
		return err
	}
	rules, err := n.Iptables(ctx, "-t", "nat", "-S", "KUBE-SERVICES")
	if err != nil {
		return err
	}
	if !strings.Contains(rules, "-d "+service.String()+"/32 ") {
		return fmt.Errorf("kube-proxy on %s does not know %s", n.Name, service)
	}
	return nil
}
