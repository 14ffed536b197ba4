package mesh

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// What an older MeshService has, a younger link does not get. The links here are of the seconds 1001 and later.
func TestReserved(t *testing.T) {
	auto := func(l *v1alpha1.KubeLink) {
		l.Annotations = map[string]string{v1alpha1.AnnotationAutoConnect: "true"}
	}
	for _, c := range []struct {
		name    string
		address string
		created int64
		mod     mod
		want    string // the problem of the link
	}{
		{"cluster address", "192.168.0.12", 1, nil, "Invalid: spec.clusterAddress 192.168.0.12/32 has the address " +
			"192.168.0.12, which belongs to the older MeshService default/echo: give another one, or delete the other object"},
		{"a younger one", "192.168.0.12", 1001, nil, ""},
		{"a link that the broker made is younger", "192.168.0.12", 9000, auto, "Invalid: spec.clusterAddress " +
			"192.168.0.12/32 has the address 192.168.0.12, which belongs to the older MeshService default/echo: give another " +
			"one, or delete the other object"},
		{"another address", "192.168.0.13", 1, nil, ""},
		{"service network", "100.64.16.9", 1, nil, "Invalid: spec.cidr 100.64.16.0/20 has the address 100.64.16.9, which " +
			"belongs to the older MeshService default/echo: give another one, or delete the other object"},
		{"egress", "10.9.0.7", 1, egress("10.9.0.0/16"), "Invalid: spec.egress 10.9.0.0/16 has the address 10.9.0.7, " +
			"which belongs to the older MeshService default/echo: give another one, or delete the other object"},
		{"egress of one address in the mesh", "192.168.0.101", 1, egress("192.168.0.101"), "Invalid: spec.egress " +
			"192.168.0.101/32 has the address 192.168.0.101, which belongs to the older MeshService default/echo: give " +
			"another one, or delete the other object"},
		{"a network around the mesh", "192.168.0.101", 1, egress("192.168.0.0/16"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := new(objs).addLocal("here", "192.168.0.11/24").
				add("k2", "192.168.0.12/24", "b.example", cidr("100.64.16.0/20"), func(l *v1alpha1.KubeLink) {
					if c.mod != nil {
						c.mod(l)
					}
				})
			s := Build(Objects{Links: o.list, Reserved: []Reserved{
				{Addr: ip("192.168.0.200"), Owner: "MeshService default/other"},
				{Addr: ip(c.address), Owner: "MeshService default/echo", Created: metav1.Unix(c.created, 0)},
				{Addr: ip("1.2.3.4"), Owner: "MeshService default/other"},
			}}, cluster1())
			checkProblem(t, s, "k2", c.want)
		})
	}
}

// Why a mesh cannot be used, and which ones another broker serves.
func TestBrokenMeshes(t *testing.T) {
	local := changed(func(l *Local) { l.Served = []string{"m2"} })
	s := new(objs).addLocal("here", "192.168.0.11/24").addLocal("m2--here", "192.168.1.11/24").
		addLocal("m3--here", "nonsense").build(local)
	checkEqual(t, "broken", s.Broken, map[string]string{
		"m3": "LocalLink m3--here of mesh m3 cannot be used (Invalid): repair it first",
	})
	checkEqual(t, "number of meshes", len(s.Meshes), 1)
	checkEqual(t, "number of meshes of other brokers", len(s.Unserved), 1)
	checkEqual(t, "mesh of another broker", s.Unserved[0].Link, "here")
}
