package e2e

// A cluster with a good link offers mesh services that are not its own, or by the hundred thousand, or others all the
// time: it gets what is its own, the rest is refused and counted, and other links do not notice.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/peer"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// Addresses of the mesh, a large one, in which the first cluster is linked with the hostile one.
var (
	hostileNearEnd = netip.MustParsePrefix("10.77.0.1/16")
	hostileOther   = netip.MustParsePrefix("10.77.0.2/16") // of another cluster, which does not exist
	hostileEnd     = netip.MustParsePrefix("10.77.0.3/16")
	hostileService = netip.MustParseAddr("10.77.0.50") // of a MeshService of the first cluster
)

const hostileLink = "large--kubelink3"

// offerer is the hostile cluster. It offers what a test wants.
type offerer struct {
	*peer.Peer
	serial uint32
}

// startOfferer makes the large mesh and the connection of the hostile cluster, and takes the third broker away.
func startOfferer(t *testing.T, ctx context.Context) *offerer {
	t.Helper()
	one, third := brokers[0], brokers[2]
	t.Cleanup(func() { restoreMesh(t) })
	must(t, one.Remove(ctx, third.Name)) // a cluster has one link
	far := third.LinkTo()
	far.Name, far.Spec.ClusterAddress = hostileLink, hostileEnd.String()
	for _, l := range []*v1alpha1.KubeLink{
		newKubeLink("large--kubelink1", hostileNearEnd.String(), v1alpha1.EndpointLocal,
			func(s *v1alpha1.KubeLinkSpec) { s.DNS = &v1alpha1.KubeLinkDNS{BaseDomain: "large.kubelink"} }),
		newKubeLink("large--other", hostileOther.String(), "other.example", withEgress("10.77.9.0/24")),
		far,
	} {
		must(t, one.Apply(ctx, l))
		t.Cleanup(func() { must(t, one.Remove(context.Background(), l.Name)) })
	}
	o := &offerer{}
	if inWireGuard() {
		h := startHostile(t, ctx, hostileNearEnd.Addr(), hostileEnd.Addr(), hostileOther.Addr())
		must(t, one.WaitState(ctx, hostileLink, v1alpha1.StateUp))
		within(t, time.Minute, "the control channel", func(ctx context.Context) error {
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			conn, err := h.dial(short, h.own)
			o.Peer = &peer.Peer{Conn: conn}
			return err
		})
	} else {
		must(t, third.Kill(ctx, syscall.SIGTERM))
		t.Cleanup(func() { must(t, third.Start(context.Background())) })
		within(t, 20*time.Second, "the connection", func(ctx context.Context) (err error) {
			o.Peer, err = dialRaw(context.WithoutCancel(ctx), third.Gateway().Host, one, f.CA, third.FQDN)
			return err
		})
	}
	must(t, o.greet())
	ended := runInBackground(o.answerPings)
	t.Cleanup(func() { o.Close(); t.Log("the connection has ended:", ended()) })
	must(t, one.WaitState(ctx, hostileLink, v1alpha1.StateUp))
	return o
}

// greet says what a kubelink says first.
func (o *offerer) greet() error {
	h := hello.Hello{Announcement: link.Announcement{Address: hostileEnd}, Capable: true,
		Flags: hello.FlagKeepalive | hello.FlagServices, Instance: 1}
	payload, err := h.AppendPayload(nil)
	if err != nil {
		return err
	}
	return errors.Join(o.Send(hello.FrameHello, payload), o.Send(hello.FramePing, make([]byte, 8)))
}

// answerPings answers the pings of the broker until the connection ends.
func (o *offerer) answerPings() error {
	for {
		kind, payload, err := o.Receive()
		if err == nil && kind == hello.FramePing {
			err = o.Send(hello.FramePong, payload)
		}
		if err != nil {
			return err
		}
	}
}

