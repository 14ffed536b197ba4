package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// kernelState returns what the broker has in its node's kernel: device, routes, rules, NAT.
func kernelState(ctx context.Context, b *fleet.Broker) (string, error) {
	gw := b.Gateway()
	var all strings.Builder
	for _, args := range [][]string{
		{"ip", "-o", "address"}, {"ip", "route", "show", "table", "all"}, {"ip", "rule"},
		{"iptables", "-w", "-t", "nat", "-S"}, {"iptables", "-w", "-t", "filter", "-S"},
		{"iptables", "-w", "-t", "mangle", "-S"},
	} {
		out, err := gw.Run(ctx, args[0], args[1:]...)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "kubelink") || strings.Contains(line, "KLINK-") ||
				strings.Contains(line, "lookup 177") {
				// Without a process at its other end, the TUN has no carrier.
				all.WriteString(strings.ReplaceAll(line, "linkdown ", ""))
			}
		}
	}
	return all.String(), nil
}

// A changed link takes effect within two seconds, and a deleted link is gone within two seconds: route, NAT, tunnel,
// zone.
func TestChangeAndDelete(t *testing.T) {
	ctx := startTest(t, time.Minute)
	check := expectNoFailures(t, clients[0], servers[2].service)
	defer check()
	b := brokers[0]
	link := brokers[1].LinkTo()

	changed := link.DeepCopy()
	changed.Spec.Egress = []v1alpha1.EgressCIDR{"10.77.0.0/16"}
	must(t, b.Apply(ctx, changed))
	within(t, 2*time.Second, "new route", func(ctx context.Context) error {
		n, err := kernelState(ctx, b)
		if err == nil && strings.Count(n, "10.77.0.0/16") < 2 { // route and NAT
			err = errors.New(n)
		}
		return err
	})
	must(t, b.Apply(ctx, link))
	within(t, 2*time.Second, "old route to go", func(ctx context.Context) error {
		n, err := kernelState(ctx, b)
		if err == nil && strings.Contains(n, "10.77.0.0/16") {
			err = errors.New(n)
		}
		return err
	})
	waitForReply(t, 2*time.Second, clients[0], servers[1].service)

	must(t, checkAnswer(ctx, b, serverName(1), servers[1].service))
	must(t, b.Remove(ctx, "kubelink2"))
	within(t, 2*time.Second, "everything of the link to go", func(ctx context.Context) error {
		n, err := kernelState(ctx, b)
		if err != nil {
			return err
		}
		if strings.Contains(n, brokers[1].ServiceCIDR.String()) {
			return fmt.Errorf("route or NAT: %s", n)
		}
		m, _, err := queryBroker(ctx, b, "udp", serverName(1), dns.TypeA)
		if err != nil {
			return err
		}
		if m.Rcode != dns.RcodeNameError {
			return fmt.Errorf("zone: %s", dns.RcodeToString[m.Rcode])
		}
		if v, err := b.Metric(ctx, `coredns_kubelink_link_up{link="kubelink2"}`); err != nil || v != 0 {
			return fmt.Errorf("tunnel: up %g, %v", v, err)
		}
		l, err := brokers[1].Link(ctx, b.Name)
		if err != nil {
			return err
		}
		if l.Status.State == v1alpha1.StateUp && !inWireGuard() {
			return errors.New("tunnel: the peer is still connected")
		}
		return nil
	})
	must(t, brokers[1].WaitState(ctx, b.Name, v1alpha1.StateDown))
	must(t, b.Apply(ctx, link))
	must(t, f.WaitMesh(ctx))
	waitForReply(t, 2*time.Second, clients[0], servers[1].service)
}

