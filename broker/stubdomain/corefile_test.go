package stubdomain

import (
	"reflect"
	"strings"
	"testing"
)

// Any text can be read: a user may save a broken Corefile, and the links must not end by that.
func FuzzReadCorefile(f *testing.F) {
	f.Add("{\n errors\n}\n.:53 {\n {\n x\n }\n")
	f.Add("(x") // no snippet: there is no closing parenthesis
	f.Fuzz(func(t *testing.T, text string) {
		c := ReadCorefile("import x\n" + text)
		if len(c.imports) == 0 && !strings.Contains(text, "(x)") || c.port == "" && !strings.Contains(text, ".:") {
			t.Errorf("%+v of %q", c, text)
		}
	})
}

func TestReadCorefile(t *testing.T) {
	server := []string{"custom/*.server"}
	override := []string{"custom/*.override"}
	for _, c := range []struct {
		name, text string
		want       Corefile
	}{
		{"empty", "", Corefile{port: "53"}},
		{"kubeadm",
			".:53 {\n    errors\n    forward . /etc/resolv.conf {\n        max_concurrent 1000\n    }\n    reload\n}\n",
			Corefile{port: "53", reload: true}},
		{"Gardener",
			".:8053 {\n  errors\n  reload\n  import custom/*.override\n}\nimport custom/*.server\n",
			Corefile{port: "8053", reload: true, imports: server, nested: override}},
		{"K3s",
			".:53 {\n  errors\n  reload\n  import /etc/coredns/custom/*.override\n}\nimport /etc/coredns/custom/*.server\n",
			Corefile{port: "53", reload: true, imports: []string{"/etc/coredns/custom/*.server"},
				nested: []string{"/etc/coredns/custom/*.override"}}},
		{"AKS, import first", "import custom/*.server\n.:53 {\n  import custom/*.override\n  reload\n}\n",
			Corefile{port: "53", reload: true, imports: server, nested: override}},
		{"without reload",
			".:53 {\n  errors # reload\n  log . reload\n  \"#\" reload\n}\nimport /etc/coredns/custom/*.server",
			Corefile{port: "53", imports: []string{"/etc/coredns/custom/*.server"}}},
		{"reload off", ".:53 {\n  reload 0s\n}\n", Corefile{port: "53"}},
		{"reload off, without unit", ".:53 {\n  reload 0\n}\n", Corefile{port: "53"}},
		{"reload without jitter", ".:53 {\n  reload 30s 0s\n}\n", Corefile{port: "53", reload: true}},
		{"overrides only", ".:53 {\n  import custom/*.override\n}\n", Corefile{port: "53", nested: override}},
		{"other zones first",
			"dns://cluster.local:5300, Example.org.:54 {\n}\ndns://.:1053 {\nreload 2s\n}",
			Corefile{port: "1053", reload: true, zones: []string{"cluster.local:5300", "example.org:54"}}},
		{"two root blocks", ".:53 {\n  reload\n}\n.:5353 {\n}\n", Corefile{port: "53", reload: true}},
		{"two root blocks, the first without port", ". {\n}\n.:5353 {\n}\n", Corefile{port: "53"}},
		{"root over TLS first", "tls://.:853 {\n}\n.:1053 {\n}\n", Corefile{port: "1053"}},
		{"reload of another plugin", ".:53 {\n  hosts {\n    reload 5s\n  }\n}\n", Corefile{port: "53"}},
		{"snippet", "(common) {\n  reload\n}\n.:53 {\n  import common\n}\n", Corefile{port: "53", reload: true}},
		{"snippets that import", "(in) {\n  import custom/*.override\n}\n(out) {\n  import custom/*.server\n}\n" +
			".:53 {\n  import in\n}\nimport out\n", Corefile{port: "53", imports: server, nested: override}},
		{"zones in lines", "example.org:54,\n.:1053 {\n  reload\n}\n",
			Corefile{port: "1053", reload: true, zones: []string{"example.org:54"}}},
		{"brace without zone", "{\n errors\n reload\n}\n", Corefile{port: "53", reload: true}},
		{"options before zones", "{\n debug\n}\n.:1053 {\n reload\n}\n", Corefile{port: "1053", reload: true}},
		{"brace without plugin", ".:1053 {\n {\n x\n }\n}\n", Corefile{port: "1053"}},
		{"brace that nothing closes", ".:1053 {\n reload", Corefile{port: "1053", reload: true}},
		{"import after a brace", ".:53 {\n errors }\nimport x\n", Corefile{port: "53", imports: []string{"x"}}},
		{"without braces", ".:5353\nreload\n", Corefile{port: "5353", reload: true}},
	} {
		if got := ReadCorefile(c.text); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, expected %+v", c.name, got, c.want)
		}
	}
}

