package kernel

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bindClaim binds a socket of claims in this network namespace, as a user. It does not listen without listen.
func bindClaim(t *testing.T, socket string, user int, listen bool) (fd int) {
	t.Helper()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	bound := make(chan int)
	go func() {
		runtime.LockOSThread() // the thread keeps the user to its end
		if err := netns.Set(here); err != nil {
			t.Error(err)
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(user), uintptr(user), uintptr(user)); errno != 0 {
			t.Error(errno)
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: socket})
		}
		if err == nil && listen {
			err = unix.Listen(fd, 128)
		}
		if err != nil {
			t.Error(err)
		}
		bound <- fd
	}()
	return <-bound
}

// logFunc is called with each line of a log.
type logFunc func(line string)

func (f logFunc) Write(b []byte) (int, error) { f(string(b)); return len(b), nil }

// A kubelink waits for another one that is about to end, and says so; not for longer than it can, and not for a process
// of another user.
func TestClaim(t *testing.T) {
	const other = 65534
	for _, c := range []struct {
		name   string
		user   int
		listen bool
		ends   bool // when the log says that the broker waits
		fails  string
		says   string
	}{
		{"it ends", os.Geteuid(), true, true, "", "another kubelink carries links in this network namespace: waiting"},
		{"it stays", os.Geteuid(), true, false, "another kubelink carries links in this network namespace, process",
			"waiting for its end"},
		{"another user has the socket", other, true, false, "", "a process that is no kubelink has the socket"},
		{"nothing listens", os.Geteuid(), false, false, "", "a process that is no kubelink has the socket"},
		{"router, it ends", os.Geteuid(), true, true, "",
			"another kubelink-router sets routes in this network namespace: waiting"},
		{"router, it stays", os.Geteuid(), true, false,
			"another kubelink-router sets routes in this network namespace, process", "waiting for its end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			enter(t)
			claim, said := &Claim{limit: 2 * time.Second, Router: strings.HasPrefix(c.name, "router")}, ""
			fd := bindClaim(t, claim.claimant().socket, c.user, c.listen)
			closeOnce := sync.OnceFunc(func() { unix.Close(fd) })
			defer closeOnce()
			if c.ends {
				claim.limit = time.Minute
			}
			log := logFunc(func(line string) {
				said += line
				if c.ends {
					closeOnce()
				}
			})
			err := claim.Acquire(t.Context(), slog.New(slog.NewTextHandler(log, nil)))
			if (err != nil) != (c.fails != "") || err != nil && !strings.HasPrefix(err.Error(), c.fails) {
				t.Errorf("%v, want %q", err, c.fails)
			}
			if !strings.Contains(said, c.says) {
				t.Errorf("it says %q, want %q", said, c.says)
			}
			claim.Release()
		})
	}
	t.Run("free", func(t *testing.T) {
		enter(t)
		one, two := &Claim{}, &Claim{limit: time.Millisecond}
		for range 2 { // a second time is no other claim
			if err := one.Acquire(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(err)
			}
		}
		if err := two.Acquire(t.Context(), slog.New(slog.DiscardHandler)); err == nil {
			t.Error("two processes have it")
		}
		one.Release()
		if err := two.Acquire(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
		router := &Claim{Router: true, limit: time.Millisecond}
		if err := router.Acquire(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("a router beside a broker: %v", err)
		}
		router.Release()
		ended, end := context.WithCancel(t.Context())
		end()
		if err := one.Acquire(ended, slog.New(slog.DiscardHandler)); !errors.Is(err, context.Canceled) {
			t.Errorf("a process that is to end waits: %v", err)
		}
		two.Release()
		if _, err := net.Dial("unix", brokerClaimant.socket); err == nil {
			t.Error("still bound")
		}
	})
}
