package diagnosis

// What a report is made of, and how.

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
)

// Identity is what a broker is.
type Identity struct {
	Version, CoreDNSVersion string
	Mode                    mesh.Mode
	Device, Node, Namespace string
}

// Outcome is what a reconciliation has found out. It is not changed afterwards.
type Outcome struct {
	Links        []v1alpha1.KubeLink // all of the cluster, by name
	State        *mesh.State
	Told         map[string]Told // by KubeLink; the ones for which another broker speaks are missing
	Standby      bool            // another broker holds the links, and tells their states
	Certificates []Certificate
	Credentials  error // certificate or key cannot be used; nil: it can, or none is needed
	MeshServices []MeshService
	Kept         []types.NamespacedName // MeshServices whose status is this broker's, and no other one's
	Names        records.Result         // the reports on CoreDNSEntries and HostedZones
	Routers      *link.RouterReport     // of the other nodes; nil: none are expected, or another broker tells
}

// Told is what users see of a KubeLink in its status.
type Told struct {
	State   v1alpha1.State
	Message string
	Notes   []string // what Message also has: to be known, and no failure
}

// Health is why a broker is not as it should be; each error may be nil.
type Health struct {
	API, Controllers, Applied, CRDs error
	StateDir                        error  // why what has to survive a restart cannot be written
	ClusterDNS                      string // why coredns-configure has no effect, and the remedy; empty: it has
}

// Node is what the check of the node has found.
type Node struct {
	Checked    bool
	Findings   link.Findings
	Incomplete error // why a part could not be checked
}

// LinkState is the state of a link right now, as the names _state.<cluster>.<domain> tell it.
type LinkState struct {
	State, Reason string
	Since         time.Time
	RTT           time.Duration
}

// Facts are what a report is made of.
type Facts struct {
	Identity
	*Outcome // nil: there was no reconciliation yet
	Health   Health
	Lease    Lease
	Node     Node
	States   map[string]LinkState // by KubeLink
	Statuses []link.Status        // of the dataplane
	Names    NameProbe            // nil: names are not served, or the DNS service is not known
	Now      time.Time
}

// Report makes a report.
func (f *Facts) Report(ctx context.Context) *Report {
	if f.Outcome == nil {
		f.Outcome = &Outcome{State: &mesh.State{}}
	} else {
		f.Node.Findings = f.withoutGone(f.Node.Findings)
	}
	r := &Report{
		Version: f.Version, CoreDNSVersion: f.CoreDNSVersion, Time: f.Now.UTC(),
		Mode: string(f.Mode), Device: f.Device, Node: f.Identity.Node, Namespace: f.Namespace, Lease: f.Lease,
		Clusters: []Cluster{}, Links: []Link{}, MeshServices: f.MeshServices, Certificates: f.Certificates,
	}
	r.Ready = f.Health.API == nil && f.Health.Controllers == nil && f.Health.Applied == nil && len(f.Node.Findings) == 0
	for i := range f.State.Meshes {
		r.Clusters = append(r.Clusters, f.describeCluster(&f.State.Meshes[i]))
	}
	for i := range f.Links {
		if o := &f.Links[i]; o.Spec.Endpoint != v1alpha1.EndpointLocal {
			r.Links = append(r.Links, f.describeLink(o))
		}
	}
	checks := f.checkAll(ctx)
	for i := range checks {
		r.Findings = append(r.Findings, checks[i].findings...)
		r.Checks = append(r.Checks, checks[i].makeCheck())
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return cmp.Compare(a.Severity, b.Severity) })
	r.Links, r.Truncated = cutList(r.Links, MaxLinks, r.Truncated)
	r.MeshServices, r.Truncated = cutList(r.MeshServices, MaxMeshServices, r.Truncated)
	r.Findings, r.Truncated = cutList(r.Findings, MaxFindings, r.Truncated)
	r.Certificates, _ = cutList(r.Certificates, MaxLinks, false)
	return r
}

