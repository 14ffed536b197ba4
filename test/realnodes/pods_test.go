package realnodes

// The pods of a matrix: what they reach in the other cluster, and in their own cluster and the internet.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/wireguard"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const (
	internetPort = 9999 // of a server of the internet
	vxlanMTU     = 1450 // of the overlay in a network with MTU 1500: RFC 7348
)

// world is two linked clusters.
type world struct {
	ctx   context.Context
	fleet *fleet.Fleet
	sites []*site
}

// site is the cluster of a row.
type site struct {
	*fleet.Broker
	row      row
	web      netip.Addr // a service of all pods
	pods     []*pod
	internet netip.Addr // has a server
}

// pod is client and server. On each node, one has MTU 1500 and one has 9000.
type pod struct {
	*testbed.Pod
	site     *site
	mtu      int // bytes
	name     string
	service  netip.Addr // its own
	nodePort int32
	before   map[string]string // what it saw without kubelink
}

func (w *world) deploy(rows []row) error {
	var g errgroup.Group
	for i, b := range w.fleet.Brokers {
		s := &site{Broker: b, row: rows[i], internet: w.fleet.Brokers[1-i].PublicAddress}
		w.sites = append(w.sites, s)
		g.Go(func() error { return s.deploy(w.ctx) })
	}
	return g.Wait()
}

func (s *site) deploy(ctx context.Context) error {
	if s.row.overlay != "" {
		if err := s.makeStrict(ctx); err != nil {
			return err
		}
	}
	if err := s.Router.ServeHTTPEcho(internetPort); err != nil {
		return err
	}
	found, err := s.Deploy(ctx, "web", 2*len(s.Nodes))
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.Go(func() (err error) {
		// After an outage of the API server on a busy machine, all nodes count as not ready for a moment, and so do their
		// pods. What requests then lose is not kubelink's.
		s.web, err = s.Service(ctx, "web", map[string]string{"app": "web"}, servicePorts(),
			testbed.ServiceOptions{NotReady: true})
		return err
	})
	mtus := map[*testbed.Node]int{}
	for _, each := range found {
		p := &pod{Pod: each, site: s, mtu: 1500}
		if mtus[p.Node] == 1500 {
			p.mtu = 9000
		}
		mtus[p.Node] = p.mtu
		s.pods = append(s.pods, p)
		g.Go(func() error { return p.prepare(ctx) })
	}
	return g.Wait()
}

func servicePorts() []corev1.ServicePort {
	return []corev1.ServicePort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(8080)},
		{Name: "datagrams", Protocol: corev1.ProtocolUDP, Port: 5353}}
}

// prepare gives the pod its MTU, and a service of its own.
func (p *pod) prepare(ctx context.Context) error {
	if p.mtu != p.site.row.mtu {
		if _, err := p.SetMTU(p.mtu); err != nil { // ends with the pod
			return err
		}
	}
	p.name = fmt.Sprintf("%s-%d", strings.TrimPrefix(p.Node.Name, p.site.Name+"-"), p.mtu)
	before := p.Object.DeepCopy()
	p.Object.Labels["server"] = p.name
	if err := p.site.Client.Patch(ctx, p.Object, client.MergeFrom(before)); err != nil {
		return err
	}
	var err error
	p.service, err = p.site.Service(ctx, p.name, map[string]string{"server": p.name}, servicePorts(),
		testbed.ServiceOptions{NodePorts: true})
	if err != nil {
		return err
	}
	service := &corev1.Service{}
	err = p.site.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: p.name}, service)
	if err == nil {
		p.nodePort = service.Spec.Ports[0].NodePort
	}
	return err
}

// pathMTU is that of the way from the pod to a link, in bytes.
func (p *pod) pathMTU() int {
	r, tunnelMTU := p.site.row, 1500
	if r.links == mesh.WireGuard {
		tunnelMTU = wireguard.DefaultMTU
	}
	if r.overlay != "" && r.mtu == 1500 && (r.mode == "pod-mode" || p.Node != p.site.Host.Node) {
		return min(p.mtu, vxlanMTU)
	}
	return min(p.mtu, tunnelMTU)
}

