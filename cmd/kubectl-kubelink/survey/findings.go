package survey

// What is wrong: the findings of the brokers, and what only a look from outside, or at several clusters, can tell.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "k8s.io/api/core/v1"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/broker/link"
)

// Finding is a finding about a cluster.
type Finding struct {
	Context string `json:"context"`
	diagnosis.Finding
}

// The reasons of findings that brokers cannot have. The others are those of the packages diagnosis and nodecheck.
const (
	NoContext         = "NoContext"         // the kubeconfig has no such context
	NoRights          = "NoRights"          // of the user of the command line
	NotInstalled      = "NotInstalled"      // there is no pod
	CRDsMissing       = "CRDsMissing"       // the API server knows no KubeLinks
	PodNotRunning     = "PodNotRunning"     //
	NoTUN             = "NoTUN"             // the node has no /dev/net/tun, or the pod may not use it
	BrokerUnreachable = "BrokerUnreachable" // the pod runs, and does not answer
	AccountMissing    = "AccountMissing"    // of reports
	ReportRefused     = "ReportRefused"     //
	TwoHolders        = "TwoHolders"        // of one Lease
	NoActiveBroker    = "NoActiveBroker"    //
	OneSidedLink      = "OneSidedLink"      //
	DifferentModes    = "DifferentModes"    // at both ends of a link
	WrongNetwork      = "WrongNetwork"      // cidr of a link is not that of the other cluster
	WrongKey          = "WrongKey"          // publicKey of a link is not that of the other cluster
	NodeNotReady      = "NodeNotReady"      // of a broker or a router
	AddressTwice      = "AddressTwice"      // two clusters have one cluster address
	NoExternalAddress = "NoExternalAddress" // of the service that peers connect to
)

// Examine finds out what is wrong. Errors come first.
func Examine(answers []Answer) []Finding {
	e := &examination{answers: answers, links: Links(answers)}
	for i := range answers {
		a := &answers[i]
		if e.checkAccess(a); a.Err != nil {
			continue
		}
		e.checkPods(a)
		e.checkHolders(a)
		e.checkService(a)
		for j := range a.Brokers {
			if r := a.Brokers[j].Report; r != nil && (r.Lease.Active || r == a.active()) {
				for _, f := range r.Findings {
					if f.Reason == diagnosis.RouterNotReady && len(a.Routers) > 0 && !slices.ContainsFunc(a.Routers, isSilent) {
						continue // checkRouter knows why
					}
					e.findings = append(e.findings, Finding{a.Context, f})
				}
			}
		}
	}
	e.checkEnds()
	for i := range e.links {
		e.checkLink(&e.links[i])
	}
	slices.SortStableFunc(e.findings, func(a, b Finding) int { return cmp.Compare(a.Severity, b.Severity) })
	return e.findings
}

type examination struct {
	answers  []Answer
	links    []Link
	findings []Finding
}

func (e *examination) add(
	context, reason string, severity diagnosis.Severity, about diagnosis.Object, message, remedy string,
) {
	message = strings.ReplaceAll(message, "\n", " ")
	e.findings = append(e.findings, Finding{context, diagnosis.Finding{
		Reason: reason, Severity: severity, Object: about, Message: message, Remedy: remedy,
	}})
}

