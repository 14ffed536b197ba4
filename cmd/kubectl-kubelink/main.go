// kubectl-kubelink is the command line of users: with it in the PATH, kubectl has the command "kubectl kubelink". It
// talks to the API servers of kubeconfig contexts, as kubectl does, and takes kubectl's flags for them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "unknown"

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2 // the command line is wrong
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
	if err != nil && err.Error() != "" {
		fmt.Fprintln(os.Stderr, "kubectl-kubelink:", err)
	}
	return exitCode(err)
}

// exitCode is the code for the result of a command.
func exitCode(err error) int {
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &usageError{}):
		return exitUsage
	}
	return exitFailed
}

func newCommand() *cobra.Command {
	cluster := genericclioptions.NewConfigFlags(true)
	*cluster.Namespace = defaultNamespace
	root := &cobra.Command{
		Use:           "kubectl-kubelink",
		Short:         "Look at links between clusters, and make them",
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl kubelink"},
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
	}
	cluster.AddFlags(root.PersistentFlags())
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	root.AddCommand(newStatusCommand(cluster), newDiagnoseCommand(cluster), newTestCommand(cluster),
		newPingCommand(cluster), newWGConfigCommand(cluster),
		newMigrateCommand(),
		newConnectCommand(cluster), newDisconnectCommand(cluster),
		newGatherCommand(cluster), newVersionCommand(cluster))
	return root
}
