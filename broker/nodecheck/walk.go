package nodecheck

// A packet walks through chains. It is known in part only, so a rule says no, maybe or yes; what is certain all the
// same is a finding. All of it is pure, and the same for iptables and nftables.

import (
	"cmp"
	"net/netip"
	"slices"
)

// answer says whether a rule is about a packet.
type answer int

// The answers. Of several conditions the smallest answer counts.
const (
	no answer = iota
	maybe
	yes
)

func knownAnswer(is bool) answer {
	if is {
		return yes
	}
	return no
}

// negate is the answer to the opposite condition.
func (a answer) negate() answer { return yes - a }

// packet opens a TCP connection through the node. A zero field is not known.
type packet struct {
	in, out  string // devices
	src, dst netip.Addr
	marked   bool // a rule may have changed the mark of the packet, which was 0
	dnat     bool // a rule may have translated the destination
	answer   bool // it is the answer to the one that opens the connection
}

// state is the state of its connection.
func (p *packet) state() string {
	if p.answer {
		return "ESTABLISHED"
	}
	return "NEW"
}

// tcpFlags are SYN, and ACK of an answer (RFC 9293, section 3.1).
func (p *packet) tcpFlags() byte {
	if p.answer {
		return 0x12
	}
	return 0x02
}

// condition is a part of a rule.
type condition func(*packet) answer

// action is what a rule does.
type action int

const (
	next      action = iota // goes on with the next rule: counters, logs
	accept                  // ends the base chain
	drop                    // and reject
	back                    // RETURN
	jump                    // to a chain, and back
	goTo                    // to a chain, at the end of which this one ends
	translate               // translates an address, and ends the base chain
	unclear                 // may do anything
)

// rule is one rule of a chain.
type rule struct {
	conditions []condition
	action     action
	chain      string     // of jump and goTo
	marks      bool       // changes the mark, or may
	source     netip.Addr // of translate: the new source; not valid: that of the device (masquerade), or not known
	text       string     // for messages: where the rule stands, and how it reads
	undo       string     // for messages: what helps besides accepting packets before it; empty: to remove the rule
	// choose decides by the packet what the rule does, instead of action and chain, and whether it does anything.
	choose func(*packet) (action, string, answer)
}

// matches says whether all conditions hold.
func (r *rule) matches(p *packet) answer {
	a := yes
	for _, c := range r.conditions {
		if a = min(a, c(p)); a == no {
			break
		}
	}
	return a
}

// Hooks. A forwarded packet passes all but input and output, in this order.
type hook int

const (
	ingress hook = iota // of a device
	prerouting
	input  // to the node itself
	output // from the node itself
	forward
	postrouting
	egress // of a device
)

// baseChain is a chain that the kernel calls.
type baseChain struct {
	hook     hook
	priority int
	nat      bool     // only the first packet of a connection comes here
	devices  []string // of ingress and egress
	name     string
	policy   action // accept or drop
	text     string // for messages
	rules    rules
	remedy   func(device string) string // how to accept packets of a device before everything else
}

// rules finds the rules of a chain. Chains are read when a packet comes there.
type rules func(chain string) []rule

// maxSteps bounds the rules that one packet is compared with.
const maxSteps = 200_000

// walk is the way of one packet through a base chain.
type walk struct {
	packet *packet
	rules  rules
	steps  int
}

// outcome says what may happen in a chain.
type outcome struct {
	passes   bool // may be accepted
	drops    bool // may be dropped
	ends     bool // may come to the end of the chain
	culprit  *rule
	sources  []netip.Addr // what may translate its source, in the order of rules
	masks    bool         // may get the address of the device
	unsettle bool         // one of several translations, or none: not known which
}

// guards are kubelink's own chains of what links may reach, of mesh services without endpoints, and of addresses that no
// link has. What they drop is meant to be dropped.
var guards = []string{"KLINK-LOCAL", "KLINK-REFUSE", "KLINK-UNUSED"}

// walkChain walks through a chain.
func (w *walk) walkChain(chain string, depth int) (o outcome) {
	for i := range w.rules(chain) {
		r := &w.rules(chain)[i]
		if w.steps++; w.steps > maxSteps || depth > 32 {
			o.passes, o.unsettle = true, true
			return o
		}
		a := r.matches(w.packet)
		act, chain := r.action, r.chain
		if r.choose != nil && a != no {
			var chosen answer
			act, chain, chosen = r.choose(w.packet)
			a = min(a, chosen)
		}
		if a == no {
			continue
		}
		w.packet.marked = w.packet.marked || r.marks
		if w.takeAction(r, act, chain, a, depth, &o) && a == yes {
			return o
		}
	}
	o.ends = true
	return o
}

