package e2e

// What only links of mode wireguard have: keys, endpoints that move, devices of other programs.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
	"github.com/miekg/dns"
)

const (
	mismatchTime = 30 * time.Second // how soon a link says that keys differ
	repairTime   = 5 * time.Second  // how soon packets pass when both sides have the right keys
	waitingTime  = 20 * time.Second // how soon packets pass when only the other side can dial
	startTime    = 5 * time.Second  // how soon 250 links are carried after the start
	linkTime     = time.Second      // how soon one of them is changed
)

// linkWith is the link to a broker, changed.
func linkWith(to *fleet.Broker, change func(*v1alpha1.KubeLinkSpec)) *v1alpha1.KubeLink {
	l := to.LinkTo()
	change(&l.Spec)
	return l
}

func inbound(s *v1alpha1.KubeLinkSpec) { s.Endpoint = v1alpha1.EndpointInbound }

// waitForMismatch waits until a link is not Up and names a field that may differ. A link that waits for its first
// handshake is Idle.
func waitForMismatch(t *testing.T, b *fleet.Broker, link, field string) {
	t.Helper()
	took := within(t, mismatchTime, "link to name "+field, func(ctx context.Context) error {
		l, err := b.Link(ctx, link)
		if err == nil && (l.Status.State == v1alpha1.StateUp || !strings.Contains(l.Status.Message, field)) {
			err = fmt.Errorf("%s: %s", l.Status.State, l.Status.Message)
		}
		return err
	})
	t.Logf("%s says so of %s after %s", b.Name, link, took)
}

// bothWays waits until requests pass between the first two clusters.
func bothWays(t *testing.T, limit time.Duration) {
	t.Helper()
	there := waitForReply(t, limit, clients[0], servers[1].service)
	back := waitForReply(t, limit, clients[1], servers[0].service)
	t.Logf("requests pass after %s, back after another %s", there, back)
}

// A key of a cluster is replaced there and in the links of its peers, in either order. Other links do not notice.
func TestWireGuardKeys(t *testing.T) {
	ctx := startTest(t, 4*time.Minute)
	one, two, three := brokers[0], brokers[1], brokers[2]
	t.Cleanup(func() { restoreMesh(t) })
	healthy := expectNoFailures(t, clients[0], servers[2].service)
	defer healthy()
	shown := func() {
		t.Helper()
		within(t, 5*time.Second, "public key in the status", func(ctx context.Context) error {
			out, err := two.Kubectl(ctx, "get", "kubelink", two.Name, "-o", "wide")
			l, err2 := two.Link(ctx, two.Name)
			if err = errors.Join(err, err2); err == nil &&
				(l.Status.PublicKey != two.PublicKey() || !strings.Contains(out, two.PublicKey())) {
				err = fmt.Errorf("%q, %s", l.Status.PublicKey, out)
			}
			return err
		})
	}
	shown()
	peersTake := func(key string) {
		for _, b := range []*fleet.Broker{one, three} {
			must(t, b.Apply(ctx, linkWith(two, func(s *v1alpha1.KubeLinkSpec) { s.PublicKey = key })))
		}
	}
	t.Run("the secret, and then the links", func(t *testing.T) {
		must(t, two.SetKey(ctx, fleet.NewKey()))
		waitForMismatch(t, two, one.Name, "publicKey")
		peersTake(two.PublicKey())
		bothWays(t, repairTime)
		shown()
	})
	t.Run("the links, and then the secret", func(t *testing.T) {
		key := fleet.NewKey()
		peersTake(key.Public().String())
		waitForMismatch(t, one, two.Name, "publicKey")
		must(t, two.SetKey(ctx, key))
		bothWays(t, repairTime)
	})
	must(t, f.WaitMesh(ctx))
	t.Run("the broker makes the key", func(t *testing.T) {
		old := two.PublicKey()
		must(t, two.Kill(ctx, syscall.SIGTERM))
		must(t, two.Client.Delete(ctx, tlsSecret()))
		must(t, two.Start(ctx))
		must(t, two.ReadKey(ctx))
		if two.PublicKey() == old {
			t.Fatal("the key is the old one")
		}
		shown()
		peersTake(two.PublicKey())
		bothWays(t, repairTime)
	})
}

// A preshared key has to be the same on both sides: as text, or in a secret.
func TestWireGuardPresharedKey(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	one, two := brokers[0], brokers[1]
	t.Cleanup(func() { restoreMesh(t) })
	healthy := expectNoFailures(t, clients[0], servers[2].service)
	defer healthy()
	set := func(b, to *fleet.Broker, key string) {
		t.Helper()
		must(t, b.Apply(ctx, linkWith(to, func(s *v1alpha1.KubeLinkSpec) { s.PresharedKey = key })))
	}
	key := fleet.NewKey().Base64()
	for _, change := range []string{key, ""} { // it comes, and goes
		set(one, two, change)
		waitForMismatch(t, one, two.Name, "presharedKey")
		set(two, one, change)
		bothWays(t, repairTime)
		must(t, f.WaitMesh(ctx))
	}
}

