package eventlog

// The lines of CoreDNS, as its package plugin/pkg/log writes them: "[WARNING] plugin/forward: text".

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// coreDNSLevels are the names of levels in CoreDNS. FATAL is the last line of a process.
var coreDNSLevels = []struct {
	name  string
	level slog.Level
}{{"DEBUG", slog.LevelDebug}, {"INFO", slog.LevelInfo}, {"WARNING", slog.LevelWarn}, {"ERROR", slog.LevelError},
	{"FATAL", slog.LevelError}}

func coreDNSLevel(level slog.Level) string {
	name := coreDNSLevels[0].name
	for _, l := range coreDNSLevels[:4] {
		if level >= l.level {
			name = l.name
		}
	}
	return name
}

// jsonWriter takes the lines that CoreDNS logs, and writes them as JSON.
type jsonWriter struct {
	mu sync.Mutex // held over a line
	to io.Writer
}

func (w *jsonWriter) writeLine(line []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _ = w.to.Write(line) // a log that cannot be written is nothing to log
}

// Write implements io.Writer. A call of the package log has one line, or one that the caller has broken.
func (w *jsonWriter) Write(text []byte) (int, error) {
	level, plugin, message := parseLine(string(text))
	var line bytes.Buffer
	to := slog.NewJSONHandler(&line, &slog.HandlerOptions{Level: slog.LevelDebug})
	r := slog.NewRecord(time.Now(), level, message, 0)
	if plugin != "" {
		r.AddAttrs(slog.String(pluginKey, plugin))
	}
	_ = to.Handle(context.Background(), r)
	w.writeLine(line.Bytes())
	return len(text), nil
}

// parseLine finds level, plugin and text of a line.
func parseLine(line string) (level slog.Level, plugin, message string) {
	message = strings.TrimSuffix(line, "\n")
	if !strings.HasPrefix(message, "[") {
		return slog.LevelInfo, "", message
	}
	for _, l := range coreDNSLevels {
		rest, ok := strings.CutPrefix(message, "["+l.name+"] ")
		if !ok {
			continue
		}
		if tail, ok := strings.CutPrefix(rest, "plugin/"); ok {
			if name, text, ok := strings.Cut(tail, ": "); ok && !strings.Contains(name, " ") {
				return l.level, name, text
			}
		}
		return l.level, "", rest
	}
	return slog.LevelInfo, "", message
}
