package e2e

// Two brokers of a cluster, each on a node of its own: one holds the links.

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// What the brokers under test say of their Lease.
const (
	leaderSeries = `coredns_kubelink_leader{lease="kubelink"}`
	termSeries   = `coredns_kubelink_term{lease="kubelink"}`
)

// leaseDuration is that of the brokers under test.
const leaseDuration = 3 * time.Second

// twoBrokers are the brokers of a cluster, and a server on the node of the second one.
type twoBrokers struct {
	first, second *fleet.Broker
	server        *server
	places        chan placeChange
	peer          *fleet.Broker // of another cluster
	client        *testbed.Pod  // in the other cluster
}

// lease returns the holder of the Lease and its term.
func (w *twoBrokers) lease(ctx context.Context) (holder string, term int, err error) {
	l := &coordinationv1.Lease{}
	err = w.first.Client.Get(ctx, client.ObjectKey{Namespace: fleet.Namespace, Name: "kubelink"}, l)
	return ptr.Deref(l.Spec.HolderIdentity, ""), int(ptr.Deref(l.Spec.LeaseTransitions, 0)), err
}

// ups is how often the peer has had the link Up.
func (w *twoBrokers) ups() int {
	up := regexp.MustCompile(`link is up.*link=` + w.first.Name)
	return len(up.FindAllString(w.peer.Process.Log(), -1))
}

// waitRole waits until a broker holds the links, or stands by, with a term.
func (w *twoBrokers) waitRole(t *testing.T, limit time.Duration, b *fleet.Broker, leader bool, term int) {
	t.Helper()
	within(t, limit, fmt.Sprintf("the broker on %s to lead: %v, term %d", b.Host.Node.Name, leader, term),
		func(ctx context.Context) error {
			got, err1 := b.Metric(ctx, leaderSeries)
			number, err2 := b.Metric(ctx, termSeries)
			if want := map[bool]float64{true: 1}[leader]; err1 != nil || err2 != nil || got != want || int(number) != term {
				return fmt.Errorf("leader %g, term %g, %v, %v", got, number, err1, err2)
			}
			return nil
		})
}

// waitGateway waits until the status of all KubeLinks says which broker holds them.
func (w *twoBrokers) waitGateway(t *testing.T, ctx context.Context, b *fleet.Broker, term int) {
	t.Helper()
	for _, other := range brokers {
		within(t, 5*time.Second, "status of "+other.Name, func(ctx context.Context) error {
			l, err := w.first.Link(ctx, other.Name)
			if err == nil && (l.Status.Gateway != b.Host.Node.Address.String() || int(l.Status.Term) != term ||
				l.Status.State != v1alpha1.StateUp) {
				err = fmt.Errorf("%+v", l.Status)
			}
			return err
		})
	}
}

// followPlaces notes when the LinkGateway says what, until the test ends; also when the API server was away.
func (w *twoBrokers) followPlaces(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	w.places = make(chan placeChange, 1000)
	ended := make(chan struct{})
	t.Cleanup(func() { stop(); <-ended })
	follow := func(ctx context.Context) error {
		all := &v1alpha1.LinkGatewayList{}
		changes, err := w.first.Client.Watch(ctx, all, client.InNamespace(fleet.Namespace))
		if err != nil {
			return err
		}
		defer changes.Stop()
		for e := range changes.ResultChan() {
			if o, ok := e.Object.(*v1alpha1.LinkGateway); ok {
				w.places <- placeChange{o, time.Now()}
			}
		}
		return errors.New("the watch has ended")
	}
	go func() {
		defer close(ended)
		testbed.Until(ctx, "end of the test", follow)
	}()
}

// placeChange is a change of the LinkGateway.
type placeChange struct {
	object *v1alpha1.LinkGateway
	at     time.Time
}

// nextPlace waits until the LinkGateway names the node of a broker and a number of networks. It returns it, and how long
// after the broker got the Lease that is.
func (w *twoBrokers) nextPlace(t *testing.T, b *fleet.Broker, term, networks int) (*v1alpha1.LinkGateway, time.Duration) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		var c placeChange
		select {
		case c = <-w.places:
		case <-timeout:
			t.Fatalf("no LinkGateway names %s with term %d and %d networks", node(b), term, networks)
		}
		if s := c.object.Spec; s.Node != node(b) || int(s.Term) != term || len(s.Networks) != networks {
			t.Logf("LinkGateway names %s with term %d and %d networks", s.Node, s.Term, len(s.Networks))
			continue
		}
		l := &coordinationv1.Lease{}
		must(t, w.first.Client.Get(context.Background(), client.ObjectKey{Namespace: fleet.Namespace, Name: "kubelink"}, l))
		took := c.at.Sub(l.Spec.AcquireTime.Time)
		t.Logf("LinkGateway names %s and %d networks %s after the Lease", node(b), networks, took)
		return c.object, took
	}
}

