package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const globalZone = "svc.global.kubelink."

// newEntry returns a CoreDNSEntry in the namespace default.
func newEntry(name string, spec coredns.CoreDNSEntrySpec) *coredns.CoreDNSEntry {
	e := &coredns.CoreDNSEntry{Spec: spec}
	e.Name, e.Namespace = name, "default"
	return e
}

// newZone returns a HostedZone in the namespace default.
func newZone(name string, spec coredns.HostedZoneSpec) *coredns.HostedZone {
	z := &coredns.HostedZone{Spec: spec}
	z.Name, z.Namespace = name, "default"
	return z
}

// createForTest makes an object for the time of the test.
func createForTest(t *testing.T, ctx context.Context, b *fleet.Broker, o client.Object) {
	t.Helper()
	must(t, b.Client.Create(ctx, o))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		must(t, client.IgnoreNotFound(b.Client.Delete(ctx, o)))
	})
}

// waitForStatus waits for the status of an object.
func waitForStatus(
	t *testing.T, b *fleet.Broker, o client.Object, state coredns.State, message string, names ...string,
) {
	t.Helper()
	within(t, 2*time.Second, "status of "+o.GetName(), func(ctx context.Context) error {
		if err := b.Client.Get(ctx, client.ObjectKeyFromObject(o), o); err != nil {
			return err
		}
		var st coredns.Status
		switch o := o.(type) {
		case *coredns.CoreDNSEntry:
			st = o.Status
		case *coredns.HostedZone:
			st = o.Status
		}
		if st.State != state || !strings.Contains(st.Message, message) || st.ObservedGeneration != o.GetGeneration() ||
			!slices.Equal(st.EffectiveDomainNames, names) || len(st.Conditions) != 1 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}

// waitForRecords waits until a name below the global zone has these records, without owners and TTLs.
func waitForRecords(t *testing.T, b *fleet.Broker, name string, kind uint16, want ...string) time.Duration {
	t.Helper()
	return within(t, 2*time.Second, name+" to be "+strings.Join(want, ", "), func(ctx context.Context) error {
		m, reason, err := queryBroker(ctx, b, "udp", name+"."+globalZone, kind)
		if err != nil {
			return err
		}
		var got []string
		for _, rr := range m.Answer {
			got = append(got, strings.Join(strings.Fields(rr.String())[3:], " "))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) || m.Rcode != dns.RcodeSuccess {
			return fmt.Errorf("%s %q %s", dns.RcodeToString[m.Rcode], got, reason)
		}
		return nil
	})
}

// Global names follow their objects. The status of an object says which names are served and what is wrong.
func TestGlobalNames(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	b := brokers[0]
	root, err := testbed.Repository()
	must(t, err)
	examples, err := os.ReadFile(filepath.Join(root, "deploy", "examples", "global.yaml"))
	must(t, err)
	_, err = b.KubectlInput(ctx, string(examples), "apply", "-f", "-")
	must(t, err)
	t.Cleanup(func() {
		_, err := b.KubectlInput(context.Background(), string(examples), "delete", "-f", "-")
		must(t, err)
	})
	waitForRecords(t, b, "web", dns.TypeA, "A 100.64.0.20", "A 100.64.16.20")
	waitForRecords(t, b, "_ldap._tcp.directory", dns.TypeSRV, "SRV 10 50 389 web.svc.global.kubelink.")
	waitForStatus(t, b, newEntry("web", coredns.CoreDNSEntrySpec{}), "Ok", "", "web.svc.global.kubelink")
	home := newZone("global", coredns.HostedZoneSpec{})
	home.Namespace = fleet.Namespace
	waitForStatus(t, b, home, "Ok", "", "svc.global.kubelink")
	if m, _, err := queryBroker(ctx, b, "udp", globalZone, dns.TypeSOA); err != nil || len(m.Answer) != 1 ||
		m.Answer[0].(*dns.SOA).Mbox != "hostmaster.example.com." {
		t.Errorf("SOA %v %v", m, err)
	}

	// A pod asks its cluster's DNS. An alias leads to a service of another cluster.
	alias := newEntry("alias",
		coredns.CoreDNSEntrySpec{DNSNames: []coredns.DNSName{"alias.svc.global.kubelink"}, CNAME: serverName(1)})
	createForTest(t, ctx, b, alias)
	waitForRecords(t, b, "alias", dns.TypeA, "A "+servers[1].service.String(), "CNAME "+serverName(1))
	m, err := clients[0].Query(ctx, "alias."+globalZone, dns.TypeA)
	if err != nil || len(m.Answer) != 2 {
		t.Errorf("asked by a pod: %v %v", m, err)
	}

	// Answers show each change within a second.
	e := newEntry("changing", coredns.CoreDNSEntrySpec{
		DNSNames: []coredns.DNSName{"Changing.svc.global.kubelink"}, A: []coredns.IPv4Address{"10.99.0.1"}})
	createForTest(t, ctx, b, e)
	took := []time.Duration{waitForRecords(t, b, "changing", dns.TypeA, "A 10.99.0.1")}
	waitForStatus(t, b, e, "Ok", "", "changing.svc.global.kubelink")
	e.Spec.A = []coredns.IPv4Address{"10.99.0.2"}
	must(t, b.Client.Update(ctx, e))
	took = append(took, waitForRecords(t, b, "changing", dns.TypeA, "A 10.99.0.2"))
	waitForStatus(t, b, e, "Ok", "", "changing.svc.global.kubelink")
	must(t, b.Client.Delete(ctx, e))
	took = append(took, within(t, 2*time.Second, "name to go", func(ctx context.Context) error {
		m, _, err := queryBroker(ctx, b, "udp", "changing."+globalZone, dns.TypeA)
		if err == nil && m.Rcode != dns.RcodeNameError {
			err = errors.New(dns.RcodeToString[m.Rcode])
		}
		return err
	}))
	t.Logf("created, changed, deleted: answered after %v", took)
	if slices.Max(took) > time.Second {
		t.Errorf("answered after %v", took)
	}

	// The status says what is wrong or in the way, and changes when that is gone.
	orphan := newEntry("orphan", coredns.CoreDNSEntrySpec{
		ZoneRef: "late", DNSNames: []coredns.DNSName{"x", "@"}, A: []coredns.IPv4Address{"10.99.0.3"}})
	createForTest(t, ctx, b, orphan)
	waitForStatus(t, b, orphan, "Stale", `spec.zoneRef "late": there is no such HostedZone in namespace default`)
	late := newZone("late",
		coredns.HostedZoneSpec{DomainNames: []coredns.DomainName{"late.svc.global.kubelink", "later.svc.global.kubelink"}})
	createForTest(t, ctx, b, late)
	waitForStatus(t, b, late, "Ok", "", "late.svc.global.kubelink", "later.svc.global.kubelink")
	waitForStatus(t, b, orphan, "Ok", "", "x.late.svc.global.kubelink", "x.later.svc.global.kubelink",
		"late.svc.global.kubelink", "later.svc.global.kubelink")
	waitForRecords(t, b, "x.later", dns.TypeA, "A 10.99.0.3")
	second := newEntry("younger",
		coredns.CoreDNSEntrySpec{DNSNames: []coredns.DNSName{"web.svc.global.kubelink"}, CNAME: "www.example.com"})
	createForTest(t, ctx, b, second)
	waitForStatus(t, b, second, "Stale", "the older entry default/web has records of that name")
	foreign := newEntry("foreign",
		coredns.CoreDNSEntrySpec{DNSNames: []coredns.DNSName{"www.example.com"}, A: []coredns.IPv4Address{"10.99.0.4"}})
	createForTest(t, ctx, b, foreign)
	waitForStatus(t, b, foreign, "Stale", "write a name in svc.global.kubelink")

	// Another controller serves that name: its status stays.
	before := foreign.DeepCopy()
	foreign.Status.State, foreign.Status.Message = "Ok", ""
	must(t, b.Client.Status().Patch(ctx, foreign, client.MergeFrom(before)))
	createForTest(t, ctx, b, newEntry("last", coredns.CoreDNSEntrySpec{
		DNSNames: []coredns.DNSName{"last.svc.global.kubelink"}, TXT: []coredns.Text{"x"}}))
	waitForRecords(t, b, "last", dns.TypeTXT, `TXT "x"`)
	must(t, b.Client.Get(ctx, client.ObjectKeyFromObject(foreign), foreign))
	if foreign.Status.State != "Ok" {
		t.Errorf("status %+v", foreign.Status)
	}
}

// A name belongs to the namespace that had it first, and the zone itself to kubelink's namespace.
func TestGlobalNamesHaveOwners(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	db := newEntry("db", coredns.CoreDNSEntrySpec{
		DNSNames: []coredns.DNSName{"db.svc.global.kubelink"}, A: []coredns.IPv4Address{"100.64.0.20"}})
	shop := newZone("shop", coredns.HostedZoneSpec{DomainNames: []coredns.DomainName{"shop.svc.global.kubelink"}})
	createForTest(t, ctx, b, db)
	createForTest(t, ctx, b, shop)
	waitForStatus(t, b, db, "Ok", "", "db.svc.global.kubelink")
	waitForStatus(t, b, shop, "Ok", "", "shop.svc.global.kubelink")
	for name, c := range map[string]struct{ dnsName, message string }{
		"adds":   {"db.svc.global.kubelink", "db.svc.global.kubelink belongs to default/db"},
		"inside": {"x.shop.svc.global.kubelink", "x.shop.svc.global.kubelink belongs to default/shop"},
		"wild":   {"*.svc.global.kubelink", "*.svc.global.kubelink is for namespace kubelink"},
		"apex":   {"svc.global.kubelink", "svc.global.kubelink is for namespace kubelink"},
	} {
		e := newEntry(name, coredns.CoreDNSEntrySpec{
			DNSNames: []coredns.DNSName{coredns.DNSName(c.dnsName)}, A: []coredns.IPv4Address{"6.6.6.6"}})
		e.Namespace = "kube-public"
		createForTest(t, ctx, b, e)
		waitForStatus(t, b, e, "Stale", c.message)
	}
	evil := newZone("evil", coredns.HostedZoneSpec{
		DomainNames: []coredns.DomainName{"svc.global.kubelink"}, EMail: "a@evil.example"})
	evil.Namespace = "kube-public"
	createForTest(t, ctx, b, evil)
	waitForStatus(t, b, evil, "Stale", "svc.global.kubelink is for namespace kubelink")
	waitForRecords(t, b, "db", dns.TypeA, "A 100.64.0.20")
	m, _, err := queryBroker(ctx, b, "udp", globalZone, dns.TypeSOA)
	must(t, err)
	if len(m.Answer) != 1 || m.Answer[0].(*dns.SOA).Mbox != "hostmaster.kubelink." {
		t.Errorf("%v", m)
	}

	// With global-namespaces, other namespaces have none; and what may have names may have all of them.
	text := b.Corefile()
	t.Cleanup(func() { must(t, b.SetCorefile(text)); must(t, b.Reload(context.Background())) })
	must(t, b.SetCorefile(strings.Replace(text, "dns-propagation", "global-namespaces kube-public\n dns-propagation", 1)))
	must(t, b.Reload(ctx))
	waitForStatus(t, b, db, "Stale", "namespace default may have no global names: add it to global-namespaces")
	waitForStatus(t, b, evil, "Ok", "", "svc.global.kubelink")
	waitForRecords(t, b, "db", dns.TypeA, "A 6.6.6.6")
}

// A global zone can be transferred to the servers that the Corefile allows.
func TestGlobalTransfer(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	createForTest(t, ctx, b, newEntry("xfr", coredns.CoreDNSEntrySpec{
		DNSNames: []coredns.DNSName{"xfr.svc.global.kubelink"}, A: []coredns.IPv4Address{"10.99.0.1", "10.99.0.2"}}))
	waitForRecords(t, b, "xfr", dns.TypeA, "A 10.99.0.1", "A 10.99.0.2")
	transfer := func(m *dns.Msg) (rrs []dns.RR, err error) {
		conn, err := b.Host.DialContext(ctx, "tcp", b.DNS().String())
		if err != nil {
			return nil, err
		}
		in, err := (&dns.Transfer{Conn: &dns.Conn{Conn: conn}}).In(m, "")
		if err != nil {
			return nil, err
		}
		for e := range in {
			if e.Error != nil {
				return nil, e.Error
			}
			rrs = append(rrs, e.RR...)
		}
		return rrs, nil
	}
	axfr := new(dns.Msg).SetAxfr(globalZone)
	if rrs, err := transfer(axfr); err == nil {
		t.Errorf("transferred without permission: %v", rrs)
	}
	editCorefile(t, ctx, b, "    errors\n", "    errors\n    transfer svc.global.kubelink {\n        to *\n    }\n")
	rrs, err := transfer(axfr)
	if err != nil || len(rrs) != 5 { // SOA, NS, two addresses, SOA
		t.Fatalf("%v %v", rrs, err)
	}
	serial := rrs[0].(*dns.SOA).Serial
	if rrs, err := transfer(new(dns.Msg).SetIxfr(globalZone, serial, "ns.", "x.")); err != nil || len(rrs) != 1 {
		t.Errorf("unchanged: %v %v", rrs, err)
	}
	createForTest(t, ctx, b, newEntry("xfr2", coredns.CoreDNSEntrySpec{
		DNSNames: []coredns.DNSName{"xfr2.svc.global.kubelink"}, TXT: []coredns.Text{"x"}}))
	waitForRecords(t, b, "xfr2", dns.TypeTXT, `TXT "x"`)
	// two changes within a second have the same serial at first
	within(t, 5*time.Second, "the next serial", func(context.Context) error {
		rrs, err := transfer(new(dns.Msg).SetIxfr(globalZone, serial, "ns.", "x."))
		if err == nil && len(rrs) != 6 {
			err = fmt.Errorf("changed: %v", rrs)
		}
		return err
	})
}

// The API server rejects what can never work, and says what would be right.
func TestGlobalValidation(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	names := []coredns.DNSName{"x.svc.global.kubelink"}
	a := []coredns.IPv4Address{"10.0.0.1"}
	service := func(record coredns.SRVRecord) *coredns.Service {
		return &coredns.Service{Service: "ldap", Records: []coredns.SRVRecord{record}}
	}
	good := coredns.SRVRecord{Protocol: "TCP", Port: 389, Host: "a.example"}
	minute := int32(60)
	for _, c := range []struct {
		object client.Object
		says   string // empty: it is accepted
	}{
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names, A: a, AAAA: []coredns.IPv6Address{"fd00::1"},
			TXT: []coredns.Text{"x"}, SRV: service(good)}), ""},
		{newEntry("x", coredns.CoreDNSEntrySpec{ZoneRef: "z", DNSNames: []coredns.DNSName{"@", "*", "*.x", "_x.y", "Z."},
			A: a}), ""},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names, NS: []coredns.NameServer{"ns.example.com."}}), ""},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names, CNAME: "a.example", SRV: service(good)}), ""},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names}), "the entry has no record"},
		{newEntry("x", coredns.CoreDNSEntrySpec{A: a}), "spec.dnsNames"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: []coredns.DNSName{"a..b"}, A: a}),
			"entries of spec.dnsNames must be DNS names"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: []coredns.DNSName{"a.*.b"}, A: a}), "whose first label may be *"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: []coredns.DNSName{"@"}, A: a}), "set spec.zoneRef"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names, A: []coredns.IPv4Address{"10.0.0"}}),
			"entries of spec.A must be IPv4 addresses"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names, A: []coredns.IPv4Address{"fd00::1"}}),
			"entries of spec.A must be IPv4 addresses"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names, AAAA: []coredns.IPv6Address{"10.0.0.1"}}),
			"an IPv4 address belongs into A"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names, AAAA: []coredns.IPv6Address{"::ffff:10.0.0.1"}}),
			"entries of spec.AAAA must be IPv6 addresses"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names, A: a, CNAME: "a.example"}),
			"spec.CNAME cannot stand beside A, AAAA, TXT or NS"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names, CNAME: "10.0.0.1"}), "an address belongs into A or AAAA"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: []coredns.DNSName{"*.svc.global.kubelink"},
			NS: []coredns.NameServer{"a.example"}}), "spec.NS cannot stand at a wildcard"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: []coredns.DNSName{"*.svc.global.kubelink"}, SRV: service(good)}),
			"spec.SRV cannot stand at a wildcard"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names, NS: []coredns.NameServer{"10.0.0.1"}}),
			"entries of spec.NS must be DNS names"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names,
			TXT: []coredns.Text{coredns.Text(strings.Repeat("x", 4097))}}), "spec.TXT"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names,
			SRV: service(coredns.SRVRecord{Protocol: "TCP", Port: 0, Host: "a"})}), "spec.SRV.records[0].port"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names,
			SRV: service(coredns.SRVRecord{Protocol: "T P", Port: 1, Host: "a"})}),
			"spec.SRV.records.protocol must be the name"},
		{newEntry("x", coredns.CoreDNSEntrySpec{DNSNames: names,
			SRV: service(coredns.SRVRecord{Protocol: "TCP", Port: 1, Host: "fd00::1"})}),
			"spec.SRV.records.host must be a DNS name"},
		{newZone("z", coredns.HostedZoneSpec{DomainNames: []coredns.DomainName{"svc.global.kubelink."},
			EMail: "a.b@example.com", MinimumTTL: &minute}), ""},
		{newZone("z", coredns.HostedZoneSpec{ParentRef: "z", DomainNames: []coredns.DomainName{"x"}}),
			"spec.parentRef names this zone itself"},
		{newZone("z", coredns.HostedZoneSpec{DomainNames: []coredns.DomainName{"*.x"}}),
			"entries of spec.domainNames must be DNS domain names"},
		{newZone("z", coredns.HostedZoneSpec{DomainNames: []coredns.DomainName{}}), "spec.domainNames"},
		{newZone("z", coredns.HostedZoneSpec{DomainNames: []coredns.DomainName{"x"}, EMail: "a"}),
			"spec.email must be a mail address"},
		{newZone("z", coredns.HostedZoneSpec{DomainNames: []coredns.DomainName{"x"}, Retry: -1}), "spec.retry"},
	} {
		err := b.Client.Create(ctx, c.object, client.DryRunAll)
		if c.says == "" && err != nil ||
			c.says != "" && (!apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%+v: %v, want %q", c.object, err, c.says)
		}
	}
}