// A LocalLink stays until its mesh is empty.
func TestLocalLinkIsKept(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[2]
	local := b.Local()
	must(t, b.Client.Delete(ctx, b.Local()))
	must(t, b.WaitState(ctx, b.Name, v1alpha1.StateDeleting, "kubelink1", "kubelink2"))
	waitForReply(t, time.Second, clients[2], servers[0].service) // the mesh still works
	must(t, b.Remove(ctx, "kubelink1"))
	must(t, b.Remove(ctx, "kubelink2"))
	must(t, b.Remove(ctx, b.Name))
	within(t, 2*time.Second, "mesh to go", func(ctx context.Context) error {
		n, err := kernelState(ctx, b)
		if err == nil && strings.Contains(n, "192.168.0.") {
			err = errors.New(n)
		}
		return err
	})
	must(t, b.Apply(ctx, local))
	must(t, f.Mesh(ctx))
}

// When the broker has been removed first, links and CRDs can be deleted all the same: at its end the broker has taken
// its finalizer off. The next broker finds a cluster as it was before the first one.
func TestRemoveBrokerFirst(t *testing.T) {
	ctx := startTest(t, time.Minute)
	reviveBrokers(t)
	b := brokers[2]
	const crd = "kubelinks.kubelink.mandelsoft.org"
	local, err := b.Link(ctx, b.Name)
	must(t, err)
	if !slices.Contains(local.Finalizers, v1alpha1.Finalizer) {
		t.Fatalf("finalizers %q", local.Finalizers)
	}
	start := time.Now()
	must(t, b.Kill(ctx, syscall.SIGTERM))
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("its end took %s", took)
	}
	_, err = b.Kubectl(ctx, "delete", "kubelinks", "--all", "--timeout=10s")
	must(t, err)
	_, err = b.Kubectl(ctx, "delete", "crd", crd, "--timeout=10s")
	must(t, err)
	must(t, b.Start(ctx))
	must(t, f.Mesh(ctx))
	within(t, 5*time.Second, "the finalizer to be there again", func(ctx context.Context) error {
		local, err := b.Link(ctx, b.Name)
		if err == nil && !slices.Contains(local.Finalizers, v1alpha1.Finalizer) {
			err = fmt.Errorf("finalizers %q", local.Finalizers)
		}
		return err
	})
}

// Brokers use a new certificate from the next handshake on. A running transfer goes on undisturbed.
func TestCertificateReplaced(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	wait := runInBackground(func() error { return transfer(ctx, clients[0], servers[1].service, 8<<20, 2<<20) })
	uses := strings.Count(b.Process.Log(), "certificate in use")
	must(t, b.NewCertificate(ctx, f.CA, b.FQDN))
	within(t, 3*time.Second, "new certificate to be used", func(context.Context) error {
		if strings.Count(b.Process.Log(), "certificate in use") == uses {
			return errors.New("not yet")
		}
		return nil
	})
	must(t, wait())
	if v, _ := b.Metric(ctx, `coredns_kubelink_link_up{link="kubelink2"}`); v != 1 {
		t.Error("link is not up")
	}

	// The status reports an unusable certificate, and the old one stays in use.
	must(t, b.TLSSecret(ctx, fleet.Namespace, fleet.Secret, []byte("x"), []byte("y"), f.CA.PEM))
	must(t, b.WaitState(ctx, b.Name, v1alpha1.StateError, "secret kubelink/kubelink-tls", "tls.crt"))
	waitForReply(t, time.Second, clients[0], servers[1].service)
	must(t, b.NewCertificate(ctx, f.CA, b.FQDN))
	must(t, f.WaitMesh(ctx))

	// Peers refuse a certificate of a foreign CA, and both ends say so. Other links stay up.
	check := expectNoFailures(t, clients[1], servers[2].service)
	other, err := testbed.NewCA("somebody else")
	must(t, err)
	must(t, b.NewCertificate(ctx, other, b.FQDN))
	must(t, b.Kill(ctx, syscall.SIGKILL))
	must(t, b.Start(ctx))
	must(t, b.WaitState(ctx, "kubelink2", v1alpha1.StateDown, "certificate"))
	check()
	must(t, b.NewCertificate(ctx, f.CA, b.FQDN))
	must(t, f.WaitMesh(ctx))
}

