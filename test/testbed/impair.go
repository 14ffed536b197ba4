package testbed

// This file makes networks worse: loss, a low rate, a small or large MTU, connections that break. A lasting
// impairment returns a function that takes it back; calling it twice does no harm. Several impairments can be
// combined.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// uplink is a router's device to the internet.
const uplink = "public"

// step is a change and the function that takes it back.
type step struct{ do, undo func() error }

// applySteps makes all steps or none.
func applySteps(what string, steps ...step) (undo func() error, err error) {
	var done []step
	undo = sync.OnceValue(func() error {
		var errs []error
		for _, s := range slices.Backward(done) {
			errs = append(errs, s.undo())
		}
		return errors.Join(errs...)
	})
	for _, s := range steps {
		if err := s.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", what, errors.Join(err, undo()))
		}
		done = append(done, s)
	}
	return undo, nil
}

// ruleStep inserts an iptables rule and deletes it. The context of the test bed bounds the deletion, because the
// context of the test may be over.
func (h *Host) ruleStep(ctx context.Context, table, chain string, match ...string) step {
	change := func(ctx context.Context, command string) func() error {
		return func() error {
			_, err := h.Iptables(ctx, append([]string{"-t", table, command, chain}, match...)...)
			return err
		}
	}
	return step{change(ctx, "-I"), change(h.testbed.ctx, "-D")}
}

// singlePackets makes a device send packets one by one. Between the network stacks of one machine they travel in
// bundles of up to 64 KB, and loss would take a whole bundle.
func (h *Host) singlePackets(device string) step {
	set := func(segments int) func() error {
		return func() error {
			return h.onLink(device, "limit bundles of",
				func(l netlink.Link) error { return h.Net.LinkSetGSOMaxSegs(l, segments) })
		}
	}
	return step{set(1), set(1<<16 - 1)}
}

// Loss drops a random share of the packets, from 0 to 1, that come over the internet from one cluster to another, in
// this direction only.
func Loss(ctx context.Context, from, to *Cluster, share float64) (undo func() error, err error) {
	return applySteps(fmt.Sprintf("loss from %s to %s", from.Name, to.Name),
		from.Router.singlePackets(uplink),
		to.Router.ruleStep(ctx, "raw", "PREROUTING", "-s", from.PublicAddress.String(),
			"-m", "statistic", "--mode", "random", "--probability", strconv.FormatFloat(share, 'f', 6, 64), "-j", "DROP"))
}

// Rate limits the rate of a cluster to the internet, in bits per second. A packet waits at most for the duration of
// buffer in the router; after that the router drops it.
func Rate(ctx context.Context, from *Cluster, bits int, buffer time.Duration) (undo func() error, err error) {
	const burst = 2 * 1514 // with a small burst the rate holds for a millisecond, too
	tc := func(ctx context.Context, args ...string) func() error {
		return func() error {
			_, err := from.Router.Run(ctx, "tc", args...)
			return err
		}
	}
	queue := int(float64(bits)/8*buffer.Seconds()) + burst
	return applySteps("rate of "+from.Name, step{
		tc(ctx, "qdisc", "add", "dev", uplink, "root", "tbf", "rate", strconv.Itoa(bits)+"bit",
			"burst", strconv.Itoa(burst), "limit", strconv.Itoa(queue)),
		tc(from.testbed.ctx, "qdisc", "del", "dev", uplink, "root"),
	})
}

// SetMTU changes the MTU of a pod's cable, at both of its ends. On a real node, the node's end keeps what the pod
// network has at least: a bridge would take the lowest MTU of its ports.
func (p *Pod) SetMTU(mtu int) (undo func() error, err error) {
	set := func(h *Host, device string, mtu int) func() error {
		return func() error {
			return h.onLink(device, "set MTU of", func(l netlink.Link) error { return h.Net.LinkSetMTU(l, mtu) })
		}
	}
	var opts ClusterOptions
	if p.cluster != nil { // a pod can stand alone
		opts = p.cluster.opts
	}
	usual, device, far := opts.mtu(), p.device, mtu
	if p.Node.isReal() {
		if device, err = p.nodeDevice(); err != nil {
			return nil, err
		}
		far = max(mtu, usual)
	}
	return applySteps("MTU of "+p.Name,
		step{set(p.Host, "eth0", mtu), set(p.Host, "eth0", usual)},
		step{set(p.Node.Host, device, far), set(p.Node.Host, device, usual)})
}

