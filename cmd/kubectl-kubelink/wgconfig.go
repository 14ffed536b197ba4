package main

// The command wg-config: the other end of a link to a plain WireGuard peer, as a file for wg-quick(8).

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

const (
	defaultNamespace = "kubelink" // of the broker, as deploy has it
	installation     = "kubelink" // name of its Deployment, ConfigMap and Service, as deploy has it
	wireguardPort    = 8777       // broker-port in mode wireguard, and the port of an endpoint without one
	keepalive        = 21         // seconds, as a broker has it
)

// wgConfigOptions are the flags of the command.
type wgConfigOptions struct {
	endpoint string
	keyFile  string
	cidrs    []string
}

func newWGConfigCommand(cluster *genericclioptions.ConfigFlags) *cobra.Command {
	o := &wgConfigOptions{}
	c := &cobra.Command{
		Use:   "wg-config LINK",
		Short: "Print the WireGuard configuration of the peer of a link",
		Long: `wg-config prints the configuration file for the other end of a link in mode wireguard, where that end is a plain
WireGuard peer: a router, a laptop, a virtual machine with wg-quick(8). It comes from the KubeLink of the peer, the
LocalLink of its mesh, and the endpoint of this cluster: the property dns-name of the Corefile, else the address of
the load balancer of the service, else --endpoint.

The private key of the peer is not in the cluster. The printed file reads it from /etc/wireguard/<device>.key, unless
--private-key has a file with it.`,
		Example: `  # the key of the peer, on its machine
  umask 077; wg genkey | tee /etc/wireguard/kubelink.key | wg pubkey
  # a KubeLink "laptop" with this publicKey and endpoint Inbound; then, here:
  umask 077   # the file may have keys
  kubectl kubelink wg-config laptop > kubelink.conf
  # on the laptop, with the file in /etc/wireguard
  wg-quick up kubelink`,
		Args:              oneLink,
		ValidArgsFunction: completeLink(cluster),
		RunE: func(c *cobra.Command, args []string) error {
			config, err := cluster.ToRESTConfig()
			if err != nil {
				return err
			}
			api, err := newClient(config)
			if err != nil {
				return err
			}
			w := &wgConfig{client: api, namespace: *cluster.Namespace, warnings: c.ErrOrStderr(), wgConfigOptions: *o}
			text, err := w.make(c.Context(), args[0])
			if err == nil {
				_, err = fmt.Fprint(c.OutOrStdout(), text)
			}
			return err
		},
	}
	c.Flags().StringVar(&o.endpoint, "endpoint", "",
		"host[:port] under which the peer reaches this cluster; the port is that of the service by default")
	c.Flags().StringVar(&o.keyFile, "private-key", "",
		"file with the peer's private key, as wg genkey prints it; the printed configuration contains it")
	c.Flags().StringSliceVar(&o.cidrs, "cidr", nil,
		"networks of this cluster for the peer (default: cidr of the LocalLink, its service network)")
	return c
}

// newClient makes a client for the kinds that commands read.
func newClient(config *rest.Config) (client.Client, error) {
	config.QPS = -1 // the API server has its own limits
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		v1alpha1.AddToScheme, corev1.AddToScheme, appsv1.AddToScheme, networkingv1.AddToScheme,
		coordinationv1.AddToScheme,
	} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return client.New(config, client.Options{Scheme: s})
}

// wgConfig makes the configuration of the peer of a link.
type wgConfig struct {
	client    client.Reader
	namespace string // of the broker
	warnings  io.Writer
	wgConfigOptions
}

