package mesh

// Single fields: each rule with its limits, on both sides.

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// checkError compares an error with its whole text; an empty text stands for no error.
func checkError(t *testing.T, input string, err error, want string) {
	t.Helper()
	got := ""
	if err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("%q: error\n got %q\nwant %q", input, got, want)
	}
}

func TestLinkName(t *testing.T) {
	for _, c := range []struct{ name, mesh, cluster string }{
		{"two", "", "two"},
		{"m--two", "m", "two"},
		{"m-x--two", "m-x", "two"},
		{"m--two--three", "m", "two--three"}, // the first separator counts
		{"m---two", "m", "-two"},
		{"a-b", "", "a-b"},
		{"m--", "m", ""},
		{"", "", ""},
	} {
		mesh, cluster := LinkName(c.name)
		if mesh != c.mesh || cluster != c.cluster {
			t.Errorf("%q: mesh %q, cluster %q", c.name, mesh, cluster)
		}
		if got := ObjectName(mesh, cluster); got != c.name {
			t.Errorf("%q comes back as %q", c.name, got)
		}
	}
	// The separator alone names the default mesh, which has no separator.
	if mesh, cluster := LinkName("--two"); mesh != "" || cluster != "two" || ObjectName(mesh, cluster) != "two" {
		t.Errorf("mesh %q, cluster %q", mesh, cluster)
	}
}

func TestClusterAddress(t *testing.T) {
	const (
		form      = "expected the address of the cluster with the mask of the mesh, such as 192.168.0.12/24"
		network   = "this is the network, not an address in it; give the address of the cluster, such as 192.168.0.12/24"
		broadcast = "this is the broadcast address of the network; " +
			"give the address of the cluster, such as 192.168.0.12/24"
		mapped     = "write an IPv4 address in its own form, such as 192.168.0.12/24"
		noRoom     = "the mask /32 leaves no room for other clusters; use that of the mesh, such as /24"
		noRoom6    = "the mask /128 leaves no room for other clusters; use that of the mesh, such as /24"
		wide       = "covers loopback or multicast addresses, too; use that of the mesh, such as /24"
		unroutable = "loopback, link-local and multicast addresses cannot be routed; " +
			"use a private network, such as 192.168.0.12/24"
	)
	for _, c := range []struct{ in, says string }{
		{"192.168.0.12/24", ""},
		{"10.0.0.1/8", ""},
		{"8.8.8.8/24", ""}, // also public addresses
		{"fd00::1/64", ""},
		{"2001:db8::ffff/112", ""},

		{"", form},
		{"192.168.0.12", form},
		{"192.168.0.12/", form},
		{"192.168.0.12/33", form},
		{"192.168.0.12/024", form},
		{"192.168.0/24", form},
		{" 192.168.0.12/24", form},
		{"fd00::1/129", form},
		{"fe80::1%eth0/64", form},
		{"two.example/24", form},

		{"192.168.0.0/24", network},
		{"192.168.0.128/25", network},
		{"0.0.0.0/0", network},
		{"fd00::/64", network},
		{"fd00::4/126", network},

		{"192.168.0.255/24", broadcast},
		{"192.168.0.127/25", broadcast},
		{"192.168.0.3/30", broadcast},
		{"255.255.255.255/24", broadcast},
		{"fd00::ffff:ffff:ffff:ffff/64", ""}, // IPv6 has no broadcast address
		{"192.168.0.255/23", ""},

		// RFC 3021, RFC 6164: both addresses of a network of two are hosts.
		{"192.168.0.12/31", ""},
		{"192.168.0.13/31", ""},
		{"fd00::/127", ""},
		{"fd00::1/127", ""},
		{"192.168.0.12/30", network},

		{"192.168.0.12/32", noRoom},
		{"fd00::1/128", noRoom6},
		{"::ffff:192.168.0.12/120", mapped},
		{"::ffff:192.168.0.12/128", mapped},

		{"127.0.0.1/8", unroutable},
		{"127.255.0.1/16", unroutable},
		{"169.254.1.1/16", unroutable},
		{"224.0.0.5/24", unroutable},
		{"239.255.0.1/16", unroutable},
		{"::1/64", unroutable},
		{"fe80::1/64", unroutable},
		{"ff02::1/64", unroutable},
		{"0.0.0.0/31", unroutable},
		{"::/127", unroutable},

		{"10.0.0.1/0", "the mask /0 " + wide},
		{"100.64.0.1/1", "the mask /1 " + wide},
		{"192.168.0.12/2", "the mask /2 " + wide},
		{"fd00::1/0", "the mask /0 " + wide},
		{"fd00::1/6", "the mask /6 " + wide},
		{"10.0.0.1/7", ""},
		{"fd00::1/7", ""},
	} {
		got, err := ClusterAddress(c.in)
		checkError(t, c.in, err, c.says)
		if err == nil && got != pfx(c.in) {
			t.Errorf("%q: %s", c.in, got)
		}
		want := ""
		if c.says != "" {
			want = "spec.clusterAddress \"" + c.in + "\": " + c.says
		}
		if _, p := parseClusterAddress(c.in); problemText(p, v1alpha1.StateInvalid) != want {
			t.Errorf("%q: problem %+v", c.in, p)
		}
	}
}

