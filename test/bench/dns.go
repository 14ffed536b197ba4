package main

// This file compares DNS servers: it defines the contenders, the queries and their order. Each server is a process of
// the same CoreDNS build on the gateway node of a real cluster, and the load comes from the same node over loopback.
// The cluster itself, with its DNS service and its API server, takes the place of another cluster. The comparison is
// not about the path of packets: so the brokers run in mode none.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/peer"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// The contenders.
const (
	whoamiServer     = "whoami"     // the least work: a plugin that only answers with the client's address
	hostsServer      = "hosts"      // the same names from a file
	legacyServer     = "legacy"     // the Corefile that the legacy system generated
	dnsServer        = "dns"        // dns-propagation dns, with names that were queried before
	dnsColdServer    = "dns-cold"   // the same, with names that were never queried before
	kubernetesServer = "kubernetes" // dns-propagation kubernetes
	globalServer     = "global"     // the global domain
	linksServer      = "links"      // a broker with many links

	// the same without the other plugins of the Corefile that we ship
	bareSuffix     = "-bare"
	whoamiBare     = whoamiServer + bareSuffix
	dnsBare        = dnsServer + bareSuffix
	kubernetesBare = kubernetesServer + bareSuffix
	globalBare     = globalServer + bareSuffix

	// the same with the binary of -before
	dnsBefore        = "dns-before"
	dnsColdBefore    = "dns-cold-before"
	kubernetesBefore = "kubernetes-before"
	globalBefore     = "global-before"
)

func isBare(contender string) bool { return strings.HasSuffix(contender, bareSuffix) }

// dnsMeasures are the values of the flag -measures: existing names, missing names, and many links.
var dnsMeasures = []string{existingNames, missingNames, "links"}

const (
	existingNames = "existing"
	missingNames  = "missing"
)

const (
	benchNamespace = "bench"
	services       = 1000
	moderateRate   = 2000 // queries per second for the comparison of latencies
	remoteLink     = "remote"
	benchDomain    = "bench.svc.remote.kubelink."
	globalDomain   = "svc.global.kubelink."
	// forwardedTo is the mesh DNS address of brokers that shall not serve the global domain. No host has it.
	forwardedTo = "100.64.15.250"
)

// names are the names in the queries to a server.
type names struct {
	count   int // 0: there is no end, and no name is queried twice
	name    func(i int) string
	address func(i int) netip.Addr // of the A record in the answer; nil: any
	rcode   int
	next    int    // number of the next name, if no name is queried twice
	file    string // has all queries, if there is a count
}

// server is a contender.
type server struct {
	name    string
	address netip.AddrPort
	profile string // address at which it serves profiles; empty: none
	asked   map[string]*names
	process *testbed.Process
	guess   map[string]float64 // queries per second, by kind of names: for the number of fresh names in a run
}

// nameServers is the test bed with all contenders.
type nameServers struct {
	choice
	load, latency time.Duration // duration of a run for queries per second, and for latencies
	entries       int           // objects of the global domain
	fleet         *fleet.Fleet
	broker        *fleet.Broker // of the fleet; it is stopped, except for its own measures
	host          *testbed.Host // of servers and load
	dir           string
	servers       []*server
	stubs         *peer.Stubs // the other ends of many links
	quiet         quiet
	results       *results
}

// measureDNS runs the comparison.
func measureDNS(ctx context.Context, o choice) (*results, error) {
	if _, err := exec.LookPath("dnsperf"); err != nil { // now, and not after the measures that do not need it
		return nil, fmt.Errorf("%w: `make bench` installs it", err)
	}
	f, err := fleet.New(ctx, 1,
		fleet.Options{Edit: func(_ int, corefile string) string { return withProfiles(o, corefile) }})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &nameServers{choice: o, load: 3 * time.Second, latency: 2 * time.Second, entries: 10000, fleet: f,
		broker: f.Brokers[0], host: f.Brokers[0].Host.Host,
		quiet: quiet{patience: 2 * time.Minute}, results: newResults(&dnsLayout, o)}
	if o.quick {
		p.load, p.latency, p.entries, p.quiet.patience = time.Second, 500*time.Millisecond, 1000, 20*time.Second
	}
	if err := p.runRounds(ctx); err != nil {
		f.DumpLogs(os.Stderr, 20)
		return nil, err
	}
	return p.results, nil
}

func (p *nameServers) runRounds(ctx context.Context) (err error) {
	if p.dir, err = os.MkdirTemp("", "dns"); err != nil {
		return err
	}
	if err := p.broker.Kill(ctx, syscall.SIGTERM); err != nil {
		return err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: benchNamespace}}
	if err := p.broker.Client.Create(ctx, ns); err != nil {
		return err
	}
	if slices.Contains(p.measures, "links") && slices.Contains(p.contenders, linksServer) {
		if err := p.measureLinks(ctx); err != nil {
			return err
		}
	}
	if err := p.setUp(ctx); err != nil {
		return err
	}
	for round := range p.rounds {
		// No server always comes first, or always after the same other one.
		order := slices.Clone(p.servers)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range order {
			fmt.Printf("round %d: %s\n", round+1, s.name)
			if err := p.measureServer(ctx, s, round); err != nil {
				return fmt.Errorf("round %d: %s: %w", round+1, s.name, err)
			}
		}
	}
	for _, s := range p.servers {
		if err := s.process.Kill(syscall.SIGKILL); err != nil {
			return err
		}
	}
	return nil
}

