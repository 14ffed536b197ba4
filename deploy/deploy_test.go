// Tests of the manifests: kustomize builds them, they keep kubelink in a namespace of its own, and they give it no
// access to secrets of other namespaces.
package deploy

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
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

// baseObjects are the objects of the base.
var baseObjects = []string{
	"Namespace /kubelink", "ResourceQuota kubelink/kubelink", "ServiceAccount kubelink/kubelink", "ClusterRole /kubelink",
	"ClusterRoleBinding /kubelink", "Role kubelink/kubelink", "RoleBinding kubelink/kubelink",
	"ConfigMap kubelink/kubelink", "Deployment kubelink/kubelink", "Service kubelink/kubelink",
	"Service kubelink/kubelink-dns", "ServiceAccount kubelink/kubelink-diagnosis", "ClusterRole /kubelink-diagnosis",
	"ClusterRoleBinding /kubelink-diagnosis",
}

// components are the objects that each component adds.
var components = map[string][]string{
	"node-mode": {},
	"pod-mode":  {},
	"router": {
		"ServiceAccount kubelink/kubelink-router", "ClusterRole /kubelink-router", "ClusterRoleBinding /kubelink-router",
		"Role kubelink/kubelink-router", "RoleBinding kubelink/kubelink-router", "Role default/kubelink-router",
		"RoleBinding default/kubelink-router", "DaemonSet kubelink/kubelink-router", "ResourceQuota kubelink/kubelink-router",
	},
	"advertisement": {
		"ServiceAccount kubelink/kubelink-names", "ClusterRole /kubelink-names", "ClusterRoleBinding /kubelink-names",
		"Role kubelink/kubelink-advertisement", "RoleBinding kubelink/kubelink-advertisement",
	},
	"token-secret": {
		"Secret kubelink/kubelink-names", "Role kubelink/kubelink-token-secret", "RoleBinding kubelink/kubelink-token-secret",
	},
	"certificate": {"Role kubelink/kubelink-certificate", "RoleBinding kubelink/kubelink-certificate"},
	"coredns-configure": {
		"Role kube-system/kubelink-coredns-configure", "RoleBinding kube-system/kubelink-coredns-configure",
	},
	"coredns-restart": {
		"Role kube-system/kubelink-coredns-restart", "RoleBinding kube-system/kubelink-coredns-restart",
	},
	"kubernetes-dns": {
		"ServiceAccount kubelink/kubelink-dns", "ClusterRole /kubelink-dns", "ClusterRoleBinding /kubelink-dns",
		"ClusterRoleBinding /kubelink-own-names", "Role kubelink/kubelink-api-access",
		"RoleBinding kubelink/kubelink-api-access",
	},
	"vxlan":       {},
	"self-signed": {"Role kubelink/kubelink-self-signed", "RoleBinding kubelink/kubelink-self-signed"},
	"wireguard":   {"Role kubelink/kubelink-wireguard", "RoleBinding kubelink/kubelink-wireguard"},
	"state-dir":   {},
	"values":      {},
}

const (
	valuesObject = "ConfigMap kubelink/kubelink-values" // of values.yaml
	lastOne      = "values"                             // the component that has to be the last one
)

