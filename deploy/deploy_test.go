// Tests of the manifests: kustomize builds them, they keep kubelink in a namespace of its own, and they give it no
// access to secrets of other namespaces.
package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const namespace = "kubelink"

// object has the fields that the tests check, for objects of all kinds.
type object struct {
	source          string // the kustomization or file that it comes from
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta   `json:"metadata"`
	Rules           []rbacv1.PolicyRule `json:"rules"`
	Subjects        []rbacv1.Subject    `json:"subjects"`
	RoleRef         rbacv1.RoleRef      `json:"roleRef"`
}

func (o *object) String() string {
	return o.source + ": " + o.Kind + " " + o.Metadata.Namespace + "/" + o.Metadata.Name
}

// parseObject fails the test for YAML that is no object.
func parseObject(t *testing.T, source string, text []byte) *object {
	t.Helper()
	o := &object{source: source}
	if err := yaml.Unmarshal(text, o); err != nil || o.Kind == "" || o.Metadata.Name == "" {
		t.Fatalf("%s: no object in %q (%v)", source, text, err)
	}
	return o
}

// optional are the files that kustomizations have as comments: a user enables them.
var optional = []string{"overlays/advertisement/token-secret.yaml", "overlays/coredns-configure/restart.yaml"}

// kustomizations are the folders with a kustomization, and the objects that each one has.
var kustomizations = map[string][]string{
	"base": {
		"Namespace /kubelink", "ResourceQuota kubelink/kubelink", "ServiceAccount kubelink/kubelink", "ClusterRole /kubelink",
		"ClusterRoleBinding /kubelink", "Role kubelink/kubelink", "RoleBinding kubelink/kubelink",
		"ConfigMap kubelink/kubelink", "Deployment kubelink/kubelink", "Service kubelink/kubelink",
		"Service kubelink/kubelink-dns",
	},
	"overlays/advertisement": {
		"ServiceAccount kubelink/kubelink-names", "ClusterRole /kubelink-names", "ClusterRoleBinding /kubelink-names",
		"Role kubelink/kubelink-advertisement", "RoleBinding kubelink/kubelink-advertisement",
	},
	"overlays/certificate": {"Role kubelink/kubelink-certificate", "RoleBinding kubelink/kubelink-certificate"},
	"overlays/coredns-configure": {
		"Role kube-system/kubelink-coredns-configure", "RoleBinding kube-system/kubelink-coredns-configure",
	},
	"overlays/kubernetes-dns": {
		"ServiceAccount kubelink/kubelink-dns", "ClusterRole /kubelink-dns", "ClusterRoleBinding /kubelink-dns",
		"ClusterRoleBinding /kubelink-own-names", "Role kubelink/kubelink-api-access",
		"RoleBinding kubelink/kubelink-api-access",
	},
	"overlays/self-signed": {"Role kubelink/kubelink-self-signed", "RoleBinding kubelink/kubelink-self-signed"},
}

// loadFolder returns a file system in memory that has the manifests in the folder /deploy.
func loadFolder(t *testing.T) filesys.FileSystem {
	t.Helper()
	fs := filesys.MakeFsInMemory()
	for _, pattern := range []string{"base/*.yaml", "overlays/*/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := fs.WriteFile(filepath.Join("/deploy", file), text); err != nil {
				t.Fatal(err)
			}
		}
	}
	return fs
}

// build runs kustomize on a folder.
func build(t *testing.T, fs filesys.FileSystem, folder string) (all []*object) {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, folder)
	if err != nil {
		t.Fatalf("kustomize build %s: %v", folder, err)
	}
	for _, r := range resources.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatalf("%s: %v", folder, err)
		}
		all = append(all, parseObject(t, strings.TrimPrefix(folder, "/deploy/"), text))
	}
	return all
}

// names are kind, namespace and name of objects, sorted.
func names(all []*object) (names []string) {
	for _, o := range all {
		names = append(names, fmt.Sprintf("%s %s/%s", o.Kind, o.Metadata.Namespace, o.Metadata.Name))
	}
	slices.Sort(names)
	return names
}

// manifests are the objects of the base, of all overlays, and of the files that are optional there.
func manifests(t *testing.T) (all []*object) {
	t.Helper()
	fs := loadFolder(t)
	for folder := range kustomizations {
		all = append(all, build(t, fs, "/deploy/"+folder)...)
	}
	for _, file := range optional {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for part := range strings.SplitSeq(string(text), "\n---\n") {
			all = append(all, parseObject(t, file, []byte(part)))
		}
	}
	return all
}

// TestKustomize builds each kustomization.
func TestKustomize(t *testing.T) {
	folders, err := filepath.Glob("overlays/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range append(folders, "base") {
		want, known := kustomizations[folder]
		if !known {
			t.Errorf("%s: this test does not know its objects", folder)
			continue
		}
		slices.Sort(want)
		if got := names(build(t, loadFolder(t), "/deploy/"+folder)); !slices.Equal(got, want) {
			t.Errorf("%s has %q, not %q", folder, got, want)
		}
	}
}

