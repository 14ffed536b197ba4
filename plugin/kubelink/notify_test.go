package kubelink

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/records"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// A secondary hears of a zone when there is one, and when it has changed; not when only links have.
func TestNotify(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 100)
	secondary := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		heard <- fmt.Sprint(dns.OpcodeToString[r.Opcode], " ", r.Question[0].Name)
		w.WriteMsg(new(dns.Msg).SetReply(r))
	})}
	go secondary.ActivateAndServe()
	t.Cleanup(func() { secondary.Shutdown() })

	s := useStateSource(t)
	_, addr := startCoreDNS(t, fmt.Sprintf("kubelink:0 {\nbind 127.0.0.1\ntransfer svc.global.kubelink {\nto %s\n}\nkubelink\n}", pc.LocalAddr()))
	expect := func() {
		t.Helper()
		select {
		case what := <-heard:
			if what != "NOTIFY svc.global.kubelink." {
				t.Errorf("heard %s", what)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("heard nothing")
		}
	}
	owner := func(ip string) records.Owner {
		return records.Owner{Name: "web.svc.global.kubelink.", Addresses: []records.Address{{Addr: netip.MustParseAddr(ip)}}}
	}
	s.setGlobal(netip.AddrPort{}, zone.Status{}, owner("10.0.0.1"))
	expect()
	s.setSerial(8, netip.AddrPort{}, zone.Status{}, owner("10.0.0.2"))
	expect()
	s.setSerial(8, netip.AddrPort{}, zone.Status{}, owner("10.0.0.2"))
	s.setSerial(9, netip.AddrPort{}, zone.Status{}, owner("10.0.0.3"))
	expect()
	if m := exchangeQuery(t, "udp", addr, "web.svc.global.kubelink.", dns.TypeA, 0); len(m.Answer) != 1 {
		t.Error(m)
	}
	if len(heard) > 0 {
		t.Errorf("heard of what is the same: %s", <-heard)
	}
	s.table.Load().Close()
}