// problemText is the message of a problem that has the state; empty if there is no problem.
func problemText(p *Problem, state v1alpha1.State) string {
	switch {
	case p == nil:
		return ""
	case p.State != state:
		return "state " + string(p.State)
	}
	return p.Message
}

func TestParseNetwork(t *testing.T) {
	const (
		form       = "expected a network in CIDR notation, such as 100.64.16.0/20"
		unroutable = "loopback, link-local and multicast networks cannot be routed"
	)
	for _, c := range []struct{ in, says string }{
		{"100.64.16.0/20", ""},
		{"100.64.16.1/32", ""},
		{"0.0.0.0/0", ""}, // refused where a default route does harm
		{"fd00::/112", ""},
		{"fd00::1/128", ""},
		{"::/0", ""},

		{"", form},
		{"100.64.16.0", form},
		{"100.64.16.0/33", form},
		{"100.64.16.0/-1", form},
		{"fd00::/129", form},
		{"fd00::%1/64", form},

		{"::ffff:100.64.16.0/116", "write an IPv4 network in its own form, such as 100.64.16.0/20"},
		{"100.64.16.1/20", "has host bits; did you mean 100.64.16.0/20?"},
		{"100.64.16.0/19", "has host bits; did you mean 100.64.0.0/19?"},
		{"fd00::1/127", "has host bits; did you mean fd00::/127?"},

		{"127.0.0.0/8", unroutable},
		{"127.0.0.1/32", unroutable},
		{"224.0.0.0/4", unroutable},
		{"169.254.0.0/16", unroutable},
		{"::1/128", unroutable},
		{"ff00::/8", unroutable},
		{"fe80::/10", unroutable},
	} {
		got, err := parseNetwork(c.in)
		checkError(t, c.in, err, c.says)
		if err == nil && got != pfx(c.in) {
			t.Errorf("%q: %s", c.in, got)
		}
	}
}

func TestParseIngress(t *testing.T) {
	rules, p := parseIngress(ingressList("10.0.0.0/8 !10.1.0.9/16 fd00::/8 !::/0 10.0.0.0/8 100.64.0.7 !fd00::7 " +
		"10.7.0.9/16 !127.0.0.0/8 !169.254.169.254"))
	checkEqual(t, "rules", ruleTexts(rules), "10.0.0.0/8 !10.1.0.0/16 fd00::/8 !::/0 10.0.0.0/8 100.64.0.7/32 "+
		"!fd00::7/128 10.7.0.0/16 !127.0.0.0/8 !169.254.169.254/32")
	if p != nil {
		t.Errorf("problem %+v", p)
	}
	const form = "expected a network in CIDR notation, such as 100.64.16.0/20, or an address"
	for in, says := range map[v1alpha1.IngressCIDR]string{
		"":                form,
		"!":               form,
		"!!10.0.0.0/8":    form,
		"! 10.0.0.0/8":    form,
		"10.0.0.0/8!":     form,
		"10.0.0.0/33":     form,
		"fd00::1%eth0":    form,
		"::ffff:10.0.0.1": "write an IPv4 network in its own form, such as 100.64.16.0/20",
		"127.0.0.0/8":     "loopback, link-local and multicast networks cannot be routed",
		"169.254.169.254": "loopback, link-local and multicast networks cannot be routed",
	} {
		rules, p := parseIngress([]v1alpha1.IngressCIDR{"10.0.0.0/8", in})
		want := "spec.ingress \"" + string(in) + "\": " + says + "; a leading ! denies"
		if problemText(p, v1alpha1.StateInvalid) != want || rules != nil {
			t.Errorf("%q: rules %v, problem %+v", in, rules, p)
		}
	}
}

