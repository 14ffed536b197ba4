package records

// Random objects. Each field takes one of a few values, so that objects often conflict with each other.

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// dice takes choices from the input of the fuzzer.
type dice struct{ data []byte }

// roll returns a number from 0 to n-1; 0 when the input has come to its end.
func (d *dice) roll(n int) int {
	if len(d.data) == 0 {
		return 0
	}
	v := int(d.data[0]) % n
	d.data = d.data[1:]
	return v
}

// pick returns one of the values; the first one is the most frequent.
func pick[T any](d *dice, values ...T) T { return values[max(0, d.roll(3*len(values))-2*len(values))] }

// some returns up to two of the values.
func some[T any](d *dice, values ...T) (list []T) {
	for range max(0, d.roll(6)-3) {
		list = append(list, values[d.roll(len(values))])
	}
	return list
}

func randomMeta(d *dice, name string, age int) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: pick(d, "ns", "other"), Name: name}
	m.CreationTimestamp = metav1.Unix(int64(1000+age-d.roll(2)), 0)
	if d.roll(12) == 1 {
		now := metav1.Unix(5000, 0)
		m.DeletionTimestamp = &now
	}
	return m
}

func randomZone(d *dice, n int) coredns.HostedZone {
	z := coredns.HostedZone{ObjectMeta: randomMeta(d, fmt.Sprint("z", n), n)}
	z.Spec.ParentRef = pick(d, "", "z0", "z1", "z2", "z9")
	domain := "svc.global.kubelink"
	if z.Spec.ParentRef != "" {
		domain = "b"
	}
	z.Spec.DomainNames = []coredns.DomainName{pick(d, coredns.DomainName("a."+domain), coredns.DomainName(domain),
		"example.com", "-", "a.b.")}
	z.Spec.DomainNames = append(z.Spec.DomainNames, some[coredns.DomainName](d, "c",
		"c.svc.global.kubelink", "svc.global.a.example.")...)
	z.Spec.EMail = pick(d, "", "host.master@example.com", "@")
	z.Spec.Refresh = pick[int32](d, 0, 7, -1)
	return z
}

func randomEntry(d *dice, n int) coredns.CoreDNSEntry {
	e := coredns.CoreDNSEntry{ObjectMeta: randomMeta(d, fmt.Sprint("e", n), 10+n)}
	s := &e.Spec
	s.ZoneRef = pick(d, "", "z0", "z1", "z2", "z9")
	names := []coredns.DNSName{
		"x.svc.global.kubelink", "y.x.svc.global.kubelink", "svc.global.kubelink", "*.svc.global.kubelink",
		"a.svc.global.kubelink", "x.a.svc.global.kubelink", "x.svc.global.a.example", "x.example.com", "-",
	}
	if s.ZoneRef != "" {
		names = []coredns.DNSName{"x", "@", "*", "y.x", "*.x", "x.a.svc.global.kubelink.", "ns.x"}
	}
	s.DNSNames = append(some(d, names...), names[d.roll(len(names))])
	s.A = some[coredns.IPv4Address](d, "10.0.0.1", "10.0.0.2", "10.0.0.3")
	s.AAAA = some[coredns.IPv6Address](d, "fd00::1", "fd00::2")
	s.TXT = some[coredns.Text](d, "hello", "world")
	if len(s.A)+len(s.AAAA)+len(s.TXT) == 0 {
		s.CNAME = pick(d, "", "x.svc.global.kubelink.", "y.x.svc.global.kubelink.", "a.svc.global.kubelink.", "10.0.0.1")
	}
	if s.CNAME == "" {
		s.NS = some[coredns.NameServer](d, "ns.example.com.", "y.x.svc.global.kubelink.", "x.svc.global.kubelink.", "ns")
	}
	if d.roll(4) == 1 {
		s.SRV = &coredns.Service{Service: pick(d, "ldap", "_"), Records: []coredns.SRVRecord{
			{Protocol: "TCP", Port: pick[int32](d, 389, 0), Host: pick(d, "x.example.", "x")}}}
	}
	e.Annotations = pick(d, nil, map[string]string{coredns.AnnotationFollowLinks: "false"},
		map[string]string{coredns.AnnotationOrder: "fixed"}, map[string]string{coredns.AnnotationOrder: "fix"})
	return e
}

// input is what Build takes.
type input struct {
	entries []coredns.CoreDNSEntry
	zones   []coredns.HostedZone
	served  []string
}

func randomInput(d *dice) input {
	in := input{served: pick(d, []string{served}, []string{served, "svc.global.a.example."}, nil)}
	for i := range d.roll(4) {
		in.zones = append(in.zones, randomZone(d, i))
	}
	for i := range 1 + d.roll(8) {
		in.entries = append(in.entries, randomEntry(d, i))
	}
	return in
}

func (in input) build() Result { return Build(in.entries, in.zones, in.served, home) }

func (in input) clone() input {
	c := input{served: slices.Clone(in.served)}
	for i := range in.entries {
		c.entries = append(c.entries, *in.entries[i].DeepCopy())
	}
	for i := range in.zones {
		c.zones = append(c.zones, *in.zones[i].DeepCopy())
	}
	return c
}