// The broker notices a dead peer, names fail at once, and the broker notices the peer's return within three seconds.
func TestPeerKilledAndRestarted(t *testing.T) {
	ctx := startTest(t, time.Minute)
	check := expectNoFailures(t, clients[0], servers[2].service)
	defer check()
	b, peer := brokers[0], brokers[1]
	must(t, peer.Kill(ctx, syscall.SIGKILL))
	noticed := within(t, 5*time.Second, "loss to be noticed", func(ctx context.Context) error {
		v, err := b.Metric(ctx, `coredns_kubelink_link_up{link="kubelink2"}`)
		if err == nil && v != 0 {
			err = errors.New("still up")
		}
		return err
	})
	named := within(t, time.Second, "names to fail", func(ctx context.Context) error {
		return checkFailure(ctx, b, serverName(1), "kubelink2", "Down")
	})
	must(t, b.WaitState(ctx, "kubelink2", v1alpha1.StateDown))
	must(t, checkAnswer(ctx, b, serverName(2), servers[2].service))
	// A pod sees this, too.
	m, err := clients[0].Query(ctx, serverName(1), dns.TypeA)
	must(t, err)
	if m.Rcode != dns.RcodeServerFailure {
		t.Errorf("a pod gets %s", dns.RcodeToString[m.Rcode])
	}
	must(t, peer.Start(ctx))
	back := within(t, returnTime(), "link to be up again", func(ctx context.Context) error {
		v, err := b.Metric(ctx, `coredns_kubelink_link_up{link="kubelink2"}`)
		if err == nil && v != 1 {
			err = errors.New("not up")
		}
		return err
	})
	within(t, time.Second, "names to come back", func(ctx context.Context) error {
		return checkAnswer(ctx, b, serverName(1), servers[1].service)
	})
	t.Logf("noticed after %s, names after another %s, up %s after the peer was ready", noticed, named, back)
	must(t, f.WaitMesh(ctx))
	waitForReply(t, time.Second, clients[0], servers[1].service)
}

// The keepalive notices a peer that disappears without a word (the cable is cut).
func TestPeerSilent(t *testing.T) {
	ctx := startTest(t, time.Minute)
	check := expectNoFailures(t, clients[0], servers[2].service)
	defer check()
	b := brokers[0]
	must(t, f.CutLink(ctx, 1, 2))
	cut := true
	defer func() {
		if cut {
			f.RestoreLink(context.Background(), 1, 2)
		}
	}()
	took := within(t, 10*time.Second, "silence to be noticed", func(ctx context.Context) error {
		return checkFailure(ctx, b, serverName(1), "kubelink2", "Down")
	})
	cut = false
	must(t, f.RestoreLink(ctx, 1, 2))
	back := within(t, 10*time.Second, "link to be up again", func(ctx context.Context) error {
		return checkAnswer(ctx, b, serverName(1), servers[1].service)
	})
	t.Logf("noticed after %s, back after %s", took, back)
	must(t, f.WaitMesh(ctx))
}

// A broker adopts the kernel state of a killed broker, and the pods' connections survive.
func TestBrokerKilledAndRestarted(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	before, err := kernelState(ctx, b)
	must(t, err)
	bulk := openStream(ctx, clients[0], servers[1].service, 16<<20, 2<<20)
	bulk.waitForBytes(t, 5*time.Second, 1<<20) // the transfer is under way
	must(t, b.Kill(ctx, syscall.SIGKILL))
	left, err := kernelState(ctx, b)
	must(t, err)
	if left != before {
		t.Errorf("the kernel kept\n%s\nof\n%s", left, before)
	}
	must(t, b.Start(ctx))
	up := within(t, returnTime(), "links to be up", func(ctx context.Context) error {
		v, err := b.Metric(ctx, `coredns_kubelink_links{state="Up"}`)
		if err == nil && v != 2 {
			err = fmt.Errorf("%g are", v)
		}
		return err
	})
	t.Logf("links up %s after it was ready", up)
	must(t, b.Process.WaitLog(ctx, `kubelink starts version=\S+ .*mode=`+string(f.Mode)+` device=kubelink`))
	must(t, b.Process.WaitLog(ctx, `adopting what an earlier process has left .*exists=true addresses=[1-9]\d* routes=[1-9]`))
	after, err := kernelState(ctx, b)
	must(t, err)
	if after != before {
		t.Errorf("afterwards there is\n%s\nbefore there was\n%s", after, before)
	}
	must(t, bulk.wait())
	must(t, f.WaitMesh(ctx))
}