// maxDatagram is the size of datagrams that the pod can answer, in bytes. A bridge drops what exceeds the MTU of a
// port, and says nothing. In pod mode, the gateway of the pod's node is at another port of the pod's bridge.
func (p *pod) maxDatagram() int {
	if r := p.site.row; r.mode == "pod-mode" && r.podNetwork == testbed.Bridge && p.Node == p.site.Host.Node {
		return min(p.mtu, r.mtu)
	}
	return p.mtu
}

// checkRemote asks all servers of another cluster, and downloads size bytes from one of them.
func (p *pod) checkRemote(t *testing.T, ctx context.Context, peer *site, size int64) {
	// The router of this node may still have to set its routes: that of the mesh comes before those of links.
	check(t, testbed.Until(ctx, "the way to "+peer.Name, func(ctx context.Context) error {
		if _, err := p.Ping(ctx, peer.MeshAddress.Addr()); err != nil {
			return err
		}
		_, err := p.Get(ctx, "http://"+peer.pods[0].service.String())
		return err
	}))
	if got := must(p.PathMTU(ctx, peer.MeshAddress.Addr(), p.mtu))(t); got != p.pathMTU() {
		t.Errorf("path MTU %d, want %d", got, p.pathMTU())
	}
	for _, server := range peer.pods {
		name := fmt.Sprintf("%s.default.svc.%s.kubelink", server.name, peer.Name)
		for _, host := range []string{server.service.String(), name} {
			must(p.Get(ctx, "http://"+host))(t)
			length := min(p.mtu, server.maxDatagram())
			if _, _, err := p.askDatagram(ctx, host, length, true); err != nil {
				t.Errorf("datagram of %d bytes to %s: %v", length, server.name, err)
			}
			_, got, err := p.askDatagram(ctx, host, length, false)
			if want := min(p.pathMTU(), server.mtu); err != nil || got != want {
				t.Errorf("unfragmented datagram to %s: %d bytes, want %d: %v", server.name, got, want, err)
			}
		}
		length := size / 10
		if server.mtu == p.mtu && server.Node.Name[len(peer.Name):] != p.Node.Name[len(p.site.Name):] {
			length = size
		}
		start := time.Now()
		check(t, download(ctx, p.Host, "http://"+name+"/bytes/", length))
		t.Logf("%d bytes from %s in %.1f s", length, server.name, time.Since(start).Seconds())
	}
}

// download fetches size bytes, which is the end of the URL, and compares their checksum.
func download(ctx context.Context, from *testbed.Host, url string, size int64) error {
	url += fmt.Sprint(size)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := from.HTTPClient().Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	got, want := sha256.New(), sha256.New()
	if n, err := io.Copy(got, response.Body); err != nil || n != size {
		return fmt.Errorf("%d bytes of %s: %w", n, url, err)
	}
	io.CopyN(want, rand.NewChaCha8([32]byte{}), size)
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return fmt.Errorf("%s has another checksum", url)
	}
	return nil
}

