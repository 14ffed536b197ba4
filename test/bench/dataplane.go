package main

// This file compares paths between two clusters: it defines the contenders, the measures and their order. All
// contenders run on one test bed at the same time and take turns, so that a machine that changes its pace does so for
// all of them.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/bridge"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/overlay"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// Properties of the kubelink stanza.
const (
	offloadOff = "offload off" // no offloads of the TUN
	ipipVXLAN  = "ipip vxlan"  // packets between other nodes and the gateway are in a VXLAN
	// links are WireGuard, in user space as wireguard-go
	modeWireguard = "mode wireguard\n        wireguard-device userspace"
)

// The contenders.
const (
	plainPath    = "plain"         // the path of the tunnels' own packets, without a tunnel
	bridgeLink   = "bridge"        // kubelink with its defaults
	bridgeBefore = "bridge-before" // the same with the binary of -before
	serviceLink  = "mesh-service"  // the same by a mesh service: its address in place of the service's
	wireguardGo  = "wireguard"     // wireguard-go
	relayPath    = "relay"         // the bound: the smallest relay, without encryption
	kubelinkWG   = "kubelink-wg"   // kubelink in mode wireguard, in user space
	plainTUNLink = "plain-tun"     // kubelink without offloads
	anotherLink  = "another-node"  // kubelink with its defaults, and a client on a node that is not the gateway's
	vxlanLink    = "vxlan"         // the same with the VXLAN between nodes and gateway
)

// dataplaneMeasures are the values of the flag -measures, in the order in which the bench takes them.
var dataplaneMeasures = []string{"tcp1", "tcp4", "udp", "http", "rtt", "load"}

// Ports of the server pod.
const (
	streamPort   = 5201
	datagramPort = 5202
	echoPort     = 5203
)

// pace is the duration of each measure.
type pace struct {
	warmUp, stream, datagrams, requests, idle, load time.Duration
	refinements, attempts                           int // of the search for a rate
}

func (o choice) newPace() pace {
	if o.quick {
		return pace{warmUp: 300 * time.Millisecond, stream: 700 * time.Millisecond, datagrams: 300 * time.Millisecond,
			requests: 700 * time.Millisecond, idle: 500 * time.Millisecond, load: time.Second, refinements: 2, attempts: 2}
	}
	return pace{warmUp: 300 * time.Millisecond, stream: 2 * time.Second, datagrams: time.Second,
		requests: 2 * time.Second, idle: 4 * time.Second, load: 4 * time.Second, refinements: 2, attempts: 2}
}

// contender is a path between the clusters.
type contender struct {
	name    string
	client  *testbed.Pod
	to      netip.Addr             // address of the server for the client
	devices []string               // of the tunnel, and on the way to it, on the gateway node
	enter   func() error           // prepares the contender for its turn
	state   func() (string, error) // state that must not change during a turn
	tunnels func() []*testbed.Process
	profile string // address at which its processes serve profiles, on their nodes
}

func (c *contender) listPIDs() (pids []int) {
	for _, p := range c.tunnels() {
		pids = append(pids, p.PID())
	}
	return pids
}

// dataplane is the test bed with all contenders.
type dataplane struct {
	choice
	pace
	fleet                     *fleet.Fleet
	one, two                  *fleet.Broker
	client, server            *testbed.Pod // the client on the gateway node
	another                   *anotherNode // nil: no contender needs it
	streams, datagrams, echos socket       // the server's
	contenders                []*contender
	running                   brokerSetup
	guess                     map[string]float64
	results                   *results
	staged                    []stagedResult // results of the present measure
	quiet                     quiet
}

// measureDataplane runs the comparison.
func measureDataplane(ctx context.Context, o choice) (*results, error) {
	// Every socket has a thread. The kernel shall decide when it runs, as with separate programs.
	runtime.GOMAXPROCS(32)
	f, err := fleet.New(ctx, 2,
		fleet.Options{Mode: mesh.Bridge, Edit: func(_ int, corefile string) string { return withProfiles(o, corefile) }})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &dataplane{choice: o, pace: o.newPace(), fleet: f, one: f.Brokers[0], two: f.Brokers[1],
		guess: map[string]float64{}, results: newResults(&dataplaneLayout, o),
		quiet: quiet{patience: 2 * time.Minute}}
	if o.quick {
		p.quiet.patience = 20 * time.Second
	}
	if err := p.setUp(ctx); err != nil {
		f.DumpLogs(os.Stderr, 30)
		return nil, err
	}
	if o.hold {
		p.printProcesses()
	}
	for round := 0; round < o.rounds || o.hold; round++ {
		// No contender always comes first, or always after the same other one.
		order := slices.Clone(p.contenders)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, c := range order {
			fmt.Printf("round %d: %s\n", round+1, c.name)
			if err := p.measureContender(ctx, c, round); err != nil {
				f.DumpLogs(os.Stderr, 10)
				return nil, fmt.Errorf("round %d: %s: %w", round+1, c.name, err)
			}
		}
	}
	return p.results, nil
}

