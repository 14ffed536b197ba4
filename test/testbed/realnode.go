package testbed

// This file runs real nodes: containerd and kubelet in the namespaces of a host. The node's mount namespace has a /run
// and a /var of its own, so that both programs have their usual paths, and what they mount goes with the namespace.

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// How pods are connected to real nodes.
const (
	PointToPoint = "ptp"    // a route to each pod, as Calico has it
	Bridge       = "bridge" // the pods of a node are in one Ethernet, as with Flannel
)

const containerdConfig = `version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '%s'
[plugins.'io.containerd.internal.v1.opt']
path = '/var/lib/containerd/opt'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true # some machines allow no lower value than the test bed's own
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/usr/lib/cni']
conf_dir = '/run/cni'
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: %s
enforceNodeAllocatable: [] # the machine belongs to other programs, too
failSwapOn: false
oomScoreAdj: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
clusterDomain: cluster.local
clusterDNS: [%s]
serializeImagePulls: false
imageGCHighThresholdPercent: 100 # no registry has the images
evictionHard: {memory.available: 1Mi, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%}
`

// cniConfig: portmap is for host ports; tuning lets pods forward packets, as pods of usual nodes may.
const cniConfig = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [
	{%s, "mtu": %d, "ipam": {"type": "host-local", "subnet": "%s", "routes": [{"dst": "0.0.0.0/0"}]}},
	{"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
	{"type": "tuning", "sysctl": {"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.rp_filter": "0"}}
]}`

var cniPlugins = map[string]string{
	PointToPoint: `"type": "ptp"`,
	Bridge:       `"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true`,
}

// kernelTunables are settings of the machine that kubelet would change. It sees what it wants instead.
var kernelTunables = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

func (n *Node) isReal() bool { return n.cni != "" }

// realNodes returns the real nodes of all clusters.
func (b *Testbed) realNodes() (all []*Node) {
	for _, c := range b.Clusters {
		for _, n := range c.Nodes {
			if n.isReal() {
				all = append(all, n)
			}
		}
	}
	return all
}