// checkAccess finds out why the API server, or a part of what it knows, cannot be had.
func (e *examination) checkAccess(a *Answer) {
	cluster := diagnosis.Object{Kind: "Cluster", Name: a.Context}
	if missing, ok := errors.AsType[*ContextError](a.Err); ok {
		e.add(a.Context, NoContext, diagnosis.Error, cluster, missing.Error(),
			"choose one of kubectl config get-contexts")
		return
	}
	if a.Err != nil {
		e.add(a.Context, diagnosis.APIServerUnreachable, diagnosis.Error, cluster,
			"the API server does not answer: "+describeError(a.Err),
			"see that the server of the context is right (kubectl config view), that it runs, and that it is reached from here")
		return
	}
	for _, one := range []struct {
		err  error
		what string
	}{
		{a.PodsErr, "list pods in namespace " + a.Namespace},
		{a.LinksErr, "list kubelinks.kubelink.mandelsoft.org"},
		{a.TokenErr, "create serviceaccounts/token in namespace " + a.Namespace},
	} {
		if apierrors.IsForbidden(one.err) || apierrors.IsUnauthorized(one.err) {
			e.add(a.Context, NoRights, diagnosis.Error, cluster, "you may not "+one.what+describeRefusal(one.err),
				"use a context whose user may "+one.what)
		}
	}
	// Without a broker, that there is none is the cause: it installs them.
	if apierrors.IsNotFound(a.LinksErr) && (a.PodsErr != nil || len(a.Brokers) > 0) {
		e.add(a.Context, CRDsMissing, diagnosis.Error,
			diagnosis.Object{Kind: "CustomResourceDefinition", Name: "kubelinks.kubelink.mandelsoft.org"},
			"the API server knows no KubeLinks",
			"kubectl apply --server-side -f deploy/crds, or start the broker anew: it installs them, with the rights of "+
				"deploy/base/rbac.yaml")
	}
	if apierrors.IsNotFound(a.TokenErr) && len(a.Brokers) > 0 {
		e.add(a.Context, AccountMissing, diagnosis.Error,
			diagnosis.Object{Kind: "ServiceAccount", Namespace: a.Namespace, Name: diagnosis.ServiceAccount},
			"the account for reports does not exist", "apply deploy/base/rbac.yaml")
	}
}

// checkPods finds out why brokers do not answer.
func (e *examination) checkPods(a *Answer) {
	if a.PodsErr == nil && len(a.Brokers) == 0 {
		e.add(a.Context, NotInstalled, diagnosis.Error, diagnosis.Object{Kind: "Namespace", Name: a.Namespace},
			"there is no pod with the label "+brokerLabel+" in namespace "+a.Namespace,
			"install kubelink (kubectl kubelink connect, or deploy/README.md), or name its namespace with --namespace")
	}
	for i := range a.Brokers {
		b := &a.Brokers[i]
		pod := diagnosis.Object{Kind: "Pod", Namespace: a.Namespace, Name: b.Name}
		refused, isRefused := errors.AsType[*RefusedError](b.Err)
		switch {
		case b.Err == nil || b.Err == a.TokenErr:
		case !b.Running && isAboutTUN(b.Problem):
			e.add(a.Context, NoTUN, diagnosis.Error, pod, "the broker has no TUN device: "+b.Problem,
				"load the kernel module tun on the node (modprobe tun), and use a container runtime that shows /dev/net/tun")
		case !b.Running && isAboutImage(b.Problem):
			e.add(a.Context, PodNotRunning, diagnosis.Error, pod, b.Err.Error(), imageRemedy)
		case !b.Running:
			e.add(a.Context, PodNotRunning, diagnosis.Error, pod, b.Err.Error(),
				fmt.Sprintf("see kubectl --context %s -n %s describe pod %s, and its log", a.Context, a.Namespace, b.Name))
		case isRefused:
			e.add(a.Context, ReportRefused, diagnosis.Error, pod, refused.Error(), refused.Remedy)
		case apierrors.IsForbidden(b.Err):
			e.add(a.Context, NoRights, diagnosis.Error, pod, "you may not get pods/proxy: "+describeError(b.Err),
				"use a context whose user may get pods/proxy in namespace "+a.Namespace)
		default:
			e.add(a.Context, BrokerUnreachable, diagnosis.Error, pod,
				fmt.Sprintf("the pod on node %s does not answer: %s", b.Node, describeError(b.Err))+withSemicolon(b.Ended),
				fmt.Sprintf("see that the node is alive, that the broker runs (its log), and that the API server reaches TCP "+
					"port %d of the node or pod; a broker before this version has no report", b.port))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.Nodes)) {
		e.add(a.Context, NodeNotReady, diagnosis.Error, diagnosis.Object{Kind: "Node", Name: name},
			"the node is not ready "+a.Nodes[name],
			fmt.Sprintf("see kubectl --context %s get node %s; start it, or its kubelet, again, or delete the Node if it is "+
				"gone for good: then another one gets the pods of kubelink", a.Context, name))
	}
	for i := range a.Routers {
		e.checkRouter(a, &a.Routers[i])
	}
	e.checkSilentRouters(a)
}

