// Package connectivity tests links as pods see them: on each node of each cluster a pod asks for names of the other
// clusters, connects to a service there, and pings them. The pods run `kubelink probe` from the image of the broker,
// in its namespace, and are removed at the end.
//
// Users need, besides what the package survey says: list nodes, and in kubelink's namespace get, list, create and
// delete pods, get pods/log, and get services.
package connectivity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/survey"
	"github.com/mandelsoft/kubelink/cmd/kubelink/probe"
)

// Result is the end of a check.
type Result string

// The results.
const (
	OK        Result = "ok"
	Failed    Result = "failed"
	NotTested Result = "not tested" // Message says why
)

// Checks besides those of the package probe.
const (
	checkBroker = "broker"
	checkLinks  = "links"
	checkState  = "state"
	checkNode   = "node"
	checkPod    = "pod"
)

// Check is a check with its result.
type Check struct {
	Context string  `json:"context"`
	Node    string  `json:"node,omitempty"` // empty: of all nodes
	Link    string  `json:"link,omitempty"` // empty: of all links
	Check   string  `json:"check"`
	Result  Result  `json:"result"`
	Seconds float64 `json:"seconds,omitempty"` // until the result
	Target  string  `json:"target,omitempty"`  // the name or address that was tried
	Message string  `json:"message,omitempty"` // why it has failed, or was not tested; one line
}

// Report is the result of all checks.
type Report struct {
	OK         bool             `json:"ok"` // something was tested, and nothing has failed
	Unanswered bool             `json:"unanswered,omitempty"`
	Checks     []Check          `json:"checks"`
	LeftOut    []string         `json:"leftOut,omitempty"` // what exceeds the bounds of a test
	Findings   []survey.Finding `json:"findings"`
}

// Options choose what is tested.
type Options struct {
	Links, Nodes []string // by name; empty: all of them
	Timeout      time.Duration
	Progress     io.Writer
}

// Test tests clusters. Its pods are gone at the end, also if ctx ends. An error says that nothing could be tested.
func Test(ctx context.Context, targets []survey.Target, o Options) (*Report, error) {
	limited, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	answers := survey.Ask(limited, targets)
	links := survey.Links(answers)
	for _, name := range o.Links {
		if !slices.ContainsFunc(links, func(l survey.Link) bool { return l.Name == name }) {
			return nil, fmt.Errorf("no cluster has a link %s: kubectl kubelink status shows their names", name)
		}
	}
	say := newProgress(o.Progress)
	clusters := make([]*cluster, len(targets))
	var all sync.WaitGroup
	for i := range targets {
		c := &cluster{Target: targets[i], options: &o}
		c.say = func(format string, args ...any) { say(c.Context + ": " + fmt.Sprintf(format, args...)) }
		for _, l := range links {
			if l.Context == c.Context && (len(o.Links) == 0 || slices.Contains(o.Links, l.Name)) {
				c.links = append(c.links, l)
			}
		}
		clusters[i] = c
		all.Go(func() { c.testLinks(limited, &answers[i]) })
	}
	all.Wait()
	if ctx.Err() != nil {
		return nil, errors.New("interrupted; the pods of the test are removed")
	}
	return newReport(clusters), nil
}

// newProgress returns a function that prints lines.
func newProgress(w io.Writer) func(line string) {
	var mu sync.Mutex // one line at a time
	return func(line string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(w, line)
	}
}

// newReport puts the checks of clusters together.
func newReport(clusters []*cluster) *Report {
	r := &Report{Checks: []Check{}, Findings: []survey.Finding{}}
	good := false
	for _, c := range clusters {
		slices.SortStableFunc(c.checks, func(a, b Check) int {
			return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Link, b.Link),
				cmp.Compare(slices.Index(probe.Checks, a.Check), slices.Index(probe.Checks, b.Check)))
		})
		r.Checks = append(r.Checks, c.checks...)
		for _, text := range c.leftOut {
			r.LeftOut = append(r.LeftOut, c.Context+": "+text)
		}
		r.Unanswered = r.Unanswered || c.unanswered
		good = good || slices.ContainsFunc(c.checks, func(k Check) bool { return k.Result == OK })
		r.Findings = append(r.Findings, c.makeFindings()...)
	}
	r.OK = good && !slices.ContainsFunc(r.Checks, func(k Check) bool { return k.Result == Failed })
	return r
}

