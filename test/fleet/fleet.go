// Package fleet provides a test bed with kubelink running in each cluster, installed from the manifests in deploy:
// with the same permissions, services and Corefile. The demo, the end-to-end tests and the benchmarks use it.
package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// Names in the manifests.
const (
	Namespace = "kubelink"
	Secret    = "kubelink-tls"
	Account   = "kubelink"
)

// NoRouters is the property of brokers in clusters with light nodes.
const NoRouters = "routers none"

// Fleet is a number of clusters with a broker in each.
type Fleet struct {
	*testbed.Testbed
	Brokers []*Broker
	Mode    mesh.Mode

	image        string // of Boot
	installation InstallOptions
}

// Broker is kubelink in one cluster.
type Broker struct {
	*testbed.Cluster
	Host    *testbed.Pod
	Process *testbed.Process
	Env     []string // of the program, besides what its pod has; for the next start
	Binary  string   // of the program; empty: the result of the function Binary; for the next start

	fleet    *Fleet
	key      mesh.SecretKey // of the cluster, in mode wireguard
	pages    netip.Addr     // address of the pages ready and metrics; zero: 127.0.0.1
	corefile string         // path
	text     string
}

// Options of a fleet.
type Options struct {
	Nodes    int
	Mode     mesh.Mode                                 // empty: the value of the variable KUBELINK_MODE, or else bridge
	Edit     func(cluster int, corefile string) string // changes the Corefile of a cluster (from 0)
	Progress func(string)
}

// modeOr returns a mode: this one, or else the value of the variable KUBELINK_MODE, or else bridge.
func modeOr(m mesh.Mode) (mesh.Mode, error) {
	m = cmp.Or(m, mesh.Mode(os.Getenv("KUBELINK_MODE")), mesh.Bridge)
	if !m.CarriesTraffic() {
		return m, fmt.Errorf("mode %q: want %s or %s", m, mesh.Bridge, mesh.WireGuard)
	}
	return m, nil
}

// URLs of a broker in its node, as deploy/base has them.
const (
	ReadyURL   = "http://127.0.0.1:10532/ready"
	MetricsURL = "http://127.0.0.1:10533/metrics"
)

// Binary returns the path of kubelink: the value of the variable KUBELINK, or else the result of make build.
func Binary() (string, error) {
	if path := os.Getenv("KUBELINK"); path != "" {
		return path, nil
	}
	root, err := testbed.Repository()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "bin", "kubelink")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run make build first", err)
	}
	return path, nil
}

// kinds are ours.
var kinds = []func(*runtime.Scheme) error{v1alpha1.AddToScheme, coredns.AddToScheme}

// New boots n clusters and starts kubelink in each. There are no links yet.
func New(ctx context.Context, n int, opts Options) (*Fleet, error) {
	binary, err := Binary()
	if err != nil {
		return nil, err
	}
	mode, err := modeOr(opts.Mode)
	if err != nil {
		return nil, err
	}
	b, err := testbed.New(ctx, n, testbed.Options{
		Nodes:       opts.Nodes,
		CoreDNS:     binary,
		AddToScheme: kinds,
		Progress:    opts.Progress,
	})
	if err != nil {
		return nil, err
	}
	f := newFleet(b, mode)
	err = f.installAll(opts.Progress, func(i int, br *Broker) error {
		if err := br.install(ctx, func(s string) string {
			if opts.Edit != nil {
				return opts.Edit(i, s)
			}
			return s
		}); err != nil {
			return err
		}
		return br.Start(ctx)
	})
	return f.orClose(err)
}

func newFleet(b *testbed.Testbed, mode mesh.Mode) *Fleet {
	f := &Fleet{Testbed: b, Mode: mode}
	for _, c := range b.Clusters {
		f.Brokers = append(f.Brokers, &Broker{Cluster: c, fleet: f})
	}
	return f
}

// orClose returns the fleet, unless there is an error. Then it closes the fleet.
func (f *Fleet) orClose(err error) (*Fleet, error) {
	if err == nil {
		return f, nil
	}
	f.DumpLogs(os.Stderr, 30)
	f.Close()
	return nil, err
}

// installAll installs the brokers of all clusters at the same time.
func (f *Fleet) installAll(progress func(string), install func(i int, br *Broker) error) error {
	errs := make([]error, len(f.Brokers))
	var done sync.WaitGroup
	for i, br := range f.Brokers {
		done.Go(func() {
			if progress != nil {
				progress("installing kubelink in " + br.Name)
			}
			errs[i] = install(i, br)
		})
	}
	done.Wait()
	return errors.Join(errs...)
}

