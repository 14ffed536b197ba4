package broker

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// A report and the name _state say the same of a link.
func TestReportSaysWhatNamesSay(t *testing.T) {
	b, err := New(Config{Local: mesh.Local{Mode: mesh.Bridge}, APIConfig: APIConfig{Namespace: "kubelink"}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.names.close()
	d := &fakeDataplane{}
	b.setGateway(newFakeGateway(d, &recordingKernel{}))
	state := &mesh.State{
		Links: []mesh.Link{{Name: "kubelink2", Peer: "kubelink2"}},
		Zones: []mesh.Zone{{Domain: "kubelink.", Clusters: []mesh.ClusterZone{{
			Name: "kubelink2.kubelink.", Link: "kubelink2", Services: prefixes("100.64.16.0/20"),
		}}}},
	}
	object := v1alpha1.KubeLink{}
	object.Name = "kubelink2"
	b.r.found.Store(&diagnosis.Outcome{
		Links: []v1alpha1.KubeLink{object}, State: state,
		Told: map[string]diagnosis.Told{"kubelink2": {State: v1alpha1.StateUp}},
	})
	since := time.Unix(1000, 0)
	for _, st := range []link.Status{
		{Link: "kubelink2", State: link.Up, Since: since, RTT: time.Millisecond},
		{Link: "kubelink2", State: link.Down, Since: since, Reason: "connection lost: no answer for 5s"},
		{Link: "kubelink2", State: link.Idle, Since: since},
	} {
		d.setStatus(st)
		b.names.publish(func(from *nameSource) {
			from.state, from.routed = state, map[string]bool{"kubelink2": true}
		})
		l := b.facts().Report(t.Context()).Links[0]
		want := []string{"state=" + l.State, "since=" + l.Since.Format(time.RFC3339)}
		if l.RTT > 0 {
			want = append(want, fmt.Sprintf("rtt=%.2fms", l.RTT*1000))
		}
		if l.Reason != "" {
			want = append(want, "reason="+l.Reason)
		}
		reply := query(t, b, "_state.kubelink2.kubelink.", dns.TypeTXT)
		if len(reply.Answer) != 1 || !reflect.DeepEqual(reply.Answer[0].(*dns.TXT).Txt, want) {
			t.Errorf("%v, want %q", reply, want)
		}
		if l.State != string(st.State) || l.Names.State != l.State {
			t.Errorf("%+v", l)
		}
	}
}

// Reports are at the addresses of the pod or, on a node, at that of the node; and nowhere else.
func TestReportAddresses(t *testing.T) {
	pod := netip.MustParseAddr("fd00::7")
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{APIConfig: APIConfig{DiagnosisPort: 10534}}, ""},
		{Config{GatewayConfig: GatewayConfig{NodeIP: "10.0.0.1"}}, ""},
		{Config{
			APIConfig: APIConfig{DiagnosisPort: 10534}, GatewayConfig: GatewayConfig{NodeIP: "10.0.0.1"},
		}, "10.0.0.1:10534"},
		{Config{
			APIConfig:     APIConfig{DiagnosisPort: 10534},
			GatewayConfig: GatewayConfig{NodeIP: "10.0.0.1", PodIPs: []netip.Addr{pod}},
		}, "[fd00::7]:10534"},
	} {
		var got []string
		for _, a := range c.config.reportAddresses() {
			got = append(got, a.String())
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%q, want %q", text, c.want)
		}
	}
}
