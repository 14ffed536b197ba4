package main

// This file measures how soon packets and names follow `kubectl apply` of a KubeLink, in a mesh of two clusters, and in
// one of hundreds beside thousands of global names.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/peer"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const (
	rounds = 20

	// what is promised
	medianApply   = 500 * time.Millisecond
	maximumApply  = time.Second
	reconcileCPU  = 50 * time.Millisecond
	scaleEntries  = 10000
	quickEntries  = 1000
	applySettling = 500 * time.Millisecond // without any CPU time, the broker has done all that a change asks for
)

// scaleMesh is the mesh of many clusters; the second cluster is not among the addresses of the stubs.
var scaleMesh = netip.MustParsePrefix("10.202.0.0/16")

// applyBed is the test bed: the first cluster has the client, the second one the server.
type applyBed struct {
	fleet   *fleet.Fleet
	client  *testbed.Pod
	service netip.Addr
	stubs   *peer.Stubs // nil: a mesh of two
	profile string      // folder for CPU profiles; empty: none are taken
}

// measureApply measures the time from the start of `kubectl apply` of a KubeLink to the first packet and back, and to
// the first right DNS answer. This includes kubectl's own time, which it shows separately.
func measureApply(ctx context.Context) error {
	return withApplyBed(ctx, choice{}, func(b *applyBed) error {
		if err := b.fleet.Mesh(ctx); err != nil {
			return err
		}
		fmt.Println("\na mesh of two clusters")
		return b.measure(ctx)
	})
}

// measureScale does so in a cluster that has many links, and many global names, and measures what one reconciliation
// costs there.
func measureScale(ctx context.Context, o choice) error {
	entries := scaleEntries
	if o.quick {
		entries = quickEntries
	}
	return withApplyBed(ctx, o, func(b *applyBed) error {
		if err := b.fill(ctx, entries); err != nil {
			return err
		}
		defer b.stubs.Close()
		fmt.Printf("\na cluster with %d links and %d global names\n", manyLinks, entries)
		return errors.Join(b.measure(ctx), b.measureReconciliation(ctx))
	})
}

// withApplyBed makes the bed, without links.
func withApplyBed(ctx context.Context, o choice, measure func(*applyBed) error) error {
	f, err := fleet.New(ctx, 2,
		fleet.Options{Edit: func(_ int, corefile string) string { return withProfiles(o, corefile) }})
	if err != nil {
		return err
	}
	defer f.Close()
	b := &applyBed{fleet: f, profile: o.profile}
	err = func() error {
		server, err := f.Brokers[1].Pod(ctx, "server", testbed.PodOptions{})
		if err != nil {
			return err
		}
		if err := server.ServeUDPEcho(9000); err != nil {
			return err
		}
		if b.service, err = f.Brokers[1].Service(ctx, "server", map[string]string{"app": "server"},
			[]corev1.ServicePort{testbed.UDPPort(9000)}, testbed.ServiceOptions{}); err != nil {
			return err
		}
		if b.client, err = f.Brokers[0].Pod(ctx, "client", testbed.PodOptions{}); err != nil {
			return err
		}
		return measure(b)
	}()
	if err != nil && !errors.Is(err, errNotKept) {
		f.DumpLogs(os.Stderr, 20)
	}
	return err
}

var errNotKept = errors.New("a promise is not kept")

// fill gives the first cluster links to stubs, and entries of the global domain, and waits until all are served.
func (b *applyBed) fill(ctx context.Context, entries int) (err error) {
	one, two := b.fleet.Brokers[0], b.fleet.Brokers[1]
	one.MeshAddress = netip.PrefixFrom(mesh.Nth(scaleMesh, 1), scaleMesh.Bits())
	two.MeshAddress = netip.PrefixFrom(mesh.Nth(scaleMesh, 1<<15), scaleMesh.Bits())
	const others = manyLinks - 1 // and the link to the second cluster
	if b.stubs, err = peer.ServeStubs(one.Gateway().Host, stubPort, b.fleet.CA, others, one.MeshAddress,
		manyServices); err != nil {
		return err
	}
	hosts := map[string]netip.Addr{}
	for _, s := range b.stubs.All {
		hosts[s.Endpoint] = s.Listens
	}
	if err := one.Host.SetHosts(hosts); err != nil {
		return err
	}
	if err := b.fleet.Mesh(ctx); err != nil {
		return err
	}
	if err := inParallel(ctx, others, func(ctx context.Context, i int) error {
		s := b.stubs.All[i]
		return one.Apply(ctx, &v1alpha1.KubeLink{
			ObjectMeta: metav1.ObjectMeta{Name: s.Name},
			Spec: v1alpha1.KubeLinkSpec{ClusterAddress: s.Address.String(), CIDR: s.Services.String(),
				Endpoint: fmt.Sprintf("%s:%d", s.Endpoint, stubPort)},
		})
	}); err != nil {
		return err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: benchNamespace}}
	if err := one.Client.Create(ctx, ns); err != nil {
		return err
	}
	if err := inParallel(ctx, entries, func(ctx context.Context, i int) error {
		return one.Client.Create(ctx, newEntry(fmt.Sprintf("g-%05d", i), entryName(i), entryAddress(i)))
	}); err != nil {
		return err
	}
	return b.waitForAll(ctx, entries)
}

