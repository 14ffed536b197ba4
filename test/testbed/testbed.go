package testbed

// This file defines the test bed as a whole: its clusters, the internet between them, its start and its end.

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime"
	crlog "sigs.k8s.io/controller-runtime/pkg/log"
)

// Options of a test bed. With the zero value, clusters have one node each and no DNS.
type Options struct {
	Nodes int // nodes per cluster; 0 is 1
	// path of a CoreDNS binary with the kubernetes plugin; empty: clusters have no DNS
	CoreDNS string
	// of each cluster; clusters without options have light nodes
	Clusters []ClusterOptions
	Images   []string // archives (docker save) of images that real nodes have
	// folder of the control plane's binaries; empty: where test/controlplane/build.sh puts them
	ControlPlane string
	ProxyMode    string                        // of kube-proxy; empty: ProxyIPTables
	AddToScheme  []func(*runtime.Scheme) error // more types for the clusters' clients
	Progress     func(string)                  // called with each step
}

// ClusterOptions are properties of one cluster.
type ClusterOptions struct {
	// PointToPoint or Bridge: its nodes are real, with kubelet and containerd, and this is how pods are connected.
	// Empty: its nodes are light, network namespaces without containers. Real nodes need root.
	PodNetwork string
	ProxyMode  string // of kube-proxy; empty: as Options say
	MTU        int    // of its nodes and pods, bytes; 0: 1500
	Helm       string // Helm3 or Helm4, for the method Helm; empty: Helm4
	// network of its services, with 11 addresses at least; not valid: no other cluster has it
	ServiceCIDR netip.Prefix
}

// Major versions of Helm, as the paths of its modules have them.
const (
	Helm3 = "v3"
	Helm4 = "v4"
)

func (o ClusterOptions) isReal() bool { return o.PodNetwork != "" }

func (o ClusterOptions) mtu() int { return cmp.Or(o.MTU, 1500) }

// Testbed is a number of clusters and the internet that connects them. A process can have one at a time.
type Testbed struct {
	Clusters []*Cluster
	CA       *CA // the clusters do not trust it, unless a test makes them

	opts         Options
	binaries     string
	nodeBinaries string          // of what real nodes need besides
	podImage     string          // archive of PodImage
	runtimes     chan struct{}   // closed when the runtimes of all real nodes run
	ctx          context.Context // ends with the test bed
	cancel       context.CancelFunc
	internet     *Host

	mu        sync.Mutex
	hosts     []*Host
	processes []*Process
}

var inUse sync.Mutex // held by the test bed of this process

