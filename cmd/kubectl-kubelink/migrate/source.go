package migrate

// What a former process was started with: arguments, or the YAML of its Deployment or DaemonSet.

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
)

const (
	controllerBroker = "broker"
	controllerRouter = "router"
)

// Source is what former processes of a cluster were started with.
type Source struct {
	broker, router values
	hasBroker      bool
	hasRouter      bool
	hostNetwork    *bool             // of the broker; nil: not known
	env            map[string]string // of the broker's container, as a Corefile writes the values
	namespace      string            // of the broker; empty: not known
	dataFolder     mount             // of the router's datafile; its zero value: not known
}

// mount is a folder of the node in a container.
type mount struct {
	node, container string
}

// values are those of flags, by their names without prefix.
type values map[string]string

// ReadArguments takes over the arguments of a process.
func (s *Source) ReadArguments(args []string) error {
	fs := pflag.NewFlagSet("kubelink", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	for _, f := range Flags() {
		fs.StringP(f.Name, f.shorthand, "", "")
		if f.isSwitch {
			fs.Lookup(f.Name).NoOptDefVal = "true"
		}
	}
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("%w: give the arguments of the former program, as kubelink --help lists them", err)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%q is no flag: the former program takes flags only", fs.Arg(0))
	}
	given := values{}
	fs.Visit(func(f *pflag.Flag) { given[f.Name] = f.Value.String() })
	return s.addValues(given)
}

// addValues takes over the values of flags of one process: those with the prefix of a controller win.
func (s *Source) addValues(given values) error {
	hasBroker, hasRouter, err := readControllers(given["controllers"])
	if err != nil {
		return err
	}
	for controller, has := range map[string]bool{controllerBroker: hasBroker, controllerRouter: hasRouter} {
		own := values{}
		for name, v := range given {
			if !strings.HasPrefix(name, brokerPrefix) && !strings.HasPrefix(name, routerPrefix) {
				own[name] = v
			}
		}
		for name, v := range given {
			if name, ok := strings.CutPrefix(name, controller+"."); ok {
				own[name] = v
			}
		}
		switch {
		case !has:
		case controller == controllerBroker && s.hasBroker, controller == controllerRouter && s.hasRouter:
			return fmt.Errorf("there are two %ss: migrate them one by one", controller)
		case controller == controllerBroker:
			s.broker, s.hasBroker = own, true
		default:
			s.router, s.hasRouter = own, true
		}
	}
	return nil
}

// readControllers reads the flag that says what the process was.
func readControllers(list string) (hasBroker, hasRouter bool, err error) {
	names := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
	if len(names) == 0 {
		names = []string{"all"}
	}
	for _, name := range names {
		switch name {
		case controllerBroker:
			hasBroker = true
		case controllerRouter:
			hasRouter = true
		case "all", "default":
			hasBroker, hasRouter = true, true
		default:
			return false, false, fmt.Errorf("controllers %q: %q is neither broker nor router", list, name)
		}
	}
	return hasBroker, hasRouter, nil
}

// ReadYAML takes over Deployments and DaemonSets, also in a List, or the configuration file of the program, which has
// flags as keys. It leaves other objects out.
func (s *Source) ReadYAML(r io.Reader) error {
	decoder := utilyaml.NewYAMLOrJSONDecoder(r, 4096)
	found := false
	for {
		o := &unstructured.Unstructured{}
		err := decoder.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read YAML: %w", err)
		}
		used, err := s.readObject(o)
		if err != nil {
			return err
		}
		found = found || used
	}
	if !found {
		return errors.New("there is no Deployment or DaemonSet of the former kubelink: give what " +
			"kubectl get deployments,daemonsets -o yaml prints of it")
	}
	return nil
}

// readObject takes over an object. It returns whether this is one of a former kubelink.
func (s *Source) readObject(o *unstructured.Unstructured) (used bool, err error) {
	if o.IsList() {
		return used, o.EachListItem(func(item runtime.Object) error {
			u, err := s.readObject(item.(*unstructured.Unstructured))
			used = used || u
			return err
		})
	}
	switch o.GetKind() {
	case "":
		given, all := values{}, Flags()
		for name, v := range o.Object {
			if !slices.ContainsFunc(all, func(f Flag) bool { return f.Name == name }) {
				return false, fmt.Errorf("%q is no flag of the former program, and without kind this is no object", name)
			}
			given[name] = fmt.Sprint(v)
		}
		return len(given) > 0, s.addValues(given)
	case "Deployment", "DaemonSet":
		var d appsv1.Deployment // a DaemonSet has its template in the same place
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
			return false, fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
		}
		used, err = s.readPod(d.Namespace, &d.Spec.Template.Spec)
		if err != nil {
			err = fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
		}
		return used, err
	}
	return false, nil
}

// readPod takes over the container of a pod that runs a former kubelink.
func (s *Source) readPod(namespace string, pod *corev1.PodSpec) (used bool, err error) {
	for i := range pod.Containers {
		c := &pod.Containers[i]
		args := slices.Clone(c.Args)
		if len(c.Command) > 1 {
			args = append(slices.Clone(c.Command[1:]), args...)
		}
		if !isKubelink(c, args) {
			continue
		}
		hadBroker, hadRouter := s.hasBroker, s.hasRouter
		if err := s.ReadArguments(args); err != nil {
			return true, err
		}
		if s.hasBroker && !hadBroker {
			s.namespace, s.hostNetwork, s.env = namespace, &pod.HostNetwork, readVariables(c.Env)
		}
		if s.hasRouter && !hadRouter {
			s.dataFolder = findFolder(pod, c, s.router["datafile"])
		}
		return true, nil
	}
	return false, nil
}

// findFolder returns the folder of the node in which a container has a file.
func findFolder(pod *corev1.PodSpec, c *corev1.Container, file string) (found mount) {
	for _, m := range c.VolumeMounts {
		if within, err := filepath.Rel(m.MountPath, file); err != nil || !filepath.IsLocal(within) ||
			len(m.MountPath) <= len(found.container) {
			continue
		}
		found = mount{container: m.MountPath}
		for _, v := range pod.Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				found.node = filepath.Join(v.HostPath.Path, m.SubPath)
			}
		}
	}
	return found
}

// isKubelink tells whether a container runs the former program: its image or its command says so, or a flag that only
// this program has.
func isKubelink(c *corev1.Container, args []string) bool {
	if strings.Contains(c.Image, "kubelink") || len(c.Command) > 0 && strings.Contains(c.Command[0], "kubelink") {
		return len(args) > 0 && !slices.Contains(args, "-conf")
	}
	return slices.ContainsFunc(args, func(a string) bool {
		return a == "--controllers=broker" || a == "--controllers=router" ||
			strings.HasPrefix(a, "--"+brokerPrefix) || strings.HasPrefix(a, "--"+routerPrefix)
	})
}

// readVariables returns the values of variables, as a Corefile writes them.
func readVariables(env []corev1.EnvVar) map[string]string {
	all := map[string]string{}
	for _, e := range env {
		switch {
		case e.ValueFrom == nil:
			all[e.Name] = e.Value
		case e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "status.hostIP":
			all[e.Name] = "{$NODE_IP}" // the Deployment of kubelink has this one
		}
	}
	return all
}
