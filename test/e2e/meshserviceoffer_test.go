package e2e

// Mesh services are found by other clusters: what one offers is routed to it and named, until it offers it no more.

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
)

// offeredAddress is in the mesh of the fleet; offeredName is the name of a MeshService of a cluster.
var offeredAddress = netip.MustParseAddr("192.168.0.150")

func offeredName(b *fleet.Broker, service string) string {
	return service + ".default.msvc." + b.Name + ".kubelink."
}

// checkNoName checks that there is no such name.
func checkNoName(ctx context.Context, b *fleet.Broker, name string) error {
	m, _, err := queryBroker(ctx, b, "udp", name, dns.TypeA)
	if err == nil && m.Rcode != dns.RcodeNameError {
		err = fmt.Errorf("%s: %s %v", name, dns.RcodeToString[m.Rcode], m.Answer)
	}
	return err
}

func TestMeshServiceOffers(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	const limit = 5 * time.Second
	provider, name := brokers[1], offeredName(brokers[1], "offered")
	spec := [2]string{"offered", fmt.Sprintf(`"service":"server","meshAddress":"%s"`, offeredAddress)}
	var came, went []time.Duration
	for range 5 {
		applyMeshServices(t, ctx, provider, spec)
		came = append(came, within(t, limit, name, func(ctx context.Context) error {
			return checkAnswer(ctx, brokers[0], name, offeredAddress)
		}))
		_, err := provider.Kubectl(ctx, "delete", "meshservice", "offered")
		must(t, err)
		went = append(went, within(t, limit, "no "+name, func(ctx context.Context) error {
			return checkNoName(ctx, brokers[0], name)
		}))
	}
	t.Logf("named %s after kubectl, no more after %s", came, went)
	if slices.Sort(came); came[len(came)/2] > time.Second {
		t.Errorf("named after %s", came)
	}
	if slices.Sort(went); went[len(went)/2] > time.Second {
		t.Errorf("no more named after %s", went)
	}

	applyMeshServices(t, ctx, provider, spec)
	for _, b := range brokers { // the provider's own names, too
		within(t, limit, "name in "+b.Name, func(ctx context.Context) error {
			return checkAnswer(ctx, b, name, offeredAddress)
		})
	}

	for _, from := range clients {
		waitForReply(t, limit, from, offeredAddress)
		seen, err := from.Get(ctx, "http://"+strings.TrimSuffix(name, ".")+"/")
		must(t, err)
		t.Logf("%s is seen as %s", from.Name, seen)
	}

	// Another cluster that offers the address later does not get it, and both links tell it.
	applyMeshServices(t, ctx, brokers[2],
		[2]string{"rival", fmt.Sprintf(`"service":"server","meshAddress":"%s"`, offeredAddress)})
	must(t, brokers[0].WaitState(ctx, brokers[2].Name, v1alpha1.StateUp, "1 of 1 mesh services that the peer offers are "+
		"not accepted, such as default/rival at 192.168.0.150: link kubelink2"))
	must(t, brokers[0].WaitState(ctx, brokers[1].Name, v1alpha1.StateUp,
		"other links offer 1 of its mesh addresses as well"))
	waitMeshService(t, limit, brokers[2], "rival", "Ok", "the cluster of link kubelink2 offers 192.168.0.150, too")
	must(t, checkNoName(ctx, brokers[0], offeredName(brokers[2], "rival")))
	must(t, checkAnswer(ctx, brokers[0], name, offeredAddress))
}
