package testbed

// This file defines hosts: routers, control planes, nodes and pods of the test bed, each with its own network stack.
// A host is a network namespace and a mount namespace with its own /etc/hosts, /etc/resolv.conf and /run. Programs
// enter both namespaces through nsenter. Go code enters the network namespace with one thread.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is a machine or pod of the test bed.
type Host struct {
	Name string          // unique in the test bed; also the name of its network namespace (`ip netns`)
	Net  *netlink.Handle // its network configuration

	testbed *Testbed
	dir     string // its files: hosts, resolv.conf, run/
	netns   netns.NsHandle
	mnt     *os.File // its mount namespace
	on      *Host    // the host that shares its network with this one; nil: it has its own
	env     []string // additional environment of its programs
	dns     resolver

	mu      sync.Mutex
	hosts   map[string]netip.Addr
	closers []io.Closer // listeners and servers of this process that live in this host
}

// newHost makes a host with only a loopback device. With on set, it shares the network of that host.
func (b *Testbed) newHost(name string, dns resolver, on *Host, sysctls ...string) (*Host, error) {
	h := &Host{Name: name, testbed: b, dir: filepath.Join(workDir, "host", name), netns: netns.None(), dns: dns,
		hosts: map[string]netip.Addr{}}
	fail := func(err error) (*Host, error) {
		h.close()
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	if on != nil {
		h.on, h.netns, h.Net = on, on.netns, on.Net
	} else if err := h.makeNetwork(); err != nil {
		return fail(err)
	}
	if err := h.Sysctl(sysctls...); err != nil {
		return fail(err)
	}
	if err := h.makeFiles(); err != nil {
		return fail(err)
	}
	b.addHost(h)
	return h, nil
}

func (h *Host) makeNetwork() error {
	err := onThread(func() (err error) {
		h.netns, err = netns.NewNamed(h.Name)
		return err
	})
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if h.Net, err = netlink.NewHandleAt(h.netns); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	lo, err := h.Net.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback device: %w", err)
	}
	return h.Net.LinkSetUp(lo)
}

func (h *Host) makeFiles() error {
	run := filepath.Join(h.dir, "run")
	for _, dir := range []string{"testbed", "lock", "wireguard", "netns"} {
		if err := os.MkdirAll(filepath.Join(run, dir), 0o755); err != nil {
			return err
		}
	}
	// On machines with systemd-resolved, /etc/resolv.conf is a link into /run, which is empty here.
	if target, err := os.Readlink("/etc/resolv.conf"); err == nil {
		target = strings.TrimPrefix(filepath.Clean(filepath.Join("/etc", relativeToEtc(target))), "/")
		if below, ok := strings.CutPrefix(target, "run/"); ok {
			if err := os.MkdirAll(filepath.Join(run, filepath.Dir(below)), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(run, below), nil, 0o644); err != nil {
				return err
			}
		}
	}
	if err := os.WriteFile(filepath.Join(h.dir, "resolv.conf"), []byte(h.dns.resolvConf()), 0o644); err != nil {
		return err
	}
	if err := h.writeHosts(); err != nil {
		return err
	}

	// The thread that makes the mount namespace ends with its goroutine: no other goroutine may run on it. The open file
	// keeps the namespace.
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := h.mountFiles(run)
		if err == nil {
			h.mnt, err = os.Open("/proc/thread-self/ns/mnt")
		}
		result <- err
	}()
	if err := <-result; err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	return nil
}

func (h *Host) mountFiles(run string) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	// A deleted host must not live on in another host's copy of this mount.
	names, _ := filepath.Glob("/run/netns/*")
	for _, name := range names {
		unix.Unmount(name, unix.MNT_DETACH)
	}
	for _, m := range []struct {
		from, to string
		flags    uintptr
	}{
		{workDir, filepath.Join(run, "testbed"), 0},
		{run, "/run", unix.MS_REC},
		{filepath.Join(h.dir, "hosts"), "/etc/hosts", 0},
		{filepath.Join(h.dir, "resolv.conf"), "/etc/resolv.conf", 0},
	} {
		if err := unix.Mount(m.from, m.to, "", unix.MS_BIND|m.flags, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.from, m.to, err)
		}
	}
	return nil
}

// relativeToEtc makes an absolute link target relative to /etc.
func relativeToEtc(target string) string {
	if filepath.IsAbs(target) {
		return filepath.Join("..", target)
	}
	return target
}

// close ends the listeners and servers of the host and gives up its namespaces.
func (h *Host) close() {
	h.mu.Lock()
	closers := h.closers
	h.closers = nil
	h.mu.Unlock()
	for _, c := range closers {
		c.Close()
	}
	h.mnt.Close()
	os.RemoveAll(h.dir)
	if h.on != nil {
		return
	}
	if h.Net != nil {
		h.Net.Close()
	}
	if h.netns.IsOpen() {
		netns.DeleteNamed(h.Name)
		h.mu.Lock() // a transport may still dial for a request that is over
		h.netns.Close()
		h.mu.Unlock()
	}
}

