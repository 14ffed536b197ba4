package realnodes

// The commands of the runbook pages, as they stand, on clusters whose links are up: they run, and find nothing.

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
	searches = regexp.MustCompile(`\| (grep .*)$`)
)

// notRunHere marks a command of a page that needs what the test bed does not have.
const notRunHere = "not run here"

// readRunbooks returns the different commands of all runbook pages that are to be run. They come one after the other.
func readRunbooks(t *testing.T) (commands []string) {
	t.Helper()
	pages := must(filepath.Glob("../../deploy/monitoring/runbooks/*.md"))(t)
	for _, page := range pages {
		block := seeIt.FindStringSubmatch(string(must(os.ReadFile(page))(t)))
		if block == nil {
			t.Fatalf("%s has no commands", page)
		}
		for line := range strings.Lines(block[1]) {
			line = strings.TrimSpace(line)
			if !slices.Contains(commands, line) && !strings.Contains(line, notRunHere) {
				commands = append(commands, line)
			}
		}
	}
	if len(pages) < 15 || len(commands) < 30 {
		t.Fatalf("%d pages have %d commands: the test does not find them", len(pages), len(commands))
	}
	return commands
}

// checkRunbooks runs the commands in the first cluster. What they search for need not be there.
func (l *commandLine) checkRunbooks(t *testing.T, ctx context.Context, f *fleet.Fleet) {
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
	commands := readRunbooks(t)
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
	t.Logf("%d commands of runbook pages have run after %.1f s", len(commands), time.Since(start).Seconds())
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
