// Bench measures kubelink on the test bed. Its exit code is 1 if a run had errors or did not keep a promise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

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
	measure func(context.Context, choice) (*results, error)
}

var comparisons = []comparison{
	{&dataplaneLayout, measureDataplane},
	{&dnsLayout, measureDNS},
}

func parseFlags() (o options) {
	what := []string{"apply", "scale", "services", "attack"}
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
		"`folder` for CPU profiles of the processes measured: per measure of the first round; of reconciliations (scale)")
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
	if err == nil && o.profile != "" {
		err = os.MkdirAll(o.profile, 0o755)
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
	if slices.Contains(o.what, "scale") {
		ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
		defer cancel()
		if err := measureScale(ctx, o.choice); err != nil {
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
