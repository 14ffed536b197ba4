package diagnosis

// The checks: each looks at a part of the facts, and makes findings of what is wrong there.

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
)

// The reasons of findings. Findings about the node have the reasons of the package nodecheck.
const (
	APIServerUnreachable = "APIServerUnreachable"
	CRDsOutdated         = "CRDsOutdated"
	NotApplied           = "NotApplied"
	NoHolder             = "NoHolder"
	LeaseProblem         = "LeaseProblem"
	LinkInvalid          = "LinkInvalid"
	LinkStale            = "LinkStale"
	LinkError            = "LinkError"
	LinkDown             = "LinkDown"
	LinkIdle             = "LinkIdle"
	PeerRefused          = "PeerRefused"
	Note                 = "Note"
	OverlappingNetworks  = "OverlappingNetworks"
	CertificateUnusable  = "CertificateUnusable"
	CertificateExpires   = "CertificateExpires"
	MeshServiceInvalid   = "MeshServiceInvalid"
	GlobalNameInvalid    = "GlobalNameInvalid" // of a CoreDNSEntry or a HostedZone
	NamesNotReached      = "NamesNotReached"
	NamesNotForwarded    = "NamesNotForwarded" // coredns-configure has no effect
	StateDirUnusable     = "StateDirUnusable"
	NodeNotChecked       = "NodeNotChecked"
	RouterMissing        = link.RouterMissing
	RouterNotReady       = link.RouterNotReady // on a node
)

// notRouted is in the note of a link whose network this cluster has, too.
const notRouted = "is not routed, as it overlaps"

const (
	// A certificate that is not renewed in time: so long before its end or, if it lives shortly, when a quarter of its
	// life is left, or a twentieth. cert-manager renews when a third is left.
	certificateWarning = 21 * 24 * time.Hour
	certificateError   = 3 * 24 * time.Hour
	// idleTime is how long a link may take for its first connection.
	idleTime = 30 * time.Second
)

// check is a part of the diagnosis with what it has found.
type check struct {
	name     string
	findings []Finding
}

// add adds a finding.
func (c *check) add(reason string, severity Severity, about Object, message, remedy string) {
	c.findings = append(c.findings, Finding{reason, severity, about, oneLine(message), oneLine(remedy)})
}

// makeCheck makes the check in the report.
func (c *check) makeCheck() Check {
	for _, f := range c.findings {
		if f.Severity == Error {
			return Check{c.name, false, f.Message}
		}
	}
	return Check{Name: c.name, OK: true}
}

// checkAll makes all checks, in the order in which a user has to heal what they find.
func (f *Facts) checkAll(ctx context.Context) []check {
	var checks []check
	for _, one := range []struct {
		name string
		look func(*check)
	}{
		{"api-server", f.checkAPI},
		{"lease", f.checkLease},
		{"applied", f.checkApplied},
		{"certificates", f.checkCertificates},
		{"objects", f.checkObjects},
		{"node", f.checkNode},
		{"routers", f.checkRouters},
		{"links", f.checkLinks},
		{"mesh-services", f.checkMeshServices},
		{"global-names", f.checkGlobalNames},
		{"state-dir", f.checkStateDir},
		{"names", func(c *check) { f.checkNames(ctx, c) }},
	} {
		c := check{name: one.name}
		one.look(&c)
		checks = append(checks, c)
	}
	return checks
}

func kubeLink(name string) Object { return Object{Kind: "KubeLink", Name: name} }

// brokerObject is the object of findings about this process.
func (f *Facts) brokerObject() Object { return Object{"Broker", f.Namespace, f.Identity.Node} }

func (f *Facts) checkAPI(c *check) {
	if err := f.Health.API; err != nil {
		c.add(APIServerUnreachable, Error, f.brokerObject(), "the broker does not reach the API server: "+err.Error(),
			"see that the API server runs, and that the gateway node reaches it; until then links and names stay as they are")
	}
	if err := f.Health.Controllers; err != nil {
		c.add(APIServerUnreachable, Error, f.brokerObject(), "the controllers do not run: "+err.Error(),
			"give the broker the rights of deploy/base/rbac.yaml, and see that the API server has the CRDs of deploy/crds")
	}
	if err := f.Health.CRDs; err != nil {
		c.add(CRDsOutdated, Warning, f.brokerObject(), "the CRDs are not as this version needs them: "+err.Error(),
			"kubectl apply --server-side -f deploy/crds, or give the broker the rights of deploy/base/rbac.yaml")
	}
}

