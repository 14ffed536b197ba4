package main

// The flags: which there are, what they mean, and what they become.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mandelsoft/kubelink/router"
)

const (
	routerPrefix = "router."
	brokerPrefix = "broker."
	// namespaceFile has the namespace of the pod.
	namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
)

// options are the values of the flags.
type options struct {
	config     router.Config
	kubeconfig string
	server     string // URL, in place of the one in kubeconfig
	port       int
	bind       string
	level      slog.Level
	cleanup    bool
}

// value is a flag that a function parses.
type value struct {
	text string // as set last, or the default
	kind string // what help calls it
	set  func(string) error
}

// Set implements pflag.Value.
func (v *value) Set(s string) error {
	if err := v.set(s); err != nil {
		return err
	}
	v.text = s
	return nil
}

// String implements pflag.Value.
func (v *value) String() string { return v.text }

// Type implements pflag.Value.
func (v *value) Type() string { return v.kind }

// addFlags defines all flags. Each of ours has a second form, which is not in the help.
func (o *options) addFlags(fs *pflag.FlagSet) {
	c := &o.config
	c.IPIP, c.Table, c.Priority, c.Service, c.Device = router.IPIPNone, unix.RT_TABLE_MAIN, 32750, "kubelink", "kubelink"
	c.DaemonSet = "kubelink-router"
	add := func(name, kind, text, usage string, set func(string) error) {
		fs.VarP(&value{text, kind, set}, name, shorthands[name], usage)
		fs.Var(&value{text, kind, set}, routerPrefix+name, usage)
		_ = fs.MarkHidden(routerPrefix + name) // it is there
	}
	add("node-cidr", "CIDR", "",
		"network of the cluster's nodes, or several with commas between; required", parseNetworks(&c.NodeCIDRs))
	add("pod-cidr", "CIDR", "", "network of the cluster's pods, or several with commas between; without it, "+
		"the way of packets of pods is not checked", parseNetworks(&c.PodCIDRs))
	add("service-cidr", "CIDR", "", "network of the cluster's services, or several with commas between, to which no "+
		"route leads", parseNetworks(&c.ServiceCIDRs))
	add("node-ip", "IP", "",
		"address of this node (default: variable NODE_IP, else the last address of an interface in node-cidr)",
		parseAddress(&c.NodeIP))
	add("node-name", "NAME", "", "name of this node (default: variable NODE_NAME); without it, there are no Events",
		parseText(&c.Node))
	add("namespace", "NAME", "", "namespace of LinkGateways, service and DaemonSet "+
		"(default: variable NAMESPACE, else that of the pod, else kube-system)", parseText(&c.Namespace))
	add("service", "NAME", c.Service, "service of a former broker, whose endpoint tells whether it runs in a pod; "+
		"it counts while there is no LinkGateway", parseText(&c.Service))
	add("daemonset", "NAME", c.DaemonSet,
		"DaemonSet that runs the router: when it is deleted, the routes go; empty: they stay",
		parseText(&c.DaemonSet))
	add("ipip", "MODE", c.IPIP, "IPIP between nodes: none; shared (through tunl0, which another program makes); "+
		"configure (the router makes tunl0, MTU 1440 bytes); whether there is a VXLAN, the broker says (property ipip)",
		o.parseIPIP)
	add("route-table", "NUMBER", strconv.Itoa(c.Table),
		"routing table for the routes; 254 is the main table", parseTable(&c.Table))
	add("rule-priority", "NUMBER", strconv.Itoa(c.Priority),
		"priority of the rule that leads to route-table, 1 to 32765; "+
			"the main table needs none", parseNumber(&c.Priority, 1, 32765))
	add("ifce-name", "NAME", c.Device, "network interface of the broker, if it runs on this node", parseText(&c.Device))
	add("datafile", "FILE", "", "destinations of a former router, one CIDR in a line: its routes are taken over once, "+
		"then the file is renamed to FILE.former", parseText(&c.Datafile))
	add("kubeconfig", "FILE", "", "access to the API server (default: that of the pod)", parseText(&o.kubeconfig))
	add("kubeconfig.apiserver-override", "URL", "", "URL of the API server, in place of the one in kubeconfig",
		parseText(&o.server))
	add("server-port-http", "PORT", "0", "TCP port for /healthz, /readyz, /findings and /metrics; 0: none",
		parseNumber(&o.port, 0, 65535))
	add("bind-address-http", "IP", "", "address for server-port-http (default: all)", parseBind(&o.bind))
	add("log-level", "LEVEL", "info", "debug, info, warn or error", o.parseLevel)
	fs.BoolVar(&o.cleanup, "cleanup", false,
		"remove what a router has set on this node (routes, rules, address of tunl0, VXLAN device, iptables chains), and end")
	addFormerFlags(fs)
}

// shorthands are those of the former program.
var shorthands = map[string]string{"log-level": "D"}

func parseText(to *string) func(string) error {
	return func(s string) error {
		*to = s
		return nil
	}
}