// waitPlace waits until the LinkGateway names the node of a broker, which may be a while after the broker got the
// Lease.
func (w *twoBrokers) waitPlace(t *testing.T, limit time.Duration, b *fleet.Broker, term int) {
	t.Helper()
	networks := []v1alpha1.GatewayNetwork{"100.64.0.0/20", "100.64.16.0/20", "192.168.0.0/24"} // of peers and mesh
	addresses := []v1alpha1.GatewayIP{v1alpha1.GatewayIP(b.Host.Node.Address.String())}
	o, took := w.nextPlace(t, b, term, len(networks))
	if s := o.Spec; o.Name != "kubelink" || took > limit || !slices.Equal(s.Networks, networks) ||
		!slices.Equal(s.NodeIPs, addresses) || s.Pod != "" || s.PodIPs != nil || int(s.MTU) != linkMTU() {
		t.Errorf("after %s: LinkGateway %s says %+v", took, o.Name, s)
	}
}

// waitStandby waits until the LocalLink says which broker stands by for which holder.
func (w *twoBrokers) waitStandby(t *testing.T, standby, holder *fleet.Broker, term int) {
	t.Helper()
	want := fmt.Sprintf("%s holds the links with term %d:", holder.Host.Node.Name, term)
	within(t, 5*time.Second, "LocalLink to name the standby", func(ctx context.Context) error {
		l, err := w.first.Link(ctx, w.first.Name)
		if err != nil {
			return err
		}
		all := l.Status.Standbys
		if len(all) != 1 || all[0].Node != standby.Host.Node.Name || !strings.HasPrefix(all[0].Message, want) {
			return fmt.Errorf("%+v", all)
		}
		return nil
	})
}

// checkNoKernelState fails the test if the node of a broker has addresses, routes or NAT of the mesh.
func checkNoKernelState(t *testing.T, b *fleet.Broker) {
	t.Helper()
	within(t, 5*time.Second, "node without addresses, routes and NAT", func(ctx context.Context) error {
		out, err := b.Host.Node.Run(ctx, "sh", "-c", "ip -o address show; ip route show table all; iptables-save")
		if err == nil && (strings.Contains(out, "192.168.0.") || strings.Contains(out, "KLINK-")) {
			err = errors.New(out)
		}
		return err
	})
}

// during fails the test when the condition is not met all the time.
func during(t *testing.T, d time.Duration, what string, condition func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*d)
	defer cancel()
	for start := time.Now(); time.Since(start) < d; {
		tick := time.After(100 * time.Millisecond)
		if err := condition(ctx); err != nil {
			t.Fatalf("%s: after %s: %v", what, time.Since(start), err)
		}
		<-tick
	}
}

// startTwoBrokers starts the second broker beside the first one.
func startTwoBrokers(t *testing.T, ctx context.Context) *twoBrokers {
	t.Helper()
	w := &twoBrokers{first: brokers[2], peer: brokers[0], client: clients[0], server: &server{}}
	text := w.first.Corefile()
	must(t, w.first.SetCorefile(strings.Replace(text, "dns-propagation dns", fmt.Sprintf(
		"dns-propagation dns\n            lease-duration %s", leaseDuration), 1)))
	must(t, w.first.Reload(ctx))
	node, err := w.first.AddNode(ctx)
	must(t, err)
	w.server.pod, err = w.first.Pod(ctx, "server-second", testbed.PodOptions{Node: node})
	must(t, err)
	must(t, w.server.pod.ServeHTTPEcho(httpPort))
	w.server.service, err = w.first.Service(ctx, "server-second", map[string]string{"app": "server-second"},
		[]corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(httpPort)}}, testbed.ServiceOptions{})
	must(t, err)
	w.second, err = w.first.Second(ctx, node)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		w.first.Gateway().Plug()
		must(t, w.second.Host.Delete(ctx))
		must(t, w.server.pod.Delete(ctx))
		must(t, w.first.Client.Delete(ctx, &corev1.Service{ // other tests start two brokers, too
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "server-second"}}))
		must(t, w.first.SetCorefile(text))
		select {
		case <-w.first.Process.Done():
			must(t, w.first.Start(ctx))
		default:
			must(t, w.first.Reload(ctx))
		}
		must(t, f.WaitMesh(ctx))
	})
	return w
}

