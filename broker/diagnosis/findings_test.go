package diagnosis

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
)

var now = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func newLink(name, endpoint string) v1alpha1.KubeLink {
	o := v1alpha1.KubeLink{}
	o.Name = name
	o.Spec = v1alpha1.KubeLinkSpec{Endpoint: endpoint, ClusterAddress: "192.168.0.12/24", CIDR: "100.64.16.0/20",
		PresharedKey: "secret", PublicKey: "key"}
	return o
}

// healthyFacts are those of a broker whose links are Up.
func healthyFacts() *Facts {
	return &Facts{
		Identity: Identity{Version: "v1", CoreDNSVersion: "1.15.0", Mode: mesh.Bridge, Device: "kubelink", Node: "node1",
			Namespace: "kubelink"},
		Outcome: &Outcome{
			Links: []v1alpha1.KubeLink{newLink("here", v1alpha1.EndpointLocal), newLink("there", "there.example")},
			State: &mesh.State{
				Meshes:   []mesh.Mesh{{Link: "here", Cluster: "here", Domain: "kubelink."}},
				Links:    []mesh.Link{{Name: "there", Cluster: "there", Peer: "there"}},
				Networks: []mesh.LinkNetwork{{Prefix: netip.MustParsePrefix("100.64.16.0/20"), Link: "there"}},
				Zones: []mesh.Zone{{Domain: "kubelink.", Clusters: []mesh.ClusterZone{
					{Name: "here.kubelink."}, {Name: "there.kubelink.", Link: "there", Offers: []mesh.Offer{
						{Namespace: "shop", Name: "dns", Ports: []mesh.OfferPort{{Protocol: 17, Port: 53}}},
						{Namespace: "shop", Name: "web", Ports: []mesh.OfferPort{{Protocol: 6, Port: 80}}}}}}}},
			},
			Told: map[string]Told{"here": {State: v1alpha1.StateUp}, "there": {State: v1alpha1.StateUp}},
			Certificates: []Certificate{{Kind: "certificate", Source: "secret kubelink/kubelink-tls",
				NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour)}},
			MeshServices: []MeshService{{"default", "web", "Ok", ""}},
		},
		Lease:  Lease{Holder: "node1", Term: 3, Active: true},
		Node:   Node{Checked: true},
		States: map[string]LinkState{"there": {State: "Up", Since: now.Add(-time.Minute), RTT: time.Millisecond}},
		Statuses: []link.Status{{Link: "there", State: link.Up, Since: now.Add(-time.Minute), Remote: "1.2.3.4:80",
			RxBytes: 100, TxBytes: 200}},
		Names: func(context.Context, string) error { return nil },
		Now:   now,
	}
}

// A link that has just been deleted has no findings: the node is not checked anew at once.
func TestLinksThatAreGone(t *testing.T) {
	f := healthyFacts()
	f.Node.Findings = link.Findings{{Link: "gone", Reason: "RouteMissing", Text: "no route"},
		{Reason: "ForwardingOff", Text: "off"}}
	r := f.Report(t.Context())
	if len(r.Findings) != 1 || r.Findings[0].Reason != "ForwardingOff" || len(f.Node.Findings) != 1 {
		t.Errorf("%+v", r.Findings)
	}
}

// Of a healthy broker there is no finding, all checks are good, and the report has no secrets.
func TestHealthyReport(t *testing.T) {
	r := healthyFacts().Report(t.Context())
	if len(r.Findings) > 0 || len(r.Checks) == 0 {
		t.Errorf("%+v", r)
	}
	for _, c := range r.Checks {
		if !c.OK {
			t.Errorf("%+v", c)
		}
	}
	text, err := json.Marshal(r)
	if err != nil || strings.Contains(string(text), `"secret"`) || strings.Contains(string(text), "null") {
		t.Errorf("%s %v", text, err)
	}
	l := r.Links[0]
	if len(r.Links) != 1 || l.State != "Up" || l.RTT != 0.001 || l.RxBytes != 100 || l.TxBytes != 200 ||
		!l.Routed || l.Names.MeshService != "web.shop.msvc.there.kubelink:80" ||
		l.Names.Zone != "there.kubelink." || l.Names.State != "Up" || l.Remote != "1.2.3.4:80" || !r.Ready {
		t.Errorf("%+v %+v", r, l)
	}
}

// Before the first state is known there is a report, too.
func TestReportOfStart(t *testing.T) {
	f := &Facts{Now: now, Health: Health{Applied: errors.New("no state from the API server yet")}}
	r := f.Report(t.Context())
	if r.Ready || r.Links == nil || r.MeshServices == nil || r.Certificates == nil || len(r.Findings) == 0 {
		t.Errorf("%+v", r)
	}
}

