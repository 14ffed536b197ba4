package migrate

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/acl"
	_ "github.com/coredns/coredns/plugin/bufsize"
	_ "github.com/coredns/coredns/plugin/debug"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/pprof"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	"sigs.k8s.io/yaml"

	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/install"
	_ "github.com/mandelsoft/kubelink/plugin/kubelink"
)

// TestMain gives CoreDNS the plugins that this test has, in the order of kubelink.
func TestMain(m *testing.M) {
	order := slices.DeleteFunc(slices.Clone(dnsserver.Directives), func(d string) bool {
		_, err := caddy.DirectiveAction("dns", d)
		return err != nil
	})
	if err := dnsserver.SetDirectives(append(order, "kubelink")); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// validate has the plugins themselves read a Corefile, as at the start of kubelink.
func validate(t *testing.T, corefile string) {
	t.Helper()
	t.Setenv("NODE_IP", "10.250.0.11")
	t.Setenv("PAGES_IP", "127.0.0.1")
	t.Setenv("ENDPOINT", "kubelink.kubelink1.example")
	input := caddy.CaddyfileInput{Contents: []byte(corefile), Filepath: "Corefile", ServerTypeName: "dns"}
	if err := caddy.ValidateAndExecuteDirectives(input, nil, true); err != nil {
		t.Errorf("%v\n%s", err, corefile)
	}
}

// migrateArguments migrates what a process was started with.
func migrateArguments(t *testing.T, o Options, args ...string) *Result {
	t.Helper()
	s := &Source{}
	if err := s.ReadArguments(args); err != nil {
		t.Fatal(err)
	}
	r, err := Migrate(s, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// helpFlags are the flags that the help of the former program lists, with the type of their value.
func helpFlags(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("testdata/help.txt")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	pattern := regexp.MustCompile(`(?m)^\s*(?:-\w, )?--([\w.-]+)(?: (string|int|uint|duration|IP) )?`)
	for _, found := range pattern.FindAllStringSubmatch(string(text), -1) {
		all[found[1]] = found[2]
	}
	return all
}

// samples are values of flags, for which a plausible broker starts.
var samples = map[string]string{
	"bind-address-http": "127.0.0.1", "cluster-domain": "cluster.example", "cluster-name": "kubelink1",
	"coredns-service-ip": "100.64.0.12", "dns-name": "kubelink.example", "dns-propagation": "kubernetes",
	"dns-service-ip": "100.64.0.9", "ifce-name": "kl0", "ipip": "shared", "kubeconfig": "file",
	"kubeconfig.apiserver-override": "https://10.0.0.1:6443", "link-address": "192.168.0.11/24", "log-level": "warning",
	"mesh-domain": "mesh.example", "meshdns-service-ip": "100.64.0.13", "mode": "wireguard", "node-cidr": "10.250.0.0/16",
	"node-ip": "$(MY_NODEIP)", "pod-cidr": "100.96.0.0/11", "secret-manage-mode": "self", "service-account": "coredns",
	"service-cidr": "100.64.0.0/20", "served-links": "a, b", "certfile": "file", "keyfile": "file", "cacertfile": "file",
	"lease-duration": "20s", "lease-renew-deadline": "12s", "lease-retry-period": "3s", "grace-period": "2s",
	"controllers": "broker", "server-port-http": "8180", "rule-priority": "1000", "route-table": "251",
}

// TestFlagsOfReadme migrates each flag that the former readme lists: none is forgotten, none is gone that should not,
// and each property is in the Corefile, which the plugin accepts.
func TestFlagsOfReadme(t *testing.T) {
	all := helpFlags(t)
	if len(all) < 110 {
		t.Fatalf("%d flags only", len(all))
	}
	t.Chdir(t.TempDir())
	if err := os.WriteFile("file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	known := map[string]Flag{}
	for _, f := range Flags() {
		known[f.Name] = f
	}
	mayBeGone := regexp.MustCompile(`pool\.|maintainer|^plugin-file$|kubeconfig\.(id|migration-ids)$`)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			f, ok := known[name]
			if !ok {
				t.Fatal("it is unknown")
			}
			gone := f.Where == Gone
			if gone != mayBeGone.MatchString(name) || !gone && f.What == "" || gone && f.Note == "" {
				t.Errorf("%+v", f)
			}
			if isSwitch := all[name] == ""; isSwitch != f.isSwitch {
				t.Errorf("without a value: %t, not %t", f.isSwitch, isSwitch)
			}
			checkFlag(t, f)
		})
	}
}

// checkFlag migrates the flag beside what it needs.
func checkFlag(t *testing.T, f Flag) {
	short := strings.TrimPrefix(strings.TrimPrefix(f.Name, brokerPrefix), routerPrefix)
	args := []string{"--node-cidr=10.250.0.0/16", "--pod-cidr=100.96.0.0/11", "--dns-propagation=dns",
		"--service-cidr=100.64.0.0/20", "--link-address=192.168.0.12/24"}
	if !strings.HasSuffix(short, "file") {
		args = append(args, "--secret=kubelink")
	}
	switch short {
	case "certfile", "keyfile", "cacertfile":
		args = append(args, "--certfile=file", "--keyfile=file", "--cacertfile=file")
	case "secret-manage-mode":
		args = append(args, "--dns-name=kubelink.example")
	}
	if value := samples[short]; f.isSwitch {
		args = append(args, "--"+f.Name)
	} else if value != "" {
		args = append(args, "--"+f.Name+"="+value)
	} else {
		args = append(args, "--"+f.Name+"=17")
	}
	r := migrateArguments(t, Options{}, args...)
	switch {
	case f.Where == Property && !strings.Contains(r.Corefile, "\n        "+f.What):
		t.Errorf("the Corefile has no %s: %s\n%s", f.What, r.Notes, r.Corefile)
	case f.Where == Router && strings.HasPrefix(f.Name, brokerPrefix):
		if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "is a flag of kubelink-router") {
			t.Errorf("no note says where it is: %q", notes)
		}
	case f.Where == Router && !strings.Contains(strings.Join(r.source.RouterArguments(), " "), f.What+"="):
		t.Errorf("the router has no %s: %s", f.What, r.source.RouterArguments())
	case f.Where == Plugin && f.What != "kubelink" && !strings.Contains(r.Corefile, "    "+f.What):
		t.Errorf("the Corefile has no %s:\n%s", f.What, r.Corefile)
	case f.Where == Gone && !strings.HasPrefix(f.Name, brokerPrefix) && !strings.HasPrefix(f.Name, routerPrefix) &&
		!strings.Contains(strings.Join(r.Notes, "\n"), f.Note):
		t.Errorf("no note has the reason: %q", r.Notes)
	}
	validate(t, r.Corefile)
}