func TestTwoBrokers(t *testing.T) {
	ctx := startTest(t, 4*time.Minute)
	w := startTwoBrokers(t, ctx)
	node1, _, err := w.lease(ctx)
	must(t, err)
	if want := w.first.Gateway().Name; node1 != want {
		t.Fatalf("%s holds the Lease, not %s", node1, want)
	}
	w.followPlaces(t)
	must(t, w.second.Start(ctx))
	steps := []struct {
		name string
		run  func(*testing.T, context.Context, *twoBrokers, int)
	}{
		{"the second one stands by", testStandby},
		{"the first one is restarted", testHolderRestarts},
		{"the API server is away", testHolderWithoutAPI},
		{"the first one and its node are gone", testHolderGone},
		{"the first one comes back", testHolderReturns},
		{"the holder is cut off from the API server", testHolderCutOff},
		{"the holder ends in order", testHolderEnds},
		{"the holder of many links ends in order", testHolderOfManyLinks},
	}
	for _, step := range steps {
		_, term, err := w.lease(ctx)
		must(t, err)
		if !t.Run(step.name, func(t *testing.T) { step.run(t, ctx, w, term) }) {
			t.Logf("--- first\n%s\n--- second\n%s", w.first.Process.Log(), w.second.Process.Log())
			return
		}
	}
}

// Who holds the links is said, and nothing flaps.
func testStandby(t *testing.T, ctx context.Context, w *twoBrokers, term int) {
	w.waitRole(t, 5*time.Second, w.first, true, term)
	w.waitRole(t, 5*time.Second, w.second, false, term)
	w.waitGateway(t, ctx, w.first, term)
	w.waitStandby(t, w.second, w.first, term)
	checkNoKernelState(t, w.second)
	must(t, checkAnswer(ctx, w.second, serverName(2), servers[2].service))
	must(t, checkAnswer(ctx, w.second, "kubelink3.kubelink.", w.first.MeshAddress.Addr()))
	m, _, err := queryBroker(ctx, w.second, "udp", "_state.kubelink1.kubelink.", dns.TypeTXT)
	must(t, err)
	if text := fmt.Sprint(m.Answer); !strings.Contains(text, "state=Up") || !strings.Contains(text, node(w.first)) {
		t.Errorf("state of a link at the standby: %s", text)
	}
	must(t, checkFailure(ctx, w.second, serverName(0), "this node has no route to it")) // at once
	check := expectNoFailures(t, w.client, w.server.service)
	defer check()
	before, ups := w.statuses(t, ctx), w.ups()
	during(t, 3*leaseDuration, "two brokers", func(ctx context.Context) error {
		holder, now, err := w.lease(ctx)
		if err == nil && (holder != node(w.first) || now != term || w.ups() != ups) {
			err = fmt.Errorf("%s holds the Lease with term %d; the link was up %d times, before %d", holder, now, w.ups(), ups)
		}
		return err
	})
	if after := w.statuses(t, ctx); after != before {
		t.Errorf("the status was\n%s\nis\n%s", before, after)
	}
}

func node(b *fleet.Broker) string { return b.Host.Node.Name }

// statuses are the status of the LocalLink here, and of the link to this cluster at the peer, without times of
// messages.
func (w *twoBrokers) statuses(t *testing.T, ctx context.Context) string {
	t.Helper()
	here, err := w.first.Link(ctx, w.first.Name)
	must(t, err)
	there, err := w.peer.Link(ctx, w.first.Name)
	must(t, err)
	return fmt.Sprintf("%s %+v\n%s %+v", here.ResourceVersion, here.Status, there.ResourceVersion, there.Status)
}

// A killed process on the node of the holder has the Lease back at once.
func testHolderRestarts(t *testing.T, ctx context.Context, w *twoBrokers, term int) {
	must(t, w.first.Kill(ctx, syscall.SIGKILL))
	must(t, w.first.Start(ctx))
	w.waitRole(t, 3*time.Second, w.first, true, term+1)
	w.waitPlace(t, time.Second, w.first, term+1)
	waitForReply(t, returnTime(), w.client, w.server.service)
	w.waitRole(t, 3*time.Second, w.second, false, term+1)
	if strings.Contains(w.second.Process.Log(), "this broker holds the links") {
		t.Error("the other broker had the links")
	}
	w.waitStandby(t, w.second, w.first, term+1)
}

