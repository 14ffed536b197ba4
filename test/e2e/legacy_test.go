package e2e

// A legacy broker, as far as its bare wire format goes: a TUN without offloads, one TLS connection, one packet per
// frame. It replaces the broker of the third cluster, and the pods of that cluster use it.

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/songgao/water"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/peer"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const (
	legacyDevice  = "legacy"
	legacyPayload = 17000 // the largest payload that it reads
)

// legacyBroker is a legacy broker in a cluster, with one peer.
type legacyBroker struct {
	tun     *water.Interface
	config  *tls.Config
	largest atomic.Int64 // size of the largest packet received
}

// newLegacyBroker makes the TUN of a legacy broker in the gateway node of b's cluster, with the routes to the peer.
func newLegacyBroker(ctx context.Context, b, other *fleet.Broker) (*legacyBroker, error) {
	node := b.Gateway()
	o := &legacyBroker{}
	var err error
	if o.config, err = peer.Config(f.CA, f.CA, b.FQDN); err != nil {
		return nil, err
	}
	if err := node.Do(func() (err error) {
		o.tun, err = water.New(water.Config{DeviceType: water.TUN,
			PlatformSpecificParams: water.PlatformSpecificParams{Name: legacyDevice}})
		return err
	}); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"link", "set", legacyDevice, "up"}, // its MTU is 1500
		{"address", "add", b.MeshAddress.String(), "dev", legacyDevice},
		{"route", "add", other.ServiceCIDR.String(), "dev", legacyDevice},
	} {
		if _, err := node.Run(ctx, "ip", args...); err != nil {
			o.tun.Close()
			return nil, err
		}
	}
	return o, nil
}

// acceptPeer waits until the peer connects. It closes other connections.
func (o *legacyBroker) acceptPeer(ctx context.Context, l net.Listener, other *fleet.Broker) (net.Conn, error) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return nil, err
		}
		t := tls.Server(conn, o.config)
		if err := t.HandshakeContext(ctx); err == nil &&
			slices.Contains(t.ConnectionState().PeerCertificates[0].DNSNames, other.FQDN) {
			return t, nil
		}
		conn.Close()
	}
}

// carryPackets carries packets between TUN and connection until the connection ends. The error says what a legacy
// broker would not have understood.
func (o *legacyBroker) carryPackets(conn net.Conn) error {
	ended := make(chan struct{})
	go func() { // from the TUN to the peer; a deadline interrupts the read
		defer close(ended)
		for b := make([]byte, 3+1<<16); ; {
			n, err := o.tun.Read(b[3:])
			if err != nil {
				return
			}
			binary.BigEndian.PutUint16(b, uint16(n))
			b[2] = 0
			if _, err := conn.Write(b[:3+n]); err != nil {
				return
			}
		}
	}()
	err := o.readFrames(conn)
	conn.Close()
	file := o.tun.ReadWriteCloser.(*os.File)
	file.SetReadDeadline(time.Now())
	<-ended
	file.SetReadDeadline(time.Time{})
	return err
}

func (o *legacyBroker) readFrames(conn net.Conn) error {
	r := bufio.NewReaderSize(conn, 64<<10)
	b := make([]byte, legacyPayload)
	for first := true; ; first = false {
		var head [3]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil // the end of the connection
		}
		n, kind := int(binary.BigEndian.Uint16(head[:])), head[2]
		if n > len(b) {
			return fmt.Errorf("a frame of type %d has %d bytes of payload", kind, n)
		}
		if _, err := io.ReadFull(r, b[:n]); err != nil {
			return nil
		}
		switch {
		case first && kind != 1:
			return fmt.Errorf("the first frame has type %d", kind)
		case first && n < 80:
			return fmt.Errorf("the hello has %d bytes", n)
		case first:
			continue
		case kind != 0:
			return fmt.Errorf("a frame of type %d", kind)
		case n < 20 || b[0]>>4 != 4 || int(binary.BigEndian.Uint16(b[2:])) != n:
			return fmt.Errorf("a frame of %d bytes is not one IPv4 packet: %x", n, b[:min(n, 20)])
		case n > 1500:
			return fmt.Errorf("a packet of %d bytes: the device and the pods take 1500", n)
		}
		if int64(n) > o.largest.Load() {
			o.largest.Store(int64(n))
		}
		// The kernel checks the checksums of packets from a TUN without offloads, because they cannot be marked as good.
		if _, err := o.tun.Write(b[:n]); err != nil {
			return fmt.Errorf("write a packet of %d bytes to the TUN: %w", n, err)
		}
	}
}

// kubelink talks to a legacy broker as before: one complete packet per frame, of a size that fits.
func TestLegacyPeerTransfer(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	one, third := brokers[0], brokers[2]
	must(t, third.Kill(ctx, syscall.SIGTERM))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must(t, third.Start(ctx))
		must(t, f.WaitMesh(ctx))
	})
	o, err := newLegacyBroker(ctx, third, one)
	must(t, err)
	t.Cleanup(func() { o.tun.Close() })
	serve := func(t *testing.T, conn net.Conn, use func(context.Context)) {
		t.Helper()
		must(t, (&peer.Peer{Conn: conn}).Hello(third.MeshAddress, third.ServiceCIDR))
		ctx, cancel := context.WithCancel(ctx) // a frame that the broker does not understand ends the use
		served := runInBackground(func() error { defer cancel(); return o.carryPackets(conn) })
		defer func() {
			conn.Close()
			if err := served(); err != nil {
				t.Errorf("a legacy broker was sent what it does not understand: %v", err)
			}
		}()
		must(t, one.WaitState(ctx, third.Name, v1alpha1.StateUp))
		use(ctx)
		if n := o.largest.Load(); n != 1500 {
			t.Errorf("the largest packet had %d bytes", n)
		}
	}
	t.Run("it dials", func(t *testing.T) {
		conn, err := peer.Dial(ctx, third.Gateway().Host, one.FQDN+":80", one.FQDN, o.config)
		must(t, err)
		serve(t, conn, func(ctx context.Context) {
			checkTraffic(t, ctx, 0, 2)
			checkLegacyServices(t, ctx)
		})
	})
	t.Run("it is dialled", func(t *testing.T) {
		l, err := third.Gateway().Listen("tcp", fmt.Sprintf(":%d", testbed.BrokerPort))
		must(t, err)
		defer l.Close()
		var conn net.Conn
		accepted := make(chan error, 1)
		go func() {
			var err error
			conn, err = o.acceptPeer(ctx, l, one)
			accepted <- err
		}()
		select {
		case err := <-accepted:
			must(t, err)
		case <-time.After(15 * time.Second):
			t.Fatal(errors.New("the peer does not dial"))
		}
		serve(t, conn, func(ctx context.Context) {
			must(t, transfer(ctx, clients[0], servers[2].service, 10<<20, 0))
			must(t, transfer(ctx, clients[2], servers[0].service, 10<<20, 0))
		})
	})
}
