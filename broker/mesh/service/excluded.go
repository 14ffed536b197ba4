package service

// Which lists of KubeLinks keep packets from mesh services: clients get no answer, so it has to show somewhere.

import (
	"fmt"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// noteExcluded tells of lists that keep packets from the addresses of a MeshService.
func (b *builder) noteExcluded(e *entry) {
	const effect = "clients wait for their time-out"
	for _, a := range e.addresses {
		var missing, denials []string
		inMesh := e.mesh.Addresses.Contains(a)
		for i := range b.around.State.Lists {
			l := &b.around.State.Lists[i]
			if inMesh && l.Mesh != e.mesh.Name {
				continue
			}
			excluded, denial := l.Excludes(a, !e.own)
			if !excluded {
				continue
			}
			if name := e.object.Namespace + "/" + e.object.Name + " at " + a.String(); l.Link != "" {
				b.excluded[l.Link] = append(b.excluded[l.Link], name)
			}
			if denial.IsValid() {
				denials = append(denials, fmt.Sprintf("%s (!%s)", listTitle(l), denial))
			} else {
				missing = append(missing, listTitle(l))
			}
		}
		if len(missing) > 0 {
			e.addNote(fmt.Sprintf("spec.ingress of %s does not let packets to %s pass: add it there, else %s",
				list(missing, asIs), a, effect))
		}
		if len(denials) > 0 {
			e.addNote(fmt.Sprintf("spec.ingress of %s denies packets to %s: %s", list(denials, asIs), a, effect))
		}
	}
}

func asIs(s string) string { return s }

// listTitle is how messages call the object of a list.
func listTitle(l *mesh.IngressList) string {
	if l.Local {
		return "LocalLink " + l.Link
	}
	return "link " + l.Link
}

// linkNotes tell of each KubeLink what its list excludes.
func (b *builder) linkNotes() map[string]string {
	notes := make(map[string]string, len(b.excluded))
	for link, names := range b.excluded {
		such := ""
		if len(names) > 1 {
			such = fmt.Sprintf("%d mesh services, such as ", len(names))
		}
		notes[link] = fmt.Sprintf("spec.ingress keeps clients from %s%s", such, names[0])
	}
	return notes
}