// writeQuestions writes a file of queries.
func (n *names) writeQuestions(file string, from, count int) error {
	var b bytes.Buffer
	for i := range count {
		fmt.Fprintf(&b, "%s A\n", n.name(from+i))
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// reserveNames reserves names that were never queried before.
func (n *names) reserveNames(count int) (from int) {
	from = n.next
	n.next += count
	return from
}

// checkAnswers queries a sample of the names and checks the answers.
func (p *nameServers) checkAnswers(ctx context.Context, s *server, kind string) error {
	const sample = 20
	n := s.asked[kind]
	for i := range sample {
		number := i * n.count / sample
		if n.count == 0 {
			number = n.reserveNames(1)
		}
		name := n.name(number)
		m, err := p.host.QueryAt(ctx, "udp", s.address, name, dns.TypeA)
		if err != nil {
			return err
		}
		if m.Rcode != n.rcode {
			return fmt.Errorf("%s: %s, not %s", name, dns.RcodeToString[m.Rcode], dns.RcodeToString[n.rcode])
		}
		if n.address == nil {
			if kind == missingNames && len(m.Answer) > 0 {
				return fmt.Errorf("%s: it should not exist: %v", name, m.Answer)
			}
			continue
		}
		if len(m.Answer) != 1 || m.Answer[0].Header().Name != name {
			return fmt.Errorf("%s: answer %v", name, m.Answer)
		}
		if a, ok := m.Answer[0].(*dns.A); !ok || a.A.String() != n.address(number).String() {
			return fmt.Errorf("%s: answer %v, not %s", name, m.Answer[0], n.address(number))
		}
	}
	return nil
}

// measureServer measures one server once.
func (p *nameServers) measureServer(ctx context.Context, s *server, round int) error {
	for _, kind := range []string{existingNames, missingNames} {
		if !slices.Contains(p.measures, kind) {
			continue
		}
		if err := p.checkAnswers(ctx, s, kind); err != nil {
			return fmt.Errorf("before the load: %w", err)
		}
		if err := p.measureNames(ctx, s, kind, round); err != nil {
			return fmt.Errorf("%s names: %w", kind, err)
		}
		if err := p.checkAnswers(ctx, s, kind); err != nil {
			return fmt.Errorf("after the load: %w", err)
		}
	}
	return nil
}

// measureNames finds the queries per second that the server answers, and the latency at a moderate rate.
func (p *nameServers) measureNames(ctx context.Context, s *server, kind string, round int) error {
	n := s.asked[kind]
	run := func(rate int, d time.Duration) (perfResult, error) {
		load := perf{server: s.address, rcode: dns.RcodeToString[n.rcode], questions: n.file, duration: d, rate: rate}
		if n.count == 0 { // as many fresh names as the server can answer in that time
			expected := float64(rate)
			if rate == 0 {
				expected = max(s.guess[kind], 2000)
			}
			count := int(expected * d.Seconds())
			load.questions, load.duration = filepath.Join(p.dir, s.name), 0
			if err := n.writeQuestions(load.questions, n.reserveNames(count), count); err != nil {
				return perfResult{}, err
			}
		}
		return load.runDnsperf(ctx, p.host)
	}
	if n.count > 0 { // query all names once before
		once := perf{server: s.address, rcode: dns.RcodeToString[n.rcode], questions: n.file}
		if _, err := once.runDnsperf(ctx, p.host); err != nil {
			return err
		}
	}
	warm, err := run(0, p.load/5)
	if err != nil {
		return err
	}
	s.guess[kind] = warm.rate
	var loaded, paced perfResult
	var spent time.Duration // by the server, under full load
	for _, m := range []struct {
		what string
		to   *perfResult
		rate int
		d    time.Duration
	}{{"queries per second", &loaded, 0, p.load}, {"latency", &paced, moderateRate, p.latency}} {
		disturbed, err := p.quiet.runQuietly(ctx, m.what, func() (err error) {
			profile := p.startProfile(ctx, s, kind, round, m.rate)
			before, err1 := processTime([]int{s.process.PID()})
			*m.to, err = run(m.rate, m.d)
			after, err2 := processTime([]int{s.process.PID()})
			if m.rate == 0 {
				spent = after - before
			}
			return errors.Join(err, err1, err2, profile())
		})
		if err != nil {
			return err
		}
		p.results.measured++
		if disturbed {
			p.results.disturbed++
		}
	}
	s.guess[kind] = loaded.rate
	p.addResult(s.name, resultQueries(kind), loaded.rate/1000)
	p.addResult(s.name, resultCPU(kind), spent.Seconds()*1e6/loaded.answers)
	p.addResult(s.name, resultMedianLatency(kind), toMilliseconds(quantile(paced.times, 0.5)))
	p.addResult(s.name, result99Latency(kind), toMilliseconds(quantile(paced.times, 0.99)))
	return nil
}

// addResult keeps and prints a result.
func (p *nameServers) addResult(name string, r result, value float64) {
	p.results.addValue(r, name, value)
	fmt.Printf("  %-44s %10s %s\n", r.title, r.formatValue(value), r.unit)
}

// startProfile takes a CPU profile of the server under full load in the first round. The returned function waits for
// it.
func (p *nameServers) startProfile(ctx context.Context, s *server, kind string, round, rate int) func() error {
	if s.profile == "" || round > 0 || rate > 0 {
		return func() error { return nil }
	}
	return profileCPU(ctx, p.host, s.profile, p.load, filepath.Join(p.profile, s.name+"-"+kind+".pprof"))
}
