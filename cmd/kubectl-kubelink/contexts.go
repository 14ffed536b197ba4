package main

// The clusters that a command is about: contexts of the kubeconfig.

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/survey"
)

// contexts are flags and arguments that choose clusters.
type contexts struct {
	cluster *genericclioptions.ConfigFlags
	all     bool
}

func (c *contexts) addFlags(command *cobra.Command) {
	command.Flags().BoolVarP(&c.all, "all-contexts", "A", false, "ask the clusters of all contexts of the kubeconfig")
	command.ValidArgsFunction = completeContexts(c.cluster)
}

// choose finds the targets of a command: the named contexts, all of them, or else the one that kubectl would use.
func (c *contexts) choose(args []string) ([]survey.Target, error) {
	loader := c.cluster.ToRawKubeConfigLoader()
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, err
	}
	switch {
	case c.all && len(args) > 0:
		return nil, usageError{fmt.Errorf("--all-contexts and names of contexts exclude each other")}
	case c.all:
		args = slices.Sorted(maps.Keys(raw.Contexts))
		if len(args) == 0 {
			return nil, fmt.Errorf("the kubeconfig has no contexts: name a file with --kubeconfig")
		}
	case len(args) == 0:
		config, err := c.cluster.ToRESTConfig()
		if err != nil {
			return nil, err
		}
		name := cmp.Or(*c.cluster.Context, raw.CurrentContext, "current")
		return []survey.Target{{Context: name, Namespace: *c.cluster.Namespace, API: config}}, nil
	}
	var targets []survey.Target
	for _, name := range args {
		if slices.ContainsFunc(targets, func(t survey.Target) bool { return t.Context == name }) {
			continue
		}
		t := survey.Target{Context: name, Namespace: *c.cluster.Namespace}
		config, err := clientcmd.NewNonInteractiveClientConfig(
			raw, name, &clientcmd.ConfigOverrides{}, loader.ConfigAccess()).ClientConfig()
		if err != nil {
			t.Err = survey.NewContextError(name, err)
		}
		t.API = config
		targets = append(targets, t)
	}
	return targets, nil
}
