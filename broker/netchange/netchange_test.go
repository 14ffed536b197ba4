package netchange

// A real socket in a network namespace, and sockets that fail.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// brokenSocket fails after some receives.
type brokenSocket struct {
	results []error
	closed  *int
}

func (s *brokenSocket) Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error) {
	err := s.results[0]
	s.results = s.results[1:]
	return nil, nil, err
}

func (s *brokenSocket) Close() { *s.closed++ }

// A socket that fails is closed, and another one takes its place; what changed in between is told. The log says it
// once, however many sockets fail.
func TestReopen(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var text bytes.Buffer
	closed, opened, changes := 0, 0, 0
	refused := errors.New("no socket")
	sockets := []any{
		&brokenSocket{[]error{nil, unix.ENOBUFS, unix.EAGAIN, unix.EINTR, unix.ENOMEM}, &closed}, // 2 changes
		refused, // 1
		&brokenSocket{[]error{unix.EBADF}, &closed},                   // 1
		&brokenSocket{[]error{nil, unix.EAGAIN, unix.EBADF}, &closed}, // 2
		nil, // 1: the end
	}
	w := &watcher{changed: func() { changes++ }, log: slog.New(slog.NewTextHandler(&text, nil))}
	w.open = func() (socket, error) {
		next := sockets[opened]
		opened++
		switch x := next.(type) {
		case *brokenSocket:
			return x, nil
		case error:
			return nil, x
		}
		stop()
		return nil, refused
	}
	var wg sync.WaitGroup
	if err := w.start(ctx, &wg); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if opened != len(sockets) || closed != 3 || changes != 7 {
		t.Errorf("%d sockets opened, %d closed, %d changes", opened, closed, changes)
	}
	late, again := strings.Count(text.String(), "noticed late"), strings.Count(text.String(), "at once again")
	if late != 2 || again != 1 {
		t.Errorf("log:\n%s", text.String())
	}
}

// A socket that is full loses messages (ENOBUFS), and goes on to tell of changes.
func TestNamespaceOverflow(t *testing.T) {
	runtime.LockOSThread() // the thread ends with the goroutine
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (as root): %v", err)
	}
	defer ns.Close()
	run := func(command, input string) {
		t.Helper()
		c := exec.Command("sh", "-c", command)
		c.Stdin = strings.NewReader(input)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	changes, blocked := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	first := true
	err = Watch(ctx, &wg, slog.New(slog.DiscardHandler), func() {
		if first {
			first = false
			close(blocked)
		}
		select {
		case changes <- struct{}{}:
		case <-ctx.Done():
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	run("ip link set lo up", "")
	<-blocked // and stays so until the socket is full
	var batch strings.Builder
	for i := range 4000 {
		fmt.Fprintf(&batch, "route add unreachable 100.64.%d.%d/32\n", i/250, i%250)
	}
	run("ip -batch -", batch.String())
	lost := func() bool {
		text, err := os.ReadFile("/proc/thread-self/net/netlink")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
			if f := strings.Fields(line); f[1] == "0" && f[2] == fmt.Sprint(os.Getpid()) && f[8] != "0" {
				return true
			}
		}
		return false
	}
	if !lost() {
		t.Fatal("the socket was never full")
	}
	drain := func() (n int) {
		for {
			select {
			case <-changes:
				n++
			case <-time.After(2 * receiveTime): // longer than any receive
				return n
			}
		}
	}
	if n := drain(); n < 2 {
		t.Errorf("%d changes after the overflow", n)
	}
	run("ip link set lo down", "")
	if drain() == 0 {
		t.Error("no change is told after the overflow")
	}
}
