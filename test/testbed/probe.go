package testbed

// This file has what tests often do from a host: look up names, use HTTP, ping. It also has the servers for that.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// resolver is the content of a resolv.conf.
type resolver struct {
	server netip.Addr
	search []string
}

const ndots = 5 // the value in pods

func (r resolver) resolvConf() string {
	if !r.server.IsValid() {
		return ""
	}
	text := fmt.Sprintf("nameserver %s\n", r.server)
	if len(r.search) > 0 {
		text += fmt.Sprintf("search %s\noptions ndots:%d\n", strings.Join(r.search, " "), ndots)
	}
	return text
}

// Lookup resolves a name as programs on the host do: numeric, /etc/hosts, then DNS with the search list. It returns
// IPv4 addresses only.
func (h *Host) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{addr}, nil
	}
	h.mu.Lock()
	addr, ok := h.hosts[name]
	h.mu.Unlock()
	if ok {
		return []netip.Addr{addr}, nil
	}
	if !h.dns.server.IsValid() {
		return nil, fmt.Errorf("%s: look up %s: not in /etc/hosts, and no name server", h.Name, name)
	}
	candidates := []string{dns.Fqdn(name)}
	if !dns.IsFqdn(name) {
		var searched []string
		for _, domain := range h.dns.search {
			searched = append(searched, dns.Fqdn(name+"."+domain))
		}
		if strings.Count(name, ".") < ndots {
			candidates = append(searched, candidates...)
		} else {
			candidates = append(candidates, searched...)
		}
	}
	for _, candidate := range candidates {
		answer, err := h.Query(ctx, candidate, dns.TypeA)
		if err != nil {
			return nil, err
		}
		switch answer.Rcode {
		case dns.RcodeNameError:
			continue
		case dns.RcodeSuccess:
		default:
			return nil, fmt.Errorf("%s: look up %s: %s", h.Name, candidate, dns.RcodeToString[answer.Rcode])
		}
		var addrs []netip.Addr
		for _, rr := range answer.Answer {
			if a, ok := rr.(*dns.A); ok {
				if addr, ok := netip.AddrFromSlice(a.A.To4()); ok {
					addrs = append(addrs, addr)
				}
			}
		}
		if len(addrs) > 0 {
			return addrs, nil
		}
	}
	return nil, fmt.Errorf("%s: look up %s: no such host", h.Name, name)
}

// Query asks the host's name server over UDP, with EDNS. The name must be fully qualified.
func (h *Host) Query(ctx context.Context, name string, kind uint16) (*dns.Msg, error) {
	if !h.dns.server.IsValid() {
		return nil, fmt.Errorf("%s: has no name server", h.Name)
	}
	server := netip.AddrPortFrom(h.dns.server, 53)
	first, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	m, err := h.QueryAt(first, "udp", server, name, kind)
	if err != nil && first.Err() != nil && ctx.Err() == nil { // a datagram may be lost
		m, err = h.QueryAt(ctx, "udp", server, name, kind)
	}
	return m, err
}

// QueryAt asks a name server over "udp" or "tcp", with EDNS.
func (h *Host) QueryAt(
	ctx context.Context, network string, server netip.AddrPort, name string, kind uint16,
) (*dns.Msg, error) {
	question := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	question.SetEdns0(1232, false)
	return h.Exchange(ctx, network, server, question)
}

// Exchange sends a DNS message and waits for its answer for two seconds at most.
func (h *Host) Exchange(
	ctx context.Context, network string, server netip.AddrPort, question *dns.Msg,
) (*dns.Msg, error) {
	fail := func(err error) (*dns.Msg, error) {
		return nil, fmt.Errorf("%s: ask %s/%s for %s: %w", h.Name, server, network, question.Question[0].Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := h.DialContext(ctx, network, server.String())
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	client := dns.Client{Net: network}
	answer, _, err := client.ExchangeWithConnContext(ctx, question, &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize})
	if err != nil {
		return fail(err)
	}
	return answer, nil
}

// HTTPClient returns a client on the host. It makes a new connection for each request.
func (h *Host) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}}
}

// Get fetches a URL from the host and returns the body of a 200 answer.
func (h *Host) Get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := h.HTTPClient().Do(request)
	if err != nil {
		return "", fmt.Errorf("%s: %w", h.Name, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", fmt.Errorf("%s: get %s: %w", h.Name, url, err)
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: get %s: %s: %s", h.Name, url, response.Status, body)
	}
	return string(body), nil
}

