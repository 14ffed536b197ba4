package wireguard

// Hosts of tests: each has a network and a mount namespace of its own, held by a process. Brokers, and what else runs
// in them, are processes, too: the test binary itself. So a broker can be killed while its host goes on.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/rpc"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/tundevice"
)

const roleVariable = "KUBELINK_TEST_ROLE"

// roles are what the test binary does as another process.
var roles = map[string]func() error{
	"host":       holdHost,
	"broker":     serveBroker,
	"standalone": runStandalone,
	"staller":    stallSocket,
	"tap":        holdTAP,
	"echo":       runEcho,
	"probe":      runProbe,
}

func TestMain(m *testing.M) {
	role := os.Getenv(roleVariable)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := roles[role](); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// holdHost keeps the namespaces until its standard input ends.
func holdHost() error {
	if err := os.MkdirAll(socketFolder, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", socketFolder, "tmpfs", 0, ""); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// host is a machine with namespaces of its own.
type host struct {
	t   testing.TB
	pid string
}

func newHost(t testing.TB) *host {
	t.Helper()
	p := start(t, "host", nil, func(c *exec.Cmd) {
		c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	})
	p.await("ready")
	h := &host{t: t, pid: strconv.Itoa(p.cmd.Process.Pid)}
	h.run("ip link set lo up")
	return h
}

// run runs commands, one per line, and returns what they print.
func (h *host) run(commands string) string {
	h.t.Helper()
	var all strings.Builder
	for line := range strings.Lines(commands) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		out, err := exec.Command("nsenter", append([]string{"-t", h.pid, "-n", "-m"}, words...)...).CombinedOutput()
		if err != nil {
			h.t.Fatalf("%s: %v: %s", line, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

// try runs a command that may fail.
func (h *host) try(words ...string) error {
	return exec.Command("nsenter", append([]string{"-t", h.pid, "-n", "-m"}, words...)...).Run()
}

// start starts a process of the host.
func (h *host) start(role string, args ...string) *process {
	h.t.Helper()
	return start(h.t, role, args, func(c *exec.Cmd) {
		c.Args = append([]string{"nsenter", "-t", h.pid, "-n", "-m", c.Path}, c.Args[1:]...)
		var err error
		if c.Path, err = exec.LookPath("nsenter"); err != nil {
			h.t.Fatal(err)
		}
	})
}

// process is the test binary in a role.
type process struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr output
	done   chan struct{}
}

// output is what a process has printed so far.
type output struct {
	mu  sync.Mutex // guards all
	all bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all.String()
}

func start(t testing.TB, role string, args []string, change func(*exec.Cmd)) *process {
	t.Helper()
	p := &process{t: t, done: make(chan struct{})}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(self, args...)
	// A process under the race detector would sleep for a second at its end.
	p.cmd.Env = append(os.Environ(), roleVariable+"="+role, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	p.cmd.Stderr = &p.stderr
	change(p.cmd)
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdout, p.cmd.Stdout = bufio.NewReader(out), w
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stdin.Close()
		select {
		case <-p.done:
		case <-time.After(10 * time.Second):
			p.kill()
			t.Errorf("%s did not end", role)
		}
		out.Close()
		if t.Failed() {
			t.Logf("%s: %s", role, p.stderr.String())
		}
	})
	return p
}

// await waits for a line of the process's standard output with the text, and returns it.
func (p *process) await(text string) string {
	p.t.Helper()
	defer time.AfterFunc(30*time.Second, func() { p.cmd.Process.Kill() }).Stop()
	for {
		line, err := p.stdout.ReadString('\n')
		if strings.Contains(line, text) {
			return strings.TrimSpace(line)
		}
		if err != nil {
			p.t.Fatalf("no %q: %v: %s", text, err, p.stderr.String())
		}
	}
}

// kill is kill -9.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// joinHosts makes a cable between two hosts, each end with its addresses.
func joinHosts(t testing.TB, one, two *host, addresses ...[2]string) {
	t.Helper()
	one.run("ip link add eth0 type veth peer name eth0 netns " + two.pid)
	for _, a := range addresses {
		one.run("ip addr add " + a[0] + " dev eth0 nodad")
		two.run("ip addr add " + a[1] + " dev eth0 nodad")
	}
	one.run("ip link set eth0 up")
	two.run("ip link set eth0 up")
}

// Broker is a Device in a process of a host, called by RPC.
type Broker struct {
	device  *Device
	changes atomic.Int64

	mu    sync.Mutex
	names map[string][]netip.Addr
}

// OpenArgs are those of Open.
type OpenArgs struct {
	Settings  link.Settings
	Interface string
	Fast      bool // durations that have no part in WireGuard are short
}

// None is no argument, or no result.
type None struct{}

// fastTiming is for tests of what would take minutes.
var fastTiming = timing{
	poll: 50 * time.Millisecond, soon: 20 * time.Millisecond, eager: time.Second,
	grace: 2 * time.Second, suspect: time.Second, fresh: 180 * time.Second,
	retry: 500 * time.Millisecond, lookup: 50 * time.Millisecond, lookupDown: 50 * time.Millisecond,
	lookupLimit: time.Second, greet: time.Second, call: 10 * time.Second,
}

func (b *Broker) Open(a OpenArgs, _ *None) error {
	c := Config{Settings: a.Settings, Interface: a.Interface, Changed: func() { b.changes.Add(1) },
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	c.lookup = func(_ context.Context, _, name string) ([]netip.Addr, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if found := b.names[name]; len(found) > 0 {
			return slices.Clone(found), nil
		}
		return nil, errors.New("no such host")
	}
	if a.Fast {
		t, ch := fastTiming, defaultChannelTiming
		ch.termMemory = 3 * time.Second
		c.timing, c.channels = &t, &ch
	}
	var err error
	b.device, err = Open(c)
	return err
}

// SetName makes a name have addresses; with none its look-up fails.
func (b *Broker) SetName(args map[string][]netip.Addr, _ *None) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.names = args
	return nil
}

func (b *Broker) Configure(s link.Settings, _ *None) error { return b.device.Configure(s) }

func (b *Broker) SetKey(k mesh.SecretKey, _ *None) error {
	if k == (mesh.SecretKey{}) {
		b.device.SetCredentials(nil)
	} else {
		b.device.SetCredentials(&link.Credentials{PrivateKey: k})
	}
	return nil
}

// SetReply is what Set has done.
type SetReply struct {
	Took  time.Duration
	Error string
}

func (b *Broker) Set(peers []mesh.Peer, reply *SetReply) error {
	began := time.Now()
	err := b.device.Set(peers, nil)
	reply.Took = time.Since(began)
	if err != nil {
		reply.Error = err.Error()
	}
	return nil
}

func (b *Broker) Statuses(_ None, reply *[]link.Status) error {
	*reply = b.device.Statuses()
	return nil
}

func (b *Broker) Changes(_ None, reply *int64) error {
	*reply = b.changes.Load()
	return nil
}

// CPU is the time that processors have worked for the process.
func (b *Broker) CPU(_ None, reply *time.Duration) error {
	var used unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &used)
	*reply = time.Duration(used.Utime.Nano() + used.Stime.Nano())
	return err
}

// Show is what wg(8) would show of a device.
func (b *Broker) Show(name string, reply *wgtypes.Device) error {
	c, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer c.Close()
	found, err := c.Device(name)
	if err == nil {
		*reply = *found
	}
	return err
}

// Tell changes a device as wg(8) does.
func (b *Broker) Tell(config wgtypes.Config, _ *None) error {
	c, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.ConfigureDevice("kubelink", config)
}

func (b *Broker) Close(keep bool, _ *None) error { return b.device.Close(keep) }

// pipe is standard input and output.
type pipe struct {
	io.Reader
	io.Writer
}

func (pipe) Close() error { return nil }

func serveBroker() error {
	s := rpc.NewServer()
	if err := s.Register(new(Broker)); err != nil {
		return err
	}
	s.ServeConn(pipe{os.Stdin, os.Stdout})
	return nil
}

// broker is a Broker as the test sees it.
type broker struct {
	*process
	client *rpc.Client
}

func (h *host) startBroker() *broker {
	h.t.Helper()
	p := h.start("broker")
	return &broker{p, rpc.NewClient(struct {
		io.Reader
		io.WriteCloser
	}{p.stdout, p.stdin})}
}

func call[Reply any](b *broker, method string, args any) Reply {
	b.t.Helper()
	var reply Reply
	if err := b.client.Call("Broker."+method, args, &reply); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	return reply
}

func (b *broker) open(a OpenArgs) {
	b.t.Helper()
	a.Interface = "kubelink"
	call[None](b, "Open", a)
}

func (b *broker) setKey(k mesh.SecretKey) { b.t.Helper(); call[None](b, "SetKey", k) }

func (b *broker) set(peers ...mesh.Peer) time.Duration {
	b.t.Helper()
	reply := call[SetReply](b, "Set", peers)
	if reply.Error != "" {
		b.t.Fatal(reply.Error)
	}
	return reply.Took
}

func (b *broker) statuses() []link.Status {
	b.t.Helper()
	return call[[]link.Status](b, "Statuses", None{})
}
func (b *broker) show() wgtypes.Device {
	b.t.Helper()
	return call[wgtypes.Device](b, "Show", "kubelink")
}

// peer is the peer of the device with the key.
func (b *broker) peer(k mesh.PublicKey) wgtypes.Peer {
	b.t.Helper()
	for _, p := range b.show().Peers {
		if p.PublicKey == wgtypes.Key(k) {
			return p
		}
	}
	b.t.Fatalf("no peer %s", k)
	return wgtypes.Peer{}
}

// awaitStatus waits until the first link has the state, and a reason with the text.
func (b *broker) awaitStatus(state link.State, reason string, within time.Duration) link.Status {
	b.t.Helper()
	var last []link.Status
	for deadline := time.Now().Add(within); ; <-time.After(10 * time.Millisecond) {
		last = b.statuses()
		if len(last) > 0 && last[0].State == state && strings.Contains(last[0].Reason, reason) {
			return last[0]
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("not %s (%s) within %s: %+v\n%s", state, reason, within, last, b.stderr.String())
		}
	}
}

// runStandalone is wireguard-go as its own program runs it: its first argument is the name of the device.
func runStandalone() error {
	name := os.Args[1]
	dev, err := tun.CreateTUN(name, device.DefaultMTU)
	if err != nil {
		return err
	}
	wg := device.NewDevice(dev, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	s, err := serveSocket(name, wg)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	s.close()
	wg.Close()
	return nil
}

// stallSocket begins a request at the socket of a device, and says no more.
func stallSocket() error {
	conn, err := net.Dial("unix", socketPath(os.Args[1]))
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprint(conn, "set=1\n")
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// holdTAP keeps a TAP that ends with it, as a virtual machine does: its first argument is the name.
func holdTAP() error {
	fd, err := tundevice.Open(os.Args[1], unix.IFF_TAP|unix.IFF_NO_PI)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// bufferingConfig makes sockets that lose no packets when their process gets no processor for some seconds.
var bufferingConfig = net.ListenConfig{Control: bufferMany}

func bufferMany(_, _ string, raw syscall.RawConn) error {
	var err error
	e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	})
	return errors.Join(err, e)
}

// runEcho sends packets back that come to UDP port 7 of its first argument, until its standard input ends, and prints
// how many there were.
func runEcho() error {
	c, err := bufferingConfig.ListenPacket(context.Background(), "udp", net.JoinHostPort(os.Args[1], "7"))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	go func() {
		io.Copy(io.Discard, os.Stdin)
		c.Close()
	}()
	b := make([]byte, 1500)
	for count := 0; ; count++ {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			fmt.Printf("got %d\n", count)
			return nil
		}
		c.WriteTo(b[:n], from)
	}
}

// runProbe sends a numbered packet to each of its arguments every two milliseconds until its standard input ends, and
// prints how many did not come back, and to standard error which. Those that are missing then have a second, and far
// longer with a byte of input.
func runProbe() error {
	var conns []net.Conn
	for _, a := range os.Args[1:] {
		c, err := (&net.Dialer{Control: bufferMany}).Dial("udp", net.JoinHostPort(a, "7"))
		if err != nil {
			return err
		}
		conns = append(conns, c)
	}
	end := make(chan time.Time, 1)
	go func() {
		wait := time.Second
		if n, _ := io.Copy(io.Discard, os.Stdin); n > 0 {
			wait = 20 * time.Second
		}
		end <- time.Now().Add(wait)
	}()
	var back atomic.Int64
	var numbers sync.Map // of packets that came back
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			b := make([]byte, 100)
			for {
				n, err := c.Read(b)
				numbers.Store(string(b[:n]), true)
				if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
					return
				} else if err == nil && back.Add(1) == 1 {
					fmt.Println("ready")
				}
			}
		})
	}
	sent, last := int64(0), time.Time{}
	tick := time.NewTicker(2 * time.Millisecond)
	for last.IsZero() {
		select {
		case last = <-end:
		case <-tick.C:
			for _, c := range conns {
				if _, err := fmt.Fprint(c, sent); err == nil {
					sent++
				}
			}
		}
	}
	for back.Load() < sent && time.Now().Before(last) {
		<-tick.C
	}
	for _, c := range conns {
		c.SetReadDeadline(time.Now())
	}
	wg.Wait()
	for n := range sent {
		if _, arrived := numbers.Load(fmt.Sprint(n)); !arrived {
			fmt.Fprintf(os.Stderr, "%d ", n)
		}
	}
	fmt.Printf("lost %d of %d\n", sent-back.Load(), sent)
	return nil
}

// finish ends a probe and returns how many of how many packets it lost.
func (p *process) finish() (lost, sent int) {
	p.t.Helper()
	p.stdin.Close()
	if _, err := fmt.Sscanf(p.await("lost"), "lost %d of %d", &lost, &sent); err != nil {
		p.t.Fatal(err)
	}
	return lost, sent
}