// frames are those of a list of mesh services.
func (o *offerer) frames(list []mesh.Offer) []byte {
	o.serial++
	own := hello.OwnServices{Serial: o.serial, List: list}
	everywhere := mesh.Prefixes{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	return bytes.Join(own.AppendFrames(nil, everywhere), nil)
}

// offer offers these mesh services, and no others.
func (o *offerer) offer(t *testing.T, list ...mesh.Offer) {
	t.Helper()
	_, err := o.Write(o.frames(list))
	must(t, err)
}

func newOffer(name string, address string) mesh.Offer {
	return mesh.Offer{Namespace: "default", Name: name, Address: netip.MustParseAddr(address), Whole: true}
}

// manyOffers are offers of addresses of the large mesh, which differ with the round.
func manyOffers(count, round int) []mesh.Offer {
	list := make([]mesh.Offer, count)
	for i := range list {
		n := 3000 + (i+round)%60000
		a := netip.AddrFrom4([4]byte{10, 77, byte(n >> 8), byte(n)})
		list[i] = mesh.Offer{Namespace: "default", Name: fmt.Sprintf("x%d-%d", i, round), Address: a, Whole: true}
	}
	return list
}

// waitRefused waits until this many offers are refused, by reason.
func waitRefused(t *testing.T, limit time.Duration, want map[mesh.OfferRefusal]int) time.Duration {
	t.Helper()
	return within(t, limit, fmt.Sprintf("refusals: %v", want), func(ctx context.Context) error {
		for _, reason := range mesh.OfferRefusals {
			v, err := brokers[0].Metric(ctx, fmt.Sprintf("coredns_kubelink_refused_mesh_services{reason=%q}", reason))
			if err == nil && int(v) != want[reason] {
				err = fmt.Errorf("%s: %g", reason, v)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func hostileName(service string) string { return service + ".default.msvc.kubelink3.large.kubelink." }

// A hostile cluster gets no address that is not its own, whatever it offers, and how often.
func TestMeshServiceHostileOffers(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	one, two := brokers[0], brokers[1]
	applyMeshServices(t, ctx, two,
		[2]string{"offered", fmt.Sprintf(`"service":"server","meshAddress":"%s"`, offeredAddress)})
	waitForReply(t, 5*time.Second, clients[0], offeredAddress)
	o := startOfferer(t, ctx)
	applyMeshServices(t, ctx, one,
		[2]string{"own", fmt.Sprintf(`"service":"server","meshAddress":"%s"`, hostileService)})
	waitMeshService(t, 5*time.Second, one, "own", " Ok ")
	checks := []func(){expectUp(t, one, two), expectNoFailures(t, clients[0], servers[1].service),
		expectNoFailures(t, clients[0], offeredAddress)}
	before, err := residentMemory(one.Process)
	must(t, err)
	quit := make(chan struct{})
	var largest int
	watched := runInBackground(func() error { largest = largestMemory(one.Process, quit); return nil })

	t.Run("addresses of others", func(t *testing.T) { offerForeign(t, ctx, o) })
	t.Run("100,000", func(t *testing.T) {
		o.offer(t, manyOffers(100000, 0)...)
		took := waitRefused(t, 30*time.Second, map[mesh.OfferRefusal]int{mesh.OfferLeftOut: 100000 - hello.MaxServices})
		t.Logf("refused after %s", took)
	})
	t.Run("garbage", func(t *testing.T) { offerGarbage(t, o) })
	t.Run("others all the time", func(t *testing.T) { changeAllTheTime(t, ctx, o) })

	close(quit)
	must(t, watched())
	t.Logf("memory was %d MiB, at most %d MiB", before>>20, largest>>20)
	if largest > 3*before {
		t.Errorf("memory grew from %d MiB to %d MiB", before>>20, largest>>20)
	}
	for _, check := range checks {
		check()
	}
	must(t, checkAnswer(ctx, one, offeredName(two, "offered"), offeredAddress))
}

// offerForeign offers addresses that belong to others, among them two that are free.
func offerForeign(t *testing.T, ctx context.Context, o *offerer) {
	one, two := brokers[0], brokers[1]
	list := []mesh.Offer{
		newOffer("good", "10.77.3.3"),
		{Namespace: "default", Name: "port", Address: hostileEnd.Addr(), Ports: []mesh.OfferPort{{Protocol: 6, Port: 80}}},
	}
	refused := map[mesh.OfferRefusal]int{}
	bad := map[string]mesh.OfferRefusal{
		hostileOther.Addr().String():           mesh.OfferCluster,
		hostileNearEnd.Addr().String():         mesh.OfferCluster,
		hostileEnd.Addr().String():             mesh.OfferCluster, // as a whole
		"10.77.9.9":                            mesh.OfferNetwork,
		hostileService.String():                mesh.OfferLocal,
		one.Gateway().Address.String():         mesh.OfferOutside, // a node
		two.MeshAddress.Addr().String():        mesh.OfferOutside, // a cluster of another mesh
		offeredAddress.String():                mesh.OfferOutside, // its mesh service
		servers[0].service.String():            mesh.OfferOutside,
		servers[1].pod.Address.String():        mesh.OfferOutside,
		"127.0.0.1":                            mesh.OfferOutside,
		"0.0.0.0":                              mesh.OfferOutside,
		"255.255.255.255":                      mesh.OfferOutside,
		"2001:db8::1":                          mesh.OfferOutside,
		one.ServiceCIDR.Addr().String():        mesh.OfferOutside,
		one.MeshDNSAddress.String():            mesh.OfferOutside,
		testbed.NodeCIDR.Addr().String():       mesh.OfferOutside,
		one.PublicAddress.String():             mesh.OfferOutside,
		one.MeshAddress.Addr().String():        mesh.OfferOutside,
		brokers[2].PublicAddress.String():      mesh.OfferOutside,
		brokers[2].MeshAddress.Addr().String(): mesh.OfferOutside,
	}
	for address, reason := range bad {
		list = append(list, newOffer(fmt.Sprintf("bad%d", len(list)), address))
		refused[reason]++
	}
	o.offer(t, list...)
	waitRefused(t, 5*time.Second, refused)
	within(t, 5*time.Second, "name of the good one", func(ctx context.Context) error {
		return checkAnswer(ctx, one, hostileName("good"), netip.MustParseAddr("10.77.3.3"))
	})
	must(t, checkAnswer(ctx, one, hostileName("port"), hostileEnd.Addr()))
	for _, b := range list[2:] {
		must(t, checkNoName(ctx, one, hostileName(b.Name)))
	}
	must(t, one.WaitState(ctx, hostileLink, v1alpha1.StateUp,
		fmt.Sprintf("%d of %d mesh services that the peer offers are not accepted, such as ", len(bad), len(list))))
	routes, err := brokerRoutes(ctx, one)
	must(t, err)
	for address, reason := range bad {
		if reason == mesh.OfferOutside && strings.Contains(routes, "\n"+address+" ") {
			t.Errorf("route to %s:\n%s", address, routes)
		}
	}
}

// offerGarbage sends frames of lists that are none, and a list that does not end.
func offerGarbage(t *testing.T, o *offerer) {
	t.Helper()
	random := rand.NewChaCha8(seed)
	junk := make([]byte, hello.MaxLegacyPayload)
	for i := range 300 {
		random.Read(junk)
		o.serial++
		binary.BigEndian.PutUint32(junk[1:], o.serial)
		junk[0] = byte(i % 4) // marks of begin and end
		switch i % 5 {
		case 0: // empty
			must(t, o.Send(hello.FrameServices, junk[:i%6]))
		case 1: // entries that are too long
			copy(junk[5:], []byte{0xff, 0xff})
			must(t, o.Send(hello.FrameServices, junk[:100]))
		case 2: // entries of nothing
			clear(junk[5:])
			must(t, o.Send(hello.FrameServices, junk[:1000]))
		default:
			must(t, o.Send(hello.FrameServices, junk))
		}
	}
	endless := o.frames(manyOffers(hello.MaxServices, 0))
	first := endless[:hello.FrameHeader+int(binary.BigEndian.Uint16(endless))]
	for range 100 {
		first[hello.FrameHeader] = 0
		must(t, o.Send(hello.FrameServices, first[hello.FrameHeader:]))
	}
	o.offer(t, newOffer("good", "10.77.3.3"), newOffer("bad", "10.78.0.1"))
	waitRefused(t, 20*time.Second, map[mesh.OfferRefusal]int{mesh.OfferOutside: 1})
}

// changeAllTheTime sends lists as fast as it can, while a healthy cluster changes what it offers.
func changeAllTheTime(t *testing.T, ctx context.Context, o *offerer) {
	t.Helper()
	moving := newMeshService("moving", offeredAddress.Next())
	must(t, brokers[1].Client.Create(ctx, moving))
	t.Cleanup(func() { must(t, brokers[1].Client.Delete(context.Background(), moving)) })
	next := offeredAddress.Next()
	move := func() (took delays) {
		for range 6 {
			next = next.Next()
			took.measure(t, "the other address", func() error { return moveMeshService(ctx, brokers[1], moving, next) },
				func(ctx context.Context) error {
					return checkAddresses(ctx, brokers[0], offeredName(brokers[1], "moving"), next)
				}, func(ctx context.Context) error { return checkReached(ctx, next, true) })
		}
		return took
	}
	alone := move()
	flood, cancel := context.WithCancel(ctx)
	defer cancel()
	lists := 0
	flooded := runInBackground(func() error {
		for ; flood.Err() == nil; lists++ {
			if _, err := o.Write(o.frames(manyOffers(hello.MaxServices, lists))); err != nil {
				return err
			}
		}
		return nil
	})
	begin, used := time.Now(), processorTime(t, brokers[0])
	beside := move()
	cancel()
	must(t, flooded())
	t.Logf("%d lists of %d mesh services in %s, and %s of processor time; changes of a healthy cluster took %s, before %s",
		lists, hello.MaxServices, time.Since(begin), processorTime(t, brokers[0])-used, beside.changes, alone.changes)
	const factor = 8
	if most := slices.Max(alone.changes); median(beside.changes) > max(time.Second, factor*most) {
		t.Errorf("changes of a healthy cluster took %s, and before %s", beside.changes, alone.changes)
	}
	o.offer(t)
	waitRefused(t, 20*time.Second, nil)
}

// processorTime is what the broker has used so far.
func processorTime(t *testing.T, b *fleet.Broker) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.Process.PID()))
	must(t, err)
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+2:]))
	var user, system int
	_, err = fmt.Sscan(fields[11]+" "+fields[12], &user, &system) // in 1/100 s, see proc(5)
	must(t, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}
