// kubelink is a CoreDNS with the kubelink plugin: one process links Kubernetes clusters and answers
// for their names. It takes the flags and the Corefile of CoreDNS. The commands uninstall and check are for the
// chart, and probe is for kubectl kubelink test.
package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"slices"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	// The plugins that a DNS server in a cluster needs. To keep binary and attack surface small, the
	// binary has no plugins for one cloud or another system's data (route53, azure, clouddns, etcd, nomad,
	// geoip, dynupdate), for other transports than UDP, TCP and TLS (grpc, grpc_server, https, https3,
	// quic, proxyproto), for signing (dnssec, sign), tracing, siit, or tests (erratic).
	_ "github.com/coredns/coredns/plugin/acl"
	_ "github.com/coredns/coredns/plugin/any"
	_ "github.com/coredns/coredns/plugin/auto"
	_ "github.com/coredns/coredns/plugin/autopath"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/bufsize"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/cancel"
	_ "github.com/coredns/coredns/plugin/chaos"
	_ "github.com/coredns/coredns/plugin/debug"
	_ "github.com/coredns/coredns/plugin/dns64"
	_ "github.com/coredns/coredns/plugin/dnstap"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/file"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/header"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/k8s_external"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/local"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metadata"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/minimal"
	_ "github.com/coredns/coredns/plugin/multisocket"
	_ "github.com/coredns/coredns/plugin/nsid"
	_ "github.com/coredns/coredns/plugin/pprof"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/root"
	_ "github.com/coredns/coredns/plugin/secondary"
	_ "github.com/coredns/coredns/plugin/shed"
	_ "github.com/coredns/coredns/plugin/template"
	_ "github.com/coredns/coredns/plugin/timeouts"
	_ "github.com/coredns/coredns/plugin/tls"
	_ "github.com/coredns/coredns/plugin/transfer"
	_ "github.com/coredns/coredns/plugin/tsig"
	_ "github.com/coredns/coredns/plugin/view"
	_ "github.com/coredns/coredns/plugin/whoami"

	"github.com/mandelsoft/kubelink/cmd/kubelink/hooks"
	_ "github.com/mandelsoft/kubelink/plugin/kubelink"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

func init() {
	// The order of CoreDNS without the plugins that this binary does not have. kubelink is the first
	// source of data after hosts: plugins that change queries and answers (rewrite, cache, template,
	// transfer) stand before it, a name in a hosts file overrides its names, and kubernetes, file and
	// forward get the names that kubelink does not answer.
	order := slices.DeleteFunc(slices.Clone(dnsserver.Directives), func(d string) bool {
		_, err := caddy.DirectiveAction("dns", d)
		return err != nil
	})
	order = slices.Insert(order, slices.Index(order, "hosts")+1, "kubelink")
	if err := dnsserver.SetDirectives(order); err != nil {
		panic(err)
	}
}

func main() {
	if ran, err := hooks.Run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	} else if ran {
		return
	}
	setVersion()
	coremain.Run()
}

// setVersion gives -version and the first lines of the log the version of this program.
func setVersion() {
	commit := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = s.Value
			}
		}
		if version == "" {
			version = info.Main.Version
		}
	}
	if coremain.GitCommit == "" {
		coremain.GitCommit = commit
	}
	caddy.AppName = "kubelink"
	caddy.AppVersion = fmt.Sprintf("%s (%s-%s)", version, coremain.CoreName, coremain.CoreVersion)
}