func (f *Facts) checkLease(c *check) {
	if f.Lease.Problem != "" {
		message, remedy := splitRemedy(f.Lease.Problem, "give the broker the rights of deploy/base/rbac.yaml for leases")
		c.add(LeaseProblem, Warning, f.brokerObject(), message, remedy)
	}
	if f.Lease.Holder == "" && !f.Lease.Active && f.Health.API == nil {
		c.add(NoHolder, Error, f.brokerObject(), "it is not known which broker holds the links",
			"give the broker the rights of deploy/base/rbac.yaml for leases, or see that the API server answers")
	}
}

func (f *Facts) checkApplied(c *check) {
	err := f.Health.Applied
	if err == nil || f.Credentials != nil && err.Error() == f.Credentials.Error() {
		return
	}
	message, remedy := splitRemedy(err.Error(), "see the log of the broker; it tries again by itself")
	if known := remedyOfFailure(err.Error()); known != "" { // of several failures it is what causes the others
		message, remedy = err.Error(), known
	}
	c.add(NotApplied, Error, f.brokerObject(), message, remedy)
}

func (f *Facts) checkCertificates(c *check) {
	if err := f.Credentials; err != nil {
		message, remedy := splitRemedy(err.Error(), "put a certificate, its key and the CA of the peers into the secret")
		c.add(CertificateUnusable, Error, f.brokerObject(), message, remedy)
	}
	for _, cert := range f.Certificates {
		left, life := cert.NotAfter.Sub(f.Now), cert.NotAfter.Sub(cert.NotBefore)
		if left > min(certificateWarning, life/4) {
			continue
		}
		severity := Warning
		if left < min(certificateError, life/20) {
			severity = Error
		}
		end := cert.NotAfter.UTC().Format(time.RFC3339)
		text := fmt.Sprintf("the %s of %s is valid until %s", cert.Kind, cert.Source, end)
		if left < 0 {
			text = fmt.Sprintf("the %s of %s has expired at %s: peers refuse it", cert.Kind, cert.Source, end)
		}
		c.add(CertificateExpires, severity, f.brokerObject(), text,
			"renew it: links take a new one from the secret without being interrupted")
	}
}

// checkObjects looks at what the broker says of objects that it cannot use, or that a user should know something of.
func (f *Facts) checkObjects(c *check) {
	for i := range f.Links {
		o := &f.Links[i]
		told := f.Told[o.Name]
		reason := map[v1alpha1.State]string{v1alpha1.StateInvalid: LinkInvalid, v1alpha1.StateStale: LinkStale}[told.State]
		if told.State == v1alpha1.StateError && o.Spec.Endpoint == v1alpha1.EndpointLocal &&
			f.Credentials == nil && f.Health.Applied == nil && len(f.Node.Findings) == 0 {
			reason = LinkError
		}
		if reason != "" {
			message, remedy := splitRemedy(told.Message, "change the object: kubectl edit kubelink "+o.Name)
			c.add(reason, Error, kubeLink(o.Name), message, remedy)
		}
		for _, note := range told.Notes {
			if strings.Contains(note, notRouted) {
				c.add(OverlappingNetworks, Warning, kubeLink(o.Name), note, "remove spec.cidr and offer services with "+
					"MeshServices, or give one of the clusters another service network")
				continue
			}
			message, remedy := splitRemedy(note, "see the field that the message names")
			c.add(Note, Warning, kubeLink(o.Name), message, remedy)
		}
	}
}

func (f *Facts) checkNode(c *check) {
	node := Object{Kind: "Node", Name: f.Identity.Node}
	for _, found := range f.Node.Findings {
		about := node
		if found.Link != "" {
			about = kubeLink(found.Link)
		}
		c.add(found.Reason, Error, about, found.Text, found.Remedy)
	}
	if err := f.Node.Incomplete; err != nil {
		c.add(NodeNotChecked, Warning, node, "the node cannot be checked in full: "+err.Error(),
			"install the command that is missing on the image of the broker, or give the broker the capability NET_ADMIN")
	}
}

