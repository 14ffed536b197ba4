package service

// What users are told of lists that keep packets from mesh services.

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

func TestExcluded(t *testing.T) {
	rules := func(deny bool, networks ...string) (list []mesh.Rule) {
		for _, n := range networks {
			list = append(list, mesh.Rule{Prefix: netip.MustParsePrefix(n), Allow: !deny})
		}
		return list
	}
	local := func(of string, rules []mesh.Rule) mesh.IngressList {
		return mesh.IngressList{Link: "here", Mesh: of, Local: true, Rules: rules}
	}
	link := func(name string, rules []mesh.Rule) mesh.IngressList {
		return mesh.IngressList{Link: name, Rules: rules}
	}
	const (
		own   = `{service: echo, ports: [{port: 80}]}`
		whole = `{service: echo, meshAddress: 192.168.0.100}`
	)
	for _, c := range []struct {
		name, spec, want string
		lists            []mesh.IngressList
		notes            map[string]string
	}{
		{"no list", whole, "", nil, nil},
		{"it is in the list", whole, "", []mesh.IngressList{local("", rules(false, "192.168.0.100/32"))}, nil},
		{"another denial", whole, "", []mesh.IngressList{link("k2", rules(true, "192.168.0.101/32"))}, nil},
		{"list of another mesh", whole, "", []mesh.IngressList{local("m2", rules(false, "100.64.0.0/20"))}, nil},
		{"ports of the cluster's address", own, "", []mesh.IngressList{local("", rules(false, "100.64.0.0/20"))}, nil},
		{"services of the cluster only", whole,
			"spec.ingress of LocalLink here does not let packets to 192.168.0.100 pass: add it there, else clients wait " +
				"for their time-out",
			[]mesh.IngressList{local("", rules(false, "100.64.0.0/20"))},
			map[string]string{"here": "spec.ingress keeps clients from ns/msvc0 at 192.168.0.100"}},
		{"two lists", whole,
			"spec.ingress of LocalLink here, link k3 does not let packets to 192.168.0.100 pass: add it there, else " +
				"clients wait for their time-out; " +
				"spec.ingress of link k2 (!192.168.0.96/27) denies packets to 192.168.0.100: clients wait for their time-out",
			[]mesh.IngressList{local("", rules(false, "100.64.0.0/20")), link("k2", rules(true, "192.168.0.96/27")),
				link("k3", rules(false, "192.168.0.101/32"))},
			map[string]string{"here": "spec.ingress keeps clients from ns/msvc0 at 192.168.0.100",
				"k2": "spec.ingress keeps clients from ns/msvc0 at 192.168.0.100",
				"k3": "spec.ingress keeps clients from ns/msvc0 at 192.168.0.100"}},
		{"the cluster's address is denied", own,
			"spec.ingress of link k2 (!192.168.0.0/24) denies packets to 192.168.0.11: clients wait for their time-out",
			[]mesh.IngressList{link("k2", rules(true, "192.168.0.0/24"))},
			map[string]string{"k2": "spec.ingress keeps clients from ns/msvc0 at 192.168.0.11"}},
	} {
		o, around := testObjects(t, testServices), testCluster()
		m := o.addSpecs(t, c.spec)
		around.State.Lists = c.lists
		r := Build(o, around)
		if got := r.Reports[keyOf(m)]; got.Message != c.want || !got.Ready {
			t.Errorf("%s:\ngot  %s\nwant %s", c.name, got.Message, c.want)
		}
		if !maps.Equal(r.LinkNotes, c.notes) {
			t.Errorf("%s: of links: %v", c.name, r.LinkNotes)
		}
	}
}

// A KubeLink that excludes many has one of them in its message.
func TestManyExcluded(t *testing.T) {
	o, around := testObjects(t, testServices), testCluster()
	o.addSpecs(t, `{service: echo, meshAddress: 192.168.0.100}`, `{service: echo, meshAddress: 192.168.0.101}`)
	around.State.Lists = []mesh.IngressList{{Link: "k2", Rules: []mesh.Rule{{Prefix: netip.MustParsePrefix("::/0")}}},
		{Link: "k3", Rules: []mesh.Rule{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}}}}
	want := map[string]string{
		"k3": "spec.ingress keeps clients from 2 mesh services, such as ns/msvc0 at 192.168.0.100"}
	if got := Build(o, around).LinkNotes; !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
