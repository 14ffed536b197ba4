package kubeapi

// The log of controller-runtime.

import (
	"context"
	"log/slog"

	"github.com/go-logr/logr"
	crlog "sigs.k8s.io/controller-runtime/pkg/log"
)

// LibraryLog is the log for controller-runtime: warnings and errors only. The library tells of each start and end of its
// parts, a dozen lines for each reload; the broker's own lines say what users need of it.
func LibraryLog(h slog.Handler) logr.Logger { return logr.FromSlogHandler(warningsOnly{h}) }

// SetLibraryLog gives it to controller-runtime, for the whole process. A process that uses any part of the library
// calls it at its start: else the first line that the library would log after 30 s is a stack trace.
func SetLibraryLog(h slog.Handler) { crlog.SetLogger(LibraryLog(h)) }

type warningsOnly struct{ slog.Handler }

func (h warningsOnly) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && h.Handler.Enabled(ctx, level)
}

func (h warningsOnly) WithAttrs(attrs []slog.Attr) slog.Handler {
	return warningsOnly{h.Handler.WithAttrs(attrs)}
}

func (h warningsOnly) WithGroup(name string) slog.Handler {
	return warningsOnly{h.Handler.WithGroup(name)}
}
