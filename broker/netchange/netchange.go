// Package netchange tells when routes, rules, devices, addresses or their settings have changed (rtnetlink(7)).
package netchange

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// receiveTime is how long a receive waits, and so an end: Close does not interrupt it.
	receiveTime = time.Second
	// firstPause is before a socket that has failed is opened again, and is doubled up to longestPause.
	firstPause   = 100 * time.Millisecond
	longestPause = 10 * time.Second
)

// watcher calls changed when something has changed, and when something may have.
type watcher struct {
	changed func()
	log     *slog.Logger // of failures
	open    func() (socket, error)
	pause   time.Duration // before the next socket; 0: the last one works
}

// socket is an nl.NetlinkSocket as the watcher needs it.
type socket interface {
	Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error)
	Close()
}

var _ socket = (*nl.NetlinkSocket)(nil)

// Watch watches until ctx ends. wg has its goroutine, which takes a second to end. It watches the network namespace of
// the calling thread; where the socket fails and another one takes its place, that of the process.
func Watch(ctx context.Context, wg *sync.WaitGroup, log *slog.Logger, changed func()) error {
	w := &watcher{changed: changed, log: log, open: openSocket}
	return w.start(ctx, wg)
}

// start opens the first socket, and starts the goroutine.
func (w *watcher) start(ctx context.Context, wg *sync.WaitGroup) error {
	s, err := w.open()
	if err != nil {
		return err
	}
	wg.Go(func() {
		for s != nil {
			err := w.receiveAll(ctx, s)
			s.Close()
			if s = nil; err != nil {
				s = w.openAgain(ctx, err)
			}
		}
	})
	return nil
}

// openSocket opens a socket that gets messages about all changes.
func openSocket() (socket, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_NETCONF,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return nil, fmt.Errorf("subscribe to rtnetlink: %w", err)
	}
	if err := s.SetReceiveTimeout(&unix.Timeval{Sec: int64(receiveTime / time.Second)}); err != nil {
		s.Close()
		return nil, fmt.Errorf("subscribe to rtnetlink: %w", err)
	}
	return s, nil
}

// receiveAll receives until ctx ends (nil), or the socket fails. One that lost messages goes on: they were about
// changes.
func (w *watcher) receiveAll(ctx context.Context, s socket) error {
	for ctx.Err() == nil {
		_, _, err := s.Receive()
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS):
			w.changed()
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		default:
			return err
		}
		if w.pause > 0 {
			w.pause = 0
			w.log.Info("changes of routes and devices are noticed at once again")
		}
	}
	return nil
}

// openAgain opens another socket in place of one that has failed; nil: ctx has ended. Before it is open, changes are
// not seen: so everything may have changed.
func (w *watcher) openAgain(ctx context.Context, failed error) socket {
	if w.pause == 0 {
		w.pause = firstPause
		w.log.Warn("changes of routes and devices are noticed late until another netlink socket works", "error", failed)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(w.pause):
		}
		w.pause = min(2*w.pause, longestPause)
		s, err := w.open()
		w.changed()
		if err == nil {
			return s
		}
	}
}
