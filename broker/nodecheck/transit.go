package nodecheck

// Packets of pods on a node that is not the gateway: which rules drop them on their way there.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mandelsoft/kubelink/broker/link"
)

// Transit is the way of a packet of a pod through a node to the gateway.
type Transit struct {
	Pod     netip.Addr
	In      string // device of the pod
	To      netip.Addr
	Network netip.Prefix // of a mesh, that To is in
	Out     string       // device that leads to the gateway
}

// TransitChecker remembers the rules that it has read. It has one user at a time.
type TransitChecker struct {
	node *node
}

// NewTransitChecker opens what a TransitChecker asks. It checks the network namespace that the process is in.
func NewTransitChecker() (*TransitChecker, error) {
	n, err := openNode()
	return &TransitChecker{n}, err
}

// Close closes it.
func (c *TransitChecker) Close() { c.node.close() }

// FindDrops finds, for each network, the rule that certainly drops what pods send there. What happens to some of the
// pods only is no finding: that is their network policy. An error says why not all rules could be read: the legacy
// iptables needs the capability NET_RAW.
func (c *TransitChecker) FindDrops(ctx context.Context, networks [][]Transit) (findings link.Findings, err error) {
	l := &look{node: c.node, target: &Target{}}
	if err := l.readDevices(); err != nil {
		return nil, err
	}
	read := map[int]*filterLook{}
	for _, ways := range networks {
		family := familyOf(ways[0].Pod)
		if read[family] == nil {
			f, err := readFilters(ctx, l, family)
			if err != nil {
				return nil, err
			}
			read[family] = f
		}
		if f := read[family].findTransitDrop(ways); f != nil && !hasRule(findings, f) {
			findings = append(findings, *f)
		}
	}
	for _, f := range read {
		err = errors.Join(err, f.fault())
	}
	return findings, err
}

// hasRule tells whether there is a finding with the same remedy, which is about the same rule.
func hasRule(findings link.Findings, f *link.Finding) bool {
	return slices.ContainsFunc(findings, func(o link.Finding) bool { return o.Remedy == f.Remedy })
}

// findTransitDrop returns what drops the packets of all ways; nil: nothing does for certain.
func (f *filterLook) findTransitDrop(ways []Transit) (found *link.Finding) {
	for i := range ways {
		t := &ways[i]
		p := &packet{in: t.In, src: t.Pod, dst: t.To}
		chain, by := findDrop(f.chains, ingress, prerouting, p)
		if p.out = t.Out; chain == nil {
			chain, by = findDrop(f.chains, forward, egress, p)
		}
		if chain == nil {
			return nil
		}
		found = &link.Finding{Reason: PacketFilter,
			Text:   fmt.Sprintf("packets of pods to %s are dropped on this node: %s", t.Network, by.text),
			Remedy: fmt.Sprintf("%s (or %s)", chain.remedy(t.Out), cmp.Or(by.undo, "remove that rule"))}
	}
	return found
}
