package e2e

// The Helm chart: an API server takes what it makes of all combinations of its values.

import (
	"context"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/mandelsoft/kubelink/test/fleet"
)

// chartNetworks are the values that are required.
const chartNetworks = "serviceCIDR=100.64.0.0/20,podCIDR=100.96.0.0/11,nodeCIDR=10.250.0.0/16," +
	"meshCIDR=192.168.0.0/24," +
	"endpoint=kubelink.kubelink1.example,dnsServiceIP=100.64.9.11" // the 11th address is that of the present broker

// chartChoices are values of the chart. A user takes one of each row; "": the default. The rows of the first table
// change the same workloads, those of the second one add objects and lines of the stanza.
var chartChoices = [][][]string{{
	{"", "mode=pod"},
	{"", "overlay=vxlan"},
	{"", "certificate.source=self-signed", "certificate.source=gardener", "links=wireguard",
		"certificate.source=cert-manager,certificate.issuerRef.name=ca"},
}, {
	{"", "clusterDNS.configure=true", "clusterDNS.configure=true,clusterDNS.restart=true"},
	{"", "dnsPropagation=kubernetes,stateDir=true"},
	{"", "advertisement.enabled=true", "advertisement.enabled=true,advertisement.tokenSecret=true"},
}}

// chartOptions go with all of them.
var chartOptions = []string{
	"crds=chart", "crds=none", "router.enabled=false", "createNamespace=true", "uninstall.objects=delete",
	"replicas=2,podDisruptionBudget.enabled=true,topologySpreadConstraints[0].maxSkew=1," +
		"topologySpreadConstraints[0].topologyKey=kubernetes.io/hostname," +
		"topologySpreadConstraints[0].whenUnsatisfiable=DoNotSchedule," +
		"topologySpreadConstraints[0].labelSelector.matchLabels.app=kubelink",
	"priorityClassName=,router.priorityClassName=,image.pullSecrets[0].name=registry,image.pullPolicy=Always",
	"service.type=NodePort", "service.type=ClusterIP", "service.loadBalancerClass=example.com/own",
	"service.loadBalancerSourceRanges={10.0.0.0/8},service.annotations.example\\.com/name=own,service.port=443",
	"prometheusRule.enabled=true", "metrics.expose=true,podMonitor.enabled=true,podMonitor.interval=30s",
	"mode=pod,networkPolicy.enabled=true,networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.a=b",
	"networkPolicy.clusterDNS=true", "mode=pod,networkPolicy.clusterDNS=true", "dns.allow={192.168.9.0/24}",
	"properties.streams=4,properties.keep-network=true,files.more=text,resources.limits.memory=2Gi,nodeSelector.a=b," +
		"tolerations[0].operator=Exists,podLabels.a=b,podAnnotations.a=b,router.podLabels.a=b,router.args={--v}",
}

// foreignKinds are those of which the chart makes objects that kubelink does not bring: kind, plural, group. Their
// fields are not checked.
var foreignKinds = [][3]string{
	{"Certificate", "certificates", "cert-manager.io"}, {"PodMonitor", "podmonitors", "monitoring.coreos.com"},
	{"PrometheusRule", "prometheusrules", "monitoring.coreos.com"},
}

// chartNamespace has no broker: what is there cannot be changed in each way.
const chartNamespace = "chart"

// TestChartDryRun has an API server check what Helm makes of all combinations that share workloads (a dry run).
// NetworkPolicies, certificates of cert-manager and what the Prometheus operator reads are tested in no other way:
// nothing in the test bed acts on them.
func TestChartDryRun(t *testing.T) {
	b := brokers[0]
	for _, k := range foreignKinds {
		crd := fmt.Sprintf(`{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition,
metadata: {name: %s.%s}, spec: {group: %[2]s, scope: Namespaced, names: {kind: %[3]s, plural: %[1]s},
versions: [{name: v1, served: true, storage: true,
schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}`, k[1], k[2], k[0])
		_, err := b.KubectlInput(t.Context(), crd, "apply", "-f", "-")
		must(t, err)
		t.Cleanup(func() { b.Kubectl(context.Background(), "delete", "crd", k[1]+"."+k[2]) })
	}
	_, err := b.Kubectl(t.Context(), "create", "namespace", chartNamespace)
	must(t, err)
	t.Cleanup(func() { b.Kubectl(context.Background(), "delete", "namespace", chartNamespace) })
	_, err = b.Kubectl(t.Context(), "--namespace", chartNamespace, "create", "serviceaccount", "kubelink")
	must(t, err) // of the pod of helm test: a dry run makes none
	objects, releases := renderCharts(t, b)
	var all strings.Builder
	for o := range objects {
		all.WriteString("---\n" + o)
	}
	out, err := b.KubectlInput(t.Context(), all.String(), "apply", "--server-side", "--force-conflicts",
		"--dry-run=server", "--warnings-as-errors", "-f", "-")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(out, "(server dry run)"); n != len(objects) {
		t.Errorf("%d of %d objects are taken:\n%s", n, len(objects), out)
	}
	for _, kind := range []string{"networkpolicy", "certificate.cert-manager", "podmonitor", "prometheusrule",
		"poddisruptionbudget", "job"} {
		if !strings.Contains(out, kind) {
			t.Errorf("no %s was checked", kind)
		}
	}
	t.Logf("%d combinations with %d different objects", releases, len(objects))
}

// renderCharts has Helm render the chart with all combinations of a table's choices, and with each option. It returns
// all different objects, hooks, too.
func renderCharts(t *testing.T, b *fleet.Broker) (objects map[string]bool, releases int) {
	t.Helper()
	chart, err := fleet.Chart()
	must(t, err)
	var releaseValues []string
	for _, rows := range chartChoices {
		for _, chosen := range combine(rows) {
			releaseValues = append(releaseValues, strings.Join(chosen, ","))
		}
	}
	releaseValues = append(releaseValues, chartOptions...)
	objects = map[string]bool{}
	separator := regexp.MustCompile(`(?m)^---$`)
	var mu sync.Mutex // guards objects
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	for _, values := range releaseValues {
		g.Go(func() error {
			text, err := b.Helm(t.Context(), "template", "kubelink", chart, "--namespace", chartNamespace,
				"--set", chartNetworks, "--set", values)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, o := range separator.Split(text, -1) {
				if strings.Contains(o, "\nkind: ") {
					objects[o+"\n"] = true
				}
			}
			return nil
		})
	}
	must(t, g.Wait())
	return objects, len(releaseValues)
}