// TestEndpointErrors has the whole messages; TestEndpoint has the forms.
func TestEndpointErrors(t *testing.T) {
	const (
		brackets = "in brackets an IPv6 address is expected, such as [2001:db8::1]:443"
		dial     = "unspecified and multicast addresses cannot be dialled"
		form     = "expected host[:port] with a DNS name or an IP address: "
	)
	for _, c := range []struct{ in, says string }{
		{"", form + "a domain name has 1 to 253 characters, this one has 0"},
		{":80", form + "a domain name has 1 to 253 characters, this one has 0"},
		{"a..b", form + `label "": a label has 1 to 63 characters`},
		{"a.example/x", form + `label "example/x": '/' is not a letter, digit, - or _`},
		{"-a.example:80", form + `label "-a" begins or ends with -`},
		{"a.example:", `port "" is not a number from 1 to 65535`},
		{"a.example:0", `port "0" is not a number from 1 to 65535`},
		{"a.example:65536", `port "65536" is not a number from 1 to 65535`},
		{"a.example:-1", `port "-1" is not a number from 1 to 65535`},
		{"a.example:+80", `port "+80" is not a number from 1 to 65535`},
		{"a.example:0x50", `port "0x50" is not a number from 1 to 65535`},
		{"2001:db8:80", form + `label "2001:db8": ':' is not a letter, digit, - or _`},
		{"[]", brackets},
		{"[]:80", brackets},
		{"[10.0.0.1]", brackets},
		{"[a.example]:80", brackets},
		{"[2001:db8::1:443", brackets},
		{"[2001:db8::1", brackets},
		{"[2001:db8::1]]:443", brackets},
		{"[2001:db8::1]:x", `port "x" is not a number from 1 to 65535`},
		{"0.0.0.0", dial},
		{"0.0.0.0:80", dial},
		{"224.0.0.1", dial},
		{"::", dial},
		{"[::]:80", dial},
		{"[ff02::1]", dial},
		{"::ffff:0.0.0.0", dial},
		{"[::ffff:224.0.0.1]:80", dial},
	} {
		host, port, err := Endpoint(c.in, 80)
		checkError(t, c.in, err, c.says)
		if host != "" || port != 0 {
			t.Errorf("%q: %q, port %d besides the error", c.in, host, port)
		}
	}
}

func TestEndpointForms(t *testing.T) {
	for _, c := range []struct {
		in, host string
		port     uint16
	}{
		{"a.example:1", "a.example", 1},
		{"a.example:65535", "a.example", 65535},
		{"a.example:0443", "a.example", 443},
		{"LOCALHOST", "localhost", 8088},
		{"127.0.0.1", "127.0.0.1", 8088}, // a proxy on this machine
		{"::ffff:10.0.0.1", "10.0.0.1", 8088},
		{"[::ffff:10.0.0.1]:99", "10.0.0.1", 99},
		{"2001:DB8:0::1", "2001:db8::1", 8088},
		{"2001:db8::1:99", "2001:db8::1:99", 8088}, // without brackets no port follows
		{"[fe80::1%eth0]:99", "fe80::1%eth0", 99},
		{"1.2.3", "1.2.3", 8088},
	} {
		host, port, err := Endpoint(c.in, 8088)
		if host != c.host || port != c.port || err != nil {
			t.Errorf("%q: %q, port %d, %v", c.in, host, port, err)
		}
	}
}

func TestParseDomain(t *testing.T) {
	label := strings.Repeat("a", 63)
	longest := strings.Join([]string{label, label, label, label[:61]}, ".")
	for _, c := range []struct{ in, want, says string }{
		{"a", "a.", ""},
		{"cluster.local", "cluster.local.", ""},
		{"Cluster.LOCAL.", "cluster.local.", ""},
		{"_tcp.a-b.x9", "_tcp.a-b.x9.", ""},
		{"0.9", "0.9.", ""},
		{"az.AZ", "az.az.", ""},
		{"a--b", "a--b.", ""},
		{label, label + ".", ""},
		{longest, longest + ".", ""},
		{longest + ".", longest + ".", ""},

		{"", "", "a domain name has 1 to 253 characters, this one has 0"},
		{".", "", "a domain name has 1 to 253 characters, this one has 0"},
		{longest + "a", "", "a domain name has 1 to 253 characters, this one has 254"},
		{"..", "", `label "": a label has 1 to 63 characters`},
		{".a", "", `label "": a label has 1 to 63 characters`},
		{"a..b", "", `label "": a label has 1 to 63 characters`},
		{label + "a.b", "", `label "` + label + `a": a label has 1 to 63 characters`},
		{"-a", "", `label "-a" begins or ends with -`},
		{"x.a-.y", "", `label "a-" begins or ends with -`},
		{"-", "", `label "-" begins or ends with -`},
		{"a b", "", `label "a b": ' ' is not a letter, digit, - or _`},
		{"*.a", "", `label "*": '*' is not a letter, digit, - or _`},
		{"a\n", "", `label "a\n": '\n' is not a letter, digit, - or _`},
		{"a`", "", "label \"a`\": '`' is not a letter, digit, - or _"},
		{"a{", "", `label "a{": '{' is not a letter, digit, - or _`},
		{"a/", "", `label "a/": '/' is not a letter, digit, - or _`},
		{"a:", "", `label "a:": ':' is not a letter, digit, - or _`},
	} {
		got, err := ParseDomain(c.in)
		checkError(t, c.in, err, c.says)
		if got != c.want {
			t.Errorf("%q: %q", c.in, got)
		}
	}
}

