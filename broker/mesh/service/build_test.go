package service

// What MeshServices mean: testdata/rules.yaml has a row for each rule.

import (
	_ "embed"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// testCluster has a default mesh, mesh m2 with both families, and mesh m3 of another broker; m4 is broken.
func testCluster() *Surroundings {
	prefix := netip.MustParsePrefix
	return &Surroundings{
		Mode: mesh.Bridge,
		State: &mesh.State{
			Meshes: []mesh.Mesh{
				{Link: "here", Cluster: "here", Addresses: mesh.Prefixes{prefix("192.168.0.11/24")}},
				{Name: "m2", Link: "m2--here", Addresses: mesh.Prefixes{prefix("192.168.2.11/24"), prefix("fd00:2::11/64")}},
			},
			Unserved: []mesh.Mesh{{Name: "m3", Link: "m3--here", Addresses: mesh.Prefixes{prefix("192.168.3.11/24")}}},
			Broken:   map[string]string{"m4": "LocalLink m4--here of mesh m4 cannot be used (Invalid): repair it first"},
			Networks: []mesh.LinkNetwork{
				{Prefix: prefix("10.0.0.0/8"), Link: "wide"}, {Prefix: prefix("192.168.0.0/16"), Link: "wide"},
				{Prefix: prefix("192.168.0.12/32"), Link: "kubelink2"}, {Prefix: prefix("192.168.0.128/26"), Link: "kubelink3"},
			},
			Local:      []netip.Prefix{prefix("100.64.0.0/20"), prefix("172.16.0.0/16")},
			LocalPorts: []mesh.LocalPort{{Protocol: "tcp", Port: 53}},
		},
		Host: &mesh.Host{
			Needs:     []mesh.HostAddress{{Addr: netip.MustParseAddr("198.51.100.2"), Title: "the API server"}},
			Endpoints: map[string][]netip.Addr{"two.example": {netip.MustParseAddr("203.0.113.2")}},
		},
	}
}

//go:embed testdata/services.yaml
var testServices string

//go:embed testdata/rules.yaml
var rules []byte

// testObjects reads documents of YAML. MeshServices get younger by a second each.
func testObjects(t testing.TB, text string) *Objects {
	t.Helper()
	o := &Objects{
		Services: map[types.NamespacedName]*corev1.Service{}, Slices: map[types.NamespacedName][]*discovery.EndpointSlice{},
	}
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var kind metav1.TypeMeta
		must(t, yaml.Unmarshal([]byte(doc), &kind))
		switch kind.Kind {
		case "Service":
			s := &corev1.Service{}
			must(t, yaml.UnmarshalStrict([]byte(doc), s))
			o.Services[types.NamespacedName{Namespace: "ns", Name: s.Name}] = s
		case "EndpointSlice":
			s := &discovery.EndpointSlice{}
			must(t, yaml.UnmarshalStrict([]byte(doc), s))
			key := types.NamespacedName{Namespace: "ns", Name: s.Labels[discovery.LabelServiceName]}
			o.Slices[key] = append(o.Slices[key], s)
		}
	}
	return o
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// addSpec adds a MeshService, a second younger than the one before.
func (o *Objects) addSpec(spec v1alpha1.MeshServiceSpec) {
	m := v1alpha1.MeshService{Spec: spec}
	n := len(o.MeshServices)
	m.Namespace, m.Name, m.CreationTimestamp = "ns", fmt.Sprintf("msvc%d", n), metav1.Unix(int64(1000+n), 0)
	o.MeshServices = append(o.MeshServices, m)
}

// addSpecs adds MeshServices with these specs in YAML. It returns the last one.
func (o *Objects) addSpecs(t testing.TB, specs ...string) *v1alpha1.MeshService {
	t.Helper()
	for _, text := range specs {
		var spec v1alpha1.MeshServiceSpec
		must(t, yaml.UnmarshalStrict([]byte(text), &spec))
		o.addSpec(spec)
	}
	return &o.MeshServices[len(o.MeshServices)-1]
}

// show is a service in a line: its address, what is whole, and each port with its endpoints.
func show(s Service) string {
	words := []string{s.Address.String()}
	if s.Whole {
		words = append(words, "all>"+join(s.Targets))
	}
	if s.Affinity > 0 {
		words = append(words, fmt.Sprintf("affinity %d", s.Affinity))
	}
	for _, p := range s.Ports {
		words = append(words, fmt.Sprintf("%s=%s>%s", p.Name, portKey{protocol(p.Protocol), p.Port},
			join(p.Targets)))
	}
	return strings.Join(words, "; ")
}

func join[T fmt.Stringer](list []T) string {
	var words []string
	for _, t := range list {
		words = append(words, t.String())
	}
	return strings.Join(words, " ")
}

// rule is a row of testdata/rules.yaml.
type rule struct {
	Name     string                     `json:"name"`
	Specs    []v1alpha1.MeshServiceSpec `json:"specs"`    // the last one is the one that is looked at
	Report   string                     `json:"report"`   // state, and message
	Services []string                   `json:"services"` // of it
}

func TestBuild(t *testing.T) {
	var rows []rule
	must(t, yaml.UnmarshalStrict(rules, &rows))
	for _, c := range rows {
		t.Run(c.Name, func(t *testing.T) {
			o := testObjects(t, testServices)
			for _, spec := range c.Specs {
				o.addSpec(spec)
			}
			m := &o.MeshServices[len(o.MeshServices)-1]
			r := Build(o, testCluster())
			report := r.Reports[keyOf(m)]
			if got := strings.TrimSuffix(string(report.State)+": "+report.Message, ": "); got != c.Report {
				t.Errorf("report\ngot  %s\nwant %s", got, c.Report)
			}
			var shown []string
			for _, s := range r.Services {
				if s.Name == m.Name {
					shown = append(shown, show(s))
				}
			}
			want := strings.Join(c.Services, "\n")
			if got := strings.Join(shown, "\n"); got != want {
				t.Errorf("services\ngot  %s\nwant %s", got, want)
			}
			if report.Ready != (strings.Contains(want, ">1") || strings.Contains(want, ">[")) {
				t.Errorf("ready: %v", report.Ready)
			}
		})
	}
}

// In mode none nothing carries packets, and in mode wireguard brokers have a port of their own.
func TestModes(t *testing.T) {
	o, around := testObjects(t, testServices), testCluster()
	m := o.addSpecs(t, `{service: echo, ports: [{port: 8779}],
		endpoints: [{portMappings: [{port: 8779, targetPort: http}]}]}`)
	for mode, want := range map[mesh.Mode]Report{
		mesh.Bridge: {State: v1alpha1.StateOk, Ready: true},
		mesh.WireGuard: {State: v1alpha1.StateInvalid, Message: "spec.ports[0]: TCP port 8779 of the address of this " +
			"cluster is where brokers talk to each other: choose another port"},
		mesh.None: {State: v1alpha1.StateUnsupported, Weak: true, Message: "mode none carries no traffic: MeshServices " +
			"need a broker with mode bridge or wireguard in its Corefile"},
	} {
		around.Mode = mode
		if got := Build(o, around).Reports[keyOf(m)]; got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", mode, got, want)
		}
	}
}