// FuzzBuild: whatever the objects are like, the names are in order.
func FuzzBuild(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		data := make([]byte, 40+random.IntN(200))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &dice{data}
		in := randomInput(d)
		before := in.clone()
		r := in.build()
		if !reflect.DeepEqual(in, before) {
			t.Error("Build has changed its input")
		}
		slices.Reverse(before.entries)
		slices.Reverse(before.zones)
		slices.Reverse(before.served)
		if again := before.build(); !reflect.DeepEqual(again, r) {
			t.Errorf("another order of the objects gives another result:\n%+v\n%+v", again, r)
		}
		checkReports(t, in, r)
		for _, z := range r.Zones {
			checkZone(t, z)
		}
		checkOlderWins(t, in, r)
	})
}

// checkReports: each object that stays has a report, and its names are served.
func checkReports(t *testing.T, in input, r Result) {
	names := map[string]bool{} // with records, and apexes
	for _, z := range r.Zones {
		for _, a := range z.Apexes {
			names[mesh.TrimDot(a.Name)] = true
		}
		for _, o := range z.Owners {
			names[mesh.TrimDot(o.Name)] = true
			if strings.HasPrefix(o.Name, "_") { // a service of the name
				names[mesh.TrimDot(parentName(parentName(o.Name)))] = true
			}
		}
	}
	check := func(key types.NamespacedName, gone bool, reports map[types.NamespacedName]Report) {
		report, known := reports[key]
		if known == gone {
			t.Errorf("%s: report %v, about to go %v", key, known, gone)
		}
		if !known {
			return
		}
		switch ok := report.State == coredns.StateOk; {
		case ok && (len(report.Names) == 0 || report.Foreign):
			t.Errorf("%s: %+v", key, report)
		case !ok && (report.Message == "" || report.State != coredns.StateInvalid && report.State != coredns.StateStale):
			t.Errorf("%s: %+v", key, report)
		case report.Foreign && len(report.Names) > 0:
			t.Errorf("%s is foreign, and has names: %+v", key, report)
		case strings.Contains(report.Message, "\n") || strings.Contains(report.Message, "%!"):
			t.Errorf("%s: message %q", key, report.Message)
		}
		for _, n := range report.Names {
			if !names[n] {
				t.Errorf("%s: %s is not served", key, n)
			}
		}
	}
	for i := range in.entries {
		o := &in.entries[i].ObjectMeta
		check(keyOf(o), o.DeletionTimestamp != nil, r.Entries)
	}
	for i := range in.zones {
		o := &in.zones[i].ObjectMeta
		check(keyOf(o), o.DeletionTimestamp != nil, r.HostedZones)
	}
}

// checkZone: an alias stands alone, and a delegation hides nothing but addresses of its name servers.
func checkZone(t *testing.T, z Zone) {
	isApex := map[string]bool{}
	for i, a := range z.Apexes {
		if i > 0 && z.Apexes[i-1].Name >= a.Name || !mesh.InDomain(a.Name, z.Name) {
			t.Errorf("apex %s in %s", a.Name, z.Name)
		}
		isApex[a.Name] = true
	}
	if !isApex[z.Name] {
		t.Errorf("%s has no apex", z.Name)
	}
	for i, o := range z.Owners {
		if i > 0 && z.Owners[i-1].Name >= o.Name || !mesh.InDomain(o.Name, z.Name) || !o.hasRecords() {
			t.Errorf("name %s in %s", o.Name, z.Name)
		}
		if o.CNAME != "" && (isApex[o.Name] || len(o.Addresses)+len(o.TXT)+len(o.NS)+len(o.SRV) > 0) {
			t.Errorf("the alias %s does not stand alone: %+v", o.Name, o)
		}
		if len(o.NS) == 0 || isApex[o.Name] {
			continue
		}
		for _, below := range z.Owners {
			if !mesh.InDomain(below.Name, o.Name) {
				continue
			}
			if !below.isGlue(o.NS) || below.Name != o.Name && len(below.NS) > 0 {
				t.Errorf("%+v is hidden by the delegation of %s", below, o.Name)
			}
		}
		for apex := range isApex {
			if mesh.InDomain(apex, o.Name) {
				t.Errorf("the zone %s is hidden by the delegation of %s", apex, o.Name)
			}
		}
	}
}

// checkOlderWins: the youngest entry takes no name from an older one.
func checkOlderWins(t *testing.T, in input, r Result) {
	youngest := slices.MaxFunc(in.entries, func(a, b coredns.CoreDNSEntry) int {
		return compareAge(&a.ObjectMeta, &b.ObjectMeta)
	})
	without := in.clone()
	without.entries = slices.DeleteFunc(without.entries, func(e coredns.CoreDNSEntry) bool {
		return keyOf(&e.ObjectMeta) == keyOf(&youngest.ObjectMeta)
	})
	for key, report := range without.build().Entries {
		if now := r.Entries[key]; !slices.Equal(now.Names, report.Names) {
			t.Errorf("%s: names are %q, and without the younger entry %s %q", key, now.Names, youngest.Name, report.Names)
		}
	}
}