// Manifest reads a file of deploy and sets the values that kustomize sets for users.
func (b *Broker) Manifest(file string) (string, error) {
	root, err := testbed.Repository()
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(filepath.Join(root, "deploy", file))
	if err != nil {
		return "", err
	}
	return strings.NewReplacer(
		"{$SERVICE_CIDR}", b.ServiceCIDR.String(), "{$POD_CIDR}", testbed.PodCIDR.String(),
		"{$NODE_CIDR}", testbed.NodeCIDR.String(), "{$MESH_CIDR}", b.MeshAddress.Masked().String(),
		"{$PAGES_IP}", "127.0.0.1", "{$ENDPOINT}", b.FQDN,
		`clusterIP: ""`, "clusterIP: "+b.MeshDNSAddress.String(),
	).Replace(string(data)), nil
}

// corefileOf is the Corefile in a ConfigMap, with what it imports in its place.
func corefileOf(cm *corev1.ConfigMap) string {
	var properties strings.Builder
	for _, key := range slices.Sorted(maps.Keys(cm.Data)) {
		if strings.HasSuffix(key, ".properties") {
			for line := range strings.Lines(cm.Data[key]) {
				properties.WriteString("${1}" + line)
			}
		}
	}
	return importLine.ReplaceAllString(cm.Data["Corefile"], properties.String())
}

var importLine = regexp.MustCompile(`(?m)^( *)import .*\n`)

// install applies the manifests, issues the certificate, and makes the pod that the Deployment would make.
func (b *Broker) install(ctx context.Context, edit func(string) string) error {
	for _, file := range []string{"base/namespace.yaml", "base/rbac.yaml", "base/services.yaml"} {
		text, err := b.Manifest(file)
		if err != nil {
			return err
		}
		if _, err := b.KubectlInput(ctx, text, "apply", "-f", "-"); err != nil {
			return err
		}
	}
	cm, err := b.configMap("base/corefile.yaml")
	if err != nil {
		return err
	}
	if b.fleet.Mode == mesh.WireGuard {
		err = b.installWireGuard(ctx, cm)
	} else {
		err = b.NewCertificate(ctx, b.fleet.CA, b.FQDN)
	}
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", b.Name)
	if err != nil {
		return err
	}
	b.corefile = filepath.Join(dir, "Corefile")
	// Light nodes have a router only where a test starts one.
	text := strings.Replace(corefileOf(cm), "kubelink {\n", "kubelink {\n        "+NoRouters+"\n", 1)
	// The tests request reloads with a signal: so they need not wait for the interval of the plugin reload.
	if err := b.SetCorefile(edit(text)); err != nil {
		return err
	}
	return b.createPod(ctx, "kubelink", b.Gateway())
}

// configMap reads a ConfigMap of deploy.
func (b *Broker) configMap(file string) (*corev1.ConfigMap, error) {
	text, err := b.Manifest(file)
	if err != nil {
		return nil, err
	}
	cm := &corev1.ConfigMap{}
	return cm, yaml.Unmarshal([]byte(text), cm)
}

// createPod makes a pod on a node as the Deployment does.
func (b *Broker) createPod(ctx context.Context, name string, n *testbed.Node) (err error) {
	b.Host, err = b.Cluster.Pod(ctx, name, testbed.PodOptions{
		Namespace: Namespace, Node: n, Labels: map[string]string{"app": "kubelink"},
		ServiceAccount: Account, HostNetwork: true,
		Env: []string{"NODE_IP=" + n.Address.String(), "NODE_NAME=" + n.Name},
	})
	return err
}

// Second returns a second broker of the cluster, on another node and with the same Corefile. It does not run yet.
func (b *Broker) Second(ctx context.Context, n *testbed.Node) (*Broker, error) {
	second := &Broker{Cluster: b.Cluster, fleet: b.fleet, key: b.key, corefile: b.corefile, text: b.text}
	return second, second.createPod(ctx, "kubelink-second", n)
}

// Beside returns another broker of the cluster, on another node and with a Corefile of its own. It does not run yet.
func (b *Broker) Beside(ctx context.Context, pod string, n *testbed.Node, corefile string) (*Broker, error) {
	beside := &Broker{Cluster: b.Cluster, fleet: b.fleet, corefile: b.corefile + "-" + pod}
	return beside, errors.Join(beside.SetCorefile(corefile), beside.createPod(ctx, pod, n))
}

