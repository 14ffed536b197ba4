package e2e

// Changes are compared with the world: what the gateway node has and needs outside of the meshes no object takes away,
// not for a moment, and no younger object breaks an older one.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
)

// newKubeLink makes a link to a cluster that the test bed does not have.
func newKubeLink(name, address, endpoint string, change func(*v1alpha1.KubeLinkSpec)) *v1alpha1.KubeLink {
	l := &v1alpha1.KubeLink{}
	l.Name = name
	l.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: address, Endpoint: endpoint}
	if endpoint != v1alpha1.EndpointLocal {
		l.Spec.PublicKey = strangersKey(name)
	}
	if change != nil {
		change(&l.Spec)
	}
	return l
}

func withEgress(network v1alpha1.EgressCIDR) func(*v1alpha1.KubeLinkSpec) {
	return func(s *v1alpha1.KubeLinkSpec) { s.Egress = []v1alpha1.EgressCIDR{network} }
}

func withCIDR(network string) func(*v1alpha1.KubeLinkSpec) {
	return func(s *v1alpha1.KubeLinkSpec) { s.CIDR = network }
}

// monitorRoutes notes all routes that the node gets until the returned function, which returns them.
func monitorRoutes(t *testing.T, b *fleet.Broker) func() string {
	t.Helper()
	ip, err := exec.LookPath("ip")
	must(t, err)
	p, err := b.Gateway().Start(context.Background(), "monitor", nil, ip, "-o", "monitor", "route")
	must(t, err)
	mark := func(network string) { // the monitor notes a route to it, and so all routes before
		t.Helper()
		within(t, 5*time.Second, "monitor of routes", func(ctx context.Context) error {
			for _, action := range []string{"add", "del"} {
				if _, err := b.Gateway().Run(ctx, "ip", "route", action, "blackhole", network); err != nil {
					return err
				}
			}
			if !strings.Contains(p.FullLog(), network) {
				return errors.New(p.FullLog())
			}
			return nil
		})
	}
	mark("203.0.113.1")
	return func() string {
		t.Helper()
		mark("203.0.113.2")
		text := p.FullLog()
		must(t, p.Kill(syscall.SIGTERM))
		return text
	}
}

// setNodeNames makes names lead to addresses on the broker's node.
func setNodeNames(t *testing.T, b *fleet.Broker, names map[string]string) {
	t.Helper()
	hosts := map[string]netip.Addr{}
	for name, a := range names {
		hosts[name] = netip.MustParseAddr(a)
	}
	must(t, b.Host.SetHosts(hosts))
}

// A broker whose Corefile names no node-cidr refuses what would cut it off, by name, and hears that it is deleted.
func TestNodeIsKept(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	b := brokers[0]
	text := b.Corefile()
	must(t, b.SetCorefile(strings.Replace(text, "node-cidr 10.250.0.0/16", "", 1)))
	must(t, b.Reload(ctx))
	defer func() { must(t, b.SetCorefile(text)); must(t, b.Reload(context.Background())) }()
	check := expectNoFailures(t, clients[0], servers[1].service)
	defer check()
	routes := monitorRoutes(t, b)

	lan := []string{"the API server 10.250.0.2", "the default gateway 10.250.0.1", "the network 10.250.0.0/16 of eth0"}
	for _, c := range []struct {
		link  *v1alpha1.KubeLink
		field string
		says  []string
	}{
		{newKubeLink("lan", "192.168.0.50/24", "x.example", withCIDR("10.250.0.0/24")), "spec.cidr 10.250.0.0/24", lan},
		{newKubeLink("lan", "192.168.0.50/24", "x.example", withEgress("10.250.0.0/16")), "spec.egress 10.250.0.0/16", lan},
		{newKubeLink("lan", "192.168.0.50/24", "x.example", withEgress("10.250.0.2/32")), "spec.egress 10.250.0.2/32",
			[]string{"the API server 10.250.0.2"}},
		{newKubeLink("m8--lan", "10.250.0.99/24", v1alpha1.EndpointLocal, nil), "spec.clusterAddress 10.250.0.99/24", lan},
	} {
		must(t, b.Apply(ctx, c.link))
		must(t, b.WaitState(ctx, c.link.Name, v1alpha1.StateInvalid, append(c.says, c.field+" covers")...))
		must(t, b.Remove(ctx, c.link.Name))
		within(t, 3*time.Second, "deletion to be heard", func(ctx context.Context) error {
			if v, err := b.Metric(ctx, `coredns_kubelink_api_up`); err != nil || v != 1 {
				return fmt.Errorf("api_up %g, %v", v, err)
			}
			return nil
		})
	}

	// A network that comes later is compared, too, and links are compared again when it goes.
	far := newKubeLink("far", "192.168.0.51/24", "x.example", withEgress("10.99.5.0/24"))
	must(t, b.Apply(ctx, far))
	expectRoute(t, b, "10.99.5.0/24", true)
	for _, command := range []string{"link add lan2 type veth peer name lan3", "link set lan2 up", "link set lan3 up",
		"addr add 10.99.0.1/16 dev lan2"} {
		_, err := b.Gateway().Run(ctx, "ip", strings.Fields(command)...)
		must(t, err)
	}
	must(t, b.WaitState(ctx, "far", v1alpha1.StateInvalid,
		"spec.egress 10.99.5.0/24 covers", "the network 10.99.0.0/16 of lan2"))
	expectRoute(t, b, "10.99.5.0/24", false)
	_, err := b.Gateway().Run(ctx, "ip", "link", "del", "lan2")
	must(t, err)
	expectRoute(t, b, "10.99.5.0/24", true)
	must(t, b.Remove(ctx, "far"))

	for line := range strings.Lines(routes()) {
		if strings.Contains(line, "dev kubelink") && strings.Contains(line, "10.250.") {
			t.Errorf("for a moment there was a route %s", line)
		}
	}
}

