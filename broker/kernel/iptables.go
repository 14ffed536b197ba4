package kernel

// The commands of iptables(8). Their exit statuses mean different things in different versions and back ends; any
// other than 0 is an error here, and what they print is what there is.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-iptables/iptables"

	"github.com/mandelsoft/kubelink/broker/iptsave"
)

// lockTime is how long iptables-restore waits for the xtables lock. iptables-save takes no lock.
const lockTime = 10 * time.Second

// SaveTables prints the counters, too.
func (l *linux) SaveTables(ctx context.Context, tools toolset, table string) (string, error) {
	if tools.backend == legacyBackend && table == "" && len(iptsave.LegacyTables(tools.family)) == 0 {
		return "", nil
	}
	args := []string{"-c"}
	if table != "" {
		args = append(args, "-t", table)
	}
	return runIPTables(ctx, tools, "save", "", args...)
}

// RestoreTable runs iptables-restore: other commands change single rules, which would show every state in between and
// take a process per rule.
func (l *linux) RestoreTable(ctx context.Context, tools toolset, table string, commands []string) error {
	input := "*" + table + "\n" + strings.Join(commands, "\n") + "\nCOMMIT\n"
	wait := lockTime
	if deadline, ok := ctx.Deadline(); ok {
		wait = max(time.Second, min(wait, time.Until(deadline)-time.Second))
	}
	_, err := runIPTables(ctx, tools, "restore", input, "--noflush", "--wait", strconv.Itoa(int(wait.Seconds())))
	return err
}

// runIPTables runs iptables-save or iptables-restore of a family and returns what it prints.
func runIPTables(ctx context.Context, tools toolset, tool, input string, args ...string) (string, error) {
	name := tools.command(tool)
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	// What the command has started ends with it, a script's child for example.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil:
		return stdout.String(), nil
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("run %s: %w", name, err)
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s does not end: "+
			"something on the node may hold the xtables lock (see lsof /run/xtables.lock)", name)
	}
	said := oneLine(stderr.String() + stdout.String())
	return "", fmt.Errorf("%s%s: %w: %s", name, describeOldVersion(tools, err), err, said)
}

// Versions before 1.6.2 have no iptables-restore --wait (kube-proxy knows the same bound). They end with the status
// PARAMETER_PROBLEM of xtables.h, as for any option that they do not know.
var (
	oldestVersion    = [3]int{1, 6, 2}
	parameterProblem = 2
)

// describeOldVersion says after a failure that the version may be the reason; empty: it is not.
func describeOldVersion(tools toolset, err error) string {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != parameterProblem {
		return ""
	}
	tool, err := iptables.New(iptables.Path(tools.command("")))
	if err != nil {
		return ""
	}
	v1, v2, v3 := tool.GetIptablesVersion()
	if version := [3]int{v1, v2, v3}; slices.Compare(version[:], oldestVersion[:]) < 0 {
		return fmt.Sprintf(" (iptables %d.%d.%d is too old: install 1.6.2 or newer)", v1, v2, v3)
	}
	return ""
}

// oneLine makes one line, not too long, of what a command prints.
func oneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(c rune) bool { return c == '\n' || c == '\r' }), "; ")
	const limit = 300
	if len(text) > limit {
		text = text[:limit] + "..."
	}
	return text
}
