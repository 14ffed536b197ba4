package nodecheck

// nftables, iptables-nft among them: what the kernel has as chains of rules. It needs no program, and reads only the
// chains that a packet comes to.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Hooks by the number of the kernel (linux/netfilter.h). Tables of devices have numbers of their own.
var (
	nftHooks = map[nftables.ChainHook]hook{
		*nftables.ChainHookPrerouting:  prerouting,
		*nftables.ChainHookInput:       input,
		*nftables.ChainHookForward:     forward,
		*nftables.ChainHookOutput:      output,
		*nftables.ChainHookPostrouting: postrouting,
		5:                              ingress, // NF_INET_INGRESS
	}
	nftDeviceHooks = map[nftables.ChainHook]hook{
		*nftables.ChainHookIngress: ingress,
		*nftables.ChainHookEgress:  egress,
	}
)

// nftGeneration is a number that changes with each change of the rules.
func nftGeneration() (uint32, error) {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	request.AddRawData([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0})
	replies, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(replies) == 0 || len(replies[0]) < 4 {
		return 0, fmt.Errorf("generation of nftables: %w", err)
	}
	attributes, err := nl.ParseRouteAttr(replies[0][4:])
	if err != nil {
		return 0, fmt.Errorf("generation of nftables: %w", err)
	}
	for _, a := range attributes {
		if a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) == 4 {
			return binary.BigEndian.Uint32(a.Value), nil
		}
	}
	return 0, nil
}

// nftReader reads the chains of one family.
type nftReader struct {
	conn   *nftables.Conn
	family int
	device func(name string) (index uint32)
	sets   map[string][]*nftables.Set // by family and table
	values map[string]setValues       // of sets, by family, table and name
	err    error                      // the first one: what is missing may accept or drop
}

// setValues are the elements of a set.
type setValues struct {
	elements []nftables.SetElement
	known    bool // else it may contain anything
}

// readNFTables returns the base chains of nftables that packets of one family pass. fault returns an error of reading
// rules later.
func readNFTables(family int, device func(string) uint32) (chains []baseChain, fault func() error, err error) {
	r := &nftReader{family: family, device: device, sets: map[string][]*nftables.Set{},
		values: map[string]setValues{}}
	if r.conn, err = nftables.New(); err != nil {
		return nil, nil, fmt.Errorf("nftables: %w", err)
	}
	own := nftables.TableFamilyIPv4
	if family == unix.AF_INET6 {
		own = nftables.TableFamilyIPv6
	}
	all, err := r.conn.ListChains()
	if err != nil {
		return nil, nil, fmt.Errorf("list the chains of nftables: %w", err)
	}
	devices, err := nftDevices()
	if err != nil {
		return nil, nil, err
	}
	for _, c := range all {
		hooks := nftHooks
		switch {
		case c.Hooknum == nil:
			continue
		case c.Table.Family == nftables.TableFamilyNetdev:
			hooks = nftDeviceHooks
		case c.Table.Family != own && c.Table.Family != nftables.TableFamilyINet:
			continue
		}
		h, ok := hooks[*c.Hooknum]
		if !ok || c.Type == nftables.ChainTypeNAT && h != postrouting {
			continue
		}
		b := r.newBase(c, h)
		b.devices = devices[nftName(c.Table, c.Name)]
		chains = append(chains, b)
	}
	return chains, func() error { return r.err }, nil
}

// nftDevices returns the devices of chains that have some, by the names of the chains: the library does not tell them.
func nftDevices() (map[string][]string, error) {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
	request.AddRawData([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0})
	replies, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) { // rules have changed, so the next look sees the rest
		return nil, fmt.Errorf("devices of the chains of nftables: %w", err)
	}
	devices := map[string][]string{}
	for _, reply := range replies {
		if len(reply) < 4 {
			continue
		}
		chain := nftAttributes(reply[4:])
		family, name := nftables.TableFamily(reply[0]), cString(chain[unix.NFTA_CHAIN_TABLE])
		key := nftName(&nftables.Table{Family: family, Name: name}, cString(chain[unix.NFTA_CHAIN_NAME]))
		hook := nftAttributes(chain[unix.NFTA_CHAIN_HOOK])
		if name := hook[unix.NFTA_HOOK_DEV]; name != nil {
			devices[key] = append(devices[key], cString(name))
		}
		list, _ := nl.ParseRouteAttr(hook[nftaHookDevs])
		for _, name := range list {
			devices[key] = append(devices[key], cString(name.Value))
		}
	}
	return devices, nil
}

