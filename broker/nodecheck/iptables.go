package nodecheck

// The legacy iptables, which nftables does not show: what iptables-legacy-save prints as chains of rules.

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mandelsoft/kubelink/broker/iptsave"
	"golang.org/x/sys/unix"
)

// saveTimeout bounds one run of iptables-legacy-save, which takes no lock.
const saveTimeout = 5 * time.Second

// legacyHooks are the chains that the kernel calls, with their priorities (linux/netfilter_ipv4.h).
var legacyHooks = []struct {
	table, chain string
	hook         hook
	priority     int
}{
	{"raw", "PREROUTING", prerouting, -300},
	{"mangle", "PREROUTING", prerouting, -150},
	{"mangle", "INPUT", input, -150},
	{"filter", "INPUT", input, 0},
	{"security", "INPUT", input, 50},
	{"raw", "OUTPUT", output, -300},
	{"mangle", "OUTPUT", output, -150},
	{"filter", "OUTPUT", output, 0},
	{"security", "OUTPUT", output, 50},
	{"mangle", "FORWARD", forward, -150},
	{"filter", "FORWARD", forward, 0},
	{"security", "FORWARD", forward, 50},
	{"mangle", "POSTROUTING", postrouting, -150},
	{"nat", "POSTROUTING", postrouting, 100},
}

// savedTable is one table as iptables-save prints it, without comments and counters.
type savedTable struct{ command, table, rules string }

type savedTables []savedTable

// text is all of it, to compare it.
func (s savedTables) text() string {
	var all strings.Builder
	for _, t := range s {
		all.WriteString(t.table + "\n" + t.rules)
	}
	return all.String()
}

// saveLegacy reads the legacy iptables of one family.
func saveLegacy(ctx context.Context, family int) (tables savedTables, err error) {
	command := "iptables-legacy"
	if family == unix.AF_INET6 {
		command = "ip6tables-legacy"
	}
	for _, table := range iptsave.LegacyTables(family) {
		ctx, cancel := context.WithTimeout(ctx, saveTimeout)
		out, err := exec.CommandContext(ctx, command+"-save", "-t", table).Output()
		cancel()
		if err != nil {
			return nil, fmt.Errorf("%s-save -t %s: %w", command, table, err)
		}
		tables = append(tables, savedTable{command, table, withoutCounters(string(out))})
	}
	return tables, nil
}

// withoutCounters leaves out what changes with each packet, and the time.
func withoutCounters(text string) string {
	var all strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, ":") {
			line, _, _ = strings.Cut(line, " [")
			line += "\n"
		}
		if !strings.HasPrefix(line, "#") {
			all.WriteString(line)
		}
	}
	return all.String()
}

// parseSaved parses one table as iptables-save prints it.
func parseSaved(command, table, text string) (bases []baseChain) {
	chains, policies := map[string][]rule{}, map[string]action{}
	var declared []string
	for line := range strings.Lines(text) {
		words := iptsave.Words(strings.TrimSpace(line))
		switch {
		case len(words) >= 2 && strings.HasPrefix(words[0], ":"):
			declared = append(declared, words[0][1:])
			policies[words[0][1:]] = map[string]action{"ACCEPT": accept, "DROP": drop}[words[1]]
		case len(words) >= 2 && words[0] == "-A":
			r := parseRule(words[2:])
			r.text = fmt.Sprintf("%s, table %s: rule \"%s\"", command, table, strings.TrimSpace(line))
			chains[words[1]] = append(chains[words[1]], r)
		}
	}
	for _, rules := range chains {
		for i := range rules {
			if r := &rules[i]; r.chain != "" && !slices.Contains(declared, r.chain) {
				r.action, r.chain = unclear, "" // a target that is not known
			}
		}
	}
	for _, h := range legacyHooks {
		policy, ok := policies[h.chain]
		if h.table != table || !ok {
			continue
		}
		bases = append(bases, baseChain{
			hook: h.hook, priority: h.priority, nat: table == "nat", name: h.chain, policy: policy,
			text:   fmt.Sprintf("%s, table %s: chain %s", command, table, h.chain),
			rules:  func(chain string) []rule { return chains[chain] },
			remedy: iptablesRemedy(command, table, h.chain, h.hook),
		})
	}
	return bases
}

// iptablesRemedy says how to accept the packets of a device in a chain of iptables.
func iptablesRemedy(command, table, chain string, h hook) func(string) string {
	option := ""
	if table != "filter" {
		option = " -t " + table
	}
	return func(device string) string {
		in := fmt.Sprintf("%s%s -I %s -i %s -j ACCEPT", command, option, chain, device)
		out := fmt.Sprintf("%s%s -I %s -o %s -j ACCEPT", command, option, chain, device)
		switch h {
		case prerouting, input:
			return in
		case output, postrouting:
			return out
		}
		return in + "; " + out
	}
}