// cluster is one that is tested.
type cluster struct {
	survey.Target
	options    *Options
	links      []survey.Link // to test
	say        func(format string, args ...any)
	unanswered bool
	leftOut    []string

	pods *runner

	mu     sync.Mutex // guards checks
	checks []Check
}

// addCheck adds a check of the cluster.
func (c *cluster) addCheck(k Check) {
	k.Context, k.Message = c.Context, strings.ReplaceAll(k.Message, "\n", " ")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checks = append(c.checks, k)
}

// testLinks does all checks of the cluster.
func (c *cluster) testLinks(ctx context.Context, a *survey.Answer) {
	broker, err := findBroker(a)
	if err == nil {
		c.pods, err = newRunner(ctx, &c.Target, broker)
	}
	if err != nil {
		c.unanswered = true
		c.addCheck(Check{Check: checkBroker, Result: Failed, Message: err.Error()})
		return
	}
	c.pods.say = c.say
	var targets []target
	for i := range c.links {
		l := &c.links[i]
		if !survey.IsGood(l.State, l.Mode) {
			c.addCheck(Check{Link: l.Name, Check: checkState, Result: Failed,
				Message: strings.TrimSuffix(fmt.Sprintf("the link is %s: %s", l.State, l.Reason), ": ")})
			continue
		}
		targets = append(targets, newTarget(l, c.pods.dns != ""))
	}
	if len(c.links) == 0 {
		c.addCheck(Check{Check: checkLinks, Result: NotTested, Message: "the cluster has no links to test"})
	}
	if len(targets) == 0 {
		return
	}
	nodes, unfit, err := findNodes(ctx, c.pods, c.options.Nodes)
	for _, k := range unfit {
		c.addCheck(k)
	}
	if err != nil {
		c.unanswered = true
		c.addCheck(Check{Check: checkNode, Result: Failed, Message: err.Error()})
		return
	}
	for _, t := range targets {
		for check, why := range t.skipped {
			c.addCheck(Check{Link: t.Name, Check: check, Result: NotTested, Message: why})
		}
	}
	var tasks []task
	tasks, c.leftOut = planTasks(nodes, targets)
	c.runPods(ctx, tasks)
	c.pingInstead(ctx)
}

// runPods runs the pods of all nodes, and adds their results.
func (c *cluster) runPods(ctx context.Context, tasks []task) {
	c.pods.removeLeftovers(ctx)
	if len(tasks) > 0 {
		c.say("links to test: %d, from pods on nodes: %d", len(c.links), len(tasks))
	}
	var g errgroup.Group
	g.SetLimit(parallelPods)
	for i := range tasks {
		g.Go(func() error {
			t := &tasks[i]
			results, err := c.pods.runPod(ctx, i, t)
			c.addResults(t, results, err)
			return nil
		})
	}
	_ = g.Wait() // errors are results
}

// findBroker finds the pod of the broker that holds the links, or else of one that answers.
func findBroker(a *survey.Answer) (name string, err error) {
	err = cmp.Or(a.Err, a.PodsErr, a.TokenErr)
	for i := range a.Brokers {
		b := &a.Brokers[i]
		if b.Report == nil {
			err = cmp.Or(err, b.Err)
		} else if name == "" || b.Report.Lease.Active {
			name = b.Name
		}
	}
	switch {
	case name != "":
		return name, nil
	case err == nil:
		return "", fmt.Errorf("there is no pod of kubelink in namespace %s", a.Namespace)
	}
	return "", fmt.Errorf("no broker answers: %w", err)
}