// checkRouters looks whether pods of the other nodes have a way to the links.
func (f *Facts) checkRouters(c *check) {
	if f.Routers == nil {
		return
	}
	routers := Object{"DaemonSet", f.Namespace, link.RouterName}
	for _, found := range f.Routers.Findings {
		c.add(found.Reason, Error, routers, found.Text, found.Remedy)
	}
	if err := f.Routers.Unknown; err != nil {
		message, remedy := splitRemedy(err.Error(), "see that the API server answers")
		c.add(NodeNotChecked, Warning, routers,
			"it is not known whether pods of all nodes have a way to the links: "+message, remedy)
	}
}

// checkLinks looks at links that have no connection.
func (f *Facts) checkLinks(c *check) {
	if f.Credentials != nil && len(f.Statuses) == 0 || !f.Lease.Active {
		return // the certificate is the cause, or another broker has the links
	}
	for i := range f.Statuses {
		switch st := &f.Statuses[i]; {
		case st.State == link.Down:
			message, remedy := splitRemedy(st.Reason, remedyOfLoss(st.Reason))
			c.add(LinkDown, Error, kubeLink(st.Link), message, remedy)
		case st.State == link.Idle && !st.Since.IsZero() && f.Now.Sub(st.Since) > idleTime:
			c.add(LinkIdle, Error, kubeLink(st.Link), "there is no connection yet"+withColon(st.Reason),
				"see that the other cluster has a link to this one, and that one of both reaches the endpoint of the other")
		}
		if st := &f.Statuses[i]; st.Refused != "" {
			message, remedy := splitRemedy(st.Refused, remedyOfLoss(st.Refused))
			c.add(PeerRefused, Error, kubeLink(st.Link), "this cluster refuses the connections of the peer: "+message, remedy)
		}
	}
}

func (f *Facts) checkMeshServices(c *check) {
	for _, m := range f.MeshServices {
		if m.State == string(v1alpha1.StateOk) || m.State == "" {
			continue
		}
		message, remedy := splitRemedy(m.Message, "change the object")
		c.add(MeshServiceInvalid, Error, Object{"MeshService", m.Namespace, m.Name}, message, remedy)
	}
}

// checkGlobalNames looks at CoreDNSEntries and HostedZones in zones that are served here.
func (f *Facts) checkGlobalNames(c *check) {
	for _, one := range []struct {
		kind    string
		reports map[types.NamespacedName]records.Report
	}{
		{"HostedZone", f.Outcome.Names.HostedZones}, {"CoreDNSEntry", f.Outcome.Names.Entries},
	} {
		for _, key := range sortKeys(one.reports) {
			r := one.reports[key]
			if r.Foreign || r.State == coredns.StateOk || r.State == "" {
				continue
			}
			message, remedy := splitRemedy(r.Message, fmt.Sprintf("change the object: kubectl -n %s edit %s %s",
				key.Namespace, strings.ToLower(one.kind), key.Name))
			c.add(GlobalNameInvalid, Error, Object{one.kind, key.Namespace, key.Name}, message, remedy)
		}
	}
}

