// Package kernel makes the network stack of the gateway what a mesh needs: addresses and routes
// on the device, the rule that leads to their table, source NAT, the acceptance of forwarded
// packets, and a TCP segment size that fits. All of it is one Set, told the whole; Set finds the
// difference itself, so that it also adopts what a killed broker left.
//
// Set changes and removes only what is ours: on the device, routes with Protocol and full-length
// addresses with noprefixroute; rules with Protocol; the chains KLINK-* and the jumps to them; the
// setting "forwarding" of the device.
// Ours is, too, a TUN device that has routes with Protocol and that no process holds open: a killed
// broker left it, and the device has another name since.
//
// The address families are independent, and so are the tables of iptables: what one lacks is named
// and tried again, the rest is set. A family that no mesh wants makes no error.
//
// From a State to commands: desired.go says which objects are wanted, netfilter.go which chains;
// diff.go compares the objects with what the kernel has, ruleset.go reads what iptables has,
// netfilter.go compares the chains; backend.go says which iptables they belong to; system.go tells
// the kernel. This file has the steps in their order, worker.go the goroutine that takes them:
// iptables-restore may wait for the xtables lock, which kube-proxy or another program on the node
// may hold.
//
// A router has Routes on every node, which routes.go sets in the same way.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// Kernel is the network stack of one network namespace. Its methods may be called concurrently.
type Kernel struct {
	config      Config
	system      system
	commandTime time.Duration // for all commands of a Set
	backends    []string      // of iptables, that are installed

	setting   sync.Mutex // held over a Set, which runs commands; guards the fields below and the calls of system
	chains    map[toolset]*knownChains
	selected  map[int]Backend   // by family, of the ones that meshes use or have used
	countedAt time.Time         // when Drops read counters last
	served    []service.Service // whose flows are right

	mu      sync.Mutex // guards the fields below; held to read or to assign them only
	warning error      // of the last Set
	drops   Drops
	used    []Backend // not changed later
}

// knownChains is what Set knows of our chains of a family in a back end.
type knownChains struct {
	clean     bool              // there are none, as Set has seen
	made      map[string]bool   // the ones that are there, as Set has seen or made them, by name
	lookAgain time.Time         // not before, if the family is not in use: a look has failed
	counted   map[string]uint64 // the packets that a chain had refused when it was read last, by name
	counting  []chain           // the ones that count, of the last Set
}

// system is the kernel as Set needs it; linux is the real one.
type system interface {
	Dump(device, pod string) *objects     // all that Set may own or collide with; pod: as in Pod.Device
	Change(verb string, object any) error // what a change says
	DeviceName(index int) string          // or a text in place of one that does not exist
	IsIdleTUN(index int) bool             // a TUN device that no process holds open
	// SaveTables returns what iptables-save -c prints of a table; empty: of all.
	SaveTables(ctx context.Context, tools toolset, table string) (string, error)
	// RestoreTable makes all changes or none, in one transaction.
	RestoreTable(ctx context.Context, tools toolset, table string, commands []string) error
}

// commandTime is for all commands of iptables that a Set runs, also where they wait for the xtables lock. Usually they
// take milliseconds. A Set and the Clear after it fit into the 30 s that a pod has to end.
const commandTime = 12 * time.Second

// New returns the stack of the network namespace that the calling thread is in. Set and Clear must
// be called in the same one, for they run iptables(8). It needs CAP_NET_ADMIN and Linux 4.17.
func New(config Config) (*Kernel, error) {
	if config.Table == 0 {
		config.Table = MainTable
	}
	if n := len(config.Device); n == 0 || n >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("device name %q: want 1 to %d characters", config.Device, unix.IFNAMSIZ-1)
	}
	if config.Table < 0 || config.Table == unix.RT_TABLE_LOCAL {
		return nil, fmt.Errorf("route table %d: want %d (main) or another table that the kernel does not fill",
			config.Table, MainTable)
	}
	s, err := newSystem()
	if err != nil {
		return nil, err
	}
	return newKernel(config, s, findBackends()), nil
}

func newKernel(config Config, s system, backends []string) *Kernel {
	return &Kernel{config: config, system: s, commandTime: commandTime, backends: backends,
		chains: map[toolset]*knownChains{}, selected: map[int]Backend{}}
}

// known returns what is known of our chains.
func (k *Kernel) known(tools toolset) *knownChains {
	if k.chains[tools] == nil {
		k.chains[tools] = &knownChains{made: map[string]bool{}, counted: map[string]uint64{}}
	}
	return k.chains[tools]
}

// Clear removes all that is ours. The device stays, it need not exist.
func (k *Kernel) Clear() error { return k.Set(State{}) }

