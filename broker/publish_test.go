package broker

import (
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/zone"
)

func TestLinkStatus(t *testing.T) {
	since := time.Unix(1000, 0)
	state := &mesh.State{Links: []mesh.Link{{Name: "peer", Peer: "peer"}, {Name: "behind", Peer: "peer"}}}
	routed := map[string]bool{"peer": true, "behind": true}
	up := link.Status{Link: "peer", State: link.Up, Since: since, RTT: time.Millisecond}
	down := link.Status{Link: "peer", State: link.Down, Reason: "silent", Since: since}
	starting := zone.Status{
		State: "Idle", Reason: "kubelink has just started, and the API server has not told the links yet",
	}
	for _, c := range []struct {
		name     string
		from     nameSource
		statuses []link.Status // of the dataplane; nil: there is none
		want     zone.Status
	}{
		{"another system carries the traffic", nameSource{}, nil, zone.Status{Usable: true}},
		{"it does even if a dataplane is left", nameSource{}, []link.Status{down}, zone.Status{Usable: true}},
		{"connected", nameSource{carries: true, credentials: true, routed: routed}, []link.Status{up},
			zone.Status{Usable: true, State: "Up", Since: since, RTT: time.Millisecond}},
		{"connected, without certificate from now on", nameSource{carries: true, routed: routed}, []link.Status{up},
			zone.Status{Usable: true, State: "Up", Since: since, RTT: time.Millisecond}},
		{"connected before its routes are there", nameSource{carries: true, credentials: true}, []link.Status{up},
			zone.Status{State: "Idle", Reason: "its routes are being set", Since: since}},
		{"lost before its routes are there", nameSource{carries: true, credentials: true}, []link.Status{down},
			zone.Status{State: "Down", Reason: "silent", Since: since}},
		{"lost", nameSource{carries: true, credentials: true, routed: routed}, []link.Status{down},
			zone.Status{State: "Down", Reason: "silent", Since: since}},
		{"lost, and no certificate", nameSource{carries: true}, []link.Status{down},
			zone.Status{State: "Down", Reason: "silent", Since: since}},
		{"restored", nameSource{carries: true, restored: true}, nil, starting},
		{"restored, with certificate", nameSource{carries: true, restored: true, credentials: true}, []link.Status{},
			starting},
		{"new", nameSource{carries: true, credentials: true}, []link.Status{},
			zone.Status{State: "Idle", Reason: "it is about to be connected"}},
		{"no certificate", nameSource{carries: true, secretTitle: "certificate"}, []link.Status{},
			zone.Status{State: "Error", Reason: "there is no usable certificate"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.from.state = state; c.statuses != nil {
				d := &fakeDataplane{}
				d.setStatus(c.statuses...)
				c.from.dataplane = d
			}
			status := c.from.linkStatus()
			for _, name := range []string{"peer", "behind"} { // the gateway's state is that of the links behind it
				if got := status(name); got != c.want {
					t.Errorf("%s: %+v, want %+v", name, got, c.want)
				}
			}
			if got := status("unknown"); got.Usable == c.from.carries {
				t.Errorf("unknown: %+v", got)
			}
		})
	}
}

// Names of a link without certificate fail with the reason; DNS knows as soon as there is one.
func TestPublishCredentials(t *testing.T) {
	b, err := New(Config{Local: mesh.Local{Mode: mesh.Bridge}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.names.close()
	b.setGateway(newFakeGateway(&fakeDataplane{}, &recordingKernel{}))
	b.names.publish(func(*nameSource) {})
	if b.Table() != nil {
		t.Fatal("there are names without a state")
	}
	publish := func(credentials bool) {
		b.names.publish(func(from *nameSource) {
			from.credentials = credentials
			from.state = &mesh.State{
				Links: []mesh.Link{{Name: "kubelink2", Peer: "kubelink2"}},
				Peers: []mesh.Peer{{Link: "kubelink2", Networks: prefixes("100.64.16.0/20")}},
				Zones: []mesh.Zone{{Domain: "kubelink.", Clusters: []mesh.ClusterZone{{
					Name: "kubelink2.kubelink.", Link: "kubelink2", Services: prefixes("100.64.16.0/20"),
				}}}},
			}
		})
	}
	const name = "web.default.svc.kubelink2.kubelink."
	for _, c := range []struct {
		credentials bool
		says        string
	}{
		{false, "link kubelink2 is Error: there is no usable certificate"},
		{true, "link kubelink2 is Idle: it is about to be connected"},
	} {
		publish(c.credentials)
		if reply := ask(t, b, name); !strings.Contains(failureText(reply), c.says) {
			t.Errorf("%v", reply)
		}
	}
	// Another gateway has no credentials yet, and no gateway has none.
	b.setGateway(newFakeGateway(&fakeDataplane{}, &recordingKernel{}))
	b.names.publish(func(*nameSource) {})
	if reply := ask(t, b, name); !strings.Contains(failureText(reply), "no usable certificate") {
		t.Errorf("%v", reply)
	}
	if b.setGateway(nil); b.names.currentDataplane() != nil {
		t.Error("there is a dataplane")
	}
}