// loadFolder returns a file system in memory that has the manifests in the folder /deploy.
func loadFolder(t *testing.T) filesys.FileSystem {
	t.Helper()
	fs := filesys.MakeFsInMemory()
	for _, pattern := range []string{"kustomization.yaml", "values.yaml", "base/*.yaml", "components/*/*.yaml"} {
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

// buildWith builds values, base and components.
func buildWith(t *testing.T, names ...string) []*object {
	t.Helper()
	return build(t, kustomizationWith(t, names...), "/own")
}

// kustomizationWith returns a file system that also has a kustomization with values, base and components, in the folder
// /own. Without another mode it has node-mode.
func kustomizationWith(t *testing.T, names ...string) filesys.FileSystem {
	t.Helper()
	if !slices.Contains(names, "node-mode") && !slices.Contains(names, "pod-mode") {
		names = append([]string{"node-mode"}, names...)
	}
	return kustomizationOf(t, names...)
}

func kustomizationOf(t *testing.T, names ...string) filesys.FileSystem {
	t.Helper()
	// kustomize reads files below the folder of a kustomization only, so values.yaml is a copy.
	text := "resources: [values.yaml, ../deploy/base]\ncomponents:\n"
	for _, name := range append(names, lastOne) {
		text += "  - ../deploy/components/" + name + "\n"
	}
	fs := loadFolder(t)
	values, err := fs.ReadFile("/deploy/values.yaml")
	if err == nil {
		err = errors.Join(fs.WriteFile("/own/values.yaml", values), fs.WriteFile("/own/kustomization.yaml", []byte(text)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// names are kind, namespace and name of objects, sorted.
func names(all []*object) (names []string) {
	for _, o := range all {
		names = append(names, fmt.Sprintf("%s %s/%s", o.Kind, o.Metadata.Namespace, o.Metadata.Name))
	}
	slices.Sort(names)
	return names
}

// objectsOf are the names of the objects of the base, of values.yaml and of components, sorted.
func objectsOf(chosen ...string) []string {
	all := append(slices.Clone(baseObjects), valuesObject)
	for _, c := range chosen {
		all = append(all, components[c]...)
	}
	slices.Sort(all)
	return all
}

// together are all components but pod-mode, which node-mode excludes. It adds no objects.
func together() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(components)), func(c string) bool { return c == "pod-mode" })
}

// manifests are the objects of the base and of all components.
func manifests(t *testing.T) []*object {
	t.Helper()
	return buildWith(t, together()...)
}

// TestComponents builds the base with each component, with all of them, and as it is installed.
func TestComponents(t *testing.T) {
	folders, err := filepath.Glob("components/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range folders {
		name := filepath.Base(folder)
		if _, known := components[name]; !known {
			t.Errorf("%s: this test does not know its objects", folder)
			continue
		}
		if got, want := names(buildWith(t, name)), objectsOf(name); !slices.Equal(got, want) {
			t.Errorf("%s has %q, not %q", folder, got, want)
		}
	}
	if got, want := names(manifests(t)), objectsOf(together()...); !slices.Equal(got, want) {
		t.Errorf("all components have %q, not %q", got, want)
	}
	if got, want := names(build(t, loadFolder(t), "/deploy")), objectsOf("node-mode", "router"); !slices.Equal(got, want) {
		t.Errorf("deploy has %q, not %q", got, want)
	}
}

// Without a mode, the pod would have no way to the nodes. With both, or without, its pages would be open to all: it is
// not built.
func TestModeIsChosen(t *testing.T) {
	for _, c := range []struct {
		chosen []string
		fails  string
	}{
		{nil, "nothing selected by ConfigMap.[noVer].[noGrp]/node-mode-or-pod-mode"},
		{[]string{"router", "self-signed"}, "nothing selected by ConfigMap.[noVer].[noGrp]/node-mode-or-pod-mode"},
		{[]string{"node-mode", "pod-mode"}, "already registered id: ConfigMap.v1.[noGrp]/node-mode-or-pod-mode"},
		{[]string{"pod-mode", "router", "node-mode"}, "already registered id: ConfigMap.v1.[noGrp]/node-mode-or-pod-mode"},
		{[]string{"node-mode"}, ""}, {[]string{"router", "pod-mode"}, ""},
	} {
		_, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(kustomizationOf(t, c.chosen...), "/own")
		if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%q: %v", c.chosen, err)
		}
	}
}

// Each component, and no other, is a line of the kustomization that users apply, and a row of the README.
func TestComponentsAreListed(t *testing.T) {
	text, err := os.ReadFile("kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "# ")
		if name, ok := strings.CutPrefix(line, "- components/"); ok {
			name, _, _ = strings.Cut(name, " ")
			listed = append(listed, name)
			if !strings.Contains(string(readme), "\n| ["+name+"](components/"+name+") |") {
				t.Errorf("README.md has no row of %s", name)
			}
		}
	}
	if len(listed) == 0 || listed[len(listed)-1] != lastOne {
		t.Errorf("the last component is not %s: %q", lastOne, listed)
	}
	slices.Sort(listed)
	if want := slices.Sorted(maps.Keys(components)); !slices.Equal(listed, want) {
		t.Errorf("kustomization.yaml has %q, not %q", listed, want)
	}
}

// Every file of the base and of the components belongs to its kustomization.
func TestKustomizeHasAllFiles(t *testing.T) {
	for _, pattern := range []string{"base/*.yaml", "components/*/*.yaml"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			text, err := os.ReadFile(filepath.Join(filepath.Dir(file), "kustomization.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Base(file)
			if name != "kustomization.yaml" && !strings.Contains(string(text), " "+name+"\n") {
				t.Errorf("%s is in no kustomization", file)
			}
		}
	}
}

// A user may have a kustomization of their own: the example of the README.
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
	fs := loadFolder(t)
	values, err := fs.ReadFile("/deploy/values.yaml")
	if err == nil {
		err = errors.Join(fs.WriteFile("/own/values.yaml", values), fs.WriteFile("/own/kustomization.yaml", []byte(example)))
	}
	if err != nil {
		t.Fatal(err)
	}
	want := objectsOf("node-mode", "router", "self-signed", "coredns-configure")
	if got := names(build(t, fs, "/own")); !slices.Equal(got, want) {
		t.Errorf("has %q, not %q", got, want)
	}
}

// Values have one place. No manifest of the base or of a component has a value to change, and each value arrives.
func TestValuesHaveOnePlace(t *testing.T) {
	files, err := filepath.Glob("*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("components/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, more...) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(file, "examples/") && strings.Contains(string(text), "change-me") {
			t.Errorf("%s has a value to change", file)
		}
	}
	text, err := os.ReadFile("values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values corev1.ConfigMap
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		t.Fatal(err)
	}
	fs := loadFolder(t)
	for key := range values.Data {
		values.Data[key] = "value-of-" + key
	}
	changed, err := yaml.Marshal(values)
	if err == nil {
		err = fs.WriteFile("/deploy/values.yaml", changed)
	}
	if err != nil {
		t.Fatal(err)
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, "/deploy")
	if err != nil {
		t.Fatal(err)
	}
	built, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range values.Data {
		if n := strings.Count(string(built), value+"\n"); n < 2 { // the first one is in the ConfigMap itself
			t.Errorf("the value %s arrives nowhere", key)
		}
	}
}

func TestNamespace(t *testing.T) {
	// The rights for the cluster's DNS are in the namespace of the cluster's DNS.
	elsewhere := map[string]string{}
	for _, name := range []string{"kubelink-coredns-configure", "kubelink-coredns-restart"} {
		elsewhere["Role/"+name], elsewhere["RoleBinding/"+name] = "kube-system", "kube-system"
	}
	router := map[string]int{} // its roles are in two namespaces: Events about nodes are in default
	for _, o := range manifests(t) {
		want := namespace
		if o.Metadata.Name == "kubelink-router" && (o.Kind == "Role" || o.Kind == "RoleBinding") {
			router[o.Metadata.Namespace]++
			continue
		}
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
	if !maps.Equal(router, map[string]int{namespace: 2, metav1.NamespaceDefault: 2}) {
		t.Errorf("roles of the router are in %v", router)
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

// The router gets what it needs for chains with the component vxlan, and not without.
func TestVXLANRouter(t *testing.T) {
	for with, want := range map[string]bool{"": false, "vxlan": true} {
		fs := kustomizationWith(t, strings.Fields("router "+with)...)
		resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, "/own")
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range resources.Resources() {
			if r.GetKind() != "DaemonSet" {
				continue
			}
			text := r.MustYaml()
			if got := strings.Contains(text, "NET_RAW") && strings.Contains(text, "path: /run/xtables.lock"); got != want {
				t.Errorf("component %q: the DaemonSet has rights and lock for iptables: %v", with, got)
			}
		}
	}
}

// A volume of the node's disk keeps `kubectl drain` and the cluster autoscaler from moving the pod, unless the command
// in the README and the pod's annotation give it up.
func TestPodCanMove(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	const drain = "\nkubectl drain NODE --ignore-daemonsets --delete-emptydir-data\n"
	if !strings.Contains(string(readme), drain) {
		t.Errorf("README.md has no %q", drain)
	}
	for with, want := range map[string]string{"node-mode": "", "node-mode wireguard": "wireguard"} {
		pod := buildDeployment(t, kustomizationWith(t, strings.Fields(with)...)).Spec.Template
		var local []string
		for _, v := range pod.Spec.Volumes {
			if v.EmptyDir != nil {
				local = append(local, v.Name)
			}
		}
		given := pod.Annotations["cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"]
		if got := strings.Join(local, ","); got != want || given != want {
			t.Errorf("components %q: local volumes %q, the annotation gives up %q", with, got, given)
		}
	}
}

// buildDeployment returns the broker's Deployment of the kustomization in /own.
func buildDeployment(t *testing.T, fs filesys.FileSystem) (d appsv1.Deployment) {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, "/own")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range resources.Resources() {
		if r.GetKind() == "Deployment" {
			if err := yaml.UnmarshalStrict([]byte(r.MustYaml()), &d); err != nil {
				t.Fatal(err)
			}
			return d
		}
	}
	t.Fatal("no Deployment")
	return d
}

// With the component wireguard, peers come by UDP, and not by TCP.
func TestWireGuard(t *testing.T) {
	const tcp, udp = "8088", "8777"
	for with, want := range map[string]string{"node-mode": tcp, "node-mode wireguard": udp, "wireguard pod-mode": udp} {
		resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(
			kustomizationWith(t, strings.Fields(with)...), "/own")
		if err != nil {
			t.Fatal(err)
		}
		for id, field := range map[string]string{"Service kubelink": "targetPort: ", "Deployment kubelink": "containerPort: "} {
			for _, r := range resources.Resources() {
				if r.GetKind()+" "+r.GetName() != id {
					continue
				}
				text := r.MustYaml()
				if other := map[string]string{tcp: udp, udp: tcp}[want]; !strings.Contains(text, field+want+"\n") ||
					strings.Contains(text, field+other+"\n") {
					t.Errorf("components %q: not only port %s in\n%s", with, want, text)
				}
			}
		}
	}
}
