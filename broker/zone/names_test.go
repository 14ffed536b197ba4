package zone

import (
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// long is a name of n labels of 49 characters: 50 octets each.
func long(n int) string { return strings.Repeat(strings.Repeat("a", 49)+".", n) }

func TestReplaceSuffix(t *testing.T) {
	for _, c := range []struct {
		name, from, to string
		want           string // empty: does not fit
	}{
		{"svc.cluster.local.", "cluster.local.", "c2.kubelink.", "svc.c2.kubelink."},
		// the domain itself
		{"cluster.local.", "cluster.local.", "c2.kubelink.", "c2.kubelink."},
		{"Svc.CLUSTER.local.", "cluster.local.", "c2.kubelink.", "Svc.c2.kubelink."}, // any case
		// whole labels only
		{"mycluster.local.", "cluster.local.", "c2.kubelink.", "mycluster.local."},
		// one label: my.cluster
		{`my\.cluster.local.`, "cluster.local.", "c2.kubelink.", `my\.cluster.local.`},
		{`my\\.cluster.local.`, "cluster.local.", "c2.kubelink.", `my\\.c2.kubelink.`}, // label my\
		// label \.cluster
		{`\\\.cluster.local.`, "cluster.local.", "c2.kubelink.", `\\\.cluster.local.`},
		{"local.", "cluster.local.", "c2.kubelink.", "local."}, // shorter
		{".", "cluster.local.", "c2.kubelink.", "."},           // root
		// somewhere else
		{"example.com.", "cluster.local.", "c2.kubelink.", "example.com."},
		// the last one only
		{"a.cluster.local.cluster.local.", "cluster.local.", "c2.kubelink.", "a.cluster.local.c2.kubelink."},
		{"x.c2.k.cluster.local.", "c2.k.cluster.local.", "cluster.local.", "x.cluster.local."}, // nested, out
		{"x.cluster.local.", "cluster.local.", "c2.k.cluster.local.", "x.c2.k.cluster.local."}, // nested, back
		{"x.", ".", "c2.kubelink.", "x.c2.kubelink."},                                          // from the root
		{".", ".", "c2.kubelink.", "c2.kubelink."},
		{"x.c2.kubelink.", "c2.kubelink.", ".", "x."}, // to the root
		{"c2.kubelink.", "c2.kubelink.", ".", "."},
		{"\u212aluster.local.", "\u212aluster.local.", "k.", "k."},
		// the Kelvin sign is no k
		{"x.\u212a.", "k.", "l.", "x.\u212a."},
		// 254
		{long(4) + "ab.cluster.local.", "cluster.local.", strings.Repeat("b", 49) + ".",
			long(4) + "ab." + strings.Repeat("b", 49) + "."},
		// 255
		{long(4) + "abc.cluster.local.", "cluster.local.", strings.Repeat("b", 49) + ".",
			long(4) + "abc." + strings.Repeat("b", 49) + "."},
		// 256
		{long(4) + "abcd.cluster.local.", "cluster.local.", strings.Repeat("b", 49) + ".", ""},
	} {
		got, fits := replaceSuffix(c.name, c.from, c.to)
		if !fits {
			got = ""
		}
		if got != c.want {
			t.Errorf("replaceSuffix(%q, %q, %q) = %q, want %q", c.name, c.from, c.to, got, c.want)
		}
	}
}

// FuzzReplaceSuffix compares with labels: split, compare the last ones, join.
func FuzzReplaceSuffix(f *testing.F) {
	f.Add([]byte("\x03svc\x07cluster\x05local\x00"), []byte("\x07cluster\x05local\x00"), []byte("\x02c2\x08kubelink\x00"))
	f.Add([]byte("\x0asvc.cluster\x05local\x00"), []byte("\x07Cluster\x05local\x00"), []byte("\x00"))
	f.Add([]byte("\x01\\\x01.\x00"), []byte("\x01.\x00"),
		[]byte("\x3faaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x00"))
	f.Fuzz(func(t *testing.T, name, from, to []byte) {
		var s [3]string
		var labels [3][]string
		for i, wire := range [][]byte{name, from, to} {
			var err error
			if s[i], _, err = dns.UnpackDomainName(wire, 0); err != nil {
				return
			}
			labels[i] = dns.SplitDomainName(s[i])
		}
		got, fits := replaceSuffix(s[0], s[1], s[2])

		n, d := labels[0], labels[1]
		inside := len(n) >= len(d)
		for i := 0; inside && i < len(d); i++ {
			inside = lowerASCII(n[len(n)-len(d)+i]) == lowerASCII(d[i])
		}
		if !inside {
			if got != s[0] || !fits {
				t.Fatalf("%q is not in %q, but became %q", s[0], s[1], got)
			}
			return
		}
		want := dns.Fqdn(strings.Join(append(n[:len(n)-len(d):len(n)-len(d)], labels[2]...), "."))
		n1, err := dns.PackDomainName(want, make([]byte, 600), 0, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		if fits != (n1 <= 255) {
			t.Fatalf("%q has %d octets, fits: %v", want, n1, fits)
		}
		if fits && got != want {
			t.Fatalf("replaceSuffix(%q) = %q, want %q", s, got, want)
		}
	})
}

func lowerASCII(s string) string {
	b := []byte(s)
	for i := range b {
		b[i] = lowerByte(b[i])
	}
	return string(b)
}
