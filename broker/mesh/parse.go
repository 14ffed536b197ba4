package mesh

// Parsing single fields. The API server checks most of this already (CEL), but objects may be older than the rules, and
// announced or configured values come here, too.

import (
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// LinkName splits the name of a KubeLink into mesh (empty: the default mesh) and cluster.
func LinkName(name string) (mesh, cluster string) {
	if m, c, ok := strings.Cut(name, v1alpha1.MeshSeparator); ok {
		return m, c
	}
	return "", name
}

// ObjectName is the name of the KubeLink of a cluster in a mesh.
func ObjectName(mesh, cluster string) string {
	if mesh == "" {
		return cluster
	}
	return mesh + v1alpha1.MeshSeparator + cluster
}

// missingCluster is the problem of a KubeLink that has no cluster in its name.
func missingCluster(name string) *Problem {
	return invalid("metadata.name %q: the cluster is missing after %[2]q; name the object <mesh>%[2]s<cluster>",
		name, v1alpha1.MeshSeparator)
}

// ClusterAddress parses the address of a cluster in its mesh, with the mesh's mask.
func ClusterAddress(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, errors.New("expected the address of the cluster with the mask of the mesh, such as 192.168.0.12/24")
	}
	a := p.Addr()
	switch {
	case a.Is4In6():
		return p, errors.New("write an IPv4 address in its own form, such as 192.168.0.12/24")
	case p.IsSingleIP():
		return p, fmt.Errorf("the mask /%d leaves no room for other clusters; use that of the mesh, such as /24", p.Bits())
	case p.Bits() < a.BitLen()-1 && a == p.Masked().Addr():
		return p, errors.New("this is the network, not an address in it; " +
			"give the address of the cluster, such as 192.168.0.12/24")
	case a.Is4() && p.Bits() < 31 && a == lastAddress(p):
		return p, errors.New("this is the broadcast address of the network; " +
			"give the address of the cluster, such as 192.168.0.12/24")
	case a.IsMulticast() || a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast():
		return p, errors.New("loopback, link-local and multicast addresses cannot be routed; " +
			"use a private network, such as 192.168.0.12/24")
	case coversUnroutable(p):
		return p, fmt.Errorf("the mask /%d covers loopback or multicast addresses, too; use that of the mesh, such as /24",
			p.Bits())
	}
	return p, nil
}

// IsNetworkOrBroadcast tells whether an address of a network is that of the network itself, or its broadcast address.
func IsNetworkOrBroadcast(n netip.Prefix, a netip.Addr) bool {
	return n.Bits() < a.BitLen()-1 && (a == n.Masked().Addr() || a.Is4() && a == lastAddress(n))
}

// parseClusterAddress parses spec.clusterAddress.
func parseClusterAddress(s string) (netip.Prefix, *Problem) {
	p, err := ClusterAddress(s)
	if err != nil {
		return p, invalid("spec.clusterAddress %q: %v", s, err)
	}
	return p, nil
}

// parseNetwork parses a CIDR without host bits.
func parseNetwork(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, errors.New("expected a network in CIDR notation, such as 100.64.16.0/20")
	case p.Addr().Is4In6():
		return p, errors.New("write an IPv4 network in its own form, such as 100.64.16.0/20")
	case p != p.Masked():
		return p, fmt.Errorf("has host bits; did you mean %s?", p.Masked())
	}
	return p, checkRoutable(p)
}

// parseDestination parses a network or a single address. As in objects of the former broker, host bits have no
// meaning.
func parseDestination(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if a, e := netip.ParseAddr(s); e == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil:
		return p, errors.New("expected a network in CIDR notation, such as 100.64.16.0/20, or an address")
	case p.Addr().Is4In6():
		return p, errors.New("write an IPv4 network in its own form, such as 100.64.16.0/20")
	}
	return p.Masked(), nil
}

// checkRoutable refuses networks that lead to no other host.
func checkRoutable(p netip.Prefix) error {
	if p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() {
		return errors.New("loopback, link-local and multicast networks cannot be routed")
	}
	return nil
}

// widestMask is the mask of the widest network that a link may lead to, in bits: that of fc00::/7, the unique local
// addresses (RFC 4193).
const widestMask = 7

// CheckWidth refuses a default route, and networks so wide that few of them make one.
func CheckWidth(n netip.Prefix) error {
	if n.Bits() >= widestMask {
		return nil
	}
	what := "a default route"
	if n.Bits() > 0 {
		what = fmt.Sprintf("a network wider than /%d is a part of a default route, and", widestMask)
	}
	return fmt.Errorf("%s would lead the tunnel's own connections into the tunnel; "+
		"name the networks behind this cluster", what)
}

