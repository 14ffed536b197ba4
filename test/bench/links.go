package main

// This file measures a broker with many links: the time of its start, its memory after that, and how soon names
// follow links and objects. The other clusters are stubs in this process. Each has a TLS connection of its own, and a
// DNS service that the broker asks through this connection. The measures show the view of a client that queries all
// the time.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/peer"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const (
	manyLinks = 250
	changes   = 20 // number of lost links, and of changed objects
	stubPort  = 8090
)

// The mesh of the stubs, with the address of the local cluster, and the first of their service networks.
var (
	manyMesh     = netip.MustParsePrefix("10.200.0.1/16")
	manyServices = netip.MustParsePrefix("10.100.0.0/24")
)

// measureLinks starts the fleet's broker with many links in every round, and then changes the links.
func (p *nameServers) measureLinks(ctx context.Context) (err error) {
	if p.stubs, err = peer.ServeStubs(p.broker.Gateway().Host, stubPort, p.fleet.CA, manyLinks, manyMesh,
		manyServices); err != nil {
		return err
	}
	defer p.stubs.Close()
	if err := p.createLinks(ctx); err != nil {
		return err
	}
	for round := range p.rounds {
		fmt.Printf("round %d: start with %d links\n", round+1, manyLinks)
		if err := p.startLinks(ctx, round); err != nil {
			return fmt.Errorf("start with %d links: %w", manyLinks, err)
		}
		if round < p.rounds-1 {
			if err := p.broker.Kill(ctx, syscall.SIGTERM); err != nil {
				return err
			}
		}
	}
	fmt.Printf("%d times: a link is lost, and is back\n", changes)
	for i := range changes {
		if err := p.loseLink(ctx, p.stubs.All[i*manyLinks/changes]); err != nil {
			return err
		}
	}
	if slices.Contains(p.contenders, globalServer) {
		fmt.Printf(
			"%d times: an entry of the global domain is changed; the link of one of its addresses is lost, and is back\n",
			changes)
		if err := p.changeEntries(ctx); err != nil {
			return err
		}
	}
	return p.removeLinks(ctx)
}

// createLinks creates the mesh.
func (p *nameServers) createLinks(ctx context.Context) error {
	hosts := map[string]netip.Addr{}
	for _, s := range p.stubs.All {
		hosts[s.Endpoint] = s.Listens
	}
	if err := p.host.SetHosts(hosts); err != nil {
		return err
	}
	local := p.broker.Local()
	local.Spec.ClusterAddress = manyMesh.String()
	if err := p.broker.Apply(ctx, local); err != nil {
		return err
	}
	return inParallel(ctx, manyLinks, func(ctx context.Context, i int) error {
		s := p.stubs.All[i]
		return p.broker.Apply(ctx, &v1alpha1.KubeLink{
			ObjectMeta: metav1.ObjectMeta{Name: s.Name},
			Spec: v1alpha1.KubeLinkSpec{ClusterAddress: s.Address.String(), CIDR: s.Services.String(),
				Endpoint: fmt.Sprintf("%s:%d", s.Endpoint, stubPort)},
		})
	})
}

// removeLinks removes the mesh, and stops the broker.
func (p *nameServers) removeLinks(ctx context.Context) error {
	if err := p.broker.Client.DeleteAllOf(ctx, &v1alpha1.KubeLink{}); err != nil {
		return err
	}
	// the broker keeps the LocalLink until all other links are gone
	if err := p.broker.Remove(ctx, p.broker.Name); err != nil {
		return err
	}
	return p.broker.Kill(ctx, syscall.SIGTERM)
}

