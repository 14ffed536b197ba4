package connect

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// prefix parses a network.
func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

func networks(services, pods, nodes string) Networks {
	return Networks{prefix(services), prefix(pods), prefix(nodes)}
}

// newEnds are two clusters with the same networks but for services, without kubelink.
func newEnds() (a, b *end) {
	return &end{context: "c1", networks: networks("100.64.0.0/20", "100.96.0.0/11", "10.250.0.0/16")},
		&end{context: "Admin@gke_c2", networks: networks("100.64.16.0/20", "100.96.0.0/11", "10.250.0.0/16")}
}

func newLink(name, endpoint, address string) v1alpha1.KubeLink {
	l := v1alpha1.KubeLink{}
	l.Name, l.Spec.Endpoint, l.Spec.ClusterAddress = name, endpoint, address
	return l
}

// planCase is a row of TestPlan.
type planCase struct {
	name   string
	change func(a, b *end, o *planOptions)
	want   string // names and addresses
	fails  string
}

var planCases = []planCase{
	{"nothing is there", nil, "c1 192.168.0.1/24 admin-gke-c2 192.168.0.2/24", ""},
	{"a is in a mesh", func(a, _ *end, _ *planOptions) {
		a.links = []v1alpha1.KubeLink{newLink("one", "LocalLink", "10.9.0.2/24"), newLink("x", "h", "10.9.0.1/24")}
		a.addresses = []string{"10.9.0.3", ""}
	}, "one 10.9.0.2/24 admin-gke-c2 10.9.0.4/24", ""},
	{"b is in a second mesh, too", func(_, b *end, _ *planOptions) {
		b.links = []v1alpha1.KubeLink{newLink("m--two", "LocalLink", "10.8.0.1/24"),
			newLink("two", "LocalLink", "10.9.0.1/24")}
	}, "c1 10.9.0.2/24 two 10.9.0.1/24", ""},
	{"an earlier run was cut off", func(a, _ *end, _ *planOptions) {
		a.links = []v1alpha1.KubeLink{newLink("c1", "LocalLink", "192.168.0.1/24"),
			newLink("admin-gke-c2", "h", "192.168.0.9/24")}
	}, "c1 192.168.0.1/24 admin-gke-c2 192.168.0.9/24", ""},
	{"a third cluster of the mesh has the address", func(a, b *end, _ *planOptions) {
		a.links = []v1alpha1.KubeLink{newLink("c1", "LocalLink", "192.168.0.1/24"), newLink("c3", "h", "192.168.0.2/24")}
		b.links = []v1alpha1.KubeLink{newLink("c2", "LocalLink", "192.168.0.2/24")}
	}, "", "Admin@gke_c2 has the address 192.168.0.2 in the mesh, and c1 has it for its link c3: change"},
	{"a third cluster had the name first", func(a, _ *end, _ *planOptions) {
		a.links = []v1alpha1.KubeLink{newLink("c1", "LocalLink", "192.168.0.1/24"),
			newLink("admin-gke-c2", "h", "192.168.0.9/24")}
		a.links[1].Status.State = v1alpha1.StateUp
	}, "", "c1 has a link admin-gke-c2 already, to the address 192.168.0.9/24 and the endpoint h, and that is not Admin@gke"},
	{"a third cluster of the mesh had the name first", func(a, b *end, _ *planOptions) {
		a.links = []v1alpha1.KubeLink{newLink("c1", "LocalLink", "192.168.0.1/24"), newLink("c2", "h", "192.168.0.9/24")}
		b.links = []v1alpha1.KubeLink{newLink("c2", "LocalLink", "192.168.0.2/24")}
	}, "", "give --name Admin@gke_c2=NAME"},
	{"two meshes", func(a, b *end, _ *planOptions) {
		a.links = []v1alpha1.KubeLink{newLink("one", "LocalLink", "10.9.0.2/24")}
		b.links = []v1alpha1.KubeLink{newLink("two", "LocalLink", "10.8.0.2/24")}
	}, "", "c1 is in mesh 10.9.0.0/24, and Admin@gke_c2 in mesh 10.8.0.0/24"},
	{"one address", func(a, b *end, _ *planOptions) {
		a.links = []v1alpha1.KubeLink{newLink("one", "LocalLink", "10.9.0.2/24")}
		b.links = []v1alpha1.KubeLink{newLink("two", "LocalLink", "10.9.0.2/24")}
	}, "", "both have the address 10.9.0.2 in the mesh"},
	{"one name", func(a, b *end, _ *planOptions) { a.name, b.name = "x", "x" }, "", "give --name Admin@gke_c2=NAME"},
	{"no name", func(a, _ *end, _ *planOptions) { a.context = "@" }, "", "--name"},
	{"small mesh", func(_, _ *end, o *planOptions) { o.mesh = prefix("10.0.0.0/31") }, "",
		"choose a larger network with --mesh-cidr"},
	{"mesh in a cluster", func(_, _ *end, o *planOptions) { o.mesh = prefix("10.250.1.0/24") }, "",
		"the network of the mesh, 10.250.1.0/24, overlaps with the node network 10.250.0.0/16 of c1: choose another"},
	{"overlap of services", func(_, b *end, _ *planOptions) { b.networks.Services = prefix("100.64.0.0/16") },
		"", "the service networks of c1 (100.64.0.0/20) and Admin@gke_c2 (100.64.0.0/16) overlap, so an address would be " +
			"in both. Give one of them other networks, or add --mesh-services"},
	{"services hide pods", func(_, b *end, _ *planOptions) { b.networks.Services = prefix("100.97.0.0/16") },
		"", "the service network 100.97.0.0/16 of Admin@gke_c2 overlaps with the pod network 100.96.0.0/11 of c1, " +
			"which it would hide"},
	{"overlap, with mesh services", func(_, b *end, o *planOptions) {
		b.networks.Services, o.meshServices = prefix("100.64.0.0/16"), true
	}, "c1 192.168.0.1/24 admin-gke-c2 192.168.0.2/24", ""},
	{"bad LocalLink", func(a, _ *end, _ *planOptions) {
		a.links = []v1alpha1.KubeLink{newLink("one", "LocalLink", "10.9.0.2")}
	}, "", `c1: spec.clusterAddress "10.9.0.2" of LocalLink one`},
}