// What another broker may know better is weak.
func TestWeakReports(t *testing.T) {
	o := testObjects(t, testServices)
	for spec, weak := range map[string]bool{
		`{service: echo, mesh: m3, ports: [{port: 80}]}`: true, `{service: echo, mesh: m3}`: true,
		`{service: echo, mesh: m2}`: false, `{service: echo, mesh: m9}`: false, `{service: echo, meshAddress: x}`: false,
	} {
		o.MeshServices = nil
		m := o.addSpecs(t, spec)
		if got := Build(o, testCluster()).Reports[keyOf(m)]; got.Weak != weak || got.State == v1alpha1.StateOk {
			t.Errorf("%s: %+v", spec, got)
		}
	}
	// Where brokers share a mesh, all serve it, and one of them writes.
	around := testCluster()
	around.State.Foreign = map[string]bool{"m2--here": true}
	for spec, state := range map[string]v1alpha1.State{
		`{service: echo, mesh: m2, ports: [{port: 80}]}`: "Ok", `{service: nope, mesh: m2, ports: [{port: 80}]}`: "Invalid",
	} {
		o.MeshServices = nil
		m := o.addSpecs(t, spec)
		if got := Build(o, around).Reports[keyOf(m)]; !got.Weak || got.State != state {
			t.Errorf("%s: %+v", spec, got)
		}
	}
}

