package router

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	crlog "sigs.k8s.io/controller-runtime/pkg/log"
)

// A message that comes again and again is logged at intervals, with the number of lines between. Other messages are not
// held up.
func TestLimitedLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		log := limitLog(slog.New(slog.NewTextHandler(&out, nil)))
		for range 1000 {
			log.With("node", "n").Info("routes are set")
		}
		log.Warn("another message")
		if n := strings.Count(out.String(), "routes are set"); n != lineBurst || !strings.Contains(out.String(), "another") {
			t.Errorf("%d lines", n)
		}
		out.Reset()
		for range 100 {
			time.Sleep(lineInterval / 10)
			log.WithGroup("g").Info("routes are set", "a", 1)
		}
		if n := strings.Count(out.String(), "routes are set"); n < 9 || n > 11 ||
			!strings.Contains(out.String(), fmt.Sprintf("lines left out\"=%d", 1000-lineBurst+9)) {
			t.Errorf("%d lines: %s", n, out.String())
		}
		out.Reset()
		for i := range 2 * maxMessages { // messages that are never the same do not fill memory
			log.Info(fmt.Sprint("message ", i))
		}
		if n := strings.Count(out.String(), "message"); n != maxMessages-2+lineBurst {
			t.Errorf("%d lines of many messages", n)
		}
	})
}

// A router that starts gives controller-runtime its log: also one that soon ends, for a bad flag.
func TestLibraryLog(t *testing.T) {
	var text bytes.Buffer
	err := Run(t.Context(), Config{Log: slog.New(slog.NewTextHandler(&text, nil)), Datafile: t.TempDir()})
	if bad := (&FlagError{}); !errors.As(err, &bad) {
		t.Fatalf("a folder as datafile: %v", err)
	}
	crlog.Log.Info("the library starts")
	crlog.Log.Error(errors.New("no such luck"), "the library fails")
	if got := text.String(); !strings.Contains(got, "the library fails") || strings.Contains(got, "starts") {
		t.Errorf("log:\n%s", got)
	}
}