// setUp makes pods, services and tunnels.
func (p *dataplane) setUp(ctx context.Context) (err error) {
	if p.server, err = p.two.Pod(ctx, "server", testbed.PodOptions{}); err != nil {
		return err
	}
	if p.client, err = p.one.Pod(ctx, "client", testbed.PodOptions{}); err != nil {
		return err
	}
	if err := p.listen(); err != nil {
		return err
	}
	service := func(name string) (netip.Addr, error) {
		return p.two.Service(ctx, name, map[string]string{"app": "server"},
			[]corev1.ServicePort{testbed.TCPPort(streamPort), testbed.UDPPort(datagramPort), testbed.UDPPort(echoPort)},
			testbed.ServiceOptions{})
	}
	linked, err := service("linked")
	if err != nil {
		return err
	}
	if err := p.fleet.Mesh(ctx); err != nil {
		return err
	}
	for _, known := range dataplaneLayout.entrants {
		if !slices.Contains(p.choice.contenders, known.name) {
			continue
		}
		c, err := p.newContender(ctx, known.name, linked, service)
		if err != nil {
			return err
		}
		p.contenders = append(p.contenders, c)
	}
	return nil
}

// newContender returns a contender, and sets up its path if it is not kubelink's. linked is the address of the service
// behind the link. service makes one more service.
func (p *dataplane) newContender(
	ctx context.Context, name string, linked netip.Addr, service func(name string) (netip.Addr, error),
) (c *contender, err error) {
	c = &contender{name: name, client: p.client, enter: func() error { return nil },
		state:   func() (string, error) { return "", nil },
		tunnels: func() []*testbed.Process { return nil }}
	switch c.name {
	case plainPath:
		if err := p.publishServer(ctx); err != nil {
			return nil, err
		}
		c.to = p.two.PublicAddress
	case wireguardGo:
		err = p.setWireguard(ctx, c, service)
	case relayPath:
		err = p.setRelay(ctx, c, service)
	default:
		err = p.setLink(ctx, c, linked)
	}
	return c, err
}

// addExternal gives an address in no network of the links to one more service: with a route into a network of a link
// beside that, kubelink would say that the link is in state Error.
func (p *dataplane) addExternal(
	ctx context.Context, name string, address netip.Addr, service func(name string) (netip.Addr, error),
) error {
	if _, err := service(name); err != nil {
		return err
	}
	_, err := p.two.Kubectl(ctx, "patch", "service", name, "-p", fmt.Sprintf(`{"spec":{"externalIPs":[%q]}}`, address))
	return err
}

func (p *dataplane) setWireguard(
	ctx context.Context, c *contender, service func(name string) (netip.Addr, error),
) error {
	c.to = wireguardAddress
	if err := p.addExternal(ctx, "wireguard", c.to, service); err != nil {
		return err
	}
	w, err := startWireguard(ctx, p.one, p.two, c.to, p.profile != "")
	if err != nil {
		return err
	}
	c.devices, c.state, c.profile = []string{wireguardDevice}, w.readState, wireguardProfile
	c.tunnels = func() []*testbed.Process { return w.processes }
	c.enter = func() error { return w.restart(ctx) }
	return nil
}

func (p *dataplane) setRelay(
	ctx context.Context, c *contender, service func(name string) (netip.Addr, error),
) error {
	c.to = relayAddress
	if err := p.addExternal(ctx, "relay", c.to, service); err != nil {
		return err
	}
	r, err := startRelay(ctx, p.one, p.two, c.to, bridge.DefaultMTU)
	if err != nil {
		return err
	}
	c.devices = []string{relayDevice}
	c.state = func() (string, error) { return "", checkRunning(r.processes) }
	c.tunnels = func() []*testbed.Process { return r.processes }
	c.enter = func() error { return r.restart(ctx) }
	return nil
}