// Who has made a MeshService hears that another cluster offers its address.
func TestRival(t *testing.T) {
	o, around := testObjects(t, testServices), testCluster()
	m := o.addSpecs(t, `{service: echo, meshAddress: 192.168.0.100}`)
	around.State.Offers.Rivals = map[netip.Addr]string{netip.MustParseAddr("192.168.0.100"): "kubelink3"}
	want := Report{State: v1alpha1.StateOk, Ready: true, Doubtful: true,
		Message: "the cluster of link kubelink3 offers 192.168.0.100, too: other clusters reach the one that they had " +
			"first; choose another address here or there"}
	if got := Build(o, around).Reports[keyOf(m)]; got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// An address that lies in no mesh needs one of its family: only then the kernel leads packets to its endpoints, and a
// link can have it in spec.egress.
func TestFamilyOfNoMesh(t *testing.T) {
	o, around := testObjects(t, testServices), testCluster()
	m := o.addSpecs(t, `{service: echo, meshAddress: "fd00:9::1"}`)
	if got := Build(o, around).Reports[keyOf(m)]; got.State != v1alpha1.StateOk {
		t.Errorf("mesh m2 has the family: %+v", got)
	}
	around.State.Meshes = around.State.Meshes[:1]
	want := Report{State: v1alpha1.StateInvalid, Message: "spec.meshAddress fd00:9::1 is an IPv6 address, and no mesh " +
		"of this cluster has one: choose an address of a mesh"}
	if got := Build(o, around); got.Reports[keyOf(m)] != want || len(got.Services) > 0 {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// An address that lies in no mesh may be a mistake. The stanza of another broker may define a mesh.
func TestNoMesh(t *testing.T) {
	const text = "spec.meshAddress 192.168.7.5 lies in no mesh: it is served, but not announced, and other clusters " +
		"need it in spec.egress of their link to this one; or choose an address of a mesh"
	for partial, want := range map[bool]string{
		true:  text,
		false: text + ": the default mesh has 192.168.0.0/24",
	} {
		o, around := testObjects(t, testServices), testCluster()
		m := o.addSpecs(t, `{service: echo, meshAddress: 192.168.7.5}`)
		around.State.Meshes, around.State.Unserved, around.State.Networks = around.State.Meshes[:1], nil, nil
		around.Partial = partial
		got := Build(o, around).Reports[keyOf(m)]
		if want := (Report{State: v1alpha1.StateOk, Ready: true, Message: want, Doubtful: true}); got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}

// Without any mesh there is none to name.
func TestWithoutMesh(t *testing.T) {
	for spec, want := range map[string]string{
		`{service: echo, meshAddress: 192.168.0.100}`: "this cluster has no mesh: create a LocalLink",
		`{service: echo, ports: [{port: 80}]}`:        "this cluster has no mesh: create a LocalLink",
		`{service: echo, mesh: m9, ports: [{port: 80}]}`: `spec.mesh "m9": this cluster has no mesh: ` +
			"create the LocalLink of that mesh",
	} {
		o, around := testObjects(t, testServices), testCluster()
		m := o.addSpecs(t, spec)
		around.State = &mesh.State{}
		got := Build(o, around).Reports[keyOf(m)]
		if want := (Report{State: v1alpha1.StateInvalid, Message: want}); got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", spec, got, want)
		}
	}
}

// Two brokers that serve a mesh each, on two nodes, say the same of an object, or one of them leaves it to the other
// one: else each would write the status anew when the other one has.
func TestTwoBrokers(t *testing.T) {
	prefix, address := netip.MustParsePrefix, netip.MustParseAddr
	one := mesh.Mesh{Name: "one", Link: "one--here", Addresses: mesh.Prefixes{prefix("192.168.1.11/24")}}
	two := mesh.Mesh{Name: "two", Link: "two--here", Addresses: mesh.Prefixes{prefix("192.168.2.11/24")}}
	stanza := mesh.Mesh{Cluster: "here", Addresses: mesh.Prefixes{prefix("192.168.0.11/24")}} // of the first broker only
	brokers := [2]*Surroundings{
		{State: &mesh.State{Meshes: []mesh.Mesh{stanza, one}, Unserved: []mesh.Mesh{two},
			Broken:  map[string]string{"both": "the LocalLink cannot be used (Invalid): repair it first"},
			Foreign: map[string]bool{"two--here": true, "both--here": true, "half--here": true}},
			Host: &mesh.Host{Addresses: []mesh.HostInterface{{Addr: address("10.250.0.1"), Device: "eth0"}}}},
		{State: &mesh.State{Meshes: []mesh.Mesh{two}, Unserved: []mesh.Mesh{one},
			Broken: map[string]string{"both": "the LocalLink cannot be used (Stale): repair it first",
				"half": "the LocalLink cannot be used (Invalid): repair it first"},
			Foreign: map[string]bool{"one--here": true}},
			Host: &mesh.Host{Addresses: []mesh.HostInterface{{Addr: address("10.250.0.2"), Device: "eth0"}}}},
	}
	brokers[0].State.Unserved = append(brokers[0].State.Unserved, mesh.Mesh{Name: "half", Link: "half--here"})
	brokers[0].State.Lists = []mesh.IngressList{{Link: "k2", Rules: []mesh.Rule{{Prefix: prefix("198.18.0.0/15")}}},
		{Link: "one--k2", Mesh: "one", Rules: []mesh.Rule{{Prefix: prefix("192.168.1.0/24")}}}}
	for _, spec := range []string{
		`{service: echo}`, `{service: echo, ports: [{port: 80}]}`, `{service: echo, mesh: one, ports: [{port: 80}]}`,
		`{service: echo, mesh: nope}`, `{service: echo, mesh: both}`, `{service: echo, mesh: half}`, `{meshAddress: x}`,
		`{service: echo, meshAddress: 10.250.0.1}`, `{service: echo, meshAddress: 10.250.0.2, mesh: two}`,
		`{service: echo, meshAddress: 10.250.0.1, mesh: two}`, `{service: echo, meshAddress: 203.0.113.9}`,
		`{service: echo, meshAddress: 198.18.0.1}`, `{service: echo, meshAddress: 198.18.0.1, mesh: two}`,
		`{service: echo, meshAddress: 192.168.1.100}`,
		`{service: nope, meshAddress: 192.168.2.100}`, `{service: echo, meshAddress: 192.168.0.100}`,
	} {
		var reports [2]Report
		strong := 0
		for i, around := range brokers {
			o := testObjects(t, testServices)
			m := o.addSpecs(t, spec)
			around.Mode, around.Partial = mesh.Bridge, true
			if reports[i] = Build(o, around).Reports[keyOf(m)]; !reports[i].Weak {
				strong++
			}
		}
		if strong == 0 || strong == 2 && reports[0] != reports[1] {
			t.Errorf("%s:\nfirst  %+v\nsecond %+v", spec, reports[0], reports[1])
		}
	}
}

// Of two objects of one second the name decides, and of what goes nothing is left.
func TestOrder(t *testing.T) {
	o := testObjects(t, testServices)
	o.addSpecs(t, `{service: echo, meshAddress: 192.168.0.100}`, `{service: echo, meshAddress: 192.168.0.100}`)
	o.MeshServices[0].CreationTimestamp = o.MeshServices[1].CreationTimestamp
	slices.Reverse(o.MeshServices)
	before := Build(o, testCluster())
	if len(before.Services) != 1 || before.Services[0].Name != "msvc0" {
		t.Errorf("%+v", before.Services)
	}
	slices.Reverse(o.MeshServices)
	if again := Build(o, testCluster()); !reflect.DeepEqual(again, before) {
		t.Errorf("another order of the objects:\ngot  %+v\nwant %+v", again, before)
	}
	now := metav1.Unix(5000, 0)
	o.MeshServices[0].DeletionTimestamp = &now
	r := Build(o, testCluster())
	if len(r.Services) != 1 || r.Services[0].Name != "msvc1" || len(r.Reports) != 1 {
		t.Errorf("after a deletion: %+v", r)
	}
	if reserved := Reserve(o.MeshServices); len(reserved) != 1 || reserved[0].Owner != "MeshService ns/msvc1" {
		t.Errorf("reserved: %+v", reserved)
	}
}

// Objects that are older than the rules of the API server can be of any size.
func TestBounds(t *testing.T) {
	long := strings.Repeat("ä\n", 5000)
	ports := func(n int) (text string) {
		for i := range n {
			text += fmt.Sprintf("{port: %d},", i+1)
		}
		return text
	}
	for spec, want := range map[string]string{
		`{service: echo, ports: [` + ports(5000) + `]}`: "spec.ports has 5000 entries: there may be 256",
		`{ports: [{port: 1}], endpoints: [{address: 10.1.1.1, portMappings: [` +
			strings.ReplaceAll(ports(5000), "}", ", targetPort: 1}") + `]}]}`: "spec.endpoints[0].portMappings has 5000 " +
			"entries: there may be 256",
		`{ports: [{port: 1}], endpoints: [` + strings.Repeat("{},", 100) + `]}`: "spec.endpoints has 100 entries: " +
			"there may be 64",
		fmt.Sprintf(`{ports: [{port: 1}], service: %q}`, long):  `spec.service "ä\nä\n`,
		fmt.Sprintf(`{ports: [{port: 1}], mesh: %q}`, long):     `spec.mesh "ä\nä\n`,
		fmt.Sprintf(`{meshAddress: %q}`, long):                  `spec.meshAddress "ä\nä\n`,
		fmt.Sprintf(`{ports: [{port: 1, protocol: %q}]}`, long): `spec.ports[0].protocol "ä\nä\n`,
		fmt.Sprintf(`{service: echo, ports: [{port: 80}],
			endpoints: [{portMappings: [{port: %q, targetPort: 80}]}]}`, long): `spec.endpoints[0].portMappings[0].port "ä\nä\n`,
	} {
		o := testObjects(t, testServices)
		m := o.addSpecs(t, spec)
		got := Build(o, testCluster()).Reports[keyOf(m)]
		if !strings.HasPrefix(got.Message, want) || len(got.Message) > 1024 || strings.Contains(got.Message, "\n") {
			t.Errorf("%.60s\ngot  %s: %s\nwant %s", spec, got.State, got.Message, want)
		}
	}
}

// manyServices are MeshServices for services with this many ready endpoints.
func manyServices(t testing.TB, services, endpoints int) *Objects {
	o := testObjects(t, "")
	var specs []string
	for i := range services {
		key := types.NamespacedName{Namespace: "ns", Name: fmt.Sprintf("svc%d", i)}
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: key.Name}}
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: "TCP"}}
		port, name := int32(8080), "http"
		slice := &discovery.EndpointSlice{
			AddressType: discovery.AddressTypeIPv4, Ports: []discovery.EndpointPort{{Name: &name, Port: &port}},
		}
		for j := range endpoints {
			a := netip.AddrFrom4([4]byte{100, 96 + byte(j>>8), byte(j), byte(i)})
			slice.Endpoints = append(slice.Endpoints, discovery.Endpoint{Addresses: []string{a.String()}})
		}
		o.Services[key], o.Slices[key] = s, []*discovery.EndpointSlice{slice}
		a := netip.AddrFrom4([4]byte{10, 200, 1 + byte(i>>8), byte(i)})
		specs = append(specs, fmt.Sprintf(`{service: %s, meshAddress: %s}`, key.Name, a))
	}
	o.addSpecs(t, specs...)
	return o
}

