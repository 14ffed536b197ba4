package apizone

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// What is wrong with names shows at the link, or at the LocalLink for the own ones.
func TestNoteNames(t *testing.T) {
	statuses := map[string]Status{}
	for zone, err := range map[string]error{
		"one.kubelink.": errors.New("no\nway"), "two.kubelink.": errors.New("a\nb"), "three.kubelink.": nil,
		"x.m2.example.": errors.New("c"),
	} {
		statuses[zone] = Status{Loaded: zone == "two.kubelink.", Err: err}
	}
	s := mesh.State{
		Meshes: []mesh.Mesh{{Link: "one"}, {Name: "m2", Addresses: mesh.Prefixes{netip.MustParsePrefix("10.0.0.1/24")}}},
		Zones: []mesh.Zone{
			{Domain: "kubelink.", Clusters: []mesh.ClusterZone{
				{Name: "one.kubelink."}, {Name: "two.kubelink.", Link: "two"}, {Name: "three.kubelink.", Link: "three"},
			}},
			{Domain: "m2.example.", Mesh: "m2", Clusters: []mesh.ClusterZone{{Name: "x.m2.example."}}},
		},
		Notes: map[string]string{"two": "before"},
	}
	notes := map[string]string{"two": s.Notes["two"]}
	NoteNames(&s, statuses, func(link, text string) { notes[link] = strings.TrimPrefix(notes[link]+"; "+text, "; ") })
	want := map[string]string{"one": "no names: no; way", "two": "before; names may be out of date: a; b"}
	if fmt.Sprint(notes) != fmt.Sprint(want) {
		t.Errorf("%v", notes)
	}
}

// What a peer announces of its API is no reason to alarm a user while its DNS service is asked instead.
func TestNoteNamesOfAnnouncedAccess(t *testing.T) {
	dnsService := netip.MustParseAddrPort("100.64.16.10:53")
	for _, c := range []struct {
		name     string
		upstream netip.AddrPort
		status   Status
		want     string
	}{
		{"announced, with a DNS service", dnsService, Status{Announced: true, Err: errors.New("a\nb")},
			"names come from the DNS service of the cluster, not from its API server: a; b"},
		{"announced, without DNS service", netip.AddrPort{}, Status{Announced: true, Err: errors.New("x")},
			"no names: x"},
		{"configured by the user", dnsService, Status{Err: errors.New("x")}, "no names: x"},
		{"loaded once", dnsService, Status{Announced: true, Loaded: true, Err: errors.New("x")},
			"names may be out of date: x"},
		{"no error", dnsService, Status{Announced: true}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := mesh.ClusterZone{Name: "k2.kubelink.", Link: "k2", Upstream: c.upstream}
			s := mesh.State{Zones: []mesh.Zone{{Domain: "kubelink.", Clusters: []mesh.ClusterZone{cluster}}}}
			got := ""
			NoteNames(&s, map[string]Status{cluster.Name: c.status}, func(link, text string) {
				if got += text; link != "k2" {
					t.Errorf("noted at %q", link)
				}
			})
			if got != c.want {
				t.Errorf("got %q", got)
			}
		})
	}
}