// Set makes the network stack what s says. Where all is right it writes nothing. A part that fails
// does not stop the other parts: their errors are joined, each says what was tried, and the next Set
// tries again.
func (k *Kernel) Set(s State) error {
	k.setting.Lock()
	defer k.setting.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), k.commandTime)
	defer cancel()
	failed := newFailures()
	s.Routes, failed.errs = validateRoutes(s.Routes)
	found := k.system.Dump(k.config.Device, s.Pod.Device)

	// The kernel decides about source NAT with the first packet of a connection and keeps to it. So
	// the chains come before the first packet can leave, and go when none leaves any more.
	chains := map[int][]chain{}
	for _, f := range families {
		if chains[f] = wantedChains(k.config.Device, s, f, found.ipvs); s.usesFamily(f) {
			k.setChains(ctx, chains[f], f, failed)
		}
	}
	k.setNetwork(s, found, failed)
	if err := forgetServiceFlows(k.served, s.Services); err != nil {
		failed.warnings = append(failed.warnings, err)
	} else if len(failed.errs) == 0 { // else flows may begin as they were
		k.served = s.Services
	}
	var used []Backend
	for _, f := range families {
		k.clearBackends(ctx, chains[f], f, s.usesFamily(f), failed)
		if s.usesFamily(f) {
			used = append(used, k.selected[f])
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.warning, k.used = errors.Join(failed.warnings...), used
	return errors.Join(failed.errs...)
}

// failures is what a Set could not do.
type failures struct {
	errs     []error
	warnings []error        // about what a mesh does without
	noRoutes map[int]string // what their new routes would lack, by family: these get none
	noChain  map[int]bool   // families without one of the chains: the ones in another back end stay
}

func newFailures() *failures { return &failures{noRoutes: map[int]string{}, noChain: map[int]bool{}} }

// Unfiltered is in the error of a Set that could not make the chains of a Firewall for a family: what links send would
// pass them. It is 4 or 6.
type Unfiltered int

func (u Unfiltered) Error() string {
	return fmt.Sprintf("IPv%d packets of links are not filtered", int(u))
}

// Drops are the packets that our chains have dropped, by reason.
type Drops struct {
	Source      uint64 // of a link, from an address that is routed to none; with a Firewall
	Destination uint64 // of a link, to where it may not go; with a Firewall
	Node        uint64 // to this node itself: neither ping, nor a reply, nor for an open port
}

// Warning tells what the last Set could not do, but a mesh does without; nil: there is nothing. It
// does not wait for a Set that runs.
func (k *Kernel) Warning() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.warning
}

// Drops returns what our chains have dropped since New. It asks the kernel, at most once in counterAge; while a Set
// runs, or where iptables-save fails, it tells what was known before. Like Set, it is to be called in the network
// namespace of New.
func (k *Kernel) Drops() Drops {
	k.readCounters()
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.drops
}

// setNetwork sets all that rtnetlink(7) does: it plans the changes to what the kernel has and
// makes them. The families of noRoutes get no new ones. A family that the kernel cannot list stays
// as it is.
func (k *Kernel) setNetwork(s State, found *objects, failed *failures) {
	for _, f := range families {
		err := found.failed[f]
		// A kernel without the family has nothing of ours.
		if err != nil && (s.usesFamily(f) || !errors.Is(err, unix.EAFNOSUPPORT)) {
			failed.errs = append(failed.errs, fmt.Errorf("read the network state of IPv%d: %w", IPVersion(f), err))
		}
	}
	if found.link.Index == 0 && !s.isEmpty() && len(found.failed) < len(families) {
		failed.errs = append(failed.errs, fmt.Errorf("device %s does not exist: %d addresses and %d routes are not set",
			k.config.Device, len(s.Addresses), len(s.Routes)))
	}
	wanted := wantedObjects(k.config, s.without(found.failed), found.link, found.pod)
	p := planChanges(wanted, divideObjects(*found, k.findOldDevices(*found)), failed.noRoutes)
	failed.errs = append(failed.errs, k.omissions(p, failed.noRoutes)...)
	k.makeChanges(p, failed)
}

// findOldDevices returns the devices that a killed broker left.
func (k *Kernel) findOldDevices(found objects) (indexes []int) {
	for _, index := range candidateDevices(found) {
		if k.system.IsIdleTUN(index) {
			indexes = append(indexes, index)
		}
	}
	return indexes
}