// cString is a text of the kernel, without what ends it.
func cString(text []byte) string { return string(bytes.TrimRight(text, "\x00")) }

// nftaHookDevs is NFTA_HOOK_DEVS of linux/netfilter/nf_tables.h: the devices of a chain that has several.
const nftaHookDevs = 4

// nftAttributes returns attributes by type; none of a text that is none.
func nftAttributes(text []byte) map[uint16][]byte {
	list, _ := nl.ParseRouteAttr(text)
	attributes := map[uint16][]byte{}
	for _, a := range list {
		attributes[a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = a.Value
	}
	return attributes
}

func (r *nftReader) newBase(c *nftables.Chain, h hook) baseChain {
	b := baseChain{hook: h, name: c.Name, nat: c.Type == nftables.ChainTypeNAT, policy: accept}
	if c.Priority != nil {
		b.priority = int(*c.Priority)
	}
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		b.policy = drop
	}
	cache := map[string][]rule{}
	b.rules = func(chain string) []rule {
		rules, ok := cache[chain]
		if !ok {
			rules = r.readChain(c.Table, chain)
			cache[chain] = rules
		}
		return rules
	}
	if command, ok := iptablesCommand(c); ok {
		b.text = fmt.Sprintf("%s, table %s: chain %s", command, c.Table.Name, c.Name)
		b.remedy = iptablesRemedy(command, c.Table.Name, c.Name, h)
		return b
	}
	name := nftName(c.Table, c.Name)
	b.text = "nftables: chain " + name
	b.remedy = func(device string) string {
		var commands []string
		for _, key := range []string{"iifname", "oifname"} {
			if h <= input && key == "oifname" || (h == output || h >= postrouting) && key == "iifname" {
				continue
			}
			commands = append(commands, fmt.Sprintf("nft insert rule %s %s %s accept", name, key, device))
		}
		return strings.Join(commands, "; ")
	}
	return b
}

// iptablesCommand is the command that a base chain belongs to, if iptables-nft made it.
func iptablesCommand(c *nftables.Chain) (string, bool) {
	command := map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "iptables-nft", nftables.TableFamilyIPv6: "ip6tables-nft"}[c.Table.Family]
	ok := slices.ContainsFunc(legacyHooks, func(h struct {
		table, chain string
		hook         hook
		priority     int
	}) bool {
		return h.table == c.Table.Name && h.chain == c.Name
	})
	return command, ok && command != ""
}

// nftName is a chain as nft names it.
func nftName(t *nftables.Table, chain string) string {
	family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyINet: "inet", nftables.TableFamilyNetdev: "netdev"}[t.Family]
	return fmt.Sprintf("%s %s %s", family, t.Name, chain)
}

// readChain reads the rules of a chain.
func (r *nftReader) readChain(t *nftables.Table, chain string) []rule {
	found, err := r.conn.GetRules(t, &nftables.Chain{Name: chain})
	if err != nil {
		if r.err == nil {
			r.err = fmt.Errorf("read chain %s: %w", nftName(t, chain), err)
		}
		return []rule{{action: unclear}}
	}
	rules := make([]rule, len(found))
	for i, f := range found {
		d := nftRule{reader: r, table: t, registers: map[uint32]field{}}
		for _, e := range f.Exprs {
			d.addExpression(e)
		}
		rules[i] = d.rule
		rules[i].text = fmt.Sprintf("nftables: chain %s, rule with handle %d", nftName(t, chain), f.Handle)
		rules[i].undo = fmt.Sprintf("remove that rule, which nft -a list chain %s shows", nftName(t, chain))
	}
	return rules
}

// field is what a register holds: a part of the packet as the kernel stores it. nil is not known.
type field func(*packet) []byte

// nftRule makes one rule of its expressions.
type nftRule struct {
	rule
	reader    *nftReader
	table     *nftables.Table
	registers map[uint32]field
}