// TestFormerArguments migrates what users have.
func TestFormerArguments(t *testing.T) {
	text, err := os.ReadFile("testdata/args.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var former map[string][][]string
	if err := yaml.Unmarshal(text, &former); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"broker-bridge-node-mode": {"mode bridge", "secret kubelink", "broker-port 8188", "node-cidr 10.250.0.0/16"},
		"broker-wireguard-node-mode": {"mode wireguard", "secret wireguard", "coredns-configure", "dns-advertisement",
			"dns-propagation dns", "ifce-name kubelink"},
		"broker-wireguard-pod-mode": {"node-ip {$NODE_IP}", "pod-cidr 100.96.0.0/11", "service-cidr 100.64.16.0/20"},
		"both-in-one": {"route-table 251", "served-links <default>", "disable-deploy-crds", "omit-lease",
			"kubeconfig.apiserver-override https://10.0.0.1:6443"},
		"router": nil,
	}
	for name, processes := range former {
		if _, known := want[name]; !known {
			t.Errorf("%s is not known", name)
		}
		for _, args := range processes {
			r := migrateArguments(t, Options{Image: "kubelink:v1", MeshCIDRs: []string{"192.168.0.0/24"}}, args...)
			for _, line := range want[name] {
				if !strings.Contains(r.Corefile, "\n        "+line+"\n") {
					t.Errorf("%s: no line %q in\n%s", name, line, r.Corefile)
				}
			}
			if (r.Corefile == "") != (name == "router") {
				t.Errorf("%s: Corefile %q", name, r.Corefile)
			}
			if r.Corefile != "" {
				validate(t, r.Corefile)
			}
			if objects, err := r.Objects(); err != nil || install.Find(objects, "Namespace", install.Namespace) == nil {
				t.Errorf("%s: %v", name, err)
			}
			t.Logf("%s: %s", name, strings.Join(r.Notes, "\n"))
		}
	}
}