// dialDatagrams connects to the UDP server of a host.
func (p *pod) dialDatagrams(ctx context.Context, host string) (*net.UDPConn, error) {
	conn, err := p.DialContext(ctx, "udp", net.JoinHostPort(host, "5353"))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// askDatagram asks the UDP server of a host as askAgain does, from a new port.
func (p *pod) askDatagram(
	ctx context.Context, host string, size int, fragment bool,
) (seen string, length int, err error) {
	c, err := p.dialDatagrams(ctx, host)
	if err != nil {
		return "", 0, err
	}
	defer c.Close()
	return askAgain(ctx, c, size, fragment)
}

// askAgain asks a UDP server which address it sees, until it answers. The datagram has size bytes, with its headers, as
// the answer. If it must not be fragmented, it gets as short as path MTU discovery wants it; length says so.
func askAgain(ctx context.Context, c *net.UDPConn, size int, fragment bool) (seen string, length int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := testbed.SetFragmentation(c, fragment); err != nil {
		return "", 0, err
	}
	buffer := make([]byte, 64<<10)
	for {
		c.SetDeadline(time.Now().Add(300 * time.Millisecond)) // datagrams, and what routers say about them, may get lost
		_, err := c.Write(make([]byte, size-28))
		for n := 0; err == nil; {
			if n, err = c.Read(buffer); err == nil && n == size-28 {
				seen, _, _ := bytes.Cut(buffer[:n], []byte{0})
				return string(seen), size, nil
			}
		}
		if ctx.Err() != nil {
			return "", size, fmt.Errorf("%d bytes: no answer: %w", size, err)
		}
		switch {
		case errors.Is(err, unix.EMSGSIZE):
			if size, err = testbed.KnownPathMTU(c); err != nil {
				return "", 0, err
			}
		case !errors.Is(err, os.ErrDeadlineExceeded): // it comes at once, such as a refusal
			<-time.After(100 * time.Millisecond)
		}
	}
}

// observeBefore has all pods remember what they reach without kubelink.
func (w *world) observeBefore(t *testing.T) {
	var g sync.WaitGroup
	for _, s := range w.sites {
		for _, p := range s.pods {
			g.Go(func() { p.before = p.observeLocal(w.ctx) })
		}
	}
	g.Wait()
	for _, s := range w.sites {
		for _, p := range s.pods {
			for what, seen := range p.before {
				if strings.Contains(seen, "error") {
					t.Errorf("%s on %s, without kubelink: %s: %s", p.name, s.row, what, seen)
				}
			}
		}
	}
}

// checkLocal looks whether what a pod reaches without links is as it was before kubelink.
func (p *pod) checkLocal(t *testing.T, ctx context.Context) {
	now := p.observeLocal(ctx)
	for _, what := range listNames(p.before, now) {
		if now[what] != p.before[what] {
			t.Errorf("%s: it was %q before, it is %q", what, p.before[what], now[what])
		}
	}
}

// observeLocal returns the client's addresses that servers see, and path MTUs: of pods, services, nodes, node ports
// (also from outside of the cluster), and the internet.
func (p *pod) observeLocal(ctx context.Context) map[string]string {
	all := map[string]string{}
	note := func(value any, err error, what string, args ...any) {
		if err != nil {
			value = "error: " + err.Error()
		}
		all[fmt.Sprintf(what, args...)] = fmt.Sprint(value)
	}
	get := func(h *testbed.Host, what string, host any, port int32) {
		seen, err := h.Get(ctx, fmt.Sprintf("http://%s:%d", host, port))
		note(seen, err, "%s %s:%d", what, host, port)
	}
	reach := func(a netip.Addr, size int) {
		mtu, err := p.PathMTU(ctx, a, size)
		note(mtu, err, "path MTU to %s", a)
	}
	for _, other := range p.site.pods {
		if other != p {
			size := min(p.mtu, other.mtu)
			reach(other.Address, size)
			get(p.Host, "pod", other.Address, 8080)
			get(p.Host, "service", other.service, 80)
			get(p.Host, "service", other.name+".default.svc.cluster.local", 80)
			seen, _, err := p.askDatagram(ctx, other.service.String(), size, true)
			note(seen, err, "datagram to %s", other.name)
		}
		for _, n := range p.site.Nodes {
			get(p.Host, "node port", n.Address, other.nodePort)
		}
	}
	for _, n := range p.site.Nodes {
		_, err := p.Ping(ctx, n.Address) // not its path MTU: as a client of pods, it stands for those of other clusters
		note("reached", err, "node %s", n.Address)
		get(p.site.Router, "node port from outside", n.Address, p.nodePort)
	}
	reach(p.site.internet, 1500)
	get(p.Host, "internet", p.site.internet, internetPort)
	return all
}
