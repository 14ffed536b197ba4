package bridge

// The state of a link, and what its peer announces.

import (
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

func TestSilentPeer(t *testing.T) {
	i := newInternet(t)
	i.freezes, i.silence = true, 200*time.Millisecond
	a, b := i.pair()
	close(i.frozen)
	const lost = "connection lost: no answer for 200ms"
	a.await("detection", func() bool { // by one end, whose reason changes again; the other may see that one close
		return a.hadReason(lost) || b.hadReason(lost)
	})
	a.awaitState("b", link.Down)
	b.awaitState("a", link.Down)
	i.mu.Lock()
	i.frozen = make(chan struct{})
	i.mu.Unlock()
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	a.reach(b, "192.168.0.11", "192.168.0.12")
}

func TestUpdatedAnnouncement(t *testing.T) {
	_, a, b := newPair(t)
	config := a.config
	config.DNS = &link.DNSInfo{ClusterDomain: "cluster.local", Address: netip.MustParseAddr("100.64.1.10")}
	config.API = &link.APIInfo{Token: "token", CACert: []byte("ca")}
	if err := a.Configure(config.Settings); err != nil {
		t.Fatal(err)
	}
	b.await("announcement", func() bool {
		s := b.status("a").Announced
		return s.DNS != nil && *s.DNS == *config.DNS && s.API != nil && s.API.Token == "token"
	})
	config.API = &link.APIInfo{Token: "token", CACert: make([]byte, 20000)}
	if a.Configure(config.Settings) == nil {
		t.Error("hello is too large")
	}
}

// Announcements that change all the time take effect now and then, with the latest one.
func TestFrequentAnnouncements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changes := 0
		s := &shared{start: time.Now(), changed: newSignal(), ctx: t.Context(),
			timing: &timing{intervals: intervals{announceInterval: 3 * time.Second}}}
		s.config.Store(&Config{Changed: func() { changes++ }})
		go s.reportChanges()
		p := &peer{shared: s, ctx: t.Context()}
		say := func(port uint16) (news bool) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.receiveAnnouncement(&link.Announcement{AdvertisedPort: port})
		}
		expectPort := func(want uint16, wantChanges int) {
			t.Helper()
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			if got := p.received.Announced.AdvertisedPort; got != want || changes != wantChanges {
				t.Errorf("port %d, want %d; woken %d times, want %d", got, want, changes, wantChanges)
			}
		}
		if !say(1) {
			t.Error("the first is news")
		}
		for range 100 { // it says the same as before again and again
			if say(2) || say(1) {
				t.Error("announced at once")
			}
		}
		say(3)
		expectPort(1, 0)
		time.Sleep(3 * time.Second)
		expectPort(3, 1)
		if say(3) {
			t.Error("the same is no news")
		}
		say(4)
		say(3)
		time.Sleep(4 * time.Second)
		expectPort(3, 1)
		if !say(5) {
			t.Error("announced late, though it was quiet")
		}
		say(6)
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		time.Sleep(4 * time.Second)
		expectPort(5, 1)
	})
}

// What is announced again, and is the same, is no change.
func TestSameAnnouncement(t *testing.T) {
	_, session := newTestSession(t)
	calls := 0
	s := &shared{start: time.Now(), log: quiet, changed: newSignal(), ctx: t.Context()} // nothing else takes its signals
	s.timing = session.peer.timing
	s.config.Store(session.peer.config.Load())
	p := newPeer(s, session.peer.router, session.peer.iface, &session.peer.Peer)
	defer p.close()
	h := p.ownHello()
	h.Address = p.Addresses.First()
	h.API, h.DNS = &link.APIInfo{Token: "token", CACert: []byte("ca")},
		&link.DNSInfo{ClusterDomain: "c", Address: netip.MustParseAddr("100.64.2.10")}
	payload, err := h.AppendPayload(nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := p.receiveHello(payload); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.changed:
			calls++
		default:
		}
	}
	if calls != 1 {
		t.Errorf("%d changes", calls)
	}
}

func TestNoSecrets(t *testing.T) {
	api := &link.APIInfo{Token: "s3cret", CACert: nil}
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "api", api, "announced", link.Announcement{API: api})
	io.WriteString(&b, link.Status{Announced: &link.Announcement{API: api}}.Reason)
	if strings.Contains(b.String(), "s3cret") {
		t.Error(b.String())
	}
}