// parseEgress parses an entry of spec.egress.
func parseEgress(e v1alpha1.EgressCIDR) (netip.Prefix, error) {
	p, err := parseDestination(string(e))
	if err == nil {
		err = checkRoutable(p)
	}
	return p, err
}

// Networks are all that a link names: the range of its mesh, and of a link to another cluster cidr and egress. What
// cannot be parsed is left out.
func Networks(spec *v1alpha1.KubeLinkSpec) (networks []netip.Prefix) {
	add := func(p netip.Prefix, err error) {
		if err == nil {
			networks = append(networks, p.Masked())
		}
	}
	add(ClusterAddress(spec.ClusterAddress))
	if spec.Endpoint == v1alpha1.EndpointLocal {
		return networks
	}
	add(parseNetwork(spec.CIDR))
	for _, e := range spec.Egress {
		add(parseEgress(e))
	}
	return networks
}

// parseIngress parses spec.ingress. A denial may be of any network.
func parseIngress(list []v1alpha1.IngressCIDR) ([]Rule, *Problem) {
	var rules []Rule
	for _, e := range list {
		s, deny := strings.CutPrefix(string(e), "!")
		n, err := parseDestination(s)
		if err == nil && !deny {
			err = checkRoutable(n)
		}
		if err != nil {
			return nil, invalid("spec.ingress %q: %v; a leading ! denies", string(e), err)
		}
		rules = append(rules, Rule{Prefix: n, Allow: !deny})
	}
	return rules, nil
}

// Endpoint parses host[:port]: a DNS name, an IPv4 address or an IPv6 address, which is in brackets when a port
// follows. The name comes back in lower case without final dot.
func Endpoint(s string, defaultPort uint16) (host string, port uint16, err error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return checkHost(a, defaultPort)
	}
	if scheme, _, found := strings.Cut(s, "://"); found {
		return "", 0, fmt.Errorf("expected host[:port], without %s://", scheme)
	}
	host, port = s, defaultPort
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		n, err := strconv.ParseUint(s[i+1:], 10, 16)
		if err != nil || n == 0 {
			return "", 0, fmt.Errorf("port %q is not a number from 1 to 65535", s[i+1:])
		}
		host, port = s[:i], uint16(n)
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, closed := strings.CutSuffix(inner, "]")
		a, err := netip.ParseAddr(inner)
		if err != nil || !closed || !a.Is6() {
			return "", 0, errors.New("in brackets an IPv6 address is expected, such as [2001:db8::1]:443")
		}
		return checkHost(a, port)
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Is4() {
		return checkHost(a, port)
	}
	name, err := ParseDomain(host)
	if err != nil {
		return "", 0, fmt.Errorf("expected host[:port] with a DNS name or an IP address: %w", err)
	}
	return TrimDot(name), port, nil
}

// checkHost refuses addresses that can never be a peer.
func checkHost(a netip.Addr, port uint16) (string, uint16, error) {
	if a = a.Unmap(); a.IsUnspecified() || a.IsMulticast() {
		return "", 0, errors.New("unspecified and multicast addresses cannot be dialled")
	}
	return a.String(), port, nil
}

// ParseDomain parses a DNS name (RFC 1035 lengths; letters, digits, - and _) and returns it fully qualified and in
// lower case.
// case.
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

// InDomain tells whether the name lies in the zone or is the zone itself; both are fully qualified.
func InDomain(name, zone string) bool {
	return name == zone || strings.HasSuffix(name, "."+zone)
}

// TrimDot removes the final dot of a fully qualified name, as messages and objects show it.
func TrimDot(name string) string { return strings.TrimSuffix(name, ".") }

// parseDNSAddress parses spec.dns.dnsIP; the zero Addr stands for none. The legacy broker wrote the word "<nil>" where
// it meant none.
func parseDNSAddress(dns *v1alpha1.KubeLinkDNS) (netip.Addr, *Problem) {
	if dns.DNSIP == "" || dns.DNSIP == "<nil>" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(dns.DNSIP)
	if err != nil || a.Zone() != "" {
		return a, invalid("spec.dns.dnsIP %q: expected an IP address, such as 100.64.16.10", dns.DNSIP)
	}
	return a.Unmap(), nil
}

// lastAddress is the highest address of a network.
func lastAddress(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Nth is the n-th address of a network; not valid if the network is smaller, or is the zero Prefix.
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
