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

// block is a Corefile whose stanza names the cluster, or has no properties.
func block(cluster string) string {
	if cluster == "" {
		return ".:0 {\nbind 127.0.0.1\nkubelink\nwhoami\n}"
	}
	return ".:0 {\nbind 127.0.0.1\nkubelink {\ncluster-name " + cluster + "\nlink-address 192.168.0.11/24\n}\nwhoami\n}"
}

const without = ".:0 {\nbind 127.0.0.1\nwhoami\n}"

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
		{"same stanza", block("a"), []struct{ to, fails, calls string }{
			{block("a"), "", ""},
			{"# another comment\n" + block("a") + "\nexample.org:0 {\nbind 127.0.0.1\nwhoami\n}", "", ""},
			{block("a") + "\nexample.org:0 {\nbind 127.0.0.1\nkubelink\n}", "", ""},
		}},
		{"changed stanza", block("a"), []struct{ to, fails, calls string }{
			{block("b"), "", "update b"},
			{block("b"), "", ""},
			{block(""), "", "update "},
		}},
		{"bad Corefile", block("a"), []struct{ to, fails, calls string }{
			{".:0 {\nnonsense\n}", "Unknown directive 'nonsense'", ""},
			{".:0 {\nkubelink {\nmode vpn\n}\n}", "Corefile:3 - Error during parsing: mode vpn: not one of bridge, none", ""},
			{block("a") + "\n.:0 {\nbind 127.0.0.1\nwhoami\n}", "already defined", ""},
			{block("b"), "", "update b"},
		}},
		{"removed and added", block("a"), []struct{ to, fails, calls string }{
			{without, "", "stop"},
			{without, "", ""},
			{block("a"), "", "new a, start"},
		}},
		{"changed, but cannot start", block("a"), []struct{ to, fails, calls string }{
			{unstartable(block("b"), taken.Addr().String()), "address already in use", "update b, update a"},
			{unstartable(block("a"), taken.Addr().String()), "address already in use", ""},
			{unstartable(without, taken.Addr().String()), "address already in use", ""},
			{block("a"), "", ""},
		}},
		{"added, but cannot start", without, []struct{ to, fails, calls string }{
			{unstartable(block("a"), taken.Addr().String()), "address already in use", "new a, start"},
			{without, "", "stop"},
			{unstartable(block("a"), taken.Addr().String()), "address already in use", "new a, start"},
			{block("b"), "", "update b"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := useStateSource(t)
			instance, addr := start(t, c.from)
			if got := s.took(); got != "new a, start" && c.from != without {
				t.Fatalf("first start: %s", got)
			}
			for i, step := range c.steps {
				next, err := (*instance).Restart(corefile(step.to))
				if (err != nil) != (step.fails != "") || err != nil && !strings.Contains(err.Error(), step.fails) {
					t.Fatalf("step %d: %v, want %q", i, err, step.fails)
				}
				*instance = next
				if got := s.took(); got != step.calls {
					t.Errorf("step %d: %q, want %q", i, got, step.calls)
				}
				if m := ask(t, "udp", addr, "example.net.", dns.TypeA, 0); m.Rcode != dns.RcodeSuccess {
					t.Errorf("step %d: %v", i, m)
				}
				served(t, addr)
			}
			running := shared.broker.Load() != nil
			(*instance).ShutdownCallbacks()
			if got := s.took(); running && got != "stop" || !running && got != "" {
				t.Errorf("shutdown: %q", got)
			}
			(*instance).ShutdownCallbacks() // again, in the cleanup too
			if got := s.took(); got != "" {
				t.Errorf("second shutdown: %q", got)
			}
		})
	}
}

// TestUpdateFails: what a failed update left is repaired by the former configuration.
func TestUpdateFails(t *testing.T) {
	s := useStateSource(t)
	instance, _ := start(t, block("a"))
	s.took()
	s.refuse = errors.New("no such interface")
	if _, err := (*instance).Restart(corefile(block("b"))); err == nil || !strings.Contains(err.Error(), "plugin/kubelink: Corefile:3: no such interface") {
		t.Errorf("%v", err)
	}
	if got := s.took(); got != "update b, update a" {
		t.Errorf("%s", got)
	}
}

// The broker is told of which domains it will be asked.
func TestDomains(t *testing.T) {
	useStateSource(t)
	for _, c := range []struct{ body, want string }{
		{"a.example:0 {\nbind 127.0.0.1\nkubelink {\nmode none\n}\n}\nB.example:0 10.0.0.0/8:0 {\nbind 127.0.0.1\nkubelink\n}\nc.example:0 {\nbind 127.0.0.1\nwhoami\n}", "10.in-addr.arpa. a.example. b.example."},
		{"a.example:0 {\nbind 127.0.0.1\nkubelink\n}\n" + block("a"), ""},
	} {
		start(t, c.body)
		if got := strings.Join(shared.config.Domains, " "); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestStartFails(t *testing.T) {
	useStateSource(t)
	never := errors.New("never")
	shared.newBroker = func(broker.Config) (Broker, error) { return nil, never }
	if _, err := caddy.Start(corefile(block("a"))); err == nil || !strings.Contains(err.Error(), "never") {
		t.Errorf("%v", err)
	}
}

// TestBrokerIsABroker: the real one, as far as it gets without a system.
func TestBrokerIsABroker(t *testing.T) {
	b, err := shared.newBroker(defaults())
	if err != nil || b.Table() != nil || b.Ready() == nil {
		t.Errorf("%v, ready %v", err, b.Ready())
	}
}

func TestTwoStanzas(t *testing.T) {
	s := useStateSource(t)
	const two = ".:0 {\nbind 127.0.0.1\nkubelink {\nmode none\n}\n}\nexample.org:0 {\nbind 127.0.0.1\nkubelink%s\n}"
	_, err := caddy.Start(corefile(strings.Replace(two, "%s", " {\nmode none\n}", 1)))
	if err == nil || !strings.Contains(err.Error(), "kubelink has properties at Corefile:3 and at Corefile:9: keep them in one server block") {
		t.Errorf("%v", err)
	}
	start(t, strings.Replace(two, "%s", "", 1))
	if got := s.took(); got != "new , start" {
		t.Errorf("%s", got)
	}
}