// omissions returns an error for each wanted object that a plan leaves out.
func (k *Kernel) omissions(p *plan, lacks map[int]string) (errs []error) {
	for _, c := range p.conflicts {
		errs = append(errs, fmt.Errorf("%s: %w", ipCommand("add", c.wanted, k.system.DeviceName),
			&ForeignRouteError{c.wanted.Destination, c.foreign.text(k.system.DeviceName)}))
	}
	for _, f := range families {
		if n := p.withheld[f]; n > 0 {
			errs = append(errs, fmt.Errorf("%d new routes of IPv%d are not set: there is no %s for them",
				n, IPVersion(f), lacks[f]))
		}
	}
	return errs
}

// makeChanges makes all changes of a plan, also where one fails. Forwarding is a warning: what it is needed for can
// work by a setting of the node.
func (k *Kernel) makeChanges(p *plan, failed *failures) {
	for _, c := range p.changes {
		err := k.system.Change(c.verb, c.object)
		if err == nil {
			continue
		}
		err = fmt.Errorf("%s: %w", ipCommand(c.verb, c.object, k.system.DeviceName), err)
		if _, ok := c.object.(forwarding); ok {
			failed.warnings = append(failed.warnings, err)
		} else {
			failed.errs = append(failed.errs, err)
		}
	}
}

// setChains sets the chains of a family, in the back end that the node uses.
func (k *Kernel) setChains(ctx context.Context, chains []chain, family int, failed *failures) {
	tools, found := k.selectTools(ctx, family, failed)
	k.known(tools).clean, k.known(tools).counting = false, nil
	for _, c := range chains {
		if found[c.table] == nil {
			found[c.table] = &ruleTable{chains: map[string][]chainRule{}}
		}
		if c.counts != notCounted {
			k.known(tools).counting = append(k.known(tools).counting, c)
		}
		k.countDrops(tools, c, found[c.table])
		err := k.setChain(ctx, c, tools, found[c.table], !c.unwanted)
		if err == nil || c.unwanted && !k.known(tools).made[c.name] {
			continue
		}
		err = fmt.Errorf("chain %s of IPv%d: %w", c.name, IPVersion(family), err)
		if c.gives == givesFirewall {
			err = fmt.Errorf("%w: %w", Unfiltered(IPVersion(family)), err)
		}
		if c.gives != "" {
			failed.noRoutes[family] = c.gives
		}
		if c.optional && !errors.Is(err, exec.ErrNotFound) {
			failed.warnings = append(failed.warnings, err)
		} else {
			failed.noChain[family] = true
			failed.errs = append(failed.errs, err)
		}
	}
}

// clearBackends removes the chains of a family from the back ends that are not in use: from all if the family is not.
func (k *Kernel) clearBackends(ctx context.Context, chains []chain, family int, inUse bool, failed *failures) {
	for _, b := range k.backends {
		if !inUse || b != k.selected[family].Name && !failed.noChain[family] {
			k.removeChains(ctx, chains, toolset{family, b}, failed)
		}
	}
}

// The look at a family or a back end that is not in use must not hold up the one that is.
const (
	unusedTime  = 2 * time.Second
	unusedPause = 10 * time.Minute
)

// removeChains removes the chains of a back end that is not in use. It looks for what a killed broker left, until it
// has seen that there is nothing. If it cannot look, that is an error only where there is something, as far as it
// knows.
func (k *Kernel) removeChains(ctx context.Context, chains []chain, tools toolset, failed *failures) {
	known := k.known(tools)
	if known.clean || len(known.made) == 0 && time.Now().Before(known.lookAgain) {
		return
	}
	if len(known.made) == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, unusedTime)
		defer cancel()
	}
	known.clean, known.counting = true, nil
	found := k.readTables(ctx, tools, len(known.made) > 0)
	for _, c := range chains {
		err := k.setChain(ctx, c, tools, found[c.table], false)
		if err == nil {
			continue
		}
		known.clean, known.lookAgain = false, time.Now().Add(unusedPause)
		if known.made[c.name] {
			failed.errs = append(failed.errs, fmt.Errorf("chain %s of IPv%d: %w", c.name, IPVersion(tools.family), err))
		}
	}
}

// readTables reads all tables of a family. If that fails, it reads, with each, one after the other of the tables that
// have chains of ours: the fault may be in another one.
func (k *Kernel) readTables(ctx context.Context, tools toolset, each bool) ruleset {
	read := func(table string) (ruleset, error) {
		output, err := k.system.SaveTables(ctx, tools, table)
		if err != nil {
			return nil, err
		}
		return parseTables(output)
	}
	all, err := read("")
	if err == nil {
		return all
	}
	all = ruleset{}
	for _, name := range []string{natTable, filterTable, mangleTable} {
		all[name] = &ruleTable{err: err}
		if !each || errors.Is(err, exec.ErrNotFound) || ctx.Err() != nil {
			continue
		}
		if one, err := read(name); err != nil {
			all[name].err = err
		} else {
			all[name] = one[name]
		}
	}
	return all
}

