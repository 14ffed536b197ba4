package wireguard

// Two brokers of one cluster, on hosts of their own, and a peer of both: each is a process, with wireguard-go in it.

import (
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// rivals are a peer and two brokers of another cluster: they have one key, one cluster address, and a term each.
type rivals struct {
	*pair
	peer   *broker
	ends   [2]*broker
	places [2]*host
	link   [2]string // host of the endpoint of each, as the peer dials it
}

func newRivals(t *testing.T) *rivals {
	t.Helper()
	p := newHosts(t, true)
	third := newHost(t)
	p.hosts[0].run("ip link add eth1 type veth peer name eth0 netns " + third.pid +
		"\nip addr add 172.16.1.1/24 dev eth1\nip link set eth1 up")
	third.run("ip addr add 172.16.1.2/24 dev eth0\nip link set eth0 up")
	p.toOne.Local, p.toTwo.Local = prefixes("192.168.0.2/24"), prefixes("192.168.0.1/24")
	r := &rivals{pair: p, places: [2]*host{p.hosts[1], third}, link: [2]string{"172.16.0.2", "172.16.1.2"}}
	p.start(0, keyOne)
	r.peer = p.brokers[0]
	for i, h := range r.places {
		r.ends[i] = h.startBroker()
		r.ends[i].open(OpenArgs{Settings: p.settings, Fast: true})
		r.ends[i].setKey(keyTwo)
		h.route("192.168.0.2/32")
	}
	r.peer.set(p.toTwo)
	return r
}

// lead has a broker carry the link with a term, as the holder of the Lease does.
func (r *rivals) lead(i int, term uint32) {
	b := r.ends[i]
	b.t.Helper()
	settings, toOne := r.settings, r.toOne
	settings.Term = term
	toOne.Host = []string{"172.16.0.1", "172.16.1.1"}[i]
	call[None](b, "Configure", settings)
	b.set(toOne)
}

// awaitTurn waits until the link is that of one broker, and the other one has left it.
func (r *rivals) awaitTurn(i int, reason string) {
	b, other := r.ends[i], r.ends[1-i]
	b.t.Helper()
	began := time.Now()
	b.awaitStatus(link.Up, "", 10*time.Second)
	up := time.Since(began)
	other.awaitStatus(link.Down, reason, 20*time.Second)
	b.t.Logf("the link is Up after %s, the other broker has left it after %s", up, time.Since(began))
	await(b.t, "the other device to be silent", func() bool {
		all := other.show().Peers // none for a moment: the peer is made anew
		return len(all) == 1 && all[0].Endpoint == nil && len(all[0].AllowedIPs) == 0
	})
}

// The broker with the higher term has the link to itself: the other one learns it from the peer, which costs the link a
// moment at most, and then sends nothing more. It answers, when the peer comes to it.
func TestSupersededBrokerLeavesPeer(t *testing.T) {
	r := newRivals(t)
	r.lead(0, 1)
	for r.ends[0].awaitStatus(link.Up, "", 10*time.Second).Announced == nil {
	}
	for i, end := range []int{1, 0} { // takes over
		term := uint32(2 + i)
		r.lead(end, term)
		r.awaitTurn(end, "superseded by term "+[]string{"2", "3"}[i])
		echo := r.places[end].start("echo", "192.168.0.2")
		echo.await("ready")
		told := time.Now()
		first := r.hosts[0].start("probe", "192.168.0.2")
		first.await("ready") // the first answer: there is a session with the right broker
		took := time.Since(told)
		if t.Logf("packets pass after another %s", took); took > 3*time.Second {
			t.Errorf("packets pass %s later only", took)
		}
		first.finish()
		probe := r.hosts[0].start("probe", "192.168.0.2")
		probe.await("ready")
		before, ups := r.peer.peer(keyTwo.Public()), r.peer.statuses()[0].Since
		await(t, "packets of 5 s", func() bool {
			return r.peer.peer(keyTwo.Public()).ReceiveBytes > before.ReceiveBytes+2500*64
		})
		probe.finishWhole()
		echo.stdin.Close()
		if st := r.peer.statuses()[0]; st.State != link.Up || st.Since != ups {
			t.Errorf("the link was Up since %s, is %+v", ups, st)
		}
	}
	r.ends[0].kill()
	r.toTwo.Host = r.link[1] // as a load balancer does, which leads to the other broker now
	began := time.Now()
	r.peer.set(r.toTwo)
	r.ends[1].awaitStatus(link.Up, "", time.Minute) // silence, the memory of the term, and two sessions or more
	t.Logf("the peer has the other broker after %s", time.Since(began))
}
