// Package peer speaks the legacy wire format of brokers at the byte level: TLS, frames of length, type and payload, a
// hello of 80 bytes. It does not use broker/bridge. Tests use a peer as an attacker or as a legacy broker. Hundreds
// of peers are the other clusters of a large mesh (stub.go).
package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/mandelsoft/kubelink/test/testbed"
)

// Types of frames.
const (
	Packet byte = 0
	Hello  byte = 1
)

// Peer is an end of a connection to a broker.
type Peer struct{ net.Conn }

// Config returns the configuration for connections in both directions: it has a certificate of ca for the names, and
// trusts the certificates of trusted.
func Config(ca, trusted *testbed.CA, names ...string) (*tls.Config, error) {
	certPEM, keyPEM, err := ca.Issue(names, nil)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(trusted.PEM)
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13,
		ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
	}, nil
}

// Dial connects from a host to the broker at an address. The broker needs a certificate for the name. The deadline of
// ctx applies to the connection, too.
func Dial(ctx context.Context, from *testbed.Host, address, name string, config *tls.Config) (*Peer, error) {
	conn, err := from.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	config = config.Clone()
	config.ServerName = name
	t := tls.Client(conn, config)
	if deadline, ok := ctx.Deadline(); ok {
		t.SetDeadline(deadline)
	}
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return &Peer{t}, nil
}

// Send sends a frame.
func (p *Peer) Send(kind byte, payload []byte) error {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(payload)))
	_, err := p.Write(append(append(b, kind), payload...))
	return err
}

// Hello announces an address and a service network.
func (p *Peer) Hello(address, service netip.Prefix) error {
	b := make([]byte, 80)
	for i, n := range []netip.Prefix{address, service} {
		ip := n.Addr().As16()
		copy(b[i*32:], ip[:])
		copy(b[i*32+28:], net.CIDRMask(n.Bits(), 32)) // the short form of the mask
	}
	binary.BigEndian.PutUint16(b[64:], 80)
	return p.Send(Hello, b)
}

// Receive returns the next frame.
func (p *Peer) Receive() (kind byte, payload []byte, err error) {
	var head [3]byte
	if _, err := io.ReadFull(p, head[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, binary.BigEndian.Uint16(head[:]))
	_, err = io.ReadFull(p, payload)
	return head[2], payload, err
}

// Ended waits until the broker ends the connection. A packet before that is an error.
func (p *Peer) Ended() error {
	for {
		kind, _, err := p.Receive()
		switch {
		case err == nil && kind == Packet:
			return fmt.Errorf("a packet came")
		case err == nil:
			continue
		}
		if e, ok := err.(net.Error); ok && e.Timeout() {
			return fmt.Errorf("the connection was not ended: %w", err)
		}
		return nil
	}
}

// Datagram receives frames until one has a UDP datagram, and returns its source and content.
func (p *Peer) Datagram(limit time.Duration) (from netip.AddrPort, content []byte, err error) {
	p.SetReadDeadline(time.Now().Add(limit))
	for {
		kind, b, err := p.Receive()
		if err != nil {
			return netip.AddrPort{}, nil, err
		}
		if from, _, content, ok := ParseUDP(b); ok && kind == Packet {
			return from, content, nil
		}
	}
}

// UDP composes an IPv4 packet with a UDP datagram in it.
func UDP(from, to netip.AddrPort, content []byte) []byte {
	u := binary.BigEndian.AppendUint16(nil, from.Port())
	u = binary.BigEndian.AppendUint16(u, to.Port())
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(content)))
	u = append(u, 0, 0) // no checksum
	u = append(u, content...)
	h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0}
	h = append(append(h, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(u)))
	SetChecksum(h)
	return append(h, u...)
}

// SetChecksum sets the checksum of an IPv4 header without options (RFC 791), with which packet begins.
func SetChecksum(packet []byte) {
	h := packet[:20]
	h[10], h[11] = 0, 0
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
}

// ParseUDP returns addresses and content of a packet like those of UDP. ok is false for any other packet.
func ParseUDP(b []byte) (from, to netip.AddrPort, content []byte, ok bool) {
	if len(b) < 28 || b[0] != 0x45 || b[9] != 17 {
		return from, to, nil, false
	}
	from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(b[20:]))
	to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), binary.BigEndian.Uint16(b[22:]))
	end := 20 + int(binary.BigEndian.Uint16(b[24:]))
	if end < 28 || end > len(b) {
		return from, to, nil, false
	}
	return from, to, b[28:end], true
}
