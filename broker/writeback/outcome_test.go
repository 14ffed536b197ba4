package writeback

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// What is wrong with names shows at the link, or at the LocalLink for the own ones.
func TestNoteNames(t *testing.T) {
	statuses := map[string]apizone.Status{}
	for zone, err := range map[string]error{"one.kubelink.": errors.New("no\nway"), "two.kubelink.": errors.New("a\nb"), "three.kubelink.": nil, "x.m2.example.": errors.New("c")} {
		statuses[zone] = apizone.Status{Loaded: zone == "two.kubelink.", Err: err}
	}
	s := mesh.State{
		Meshes: []mesh.Mesh{{Link: "one"}, {Name: "m2", Addresses: mesh.Prefixes{netip.MustParsePrefix("10.0.0.1/24")}}},
		Zones: []mesh.Zone{
			{Domain: "kubelink.", Clusters: []mesh.ClusterZone{{Name: "one.kubelink."}, {Name: "two.kubelink.", Link: "two"}, {Name: "three.kubelink.", Link: "three"}}},
			{Domain: "m2.example.", Mesh: "m2", Clusters: []mesh.ClusterZone{{Name: "x.m2.example."}}},
		},
		Notes: map[string]string{"two": "before"},
	}
	notes := map[string]string{"two": s.Notes["two"]}
	NoteNames(&s, statuses, func(link, text string) { notes[link] = joinTexts(notes[link], text) })
	want := map[string]string{"one": "no names: no; way", "two": "before; names may be out of date: a; b"}
	if fmt.Sprint(notes) != fmt.Sprint(want) {
		t.Errorf("%v", notes)
	}
}
