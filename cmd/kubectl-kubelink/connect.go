package main

// The commands connect and disconnect: two clusters, by the contexts of the kubeconfig.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/connect"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/install"
)

// image is set by the linker where the image is in a registry: -X main.image=REGISTRY/kubelink:v1.2.3.
var image string

// connectOptions are the flags of connect and disconnect.
type connectOptions struct {
	connect.Options
	cluster                           *genericclioptions.ConfigFlags
	timeout                           time.Duration
	output                            string
	mode, meshCIDR                    string
	serviceCIDRs, podCIDRs, nodeCIDRs map[string]string
}

func newConnectCommand(cluster *genericclioptions.ConfigFlags) *cobra.Command {
	o := &connectOptions{cluster: cluster}
	c := &cobra.Command{
		Use:   "connect CONTEXT1 CONTEXT2",
		Short: "Link two clusters, and install kubelink where it is missing",
		Long: `connect links two clusters, which are contexts of the kubeconfig. It installs kubelink where it is missing,
gives both a common CA, makes the LocalLinks and the links, lets the clusters' DNS find the names of the mesh, and waits
until both links are Up. What is there already stays: the command can be run again, also to link a third cluster to one of them.
Objects that it makes have the label app.kubernetes.io/managed-by: kubectl-kubelink.

The service networks of the clusters must not overlap. Where they do, --mesh-services links them without routes to
service networks: each cluster offers single services with MeshServices.`,
		Example: `  kubectl kubelink connect c1 c2 --dry-run
  kubectl kubelink connect c1 c2 --image REGISTRY/kubelink:v1
  kubectl kubelink connect c1 c2 --endpoint c1=kubelink.c1.example --endpoint c2=kubelink.c2.example`,
		Args:              twoContexts,
		ValidArgsFunction: completeContexts(cluster),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.complete(); err != nil {
				return usageError{err}
			}
			return o.run(c, args, connect.Connect)
		},
	}
	o.addCommonFlags(c)
	f := c.Flags()
	f.StringVarP(&o.output, "output", "o", "",
		"with --dry-run: yaml, all objects that would be applied, without secrets")
	completeOutput(c, "yaml")
	f.StringVar(&o.Image, "image", "", "image of kubelink (default: that of an installation, else "+
		defaultImage("kubelink:VERSION of this program")+")")
	f.StringVar(&o.mode, "mode", "", "bridge or wireguard (default: that of an installation, else bridge)")
	f.BoolVar(&o.PodMode, "pod-mode", false, "new brokers have a network of their own, not that of their node")
	f.StringVar(&o.meshCIDR, "mesh-cidr", "192.168.0.0/24",
		"network of the mesh, with an address for each cluster, if neither cluster is in one")
	f.BoolVar(&o.MeshServices, "mesh-services", false,
		"do not route service networks, which may overlap then: clusters offer single services with MeshServices")
	f.StringToStringVar(&o.Endpoints, "endpoint", nil, "CONTEXT=HOST[:PORT] under which other clusters reach a cluster "+
		"(default: address of the load balancer of its service kubelink)")
	f.StringToStringVar(&o.serviceCIDRs, "service-cidr", nil, "CONTEXT=CIDR, the service network of a cluster "+
		"(default: what the cluster says of itself)")
	f.StringToStringVar(&o.podCIDRs, "pod-cidr", nil, "CONTEXT=CIDR, the network of its pods (default: the same)")
	f.StringToStringVar(&o.nodeCIDRs, "node-cidr", nil, "CONTEXT=CIDR, the network of its nodes (default: the same)")
	return c
}

func newDisconnectCommand(cluster *genericclioptions.ConfigFlags) *cobra.Command {
	o := &connectOptions{cluster: cluster}
	c := &cobra.Command{
		Use:   "disconnect CONTEXT1 CONTEXT2",
		Short: "Remove the links between two clusters, and what connect has installed",
		Long: `disconnect removes the links between two clusters. A cluster that has no other link then loses all that connect
has made there: LocalLink, broker, router, rights, CA, namespace, what it has added to the cluster's DNS, and the
CustomResourceDefinitions, unless there are objects of these kinds. What others have made stays.`,
		Example:           `  kubectl kubelink disconnect c1 c2`,
		Args:              twoContexts,
		ValidArgsFunction: completeContexts(cluster),
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(c, args, connect.Disconnect)
		},
	}
	o.addCommonFlags(c)
	return c
}

func (o *connectOptions) addCommonFlags(c *cobra.Command) {
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "change nothing, say what would be done")
	c.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "longest time of the command")
	c.Flags().StringToStringVar(&o.Names, "name", nil,
		"CONTEXT=NAME of a cluster in the mesh (default: its LocalLink, else made of the context)")
}