// A key that cannot be used is named, and the last good one stays in use. One that is removed comes back.
func TestWireGuardBadKey(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[1]
	t.Cleanup(func() {
		must(t, b.SetKey(context.Background(), b.PrivateKey()))
		restoreMesh(t)
	})
	healthy := expectNoFailures(t, clients[0], servers[1].service)
	write := func(data map[string][]byte) {
		t.Helper()
		secret := tlsSecret()
		must(t, b.Client.Get(ctx, client.ObjectKeyFromObject(secret), secret))
		secret.Data = data
		must(t, b.Client.Update(ctx, secret))
	}
	good := []byte(b.PrivateKey().Base64())
	for _, c := range []struct {
		data map[string][]byte
		says string
	}{
		{map[string][]byte{"WireguardPrivateKey": []byte("nonsense")}, "WireguardPrivateKey: want 32 bytes in base64"},
		{map[string][]byte{"WireguardPrivateKey": good, "WireGuardPrivateKey": []byte(fleet.NewKey().Base64())},
			"are not the same"},
	} {
		write(c.data)
		must(t, b.WaitState(ctx, b.Name, v1alpha1.StateError, c.says))
		write(map[string][]byte{"WireGuardPrivateKey": good}) // this spelling, too
		must(t, b.WaitState(ctx, b.Name, v1alpha1.StateUp))
	}
	if log := b.Process.FullLog(); strings.Contains(log, "nonsense") || strings.Contains(log, string(good)) {
		t.Error("the log has a key")
	}
	write(nil)
	within(t, 10*time.Second, "the key to be back", func(ctx context.Context) error {
		secret := tlsSecret()
		err := b.Client.Get(ctx, client.ObjectKeyFromObject(secret), secret)
		if err == nil && string(secret.Data["WireguardPrivateKey"]) != string(good) {
			err = errors.New("it is not")
		}
		return err
	})
	healthy()
}

// One side waits for the other one. Either one is killed: the connections of pods go on.
func TestWireGuardInbound(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	one, two := brokers[0], brokers[1]
	t.Cleanup(func() { restoreMesh(t) })
	must(t, one.Remove(ctx, two.Name))
	must(t, two.Remove(ctx, one.Name))
	// Else the link may be, for the broker, one that has changed: then it has had its session before.
	within(t, 10*time.Second, "the link to be gone", func(ctx context.Context) error {
		m, _, err := queryBroker(ctx, two, "udp", "_state."+one.Name+".kubelink.", dns.TypeTXT)
		if err == nil && m.Rcode != dns.RcodeNameError {
			err = errors.New(m.String())
		}
		return err
	})
	must(t, two.Apply(ctx, linkWith(one, inbound)))
	must(t, two.WaitState(ctx, one.Name, v1alpha1.StateIdle, "waiting for the peer to connect"))
	must(t, one.Apply(ctx, two.LinkTo()))
	bothWays(t, repairTime)
	must(t, f.WaitMesh(ctx))
	for _, c := range []struct {
		name  string
		b     *fleet.Broker
		limit time.Duration
	}{{"the side that dials", one, repairTime}, {"the side that waits", two, waitingTime}} {
		bulk := openStream(ctx, clients[0], servers[1].service, endless, 1<<20)
		bulk.waitForBytes(t, 10*time.Second, 1<<20)
		must(t, c.b.Kill(ctx, syscall.SIGKILL))
		must(t, c.b.Start(ctx))
		up := within(t, c.limit, c.name+" to be up", func(ctx context.Context) error {
			v, err := c.b.Metric(ctx, `coredns_kubelink_links{state="Up"}`)
			if err == nil && v != 2 {
				err = fmt.Errorf("%g are", v)
			}
			return err
		})
		flows := bulk.waitForBytes(t, 15*time.Second, 1<<20)
		t.Logf("%s was killed: up %s after it was ready, the transfer goes on after another %s", c.name, up, flows)
		must(t, bulk.stop())
		must(t, f.WaitMesh(ctx))
	}
}