const formerDeployment = `apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: kubelink-broker, namespace: kube-system}
  spec:
    template:
      spec:
        containers:
        - name: sidecar
          image: other
          args: [--x]
        - name: kubelink
          image: registry.example/kubelink:0.1
          command: [/kubelink, --controllers=broker]
          args: [--mode=wireguard, --secret=wireguard, --node-cidr=10.250.0.0/16, --pod-cidr=100.96.0.0/11, -D, debug,
            --service-cidr=$(SERVICES), --node-ip=$(MY_NODEIP), --broker.broker-port=8188, --broker-port=1, --mtu=0,
            --dns-propagation=dns, --coredns-configure=false, --service-account=coredns]
          env:
          - {name: SERVICES, value: 100.64.16.0/20}
          - {name: MY_NODEIP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
- apiVersion: apps/v1
  kind: DaemonSet
  metadata: {name: kubelink-router, namespace: kube-system}
  spec:
    template:
      spec:
        hostNetwork: true
        containers:
        - name: r
          image: kubelink
          args: [--controllers=router, --node-cidr=10.250.0.0/16, --ipip=shared, --datafile=/mnt/data/routes]
          volumeMounts: [{name: data, mountPath: /mnt/data}, {name: other, mountPath: /mnt}]
        volumes: [{name: other, emptyDir: {}}, {name: data, hostPath: {path: /var/lib/kubelink}}]
- {apiVersion: v1, kind: Service, metadata: {name: kubelink, namespace: kube-system}}
`

func TestDeployment(t *testing.T) {
	s := &Source{}
	if err := s.ReadYAML(strings.NewReader(formerDeployment)); err != nil {
		t.Fatal(err)
	}
	r, err := Migrate(s, Options{Image: "kubelink:v1", MeshCIDRs: []string{"192.168.0.0/24"}})
	if err != nil {
		t.Fatal(err)
	}
	validate(t, r.Corefile)
	for text, want := range map[string]bool{
		"\n        node-ip {$NODE_IP}\n": true, "\n        service-cidr 100.64.16.0/20\n": true,
		"\n        broker-port 8188\n": true, "\n        log-level debug\n": true, "mtu": false, "coredns-configure": false,
		"            allow net": false, "        allow net 192.168.0.0/24\n": true,
	} {
		if strings.Contains(r.Corefile, text) != want {
			t.Errorf("%q: want %t in\n%s", text, want, r.Corefile)
		}
	}
	objects, err := r.Objects()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ kind, name, has string }{
		{"ConfigMap", "kubelink", "broker-port 8188"},
		{"Role", "kubelink", `"resourceNames":["wireguard"]`},
		{"Role", "kubelink-token", `"resourceNames":["coredns"]`},
		{"Service", "kubelink", `"targetPort":8188`},
		{"Service", "kubelink-dns", `"clusterIP":"100.64.16.11"`},
		{"Deployment", "kubelink", `"containerPort":8188`},
		{"Deployment", "kubelink", `"status.podIPs"`}, // pod mode
		{"DaemonSet", "kubelink-router", "--ipip=shared"},
		{"DaemonSet", "kubelink-router", "--datafile=/mnt/data/routes"},
		{"DaemonSet", "kubelink-router", `"volumeMounts":[{"mountPath":"/mnt/data","name":"former"}]`},
		{"DaemonSet", "kubelink-router", `"volumes":[{"hostPath":{"path":"/var/lib/kubelink"},"name":"former"}]`},
	} {
		o := install.Find(objects, c.kind, c.name)
		if o == nil {
			t.Errorf("no %s %s", c.kind, c.name)
			continue
		}
		text, err := o.MarshalJSON()
		if err != nil || !strings.Contains(string(text), c.has) {
			t.Errorf("no %s in %s", c.has, text)
		}
	}
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "copy the secret from kube-system") {
		t.Errorf("notes %s", notes)
	}
}

