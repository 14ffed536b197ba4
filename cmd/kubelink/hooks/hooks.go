// Package hooks has the commands that pods of kubelink's image run besides CoreDNS: for the hooks of the Helm chart,
// uninstall, before Helm deletes anything, and check, for `helm test`; and probe, for `kubectl kubelink test`.
package hooks

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/cmd/kubelink/probe"
)

// Commands by name. Each takes its arguments, and prints what it does.
var commands = map[string]func(ctx context.Context, args []string, out io.Writer) error{
	"uninstall":   runUninstall,
	"check":       runCheck,
	probe.Command: probe.Run,
}

// Run runs the command that the arguments of the program name. It says whether there was one.
func Run(args []string) (ran bool, err error) {
	if len(args) < 2 || commands[args[1]] == nil {
		return false, nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := commands[args[1]](ctx, args[2:], os.Stdout); err != nil {
		return true, fmt.Errorf("%s: %w", args[1], err)
	}
	return true, nil
}

// parseFlags reads arguments. All commands have the flag kubeconfig, whose value it returns.
func parseFlags(flags *flag.FlagSet, args []string) (kubeconfig string, err error) {
	flags.StringVar(&kubeconfig, "kubeconfig", "", "file of the access to the cluster; empty: that of the pod")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	if flags.NArg() > 0 {
		return "", fmt.Errorf("argument %q: want flags only", flags.Arg(0))
	}
	return kubeconfig, nil
}

// connect returns a client of the cluster's API server, without a cache.
func connect(kubeconfig string) (client.Client, error) {
	load := rest.InClusterConfig // of the pod
	if kubeconfig != "" {
		load = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", kubeconfig) }
	}
	config, err := load()
	if err != nil {
		return nil, err
	}
	config.QPS = -1 // commands bound their requests themselves; the default, 5 per second, is too slow for many links
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		scheme.AddToScheme, v1alpha1.AddToScheme, apiextensions.AddToScheme,
	} {
		if err := add(types); err != nil {
			return nil, err
		}
	}
	return client.New(config, client.Options{Scheme: types})
}
