package bridge

// Which packets from a peer may come in: where its ingress lists lead, and what an address of the node itself takes.
//
// The filter of the node knows no connections. It drops what can belong to none that this side began, and leaves the
// rest (UDP above all) to the kernel's connection tracking. What it lets through it has understood: no fragment and no
// extension header hides the header that decides.

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// verdict is what an ingress list says of a destination.
type verdict uint8

const (
	denied      verdict = iota
	allowed             // any packet
	nodeReplies         // an address of the node: only what may belong to a connection that this side began
	nodePing            // and echo requests, and the open ports
)

// ingressFilter is what one peer may send.
type ingressFilter struct {
	verdicts *bart.Table[verdict]        // the longest prefix decides
	carried  *bart.Table[*ingressFilter] // instead of verdicts, by source; nil: the peer carries no other links
	open     []mesh.LocalPort            // sorted
}

func newIngressFilter(spec *mesh.Peer, tables verdictTables) *ingressFilter {
	f := &ingressFilter{open: spec.Open, verdicts: tables.tableOf(spec.Ingress)}
	if len(spec.Carried) > 0 {
		f.carried = new(bart.Table[*ingressFilter])
	}
	for i := range spec.Carried {
		c := &ingressFilter{open: spec.Open, verdicts: tables.tableOf(spec.Carried[i].Ingress)}
		for _, n := range spec.Carried[i].Networks {
			f.carried.Insert(n, c)
		}
	}
	return f
}

// verdictTables are the tables of lists: hundreds of links may share one list, which lets them reach thousands of mesh
// services.
type verdictTables map[sharedList]*bart.Table[verdict]

// sharedList is a list by its place in memory.
type sharedList struct {
	first *mesh.Rule
	count int
}

// tableOf returns the table of a list. It does not change afterwards.
func (v verdictTables) tableOf(rules []mesh.Rule) *bart.Table[verdict] {
	if len(rules) == 0 {
		return new(bart.Table[verdict])
	}
	list := sharedList{&rules[0], len(rules)}
	if v[list] == nil {
		v[list] = newVerdicts(rules)
	}
	return v[list]
}

func newVerdicts(rules []mesh.Rule) *bart.Table[verdict] {
	table := new(bart.Table[verdict])
	for _, r := range rules {
		v := denied
		switch {
		case r.Node && r.Allow:
			v = nodePing
		case r.Node:
			v = nodeReplies
		case r.Allow:
			v = allowed
		}
		table.Insert(r.Prefix, v)
	}
	return table
}

// ofSource is the filter for packets from a source, which is routed to the peer.
func (f *ingressFilter) ofSource(src netip.Addr) *ingressFilter {
	if f.carried == nil {
		return f
	}
	if c, ok := f.carried.Lookup(src); ok {
		return c
	}
	return f
}

// prefixLength is the length of the rule that decides on dst; -1: there is none.
func (f *ingressFilter) prefixLength(dst netip.Addr) int {
	n, _, ok := f.verdicts.LookupPrefixLPM(netip.PrefixFrom(dst, dst.BitLen()))
	if !ok {
		return -1
	}
	return n.Bits()
}

// Protocols, and types of ICMP (RFC 792, RFC 4443) and SCTP (RFC 9260), that the filter knows.
const (
	protocolICMP   = 1
	protocolICMPv6 = 58

	echoReply, echoRequest     = 0, 8
	echoReplyV6, echoRequestV6 = 129, 128
	chunkINIT                  = 1

	synFlag, ackFlag = 0x02, 0x10
)

// allowsNode tells whether a packet to an address of the node may come in. parseAddresses has accepted the packet,
// validateFor its header, and v is nodeReplies or nodePing.
func (f *ingressFilter) allowsNode(v verdict, packet []byte, vnet vnetHeader) bool {
	t, ok := parseNodeTransport(packet)
	if !ok {
		return false
	}
	ping := v == nodePing
	switch isV4 := packet[0]>>4 == 4; t.protocol {
	case protocolICMP, protocolICMPv6:
		// Nothing but the checksum of TCP or UDP is left to the kernel: it may be placed over the type.
		if isV4 != (t.protocol == protocolICMP) || vnet != (vnetHeader{}) {
			return false
		}
		return t.later || allowsICMP(ping, isV4, t.header)
	case protocolTCP:
		return t.later || len(t.header) >= 20 && (t.header[13]&(synFlag|ackFlag) != synFlag ||
			ping && f.isOpen("tcp", t.header))
	case protocolUDP: // whether it is a reply, the kernel knows
		return t.later || len(t.header) >= headerUDP && (ping || !f.isOpen("udp", t.header))
	case protocolSCTP:
		return t.later || len(t.header) >= 16 && t.header[12] != chunkINIT
	}
	return false
}

// allowsICMP lets errors and replies in, and with ping echo requests. Redirects and neighbour discovery change what the
// node does, and other messages ask about it.
func allowsICMP(ping, isV4 bool, header []byte) bool {
	if len(header) < 8 {
		return false
	}
	switch kind := header[0]; {
	case isV4:
		return kind == echoReply || kind == 3 || kind == 11 || kind == 12 || ping && kind == echoRequest
	default:
		return kind >= 1 && kind <= 4 || kind == echoReplyV6 || ping && kind == echoRequestV6
	}
}

// isOpen tells whether the destination port in a header of TCP or UDP is one of the open ports.
func (f *ingressFilter) isOpen(protocol string, header []byte) bool {
	port := binary.BigEndian.Uint16(header[2:])
	_, open := slices.BinarySearchFunc(f.open, mesh.LocalPort{Protocol: protocol, Port: port}, mesh.LocalPort.Compare)
	return open
}

// nodeTransport is the transport protocol in a packet.
type nodeTransport struct {
	protocol byte
	header   []byte // and what follows
	later    bool   // a fragment without header: of no use without the first one, on which the filter decides
}

// minFragmentOffset, in bytes, is where a later fragment may begin. One that begins before lies over the header of the
// first fragment (RFC 1858, RFC 3128); the smallest first fragments that routers make end later (RFC 791: 68 bytes).
const minFragmentOffset = 40

// parseNodeTransport finds the transport header. ok is false where it is not sure what the kernel will find: extension
// headers but options, or a fragment whose first part does not hold all headers (RFC 7112).
func parseNodeTransport(packet []byte) (t nodeTransport, ok bool) {
	if packet[0]>>4 == 4 {
		t.protocol, t.header = packet[9], packet[int(packet[0]&0x0f)*4:]
		offset := int(binary.BigEndian.Uint16(packet[6:])&0x1fff) * 8
		t.later = offset > 0
		return t, offset == 0 || offset >= minFragmentOffset
	}
	next, start, fragmented := packet[6], 40, false
	for range maxExtensions {
		size := 8
		switch next {
		case 0, 60: // hop-by-hop options, destination options
			if len(packet) < start+8 {
				return t, false
			}
			size += int(packet[start+1]) * 8
		case 44: // fragment
			if len(packet) < start+8 || fragmented {
				return t, false
			}
			fragmented = true
			if offset := int(binary.BigEndian.Uint16(packet[start+2:]) &^ 7); offset > 0 {
				t.protocol, t.later = packet[start], true
				return t, offset >= minFragmentOffset
			}
		default:
			t.protocol, t.header = next, packet[min(start, len(packet)):]
			return t, true
		}
		next, start = packet[start], start+size
	}
	return t, false
}
