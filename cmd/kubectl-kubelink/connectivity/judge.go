package connectivity

// What results mean, and what to do about them.

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/broker/echo"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/survey"
	"github.com/mandelsoft/kubelink/cmd/kubelink/probe"
)

// The reasons of findings.
const (
	NotAnswered    = "NotAnswered"  // by an API server or a broker
	LinkNotUp      = "LinkNotUp"    //
	PodFailed      = "PodFailed"    // nothing is known from a node
	NameNotFound   = "NameNotFound" // by a pod
	NotReachable   = "NotReachable" // from a pod
	maxListedNames = 5              // of a message
)

// addResults adds a check for everything that a pod was to try. err says why there may be no results.
func (c *cluster) addResults(t *task, results []probe.Result, err error) {
	known := map[[2]string]probe.Result{}
	for _, r := range results {
		known[[2]string{r.Link, r.Check}] = r
	}
	if err != nil {
		c.addCheck(Check{Node: t.node, Check: checkPod, Result: Failed, Message: err.Error()})
	}
	failed := 0
	for i := range t.links {
		l := &t.links[i]
		named := false
		for _, name := range probe.Checks {
			if l.skipped[name] != "" {
				continue
			}
			k := Check{Node: t.node, Link: l.Name, Check: name, Result: OK}
			if r, ok := known[[2]string{l.Name, name}]; ok {
				k.readResult(&r, named)
			} else if err != nil {
				k.Result, k.Message = NotTested, "the pod on the node has given no result"
			} else {
				k.Result, k.Message = NotTested, "the address of the service is not known, as its name was not found"
			}
			if k.Result == OK && name == probe.ClusterDNS {
				named = true
			}
			if k.Result == Failed {
				failed++
			}
			c.addCheck(k)
		}
	}
	switch {
	case err != nil:
		c.say("node %s: %s", t.node, err)
	case failed > 0:
		c.say("node %s: %d checks have failed", t.node, failed)
	default:
		c.say("node %s: ok", t.node)
	}
}

// readResult takes a result over. named tells whether the pod finds another name of the link.
func (k *Check) readResult(r *probe.Result, named bool) {
	k.Seconds, k.Target, k.Message = r.Seconds, r.Target, r.Problem
	switch {
	case r.Problem == "":
	case r.Denied:
		k.Result = NotTested
	case r.Missing && r.Check == probe.StateName && named:
		k.Result, k.Message = NotTested, "there are no such names: state-names is off"
	default:
		k.Result = Failed
	}
}

// pingInstead has the broker ping the links that no pod may ping.
func (c *cluster) pingInstead(ctx context.Context) {
	for i := range c.links {
		name, denied, others := c.links[i].Name, false, false
		for _, k := range c.checks {
			if k.Link == name && k.Check == probe.Ping {
				denied = denied || k.Result == NotTested && k.Target != ""
				others = others || k.Result != NotTested
			}
		}
		if !denied || others || ctx.Err() != nil {
			continue
		}
		k := Check{Link: name, Check: probe.Ping, Result: OK, Message: "from the broker"}
		result, err := survey.Ping(ctx, c.Target, name, echo.DefaultSize, 1)
		switch {
		case err != nil:
			k.Result, k.Message = NotTested, "the broker does not ping: "+err.Error()
		case result.Received == 0:
			k.Target, k.Result = result.Address, Failed
			k.Message = strings.TrimSuffix("from the broker: no answer: "+result.Problem, ": ")
		default:
			k.Target, k.Seconds = result.Address, result.Times[0]
		}
		c.addCheck(k)
	}
}

// cause is what findings are made of: the links whose check fails on the same nodes.
type cause struct {
	check   string
	links   []string
	failed  []string // nodes
	good    []string // nodes where the check of all of these links is good
	message string   // of the first one
}

// makeFindings makes findings of checks that have failed.
func (c *cluster) makeFindings() (all []survey.Finding) {
	for _, k := range findCauses(c.checks) {
		all = append(all, survey.Finding{Context: c.Context, Finding: diagnosis.Finding{
			Reason: reasonOf(k.check), Severity: diagnosis.Error, Object: c.objectOf(k),
			Message: k.describeChecks(), Remedy: c.findRemedy(k),
		}})
	}
	return all
}

