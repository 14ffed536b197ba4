package main

// The clusters that a command is about: contexts of the kubeconfig.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
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
	raw, err := c.cluster.ToRawKubeConfigLoader().RawConfig()
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
		config, err := configOf(c.cluster, name)
		if err != nil {
			t.Err = survey.NewContextError(name, err)
		}
		t.API = config
		targets = append(targets, t)
	}
	return targets, nil
}

// configOf is the way to the API server of a context, with the other flags of the command line. No name: as kubectl
// finds it.
func configOf(cluster *genericclioptions.ConfigFlags, name string) (*rest.Config, error) {
	raw, err := cluster.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return nil, err
	}
	if name != "" && raw.Contexts[name] == nil {
		return nil, refuseContext(slices.Sorted(maps.Keys(raw.Contexts)))
	}
	return flagsOfContext(cluster, name).ToRESTConfig()
}

// refuseContext says which contexts there are in place of one that is not there.
func refuseContext(names []string) error {
	const most = 10
	switch {
	case len(names) == 0:
		return errors.New("the kubeconfig has no contexts: name a file with --kubeconfig")
	case len(names) > most:
		names = append(names[:most:most], "others")
	}
	return fmt.Errorf("the kubeconfig has no such context, but %s", strings.Join(names, ", "))
}

// flagsOfContext are the flags of the command line for another context.
func flagsOfContext(given *genericclioptions.ConfigFlags, name string) *genericclioptions.ConfigFlags {
	f := genericclioptions.NewConfigFlags(true)
	f.Context = &name
	f.CacheDir, f.KubeConfig, f.Namespace, f.Timeout = given.CacheDir, given.KubeConfig, given.Namespace, given.Timeout
	f.ClusterName, f.APIServer, f.ProxyURL = given.ClusterName, given.APIServer, given.ProxyURL
	f.Insecure, f.CAFile, f.TLSServerName = given.Insecure, given.CAFile, given.TLSServerName
	f.AuthInfoName, f.BearerToken = given.AuthInfoName, given.BearerToken
	f.CertFile, f.KeyFile = given.CertFile, given.KeyFile
	f.Impersonate, f.ImpersonateUID = given.Impersonate, given.ImpersonateUID
	f.ImpersonateGroup, f.ImpersonateUserExtra = given.ImpersonateGroup, given.ImpersonateUserExtra
	f.DisableCompression = given.DisableCompression
	return f
}

// completionTime is how long completion may wait for an API server.
const completionTime = 2 * time.Second

// completeLink completes the only argument of a command: a link of the cluster.
func completeLink(cluster *genericclioptions.ConfigFlags) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return findLinks(cluster, *cluster.Context, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeLinkFlag completes a link of the first of the contexts, which are the arguments.
func completeLinkFlag(cluster *genericclioptions.ConfigFlags) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		name := append(args, *cluster.Context)[0]
		return findLinks(cluster, name, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

// findLinks returns the names of links to other clusters that begin so; none, if the API server does not tell.
func findLinks(cluster *genericclioptions.ConfigFlags, name, prefix string) (names []string) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	config, err := configOf(cluster, name)
	if err != nil {
		return nil
	}
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil
	}
	all, err := survey.ListLinks(ctx, api)
	if err != nil {
		return nil
	}
	for i := range all {
		l := &all[i]
		if strings.HasPrefix(l.Name, prefix) && l.Spec.Endpoint != v1alpha1.EndpointLocal {
			names = append(names, l.Name)
		}
	}
	return names
}