// secondAddress gives the router of a cluster another public address that leads to the broker, until the test ends.
func secondAddress(t *testing.T, ctx context.Context, b *fleet.Broker) netip.Addr {
	t.Helper()
	a := b.PublicAddress.As4()
	a[3] += 100
	address := netip.AddrFrom4(a)
	rule := []string{"PREROUTING", "-d", address.String(), "-p", "udp", "--dport", fmt.Sprint(testbed.WireguardPort), "-j",
		"DNAT", "--to-destination", b.Gateway().Address.String()}
	_, err := b.Router.Run(ctx, "ip", "address", "add", address.String()+"/24", "dev", "public")
	must(t, err)
	_, err = b.Router.Iptables(ctx, append([]string{"-t", "nat", "-A"}, rule...)...)
	must(t, err)
	t.Cleanup(func() {
		ctx := context.Background()
		_, err1 := b.Router.Iptables(ctx, append([]string{"-t", "nat", "-D"}, rule...)...)
		_, err2 := b.Router.Run(ctx, "ip", "address", "del", address.String()+"/24", "dev", "public")
		must(t, errors.Join(err1, err2))
		for _, other := range brokers { // packets do not come from there any more, either
			must(t, b.Router.ForgetConnections(other.PublicAddress))
		}
	})
	return address
}

// dropAt drops what comes to the router of a cluster for one of its addresses, until the test ends.
func dropAt(t *testing.T, ctx context.Context, b *fleet.Broker, address netip.Addr) {
	t.Helper()
	rule := []string{"PREROUTING", "-d", address.String(), "-p", "udp", "-j", "DROP"}
	_, err := b.Router.Iptables(ctx, append([]string{"-t", "raw", "-I"}, rule...)...)
	must(t, err)
	t.Cleanup(func() {
		_, err := b.Router.Iptables(context.Background(), append([]string{"-t", "raw", "-D"}, rule...)...)
		must(t, err)
	})
}

// The endpoint of a link is a name, and its address changes during a transfer: the link follows the name.
func TestWireGuardEndpointMoves(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	one, two := brokers[0], brokers[1]
	t.Cleanup(func() { restoreMesh(t) })
	const name = "moving.example"
	setNodeNames(t, one, map[string]string{name: two.PublicAddress.String()})
	must(t, two.Apply(ctx, linkWith(one, inbound)))
	must(t, one.Apply(ctx, linkWith(two, func(s *v1alpha1.KubeLinkSpec) { s.Endpoint = name })))
	bothWays(t, repairTime)
	bulk := openStream(ctx, clients[0], servers[1].service, endless, 1<<20)
	bulk.waitForBytes(t, 10*time.Second, 1<<20)
	address := secondAddress(t, ctx, two)
	dropAt(t, ctx, two, two.PublicAddress)
	setNodeNames(t, one, map[string]string{name: address.String()})
	took := bulk.waitForBytes(t, time.Minute, 4<<20)
	t.Logf("the transfer goes on %s after the address has changed", took)
	must(t, bulk.stop())
	must(t, one.WaitState(ctx, two.Name, v1alpha1.StateUp))
}

// A peer behind NAT gets another port, and another address, during a transfer: the other side answers there. The link
// does not go down.
func TestWireGuardRoams(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	one, two := brokers[0], brokers[1]
	t.Cleanup(func() { restoreMesh(t) })
	must(t, one.Apply(ctx, linkWith(two, inbound)))
	must(t, f.WaitMesh(ctx))
	address := secondAddress(t, ctx, two)
	check := expectUp(t, one, two)
	for _, source := range []string{two.PublicAddress.String() + ":41000", address.String() + ":42000"} {
		bulk := openStream(ctx, clients[0], servers[1].service, endless, 1<<20)
		bulk.waitForBytes(t, 10*time.Second, 1<<20)
		rule := []string{"POSTROUTING", "-o", "public", "-p", "udp", "-d", one.PublicAddress.String(), "-j", "SNAT",
			"--to-source", source}
		_, err := two.Router.Iptables(ctx, append([]string{"-t", "nat", "-I"}, rule...)...)
		must(t, err)
		must(t, two.Router.ForgetConnections(one.PublicAddress))
		took := bulk.waitForBytes(t, 10*time.Second, 4<<20)
		t.Logf("from %s the transfer goes on after %s", source, took)
		must(t, bulk.stop())
		_, err = two.Router.Iptables(ctx, append([]string{"-t", "nat", "-D"}, rule...)...)
		must(t, err)
	}
	check()
}