// twoContexts checks the arguments.
func twoContexts(c *cobra.Command, args []string) error {
	if len(args) != 2 || args[0] == args[1] {
		return usageError{fmt.Errorf("want two different contexts of the kubeconfig, got %q: %s", args, c.UseLine())}
	}
	return nil
}

// defaultImage is the image of this version.
func defaultImage(unknown string) string {
	switch {
	case image != "":
		return image
	case version == "unknown":
		return unknown
	}
	return "kubelink:" + version
}

// complete reads the flags of connect.
func (o *connectOptions) complete() (err error) {
	if o.output != "" {
		if err := checkOutput(o.output, "yaml"); err != nil {
			return err
		}
		if !o.DryRun {
			return errors.New("--output without --dry-run: it shows what would be applied")
		}
	}
	if o.Mode = mesh.Mode(o.mode); o.mode != "" && !o.Mode.CarriesTraffic() {
		return fmt.Errorf("--mode %q: want %s or %s", o.mode, mesh.Bridge, mesh.WireGuard)
	}
	o.DefaultImage = defaultImage("")
	if o.MeshCIDR, err = netip.ParsePrefix(o.meshCIDR); err != nil {
		return fmt.Errorf("--mesh-cidr %q: want a network such as 192.168.0.0/24", o.meshCIDR)
	}
	o.MeshCIDR = o.MeshCIDR.Masked()
	o.Networks = map[string]connect.Networks{}
	for flag, values := range map[string]map[string]string{
		"service-cidr": o.serviceCIDRs, "pod-cidr": o.podCIDRs, "node-cidr": o.nodeCIDRs,
	} {
		for context, text := range values {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return fmt.Errorf("--%s %s=%s: want a network such as 10.250.0.0/16", flag, context, text)
			}
			n := o.Networks[context]
			to := map[string]*netip.Prefix{"service-cidr": &n.Services, "pod-cidr": &n.Pods, "node-cidr": &n.Nodes}[flag]
			*to = p.Masked()
			o.Networks[context] = n
		}
	}
	for context, name := range o.Names {
		if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
			return fmt.Errorf("--name %s=%s: want lower case letters, digits and -, such as cluster-1", context, name)
		}
	}
	for context, endpoint := range o.Endpoints {
		if _, _, err := mesh.Endpoint(endpoint, 80); err != nil {
			return fmt.Errorf("--endpoint %s=%s: %w", context, endpoint, err)
		}
	}
	return nil
}

// run connects or disconnects.
func (o *connectOptions) run(
	c *cobra.Command, args []string,
	do func(context.Context, *connect.Cluster, *connect.Cluster, connect.Options, *connect.Log) error,
) error {
	ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
	defer cancel()
	o.UpTimeout = o.timeout
	if *o.cluster.Namespace != install.Namespace {
		return usageError{fmt.Errorf("--namespace %s: this command installs into %s only", *o.cluster.Namespace,
			install.Namespace)}
	}
	for _, given := range []map[string]string{o.Names, o.Endpoints, o.serviceCIDRs, o.podCIDRs, o.nodeCIDRs} {
		for name := range given {
			if name != args[0] && name != args[1] {
				return usageError{fmt.Errorf("a flag has a value for context %q, and the contexts are %s", name,
					strings.Join(args, " and "))}
			}
		}
	}
	var ends []*connect.Cluster
	for _, name := range args {
		config, err := configOf(o.cluster, name)
		if err != nil {
			return fmt.Errorf("context %s: %w", name, err)
		}
		api, err := newClient(config)
		if err != nil {
			return fmt.Errorf("context %s: %w", name, err)
		}
		ends = append(ends, &connect.Cluster{Name: name, Client: api})
	}
	log := connect.NewLog(c.ErrOrStderr())
	if o.output == "yaml" {
		o.Show = func(cluster *connect.Cluster, object *unstructured.Unstructured) {
			log.PrintAlone(func() {
				fmt.Fprintf(c.OutOrStdout(), "---\n# %s\n", cluster.Name)
				_ = printValue(c.OutOrStdout(), "yaml", object.Object)
			})
		}
	}
	return do(ctx, ends[0], ends[1], o.Options, log)
}

// completeContexts completes the contexts of the kubeconfig.
func completeContexts(cluster *genericclioptions.ConfigFlags) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		rules.ExplicitPath = *cluster.KubeConfig
		config, err := rules.Load()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for name := range config.Contexts {
			if strings.HasPrefix(name, prefix) && (len(args) == 0 || name != args[0]) {
				names = append(names, name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
