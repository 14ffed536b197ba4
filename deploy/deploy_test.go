// Tests that the manifests keep kubelink in a namespace of its own, and its hands off secrets elsewhere.
package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const namespace = "kubelink"

// object is what the tests look at, whatever its kind.
type object struct {
	file            string
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta   `json:"metadata"`
	Rules           []rbacv1.PolicyRule `json:"rules"`
	Subjects        []rbacv1.Subject    `json:"subjects"`
	RoleRef         rbacv1.RoleRef      `json:"roleRef"`
}

func (o *object) String() string {
	return o.file + ": " + o.Kind + " " + o.Metadata.Namespace + "/" + o.Metadata.Name
}

// manifests are the objects of the base and of all overlays.
func manifests(t *testing.T) []*object {
	t.Helper()
	var all []*object
	for _, pattern := range []string{"base/*.yaml", "overlays/*/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			if filepath.Base(file) == "kustomization.yaml" {
				continue
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for text := range strings.SplitSeq(string(data), "\n---\n") {
				o := &object{file: file}
				if err := yaml.Unmarshal([]byte(text), o); err != nil || o.Kind == "" || o.Metadata.Name == "" {
					t.Fatalf("%s: no object in %q (%v)", file, text, err)
				}
				all = append(all, o)
			}
		}
	}
	return all
}

func TestNamespace(t *testing.T) {
	// What the cluster's DNS needs is where that is.
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

// Who can make and read the secrets of kube-system can become any account there: nothing may lead kubelink to secrets outside
// of its own namespace, be it a role here or one of the cluster's own.
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
			return role.Kind == o.RoleRef.Kind && role.Metadata.Name == o.RoleRef.Name && (role.Kind == "ClusterRole" || role.Metadata.Namespace == o.Metadata.Namespace)
		}) {
			t.Errorf("%s: its %s %s is not in the manifests", o, o.RoleRef.Kind, o.RoleRef.Name)
		}
	}
}