// wideCluster has a mesh with room for thousands of services.
func wideCluster() *Surroundings {
	around := testCluster()
	around.State.Meshes[0].Addresses = mesh.Prefixes{netip.MustParsePrefix("10.200.255.1/16")}
	around.State.Networks = nil
	for i := range 250 {
		around.State.Networks = append(around.State.Networks, mesh.LinkNetwork{
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, 254, byte(i)}), 32), Link: fmt.Sprintf("link%d", i),
		})
	}
	return around
}

// A service has no more endpoints than the kernel should get, and neither have all of them.
func TestTooManyEndpoints(t *testing.T) {
	o := manyServices(t, 250, 1000)
	r := Build(o, wideCluster())
	first := r.Reports[keyOf(&o.MeshServices[0])]
	if want := "service svc0 has 1000 ready endpoints: 256 of them are used"; first.Message != want || !first.Ready {
		t.Errorf("%+v", first)
	}
	last := r.Reports[keyOf(&o.MeshServices[249])]
	if last.State != v1alpha1.StateInvalid || !strings.HasPrefix(last.Message, "spec: the MeshServices of this cluster "+
		"have more than 100000 endpoints in sum") {
		t.Errorf("%+v", last)
	}
	if n := len(r.Services[0].Ports[0].Targets); n != MaxTargets {
		t.Errorf("%d endpoints", n)
	}
}

