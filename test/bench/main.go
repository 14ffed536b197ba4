// Bench measures kubelink on the test bed. Its exit code is 1 if a run had errors or did not keep a promise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == wireguardCommand {
		os.Exit(runWireguard(os.Args[2]))
	}
	if len(os.Args) == 4 && os.Args[1] == relayCommand {
		os.Exit(runRelay(os.Args[2], os.Args[3]))
	}
	if len(os.Args) == 4 && os.Args[1] == attackerCommand {
		os.Exit(runAttacker(os.Args[2], os.Args[3]))
	}
	o := parseFlags()
	os.Exit(testbed.Main(func() int {
		if err := o.runAll(); err != nil {
			fmt.Fprintln(os.Stderr, "\nbench: FAILED:", err)
			return 1
		}
		return 0
	}))
}

// choice says what to measure of which contenders, and how thoroughly.
type choice struct {
	contenders, measures []string
	rounds               int
	quick, hold          bool
	profile              string // folder for CPU profiles
	before               string // path of an earlier binary; empty: there is none
}

// options are the flags.
type options struct {
	choice
	what          []string
	write, strict bool
}

// comparison is a benchmark of several contenders that take turns.
type comparison struct {
	*layout
	measures []string
	measure  func(context.Context, choice) (*results, error)
}

var comparisons = []comparison{
	{&dataplaneLayout, dataplaneMeasures, measureDataplane},
	{&dnsLayout, dnsMeasures, measureDNS},
}

func parseFlags() (o options) {
	what := []string{"apply", "services", "attack"}
	var names, measures []string
	for _, c := range comparisons {
		what = append(what, c.section)
		names = append(names, c.entrantNames()...)
		measures = append(measures, c.measures...)
	}
	defineList(&o.what, "what", "benchmarks", what)
	defineList(&o.contenders, "only", "contenders", names)
	defineList(&o.measures, "measures", "measures", measures)
	flag.IntVar(&o.rounds, "rounds", 0, "how often every contender is measured (default 5, quick 2)")
	flag.BoolVar(&o.quick, "quick", false, "shorter, and less exact: under three minutes each")
	flag.BoolVar(&o.hold, "hold", false, "tell PIDs and how to get at them, and measure until Ctrl-C (dataplane)")
	flag.StringVar(&o.profile, "profile", "",
		"`folder` for CPU profiles of the processes compared, per measure of the first round")
	flag.BoolVar(&o.write, "write", false, "write the results into README.md and *.svg in test/bench")
	flag.BoolVar(&o.strict, "strict", false, "fail when a promise is not kept")
	flag.StringVar(&o.before, "before", "",
		"path of an earlier kubelink `binary`, for the contenders *-before; all tunnels restart before each turn")
	flag.Parse()
	set := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { set[f.Name] = true })
	err := o.checkBefore(set["only"])
	if flag.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		flag.Usage()
		os.Exit(2)
	}
	if o.rounds == 0 {
		o.rounds = 5
		if o.quick {
			o.rounds = 2
		}
	}
	// A contender or a measure in a flag also chooses its comparison.
	if !set["what"] && (set["only"] || set["measures"]) {
		o.what = nil
		for _, c := range comparisons {
			if mine := c.narrowChoice(o.choice); len(mine.contenders) > 0 && len(mine.measures) > 0 {
				o.what = append(o.what, c.section)
			}
		}
	} else if !set["what"] && set["hold"] {
		o.what = []string{dataplaneLayout.section}
	}
	return o
}

// defineList defines a flag whose value is a list of known words. Without the flag, the list has all of them.
func defineList(to *[]string, name, usage string, known []string) {
	*to = known
	flag.Func(name, fmt.Sprintf("comma-separated `%s`, of %s (default all)", usage, strings.Join(known, ",")),
		func(s string) error {
			*to = strings.Split(s, ",")
			for _, item := range *to {
				if !slices.Contains(known, item) {
					return fmt.Errorf("%q is none of %s", item, strings.Join(known, ","))
				}
			}
			return nil
		})
}