// make reads the objects, and returns the text of the file.
func (w *wgConfig) make(ctx context.Context, name string) (string, error) {
	var links v1alpha1.KubeLinkList
	if err := w.client.List(ctx, &links); err != nil {
		return "", fmt.Errorf("list KubeLinks: %w", err)
	}
	link, local, err := findLink(links.Items, name)
	if err != nil {
		return "", err
	}
	if link.Spec.CIDR != "" && (link.Spec.DNS == nil || !link.Spec.DNS.OmitDNSPropagation) {
		fmt.Fprintf(w.warnings, "Warning: KubeLink %s has names, as a cluster with kubelink has: there, this file has "+
			"no use, since its broker tells the device all it needs. A plain peer needs spec.dns.omitDNSPropagation: true\n", name)
	}
	f := &wgFile{link: name, cluster: local.Name}
	for _, step := range []func() error{
		func() error { return f.setPeer(link) },
		func() error { return f.setLocal(local, w.cidrs) },
		func() error { return f.readPrivateKey(w.keyFile) },
		func() (err error) { f.preshared, err = w.presharedKey(ctx, link); return err },
		func() (err error) { f.endpoint, err = w.findEndpoint(ctx); return err },
	} {
		if err := step(); err != nil {
			return "", err
		}
	}
	return f.String(), nil
}

// findLink returns a link to another cluster, and the LocalLink of its mesh.
func findLink(links []v1alpha1.KubeLink, name string) (link, local *v1alpha1.KubeLink, err error) {
	wanted, _ := mesh.LinkName(name)
	for i := range links {
		l := &links[i]
		m, _ := mesh.LinkName(l.Name)
		switch {
		case l.Name == name:
			link = l
		case l.Spec.Endpoint == v1alpha1.EndpointLocal && m == wanted &&
			(local == nil || local.Status.State != v1alpha1.StateUp):
			local = l
		}
	}
	switch {
	case link == nil:
		return nil, nil, fmt.Errorf("there is no KubeLink %s: kubectl get kubelinks lists them", name)
	case link.Spec.Endpoint == v1alpha1.EndpointLocal:
		return nil, nil, fmt.Errorf("KubeLink %s is the LocalLink, the end in this cluster: give the link of the peer", name)
	case link.Spec.GatewayLink != "":
		return nil, nil, fmt.Errorf("KubeLink %s is behind %s (spec.gatewayLink), and has no connection of its own",
			name, link.Spec.GatewayLink)
	case local == nil:
		return nil, nil, fmt.Errorf("the mesh of KubeLink %s has no LocalLink: create one, its status has the public key of "+
			"this cluster", name)
	}
	return link, local, nil
}

// presharedKey is the key of the link's spec, or of the secret that the spec names; zero: the link has none.
func (w *wgConfig) presharedKey(ctx context.Context, link *v1alpha1.KubeLink) (k mesh.SecretKey, err error) {
	if ref := link.Spec.PresharedKeySecretRef; ref != nil {
		return w.readPresharedKey(ctx, ref)
	}
	if link.Spec.PresharedKey == "" {
		return k, nil
	}
	if k, err = mesh.ParseSecretKey(link.Spec.PresharedKey); err != nil {
		err = fmt.Errorf("spec.presharedKey of KubeLink %s: %w", link.Name, err)
	}
	return k, err
}

// readPresharedKey reads the preshared key in a secret.
func (w *wgConfig) readPresharedKey(ctx context.Context, ref *v1alpha1.SecretKeyRef) (k mesh.SecretKey, err error) {
	at := types.NamespacedName{Namespace: cmp.Or(ref.Namespace, w.namespace), Name: ref.Name}
	var secret corev1.Secret
	switch err := w.client.Get(ctx, at, &secret); {
	case apierrors.IsForbidden(err):
		return k, fmt.Errorf("the preshared key is in secret %s, and you may not read it: ask for the right to get this "+
			"secret (kubectl auth can-i get secret/%s -n %s): %w", at, at.Name, at.Namespace, err)
	case apierrors.IsNotFound(err):
		return k, fmt.Errorf("spec.presharedKeySecretRef names secret %s, which does not exist: create it with the output "+
			"of wg genpsk", at)
	case err != nil:
		return k, fmt.Errorf("read secret %s: %w", at, err)
	}
	text := strings.TrimSpace(string(secret.Data[ref.Key]))
	if text == "" {
		return k, fmt.Errorf("secret %s has no key %s: add it with the output of wg genpsk", at, ref.Key)
	}
	if k, err = mesh.ParseSecretKey(text); err != nil {
		err = fmt.Errorf("key %s of secret %s: %w", ref.Key, at, err)
	}
	return k, err
}

