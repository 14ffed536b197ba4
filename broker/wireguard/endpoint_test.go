package wireguard

// Which address a device is told, and when.

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

func TestChooseEndpoint(t *testing.T) {
	const a, b, c = "10.0.0.1:8777", "10.0.0.2:8777", "[fd00::1]:8777"
	const roamed = "10.9.9.9:4444"
	const inside, alsoInside = "100.64.16.1:8777", "100.64.16.2:8777" // behind a link
	// happening is what is so at a time, and what the device is told then.
	type happening struct {
		after     time.Duration
		addresses []string // of the name since now; nil: as before
		failed    bool     // a look-up failed
		current   string   // what the device has; empty: what it was told, "-": nothing
		fresh, up bool
		want      string
	}
	s := time.Second
	for _, test := range []struct {
		name   string
		noWay  []string // there is no route to these
		events []happening
	}{
		{"a name that nobody knows", nil, []happening{{failed: true}, {after: s, failed: true}}},
		{"a name that is found", nil, []happening{{}, {after: s, addresses: []string{a}, want: a}, {after: s}}},
		{"a failed look-up changes nothing", nil,
			[]happening{{addresses: []string{a}, want: a}, {after: s, failed: true, fresh: true, up: true},
				{after: 20 * s, failed: true}}},
		{"one address is not told again", nil,
			[]happening{{addresses: []string{a}, want: a}, {after: 20 * s}, {after: 20 * s}}},
		{"each address has its turn while there is no handshake", nil,
			[]happening{{addresses: []string{a, b, c}, want: a}, {after: s}, {after: 12 * s, want: b}, {after: 11 * s},
				{after: s, want: c}, {after: 12 * s, want: a}}},
		{"an address without route waits", []string{a},
			[]happening{{addresses: []string{a, b}, want: b}, {after: 12 * s}}},
		{"none has a route", []string{a, b}, []happening{{addresses: []string{a, b}, want: a}}},
		{"an address behind a link is never told", nil,
			[]happening{{addresses: []string{inside}}, {after: 12 * s}, {addresses: []string{inside, a}, want: a},
				{after: 12 * s}, {after: s, addresses: []string{inside, alsoInside}}}},
		{"rather one without a route", []string{a}, []happening{{addresses: []string{inside, a}, want: a}}},
		{"a name that moves behind a link, and back out", nil,
			[]happening{{addresses: []string{a}, want: a}, {after: s, addresses: []string{inside}, fresh: true, up: true},
				{after: s, fresh: true, up: true}, {after: 20 * s}, {addresses: []string{b}, fresh: true, up: true, want: b}}},
		{"the address of a link that is Up stays", nil,
			[]happening{{addresses: []string{a, b}, want: a}, {after: 20 * s, fresh: true, up: true}}},
		{"a name that moves is followed at once", nil,
			[]happening{{addresses: []string{a}, want: a}, {after: s, addresses: []string{b}, fresh: true, up: true, want: b}}},
		{"another order is no move", nil,
			[]happening{{addresses: []string{a, b}, want: a}, {after: s, addresses: []string{b, a}, fresh: true, up: true}}},
		{"a peer that moved stays there", nil,
			[]happening{{addresses: []string{a}, want: a}, {after: 20 * s, current: roamed, fresh: true, up: true}}},
		{"also while it is silent and there was a handshake lately", nil,
			[]happening{{addresses: []string{a}, want: a}, {after: 20 * s, current: roamed, fresh: true}}},
		{"without handshake it is looked for where it was", nil,
			[]happening{{addresses: []string{a}, want: a}, {after: 20 * s, current: roamed, want: a}}},
		{"a packet from the address that the name has left", nil,
			[]happening{{addresses: []string{a}, want: a}, {after: s, addresses: []string{b}, fresh: true, up: true, want: b},
				{current: a, fresh: true, up: true, want: b}, {after: 20 * s, current: a, fresh: true, up: true}}},
		{"a peer that moved, and then its name does", nil,
			[]happening{{addresses: []string{a}, want: a}, {after: s, current: roamed, fresh: true, up: true},
				{after: s, current: roamed, addresses: []string{b}, fresh: true, up: true, want: b}}},
		{"its name follows it", nil,
			[]happening{{addresses: []string{a}, want: a}, {after: s, current: b, fresh: true, up: true},
				{after: s, current: b, addresses: []string{b}, fresh: true, up: true}}},
		{"a peer of an earlier process stays where it is", nil,
			[]happening{{addresses: []string{a}, current: roamed, fresh: true, up: true}}},
		{"until its name moves", nil,
			[]happening{{addresses: []string{a}, current: roamed, fresh: true, up: true},
				{after: s, addresses: []string{b}, current: roamed, fresh: true, up: true, want: b}}},
		{"a dead peer of an earlier process", nil, []happening{{addresses: []string{a}, current: roamed, want: a}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := endpoint{}
			e.setHost("peer.example.org", 8777)
			now, has := time.Unix(1e9, 0), netip.AddrPort{}
			for i, h := range test.events {
				now = now.Add(h.after)
				var found []netip.Addr
				for _, x := range h.addresses {
					found = append(found, netip.MustParseAddrPort(x).Addr())
				}
				if found != nil {
					e.setAddresses(found, nil)
				} else if h.failed {
					e.setAddresses(nil, errors.New("no such host"))
				}
				if h.current != "" {
					has = netip.MustParseAddrPort(h.current)
				}
				got := e.choose(circumstances{current: has, fresh: h.fresh, up: h.up, now: now, retry: 12 * s,
					blocked: func(x netip.Addr) error {
						if netip.MustParsePrefix("100.64.0.0/16").Contains(x) {
							return fmt.Errorf("%s: %w", x, link.ErrTunnel)
						}
						for _, n := range test.noWay {
							if netip.MustParseAddrPort(n).Addr() == x {
								return errors.New("no route")
							}
						}
						return nil
					}})
				if want := h.want; want == "" && got.IsValid() || want != "" && got.String() != want {
					t.Fatalf("event %d: told %s, want %q", i, got, want)
				}
				if got.IsValid() {
					has = got
				}
			}
		})
	}
}

// Another endpoint in the link is told at once, whatever the peer does.
func TestChangedHost(t *testing.T) {
	e := endpoint{}
	e.setHost("10.0.0.1", 8777)
	now := circumstances{now: time.Unix(1e9, 0), retry: time.Minute, blocked: func(netip.Addr) error { return nil }}
	if got := e.choose(now); got.String() != "10.0.0.1:8777" {
		t.Fatalf("told %s", got)
	}
	if e.setHost("10.0.0.1", 8777) {
		t.Error("the same is a change")
	}
	now.current, now.fresh, now.up = netip.MustParseAddrPort("10.0.0.1:8777"), true, true
	for _, next := range []struct {
		host string
		port uint16
		want string
	}{{"10.0.0.2", 8777, "10.0.0.2:8777"}, {"10.0.0.2", 1, "10.0.0.2:1"}, {"fd00::1", 1, "[fd00::1]:1"}} {
		if !e.setHost(next.host, next.port) {
			t.Errorf("%+v is no change", next)
		}
		if got := e.choose(now); got.String() != next.want {
			t.Errorf("told %s, want %s", got, next.want)
		}
		now.current = e.told
	}
	e.setHost("", 0) // Inbound: the peer goes on where it is
	if got := e.choose(now); got.IsValid() {
		t.Errorf("told %s", got)
	}
}