// checkRouter takes over what the router of a node has found, which it says sooner than its readiness.
func (e *examination) checkRouter(a *Answer, r *Router) {
	if r.Report != nil {
		for _, f := range r.Report.Findings {
			e.findings = append(e.findings, Finding{a.Context, f})
		}
		return
	}
	node, remedy := diagnosis.Object{Kind: "Node", Name: r.Node}, fmt.Sprintf("see kubectl --context %s -n %s logs %s",
		a.Context, a.Namespace, r.Name)
	if isAboutImage(r.Problem) {
		remedy = imageRemedy
	}
	if !r.Ready {
		problem := r.Problem
		if problem == "" && r.Err != nil {
			problem, _ = describeSilence(r.Err)
		}
		e.add(a.Context, diagnosis.RouterNotReady, diagnosis.Error, node,
			"kubelink-router is not ready on the node: pods there may have no way to the links"+withColon(problem), remedy)
	}
}

// isSilent tells whether a router that is ready could not be asked.
func isSilent(r Router) bool { return r.Ready && r.Err != nil }

// checkSilentRouters says which routers could not be asked, once for each cause: it is mostly the same on all nodes.
func (e *examination) checkSilentRouters(a *Answer) {
	silent := map[string][]Router{}
	for _, r := range a.Routers {
		if isSilent(r) {
			cause, _ := describeSilence(r.Err)
			silent[cause] = append(silent[cause], r)
		}
	}
	for _, cause := range slices.Sorted(maps.Keys(silent)) {
		routers := silent[cause]
		where, first := "node "+routers[0].Node, &routers[0]
		if n := len(routers) - 1; n > 0 {
			where += fmt.Sprintf(" and %d more", n)
		}
		_, remedy := describeSilence(first.Err)
		e.add(a.Context, diagnosis.NodeNotChecked, diagnosis.Warning,
			diagnosis.Object{Kind: "DaemonSet", Namespace: a.Namespace, Name: link.RouterName},
			fmt.Sprintf("it is not known what is in the way of packets on %s, as kubelink-router cannot be asked: %s", where, cause),
			cmp.Or(remedy, fmt.Sprintf("see that the API server reaches TCP port %d of the node, and the log of pod %s", first.port,
				first.Name)))
	}
}

// describeSilence says why a router gives no report, and what to do, if the router says it.
func describeSilence(err error) (cause, remedy string) {
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return fmt.Sprintf("it refuses the request (%d): %s", refused.Code, refused.Refusal.Error), refused.Remedy
	}
	return describeError(err), ""
}

func withColon(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

func withSemicolon(text string) string {
	if text == "" {
		return ""
	}
	return "; " + text
}

const imageRemedy = "see that the image has this name in a registry that nodes reach, with imagePullSecrets if it needs " +
	"them, or on each node (deploy/README.md, Image); if the name is wrong, set another one where kubelink was installed " +
	"from, such as kubectl kubelink connect --image"

// isAboutImage tells whether a pod does not run because of its image. The words are kubelet's.
func isAboutImage(problem string) bool {
	return slices.ContainsFunc([]string{"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"},
		func(reason string) bool { return strings.Contains(problem, reason) })
}

// describeRefusal gives the words of the API server; of a raw request a client knows none.
func describeRefusal(err error) string {
	text := describeError(err)
	if text == "unknown" {
		return ""
	}
	return withColon(text)
}

// isAboutTUN tells whether a pod does not run because of its TUN device.
func isAboutTUN(problem string) bool { return strings.Contains(problem, "/dev/net/tun") }

// describeError says on one line what has failed.
func describeError(err error) string {
	if errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "context deadline exceeded") {
		return fmt.Sprintf("no answer within %s", Deadline)
	}
	const limit = 400
	text := strings.ReplaceAll(err.Error(), "\n", " ")
	if apierrors.IsServiceUnavailable(err) { // a client has no other words for the answer of the proxy
		text = "the API server has no connection to it"
	}
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "..."
	}
	return text
}