// findEndpoint finds the host and port under which the peer reaches this cluster.
func (w *wgConfig) findEndpoint(ctx context.Context) (string, error) {
	port := uint16(wireguardPort)
	var corefile corev1.ConfigMap
	if err := w.get(ctx, installation, &corefile); err != nil {
		return "", err
	}
	var service corev1.Service
	if err := w.get(ctx, cmp.Or(findProperty(corefile.Data, "service"), installation), &service); err != nil {
		return "", err
	}
	for _, p := range service.Spec.Ports {
		if p.Name == string(mesh.WireGuard) {
			port = uint16(p.Port)
		}
	}
	endpoint := w.endpoint
	if endpoint == "" {
		name, err := w.dnsName(ctx, corefile.Data)
		if err != nil {
			return "", err
		}
		endpoint = cmp.Or(name, loadBalancerHost(&service))
	}
	if endpoint == "" {
		return "", fmt.Errorf("the endpoint of this cluster is not known: the Corefile has no dns-name, and service %s/%s "+
			"has no load balancer; give --endpoint host[:port]", w.namespace, cmp.Or(service.Name, installation))
	}
	host, port, err := mesh.Endpoint(endpoint, port)
	if err != nil {
		return "", fmt.Errorf("endpoint %q: %w", endpoint, err)
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

// get reads an object of the installation. One that does not exist stays empty.
func (w *wgConfig) get(ctx context.Context, name string, o client.Object) error {
	err := w.client.Get(ctx, types.NamespacedName{Namespace: w.namespace, Name: name}, o)
	if err != nil && (!apierrors.IsNotFound(err) && w.endpoint == "") {
		return fmt.Errorf("read %s/%s: %w; or give --endpoint host[:port]", w.namespace, name, err)
	}
	return nil
}

// dnsName is the property of the Corefile. deploy has its value in a variable of the Deployment.
func (w *wgConfig) dnsName(ctx context.Context, corefile map[string]string) (string, error) {
	name := findProperty(corefile, "dns-name")
	inner, isVariable := strings.CutPrefix(name, "{$")
	if !isVariable {
		return name, nil
	}
	var d appsv1.Deployment
	if err := w.get(ctx, installation, &d); err != nil {
		return "", err
	}
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, e := range c.Env {
			if e.Name == strings.TrimSuffix(inner, "}") {
				return e.Value, nil
			}
		}
	}
	return "", nil
}

// findProperty returns the value of a property of the stanza, in any part of the Corefile; empty: it is not there.
func findProperty(corefile map[string]string, name string) string {
	line := regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(name) + `\s+([^\s#]+)`)
	for _, text := range corefile {
		if found := line.FindStringSubmatch(text); found != nil {
			return found[1]
		}
	}
	return ""
}

// loadBalancerHost is the address that the cloud has given the service; empty: none.
func loadBalancerHost(s *corev1.Service) string {
	for _, in := range s.Status.LoadBalancer.Ingress {
		if host := cmp.Or(in.Hostname, in.IP); host != "" {
			return host
		}
	}
	return ""
}

// wgFile is the content of a configuration file.
type wgFile struct {
	link, cluster string // names of the two ends
	address       netip.Prefix
	listenPort    uint16 // 0: any, this cluster does not dial
	public        mesh.PublicKey
	private       mesh.SecretKey // zero: the file tells where it is
	preshared     mesh.SecretKey // zero: none
	clusterKey    mesh.PublicKey
	allowed       []netip.Prefix
	endpoint      string
}

