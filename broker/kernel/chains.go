package kernel

// The iptables chains of other rooms. They are set as those of a mesh are: in one transaction, hooked in the right
// place, adopted from a killed process.

import (
	"context"
	"errors"
)

// Chain is one that another room wants. Rules are in the form that iptables -S prints, without "-A NAME ".
type Chain struct {
	Table, Name string
	Hook        string // the rule that jumps to the chain, without its target: "-A INPUT -p udp -m udp --dport 8780"
	Rules       []string
	// Behind is a device: the hook stands behind the network policies for its packets. Empty: it is the first rule.
	Behind   string
	Optional bool   // what lacks is a warning
	Counts   bool   // packets that its rules drop count as Refused; for chains in mangle only
	Remedy   string // for what the kernel lacks
}

// Chains are chains of this network namespace. Their methods may be called concurrently.
type Chains struct{ kernel *Kernel }

// NewChains returns the chains of the network namespace that the calling thread is in.
func NewChains() (*Chains, error) {
	s, err := newSystem()
	if err != nil {
		return nil, err
	}
	return &Chains{newKernel(Config{}, s, findBackends())}, nil
}

// Set makes the chains of a family (unix.AF_INET or unix.AF_INET6) as they are wanted, or removes them; then their
// names and hooks count. A chain that fails does not stop the others. It may take 12 s: another program can hold the
// xtables lock.
func (c *Chains) Set(family int, chains []Chain, wanted bool) (warning, err error) {
	k := c.kernel
	k.setting.Lock()
	defer k.setting.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), k.commandTime)
	defer cancel()
	inner := make([]chain, len(chains))
	for i, x := range chains {
		inner[i] = x.complete()
	}
	failed := newFailures()
	if wanted {
		k.setChains(ctx, inner, family, failed)
	}
	k.clearBackends(ctx, inner, family, wanted, failed)
	return errors.Join(failed.warnings...), errors.Join(failed.errs...)
}

// Refused is the number of packets that chains with Counts have dropped since NewChains. It is as new as
// Kernel.Drops says.
func (c *Chains) Refused() uint64 { return c.kernel.Drops().Node }

// complete returns the chain as Set wants it.
func (c Chain) complete() chain {
	full := chain{table: c.Table, name: c.Name, device: c.Behind, first: c.Behind == "", optional: c.Optional,
		remedy: c.Remedy, hooks: []string{c.Hook + " -m comment --comment kubelink -j " + c.Name}}
	if c.Counts {
		full.counts = ofNode
	}
	for _, r := range c.Rules {
		full.rules = append(full.rules, "-A "+c.Name+" "+r)
	}
	return full
}
