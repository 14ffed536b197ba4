package mesh

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// manyLinks are a LocalLink and n links to other clusters.
func manyLinks(n int) *objs {
	o := new(objs).add("kubelink1", "10.202.0.1/16", v1alpha1.EndpointLocal, cidr("100.64.0.0/20"))
	for i := range n {
		address := netip.AddrFrom4([4]byte{10, 202, byte((i + 2) >> 8), byte(i + 2)})
		services := netip.AddrFrom4([4]byte{10, 100 + byte(i>>8), byte(i), 0})
		o.add(fmt.Sprintf("stub%d", i), address.String()+"/16", fmt.Sprintf("stub%d.example:8090", i),
			cidr(services.String()+"/24"))
	}
	return o
}

// What Build allocates grows as the number of links does: hundreds of links are compared with each other without a copy
// for each pair.
func TestBuildGrowsWithLinks(t *testing.T) {
	local := cluster1()
	count := func(n int) float64 {
		objects := Objects{Links: manyLinks(n).list}
		return testing.AllocsPerRun(5, func() { Build(objects, local) })
	}
	if few, many := count(50), count(200); many > 5*few {
		t.Errorf("%.0f allocations for 50 links, %.0f for 200", few, many)
	}
}

// BenchmarkBuild is a State of 250 links.
func BenchmarkBuild(b *testing.B) {
	objects := Objects{Links: manyLinks(250).list}
	local := cluster1()
	b.ReportAllocs()
	for b.Loop() {
		if s := Build(objects, local); len(s.Links) != 250 {
			b.Fatal(s.Problems)
		}
	}
}