// setPeer takes over what the KubeLink says of the peer.
func (f *wgFile) setPeer(link *v1alpha1.KubeLink) (err error) {
	if link.Spec.PublicKey == "" {
		return fmt.Errorf("KubeLink %s has no spec.publicKey: make a key pair at the peer "+
			"(wg genkey | tee kubelink.key | wg pubkey), and set it to what wg pubkey prints", link.Name)
	}
	if f.public, err = mesh.ParsePublicKey(link.Spec.PublicKey); err != nil {
		return fmt.Errorf("spec.publicKey of KubeLink %s: %w", link.Name, err)
	}
	address, err := mesh.ClusterAddress(link.Spec.ClusterAddress)
	if err != nil {
		return fmt.Errorf("spec.clusterAddress %q of KubeLink %s: %w", link.Spec.ClusterAddress, link.Name, err)
	}
	f.address = singleAddress(address)
	if link.Spec.Endpoint == v1alpha1.EndpointInbound {
		return nil
	}
	if _, f.listenPort, err = mesh.Endpoint(link.Spec.Endpoint, wireguardPort); err != nil {
		return fmt.Errorf("spec.endpoint %q of KubeLink %s: %w", link.Spec.Endpoint, link.Name, err)
	}
	return nil
}

// setLocal takes over what the LocalLink says of this cluster.
func (f *wgFile) setLocal(local *v1alpha1.KubeLink, cidrs []string) (err error) {
	if local.Status.PublicKey == "" {
		return fmt.Errorf("the status of LocalLink %s has no publicKey: %s", local.Name,
			cmp.Or(local.Status.Message, "is a broker in mode wireguard running?"))
	}
	if f.clusterKey, err = mesh.ParsePublicKey(local.Status.PublicKey); err != nil {
		return fmt.Errorf("status.publicKey of LocalLink %s: %w", local.Name, err)
	}
	address, err := mesh.ClusterAddress(local.Spec.ClusterAddress)
	if err != nil {
		return fmt.Errorf("spec.clusterAddress of LocalLink %s: %w", local.Name, err)
	}
	f.allowed = []netip.Prefix{singleAddress(address)}
	if len(cidrs) == 0 && local.Spec.CIDR != "" {
		cidrs = []string{local.Spec.CIDR}
	}
	for _, c := range cidrs {
		n, err := netip.ParsePrefix(c)
		if err != nil {
			return usageError{fmt.Errorf("--cidr %q: want a network such as 100.64.0.0/20", c)}
		}
		if n = n.Masked(); !slices.Contains(f.allowed, n) {
			f.allowed = append(f.allowed, n)
		}
	}
	return nil
}

func singleAddress(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr(), p.Addr().BitLen()) }

// readPrivateKey reads the peer's private key, which must belong to the link.
func (f *wgFile) readPrivateKey(file string) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return usageError{fmt.Errorf("--private-key: %w", err)}
	}
	if f.private, err = mesh.ParseSecretKey(string(text)); err != nil {
		return usageError{fmt.Errorf("--private-key %s: %w", file, err)}
	}
	if f.private.Public() != f.public {
		return usageError{errors.New("--private-key " + file + " is the key of " + f.private.Public().String() +
			", but spec.publicKey of the link is " + f.public.String())}
	}
	return nil
}

// String is the file.
func (f *wgFile) String() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# WireGuard peer %s of cluster %s, for wg-quick(8).", f.link, f.cluster)
	line("[Interface]")
	line("Address = %s", f.address) // of its own only: AllowedIPs make the routes
	if f.private != (mesh.SecretKey{}) {
		line("PrivateKey = %s", f.private.Base64())
	} else {
		line("# The private key of %s.", f.public)
		line("PostUp = wg set %%i private-key /etc/wireguard/%%i.key")
	}
	if f.listenPort != 0 {
		line("ListenPort = %d", f.listenPort)
	}
	line("\n[Peer]")
	line("# Cluster %s.", f.cluster)
	line("PublicKey = %s", f.clusterKey)
	if f.preshared != (mesh.SecretKey{}) {
		line("PresharedKey = %s", f.preshared.Base64())
	}
	line("Endpoint = %s", f.endpoint)
	allowed := make([]string, len(f.allowed))
	for i, n := range f.allowed {
		allowed[i] = n.String()
	}
	line("AllowedIPs = %s", strings.Join(allowed, ", "))
	line("PersistentKeepalive = %d", keepalive)
	return b.String()
}
