package main

// The command diagnose: what is wrong, and what to do.

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
)

func newDiagnoseCommand(cluster *genericclioptions.ConfigFlags) *cobra.Command {
	o := &contexts{cluster: cluster}
	output := ""
	c := &cobra.Command{
		Use:   "diagnose [CONTEXT]...",
		Short: "Find out what is wrong with links, and what to do",
		Long: `diagnose asks the brokers of the clusters what they have found, and looks at what only a look from outside can tell:
pods that do not run, missing rights, links without a way back, networks that overlap. Each finding has its cause and
its remedy. With several contexts it compares both ends of links.

Exit codes: 0 there is no error (there may be warnings), 1 the command failed, 2 the command line is wrong, 3 there is
an error, 4 an API server or a broker does not answer.`,
		Example: `  kubectl kubelink diagnose            # the cluster of the current context
  kubectl kubelink diagnose c1 c2      # and both ends of the links between two`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkOutput(output, "", "json", "yaml"); err != nil {
				return err
			}
			targets, err := o.choose(args)
			if err != nil {
				return err
			}
			v := look(c.Context(), targets)
			if err := v.printDiagnosis(c.OutOrStdout(), output); err != nil {
				return err
			}
			return v.exit()
		},
	}
	o.addFlags(c)
	c.Flags().StringVarP(&output, "output", "o", "", "json or yaml")
	completeOutput(c, "json", "yaml")
	return c
}

// printDiagnosis writes the findings.
func (v *statusView) printDiagnosis(w io.Writer, format string) error {
	if format == "json" || format == "yaml" {
		return printValue(w, format, v.Findings)
	}
	v.printChecks(w)
	printFindings(w, newPainter(w), v.Findings)
	return nil
}

// printChecks writes what was looked at.
func (v *statusView) printChecks(w io.Writer) {
	t, paint := newTable(w), newPainter(w)
	t.row("CONTEXT", "BROKER", "CHECK", "RESULT")
	for i := range v.Clusters {
		a := &v.Clusters[i]
		if len(a.Brokers) == 0 {
			t.row(a.Context, "-", "broker", paint.bad("does not answer"))
		}
		for j := range a.Brokers {
			b := &a.Brokers[j]
			if b.Report == nil {
				t.row(a.Context, b.Name, "broker", paint.bad("does not answer"))
				continue
			}
			for _, c := range b.Report.Checks {
				t.row(a.Context, b.Name, c.Name, describeCheck(paint, c))
			}
		}
	}
	t.flush()
	if len(v.Findings) == 0 {
		fmt.Fprintln(w, "\nnothing is wrong")
	}
}

func describeCheck(paint painter, c diagnosis.Check) string {
	if c.OK {
		return paint.good("ok")
	}
	return paint.bad("failed")
}