// pausedDeployment is one that makes no pods: in the test bed, nothing would run them.
const pausedDeployment = `{apiVersion: apps/v1, kind: Deployment, metadata: {name: kubelink, namespace: kubelink},
spec: {paused: true, replicas: 1, selector: {matchLabels: {app: none}},
template: {metadata: {labels: {app: none}}, spec: {containers: [{name: none, image: none}]}}}}`

// A broker that ends with its Deployment leaves no state that nobody keeps. A restart changes none.
func TestBrokerEndsForGood(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	b, env := brokers[2], brokers[2].Env
	kubectl := func(args ...string) {
		t.Helper()
		_, err := b.Kubectl(ctx, append([]string{"--namespace", fleet.Namespace}, args...)...)
		must(t, err)
	}
	end := func(what string, want v1alpha1.State) {
		t.Helper()
		must(t, b.Process.WaitLog(ctx, "the Deployment has been seen"))
		must(t, f.WaitMesh(ctx))
		waitMeshService(t, 10*time.Second, b, "offered", "Ok")
		must(t, b.Kill(ctx, syscall.SIGTERM))
		served, err := b.Kubectl(ctx, "get", "msvc", "offered", "-o", "jsonpath={.status.state} {.status.message}")
		must(t, err)
		if strings.HasPrefix(served, "Stale no broker serves this") != (want == v1alpha1.StateDown) {
			t.Errorf("after %s, the MeshService is %s", what, served)
		}
		for _, to := range brokers {
			l, err := b.Link(ctx, to.Name)
			must(t, err)
			ready := meta.IsStatusConditionTrue(l.Status.Conditions, v1alpha1.ConditionReady)
			abandoned := strings.Contains(l.Status.Message, "no broker keeps this link")
			if up := want == v1alpha1.StateUp; l.Status.State != want || ready != up || abandoned == up {
				t.Errorf("after %s, %s is %+v", what, l.Name, l.Status)
			}
		}
		must(t, b.Start(ctx))
	}
	_, err := b.KubectlInput(ctx, pausedDeployment, "apply", "-f", "-")
	must(t, err)
	b.Env = append(slices.Clone(env), "POD_NAME=kubelink-5d9c7b8f4-abcde")
	defer func() {
		b.Env = env
		b.Kubectl(context.Background(), "-n", fleet.Namespace, "delete", "deployment", "kubelink", "--ignore-not-found")
		must(t, f.WaitMesh(context.Background()))
	}()
	must(t, b.Kill(ctx, syscall.SIGTERM))
	must(t, b.Start(ctx))
	applyMeshServices(t, ctx, b, [2]string{"offered", fmt.Sprintf(`"service":"server","meshAddress":%q`, offeredAddress)})
	end("a restart", v1alpha1.StateUp)
	must(t, b.Process.WaitLog(ctx, "the Deployment has been seen"))
	kubectl("scale", "deployment", "kubelink", "--replicas=0")
	end("it was scaled to 0", v1alpha1.StateDown)
	must(t, b.Process.WaitLog(ctx, "the Deployment has been seen"))
	kubectl("delete", "deployment", "kubelink")
	end("its deletion", v1alpha1.StateDown)
	must(t, f.WaitMesh(ctx))
}