// waitForAll waits until the links are Up, all names are served, and all states are written.
func (b *applyBed) waitForAll(ctx context.Context, entries int) error {
	one := b.fleet.Brokers[0]
	for _, s := range b.stubs.All {
		if err := testbed.Until(ctx, "link "+s.Name, func(ctx context.Context) error {
			l, err := one.Link(ctx, s.Name)
			if err == nil && l.Status.State != v1alpha1.StateUp {
				err = fmt.Errorf("%s: %s", l.Status.State, l.Status.Message)
			}
			return err
		}); err != nil {
			return err
		}
	}
	for i := range entries {
		if err := testbed.Until(ctx, entryName(i), func(ctx context.Context) error {
			m, err := one.Host.QueryAt(ctx, "udp", one.DNS(), entryName(i), dns.TypeA)
			if err != nil {
				return err
			}
			return wantAddresses(entryAddress(i))(m)
		}); err != nil {
			return err
		}
	}
	return b.waitUntilIdle(ctx, 10*time.Second) // it writes states for minutes
}

// waitUntilIdle waits until the broker of the first cluster has used next to no CPU time for a while.
func (b *applyBed) waitUntilIdle(ctx context.Context, window time.Duration) error {
	const idle = 0.05 // of a CPU
	pids := []int{b.fleet.Brokers[0].Process.PID()}
	for {
		before, err := processTime(pids)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(window):
		}
		after, err := processTime(pids)
		if err != nil || (after-before).Seconds() <= idle*window.Seconds() {
			return err
		}
	}
}

// measure removes and applies the link.
func (b *applyBed) measure(ctx context.Context) error {
	object := b.fleet.Brokers[1].LinkTo()
	object.APIVersion, object.Kind = "kubelink.mandelsoft.org/v1alpha1", "KubeLink"
	manifest, err := yaml.Marshal(object)
	if err != nil {
		return err
	}
	times, err := timeApplies(ctx, b.fleet, b.client, b.service, string(manifest))
	if err != nil {
		return err
	}
	return times.print()
}

// measureReconciliation changes links, and compares the CPU time of the broker with the number of its reconciliations.
func (b *applyBed) measureReconciliation(ctx context.Context) error {
	const applied = "coredns_kubelink_apply_duration_seconds_count"
	one := b.fleet.Brokers[0]
	pids := []int{one.Process.PID()}
	if err := b.waitUntilIdle(ctx, 2*time.Second); err != nil {
		return err
	}
	count, err := one.Metric(ctx, applied)
	if err != nil {
		return err
	}
	profile := func() error { return nil }
	if b.profile != "" {
		profile = profileCPU(ctx, one.Gateway().Host, brokerProfile, 10*time.Second,
			filepath.Join(b.profile, "reconciliation.pprof"))
	}
	used, err := processTime(pids)
	if err != nil {
		return err
	}
	for i := range rounds {
		l, err := one.Link(ctx, b.stubs.All[i].Name)
		if err != nil {
			return err
		}
		l.Spec.Ingress = []v1alpha1.IngressCIDR{v1alpha1.IngressCIDR(fmt.Sprintf("100.64.0.%d", 100+i))}
		if err := one.Client.Update(ctx, l); err != nil {
			return err
		}
		if err := b.waitUntilIdle(ctx, applySettling); err != nil {
			return err
		}
	}
	now, err := one.Metric(ctx, applied)
	if err != nil {
		return err
	}
	after, err := processTime(pids)
	if err != nil {
		return err
	}
	if now == count {
		return errors.New("no reconciliation was counted")
	}
	each := time.Duration(float64(after-used) / (now - count))
	fmt.Printf("%-44s %6d ms of CPU each, of %.0f for %d changed links; promised %d\n", "reconciliation",
		each.Milliseconds(), now-count, rounds, reconcileCPU.Milliseconds())
	if each > reconcileCPU {
		err = fmt.Errorf("%w: a reconciliation takes %s of CPU, and %s is promised", errNotKept, each, reconcileCPU)
	}
	return errors.Join(err, profile())
}