// checkHolders looks whether one broker has the links.
func (e *examination) checkHolders(a *Answer) {
	active := map[string][]string{}
	for i := range a.Brokers {
		r := a.Brokers[i].Report
		if r == nil {
			continue
		}
		if r.Lease.Active && r.Mode != "none" {
			for j := range r.Links {
				active[r.Links[j].Name] = append(active[r.Links[j].Name], a.Brokers[i].Name)
			}
		}
	}
	for _, l := range a.links() {
		if pods := active[l.Name]; len(pods) > 1 && l.State != "" {
			e.add(a.Context, TwoHolders, diagnosis.Error, diagnosis.Object{Kind: "KubeLink", Name: l.Name},
				"several brokers carry the link: "+strings.Join(pods, ", "),
				"give brokers of the same links the same lease-name and no omit-lease, or disjoint served-links")
			break
		}
	}
	r := a.active()
	if r != nil && !r.Lease.Active {
		e.add(a.Context, NoActiveBroker, diagnosis.Error,
			diagnosis.Object{Kind: "Lease", Namespace: a.Namespace, Name: "kubelink"},
			fmt.Sprintf("no broker that answers holds the links; the Lease names %s", cmp.Or(r.Lease.Holder, "nobody")),
			"see that the broker on that node runs; else another one takes the links when the Lease ends")
	}
}

// checkService looks whether peers can find the broker. If all links are Up, this cluster finds them.
func (e *examination) checkService(a *Answer) {
	s, all := a.Service, a.links()
	down := slices.ContainsFunc(all, func(l Link) bool { return !IsGood(l.State, l.Mode) })
	if s == nil || !down || s.Spec.Type != corev1.ServiceTypeLoadBalancer || len(s.Status.LoadBalancer.Ingress) > 0 {
		return
	}
	e.add(a.Context, NoExternalAddress, diagnosis.Warning,
		diagnosis.Object{Kind: "Service", Namespace: s.Namespace, Name: s.Name},
		"the service has no external address yet: peers cannot connect to this cluster",
		"see the events of the service; without load balancers in this cluster use another type, such as NodePort")
}

// checkEnds compares the places of the clusters in their meshes.
func (e *examination) checkEnds() {
	var all []end
	for i := range e.answers {
		all = append(all, e.answers[i].ends()...)
	}
	for i := range all {
		for j := range i {
			a, b := &all[j], &all[i]
			if a.answer == b.answer {
				continue
			}
			e.compareEnds(a, b)
		}
	}
}

func (e *examination) compareEnds(a, b *end) {
	about := diagnosis.Object{Kind: "KubeLink", Name: cmp.Or(b.cluster.Link, b.cluster.Name)}
	for _, address := range b.cluster.Addresses {
		if a.hasAddress(address) {
			e.add(b.answer.Context, AddressTwice, diagnosis.Error, about,
				fmt.Sprintf("the cluster address %s is also that of %s", address, a.answer.Context),
				"give one of the clusters another spec.clusterAddress in its LocalLink (or link-address), and in the links to it")
			return
		}
	}
}