// nodeDevice finds the node's end of the cable of a pod that kubelet has connected.
func (p *Pod) nodeDevice() (string, error) {
	eth0, err := p.Net.LinkByName("eth0")
	if err != nil {
		return "", err
	}
	device, err := p.Node.Net.LinkByIndex(eth0.Attrs().ParentIndex)
	if err != nil {
		return "", err
	}
	return device.Attrs().Name, nil
}

// Connection is a TCP connection of a host.
type Connection struct{ Local, Remote netip.AddrPort }

// Connections lists the established TCP connections of the host with a peer's address, in a stable order.
func (h *Host) Connections(ctx context.Context, peer netip.Addr) ([]Connection, error) {
	out, err := h.Run(ctx, "ss", "--tcp", "--no-header", "--numeric", "state", "established", "dst", peer.String())
	if err != nil {
		return nil, err
	}
	var all []Connection
	for line := range strings.Lines(out) {
		fields := strings.Fields(line) // queued to be read, queued to be sent, local, remote
		if len(fields) < 4 {
			return nil, fmt.Errorf("%s: ss says %q", h.Name, line)
		}
		local, err1 := netip.ParseAddrPort(fields[2])
		remote, err2 := netip.ParseAddrPort(fields[3])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("%s: ss says %q: %w", h.Name, line, err)
		}
		all = append(all, Connection{unmap(local), unmap(remote)})
	}
	slices.SortFunc(all, func(a, b Connection) int {
		if c := a.Local.Compare(b.Local); c != 0 {
			return c
		}
		return a.Remote.Compare(b.Remote)
	})
	return all, nil
}

// unmap returns the IPv4 address that a socket for both families has in IPv6 form.
func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// KillConnection breaks a TCP connection: it resets both ends.
func (h *Host) KillConnection(ctx context.Context, c Connection) error {
	_, err := h.Run(ctx, "ss", "--kill", "--tcp", "--no-header", "--numeric",
		"src", c.Local.Addr().String(), "sport", "=", strconv.Itoa(int(c.Local.Port())),
		"dst", c.Remote.Addr().String(), "dport", "=", strconv.Itoa(int(c.Remote.Port())))
	if err != nil {
		return err
	}
	gone, err := h.isConnectionGone(ctx, c)
	if gone || err != nil {
		return err
	}
	return h.resetConnection(ctx, c) // the kernel lacks INET_DIAG_DESTROY; ss does not say so
}

// resetConnection does the same with a rule of the packet filter. The connection must be in use.
func (h *Host) resetConnection(ctx context.Context, c Connection) error {
	undo, err := applySteps("reset",
		h.ruleStep(ctx, "filter", "OUTPUT", "-p", "tcp",
			"-s", c.Local.Addr().String(), "--sport", strconv.Itoa(int(c.Local.Port())),
			"-d", c.Remote.Addr().String(), "--dport", strconv.Itoa(int(c.Remote.Port())),
			"-j", "REJECT", "--reject-with", "tcp-reset"))
	if err != nil {
		return err
	}
	// Without the rule, the kernel resets the other end, too, when that end sends its next packet.
	return errors.Join(Until(ctx, "reset", func(ctx context.Context) error {
		gone, err := h.isConnectionGone(ctx, c)
		if err == nil && !gone {
			err = errors.New("still connected")
		}
		return err
	}), undo())
}

func (h *Host) isConnectionGone(ctx context.Context, c Connection) (bool, error) {
	all, err := h.Connections(ctx, c.Remote.Addr())
	return !slices.Contains(all, c), err
}

// Counter returns a counter of the host's network stack as in /proc/net/snmp, such as Ip FragCreates.
func (h *Host) Counter(ctx context.Context, group, name string) (int, error) {
	out, err := h.Run(ctx, "cat", "/proc/net/snmp")
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(out) {
		rest, ok := strings.CutPrefix(line, group+": ")
		switch {
		case !ok:
		case names == nil:
			names = strings.Fields(rest)
		default:
			if i := slices.Index(names, name); i >= 0 {
				return strconv.Atoi(strings.Fields(rest)[i])
			}
		}
	}
	return 0, fmt.Errorf("%s: no counter %s %s", h.Name, group, name)
}
