package main

// This file measures what attackers do to a broker: to the round trip of a live link, and to an honest peer that wants
// to get in. Two clusters are linked; attacker and honest peer are behind the router of the second one, so they share
// an address with its broker. In the end 250 honest peers behind one address return at once.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/peer"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// The bars.
const (
	maxMedianRatio = 2 // of the round trip of a live link, under attack and without
	maxTailRatio   = 3 // the same, 99th percentile
	honestTries    = 30
	honestLimit    = 2 * time.Second
	herdSize       = 250
	herdRTT        = 200 * time.Millisecond
	herdLimit      = 5 * time.Second
)

const (
	attackLimit = 10 * time.Minute
	attackEcho  = 4 * time.Millisecond
	honestRTT   = 40 * time.Millisecond
	honestHost  = "honest.example"
	memberHost  = "member.example"
)

// attackBench is the attacked broker and what is around it.
type attackBench struct {
	hub, other *fleet.Broker
	client     *testbed.Pod
	echo       netip.AddrPort // of a pod behind the link
	target     string         // address of the hub for peers
	ca         *testbed.CA
	honest     netip.Prefix // cluster address
	rounds     int
	duration   time.Duration // of a measurement of the round trip
}

// measureAttacks runs all attacks. An error says which bars were missed.
func measureAttacks(ctx context.Context, o choice) error {
	ctx, cancel := context.WithTimeout(ctx, attackLimit)
	defer cancel()
	runtime.GOMAXPROCS(32) // every socket has a thread, as in measureDataplane
	f, err := fleet.New(ctx, 2, fleet.Options{})
	if err != nil {
		return err
	}
	defer f.Close()
	b := &attackBench{hub: f.Brokers[0], other: f.Brokers[1], ca: f.CA, rounds: 5, duration: 3 * time.Second}
	if o.quick {
		b.rounds, b.duration = 3, 2*time.Second
	}
	if err := b.setUp(ctx, f); err != nil {
		f.DumpLogs(os.Stderr, 30)
		return err
	}
	for _, head := range [][]any{
		{"", "round trip, median, ms", "99th percentile, ms", "CPU, s/s", "honest peer gets in"},
		{"attack", "(without)", "(without)", "(without)", "median, maximum"},
	} {
		fmt.Printf("%-13s %-22s  %-22s  %-12s  %s\n", head...)
	}
	var missed error
	for _, kind := range []string{manyCertificates, manyConnections, idleMember} {
		err := b.measureAttack(ctx, kind)
		if errors.Is(err, errMissed) {
			missed = errors.Join(missed, err)
		} else if err != nil {
			f.DumpLogs(os.Stderr, 10)
			return fmt.Errorf("attack %s: %w", kind, err)
		}
	}
	err = b.measureHerd(ctx)
	if err != nil && !errors.Is(err, errMissed) {
		f.DumpLogs(os.Stderr, 10)
		return fmt.Errorf("%d peers: %w", herdSize, err)
	}
	return errors.Join(missed, err)
}

var errMissed = errors.New("a bar is missed")

func miss(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errMissed, fmt.Sprintf(format, args...))
}

