package peer

// This file has a WireGuard peer that is no kubelink: wireguard-go in this process, with its sockets on a host of the
// test bed. Its packets are those of the host's kernel, or single ones, which a test writes and reads.

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// Tunnel is such a peer.
type Tunnel struct {
	host *testbed.Host
	dev  *device.Device
}

// Far is the other end of a tunnel.
type Far struct {
	Key       mesh.PublicKey
	Preshared mesh.SecretKey // zero: none
	Endpoint  netip.AddrPort // zero: it dials
	Allowed   []netip.Prefix
}

// OpenTunnel makes a network device of the host, without addresses and routes. It is up.
func OpenTunnel(ctx context.Context, host *testbed.Host, name string, key mesh.SecretKey, port uint16, far ...Far) (
	t *Tunnel, err error,
) {
	var dev tun.Device
	if err := host.Do(func() (err error) {
		dev, err = tun.CreateTUN(name, device.DefaultMTU)
		return err
	}); err != nil {
		return nil, fmt.Errorf("make TUN: %w", err)
	}
	if t, err = newTunnel(host, dev, key, port, far...); err != nil {
		return nil, err
	}
	if _, err := host.Run(ctx, "ip", "link", "set", name, "up"); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func newTunnel(host *testbed.Host, dev tun.Device, key mesh.SecretKey, port uint16, far ...Far) (*Tunnel, error) {
	t := &Tunnel{host: host,
		dev: device.NewDevice(dev, hostBind{conn.NewDefaultBind(), host}, device.NewLogger(device.LogLevelSilent, ""))}
	err := t.Set(key, port, far...)
	if err == nil {
		err = t.dev.Up()
	}
	if err != nil {
		t.dev.Close()
		return nil, err
	}
	return t, nil
}

// hostBind opens its sockets on a host. wireguard-go opens them when it is told to, and on a thread of its own when it
// sees that the network device is up.
type hostBind struct {
	conn.Bind
	host *testbed.Host
}

func (b hostBind) Open(port uint16) (receive []conn.ReceiveFunc, actual uint16, err error) {
	err = b.host.Do(func() (err error) {
		receive, actual, err = b.Bind.Open(port)
		return err
	})
	return receive, actual, err
}

// Set sets key, port and peers. Peers that are there stay.
func (t *Tunnel) Set(key mesh.SecretKey, port uint16, far ...Far) error {
	var config strings.Builder
	fmt.Fprintf(&config, "private_key=%s\nlisten_port=%d\n", hex.EncodeToString(key[:]), port)
	for _, f := range far {
		fmt.Fprintf(&config, "public_key=%s\npreshared_key=%s\n", hex.EncodeToString(f.Key[:]),
			hex.EncodeToString(f.Preshared[:]))
		if f.Endpoint.IsValid() {
			fmt.Fprintf(&config, "endpoint=%s\npersistent_keepalive_interval=21\n", f.Endpoint)
		}
		fmt.Fprintln(&config, "replace_allowed_ips=true")
		for _, a := range f.Allowed {
			fmt.Fprintf(&config, "allowed_ip=%s\n", a)
		}
	}
	return t.dev.IpcSet(config.String())
}

// Close ends it, and removes its network device.
func (t *Tunnel) Close() { t.dev.Close() }

// DialTunnel makes a tunnel whose packets are those that the Peer sends and receives. It has no other frames.
func DialTunnel(host *testbed.Host, key mesh.SecretKey, port uint16, far ...Far) (*Peer, error) {
	near, end := net.Pipe()
	dev := &pipeTUN{conn: end, events: make(chan tun.Event)}
	t, err := newTunnel(host, dev, key, port, far...)
	if err != nil {
		return nil, err
	}
	return &Peer{tunnelConn{near, t}}, nil
}

// tunnelConn ends the tunnel with the connection.
type tunnelConn struct {
	net.Conn
	tunnel *Tunnel
}

func (c tunnelConn) Close() error {
	c.Conn.Close()
	c.tunnel.Close()
	return nil
}

// pipeTUN is a network device in memory: packets are frames of a connection.
type pipeTUN struct {
	conn   net.Conn
	events chan tun.Event
	once   sync.Once
}

// Read returns the next packet for the tunnel.
func (p *pipeTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		var head [3]byte
		if _, err := io.ReadFull(p.conn, head[:]); err != nil {
			return 0, os.ErrClosed
		}
		payload := make([]byte, binary.BigEndian.Uint16(head[:]))
		if _, err := io.ReadFull(p.conn, payload); err != nil {
			return 0, os.ErrClosed
		}
		if head[2] == Packet {
			sizes[0] = copy(bufs[0][offset:], payload)
			return 1, nil
		}
	}
}

// Write takes packets from the tunnel.
func (p *pipeTUN) Write(bufs [][]byte, offset int) (int, error) {
	for i, b := range bufs {
		if err := (&Peer{p.conn}).Send(Packet, b[offset:]); err != nil {
			return i, os.ErrClosed
		}
	}
	return len(bufs), nil
}

func (p *pipeTUN) Close() error {
	p.once.Do(func() { p.conn.Close(); close(p.events) })
	return nil
}

func (p *pipeTUN) File() *os.File           { return nil }
func (p *pipeTUN) MTU() (int, error)        { return device.DefaultMTU, nil }
func (p *pipeTUN) Name() (string, error)    { return "pipe", nil }
func (p *pipeTUN) Events() <-chan tun.Event { return p.events }
func (p *pipeTUN) BatchSize() int           { return 1 }
