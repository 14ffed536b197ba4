package kernel

// What iptables-save(8) prints, and what rules of other programs do to packets of the mesh. All of it is pure.

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/mandelsoft/kubelink/broker/iptsave"
)

// ruleset is the tables of one family by name. One that is missing has no rules.
type ruleset map[string]*ruleTable

// ruleTable is one table, or why it cannot be read.
type ruleTable struct {
	chains map[string][]chainRule // rules by chain
	err    error                  // no chain is known
}

// chainRule is a rule as iptables-save prints it, and how many packets it has matched.
type chainRule struct {
	text    string // -A CHAIN ...
	packets uint64
}

// incompatible is what the back end for nf_tables prints in place of a table, with exit status 0, where the table has
// a rule that was made with nft(8).
var incompatible = regexp.MustCompile("^# Table [`'](\\w+)' is incompatible")

var errIncompatible = errors.New("it has a rule that was made with nft, so iptables cannot read it: " +
	"move that rule to a table of its own")

// parseTables reads what iptables-save -c prints. What it does not understand is an error: half of the rules would
// look as if the rest was not there.
func parseTables(output string) (ruleset, error) {
	all := ruleset{}
	var name string
	var current *ruleTable
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if m := incompatible.FindStringSubmatch(line); m != nil {
			all[m[1]] = &ruleTable{err: errIncompatible}
			continue
		}
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '*' && current == nil:
			name, current = line[1:], &ruleTable{chains: map[string][]chainRule{}}
		case line == "COMMIT" && current != nil:
			all[name], current = current, nil
		case current == nil || !current.addLine(line):
			return nil, fmt.Errorf("iptables-save prints %.100q: it is no rule", line)
		}
	}
	if current != nil {
		return nil, fmt.Errorf("the output of iptables-save ends within table %s", name)
	}
	return all, nil
}

// addLine adds a chain (":CHAIN POLICY [PACKETS:BYTES]") or a rule ("[PACKETS:BYTES] -A CHAIN ...").
func (t *ruleTable) addLine(line string) bool {
	if chain, ok := strings.CutPrefix(line, ":"); ok {
		chain, _, _ = strings.Cut(chain, " ")
		t.chains[chain] = append([]chainRule{}, t.chains[chain]...)
		return true
	}
	var packets uint64
	if rest, ok := strings.CutPrefix(line, "["); ok {
		counters, text, _ := strings.Cut(rest, "] ")
		count, _, _ := strings.Cut(counters, ":")
		n, err := strconv.ParseUint(count, 10, 64)
		if err != nil {
			return false
		}
		packets, line = n, text
	}
	rest, ok := strings.CutPrefix(line, "-A ")
	chain, _, _ := strings.Cut(rest, " ")
	if ok {
		t.chains[chain] = append(t.chains[chain], chainRule{line, packets})
	}
	return ok
}

// find returns the rules of a chain; a table that is missing has none.
func (t *ruleTable) find(chain string) (rules []chainRule, exists bool) {
	if t == nil {
		return nil, false
	}
	rules, exists = t.chains[chain]
	return rules, exists
}

// apply makes the table what iptables-restore has made of it: the next chain finds it so.
func (t *ruleTable) apply(commands []string) {
	if t == nil {
		return
	}
	for _, command := range commands {
		verb, rest, _ := strings.Cut(command, " ")
		chain, rule, _ := strings.Cut(rest, " ")
		rules, place := t.chains[chain], 0
		if verb == "-I" {
			if number, after, _ := strings.Cut(rule, " "); number != "" && number[0] != '-' {
				n, err := strconv.Atoi(number)
				if place = n - 1; err != nil || place < 0 || place > len(rules) {
					continue
				}
				rule = after
			}
		}
		text := "-A " + chain + " " + rule
		switch verb {
		case "-A":
			t.chains[chain] = append(rules, chainRule{text: text})
		case "-I":
			t.chains[chain] = slices.Insert(rules, place, chainRule{text: text})
		case "-D":
			if at := slices.IndexFunc(rules, func(r chainRule) bool { return r.text == text }); at >= 0 {
				t.chains[chain] = slices.Delete(rules, at, at+1)
			}
		case "-F":
			t.chains[chain] = nil
		case "-X":
			delete(t.chains, chain)
		default: // makeCommand
			t.chains[strings.TrimPrefix(verb, ":")] = nil
		}
	}
}

