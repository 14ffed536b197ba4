package bridge

// Several brokers of one cluster, with and without a Lease.

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// withTerm lets a bridge have a term.
func withTerm(term uint32) func(*Config) { return func(c *Config) { c.Term = term } }

// withMemory changes how long a bridge remembers a term.
func withMemory(d time.Duration) func(*Config) { return func(c *Config) { c.timing.termMemory = d } }

// twins are two brokers of one cluster a, with the same certificate, and a bridge b that is linked with both. b can
// dial none of them.
type twins struct {
	i         *internet
	b, a1, a2 *node
}

func newTwins(t *testing.T, memory time.Duration, term1, term2 uint32) *twins {
	i := newInternet(t)
	w := &twins{i: i, b: i.start("b.example", i.ca.issue(t, "b.example"), withMemory(memory))}
	w.b.set(newLink("a", 2, 1, "a.example"))
	certificate := i.ca.issue(t, "a.example")
	w.a1 = i.start("first.example", certificate, withTerm(term1))
	w.a1.set(newLink("b", 1, 2, "b.example"))
	w.a1.awaitState("b", link.Up)
	w.b.awaitState("a", link.Up)
	w.a2 = i.start("second.example", certificate, withTerm(term2))
	w.a2.set(newLink("b", 1, 2, "b.example"))
	return w
}

// awaitDials waits for a number of further dials of b.example.
func (w *twins) awaitDials(n int) {
	dials := func() int {
		w.i.mu.Lock()
		defer w.i.mu.Unlock()
		return w.i.dials["b.example"]
	}
	start := dials()
	w.b.await("dials of b.example", func() bool { return dials() >= start+n })
}

// A peer follows the broker with the higher term, whoever came first, and tells the other one. No session changes while
// that one goes on to dial.
func TestHighestTerm(t *testing.T) {
	const superseded = "superseded by term 4: the peer follows another broker of this cluster, this one has term "
	for _, c := range []struct {
		name         string
		term1, term2 uint32
		says         string // the broker with the lower term
		note         string // the peer
	}{
		{"the newer broker", 3, 4, superseded + "3",
			"a second broker of the cluster claims this link with term 3; the link follows the broker with term 4"},
		{"the older broker", 4, 3, superseded + "3",
			"a second broker of the cluster claims this link with term 3; the link follows the broker with term 4"},
		{"one without Lease", 4, 0, superseded + "0",
			"a second broker of the cluster claims this link with term 0; the link follows the broker with term 4"},
		{"far terms", 1, math.MaxUint32, "superseded by term 4294967295", "with term 1;"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTwins(t, time.Minute, c.term1, c.term2)
			winner, loser := w.a1, w.a2
			if c.term2 > c.term1 {
				winner, loser = w.a2, w.a1
			}
			winner.awaitState("b", link.Up)
			loser.awaitReason("b", c.says)
			w.b.awaitPeer(winner)
			w.b.await("note", func() bool { return strings.Contains(w.b.status("a").Note, c.note) })
			// Another connection of the winner may change the address of the status.
			w.b.await("all streams", func() bool { return w.b.status("a").Accepted == DefaultStreams() })
			before := w.b.status("a")
			w.awaitDials(5)
			if after := w.b.status("a"); after.State != link.Up || after.Since != before.Since || after.Remote != before.Remote {
				t.Errorf("the link was %+v, is %+v", before, after)
			}
			if st := winner.status("b"); st.State != link.Up {
				t.Errorf("the broker with the higher term: %+v", st)
			}
			winner.pass(w.b, "192.168.0.11", "192.168.0.12", 1)
			w.b.pass(winner, "192.168.0.12", "192.168.0.11", 2)
		})
	}
}

// The broker of a cluster that a peer dials may be the one with the lower term: it learns so from the peer's hello.
func TestDialledSuperseded(t *testing.T) {
	w := newTwins(t, time.Minute, 3, 4)
	w.a2.awaitState("b", link.Up)
	w.b.awaitPeer(w.a2)
	w.i.name("a.example", w.a1.address())
	w.a2.Close(false)
	w.b.awaitReason("a", "a broker with term 3 answers for the peer, and term 4 has the link")
}

// Without terms the newer connection counts, as that of a restarted process. Two that live show as such.
func TestTwinsWithoutTerm(t *testing.T) {
	for _, term := range []uint32{0, 7} {
		w := newTwins(t, time.Minute, term, term)
		w.b.await("note", func() bool {
			return strings.Contains(w.b.status("a").Note, "two brokers of the cluster claim this link in turns")
		})
	}
}

// A restarted broker, and one whose term rises again, are no second broker.
func TestTermReturns(t *testing.T) {
	w := newTwins(t, time.Minute, 1, 2)
	w.b.awaitPeer(w.a2)
	for term := uint32(3); term < 7; term += 2 {
		for n, a := range []*node{w.a1, w.a2} {
			settings := a.config.Settings
			settings.Term = term + uint32(n)
			if err := a.Configure(settings); err != nil {
				t.Fatal(err)
			}
			w.b.awaitPeer(a)
			a.awaitState("b", link.Up)
		}
	}
	if note := w.b.status("a").Note; strings.Contains(note, "in turns") {
		t.Error(note)
	}
}

// A term is forgotten some time after its broker: a Lease may be made anew, with a lower number. A broker without Lease
// gets in at once.
func TestTermForgotten(t *testing.T) {
	for _, c := range []struct {
		name   string
		memory time.Duration
		term   uint32
	}{{"a lower term, after a while", 50 * time.Millisecond, 3}, {"no Lease, at once", time.Hour, 0}} {
		t.Run(c.name, func(t *testing.T) {
			w := newTwins(t, c.memory, 4, c.term)
			w.a2.awaitReason("b", "superseded by term 4")
			w.a1.Close(false)
			w.b.awaitPeer(w.a2)
			w.a2.awaitState("b", link.Up)
		})
	}
	t.Run("a lower term, soon", func(t *testing.T) {
		w := newTwins(t, time.Hour, 4, 3)
		w.a2.awaitReason("b", "superseded by term 4")
		w.a1.Close(false)
		w.b.awaitState("a", link.Down)
		w.awaitDials(5)
		if st := w.b.status("a"); st.State == link.Up {
			t.Errorf("%+v", st)
		}
	})
}

// A hostile peer with the highest terms of all loses its own link, and changes no other one.
func TestHostileTerm(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"), withTerm(3))
	c := i.start("c.example", i.ca.issue(t, "c.example"))
	a.set(newLink("b", 1, 2, "b.example"), newLink("c", 1, 3, "c.example"))
	c.set(newLink("a", 3, 1, "a.example"))
	c.awaitState("a", link.Up)
	before := a.awaitState("c", link.Up)
	for range 3 {
		_, reply, err := dialAs(t, i, a, &hello.Hello{Capable: true, Instance: 7,
			Flags: hello.FlagKeepalive | hello.FlagUpdates,
			Terms: &hello.Terms{Own: math.MaxUint32, Followed: math.MaxUint32}})
		if err != nil || reply.Terms == nil || *reply.Terms != (hello.Terms{Own: 3}) {
			t.Fatalf("%+v, %v", reply, err)
		}
	}
	a.await("refusal", func() bool { return strings.Contains(a.status("b").Refused, "superseded by term 4294967295") })
	if after := a.status("c"); after.State != link.Up || after.Since != before.Since || after.Note != "" {
		t.Errorf("the other link was %+v, is %+v", before, after)
	}
	a.pass(c, "192.168.0.11", "192.168.0.13", 1)
}
