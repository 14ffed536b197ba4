package wireguard

// The configuration protocol of WireGuard (https://www.wireguard.com/xplatform/): its text, the socket where wg(8)
// speaks it with the device of this process, and how this process speaks it with that of another one.

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// formatConfig is a configuration as text.
func formatConfig(c wgtypes.Config) string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	if c.PrivateKey != nil {
		line("private_key", hex.EncodeToString(c.PrivateKey[:]))
	}
	if c.ListenPort != nil {
		line("listen_port", *c.ListenPort)
	}
	if c.ReplacePeers {
		line("replace_peers", true)
	}
	for i := range c.Peers {
		p := &c.Peers[i]
		line("public_key", hex.EncodeToString(p.PublicKey[:]))
		if p.Remove {
			line("remove", true)
		}
		if p.UpdateOnly {
			line("update_only", true)
		}
		if p.PresharedKey != nil {
			line("preshared_key", hex.EncodeToString(p.PresharedKey[:]))
		}
		if p.Endpoint != nil {
			line("endpoint", toAddrPort(p.Endpoint))
		}
		if p.PersistentKeepaliveInterval != nil {
			line("persistent_keepalive_interval", int(p.PersistentKeepaliveInterval.Seconds()))
		}
		for _, n := range p.AllowedIPs {
			line("allowed_ip", toPrefix(n))
		}
	}
	return b.String()
}

// parseDevice parses the text that describes a device. It ignores keys that kubelink does not use.
func parseDevice(text string) (*wgtypes.Device, error) {
	d := &wgtypes.Device{Type: wgtypes.Userspace}
	var peer *wgtypes.Peer
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		key, value, _ := strings.Cut(line, "=")
		var err error
		switch {
		case key == "public_key":
			d.Peers = append(d.Peers, wgtypes.Peer{})
			peer = &d.Peers[len(d.Peers)-1]
			peer.PublicKey, err = parseHexKey(value)
		case peer != nil:
			err = parsePeerLine(peer, key, value)
		case key == "private_key":
			d.PrivateKey, err = parseHexKey(value)
		case key == "listen_port":
			d.ListenPort, err = strconv.Atoi(value)
		}
		if err != nil {
			return nil, fmt.Errorf("the device tells a value of %s that cannot be read: %w", key, err)
		}
	}
	return d, nil
}

// parsePeerLine parses a line about a peer.
func parsePeerLine(p *wgtypes.Peer, key, value string) (err error) {
	var number int64
	switch key {
	case "preshared_key":
		p.PresharedKey, err = parseHexKey(value)
	case "endpoint":
		var a netip.AddrPort
		if a, err = netip.ParseAddrPort(value); err == nil {
			p.Endpoint = net.UDPAddrFromAddrPort(a)
		}
	case "allowed_ip":
		var n netip.Prefix
		if n, err = netip.ParsePrefix(value); err == nil {
			p.AllowedIPs = append(p.AllowedIPs, toIPNet(n))
		}
	case "last_handshake_time_sec", "last_handshake_time_nsec", "tx_bytes", "rx_bytes", "persistent_keepalive_interval":
		number, err = strconv.ParseInt(value, 10, 64)
	}
	switch key {
	case "last_handshake_time_sec":
		if number != 0 {
			p.LastHandshakeTime = time.Unix(number, 0)
		}
	case "last_handshake_time_nsec":
		if number != 0 {
			p.LastHandshakeTime = p.LastHandshakeTime.Add(time.Duration(number))
		}
	case "tx_bytes":
		p.TransmitBytes = number
	case "rx_bytes":
		p.ReceiveBytes = number
	case "persistent_keepalive_interval":
		p.PersistentKeepaliveInterval = time.Duration(number) * time.Second
	}
	return err
}

func parseHexKey(text string) (k wgtypes.Key, err error) {
	n, err := hex.Decode(k[:], []byte(text[:min(len(text), 2*len(k))]))
	if err == nil && (n != len(k) || len(text) != 2*n) {
		err = fmt.Errorf("want %d bytes", len(k))
	}
	return k, err
}

// socketFolder is where wg(8) looks for devices of processes.
const socketFolder = "/var/run/wireguard"

func socketPath(name string) string { return socketFolder + "/" + name + ".sock" }

// socketLimit is the time for what is asked at such a socket, and for the answer. A client that stalls in its request
// keeps the broker from the device, and a process that hangs never answers.
const socketLimit = 3 * time.Second

// processControl speaks with devices of other processes. wgctrl does so, too, and waits for ever.
type processControl struct{}

func (processControl) Device(name string) (*wgtypes.Device, error) {
	answer, err := askProcess(name, "get=1\n\n")
	if err != nil {
		return nil, err
	}
	d, err := parseDevice(answer)
	if err == nil {
		d.Name = name
	}
	return d, err
}

func (processControl) ConfigureDevice(name string, c wgtypes.Config) error {
	_, err := askProcess(name, "set=1\n"+formatConfig(c)+"\n")
	return err
}

func (processControl) Close() error { return nil }

// askProcess sends a request to the process that has a device, and returns the lines of the answer.
func askProcess(name, request string) (string, error) {
	conn, err := net.DialTimeout("unix", socketPath(name), socketLimit)
	if errno, ok := errors.AsType[syscall.Errno](err); errno == syscall.EAGAIN {
		return "", errHangs // it has not accepted any connection for long
	} else if ok {
		return "", errno
	}
	if err != nil {
		return "", err
	}
	defer conn.Close()
	// An error shows when the answer is read.
	_ = conn.SetDeadline(time.Now().Add(socketLimit))
	_, _ = io.WriteString(conn, request)
	var answer strings.Builder
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if errno, found := strings.CutPrefix(lines.Text(), "errno="); found {
			number, err := strconv.Atoi(errno)
			if err == nil && number != 0 {
				err = syscall.Errno(max(number, -number))
			}
			return answer.String(), err
		}
		answer.WriteString(lines.Text() + "\n")
	}
	if errors.Is(lines.Err(), os.ErrDeadlineExceeded) {
		return "", errHangs
	}
	return "", fmt.Errorf("read the answer at %s: %w", socketPath(name), cmp.Or(lines.Err(), io.ErrUnexpectedEOF))
}

// uapiSocket serves wg(8).
type uapiSocket struct {
	listener *net.UnixListener
	wg       sync.WaitGroup

	mu    sync.Mutex // guards what follows; nothing slow happens under it
	ended bool
	conns map[net.Conn]struct{}
}

// serveSocket lets wg(8) see and change a device. Only root may.
func serveSocket(name string, dev *device.Device) (*uapiSocket, error) {
	if err := os.MkdirAll(socketFolder, 0o755); err != nil {
		return nil, err
	}
	path := socketPath(name)
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("another process serves %s", path)
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) { // of a process that was killed
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	s := &uapiSocket{listener: l, conns: map[net.Conn]struct{}{}}
	s.wg.Go(func() { s.accept(dev) })
	return s, nil
}

func (s *uapiSocket) accept(dev *device.Device) {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.ended {
			conn.Close()
		} else {
			s.conns[conn] = struct{}{}
			// The end of the connection shows an error.
			_ = conn.SetDeadline(time.Now().Add(socketLimit))
			s.wg.Go(func() {
				dev.IpcHandle(conn) // closes it
				s.mu.Lock()
				delete(s.conns, conn)
				s.mu.Unlock()
			})
		}
		s.mu.Unlock()
	}
}

// close removes the socket.
func (s *uapiSocket) close() {
	if s == nil {
		return
	}
	s.listener.Close()
	s.mu.Lock()
	s.ended = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}
