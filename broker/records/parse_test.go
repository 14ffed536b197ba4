package records

import (
	"slices"
	"strings"
	"testing"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
)

// checkError compares the text of an error; empty: none is expected.
func checkError(t *testing.T, what string, err error, want string) {
	t.Helper()
	got := ""
	if err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("%s: error %q, want %q", what, got, want)
	}
}

// TestParseApex has a row for each field of a HostedZone that its SOA record says.
func TestParseApex(t *testing.T) {
	seconds := func(n int32) *int32 { return &n }
	for _, c := range []struct {
		field string
		spec  coredns.HostedZoneSpec
		want  Apex
		err   string
	}{
		{"none", coredns.HostedZoneSpec{}, Apex{Refresh: 7200, Retry: 1800, Expire: 86400, Minimum: 5}, ""},
		{
			"all", coredns.HostedZoneSpec{EMail: "a@b.example", Refresh: 1, Retry: 2, Expire: 3, MinimumTTL: seconds(4)},
			Apex{Mbox: "a.b.example.", Refresh: 1, Retry: 2, Expire: 3, Minimum: 4}, "",
		},
		{
			"minimumTTL 0", coredns.HostedZoneSpec{MinimumTTL: seconds(0)},
			Apex{Refresh: 7200, Retry: 1800, Expire: 86400}, "",
		},
		{
			"refresh", coredns.HostedZoneSpec{Refresh: -1}, Apex{},
			"spec.refresh -1: expected a number of seconds from 0 on",
		},
		{
			"retry", coredns.HostedZoneSpec{Retry: -2}, Apex{},
			"spec.retry -2: expected a number of seconds from 0 on",
		},
		{
			"expire", coredns.HostedZoneSpec{Expire: -3}, Apex{},
			"spec.expire -3: expected a number of seconds from 0 on",
		},
		{
			"minimumTTL", coredns.HostedZoneSpec{MinimumTTL: seconds(-4)}, Apex{},
			"spec.minimumTTL -4: expected a number of seconds from 0 on",
		},
		{
			"email", coredns.HostedZoneSpec{EMail: "nobody"}, Apex{},
			`spec.email "nobody": expected a mail address, such as hostmaster@example.com`,
		},
	} {
		got, err := parseApex(&c.spec)
		checkError(t, c.field, err, c.err)
		if err == nil && got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.field, got, c.want)
		}
	}
}

