// Package hello has the language in which two kubelinks talk: frames, and the hello with which each end tells what it
// is, whatever carries the bytes. It also has what an end concludes: which broker it follows, which announcement
// counts, and why it refuses a connection. The dataplanes share it. It keeps no connection, no clock and no lock.
package hello

// The hello: what each end of a session announces of itself, 80 bytes and extensions.
//
//	 0  cluster address  IP, mask   16 bytes each
//	32  service network  IP, mask   16 bytes each, zero when none
//	64  advertised port  uint16 BE
//	66  zero
//	78  length of extensions  uint16 BE
//	80  extensions: id uint8, length uint16 BE, data
//
// IPv4 addresses are IPv4-mapped, an IPv4 mask is in the last four bytes. Extensions:
//
//	  1  API access: token NUL PEM certificates
//	  2  DNS: cluster domain NUL IP, 4 or 16 bytes
//	128  capabilities: flags uint32 BE, instance uint64 BE, streams uint8, stream uint8,
//	     term uint32 BE, followed uint32 BE, length of version uint8, version; later fields are appended, and one that
//	     is missing is zero
//
// The instance is a random number of the process: sessions with another instance of the same peer are dead, even if
// they still look alive. Streams is the number of sessions that the sender wants at most; the smaller number of both
// ends counts. Stream is the number, from 0 on, that the dialler gives to this session. Term tells which of the brokers
// of a cluster has the links, and followed is the term of the receiver's cluster that the sender follows.
// Legacy peers ignore extension 128, and do not send it. They read MaxLegacyPayload bytes of a hello: mesh services, of
// which there can be many, are not in it but in frames of their own, see services.go.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

const (
	extensionAPI          = 1
	extensionDNS          = 2
	extensionCapabilities = 128

	helloSize = 80
)

// Hello is the content of a hello frame.
type Hello struct {
	link.Announcement
	Capable  bool   // has extension 128; the fields below are a part of it
	Flags    uint32 // of the features that the sender has: FlagKeepalive and so on
	Instance uint64 // of the process; 0: not known
	Streams  int    // that the sender wants at most, 0 to 255
	Stream   int    // that the connection is, 0 to 255
	Terms    *Terms // nil: the sender does not know of terms
}

// Terms are what a hello tells of Leases.
type Terms struct {
	Own      uint32 // of the sender; 0: it has no Lease
	Followed uint32 // of the receiver's cluster, that the sender follows; 0: none, or it is not to be told
}

// WantedStreams is the number of streams that the sender of the hello wants; 0: it has no streams.
func (h *Hello) WantedStreams() int {
	if h.Flags&FlagStreams == 0 {
		return 0
	}
	return max(1, h.Streams)
}

// OwnTerm is the term of the sender; 0: it has none.
func (h *Hello) OwnTerm() uint32 {
	if h.Terms == nil {
		return 0
	}
	return h.Terms.Own
}

// AppendPayload appends the payload of the hello frame to b. The error says that it is too large for legacy peers,
// which read MaxLegacyPayload bytes.
func (h *Hello) AppendPayload(b []byte) ([]byte, error) {
	start := len(b)
	b = appendPrefix(b, h.Address)
	b = appendPrefix(b, h.ServiceCIDR)
	b = binary.BigEndian.AppendUint16(b, h.AdvertisedPort)
	b = append(b, make([]byte, helloSize-66)...)
	if h.API != nil {
		b = appendExtension(b, extensionAPI, []byte(h.API.Token+"\x00"+string(h.API.CACert)))
	}
	if h.DNS != nil {
		b = appendExtension(b, extensionDNS, append([]byte(h.DNS.ClusterDomain+"\x00"), h.DNS.Address.AsSlice()...))
	}
	if h.Capable {
		data := binary.BigEndian.AppendUint32(nil, h.Flags)
		data = binary.BigEndian.AppendUint64(data, h.Instance)
		data = append(data, byte(h.Streams), byte(h.Stream))
		if h.Terms != nil {
			data = binary.BigEndian.AppendUint32(data, h.Terms.Own)
			data = binary.BigEndian.AppendUint32(data, h.Terms.Followed)
			if isVersion(h.Version) {
				data = append(append(data, byte(len(h.Version))), h.Version...)
			}
		}
		b = appendExtension(b, extensionCapabilities, data)
	}
	n := len(b) - start
	if n > MaxLegacyPayload {
		return nil, fmt.Errorf("announced facts take %d bytes, peers read %d: "+
			"shorten the CA bundle of the service account", n, MaxLegacyPayload)
	}
	binary.BigEndian.PutUint16(b[start+78:], uint16(n-helloSize))
	return b, nil
}