// checkLink compares a link with what the cluster at its other end says.
func (e *examination) checkLink(l *Link) {
	about := diagnosis.Object{Kind: "KubeLink", Name: l.Name}
	if l.Back != nil && l.Back.State == StateMissing {
		e.add(l.Context, OneSidedLink, diagnosis.Error, about,
			fmt.Sprintf("%s has no link back: it has no KubeLink with the cluster address of this cluster", l.Back.Context),
			fmt.Sprintf("create it there, or run kubectl kubelink connect %s %s", l.Context, l.Back.Context))
	}
	from := slices.IndexFunc(e.answers, func(a Answer) bool { return a.Context == l.Context })
	other, _ := findEnd(e.answers, from, l)
	if other == nil {
		return
	}
	r := other.answer.active()
	if r != nil && l.Mode != "" && r.Mode != l.Mode && r.Mode != "none" && l.Mode != "none" {
		e.add(l.Context, DifferentModes, diagnosis.Error, about,
			fmt.Sprintf("this cluster has mode %s, and %s has mode %s", l.Mode, other.answer.Context, r.Mode),
			"give both the same mode in their Corefiles")
	}
	if l.CIDR != "" && len(other.cluster.Services) > 0 && !slices.Contains(other.cluster.Services, l.CIDR) {
		e.add(l.Context, WrongNetwork, diagnosis.Error, about,
			fmt.Sprintf("spec.cidr %s is not the service network of %s, %s", l.CIDR, other.answer.Context,
				strings.Join(other.cluster.Services, ", ")),
			"set spec.cidr to the network of that cluster, or remove it")
	}
	e.checkKey(l, other)
}

// checkKey compares the key of a link in mode wireguard with that of the cluster.
func (e *examination) checkKey(l *Link, other *end) {
	a := &e.answers[slices.IndexFunc(e.answers, func(a Answer) bool { return a.Context == l.Context })]
	for i := range a.Links {
		if a.Links[i].Name != l.Name || a.Links[i].Spec.PublicKey == "" {
			continue
		}
		for j := range other.answer.Links {
			o := &other.answer.Links[j]
			if o.Name == other.cluster.Link && o.Status.PublicKey != "" && o.Status.PublicKey != a.Links[i].Spec.PublicKey {
				e.add(l.Context, WrongKey, diagnosis.Error, diagnosis.Object{Kind: "KubeLink", Name: l.Name},
					fmt.Sprintf("spec.publicKey is not the key of %s, %s", other.answer.Context, o.Status.PublicKey),
					"set spec.publicKey to status.publicKey of the LocalLink there")
			}
		}
	}
}

// ContextError says that the kubeconfig has no such context, or no good one.
type ContextError struct{ error }

// NewContextError says why a context cannot be used.
func NewContextError(name string, err error) error {
	return &ContextError{fmt.Errorf("context %s: %w", name, err)}
}

func (e *ContextError) Unwrap() error { return e.error }

// Health is the sum of a survey.
type Health struct {
	Unanswered bool // an API server, or a broker, does not answer
	Wrong      bool // a link is not Up, or there is an error
}

// Judge says whether all is as it should be.
func Judge(answers []Answer, links []Link, findings []Finding) (h Health) {
	for i := range answers {
		h.Unanswered = h.Unanswered || answers[i].Err != nil || answers[i].active() == nil
	}
	for i := range links {
		l := &links[i]
		h.Wrong = h.Wrong || !IsGood(l.State, l.Mode) || l.Back != nil && !IsGood(l.Back.State, l.Mode)
	}
	h.Wrong = h.Wrong || slices.ContainsFunc(findings, func(f Finding) bool { return f.Severity == diagnosis.Error })
	return h
}

// IsGood tells whether a link is as it should be: links of mode none have no connection.
func IsGood(state, mode string) bool { return state == "Up" || mode == "none" && state == "Idle" }

// RoundAge is an age as people read it.
func RoundAge(d time.Duration) string {
	switch {
	case d <= 0:
		return "-"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
