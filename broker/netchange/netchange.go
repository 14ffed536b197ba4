// Package netchange tells when routes, rules, devices, addresses or their settings have changed (rtnetlink(7)).
package netchange

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch calls changed when something has changed, until ctx ends. wg has its goroutine, which takes a second to end. It
// watches the network namespace of the calling thread.
func Watch(ctx context.Context, wg *sync.WaitGroup, changed func()) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_NETCONF,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return fmt.Errorf("subscribe to rtnetlink: %w", err)
	}
	// A second is how long an end may take: Close does not interrupt a receive.
	if err := socket.SetReceiveTimeout(&unix.Timeval{Sec: 1}); err != nil {
		socket.Close()
		return fmt.Errorf("subscribe to rtnetlink: %w", err)
	}
	wg.Go(func() {
		defer socket.Close()
		for ctx.Err() == nil {
			_, _, err := socket.Receive()
			switch {
			case err == nil, errors.Is(err, unix.ENOBUFS): // more than the socket holds: something has changed
				changed()
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			default:
				return
			}
		}
	})
	return nil
}
