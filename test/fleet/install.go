package fleet

// This file installs kubelink as users do, in clusters with real nodes: an image, a kustomization of deploy, kubectl.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// Installation is a cluster with real nodes, and the components of deploy that are installed there. The component values
// is added.
type Installation struct {
	testbed.ClusterOptions
	Components []string
}

// InstallOptions say what is installed on which clusters.
type InstallOptions struct {
	Nodes    int       // per cluster
	Mode     mesh.Mode // empty: as in Options
	Clusters []Installation
	// Edit changes the kustomization and the values of a cluster (from 0), which are files by name. It may add files.
	Edit     func(cluster int, files map[string]string)
	Progress func(string)
}

// Install boots clusters with real nodes, and installs kubelink in each. There are no links yet.
func Install(ctx context.Context, opts InstallOptions) (*Fleet, error) {
	f, err := Boot(ctx, opts)
	if err != nil {
		return nil, err
	}
	return f.orClose(f.Install(ctx))
}

// Boot boots clusters with real nodes that have the image, but no kubelink yet: Install of the fleet installs it.
func Boot(ctx context.Context, opts InstallOptions) (*Fleet, error) {
	binary, err := Binary()
	if err != nil {
		return nil, err
	}
	mode, err := modeOr(opts.Mode)
	if err != nil {
		return nil, err
	}
	archive, image, err := findImage()
	if err != nil {
		return nil, err
	}
	var clusters []testbed.ClusterOptions
	for _, c := range opts.Clusters {
		clusters = append(clusters, c.ClusterOptions)
	}
	b, err := testbed.New(ctx, len(clusters), testbed.Options{
		Nodes:       opts.Nodes,
		CoreDNS:     binary,
		Clusters:    clusters,
		Images:      []string{archive},
		AddToScheme: kinds,
		Progress:    opts.Progress,
	})
	if err != nil {
		return nil, err
	}
	f := newFleet(b, mode)
	f.image, f.installation = image, opts
	return f, nil
}

// Install installs kubelink in all clusters that Boot has booted, as its options say.
func (f *Fleet) Install(ctx context.Context) error {
	opts := f.installation
	return f.installAll(opts.Progress, func(i int, br *Broker) error {
		files, err := br.kustomization(f.image, opts.Clusters[i].Components)
		if err != nil {
			return err
		}
		if opts.Edit != nil {
			opts.Edit(i, files)
		}
		return br.ApplyFiles(ctx, files)
	})
}

// Image is what the image of Boot is called.
func (f *Fleet) Image() string { return f.image }

// findImage returns the archive that make image writes, or the one that the variable KUBELINK_IMAGE names, and what the
// image is called.
func findImage() (archive, image string, err error) {
	root, err := testbed.Repository()
	if err != nil {
		return "", "", err
	}
	if archive = os.Getenv("KUBELINK_IMAGE"); archive == "" {
		archive = filepath.Join(root, "bin", "kubelink-image.tar")
	}
	manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(archive) })
	if err != nil {
		return "", "", fmt.Errorf("%w: run make image first", err)
	}
	// kubelet would look for a newer image of the tag latest.
	for _, tag := range manifest[0].RepoTags {
		if !strings.HasSuffix(tag, ":latest") {
			return archive, tag, nil
		}
	}
	return "", "", fmt.Errorf("%s: no tag but latest", archive)
}

// kustomization returns the files that deploy/README.md tells users to write, with the values of the cluster.
func (b *Broker) kustomization(image string, components []string) (map[string]string, error) {
	root, err := testbed.Repository()
	if err != nil {
		return nil, err
	}
	deploy, err := filepath.Rel(b.installFolder(), filepath.Join(root, "deploy"))
	if err != nil {
		return nil, err
	}
	text := "resources: [values.yaml, " + deploy + "/base]\ncomponents:\n"
	components = slices.Clone(components)
	if b.fleet.Mode == mesh.WireGuard {
		components = append(components, "wireguard")
	}
	for _, name := range append(components, "values") {
		text += "  - " + deploy + "/components/" + name + "\n"
	}
	values := fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata: {name: kubelink-values, namespace: kubelink}
data:
  image: %s
  service-cidr: %s
  pod-cidr: %s
  node-cidr: %s
  mesh-cidr: %s
  dns-service-ip: %s
  endpoint: %s
`, image, b.ServiceCIDR, testbed.PodCIDR, testbed.NodeCIDR, b.MeshAddress.Masked(), b.MeshDNSAddress, b.FQDN)
	return map[string]string{"kustomization.yaml": text, "values.yaml": values}, nil
}

func (b *Broker) installFolder() string { return filepath.Join(os.TempDir(), "install-"+b.Name) }

// ApplyFiles applies a kustomization, and waits for the broker. In mode bridge it makes the broker's certificate; in
// mode wireguard the broker makes its key.
func (b *Broker) ApplyFiles(ctx context.Context, files map[string]string) error {
	dir := b.installFolder()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if _, err := b.Kubectl(ctx, "apply", "-k", dir); err != nil {
		return err
	}
	if b.fleet.Mode == mesh.WireGuard {
		return errors.Join(b.ReadKey(ctx), b.FindPod(ctx))
	}
	if err := b.NewCertificate(ctx, b.fleet.CA, b.FQDN); err != nil {
		return err
	}
	return b.FindPod(ctx)
}

// Uninstall removes what Install has applied, as deploy/README.md tells users. The links are gone already.
func (b *Broker) Uninstall(ctx context.Context) error {
	root, err := testbed.Repository()
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"-n", Namespace, "delete", "daemonset", "kubelink-router", "--cascade=foreground", "--ignore-not-found"},
		{"delete", "-k", b.installFolder(), "--ignore-not-found"},
		{"delete", "-f", filepath.Join(root, "deploy", "crds")},
	} {
		if _, err := b.Kubectl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// FindPod waits until the Deployment has one pod, which is ready, and makes it the broker's Host.
func (b *Broker) FindPod(ctx context.Context) error {
	pods, err := b.PodsOf(ctx, 1, Namespace, map[string]string{"app": "kubelink"})
	if err == nil {
		b.Host, b.pages = pods[0], netip.Addr{}
		if !b.Host.Object.Spec.HostNetwork {
			b.pages = b.Host.Address
		}
	}
	return err
}