func sortKeys(reports map[types.NamespacedName]records.Report) []types.NamespacedName {
	return slices.SortedFunc(maps.Keys(reports), func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

func (f *Facts) checkStateDir(c *check) {
	if err := f.Health.StateDir; err != nil {
		c.add(StateDirUnusable, Warning, f.brokerObject(), "state-dir cannot be used: "+err.Error()+
			"; names will not survive a restart of the broker while the API server or a peer is away",
			"see that the folder has free space and may be written to (the volume of the pod), or remove state-dir")
	}
}

// checkNames asks the DNS service of the cluster for the domain of each mesh.
func (f *Facts) checkNames(ctx context.Context, c *check) {
	if note := f.Health.ClusterDNS; note != "" {
		message, remedy := splitRemedy(note, "see the log of the broker for the server blocks that the cluster's DNS needs")
		about := Object{"ConfigMap", "kube-system", "coredns"}
		c.add(NamesNotForwarded, Warning, about, "coredns-configure: "+message, remedy)
	}
	if f.Names == nil || f.Health.API != nil {
		return
	}
	zones := f.State.Zones[:min(len(f.State.Zones), maxDomains)]
	problems := make([]error, len(zones))
	var all sync.WaitGroup
	for i := range zones {
		all.Go(func() { problems[i] = f.Names(ctx, zones[i].Domain) })
	}
	all.Wait()
	for i, err := range problems {
		if err == nil {
			continue
		}
		domain := mesh.TrimDot(zones[i].Domain)
		c.add(NamesNotReached, Warning, Object{Kind: "Domain", Name: domain},
			fmt.Sprintf("the DNS service of this cluster does not find the names of %s: %s", domain, err),
			"forward "+domain+" to the service kubelink-dns in the Corefile of the cluster's DNS, or set coredns-configure")
	}
}

// NameProbe asks the DNS service of the cluster for a domain. An error is why it does not answer what this broker
// would.
type NameProbe func(ctx context.Context, domain string) error

// The words with which remedies begin in the messages of the broker.
var imperatives = []string{"add", "allow", "apply", "change", "check", "choose", "copy", "create", "delete", "end",
	"give", "have", "import", "insert", "keep", "let", "load", "make", "name", "narrow", "open", "put", "remove", "repair",
	"replace", "restart", "run", "see", "set", "show", "use", "write", "did you mean", "they must be", "a gateway must",
	"meshes must", "the mesh network must"}

// isRemedy tells whether a text begins with what to do.
func isRemedy(text string) bool {
	text = strings.ToLower(text)
	return !strings.HasPrefix(text, "name look-up") &&
		slices.ContainsFunc(imperatives, func(verb string) bool { return strings.HasPrefix(text, verb+" ") })
}

// splitRemedy cuts a message of the broker into what is wrong and what to do. By the rule of such messages the latter
// comes last, after a colon or a semicolon. Without one, it is the other remedy.
func splitRemedy(message, other string) (text, remedy string) {
	message = oneLine(message)
	for at := 0; at < len(message); at++ {
		if c := message[at]; c != ':' && c != ';' || at+2 > len(message) || message[at+1] != ' ' {
			continue
		}
		if rest := message[at+2:]; isRemedy(rest) {
			return message[:at], rest
		}
	}
	return message, other
}

// remedyOfFailure is what to do when the node does not take what the broker wants; empty: it is not known.
func remedyOfFailure(failure string) string {
	switch {
	case strings.Contains(failure, "address already in use"):
		return "end the program that has the port (ss -lntup on the node shows it), or choose another one: the targetPort " +
			"of the service for peers, or broker-port; the broker tries again by itself"
	case strings.Contains(failure, "xtables lock"):
		return "end the program that holds the lock of iptables (fuser /run/xtables.lock on the node shows it); the broker " +
			"tries again by itself"
	}
	return ""
}

// remedyOfLoss is what to do when a peer cannot be connected.
func remedyOfLoss(reason string) string {
	for _, r := range []struct {
		texts  []string
		remedy string
	}{
		{[]string{"no such host", "name look-up failed", "server misbehaving"},
			"correct the name in spec.endpoint, or make it known to the DNS that the gateway node uses"},
		{[]string{"connection refused"},
			"see that the peer's broker runs, and that the port in spec.endpoint is that of its service"},
		{[]string{"no route to host", "network is unreachable", "timed out", "timeout", "no answer"},
			"open the way to the endpoint: firewalls, security groups and the load balancer of the peer"},
		{[]string{"unknown authority", "certificate signed by"},
			"both clusters have to trust the CA of the other: put it into ca.crt of both secrets"},
		{[]string{"expired", "not yet valid"},
			"renew the certificate that the message names, and check the clocks of both nodes"},
		{[]string{"certificate is valid for", "certificate"},
			"the certificate of each cluster has to name the endpoint in the other cluster's KubeLink"},
		{[]string{"cluster address"},
			"spec.clusterAddress of the KubeLink has to be the address that the peer's LocalLink has"},
	} {
		if slices.ContainsFunc(r.texts, func(text string) bool { return strings.Contains(reason, text) }) {
			return r.remedy
		}
	}
	return "see that the other cluster has a link to this one, and read what its broker says of it"
}

func withColon(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }
