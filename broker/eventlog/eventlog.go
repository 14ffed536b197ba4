// Package eventlog is the log of the process: one line for each event, as text or as JSON. What happens again and again
// is logged once in a second.
//
// Text has the form of CoreDNS, and goes where its lines go. With JSON, the lines of CoreDNS and of its other plugins
// become JSON, too.
package eventlog

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
)

// Format is how a line is written.
type Format string

// The formats.
const (
	Text Format = "text" // [INFO] plugin/kubelink: link is up link=kubelink2
	JSON Format = "json" // {"time":"2026-11-27T07:00:00Z","level":"INFO","msg":"link is up","plugin":"kubelink","link":"kubelink2"}
)

// Interval is between two lines about one cause.
const Interval = time.Second

// pluginKey is the attribute that says which plugin of CoreDNS a line is of.
const pluginKey = "plugin"

// settings are those of the process.
var settings struct {
	level  slog.LevelVar // of lines of New; the ones of CoreDNS are always written
	asJSON atomic.Pointer[jsonWriter]
	limits limiter
}

// New returns a logger of a plugin of CoreDNS. Configure changes how it writes.
func New(plugin string) *slog.Logger {
	return slog.New(&handler{}).With(pluginKey, plugin)
}

// Configure sets how the whole process logs from now on: the lowest level of lines, and their format; empty: Text.
func Configure(level slog.Level, format Format) {
	settings.level.Set(level)
	switch w := settings.asJSON.Load(); {
	case format == JSON && w == nil:
		w = &jsonWriter{to: log.Writer()}
		settings.asJSON.Store(w)
		log.SetFlags(0)
		log.SetOutput(w)
	case format != JSON && w != nil:
		log.SetOutput(w.to)
		settings.asJSON.Store(nil)
	}
}

// Flush writes the lines that wait for their time. A process calls it at its end.
func Flush() { settings.limits.flush() }

// handler implements slog.Handler.
type handler struct {
	scope []func(slog.Handler) slog.Handler // WithAttrs and WithGroup, in their order
	cause string                            // of the attributes in scope
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= settings.level.Level()
}

// Handle implements slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	r = r.Clone() // the line may have to wait
	settings.limits.pass(h.causeOf(r), time.Now(), func(omitted int) {
		if omitted > 0 {
			r.AddAttrs(slog.Int("omitted", omitted))
		}
		h.write(r)
	})
	return nil
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	cause := h.cause
	for _, a := range attrs {
		cause += causePart(a)
	}
	return h.with(cause, func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return h.with(h.cause, func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h *handler) with(cause string, more func(slog.Handler) slog.Handler) *handler {
	return &handler{scope: append(h.scope[:len(h.scope):len(h.scope)], more), cause: cause}
}

// causeOf is what a line is about: its message and attributes, without those that differ from one time to the next. Why
// a link is down is one of them; else a reason is a word.
func (h *handler) causeOf(r slog.Record) string {
	cause, reason, ofLink := r.Level.String()+" "+r.Message+h.cause, "", false
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "reason":
			reason = " " + a.Value.String()
			return true
		case "link":
			ofLink = true
		}
		cause += causePart(a)
		return true
	})
	if !ofLink {
		cause += reason
	}
	return cause
}

func causePart(a slog.Attr) string {
	switch a.Key {
	case "error", "remote", "delay":
		return ""
	}
	return " " + a.Key + "=" + a.Value.String()
}

// write writes a line.
func (h *handler) write(r slog.Record) {
	var line bytes.Buffer
	if w := settings.asJSON.Load(); w != nil {
		h.format(r, slog.NewJSONHandler(&line, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: jsonValue}))
		w.writeLine(line.Bytes())
		return
	}
	origin := ""
	h.format(r, slog.NewTextHandler(&line, &slog.HandlerOptions{Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr { // leaves what the line does not begin with
			switch {
			case len(groups) > 0:
			case a.Key == pluginKey:
				origin = "plugin/" + a.Value.String() + ": "
				return slog.Attr{}
			case a.Key == slog.TimeKey, a.Key == slog.LevelKey, a.Key == slog.MessageKey:
				return slog.Attr{}
			}
			return a
		}}))
	log.Print("[" + coreDNSLevel(r.Level) + "] " + origin + strings.TrimSpace(oneLine(r.Message)+" "+line.String()))
}

// format gives a line to a handler that writes to a buffer.
func (h *handler) format(r slog.Record, to slog.Handler) {
	for _, more := range h.scope {
		to = more(to)
	}
	_ = to.Handle(context.Background(), r) // a buffer takes all
}

// jsonValue makes text of what JSON would take apart: a String method may be what hides a secret.
func jsonValue(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
		return a
	}
	switch v := a.Value.Any().(type) {
	case time.Duration:
		return slog.String(a.Key, v.String())
	case error:
		return slog.String(a.Key, v.Error())
	case []string:
		return a
	default:
		if a.Value.Kind() == slog.KindAny {
			return slog.String(a.Key, fmt.Sprintf("%+v", v))
		}
	}
	return a
}

// oneLine quotes a message of several lines.
func oneLine(message string) string {
	if strings.ContainsFunc(message, unicode.IsControl) {
		return strconv.Quote(message)
	}
	return message
}
