package stubdomain

import (
	"strings"
	"testing"
)

// Any text can be read: a user may save a broken Corefile, and the links must not end by that.
func FuzzReadCorefile(f *testing.F) {
	f.Add("{\n errors\n}\n.:53 {\n {\n x\n }\n")
	f.Fuzz(func(t *testing.T, text string) {
		if c := readCorefile("import x\n" + text); !c.imports || c.port == "" && !strings.Contains(text, ".:") {
			t.Errorf("%+v of %q", c, text)
		}
	})
}

func TestReadCorefile(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       corefile
	}{
		{"empty", "", corefile{port: "53"}},
		{"kubeadm",
			".:53 {\n    errors\n    forward . /etc/resolv.conf {\n        max_concurrent 1000\n    }\n    reload\n}\n",
			corefile{port: "53", reload: true}},
		{"gardener",
			".:8053 {\n  errors\n  reload\n  import custom/*.override\n}\nimport custom/*.server\n",
			corefile{port: "8053", reload: true, imports: true}},
		{"without reload",
			".:53 {\n  errors # reload\n  log . reload\n  \"#\" reload\n}\nimport /etc/coredns/custom/*.server",
			corefile{port: "53", imports: true}},
		{"overrides only", ".:53 {\n  import custom/*.override\n}\n", corefile{port: "53"}},
		{"other zones first",
			"dns://cluster.local:5300, example.org:54 {\n}\ndns://.:1053 {\nreload 2s\n}",
			corefile{port: "1053", reload: true}},
		{"reload of another plugin", ".:53 {\n  hosts {\n    reload 5s\n  }\n}\n", corefile{port: "53"}},
		{"snippet", "(common) {\n  reload\n}\n.:53 {\n  import common\n}\n", corefile{port: "53", reload: true}},
		{"zones in lines", "example.org:54,\n.:1053 {\n  reload\n}\n", corefile{port: "1053", reload: true}},
		{"brace without zone", "{\n errors\n reload\n}\n", corefile{port: "53", reload: true}},
		{"options before zones", "{\n debug\n}\n.:1053 {\n reload\n}\n", corefile{port: "1053", reload: true}},
		{"brace without plugin", ".:1053 {\n {\n x\n }\n}\n", corefile{port: "1053"}},
		{"brace that nothing closes", ".:1053 {\n reload", corefile{port: "1053", reload: true}},
		{"import after a brace", ".:53 {\n errors }\nimport x\n", corefile{port: "53", imports: true}},
		{"without braces", ".:5353\nreload\n", corefile{port: "5353", reload: true}},
	} {
		if got := readCorefile(c.text); got != c.want {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}
