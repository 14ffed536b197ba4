package nodecheck

// What rules do to packets between pods and links: both back ends of iptables, and native nftables.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// filterCache has what the last look saw, by family.
type filterCache map[int]*filterLook

// filterLook is one look at the rules of a family. As long as none changes, its findings hold.
type filterLook struct {
	generation uint32 // of nftables
	legacy     string
	chains     []baseChain
	fault      func() error

	networks []network
	pods     []pod
	findings link.Findings
}

// checkFilters lets packets walk through the rules of each family that links use.
func checkFilters(ctx context.Context, l *look) error {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		networks := slices.DeleteFunc(slices.Clone(l.networks), func(n network) bool { return familyOf(n.source) != family })
		if len(networks) == 0 {
			continue
		}
		f, err := readFilters(ctx, l, family)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		pods := l.podsOf(family)
		if f.networks == nil || !slices.Equal(f.networks, networks) || !slices.Equal(f.pods, pods) {
			j := &judge{target: l.target, networks: networks, pods: pods, chains: f.chains}
			f.networks, f.pods, f.findings = networks, pods, j.judgeNetworks()
			errs = append(errs, f.fault())
		}
		for _, found := range f.findings {
			l.addFinding(found.Link, found.Reason, found.Text, found.Remedy)
		}
	}
	return errors.Join(errs...)
}

// readFilters reads the rules of a family, if they have changed.
func readFilters(ctx context.Context, l *look, family int) (*filterLook, error) {
	legacy, legacyErr := saveLegacy(ctx, family)
	generation, err := nftGeneration()
	if err != nil && legacyErr == nil && len(legacy) == 0 {
		return nil, err
	}
	last := l.filters[family]
	if last != nil && last.generation == generation && last.legacy == legacy.text() && last.fault() == nil {
		return last, nil
	}
	f := &filterLook{generation: generation, legacy: legacy.text(), fault: func() error { return legacyErr }}
	for _, t := range legacy {
		f.chains = append(f.chains, parseSaved(t.command, t.table, t.rules)...)
	}
	if err == nil { // else the kernel has no nftables
		chains, fault, err := readNFTables(family, l.indexOfDevice)
		if err != nil {
			return nil, err
		}
		f.chains = append(f.chains, chains...)
		f.fault = func() error { return errors.Join(legacyErr, fault()) }
	}
	sortChains(f.chains)
	if l.filters == nil {
		l.filters = filterCache{}
	}
	l.filters[family] = f
	return f, nil
}

// judge lets packets walk through the rules of one family.
type judge struct {
	target   *Target
	networks []network
	pods     []pod
	chains   []baseChain
}

// samplePods is how many pods must have the same verdict: the network policy of one pod is no finding.
const samplePods = 4

// judgeNetworks says what happens to packets of pods to each network, and back. What happens to all is a finding about
// the node.
func (j *judge) judgeNetworks() (findings link.Findings) {
	pods := j.pods[:min(len(j.pods), samplePods)]
	if len(pods) == 0 {
		pods = []pod{{}}
	}
	verdicts := make([]link.Findings, len(j.networks))
	for i := range j.networks {
		verdicts[i] = j.judgeNetwork(&j.networks[i], &pods[0])
		for k := range pods[1:] {
			others := j.judgeNetwork(&j.networks[i], &pods[1+k])
			verdicts[i] = slices.DeleteFunc(verdicts[i], func(f link.Finding) bool { return !slices.Contains(others, f) })
		}
	}
	for i, found := range verdicts {
		for _, f := range found {
			subject := j.networks[i].prefix.String()
			if isGeneral(f, verdicts) {
				f.Link, subject = "", "links"
			}
			f.Text = fmt.Sprintf(f.Text, subject)
			findings = append(findings, f)
		}
	}
	return findings
}

// isGeneral tells whether a finding is about all networks.
func isGeneral(f link.Finding, verdicts []link.Findings) bool {
	same := func(o link.Finding) bool { o.Link = f.Link; return o == f }
	for _, found := range verdicts {
		if !slices.ContainsFunc(found, same) {
			return false
		}
	}
	return true
}

// judgeNetwork returns the findings about one network. Their texts have a place for what they are about.
func (j *judge) judgeNetwork(n *network, p *pod) (found link.Findings) {
	device, chains := j.target.Device, j.chains
	add := func(reason string, format string, c *baseChain, r *rule) {
		found = append(found, link.Finding{
			Link: n.link, Reason: reason, Text: format + escapeFormat(r.text),
			Remedy: fmt.Sprintf("%s (or %s)", c.remedy(device), cmp.Or(r.undo, "remove that rule")),
		})
	}
	out := &packet{in: p.device, src: p.address, dst: n.host()}
	c, r := findDrop(chains, ingress, prerouting, out)
	out.out = device
	if c == nil {
		c, r = findDrop(chains, forward, egress, out)
	}
	if c != nil {
		add(PacketFilter, "packets of pods to %s are dropped: ", c, r)
	}
	source, c, r, ok := findSource(chains, out)
	switch {
	case !ok || source == n.source:
	case r == nil:
		found = append(found, link.Finding{
			Link: n.link, Reason: SourceNAT,
			Text:   "no rule gives packets of pods to %s the address " + n.source.String() + ", and peers drop them",
			Remedy: "kubelink sets its rule again; if this stays, " + lookFor,
		})
	case source.IsValid():
		add(SourceNAT, "packets of pods to %s leave with the source "+source.String()+", and peers drop them: ", c, r)
	default:
		add(SourceNAT, "packets of pods to %s are masqueraded before kubelink sees them, and peers drop them: ", c, r)
	}
	in := &packet{in: device, src: n.host(), dst: j.serviceAddress(n)}
	if c, r = findDrop(chains, ingress, prerouting, in); c == nil {
		// kube-proxy marks packets to services, and has translated the destination.
		in.out, in.dst, in.marked, in.dnat = p.device, p.address, true, true
		c, r = findDrop(chains, forward, egress, in)
	}
	if c != nil {
		add(PacketFilter, "packets from %s are dropped: ", c, r)
	}
	// The broker asks for names itself. The other hooks are those of pods' packets.
	const names = ", so that names of links cannot be asked for: "
	if c, r = findDrop(chains, output, output, &packet{out: device, src: n.source, dst: n.host()}); c != nil {
		add(PacketFilter, "packets of the node to %s are dropped"+names, c, r)
	}
	reply := &packet{in: device, src: n.host(), dst: n.source, answer: true}
	if c, r = findDrop(chains, input, input, reply); c != nil {
		add(PacketFilter, "answers to the node from %s are dropped"+names, c, r)
	}
	return found
}

// escapeFormat keeps a text as it is in a format.
func escapeFormat(text string) string {
	out := make([]byte, 0, len(text))
	for i := range len(text) {
		if out = append(out, text[i]); text[i] == '%' {
			out = append(out, '%')
		}
	}
	return string(out)
}

// serviceAddress is an address of a local service network; not valid if none is known.
func (j *judge) serviceAddress(n *network) netip.Addr {
	for _, p := range j.target.State.Peers {
		if services := p.Services.SameFamily(n.source); p.Link == n.link && services.IsValid() {
			return mesh.Nth(services, 1)
		}
	}
	return netip.Addr{}
}
