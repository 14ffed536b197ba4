// Package testbed boots real Kubernetes clusters on one machine: control planes from their own binaries, nodes and
// pods as network namespaces, each cluster behind its own NAT router on a private "internet". Tests, benchmarks and
// the demo use it.
//
// A program that uses it runs its main function (or TestMain) through Main, which moves it into namespaces of its own.
package testbed

// This file moves a program into its own user, network, mount and PID namespaces, and makes sure that all processes
// it started end with it. Three processes of the same binary take part:
//
//	outer   what the user started: waits, forwards signals, returns the exit code
//	init    PID 1 of the namespaces: mounts, reaps orphans; its end is the end of every process inside
//	worker  runs what the program is for
//
// Nothing outlives them: processes die with the PID namespace, files are on a tmpfs of the mount namespace, and
// links, addresses and rules belong to network namespaces that no other process holds. For control groups, see
// cgroup.go.

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	stageVar   = "KUBELINK_TESTBED"       // which of the three processes this one is
	hostPIDVar = "KUBELINK_TESTBED_PID"   // the init process' id as the user sees it
	enterVar   = "KUBELINK_TESTBED_ENTER" // options of nsenter for the existing namespaces

	// workDir holds all files of the test bed. It lies on the tmpfs that only the test bed sees.
	workDir = "/run/testbed"

	rootEnter = "-m -u -i -n -p"
	userEnter = "-U --preserve-credentials " + rootEnter
)

// The main goroutine stays on the process' first thread. /proc/self describes that thread. A thread that visits other
// namespaces may have to end: so neither may happen to the first thread.
func init() { runtime.LockOSThread() }

// Main runs f isolated from the machine and returns its result, the process' exit code. main or TestMain must call it
// first: code before it runs three times.
func Main(f func() int) int {
	var code int
	var err error
	switch stage := os.Getenv(stageVar); stage {
	case "":
		code, err = runOuter()
	case "init":
		code, err = runInit()
	default:
		return f()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test bed:", err)
		return 125
	}
	return code
}

// Enter returns the command line that runs a program in the test bed from outside. Host.Enter enters a host.
func Enter(command ...string) string {
	return strings.Join(append([]string{"nsenter", "-t", os.Getenv(hostPIDVar), os.Getenv(enterVar)}, command...), " ")
}

func runOuter() (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	sweepCgroups()

	// Root without the capability (as in most containers) gets a user namespace, like any other user.
	cmd := isolatedCommand(os.Geteuid() != 0)
	err := cmd.Start()
	if errors.Is(err, syscall.EPERM) && os.Geteuid() == 0 {
		cmd = isolatedCommand(true)
		err = cmd.Start()
	}
	if err != nil {
		return 0, fmt.Errorf("create namespaces: %w (unprivileged user namespaces must be allowed if not root)", err)
	}
	go func() {
		// A second signal ends all processes immediately.
		cmd.Process.Signal(<-signals)
		<-signals
		cmd.Process.Kill()
	}()
	err = cmd.Wait() // returns when every process inside has ended
	sweepCgroups()
	if cmd.ProcessState == nil {
		return 0, err
	}
	return exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus)), nil
}

func isolatedCommand(user bool) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVar+"=init", enterVar+"="+rootEnter)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // a Ctrl-C arrives once, from the outer process, and not from the terminal, too
	}
	if user {
		cmd.Env = append(cmd.Env, enterVar+"="+userEnter)
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return cmd
}

func runInit() (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)

	if os.Getpid() != 1 {
		return 0, fmt.Errorf("%s is set in the environment by another program", stageVar)
	}
	hostPID, err := os.Readlink("/proc/self") // still the /proc of outside
	if err != nil {
		return 0, err
	}
	if err := prepareNamespaces(); err != nil {
		return 0, err
	}
	os.Setenv(stageVar, "worker")
	os.Setenv(hostPIDVar, hostPID)
	os.Setenv("TMPDIR", workDir+"/tmp") // a killed test leaves no t.TempDir behind
	worker, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 0, fmt.Errorf("start worker: %w", err)
	}
	go func() {
		for s := range signals {
			worker.Signal(s)
		}
	}()
	// Orphans of the worker's programs become children of this process, too. Only the worker's end counts.
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait for worker: %w", err)
		case pid == worker.Pid:
			return exitCode(status), nil
		}
	}
}

// prepareNamespaces prepares the new namespaces: private mounts, /proc, an empty /run, the loopback device.
func prepareNamespaces() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if target, err := filepath.EvalSymlinks("/var/run"); err == nil && target != "/run" {
		if err := unix.Mount("/run", "/var/run", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount /var/run: %w", err)
		}
	}
	for _, dir := range []string{"/run/netns", "/run/lock", workDir + "/tmp", workDir + "/log"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte("kubelink-testbed")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback device up: %w", err)
	}
	return nil
}

// exitCode follows the shell's convention: 128 plus the signal for a killed process.
func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
