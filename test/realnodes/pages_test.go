package realnodes

// The commands of runbook pages and others, as they stand, on clusters whose links are up: they run, and find nothing.

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

var (
	seeIt    = regexp.MustCompile("(?ms)^## See it\n+```\n(.*?)^```$")
	marked   = regexp.MustCompile("(?ms)run by `TestRealNodes`\\)[:.]?\n\n *```\n(.*?)^ *```$")
	searches = regexp.MustCompile(`\| (grep .*)$`)
)

// notRunHere marks a command of a page that needs what the test bed does not have.
const notRunHere = "not run here"

// readPages returns the different commands of all runbook pages, and of the blocks of other pages before which
// TestRealNodes is named. They come one after the other.
func readPages(t *testing.T) (commands []string) {
	t.Helper()
	add := func(page string, blocks *regexp.Regexp) {
		found := blocks.FindAllStringSubmatch(string(must(os.ReadFile(page))(t)), -1)
		if len(found) == 0 {
			t.Errorf("%s has no commands", page)
		}
		for _, block := range found {
			for line := range strings.Lines(block[1]) {
				line = strings.TrimSpace(line)
				if !slices.Contains(commands, line) && !strings.Contains(line, notRunHere) {
					commands = append(commands, line)
				}
			}
		}
	}
	for _, page := range must(filepath.Glob("../../deploy/monitoring/runbooks/*.md"))(t) {
		add(page, seeIt)
	}
	for _, page := range []string{"README.md", "troubleshooting.md"} {
		add("../../deploy/"+page, marked)
	}
	if len(commands) < 40 {
		t.Errorf("%d commands: the test does not find them", len(commands))
	}
	return commands
}

// checkPages runs the commands in the first cluster. What they search for need not be there.
func (l *commandLine) checkPages(t *testing.T, ctx context.Context, f *fleet.Fleet) {
	start, b, peer := time.Now(), f.Brokers[0], f.Brokers[1]
	shell := func(ctx context.Context, script string) *exec.Cmd {
		c := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", script)
		c.Env = append(os.Environ(), "KUBECONFIG="+l.kubeconfig,
			"PATH="+filepath.Dir(l.program)+":"+must(testbed.ControlPlaneFolder())(t)+":"+os.Getenv("PATH"))
		return c
	}
	check(t, shell(ctx, "kubectl config use-context "+b.Name).Run())
	names := strings.NewReplacer("LINK", peer.Name, "CLUSTER", peer.Name, "COREDNS_SERVICE_IP", b.MeshDNSAddress.String())
	var g errgroup.Group
	g.SetLimit(4)
	commands := readPages(t)
	for _, command := range commands {
		script := names.Replace(searches.ReplaceAllString(command, "| { $1 || test $$? = 1; }"))
		switch {
		case strings.Contains(command, " port-forward "): // it does not end by itself
			check(t, startForward(t, shell(ctx, script)))
		case strings.HasPrefix(command, "dig "):
			g.Go(func() error {
				out, err := b.Gateway().Run(ctx, "sh", "-c", script)
				if err == nil && !strings.Contains(out, "status: NOERROR") {
					err = fmt.Errorf("%s: %s", script, out)
				}
				return err
			})
		default:
			g.Go(func() error {
				if out, err := shell(ctx, script).CombinedOutput(); err != nil {
					return fmt.Errorf("%s: %w: %s", script, err, out)
				}
				return nil
			})
		}
	}
	check(t, g.Wait())
	t.Logf("%d commands of pages have run after %.1f s", len(commands), time.Since(start).Seconds())
}

// startForward starts a port-forward, which ends with the test, and waits until it forwards.
func startForward(t *testing.T, command *exec.Cmd) error {
	out, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	t.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
	})
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil {
		return fmt.Errorf("%s: %q: %w", command, line, err)
	}
	go io.Copy(io.Discard, lines)
	return nil
}