func parseNetworks(to *[]netip.Prefix) func(string) error {
	return func(s string) error {
		var networks []netip.Prefix
		for part := range strings.SplitSeq(s, ",") {
			p, err := netip.ParsePrefix(strings.TrimSpace(part))
			if err != nil || p.Bits() == 0 {
				return errors.New("want a network in CIDR notation, such as 10.250.0.0/16")
			}
			networks = append(networks, p.Masked())
		}
		*to = networks
		return nil
	}
}

func parseAddress(to *netip.Addr) func(string) error {
	return func(s string) error {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return errors.New("want an IP address, such as 10.250.0.5")
		}
		*to = a.Unmap()
		return nil
	}
}

func parseBind(to *string) func(string) error {
	return func(s string) error {
		if _, err := netip.ParseAddr(s); err != nil && s != "" {
			return errors.New("want an IP address, such as 10.250.0.5, or nothing for all")
		}
		*to = s
		return nil
	}
}

func parseNumber(to *int, lowest, highest int) func(string) error {
	return func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < lowest || n > highest {
			return fmt.Errorf("want a number from %d to %d", lowest, highest)
		}
		*to = n
		return nil
	}
}

func parseTable(to *int) func(string) error {
	return func(s string) error {
		n := 0
		if err := parseNumber(&n, 1, 1<<31-1)(s); err != nil || n == unix.RT_TABLE_LOCAL || n == unix.RT_TABLE_DEFAULT {
			return errors.New("want the number of a routing table: 254 (main), or one that no other program uses, " +
				"such as 107")
		}
		*to = n
		return nil
	}
}

func (o *options) parseIPIP(s string) error {
	switch s {
	case router.IPIPNone, router.IPIPShared, router.IPIPConfigure:
		o.config.IPIP = s
		return nil
	case "vxlan": // the LinkGateway says it
		o.config.IPIP = router.IPIPNone
		return nil
	}
	return errors.New("want none, shared or configure; " +
		"for a VXLAN, set the property ipip vxlan in the Corefile of the broker")
}

// parseLevel takes the levels of the former program, too.
func (o *options) parseLevel(s string) error {
	level, known := map[string]slog.Level{"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo,
		"warn": slog.LevelWarn, "warning": slog.LevelWarn, "error": slog.LevelError, "fatal": slog.LevelError,
		"panic": slog.LevelError}[strings.ToLower(s)]
	if !known {
		return errors.New("want debug, info, warn or error")
	}
	o.level = level
	return nil
}

// complete applies the second forms of flags, the variables, and what has no value yet.
func (o *options) complete(fs *pflag.FlagSet) (err error) {
	fs.Visit(func(f *pflag.Flag) {
		name, second := strings.CutPrefix(f.Name, routerPrefix)
		if own, ok := fs.Lookup(name).Value.(*value); second && ok && err == nil {
			err = own.set(f.Value.String())
		}
	})
	c := &o.config
	if c.Node == "" {
		c.Node = os.Getenv("NODE_NAME")
	}
	if text := os.Getenv("NODE_IP"); err == nil && !c.NodeIP.IsValid() && text != "" {
		if e := parseAddress(&c.NodeIP)(text); e != nil {
			err = &router.FlagError{Flag: "node-ip", Value: text, Problem: "the variable NODE_IP has a bad value",
				Remedy: e.Error()}
		}
	}
	if len(c.NodeCIDRs) == 0 && err == nil {
		err = &router.FlagError{Flag: "node-cidr", Problem: "the network of the cluster's nodes is missing",
			Remedy: "set it, such as --node-cidr=10.250.0.0/16"}
	}
	if c.Namespace == "" {
		c.Namespace = ownNamespace()
	}
	if o.port != 0 {
		c.Listen = net.JoinHostPort(o.bind, strconv.Itoa(o.port))
	}
	return err
}

func ownNamespace() string {
	if ns := os.Getenv("NAMESPACE"); ns != "" {
		return ns
	}
	if text, err := os.ReadFile(namespaceFile); err == nil {
		return strings.TrimSpace(string(text))
	}
	return "kube-system"
}

// connect returns the access to the API server.
func (o *options) connect() (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if o.kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	}
	if err != nil {
		return nil, &router.FlagError{Flag: "kubeconfig", Value: o.kubeconfig, Problem: err.Error(),
			Remedy: "give a kubeconfig file, or run in a pod with a service account"}
	}
	if o.server != "" {
		config.Host = o.server
	}
	return config, nil
}

// run is the program.
func (o *options) run(ctx context.Context, fs *pflag.FlagSet) error {
	if o.cleanup {
		if err := router.Cleanup(o.config); err != nil {
			return err
		}
		fmt.Println("nothing of a router is left on this node; a router that runs sets it again")
		return nil
	}
	if err := o.complete(fs); err != nil {
		return err
	}
	o.config.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: o.level}))
	if err := warnFormer(fs, o.config.Log); err != nil {
		return err
	}
	var err error
	if o.config.REST, err = o.connect(); err != nil {
		return err
	}
	return router.Run(ctx, o.config)
}