// setUp links the clusters, and makes the links of the honest peer and of the one that attacks.
func (b *attackBench) setUp(ctx context.Context, f *fleet.Fleet) (err error) {
	server, err := b.other.Pod(ctx, "server", testbed.PodOptions{})
	if err != nil {
		return err
	}
	s, err := listenSocket(server.Host, unix.SOCK_DGRAM, echoPort)
	if err != nil {
		return err
	}
	go serveEcho(s)
	service, err := b.other.Service(ctx, "server", map[string]string{"app": "server"},
		[]corev1.ServicePort{testbed.UDPPort(echoPort)}, testbed.ServiceOptions{})
	if err != nil {
		return err
	}
	b.echo = netip.AddrPortFrom(service, echoPort)
	if b.client, err = b.hub.Pod(ctx, "client", testbed.PodOptions{}); err != nil {
		return err
	}
	b.target = netip.AddrPortFrom(b.hub.PublicAddress, 80).String()
	if err := b.hub.Host.SetHosts(map[string]netip.Addr{
		honestHost: netip.AddrFrom4([4]byte{127, 0, 0, 1}), memberHost: netip.AddrFrom4([4]byte{127, 0, 0, 1}),
	}); err != nil {
		return err
	}
	if err := f.Mesh(ctx); err != nil {
		return err
	}
	addr := b.other.MeshAddress.Addr()
	for _, host := range []string{honestHost, memberHost} {
		addr = addr.Next()
		address := netip.PrefixFrom(addr, b.other.MeshAddress.Bits())
		if host == honestHost {
			b.honest = address
		}
		if err := b.hub.Apply(ctx, newUnreachableLink(strings.TrimSuffix(host, ".example"), host, address)); err != nil {
			return err
		}
	}
	return testbed.Until(ctx, "echo", func(context.Context) error {
		_, err := measureEchoes(b.client.Host, b.echo, attackEcho, 100*time.Millisecond)
		return err
	})
}

// newUnreachableLink is a link to a peer that has to connect by itself: nothing listens at its endpoint.
func newUnreachableLink(name, host string, address netip.Prefix) *v1alpha1.KubeLink {
	return &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.KubeLinkSpec{ClusterAddress: address.String(), Endpoint: host + ":1"}}
}

// sample is the round trip of the link in milliseconds, and the CPU time of the hub per second; of each round.
type sample struct{ median, tail, cpu []float64 }

func (s *sample) add(b *attackBench) error {
	pids := []int{b.hub.Process.PID()}
	before, err := processTime(pids)
	if err != nil {
		return err
	}
	start := time.Now()
	e, err := measureEchoes(b.client.Host, b.echo, attackEcho, b.duration)
	if err != nil {
		return err
	}
	elapsed := time.Since(start)
	after, err := processTime(pids)
	s.median = append(s.median, toMilliseconds(e.median))
	s.tail = append(s.tail, toMilliseconds(quantile(e.times, 0.99)))
	s.cpu = append(s.cpu, (after-before).Seconds()/elapsed.Seconds())
	return err
}

// measureAttack measures in turns without and with the attack, and whether an honest peer gets in during the attack.
// The one that comes first in a round comes last in the next one.
func (b *attackBench) measureAttack(ctx context.Context, kind string) error {
	var without, under sample
	var entries []time.Duration
	calm := func() error { return without.add(b) }
	attack := func() error {
		p, err := b.startAttacker(ctx, kind)
		if err != nil {
			return err
		}
		err = under.add(b)
		for range honestTries / b.rounds {
			if err == nil {
				entries = append(entries, b.tryHonest(ctx))
			}
		}
		return errors.Join(err, p.Kill(syscall.SIGTERM), p.Wait(ctx))
	}
	for round := range b.rounds {
		turns := []func() error{calm, attack}
		if round%2 == 1 {
			slices.Reverse(turns)
		}
		for _, measure := range turns {
			if err := measure(); err != nil {
				return err
			}
		}
	}
	return report(kind, &without, &under, entries)
}

