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

// A secondary gets a NOTIFY when a zone is there and when the zone has changed, not when only links have changed.
func TestNotify(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan string, 100)
	secondary := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		received <- fmt.Sprint(dns.OpcodeToString[r.Opcode], " ", r.Question[0].Name)
		w.WriteMsg(new(dns.Msg).SetReply(r))
	})}
	go secondary.ActivateAndServe()
	t.Cleanup(func() { secondary.Shutdown() })

	s := useStateSource(t)
	_, addr := startCoreDNS(t, fmt.Sprintf("kubelink:0 {\nbind 127.0.0.1\n"+
		"transfer svc.global.kubelink {\nto %s\n}\nkubelink\n}", pc.LocalAddr()))
	expect := func() {
		t.Helper()
		select {
		case what := <-received:
			if what != "NOTIFY svc.global.kubelink." {
				t.Errorf("received %s", what)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("received nothing")
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
	if len(received) > 0 {
		t.Errorf("received a NOTIFY for an unchanged zone: %s", <-received)
	}
	s.table.Load().Close()
}

// NOTIFYs go out for a few zones at once, and a shutdown does not wait for a secondary that does not answer.
func TestNotifyChanges(t *testing.T) {
	serials, notified := map[string]uint32{}, map[string]uint32{}
	for i := range uint32(3 * maxNotifies) {
		serials[fmt.Sprint(i)] = i
	}
	notified["0"], notified["1"] = 0, 7
	begun, answer := make(chan string, len(serials)), make(chan struct{})
	send := func(zone string) error {
		begun <- zone
		<-answer
		return nil
	}
	stop, sent := make(chan struct{}), make(chan bool)
	start := func() { go func() { sent <- notifyChanges(stop, send, notified, serials) }() }

	start()
	for range maxNotifies {
		<-begun
	}
	if len(begun) > 0 {
		t.Errorf("more than %d at once", maxNotifies)
	}
	close(answer)
	if !<-sent {
		t.Error("not all are sent")
	}
	if n := maxNotifies + len(begun); n != len(serials)-1 {
		t.Errorf("%d zones notified, want %d: all but the unchanged one", n, len(serials)-1)
	}
	for len(begun) > 0 {
		<-begun
	}

	answer = make(chan struct{})
	defer func() { close(answer) }()
	start()
	for range maxNotifies {
		<-begun
	}
	close(stop)
	if <-sent {
		t.Error("all are sent, though no secondary has answered")
	}
}