// checkBefore makes the path of -before absolute. Without it, checkBefore removes the contenders that need it, so that
// tables and plots do not know them. only says that a flag has chosen the contenders.
func (o *options) checkBefore(only bool) (err error) {
	if o.before != "" {
		if o.write {
			return errors.New("-write cannot go with -before: the README has no earlier binary")
		}
		if o.before, err = filepath.Abs(o.before); err == nil {
			_, err = exec.LookPath(o.before)
		}
		return err
	}
	for _, c := range comparisons {
		for name := range c.present {
			if only && slices.Contains(o.contenders, name) {
				return fmt.Errorf("-only %s needs -before", name)
			}
		}
		c.entrants = slices.DeleteFunc(c.entrants, func(e entrant) bool { return c.present[e.name] != "" })
	}
	return nil
}

// entrantNames returns the names of the entrants.
func (l *layout) entrantNames() (names []string) {
	for _, e := range l.entrants {
		names = append(names, e.name)
	}
	return names
}

// narrowChoice returns the part of the choice that concerns this comparison.
func (c comparison) narrowChoice(o choice) choice {
	other := func(known []string) func(string) bool {
		return func(name string) bool { return !slices.Contains(known, name) }
	}
	o.contenders = slices.DeleteFunc(slices.Clone(o.contenders), other(c.entrantNames()))
	o.measures = slices.DeleteFunc(slices.Clone(o.measures), other(c.measures))
	return o
}

func (o options) runAll() error {
	ctx := context.Background()
	chosen := slices.DeleteFunc(slices.Clone(comparisons),
		func(c comparison) bool { return !slices.Contains(o.what, c.section) })
	if o.write {
		for _, c := range chosen { // before the measures, which take minutes
			if _, _, _, err := c.splitReadme(); err != nil {
				return err
			}
		}
	}
	if slices.Contains(o.what, "apply") {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		if err := measureApply(ctx); err != nil {
			return err
		}
	}
	if slices.Contains(o.what, "services") {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		if err := measureServices(ctx); err != nil {
			return err
		}
	}
	if slices.Contains(o.what, "attack") {
		if err := measureAttacks(ctx, o.choice); err != nil {
			return err
		}
	}
	kept := true
	for _, c := range chosen {
		r, err := c.runComparison(ctx, c.narrowChoice(o.choice))
		if err != nil {
			return fmt.Errorf("%s: %w", c.section, err)
		}
		kept = r.printTables() && kept
		if o.write {
			if err := r.writeReadme(); err != nil {
				return err
			}
		}
	}
	if o.strict && !kept {
		return errors.New("not all promises are kept")
	}
	return nil
}

func (c comparison) runComparison(ctx context.Context, o choice) (*results, error) {
	if !o.hold {
		// This is far more than the bench needs: a bench that hangs has failed.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(3+o.rounds*len(o.contenders))*time.Minute)
		defer cancel()
	}
	return c.measure(ctx, o)
}

const rounds = 20

// measureApply measures the time from the start of `kubectl apply` of a KubeLink to the first packet and back, and to
// the first right DNS answer. This includes kubectl's own time, which measureApply shows separately.
func measureApply(ctx context.Context) error {
	f, err := fleet.New(ctx, 2, fleet.Options{})
	if err != nil {
		return err
	}
	defer f.Close()
	one, two := f.Brokers[0], f.Brokers[1]
	server, err := two.Pod(ctx, "server", testbed.PodOptions{})
	if err != nil {
		return err
	}
	if err := server.ServeUDPEcho(9000); err != nil {
		return err
	}
	service, err := two.Service(ctx, "server", map[string]string{"app": "server"},
		[]corev1.ServicePort{testbed.UDPPort(9000)}, testbed.ServiceOptions{})
	if err != nil {
		return err
	}
	client, err := one.Pod(ctx, "client", testbed.PodOptions{})
	if err != nil {
		return err
	}
	if err := f.Mesh(ctx); err != nil {
		return err
	}

	object := two.LinkTo()
	object.APIVersion, object.Kind = "kubelink.mandelsoft.org/v1alpha1", "KubeLink"
	manifest, err := yaml.Marshal(object)
	if err != nil {
		return err
	}
	times, err := timeApplies(ctx, f, client, service, string(manifest))
	if err != nil {
		return err
	}
	return times.print()
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

// print prints the times. A maximum over a second is an error.
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
		if maximum > time.Second {
			late = errors.Join(late, fmt.Errorf("%s: maximum %s is over a second", row.what, maximum))
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