// applyTimes are the times from the start of `kubectl apply` to its own end, to the first packet and back, and to the
// first right DNS answer.
type applyTimes struct{ kubectl, packet, name []time.Duration }

// timeApplies removes and applies the link to the second cluster, and measures the times of each round.
func timeApplies(
	ctx context.Context, f *fleet.Fleet, client *testbed.Pod, service netip.Addr, manifest string,
) (times applyTimes, err error) {
	one, two := f.Brokers[0], f.Brokers[1]
	for range rounds {
		if err := one.Remove(ctx, two.Name); err != nil {
			return times, err
		}
		if err := testbed.Until(ctx, "name to go", func(ctx context.Context) error {
			if err := lookUpServer(ctx, one, service); err == nil || err.Error() != dns.RcodeToString[dns.RcodeNameError] {
				return fmt.Errorf("answer: %w", err)
			}
			return nil
		}); err != nil {
			return times, err
		}
		start := time.Now()
		names := make(chan time.Duration, 1)
		packets := make(chan time.Duration, 1)
		go func() { names <- firstSuccess(ctx, start, func() error { return lookUpServer(ctx, one, service) }) }()
		go func() { packets <- firstSuccess(ctx, start, func() error { return sendEcho(ctx, client, service) }) }()
		_, err := one.KubectlInput(ctx, manifest, "apply", "-f", "-")
		if err != nil {
			return times, err
		}
		times.kubectl = append(times.kubectl, time.Since(start))
		times.packet = append(times.packet, <-packets)
		times.name = append(times.name, <-names)
		if err := ctx.Err(); err != nil {
			return times, err
		}
	}
	return times, nil
}

// print prints the times. Those over what is promised are an error.
func (times applyTimes) print() error {
	fmt.Printf("\nkubectl apply of a KubeLink, %d times (ms)   median   maximum\n", rounds)
	var late error
	for _, row := range []struct {
		what string
		all  []time.Duration
	}{
		{"kubectl has ended", times.kubectl}, {"first packet through and back", times.packet},
		{"first right DNS answer", times.name},
	} {
		median, maximum := summarize(row.all)
		fmt.Printf("%-44s %6d %9d\n", row.what, median.Milliseconds(), maximum.Milliseconds())
		if median > medianApply || maximum > maximumApply {
			late = errors.Join(late, fmt.Errorf("%w: %s: median %s, maximum %s; promised are %s and %s", errNotKept,
				row.what, median, maximum, medianApply, maximumApply))
		}
	}
	return late
}

// summarize returns the median and the maximum.
func summarize(times []time.Duration) (median, maximum time.Duration) {
	times = slices.Sorted(slices.Values(times))
	return times[len(times)/2], times[len(times)-1]
}

// firstSuccess tries until it succeeds, and returns the time of the success. A failed try takes some time by itself.
func firstSuccess(ctx context.Context, start time.Time, try func() error) time.Duration {
	for ctx.Err() == nil {
		if try() == nil {
			return time.Since(start)
		}
	}
	return 0
}

// sendEcho sends a datagram and waits 20 ms for the answer.
func sendEcho(ctx context.Context, from *testbed.Pod, to netip.Addr) error {
	conn, err := from.DialContext(ctx, "udp", netip.AddrPortFrom(to, 9000).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := conn.Write([]byte("x")); err != nil {
		return waitForDeadline(conn, err)
	}
	_, err = conn.Read(make([]byte, 64))
	return waitForDeadline(conn, err)
}

// waitForDeadline waits until the deadline after an error that came at once, so that each failed try takes the same
// time.
func waitForDeadline(conn net.Conn, err error) error {
	var timeout net.Error
	if err != nil && (!errors.As(err, &timeout) || !timeout.Timeout()) {
		conn.Read(make([]byte, 64)) // until the deadline
	}
	return err
}

// lookUpServer queries the broker for the server's name, once in 10 ms.
func lookUpServer(ctx context.Context, b *fleet.Broker, want netip.Addr) error {
	pace := time.NewTimer(10 * time.Millisecond)
	defer pace.Stop()
	m, err := b.Host.QueryAt(ctx, "udp", b.DNS(), "server.default.svc.kubelink2.kubelink.", dns.TypeA)
	if err != nil {
		return err
	}
	if len(m.Answer) == 1 {
		if a, ok := m.Answer[0].(*dns.A); ok && a.A.String() == want.String() {
			return nil
		}
	}
	<-pace.C
	return errors.New(dns.RcodeToString[m.Rcode])
}
