package kernel

// Which back end of iptables has our chains: nf_tables or legacy. It must be the one that the node uses, for only in
// one back end are the hooks in an order: in the other one, ours would not come before the rules of kube-proxy that
// masquerade, and its ACCEPT would not keep a rule from refusing the packet. A container has both, so we look what is
// there, as the iptables-wrappers of Kubernetes do. With each Set we look again: an administrator may have changed the
// node, and the chains move then.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The back ends, as the names of the commands have them.
const (
	nftBackend    = "nft"
	legacyBackend = "legacy"
)

// Backend says which back end of iptables has our chains of a family.
type Backend struct {
	Family int    // 4 or 6
	Name   string // nft or legacy; empty: the commands do not say which one they are
	Reason string // why this one
}

// toolset is the commands of one family and one back end. Without a back end they are what the node calls iptables.
type toolset struct {
	family  int
	backend string
}

// command returns the name of a command: iptables itself, or the tool "save" or "restore".
func (t toolset) command(tool string) string {
	name := "iptables"
	if t.family == unix.AF_INET6 {
		name = "ip6tables"
	}
	for _, part := range []string{t.backend, tool} {
		if part != "" {
			name += "-" + part
		}
	}
	return name
}

// findBackends returns the back ends that are installed, the empty one if there are no commands for each.
func findBackends() (names []string) {
	for _, name := range []string{nftBackend, legacyBackend} {
		if _, err := exec.LookPath(toolset{unix.AF_INET, name}.command("save")); err == nil {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return []string{""}
	}
	return names
}

// Backends returns the back ends of the families that meshes use, as the last Set has chosen them. It does not wait for
// a Set that runs.
func (k *Kernel) Backends() []Backend {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.used
}

// selectTools chooses the back end of a family, and returns its tables.
func (k *Kernel) selectTools(ctx context.Context, family int, failed *failures) (toolset, ruleset) {
	last, known := k.selected[family]
	if !known {
		last.Name = cmp.Or(k.selected[unix.AF_INET].Name, k.backends[0])
	}
	found := map[string]ruleset{}
	for _, name := range k.backends {
		if name != last.Name {
			found[name] = k.glanceAt(ctx, toolset{family, name})
		}
	}
	tools := toolset{family, last.Name}
	found[last.Name] = k.readTables(ctx, tools, true)
	chosen := Backend{Family: IPVersion(family), Name: last.Name, Reason: "no other one is installed"}
	if len(k.backends) > 1 {
		chosen.Name, chosen.Reason = chooseBackend(last, known, found)
	}
	if chosen.Name != last.Name {
		tools.backend = chosen.Name
		found[chosen.Name] = k.readTables(ctx, tools, true)
	}
	k.selected[family] = chosen
	for _, name := range k.backends {
		if err := chosen.compareRules(name, found[name]); err != nil {
			failed.warnings = append(failed.warnings, err)
		}
	}
	return tools, found[chosen.Name]
}

// compareRules returns an error if another back end has rules of Kubernetes: nodecheck sees what they do, this says
// where they come from.
func (b Backend) compareRules(other string, found ruleset) error {
	n := found.countRules(isOfKubernetes)
	if n == 0 || other == b.Name {
		return nil
	}
	return fmt.Errorf("iptables-%s of IPv%d has %d rules of Kubernetes, and kubelink uses iptables-%s (%s): packets pass "+
		"both, so old rules decide about them; if the node was changed from one to the other, boot it",
		other, b.Family, n, b.Name, b.Reason)
}

// glanceAt reads the tables of a back end that may not be in use. It holds up nothing: what cannot be read has no
// rules.
func (k *Kernel) glanceAt(ctx context.Context, tools toolset) ruleset {
	known := k.known(tools)
	if time.Now().Before(known.lookAgain) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, unusedTime)
	defer cancel()
	output, err := k.system.SaveTables(ctx, tools, "")
	if err == nil {
		var found ruleset
		if found, err = parseTables(output); err == nil {
			return found
		}
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		known.lookAgain = time.Now().Add(unusedPause)
	}
	return nil
}

// chooseBackend returns the back end that the node uses: the one with the chain that kubelet makes for this purpose,
// else the one with more rules. Without that chain we stay where foreign rules are: programs that use both must not
// move us to and fro. A family without any rule goes with IPv4, else into nft.
func chooseBackend(last Backend, known bool, found map[string]ruleset) (name, reason string) {
	rules := map[string]int{}
	for _, name := range []string{nftBackend, legacyBackend} {
		if found[name].hasHint() {
			return name, "kubelet's chain is there"
		}
		rules[name] = found[name].countRules(isForeign)
	}
	switch nft, legacy := rules[nftBackend], rules[legacyBackend]; {
	case known && (rules[last.Name] > 0 || nft == legacy):
		return last.Name, last.Reason
	case legacy > nft:
		return legacyBackend, fmt.Sprintf("more rules are there: %d, in nft %d", legacy, nft)
	case nft > legacy:
		return nftBackend, fmt.Sprintf("more rules are there: %d, in legacy %d", nft, legacy)
	}
	return last.Name, "no back end has rules"
}

// hasHint tells whether kubelet has made one of its chains here. It does so since Kubernetes 1.17, in any mode of
// kube-proxy.
func (r ruleset) hasHint() bool {
	mangle := r[mangleTable]
	_, hint := mangle.find("KUBE-IPTABLES-HINT")
	_, canary := mangle.find("KUBE-KUBELET-CANARY")
	return hint || canary
}

// countRules counts the rules for which is holds, of all tables.
func (r ruleset) countRules(is func(chainRule) bool) (n int) {
	for _, t := range r {
		for rules := range maps.Values(t.chains) {
			for _, rule := range rules {
				if is(rule) {
					n++
				}
			}
		}
	}
	return n
}

// inOurChain is a rule of a broker's or a router's chain.
var inOurChain = regexp.MustCompile(`^-A (KL[A-Z]*|KUBELINK)-`)

func isForeign(r chainRule) bool {
	return !inOurChain.MatchString(r.text) && !ourHook.MatchString(r.text)
}

func isOfKubernetes(r chainRule) bool { return strings.HasPrefix(r.text, "-A KUBE-") }
