package zone

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestStatusForNames(t *testing.T) {
	since := time.Date(2026, 11, 24, 7, 0, 0, 0, time.UTC)
	status := Status{Usable: true, State: "Up", Since: since, RTT: 3 * time.Millisecond}
	for _, c := range []struct {
		what   string
		change func(*Status)
		same   bool
	}{
		{"nothing", func(*Status) {}, true},
		{"time zone", func(s *Status) { s.Since = s.Since.In(time.FixedZone("", 3600)) }, true},
		{"RTT, about the same", func(s *Status) { s.RTT += s.RTT / 10 }, true},
		{"RTT, four times", func(s *Status) { s.RTT *= 4 }, false},
		{"RTT, not known", func(s *Status) { s.RTT = 0 }, false},
		{"usable", func(s *Status) { s.Usable = false }, false},
		{"state", func(s *Status) { s.State = "Down" }, false},
		{"reason", func(s *Status) { s.Reason = "closed" }, false},
		{"since", func(s *Status) { s.Since = s.Since.Add(time.Second) }, false},
	} {
		changed := status
		c.change(&changed)
		if status.sameForNames(changed) != c.same || changed.sameForNames(status) != c.same {
			t.Errorf("%s: same is not %v", c.what, c.same)
		}
	}
}

func TestDescribeState(t *testing.T) {
	since := time.Date(2026, 11, 24, 8, 0, 0, 0, time.FixedZone("", 3600))
	for _, c := range []struct {
		status Status
		want   []string
	}{
		{Status{State: "Idle"}, []string{"state=Idle"}},
		{Status{Usable: true, State: "Up", Since: since, RTT: 1500 * time.Microsecond},
			[]string{"state=Up", "since=2026-11-24T07:00:00Z", "rtt=1.50ms"}},
		{Status{State: "Down", Reason: "dial:\nrefused", RTT: time.Second}, []string{"state=Down", "reason=dial:; refused"}},
	} {
		if got := c.status.describeState(); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.status, got, c.want)
		}
	}
}

func TestPath(t *testing.T) {
	for _, c := range []struct {
		path     Path
		usable   bool
		distance int64
		problem  string
	}{
		{localPath, true, -1, ""},
		{Path{Link: "k1", Status: Status{Usable: true, State: "Up", RTT: 5}}, true, 5, ""},
		{Path{Link: "k1", Status: Status{Usable: true, State: "Up"}}, true, math.MaxInt64, ""},
		{Path{Link: "k1", Status: Status{State: "Down", RTT: 5}}, false, math.MaxInt64, "link k1 is Down"},
		{Path{Link: "k1", Status: Status{State: "Down", Reason: "closed"}}, false, math.MaxInt64, "link k1 is Down: closed"},
	} {
		if c.path.isUsable() != c.usable || c.path.sortDistance() != c.distance {
			t.Errorf("%+v: usable %v, distance %d", c.path, c.path.isUsable(), c.path.sortDistance())
		}
		if c.problem != "" && c.path.describeProblem() != c.problem {
			t.Errorf("%+v: %q", c.path, c.path.describeProblem())
		}
	}
}
