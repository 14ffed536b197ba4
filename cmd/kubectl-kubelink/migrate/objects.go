package migrate

// The objects of an installation with the migrated Corefile.

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/install"
)

// Objects returns what to apply: the installation with this Corefile, in the namespace of package install.
func (r *Result) Objects() ([]*unstructured.Unstructured, error) {
	if r.options.Image == "" {
		return nil, errors.New("the image of kubelink is not known: give --image, such as --image=REGISTRY/kubelink:v1")
	}
	all, err := install.Build(r.installValues(), r.components()...)
	if err != nil {
		return nil, err
	}
	if !r.source.hasBroker {
		all = slices.DeleteFunc(all, func(o *unstructured.Unstructured) bool {
			return o.GetKind() != "Namespace" && !strings.HasPrefix(o.GetName(), "kubelink-router")
		})
		return all, r.setRouter(all)
	}
	corefile := install.Find(all, "ConfigMap", install.Name)
	corefile.Object["data"] = map[string]any{"Corefile": r.Corefile}
	if secret := r.findProperty("secret"); secret != nil && *secret != install.Secret {
		renameSecret(all, *secret)
	}
	if err := r.setPorts(all); err != nil {
		return nil, err
	}
	r.setVariables(all)
	return append(all, r.tokenRights()...), r.setRouter(all)
}

// installValues are those of deploy/values.yaml.
func (r *Result) installValues() install.Values {
	get := func(name string) string {
		if v := r.getFlag(name); v != "" || r.source.hasBroker {
			return v
		}
		return r.source.router[name]
	}
	v := install.Values{Image: r.options.Image, ServiceCIDR: get("service-cidr"), PodCIDR: get("pod-cidr"),
		NodeCIDR: get("node-cidr"), MeshCIDR: strings.Join(r.meshCIDRs(), " "), Endpoint: r.options.Endpoint,
		DNSServiceIP: get("coredns-service-ip")}
	if services, err := netip.ParsePrefix(v.ServiceCIDR); err == nil && v.DNSServiceIP == "" {
		v.DNSServiceIP = mesh.Nth(services, 11).String()
	}
	return v
}

// components are those of deploy that have the rights for the properties.
func (r *Result) components() (names []string) {
	podMode := r.hasProperty("node-ip")
	if host := r.source.hostNetwork; host != nil {
		podMode = !*host
	}
	mode, manage := r.getFlag("mode"), r.getFlag("secret-manage-mode")
	for _, c := range []struct {
		name   string
		wanted bool
	}{
		{"node-mode", !podMode},
		{"pod-mode", podMode},
		{"router", r.source.hasRouter},
		{"wireguard", mode == "wireguard"},
		{"self-signed", mode != "wireguard" && manage == "self"},
		{"certificate", mode != "wireguard" && manage == "cert"},
		{"coredns-configure", r.hasProperty("coredns-configure")},
		{"kubernetes-dns", r.getFlag("dns-propagation") == "kubernetes"},
		{"advertisement", r.hasProperty("dns-advertisement") || r.hasProperty("service-account")},
	} {
		if c.wanted {
			names = append(names, c.name)
		}
	}
	return names
}

// renameSecret gives the rights for the secret of the installation to one with another name.
func renameSecret(all []*unstructured.Unstructured, name string) {
	for _, o := range all {
		rules, _, _ := unstructured.NestedSlice(o.Object, "rules")
		for _, rule := range rules {
			names, _ := rule.(map[string]any)["resourceNames"].([]any)
			for i := range names {
				if names[i] == install.Secret {
					names[i] = name
				}
			}
		}
		if rules != nil {
			o.Object["rules"] = rules
		}
	}
}

// editContainer changes the container of a Deployment or DaemonSet.
func editContainer(o *unstructured.Unstructured, edit func(container map[string]any)) error {
	path := []string{"spec", "template", "spec", "containers"}
	containers, _, err := unstructured.NestedSlice(o.Object, path...)
	if err != nil || len(containers) == 0 {
		return fmt.Errorf("%s %s has no container: %w", o.GetKind(), o.GetName(), err)
	}
	edit(containers[0].(map[string]any))
	return unstructured.SetNestedSlice(o.Object, containers, path...)
}

