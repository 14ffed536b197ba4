package kubelink

import (
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
)

// TestReadme starts every Corefile of the README, as CoreDNS does with those of its plugins.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, section := range []string{"\n## Name\n", "\n## Description\n", "\n## Syntax\n", "\n## Examples\n"} {
		i := strings.Index(string(readme)[at:], section)
		if i < 0 {
			t.Fatalf("no section %q, or not in its place", strings.TrimSpace(section))
		}
		at += i
	}

	// The examples listen where they listen on a real system, but for the port.
	defer func(port string) { dnsserver.Port = port }(dnsserver.Port)
	examples := regexp.MustCompile("(?ms)^~~~ corefile\n(.*?)^~~~$").FindAllStringSubmatch(string(readme), -1)
	if len(examples) == 0 {
		t.Fatal("no examples")
	}
	for _, example := range examples {
		s := useStateSource(t)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, dnsserver.Port, _ = net.SplitHostPort(ln.Addr().String())
		ln.Close()
		i, err := caddy.Start(corefile(strings.Replace(example[1], "    ready\n", "    ready 127.0.0.1:0\n", 1)))
		if err != nil {
			t.Errorf("%v:\n%s", err, example[1])
			continue
		}
		for _, err := range i.ShutdownCallbacks() {
			t.Error(err)
		}
		i.Stop()
		if got := s.takeCalls(); !strings.HasPrefix(got, "new ") || !strings.HasSuffix(got, ", start, stop") {
			t.Errorf("%s:\n%s", got, example[1])
		}
	}
}