// buildWireGuard builds the program wireguard-go.
func buildWireGuard(t *testing.T, ctx context.Context) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "wireguard-go")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", path, "golang.zx2c4.com/wireguard").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// A device of another program is used as it is: a broker that is killed, and the next one, cost no packet. It plays the
// kernel's device, which this machine does not have.
func TestWireGuardAdoptsStandAloneDeviceInPlaceOfTheKernel(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	b := brokers[1]
	program := buildWireGuard(t, ctx)
	must(t, b.Kill(ctx, syscall.SIGTERM))
	t.Cleanup(func() { restoreMesh(t) })
	reviveBrokers(t)
	p, err := b.Host.Start(context.Background(), "wireguard-go", nil, program, "-f", "kubelink")
	must(t, err)
	t.Cleanup(func() {
		must(t, p.Kill(syscall.SIGKILL))
		<-p.Done()
	})
	within(t, 10*time.Second, "device", func(context.Context) error {
		_, err := b.Host.WireGuardState("kubelink")
		return err
	})
	must(t, b.Start(ctx))
	must(t, f.WaitMesh(ctx))
	expectMetric(t, b, 5*time.Second, `coredns_kubelink_wireguard_info{device="adopted",interface="kubelink"}`, 1)
	bulk := openStream(ctx, clients[0], servers[1].service, endless, 1<<20)
	bulk.waitForBytes(t, 10*time.Second, 1<<20)
	check := expectNoFailures(t, clients[0], servers[1].service)
	before := handshakes(t, b)
	must(t, b.Kill(ctx, syscall.SIGKILL))
	bulk.waitForBytes(t, 10*time.Second, 1<<20)
	must(t, b.Start(ctx))
	must(t, f.WaitMesh(ctx))
	bulk.waitForBytes(t, 10*time.Second, 1<<20)
	check()
	must(t, bulk.stop())
	if after := handshakes(t, b); after != before {
		t.Errorf("the peers of the device were made anew: handshakes %s, before %s", after, before)
	}
	// It is not ours: an end in order leaves it there.
	must(t, b.Kill(ctx, syscall.SIGTERM))
	_, err = b.Gateway().Run(ctx, "ip", "link", "show", "kubelink")
	must(t, err)
}

// handshakes are the times of the last handshakes of the broker's device.
func handshakes(t *testing.T, b *fleet.Broker) string {
	t.Helper()
	text, err := b.Host.WireGuardState("kubelink")
	must(t, err)
	var all []string // one for each peer
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "public_key=") {
			all = append(all, line)
		} else if strings.HasPrefix(line, "last_handshake_time") {
			all[len(all)-1] += line
		}
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

// The device of a broker with 250 links has all peers soon after the broker was killed, and a changed peer soon. The
// links to the clusters that are there are Up.
func TestWireGuardManyLinks(t *testing.T) {
	ctx := startTest(t, 4*time.Minute)
	b := brokers[2]
	reviveBrokers(t)
	links := addManyLinks(t, ctx, b)
	device := func(want func(state string) bool) func(context.Context) error {
		return func(context.Context) error {
			state, err := b.Host.WireGuardState("kubelink")
			if err == nil && !want(state) {
				err = fmt.Errorf("it has %d peers", strings.Count(state, "public_key="))
			}
			return err
		}
	}
	all := device(func(state string) bool { return strings.Count(state, "public_key=") == manyLinks+2 })
	within(t, 30*time.Second, "the device to have all peers", all)
	must(t, b.Kill(ctx, syscall.SIGKILL))
	began := time.Now()
	must(t, b.Launch())
	within(t, startTime, "the device to have all peers again", all)
	peers := time.Since(began)
	expectMetric(t, b, startTime-peers, `coredns_kubelink_links{state="Up"}`, 2)
	t.Logf("of a new process the device has all peers after %s, and the two links are Up after %s", peers,
		time.Since(began))

	var changes, late []time.Duration
	for i, l := range links[:10] {
		network := fmt.Sprintf("10.67.%d.0/24", 2*i) // neighbours would be one network in the firewall
		allowance := allowForLoad(t, ctx, b.Gateway())
		must(t, b.Client.Get(ctx, client.ObjectKeyFromObject(l), l))
		l.Spec.Egress = append(l.Spec.Egress, v1alpha1.EgressCIDR(network))
		must(t, b.Client.Update(ctx, l))
		changes = append(changes, within(t, 10*time.Second, "the device to have the changed peer",
			device(func(state string) bool { return strings.Contains(state, "allowed_ip="+network) })))
		late = append(late, changes[i]-allowance)
		// A change that comes soon after another one waits until the kernel has the firewall of that one.
		within(t, 30*time.Second, "route to "+network, func(ctx context.Context) error {
			found, err := b.Gateway().Run(ctx, "ip", "route", "show", network, "dev", "kubelink")
			if err == nil && found == "" {
				err = errors.New("there is none")
			}
			return err
		})
	}
	t.Logf("it has a changed peer after %s", changes)
	if half := median(late); half > linkTime {
		t.Errorf("it has a changed peer late: the median is %s besides what the load costs, want %s", half, linkTime)
	}
}
