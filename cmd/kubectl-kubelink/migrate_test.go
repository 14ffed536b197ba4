package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// runCLI runs a command line as a user does, and returns what it prints on standard output and error.
func runCLI(t *testing.T, input string, args ...string) (out, errors string, err error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	c := newCommand()
	c.SetArgs(args)
	c.SetIn(strings.NewReader(input))
	c.SetOut(&stdout)
	c.SetErr(&stderr)
	err = c.ExecuteContext(context.Background())
	return stdout.String(), stderr.String(), err
}

const formerYAML = `apiVersion: apps/v1
kind: Deployment
metadata: {name: kubelink, namespace: kube-system}
spec:
  template:
    spec:
      hostNetwork: true
      containers:
        - {name: kubelink, image: kubelink, args: [--controllers=broker, --secret=tls, --node-cidr=10.250.0.0/16]}
`

func TestMigrate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "former.yaml")
	if err := os.WriteFile(file, []byte(formerYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args, input, want, fails string
		usage                    bool
	}{
		{"migrate -f -", formerYAML, "\n        secret tls\n", "", false},
		{"migrate -f " + file, "", "# kubelink has the namespace kubelink: copy the secret", "", false},
		{"migrate -f " + file + " -o yaml --image=i", "", "---\napiVersion: v1\nkind: Namespace\n", "", false},
		{"migrate -f " + file + " -o json --image=i", "", `"kind": "List"`, "", false},
		{"migrate --table", "", "\n--broker.ifce-name ", "", false},
		{"migrate --table -o json", "", `"where": "property"`, "", false},
		{"migrate", "", "", "give the former Deployment with -f", true},
		{"migrate -f x -- --mode=none", "", "", "keep one", true},
		{"migrate -f " + file + " -o yaml", "", "", "give --image", true},
		{"migrate -f " + file + "x", "", "", "no such file", false},
		{"migrate -o xml", "", "", `--output "xml": want one of corefile, yaml, json`, true},
		{"migrate --nothing", "", "", "unknown flag", true},
		{"migrate -- --nothing", "", "", "unknown flag", true},
	} {
		out, _, err := runCLI(t, c.input, strings.Fields(c.args)...)
		if c.fails == "" && (err != nil || !strings.Contains(out, c.want)) {
			t.Errorf("%s: %v\n%s", c.args, err, out)
		}
		if c.fails == "" {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.fails) || (exitCode(err) == exitUsage) != c.usage {
			t.Errorf("%s: %v", c.args, err)
		}
	}
}

// TestMigrateInDocuments runs the commands of the documentation. The standard input stands for their file.
func TestMigrateInDocuments(t *testing.T) {
	readme, err := os.ReadFile("../../deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)kubectl kubelink (migrate [^#\n]*)`).FindAllStringSubmatch(string(readme), -1)
	for _, line := range lines {
		command, _, _ := strings.Cut(line[1], " >")
		command = strings.ReplaceAll(command, " former.yaml", " -")
		if out, _, err := runCLI(t, formerYAML, strings.Fields(command)...); err != nil || out == "" {
			t.Errorf("%s: %v", line[1], err)
		}
	}
	if len(lines) < 3 {
		t.Errorf("%d commands", len(lines))
	}
}
