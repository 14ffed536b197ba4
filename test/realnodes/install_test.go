package realnodes

// Tests of kubelink as users install it, on real nodes.

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// TestInstallNodeMode: on two clusters with different pod networks, kubectl apply -k installs kubelink as a Deployment,
// and a pod on the gateway's node reaches a service of the other cluster by its address and its name.
func TestInstallNodeMode(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	start := time.Now()
	f, err := fleet.Install(ctx, fleet.InstallOptions{
		Nodes: 2,
		Clusters: []testbed.ClusterOptions{
			{PodNetwork: testbed.PointToPoint},
			{PodNetwork: testbed.Bridge, ProxyMode: testbed.ProxyNFTables},
		},
		Components: []string{"node-mode"},
		Progress:   func(what string) { t.Logf("%5.1fs %s", time.Since(start).Seconds(), what) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, f.Close()) })
	f.DumpOnFailure(t)
	check(t, f.Mesh(ctx))
	t.Logf("%5.1fs links are up", time.Since(start).Seconds())
	for i, b := range f.Brokers {
		peer := f.Brokers[1-i]
		must(peer.Deploy(ctx, "server", 1, peer.Nodes[1]))(t)
		web := testbed.TCPPort(80)
		web.TargetPort.IntVal = 8080
		addr := must(peer.Service(ctx, "web", map[string]string{"app": "server"}, []corev1.ServicePort{web},
			testbed.ServiceOptions{}))(t)
		client := must(b.Deploy(ctx, "client", 1, b.Host.Node))(t)[0]
		for _, url := range []string{
			fmt.Sprintf("http://%s", addr),
			fmt.Sprintf("http://web.default.svc.%s.kubelink", peer.Name),
		} {
			seen := must(b.Exec(ctx, "default", client.Object.Name, "/pod", "get", url))(t)
			t.Logf("%5.1fs %s on %s: %s saw %s", time.Since(start).Seconds(), client.Name, client.Node.Name, url, seen)
			if addr, err := netip.ParseAddr(seen); err != nil || !testbed.PodCIDR.Contains(addr) &&
				!testbed.NodeCIDR.Contains(addr) {
				t.Errorf("%s saw %q, and not its own gateway", url, seen)
			}
		}
	}
}