// A broker that may not read the objects serves everything else, and says what is missing.
func TestGlobalWithoutPermission(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	b := brokers[0]
	var role rbacv1.ClusterRole
	must(t, b.Client.Get(ctx, client.ObjectKey{Name: "kubelink"}, &role))
	whole := role.DeepCopy()
	role.Rules = slices.DeleteFunc(role.Rules,
		func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, "corednsentries") })
	must(t, b.Client.Update(ctx, &role))
	restart := func() {
		t.Helper()
		must(t, b.Kill(ctx, syscall.SIGTERM))
		must(t, b.Start(ctx))
	}
	t.Cleanup(func() { restoreMesh(t) })
	restart()
	within(t, 5*time.Second, "reason", func(ctx context.Context) error {
		return checkFailure(ctx, b, "web."+globalZone, "the names of svc.global.kubelink are not known",
			"corednsentries.coredns.mandelsoft.org is forbidden")
	})
	within(t, 5*time.Second, "names of the second cluster",
		func(ctx context.Context) error { return checkAnswer(ctx, b, serverName(1), servers[1].service) })

	role.Rules = whole.Rules
	must(t, b.Client.Update(ctx, &role))
	createForTest(t, ctx, b, newEntry("allowed", coredns.CoreDNSEntrySpec{
		DNSNames: []coredns.DNSName{"allowed.svc.global.kubelink"}, A: []coredns.IPv4Address{"10.99.0.1"}}))
	within(t, time.Minute, "names", func(ctx context.Context) error {
		return checkAnswer(ctx, b, "allowed."+globalZone, netip.MustParseAddr("10.99.0.1"))
	})
}
