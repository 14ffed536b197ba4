package main

// The command migrate: what a former kubelink was started with, as a Corefile and objects.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/migrate"
)

// migrateOptions are the flags of the command.
type migrateOptions struct {
	migrate.Options
	file   string
	output string
	table  bool
}

func newMigrateCommand() *cobra.Command {
	o := &migrateOptions{}
	c := &cobra.Command{
		Use:   "migrate {-f FILE | -- FLAGS...}",
		Short: "Turn what a former kubelink was started with into a Corefile and objects",
		Long: `migrate reads the Deployment and the DaemonSet of a former kubelink, or its flags, and prints the Corefile for
a broker that serves the same links. With -o yaml it prints all objects to apply: the same Corefile, the rights that its
properties need, Deployment, services, and the DaemonSet of the router. What is different, it says as comments.

It changes nothing. KubeLinks and other objects of the former kubelink go on as they are.`,
		Example: `  kubectl -n kube-system get deployments,daemonsets -o yaml | kubectl kubelink migrate -f -
  kubectl kubelink migrate -- --controllers=broker --mode=bridge --secret=kubelink --node-cidr=10.250.0.0/16
  kubectl kubelink migrate -f former.yaml --image=REGISTRY/kubelink:v1 --mesh-cidr=192.168.0.0/24 -o yaml > new.yaml
  kubectl kubelink migrate --table   # where each former flag is now`,
		RunE: func(c *cobra.Command, args []string) error { return o.run(c, args) },
	}
	c.Flags().StringVarP(&o.file, "filename", "f", "", "YAML of the former Deployment and DaemonSet, or the former "+
		"configuration file; -: standard input")
	c.Flags().StringVarP(&o.output, "output", "o", "corefile", "corefile, yaml or json")
	c.Flags().BoolVar(&o.table, "table", false, "print where each flag of the former kubelink is now")
	c.Flags().StringVar(&o.Image, "image", "", "image of kubelink, for -o yaml and json")
	c.Flags().StringVar(&o.Endpoint, "endpoint", "", "name of this cluster for its peers (default: flag dns-name)")
	c.Flags().StringSliceVar(&o.MeshCIDRs, "mesh-cidr", nil,
		"networks of the meshes (default: that of flag link-address)")
	completeOutput(c, "corefile", "yaml", "json")
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; flags of the former kubelink come after --: %s", err, c.UseLine())}
	})
	return c
}

func (o *migrateOptions) run(c *cobra.Command, args []string) error {
	if err := checkOutput(o.output, "corefile", "yaml", "json"); err != nil {
		return err
	}
	if o.table {
		return printFlags(c.OutOrStdout(), o.output)
	}
	source, err := o.readSource(c.InOrStdin(), args)
	if err != nil {
		return err
	}
	result, err := migrate.Migrate(source, o.Options)
	if err != nil {
		return usageError{err}
	}
	if o.output == "corefile" {
		for _, n := range result.Notes {
			fmt.Fprintln(c.OutOrStdout(), "#", n)
		}
		_, err := fmt.Fprint(c.OutOrStdout(), result.Corefile)
		return err
	}
	objects, err := result.Objects()
	if err != nil {
		return usageError{err}
	}
	for _, n := range result.Notes {
		fmt.Fprintln(c.ErrOrStderr(), "#", n)
	}
	return printObjects(c.OutOrStdout(), o.output, objects)
}

// readSource reads the file, or the flags after --.
func (o *migrateOptions) readSource(stdin io.Reader, args []string) (*migrate.Source, error) {
	source := &migrate.Source{}
	switch {
	case o.file == "" && len(args) == 0:
		return nil, usageError{errors.New("nothing to migrate: give the former Deployment with -f, or its flags after --")}
	case o.file != "" && len(args) > 0:
		return nil, usageError{fmt.Errorf("both -f %s and flags %q are given: keep one", o.file, args)}
	case len(args) > 0:
		if err := source.ReadArguments(args); err != nil {
			return nil, usageError{err}
		}
		return source, nil
	case o.file != "-":
		f, err := os.Open(o.file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		stdin = f
	}
	return source, source.ReadYAML(stdin)
}

// printFlags prints where each former flag is now.
func printFlags(out io.Writer, format string) error {
	if format != "corefile" {
		return printValue(out, format, migrate.Flags())
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FLAG\tNOW\tWHAT\tNOTE")
	for _, f := range migrate.Flags() {
		fmt.Fprintf(w, "--%s\t%s\t%s\t%s\n", f.Name, f.Where, f.What, f.Note)
	}
	return w.Flush()
}