// setLink makes a contender one of kubelink's. linked is the address of the service behind the link.
func (p *dataplane) setLink(ctx context.Context, c *contender, linked netip.Addr) (err error) {
	c.to, c.devices, c.profile = linked, []string{"kubelink"}, brokerProfile
	c.tunnels = func() []*testbed.Process { return []*testbed.Process{p.one.Process, p.two.Process} }
	var setup brokerSetup
	c.enter = func() error { return p.enterBrokers(ctx, setup) }
	c.state = func() (string, error) { return p.linksUp(ctx) }
	switch c.name {
	case bridgeBefore:
		setup.binary = p.before
	case serviceLink:
		c.to, err = p.offerService(ctx)
	case plainTUNLink:
		setup.property = offloadOff
	case kubelinkWG:
		setup.property = modeWireguard
		for _, b := range p.fleet.Brokers {
			if err := prepareMode(ctx, b, p.fleet.Brokers); err != nil {
				return err
			}
		}
	case vxlanLink:
		setup.property = ipipVXLAN
		c.devices = append(c.devices, overlay.Gateway.Device())
		err = p.setAnotherNode(ctx, c, overlay.Node.Device())
	case anotherLink:
		err = p.setAnotherNode(ctx, c, nodeDevice)
	}
	return err
}

// offerService makes a mesh service of the service behind the link. It returns its address, which the first cluster
// gets to know by the link.
func (p *dataplane) offerService(ctx context.Context) (netip.Addr, error) {
	address := mesh.Nth(p.two.MeshAddress.Masked(), 200)
	m := &v1alpha1.MeshService{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "linked"},
		Spec: v1alpha1.MeshServiceSpec{Service: "linked", MeshAddress: address.String()}}
	return address, p.two.Client.Create(ctx, m)
}

// setAnotherNode moves the client of a contender to a node that is not the gateway's. Packets to the gateway leave that
// node by a device.
func (p *dataplane) setAnotherNode(ctx context.Context, c *contender, device string) (err error) {
	if p.another == nil {
		if p.another, err = startAnotherNode(ctx, p.one); err != nil {
			return err
		}
	}
	c.client = p.another.client
	enter, state := c.enter, c.state
	c.enter = func() error {
		if err := enter(); err != nil {
			return err
		}
		return p.another.waitForRoute(ctx, c.to, device)
	}
	c.state = func() (string, error) {
		if err := p.another.checkRouter(); err != nil {
			return "", err
		}
		return state()
	}
	return nil
}

// listen opens the server's sockets.
func (p *dataplane) listen() (err error) {
	if p.streams, err = listenSocket(p.server.Host, unix.SOCK_STREAM, streamPort); err != nil {
		return err
	}
	if p.datagrams, err = listenSocket(p.server.Host, unix.SOCK_DGRAM, datagramPort); err != nil {
		return err
	}
	if p.echos, err = listenSocket(p.server.Host, unix.SOCK_DGRAM, echoPort); err != nil {
		return err
	}
	go serveEcho(p.echos)
	return nil
}

// publishServer forwards the server's ports from the router's public address to the pod, as the router forwards the
// ports of the tunnels to their processes. The node translates addresses once more, as kube-proxy does for a service.
func (p *dataplane) publishServer(ctx context.Context) error {
	gateway := p.two.Gateway()
	for _, port := range []struct {
		protocol string
		number   int
	}{{"tcp", streamPort}, {"udp", datagramPort}, {"udp", echoPort}} {
		for _, hop := range []struct {
			host     *testbed.Host
			from, to netip.Addr
		}{{p.two.Router, p.two.PublicAddress, gateway.Address}, {gateway.Host, gateway.Address, p.server.Address}} {
			if _, err := hop.host.Iptables(ctx, "-t", "nat", "-I", "PREROUTING", "-d", hop.from.String(), "-p", port.protocol,
				"--dport", fmt.Sprint(port.number), "-j", "DNAT",
				"--to-destination", fmt.Sprintf("%s:%d", hop.to, port.number)); err != nil {
				return err
			}
		}
	}
	return nil
}

// brokerSetup is how the brokers run.
type brokerSetup struct {
	property string // line of the stanza; empty: kubelink with its defaults
	binary   string // empty: the present one
}

