package kubelink

// The versions of this program, for the log and for metrics.

import (
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/coremain"

	"github.com/prometheus/client_golang/prometheus"
)

// programVersion is the version of kubelink. cmd/kubelink sets caddy.AppVersion to it, and to that of CoreDNS in
// parentheses.
func programVersion() string {
	version, _, _ := strings.Cut(caddy.AppVersion, " (")
	if version == "" {
		return "unknown"
	}
	return version
}

// revision is the commit that the program was built from; empty: not known.
func revision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}

var buildDesc = prometheus.NewDesc("coredns_kubelink_build_info",
	"Always 1: the versions of kubelink, of the CoreDNS in it and of Go, and the commit.",
	[]string{"version", "coredns_version", "go_version", "revision"}, nil)

// buildInfo is a metric. It waits for main to set the version.
type buildInfo struct{}

func init() { prometheus.MustRegister(buildInfo{}) }

// Describe implements prometheus.Collector.
func (buildInfo) Describe(ch chan<- *prometheus.Desc) { ch <- buildDesc }

// Collect implements prometheus.Collector.
func (buildInfo) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(buildDesc, prometheus.GaugeValue, 1,
		programVersion(), coremain.CoreVersion, runtime.Version(), revision())
}