// startRuntimes gets the real nodes ready for kubelet. The clusters start meanwhile.
func (b *Testbed) startRuntimes(ctx context.Context) (err error) {
	nodes := b.realNodes()
	if len(nodes) == 0 {
		return nil
	}
	if b.podImage, err = buildPodImage(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		g.Go(func() error { return n.startRuntime(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	close(b.runtimes)
	return nil
}

// startRuntime starts containerd and gives it the images.
func (n *Node) startRuntime(ctx context.Context) error {
	if err := n.makeCgroups(); err != nil {
		return err
	}
	if err := n.mountVar(ctx); err != nil {
		return err
	}
	if err := n.startContainerd(ctx); err != nil {
		return err
	}
	return n.Import(ctx, append([]string{n.testbed.podImage}, n.testbed.opts.Images...)...)
}

// ownFile returns the path of a file on the node, as the test bed sees it.
func (n *Node) ownFile(path string) string { return filepath.Join(n.dir, path) }

func (n *Node) startContainerd(ctx context.Context) error {
	plugin, ok := cniPlugins[n.cni]
	if !ok {
		return fmt.Errorf("%s: no pod network %q", n.Name, n.cni)
	}
	if n.cni == Bridge {
		// Else, answers of a pod to another one on its node would miss the service's address.
		if err := n.Sysctl("net.bridge.bridge-nf-call-iptables=1"); err != nil {
			return err
		}
	}
	for path, text := range map[string]string{
		"run/containerd.toml":   fmt.Sprintf(containerdConfig, PodImage),
		"run/cni/pods.conflist": fmt.Sprintf(cniConfig, plugin, n.cluster.opts.mtu(), n.Pods),
	} {
		if err := os.MkdirAll(filepath.Dir(n.ownFile(path)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(n.ownFile(path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	path := "PATH=" + n.testbed.nodeBinaries + ":" + os.Getenv("PATH") // for its shim
	containerd, err := n.Start(n.testbed.ctx, "containerd", []string{path}, n.testbed.nodeBinary("containerd"),
		"--config", "/run/containerd.toml")
	if err != nil {
		return err
	}
	return containerd.waitUntil(ctx, "containerd on "+n.Name, func(context.Context) error {
		conn, err := net.Dial("unix", n.ownFile("run/containerd/containerd.sock"))
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// mountVar gives the node a /var, and the machine's settings as kubelet wants them.
func (n *Node) mountVar(ctx context.Context) error {
	for _, dir := range []string{"var/lib", "var/log", "var/tmp", "tunables"} {
		if err := os.MkdirAll(n.ownFile(dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Symlink("/run", n.ownFile("var/run")); err != nil {
		return err
	}
	mounts := "mount --bind " + n.ownFile("var") + " /var"
	for name, value := range kernelTunables {
		file := n.ownFile("tunables/" + strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o444); err != nil {
			return err
		}
		mounts += " && mount --bind " + file + " /proc/sys/" + name
	}
	_, err := n.Run(ctx, "sh", "-c", mounts)
	return err
}

// Import gives the node the images of archives (docker save).
func (n *Node) Import(ctx context.Context, archives ...string) error {
	for _, archive := range archives {
		archive, err := filepath.Abs(archive)
		if err != nil {
			return err
		}
		if _, err := n.ctr(ctx, "images", "import", archive); err != nil {
			return err
		}
	}
	return nil
}

// ctr runs containerd's client in the namespace of Kubernetes.
func (n *Node) ctr(ctx context.Context, args ...string) (string, error) {
	return n.Run(ctx, n.testbed.nodeBinary("ctr"), append([]string{"--namespace", "k8s.io"}, args...)...)
}

// startKubelets starts kubelet on the cluster's real nodes, and waits until they are ready for pods.
func (c *Cluster) startKubelets(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range c.Nodes {
		if n.isReal() {
			g.Go(func() error { return n.startKubelet(ctx) })
		}
	}
	return g.Wait()
}

func (n *Node) startKubelet(ctx context.Context) error {
	c := n.cluster
	cert, key, err := c.pki.ca.issueUser("system:node:"+n.Name, "system:nodes")
	if err != nil {
		return err
	}
	kubeconfig, err := c.writeKubeconfig(n.Name, clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key})
	if err != nil {
		return err
	}
	config := fmt.Sprintf(kubeletConfig, n.cgroup(), c.DNSAddress)
	if err := os.WriteFile(n.ownFile("run/kubelet.yaml"), []byte(config), 0o644); err != nil {
		return err
	}
	n.kubelet, err = n.Start(c.testbed.ctx, "kubelet", nil, c.testbed.nodeBinary("kubelet"),
		"--config=/run/kubelet.yaml",
		"--kubeconfig="+kubeconfig,
		"--hostname-override="+n.Name,
		"--node-ip="+n.Address.String(),
		"--volume-plugin-dir=/var/lib/kubelet/plugins-exec")
	if err != nil {
		return err
	}
	return n.kubelet.whileRunning(ctx, func(ctx context.Context) error {
		return awaitObject(ctx, c, newNodeObject(n.Name), &corev1.NodeList{}, checkNodeReady)
	})
}

// stopRealNode ends all programs of the node and of its containers. Their mounts go with the node's mount namespace.
func (n *Node) stopRealNode(ctx context.Context) error {
	return Until(ctx, "the end of programs on "+n.Name, func(context.Context) error {
		pids := append(n.containerProcesses(), processesIn(n.mnt)...)
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(pids) > 0 {
			return fmt.Errorf("processes %v", pids)
		}
		return nil
	})
}

// processesIn returns the processes in a mount namespace, such as the shims of containerd, which are children of
// nothing.
func processesIn(namespace *os.File) (all []int) {
	want, err := namespace.Stat()
	if err != nil {
		return nil
	}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/mnt")
	for _, link := range links {
		if is, err := os.Stat(link); err == nil && os.SameFile(is, want) {
			var pid int
			if _, err := fmt.Sscanf(link, "/proc/%d/", &pid); err == nil {
				all = append(all, pid)
			}
		}
	}
	return slices.DeleteFunc(all, func(pid int) bool { return pid == os.Getpid() })
}

func (b *Testbed) nodeBinary(name string) string { return filepath.Join(b.nodeBinaries, name) }