// InPod returns a broker of the cluster in a pod with a network of its own (pod mode), and with the same Corefile. It
// does not run yet.
func (b *Broker) InPod(ctx context.Context, name string, n *testbed.Node) (p *Broker, err error) {
	p = &Broker{Cluster: b.Cluster, fleet: b.fleet, key: b.key, corefile: b.corefile, text: b.text}
	p.Host, err = b.Cluster.Pod(ctx, name, testbed.PodOptions{
		Namespace: Namespace, Node: n, Labels: map[string]string{"app": "kubelink"}, ServiceAccount: Account,
		Env: []string{"NODE_IP=" + n.Address.String(), "NODE_NAME=" + n.Name, "POD_NAME=" + name},
	})
	if err == nil {
		p.Env = []string{"POD_IP=" + p.Host.Address.String()}
	}
	return p, err
}

// NewCertificate puts a certificate for the names into the broker's secret. It creates the secret if it does not
// exist.
func (b *Broker) NewCertificate(ctx context.Context, ca *testbed.CA, names ...string) error {
	var addrs []netip.Addr
	names = slices.Clone(names)
	names = slices.DeleteFunc(names, func(n string) bool {
		a, err := netip.ParseAddr(n)
		if err == nil {
			addrs = append(addrs, a)
		}
		return err == nil
	})
	certPEM, keyPEM, err := ca.Issue(names, addrs)
	if err != nil {
		return err
	}
	return b.TLSSecret(ctx, Namespace, Secret, certPEM, keyPEM, ca.PEM)
}

// Corefile returns the present text of the Corefile.
func (b *Broker) Corefile() string { return b.text }

// SetCorefile writes the Corefile. A running broker reads it at the next Reload.
func (b *Broker) SetCorefile(text string) error {
	b.text = text
	return os.WriteFile(b.corefile, []byte(text), 0o644)
}

// Reload makes CoreDNS read its Corefile again and waits until it has.
func (b *Broker) Reload(ctx context.Context) error {
	before := strings.Count(b.Process.Log(), "Reloading complete")
	if err := b.Process.Kill(syscall.SIGUSR1); err != nil {
		return err
	}
	return testbed.Until(ctx, "reload", func(context.Context) error {
		if strings.Count(b.Process.Log(), "Reloading complete") == before {
			return errors.New("not yet complete")
		}
		return nil
	})
}

// Start starts the program and waits until it is ready.
func (b *Broker) Start(ctx context.Context) error {
	if err := b.Launch(); err != nil {
		return err
	}
	return b.WaitReady(ctx)
}

// Launch starts the program.
func (b *Broker) Launch() error {
	binary := b.Binary
	if binary == "" {
		var err error
		if binary, err = Binary(); err != nil {
			return err
		}
	}
	var err error
	b.Process, err = b.Host.Start(context.Background(), "kubelink", b.Env, binary, "-conf", b.corefile)
	return err
}

// WaitReady waits until the URL of the Deployment's readiness probe answers.
func (b *Broker) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return testbed.Until(ctx, "kubelink of "+b.Name, func(ctx context.Context) error {
		select {
		case <-b.Process.Done():
			// The wait ends: a program that has ended will not get ready.
			cancel(fmt.Errorf("it has ended: %w\n%s", b.Process.Wait(ctx), b.Process.Log()))
			return errors.New("there is no process")
		default:
		}
		_, err := b.Host.Get(ctx, b.pageURL(ReadyURL))
		return err
	})
}