// ServeHTTP serves in the host on a TCP port until the host is closed.
func (h *Host) ServeHTTP(port int, handler http.Handler) error {
	l, err := h.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler}
	h.onClose(server)
	go server.Serve(l)
	return nil
}

// ServeHTTPEcho serves HTTP on a TCP port. The answer is the client's IP address as the server sees it.
func (h *Host) ServeHTTPEcho(port int) error {
	return h.ServeHTTP(port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		io.WriteString(w, client)
	}))
}

// ServeUDPEcho answers each datagram with the client's IP address as the server sees it.
func (h *Host) ServeUDPEcho(port int) error {
	c, err := h.ListenPacket("udp4", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			_, from, err := c.ReadFrom(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if udp, ok := from.(*net.UDPAddr); ok {
				c.WriteTo([]byte(udp.IP.String()), from)
			}
		}
	}()
	return nil
}

// Ping sends one ICMP echo request and returns the round-trip time. It waits until ctx ends, one second at most.
func (h *Host) Ping(ctx context.Context, addr netip.Addr) (time.Duration, error) {
	fail := func(err error) (time.Duration, error) {
		return 0, fmt.Errorf("%s: ping %s: %w", h.Name, addr, err)
	}
	var c net.PacketConn
	if err := h.Do(func() (err error) {
		c, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	}); err != nil {
		return fail(err)
	}
	defer c.Close()
	deadline := time.Now().Add(time.Second)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	c.SetDeadline(deadline)
	start := time.Now()
	id := os.Getpid() & 0xffff
	seq := int(start.UnixNano() & 0xffff)
	request := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: seq, Data: make([]byte, 56)}}
	packet, err := request.Marshal(nil)
	if err != nil {
		return fail(err)
	}
	if _, err := c.WriteTo(packet, &net.IPAddr{IP: addr.AsSlice()}); err != nil {
		return fail(err)
	}
	buffer := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buffer)
		if err != nil {
			return fail(err)
		}
		reply, err := icmp.ParseMessage(1, buffer[:n])
		if err != nil {
			continue
		}
		if reply.Type == ipv4.ICMPTypeDestinationUnreachable {
			return fail(fmt.Errorf("destination unreachable (code %d) from %s", reply.Code, from))
		}
		if echo, ok := reply.Body.(*icmp.Echo); ok && reply.Type == ipv4.ICMPTypeEchoReply && echo.ID == id &&
			echo.Seq == seq {
			return time.Since(start), nil
		}
	}
}

// PathMTU sends ICMP echo requests that no router may fragment, of size bytes with the IPv4 header at first, then as
// large as path MTU discovery (RFC 1191) of the host's kernel says. It returns the size of the first that is answered.
func (h *Host) PathMTU(ctx context.Context, addr netip.Addr, size int) (int, error) {
	fail := func(err error) (int, error) {
		return 0, fmt.Errorf("%s: path MTU to %s: packets of %d bytes: %w", h.Name, addr, size, err)
	}
	var c *net.IPConn
	if err := h.Do(func() (err error) {
		c, err = net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: addr.AsSlice()})
		return err
	}); err != nil {
		return fail(err)
	}
	defer c.Close()
	if err := SetFragmentation(c, false); err != nil {
		return fail(err)
	}
	answer := make([]byte, 64<<10)
	for seq := 1; ctx.Err() == nil; seq++ {
		echo := &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: seq, Data: make([]byte, size-28)}
		packet, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: echo}).Marshal(nil)
		if err != nil {
			return fail(err)
		}
		c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		_, err = c.Write(packet)
		for n := 0; err == nil; {
			if n, _, err = c.ReadFrom(answer); err == nil && bytes.Equal(answer[4:n], packet[4:]) && answer[0] == 0 {
				return size, nil
			}
		}
		switch {
		case errors.Is(err, unix.EMSGSIZE):
			if size, err = KnownPathMTU(c); err != nil {
				return fail(err)
			}
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return fail(err)
		}
	}
	return fail(context.Cause(ctx))
}

// SetFragmentation says whether the packets that a socket sends may be fragmented. If not, the kernel discovers the
// path MTU, and larger packets fail with EMSGSIZE (ip(7)).
func SetFragmentation(c syscall.Conn, allowed bool) error {
	value := unix.IP_PMTUDISC_DO
	if allowed {
		value = unix.IP_PMTUDISC_DONT
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, value)
	})
	return errors.Join(failed, err)
}

// KnownPathMTU is what the kernel takes for the path MTU of a connected socket, in bytes.
func KnownPathMTU(c syscall.Conn) (mtu int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	failed := raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU) })
	return mtu, errors.Join(failed, err)
}
