package e2e

// Global names that another cluster serves: the first cluster serves them from its objects, all three use them.

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
)

// serveGlobalNames makes the first cluster serve global names to all of them.
func serveGlobalNames(t *testing.T, ctx context.Context) {
	t.Helper()
	t.Cleanup(func() { restoreMesh(t) })
	for _, b := range brokers {
		local := b.Local()
		local.Spec.DNS = &v1alpha1.KubeLinkDNS{DNSIP: brokers[0].MeshDNSAddress.String()}
		must(t, b.Apply(ctx, local))
	}
}

// checkAddresses checks that a name has exactly these addresses.
func checkAddresses(ctx context.Context, b *fleet.Broker, name string, want ...netip.Addr) error {
	m, reason, err := queryBroker(ctx, b, "udp", name, dns.TypeA)
	if err != nil {
		return err
	}
	var got, wanted []string
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			got = append(got, a.A.String())
		}
	}
	for _, a := range want {
		wanted = append(wanted, a.String())
	}
	slices.Sort(got)
	slices.Sort(wanted)
	if !slices.Equal(got, wanted) {
		return fmt.Errorf("%s in %s: %s %q %v, want %v", name, b.Name, dns.RcodeToString[m.Rcode], reason, got, wanted)
	}
	return nil
}

func TestGlobalNamesOfAnotherCluster(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	one := brokers[0]
	serveGlobalNames(t, ctx)
	entry := &coredns.CoreDNSEntry{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop"},
		Spec: coredns.CoreDNSEntrySpec{
			DNSNames: []coredns.DNSName{"shop.svc.global.kubelink"},
			A: []coredns.IPv4Address{coredns.IPv4Address(servers[1].service.String()),
				coredns.IPv4Address(servers[2].service.String())},
		},
	}
	must(t, one.Client.Create(ctx, entry))
	t.Cleanup(func() { must(t, one.Client.Delete(context.Background(), entry)) })
	const name = "shop.svc.global.kubelink."
	both := func(ctx context.Context) error {
		for _, b := range brokers {
			if err := checkAddresses(ctx, b, name, servers[1].service, servers[2].service); err != nil {
				return err
			}
		}
		return nil
	}
	within(t, 10*time.Second, "the global name everywhere", both)

	reviveBrokers(t)
	// An address disappears with its link, and returns with it.
	must(t, brokers[2].Kill(ctx, syscall.SIGKILL))
	lost := within(t, lossTime(), "the address to be withdrawn", func(ctx context.Context) error {
		for _, b := range brokers[:2] {
			if err := checkAddresses(ctx, b, name, servers[1].service); err != nil {
				return err
			}
		}
		return nil
	})
	must(t, one.WaitState(ctx, "kubelink3", v1alpha1.StateDown)) // the API has this later
	must(t, brokers[2].Launch())
	must(t, one.WaitState(ctx, "kubelink3", v1alpha1.StateUp))
	back := within(t, time.Second, "the address to be back", func(ctx context.Context) error {
		for _, b := range brokers[:2] {
			if err := checkAddresses(ctx, b, name, servers[1].service, servers[2].service); err != nil {
				return err
			}
		}
		return nil
	})
	t.Logf("withdrawn after %s; back %s after the link was shown Up", lost, back)
	must(t, brokers[2].WaitReady(ctx))
	must(t, f.WaitMesh(ctx))

	// Without any usable address, the answer has the reason.
	for _, b := range brokers[1:] {
		must(t, b.Kill(ctx, syscall.SIGKILL))
	}
	within(t, lossTime(), "the reason",
		func(ctx context.Context) error { return checkFailure(ctx, one, name, "link kubelink") })
	for _, b := range brokers[1:] {
		must(t, b.Start(ctx))
	}
	must(t, f.WaitMesh(ctx))

	// A change of the objects shows soon, too.
	patch := client.MergeFrom(entry.DeepCopy())
	entry.Spec.A = entry.Spec.A[:1]
	must(t, one.Client.Patch(ctx, entry, patch))
	took := within(t, 2*time.Second, "the change everywhere", func(ctx context.Context) error {
		for _, b := range brokers {
			if err := checkAddresses(ctx, b, name, servers[1].service); err != nil {
				return err
			}
		}
		return nil
	})
	t.Logf("a changed entry is answered everywhere after %s", took)
	within(t, 5*time.Second, "the status", func(ctx context.Context) error {
		var now coredns.CoreDNSEntry
		if err := one.Client.Get(ctx, client.ObjectKeyFromObject(entry), &now); err != nil {
			return err
		}
		if now.Status.State != coredns.StateOk ||
			!slices.Contains(now.Status.EffectiveDomainNames, "shop.svc.global.kubelink") {
			return fmt.Errorf("%+v", now.Status)
		}
		return nil
	})
}
