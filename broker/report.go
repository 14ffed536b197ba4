package broker

// The report of the broker: what its parts know goes to the package diagnosis, which makes a report of it.

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/broker/echo"
	"github.com/mandelsoft/kubelink/broker/lease"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/writeback"
)

// reporter serves reports. Broker.lifecycle guards it.
type reporter struct {
	server    *diagnosis.Server
	api       *rest.Config     // that the server asks
	addresses []netip.AddrPort // that it listens on
}

// reportAddresses is where reports are served: at the addresses of the broker's pod or, in node mode, of its node.
func (c *Config) reportAddresses() (all []netip.AddrPort) {
	if c.DiagnosisPort == 0 {
		return nil
	}
	for _, a := range c.PodIPs {
		all = append(all, netip.AddrPortFrom(a, c.DiagnosisPort))
	}
	if node, err := netip.ParseAddr(c.NodeIP); err == nil && len(all) == 0 {
		all = append(all, netip.AddrPortFrom(node, c.DiagnosisPort))
	}
	return all
}

// serveReports serves reports as the configuration says. Where it says the same as before, nothing is interrupted.
func (b *Broker) serveReports() {
	addresses := b.cfg.reportAddresses()
	if b.reports.server != nil && reflect.DeepEqual(b.reports.api, b.api) && slices.Equal(b.reports.addresses, addresses) {
		return
	}
	b.reports.server.Stop()
	b.reports = reporter{api: b.api, addresses: addresses}
	if len(addresses) == 0 {
		return
	}
	var err error
	b.reports.server, err = diagnosis.Start(diagnosis.Config{
		Addresses: addresses, API: b.api, Log: b.log,
		Report: func(ctx context.Context) *diagnosis.Report { return b.facts().Report(ctx) },
		Ping:   b.ping, Statuses: b.linkStatuses,
	})
	if err != nil {
		b.log.Warn("no reports for kubectl kubelink", "error", err)
	}
}

// ping sends pings through a link.
func (b *Broker) ping(ctx context.Context, link string, q echo.Request) (*diagnosis.PingResult, error) {
	to, err := b.facts().FindTarget(link)
	if err != nil {
		return nil, err
	}
	q.To = to
	result, err := echo.Send(ctx, q)
	return &diagnosis.PingResult{Link: link, Address: to.String(), Size: q.Size, Result: result}, err
}

// nameProbe asks the DNS service of this cluster; nil: there are no names, or the service is not known.
func (c *Config) nameProbe() diagnosis.NameProbe {
	if a := c.clusterDNS(); a.IsValid() && c.Propagation != mesh.PropagateNone {
		return diagnosis.ProbeDNS(a)
	}
	return nil
}

// facts are what the parts of the broker know right now. It waits for none of them.
func (b *Broker) facts() *diagnosis.Facts {
	f := &diagnosis.Facts{
		Identity: *b.identity.Load(), Outcome: b.r.found.Load(), Now: time.Now(),
		Names:  *b.probe.Load(),
		States: map[string]diagnosis.LinkState{},
	}
	h := b.health.Load()
	f.Health = diagnosis.Health{API: h.api, Controllers: h.controllers, Applied: h.applied, CRDs: h.crds,
		StateDir: b.r.snapshot.Load().Failure(), ClusterDNS: h.clusterDNS}
	if h.node != nil {
		f.Node = diagnosis.Node{Checked: true, Findings: h.node.Findings, Incomplete: h.node.Incomplete}
	}
	e := b.r.election.State()
	f.Lease = diagnosis.Lease{Holder: e.Holder, Term: e.Term, Active: e.Role == lease.Holder, Problem: e.Problem}
	for name, st := range b.names.linkStates() {
		f.States[name] = diagnosis.LinkState{State: st.State, Reason: st.Reason, Since: st.Since, RTT: st.RTT}
	}
	f.Statuses = b.linkStatuses()
	return f
}

// linkStatuses are those of the dataplane; none: nothing carries links.
func (b *Broker) linkStatuses() []link.Status {
	if d := b.names.currentDataplane(); d != nil {
		return d.Statuses()
	}
	return nil
}

// identityOf is what a report says of the broker itself.
func identityOf(c *Config) *diagnosis.Identity {
	id := &diagnosis.Identity{Mode: c.Mode, Node: c.NodeName, Namespace: c.Namespace}
	id.Version, id.CoreDNSVersion = programVersions()
	if c.Mode.CarriesTraffic() {
		id.Device = c.Interface
	}
	return id
}

// programVersions are what cmd/kubelink writes as "<version> (CoreDNS-<version>)".
func programVersions() (kubelink, coreDNS string) {
	kubelink, coreDNS, _ = strings.Cut(strings.TrimSuffix(caddy.AppVersion, ")"), " (CoreDNS-")
	return kubelink, coreDNS
}

// newFindings is what a reconciliation has found out, for reports.
func (r *reconcilerRun) newFindings(
	objects *mesh.Objects, s *mesh.State, routers *link.RouterReport, out *writeback.Outcome, credErr error,
) *diagnosis.Outcome {
	found := &diagnosis.Outcome{
		Links: objects.Links, State: s, Told: map[string]diagnosis.Told{}, Standby: out.Standby, Credentials: credErr,
		Names: r.globals.Reports(), Routers: routers,
	}
	for i := range out.Links {
		l := &out.Links[i]
		found.Told[l.Object.Name] = diagnosis.Told{State: l.State, Message: l.Message, Notes: l.Notes}
	}
	for _, end := range r.creds.Ends() {
		found.Certificates = append(found.Certificates, diagnosis.Certificate{
			Kind: end.Kind, Name: end.Name, Source: r.cfg.pkiConfig().Location(),
			NotBefore: end.NotBefore.UTC(), NotAfter: end.NotAfter.UTC(),
		})
	}
	reports := r.services.Reports()
	for _, key := range slices.SortedFunc(maps.Keys(reports), func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	}) {
		found.MeshServices = append(found.MeshServices, diagnosis.MeshService{
			Namespace: key.Namespace, Name: key.Name,
			State: string(reports[key].State), Message: reports[key].Message,
		})
		if !reports[key].Weak {
			found.Kept = append(found.Kept, key)
		}
	}
	return found
}