// withoutGone leaves out findings about links that are gone: the check of the node comes later than their deletion.
func (f *Facts) withoutGone(all link.Findings) link.Findings {
	return slices.DeleteFunc(slices.Clone(all), func(found link.Finding) bool {
		return found.Link != "" &&
			!slices.ContainsFunc(f.Links, func(o v1alpha1.KubeLink) bool { return o.Name == found.Link })
	})
}

// cutList bounds a list, and makes it one that JSON does not write as null.
func cutList[T any](list []T, limit int, before bool) ([]T, bool) {
	if list == nil {
		list = []T{}
	}
	if len(list) > limit {
		return list[:limit], true
	}
	return list, before
}

func (f *Facts) describeCluster(m *mesh.Mesh) Cluster {
	told := f.Told[m.Link]
	c := Cluster{
		Mesh: m.Name, Name: m.Cluster, Link: m.Link, Addresses: []string{}, Domain: m.Domain,
		State: string(told.State), Message: told.Message,
	}
	for _, a := range m.Addresses {
		c.Addresses = append(c.Addresses, a.String())
	}
	for _, n := range m.Services {
		c.Services = append(c.Services, n.String())
	}
	return c
}

// describeLink takes the state of a usable link from where names have it: what users are told at different places is
// the same.
func (f *Facts) describeLink(o *v1alpha1.KubeLink) Link {
	name, _ := mesh.LinkName(o.Name)
	told := f.Told[o.Name]
	l := Link{
		Name: o.Name, Mesh: name, ClusterAddress: o.Spec.ClusterAddress, CIDR: o.Spec.CIDR, Endpoint: o.Spec.Endpoint,
		Gateway: o.Spec.GatewayLink, State: string(told.State), Message: told.Message, Routed: f.isRouted(o),
	}
	for _, e := range o.Spec.Egress {
		l.Egress = append(l.Egress, string(e))
	}
	now, ok := f.States[o.Name]
	if ok && now.State != "" && told.State != v1alpha1.StateInvalid && told.State != v1alpha1.StateStale {
		l.State, l.Reason, l.RTT = now.State, now.Reason, now.RTT.Seconds()
		if !now.Since.IsZero() {
			since := now.Since.UTC()
			l.Since = &since
		}
	} else if told.State != v1alpha1.StateUp {
		l.Reason = told.Message
	}
	if l.State == "" { // another broker tells
		l.State, l.Message = string(o.Status.State), o.Status.Message
	}
	for i := range f.Statuses {
		if st := &f.Statuses[i]; st.Link == o.Name {
			l.Remote, l.Dialled, l.Accepted, l.Refused = st.Remote, st.Dialled, st.Accepted, st.Refused
			l.RxBytes, l.TxBytes = st.RxBytes, st.TxBytes
			if st.Announced != nil {
				l.PeerVersion = st.Announced.Version
			}
		}
	}
	l.Names = f.namesOf(o.Name, &l)
	return l
}

// isRouted tells whether spec.cidr of a link leads to it.
func (f *Facts) isRouted(o *v1alpha1.KubeLink) bool {
	network, err := netip.ParsePrefix(o.Spec.CIDR)
	return err == nil && slices.Contains(f.State.Networks, mesh.LinkNetwork{Prefix: network.Masked(), Link: o.Name})
}

// namesOf finds the zone of a link.
func (f *Facts) namesOf(name string, l *Link) *Names {
	for i := range f.State.Zones {
		for j := range f.State.Zones[i].Clusters {
			if c := &f.State.Zones[i].Clusters[j]; c.Link == name {
				return &Names{Zone: c.Name, State: l.State, MeshService: firstService(c)}
			}
		}
	}
	return nil
}

// firstService is the name of the first mesh service that a cluster offers with a TCP port, and the port.
func firstService(c *mesh.ClusterZone) string {
	for i := range c.Offers {
		o := &c.Offers[i]
		for _, p := range o.Ports {
			if p.Protocol == unix.IPPROTO_TCP {
				return fmt.Sprintf("%s.%s.msvc.%s:%d", o.Name, o.Namespace, strings.TrimSuffix(c.Name, "."), p.Port)
			}
		}
	}
	return ""
}
