package main

// A container of the image, made by runc as containerd has it made for a pod of deploy/base.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// sandbox is a bundle of runc with the image's files, and a network namespace for its containers.
type sandbox struct {
	t       *testing.T
	dir     string
	network string // file of the namespace
	count   int
}

// newSandbox unpacks the image, and takes the test to a network namespace of its own. The thread is never given back.
func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("run it as root: it makes containers")
	}
	s := &sandbox{t: t, dir: t.TempDir()}
	for name, e := range rootFiles(t) {
		file := filepath.Join(s.dir, "rootfs", name)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		switch {
		case err != nil:
		case e.target != "":
			err = os.Symlink(e.target, file)
		case strings.HasPrefix(string(e.kind), "5"):
			err = os.MkdirAll(file, 0o755)
		default:
			err = os.WriteFile(file, e.content, os.FileMode(e.mode))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	after, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { after.Close() })
	if before.Equal(after) {
		t.Fatal("still in the namespace of the host")
	}
	s.network = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(after))
	return s
}

// configure writes config.json of runc: what containerd makes of the security context of deploy/base.
func (s *sandbox) configure(args []string) {
	s.t.Helper()
	capabilities := []string{"CAP_NET_ADMIN", "CAP_NET_RAW"}
	mount := func(kind, destination string, options ...string) map[string]any {
		return map[string]any{"destination": destination, "type": kind, "source": kind, "options": options}
	}
	config := map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"user": map[string]any{"uid": 0, "gid": 0}, "args": args, "cwd": "/", "noNewPrivileges": true,
			"env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			"capabilities": map[string]any{
				"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
		},
		"root": map[string]any{"path": "rootfs", "readonly": true},
		"mounts": []any{
			mount("proc", "/proc", "nosuid", "noexec", "nodev"),
			mount("tmpfs", "/dev", "nosuid", "mode=755"),
			mount("sysfs", "/sys", "nosuid", "noexec", "nodev", "ro"),
		},
		"linux": map[string]any{
			"namespaces": []any{
				map[string]any{"type": "pid"}, map[string]any{"type": "ipc"}, map[string]any{"type": "uts"},
				map[string]any{"type": "mount"}, map[string]any{"type": "network", "path": s.network},
			},
			"readonlyPaths": []string{"/proc/sys", "/proc/sysrq-trigger"},
			"maskedPaths":   []string{"/proc/kcore", "/proc/keys"},
		},
	}
	text, err := json.Marshal(config)
	if err == nil {
		err = os.WriteFile(filepath.Join(s.dir, "config.json"), text, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// command is the command that runs a program in a container.
func (s *sandbox) command(input string, args ...string) *exec.Cmd {
	s.t.Helper()
	s.configure(args)
	s.count++
	cmd := exec.CommandContext(s.t.Context(), "runc", "--root", filepath.Join(s.dir, "state"), "run",
		"--bundle", s.dir, fmt.Sprintf("kubelink-image-%d-%d", os.Getpid(), s.count))
	cmd.Stdin = strings.NewReader(input)
	return cmd
}

// run runs a program in a container and returns what it prints.
func (s *sandbox) run(input string, args ...string) string {
	s.t.Helper()
	out, err := s.command(input, args...).CombinedOutput()
	if err != nil {
		s.t.Errorf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestContainer(t *testing.T) {
	s := newSandbox(t)
	for _, name := range programs(t) {
		if out := s.run("", "/"+name, "--version"); !strings.Contains(out, "v1.2.3+test") {
			t.Errorf("%s --version: %s", name, out)
		}
	}
	const rule = "-A KLINK-TEST -p tcp -m tcp --dport 80 -j ACCEPT\n"
	rules := "*nat\n:KLINK-TEST - [0:0]\n" + rule + "-A POSTROUTING -j KLINK-TEST\nCOMMIT\n"
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, backend := range []string{"nft", "legacy"} {
			command := family + "-" + backend
			s.run(rules, command+"-restore", "--noflush", "--wait", "5")
			// The host sees in the namespace what the container has made.
			out, err := exec.Command(command+"-save", "-t", "nat").CombinedOutput()
			for _, from := range []string{string(out), s.run("", command+"-save", "-t", "nat")} {
				if err != nil || !strings.Contains(from, rule) {
					t.Errorf("%s: the rule is missing: %v\n%s", command, err, from)
				}
			}
		}
		if out := s.run("", family, "--version"); !strings.Contains(out, "nf_tables") {
			t.Errorf("%s --version: %s", family, out)
		}
	}
}

// A kubelink that serves has exactly the rights that we say.
func TestContainerRights(t *testing.T) {
	s := newSandbox(t)
	corefile := filepath.Join(s.dir, "rootfs", "etc", "kubelink", "Corefile")
	if err := os.WriteFile(corefile, []byte(".:1053 {\n  whoami\n  ready 127.0.0.1:10532\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := s.command("", "/kubelink", "-conf", "/etc/kubelink/Corefile")
	output := &lineWaiter{want: "CoreDNS-", found: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = output, output
	pidFile := filepath.Join(s.dir, "pid")
	cmd.Args = append(cmd.Args[:len(cmd.Args)-1], "--pid-file", pidFile, cmd.Args[len(cmd.Args)-1])
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM) // runc sends it on
		cmd.Wait()
	}()
	select {
	case <-output.found:
	case <-time.After(30 * time.Second):
		t.Fatalf("kubelink does not start: %s", output.text.String())
	}
	process := "/proc/" + string(read(t, pidFile))
	status, mounts := string(read(t, process+"/status")), string(read(t, process+"/mountinfo"))
	const rights = "0000000000003000" // 1<<CAP_NET_ADMIN | 1<<CAP_NET_RAW
	for _, want := range []string{"CapPrm:\t" + rights, "CapEff:\t" + rights, "CapBnd:\t" + rights, "NoNewPrivs:\t1"} {
		if !strings.Contains(status, want+"\n") {
			t.Errorf("%s is missing in its status:\n%s", want, status)
		}
	}
	if !regexp.MustCompile(`(?m)^\d+ \d+ \S+ \S+ / ro,`).MatchString(mounts) {
		t.Errorf("its root is not read-only:\n%s", mounts)
	}
}

// lineWaiter tells when a text comes.
type lineWaiter struct {
	want  string
	found chan struct{}
	text  bytes.Buffer
}

func (w *lineWaiter) Write(p []byte) (int, error) {
	before := strings.Contains(w.text.String(), w.want)
	w.text.Write(p)
	if !before && strings.Contains(w.text.String(), w.want) {
		close(w.found)
	}
	return len(p), nil
}
