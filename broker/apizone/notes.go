package apizone

// What users are told at a KubeLink of names that come from API servers.

import (
	"strings"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// NoteNames notes what is wrong with names that come from API servers, by link.
func NoteNames(s *mesh.State, statuses map[string]Status, note func(link, text string)) {
	links, resolves := map[string]string{}, map[string]bool{} // by zone
	for _, z := range s.Zones {
		for _, c := range z.Clusters {
			links[c.Name], resolves[c.Name] = c.Link, c.Upstream.IsValid()
			for _, m := range s.Meshes {
				if c.Link == "" && m.Name == z.Mesh {
					links[c.Name] = m.Link
				}
			}
		}
	}
	for zone, st := range statuses {
		name := links[zone] // the mesh of the stanza has no link: the log has it
		switch {
		case st.Err == nil || name == "":
		case st.Loaded:
			note(name, "names may be out of date: "+oneLine(st.Err))
		case st.Announced && resolves[zone]:
			note(name, "names come from the DNS service of the cluster, not from its API server: "+oneLine(st.Err))
		default:
			note(name, "no names: "+oneLine(st.Err))
		}
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
