// kubectl-kubelink is the command line of users: with it in the PATH, kubectl has the command "kubectl kubelink". It
// talks to the API servers of kubeconfig contexts, as kubectl does, and takes kubectl's flags for them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
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
	root := newCommand()
	root.SetOut(plainWriter{os.Stdout})
	root.SetErr(plainWriter{os.Stderr})
	err := root.ExecuteContext(ctx)
	if err != nil && err.Error() != "" {
		fmt.Fprintln(root.ErrOrStderr(), "kubectl-kubelink:", err)
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
		Use:   "kubectl-kubelink",
		Short: "Look at links between clusters, and make them",
		Example: `  kubectl kubelink connect c1 c2     # link the clusters of two contexts of the kubeconfig
  kubectl kubelink status c1 c2      # how their links are
  kubectl kubelink diagnose c1 c2    # what is wrong, and what to do
  kubectl kubelink test c1 c2        # whether pods on all nodes reach the other cluster`,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl kubelink"},
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          refuseCommand,

		SuggestionsMinimumDistance: 2,
	}
	cluster.AddFlags(root.PersistentFlags())
	root.SetUsageTemplate(shortenUsage(root.UsageTemplate()))
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

// refuseCommand runs when the first argument is no command.
func refuseCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	hint := "see " + c.CommandPath() + " --help"
	if similar := c.SuggestionsFor(args[0]); len(similar) > 0 {
		hint = "did you mean " + strings.Join(similar, " or ") + "?"
	}
	return usageError{fmt.Errorf("there is no command %q: %s", args[0], hint)}
}

// shortenUsage takes kubectl's twenty flags out of the help of each command: that of the program has them.
func shortenUsage(template string) string {
	return strings.Replace(template, `

Global Flags:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}`, `

The flags of kubectl for access to a cluster count, too, such as --kubeconfig, --context, --namespace and --as:
"kubectl kubelink --help" has them all.`, 1)
}

// oneLink checks the arguments of a command about a link.
func oneLink(c *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("want the name of one link, got %d: %s LINK", len(args), c.CommandPath())}
	}
	return nil
}
