// Package migrate turns what a former kubelink was started with into a Corefile and the objects around it.
package migrate

// The flags of the former program, and where each of them is now.

import (
	"slices"
	"strings"
)

// Where a flag is now.
const (
	Property = "property" // of the stanza kubelink in the Corefile
	Router   = "router"   // a flag of kubelink-router
	Plugin   = "plugin"   // another plugin in the Corefile does it
	Program  = "program"  // a flag of kubelink, which is a CoreDNS
	Manifest = "manifest" // something of the Kubernetes objects does it
	Gone     = "gone"
)

// Flag says where a former flag is now.
type Flag struct {
	Name  string `json:"name"`
	Where string `json:"where"`
	What  string `json:"what,omitempty"` // name of property, flag, plugin or field
	Note  string `json:"note,omitempty"` // what is different; for a flag that is gone: why

	isSwitch  bool // without a value
	shorthand string
}

// Why flags are gone.
const (
	noPools       = "there are no worker pools: one reconciler sees everything"
	noResync      = "what kubelink sets is compared every 30 s"
	noMaintainers = "CRDs have a version (annotation kubelink.mandelsoft.org/crd-version), no maintainer"
	noPlugins     = "plugins are compiled in"
	noIDs         = "there is one cluster, and no state has its id"
)

const (
	brokerPrefix = "broker."
	routerPrefix = "router."
)

// flags are the former flags without prefix.
var flags = []Flag{
	{Name: "accepted-maintainers", Where: Gone, Note: noMaintainers},
	{Name: "advertised-port", Where: Property, What: "advertised-port"},
	{Name: "auto-connect", Where: Property, What: "auto-connect", isSwitch: true,
		Note: "with networks as value, links take over a service network in one of them"},
	{Name: "bind-address-http", Where: Plugin, What: "prometheus", Note: "its address"},
	{Name: "broker-port", Where: Property, What: "broker-port"},
	{Name: "cacertfile", Where: Property, What: "cacertfile"},
	{Name: "certfile", Where: Property, What: "certfile"},
	{Name: "cluster-domain", Where: Property, What: "cluster-domain"},
	{Name: "cluster-name", Where: Property, What: "cluster-name"},
	{Name: "config", Where: Program, What: "-conf", Note: "the file is a Corefile; migrate -f reads the former one"},
	{Name: "controllers", shorthand: "c", Where: Manifest, What: "Deployment kubelink, DaemonSet kubelink-router",
		Note: "broker and router are programs of their own"},
	{Name: "coredns-configure", Where: Property, What: "coredns-configure", isSwitch: true},
	{Name: "coredns-deployment", Where: Plugin, What: "kubelink", Note: "it answers DNS itself, nothing is restarted"},
	{Name: "coredns-secret", Where: Plugin, What: "kubelink", Note: "it answers DNS itself, without generated files"},
	{Name: "coredns-service-ip", Where: Property, What: "coredns-service-ip"},
	{Name: "cpuprofile", Where: Plugin, What: "pprof", Note: "profiles come from http://localhost:6053/debug/pprof"},
	{Name: "datafile", Where: Router, What: "--datafile", Note: "its routes are taken over once"},
	{Name: "default.pool.size", Where: Gone, Note: noPools},
	{Name: "disable-namespace-restriction", Where: Manifest, What: "Role, ClusterRole", isSwitch: true,
		Note: "RBAC says which namespaces the broker reads"},
	{Name: "dns-advertisement", Where: Property, What: "dns-advertisement", isSwitch: true},
	{Name: "dns-log-class", Where: Plugin, What: "log", Note: "class"},
	{Name: "dns-name", Where: Property, What: "dns-name"},
	{Name: "dns-propagation", Where: Property, What: "dns-propagation"},
	{Name: "dns-service-ip", Where: Property, What: "dns-service-ip"},
	{Name: "force-crd-update", Where: Property, What: "force-crd-update", isSwitch: true},
	{Name: "grace-period", Where: Manifest, What: "terminationGracePeriodSeconds",
		Note: "the broker waits for the end of its cleanup; the pod's grace period bounds it"},
	{Name: "help", shorthand: "h", Where: Program, What: "-help", isSwitch: true},
	{Name: "ifce-name", Where: Property, What: "ifce-name"},
	{Name: "ipip", Where: Router, What: "--ipip", Note: "the property ipip is about VXLAN: none or vxlan"},
	{Name: "keyfile", Where: Property, What: "keyfile"},
	{Name: "kubeconfig", Where: Property, What: "kubeconfig"},
	{Name: "kubeconfig.apiserver-override", Where: Property, What: "kubeconfig.apiserver-override"},
	{Name: "kubeconfig.disable-deploy-crds", Where: Property, What: "disable-deploy-crds", isSwitch: true},
	{Name: "kubeconfig.id", Where: Gone, Note: noIDs},
	{Name: "kubeconfig.migration-ids", Where: Gone, Note: noIDs},
	{Name: "lease-duration", Where: Property, What: "lease-duration"},
	{Name: "lease-name", Where: Property, What: "lease-name"},
	{Name: "lease-renew-deadline", Where: Property, What: "lease-renew-deadline"},
	{Name: "lease-retry-period", Where: Property, What: "lease-retry-period"},
	{Name: "link-address", Where: Property, What: "link-address"},
	{Name: "log-level", shorthand: "D", Where: Property, What: "log-level"},
	{Name: "maintainer", Where: Gone, Note: noMaintainers},
	{Name: "mesh-domain", Where: Property, What: "mesh-domain"},
	{Name: "meshdns-service-ip", Where: Property, What: "meshdns-service-ip"},
	{Name: "mode", Where: Property, What: "mode"},
	{Name: "mtu", Where: Property, What: "mtu"},
	{Name: "name", Where: Property, What: "lease-name", Note: "the Lease had this name, unless lease-name was given"},
	{Name: "namespace", Where: Property, What: "namespace"},
	{Name: "namespace-local-access-only", shorthand: "n", Where: Manifest, What: "Role, ClusterRole", isSwitch: true,
		Note: "RBAC says which namespaces the broker reads"},
	{Name: "node-cidr", Where: Property, What: "node-cidr"},
	{Name: "node-ip", Where: Property, What: "node-ip"},
	{Name: "omit-lease", Where: Property, What: "omit-lease", isSwitch: true},
	{Name: "plugin-file", Where: Gone, Note: noPlugins},
	{Name: "pod-cidr", Where: Property, What: "pod-cidr"},
	{Name: "pool.resync-period", Where: Gone, Note: noResync},
	{Name: "pool.size", Where: Gone, Note: noPools},
	{Name: "route-table", Where: Property, What: "route-table"},
	{Name: "rule-priority", Where: Property, What: "rule-priority"},
	{Name: "secret", Where: Property, What: "secret"},
	{Name: "secret-manage-mode", Where: Property, What: "secret-manage-mode"},
	{Name: "secrets.pool.size", Where: Gone, Note: noPools},
	{Name: "served-links", Where: Property, What: "served-links"},
	{Name: "server-port-http", Where: Plugin, What: "prometheus",
		Note: "its port; health and ready have ports of their own, /healthz is /health"},
	{Name: "service", Where: Property, What: "service"},
	{Name: "service-account", Where: Property, What: "service-account"},
	{Name: "service-cidr", Where: Property, What: "service-cidr"},
	{Name: "tasks.pool.size", Where: Gone, Note: noPools},
	{Name: "update.pool.resync-period", Where: Gone, Note: noResync},
	{Name: "update.pool.size", Where: Gone, Note: noPools},
	{Name: "version", Where: Program, What: "-version", isSwitch: true},
}

