package pki

// Changes of the certificate files.

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// WatchFiles calls wake when one of the certificate files changes, until ctx ends. It watches their folders, as users
// replace files, and the kubelet switches mounted secrets by a symbolic link beside them. Without watches (a node may
// be out of them) the broker reads the files at its interval: that is no reason to end.
func (c Config) WatchFiles(ctx context.Context, wake func(), interval time.Duration, log *slog.Logger) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("cannot watch the certificate files; they are read every "+interval.String(), "error", err)
		return
	}
	defer w.Close()
	for _, f := range []string{c.CertFile, c.KeyFile, c.CAFile} {
		if f == "" {
			continue
		}
		if err := w.Add(filepath.Dir(f)); err != nil {
			log.Warn("cannot watch the certificate files; they are read every "+interval.String(),
				"folder", filepath.Dir(f), "error", err)
		}
	}
	for {
		wake()
		select {
		case <-ctx.Done():
			return
		case <-w.Events:
		case err := <-w.Errors:
			log.Warn("changes of the certificate files were lost; reading them now", "error", err)
		}
	}
}