// Without API server the holder goes on, and no other broker takes over, also when the API server is back.
func testHolderWithoutAPI(t *testing.T, ctx context.Context, w *twoBrokers, term int) {
	check := expectNoFailures(t, w.client, w.server.service)
	defer check()
	ups := w.ups()
	nobodyTakes := func(ctx context.Context) error {
		first, err1 := w.first.Metric(ctx, leaderSeries)
		second, err2 := w.second.Metric(ctx, leaderSeries)
		if err1 != nil || err2 != nil || first != 1 || second != 0 || w.ups() != ups {
			return fmt.Errorf("leader %g and %g, %v, %v; the link was up %d times, before %d", first, second, err1, err2,
				w.ups(), ups)
		}
		return nil
	}
	must(t, w.first.StopAPIServer(ctx))
	during(t, 4*leaseDuration, "the API server is away", nobodyTakes)
	must(t, w.first.StartAPIServer(ctx))
	during(t, 2*leaseDuration, "the API server is back", nobodyTakes)
	within(t, 10*time.Second, "Lease to be renewed", func(ctx context.Context) error {
		holder, now, err := w.lease(ctx)
		if err == nil && (holder != node(w.first) || now != term) {
			err = fmt.Errorf("%s holds it with term %d", holder, now)
		}
		return err
	})
	if !strings.Contains(w.first.Process.Log(), "cannot be renewed") {
		t.Error("the holder does not say that it could not renew")
	}
}

// When the holder and its node are gone, the other broker carries the links within lease-duration and 5 s.
func testHolderGone(t *testing.T, ctx context.Context, w *twoBrokers, term int) {
	must(t, w.first.Gateway().Unplug())
	must(t, w.first.Kill(ctx, syscall.SIGKILL))
	took := waitForReply(t, leaseDuration+5*time.Second, w.client, w.server.service)
	t.Logf("requests pass again after %s", took)
	w.waitRole(t, time.Second, w.second, true, term+1)
	w.waitPlace(t, time.Second, w.second, term+1)
	w.waitGateway(t, ctx, w.second, term+1)
	must(t, checkAnswer(ctx, w.second, serverName(0), servers[0].service))
}

// A broker that comes back stands by, and takes away what its predecessor has left on the node.
func testHolderReturns(t *testing.T, ctx context.Context, w *twoBrokers, term int) {
	check := expectNoFailures(t, w.client, w.server.service)
	defer check()
	must(t, w.first.Gateway().Plug())
	must(t, w.first.Start(ctx))
	w.waitRole(t, 5*time.Second, w.first, false, term)
	w.waitStandby(t, w.first, w.second, term)
	checkNoKernelState(t, w.first)
	w.waitRole(t, time.Second, w.second, true, term)
}

// A holder that cannot renew, and goes on, is superseded by the broker that takes the Lease: peers tell it, without any
// API server. Nothing flaps, and when it is back it stands by.
func testHolderCutOff(t *testing.T, ctx context.Context, w *twoBrokers, term int) {
	api := []string{"OUTPUT", "-p", "tcp", "--dport", "6443", "-j", "DROP"}
	_, err := w.second.Host.Node.Iptables(ctx, append([]string{"-I"}, api...)...)
	must(t, err)
	w.waitRole(t, leaseDuration+10*time.Second, w.first, true, term+1)
	w.waitPlace(t, time.Second, w.first, term+1)
	must(t, w.second.Process.WaitLog(ctx, fmt.Sprintf("superseded by term %d", term+1)))
	// Each peer changes over by itself. In mode wireguard a broker is told in a session that it takes from the other one.
	within(t, 10*time.Second, "peer to tell of a second broker", func(ctx context.Context) error {
		l, err := w.peer.Link(ctx, w.first.Name)
		want := fmt.Sprintf("a second broker of the cluster claims this link with term %d", term)
		if err == nil && (l.Status.State != v1alpha1.StateUp || !strings.Contains(l.Status.Message, want)) {
			err = fmt.Errorf("%+v", l.Status)
		}
		return err
	})
	took := waitForReply(t, followTime(), w.client, w.server.service)
	t.Logf("requests pass again after %s", took)
	check := expectNoFailures(t, w.client, w.server.service)
	w.waitRole(t, time.Second, w.second, true, term) // as far as it knows
	w.waitGateway(t, ctx, w.first, term+1)
	ups := w.ups()
	during(t, leaseDuration, "the superseded broker dials on", func(context.Context) error {
		if w.ups() != ups {
			return errors.New("the link has gone and come")
		}
		return nil
	})
	_, err = w.second.Host.Node.Iptables(ctx, append([]string{"-D"}, api...)...)
	must(t, err)
	w.waitRole(t, 15*time.Second, w.second, false, term+1)
	w.waitStandby(t, w.second, w.first, term+1)
	checkNoKernelState(t, w.second)
	check()
	w.waitGateway(t, ctx, w.first, term+1)
}