// addExpression adds an expression. An expression after the verdict does not exist.
func (d *nftRule) addExpression(e expr.Any) {
	switch e := e.(type) {
	case *expr.Meta:
		d.addMeta(e)
	case *expr.Payload:
		d.addPayload(e)
	case *expr.Ct:
		d.addConntrack(e)
	case *expr.Bitwise:
		d.addBitwise(e)
	case *expr.Immediate:
		d.registers[e.Register] = func(*packet) []byte { return e.Data }
	case *expr.Cmp:
		d.addComparison(e)
	case *expr.Lookup:
		d.addLookup(e)
	case *expr.Match:
		d.addCondition(d.matchExtension(e))
	case *expr.Target:
		d.addTarget(e)
	case *expr.Verdict:
		d.action, d.chain = verdictAction(e)
	case *expr.Reject:
		d.action = drop
	case *expr.Masq:
		d.action = translate
	case *expr.NAT:
		d.addNAT(e)
	case *expr.Counter, *expr.Log, *expr.Notrack, *expr.SecMark, *expr.CtHelper, *expr.CtTimeout, *expr.FlowOffload:
	case *expr.Queue, *expr.Redir, *expr.SynProxy:
		d.action = unclear
	default: // limits, hashes and all that is new; it may have changed a register
		clear(d.registers)
		d.addCondition(constantAnswer(maybe))
	}
}

func (d *nftRule) addCondition(c condition) { d.conditions = append(d.conditions, c) }

// useRegister is the content of a register.
func (d *nftRule) useRegister(register uint32) field {
	if f := d.registers[register]; f != nil {
		return f
	}
	return func(*packet) []byte { return nil }
}

func (d *nftRule) addMeta(e *expr.Meta) {
	if e.SourceRegister {
		if e.Key == expr.MetaKeyMARK {
			d.marks = true
		}
		return
	}
	family, device := d.reader.family, d.reader.device
	index := func(name string) []byte {
		if i := device(name); i != 0 {
			return binary.NativeEndian.AppendUint32(nil, i)
		}
		return nil
	}
	d.registers[e.Register] = func(p *packet) []byte {
		switch e.Key {
		case expr.MetaKeyIIFNAME:
			return deviceBytes(p.in)
		case expr.MetaKeyOIFNAME:
			return deviceBytes(p.out)
		case expr.MetaKeyIIF:
			return index(p.in)
		case expr.MetaKeyOIF:
			return index(p.out)
		case expr.MetaKeyL4PROTO:
			return []byte{unix.IPPROTO_TCP}
		case expr.MetaKeyNFPROTO:
			return []byte{byte(family)}
		case expr.MetaKeyPROTOCOL:
			if family == unix.AF_INET6 {
				return []byte{0x86, 0xdd}
			}
			return []byte{0x08, 0x00}
		case expr.MetaKeyMARK:
			if !p.marked {
				return make([]byte, 4)
			}
		}
		return nil
	}
}