// enterBrokers restarts both brokers, as all tunnels start before their turn: a new process and one that has carried
// other measures are no fair comparison.
func (p *dataplane) enterBrokers(ctx context.Context, setup brokerSetup) error {
	before := p.running
	p.running = setup
	g, starting := errgroup.WithContext(ctx)
	for _, b := range p.fleet.Brokers {
		text := b.Corefile()
		if !strings.Contains(text, before.stanza()) {
			return errors.New("the Corefile has no such stanza")
		}
		text = strings.Replace(text, before.stanza(), setup.stanza(), 1)
		if err := b.SetCorefile(text); err != nil {
			return err
		}
		b.Binary = setup.binary
		g.Go(func() error {
			if err := b.Kill(starting, syscall.SIGTERM); err != nil {
				return err
			}
			return b.Start(starting)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return p.fleet.WaitMesh(ctx)
}

// stanza is the begin of kubelink's stanza in a Corefile.
func (s brokerSetup) stanza() string {
	text := "\n    kubelink {\n"
	if s.property != "" {
		text += "        " + s.property + "\n"
	}
	return text
}

// linksUp returns since when the links are up, or an error when a link is not up.
func (p *dataplane) linksUp(ctx context.Context) (since string, err error) {
	for _, b := range p.fleet.Brokers {
		select {
		case <-b.Process.Done():
			return "", fmt.Errorf("%s has ended", b.Process.Name)
		default:
		}
		for _, other := range p.fleet.Brokers {
			l, err := b.Link(ctx, other.Name)
			if err != nil {
				return "", err
			}
			if l.Status.State != v1alpha1.StateUp {
				return "", fmt.Errorf("link %s of %s is %s: %s", l.Name, b.Name, l.Status.State, l.Status.Message)
			}
			if c := meta.FindStatusCondition(l.Status.Conditions, v1alpha1.ConditionReady); c != nil {
				since += fmt.Sprintf("link %s of %s since %s; ", l.Name, b.Name, c.LastTransitionTime.UTC().Format(time.TimeOnly))
			}
		}
	}
	return since, nil
}

// measureContender measures one contender once.
func (p *dataplane) measureContender(ctx context.Context, c *contender, round int) error {
	if err := c.enter(); err != nil {
		return err
	}
	// The link that is shown as Up may be the link of the process before the restart.
	if err := testbed.Until(ctx, "the path", func(context.Context) error {
		_, err := measureEchoes(c.client.Host, netip.AddrPortFrom(c.to, echoPort), 10*time.Millisecond, 50*time.Millisecond)
		return err
	}); err != nil {
		return err
	}
	state, err := c.state()
	if err != nil {
		return err
	}
	if err := resetPeak(c.listPIDs()); err != nil {
		return err
	}
	before, err := p.carriedBytes()
	if err != nil {
		return err
	}
	var load uint64 // bytes that have certainly been transferred
	for _, m := range p.measures {
		start := time.Now()
		n, err := p.measureQuietly(ctx, c, m, round)
		if err != nil {
			return fmt.Errorf("%s, after %s: %w", m, time.Since(start).Round(time.Millisecond), err)
		}
		load += n
	}
	resident, peak, err := readMemory(c.listPIDs())
	if err != nil {
		return err
	}
	if len(c.listPIDs()) > 0 {
		p.addResult(c, resultMemory, float64(resident)/(1<<20))
		p.addResult(c, resultPeak, float64(peak)/(1<<20))
	}
	after, err := p.carriedBytes()
	if err != nil {
		return err
	}
	for _, device := range slices.Sorted(maps.Keys(after)) {
		n := after[device] - before[device]
		if slices.Contains(c.devices, device) && n < load {
			return fmt.Errorf("%s carried %d bytes of %d", device, n, load)
		}
		if !slices.Contains(c.devices, device) && n > 1<<20 {
			return fmt.Errorf("%s carried %d bytes, which are not its business", device, n)
		}
	}
	end, err := c.state()
	if err == nil && end != state {
		err = fmt.Errorf("its state changed: %s, then %s", state, end)
	}
	return err
}

// carriedBytes returns the bytes that the contenders' devices have carried in the first cluster. A device that is not
// there has carried none.
func (p *dataplane) carriedBytes() (map[string]uint64, error) {
	all := map[string]uint64{}
	for _, c := range p.contenders {
		for _, device := range c.devices {
			link, err := p.one.Gateway().Net.LinkByName(device)
			switch {
			case errors.As(err, &netlink.LinkNotFoundError{}):
				all[device] = 0
			case err != nil:
				return nil, fmt.Errorf("device %s: %w", device, err)
			default:
				s := link.Attrs().Statistics
				all[device] = s.RxBytes + s.TxBytes
			}
		}
	}
	return all, nil
}

// measureQuietly measures while no other load uses the machine, as far as the bench can see. It returns the bytes
// that streams carried.
func (p *dataplane) measureQuietly(
	ctx context.Context, c *contender, measure string, round int,
) (total uint64, err error) {
	disturbed, err := p.quiet.runQuietly(ctx, measure, func() error {
		p.staged = nil
		n, err := p.takeMeasure(ctx, c, measure, round)
		total += n
		return err
	})
	if err != nil {
		return 0, err
	}
	p.results.measured++
	if disturbed {
		p.results.disturbed++
	}
	for _, n := range p.staged {
		p.addResult(c, n.result, n.value)
	}
	p.staged = nil
	return total, nil
}

// takeMeasure takes one measure and returns the bytes that streams carried.
func (p *dataplane) takeMeasure(ctx context.Context, c *contender, measure string, round int) (n uint64, err error) {
	profiles := p.startProfiles(ctx, c, measure, round)
	switch measure {
	case "tcp1", "tcp4":
		flows := map[string]int{"tcp1": 1, "tcp4": 4}[measure]
		for _, d := range []direction{up, down} {
			var bytes uint64
			if bytes, err = p.measureStreams(ctx, c, flows, d); err != nil {
				break
			}
			n += bytes
		}
	case "udp":
		err = p.datagramRate(ctx, c)
	case "http":
		err = p.requestRate(ctx, c)
	case "rtt":
		err = p.roundTrip(c)
	case "load":
		n, err = p.roundTripUnderLoad(ctx, c)
	}
	return n, errors.Join(err, profiles())
}

// addResult keeps and prints a result.
func (p *dataplane) addResult(c *contender, r result, value float64) {
	p.results.addValue(r, c.name, value)
	fmt.Printf("  %-44s %10s %s\n", r.title, r.formatValue(value), r.unit)
}

// stageResult keeps a result of a measure, until it is clear that no other load disturbed the measure.
func (p *dataplane) stageResult(r result, value float64) {
	p.staged = append(p.staged, stagedResult{r, value})
}

type stagedResult struct {
	result result
	value  float64
}

// measureStreams measures streams in one direction, and with a single stream the CPU time per byte.
func (p *dataplane) measureStreams(ctx context.Context, c *contender, n int, d direction) (uint64, error) {
	all, err := openFlows(c.client.Host, p.streams, netip.AddrPortFrom(c.to, streamPort), n, d)
	if err != nil {
		return 0, err
	}
	defer all.close()
	type usage struct {
		at              time.Time
		bytes           uint64
		tunnel, machine time.Duration
	}
	var start, end usage
	take := func(u *usage) (err error) {
		u.at, u.bytes = time.Now(), all.receivedBytes()
		if u.tunnel, err = processTime(c.listPIDs()); err == nil {
			u.machine, err = machineTime()
		}
		return err
	}
	if err := all.runDuring(ctx, p.warmUp, func() error {
		if err := take(&start); err != nil {
			return err
		}
		select {
		case <-time.After(p.stream):
		case <-ctx.Done():
			return ctx.Err()
		}
		return take(&end)
	}); err != nil {
		return 0, fmt.Errorf("%s: %w", d, err)
	}
	bytes := float64(end.bytes - start.bytes)
	if bytes == 0 {
		return 0, fmt.Errorf("%s: nothing arrived", d)
	}
	p.stageResult(resultStream(n, d), bytes*8/1e9/end.at.Sub(start.at).Seconds())
	if n == 1 {
		if len(c.listPIDs()) > 0 {
			p.stageResult(resultTunnelCPU(d), (end.tunnel-start.tunnel).Seconds()/bytes*1e9)
		}
		p.stageResult(resultMachineCPU(d), (end.machine-start.machine).Seconds()/bytes*1e9)
	}
	return all.receivedBytes(), nil
}

func (p *dataplane) datagramRate(ctx context.Context, c *contender) error {
	for _, d := range []direction{up, down} {
		w, err := openDatagrams(c.client.Host, p.datagrams, netip.AddrPortFrom(c.to, datagramPort), d)
		if err != nil {
			return err
		}
		key := c.name + string(d)
		rate, err := w.findHighestRate(ctx, p.guess[key], p.pace.datagrams, p.refinements, p.attempts)
		w.close()
		if err != nil {
			return err
		}
		p.guess[key] = rate // for the next round
		p.stageResult(resultDatagrams(d), rate/1000)
	}
	return nil
}

func (p *dataplane) requestRate(ctx context.Context, c *contender) error {
	rate, err := measureRequests(ctx, c.client.Host, p.streams, netip.AddrPortFrom(c.to, streamPort), p.warmUp,
		p.pace.requests)
	if err == nil {
		p.stageResult(resultRequests, rate/1000)
	}
	return err
}

const echoInterval = 2 * time.Millisecond

func (p *dataplane) roundTrip(c *contender) error {
	e, err := measureEchoes(c.client.Host, netip.AddrPortFrom(c.to, echoPort), echoInterval, p.idle)
	if err != nil {
		return err
	}
	if e.lost > 0 {
		return fmt.Errorf("%d of %d echoes lost without load", e.lost, len(e.times))
	}
	p.stageResult(resultIdleMedian, toMilliseconds(e.median))
	p.stageResult(resultIdle99, toMilliseconds(quantile(e.times, 0.99)))
	return nil
}

// roundTripUnderLoad measures the round-trip time beside one stream that uploads, and what that stream carries
// meanwhile: echoes are fast on a path that slows down the stream.
func (p *dataplane) roundTripUnderLoad(ctx context.Context, c *contender) (uint64, error) {
	all, err := openFlows(c.client.Host, p.streams, netip.AddrPortFrom(c.to, streamPort), 1, up)
	if err != nil {
		return 0, err
	}
	defer all.close()
	var e echoes
	var rate float64
	if err := all.runDuring(ctx, p.warmUp, func() (err error) {
		start, before := time.Now(), all.receivedBytes()
		e, err = measureEchoes(c.client.Host, netip.AddrPortFrom(c.to, echoPort), echoInterval, p.pace.load)
		rate = float64(all.receivedBytes()-before) * 8 / time.Since(start).Seconds()
		return err
	}); err != nil {
		return 0, err
	}
	p.stageResult(resultLoadMedian, toMilliseconds(e.median))
	p.stageResult(resultLoad99, toMilliseconds(quantile(e.times, 0.99)))
	p.stageResult(resultLoadLost, 100*float64(e.lost)/float64(len(e.times)))
	p.stageResult(resultLoadRate, rate/1e9)
	return all.receivedBytes(), nil
}

func toMilliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// startProfiles takes CPU profiles of both tunnel processes during a measure of the first round. The returned
// function waits for them.
func (p *dataplane) startProfiles(ctx context.Context, c *contender, measure string, round int) func() error {
	if p.profile == "" || round > 0 || c.profile == "" {
		return func() error { return nil }
	}
	var wait []func() error
	for _, b := range p.fleet.Brokers {
		file := filepath.Join(p.profile, fmt.Sprintf("%s-%s-%s.pprof", c.name, measure, b.Name))
		wait = append(wait, profileCPU(ctx, b.Gateway().Host, c.profile, p.warmUp+p.stream, file))
	}
	return func() (err error) {
		for _, w := range wait {
			err = errors.Join(err, w())
		}
		return err
	}
}

// printProcesses prints how to look at the running processes.
func (p *dataplane) printProcesses() {
	fmt.Println("\nrounds go on until Ctrl-C; meanwhile, in another terminal:")
	fmt.Println(" ", testbed.Enter("perf top")+"   # or any other program, inside of the bed")
	for _, c := range p.contenders {
		for _, t := range c.tunnels() {
			fmt.Printf("  %-10s %s: PID %d inside of the test bed\n", c.name, t.Name, t.PID())
		}
	}
	hosts := []*testbed.Host{p.client.Host, p.one.Gateway().Host, p.two.Gateway().Host, p.server.Host}
	if p.another != nil {
		hosts = append(hosts, p.another.client.Host, p.another.router.Host.Node.Host)
	}
	for _, h := range hosts {
		fmt.Printf("  %-24s %s\n", h.Name, h.Enter())
	}
	fmt.Println()
}
