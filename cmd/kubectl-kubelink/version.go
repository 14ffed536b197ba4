package main

// The command version: of this program, and of what is installed in clusters.

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// versions are what the command prints.
type versions struct {
	Program  string            `json:"program"`
	Go       string            `json:"go"`
	Clusters []clusterVersions `json:"clusters,omitempty"`
}

// clusterVersions are those in a cluster. Fields are empty where there is nothing.
type clusterVersions struct {
	Context string `json:"context"`
	Broker  string `json:"broker,omitempty"` // its image
	Router  string `json:"router,omitempty"` // its image
	CRDs    string `json:"crds,omitempty"`
	Error   string `json:"error,omitempty"`
}

func newVersionCommand(cluster *genericclioptions.ConfigFlags) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "version [CONTEXT...]",
		Short: "Print the version of this program, and what is installed in clusters",
		Example: `  kubectl kubelink version
  kubectl kubelink version c1 c2 -o json`,
		ValidArgsFunction: completeContexts(cluster),
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkOutput(output, "", "yaml", "json"); err != nil {
				return err
			}
			v := versions{Program: version}
			if info, ok := debug.ReadBuildInfo(); ok {
				v.Go = info.GoVersion
			}
			failed := 0
			for _, name := range args {
				r := readVersions(c.Context(), cluster, name)
				if v.Clusters = append(v.Clusters, r); r.Error != "" {
					failed++
				}
			}
			if err := v.print(c.OutOrStdout(), output); err != nil || failed == 0 {
				return err
			}
			return fmt.Errorf("%d of %d clusters do not answer", failed, len(args))
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "yaml or json")
	completeOutput(c, "yaml", "json")
	return c
}

// readVersions reads what is installed.
func readVersions(ctx context.Context, cluster *genericclioptions.ConfigFlags, name string) clusterVersions {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	v := clusterVersions{Context: name}
	config, err := configOf(cluster, name)
	if err == nil {
		err = v.read(ctx, config, *cluster.Namespace)
	}
	if err != nil {
		v.Error = err.Error()
	}
	return v
}

func (v *clusterVersions) read(ctx context.Context, config *rest.Config, namespace string) error {
	api, err := newClient(config)
	if err != nil {
		return err
	}
	var broker appsv1.Deployment
	if err := api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: installation}, &broker); err == nil {
		v.Broker = broker.Spec.Template.Spec.Containers[0].Image
	} else if client.IgnoreNotFound(err) != nil {
		return err
	}
	var router appsv1.DaemonSet
	err = api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: installation + "-router"}, &router)
	if err == nil {
		v.Router = router.Spec.Template.Spec.Containers[0].Image
	} else if client.IgnoreNotFound(err) != nil {
		return err
	}
	crd := &unstructured.Unstructured{}
	crd.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1",
		Kind: "CustomResourceDefinition"})
	err = api.Get(ctx, client.ObjectKey{Name: "kubelinks.kubelink.mandelsoft.org"}, crd)
	if v.CRDs = crd.GetAnnotations()["kubelink.mandelsoft.org/crd-version"]; err == nil && v.CRDs == "" {
		v.CRDs = "unknown"
	}
	return client.IgnoreNotFound(err)
}

func (v *versions) print(out io.Writer, format string) error {
	if format != "" {
		return printValue(out, format, v)
	}
	fmt.Fprintf(out, "kubectl-kubelink %s (%s)\n", v.Program, v.Go)
	if len(v.Clusters) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CONTEXT\tBROKER\tROUTER\tCRDS\tERROR")
	for _, c := range v.Clusters {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", c.Context, cmp.Or(c.Broker, "-"), cmp.Or(c.Router, "-"),
			cmp.Or(c.CRDs, "-"), c.Error)
	}
	return w.Flush()
}