// Each thing that is wrong has its reason, its object, its cause and its remedy.
func TestFindings(t *testing.T) {
	down := func(reason string) func(*Facts) {
		return func(f *Facts) { f.Statuses[0].State, f.Statuses[0].Reason = link.Down, reason }
	}
	tell := func(state v1alpha1.State, message string) func(*Facts) {
		return func(f *Facts) { f.Told["there"] = Told{State: state, Message: message} }
	}
	for name, c := range map[string]struct {
		spoil                           func(*Facts)
		reason, object, message, remedy string
		severity                        Severity
	}{
		"API server": {func(f *Facts) { f.Health.API = errors.New("refused") }, APIServerUnreachable, "Broker node1",
			"does not reach the API server: refused", "see that the API server runs", Error},
		"controllers": {func(f *Facts) { f.Health.Controllers = errors.New("forbidden") }, APIServerUnreachable,
			"Broker node1", "the controllers do not run: forbidden", "rbac.yaml", Error},
		"CRDs": {func(f *Facts) { f.Health.CRDs = errors.New("forbidden") }, CRDsOutdated, "Broker node1", "forbidden",
			"kubectl apply --server-side -f deploy/crds", Warning},
		"kernel": {func(f *Facts) { f.Health.Applied = errors.New("iptables: chain is foreign: remove the rule") },
			NotApplied, "Broker node1", "iptables: chain is foreign", "remove the rule", Error},
		"lock": {func(f *Facts) {
			f.Health.Applied = errors.New("another app is holding the xtables lock; a module: load it on the node")
		}, NotApplied, "Broker node1", "load it on the node", "fuser /run/xtables.lock", Error},
		"Lease": {func(f *Facts) { f.Lease.Problem = "the Lease cannot be used: give the broker rights" }, LeaseProblem,
			"Broker node1", "the Lease cannot be used", "give the broker rights", Warning},
		"no holder": {func(f *Facts) { f.Lease = Lease{} }, NoHolder, "Broker node1", "not known which", "leases", Error},
		"router": {func(f *Facts) {
			f.Routers = &link.RouterReport{Missing: 1, Findings: link.Findings{
				{Reason: RouterMissing, Text: "no kubelink-router runs on node node2", Remedy: "install it"}}}
		}, RouterMissing, "DaemonSet kubelink-router", "runs on node node2", "install it", Error},
		"routers not known": {func(f *Facts) {
			f.Routers = &link.RouterReport{Unknown: errors.New("pods is forbidden: allow it as deploy/base/rbac.yaml does")}
		}, NodeNotChecked, "DaemonSet kubelink-router", "whether pods of all nodes have a way to the links: pods", "allow it as",
			Warning},
		"certificate": {func(f *Facts) { f.Credentials = errors.New("secret kubelink/tls does not exist: create it") },
			CertificateUnusable, "Broker node1", "secret kubelink/tls does not exist", "create it", Error},
		"certificate ends": {func(f *Facts) {
			f.Certificates[0].NotBefore, f.Certificates[0].NotAfter = now.Add(-365*24*time.Hour), now.Add(240*time.Hour)
		}, CertificateExpires, "Broker node1", "is valid until 2026-12-07", "renew it", Warning},
		"certificate has ended": {func(f *Facts) { f.Certificates[0].NotAfter = now.Add(-time.Second) }, CertificateExpires,
			"Broker node1", "has expired", "renew it", Error},
		"invalid": {tell("Invalid", "spec.cidr 1.0.0.0/8 overlaps with the local pod-cidr 1.0.0.0/8: they must be disjoint"),
			LinkInvalid, "KubeLink there", "overlaps with", "they must be disjoint", Error},
		"stale": {tell("Stale", "mesh m has no LocalLink: create KubeLink m--x with endpoint LocalLink"), LinkStale,
			"KubeLink there", "mesh m has no LocalLink", "create KubeLink", Error},
		"note": {func(f *Facts) {
			f.Told["there"] = Told{State: "Up", Notes: []string{"no DNS: x is reserved; use another name"}}
		},
			Note, "KubeLink there", "no DNS: x is reserved", "use another name", Warning},
		"overlap": {func(f *Facts) {
			f.Told["there"] = Told{State: "Up", Notes: []string{"spec.cidr 1.0.0.0/8 is not routed, as it overlaps with x: y"}}
		}, OverlappingNetworks, "KubeLink there", "as it overlaps with x", "MeshServices", Warning},
		"node": {func(f *Facts) {
			f.Node.Findings = link.Findings{{Reason: "ForwardingOff", Text: "off", Remedy: "sysctl -w"}}
		},
			"ForwardingOff", "Node node1", "off", "sysctl -w", Error},
		"node, one link": {func(f *Facts) {
			f.Node.Findings = link.Findings{{Link: "there", Reason: "ForeignRoute", Text: "route", Remedy: "ip route del"}}
		}, "ForeignRoute", "KubeLink there", "route", "ip route del", Error},
		"node not checked": {func(f *Facts) { f.Node.Incomplete = errors.New("no nft") }, NodeNotChecked, "Node node1",
			"no nft", "install the command", Warning},
		"name": {down("dial x:80: no such host"), LinkDown, "KubeLink there", "dial x", "correct the name",
			Error},
		"refused": {down("dial x:80: connection refused"), LinkDown, "KubeLink there", "refused", "the peer's broker runs",
			Error},
		"blocked": {down("dial x:80: i/o timeout"), LinkDown, "KubeLink there", "timeout", "open the way", Error},
		"authority": {down("connect x: certificate signed by unknown authority"), LinkDown, "KubeLink there", "unknown",
			"ca.crt", Error},
		"own advice": {down("connect x: peer closed the connection before its hello: check that it has a link"), LinkDown,
			"KubeLink there", "before its hello", "check that it has a link", Error},
		"idle": {func(f *Facts) { f.Statuses[0].State, f.Statuses[0].Since = link.Idle, now.Add(-time.Minute) }, LinkIdle,
			"KubeLink there", "no connection yet", "a link to this one", Error},
		"peer is refused": {func(f *Facts) { f.Statuses[0].Refused = "certificate of x expired" }, PeerRefused,
			"KubeLink there", "this cluster refuses", "renew", Error},
		"mesh service": {func(f *Facts) {
			f.MeshServices[0] = MeshService{"default", "web", "Invalid", "no port: set spec.ports"}
		},
			MeshServiceInvalid, "MeshService web", "no port", "set spec.ports", Error},
		"global name": {func(f *Facts) {
			f.Outcome.Names.Entries = map[types.NamespacedName]records.Report{
				{Namespace: "evil", Name: "web"}:  {State: coredns.StateStale, Message: "db belongs to prod: use another name"},
				{Namespace: "prod", Name: "db"}:   {State: coredns.StateOk, Message: "good to know"},
				{Namespace: "prod", Name: "else"}: {State: coredns.StateStale, Message: "not here", Foreign: true},
			}
		}, GlobalNameInvalid, "CoreDNSEntry web", "db belongs to prod", "use another name", Error},
		"hosted zone": {func(f *Facts) {
			f.Outcome.Names.HostedZones = map[types.NamespacedName]records.Report{
				{Namespace: "prod", Name: "team"}: {State: coredns.StateInvalid, Message: "spec.parentRef makes a circle"},
			}
		}, GlobalNameInvalid, "HostedZone team", "makes a circle", "kubectl -n prod edit hostedzone team", Error},
		"state-dir": {func(f *Facts) { f.Health.StateDir = errors.New("/state: open: no space left on device") },
			StateDirUnusable, "Broker node1", "/state: open: no space left", "free space", Warning},
		"coredns-configure": {func(f *Facts) { f.Health.ClusterDNS = "the Corefile imports nothing: add the server blocks" },
			NamesNotForwarded, "ConfigMap coredns", "imports nothing", "add the server blocks", Warning},
		"cluster DNS": {func(f *Facts) { f.Names = func(context.Context, string) error { return errors.New("NXDOMAIN") } },
			NamesNotReached, "Domain kubelink", "NXDOMAIN", "kubelink-dns", Warning},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthyFacts()
			c.spoil(f)
			r := f.Report(t.Context())
			if len(r.Findings) != 1 {
				t.Fatalf("%+v", r.Findings)
			}
			got := r.Findings[0]
			if got.Reason != c.reason || got.Object.Kind+" "+got.Object.Name != c.object || got.Severity != c.severity ||
				!strings.Contains(got.Message, c.message) || !strings.Contains(got.Remedy, c.remedy) {
				t.Errorf("%+v", got)
			}
		})
	}
}

// A link has the state that names have; an object that cannot be used has that of its status.
func TestStateOfLinks(t *testing.T) {
	f := healthyFacts()
	f.States["there"] = LinkState{State: "Down", Reason: "connection lost"}
	if l := f.Report(t.Context()).Links[0]; l.State != "Down" || l.Reason != "connection lost" || l.Names.State != "Down" {
		t.Errorf("%+v", l)
	}
	f.Told["there"] = Told{State: "Invalid", Message: "wrong"}
	if l := f.Report(t.Context()).Links[0]; l.State != "Invalid" || l.Reason != "wrong" {
		t.Errorf("%+v", l)
	}
}
