package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"
)

const twoClusters = `apiVersion: v1
kind: Config
current-context: c1
clusters: [{name: none, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: t}}]
contexts:
- {name: c1, context: {cluster: none, user: u}}
- {name: c2, context: {cluster: none, user: u}}
`

// TestCommandLines runs command lines that fail before, or as soon as, they ask an API server.
func TestCommandLines(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	file := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(file, []byte(twoClusters), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args, fails string
		code        int
	}{
		{"connect c1", `want two different contexts of the kubeconfig, got ["c1"]: kubectl kubelink connect CONTEXT1`,
			exitUsage},
		{"connect c1 c1", "want two different contexts", exitUsage},
		{"connect c1 c2 --mode none", `--mode "none": want bridge or wireguard`, exitUsage},
		{"connect c1 c2 --mesh-cidr x", `--mesh-cidr "x": want a network`, exitUsage},
		{"connect c1 c2 --pod-cidr c1=x", "--pod-cidr c1=x: want a network such as", exitUsage},
		{"connect c1 c2 --endpoint c1=a:b", `--endpoint c1=a:b: `, exitUsage},
		{"connect c1 c2 --name c1=A_b", "--name c1=A_b: want lower case letters", exitUsage},
		{"connect c1 c2 --endpoint c1=http://a", "--endpoint c1=http://a: expected host[:port], without http://", exitUsage},
		{"connect c1 c2 --name c3=a", `a flag has a value for context "c3", and the contexts are c1 and c2`, exitUsage},
		{"connect c1 c2 -n other", "--namespace other: this command installs into kubelink only", exitUsage},
		{"connect c1 c2 -o yaml", "--output without --dry-run", exitUsage},
		{"connect c1 c2 --dry-run -o json", `--output "json": want one of yaml`, exitUsage},
		{"connect c1 c2", "connection refused", exitFailed},
		{"connect c1 c3", "context c3: the kubeconfig has no such context, but c1, c2", exitFailed},
		{"disconnect c1 c2", "connection refused", exitFailed},
		{"disconnect c1 c2 --mode x", "unknown flag: --mode", exitUsage},
		{"test --timeout 0s", "--timeout 0s: want a time such as 60s", exitUsage},
		{"test -o xml", `--output "xml": want one of json, yaml, wide`, exitUsage},
		{"test c1 c2", "", exitUnanswered},
		{"test c1 --link c2", "no cluster has a link c2: kubectl kubelink status shows their names", exitFailed},
		{"version c1 c2", "2 of 2 clusters do not answer", exitFailed},
		{"version -o wide", `--output "wide": want one of`, exitUsage},
		{"version", "", 0},
		{"gather c2", "nothing of context c2 could be read: list Secret objects: ", exitUnanswered}, // the archive says so, too
		{"gather -o missing/x.tar.gz", "no such file or directory", exitFailed},
		{"completion bash", "", 0},
		{"statsu", `there is no command "statsu": did you mean status?`, exitUsage},
		{"c1 c2", `there is no command "c1": see kubectl kubelink --help`, exitUsage},
		{"ping", "want the name of one link, got 0: kubectl kubelink ping LINK", exitUsage},
		{"gather c3", "context c3: the kubeconfig has no such context, but c1, c2", exitFailed},
		{"migrate --controllers=broker", "flags of the former kubelink come after --", exitUsage},
	} {
		_, _, err := runCLI(t, "", append(strings.Fields(c.args), "--kubeconfig="+file)...)
		if exitCode(err) != c.code || c.fails != "" && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: code %d, %v", c.args, exitCode(err), err)
		}
	}
	if archives, err := filepath.Glob("kubelink-*.tar.gz"); err != nil || len(archives) != 1 {
		t.Errorf("%v %v", archives, err)
	}
}

// TestFlagsOfContexts has the flags of the command line count for named contexts as for the current one.
func TestFlagsOfContexts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(twoClusters), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := genericclioptions.NewConfigFlags(true)
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.AddFlags(set)
	if err := set.Parse([]string{"--kubeconfig=" + file, "--as=someone", "--as-group=some", "--as-uid=1", "--token=other",
		"--as-user-extra=a=b", "--request-timeout=7s", "--server=https://127.0.0.1:2", "--insecure-skip-tls-verify",
	}); err != nil {
		t.Fatal(err)
	}
	targets, err := (&contexts{cluster: flags}).choose([]string{"c2", "c3"})
	if err != nil || len(targets) != 2 {
		t.Fatal(targets, err)
	}
	got := targets[0].API
	want := rest.ImpersonationConfig{UserName: "someone", UID: "1", Groups: []string{"some"},
		Extra: map[string][]string{"a": {"b"}}}
	if !reflect.DeepEqual(got.Impersonate, want) || got.BearerToken != "other" || got.Timeout != 7*time.Second ||
		got.Host != "https://127.0.0.1:2" || !got.Insecure {
		t.Errorf("%+v", got)
	}
	if err := targets[1].Err; err == nil || err.Error() != "context c3: the kubeconfig has no such context, but c1, c2" {
		t.Error(err)
	}
}

// TestHelp has the help of a command show its own flags, and that of the program all.
func TestHelp(t *testing.T) {
	for args, own := range map[string]bool{"status --help": true, "--help": false, "": false} {
		out, _, err := runCLI(t, "", strings.Fields(args)...)
		if err != nil || strings.Contains(out, "--tls-server-name") == own ||
			strings.Contains(out, `"kubectl kubelink --help" has them all`) != own {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}

func TestCompletion(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(twoClusters), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"connect --kubeconfig=FILE c":  "c1\nc2\n:4\n",
		"connect --kubeconfig=FILE c1": "c1\n:4\n",
		"migrate -o y":                 "corefile\nyaml\njson\n",
	} {
		args = strings.ReplaceAll(args, "FILE", file)
		out, _, err := runCLI(t, "", append([]string{"__complete"}, strings.Fields(args)...)...)
		lines := strings.Split(strings.SplitN(want, ":", 2)[0], "\n")
		for _, line := range lines {
			if err != nil || !strings.Contains(out, line) {
				t.Errorf("%s: %v\n%s", args, err, out)
			}
		}
	}
}

// TestCompletionOfLinks asks an API server for the links to other clusters.
func TestCompletionOfLinks(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"items": [{"metadata": {"name": "c1"}, "spec": {"endpoint": "LocalLink"}},
			{"metadata": {"name": "c2"}, "spec": {"endpoint": "c2.example"}},
			{"metadata": {"name": "laptop"}, "spec": {"endpoint": "Inbound"}}]}`)
	}))
	defer server.Close()
	for args, want := range map[string]string{
		"ping ": "c2\nlaptop\n:4\n", "wg-config l": "laptop\n:4\n", "test c1 --link c": "c2\n:4\n", "ping c2 ": ":4\n",
		"ping --context=c9 ": ":4\n",
	} {
		file := filepath.Join(t.TempDir(), "kubeconfig")
		text := strings.ReplaceAll(twoClusters, "https://127.0.0.1:1", server.URL)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		words := append([]string{"__complete", "--kubeconfig=" + file}, strings.Split(args, " ")...)
		if out, _, err := runCLI(t, "", words...); err != nil || out != want {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
}