// startLinks starts the broker and waits until the zones of all links answer.
func (p *nameServers) startLinks(ctx context.Context, round int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	begin := time.Now()
	if err := p.broker.Launch(); err != nil {
		return err
	}
	profile := func() error { return nil }
	if p.profile != "" {
		if err := testbed.Until(ctx, "profiles", func(ctx context.Context) error {
			_, err := p.host.Get(ctx, "http://"+brokerProfile+"/debug/pprof/")
			return err
		}); err != nil {
			return err
		}
		profile = profileCPU(ctx, p.host, brokerProfile, 5*time.Second,
			filepath.Join(p.profile, fmt.Sprintf("links-start%d.pprof", round+1)))
	}
	// Hundreds of clients would take time from a process that does not listen yet.
	first := p.stubs.All[0]
	if _, err := p.waitForAnswer(ctx, serviceOf(first), 10*time.Millisecond,
		wantAddresses(first.ServiceAddress())); err != nil {
		return err
	}
	ready := make([]time.Time, manyLinks)
	errs := make([]error, manyLinks)
	var wg sync.WaitGroup
	for i, s := range p.stubs.All {
		wg.Go(func() {
			ready[i], errs[i] = p.waitForAnswer(ctx, serviceOf(s), 50*time.Millisecond, wantAddresses(s.ServiceAddress()))
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	p.addResult(linksServer, resultStart, slices.MaxFunc(ready, time.Time.Compare).Sub(begin).Seconds())
	resident, peak, err := readMemory([]int{p.broker.Process.PID()})
	if err != nil {
		return err
	}
	p.addResult(linksServer, resultResident, float64(resident)/1e6)
	p.addResult(linksServer, resultResidentPeak, float64(peak)/1e6)
	return errors.Join(p.broker.WaitReady(ctx), profile())
}

// loseLink measures how a client sees the loss and the return of a link.
func (p *nameServers) loseLink(ctx context.Context, s *peer.Stub) error {
	lost, back, err := p.measureOutage(ctx, s, serviceOf(s), wantUnavailable, wantAddresses(s.ServiceAddress()))
	if err != nil {
		return err
	}
	p.addResult(linksServer, resultWithdrawn, toMilliseconds(lost.took))
	p.addResult(linksServer, resultWaited, toMilliseconds(lost.longest))
	p.addResult(linksServer, resultReturned, toMilliseconds(back.took))
	return nil
}

// reaction is the time from a change to the answers that show it, and the longest wait for an answer meanwhile.
type reaction struct{ took, longest time.Duration }

// measureOutage takes a stub down and up again. It measures how soon the right answer for a name follows each time.
func (p *nameServers) measureOutage(
	ctx context.Context, s *peer.Stub, name string, down, up func(*dns.Msg) error,
) (lost, back reaction, err error) {
	if lost, err = p.measureChange(ctx, name, down, func(context.Context) error { s.Down(); return nil }); err != nil {
		return lost, back, err
	}
	back, err = p.measureChange(ctx, name, up, func(ctx context.Context) error {
		return s.Up(ctx, netip.AddrPortFrom(p.broker.Gateway().Address, testbed.BrokerPort).String(), p.broker.FQDN)
	})
	return lost, back, err
}

// measureChange makes a change and measures how soon the right answer for a name follows. The client queries before
// the change, too.
func (p *nameServers) measureChange(
	ctx context.Context, name string, right func(*dns.Msg) error, change func(context.Context) error,
) (s reaction, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c, err := p.startPoller(ctx, name, time.Millisecond)
	if err != nil {
		return s, err
	}
	defer c.close()
	begin := time.Now()
	changed := make(chan error, 1)
	go func() { changed <- change(ctx) }()
	since, err := c.waitUntilRight(ctx, right)
	if err := errors.Join(err, <-changed); err != nil {
		return s, err
	}
	return reaction{since.Sub(begin), c.finish()}, nil
}

// changeEntries measures how soon the names of the global domain follow their objects and links.
func (p *nameServers) changeEntries(ctx context.Context) error {
	address := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 30, 0, byte(i)}) }
	name := "changing." + globalDomain
	entry := newEntry("changing", name, address(0))
	if err := p.broker.Client.Create(ctx, entry); err != nil {
		return err
	}
	if _, err := p.waitForAnswer(ctx, name, time.Millisecond, wantAddresses(address(0))); err != nil {
		return err
	}
	for i := range changes {
		before := entry.DeepCopy()
		setAddresses(entry, address(i+1))
		changed, err := p.measureChange(ctx, name, wantAddresses(address(i+1)), func(ctx context.Context) error {
			return p.broker.Client.Patch(ctx, entry, client.MergeFrom(before))
		})
		if err != nil {
			return err
		}
		p.addResult(linksServer, resultChanged, toMilliseconds(changed.took))
	}
	for i := range changes {
		s := p.stubs.All[i*manyLinks/changes]
		name, local := "both-"+s.Name+"."+globalDomain, p.broker.APIAddress
		if err := p.broker.Client.Create(ctx, newEntry("both-"+s.Name, name, s.ServiceAddress(), local)); err != nil {
			return err
		}
		both := wantAddresses(s.ServiceAddress(), local)
		if _, err := p.waitForAnswer(ctx, name, time.Millisecond, both); err != nil {
			return err
		}
		lost, back, err := p.measureOutage(ctx, s, name, wantAddresses(local), both)
		if err != nil {
			return err
		}
		p.addResult(linksServer, resultEntryWithdrawn, toMilliseconds(lost.took))
		p.addResult(linksServer, resultEntryReturned, toMilliseconds(back.took))
	}
	return nil
}

// serviceOf returns the name of a stub's service in the mesh.
func serviceOf(s *peer.Stub) string { return "web.default.svc." + s.Name + ".kubelink." }

