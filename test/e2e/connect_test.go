package e2e

// The command connect on real control planes. That it installs kubelink is tested on real nodes.

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/test/fleet"
)

// removeLinks removes all links between the clusters, and then their LocalLinks, which wait for that.
func removeLinks(t *testing.T, ctx context.Context) {
	t.Helper()
	for _, b := range brokers {
		for _, name := range names() {
			if name != b.Name {
				must(t, b.Remove(ctx, name))
			}
		}
		must(t, b.Remove(ctx, b.Name))
	}
}

// markInstalled makes the objects by which connect finds a broker, without pods: the brokers of the test run already.
func markInstalled(t *testing.T, ctx context.Context, b *fleet.Broker) {
	t.Helper()
	in := func(args ...string) {
		t.Helper()
		_, err := b.Kubectl(ctx, append([]string{"-n", fleet.Namespace}, args...)...)
		must(t, err)
	}
	in("create", "deployment", "kubelink", "--image=none", "--replicas=0")
	in("create", "configmap", "kubelink", "--from-literal=Corefile=mode "+string(f.Mode))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := b.Kubectl(ctx, "-n", fleet.Namespace, "delete", "deployment/kubelink", "configmap/kubelink")
		must(t, err)
	})
}

// Two runs of connect at the same time link one cluster with two others. All of them get addresses of their own, and the
// links are Up.
func TestConnectAtOnce(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	c := newCommandLine(t)
	removeLinks(t, ctx)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		removeLinks(t, ctx)
		restoreMesh(t)
	})
	for _, b := range brokers {
		markInstalled(t, ctx, b)
	}
	var runs sync.WaitGroup
	for _, pair := range [][2]*fleet.Broker{{brokers[0], brokers[1]}, {brokers[2], brokers[0]}} {
		args := []string{"connect", "--timeout=1m"}
		for _, b := range pair {
			args = append(args, b.Name, "--endpoint="+b.Name+"="+b.FQDN)
		}
		runs.Go(func() {
			out, code, took := c.run(t, args...)
			t.Logf("in %s:\n%s", took, out)
			if code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
	runs.Wait()
	addresses := map[string]string{}
	for _, b := range brokers {
		l, err := b.Link(ctx, b.Name)
		must(t, err)
		if other := addresses[l.Spec.ClusterAddress]; other != "" {
			t.Errorf("%s and %s have the address %s", other, b.Name, l.Spec.ClusterAddress)
		}
		addresses[l.Spec.ClusterAddress] = b.Name
		leases, err := b.Kubectl(ctx, "-n", "kube-system", "get", "leases", "--field-selector=metadata.name=kubelink-connect",
			"-o", "name")
		if err != nil || leases != "" {
			t.Errorf("%s: %v %s", b.Name, err, leases)
		}
	}
}