// findCauses puts checks together that fail alike.
func findCauses(checks []Check) (all []*cause) {
	type key struct{ link, check string }
	single := map[key]*cause{}
	var order []key
	for i := range checks {
		k := &checks[i]
		at := key{k.Link, k.Check}
		if single[at] == nil {
			single[at] = &cause{check: k.Check, links: []string{k.Link}}
			order = append(order, at)
		}
		s := single[at]
		switch k.Result {
		case Failed:
			s.failed = append(s.failed, k.Node)
			if s.message == "" {
				s.message = k.Message
			}
		case OK:
			s.good = append(s.good, k.Node)
		}
	}
	for _, at := range order {
		s := single[at]
		if len(s.failed) == 0 {
			continue
		}
		i := slices.IndexFunc(all, func(a *cause) bool {
			return a.check == s.check && slices.Equal(a.failed, s.failed) && slices.Equal(a.good, s.good)
		})
		if i >= 0 {
			all[i].links = append(all[i].links, s.links...)
		} else {
			all = append(all, s)
		}
	}
	return all
}

// onNode tells whether it is about one node, and the others are good.
func (k *cause) onNode() bool {
	return len(k.failed) == 1 && k.failed[0] != "" && (len(k.good) > 0 || k.check == checkPod)
}

// describeChecks says what has failed, and where.
func (k *cause) describeChecks() string {
	text := k.message
	if k.links[0] != "" && k.check != checkState {
		text = fmt.Sprintf("%s over %s fails", k.check, listNames("link", k.links))
		if k.failed[0] != "" {
			text += " from pods on " + listNames("node", k.failed)
		}
		if len(k.good) > 0 {
			text += ", not on " + listNames("node", k.good)
		}
		text += ": " + k.message
	} else if k.check == checkPod {
		text = "the test from " + listNames("node", k.failed) + " has no result: " + text
	}
	return text
}

// listNames lists the first names.
func listNames(what string, names []string) string {
	if len(names) == 1 {
		return what + " " + names[0]
	}
	if len(names) <= maxListedNames {
		return what + "s " + strings.Join(names, ", ")
	}
	return fmt.Sprintf("%ss %s and %d more", what, strings.Join(names[:maxListedNames], ", "), len(names)-maxListedNames)
}

func reasonOf(check string) string {
	switch check {
	case checkBroker, checkNode:
		return NotAnswered
	case checkState:
		return LinkNotUp
	case checkPod:
		return PodFailed
	case probe.ClusterDNS, probe.KubelinkDNS, probe.StateName:
		return NameNotFound
	}
	return NotReachable
}

func (c *cluster) objectOf(k *cause) diagnosis.Object {
	switch {
	case k.onNode():
		return diagnosis.Object{Kind: "Node", Name: k.failed[0]}
	case len(k.links) == 1 && k.links[0] != "":
		return diagnosis.Object{Kind: "KubeLink", Name: k.links[0]}
	}
	return diagnosis.Object{Kind: "Cluster", Name: c.Context}
}

// findRemedy says what to do.
func (c *cluster) findRemedy(k *cause) string {
	diagnose := "kubectl kubelink diagnose " + c.Context
	kubectl := fmt.Sprintf("kubectl --context %s -n %s ", c.Context, c.Namespace)
	for i := range c.links {
		if b := c.links[i].Back; b != nil && slices.Contains(k.links, c.links[i].Name) {
			diagnose += " " + b.Context
			break
		}
	}
	switch k.check {
	case checkBroker, checkNode, checkState:
		return diagnose + " finds the cause"
	case checkPod:
		return fmt.Sprintf("see that the node runs pods of the image %s (kubectl --context %s describe node %s), and that "+
			"you may create, get and delete pods and get pods/log in namespace %s",
			c.pods.image, c.Context, k.failed[0], c.Namespace)
	}
	if k.onNode() {
		switch k.check {
		case probe.ClusterDNS, probe.StateName:
			return "see that pods of the node reach the DNS service of the cluster: kube-proxy, NodeLocal DNS and firewall " +
				"of the node"
		case probe.KubelinkDNS:
			return "see that pods of the node reach the service " + dnsService + ": kube-proxy and firewall of the node"
		}
		return fmt.Sprintf("see kubelink-router, routes and firewall of the node: %sget pods -l app=kubelink-router "+
			"--field-selector spec.nodeName=%s, the log of that pod, and %s", kubectl, k.failed[0], diagnose)
	}
	switch k.check {
	case probe.ClusterDNS, probe.StateName:
		return "let the DNS service of the cluster forward the domain of the mesh to the service " + dnsService + "; " +
			diagnose + " says how"
	case probe.KubelinkDNS:
		return "see that pods reach the service " + dnsService + ", and that dns.allow has their network; " + diagnose
	}
	return diagnose + " finds what is in the way; the other cluster may also not let it in (ingress), or the service has " +
		"no endpoint"
}
