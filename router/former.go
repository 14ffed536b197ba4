package router

// The file in which a former router notes the destinations of its routes: one CIDR in a line, and comments behind #.
// Its routes to them are ours from now on. When the kernel has ours, the file gets another name.

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strings"
)

// formerSuffix is what the name of the file gets.
const formerSuffix = ".former"

// formerFile is the file of a former router.
type formerFile struct {
	path         string // empty: there is none, or it has its other name
	destinations []netip.Prefix
}

// readFormerFile reads the file. One that does not exist has no destinations.
func readFormerFile(path string) (*formerFile, error) {
	f := &formerFile{}
	if path == "" {
		return f, nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, &FlagError{"datafile", path, "the routes of a former router cannot be read: " + err.Error(),
			"give a file of a former router, or leave the flag out"}
	}
	f.path = path
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		p, err := netip.ParsePrefix(line)
		if err != nil {
			return nil, &FlagError{"datafile", path, fmt.Sprintf("line %d: %q is no network", number, line),
				"write one CIDR in a line, such as 100.64.16.0/20, or remove the line"}
		}
		f.destinations = append(f.destinations, p.Masked())
	}
	return f, nil
}

// renameFile gives the file its other name: what it lists is taken over. A file that cannot be renamed is read again
// at the next start.
func (f *formerFile) renameFile(log *slog.Logger) {
	if f.path == "" {
		return
	}
	path := f.path
	f.path = ""
	if err := os.Rename(path, path+formerSuffix); err != nil {
		log.Warn("the routes of a former router are taken over, but its file stays; remove it", "datafile", path,
			"error", err)
		return
	}
	log.Info("the routes of a former router are taken over", "datafile", path, "renamed", path+formerSuffix)
}
