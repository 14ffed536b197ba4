package kernel

// Longest-prefix tables as iptables chains: a packet is compared with a few rules of each chain on its way down, and
// not with all prefixes. All of it is pure.
//
// Chains go to each other with -g, so that RETURN leaves the whole tree at once. The kernel follows all ways through
// chains when it takes them, and nf_tables takes no way with more than 16 chains: a tree leads to small chains only,
// and is not deep.

import (
	"fmt"
	"net/netip"
	"slices"
)

// entry is what happens to packets with an address in a network: "-j TARGET" or "-g CHAIN".
type entry struct {
	prefix netip.Prefix
	target string
}

const passOn = "-j RETURN"

const (
	maxRules = 8 // of a chain in a tree, before the last one
	maxDepth = 4 // of a tree, of which the firewall has three in a row; the chains there are as long as they have to be
)

// treeBuilder makes the chains of a tree.
type treeBuilder struct {
	name, option string // of the first chain; -s, -d, or another one that takes a network
	chains       []innerChain
}

// buildTree returns chains in which the longest prefix that contains the address decides, and else otherwise; of equal
// prefixes the last one counts. Without chains, target is what happens to all packets.
func buildTree(name, option string, entries []entry, otherwise string) (target string, chains []innerChain) {
	entries = simplifyEntries(entries, otherwise)
	if len(entries) == 0 {
		return otherwise, nil
	}
	b := &treeBuilder{name: name, option: option}
	root := branch{entry{netip.PrefixFrom(entries[0].prefix.Addr(), 0), otherwise}, entries, false}
	b.addChain(name, root, 1)
	return "-g " + name, b.chains
}

// branch is a part of a tree: all entries in a network, and the target of the addresses in none of them.
type branch struct {
	entry
	inside []entry // sorted
	real   bool    // the network is an entry itself, else it only contains some
}

// addChain makes the chain of a branch: it divides branches, the largest one first, as long as the chain stays short.
func (b *treeBuilder) addChain(name string, root branch, depth int) {
	parts, at := divideBranch(root), len(b.chains)
	b.chains = append(b.chains, innerChain{name: name})
	for {
		largest := -1
		for i := range parts {
			if n := len(parts[i].inside); n > 0 && (largest < 0 || n > len(parts[largest].inside)) {
				largest = i
			}
		}
		if largest < 0 {
			break
		}
		divided := divideBranch(parts[largest])
		if parts[largest].real {
			divided = append(divided, branch{parts[largest].entry, nil, true})
		}
		if len(parts)-1+len(divided) > maxRules && depth < maxDepth {
			break
		}
		parts = slices.Concat(parts[:largest], parts[largest+1:], divided)
	}
	// The longest one decides first.
	slices.SortStableFunc(parts, func(a, c branch) int { return c.prefix.Bits() - a.prefix.Bits() })
	var rules []string
	for _, p := range parts {
		target := p.target
		if len(p.inside) > 0 {
			child := fmt.Sprintf("%s-%d", b.name, len(b.chains))
			target = "-g " + child
			b.addChain(child, p, depth+1)
		}
		rules = append(rules, "-A "+name+matchOption(b.option, p.prefix)+" "+target)
	}
	if root.target != passOn {
		rules = append(rules, "-A "+name+" "+root.target)
	}
	b.chains[at].rules = rules
}

// divideBranch divides what is inside of a branch by the next bit in which the networks differ.
func divideBranch(b branch) (parts []branch) {
	first, last := b.inside[0].prefix, b.inside[len(b.inside)-1].prefix
	common := commonPrefix(first, last)
	if first == common { // it contains the others
		return []branch{{b.inside[0], b.inside[1:], true}}
	}
	n := slices.IndexFunc(b.inside, func(e entry) bool { return commonPrefix(first, e.prefix) == common })
	for _, half := range [][]entry{b.inside[:n], b.inside[n:]} {
		network := commonPrefix(half[0].prefix, half[len(half)-1].prefix)
		if half[0].prefix == network {
			parts = append(parts, branch{half[0], half[1:], true})
		} else {
			parts = append(parts, branch{entry{network, b.target}, half, false})
		}
	}
	return parts
}