func TestPlan(t *testing.T) {
	for _, c := range planCases {
		t.Run(c.name, func(t *testing.T) {
			a, b := newEnds()
			o := planOptions{mesh: prefix("192.168.0.0/24")}
			if c.change != nil {
				c.change(a, b, &o)
			}
			err := planMesh(a, b, o)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%v", err)
				}
				return
			}
			got := a.name + " " + a.address.String() + " " + b.name + " " + b.address.String()
			if err != nil || got != c.want {
				t.Errorf("%s, %v", got, err)
			}
		})
	}
}

func TestSpan(t *testing.T) {
	for _, c := range []struct {
		all, want string
		bits      int
	}{
		{"10.250.0.11/32", "10.250.0.0/24", 24}, {"10.250.0.11/32 10.250.3.1/32", "10.250.0.0/22", 24},
		{"100.96.0.0/24 100.96.1.0/24 fd00::/64", "100.96.0.0/23", 0}, {"fd00:1::/64 fd00:1:0:1::/64", "fd00:1::/63", 0},
		{"100.96.0.0/24", "100.96.0.0/24", 0},
	} {
		var all []netip.Prefix
		for text := range strings.FieldsSeq(c.all) {
			all = append(all, prefix(text))
		}
		if got, err := spanNetworks(all, c.bits); err != nil || got.String() != c.want {
			t.Errorf("%s: %s, %v", c.all, got, err)
		}
	}
	if _, err := spanNetworks(nil, 0); err == nil {
		t.Error("no network has a span")
	}
}
