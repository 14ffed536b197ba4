package kubeapi

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// Of the library's log, only warnings and errors are of use.
func TestLibraryLog(t *testing.T) {
	var text strings.Builder
	log := LibraryLog(slog.NewTextHandler(&text, nil)).WithName("a").WithValues("b", "c")
	log.Info("Starting workers")
	log.Error(errors.New("no way"), "Reconciler error")
	if got := text.String(); strings.Contains(got, "Starting") || !strings.Contains(got, "no way") {
		t.Error(got)
	}
}
