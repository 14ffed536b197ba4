package eventlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// output collects what the process logs during a test.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// take returns the lines since the last call.
func (o *output) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := strings.Split(strings.TrimSuffix(o.text.String(), "\n"), "\n")
	if o.text.Len() == 0 {
		lines = nil
	}
	o.text.Reset()
	return lines
}

// capture has the process log as CoreDNS does, and collects that.
func capture(t *testing.T) *output {
	o := &output{}
	before, flags := log.Writer(), log.Flags()
	log.SetFlags(0)
	log.SetOutput(o)
	settings.limits = limiter{}
	t.Cleanup(func() {
		Configure(slog.LevelInfo, Text)
		log.SetOutput(before)
		log.SetFlags(flags)
	})
	return o
}

// secret hides itself where it is asked for text, and not from a package that looks at fields.
type secret struct{ Token string }

func (secret) String() string { return "hidden" }

// events are lines, and how they look.
var events = []struct {
	log        func(*slog.Logger)
	text, json string
}{
	{func(l *slog.Logger) {
		l.Info("link is up", "link", "two", "remote", netip.MustParseAddrPort("10.0.0.1:80"))
	},
		`[INFO] plugin/kubelink: link is up link=two remote=10.0.0.1:80`,
		`{"level":"INFO","msg":"link is up","plugin":"kubelink","link":"two","remote":"10.0.0.1:80"}`},
	{func(l *slog.Logger) {
		l.Warn("a\nb", "error", errors.New("two\nlines"), "delay", 1500*time.Millisecond)
	},
		`[WARNING] plugin/kubelink: "a\nb" error="two\nlines" delay=1.5s`,
		`{"level":"WARN","msg":"a\nb","plugin":"kubelink","error":"two\nlines","delay":"1.5s"}`},
	{func(l *slog.Logger) {
		l.With("mesh", "m").WithGroup("g").Error("broken", "n", 3, "names", []string{"x", "y"})
	},
		`[ERROR] plugin/kubelink: broken mesh=m g.n=3 g.names="[x y]"`,
		`{"level":"ERROR","msg":"broken","plugin":"kubelink","mesh":"m","g":{"n":3,"names":["x","y"]}}`},
	{func(l *slog.Logger) {
		l.Info("access", "api", secret{"s3cret"}, "in", struct{ API *secret }{&secret{"s3cret"}})
	},
		`[INFO] plugin/kubelink: access api=hidden in={API:hidden}`,
		`{"level":"INFO","msg":"access","plugin":"kubelink","api":"hidden","in":"{API:hidden}"}`},
	{func(l *slog.Logger) { l.Debug("seldom") }, "", ""},
	{func(*slog.Logger) { log.Print("[WARNING] plugin/forward: no answer: timeout") },
		`[WARNING] plugin/forward: no answer: timeout`,
		`{"level":"WARN","msg":"no answer: timeout","plugin":"forward"}`},
	{func(*slog.Logger) { log.Print(`[INFO] 10.0.0.1:53 - 1 "A IN web. udp"`) },
		`[INFO] 10.0.0.1:53 - 1 "A IN web. udp"`,
		`{"level":"INFO","msg":"10.0.0.1:53 - 1 \"A IN web. udp\""}`},
	{func(*slog.Logger) { log.Print("Reloading complete") }, "Reloading complete",
		`{"level":"INFO","msg":"Reloading complete"}`},
}

// Each event is one line, in both formats, and the lines of CoreDNS follow.
func TestFormats(t *testing.T) {
	o := capture(t)
	l := New("kubelink")
	for _, e := range events {
		for _, format := range []Format{Text, JSON} {
			settings.limits = limiter{}
			Configure(slog.LevelInfo, format)
			want := e.text
			if e.log(l); format == JSON {
				want = e.json
			}
			lines := o.take()
			if want == "" && len(lines) == 0 {
				continue
			}
			if len(lines) != 1 {
				t.Errorf("%d lines: %q", len(lines), lines)
				continue
			}
			if got := lines[0]; format == Text && got != want || format == JSON && !sameLine(t, got, want) {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		}
	}
}

// sameLine compares lines in JSON, which begin with the time.
func sameLine(t *testing.T, got, want string) bool {
	var line struct{ Time time.Time }
	if err := json.Unmarshal([]byte(got), &line); err != nil || time.Since(line.Time) > time.Minute {
		t.Errorf("%s: %v", got, err)
	}
	_, rest, _ := strings.Cut(got, ",")
	return "{"+rest == want
}

func TestLevel(t *testing.T) {
	o := capture(t)
	l := New("kubelink")
	for level, want := range map[slog.Level]int{slog.LevelDebug: 4, slog.LevelInfo: 3, slog.LevelWarn: 2, slog.LevelError: 1} {
		settings.limits = limiter{}
		Configure(level, Text)
		l.Debug("d")
		l.Info("i")
		l.Warn("w")
		l.Error("e")
		if lines := o.take(); len(lines) != want {
			t.Errorf("%s: %q", level, lines)
		}
	}
}

// A peer that flaps has one line a second at most for each cause. The last line is always there.
func TestFlappingPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := capture(t)
		l := New("kubelink")
		for n := range 100 {
			l.Warn("link is down", "link", "two", "reason", fmt.Sprint("attempt ", n))
			l.Warn("link is down", "link", "three", "reason", "another link")
			time.Sleep(45 * time.Millisecond)
		}
		time.Sleep(Interval)
		synctest.Wait()
		two, three, last := 0, 0, ""
		for _, line := range o.take() {
			if strings.Contains(line, "link=two") {
				two++
				last = line
			} else {
				three++
			}
		}
		if two < 5 || two > 6 || three != two { // in 4.5 s
			t.Errorf("%d lines of one link, %d of the other one", two, three)
		}
		if !strings.Contains(last, "attempt 99") || !strings.Contains(last, "omitted=") {
			t.Error(last)
		}
		time.Sleep(2 * Interval)
		l.Warn("connection refused", "reason", "name", "error", "a")
		l.Warn("connection refused", "reason", "certificate", "error", "b")
		if lines := o.take(); len(lines) != 2 {
			t.Errorf("different reasons: %q", lines)
		}
		l.Info("rare")
		l.Info("rare")
		Flush()
		if lines := o.take(); len(lines) != 2 {
			t.Errorf("%q", lines)
		}
	})
}

// Causes that are never the same do not fill memory, nor the disk.
func TestManyCauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := capture(t)
		l := New("kubelink")
		for n := range 3 * maxCauses {
			l.Info("connection", "from", n)
		}
		if lines := o.take(); len(lines) > maxCauses+1 {
			t.Errorf("%d lines", len(lines))
		}
		if n := len(settings.limits.causes); n > maxCauses+1 {
			t.Errorf("%d causes", n)
		}
		time.Sleep(2 * Interval)
		l.Info("connection", "from", "later")
		if lines := o.take(); !strings.HasSuffix(lines[len(lines)-1], "from=later") || len(settings.limits.causes) > 2 {
			t.Errorf("%q, %d causes", lines, len(settings.limits.causes))
		}
	})
}

// Lines come while the format changes.
func TestConcurrentLines(t *testing.T) {
	o := capture(t)
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := range 100 {
				New("kubelink").Info("line", "from", n, "number", i)
			}
		})
	}
	for range 20 {
		Configure(slog.LevelInfo, JSON)
		Configure(slog.LevelInfo, Text)
	}
	wg.Wait()
	for _, line := range o.take() {
		if !strings.HasPrefix(line, "[INFO] plugin/kubelink: line") && !json.Valid([]byte(line)) {
			t.Errorf("%q", line)
		}
	}
}
