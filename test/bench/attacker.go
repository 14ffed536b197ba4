package main

// This file is the attacker of the attack bench: a process of its own, with one thread of Go code at the lowest
// priority, so that the attacked broker loses the time of its own work only. The bench binary is that program, too:
// `bench attacker KIND ADDRESS`.

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	attackerCommand = "attacker"
	// variable with the certificate and key of a peer, in PEM form
	attackerCertificate = "BENCH_ATTACKER"
)

// The attacks.
const (
	manyCertificates = "certificates" // a stranger: 20 connections/s with 100 certificates each
	manyConnections  = "connections"  // a stranger: 300 connections/s, which stay open and say little
	idleMember       = "idle"         // a peer with a certificate: 72 connections without a hello, made anew at once
)

// attacker makes connections to an address until the end of ctx.
type attacker struct {
	address string
	made    atomic.Int64
}

// runAttacker is the main function of the process. It says how many connections it has made, each second.
func runAttacker(kind, address string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &attacker{address: address}
	attack, err := a.prepare(kind)
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacker:", err)
		return 1
	}
	fmt.Println("ready")
	go func() {
		for range time.Tick(time.Second) {
			fmt.Println(a.made.Load(), "connections")
		}
	}()
	attack(ctx)
	return 0
}

// prepare returns the attack.
func (a *attacker) prepare(kind string) (func(context.Context), error) {
	switch kind {
	case manyCertificates:
		chain, err := newHostileChain(100)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) {
			a.connectAt(ctx, 20, 100, func(conn net.Conn) { holdTLS(ctx, conn, chain) })
		}, nil
	case manyConnections:
		hello, err := recordClientHello()
		if err != nil {
			return nil, err
		}
		var n atomic.Int64
		return func(ctx context.Context) {
			a.connectAt(ctx, 300, 1000, func(conn net.Conn) {
				if n.Add(1)%2 == 0 { // the other ones say nothing
					conn.Write(hello)
				}
				holdOpen(ctx, conn)
			})
		}, nil
	case idleMember:
		text := []byte(os.Getenv(attackerCertificate))
		cert, err := tls.X509KeyPair(text, text)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) {
			var wg sync.WaitGroup
			for range 72 {
				wg.Go(func() {
					for ctx.Err() == nil {
						a.connect(ctx, func(conn net.Conn) { holdTLS(ctx, conn, cert) })
					}
				})
			}
			wg.Wait()
		}, nil
	}
	return nil, fmt.Errorf("no attack %q", kind)
}

// connectAt makes connections at a rate per second, of which limit are open at most: an attacker has bounds, too.
func (a *attacker) connectAt(ctx context.Context, rate, limit int, use func(net.Conn)) {
	ticker := time.NewTicker(time.Second / time.Duration(rate))
	defer ticker.Stop()
	room := make(chan struct{}, limit)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		select {
		case room <- struct{}{}:
			wg.Go(func() {
				a.connect(ctx, use)
				<-room
			})
		default:
		}
	}
}

func (a *attacker) connect(ctx context.Context, use func(net.Conn)) {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "tcp", a.address)
	if err != nil {
		return
	}
	defer conn.Close()
	a.made.Add(1)
	use(conn)
}

// holdOpen keeps a connection open until the other end closes it, for 10 s at most.
func holdOpen(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	for buffer := make([]byte, 4096); ; {
		if _, err := conn.Read(buffer); err != nil {
			return
		}
	}
}

// holdTLS does the same with a TLS session, in which it says nothing.
func holdTLS(ctx context.Context, conn net.Conn, cert tls.Certificate) {
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	s := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})
	if s.HandshakeContext(ctx) == nil {
		holdOpen(ctx, s)
	}
}

// recordClientHello returns the first message of TLS. Sending it again and again costs the attacker nothing, while the
// other end computes keys and a signature for each.
func recordClientHello() ([]byte, error) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	go tls.Client(theirs, &tls.Config{InsecureSkipVerify: true}).Handshake()
	buffer := make([]byte, 16<<10)
	n, err := ours.Read(buffer)
	return buffer[:n], err
}

// newHostileChain makes a certificate, and n authorities with large keys of which each could have signed it.
func newHostileChain(n int) (chain tls.Certificate, err error) {
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(time.Hour)}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"x.example"},
		NotBefore: template.NotBefore, NotAfter: template.NotAfter}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return chain, err
	}
	chain.PrivateKey = key
	for i := range n {
		authority, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
		if err != nil {
			return chain, err
		}
		if i == 0 {
			der, err := x509.CreateCertificate(rand.Reader, leaf, template, &key.PublicKey, authority)
			if err != nil {
				return chain, err
			}
			chain.Certificate = append(chain.Certificate, der)
		}
		template.SerialNumber = big.NewInt(int64(10 + i))
		der, err := x509.CreateCertificate(rand.Reader, template, template, &authority.PublicKey, authority)
		if err != nil {
			return chain, err
		}
		chain.Certificate = append(chain.Certificate, der)
	}
	return chain, nil
}