// report prints a row of the table, and returns which bars are missed.
func report(kind string, without, under *sample, entries []time.Duration) (err error) {
	slices.Sort(entries)
	in := len(entries)
	for in > 0 && entries[in-1] > honestLimit {
		in--
	}
	row := func(with, without []float64, limit float64, what string) {
		var ratios []float64
		for i := range with {
			ratios = append(ratios, with[i]/without[i])
		}
		ratio := medianOf(ratios)
		fmt.Printf(" %7.2f (%5.2f) %5.2fx ", medianOf(with), medianOf(without), ratio)
		if ratio > limit {
			err = errors.Join(err, miss("%s: %s of the round trip is %.2fx that without attack", kind, what, ratio))
		}
	}
	fmt.Printf("%-13s", kind)
	row(under.median, without.median, maxMedianRatio, "median")
	row(under.tail, without.tail, maxTailRatio, "99th percentile")
	fmt.Printf(" %5.2f (%.2f)  %d of %d, %.0f ms, %.0f ms\n", medianOf(under.cpu), medianOf(without.cpu),
		in, len(entries), toMilliseconds(entries[len(entries)/2]), toMilliseconds(entries[len(entries)-1]))
	if in < len(entries) {
		err = errors.Join(err, miss("%s: the honest peer got in %d of %d times", kind, in, len(entries)))
	}
	return err
}

// startAttacker starts the attack behind the router of the other cluster, and returns when it has gone on for a while.
func (b *attackBench) startAttacker(ctx context.Context, kind string) (*testbed.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cert, key, err := b.ca.Issue([]string{memberHost}, nil)
	if err != nil {
		return nil, err
	}
	env := []string{"GOMAXPROCS=1", attackerCertificate + "=" + string(cert) + string(key)}
	p, err := b.other.Nodes[0].Start(ctx, "attacker", env,
		"nice", "-n", "19", self, attackerCommand, kind, b.target)
	if err != nil {
		return nil, err
	}
	return p, p.WaitLog(ctx, `(?s)[1-9]\d* connections.*connections`) // it has gone on for two seconds
}

// tryHonest returns the time until the honest peer was accepted. It dials again as a broker does.
func (b *attackBench) tryHonest(ctx context.Context) time.Duration {
	config, err := peer.Config(b.ca, b.ca, honestHost)
	if err != nil {
		return never
	}
	begin := time.Now()
	p, err := b.enter(ctx, config, b.honest, honestRTT, 2*honestLimit)
	if err != nil {
		fmt.Println("honest peer:", err)
		return never
	}
	took := time.Since(begin)
	p.Close()
	return took
}

// enter connects a peer to the hub until the hub accepts it: with the back-off of a broker.
func (b *attackBench) enter(
	ctx context.Context, config *tls.Config, address netip.Prefix, rtt, limit time.Duration,
) (*peer.Peer, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for back := 100 * time.Millisecond; ; back = min(2*back, time.Second) {
		p, err := b.connect(ctx, config, address, rtt)
		if err == nil {
			return p, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Duration(float64(back) * (0.75 + rand.Float64()/4))):
		}
	}
}

