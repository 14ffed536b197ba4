package router

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFormerFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "routes")
	none, err := readFormerFile(path)
	if err != nil || len(none.destinations) > 0 {
		t.Errorf("no file: %v, %v", none, err)
	}
	none.renameFile(slog.New(slog.DiscardHandler))
	if err := os.WriteFile(path, []byte("# managed\n100.64.16.0/20\n\n192.168.0.0/24 # mesh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := readFormerFile(path)
	if err != nil || fmt.Sprint(f.destinations) != "[100.64.16.0/20 192.168.0.0/24]" {
		t.Errorf("%v, %v", f, err)
	}
	f.renameFile(slog.New(slog.DiscardHandler))
	if _, err := os.Stat(path + ".former"); err != nil {
		t.Error(err)
	}
	if again, err := readFormerFile(path); err != nil || len(again.destinations) > 0 {
		t.Errorf("taken over twice: %v, %v", again, err)
	}
	if err := os.WriteFile(path, []byte("100.64.16.0/20\nx\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readFormerFile(path); err == nil ||
		!strings.Contains(err.Error(), `line 2: "x" is no network; write one CIDR`) {
		t.Errorf("error %v", err)
	}
}
