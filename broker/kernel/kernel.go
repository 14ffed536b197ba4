// Package kernel makes the network stack of the gateway what a mesh needs: addresses and routes
// on the device, the rule that leads to their table, source NAT, the acceptance of forwarded
// packets, and a TCP segment size that fits. All of it is one Set, told the whole; Set finds the
// difference itself, so that it also adopts what a killed broker left.
//
// Set changes and removes only what is ours: on the device, routes with Protocol and full-length
// addresses with noprefixroute; rules with Protocol; the chains KUBELINK-* and the jumps to them.
// Ours is, too, a TUN device that has routes with Protocol and that no process holds open: a killed
// broker left it, and the device has another name since.
//
// From a State to commands: desired.go says which objects are wanted, netfilter.go which chains;
// diff.go compares the objects with what the kernel has, netfilter.go the chains; system.go
// tells the kernel. This file has the steps in their order.
package kernel

import (
	"errors"
	"fmt"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"
)

// Kernel is the network stack of one network namespace. Its methods may be called concurrently.
type Kernel struct {
	config Config
	system system

	setting sync.Mutex   // held over a whole Set, which runs commands; guards clean, and the calls of system
	clean   map[int]bool // families without chains of ours, as Set has seen

	mu      sync.Mutex // guards warning; held to read or to assign it only
	warning error      // of the last Set
}

// system is the kernel as Set needs it; linux is the real one.
type system interface {
	Dump(device string) (*objects, error)                           // all that Set may own or collide with
	Change(verb string, object any) error                           // what a change says
	DeviceName(index int) string                                    // or a text in place of one that does not exist
	IsIdleTUN(index int) bool                                       // a TUN device that no process holds open
	ListChain(family int, table, chain string) ([]string, error)    // rules as iptables -S prints them; nil: no such chain
	RestoreTable(family int, table string, commands []string) error // all or nothing, in one transaction
}

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
	return &Kernel{config: config, system: s, clean: map[int]bool{}}, nil
}

// Clear removes all that is ours. The device stays, it need not exist.
func (k *Kernel) Clear() error { return k.Set(State{}) }

// Set makes the network stack what s says. Where all is right it writes nothing. A part that fails
// does not stop the other parts: their errors are joined, each says what was tried, and the next Set
// tries again.
func (k *Kernel) Set(s State) error {
	k.setting.Lock()
	defer k.setting.Unlock()
	routes, errs := validateRoutes(s.Routes)
	s.Routes = routes

	// The kernel decides about source NAT with the first packet of a connection and keeps to it. So
	// the chains come before the first packet can leave, and go when none leaves any more.
	if s.isEmpty() {
		errs = append(errs, k.setNetwork(s, nil)...)
	}
	noNAT, failed := k.setChains(s)
	errs = append(errs, failed...)
	if !s.isEmpty() {
		errs = append(errs, k.setNetwork(s, noNAT)...)
	}
	return errors.Join(errs...)
}

// Warning tells what the last Set could not do, but a mesh does without; nil: there is nothing. It
// does not wait for a Set that runs.
func (k *Kernel) Warning() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.warning
}

// setNetwork sets all that rtnetlink(7) does: it reads what the kernel has, plans the changes and
// makes them. The families of noNAT get no new routes.
func (k *Kernel) setNetwork(s State, noNAT map[int]bool) (errs []error) {
	found, err := k.system.Dump(k.config.Device)
	if err != nil {
		return []error{fmt.Errorf("read the network state of device %s: %w", k.config.Device, err)}
	}
	if found.link.Index == 0 && !s.isEmpty() {
		errs = append(errs, fmt.Errorf("device %s does not exist: %d addresses and %d routes are not set",
			k.config.Device, len(s.Addresses), len(s.Routes)))
	}
	wanted := wantedObjects(k.config, s, found.link)
	p := planChanges(wanted, divideObjects(*found, k.findOldDevices(*found)), noNAT)
	errs = append(errs, k.omissions(p)...)
	return append(errs, k.makeChanges(p)...)
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
func (k *Kernel) omissions(p *plan) (errs []error) {
	for _, c := range p.conflicts {
		errs = append(errs, fmt.Errorf("%s: there is a route that is not ours: %s",
			ipCommand("add", c.wanted, k.system.DeviceName), c.foreign.text(k.system.DeviceName)))
	}
	for _, f := range families {
		if n := p.withheld[f]; n > 0 {
			errs = append(errs, fmt.Errorf("%d new routes of IPv%d are not set: there is no source NAT for them",
				n, ipVersion(f)))
		}
	}
	return errs
}

// makeChanges makes all changes of a plan, also where one fails.
func (k *Kernel) makeChanges(p *plan) (errs []error) {
	for _, c := range p.changes {
		if err := k.system.Change(c.verb, c.object); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", ipCommand(c.verb, c.object, k.system.DeviceName), err))
		}
	}
	return errs
}

// setChains sets the chains of both families. It looks once at a family that is not in use, for
// what a killed broker left. It returns the families whose source NAT is not as it should be.
func (k *Kernel) setChains(s State) (noNAT map[int]bool, errs []error) {
	noNAT = map[int]bool{}
	var warnings []error
	for _, f := range families {
		wanted := s.usesFamily(f)
		if !wanted && k.clean[f] {
			continue
		}
		k.clean[f] = !wanted
		for _, c := range wantedChains(k.config.Device, s, f) {
			err := k.setChain(c, f, wanted)
			if err == nil {
				continue
			}
			k.clean[f] = false
			noNAT[f] = noNAT[f] || c.table == natTable
			err = fmt.Errorf("chain %s of IPv%d: %w", c.name, ipVersion(f), err)
			if c.remedy != "" && wanted && !errors.Is(err, exec.ErrNotFound) {
				warnings = append(warnings, fmt.Errorf("%w; %s", err, c.remedy))
			} else {
				errs = append(errs, err)
			}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.warning = errors.Join(warnings...)
	return noNAT, errs
}

// setChain makes a chain and its hook as they are wanted, or removes both.
func (k *Kernel) setChain(c chain, family int, wanted bool) error {
	builtin, err := k.system.ListChain(family, c.table, c.builtin())
	if err != nil {
		if !wanted && errors.Is(err, exec.ErrNotFound) {
			return nil // without iptables there are no chains
		}
		return err
	}
	current, err := k.system.ListChain(family, c.table, c.name)
	if err != nil {
		return err
	}
	if commands := c.restoreCommands(wanted, builtin, current); len(commands) > 0 {
		return k.system.RestoreTable(family, c.table, commands)
	}
	return nil
}
