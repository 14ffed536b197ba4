package deploy

// Tests of what the base opens to the network of the node, and of the bounds of its pod.

import (
	"maps"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// readBase reads an object from a file of the base.
func readBase[T any](t *testing.T, file string) *T {
	t.Helper()
	text, err := os.ReadFile("base/" + file)
	if err != nil {
		t.Fatal(err)
	}
	o := new(T)
	if err := yaml.UnmarshalStrict(text, o); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return o
}

// nodeMode builds the Deployment of a broker that uses the network of its node.
func nodeMode(t *testing.T) *corev1.PodSpec { return buildPod(t, loadFolder(t), "/deploy") }

// buildPod builds the Deployment of a kustomization.
func buildPod(t *testing.T, fs filesys.FileSystem, folder string) *corev1.PodSpec {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range resources.Resources() {
		if r.GetKind() != "Deployment" {
			continue
		}
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		var d appsv1.Deployment
		if err := yaml.UnmarshalStrict(text, &d); err != nil {
			t.Fatal(err)
		}
		return &d.Spec.Template.Spec
	}
	t.Fatal("there is no Deployment")
	return nil
}

// pageOf returns the address of a plugin that serves a page, and the text of its block.
func pageOf(t *testing.T, corefile, plugin string) (netip.AddrPort, string) {
	t.Helper()
	blocks, err := caddyfile.Parse("Corefile", strings.NewReader(corefile), nil)
	if err != nil || len(blocks) != 1 {
		t.Fatalf("%d server blocks, %v", len(blocks), err)
	}
	var words []string
	for _, token := range blocks[0].Tokens[plugin] {
		words = append(words, token.Text)
	}
	if len(words) < 2 {
		t.Fatalf("%s has no address: %q", plugin, words)
	}
	// As health makes its own request. The other plugins take less.
	page, err := url.Parse("http://" + words[1])
	if err != nil {
		t.Fatalf("%s: %v", plugin, err)
	}
	if page.Hostname() == "" {
		page.Host = "[::]" + page.Host
	}
	address, err := netip.ParseAddrPort(page.Host)
	if err != nil {
		t.Fatalf("%s: %v", plugin, err)
	}
	return address, strings.Join(words[2:], " ")
}

// setPagesIP sets the variable of the Corefile as kubelet does; its parser puts the value in.
func setPagesIP(t *testing.T, container *corev1.Container) {
	t.Helper()
	i := slices.IndexFunc(container.Env, func(e corev1.EnvVar) bool { return e.Name == "PAGES_IP" })
	if i < 0 || container.Env[i].ValueFrom != nil {
		t.Fatalf("no address of pages that does not depend on the family: %+v", container.Env)
	}
	t.Setenv("PAGES_IP", container.Env[i].Value)
}

// The pages are on all addresses of a pod, of whatever family.
func TestPagesOfPod(t *testing.T) {
	setPagesIP(t, &buildPod(t, kustomizationWith(t, "pod-mode"), "/own").Containers[0])
	corefile := readBase[corev1.ConfigMap](t, "corefile.yaml").Data["Corefile"]
	for plugin, port := range map[string]uint16{"health": 10531, "ready": 10532, "prometheus": 10533} {
		want := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
		if got, _ := pageOf(t, corefile, plugin); got != want {
			t.Errorf("%s listens on %s, not on %s", plugin, got, want)
		}
	}
}

// Pages for kubelet are on the loopback address, on the ports that the Deployment declares and its probes use; and
// readiness follows what happens after the first yes.
func TestPages(t *testing.T) {
	container := nodeMode(t).Containers[0]
	setPagesIP(t, &container)
	corefile := readBase[corev1.ConfigMap](t, "corefile.yaml").Data["Corefile"]
	for port, plugin := range map[string]string{"health": "health", "ready": "ready", "metrics": "prometheus"} {
		address, block := pageOf(t, corefile, plugin)
		i := slices.IndexFunc(container.Ports, func(p corev1.ContainerPort) bool { return p.Name == port })
		if i < 0 || int32(address.Port()) != container.Ports[i].ContainerPort ||
			container.Ports[i].HostIP != address.Addr().String() || !address.Addr().IsLoopback() {
			t.Errorf("%s listens on %s, and the Deployment declares %+v", plugin, address, container.Ports)
		}
		if plugin == "ready" && block != "{ monitor continuously }" {
			t.Errorf("ready has %q", block)
		}
	}
	if p := container.StartupProbe; p.HTTPGet.Host != "127.0.0.1" || p.HTTPGet.Port.StrVal != "health" {
		t.Errorf("the startup probe asks %+v", p.HTTPGet)
	}
	for port, probe := range map[string]*corev1.Probe{
		"health": container.LivenessProbe, "ready": container.ReadinessProbe,
	} {
		if probe.HTTPGet.Host != "127.0.0.1" || probe.HTTPGet.Port.StrVal != port {
			t.Errorf("the probe of %s asks %s:%s", port, probe.HTTPGet.Host, probe.HTTPGet.Port.String())
		}
	}
}

// Names are for the cluster and its meshes, in datagrams that are not cut up on their way.
func TestNamesForTheMesh(t *testing.T) {
	corefile := readBase[corev1.ConfigMap](t, "corefile.yaml").Data["Corefile"]
	_, acl, ok := strings.Cut(corefile, "acl {")
	acl, _, closed := strings.Cut(acl, "\n    }")
	rules := strings.Split(strings.TrimSpace(acl), "\n")
	if !ok || !closed || strings.TrimSpace(rules[len(rules)-1]) != "block" || strings.Contains(acl, "0.0.0.0/0") {
		t.Errorf("the last rule is not to refuse: %q", rules)
	}
	if !strings.Contains(corefile, "\n    bufsize 1232\n") {
		t.Error("there is no bufsize 1232")
	}
}

// The pod has bounds: of its memory, of system calls and of rights.
func TestPodIsBounded(t *testing.T) {
	pod := nodeMode(t)
	if p := pod.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("seccomp %+v", p)
	}
	container := pod.Containers[0]
	limit := container.Resources.Limits.Memory().Value()
	i := slices.IndexFunc(container.Env, func(e corev1.EnvVar) bool { return e.Name == "GOMEMLIMIT" })
	if limit == 0 || i < 0 || container.Env[i].Value != "900MiB" || limit < 1<<30 {
		t.Errorf("memory limit %d, variables %+v", limit, container.Env)
	}
	c := container.SecurityContext
	if *c.AllowPrivilegeEscalation || !*c.ReadOnlyRootFilesystem ||
		!slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) ||
		!slices.Equal(c.Capabilities.Add, []corev1.Capability{"NET_ADMIN", "NET_RAW"}) {
		t.Errorf("%+v", c)
	}
}

