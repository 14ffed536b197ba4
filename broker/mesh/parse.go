package mesh

// Reading single fields. The API server checks most of this already (CEL), but objects may be
// older than the rules, and announced or configured values come here, too.

import (
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// ClusterAddress reads the address of a cluster in its mesh, with the mesh's mask.
func ClusterAddress(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, errors.New("expected the address of the cluster with the mask of the mesh, such as 192.168.0.12/24")
	case p.Addr().Is4In6():
		return p, errors.New("write an IPv4 address in its own form, such as 192.168.0.12/24")
	case p.IsSingleIP():
		return p, fmt.Errorf("the mask /%d leaves no room for other clusters; use that of the mesh, such as /24", p.Bits())
	case p.Bits() < p.Addr().BitLen()-1 && p.Addr() == p.Masked().Addr():
		return p, errors.New("this is the network, not an address in it; give the address of the cluster, such as 192.168.0.12/24")
	case p.Addr().Is4() && p.Bits() < 31 && p.Addr() == last(p):
		return p, errors.New("this is the broadcast address of the network; give the address of the cluster, such as 192.168.0.12/24")
	case p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsUnspecified() || p.Addr().IsLinkLocalUnicast():
		return p, errors.New("loopback, link-local and multicast addresses cannot be routed; use a private network, such as 192.168.0.12/24")
	}
	return p, nil
}

func clusterAddress(s string) (netip.Prefix, *Problem) {
	p, err := ClusterAddress(s)
	if err != nil {
		return p, invalid("spec.clusterAddress %q: %v", s, err)
	}
	return p, nil
}

// network reads a CIDR without host bits.
func network(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, errors.New("expected a network in CIDR notation, such as 100.64.16.0/20")
	case p.Addr().Is4In6():
		return p, errors.New("write an IPv4 network in its own form, such as 100.64.16.0/20")
	case p != p.Masked():
		return p, fmt.Errorf("has host bits; did you mean %s?", p.Masked())
	case p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast():
		return p, errors.New("loopback, link-local and multicast networks cannot be routed")
	}
	return p, nil
}

// rules reads an ingress list.
func rules(list []v1alpha1.IngressCIDR) ([]Rule, error) {
	var result []Rule
	for _, e := range list {
		s, deny := strings.CutPrefix(string(e), "!")
		p, err := network(s)
		if err != nil {
			return nil, fmt.Errorf("%q: %w; a leading ! denies", string(e), err)
		}
		result = append(result, Rule{p, !deny})
	}
	return result, nil
}

// Endpoint reads host[:port]: a DNS name, an IPv4 address or an IPv6 address, which is in brackets
// when a port follows. The name comes back in lower case without final dot.
func Endpoint(s string, defaultPort uint16) (host string, port uint16, err error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return checkHost(a.Unmap().String(), defaultPort)
	}
	host = s
	port = defaultPort
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		n, err := strconv.ParseUint(s[i+1:], 10, 16)
		if err != nil || n == 0 {
			return "", 0, fmt.Errorf("port %q is not a number from 1 to 65535", s[i+1:])
		}
		host, port = s[:i], uint16(n)
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !a.Is6() {
			return "", 0, errors.New("in brackets an IPv6 address is expected, such as [2001:db8::1]:443")
		}
		return checkHost(a.Unmap().String(), port)
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Is4() {
		return checkHost(a.String(), port)
	}
	name, err := ParseDomain(host)
	if err != nil {
		return "", 0, fmt.Errorf("expected host[:port] with a DNS name or an IP address: %w", err)
	}
	return strings.TrimSuffix(name, "."), port, nil
}

// checkHost refuses addresses that can never be a peer.
func checkHost(host string, port uint16) (string, uint16, error) {
	if a := netip.MustParseAddr(host); a.IsUnspecified() || a.IsMulticast() {
		return "", 0, errors.New("unspecified and multicast addresses cannot be dialled")
	}
	return host, port, nil
}

// ParseDomain reads a DNS name (RFC 1035 lengths; letters, digits, - and _) and returns it fully
// qualified and in lower case.
func ParseDomain(s string) (string, error) {
	name := strings.TrimSuffix(strings.ToLower(s), ".")
	if name == "" || len(name) > 253 {
		return "", fmt.Errorf("a domain name has 1 to 253 characters, this one has %d", len(name))
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "", fmt.Errorf("label %q: a label has 1 to 63 characters", label)
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return "", fmt.Errorf("label %q: %q is not a letter, digit, - or _", label, c)
			}
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return "", fmt.Errorf("label %q begins or ends with -", label)
		}
	}
	return name + ".", nil
}

// InDomain says whether the domain name lies in zone or is it; both are fully qualified.
func InDomain(name, zone string) bool {
	return name == zone || strings.HasSuffix(name, "."+zone)
}

// TrimDot removes the final dot of a fully qualified name, as messages and objects show it.
func TrimDot(name string) string { return strings.TrimSuffix(name, ".") }

// dnsAddress reads dns.dnsIP. The former broker wrote the word "<nil>" where it meant none.
func dnsAddress(dns *v1alpha1.KubeLinkDNS) (netip.Addr, *Problem) {
	if dns.DNSIP == "" || dns.DNSIP == "<nil>" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(dns.DNSIP)
	if err != nil || a.Zone() != "" {
		return a, invalid("spec.dns.dnsIP %q: expected an IP address, such as 100.64.16.10", dns.DNSIP)
	}
	return a.Unmap(), nil
}

// last is the highest address of a network.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Nth is the n-th address of a network, invalid if the network is smaller.
func Nth(p netip.Prefix, n int64) netip.Addr {
	base := p.Masked().Addr()
	sum := new(big.Int).Add(new(big.Int).SetBytes(base.AsSlice()), big.NewInt(n))
	b := make([]byte, base.BitLen()/8)
	if sum.BitLen() > len(b)*8 {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(sum.FillBytes(b))
	if !p.Contains(a) {
		return netip.Addr{}
	}
	return a
}
