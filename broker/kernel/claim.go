package kernel

// The claim of a network namespace: one process at a time may change what is ours there.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// claimWait is how long a process waits for the end of another one: a pod that is about to end may live a while beside
	// the next one. It is shorter than a liveness probe waits for this process.
	claimWait  = 20 * time.Second
	claimRetry = 100 * time.Millisecond
)

// claimant is a program that claims a network namespace. The name of its socket is abstract (unix(7)): such sockets
// belong to the network namespace, as our chains, routes and rules do.
type claimant struct {
	socket, name, activity, remedy string
}

var (
	brokerClaimant = claimant{"@kubelink", "kubelink", "carries links", "end it first"}
	routerClaimant = claimant{"@kubelink-router", "kubelink-router", "sets routes",
		"end it first, and let one DaemonSet run it (kubectl get daemonsets -A)"}
)

// Claim makes sure that one process at a time carries links in this network namespace, and that one router at a time
// sets routes. Its methods are not called concurrently.
type Claim struct {
	Router   bool         // the process is a router, which may run beside a broker
	listener net.Listener // nil: not acquired, or a stranger has the socket
	accepts  sync.WaitGroup
	limit    time.Duration // tests: instead of claimWait
}

func (c *Claim) claimant() *claimant {
	if c.Router {
		return &routerClaimant
	}
	return &brokerClaimant
}

// Acquire takes the claim, unless this process has it already. It waits for a process that is about to end. Any process
// of the node can bind the socket; one of another user is no kubelink, and keeps no links away.
func (c *Claim) Acquire(ctx context.Context, log *slog.Logger) error {
	if c.listener != nil {
		return nil
	}
	who, start, told, limit := c.claimant(), time.Now(), false, cmp.Or(c.limit, claimWait)
	for {
		l, err := net.Listen("unix", who.socket)
		if err == nil {
			c.listener = l
			c.accepts.Go(func() { acceptClaims(l) })
			return nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("claim this network namespace: %w", err)
		}
		owner, err := claimOwner(who.socket)
		waited := time.Since(start)
		switch {
		case err == nil && int(owner.Uid) != os.Geteuid(), err != nil && waited > time.Second:
			log.Warn("a process that is no kubelink has the socket of kubelink: going on without it. Make sure that only one "+
				who.name+" "+who.activity+" in this network namespace", "socket", who.socket, "user", owner.Uid, "error", err)
			return nil
		case waited > limit:
			return fmt.Errorf("another %s %s in this network namespace, process %d, and has not ended for %s: %s",
				who.name, who.activity, owner.Pid, limit, who.remedy)
		case !told && err == nil:
			log.Info("another "+who.name+" "+who.activity+" in this network namespace: waiting for its end",
				"process", owner.Pid, "limit", limit)
			told = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(claimRetry):
		}
	}
}

// acceptClaims ends the connections of processes that ask which process has the claim.
func acceptClaims(l net.Listener) {
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			conn.Close()
		case errors.Is(err, net.ErrClosed):
			return
		default: // out of file descriptors, most likely
			time.Sleep(claimRetry)
		}
	}
}

// claimOwner tells which process has bound the socket: see SO_PEERCRED in unix(7). An error says that it does not
// listen, as a kubelink does, or that it has just ended.
func claimOwner(socket string) (unix.Ucred, error) {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return unix.Ucred{}, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return unix.Ucred{}, err
	}
	var owner *unix.Ucred
	failed := raw.Control(func(fd uintptr) {
		owner, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(failed, err); err != nil {
		return unix.Ucred{}, err
	}
	return *owner, nil
}

// Release lets another process take the claim.
func (c *Claim) Release() {
	if c.listener != nil {
		c.listener.Close()
		c.accepts.Wait()
		c.listener = nil
	}
}