// netnsPath returns the path of the network namespace.
func (h *Host) netnsPath() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(h.netns)) }

// mntPath returns the path of the mount namespace.
func (h *Host) mntPath() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.mnt.Fd()) }

func (h *Host) onClose(c io.Closer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closers = append(h.closers, c)
}

// SetHosts adds names to the host's /etc/hosts. Running programs see them, too.
func (h *Host) SetHosts(names map[string]netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.Copy(h.hosts, names)
	return h.writeHosts()
}

// writeHosts rewrites the file in place: it is the target of a bind mount.
func (h *Host) writeHosts() error {
	text := "127.0.0.1 localhost\n::1 localhost\n"
	for _, name := range slices.Sorted(maps.Keys(h.hosts)) {
		text += fmt.Sprintf("%s %s\n", h.hosts[name], name)
	}
	return os.WriteFile(filepath.Join(h.dir, "hosts"), []byte(text), 0o644)
}

// WireGuardState returns what a WireGuard device in user space of the host says of itself: lines of its cross-platform
// interface, such as public_key=... and last_handshake_time_sec=...
func (h *Host) WireGuardState(device string) (string, error) {
	conn, err := net.Dial("unix", filepath.Join(h.dir, "run", "wireguard", device+".sock"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "get=1\n\n"); err != nil {
		return "", err
	}
	var all strings.Builder
	for lines := bufio.NewScanner(conn); lines.Scan() && lines.Text() != ""; {
		all.WriteString(lines.Text() + "\n")
	}
	return all.String(), nil
}

// Sysctl applies settings of the form net.ipv4.ip_forward=1.
func (h *Host) Sysctl(settings ...string) error {
	if len(settings) == 0 {
		return nil
	}
	return h.Do(func() error {
		for _, s := range settings {
			name, value, _ := strings.Cut(s, "=")
			if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0o644); err != nil {
				return fmt.Errorf("sysctl %s: %w", s, err)
			}
		}
		return nil
	})
}

// Do runs f with its thread in the host's network namespace: sockets that f opens belong to the host. f must not
// leave the work to other goroutines.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		h.mu.Lock()
		err := netns.Set(h.netns)
		h.mu.Unlock()
		if err != nil {
			return fmt.Errorf("enter %s: %w", h.Name, err)
		}
		return f()
	})
}

// onThread runs f, which may change the thread's network namespace, on a thread of its own.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		err := errors.New("the function did not return")
		defer func() { result <- err }()
		runtime.LockOSThread() // a thread that cannot return to its namespace ends with this goroutine
		home, e := netns.Get()
		if e != nil {
			err = e
			return
		}
		defer home.Close()
		err = f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return <-result
}

// DialContext connects from the host. It looks names up as programs on the host do: in /etc/hosts, then in DNS.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := h.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	err = h.Do(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, net.JoinHostPort(addrs[0].String(), port))
		return err
	})
	return conn, err
}

// Dial is DialContext with a limit of five seconds.
func (h *Host) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return h.DialContext(ctx, network, address)
}

// Listen listens in the host, until the listener or the host is closed. The address must be numeric.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() (err error) {
		var config net.ListenConfig
		config.SetMultipathTCP(false) // by default Go would listen for Multipath TCP
		l, err = config.Listen(context.Background(), network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	h.onClose(l)
	return l, nil
}

// ListenPacket is Listen for datagrams.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	h.onClose(c)
	return c, nil
}

// Command prepares a program that will run in the host's network and mount namespace, in the root folder. The process
// ID of the command is the program's own.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if strings.Contains(name, "/") {
		if path, err := filepath.Abs(name); err == nil {
			name = path
		}
	}
	enter := []string{"--net=" + h.netnsPath(), "--mount=" + h.mntPath(), "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = append(os.Environ(), h.env...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Enter returns the command line that runs a program on the host from outside of the test bed, such as a shell.
func (h *Host) Enter(command ...string) string {
	return Enter(append([]string{"nsenter", "--net=" + h.netnsPath(), "--mount=" + h.mntPath(), "--wdns=/"},
		command...)...)
}

// Run runs a program to its end and returns its standard output. Errors contain its standard error.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	return h.runWithInput(ctx, "", name, args...)
}

// runWithInput is Run with standard input.
func (h *Host) runWithInput(ctx context.Context, input, name string, args ...string) (string, error) {
	cmd := h.Command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %s %s: %w: %s", h.Name, filepath.Base(name), strings.Join(args, " "), err,
			lastLines(stderr.String(), 20))
	}
	return stdout.String(), nil
}

// Iptables changes or lists the host's packet filter.
func (h *Host) Iptables(ctx context.Context, args ...string) (string, error) {
	return h.Run(ctx, "iptables", append([]string{"--wait"}, args...)...)
}

func lastLines(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