// connect connects a peer once, over a path with a round-trip time.
func (b *attackBench) connect(
	ctx context.Context, config *tls.Config, address netip.Prefix, rtt time.Duration,
) (*peer.Peer, error) {
	conn, err := b.other.Nodes[0].DialContext(ctx, "tcp", b.target)
	if err != nil {
		return nil, err
	}
	time.Sleep(rtt) // of the connection itself
	config = config.Clone()
	config.ServerName = b.hub.FQDN
	p := &peer.Peer{Conn: tls.Client(delay(conn, rtt/2), config)}
	deadline, _ := ctx.Deadline()
	p.SetDeadline(deadline)
	if err := p.Hello(address, netip.PrefixFrom(netip.IPv4Unspecified(), 0)); err != nil {
		p.Close()
		return nil, err
	}
	kind, _, err := p.Receive()
	if err == nil && kind != peer.Hello {
		err = errors.New("no hello")
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	p.SetDeadline(time.Time{})
	return p, nil
}

// delay returns a connection whose bytes take a time in each direction. There is no netem in many kernels.
func delay(conn net.Conn, oneWay time.Duration) net.Conn {
	near, far := net.Pipe()
	pass := func(from, to net.Conn) {
		type part struct {
			at   time.Time
			data []byte
		}
		parts := make(chan part, 1024)
		go func() {
			defer close(parts)
			for buffer := make([]byte, 32<<10); ; {
				n, err := from.Read(buffer)
				if n > 0 {
					parts <- part{time.Now().Add(oneWay), slices.Clone(buffer[:n])}
				}
				if err != nil {
					return
				}
			}
		}()
		for p := range parts {
			time.Sleep(time.Until(p.at))
			if _, err := to.Write(p.data); err != nil {
				break
			}
		}
		from.Close()
		to.Close()
		for range parts {
		}
	}
	go pass(far, conn)
	go pass(conn, far)
	return near
}

// measureHerd measures how soon many peers behind one address are up that return at once.
func (b *attackBench) measureHerd(ctx context.Context) error {
	if err := b.hub.Client.DeleteAllOf(ctx, &v1alpha1.KubeLink{}); err != nil {
		return err
	}
	if err := b.hub.Remove(ctx, b.hub.Name); err != nil {
		return err
	}
	local := b.hub.Local()
	local.Spec.ClusterAddress = manyMesh.String()
	if err := b.hub.Apply(ctx, local); err != nil {
		return err
	}
	hosts, addresses := make([]string, herdSize), make([]netip.Prefix, herdSize)
	configs := make([]*tls.Config, herdSize)
	names := map[string]netip.Addr{}
	addr := manyMesh.Addr()
	for i := range herdSize {
		addr = addr.Next()
		hosts[i], addresses[i] = fmt.Sprintf("herd%03d.example", i+1), netip.PrefixFrom(addr, manyMesh.Bits())
		names[hosts[i]] = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		var err error
		if configs[i], err = peer.Config(b.ca, b.ca, hosts[i]); err != nil {
			return err
		}
	}
	if err := b.hub.Host.SetHosts(names); err != nil {
		return err
	}
	if err := inParallel(ctx, herdSize, func(ctx context.Context, i int) error {
		return b.hub.Apply(ctx, newUnreachableLink(fmt.Sprintf("herd%03d", i+1), hosts[i], addresses[i]))
	}); err != nil {
		return err
	}
	if err := testbed.Until(ctx, "links", func(ctx context.Context) error {
		if n, err := b.countLinks(ctx, "0"); err != nil || n < herdSize {
			return fmt.Errorf("%d links: %w", n, err)
		}
		return nil
	}); err != nil {
		return err
	}
	return b.returnHerd(ctx, configs, addresses)
}

// returnHerd has all peers connect at once.
func (b *attackBench) returnHerd(ctx context.Context, configs []*tls.Config, addresses []netip.Prefix) error {
	begin := time.Now()
	entered := make([]time.Duration, herdSize)
	peers := make([]*peer.Peer, herdSize)
	var wg sync.WaitGroup
	for i := range herdSize {
		wg.Go(func() {
			var err error
			if peers[i], err = b.enter(ctx, configs[i], addresses[i], herdRTT, 4*herdLimit); err != nil {
				entered[i] = never
				return
			}
			entered[i] = time.Since(begin)
		})
	}
	wg.Wait()
	up, err := b.countLinks(ctx, "1")
	for _, p := range peers {
		if p != nil {
			p.Close()
		}
	}
	if err != nil {
		return err
	}
	slices.Sort(entered)
	last := entered[herdSize-1]
	fmt.Printf("%d peers behind one address, %s round trip: %d up; half of them after %.2f s, the last after %.2f s\n",
		herdSize, herdRTT, up, entered[herdSize/2].Seconds(), last.Seconds())
	if last > herdLimit || up < herdSize {
		return miss("%d of %d peers are up, the last after %s", up, herdSize, last)
	}
	return nil
}

// countLinks returns the number of links that are up (1), or not (0).
func (b *attackBench) countLinks(ctx context.Context, value string) (n int, err error) {
	text, err := b.hub.Host.Get(ctx, fleet.MetricsURL)
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "coredns_kubelink_link_up{") && strings.HasSuffix(line, " "+value+"\n") {
			n++
		}
	}
	return n, err
}