// parseRule parses the options of a rule. What it does not know may hold or not.
func parseRule(words []string) (r rule) {
	inverted := false
	for i := 0; i < len(words); i++ {
		option, value := words[i], ""
		if i+1 < len(words) {
			value = words[i+1]
		}
		switch option {
		case "!":
			inverted = true
			continue
		case "-j", "-g":
			r.action, r.chain = targetAction(option, value)
			r.marks = marksPackets(value)
			r.parseTarget(value, words[i+1:])
			return r
		}
		c, ok := parseMatch(option, value)
		if ok {
			i++ // else what follows is a value, and taken for an option: maybe, too
		}
		if c != nil && inverted {
			c = invertCondition(c)
		}
		if c != nil {
			r.conditions = append(r.conditions, c)
		}
		inverted = false
	}
	return r
}

// knownExtensions say nothing by themselves: their options do.
var knownExtensions = []string{"comment", "conntrack", "state", "mark", "tcp", "addrtype"}

// parseMatch parses an option with its value. ok is false for an option that is not known.
func parseMatch(option, value string) (c condition, ok bool) {
	switch option {
	case "-i":
		return matchDevice(value, func(p *packet) string { return p.in }), true
	case "-o":
		return matchDevice(value, func(p *packet) string { return p.out }), true
	case "-s":
		return matchAddress(value, func(p *packet) netip.Addr { return p.src }), true
	case "-d":
		return matchAddress(value, func(p *packet) netip.Addr { return p.dst }), true
	case "-p":
		return constantAnswer(knownAnswer(slices.Contains([]string{"tcp", "6", "all", "0"}, value))), true
	case "--ctstate", "--state":
		return matchState(strings.Split(value, ",")), true
	case "--mark":
		return matchMark(value), true
	case "--comment":
		return nil, true
	case "-m":
		if slices.Contains(knownExtensions, value) {
			return nil, true
		}
		return constantAnswer(maybe), true
	}
	return constantAnswer(maybe), false
}

// targetAction is what a target does. Chains have names that are no target's.
func targetAction(option, target string) (action, string) {
	if option == "-g" {
		return goTo, target
	}
	switch target {
	case "ACCEPT":
		return accept, ""
	case "DROP", "REJECT":
		return drop, ""
	case "RETURN":
		return back, ""
	case "SNAT", "MASQUERADE":
		return translate, ""
	case "MARK", "CONNMARK", "LOG", "NFLOG", "CT", "NOTRACK", "TCPMSS", "CHECKSUM", "TRACE", "SET", "TOS", "DSCP",
		"CLASSIFY", "AUDIT", "SECMARK", "CONNSECMARK", "HL", "TTL", "ECN", "IDLETIMER", "LED", "RATEEST", "TCPOPTSTRIP":
		return next, ""
	case "QUEUE", "NFQUEUE", "DNAT", "REDIRECT", "NETMAP", "TPROXY", "SYNPROXY", "TEE", "STEAL", "":
		return unclear, ""
	}
	return jump, target
}

// marksPackets tells whether a target changes the mark.
func marksPackets(target string) bool { return target == "MARK" || target == "CONNMARK" }

// parseTarget reads the new source of SNAT. One of several sources is none of them.
func (r *rule) parseTarget(target string, options []string) {
	if target != "SNAT" {
		return
	}
	if i := slices.Index(options, "--to-source"); i >= 0 && i+1 < len(options) {
		if a, err := netip.ParseAddr(options[i+1]); err == nil {
			r.source = a
			return
		}
	}
	r.action = unclear
}

// constantAnswer is a condition that does not look at the packet.
func constantAnswer(a answer) condition { return func(*packet) answer { return a } }

func invertCondition(c condition) condition { return func(p *packet) answer { return c(p).negate() } }

// matchDevice matches a name, or all names that begin with it where it ends with a plus sign.
func matchDevice(name string, of func(*packet) string) condition {
	prefix, wild := strings.CutSuffix(name, "+")
	return func(p *packet) answer {
		switch device := of(p); {
		case wild && prefix == "":
			return yes
		case device == "":
			return maybe
		case wild:
			return knownAnswer(strings.HasPrefix(device, prefix))
		default:
			return knownAnswer(device == name)
		}
	}
}

// matchAddress matches an address or a network.
func matchAddress(value string, of func(*packet) netip.Addr) condition {
	network, err := netip.ParsePrefix(value)
	if err != nil {
		address, err := netip.ParseAddr(value)
		if err != nil {
			return constantAnswer(maybe) // a mask with holes
		}
		network = netip.PrefixFrom(address, address.BitLen())
	}
	return func(p *packet) answer {
		address := of(p)
		if !address.IsValid() {
			return maybe
		}
		return knownAnswer(network.Contains(address))
	}
}

// matchState matches the state of the connection.
func matchState(states []string) condition {
	return func(p *packet) answer {
		if slices.Contains(states, p.state()) {
			return yes
		}
		if slices.Contains(states, "SNAT") || p.dnat && slices.Contains(states, "DNAT") {
			return maybe
		}
		return no
	}
}

// matchMark matches value[/mask] with the mark, which is 0 unless a rule has changed it.
func matchMark(text string) condition {
	value, _, _ := strings.Cut(text, "/")
	n, err := strconv.ParseUint(value, 0, 32)
	return func(p *packet) answer {
		if p.marked || err != nil {
			return maybe
		}
		return knownAnswer(n == 0)
	}
}