// setPorts brings the port to listen on, and that of the metrics, to Deployment and Service.
func (r *Result) setPorts(all []*unstructured.Unstructured) error {
	ports := map[string]string{"metrics": r.getFlag("server-port-http"), "bridge": r.getFlag("broker-port"),
		"wireguard": r.getFlag("broker-port")}
	set := func(list []any, field string) {
		for _, item := range list {
			port, _ := item.(map[string]any)
			name, _ := port["name"].(string)
			n, err := strconv.ParseInt(ports[name], 10, 64)
			if err != nil {
				continue
			}
			port[field] = n
			if port["hostPort"] != nil {
				port["hostPort"] = n
				delete(port, "hostIP")
			}
		}
	}
	service := install.Find(all, "Service", install.Name)
	list, _, _ := unstructured.NestedSlice(service.Object, "spec", "ports")
	set(list, "targetPort")
	if err := unstructured.SetNestedSlice(service.Object, list, "spec", "ports"); err != nil {
		return err
	}
	return editContainer(install.Find(all, "Deployment", install.Name), func(c map[string]any) {
		list, _ := c["ports"].([]any)
		set(list, "containerPort")
	})
}

// setVariables notes the variables of the Corefile that the Deployment does not have.
func (r *Result) setVariables(all []*unstructured.Unstructured) {
	known := map[string]bool{}
	_ = editContainer(install.Find(all, "Deployment", install.Name), func(c map[string]any) {
		env, _ := c["env"].([]any)
		for _, e := range env {
			name, _ := e.(map[string]any)["name"].(string)
			known[name] = true
		}
	})
	for _, found := range corefileVariable.FindAllStringSubmatch(r.Corefile, -1) {
		if !known[found[1]] {
			r.addNote("the Deployment has no variable %s, which the Corefile needs: add it", found[1])
		}
	}
}

var corefileVariable = regexp.MustCompile(`\{\$(\w+)\}`)

// setRouter gives the DaemonSet the arguments of the former router, besides its own, and the folder of its file. The
// components that migrate chooses give it no other volumes.
func (r *Result) setRouter(all []*unstructured.Unstructured) error {
	d := install.Find(all, "DaemonSet", "kubelink-router")
	if d == nil {
		return nil
	}
	file, folder := r.source.router["datafile"], r.source.dataFolder
	if file != "" && folder.node == "" {
		r.addNote("datafile %s: it is not known which folder of the node that is: mount it into the DaemonSet "+
			"kubelink-router, and add the argument, so that the routes of the former router are taken over", file)
		file = ""
	}
	if file != "" {
		volumes := []any{map[string]any{"name": "former", "hostPath": map[string]any{"path": folder.node}}}
		if err := unstructured.SetNestedSlice(d.Object, volumes, "spec", "template", "spec", "volumes"); err != nil {
			return err
		}
	}
	return editContainer(d, func(c map[string]any) {
		args, _ := c["args"].([]any)
		if file != "" {
			args = append(args, "--datafile="+file)
			c["volumeMounts"] = []any{map[string]any{"name": "former", "mountPath": folder.container}}
		}
		for _, name := range []string{"ipip", "route-table", "rule-priority", "ifce-name", "log-level"} {
			if v := r.source.router[name]; v != "" {
				args = append(args, "--"+name+"="+v)
			}
		}
		if v := r.source.router["kubeconfig.apiserver-override"]; v != "" {
			args = append(args, "--kubeconfig.apiserver-override="+v)
		}
		c["args"] = args
	})
}

// tokenRights let the broker request a token of the account that peers get.
func (r *Result) tokenRights() []*unstructured.Unstructured {
	account := r.findProperty("service-account")
	if account == nil {
		return nil
	}
	namespace, name, ok := strings.Cut(*account, "/")
	if !ok {
		namespace, name = "kube-system", *account
	}
	meta := metav1.ObjectMeta{Namespace: namespace, Name: "kubelink-token"}
	role := &rbacv1.Role{
		TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "Role"}, ObjectMeta: meta,
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"},
			ResourceNames: []string{name}, Verbs: []string{"create"}}},
	}
	binding := &rbacv1.RoleBinding{
		TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "RoleBinding"}, ObjectMeta: meta,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: install.Namespace, Name: install.Name}},
	}
	var all []*unstructured.Unstructured
	for _, o := range []any{role, binding} {
		fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			continue // these types can be converted
		}
		all = append(all, &unstructured.Unstructured{Object: fields})
	}
	return all
}