// A clean shutdown removes everything from the kernel. With keep-network, everything stays.
func TestShutdown(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[2]
	must(t, b.Kill(ctx, syscall.SIGTERM))
	left, err := kernelState(ctx, b)
	must(t, err)
	// Comments in kube-proxy's rules name our services.
	for line := range strings.Lines(left) {
		if !strings.Contains(line, "KUBE-") {
			t.Errorf("left behind: %s", line)
		}
	}
	text := b.Corefile()
	must(t, b.SetCorefile(strings.Replace(text, "dns-propagation dns", "dns-propagation dns\nkeep-network", 1)))
	must(t, b.Start(ctx))
	must(t, f.WaitMesh(ctx))
	before, err := kernelState(ctx, b)
	must(t, err)
	must(t, b.Kill(ctx, syscall.SIGTERM))
	if left, err = kernelState(ctx, b); err != nil || left != before {
		t.Errorf("keep-network kept\n%s\nof\n%s (%v)", left, before, err)
	}
	must(t, b.SetCorefile(text))
	must(t, b.Start(ctx))
	must(t, f.WaitMesh(ctx))
}

// While the API server is away, links and names stay. Afterwards, the broker catches up.
func TestAPIServerAway(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	b := brokers[0]
	text := b.Corefile()
	defer func() { must(t, b.SetCorefile(text)); must(t, b.Reload(ctx)); must(t, f.WaitMesh(ctx)) }()
	must(t, b.StopAPIServer(ctx))
	restored := false
	defer func() {
		if !restored {
			b.StartAPIServer(ctx)
		}
	}()
	check := expectNoFailures(t, clients[0], servers[1].service)
	within(t, 10*time.Second, "ready to say so", func(ctx context.Context) error {
		if v, err := b.Metric(ctx, "coredns_kubelink_api_up"); err != nil || v != 0 {
			return fmt.Errorf("api_up is %g, %v", v, err)
		}
		if _, err := b.Host.Get(ctx, fleet.ReadyURL); err == nil || !strings.Contains(err.Error(), "503") {
			return fmt.Errorf("the page of readiness says %v", err)
		}
		if !strings.Contains(b.Process.Log(), "Not ready: API server") {
			return errors.New("the log does not say why")
		}
		return nil
	})
	// Check names for thirty seconds, twice a second. Meanwhile a peer dies, and its names follow.
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for i := range 60 {
		<-ticker.C
		if err := checkAnswer(ctx, b, serverName(1), servers[1].service); err != nil {
			t.Errorf("after %s: %v", time.Duration(i)*500*time.Millisecond, err)
		}
		if i == 10 {
			must(t, brokers[2].Kill(ctx, syscall.SIGKILL))
			within(t, lossTime()+time.Second, "names of a dead peer to fail", func(ctx context.Context) error {
				return checkFailure(ctx, b, serverName(2), "kubelink3", "Down")
			})
		}
		// After a change of the Corefile no controllers run: they start with the objects of the API server. Names follow
		// links all the same.
		if i == 20 {
			must(t, b.SetCorefile(strings.Replace(text, "dns-propagation dns",
				"dns-propagation dns\n            dns-advertisement", 1)))
			must(t, b.Reload(ctx))
			must(t, brokers[2].Launch())
			within(t, 10*time.Second, "names of the peer to be back", func(ctx context.Context) error {
				return checkAnswer(ctx, b, serverName(2), servers[2].service)
			})
			must(t, brokers[2].Kill(ctx, syscall.SIGKILL))
			within(t, lossTime()+time.Second, "names of a dead peer to fail", func(ctx context.Context) error {
				return checkFailure(ctx, b, serverName(2), "kubelink3", "Down")
			})
		}
	}
	check()
	check = expectNoFailures(t, clients[0], servers[1].service)
	must(t, b.StartAPIServer(ctx))
	restored = true
	// The broker writes the state of the dead peer's link, which changed meanwhile, and applies a change of the first
	// moment.
	changed := brokers[1].LinkTo()
	changed.Spec.Egress = []v1alpha1.EgressCIDR{"10.78.0.0/16"}
	within(t, 30*time.Second, "API server to accept a change",
		func(ctx context.Context) error { return b.Apply(ctx, changed) })
	took := within(t, 30*time.Second, "change to be applied", func(ctx context.Context) error {
		n, err := kernelState(ctx, b)
		if err == nil && !strings.Contains(n, "10.78.0.0/16") {
			err = errors.New(n)
		}
		return err
	})
	t.Logf("applied %s after it was made", took)
	must(t, b.WaitState(ctx, "kubelink3", v1alpha1.StateDown))
	check()
	must(t, b.Apply(ctx, brokers[1].LinkTo()))
	must(t, brokers[2].Start(ctx))
	must(t, f.WaitMesh(ctx))
	must(t, b.WaitReady(ctx))
}

