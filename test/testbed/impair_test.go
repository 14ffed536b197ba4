package testbed

// This file tests the impairments on the networks of two clusters without control planes.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// newWiredTestbed returns a test bed that has networks only.
func newWiredTestbed(t *testing.T, n int) *Testbed {
	t.Helper()
	if !inUse.TryLock() {
		t.Fatal("there is another bed")
	}
	b := &Testbed{opts: Options{Nodes: 1}}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	t.Cleanup(func() { check(t, b.Close()) })
	check(t, b.wireNetworks(n))
	return b
}

func TestImpairments(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := newWiredTestbed(t, 2)
	one, two := b.Clusters[0], b.Clusters[1]
	client, server := one.Gateway(), two.Gateway()

	// The server sends as many bytes as the client asks for, from behind the load balancer of the second cluster.
	l := must(server.Listen("tcp", fmt.Sprintf(":%d", BrokerPort)))(t)
	var size atomic.Int64
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if n := size.Load(); n > 0 {
					conn.Write(make([]byte, n))
				} else {
					io.Copy(conn, conn)
				}
			}()
		}
	}()
	fetch := func(t *testing.T, n int) time.Duration {
		t.Helper()
		size.Store(int64(n))
		defer size.Store(0)
		start := time.Now()
		conn := must(client.DialContext(ctx, "tcp", two.FQDN+":80"))(t)
		defer conn.Close()
		if got, err := io.Copy(io.Discard, conn); err != nil || got != int64(n) {
			t.Fatalf("%d bytes of %d: %v", got, n, err)
		}
		return time.Since(start)
	}
	lost := func(h *Host) (packets int) {
		t.Helper()
		out := must(h.Iptables(ctx, "-t", "raw", "-L", "PREROUTING", "-v", "-x", "-n"))(t)
		if _, err := fmt.Sscan(lastLines(out, 1), &packets); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		return packets
	}

	t.Run("loss", func(t *testing.T) {
		undo := must(Loss(ctx, one, two, 1))(t)
		if _, err := client.Ping(ctx, two.PublicAddress); err == nil {
			t.Error("a ping came through")
		}
		check(t, undo())
		check(t, undo())
		must(client.Ping(ctx, two.PublicAddress))(t)
		undo = must(Loss(ctx, two, one, 0.02))(t)
		const n = 20 << 20
		fetch(t, n)
		if got, want := lost(one.Router), n/1500/50; got < want/2 || got > want*2 { // packets, not bundles
			t.Errorf("%d packets were lost, want about %d", got, want)
		}
		check(t, undo())
	})
	t.Run("rate", func(t *testing.T) {
		undo := must(Rate(ctx, two, 80e6, 50*time.Millisecond))(t)
		took := fetch(t, 10e6)
		if took < 900*time.Millisecond || took > 4*time.Second { // timers may be late
			t.Errorf("10 MB at 10 MB/s took %s", took)
		}
		check(t, undo())
		if took := fetch(t, 10e6); took > 700*time.Millisecond {
			t.Errorf("without limit it takes %s", took)
		}
	})
	t.Run("connections", func(t *testing.T) {
		for _, kill := range []func(*Host, context.Context, Connection) error{(*Host).KillConnection,
			(*Host).resetConnection} {
			for _, remote := range []bool{false, true} { // the host that breaks the connection
				var conns [2]net.Conn
				for i := range conns {
					conns[i] = must(client.DialContext(ctx, "tcp", two.FQDN+":80"))(t)
					defer conns[i].Close()
					conns[i].SetDeadline(time.Now().Add(5 * time.Second))
					must(conns[i].Write([]byte("x")))(t)
					must(conns[i].Read(make([]byte, 1)))(t)
				}
				h, peer := client.Host, two.PublicAddress
				if remote {
					h, peer = server.Host, one.PublicAddress
				}
				port := conns[1].LocalAddr().(*net.TCPAddr).Port
				all := must(h.Connections(ctx, peer))(t)
				i := slices.IndexFunc(all, func(c Connection) bool {
					return int(c.Local.Port()) == port || int(c.Remote.Port()) == port
				})
				if len(all) < 2 || i < 0 {
					t.Fatalf("connections: %v, want that of port %d", all, port)
				}
				done := make(chan error, 1)
				go func() { // a connection in use
					for {
						if _, err := conns[1].Write([]byte("x")); err != nil {
							done <- err
							return
						}
						if _, err := conns[1].Read(make([]byte, 1)); err != nil {
							done <- err
							return
						}
					}
				}()
				check(t, kill(h, ctx, all[i]))
				if err := <-done; errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
					t.Errorf("the connection lives on: %v", err)
				}
				must(conns[0].Write([]byte("x")))(t)
				must(conns[0].Read(make([]byte, 1)))(t)
			}
		}
	})
	t.Run("MTU and fragments", func(t *testing.T) {
		n := one.Gateway()
		p := &Pod{Host: must(b.newHost("pod", resolver{}, nil))(t), Node: n, device: "cali9"}
		check(t, n.wirePod(p.Host, p.device, nthAddress(n.Pods.Addr(), 9)))
		undo := must(p.SetMTU(1000))(t)
		c := must(n.ListenPacket("udp4", ":0"))(t)
		send := func() int {
			before := must(n.Counter(ctx, "Ip", "FragCreates"))(t)
			must(c.WriteTo(make([]byte, 1400), &net.UDPAddr{IP: nthAddress(n.Pods.Addr(), 9).AsSlice(), Port: 9}))(t)
			return must(n.Counter(ctx, "Ip", "FragCreates"))(t) - before
		}
		check(t, n.Sysctl("net.ipv4.ip_no_pmtu_disc=1")) // otherwise the socket is told
		if n := send(); n != 2 {
			t.Errorf("%d fragments", n)
		}
		check(t, undo())
		if n := send(); n != 0 {
			t.Errorf("%d fragments without limit", n)
		}
	})
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