func appendExtension(b []byte, id byte, data []byte) []byte {
	b = append(b, id)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

// appendPrefix appends address and mask; the zero Prefix gives zeros.
func appendPrefix(b []byte, p netip.Prefix) []byte {
	var raw [32]byte
	if p.IsValid() {
		*(*[16]byte)(raw[:]) = p.Addr().As16()
		mask := raw[16:]
		if p.Addr().Is4() {
			mask = raw[28:]
		}
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
	}
	return append(b, raw[:]...)
}

var errTruncated = errors.New("truncated")

// ParsePayload parses the payload of a hello frame. The result does not refer to b. The error says which part is
// missing, cut or malformed.
func ParsePayload(b []byte) (*Hello, error) {
	if len(b) < helloSize {
		return nil, fmt.Errorf("hello of %d bytes: %w", len(b), errTruncated)
	}
	h := &Hello{}
	var err error
	if h.Address, err = parsePrefix(b[0:32]); err != nil {
		return nil, fmt.Errorf("cluster address in hello: %w", err)
	}
	if !h.Address.IsValid() {
		return nil, errors.New("no cluster address in hello")
	}
	if h.ServiceCIDR, err = parsePrefix(b[32:64]); err != nil {
		return nil, fmt.Errorf("service network in hello: %w", err)
	}
	if h.ServiceCIDR = h.ServiceCIDR.Masked(); h.ServiceCIDR.Bits() == 0 {
		h.ServiceCIDR = netip.Prefix{} // all addresses are no service network
	}
	h.AdvertisedPort = binary.BigEndian.Uint16(b[64:])
	n := int(binary.BigEndian.Uint16(b[78:]))
	if len(b) < helloSize+n {
		return nil, fmt.Errorf("extensions of hello: %w", errTruncated)
	}
	for b = b[helloSize : helloSize+n]; len(b) > 0; {
		if len(b) < 3 || len(b) < 3+int(binary.BigEndian.Uint16(b[1:])) {
			return nil, fmt.Errorf("extension of hello: %w", errTruncated)
		}
		id, data := b[0], b[3:3+int(binary.BigEndian.Uint16(b[1:]))]
		b = b[3+len(data):]
		h.parseExtension(id, data)
	}
	return h, nil
}

// parseExtension reads an extension. It ignores a known extension with invalid content like an unknown one: legacy
// peers announce extensions without content.
func (h *Hello) parseExtension(id byte, data []byte) {
	switch id {
	case extensionAPI:
		if token, ca, ok := strings.Cut(string(data), "\x00"); ok && token != "" {
			h.API = &link.APIInfo{Token: token, CACert: []byte(ca)}
		}
	case extensionDNS:
		domain, ip, _ := strings.Cut(string(data), "\x00")
		if addr, ok := netip.AddrFromSlice([]byte(ip)); ok || domain != "" {
			h.DNS = &link.DNSInfo{ClusterDomain: domain, Address: addr.Unmap()}
		}
	case extensionCapabilities:
		if len(data) >= 12 {
			h.Capable = true
			h.Flags = binary.BigEndian.Uint32(data)
			h.Instance = binary.BigEndian.Uint64(data[4:])
		}
		if len(data) >= 14 {
			h.Streams, h.Stream = int(data[12]), int(data[13])
		}
		if len(data) >= 22 {
			h.Terms = &Terms{Own: binary.BigEndian.Uint32(data[14:]), Followed: binary.BigEndian.Uint32(data[18:])}
		}
		if len(data) > 22 && len(data) >= 23+int(data[22]) {
			if v := string(data[23 : 23+int(data[22])]); isVersion(v) {
				h.Version = v
			}
		}
	}
}

// isVersion tells whether a text may be a version: it becomes a label of metrics, and a part of reports.
func isVersion(text string) bool {
	const longest = 64
	return text != "" && len(text) <= longest && !strings.ContainsFunc(text, func(c rune) bool {
		return !strings.ContainsRune("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.+_-", c)
	})
}

// parsePrefix parses 16 bytes of address and 16 bytes of mask; all zero is the zero Prefix.
func parsePrefix(b []byte) (netip.Prefix, error) {
	raw := *(*[32]byte)(b)
	if raw == ([32]byte{}) {
		return netip.Prefix{}, nil
	}
	addr := netip.AddrFrom16([16]byte(raw[:16])).Unmap()
	mask := raw[16:]
	if addr.Is4() {
		mask = raw[28:]
	}
	ones := 0
	for _, m := range mask {
		ones += bits.LeadingZeros8(^m)
		if m != 0xff {
			break
		}
	}
	p := netip.PrefixFrom(addr, ones)
	if check := appendPrefix(nil, p); string(check[32-len(mask):]) != string(mask) {
		return netip.Prefix{}, fmt.Errorf("mask %x of %s has gaps", mask, addr)
	}
	return p, nil
}

// CheckAddress tells whether the cluster address is that of a peer: one of its addresses, in a mesh of the local ones.
// The error is a RefusalError.
func (h *Hello) CheckAddress(local, peer mesh.Prefixes) error {
	expected := peer.SameFamily(h.Address.Addr()).Addr()
	switch {
	case !local.Contains(h.Address.Addr()):
		return NewRefusal(RefusedAddress, "peer announces cluster address %s, which is not in the mesh %s",
			h.Address, local.Masked())
	case h.Address.Addr() != expected:
		return NewRefusal(RefusedAddress, "peer announces cluster address %s, this link expects %s",
			h.Address, expected)
	}
	return nil
}
