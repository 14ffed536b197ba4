package deploy

// The examples for two clusters fit together.

import (
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// example is what one cluster gets.
type example struct {
	links    []v1alpha1.KubeLink
	services []v1alpha1.MeshService
}

func readExample(t *testing.T, file string) (e example) {
	t.Helper()
	text, err := os.ReadFile("examples/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range strings.Split(string(text), "\n---\n") {
		switch o := parseObject(t, file, []byte(document)); o.Kind {
		case "KubeLink":
			var l v1alpha1.KubeLink
			err = yaml.UnmarshalStrict([]byte(document), &l)
			e.links = append(e.links, l)
		case "MeshService":
			var m v1alpha1.MeshService
			err = yaml.UnmarshalStrict([]byte(document), &m)
			e.services = append(e.services, m)
		default:
			t.Errorf("%s: %s", file, o)
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
	return e
}

// Both ends of a link say the same of a cluster, each cluster is a LocalLink at its own end, and the brokers take all
// of it without a remark.
func TestExamplesOfTwoClusters(t *testing.T) {
	for name, offers := range map[string]int{"kubelink": 0, "overlap": 1} {
		ends := []example{readExample(t, name+"1.yaml"), readExample(t, name+"2.yaml")}
		var addresses []string
		for i, e := range ends {
			local, remote := e.links[0], ends[1-i].links[1]
			if len(e.links) != 2 || local.Spec.Endpoint != v1alpha1.EndpointLocal || local.Name != remote.Name ||
				local.Spec.ClusterAddress != remote.Spec.ClusterAddress || local.Spec.CIDR != remote.Spec.CIDR {
				t.Errorf("%s%d.yaml: %+v, at the other end %+v", name, i+1, local.Spec, remote.Spec)
			}
			state := mesh.Build(mesh.Objects{Links: e.links, Reserved: service.Reserve(e.services)},
				mesh.Local{Mode: mesh.Bridge})
			for link, p := range state.Problems {
				t.Errorf("%s%d.yaml: link %s: %s %s", name, i+1, link, p.State, p.Message)
			}
			if len(e.services) != offers {
				t.Errorf("%s%d.yaml has %d MeshServices", name, i+1, len(e.services))
			}
			for _, m := range e.services {
				addresses = append(addresses, m.Spec.MeshAddress)
				r := service.Build(&service.Objects{MeshServices: e.services},
					&service.Surroundings{Mode: mesh.Bridge, State: &state, Host: &mesh.Host{}})
				for key, report := range r.Reports { // the service is up to the user
					if !strings.Contains(report.Message, `spec.service "web": namespace default has no such service`) {
						t.Errorf("%s%d.yaml: MeshService %s: %+v", name, i+1, key, report)
					}
				}
			}
		}
		if slices.Sort(addresses); len(slices.Compact(addresses)) != 2*offers {
			t.Errorf("%s: MeshServices at %q", name, addresses)
		}
	}
}
