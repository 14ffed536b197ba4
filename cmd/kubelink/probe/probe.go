// Package probe tries out, in a pod, what clients of links do: they ask for names, connect, and ping. The command
//
//	kubelink probe REQUEST
//
// has a Request in JSON, and prints each Result as a line of JSON. kubectl kubelink test runs it in pods of kubelink's
// image, which need no rights at all.
package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/mandelsoft/kubelink/broker/echo"
)

// Command is its name.
const Command = "probe"

// PingGroups is the value of the sysctl net.ipv4.ping_group_range that lets the command ping without capabilities.
const PingGroups = "0 2147483647"

const (
	// CheckTime is the longest time of a check.
	CheckTime = 5 * time.Second
	// series is a number of pings, each of which waits for the one before.
	series = 4
	// Parallel is the number of links that are tried at the same time.
	Parallel = 64
	// LinkTime is the longest time for a link.
	LinkTime = 2 * CheckTime

	resolvConf = "/etc/resolv.conf"
)

// The checks of a link, in the order of results.
const (
	ClusterDNS  = "cluster DNS"  // a name of the other cluster, asked of the DNS service of the pod
	KubelinkDNS = "kubelink DNS" // the same name, asked of kubelink
	StateName   = "state name"   // the name _state.<zone>, asked of the DNS service of the pod
	Connect     = "connect"      // TCP, to a service of the other cluster
	Ping        = "ping"         // the cluster address of the other cluster
)

// Checks are all of them.
var Checks = []string{ClusterDNS, KubelinkDNS, StateName, Connect, Ping}

// Request says what to try.
type Request struct {
	DNS   string `json:"dns,omitempty"` // host and port of kubelink's DNS service; empty: not known
	Links []Link `json:"links"`
}

// Link is what to try of a link. What is empty is not tried.
type Link struct {
	Name    string     `json:"name"`              // of the KubeLink
	Zone    string     `json:"zone,omitempty"`    // of its names
	Service string     `json:"service,omitempty"` // name of a service of the other cluster
	Address netip.Addr `json:"address,omitzero"`  // of that service, if no name tells it
	Port    uint16     `json:"port,omitempty"`    // of that service, TCP
	Ping    netip.Addr `json:"ping,omitzero"`     // the cluster address
}

// Result is the end of a check.
type Result struct {
	Link    string  `json:"link"`
	Check   string  `json:"check"`
	Target  string  `json:"target,omitempty"`  // what was tried
	Seconds float64 `json:"seconds"`           // until the result
	Problem string  `json:"problem,omitempty"` // why it has failed, one line; empty: all is well
	Denied  bool    `json:"denied,omitempty"`  // the pod may not try this
	Missing bool    `json:"missing,omitempty"` // the name does not exist
}

// Run runs the command.
func Run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) != 1 {
		return fmt.Errorf("want one argument, a request in JSON; got %d", len(args))
	}
	r := &Request{}
	if err := json.Unmarshal([]byte(args[0]), r); err != nil {
		return fmt.Errorf("the request cannot be read: %w", err)
	}
	config, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil {
		return err
	}
	p := &prober{request: r, out: json.NewEncoder(out)}
	for _, s := range config.Servers {
		p.servers = append(p.servers, net.JoinHostPort(s, config.Port))
	}
	return p.tryLinks(ctx)
}

// prober tries links.
type prober struct {
	request *Request
	servers []string // DNS services of the pod, host and port

	mu  sync.Mutex // guards out
	out *json.Encoder
}

// tryLinks tries all links. What fails is a result, not an error.
func (p *prober) tryLinks(ctx context.Context) error {
	var links errgroup.Group
	links.SetLimit(Parallel)
	for i := range p.request.Links {
		links.Go(func() error { return p.tryLink(ctx, &p.request.Links[i]) })
	}
	return links.Wait()
}

// tryLink does the checks of a link, those that wait for no other one at the same time.
func (p *prober) tryLink(ctx context.Context, l *Link) error {
	var g errgroup.Group
	if l.Ping.IsValid() {
		g.Go(func() error {
			return p.takeCheck(ctx, l, Ping, l.Ping.String(), func(ctx context.Context) error { return sendPing(ctx, l.Ping) })
		})
	}
	if l.Zone != "" {
		g.Go(func() error {
			name := "_state." + l.Zone
			return p.takeCheck(ctx, l, StateName, name, func(ctx context.Context) error {
				_, err := askServers(ctx, p.servers, name, dns.TypeTXT)
				return err
			})
		})
	}
	g.Go(func() error { return p.tryService(ctx, l) })
	return g.Wait()
}

// tryService asks for the name of a service, and connects to it.
func (p *prober) tryService(ctx context.Context, l *Link) error {
	var g errgroup.Group
	var found [2]netip.Addr
	for i, c := range []struct {
		check   string
		servers []string
	}{{ClusterDNS, p.servers}, {KubelinkDNS, []string{p.request.DNS}}} {
		if l.Zone == "" || l.Service == "" || c.check == KubelinkDNS && p.request.DNS == "" {
			continue
		}
		g.Go(func() error {
			return p.takeCheck(ctx, l, c.check, l.Service, func(ctx context.Context) (err error) {
				found[i], err = findAddress(ctx, c.servers, l.Service)
				return err
			})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, to := range []netip.Addr{found[1], found[0], l.Address} {
		if to.IsValid() && l.Port != 0 {
			at := netip.AddrPortFrom(to, l.Port).String()
			return p.takeCheck(ctx, l, Connect, at, func(ctx context.Context) error { return tryConnect(ctx, at) })
		}
	}
	return nil
}

// takeCheck does a check and writes its result.
func (p *prober) takeCheck(
	ctx context.Context, l *Link, name, target string, try func(context.Context) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, CheckTime)
	defer cancel()
	start := time.Now()
	err := try(ctx)
	r := Result{Link: l.Name, Check: name, Target: target, Seconds: time.Since(start).Seconds()}
	if err != nil {
		_, r.Missing = errors.AsType[*missingError](err)
		_, r.Denied = errors.AsType[*deniedError](err)
		r.Problem = err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Encode(r)
}

// tryConnect opens a TCP connection, and closes it.
func tryConnect(ctx context.Context, at string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", at)
	if err == nil {
		conn.Close()
	}
	return err
}

// deniedError says that the pod lacks a right.
type deniedError struct{ error }

// sendPing sends series of echo requests until one is answered in full. A link that drops packets is not good, and the
// first packet may be lost on a way that is new.
func sendPing(ctx context.Context, to netip.Addr) error {
	return awaitPings(ctx, func() (echo.Result, error) {
		return echo.Send(ctx, echo.Request{To: to, Size: echo.DefaultSize, Count: series})
	})
}

func awaitPings(ctx context.Context, send func() (echo.Result, error)) error {
	sent, lost := 0, 0
	for {
		result, err := send()
		sent, lost = sent+result.Sent, lost+result.Sent-result.Received
		switch {
		case err != nil:
			return &deniedError{err}
		case result.Received > 0 && result.Received == result.Sent:
			return nil
		case result.Problem != "" && ctx.Err() == nil:
			return errors.New(result.Problem)
		case ctx.Err() == nil:
		case lost == sent:
			return fmt.Errorf("no answer within %s", CheckTime)
		default:
			return fmt.Errorf("%d of %d packets got lost", lost, sent)
		}
	}
}