// A broker that starts while the API server is away keeps the kernel state of the broker before it, waits, and says
// so.
func TestStartWithoutAPIServer(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	b := brokers[2]
	before, err := kernelState(ctx, b)
	must(t, err)
	must(t, b.Kill(ctx, syscall.SIGKILL))
	must(t, b.StopAPIServer(ctx))
	must(t, b.Launch())
	within(t, 10*time.Second, "names to say so", func(ctx context.Context) error {
		return checkFailure(ctx, b, serverName(0), "not ready")
	})
	if _, err := b.Host.Get(ctx, fleet.ReadyURL); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("ready says %v", err)
	}
	if now, err := kernelState(ctx, b); err != nil || now != before {
		t.Errorf("the kernel has\n%s\nit had\n%s (%v)", now, before, err)
	}
	must(t, b.StartAPIServer(ctx))
	must(t, b.WaitReady(ctx))
	must(t, f.WaitMesh(ctx))
}

// A reload of the Corefile costs no packet, whether it changes the stanza or not. A wrong Corefile changes nothing.
func TestReload(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	b := brokers[0]
	text := b.Corefile()
	defer func() { must(t, b.SetCorefile(text)); must(t, b.Reload(ctx)); must(t, f.WaitMesh(ctx)) }()
	check := expectNoFailures(t, clients[0], servers[1].service)
	wait := runInBackground(func() error { return transfer(ctx, clients[0], servers[1].service, 16<<20, 2<<20) })
	since := func() string {
		l, err := b.Link(ctx, "kubelink2")
		must(t, err)
		return fmt.Sprint(l.Status.Conditions)
	}
	before := since()

	must(t, b.SetCorefile(text+"\n# a comment\n"))
	must(t, b.Reload(ctx))
	must(t, b.SetCorefile(strings.Replace(text, "dns-propagation dns",
		"dns-propagation dns\n            dns-advertisement", 1)))
	must(t, b.Reload(ctx))

	must(t, b.SetCorefile(strings.Replace(text, "dns-propagation dns", "dns-propagation sometimes", 1)))
	must(t, b.Process.Kill(syscall.SIGUSR1))
	must(t, b.Process.WaitLog(ctx, `dns-propagation.*sometimes`))
	must(t, checkAnswer(ctx, b, serverName(1), servers[1].service))

	must(t, b.SetCorefile(strings.Replace(text, "dns-propagation dns",
		"dns-propagation dns\n            log-format json", 1)))
	must(t, b.Reload(ctx))
	must(t, b.Process.WaitLog(ctx, `"level":"INFO","msg":"Reloading complete"`))

	must(t, b.SetCorefile(text))
	must(t, b.Reload(ctx))
	must(t, wait())
	check()
	if now := since(); now != before {
		t.Errorf("the link was disturbed:\n%s\n%s", before, now)
	}
}