func TestInDomain(t *testing.T) {
	for _, c := range []struct {
		name, zone string
		want       bool
	}{
		{"kubelink.", "kubelink.", true},
		{"a.kubelink.", "kubelink.", true},
		{"a.b.kubelink.", "kubelink.", true},
		{"notkubelink.", "kubelink.", false},
		{"kubelink.", "a.kubelink.", false},
		{"kubelink.a.", "kubelink.", false},
	} {
		if got := InDomain(c.name, c.zone); got != c.want {
			t.Errorf("%s in %s: %v", c.name, c.zone, got)
		}
	}
	for in, want := range map[string]string{"a.": "a", "a.b.": "a.b", "a": "a", "": "", "a..": "a."} {
		if got := TrimDot(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestParseDNSAddress(t *testing.T) {
	for _, c := range []struct {
		in   string
		want netip.Addr
		bad  bool
	}{
		{"", netip.Addr{}, false},
		{"<nil>", netip.Addr{}, false},
		{"100.64.16.10", ip("100.64.16.10"), false},
		{"fd00::a", ip("fd00::a"), false},
		{"::ffff:100.64.16.10", ip("100.64.16.10"), false},
		{"nil", netip.Addr{}, true},
		{"100.64.16.10:53", netip.Addr{}, true},
		{"100.64.16.10/32", netip.Addr{}, true},
		{"100.64.16.010", netip.Addr{}, true},
		{"fe80::a%eth0", netip.Addr{}, true},
		{"dns.example", netip.Addr{}, true},
	} {
		got, p := parseDNSAddress(&v1alpha1.KubeLinkDNS{DNSIP: c.in})
		want := ""
		if c.bad {
			want = "spec.dns.dnsIP \"" + c.in + "\": expected an IP address, such as 100.64.16.10"
		}
		if text := problemText(p, v1alpha1.StateInvalid); text != want || !c.bad && got != c.want {
			t.Errorf("%q: %s, problem %q", c.in, got, text)
		}
	}
}

func TestLastAddress(t *testing.T) {
	for in, want := range map[string]string{
		"192.168.0.12/24": "192.168.0.255", "192.168.0.12/25": "192.168.0.127", "192.168.0.12/30": "192.168.0.15",
		"192.168.0.12/32": "192.168.0.12", "10.1.2.3/0": "255.255.255.255", "10.1.2.3/9": "10.127.255.255",
		"fd00::1/64": "fd00::ffff:ffff:ffff:ffff", "fd00::1/127": "fd00::1", "fd00::1/128": "fd00::1",
		"::/0": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		if got := lastAddress(pfx(in)); got != ip(want) {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestNthLimits(t *testing.T) {
	for _, c := range []struct {
		network string
		n       int64
		want    string // empty: there is none
	}{
		{"100.64.0.0/20", 0, "100.64.0.0"},
		{"100.64.0.0/20", 256, "100.64.1.0"},
		{"100.64.0.0/20", 4095, "100.64.15.255"},
		{"100.64.0.0/20", 4096, ""},
		{"100.64.0.7/20", 1, "100.64.0.1"}, // host bits do not count
		{"100.64.0.0/32", 0, "100.64.0.0"},
		{"100.64.0.0/32", 1, ""},
		{"255.255.255.0/24", 255, "255.255.255.255"},
		{"255.255.255.0/24", 256, ""},
		{"0.0.0.0/0", 10, "0.0.0.10"},
		{"fd00::/112", 65535, "fd00::ffff"},
		{"fd00::/112", 65536, ""},
		{"fd00::/64", 1 << 40, "fd00::100:0:0"},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124", 15, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124", 16, ""},
	} {
		got, want := Nth(pfx(c.network), c.n), netip.Addr{}
		if c.want != "" {
			want = ip(c.want)
		}
		if got != want {
			t.Errorf("%d of %s: %s", c.n, c.network, got)
		}
	}
	if got := Nth(netip.Prefix{}, 0); got.IsValid() {
		t.Errorf("the zero Prefix has %s", got)
	}
}
