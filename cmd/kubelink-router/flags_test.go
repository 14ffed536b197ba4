package main

// Flags: arguments of former DaemonSets start unchanged, and bad values are named.

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/mandelsoft/kubelink/router"
)

// parse is what run does with arguments before it connects. It returns the log, too.
func parse(arguments ...string) (*options, string, error) {
	o := &options{}
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.addFlags(fs)
	if err := fs.Parse(arguments); err != nil {
		return o, "", err
	}
	if err := o.complete(fs); err != nil {
		return o, "", err
	}
	var log bytes.Buffer
	err := warnFormer(fs, slog.New(slog.NewTextHandler(&log, nil)))
	return o, log.String(), err
}

func TestFormerArguments(t *testing.T) {
	for name, c := range map[string]struct {
		arguments []string
		want      string
		warned    []string
	}{
		"router": {
			[]string{"--controllers=router", "--server-port-http=8080", "--pod-cidr=100.96.0.0/11", "--node-cidr=10.250.0.0/16",
				"--ipip=shared", "--service=kubelink", "--datafile=/mnt/data/routes"},
			"[10.250.0.0/16] [100.96.0.0/11] shared 254 kubelink /mnt/data/routes :8080 ", []string{"--controllers"}},
		"both in one": {
			[]string{"--broker.mode=bridge", "--broker.secret=kubelink", "--node-cidr=10.250.0.0/16", "--pod-cidr=100.96.0.0/11",
				"--router.ipip=configure", "--router.route-table=251", "--route-table=251", "--served-links=<default>",
				"--kubeconfig.apiserver-override=https://10.0.0.1:6443", "--kubeconfig.disable-deploy-crds", "--omit-lease",
				"--pool.size=1", "--maintainer=kubelink"},
			"[10.250.0.0/16] [100.96.0.0/11] configure 251 kubelink   https://10.0.0.1:6443",
			[]string{"--broker.mode", "--broker.secret", "--kubeconfig.disable-deploy-crds", "--maintainer", "--omit-lease",
				"--pool.size", "--served-links"}},
		"the second form wins": {
			[]string{"--router.node-cidr=10.1.0.0/16", "--node-cidr", "10.2.0.0/16", "--ipip=none", "--router.ipip", "shared",
				"-c", "all", "-D", "debug", "--auto-connect", "--broker.auto-connect", "--broker.node-cidr", "10.3.0.0/16",
				"--router.pool.size=3"},
			"[10.1.0.0/16] [] shared 254 kubelink   ",
			[]string{"--auto-connect", "--broker.auto-connect", "--broker.node-cidr", "--controllers", "--router.pool.size"}},
	} {
		t.Run(name, func(t *testing.T) {
			o, log, err := parse(c.arguments...)
			if err != nil {
				t.Fatal(err)
			}
			x := &o.config
			if got := fmt.Sprintln(x.NodeCIDRs, x.PodCIDRs, x.IPIP, x.Table, x.Service, x.Datafile, x.Listen,
				o.server); got != c.want+"\n" {
				t.Errorf("%q, want %q", got, c.want)
			}
			warned := regexp.MustCompile(`--[a-z.-]+`).FindAllString(log, -1)
			slices.Sort(warned)
			if !slices.Equal(warned, c.warned) {
				t.Errorf("warned of %q, want %q:\n%s", warned, c.warned, log)
			}
			if strings.Contains(log, "--broker.") && strings.Count(log, "flags of the broker") != 1 {
				t.Errorf("more than one warning about the broker's flags:\n%s", log)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	t.Setenv("NODE_NAME", "node1")
	t.Setenv("NODE_IP", "10.250.0.5")
	t.Setenv("NAMESPACE", "mesh")
	o, log, err := parse("--node-cidr=10.250.7.1/16,fd00:250::/64", "--server-port-http=10541",
		"--bind-address-http=fd00:250::5")
	if err != nil || log != "" {
		t.Fatal(err, log)
	}
	x := &o.config
	if got, want := fmt.Sprintln(x.NodeCIDRs, x.NodeIP, x.Node, x.Namespace, x.Service, x.DaemonSet,
		x.IPIP, x.Table, x.Priority, x.Device, x.Listen, o.level),
		"[10.250.0.0/16 fd00:250::/64] 10.250.0.5 node1 mesh kubelink "+
			"kubelink-router none 254 32750 kubelink [fd00:250::5]:10541 INFO\n"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A bad value ends the program with the flag, the value and the remedy.
func TestBadValues(t *testing.T) {
	for argument, remedy := range map[string]string{
		"--node-cidr=10.250.0.0":      "want a network in CIDR notation, such as 10.250.0.0/16",
		"--node-cidr=0.0.0.0/0":       "want a network in CIDR notation",
		"--pod-cidr=x":                "want a network in CIDR notation",
		"--router.pod-cidr=x":         "want a network in CIDR notation",
		"--node-ip=10.250.0.5/16":     "want an IP address, such as 10.250.0.5",
		"--ipip=yes":                  "want none, shared or configure",
		"--route-table=255":           "want the number of a routing table: 254 (main)",
		"--route-table=main":          "want the number of a routing table",
		"--rule-priority=0":           "want a number from 1 to 32765",
		"--server-port-http=70000":    "want a number from 0 to 65535",
		"--bind-address-http=eth0":    "want an IP address",
		"--log-level=loud":            "want debug, info, warn or error",
		"--controllers=broker":        "leave the flag out, or start kubelink with a Corefile",
		"--router.rule-priority=many": "want a number",
	} {
		_, _, err := parse("--node-cidr=10.250.0.0/16", argument)
		name, value, _ := strings.Cut(argument, "=")
		if err == nil || !strings.Contains(err.Error(), remedy) || !strings.Contains(err.Error(), name) ||
			!strings.Contains(err.Error(), fmt.Sprintf("%q", value)) {
			t.Errorf("%s: error %v", argument, err)
		}
	}
	t.Setenv("NODE_IP", "here")
	if _, _, err := parse("--node-cidr=10.250.0.0/16"); err == nil ||
		!strings.Contains(err.Error(), `--node-ip "here": the variable NODE_IP`) {
		t.Errorf("NODE_IP: %v", err)
	}
	t.Setenv("NODE_IP", "")
	_, _, err := parse()
	bad := &router.FlagError{}
	if !errors.As(err, &bad) || bad.Flag != "node-cidr" {
		t.Errorf("no node-cidr: %v", err)
	}
	if _, _, err := parse("--node-cidr=10.250.0.0/16", "--no-such-flag"); err == nil {
		t.Error("an unknown flag is accepted")
	}
}

// A word that belongs to no flag is a bad value, too.
func TestStrayWord(t *testing.T) {
	c := newCommand()
	c.SetArgs([]string{"--node-cidr=10.250.0.0/16", "shared"})
	if err := c.Execute(); !errors.As(err, &usageError{}) || !strings.Contains(err.Error(), `"shared" belongs to no flag`) {
		t.Errorf("error %v", err)
	}
}

// Help explains each flag, and hides what means nothing.
func TestHelp(t *testing.T) {
	c := newCommand()
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetArgs([]string{"--help"})
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		_, former := f.Value.(*ignored)
		shown := strings.Contains(out.String(), "--"+f.Name+" ")
		if shown == (former || strings.HasPrefix(f.Name, "router.")) {
			t.Errorf("--%s: shown %v", f.Name, shown)
		}
	})
}
