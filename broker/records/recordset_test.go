package records

import (
	"reflect"
	"strings"
	"testing"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
)

// entryOf reads the spec of one entry.
func entryOf(t *testing.T, spec string) *coredns.CoreDNSEntry {
	t.Helper()
	entries, _ := globalObjects(t, "ns/x: {"+spec+"}")
	return &entries[0]
}

// TestParseRecords has a row for each field of an entry: a value that is refused, and all of the text.
func TestParseRecords(t *testing.T) {
	const srv = "SRV: {service: ldap, records: [{protocol: TCP, port: 389, host: a}]}"
	with := func(old, replacement string) string { return strings.Replace(srv, old, replacement, 1) }
	for _, c := range []struct{ spec, want string }{
		{"A: [10.0.0.1]", ""}, {"AAAA: ['fd00::1']", ""}, {"TXT: ['']", ""}, {"NS: [a]", ""}, {"CNAME: a", ""}, {srv, ""},
		{"CNAME: a, " + srv, ""}, {"NS: [a], TXT: [x], " + srv, ""}, {"TXT: [" + strings.Repeat("x", 4096) + "]", ""},
		{"", "the entry has no record: set A, AAAA, CNAME, TXT, SRV or NS"},
		{"A: ['fd00::1']", `spec.A "fd00::1": expected an IPv4 address, such as 100.64.16.20`},
		{"A: [10.0.0.1, 10.0.0]", `spec.A "10.0.0": expected an IPv4 address, such as 100.64.16.20`},
		{"AAAA: [10.0.0.1]", `spec.AAAA "10.0.0.1" is an IPv4 address: write 10.0.0.1 into spec.A`},
		{"AAAA: ['::ffff:10.0.0.1']", `spec.AAAA "::ffff:10.0.0.1" is an IPv4 address: write 10.0.0.1 into spec.A`},
		{"AAAA: ['fe80::1%eth0']", `spec.AAAA "fe80::1%eth0": expected an IPv6 address, such as fd00:64:16::20`},
		{"A: [127.0.0.1]", "spec.A 127.0.0.1 is the address of no host that all clients reach: " +
			"write one that is the same for all of them"},
		{"A: [10.0.0.1, 0.0.0.0]", "spec.A 0.0.0.0 is the address of no host that all clients reach: " +
			"write one that is the same for all of them"},
		{"A: [169.254.169.254]", "spec.A 169.254.169.254 is the address of no host that all clients reach: " +
			"write one that is the same for all of them"},
		{"AAAA: ['ff02::1']", "spec.AAAA ff02::1 is the address of no host that all clients reach: " +
			"write one that is the same for all of them"},
		{"AAAA: ['::1']", "spec.AAAA ::1 is the address of no host that all clients reach: " +
			"write one that is the same for all of them"},
		{"AAAA: [x]", `spec.AAAA "x": expected an IPv6 address, such as fd00:64:16::20`},
		{
			"TXT: [" + strings.Repeat("x", 4097) + "]",
			"spec.TXT: a text has 4097 bytes, and 4096 is the most; shorten it",
		},
		{
			"CNAME: a, A: [10.0.0.1]", `spec.CNAME "a" cannot stand beside A, AAAA, TXT or NS: ` +
				"an alias has no other records; remove one or the other",
		},
		{
			"CNAME: a, NS: [b]", `spec.CNAME "a" cannot stand beside A, AAAA, TXT or NS: ` +
				"an alias has no other records; remove one or the other",
		},
		{with("ldap", "''"), `spec.SRV.service "": expected the name of a service, such as ldap`},
		{with("ldap", "a.b"), `spec.SRV.service "a.b": expected the name of a service, such as ldap`},
		{with("TCP", "_"), `spec.SRV.records.protocol "_": expected the name of a protocol, such as TCP`},
		{with("389", "0"), "spec.SRV.records.port 0: expected a number from 1 to 65535"},
		{with("389", "65536"), "spec.SRV.records.port 65536: expected a number from 1 to 65535"},
		{with("389", "1, priority: -1"), "spec.SRV.records.priority -1: expected a number from 0 to 65535"},
		{with("389", "1, weight: 65536"), "spec.SRV.records.weight 65536: expected a number from 0 to 65535"},
	} {
		set, err := parseRecords(entryOf(t, c.spec))
		checkError(t, c.spec, err, c.want)
		if (set == nil) != (err != nil) {
			t.Errorf("%s: %+v", c.spec, set)
		}
	}
}