// routerFlags are those that kubelink-router has, under the same names.
var routerFlags = []string{"datafile", "ipip", "node-cidr", "pod-cidr", "service-cidr", "node-ip", "namespace",
	"route-table", "rule-priority", "service", "ifce-name", "kubeconfig", "kubeconfig.apiserver-override",
	"server-port-http", "bind-address-http", "log-level"}

// withBroker and withRouter are the former flags that also exist with the prefix of a controller.
var (
	withBroker = []string{"advertised-port", "auto-connect", "broker-port", "cacertfile", "certfile", "cluster-domain",
		"cluster-name", "coredns-configure", "coredns-deployment", "coredns-secret", "coredns-service-ip",
		"default.pool.size", "dns-advertisement", "dns-log-class", "dns-name", "dns-propagation", "dns-service-ip",
		"ifce-name", "ipip", "keyfile", "link-address", "mesh-domain", "meshdns-service-ip", "mode", "mtu", "node-cidr",
		"node-ip", "pod-cidr", "pool.resync-period", "pool.size", "route-table", "rule-priority", "secret",
		"secret-manage-mode", "secrets.pool.size", "served-links", "service", "service-account", "service-cidr",
		"tasks.pool.size", "update.pool.resync-period", "update.pool.size"}
	withRouter = []string{"datafile", "default.pool.size", "ipip", "node-cidr", "pod-cidr", "pool.resync-period",
		"pool.size", "route-table", "rule-priority", "service", "update.pool.resync-period", "update.pool.size"}
)

// Flags returns all former flags, with those that begin with the name of a controller, sorted.
func Flags() []Flag {
	all := slices.Clone(flags)
	for prefix, names := range map[string][]string{brokerPrefix: withBroker, routerPrefix: withRouter} {
		for _, name := range names {
			f := *findFlag(name)
			if f.Name, f.shorthand = prefix+name, ""; prefix == routerPrefix && f.Where != Gone {
				f.Where, f.What, f.Note = Router, "--"+name, ""
			}
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b Flag) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// findFlag finds a flag without prefix; nil: there is none.
func findFlag(name string) *Flag {
	if i := slices.IndexFunc(flags, func(f Flag) bool { return f.Name == name }); i >= 0 {
		return &flags[i]
	}
	return nil
}