// Every file belongs to a kustomization, or is optional in one.
func TestKustomizeHasAllFiles(t *testing.T) {
	built := manifests(t)
	count := 0
	for _, pattern := range []string{"base/*.yaml", "overlays/*/*.yaml"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			if filepath.Base(file) == "kustomization.yaml" {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for part := range strings.SplitSeq(string(text), "\n---\n") {
				o := parseObject(t, file, []byte(part))
				count++
				if !slices.ContainsFunc(built, func(b *object) bool {
					return b.TypeMeta == o.TypeMeta && b.Metadata.Namespace == o.Metadata.Namespace &&
						b.Metadata.Name == o.Metadata.Name
				}) {
					t.Errorf("%s is in no kustomization", o)
				}
			}
		}
	}
	if count != len(built) {
		t.Errorf("the files have %d objects, the kustomizations %d", count, len(built))
	}
}

// A user may list base and overlays in one kustomization: the example of the README, and all together. The files that
// are optional in overlays can be enabled.
func TestOwnKustomization(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(readme), "\n```yaml\n")
	example, _, closed := strings.Cut(rest, "```\n")
	if !ok || !closed || !strings.Contains(example, "kind: Kustomization") {
		t.Fatal("README.md has no example of a kustomization")
	}
	all := "resources:\n"
	for folder := range kustomizations {
		all += "  - ../deploy/" + folder + "\n"
	}
	for _, c := range []struct {
		name, text string
		folders    []string
	}{
		{"README", example, []string{"base", "overlays/self-signed", "overlays/coredns-configure"}},
		{"all", all, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := loadFolder(t)
			if err := fs.WriteFile("/own/kustomization.yaml", []byte(c.text)); err != nil {
				t.Fatal(err)
			}
			var want []string
			for folder, objects := range kustomizations {
				if c.folders == nil || slices.Contains(c.folders, folder) {
					want = append(want, objects...)
				}
			}
			slices.Sort(want)
			if got := names(build(t, fs, "/own")); !slices.Equal(got, want) {
				t.Errorf("has %q, not %q", got, want)
			}
		})
	}
	t.Run("optional files", func(t *testing.T) {
		for _, file := range optional {
			fs := loadFolder(t)
			folder := filepath.Dir(file)
			path := "/deploy/" + folder + "/kustomization.yaml"
			text, err := fs.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			enabled := strings.Replace(string(text), "# - "+filepath.Base(file), "- "+filepath.Base(file), 1)
			if enabled == string(text) {
				t.Errorf("%s: %s is not there as a comment", path, filepath.Base(file))
			}
			if err := fs.WriteFile(path, []byte(enabled)); err != nil {
				t.Fatal(err)
			}
			if got, before := len(build(t, fs, "/deploy/"+folder)), len(kustomizations[folder]); got <= before {
				t.Errorf("%s: %d objects with %s, %d without", folder, got, filepath.Base(file), before)
			}
		}
	})
}

func TestNamespace(t *testing.T) {
	// The rights for the cluster's DNS are in the namespace of the cluster's DNS.
	elsewhere := map[string]string{}
	for _, name := range []string{"kubelink-coredns-configure", "kubelink-coredns-restart"} {
		elsewhere["Role/"+name], elsewhere["RoleBinding/"+name] = "kube-system", "kube-system"
	}
	for _, o := range manifests(t) {
		want := namespace
		if ns, ok := elsewhere[o.Kind+"/"+o.Metadata.Name]; ok {
			want = ns
		}
		switch o.Kind {
		case "Namespace", "ClusterRole", "ClusterRoleBinding":
			want = ""
		}
		if o.Metadata.Namespace != want {
			t.Errorf("%s is not in namespace %q", o, want)
		}
		for _, s := range o.Subjects {
			if s.Kind != rbacv1.ServiceAccountKind || s.Namespace != namespace {
				t.Errorf("%s: subject %s %s/%s", o, s.Kind, s.Namespace, s.Name)
			}
		}
	}
}

// An account that can make and read the secrets of kube-system can become any account there. So no role of the
// manifests, and no role of the cluster's own, may give kubelink access to secrets outside of its own namespace.
func TestSecrets(t *testing.T) {
	all := manifests(t)
	for _, o := range all {
		if o.Kind == "Role" && o.Metadata.Namespace == namespace {
			continue
		}
		for _, rule := range o.Rules {
			if slices.ContainsFunc(rule.Resources, func(r string) bool { return r == "secrets" || strings.HasPrefix(r, "*") }) {
				t.Errorf("%s grants %v on %v", o, rule.Verbs, rule.Resources)
			}
		}
		if o.RoleRef.Name != "" && !slices.ContainsFunc(all, func(role *object) bool {
			return role.Kind == o.RoleRef.Kind && role.Metadata.Name == o.RoleRef.Name &&
				(role.Kind == "ClusterRole" || role.Metadata.Namespace == o.Metadata.Namespace)
		}) {
			t.Errorf("%s: its %s %s is not in the manifests", o, o.RoleRef.Kind, o.RoleRef.Name)
		}
	}
}
