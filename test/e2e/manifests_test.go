package e2e

// The manifests in deploy: every combination of components is one that an API server takes.

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/mandelsoft/kubelink/test/testbed"
)

// componentChoices are the components of deploy. A user takes one of each row; "": none. The rows of the first table
// change the same workloads, those of the second one add objects and lines of the stanza.
var componentChoices = [2][][]string{{
	{"node-mode", "pod-mode"},
	{"", "router"},
	{"", "vxlan"},
	{"", "self-signed", "certificate", "wireguard"},
	{"", "state-dir"},
}, {
	{"", "coredns-configure", "coredns-configure coredns-restart"},
	{"", "kubernetes-dns"},
	{"", "advertisement", "advertisement token-secret"},
}}

// TestManifests builds every combination of each table's components, beside one of the other table, and has an API
// server check what they make, and the examples (a dry run).
func TestManifests(t *testing.T) {
	root, err := testbed.Repository()
	must(t, err)
	deploy := filepath.Join(root, "deploy")
	checkComponentsAreKnown(t, deploy)
	values, err := os.ReadFile(filepath.Join(deploy, "values.yaml"))
	must(t, err)
	fs := filesys.MakeFsOnDisk()
	dir, err := os.MkdirTemp(root, ".manifests")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.WriteFile(filepath.Join(dir, "values.yaml"), values, 0o600))

	objects, builds := map[string]bool{}, 0
	workloads, others := combine(componentChoices[0]), combine(componentChoices[1])
	for i := range max(len(workloads), len(others)) {
		components := slices.Concat(workloads[i%len(workloads)], others[i%len(others)])
		text := "resources: [values.yaml, ../deploy/base]\ncomponents:\n"
		for _, c := range append(components, "values") {
			text += "  - ../deploy/components/" + c + "\n"
		}
		must(t, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600))
		built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, dir)
		if err != nil {
			t.Fatalf("%q: %v", components, err)
		}
		for _, o := range built.Resources() {
			objects[o.MustYaml()] = true
		}
		builds++
	}
	examples, err := filepath.Glob(filepath.Join(deploy, "examples", "*.yaml"))
	must(t, err)
	for _, file := range examples {
		text, err := os.ReadFile(file)
		must(t, err)
		for _, o := range strings.Split(string(text), "\n---\n") {
			objects[o+"\n"] = true
		}
	}
	var all strings.Builder
	for o := range objects {
		all.WriteString("---\n" + o)
	}
	out, err := brokers[0].KubectlInput(t.Context(), all.String(), "apply", "--server-side", "--force-conflicts",
		"--dry-run=server", "--warnings-as-errors", "-f", "-")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(out, "(server dry run)"); n != len(objects) {
		t.Errorf("%d of %d objects are taken:\n%s", n, len(objects), out)
	}
	t.Logf("%d combinations and %d examples with %d different objects", builds, len(examples), len(objects))
}

// checkComponentsAreKnown fails the test if a component of deploy is in no row.
func checkComponentsAreKnown(t *testing.T, deploy string) {
	t.Helper()
	folders, err := filepath.Glob(filepath.Join(deploy, "components", "*"))
	must(t, err)
	chosen := strings.Fields(strings.Join(slices.Concat(slices.Concat(componentChoices[:]...)...), " "))
	for _, folder := range folders {
		if name := filepath.Base(folder); name != "values" && !slices.Contains(chosen, name) {
			t.Errorf("this test does not know the component %s", name)
		}
	}
}

// combine returns all ways to take one of each row.
func combine(rows [][]string) (all [][]string) {
	all = [][]string{nil}
	for _, row := range rows {
		var next [][]string
		for _, before := range all {
			for _, choice := range row {
				next = append(next, slices.Concat(before, strings.Fields(choice)))
			}
		}
		all = next
	}
	return all
}