// effect is what a rule does to the packets that come from a device or go to it.
type effect struct {
	target  string // of -j or -g; empty: none
	goes    bool   // -g: the chain does not return here
	partial bool   // only some of the packets of new connections match
	proto   bool   // all of one protocol match
}

func (e effect) refuses() bool { return e.target == "DROP" || e.target == "REJECT" }

// readEffect reads a rule. Conditions that all packets of new connections through the device meet do not count: a
// state list with NEW in it, or a device that is not this one.
func readEffect(text, device string) (e effect) {
	words := iptsave.Words(text)
	negated := false
	for i := 2; i < len(words); i++ {
		value := ""
		if i+1 < len(words) {
			value = words[i+1]
		}
		switch word := words[i]; word {
		case "!":
			negated = true
			continue
		case "-j", "-g":
			e.target, e.goes = value, word == "-g"
			return e
		case "-m", "--comment":
			i++
		case "-p":
			e.proto = !negated
			e.partial = e.partial || negated
			i++
		case "-i", "-o":
			e.partial = e.partial || !negated || matchesDevice(value, device)
			i++
		case "--ctstate", "--state":
			hasNew := slices.Contains(strings.Split(value, ","), "NEW")
			e.partial = e.partial || hasNew == negated
			i++
		default:
			e.partial = true
		}
		negated = false
	}
	return e
}

// matchesDevice tells whether a pattern of -i or -o stands for a device.
func matchesDevice(pattern, device string) bool {
	prefix, wild := strings.CutSuffix(pattern, "+")
	return pattern == device || wild && strings.HasPrefix(device, prefix)
}

// refusesAll tells whether no packet of a new connection through the device leaves a chain but refused.
func (t *ruleTable) refusesAll(chain, device string, visited map[string]bool) bool {
	if visited[chain] {
		return false
	}
	visited[chain] = true
	rules, _ := t.find(chain)
	for _, r := range rules {
		e := readEffect(r.text, device)
		if e.partial || e.proto {
			continue
		}
		if e.refuses() || t.refusesAll(e.target, device, visited) {
			return true
		}
		if e.target == "ACCEPT" || e.target == "RETURN" || e.goes {
			return false
		}
	}
	return false
}

// endOfPolicies returns how many of these rules of FORWARD decide before packets of the mesh are accepted: the chains
// of network policies, and what refuses some packets. The rule after them refuses all packets that are left, there is
// none, or it only writes a log of them or refuses all of one protocol before such a rule comes.
func (t *ruleTable) endOfPolicies(rules []chainRule, device string) int {
	end := len(rules)
	for i, r := range rules {
		e := readEffect(r.text, device)
		if !e.partial && !e.proto && (e.refuses() || t.refusesAll(e.target, device, map[string]bool{})) {
			end = i
			break
		}
	}
	if end == len(rules) {
		return end
	}
	for end > 0 {
		e := readEffect(rules[end-1].text, device)
		isLog := e.target == "LOG" || e.target == "NFLOG"
		if !isLog && (e.partial || !e.proto || !e.refuses()) {
			break
		}
		end--
	}
	return end
}

// decides tells whether one of the rules can refuse a packet, as a chain of network policies does.
func (t *ruleTable) decides(rules []chainRule, device string) bool {
	return slices.ContainsFunc(rules, func(r chainRule) bool {
		e := readEffect(r.text, device)
		_, isChain := t.find(e.target)
		return isChain || e.refuses()
	})
}
