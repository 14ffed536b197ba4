package e2e

// A peer at the byte level of the former wire format (TLS, frames of length, type, payload; a hello of
// 80 bytes), written apart from broker/bridge: an attacker, or a broker of the former system.

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/mandelsoft/kubelink/test/bed"
	"github.com/mandelsoft/kubelink/test/fleet"
)

type rawPeer struct{ conn net.Conn }

// identity is a certificate of ca for the names, and the authority that the brokers trust.
func identity(ca *bed.CA, names ...string) (cert tls.Certificate, roots *x509.CertPool, err error) {
	certPEM, keyPEM, err := ca.Issue(names, nil)
	if err != nil {
		return cert, nil, err
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(f.CA.PEM)
	cert, err = tls.X509KeyPair(certPEM, keyPEM)
	return cert, roots, err
}

// dialRaw connects from a host to a broker with a certificate of ca for the names.
func dialRaw(ctx context.Context, from *bed.Host, to *fleet.Broker, ca *bed.CA, names ...string) (*rawPeer, error) {
	cert, roots, err := identity(ca, names...)
	if err != nil {
		return nil, err
	}
	conn, err := from.DialContext(ctx, "tcp", to.FQDN+":80")
	if err != nil {
		return nil, err
	}
	t := tls.Client(conn, &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, ServerName: to.FQDN, MinVersion: tls.VersionTLS13})
	if deadline, ok := ctx.Deadline(); ok {
		t.SetDeadline(deadline)
	}
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return &rawPeer{t}, nil
}

func (p *rawPeer) frame(kind byte, payload []byte) error {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(payload)))
	_, err := p.conn.Write(append(append(b, kind), payload...))
	return err
}

// hello announces an address, and a service network.
func (p *rawPeer) hello(address, service netip.Prefix) error {
	b := make([]byte, 80)
	for i, n := range []netip.Prefix{address, service} {
		ip := n.Addr().As16()
		copy(b[i*32:], ip[:])
		copy(b[i*32+28:], net.CIDRMask(n.Bits(), 32)) // the short form of the mask
	}
	binary.BigEndian.PutUint16(b[64:], 80)
	return p.frame(1, b)
}

// read returns the next frame.
func (p *rawPeer) read() (kind byte, payload []byte, err error) {
	var head [3]byte
	if _, err := io.ReadFull(p.conn, head[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, binary.BigEndian.Uint16(head[:]))
	_, err = io.ReadFull(p.conn, payload)
	return head[2], payload, err
}

// ended waits until the broker has ended the connection, and tells whether any packet came before.
func (p *rawPeer) ended() error {
	for {
		kind, _, err := p.read()
		switch {
		case err == nil && kind == 0:
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

// udp composes an IPv4 packet with a UDP datagram in it.
func udp(from, to netip.AddrPort, text string) []byte {
	u := binary.BigEndian.AppendUint16(nil, from.Port())
	u = binary.BigEndian.AppendUint16(u, to.Port())
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(text)))
	u = append(u, 0, 0) // no checksum
	u = append(u, text...)
	h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0}
	h = append(append(h, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(u)))
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	return append(h, u...)
}

// answer reads until a UDP datagram comes, and returns source and text.
func (p *rawPeer) answer(limit time.Duration) (netip.AddrPort, string, error) {
	p.conn.SetReadDeadline(time.Now().Add(limit))
	for {
		kind, b, err := p.read()
		if err != nil {
			return netip.AddrPort{}, "", err
		}
		if kind != 0 || len(b) < 28 || b[0] != 0x45 || b[9] != 17 {
			continue
		}
		from, _ := netip.AddrFromSlice(b[12:16])
		return netip.AddrPortFrom(from, binary.BigEndian.Uint16(b[20:])), string(bytes.TrimRight(b[28:], "\x00")), nil
	}
}
