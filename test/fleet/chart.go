package fleet

// This file installs kubelink with its Helm chart, as deploy/README.md tells users.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// Chart returns the folder of the chart.
func Chart() (string, error) {
	root, err := testbed.Repository()
	return filepath.Join(root, chartFolder), err
}

const chartFolder = "deploy/helm/kubelink"

// ChartBefore writes the chart of the commit before into a folder, with another version, and returns where it is. Where
// there is no such commit, it is the present chart. from says which one it is.
func ChartBefore(ctx context.Context, folder string) (chart, from string, err error) {
	root, err := testbed.Repository()
	if err != nil {
		return "", "", err
	}
	from = "HEAD~1"
	archive := fmt.Sprintf("git archive %s deploy | tar -x -C %s && test -d %[2]s/%s", from, folder, chartFolder)
	if out, err := runIn(ctx, root, "sh", "-c", archive); err != nil {
		from = "the present one (" + out + ")"
		if out, err := runIn(ctx, root, "cp", "-a", "deploy", folder); err != nil {
			return "", "", fmt.Errorf("%w: %s", err, out)
		}
	}
	chart = filepath.Join(folder, chartFolder)
	file := filepath.Join(chart, "Chart.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return "", "", err
	}
	before, rest, found := strings.Cut(string(text), "\nversion: ")
	_, after, _ := strings.Cut(rest, "\n")
	if !found {
		return "", "", fmt.Errorf("%s: no version", file)
	}
	return chart, from, os.WriteFile(file, []byte(before+"\nversion: 0.0.1\n"+after), 0o644)
}

// runIn runs a command in a folder, and returns all that it prints.
func runIn(ctx context.Context, folder, name string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.Dir = folder
	out, err := command.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// chartValues are the values of the cluster.
func (b *Broker) chartValues() string {
	repository, tag, _ := strings.Cut(b.fleet.image, ":")
	values := fmt.Sprintf("image.repository=%s,image.tag=%s,serviceCIDR=%s,podCIDR=%s,nodeCIDR=%s,meshCIDR=%s,endpoint=%s",
		repository, tag, b.ServiceCIDR, testbed.PodCIDR, testbed.NodeCIDR, b.MeshAddress.Masked(), b.FQDN)
	if b.fleet.Mode == mesh.WireGuard {
		values += ",links=wireguard"
	}
	return values
}

// InstallChart installs a chart, makes the certificate, and waits for the broker. The values come after those of the
// cluster. It returns what Helm tells users.
func (b *Broker) InstallChart(ctx context.Context, chart string, values string) (notes string, err error) {
	notes, err = b.Helm(ctx, "install", "kubelink", chart, "--namespace", Namespace, "--create-namespace",
		"--set-string", b.chartValues(), "--set", values) // strings, as a tag may be a number
	if err != nil {
		return notes, err
	}
	if b.fleet.Mode == mesh.WireGuard {
		return notes, errors.Join(b.ReadKey(ctx), b.FindPod(ctx))
	}
	if err := b.NewCertificate(ctx, b.fleet.CA, b.FQDN); err != nil {
		return notes, err
	}
	return notes, b.FindPod(ctx)
}

// UpgradeChart upgrades to a chart, with changed values, and waits for the pods.
func (b *Broker) UpgradeChart(ctx context.Context, chart string, values string) error {
	_, err := b.Helm(ctx, "upgrade", "kubelink", chart, "--namespace", Namespace, "--reset-then-reuse-values", "--wait",
		"--timeout", "2m", "--set", values)
	if err != nil {
		return err
	}
	return b.FindPod(ctx)
}

// UninstallChart removes the release. The links may be there.
func (b *Broker) UninstallChart(ctx context.Context) error {
	_, err := b.Helm(ctx, "uninstall", "kubelink", "--namespace", Namespace, "--wait", "--timeout", "3m")
	return err
}