func TestParseUnderscored(t *testing.T) {
	for in, want := range map[string]string{
		"ldap": "_ldap.", "_ldap": "_ldap.", "TCP": "_tcp.", "a": "_a.", "a-1": "_a-1.", "__a": "__a.",
		strings.Repeat("a", 62): "_" + strings.Repeat("a", 62) + ".",
		"":                      "", "_": "", "a.b": "", "a b": "", "a-": "", strings.Repeat("a", 63): "",
	} {
		label, ok := parseUnderscored(in)
		if ok != (want != "") || ok && label != want {
			t.Errorf("%q: %q, %v", in, label, ok)
		}
	}
}

// TestRecordsAt: relative names in records are relative to the zone, and each service has a name of its own.
func TestRecordsAt(t *testing.T) {
	const services = "SRV: {service: ldap, records: [" +
		"{protocol: TCP, port: 1, host: a}, {protocol: UDP, port: 2, host: b.}, " +
		"{protocol: tcp, port: 3, weight: 4, priority: 5, host: c}]}"
	for _, c := range []struct {
		spec string
		at   qualified
		want []Owner
		err  string
	}{
		{"CNAME: a", qualified{"x.z.", "z."}, []Owner{{Name: "x.z.", CNAME: "a.z."}}, ""},
		{"CNAME: a.", qualified{"x.z.", "z."}, []Owner{{Name: "x.z.", CNAME: "a."}}, ""},
		{"CNAME: a", qualified{"x.z.", ""}, []Owner{{Name: "x.z.", CNAME: "a."}}, ""},
		{"CNAME: a", qualified{"*.z.", "z."}, []Owner{{Name: "*.z.", CNAME: "a.z."}}, ""},
		{"NS: [a, b.]", qualified{"x.z.", "z."}, []Owner{{Name: "x.z.", NS: []string{"a.z.", "b."}}}, ""},
		{services, qualified{"x.z.", "z."}, []Owner{
			{Name: "_ldap._tcp.x.z.", SRV: []SRV{{0, 0, 1, "a.z."}, {5, 4, 3, "c.z."}}},
			{Name: "_ldap._udp.x.z.", SRV: []SRV{{0, 0, 2, "b."}}},
		}, ""},
		{"TXT: [t], " + services, qualified{"x.z.", ""}, []Owner{
			{Name: "x.z.", TXT: []string{"t"}},
			{Name: "_ldap._tcp.x.z.", SRV: []SRV{{0, 0, 1, "a."}, {5, 4, 3, "c."}}},
			{Name: "_ldap._udp.x.z.", SRV: []SRV{{0, 0, 2, "b."}}},
		}, ""},
		{"NS: [a]", qualified{"*.z.", "z."}, nil, "spec.NS cannot stand at the wildcard *.z: delegate the names one by one"},
		{services, qualified{"*.z.", "z."}, nil, "spec.SRV cannot stand at the wildcard *.z, " +
			"as the labels of service and protocol come before it: name the names one by one"},
		{"CNAME: 10.0.0.1", qualified{"x.z.", "z."}, nil,
			`spec.CNAME "10.0.0.1" is an address: expected a name, or write 10.0.0.1 into A or AAAA`},
		{"NS: [a b]", qualified{"x.z.", ""}, nil, `spec.NS "a b": label "a b": ' ' is not a letter, digit, - or _`},
		{strings.Replace(services, "host: a", "host: 1.2.3.4", 1), qualified{"x.z.", "z."}, nil,
			`spec.SRV.records.host "1.2.3.4" is an address: expected a name, or write 1.2.3.4 into A or AAAA`},
	} {
		set, err := parseRecords(entryOf(t, c.spec))
		if err != nil {
			t.Fatalf("%s: %v", c.spec, err)
		}
		got, err := set.recordsAt(c.at)
		checkError(t, c.spec, err, c.err)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s at %s:\ngot  %+v\nwant %+v", c.spec, c.at, got, c.want)
		}
	}
	// The name of a service is longer than the name that has it.
	set, err := parseRecords(entryOf(t, services))
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat(strings.Repeat("x", 60)+".", 4) // 244 characters; the prefix has 11
	_, err = set.recordsAt(qualified{name, ""})
	checkError(t, "255 characters", err,
		"spec.SRV: _ldap._tcp."+strings.TrimSuffix(name, ".")+" has more than 253 characters; use a shorter name")
	_, err = set.recordsAt(qualified{name[1:], ""})
	checkError(t, "254 characters", err, "")
}
