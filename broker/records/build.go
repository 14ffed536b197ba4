// Package records is the pure model of global names: Build turns CoreDNSEntry and HostedZone objects into the names of
// the global zones, plain records name by name, and a report for each object. No clock, no API, no network in here.
package records

import (
	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
)

// Build computes the names of the served global zones (svc.global.<domain>). It does not change its arguments. As with
// links, older objects win over younger ones: a mistake in a new object never breaks what works.
func Build(entries []coredns.CoreDNSEntry, zones []coredns.HostedZone, served []string, tenancy Tenancy) Result {
	names := newNameTree(served, 2*len(entries)+len(zones), tenancy)
	hosted := newZoneSet(zones, names)
	list := entriesByAge(entries)
	names.claimAll(hosted, list)
	for _, e := range list {
		e.placeEntry(names)
	}
	for _, e := range list {
		e.reportCNAMELoop(names)
	}

	r := Result{
		Zones:       names.zones(),
		Entries:     make(map[types.NamespacedName]Report, len(list)),
		HostedZones: make(map[types.NamespacedName]Report, len(hosted.byAge)),
	}
	for _, z := range hosted.byAge {
		r.HostedZones[z.key] = z.report
	}
	for _, e := range list {
		r.Entries[e.key] = e.report
	}
	return r
}
