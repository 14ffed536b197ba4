package testbed

// This file runs long-lived programs on hosts: control planes, DNS servers, kubelink. Each has a log, which the test
// bed keeps until it ends.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// Process is a program that runs on a host.
type Process struct {
	Name string // host/name

	cmd   *exec.Cmd
	log   string
	start int64         // offset of this run in the log: restarts append
	done  chan struct{} // closed at its end
	err   error         // valid when done is closed
}

// Start starts a program on the host, in the root folder. It ends with ctx or with the test bed. env adds to the
// environment of this process. The program writes to a log; a restart under the same name appends to it.
func (h *Host) Start(ctx context.Context, name string, env []string, path string, args ...string) (*Process, error) {
	p := &Process{Name: h.Name + "/" + name, log: filepath.Join(workDir, "log", h.Name+"-"+name+".log"),
		done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer log.Close()
	if info, err := log.Stat(); err == nil {
		p.start = info.Size()
	}
	p.cmd = h.Command(ctx, path, args...)
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	h.testbed.addProcess(p)
	return p, nil
}

// PID is the process id inside the test bed.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log returns the output of the program since this start.
func (p *Process) Log() string {
	f, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() <= p.start {
		return ""
	}
	text := make([]byte, info.Size()-p.start)
	n, _ := f.ReadAt(text, p.start)
	return string(text[:n])
}

// FullLog returns the output of the program since the first start under this name.
func (p *Process) FullLog() string {
	text, _ := os.ReadFile(p.log)
	return string(text)
}

// WaitLog waits until the program's log matches the expression.
func (p *Process) WaitLog(ctx context.Context, expression string) error {
	re, err := regexp.Compile(expression)
	if err != nil {
		return err
	}
	return p.waitUntil(ctx, "log of "+p.Name+" to match "+expression,
		func(context.Context) error { return p.checkLog(re, 1) })
}

// checkLog returns an error until the program's log has this number of matches.
func (p *Process) checkLog(re *regexp.Regexp, times int) error {
	if n := len(re.FindAllString(p.Log(), times)); n < times {
		return fmt.Errorf("%d matches of %s in the log", n, re)
	}
	return nil
}

// Kill sends a signal and does not wait.
func (p *Process) Kill(signal syscall.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	return nil
}

// Wait waits for the program's end and returns how it ended.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w", p.Name, ctx.Err())
	}
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// stop kills the program and waits until it is gone.
func (p *Process) stop(ctx context.Context) error {
	if err := p.Kill(syscall.SIGKILL); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w", p.Name, ctx.Err())
	}
}

// waitUntil is Until for a condition that needs the program.
func (p *Process) waitUntil(ctx context.Context, what string, condition func(context.Context) error) error {
	return p.whileRunning(ctx, func(ctx context.Context) error { return Until(ctx, what, condition) })
}

// whileRunning calls f, whose context ends with the program. Its errors contain the end of the program's log.
func (p *Process) whileRunning(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.done:
			cancel(fmt.Errorf("%s has ended: %v", p.Name, p.err))
		case <-ctx.Done():
		}
	}()
	if err := f(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, lastLines(p.Log(), 20))
	}
	return nil
}

// Until waits for external state: it tries the condition until it is met or ctx ends. The error says what Until waited
// for and what was wrong last. Tries are 25 ms apart at first, and later a fiftieth of the time since the start, up to
// 250 ms: a long wait leaves the processor to what it waits for.
func Until(ctx context.Context, what string, condition func(context.Context) error) error {
	start := time.Now()
	var last error
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // the error of a last try that ctx has cut short says nothing
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, context.Cause(ctx), last)
		case <-time.After(min(max(time.Since(start)/50, 25*time.Millisecond), 250*time.Millisecond)):
		}
	}
}