// The former program also read its flags from a file.
func TestConfigurationFile(t *testing.T) {
	s := &Source{}
	if err := s.ReadYAML(strings.NewReader("controllers: broker\nbroker-port: 8188\nomit-lease: true\n")); err != nil {
		t.Fatal(err)
	}
	r, err := Migrate(s, Options{})
	if err != nil || !strings.Contains(r.Corefile, "\n        broker-port 8188\n        omit-lease\n") {
		t.Errorf("%v\n%s", err, r.Corefile)
	}
}

// What is more than a word would be another Corefile: values of a former Deployment are not ours.
func TestRefuseText(t *testing.T) {
	for _, evil := range []string{"a\n    }\n    forward . 192.0.2.1\n    x {", "a b", "a{", "}", `"`, "#a", "a\rb",
		"a\u2028b", "{$X}{", "`", "$(VALUE)"} {
		for _, flag := range []string{"dns-name", "pod-cidr", "mesh-domain", "dns-log-class", "served-links",
			"bind-address-http", "node-ip"} {
			if evil == "a b" && flag == "served-links" { // it is a list
				continue
			}
			s := &Source{env: map[string]string{"VALUE": "x\ny"}}
			args := []string{"--controllers=broker", "--server-port-http=1", "--" + flag + "=" + evil}
			if err := s.ReadArguments(args); err != nil {
				t.Fatal(err)
			}
			if r, err := Migrate(s, Options{}); err == nil || !strings.Contains(err.Error(), "--"+flag) {
				t.Errorf("%s %q: %v\n%s", flag, evil, err, r.Corefile)
			}
		}
	}
	if r, err := Migrate(&Source{hasBroker: true}, Options{MeshCIDRs: []string{"10.0.0.0/8\nx"}}); err == nil {
		t.Errorf("--mesh-cidr: %s", r.Corefile)
	}
	r := migrateArguments(t, Options{}, "--controllers=broker", "--default.pool.size=1\nforward . 192.0.2.1")
	if len(r.Notes) == 0 || strings.Contains(strings.Join(r.Notes, ""), "\n") { // they are comments of the Corefile
		t.Errorf("%q", r.Notes)
	}
}

func TestRefuse(t *testing.T) {
	for input, want := range map[string]string{
		"--no-such-flag":                        "unknown flag: --no-such-flag: give the arguments of the former program",
		"stray":                                 `"stray" is no flag`,
		"--controllers=other":                   `"other" is neither broker nor router`,
		"--controllers=broker --x":              "unknown flag: --x",
		"kind: Pod":                             "there is no Deployment or DaemonSet of the former kubelink",
		"a: [":                                  "read YAML: ",
		"no-such-flag: 1":                       `"no-such-flag" is no flag of the former program`,
		"kind: Deployment\nspec: {template: 1}": "Deployment ",
	} {
		s := &Source{}
		err := s.ReadArguments(strings.Fields(input))
		if strings.Contains(input, ": ") {
			err = s.ReadYAML(strings.NewReader(input))
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", input, err)
		}
	}
	if _, err := Migrate(&Source{}, Options{}); err == nil {
		t.Error("nothing was migrated")
	}
	if _, err := migrateArguments(t, Options{}, "--controllers=broker").Objects(); err == nil ||
		!strings.Contains(err.Error(), "--image") {
		t.Errorf("without image: %v", err)
	}
}
