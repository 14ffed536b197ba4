package main

// The command ping: whether packets of a size get through a link.

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/broker/echo"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/survey"
)

// pingTime is how long a command may take: as many seconds as pings, and those of API server and broker.
const pingTime = 20 * time.Second

func newPingCommand(cluster *genericclioptions.ConfigFlags) *cobra.Command {
	output, size, count := "", 0, 0
	c := &cobra.Command{
		Use:   "ping LINK",
		Short: "Ping the other end of a link, with packets of a size",
		Long: `ping has the broker that holds the links send ICMP echo requests to the cluster address of a link. Packets are
never fragmented on their way, so --size tells whether that size gets through.

Exit codes: 0 all packets were answered, 1 the command failed, 2 the command line is wrong, 3 packets were lost.`,
		Example: `  kubectl kubelink ping kubelink2
  kubectl kubelink ping kubelink2 --size 1420`,
		Args:              oneLink,
		ValidArgsFunction: completeLink(cluster),
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkOutput(output, "", "json", "yaml"); err != nil {
				return err
			}
			if err := (&echo.Request{Size: size, Count: count}).Check(); err != nil {
				return usageError{fmt.Errorf("--%w", err)}
			}
			targets, err := (&contexts{cluster: cluster}).choose(nil)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), pingTime)
			defer cancel()
			result, err := survey.Ping(ctx, targets[0], args[0], size, count)
			if err != nil {
				return err
			}
			if output != "" {
				err = printValue(c.OutOrStdout(), output, result)
			} else {
				printPing(c.OutOrStdout(), result)
			}
			if err == nil && result.Received < count {
				err = &exitError{code: exitWrong}
			}
			return err
		},
	}
	c.Flags().IntVar(&size, "size", echo.DefaultSize, "size of IP packets with their headers, bytes")
	c.Flags().IntVar(&count, "count", 3, "number of packets")
	c.Flags().StringVarP(&output, "output", "o", "", "json or yaml")
	completeOutput(c, "json", "yaml")
	return c
}

// printPing writes a result for people.
func printPing(w io.Writer, r *diagnosis.PingResult) {
	fmt.Fprintf(w, "%s (%s): %d of %d packets of %d bytes answered", r.Link, r.Address, r.Received, r.Sent, r.Size)
	if len(r.Times) > 0 {
		sum := 0.0
		for _, t := range r.Times {
			sum += t
		}
		fmt.Fprintf(w, ", after %s/%s/%s (min/avg/max)", describeRTT(slices.Min(r.Times)),
			describeRTT(sum/float64(len(r.Times))), describeRTT(slices.Max(r.Times)))
	}
	if r.Problem != "" {
		fmt.Fprint(w, ": ", r.Problem)
	}
	if r.Received == 0 && r.Size <= echo.DefaultSize { // it is not the size
		fmt.Fprint(w, "; kubectl kubelink diagnose finds the cause")
	}
	fmt.Fprintln(w)
}