// takeAction does what a rule says. It tells whether the packet, if the rule is about it, sees no further rule of the
// chain.
func (w *walk) takeAction(r *rule, act action, chain string, a answer, depth int, o *outcome) (over bool) {
	sub := outcome{unsettle: a != yes}
	switch act {
	case accept:
		sub.passes = true
	case translate:
		sub.passes = true
		if r.source.IsValid() {
			sub.sources = []netip.Addr{r.source}
		} else {
			sub.masks = true
		}
	case drop:
		sub.drops = true
	case back:
		o.ends = true
	case jump, goTo:
		if slices.Contains(guards, chain) {
			return false
		}
		sub = w.walkChain(chain, depth+1)
		sub.unsettle = sub.unsettle || a != yes && (sub.passes || sub.drops)
		o.ends = o.ends || act == goTo && sub.ends
	case unclear:
		sub.passes, sub.unsettle = true, true
	default:
		return false
	}
	if act == accept || act == translate || act == drop {
		sub.culprit = r
	}
	o.addOutcome(&sub, a)
	return act == goTo || act != unclear && !(act == jump && sub.ends)
}

// addOutcome adds what may happen by one rule. What is certain first is the culprit.
func (o *outcome) addOutcome(by *outcome, a answer) {
	o.passes, o.drops, o.masks = o.passes || by.passes, o.drops || by.drops, o.masks || by.masks
	o.sources = append(o.sources, by.sources...)
	o.unsettle = o.unsettle || by.unsettle
	if a == yes && o.culprit == nil {
		o.culprit = by.culprit
	}
}

// walkBase walks through a base chain with its policy.
func (c *baseChain) walkBase(p *packet) outcome {
	w := walk{packet: p, rules: c.rules}
	o := w.walkChain(c.name, 0)
	if o.ends && c.policy == drop {
		o.drops = true
		if o.culprit == nil {
			o.culprit = &rule{action: drop, text: c.text + " has the policy DROP, and no rule that accepts them",
				undo: "set the policy to ACCEPT"}
		}
	} else if o.ends {
		o.passes = true
	}
	return o
}

// sortChains sorts base chains as the kernel calls them.
func sortChains(chains []baseChain) {
	slices.SortStableFunc(chains, func(a, b baseChain) int {
		return cmp.Or(cmp.Compare(a.hook, b.hook), cmp.Compare(a.priority, b.priority))
	})
}

// concerns tells whether the chain sees packets of the devices of this one.
func (c *baseChain) concerns(p *packet) bool {
	switch c.hook {
	case ingress:
		return slices.Contains(c.devices, p.in)
	case egress:
		return slices.Contains(c.devices, p.out)
	}
	return true
}

// findDrop walks through all base chains of some hooks that do not translate. It returns the chain in which the packet
// is certainly dropped, and the rule; nil: there is none.
func findDrop(chains []baseChain, from, through hook, p *packet) (*baseChain, *rule) {
	for i := range chains {
		c := &chains[i]
		if c.nat || c.hook < from || c.hook > through || !c.concerns(p) {
			continue
		}
		if o := c.walkBase(p); o.drops && !o.passes {
			return c, o.culprit
		}
	}
	return nil, nil
}

// findSource walks through the base chains that translate sources. It returns the source that the packet certainly
// leaves with, the zero Addr for that of a device, and the chain and rule, which are nil where none translates. Not
// certain: ok is false.
func findSource(chains []baseChain, p *packet) (source netip.Addr, in *baseChain, by *rule, ok bool) {
	source = p.src
	for i := range chains {
		c := &chains[i]
		if !c.nat || c.hook != postrouting || in != nil && c.priority > in.priority {
			continue
		}
		o := c.walkBase(p)
		if o.unsettle || o.drops || len(o.sources) > 1 || o.masks && len(o.sources) > 0 {
			return source, nil, nil, false
		}
		if len(o.sources) == 0 && !o.masks {
			continue
		}
		if in != nil { // two of the same priority: which comes first cannot be seen
			return source, nil, nil, false
		}
		source, in, by = netip.Addr{}, c, o.culprit
		if !o.masks {
			source = o.sources[0]
		}
	}
	return source, in, by, true
}