// What our key of the ConfigMap would do.
func TestCheckImports(t *testing.T) {
	for _, c := range []struct {
		text   string
		says   string
		broken bool
	}{
		{".:53 {\n}\nimport custom/*.server\n", "", false},
		{".:53 {\n}\nimport /etc/coredns/custom/*\n", "", false},
		{".:53 {\n}\nimport custom/kubelink.server\n", "", false},
		{".:53 {\n}\nimport custom/*.conf\nimport custom/*.server\n", "", false},
		{"import other\n.:53 {\n}\nimport ../custom/kubelink.*\n", "", false},
		{".:53 {\n}\n", "imports nothing", false},
		{".:53 {\n  import custom/*.override\n}\n", "imports nothing", false},
		{".:53 {\n}\nimport custom/*.conf\n", `imports "custom/*.conf", which does not include key kubelink.server`, false},
		{".:53 {\n}\nimport custom/mesh.server\n", `imports "custom/mesh.server", which does not include`, false},
		{".:53 {\n}\nimport custom/[\n", `imports "custom/[", which does not include`, false},
		{".:53 {\n  import custom/*\n}\n", `imports "custom/*" within a server block`, true},
		{".:53 {\n  import custom/*\n}\nimport custom/*.server\n", `imports "custom/*" within a server block`, true},
		{"import custom/*.server\n.:53 {\n}\nimport custom/*.server\n", "twice", true},
	} {
		config := ReadCorefile(c.text)
		p := config.checkImports()
		if p.broken != c.broken || (p.text == "") != (c.says == "") || !strings.Contains(p.text, c.says) {
			t.Errorf("%q: %+v", c.text, p)
		}
	}
}

// A domain that a user's server block serves is left to it: CoreDNS would not start with two.
func TestDropServed(t *testing.T) {
	const mine = "kubelink:53 {\n  forward . 100.64.0.11\n}\n"
	for _, c := range []struct {
		corefile string
		custom   map[string]string
		rest     int
		says     string
	}{
		{".:53 {\n}\n", nil, 2, ""},
		{".:53 {\n}\n" + mine, nil, 1, "the Corefile in ConfigMap kube-system/coredns has a server block for kubelink"},
		{".:53 {\n}\nKubelink. {\n}\n", nil, 1, "for kubelink,"},
		{".:5353 {\n}\n" + mine, nil, 2, ""},
		{".:53 {\n}\n", map[string]string{"mesh.server": mine}, 1,
			"key mesh.server of ConfigMap kube-system/coredns-custom has"},
		{".:53 {\n}\n", map[string]string{"mesh.override": mine, BlocksKey: mine}, 2, ""},
	} {
		config := ReadCorefile(c.corefile)
		rest, note := config.dropServed(testStubs("kubelink", "b.example"), c.custom)
		if len(rest) != c.rest || (note == "") != (c.says == "") || !strings.Contains(note, c.says) {
			t.Errorf("%q %v: %v, %q", c.corefile, c.custom, rest, note)
		}
	}
}