// deviceBytes is a name as the kernel stores it; nil: not known.
func deviceBytes(name string) []byte {
	if name == "" {
		return nil
	}
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

// addPayload reads addresses and the protocol of the network header, and the flags of TCP.
func (d *nftRule) addPayload(e *expr.Payload) {
	if e.OperationType != expr.PayloadLoad {
		return
	}
	source, destination, protocol := uint32(12), uint32(16), uint32(9)
	if d.reader.family == unix.AF_INET6 {
		source, destination, protocol = 8, 24, 6
	}
	cut := func(a netip.Addr) []byte {
		if all := a.AsSlice(); int(e.Len) <= len(all) {
			return all[:e.Len]
		}
		return nil
	}
	d.registers[e.DestRegister] = func(p *packet) []byte {
		switch {
		case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 13 && e.Len == 1:
			return []byte{p.tcpFlags()}
		case e.Base != expr.PayloadBaseNetworkHeader:
		case e.Offset == source:
			return cut(p.src)
		case e.Offset == destination:
			return cut(p.dst)
		case e.Offset == protocol && e.Len == 1:
			return []byte{unix.IPPROTO_TCP}
		}
		return nil
	}
}

func (d *nftRule) addConntrack(e *expr.Ct) {
	if e.SourceRegister {
		return
	}
	d.registers[e.Register] = func(p *packet) []byte {
		switch {
		case e.Key == expr.CtKeySTATE:
			if p.answer {
				return binary.NativeEndian.AppendUint32(nil, expr.CtStateBitESTABLISHED)
			}
			return binary.NativeEndian.AppendUint32(nil, expr.CtStateBitNEW)
		case e.Key == expr.CtKeySTATUS && !p.dnat:
			return make([]byte, 4)
		}
		return nil
	}
}

func (d *nftRule) addBitwise(e *expr.Bitwise) {
	f := d.useRegister(e.SourceRegister)
	d.registers[e.DestRegister] = func(p *packet) []byte {
		in := f(p)
		if in == nil || len(e.Mask) != len(in) || len(e.Xor) != len(in) {
			return nil
		}
		out := make([]byte, len(in))
		for i := range in {
			out[i] = in[i]&e.Mask[i] ^ e.Xor[i]
		}
		return out
	}
}

func (d *nftRule) addComparison(e *expr.Cmp) {
	f := d.useRegister(e.Register)
	d.addCondition(func(p *packet) answer {
		value := f(p)
		if value == nil {
			return maybe
		}
		order := bytes.Compare(value[:min(len(value), len(e.Data))], e.Data) // a shorter one compares a prefix
		switch e.Op {
		case expr.CmpOpEq:
			return knownAnswer(order == 0)
		case expr.CmpOpNeq:
			return knownAnswer(order != 0)
		case expr.CmpOpLt:
			return knownAnswer(order < 0)
		case expr.CmpOpLte:
			return knownAnswer(order <= 0)
		case expr.CmpOpGt:
			return knownAnswer(order > 0)
		case expr.CmpOpGte:
			return knownAnswer(order >= 0)
		}
		return maybe
	})
}

// addLookup looks into a set.
func (d *nftRule) addLookup(e *expr.Lookup) {
	f := d.useRegister(e.SourceRegister)
	elements, ok := d.reader.readSet(d.table, e.SetName)
	isMap := e.IsDestRegSet
	if isMap && e.DestRegister != unix.NFT_REG_VERDICT {
		delete(d.registers, e.DestRegister)
	}
	find := func(p *packet) (*nftables.SetElement, answer) {
		value := f(p)
		if !ok || value == nil {
			return nil, maybe
		}
		return findElement(elements, value)
	}
	if isMap && e.DestRegister == unix.NFT_REG_VERDICT {
		d.choose = func(p *packet) (action, string, answer) {
			element, found := find(p)
			if found != yes {
				return unclear, "", found
			}
			a, chain := verdictAction(mapVerdict(element))
			return a, chain, yes
		}
		return
	}
	d.addCondition(func(p *packet) answer {
		_, found := find(p)
		if e.Invert {
			return found.negate()
		}
		return found
	})
}

// findElement finds a value in a set. Elements of a set of intervals are their beginnings and ends in turns.
func findElement(elements []nftables.SetElement, value []byte) (*nftables.SetElement, answer) {
	intervals := slices.ContainsFunc(elements, func(e nftables.SetElement) bool { return e.IntervalEnd })
	var below *nftables.SetElement
	for i := range elements {
		e := &elements[i]
		if len(e.Key) != len(value) || len(e.KeyEnd) > 0 {
			return nil, maybe
		}
		switch order := bytes.Compare(e.Key, value); {
		case order == 0 && !e.IntervalEnd:
			return e, yes
		case intervals && order <= 0 && (below == nil || bytes.Compare(e.Key, below.Key) >= 0):
			below = e
		}
	}
	if below != nil && !below.IntervalEnd {
		return below, yes
	}
	return nil, no
}

// mapVerdict is the verdict that an element of a verdict map stands for. The library leaves it as attributes.
func mapVerdict(e *nftables.SetElement) *expr.Verdict {
	if e.VerdictData != nil {
		return e.VerdictData
	}
	attributes := nftAttributes(e.Val)
	code := attributes[unix.NFTA_VERDICT_CODE]
	if len(code) != 4 {
		return &expr.Verdict{Kind: expr.VerdictQueue} // it may be anything
	}
	return &expr.Verdict{Kind: expr.VerdictKind(int32(binary.BigEndian.Uint32(code))),
		Chain: cString(attributes[unix.NFTA_VERDICT_CHAIN])}
}

// maxSetElements bounds the sets that packets are compared with.
const maxSetElements = 4096

// readSet reads the elements of a set. One that packets or time change, or that is large, may contain anything.
func (r *nftReader) readSet(t *nftables.Table, name string) ([]nftables.SetElement, bool) {
	key := nftName(t, name)
	if v, ok := r.values[key]; ok {
		return v.elements, v.known
	}
	var v setValues
	table := nftName(t, "")
	if _, ok := r.sets[table]; !ok {
		r.sets[table], _ = r.conn.GetSets(t)
	}
	for _, s := range r.sets[table] {
		if s.Name == name && !s.Concatenation && !s.Dynamic && !s.HasTimeout {
			elements, err := r.conn.GetSetElements(s)
			v = setValues{elements, err == nil && len(elements) <= maxSetElements}
		}
	}
	r.values[key] = v
	return v.elements, v.known
}

// matchExtension matches by an extension of iptables.
func (d *nftRule) matchExtension(e *expr.Match) condition {
	switch info := e.Info.(type) {
	case *xt.Comment:
		return constantAnswer(yes)
	case *xt.ConntrackMtinfo3:
		// XT_CONNTRACK_STATE alone, with the bits of linux/netfilter/xt_conntrack.h.
		if info.MatchFlags != 1 {
			return constantAnswer(maybe)
		}
		var states []string
		for bit, name := range map[uint16]string{2: "ESTABLISHED", 8: "NEW", 64: "SNAT", 128: "DNAT"} {
			if info.StateMask&bit != 0 {
				states = append(states, name)
			}
		}
		if info.InvertFlags&1 != 0 {
			return invertCondition(matchState(states))
		}
		return matchState(states)
	}
	if e.Name == "comment" {
		return constantAnswer(yes)
	}
	if data, ok := e.Info.(*xt.Unknown); ok && e.Name == "mark" && len(*data) >= 9 {
		// struct xt_mark_mtinfo1: mark, mask, invert
		value, inverted := binary.NativeEndian.Uint32(*data), (*data)[8] != 0
		return func(p *packet) answer {
			if p.marked {
				return maybe
			}
			return knownAnswer((value == 0) != inverted)
		}
	}
	return constantAnswer(maybe)
}

// addTarget takes a target of iptables.
func (d *nftRule) addTarget(e *expr.Target) {
	d.action, d.chain = targetAction("-j", e.Name)
	d.marks = marksPackets(e.Name)
	if d.action == jump { // not a chain, but a target that is new
		d.action, d.chain = unclear, ""
	}
	if e.Name != "SNAT" {
		return
	}
	var low, high []byte
	switch info := e.Info.(type) {
	case *xt.NatIPv4MultiRangeCompat:
		if len(*info) == 1 {
			low, high = (*info)[0].MinIP, (*info)[0].MaxIP
		}
	case *xt.NatRange:
		low, high = info.MinIP, info.MaxIP
	case *xt.NatRange2:
		low, high = info.MinIP, info.MaxIP
	case *xt.Unknown: // struct nf_nat_range: flags, addresses
		if len(*info) >= 36 {
			low, high = (*info)[4:20], (*info)[20:36]
		}
	}
	d.setSource(low, high)
}

func (d *nftRule) addNAT(e *expr.NAT) {
	if e.Type != expr.NATTypeSourceNAT {
		d.action = unclear
		return
	}
	d.action = translate
	low := d.useRegister(e.RegAddrMin)(&packet{})
	high := low
	if e.RegAddrMax != 0 && e.RegAddrMax != e.RegAddrMin {
		high = d.useRegister(e.RegAddrMax)(&packet{})
	}
	d.setSource(low, high)
}

// setSource sets the new source, if there is one for all packets.
func (d *nftRule) setSource(low, high []byte) {
	source, ok := netip.AddrFromSlice(low)
	if !ok || !bytes.Equal(low, high) {
		d.action = unclear
		return
	}
	if source = source.Unmap(); d.reader.family == unix.AF_INET && !source.Is4() {
		source = netip.AddrFrom4([4]byte(low[:4])) // the union nf_inet_addr begins with the IPv4 address
	}
	d.source = source
}

func verdictAction(v *expr.Verdict) (action, string) {
	switch v.Kind {
	case expr.VerdictAccept:
		return accept, ""
	case expr.VerdictDrop:
		return drop, ""
	case expr.VerdictReturn:
		return back, ""
	case expr.VerdictJump:
		return jump, v.Chain
	case expr.VerdictGoto:
		return goTo, v.Chain
	case expr.VerdictContinue, expr.VerdictBreak:
		return next, ""
	}
	return unclear, ""
}
