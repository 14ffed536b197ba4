package mesh

// What a user is told of an object: a problem keeps it from being used, a note does not.

import (
	"fmt"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// Problem is why an object cannot be used.
type Problem struct {
	State   v1alpha1.State // Invalid, Stale
	Message string         // one line: field, value and remedy
}

func invalid(format string, args ...any) *Problem {
	return &Problem{v1alpha1.StateInvalid, fmt.Sprintf(format, args...)}
}

func stale(format string, args ...any) *Problem {
	return &Problem{v1alpha1.StateStale, fmt.Sprintf(format, args...)}
}

// reports collects problems and notes, by the name of the object.
type reports struct {
	problems map[string]Problem
	notes    map[string]string
}

func newReports() *reports {
	return &reports{problems: map[string]Problem{}, notes: map[string]string{}}
}

// addProblem reports the problem of an object; nil is none.
func (r *reports) addProblem(name string, p *Problem) {
	if p != nil {
		r.problems[name] = *p
	}
}

// addNote appends a note to the notes of an object. A mesh that the stanza defines has no object: its name is empty,
// and the note is dropped.
func (r *reports) addNote(name, format string, args ...any) {
	if name == "" {
		return
	}
	text := fmt.Sprintf(format, args...)
	if old := r.notes[name]; old != "" {
		text = old + "; " + text
	}
	r.notes[name] = text
}

// dropNotesOfBroken removes the notes of objects that have a problem: the problem comes first.
func (r *reports) dropNotesOfBroken() {
	for name := range r.problems {
		delete(r.notes, name)
	}
}
