package kubelink

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/coredns/caddy"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker"
)

// serverBlock is a Corefile whose stanza names the cluster, or has no properties.
func serverBlock(cluster string) string {
	if cluster == "" {
		return ".:0 {\nbind 127.0.0.1\nkubelink\nwhoami\n}"
	}
	return ".:0 {\nbind 127.0.0.1\nkubelink {\ncluster-name " + cluster + "\nlink-address 192.168.0.11/24\n}\nwhoami\n}"
}

const withoutStanza = ".:0 {\nbind 127.0.0.1\nwhoami\n}"

// unstartable parses and starts its plugins, but cannot listen where another does.
func unstartable(body, taken string) string {
	host, port, _ := net.SplitHostPort(taken)
	return body + "\nexample.org:" + port + " {\nbind " + host + "\nwhoami\n}"
}

func TestReload(t *testing.T) {
	// A port without SO_REUSEPORT, that CoreDNS cannot have.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()

	for _, c := range []struct {
		name  string
		from  string
		steps []struct{ to, fails, calls string }
	}{
		{"same stanza", serverBlock("a"), []struct{ to, fails, calls string }{
			{serverBlock("a"), "", ""},
			{"# another comment\n" + serverBlock("a") + "\nexample.org:0 {\nbind 127.0.0.1\nwhoami\n}", "", ""},
			{serverBlock("a") + "\nexample.org:0 {\nbind 127.0.0.1\nkubelink\n}", "", ""},
		}},
		{"changed stanza", serverBlock("a"), []struct{ to, fails, calls string }{
			{serverBlock("b"), "", "update b"},
			{serverBlock("b"), "", ""},
			{serverBlock(""), "", "update "},
		}},
		{"bad Corefile", serverBlock("a"), []struct{ to, fails, calls string }{
			{".:0 {\nnonsense\n}", "Unknown directive 'nonsense'", ""},
			{".:0 {\nkubelink {\nmode vpn\n}\n}", "Corefile:3 - Error during parsing: mode vpn: not one of bridge, wireguard, none", ""},
			{serverBlock("a") + "\n.:0 {\nbind 127.0.0.1\nwhoami\n}", "already defined", ""},
			{serverBlock("b"), "", "update b"},
		}},
		{"removed and added", serverBlock("a"), []struct{ to, fails, calls string }{
			{withoutStanza, "", "stop"},
			{withoutStanza, "", ""},
			{serverBlock("a"), "", "new a, start"},
		}},
		{"changed, but cannot start", serverBlock("a"), []struct{ to, fails, calls string }{
			{unstartable(serverBlock("b"), taken.Addr().String()), "address already in use", "update b, update a"},
			{unstartable(serverBlock("a"), taken.Addr().String()), "address already in use", ""},
			{unstartable(withoutStanza, taken.Addr().String()), "address already in use", ""},
			{serverBlock("a"), "", ""},
		}},
		{"added, but cannot start", withoutStanza, []struct{ to, fails, calls string }{
			{unstartable(serverBlock("a"), taken.Addr().String()), "address already in use", "new a, start"},
			{withoutStanza, "", "stop"},
			{unstartable(serverBlock("a"), taken.Addr().String()), "address already in use", "new a, start"},
			{serverBlock("b"), "", "update b"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := useStateSource(t)
			instance, addr := startCoreDNS(t, c.from)
			if got := s.takeCalls(); got != "new a, start" && c.from != withoutStanza {
				t.Fatalf("first start: %s", got)
			}
			for i, step := range c.steps {
				next, err := (*instance).Restart(corefile(step.to))
				if (err != nil) != (step.fails != "") || err != nil && !strings.Contains(err.Error(), step.fails) {
					t.Fatalf("step %d: %v, want %q", i, err, step.fails)
				}
				*instance = next
				if got := s.takeCalls(); got != step.calls {
					t.Errorf("step %d: %q, want %q", i, got, step.calls)
				}
				if m := exchangeQuery(t, "udp", addr, "example.net.", dns.TypeA, 0); m.Rcode != dns.RcodeSuccess {
					t.Errorf("step %d: %v", i, m)
				}
				awaitServing(t, addr)
			}
			running := sharedLifecycle.broker.Load() != nil
			(*instance).ShutdownCallbacks()
			if got := s.takeCalls(); running && got != "stop" || !running && got != "" {
				t.Errorf("shutdown: %q", got)
			}
			(*instance).ShutdownCallbacks() // again, in the cleanup too
			if got := s.takeCalls(); got != "" {
				t.Errorf("second shutdown: %q", got)
			}
		})
	}
}

// TestUpdateFails: what a failed update left is repaired by the former configuration.
func TestUpdateFails(t *testing.T) {
	s := useStateSource(t)
	instance, _ := startCoreDNS(t, serverBlock("a"))
	s.takeCalls()
	s.refuse = errors.New("no such interface")
	const want = "plugin/kubelink: Corefile:3: no such interface"
	if _, err := (*instance).Restart(corefile(serverBlock("b"))); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v", err)
	}
	if got := s.takeCalls(); got != "update b, update a" {
		t.Errorf("%s", got)
	}
}

// The broker is told of which domains it will be asked.
func TestDomains(t *testing.T) {
	useStateSource(t)
	for _, c := range []struct{ body, want string }{
		{"a.example:0 {\nbind 127.0.0.1\nkubelink {\nmode none\n}\n}\n" +
			"B.example:0 10.0.0.0/8:0 {\nbind 127.0.0.1\nkubelink\n}\n" +
			"c.example:0 {\nbind 127.0.0.1\nwhoami\n}", "10.in-addr.arpa. a.example. b.example."},
		{"a.example:0 {\nbind 127.0.0.1\nkubelink\n}\n" + serverBlock("a"), ""},
	} {
		startCoreDNS(t, c.body)
		if got := strings.Join(sharedLifecycle.config.Domains, " "); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestStartFails(t *testing.T) {
	useStateSource(t)
	never := errors.New("never")
	sharedLifecycle.newBroker = func(broker.Config) (Broker, error) { return nil, never }
	if _, err := caddy.Start(corefile(serverBlock("a"))); err == nil || !strings.Contains(err.Error(), "never") {
		t.Errorf("%v", err)
	}
}

// TestBrokerIsABroker: the real one, as far as it gets without a system.
func TestBrokerIsABroker(t *testing.T) {
	b, err := sharedLifecycle.newBroker(defaultConfig())
	if err != nil || b.Table() != nil || b.Ready() == nil {
		t.Errorf("%v, ready %v", err, b.Ready())
	}
}

func TestTwoStanzas(t *testing.T) {
	s := useStateSource(t)
	const two = ".:0 {\nbind 127.0.0.1\nkubelink {\nmode none\n}\n}\nexample.org:0 {\nbind 127.0.0.1\nkubelink%s\n}"
	_, err := caddy.Start(corefile(strings.Replace(two, "%s", " {\nmode none\n}", 1)))
	const want = "kubelink has properties at Corefile:3 and at Corefile:9: keep them in one server block"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v", err)
	}
	startCoreDNS(t, strings.Replace(two, "%s", "", 1))
	if got := s.takeCalls(); got != "new , start" {
		t.Errorf("%s", got)
	}
}
