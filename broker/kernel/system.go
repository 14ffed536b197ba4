package kernel

// The real system: rtnetlink(7) through a handle of its own, iptables(8) as commands. This file
// translates and decides nothing.

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
	lockTimeout     = 10 // seconds to wait for the lock of xtables
	maxDumpAttempts = 10 // to get a dump that no change interrupts
)

// linux is the kernel of this machine. One call at a time: the Kernel sees to that.
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

func (l *linux) Dump(device string) (o *objects, err error) {
	for range maxDumpAttempts {
		if o, err = l.dumpObjects(device); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return o, err
}

func (l *linux) dumpObjects(device string) (*objects, error) {
	o := &objects{}
	if err := l.dumpDevice(device, o); err != nil {
		return nil, err
	}
	for _, f := range families {
		if err := l.dumpRoutes(f, o); err != nil {
			return nil, fmt.Errorf("routes: %w", err)
		}
		if err := l.dumpRules(f, o); err != nil {
			return nil, fmt.Errorf("rules: %w", err)
		}
	}
	return o, nil
}

// dumpDevice reads the link and its addresses, if it exists.
func (l *linux) dumpDevice(name string, o *objects) error {
	dev, err := l.netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	attrs := dev.Attrs()
	o.link = link{attrs.Index, attrs.MTU, attrs.Flags&net.FlagUp != 0}
	addresses, err := l.netlink.AddrList(dev, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for _, a := range addresses {
		o.addresses = append(o.addresses,
			address{a.LinkIndex, toPrefix(a.IPNet), a.Flags&unix.IFA_F_NOPREFIXROUTE != 0})
	}
	return nil
}

// dumpRoutes reads the routes of all tables.
func (l *linux) dumpRoutes(family int, o *objects) error {
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	return l.netlink.RouteListFilteredIter(family, all, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
		source, _ := netip.AddrFromSlice(r.Src)
		gateway, _ := netip.AddrFromSlice(r.Gw)
		o.routes = append(o.routes,
			route{r.Table, toPrefix(r.Dst), source, gateway, r.LinkIndex, r.Priority, int(r.Protocol)})
		return true
	})
}

// dumpRules reads our rules, and the foreign ones without any condition.
func (l *linux) dumpRules(family int, o *objects) error {
	rules, err := l.netlink.RuleList(family)
	if err != nil {
		return err
	}
	for _, r := range rules {
		unconditional := rule{family, r.Priority, r.Table, int(r.Protocol)}
		if r == *toNetlinkRule(unconditional) || r.Protocol == Protocol {
			o.rules = append(o.rules, unconditional)
		}
	}
	return nil
}

func (l *linux) Change(verb string, object any) error {
	switch o := object.(type) {
	case link:
		return l.changeLink(verb, o)
	case address:
		a := &netlink.Addr{IPNet: toIPNet(o.Prefix), LinkIndex: o.Index, Flags: unix.IFA_F_NOPREFIXROUTE}
		if o.Prefix.Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD // usable as source at once
		}
		return map[string]func(netlink.Link, *netlink.Addr) error{
			"add": l.netlink.AddrAdd, "del": l.netlink.AddrDel}[verb](nil, a)
	case route:
		r := &netlink.Route{Table: o.Table, Dst: toIPNet(o.Destination), Src: o.Source.AsSlice(), LinkIndex: o.Index,
			Priority: o.Metric, Protocol: netlink.RouteProtocol(o.Protocol), Scope: netlink.SCOPE_LINK}
		return map[string]func(*netlink.Route) error{
			"add": l.netlink.RouteAdd, "replace": l.netlink.RouteReplace, "del": l.netlink.RouteDel}[verb](r)
	case rule:
		return map[string]func(*netlink.Rule) error{
			"add": l.netlink.RuleAdd, "del": l.netlink.RuleDel}[verb](toNetlinkRule(o))
	}
	return fmt.Errorf("unknown object %T", object)
}

func (l *linux) changeLink(verb string, o link) error {
	dev := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: o.Index}}
	if verb == "del" {
		return l.netlink.LinkDel(dev)
	}
	if err := l.netlink.LinkSetMTU(dev, o.MTU); err != nil {
		return fmt.Errorf("mtu: %w", err)
	}
	return l.netlink.LinkSetUp(dev)
}

func (l *linux) DeviceName(index int) string {
	dev, err := l.netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("if%d", index)
	}
	return dev.Attrs().Name
}

func (l *linux) IsIdleTUN(index int) bool {
	dev, err := l.netlink.LinkByIndex(index)
	if err != nil {
		return false
	}
	// A TUN has a carrier while a process holds it open. Only a device that is up tells, and only
	// such a device has routes.
	tun, ok := dev.(*netlink.Tuntap)
	return ok && tun.Mode == netlink.TUNTAP_MODE_TUN &&
		tun.RawFlags&(unix.IFF_UP|unix.IFF_LOWER_UP) == unix.IFF_UP
}

func (l *linux) ListChain(family int, table, chain string) ([]string, error) {
	t, err := l.openIPTables(family)
	if err != nil {
		return nil, fmt.Errorf("run iptables: %w", err)
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
				line = normalizeAddresses(line)
			}
			rules = append(rules, line)
		}
	}
	return rules, nil
}

// openIPTables finds out about the command of a family the first time.
func (l *linux) openIPTables(family int) (*iptables.IPTables, error) {
	if t := l.iptables[family]; t != nil {
		return t, nil
	}
	protocol := iptables.ProtocolIPv4
	if family == unix.AF_INET6 {
		protocol = iptables.ProtocolIPv6
	}
	t, err := iptables.New(iptables.IPFamily(protocol), iptables.Timeout(lockTimeout))
	if err != nil {
		return nil, err
	}
	l.iptables[family] = t
	return t, nil
}

// RestoreTable runs iptables-restore, for go-iptables can only change single rules, which would show
// every state in between and take a process per rule.
func (l *linux) RestoreTable(family int, table string, commands []string) error {
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

// normalizeAddresses writes addresses as netip does: C libraries abbreviate IPv6 in different ways.
func normalizeAddresses(line string) string {
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

func toNetlinkRule(r rule) *netlink.Rule {
	n := netlink.NewRule()
	n.Family, n.Priority, n.Table, n.Protocol = r.Family, r.Priority, r.Table, uint8(r.Protocol)
	return n
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func toPrefix(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
