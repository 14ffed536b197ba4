package kernel

// The real system: rtnetlink(7) through a handle of its own, iptables(8) as commands. Everything
// here translates, nothing decides.

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	lockTimeout = 10 // seconds to wait for the lock of xtables
	dumps       = 10 // attempts to get a dump that no change interrupts
)

type linux struct {
	netlink  *netlink.Handle
	iptables map[int]*iptables.IPTables // by family, as needed
}

func newSystem() (*linux, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	l := &linux{handle, map[int]*iptables.IPTables{}}
	runtime.AddCleanup(l, (*netlink.Handle).Close, handle)
	return l, nil
}

func (l *linux) Dump(device string) (d *dump, err error) {
	for range dumps {
		if d, err = l.dump(device); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return d, err
}

func (l *linux) dump(device string) (*dump, error) {
	d := &dump{}
	dev, err := l.netlink.LinkByName(device)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		dev = nil
	} else if err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	if dev != nil {
		d.link = link{dev.Attrs().Index, dev.Attrs().MTU, dev.Attrs().Flags&net.FlagUp != 0}
		addresses, err := l.netlink.AddrList(dev, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("addresses: %w", err)
		}
		for _, a := range addresses {
			d.addresses = append(d.addresses, address{a.LinkIndex, prefix(a.IPNet), a.Flags&unix.IFA_F_NOPREFIXROUTE != 0})
		}
	}
	for _, f := range families {
		all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		err := l.netlink.RouteListFilteredIter(f, all, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			source, _ := netip.AddrFromSlice(r.Src)
			gateway, _ := netip.AddrFromSlice(r.Gw)
			d.routes = append(d.routes, route{r.Table, prefix(r.Dst), source, gateway, r.LinkIndex, r.Priority, int(r.Protocol)})
			return true
		})
		if err != nil {
			return nil, fmt.Errorf("routes: %w", err)
		}
		rules, err := l.netlink.RuleList(f)
		if err != nil {
			return nil, fmt.Errorf("rules: %w", err)
		}
		for _, r := range rules {
			plain := netlinkRule(rule{f, r.Priority, r.Table, int(r.Protocol)})
			if r == *plain || r.Protocol == Protocol {
				d.rules = append(d.rules, rule{f, r.Priority, r.Table, int(r.Protocol)})
			}
		}
	}
	return d, nil
}

func (l *linux) Change(verb string, object any) error {
	switch o := object.(type) {
	case link:
		dev := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: o.Index}}
		if verb == "del" {
			return l.netlink.LinkDel(dev)
		}
		if err := l.netlink.LinkSetMTU(dev, o.MTU); err != nil {
			return fmt.Errorf("mtu: %w", err)
		}
		return l.netlink.LinkSetUp(dev)
	case address:
		a := &netlink.Addr{IPNet: ipnet(o.Prefix), LinkIndex: o.Index, Flags: unix.IFA_F_NOPREFIXROUTE}
		if o.Prefix.Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD // usable as source at once
		}
		return map[string]func(netlink.Link, *netlink.Addr) error{
			"add": l.netlink.AddrAdd, "del": l.netlink.AddrDel}[verb](nil, a)
	case route:
		r := &netlink.Route{Table: o.Table, Dst: ipnet(o.Destination), Src: o.Source.AsSlice(), LinkIndex: o.Index,
			Priority: o.Metric, Protocol: netlink.RouteProtocol(o.Protocol), Scope: netlink.SCOPE_LINK}
		return map[string]func(*netlink.Route) error{
			"add": l.netlink.RouteAdd, "replace": l.netlink.RouteReplace, "del": l.netlink.RouteDel}[verb](r)
	case rule:
		return map[string]func(*netlink.Rule) error{
			"add": l.netlink.RuleAdd, "del": l.netlink.RuleDel}[verb](netlinkRule(o))
	}
	return fmt.Errorf("unknown object %T", object)
}

func (l *linux) Name(index int) string {
	dev, err := l.netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("if%d", index)
	}
	return dev.Attrs().Name
}

func (l *linux) Idle(index int) bool {
	dev, err := l.netlink.LinkByIndex(index)
	if err != nil {
		return false
	}
	// A TUN has a carrier while a process holds it open. Only a device that is up tells, and only
	// such a one has routes.
	tun, ok := dev.(*netlink.Tuntap)
	return ok && tun.Mode == netlink.TUNTAP_MODE_TUN && tun.RawFlags&(unix.IFF_UP|unix.IFF_LOWER_UP) == unix.IFF_UP
}

func (l *linux) Chain(family int, table, chain string) ([]string, error) {
	t := l.iptables[family]
	if t == nil {
		protocol := iptables.ProtocolIPv4
		if family == unix.AF_INET6 {
			protocol = iptables.ProtocolIPv6
		}
		var err error
		if t, err = iptables.New(iptables.IPFamily(protocol), iptables.Timeout(lockTimeout)); err != nil {
			return nil, fmt.Errorf("run iptables: %w", err)
		}
		l.iptables[family] = t
	}
	list, err := t.List(table, chain)
	if failed := (*iptables.Error)(nil); errors.As(err, &failed) && (failed.ExitStatus() == 1 || failed.IsNotExist()) {
		return nil, nil // the text differs between versions and back ends; no table is 3 with the text
	}
	if err != nil {
		return nil, err
	}
	rules := []string{}
	for _, line := range list {
		if strings.HasPrefix(line, "-A ") {
			if family == unix.AF_INET6 {
				line = normal(line)
			}
			rules = append(rules, line)
		}
	}
	return rules, nil
}

// Restore runs iptables-restore, for go-iptables can only change single rules, which would show
// every state in between and take a process per rule.
func (l *linux) Restore(family int, table string, commands []string) error {
	name := "iptables-restore"
	if family == unix.AF_INET6 {
		name = "ip6tables-restore"
	}
	input := "*" + table + "\n" + strings.Join(commands, "\n") + "\nCOMMIT\n"
	cmd := exec.Command(name, "--noflush", "--wait", strconv.Itoa(lockTimeout))
	cmd.Stdin = strings.NewReader(input)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s of table %s: %w: %s", name, table, err, bytes.TrimSpace(output))
	}
	return nil
}

// normal writes addresses as netip does: C libraries abbreviate IPv6 in different ways.
func normal(line string) string {
	words := strings.Split(line, " ")
	for i, w := range words {
		if p, err := netip.ParsePrefix(w); err == nil {
			words[i] = p.String()
		} else if a, err := netip.ParseAddr(w); err == nil {
			words[i] = a.String()
		}
	}
	return strings.Join(words, " ")
}

func netlinkRule(r rule) *netlink.Rule {
	n := netlink.NewRule()
	n.Family, n.Priority, n.Table, n.Protocol = r.Family, r.Priority, r.Table, uint8(r.Protocol)
	return n
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