// Kill ends the program and waits for its end.
func (b *Broker) Kill(ctx context.Context, signal syscall.Signal) error {
	if err := b.Process.Kill(signal); err != nil {
		return err
	}
	select {
	case <-b.Process.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// DNS returns the address of the broker's DNS server in its node, or in its pod.
func (b *Broker) DNS() netip.AddrPort { return netip.AddrPortFrom(b.Host.Address, 1053) }

// Local returns the LocalLink of the broker's cluster in the default mesh.
func (b *Broker) Local() *v1alpha1.KubeLink {
	l := b.LinkTo()
	l.Spec.Endpoint, l.Spec.PublicKey = v1alpha1.EndpointLocal, ""
	return l
}

// LinkTo returns the link of other clusters to this cluster in the default mesh.
func (b *Broker) LinkTo() *v1alpha1.KubeLink {
	l := &v1alpha1.KubeLink{}
	l.Name = b.Name
	l.Spec = v1alpha1.KubeLinkSpec{CIDR: b.ServiceCIDR.String(), ClusterAddress: b.MeshAddress.String(), Endpoint: b.FQDN}
	if b.key != (mesh.SecretKey{}) {
		l.Spec.PublicKey = b.PublicKey()
	}
	return l
}

// Apply creates the object or sets the spec of the existing one.
func (b *Broker) Apply(ctx context.Context, l *v1alpha1.KubeLink) error {
	l = l.DeepCopy()
	err := b.Client.Create(ctx, l)
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	var old v1alpha1.KubeLink
	if err := b.Client.Get(ctx, client.ObjectKeyFromObject(l), &old); err != nil {
		return err
	}
	patch := client.MergeFrom(old.DeepCopy())
	old.Spec = l.Spec
	return b.Client.Patch(ctx, &old, patch)
}

// Remove deletes a link and waits until it is gone.
func (b *Broker) Remove(ctx context.Context, name string) error {
	l := &v1alpha1.KubeLink{}
	l.Name = name
	if err := client.IgnoreNotFound(b.Client.Delete(ctx, l)); err != nil {
		return err
	}
	return testbed.Until(ctx, "deletion of "+name, func(ctx context.Context) error {
		err := b.Client.Get(ctx, client.ObjectKeyFromObject(l), l)
		if err == nil {
			return errors.New("still there")
		}
		return client.IgnoreNotFound(err)
	})
}

// Link reads a link from the API.
func (b *Broker) Link(ctx context.Context, name string) (*v1alpha1.KubeLink, error) {
	l := &v1alpha1.KubeLink{}
	err := b.Client.Get(ctx, client.ObjectKey{Name: name}, l)
	return l, err
}

// WaitState waits until a link is in a state and its message contains all texts.
func (b *Broker) WaitState(ctx context.Context, name string, state v1alpha1.State, texts ...string) error {
	return testbed.Until(ctx, fmt.Sprintf("link %s of %s to be %s", name, b.Name, state), func(ctx context.Context) error {
		l, err := b.Link(ctx, name)
		if err != nil {
			return err
		}
		if l.Status.State != state || l.Status.ObservedGeneration != l.Generation {
			return fmt.Errorf("it is %q (%s)", l.Status.State, l.Status.Message)
		}
		for _, t := range texts {
			if !strings.Contains(l.Status.Message, t) {
				return fmt.Errorf("its message %q does not contain %q", l.Status.Message, t)
			}
		}
		return nil
	})
}

// Mesh links every cluster with every other in the default mesh and waits until all links are up.
func (f *Fleet) Mesh(ctx context.Context) error {
	for _, a := range f.Brokers {
		if err := a.Apply(ctx, a.Local()); err != nil {
			return err
		}
		for _, b := range f.Brokers {
			if a != b {
				if err := a.Apply(ctx, b.LinkTo()); err != nil {
					return err
				}
			}
		}
	}
	return f.WaitMesh(ctx)
}

// WaitMesh waits until all links of Mesh are up: in the metrics of the running brokers and in the API. The API alone
// may still show the state from before the brokers' start.
func (f *Fleet) WaitMesh(ctx context.Context) error {
	for _, a := range f.Brokers {
		for _, b := range f.Brokers {
			if a != b {
				if err := testbed.Until(ctx, fmt.Sprintf("link %s of %s to be connected", b.Name, a.Name),
					func(ctx context.Context) error {
						v, err := a.Metric(ctx, fmt.Sprintf("coredns_kubelink_link_up{link=%q}", b.Name))
						if err == nil && v != 1 {
							err = errors.New("it is not")
						}
						return err
					}); err != nil {
					return err
				}
			}
			if err := a.WaitState(ctx, b.Name, v1alpha1.StateUp); err != nil {
				return err
			}
		}
	}
	return nil
}

// pageURL is the URL of a page at the address that the broker has.
func (b *Broker) pageURL(url string) string {
	if !b.pages.IsValid() {
		return url
	}
	return strings.Replace(url, "127.0.0.1", b.pages.String(), 1)
}

// Metric returns a metric of the broker. series is its name with its labels, as Prometheus writes it. A counter
// without a value yet is 0.
func (b *Broker) Metric(ctx context.Context, series string) (float64, error) {
	text, err := b.Host.Get(ctx, b.pageURL(MetricsURL))
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(text, "\n") {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			var v float64
			_, err := fmt.Sscan(rest, &v)
			return v, err
		}
	}
	return 0, nil
}

// WaitChecked waits until the broker has checked its node twice from now on.
func (b *Broker) WaitChecked(ctx context.Context) error {
	const series = "coredns_kubelink_node_checks_total"
	before, err := b.Metric(ctx, series)
	if err != nil {
		return err
	}
	return testbed.Until(ctx, "checks of the node", func(ctx context.Context) error {
		now, err := b.Metric(ctx, series)
		if err == nil && now < before+2 {
			err = fmt.Errorf("%v of 2", now-before)
		}
		return err
	})
}
