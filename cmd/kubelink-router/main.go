// kubelink-router leads packets for the meshes from one node of a cluster to the gateway. It is a DaemonSet, and takes
// the flags of the router before it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mandelsoft/kubelink/router"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "unknown"

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2 // a flag has a bad value
)

// usageError is an error of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() { os.Exit(runCommand()) }

// runCommand returns the exit code.
func runCommand() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newCommand().ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "kubelink-router:", err)
	if bad := (&router.FlagError{}); errors.As(err, &usageError{}) || errors.As(err, &bad) {
		return exitUsage
	}
	return exitFailed
}

func newCommand() *cobra.Command {
	o := &options{}
	c := &cobra.Command{
		Use:   "kubelink-router --node-cidr CIDR",
		Short: "Lead packets for the meshes from this node to the gateway",
		Long: `kubelink-router sets a route on its node for each network of the meshes: via the node of the gateway, or, on
that node, to the pod of the gateway. Without a gateway these networks are unreachable. Routes and rules have the
protocol 114 (ip route show table all proto 114). Where the gateway wants a VXLAN, there are the device klvxlan and
chains KLROUTER-VXLAN-*, too. Nothing else is touched. All that stays when the process ends, and goes with the
DaemonSet or with --cleanup. It needs CAP_NET_ADMIN in the network namespace of the node.

Flags also have the form --router.NAME, which wins. Flags of a former router that mean nothing here, and flags of
the form --broker.NAME, are accepted with a warning.`,
		Args:          refuseArguments,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.run(c.Context(), c.Flags())
		},
	}
	c.Flags().SortFlags = false
	o.addFlags(c.Flags())
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see kubelink-router --help", err)}
	})
	return c
}

// refuseArguments says what is wrong with a word that belongs to no flag.
func refuseArguments(_ *cobra.Command, words []string) error {
	if len(words) == 0 {
		return nil
	}
	return usageError{fmt.Errorf("%q belongs to no flag: leave it out, or write --NAME=VALUE; "+
		"see kubelink-router --help", words[0])}
}