// wantAddresses requires exactly these A records.
func wantAddresses(want ...netip.Addr) func(*dns.Msg) error {
	return func(m *dns.Msg) error {
		var got []netip.Addr
		for _, rr := range m.Answer {
			if a, ok := rr.(*dns.A); ok {
				addr, _ := netip.AddrFromSlice(a.A.To4())
				got = append(got, addr)
			}
		}
		slices.SortFunc(got, netip.Addr.Compare)
		sorted := slices.SortedFunc(slices.Values(want), netip.Addr.Compare)
		if m.Rcode != dns.RcodeSuccess || !slices.Equal(got, sorted) {
			return fmt.Errorf("%s %v, not %v", dns.RcodeToString[m.Rcode], got, sorted)
		}
		return nil
	}
}

// wantUnavailable requires a failure with its reason.
func wantUnavailable(m *dns.Msg) error {
	if opt := m.IsEdns0(); m.Rcode == dns.RcodeServerFailure && opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok && e.ExtraText != "" {
				return nil
			}
		}
	}
	return fmt.Errorf("%s %v, not SERVFAIL with an Extended DNS Error", dns.RcodeToString[m.Rcode], m.Answer)
}

// waitForAnswer queries the broker for the A records of a name until the answer is right and stays right. It returns
// the time of the first right answer.
func (p *nameServers) waitForAnswer(
	ctx context.Context, name string, pace time.Duration, right func(*dns.Msg) error,
) (time.Time, error) {
	c, err := p.startPoller(ctx, name, pace)
	if err != nil {
		return time.Time{}, err
	}
	defer c.close()
	return c.waitUntilRight(ctx, right)
}

// poller is a client that queries the A records of a name at a pace, without waiting for answers.
type poller struct {
	name    string
	conn    net.Conn
	stop    context.CancelFunc
	longest time.Duration // longest wait for an answer

	mu    sync.Mutex
	asked map[uint16]time.Time // queries without an answer yet
}

// startPoller starts to query the broker.
func (p *nameServers) startPoller(ctx context.Context, name string, pace time.Duration) (*poller, error) {
	q := new(dns.Msg).SetQuestion(name, dns.TypeA)
	q.SetEdns0(1232, false)
	question, err := q.Pack()
	if err != nil {
		return nil, err
	}
	conn, err := p.host.DialContext(ctx, "udp", p.broker.DNS().String())
	if err != nil {
		return nil, err
	}
	c := &poller{name: name, conn: conn, asked: map[uint16]time.Time{}}
	ctx, c.stop = context.WithCancel(ctx)
	go func() {
		ticker := time.NewTicker(pace)
		defer ticker.Stop()
		for id := uint16(0); ctx.Err() == nil; id++ {
			c.mu.Lock()
			c.asked[id] = time.Now()
			c.mu.Unlock()
			binary.BigEndian.PutUint16(question, id)
			conn.Write(question) // an error means that the broker does not listen
			<-ticker.C
		}
	}()
	return c, nil
}

func (c *poller) close() {
	c.stop()
	c.conn.Close()
}

// readAnswer returns the next answer and the time of its query. It waits until the deadline.
func (c *poller) readAnswer(deadline time.Time) (m *dns.Msg, sent time.Time, ok bool) {
	buffer := make([]byte, dns.MinMsgSize*3)
	for time.Now().Before(deadline) {
		c.conn.SetReadDeadline(deadline)
		n, err := c.conn.Read(buffer)
		m := new(dns.Msg)
		if err != nil || m.Unpack(buffer[:n]) != nil {
			continue
		}
		c.mu.Lock()
		sent, known := c.asked[m.Id]
		delete(c.asked, m.Id)
		c.mu.Unlock()
		if known {
			c.longest = max(c.longest, time.Since(sent))
			return m, sent, true
		}
	}
	return nil, sent, false
}

// waitUntilRight reads answers until they are right and stay right. It returns the time of the first right answer.
func (c *poller) waitUntilRight(ctx context.Context, right func(*dns.Msg) error) (since time.Time, err error) {
	const steady = 5
	wrong := errors.New("no answer")
	for times := 0; times < steady; {
		if ctx.Err() != nil {
			return since, fmt.Errorf("%s: %w: %w", c.name, ctx.Err(), wrong)
		}
		m, sent, ok := c.readAnswer(time.Now().Add(100 * time.Millisecond))
		if !ok {
			continue
		}
		switch err := right(m); {
		case err == nil && times == 0:
			since, times = time.Now(), 1
		case err == nil:
			times++
		case sent.After(since): // a later query, and not a late answer
			wrong, times = err, 0
		}
	}
	return since, nil
}

// finish stops the queries and waits for all answers. It returns the longest wait. A query without an answer by then,
// which is as long as clients wait, counts as that.
func (c *poller) finish() time.Duration {
	c.stop()
	const limit = 5 * time.Second
	for deadline := time.Now().Add(limit); ; {
		c.mu.Lock()
		left := len(c.asked)
		c.mu.Unlock()
		if left == 0 {
			return c.longest
		}
		if _, _, ok := c.readAnswer(deadline); !ok {
			return limit
		}
	}
}