// expectRoute waits until the node has a route of ours, or has it no more.
func expectRoute(t *testing.T, b *fleet.Broker, network string, wanted bool) {
	t.Helper()
	within(t, 5*time.Second, fmt.Sprintf("route to %s: %v", network, wanted), func(ctx context.Context) error {
		out, err := b.Gateway().Run(ctx, "ip", "route", "show", network, "dev", "kubelink")
		if err == nil && strings.Contains(out, "proto") != wanted {
			err = errors.New(out)
		}
		return err
	})
}

// The connection of a link does not run through a link, although its endpoint is a name.
func TestEndpointsAreKept(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	b := brokers[0]
	check := expectNoFailures(t, clients[0], servers[2].service)
	defer check()
	link := brokers[1].LinkTo()

	t.Run("a link's own endpoint", func(t *testing.T) {
		changed := link.DeepCopy()
		changed.Spec.Egress = []v1alpha1.EgressCIDR{"172.31.0.0/24"}
		must(t, b.Apply(ctx, changed))
		must(t, b.WaitState(ctx, link.Name, v1alpha1.StateInvalid,
			"the network 172.31.0.0/24", "contains the endpoint "+brokers[1].FQDN+" (172.31.0.2) of link kubelink2"))
		must(t, b.Apply(ctx, link))
		must(t, f.WaitMesh(ctx))
	})
	healthy := expectNoFailures(t, clients[0], servers[1].service)
	t.Run("the endpoints of older links", func(t *testing.T) {
		must(t, b.Apply(ctx, newKubeLink("young", "192.168.0.50/24", "x.example", withEgress("172.16.0.0/12"))))
		must(t, b.WaitState(ctx, "young", v1alpha1.StateInvalid, "the network 172.16.0.0/12", "contains the endpoint"))
		must(t, b.Remove(ctx, "young"))
	})
	t.Run("the mesh of a young LocalLink", func(t *testing.T) {
		must(t, b.Apply(ctx, newKubeLink("m8--here", "172.31.0.50/24", v1alpha1.EndpointLocal, nil)))
		must(t, b.WaitState(ctx, "m8--here", v1alpha1.StateInvalid, "its network 172.31.0.0/24 contains the endpoint"))
		must(t, b.Remove(ctx, "m8--here"))
	})
	// A name that leads into an older link's network later harms its own link only, which says so.
	t.Run("a name that is changed", func(t *testing.T) {
		setNodeNames(t, b, map[string]string{"late.example": "198.51.100.9"})
		// Of links of one second, the order of their names decides which one is older.
		must(t, b.Apply(ctx, newKubeLink("elder", "192.168.0.50/24", "x.example", withEgress("10.66.0.0/16"))))
		expectRoute(t, b, "10.66.0.0/16", true)
		must(t, b.Apply(ctx, newKubeLink("late", "192.168.0.51/24", "late.example", nil)))
		setNodeNames(t, b, map[string]string{"late.example": "10.66.0.5"})
		within(t, 40*time.Second, "the link to say so", func(ctx context.Context) error {
			l, err := b.Link(ctx, "late")
			if err == nil && !(l.Status.State == v1alpha1.StateDown || l.Status.State == v1alpha1.StateInvalid) ||
				!strings.Contains(l.Status.Message, "lies in the network 10.66.0.0/16") {
				err = errors.New(l.Status.Message)
			}
			return err
		})
		expectRoute(t, b, "10.66.0.0/16", true)
		must(t, b.Remove(ctx, "late"))
		must(t, b.Remove(ctx, "elder"))
	})
	healthy()
}
