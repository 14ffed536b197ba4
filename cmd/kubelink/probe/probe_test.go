package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/echo"
)

// serveDNS serves names: the address of web, why slow is not there, and no other ones.
func serveDNS(t *testing.T) (at string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		answer := new(dns.Msg).SetReply(q)
		name, kind := q.Question[0].Name, q.Question[0].Qtype
		switch {
		case name == "web.c2.mesh." && kind == dns.TypeA:
			rr, _ := dns.NewRR(name + " 5 IN A 127.0.0.1")
			answer.Answer = []dns.RR{rr}
		case name == "six.c2.mesh." && kind == dns.TypeAAAA:
			rr, _ := dns.NewRR(name + " 5 IN AAAA ::1")
			answer.Answer = []dns.RR{rr}
		case strings.HasPrefix(name, "_state.") && kind == dns.TypeTXT:
			rr, _ := dns.NewRR(name + ` 5 IN TXT "state=Up"`)
			answer.Answer = []dns.RR{rr}
		case name == "slow.c2.mesh.":
			answer.Rcode = dns.RcodeServerFailure
			answer.SetEdns0(bufferSize, false).IsEdns0().Option = []dns.EDNS0{
				&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNoReachableAuthority, ExtraText: "link c2 is Down"}}
		case name != "six.c2.mesh.":
			answer.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(answer)
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })
	return conn.LocalAddr().String()
}

// A pod tries all that a link has. Each check has a result, and says why it has failed.
func TestProbe(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	open := netip.MustParseAddrPort(listener.Addr().String())
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	shut := netip.MustParseAddrPort(closed.Addr().String()).Port()
	server := serveDNS(t)
	for _, c := range []struct {
		name string
		link Link
		want map[string]string // problems, by check
	}{
		{"all", Link{Zone: "c2.mesh", Service: "web.c2.mesh", Port: open.Port(), Ping: open.Addr()},
			map[string]string{ClusterDNS: "", KubelinkDNS: "", StateName: "", Connect: "", Ping: ""}},
		{"IPv6, refused", Link{Zone: "c2.mesh", Service: "six.c2.mesh", Port: shut},
			map[string]string{ClusterDNS: "", KubelinkDNS: "", StateName: "", Connect: "[::1]"}},
		{"refused", Link{Address: open.Addr(), Port: shut}, map[string]string{Connect: "connection refused"}},
		{"no name, but an address", Link{Zone: "c2.mesh", Service: "none.c2.mesh", Address: open.Addr(), Port: open.Port()},
			map[string]string{ClusterDNS: "NXDOMAIN", KubelinkDNS: "NXDOMAIN", StateName: "", Connect: ""}},
		{"no name", Link{Zone: "c2.mesh", Service: "slow.c2.mesh", Port: open.Port()},
			map[string]string{ClusterDNS: "SERVFAIL for A: link c2 is Down", KubelinkDNS: server, StateName: ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			c.link.Name = "c2"
			p := &prober{request: &Request{DNS: server, Links: []Link{c.link}}, servers: []string{server},
				out: json.NewEncoder(&out)}
			if err := p.tryLinks(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := map[string]Result{}
			for in := json.NewDecoder(&out); in.More(); {
				var r Result
				if err := in.Decode(&r); err != nil {
					t.Fatal(err)
				}
				got[r.Check] = r
			}
			if len(got) != len(c.want) {
				t.Errorf("%+v", got)
			}
			for check, problem := range c.want {
				if r := got[check]; r.Link != "c2" || (problem == "") != (r.Problem == "") ||
					!strings.Contains(r.Problem, problem) ||
					r.Missing != strings.Contains(r.Problem, "NXDOMAIN") {
					t.Errorf("%s: %+v, want %q", check, r, problem)
				}
			}
		})
	}
}

// A link that drops packets is not good, but for those of a way that is new.
func TestPings(t *testing.T) {
	for name, c := range map[string]struct {
		received []int // of each series
		want     string
	}{
		"good": {[]int{4}, ""}, "new": {[]int{3, 4}, ""}, "silent": {[]int{0, 0}, "no answer within"},
		"drops": {[]int{3, 1, 2}, "6 of 12 packets got lost"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		err := awaitPings(ctx, func() (echo.Result, error) {
			if n++; n == len(c.received) && c.want != "" {
				cancel()
			}
			return echo.Result{Sent: series, Received: c.received[n-1]}, nil
		})
		if cancel(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) ||
			n != len(c.received) {
			t.Errorf("%s: %v after %d series", name, err, n)
		}
	}
}

// A request that is none is refused.
func TestBadRequest(t *testing.T) {
	for _, args := range [][]string{nil, {"{}", "{}"}, {"hello"}} {
		if err := Run(t.Context(), args, &bytes.Buffer{}); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}
