package e2e

// MeshServices as users of the former system have them: the objects of its examples, and egress in place of offers.

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// formerMeshServices are the MeshServices of broker/mesh/testdata/former.yaml.
func formerMeshServices(t *testing.T) string {
	t.Helper()
	file, err := os.ReadFile("../../broker/mesh/testdata/former.yaml")
	must(t, err)
	var docs []string
	for doc := range strings.SplitSeq(string(file), "\n---\n") {
		if strings.Contains(doc, "kind: MeshService") {
			docs = append(docs, doc)
		}
	}
	return strings.Join(docs, "\n---\n")
}

// serveFormerObjects applies the MeshServices as they are, and makes what they name: a service, and hosts outside of
// the cluster.
func serveFormerObjects(t *testing.T, ctx context.Context, b *fleet.Broker) {
	t.Helper()
	_, err := b.Service(ctx, "echoserver", map[string]string{"app": "server"}, []corev1.ServicePort{
		{Name: "http", Port: 80, TargetPort: intstr.FromInt32(httpPort)},
	}, testbed.ServiceOptions{})
	must(t, err)
	t.Cleanup(func() { b.Kubectl(context.Background(), "delete", "service", "echoserver") })
	for _, address := range []string{"10.250.0.77/32", "10.250.0.78/32"} {
		_, err := b.Router.Run(ctx, "ip", "address", "add", address, "dev", "lan")
		must(t, err)
		t.Cleanup(func() { b.Router.Run(context.Background(), "ip", "address", "del", address, "dev", "lan") })
	}
	l, err := b.Router.Listen("tcp", ":80")
	must(t, err)
	outside := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.RemoteAddr)
	})}
	go outside.Serve(l)
	t.Cleanup(func() { outside.Close() })
	_, err = b.KubectlInput(ctx, formerMeshServices(t), "apply", "-f", "-")
	must(t, err)
	t.Cleanup(func() {
		b.Kubectl(context.Background(), "delete", "meshservice", "aservice", "anotherservice", "elsewhere")
	})
	for _, name := range []string{"aservice", "anotherservice", "elsewhere"} {
		waitMeshService(t, 5*time.Second, b, name, " Ok ", " True ")
	}
}

// checkFormerServices has a pod use all of the MeshServices of a cluster.
func checkFormerServices(t *testing.T, from *testbed.Pod, b *fleet.Broker) {
	t.Helper()
	for _, to := range []string{"192.168.0.100", b.MeshAddress.Addr().String() + ":8800", "192.168.0.102"} {
		within(t, 5*time.Second, "answer of "+to, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			_, err := from.Get(ctx, "http://"+to+"/")
			return err
		})
	}
}

// Objects of the former system apply unchanged and lead packets. A caller may have its egress, and need not: addresses
// without a mask, and networks with host bits.
func TestFormerMeshServices(t *testing.T) {
	ctx := startTest(t, time.Minute)
	t.Cleanup(func() { restoreMesh(t) })
	b := brokers[1]
	serveFormerObjects(t, ctx, b)
	checkFormerServices(t, clients[0], b)
	link := b.LinkTo()
	link.Spec.Egress = []v1alpha1.EgressCIDR{"192.168.0.100", "192.168.0.102/32", "10.7.0.9/16"}
	must(t, brokers[0].Apply(ctx, link))
	must(t, brokers[0].WaitState(ctx, link.Name, v1alpha1.StateUp))
	expectRoute(t, brokers[0], "10.7.0.0/16", true)
	checkFormerServices(t, clients[0], b)
}

// checkLegacyServices has a cluster with a legacy broker use mesh services, and offer one in the former way: it says
// nothing of it, and the caller has its address in egress.
func checkLegacyServices(t *testing.T, ctx context.Context) {
	t.Helper()
	one, third := brokers[0], brokers[2]
	serveFormerObjects(t, ctx, one)
	checkFormerServices(t, clients[2], one)

	const address = "192.168.0.101"
	if err := checkReached(ctx, netip.MustParseAddr(address), false); err != nil {
		t.Errorf("without egress: %v", err)
	}
	link := third.LinkTo()
	link.Spec.Egress = []v1alpha1.EgressCIDR{address}
	must(t, one.Apply(ctx, link))
	t.Cleanup(func() { must(t, one.Apply(context.Background(), third.LinkTo())) })
	rule := strings.Fields("PREROUTING -d " + address + " -p tcp --dport 80 -j DNAT --to-destination " +
		netip.AddrPortFrom(servers[2].pod.Address, httpPort).String())
	change := func(action string) error {
		_, err := third.Gateway().Iptables(context.Background(), append([]string{"-t", "nat", action}, rule...)...)
		return err
	}
	must(t, change("-A"))
	t.Cleanup(func() { must(t, change("-D")) })
	within(t, 5*time.Second, "the service of the legacy cluster", func(ctx context.Context) error {
		return checkReached(ctx, netip.MustParseAddr(address), true)
	})
}