// commonPrefix is the longest one that contains both.
func commonPrefix(p, q netip.Prefix) netip.Prefix {
	n := min(p.Bits(), q.Bits())
	a, b := p.Addr().AsSlice(), q.Addr().AsSlice()
	for i := range n {
		if (a[i/8]^b[i/8])&(0x80>>(i%8)) != 0 {
			n = i
			break
		}
	}
	return netip.PrefixFrom(p.Addr(), n).Masked()
}

// simplifyEntries sorts entries, joins two halves of a network that say the same, and leaves out what says the same as
// the network around it.
func simplifyEntries(entries []entry, otherwise string) []entry {
	byPrefix := make(map[netip.Prefix]string, len(entries))
	byLength := map[int][]netip.Prefix{}
	add := func(e entry) {
		if _, exists := byPrefix[e.prefix]; !exists {
			byLength[e.prefix.Bits()] = append(byLength[e.prefix.Bits()], e.prefix)
		}
		byPrefix[e.prefix] = e.target
	}
	longest := 0
	for _, e := range entries {
		add(e)
		longest = max(longest, e.prefix.Bits())
	}
	for n := longest; n > 0; n-- {
		for _, p := range byLength[n] {
			target, exists := byPrefix[p]
			other := otherHalf(p)
			if o, both := byPrefix[other]; exists && both && o == target {
				delete(byPrefix, p)
				delete(byPrefix, other)
				add(entry{netip.PrefixFrom(p.Addr(), n-1).Masked(), target})
			}
		}
	}
	sorted := make([]entry, 0, len(byPrefix))
	for p, target := range byPrefix {
		sorted = append(sorted, entry{p, target})
	}
	// A network comes before the networks in it.
	slices.SortFunc(sorted, func(a, b entry) int { return a.prefix.Compare(b.prefix) })
	return dropNeedless(sorted, otherwise)
}

func dropNeedless(sorted []entry, otherwise string) (kept []entry) {
	var around []entry
	for _, e := range sorted {
		for len(around) > 0 && !around[len(around)-1].prefix.Contains(e.prefix.Addr()) {
			around = around[:len(around)-1]
		}
		outer := otherwise
		if len(around) > 0 {
			outer = around[len(around)-1].target
		}
		if e.target != outer {
			kept, around = append(kept, e), append(around, e)
		}
	}
	return kept
}

// strideTree is a tree of many networks of which none lies in another one, and of which few change at a time. Its
// chains divide networks at fixed lengths, and have their names from them: a change rewrites the chains on the way to
// it only.
type strideTree struct {
	option, prefix string // prefix: of the names of chains
	chains         []innerChain
}

const (
	strideBits = 3 // by which a chain divides a network: it has 8 rules
	maxStrides = 8 // the depth of a tree; the chains there are as long as they have to be
)

// addChain makes a chain that leads to the targets of sorted entries.
func (b *strideTree) addChain(name string, entries []entry, depth int) {
	at := len(b.chains)
	b.chains = append(b.chains, innerChain{name: name})
	first, last := entries[0].prefix, entries[len(entries)-1].prefix
	length := commonPrefix(first, last).Bits()
	length += 1 + (first.Addr().BitLen()-length-1)%strideBits
	var rules []string
	for rest := entries; len(rest) > 0; {
		e, n := rest[0], 1
		if network := netip.PrefixFrom(e.prefix.Addr(), length).Masked(); e.prefix.Bits() > length && depth < maxStrides {
			for n < len(rest) && network.Contains(rest[n].prefix.Addr()) {
				n++
			}
			if n > 1 {
				e = entry{network, "-g " + hashName(b.prefix, network)}
				b.addChain(e.target[3:], rest[:n], depth+1)
			}
		}
		rules = append(rules, "-A "+name+matchOption(b.option, e.prefix)+" "+e.target)
		rest = rest[n:]
	}
	b.chains[at].rules = rules
}

// otherHalf is the network with which one makes up the next larger one.
func otherHalf(p netip.Prefix) netip.Prefix {
	b, last := p.Addr().AsSlice(), p.Bits()-1
	b[last/8] ^= 0x80 >> (last % 8)
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, p.Bits())
}