// A broker that ends in order gives the Lease back: the other one does not wait for its end.
func testHolderEnds(t *testing.T, ctx context.Context, w *twoBrokers, term int) {
	must(t, w.first.Kill(ctx, syscall.SIGTERM))
	took := waitForReply(t, leaseDuration, w.client, w.server.service)
	t.Logf("requests pass again after %s", took)
	w.waitRole(t, time.Second, w.second, true, term+1)
	w.waitPlace(t, time.Second, w.second, term+1)
	must(t, w.first.Start(ctx))
	w.waitRole(t, 5*time.Second, w.first, false, term+1)
	must(t, w.checkTable(ctx))
}

// checkTable checks what users see of the LinkGateway.
func (w *twoBrokers) checkTable(ctx context.Context) error {
	table, err := w.first.Kubectl(ctx, "get", "linkgateways", "-n", fleet.Namespace)
	want := regexp.MustCompile(`^NAME +NODE +ADDRESS +POD +TERM +AGE\nkubelink +` +
		regexp.QuoteMeta(node(w.second)) + ` +` + regexp.QuoteMeta(w.second.Host.Node.Address.String()) + ` +\d+ +\d+`)
	if err == nil && !want.MatchString(table) {
		err = errors.New(table)
	}
	return err
}

// addManyLinks creates a mesh with 250 links of three networks each, to clusters that are not there, until the test
// ends. It returns them, without the LocalLink.
func addManyLinks(t *testing.T, ctx context.Context, b *fleet.Broker) []*v1alpha1.KubeLink {
	t.Helper()
	links := []*v1alpha1.KubeLink{newKubeLink("many--here", "10.200.0.1/16", v1alpha1.EndpointLocal, nil)}
	for i := range manyLinks {
		links = append(links, newKubeLink(fmt.Sprintf("many--c%d", i), fmt.Sprintf("10.200.1.%d/16", i+1),
			fmt.Sprintf("192.0.2.%d", i+1), func(s *v1alpha1.KubeLinkSpec) {
				s.CIDR = fmt.Sprintf("10.64.%d.0/24", i)
				s.Egress = []v1alpha1.EgressCIDR{v1alpha1.EgressCIDR(fmt.Sprintf("10.65.%d.0/24", i)),
					v1alpha1.EgressCIDR(fmt.Sprintf("10.66.%d.0/24", i))}
			}))
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, l := range links[1:] {
			must(t, client.IgnoreNotFound(b.Client.Delete(ctx, l)))
		}
		must(t, b.Remove(ctx, links[0].Name)) // the broker keeps it until all other links are gone
	})
	for _, l := range links {
		must(t, b.Client.Create(ctx, l))
	}
	return links[1:]
}

// With 250 links of three networks each, the other nodes learn within a second where the gateway is: they do not wait
// for the statuses of the links.
func testHolderOfManyLinks(t *testing.T, ctx context.Context, w *twoBrokers, term int) {
	addManyLinks(t, ctx, w.first)
	const networks = 3 + 1 + 3*manyLinks
	w.nextPlace(t, w.second, term, networks)
	allowance := allowForLoad(t, ctx, w.second.Host.Node)
	must(t, w.second.Kill(ctx, syscall.SIGTERM))
	if _, took := w.nextPlace(t, w.first, term+1, networks); took > placeTime()+allowance {
		t.Errorf("LinkGateway names %s %s after the Lease, want %s and %s for the load", node(w.first), took, placeTime(),
			allowance)
	}
	var all v1alpha1.KubeLinkList
	must(t, w.first.Client.List(ctx, &all))
	written := 0
	for i := range all.Items {
		if int(all.Items[i].Status.Term) == term+1 {
			written++
		}
	}
	t.Logf("by then %d of %d statuses are written", written, len(all.Items))
}
