package main

// Flags of the former program that mean nothing to a router: a DaemonSet of former times starts unchanged.

import (
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/mandelsoft/kubelink/router"
)

// Why flags mean nothing.
const (
	ofBroker = "the broker has it as a property of its Corefile"
	noPools  = "there are no worker pools"
	noLease  = "the router needs no Lease"
	noCRDs   = "the broker installs the CRDs"
	oneTask  = "this program is the router, and nothing else"
	oneScope = "the router reads one namespace"
)

// formerFlags are the flags of the former program with the reason. Names with an equal sign take a value.
var formerFlags = map[string]string{
	"controllers=": oneTask, "config=": oneTask, "cpuprofile=": oneTask, "plugin-file=": oneTask, "name=": oneTask,
	"grace-period=": oneTask, "namespace-local-access-only": oneScope, "disable-namespace-restriction": oneScope,
	"accepted-maintainers=": noCRDs, "maintainer=": noCRDs, "force-crd-update": noCRDs,
	"kubeconfig.disable-deploy-crds": noCRDs, "kubeconfig.id=": noCRDs, "kubeconfig.migration-ids=": noCRDs,
	"lease-duration=": noLease, "lease-name=": noLease, "lease-renew-deadline=": noLease, "lease-retry-period=": noLease,
	"omit-lease": noLease, "pool.size=": noPools, "pool.resync-period=": noPools, "default.pool.size=": noPools,
	"update.pool.size=": noPools, "update.pool.resync-period=": noPools, "secrets.pool.size=": noPools,
	"tasks.pool.size=": noPools, "advertised-port=": ofBroker, "auto-connect": ofBroker, "broker-port=": ofBroker,
	"cacertfile=": ofBroker, "certfile=": ofBroker, "cluster-domain=": ofBroker, "cluster-name=": ofBroker,
	"coredns-configure": ofBroker, "coredns-deployment=": ofBroker, "coredns-secret=": ofBroker,
	"coredns-service-ip=": ofBroker, "dns-advertisement": ofBroker, "dns-name=": ofBroker, "dns-propagation=": ofBroker,
	"dns-service-ip=": ofBroker, "dns-log-class=": ofBroker, "keyfile=": ofBroker, "link-address=": ofBroker,
	"mesh-domain=": ofBroker, "meshdns-service-ip=": ofBroker, "mode=": ofBroker, "mtu=": ofBroker, "secret=": ofBroker,
	"secret-manage-mode=": ofBroker, "served-links=": ofBroker, "service-account=": ofBroker,
}

// formerShorthands are theirs.
var formerShorthands = map[string]string{"controllers": "c", "namespace-local-access-only": "n"}

// ignored is the value of a flag that means nothing.
type ignored struct {
	text   string
	reason string
}

// Set implements pflag.Value.
func (i *ignored) Set(s string) error { i.text = s; return nil }

// String implements pflag.Value.
func (i *ignored) String() string { return i.text }

// Type implements pflag.Value.
func (i *ignored) Type() string { return "string" }

// addFormerFlags adds flags that mean nothing, which help does not show.
func addFormerFlags(fs *pflag.FlagSet) {
	add := func(name, reason string) {
		name, takesValue := strings.CutSuffix(name, "=")
		if fs.Lookup(name) != nil {
			return
		}
		f := fs.VarPF(&ignored{reason: reason}, name, formerShorthands[name], "")
		if f.Hidden = true; !takesValue {
			f.NoOptDefVal = "true"
		}
	}
	for name, reason := range formerFlags {
		add(name, reason)
		add(brokerPrefix+name, ofBroker)
		add(routerPrefix+name, reason)
	}
	for _, name := range []string{"node-cidr", "pod-cidr", "service-cidr", "node-ip", "service", "ipip", "route-table",
		"rule-priority", "ifce-name", "namespace"} {
		add(brokerPrefix+name+"=", ofBroker)
	}
}

// warnFormer warns once of each flag that means nothing, and once of all that are for the broker only. A program that
// is to be something else than the router must not start as one.
func warnFormer(fs *pflag.FlagSet, log *slog.Logger) error {
	var broker []string
	fs.Visit(func(f *pflag.Flag) {
		i, ok := f.Value.(*ignored)
		switch {
		case !ok:
		case strings.HasPrefix(f.Name, brokerPrefix):
			broker = append(broker, "--"+f.Name)
		default:
			log.Warn("a flag means nothing here", "flag", "--"+f.Name, "value", i.text, "reason", i.reason)
		}
	})
	if len(broker) > 0 {
		log.Warn("flags of the broker mean nothing here", "flags", broker, "reason", ofBroker)
	}
	controllers := fs.Lookup("controllers").Value.String()
	names := strings.FieldsFunc(controllers, func(r rune) bool { return r == ',' || r == ' ' })
	if len(names) > 0 && !slices.Contains(names, "router") && !slices.Contains(names, "all") {
		return &router.FlagError{Flag: "controllers", Value: controllers, Problem: "this program is the router",
			Remedy: "leave the flag out, or start kubelink with a Corefile for the broker"}
	}
	return nil
}