// New boots n clusters. ctx bounds the boot. The test bed lives until Close, or until the end of the process.
func New(ctx context.Context, n int, opts Options) (_ *Testbed, err error) {
	if os.Getenv(hostPIDVar) == "" {
		return nil, errors.New("test bed: the program has to run inside of testbed.Main")
	}
	if !inUse.TryLock() {
		return nil, errors.New("test bed: this process has one already")
	}
	crlog.SetLogger(logr.FromSlogHandler(slog.Default().Handler())) // else the client's first line is a stack trace
	b := &Testbed{opts: opts, binaries: opts.ControlPlane, runtimes: make(chan struct{})}
	b.ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			b.Close()
			err = fmt.Errorf("test bed: %w", err)
		}
	}()
	if b.opts.Nodes == 0 {
		b.opts.Nodes = 1
	}
	if b.binaries == "" {
		if b.binaries, err = ControlPlaneFolder(); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(filepath.Join(b.binaries, "kube-apiserver")); err != nil {
		return nil, fmt.Errorf("no control plane: %w (test/controlplane/build.sh builds it)", err)
	}
	if b.CA, err = NewCA("kubelink test bed"); err != nil {
		return nil, err
	}
	b.reportProgress("wiring %d clusters", n)
	if err := b.wireNetworks(n); err != nil {
		return nil, err
	}
	if err := b.prepareRealNodes(); err != nil {
		return nil, err
	}
	g, bootCtx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.startRuntimes(bootCtx) })
	for _, c := range b.Clusters {
		g.Go(func() error { return c.boot(bootCtx) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return b, nil
}

// wireNetworks makes all networks.
func (b *Testbed) wireNetworks(n int) (err error) {
	if b.internet, err = b.newHost("internet", resolver{}, nil); err != nil {
		return err
	}
	if err := b.internet.addBridge("internet"); err != nil {
		return err
	}
	names := map[string]netip.Addr{}
	for i := 1; i <= n; i++ {
		c, err := b.wireCluster(i)
		if err != nil {
			return fmt.Errorf("cluster %d: %w", i, err)
		}
		b.Clusters = append(b.Clusters, c)
		names[c.FQDN] = c.PublicAddress
	}
	for _, h := range b.hosts {
		if err := h.SetHosts(names); err != nil {
			return err
		}
	}
	for _, c := range b.Clusters {
		if c.opts.isReal() {
			if err := c.serveInternetNames(names); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close ends all programs and gives up all namespaces.
func (b *Testbed) Close() error {
	b.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b.mu.Lock()
	processes, hosts := b.processes, b.hosts
	b.processes, b.hosts = nil, nil
	b.mu.Unlock()
	var errs []error
	for _, p := range processes {
		errs = append(errs, p.stop(ctx))
	}
	for _, n := range b.realNodes() {
		errs = append(errs, n.stopRealNode(ctx))
	}
	for _, h := range slices.Backward(hosts) {
		h.close()
	}
	removeCgroups()
	for _, dir := range []string{"cluster", "host", "log"} {
		errs = append(errs, os.RemoveAll(filepath.Join(workDir, dir)), os.MkdirAll(filepath.Join(workDir, dir), 0o755))
	}
	inUse.Unlock()
	return errors.Join(errs...)
}

// CutLink drops all packets between two clusters on the internet, silently. Clusters are counted from 1.
func (b *Testbed) CutLink(ctx context.Context, i, j int) error {
	return b.changeLink(ctx, i, j, "-I")
}

// RestoreLink undoes CutLink.
func (b *Testbed) RestoreLink(ctx context.Context, i, j int) error {
	return b.changeLink(ctx, i, j, "-D")
}

func (b *Testbed) changeLink(ctx context.Context, i, j int, command string) error {
	x, y := b.Clusters[i-1], b.Clusters[j-1]
	_, err1 := x.Router.Iptables(ctx, "-t", "raw", command, "PREROUTING", "-s", y.PublicAddress.String(), "-j", "DROP")
	_, err2 := y.Router.Iptables(ctx, "-t", "raw", command, "PREROUTING", "-s", x.PublicAddress.String(), "-j", "DROP")
	return errors.Join(err1, err2)
}

// DumpOnFailure prints the end of every program's log when the test has failed.
func (b *Testbed) DumpOnFailure(t testing.TB) {
	t.Cleanup(func() {
		if t.Failed() {
			b.DumpLogs(t.Output(), 15)
		}
	})
}

// DumpLogs writes the last lines of every program's log.
func (b *Testbed) DumpLogs(w io.Writer, lines int) {
	logs, _ := filepath.Glob(filepath.Join(workDir, "log", "*.log"))
	for _, log := range logs {
		text, err := os.ReadFile(log)
		if err != nil || len(text) == 0 {
			continue
		}
		fmt.Fprintf(w, "--- %s\n%s\n", strings.TrimSuffix(filepath.Base(log), ".log"), lastLines(string(text), lines))
	}
}

// ControlPlaneFolder returns the folder to which test/controlplane/build.sh writes the binaries of control planes: in
// .cache of the repository, by version.
func ControlPlaneFolder() (string, error) {
	root, err := Repository()
	if err != nil {
		return "", err
	}
	kubernetes, err := requiredVersion(root, "go.mod", "k8s.io/kubernetes")
	return filepath.Join(root, ".cache", "controlplane-"+kubernetes), err
}

// nodesFolder is ControlPlaneFolder for the binaries of real nodes.
func nodesFolder() (string, error) {
	root, err := Repository()
	if err != nil {
		return "", err
	}
	kubernetes, err1 := requiredVersion(root, "go.mod", "k8s.io/kubernetes")
	containerd, err2 := requiredVersion(root, "containerd/go.mod", "github.com/containerd/containerd/v2")
	return filepath.Join(root, ".cache", "nodes-"+kubernetes+"-"+containerd), errors.Join(err1, err2)
}

// helmBinary returns the path of Helm3 or Helm4, which is where ControlPlaneFolder has control planes.
func helmBinary(major string) (string, error) {
	root, err := Repository()
	if err != nil {
		return "", err
	}
	helm, err := requiredVersion(root, "helm/go.mod", "helm.sh/helm/"+major)
	path := filepath.Join(root, ".cache", "helm-"+helm, "helm")
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return "", fmt.Errorf("no Helm: %w (test/controlplane/build.sh builds it)", err)
	}
	return path, nil
}

// requiredVersion returns the version of a module that a go.mod below test/controlplane requires.
func requiredVersion(root, file, module string) (string, error) {
	mod, err := os.Open(filepath.Join(root, "test", "controlplane", file))
	if err != nil {
		return "", err
	}
	defer mod.Close()
	for lines := bufio.NewScanner(mod); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) >= 2 && fields[0] == module {
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("%s: no %s", mod.Name(), module)
}

// Repository returns the root folder of the sources: the nearest one above the working directory that has the control
// planes' module.
func Repository() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "test", "controlplane", "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not in the sources of kubelink", wd)
		}
	}
}

func (b *Testbed) reportProgress(format string, args ...any) {
	if b.opts.Progress != nil {
		b.opts.Progress(fmt.Sprintf(format, args...))
	}
}

func (b *Testbed) addHost(h *Host) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hosts = append(b.hosts, h)
}

func (b *Testbed) removeHost(h *Host) {
	b.mu.Lock()
	b.hosts = slices.DeleteFunc(b.hosts, func(other *Host) bool { return other == h })
	b.mu.Unlock()
	h.close()
}

func (b *Testbed) addProcess(p *Process) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.processes = append(b.processes, p)
}