// reason says as which of Drops a chain counts.
type reason int

const (
	notCounted reason = iota
	ofNode
	ofDestination
)

// countDrops adds what a chain that counts has dropped since the last look, and what the inner ones have.
func (k *Kernel) countDrops(tools toolset, c chain, t *ruleTable) {
	var drops Drops
	switch c.counts {
	case notCounted:
		return
	case ofNode:
		drops.Node = k.countNew(tools, c.name, t)
	case ofDestination:
		drops.Destination = k.countNew(tools, c.name, t)
	}
	if c.innerPrefix == linkChains {
		drops.Node += k.countNew(tools, dropNode, t)
		drops.Source += k.countNew(tools, dropSource, t)
		drops.Destination += k.countNew(tools, dropDestination, t)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drops.Source += drops.Source
	k.drops.Destination += drops.Destination
	k.drops.Node += drops.Node
}

// countNew returns how many packets the rules of a chain have dropped since the last look.
func (k *Kernel) countNew(tools toolset, name string, t *ruleTable) uint64 {
	rules, exists := t.find(name)
	if !exists {
		return 0
	}
	var packets uint64
	for _, r := range rules {
		if strings.HasSuffix(r.text, " -j DROP") {
			packets += r.packets
		}
	}
	before, seen := k.known(tools).counted[name]
	k.known(tools).counted[name] = packets
	switch {
	case !seen: // what the chain of a killed broker has counted
		return 0
	case packets < before: // another program has set it to zero
		return packets
	}
	return packets - before
}

const (
	// counterAge bounds how old counters are, and how often a scrape of metrics costs processes.
	counterAge = time.Second
	// counterTime is how long a scrape waits for iptables-save, which takes no lock.
	counterTime = time.Second
)

// readCounters reads what the chains that count have dropped. They are in mangle, all of them.
func (k *Kernel) readCounters() {
	if !k.setting.TryLock() {
		return
	}
	defer k.setting.Unlock()
	if time.Since(k.countedAt) < counterAge {
		return
	}
	k.countedAt = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), counterTime)
	defer cancel()
	for tools, known := range k.chains {
		if len(known.counting) == 0 {
			continue
		}
		output, err := k.system.SaveTables(ctx, tools, mangleTable)
		if err != nil {
			continue
		}
		tables, err := parseTables(output)
		if err != nil {
			continue
		}
		for _, c := range known.counting {
			k.countDrops(tools, c, tables[c.table])
		}
	}
}

// setChain makes a chain and its hook as they are wanted, or removes both.
func (k *Kernel) setChain(ctx context.Context, c chain, tools toolset, t *ruleTable, wanted bool) error {
	known := k.known(tools)
	if t != nil && t.err != nil {
		err := fmt.Errorf("table %s: %w", c.table, t.err)
		if wanted || !known.made[c.name] {
			return err
		}
		return k.removeBlindly(ctx, c, tools, err)
	}
	if _, exists := t.find(c.name); exists {
		known.made[c.name] = true
	}
	if commands := c.restoreCommands(wanted, t); len(commands) > 0 {
		err := k.system.RestoreTable(ctx, tools, c.table, commands)
		if err != nil && wanted && c.remedy != "" && ctx.Err() == nil {
			err = fmt.Errorf("%w; %s%s", err, c.remedy, describeModules(c.table, tools.family, commands, err.Error()))
		}
		if err != nil {
			return err
		}
		t.apply(commands)
		for _, name := range []string{c.name, dropSource, dropDestination, dropNode} {
			if c.counts != notCounted && slices.Contains(commands, makeCommand(name)) {
				known.counted[name] = 0
			}
		}
	}
	if wanted {
		known.made[c.name] = true
	} else {
		delete(known.made, c.name)
	}
	return nil
}

// removeBlindly removes a chain of a table that cannot be read. If that cannot be, an empty chain does no harm.
func (k *Kernel) removeBlindly(ctx context.Context, c chain, tools toolset, unread error) error {
	remove, empty := c.blindCommands()
	err := k.system.RestoreTable(ctx, tools, c.table, remove)
	if err == nil {
		delete(k.known(tools).made, c.name)
		return nil
	}
	if e := k.system.RestoreTable(ctx, tools, c.table, empty); e != nil {
		return errors.Join(unread, err, e)
	}
	return fmt.Errorf("%w; until then the chain stays, without rules", unread)
}
