package diagnosis

// The metrics of what a reconciliation has found out: objects by state, links, and the ends of certificates.

import (
	"github.com/prometheus/client_golang/prometheus"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("coredns_kubelink_"+name, help, labels, nil)
}

var (
	objectsDesc = newDesc("objects",
		"Number of objects whose state this broker tells by kind and state.", "kind", "state")
	linkDesc = newDesc("link_info",
		"Always 1: mesh (empty: the default mesh), cluster and its address in the mesh, and the link that carries it.",
		"link", "mesh", "cluster", "address", "carrier")
	routerDesc = newDesc("nodes_without_router",
		"Nodes whose pods have no way to the links, as no kubelink-router is ready there, by reason.", "reason")
	expiryDesc = newDesc("certificate_expiry_timestamp_seconds",
		"When the certificate of this cluster expires, or of the CAs that it trusts the first one, in Unix time.", "kind")
)

// The states of objects, by kind. Those that no object has count as zero.
var (
	linkStates = []v1alpha1.State{
		v1alpha1.StateInvalid, v1alpha1.StateStale, v1alpha1.StateError, v1alpha1.StateIdle, v1alpha1.StateUp,
		v1alpha1.StateDown, v1alpha1.StateDeleting,
	}
	serviceStates = []v1alpha1.State{
		v1alpha1.StateOk, v1alpha1.StateInvalid, v1alpha1.StateStale, v1alpha1.StateUnsupported,
	}
	nameStates = []coredns.State{coredns.StateOk, coredns.StateInvalid, coredns.StateStale}
)

// Collect sends the metrics; a nil Outcome has none. A standby leaves objects to the broker that holds the links.
func (o *Outcome) Collect(ch chan<- prometheus.Metric) {
	if o == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if !o.Standby {
		for kind, states := range o.countObjects() {
			for state, n := range states {
				gauge(objectsDesc, float64(n), kind, state)
			}
		}
	}
	if r := o.Routers; r != nil && r.Unknown == nil {
		gauge(routerDesc, float64(r.Missing), RouterMissing)
		gauge(routerDesc, float64(r.NotReady), RouterNotReady)
	}
	addresses := make(map[string]string, len(o.Links))
	for i := range o.Links {
		addresses[o.Links[i].Name] = o.Links[i].Spec.ClusterAddress
	}
	for _, l := range o.State.Links {
		gauge(linkDesc, 1, l.Name, l.Mesh, l.Cluster, addresses[l.Name], l.Peer)
	}
	first := map[string]float64{}
	for _, c := range o.Certificates {
		end := float64(c.NotAfter.Unix())
		if known, ok := first[c.Kind]; !ok || end < known {
			first[c.Kind] = end
		}
	}
	for kind, end := range first {
		gauge(expiryDesc, end, kind)
	}
}

// countObjects counts objects by kind and state.
func (o *Outcome) countObjects() map[string]map[string]int {
	links, locals := zeros(linkStates), zeros(linkStates)
	for i := range o.Links {
		l := &o.Links[i]
		told, ok := o.Told[l.Name]
		switch {
		case !ok: // another broker tells it
		case l.Spec.Endpoint == v1alpha1.EndpointLocal:
			locals[string(told.State)]++
		default:
			links[string(told.State)]++
		}
	}
	services, entries, zones := zeros(serviceStates), zeros(nameStates), zeros(nameStates)
	for _, s := range o.MeshServices {
		services[s.State]++
	}
	for _, r := range o.Names.Entries {
		if !r.Foreign {
			entries[string(r.State)]++
		}
	}
	for _, r := range o.Names.HostedZones {
		if !r.Foreign {
			zones[string(r.State)]++
		}
	}
	return map[string]map[string]int{
		"KubeLink": links, "LocalLink": locals, "MeshService": services, "CoreDNSEntry": entries, "HostedZone": zones,
	}
}

func zeros[S ~string](states []S) map[string]int {
	counts := make(map[string]int, len(states))
	for _, s := range states {
		counts[string(s)] = 0
	}
	return counts
}
