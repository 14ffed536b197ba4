package main

// The command test: links as pods on each node see them.

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/connectivity"
)

// maxRows is the number of lines that people read. With more, only what is not ok has one.
const maxRows = 200

func newTestCommand(cluster *genericclioptions.ConfigFlags) *cobra.Command {
	choice := &contexts{cluster: cluster}
	o := connectivity.Options{}
	output := ""
	c := &cobra.Command{
		Use:   "test [CONTEXT]...",
		Short: "Test links from pods on each node: names, connections, pings",
		Long: `test runs a pod on each node of the clusters that is Ready and schedulable, whatever its taints. From each,
and for each link that is Up, it asks the cluster's DNS and kubelink for a name of the other cluster, asks for the name
_state, connects to the API server of the other cluster (without a service network: to a mesh service), and pings the
other cluster. With several contexts it tests both directions. What cannot be tested is said, with the reason.

The pods have the image of the broker, no rights, and are in kubelink's namespace. They are removed at the end, also
after Ctrl-C; those of a test that was killed end by themselves, and the next test removes them. A test has at most 100
nodes of a cluster, and 4000 pairs of node and link; it says what it leaves out.

You need, besides what status needs (list pods and kubelinks, get pods/proxy, create serviceaccounts/token): list nodes,
and in kubelink's namespace get, create and delete pods, get pods/log, and get services.

Exit codes: 0 all checks are ok, or not to be tested; 1 the command failed, 2 the command line is wrong, 3 a check
failed, or there was nothing to test, 4 an API server or a broker does not answer.`,
		Example: `  kubectl kubelink test                           # from all nodes of the cluster of the current context
  kubectl kubelink test c1 c2                     # both directions
  kubectl kubelink test c1 --link c2 --node node1 # one link, from one node
  kubectl kubelink test -A -o json | jq '.checks[] | select(.result == "failed")'`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkOutput(output, "", "json", "yaml", "wide"); err != nil {
				return err
			}
			if o.Timeout <= 0 {
				return usageError{fmt.Errorf("--timeout %s: want a time such as 60s", o.Timeout)}
			}
			targets, err := choice.choose(args)
			if err != nil {
				return err
			}
			o.Progress = c.ErrOrStderr()
			r, err := connectivity.Test(c.Context(), targets, o)
			if err != nil {
				return err
			}
			if err := printTest(c.OutOrStdout(), output, r); err != nil {
				return err
			}
			return exitOfTest(r)
		},
	}
	choice.addFlags(c)
	c.Flags().StringSliceVar(&o.Links, "link", nil, "names of the KubeLinks to test (default: all)")
	c.Flags().StringSliceVar(&o.Nodes, "node", nil, "names of the nodes to test from (default: all)")
	c.Flags().DurationVar(&o.Timeout, "timeout", time.Minute, "longest time of the test")
	c.Flags().StringVarP(&output, "output", "o", "", "json, yaml or wide")
	completeOutput(c, "json", "yaml", "wide")
	_ = c.RegisterFlagCompletionFunc("link", completeLinkFlag(cluster)) // the flag is there
	return c
}

func exitOfTest(r *connectivity.Report) error {
	switch {
	case r.Unanswered:
		return &exitError{code: exitUnanswered}
	case !r.OK:
		return &exitError{code: exitWrong}
	}
	return nil
}

// printTest writes a report.
func printTest(w io.Writer, format string, r *connectivity.Report) error {
	if format == "json" || format == "yaml" {
		return printValue(w, format, r)
	}
	t, paint, wide := newTable(w), newPainter(w), format == "wide"
	head := []string{"CONTEXT", "NODE", "LINK", "CHECK", "RESULT", "TIME"}
	if wide {
		head = append(head, "TARGET", "MESSAGE")
	}
	t.row(head...)
	numbers := map[connectivity.Result]int{}
	for i := range r.Checks {
		k := &r.Checks[i]
		numbers[k.Result]++
		if k.Result == connectivity.OK && len(r.Checks) > maxRows && !wide {
			continue
		}
		cells := []string{k.Context, orDash(k.Node), orDash(k.Link), k.Check, paintResult(paint, k.Result),
			describeRTT(k.Seconds)}
		if wide {
			cells = append(cells, orDash(k.Target), orDash(k.Message))
		}
		t.row(cells...)
	}
	t.flush()
	fmt.Fprintf(w, "\n%d ok, %d failed, %d not tested\n", numbers[connectivity.OK], numbers[connectivity.Failed],
		numbers[connectivity.NotTested])
	for _, text := range describeNotTested(r.Checks) {
		fmt.Fprintln(w, text)
	}
	for _, text := range r.LeftOut {
		fmt.Fprintln(w, "left out:", text)
	}
	printFindings(w, paint, r.Findings)
	return nil
}

func paintResult(paint painter, r connectivity.Result) string {
	switch r {
	case connectivity.OK:
		return paint.good(string(r))
	case connectivity.Failed:
		return paint.bad(string(r))
	}
	return paint.warn(string(r))
}

// describeNotTested has a line for each reason why checks were not made, with these checks. In the table it would make
// all rows too long.
func describeNotTested(checks []connectivity.Check) (lines []string) {
	names := map[string][]string{}
	var reasons []string
	for i := range checks {
		k := &checks[i]
		if k.Result != connectivity.NotTested {
			continue
		}
		if names[k.Message] == nil {
			reasons = append(reasons, k.Message)
		}
		if !slices.Contains(names[k.Message], k.Check) {
			names[k.Message] = append(names[k.Message], k.Check)
		}
	}
	for _, reason := range reasons {
		lines = append(lines, fmt.Sprintf("not tested: %s: %s", strings.Join(names[reason], ", "), reason))
	}
	return lines
}
