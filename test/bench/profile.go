package main

// This file takes CPU profiles of the measured processes.

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mandelsoft/kubelink/test/testbed"
)

// Addresses at which the tunnels' processes serve profiles, if the bench is to take some.
const (
	brokerProfile    = "127.0.0.1:6053"
	wireguardProfile = "127.0.0.1:6054"
)

// withProfiles makes the brokers of a fleet serve profiles, if the bench is to take some.
func withProfiles(o choice, corefile string) string {
	if o.profile == "" {
		return corefile
	}
	return strings.Replace(corefile, "\n    errors\n", "\n    errors\n    pprof "+brokerProfile+"\n", 1)
}

// profileCPU takes a profile of the process that serves it at an address of the host. The returned function waits for
// the profile.
func profileCPU(ctx context.Context, h *testbed.Host, address string, d time.Duration, file string) func() error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		body, err := h.Get(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", address, max(1, int(d.Seconds()))))
		if err != nil {
			return err
		}
		return os.WriteFile(file, []byte(body), 0o644)
	})
	return g.Wait
}
