package mesh

import "testing"

func TestReports(t *testing.T) {
	r := newReports()
	r.addNote("k2", "first %d", 1)
	r.addNote("k2", "second %s", "100 %")
	r.addNote("k3", "of a broken link")
	r.addNote("", "of the stanza")
	r.addProblem("k3", stale("%s is missing", "k1"))
	r.addProblem("k4", nil)
	checkEqual(t, "notes", r.notes, map[string]string{"k2": "first 1; second 100 %", "k3": "of a broken link"})
	r.dropNotesOfBroken()
	checkEqual(t, "notes of usable links", r.notes, map[string]string{"k2": "first 1; second 100 %"})
	checkEqual(t, "problems", r.problems, map[string]Problem{"k3": {"Stale", "k1 is missing"}})

	// A later problem takes the place of an earlier one.
	r.addProblem("k3", invalid("spec.cidr"))
	checkEqual(t, "problems", r.problems, map[string]Problem{"k3": {"Invalid", "spec.cidr"}})
}
