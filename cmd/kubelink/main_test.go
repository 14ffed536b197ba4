package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
)

// TestCorefiles sets up what the ready-to-use Corefiles say, without starting it.
func TestCorefiles(t *testing.T) {
	t.Setenv("NODE_IP", "10.250.0.11") // as in the pod of deploy/base
	files, err := filepath.Glob("../../corefiles/*.Corefile")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v %v", files, err)
	}
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		input := caddy.CaddyfileInput{Contents: body, Filepath: f, ServerTypeName: "dns"}
		if err := caddy.ValidateAndExecuteDirectives(input, nil, true); err != nil {
			t.Error(err)
		}
	}
}

func TestDirectives(t *testing.T) {
	at := func(d string) int {
		i := slices.Index(dnsserver.Directives, d)
		if i < 0 {
			t.Fatalf("no %s", d)
		}
		return i
	}
	for _, before := range []string{
		"metadata", "reload", "ready", "prometheus", "errors", "log", "rewrite", "acl", "cache", "template", "transfer",
		"hosts",
	} {
		if at(before) > at("kubelink") {
			t.Errorf("%s is after kubelink", before)
		}
	}
	for _, after := range []string{"kubernetes", "file", "secondary", "loop", "forward", "whoami"} {
		if at(after) < at("kubelink") {
			t.Errorf("%s is before kubelink", after)
		}
	}
	if slices.Contains(dnsserver.Directives, "route53") {
		t.Error("route53 is offered, but not in here")
	}
}

func TestDescribe(t *testing.T) {
	version = "v1.2.3"
	setVersion()
	if caddy.AppName != "kubelink" || !strings.HasPrefix(caddy.AppVersion, "v1.2.3 (CoreDNS-1.") {
		t.Errorf("%s %s", caddy.AppName, caddy.AppVersion)
	}
}