// Build changes nothing that it is given.
func TestPure(t *testing.T) {
	make := func() *Objects {
		o := testObjects(t, testServices)
		o.addSpecs(t, `{service: echo, ports: [{port: 80}]}`, `{service: headless, meshAddress: 192.168.0.100}`,
			`{meshAddress: 192.168.0.102, endpoints: [{address: 10.250.0.78}, {address: 10.250.0.77}]}`)
		return o
	}
	o, around := make(), testCluster()
	Build(o, around)
	if !reflect.DeepEqual(o, make()) || !reflect.DeepEqual(around, testCluster()) {
		t.Error("Build has changed its arguments")
	}
}

func BenchmarkBuild(b *testing.B) {
	o, around := manyServices(b, 1000, 3), wideCluster()
	b.ReportAllocs()
	for b.Loop() {
		if r := Build(o, around); len(r.Services) != 1000 {
			b.Fatal(len(r.Services))
		}
	}
}

// A peer, or its DNS, takes no address from a MeshService that was served before.
func TestPeerAtServedAddress(t *testing.T) {
	o := testObjects(t, testServices)
	m := o.addSpecs(t, "{service: echo, meshAddress: 203.0.113.2}")
	m.Generation, m.Status.State, m.Status.ObservedGeneration = 2, v1alpha1.StateOk, 1
	if r := Build(o, testCluster()).Reports[keyOf(m)]; r.State != v1alpha1.StateInvalid {
		t.Errorf("with another spec: %+v", r)
	}
	m.Status.ObservedGeneration = 2
	if r := Build(o, testCluster()).Reports[keyOf(m)]; r.State != v1alpha1.StateOk {
		t.Errorf("served before: %+v", r)
	}
}