// The dots before the @ are no label separators (RFC 1035, section 8).
func TestParseMailbox(t *testing.T) {
	local, label := strings.Repeat("a", 63), strings.Repeat("b", 63)
	host := strings.Join([]string{label, label, label[:61]}, ".")
	for in, want := range map[string]string{
		"":                       "",
		"hostmaster@Example.com": "hostmaster.example.com.",
		"uwe.k.x@example.com":    `uwe\.k\.x.example.com.`,
		"A_b+c-9@example.com.":   "A_b+c-9.example.com.",
		local + "@" + host:       local + "." + host + ".",
	} {
		if got, err := parseMailbox(in); got != want || err != nil {
			t.Errorf("%s: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"a", "@", "a@", "@b", "a b@c", "a@b c", "a@b@c", "ä@b", `a\@b`, local + "a@b.example", "a@-b",
	} {
		_, err := parseMailbox(in)
		checkError(t, in, err, `spec.email "`+strings.ReplaceAll(in, `\`, `\\`)+
			`": expected a mail address, such as hostmaster@example.com`)
	}
	in := local + "@" + host + "b"
	_, err := parseMailbox(in)
	checkError(t, "254 characters", err, `spec.email "`+in+`" is longer than 253 characters: use another one`)
}

func TestQualifyName(t *testing.T) {
	bases := []string{"a.example.", "b.example."}
	for _, c := range []struct {
		name  string
		bases []string
		want  []qualified
		err   string
	}{
		{"X.Example", nil, []qualified{{"x.example.", ""}}, ""},
		{"x.example.", nil, []qualified{{"x.example.", ""}}, ""},
		{"x", bases, []qualified{{"x.a.example.", "a.example."}, {"x.b.example.", "b.example."}}, ""},
		{"x.b.example", bases[:1], []qualified{{"x.b.example.a.example.", "a.example."}}, ""},
		{"x.b.example.", bases, []qualified{{"x.b.example.", "b.example."}}, ""},
		{"b.example.", bases, []qualified{{"b.example.", "b.example."}}, ""},
		{
			"x.c.example.", bases, nil, "the final dot makes it a fully qualified name, and it does not lie in a.example; " +
				"remove the dot to make it relative",
		},
		{
			"xb.example.", bases[1:], nil, "the final dot makes it a fully qualified name, and it does not lie in b.example; " +
				"remove the dot to make it relative",
		},
		{"", bases, nil, `label "": a label has 1 to 63 characters`},
		{"a!", bases, nil, `label "a!": '!' is not a letter, digit, - or _`},
		{"-a.", bases, nil, `label "-a" begins or ends with -`},
	} {
		got, err := qualifyName(c.name, c.bases)
		checkError(t, c.name, err, c.err)
		if err == nil && !slices.Equal(got, c.want) {
			t.Errorf("%s in %s: got %v, want %v", c.name, c.bases, got, c.want)
		}
	}
}

func TestQualifyOwner(t *testing.T) {
	bases := []string{"a.example.", "b.example."}
	long := strings.Repeat(strings.Repeat("x", 60)+".", 4)
	for _, c := range []struct {
		name  string
		bases []string
		want  []qualified
		err   string
	}{
		{"x", bases[:1], []qualified{{"x.a.example.", "a.example."}}, ""},
		{"@", bases, []qualified{{"a.example.", "a.example."}, {"b.example.", "b.example."}}, ""},
		{"*", bases, []qualified{{"*.a.example.", "a.example."}, {"*.b.example.", "b.example."}}, ""},
		{"*.x", bases[:1], []qualified{{"*.x.a.example.", "a.example."}}, ""},
		{"*.x.b.example.", bases, []qualified{{"*.x.b.example.", "b.example."}}, ""},
		{"*.x.example", nil, []qualified{{"*.x.example.", ""}}, ""},
		{"@", nil, nil, "it is relative to a zone: set spec.zoneRef, or write the fully qualified name"},
		{"*", nil, nil, "it is relative to a zone: set spec.zoneRef, or write the fully qualified name"},
		{"*x", bases, nil, "* must be a label of its own, the first one: *.x"},
		{"**", bases, nil, "* must be a label of its own, the first one: *.x"},
		{"*.*.x", bases, nil, `label "*": '*' is not a letter, digit, - or _`},
		{"x.*", bases, nil, `label "*": '*' is not a letter, digit, - or _`},
		{"*." + long + "xxxxxxxx", nil, nil, "with the names of the zone it has more than 253 characters"},
	} {
		got, err := qualifyOwner(c.name, c.bases)
		checkError(t, c.name, err, c.err)
		if err == nil && !slices.Equal(got, c.want) {
			t.Errorf("%s in %s: got %v, want %v", c.name, c.bases, got, c.want)
		}
	}
}

func TestQualifyTarget(t *testing.T) {
	for _, c := range []struct{ target, base, want, err string }{
		{"Web.Example", "", "web.example.", ""}, {"web.example.", "", "web.example.", ""},
		{"web", "a.example.", "web.a.example.", ""}, {"web.example.", "a.example.", "web.example.", ""},
		{"10.0.0.1", "a.example.", "", `spec.x "10.0.0.1" is an address: expected a name, or write 10.0.0.1 into A or AAAA`},
		{"10.0.0.1.", "", "", `spec.x "10.0.0.1." is an address: expected a name, or write 10.0.0.1 into A or AAAA`},
		{"fd00::1", "", "", `spec.x "fd00::1" is an address: expected a name, or write fd00::1 into A or AAAA`},
		{"a b", "", "", `spec.x "a b": label "a b": ' ' is not a letter, digit, - or _`},
		{"", "a.example.", "", `spec.x ".a.example.": label "": a label has 1 to 63 characters`},
	} {
		got, err := qualifyTarget("spec.x", c.target, c.base)
		checkError(t, c.target, err, c.err)
		if got != c.want {
			t.Errorf("%q in %q: %q", c.target, c.base, got)
		}
	}
}