// The endpoint for peers keeps their addresses, and needs no other node than that of the pod.
func TestEndpointForPeers(t *testing.T) {
	s := readBase[corev1.Service](t, "services.yaml") // the first one
	if s.Name != "kubelink" || s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal ||
		!s.Spec.PublishNotReadyAddresses {
		t.Errorf("%s: %+v", s.Name, s.Spec)
	}
}

// A pod with a network of its own opens no ports of the node, tells its pages where kubelet asks, and has the rights
// that it has in the network of the node.
func TestPodMode(t *testing.T) {
	pod := buildPod(t, kustomizationWith(t, "pod-mode"), "/own")
	container := pod.Containers[0]
	sources := map[string]string{}
	for _, e := range container.Env {
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			sources[e.Name] = e.ValueFrom.FieldRef.FieldPath
		}
	}
	want := map[string]string{"NODE_NAME": "spec.nodeName", "NODE_IP": "status.hostIP",
		"POD_NAME": "metadata.name", "POD_IP": "status.podIPs"}
	if !maps.Equal(sources, want) {
		t.Errorf("variables %v, not %v", sources, want)
	}
	for _, p := range container.Ports {
		if p.HostPort != 0 || p.HostIP != "" {
			t.Errorf("%+v is a port of the node", p)
		}
	}
	for _, probe := range []*corev1.Probe{container.ReadinessProbe, container.LivenessProbe} {
		if probe.HTTPGet.Host != "" {
			t.Errorf("a probe asks %s", probe.HTTPGet.Host)
		}
	}
	node := nodeMode(t)
	if pod.HostNetwork || !node.HostNetwork ||
		!reflect.DeepEqual(container.SecurityContext, node.Containers[0].SecurityContext) || !reflect.DeepEqual(pod.Volumes, node.Volumes) {
		t.Errorf("pod mode has %+v, node mode %+v", pod, node)
	}
}
