package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// Only a status that differs is written, and none of an object that is somebody else's.
func TestDiffering(t *testing.T) {
	key := types.NamespacedName{Namespace: "ns", Name: "x"}
	ok := records.Report{State: "Ok", Names: []string{"x.svc.global.kubelink"}}
	foreign := records.Report{State: "Stale", Message: "elsewhere", Foreign: true}
	written := func(r records.Report, generation int64) coredns.Status {
		c := conditionOf(r)
		return coredns.Status{State: r.State, Message: r.Message, RootZone: r.RootZone, EffectiveDomainNames: r.Names, ObservedGeneration: generation, Conditions: []metav1.Condition{c}}
	}
	for _, c := range []struct {
		name        string
		status      coredns.Status
		now, before records.Report
		write       bool
	}{
		{"new", coredns.Status{}, ok, records.Report{}, true},
		{"the same", written(ok, 2), ok, ok, false},
		{"older generation", written(ok, 1), ok, ok, true},
		{"of the former system", coredns.Status{State: "Ok", ObservedGeneration: 2, EffectiveDomainNames: ok.Names}, ok, records.Report{}, true},
		{"another message", written(records.Report{State: "Ok", Message: "note", Names: ok.Names}, 2), ok, ok, true},
		{"other names", written(records.Report{State: "Ok"}, 2), ok, ok, true},
		{"another zone", written(records.Report{State: "Ok", Names: ok.Names, RootZone: "z"}, 2), ok, ok, true},
		{"foreign, new", coredns.Status{}, foreign, records.Report{}, true},
		{"foreign, the same", written(foreign, 2), foreign, foreign, false},
		{"foreign, somebody else says Ok", coredns.Status{State: "Ok"}, foreign, records.Report{}, false},
		{"foreign, somebody else said Ok over ours", coredns.Status{State: "Ok"}, foreign, foreign, false},
		{"foreign, ours so far", written(ok, 2), foreign, ok, true},
	} {
		entry := coredns.CoreDNSEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x", Generation: 2}, Status: c.status}
		before := map[types.NamespacedName]records.Report{}
		if c.before.State != "" {
			before[key] = c.before
		}
		now := map[types.NamespacedName]records.Report{key: c.now}
		got := differing([]coredns.CoreDNSEntry{entry}, nil, &records.Result{Entries: now}, &records.Result{Entries: before})
		if (len(got) == 1) != c.write {
			t.Errorf("%s: %+v", c.name, got)
		}
		hosted := coredns.HostedZone{ObjectMeta: entry.ObjectMeta, Status: c.status}
		got = differing(nil, []coredns.HostedZone{hosted}, &records.Result{HostedZones: now}, &records.Result{HostedZones: before})
		if (len(got) == 1) != c.write {
			t.Errorf("%s: zone: %+v", c.name, got)
		}
	}
	entry := coredns.CoreDNSEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "gone"}}
	if got := differing([]coredns.CoreDNSEntry{entry}, nil, &records.Result{}, &records.Result{}); len(got) != 0 {
		t.Errorf("without report: %+v", got)
	}
}

// takesStatus is an API that only takes statuses and tells which came.
type takesStatus struct {
	client.Client
	status statuses
}

type statuses struct {
	client.SubResourceWriter
	names []string
	last  string // patch
	then  func(name string) error
}

func (a *takesStatus) Status() client.SubResourceWriter { return &a.status }

func (w *statuses) Patch(_ context.Context, o client.Object, patch client.Patch, _ ...client.SubResourcePatchOption) error {
	data, err := patch.Data(o)
	if w.last = string(data); err != nil {
		return err
	}
	w.names = append(w.names, o.GetName())
	return w.then(o.GetName())
}

func testWriter(api client.Client) *writer {
	return &writer{
		b: &Broker{log: slog.New(slog.DiscardHandler)}, client: api, recorder: &events.FakeRecorder{},
		signal: make(chan struct{}, 1), writes: map[types.UID]*statusWrites{},
	}
}

// However many names there are, the status of a link is the next to be written; and what could not be
// written is tried again, unless it will never work.
func TestReportsWaitForLinks(t *testing.T) {
	entries := make([]coredns.CoreDNSEntry, 4)
	now := map[types.NamespacedName]records.Report{}
	for i := range entries {
		entries[i].Name = string(rune('a' + i))
		now[types.NamespacedName{Name: entries[i].Name}] = records.Report{State: "Ok"}
	}
	reports := differing(entries, nil, &records.Result{Entries: now}, &records.Result{})
	kind := schema.GroupResource{Resource: "corednsentries"}
	api := &takesStatus{}
	w := testWriter(api)
	link := &outcome{links: []linkOutcome{{object: &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: "link", ResourceVersion: "7"}}, state: v1alpha1.StateUp}}}
	for _, c := range []struct {
		name string
		then func(name string) error
		want string // after two rounds
	}{
		{"all is well", func(string) error { return nil }, "a b c d"},
		{"a link changes meanwhile", func(name string) error {
			if name == "b" {
				w.want(link)
			}
			return nil
		}, "a b link c d"},
		{"nobody answers", func(string) error { return errors.New("connection refused") }, "a a"},
		{"one is gone, one has changed", func(name string) error {
			switch name {
			case "a":
				return apierrors.NewNotFound(kind, name)
			case "b":
				return apierrors.NewConflict(kind, name, nil)
			}
			return nil
		}, "a b c d"},
		{"forbidden", func(name string) error { return apierrors.NewForbidden(kind, name, nil) }, "a"},
	} {
		api.status.names, api.status.then = nil, c.then
		w.wantReports(reports)
		for range 2 {
			w.writeAll(t.Context())
		}
		if got := strings.Join(api.status.names, " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// Serials follow the clock, and go on without it only when it was put back by more than a moment.
func TestNextSerial(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, c := range []struct{ highest, want uint32 }{
		{0, 1_800_000_000}, {1_799_999_999, 1_800_000_000}, {1_800_000_000, 1_800_000_000}, {1_800_000_060, 1_800_000_000}, {1_800_000_061, 1_800_000_062},
	} {
		if serial := nextSerial(c.highest, now); serial != c.want {
			t.Errorf("%d: %d", c.highest, serial)
		}
	}
}

// lists is an API that only lists entries.
type lists struct {
	client.Client
	entries []coredns.CoreDNSEntry
}

func (a *lists) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if l, ok := list.(*coredns.CoreDNSEntryList); ok {
		l.Items = a.entries
	}
	return nil
}

// Two changes within a second have one serial at first. The next one comes by itself: nothing else needs to happen.
func TestSerialIsDue(t *testing.T) {
	const name = "svc.global.kubelink."
	woken := make(chan event.GenericEvent, 1)
	api := &lists{}
	w := testWriter(api)
	w.b.events.Store(&woken)
	watch := newGlobalWatch(w.b)
	watch.synced.Store(true)
	r := &reconciler{b: w.b, client: api, writer: w, watch: watch}
	build := func() (serial uint32) {
		if err := r.globals(t.Context(), []mesh.Zone{{Domain: "kubelink.", Global: mesh.GlobalZone{Name: name}}}); err != nil {
			t.Fatal(err)
		}
		rrs, _ := w.b.globals.zones[name].Transfer(name, 0)
		return rrs[0].(*dns.SOA).Serial
	}
	serial := build()
	for i := 0; !w.b.globals.early; i++ { // until two are in one second
		api.entries = []coredns.CoreDNSEntry{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x"},
			Spec:       coredns.CoreDNSEntrySpec{DNSNames: []coredns.DNSName{"x." + name}, TXT: []coredns.Text{coredns.Text(fmt.Sprint(i))}},
		}}
		watch.changed()
		<-woken
		w.b.globals.took = 0 // no pause, the end of which would be another reason to build
		serial = build()
	}
	timeout := time.After(5 * time.Second)
	for next := serial; next == serial; next = build() {
		select {
		case <-woken:
		case <-timeout:
			t.Fatalf("the serial stays %d", serial)
		}
	}
	if w.b.globals.early {
		t.Error("one more is due")
	}
}

// Whoever writes other statuses than we do cannot make us write without end, and other links and names do not wait; what
// failed was no write.
func TestStatusLimit(t *testing.T) {
	link := func(name, message string) linkOutcome {
		return linkOutcome{object: &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), ResourceVersion: "7"}}, state: v1alpha1.StateUp, message: message}
	}
	entry := coredns.CoreDNSEntry{ObjectMeta: metav1.ObjectMeta{Name: "entry"}}
	api := &takesStatus{}
	w := testWriter(api)
	var logged bytes.Buffer
	w.b.log = slog.New(slog.NewTextHandler(&logged, nil))
	var err error
	write := func(n int, result error, links ...linkOutcome) string {
		api.status.names, api.status.then = nil, func(string) error { return result }
		for range n {
			w.pending = nil
			w.want(&outcome{links: links})
			err = w.writeAll(t.Context())
		}
		return strings.Join(api.status.names, " ")
	}
	failures := 2 * statusBurst
	if got := write(failures, errors.New("connection refused"), link("one", "")); strings.Count(got, "one") != failures {
		t.Errorf("of %d tries: %s", failures, got)
	}
	if got := write(statusBurst, nil, link("one", "")); strings.Count(got, "one") != statusBurst || err != nil {
		t.Errorf("%v: %s", err, got)
	}
	if !strings.Contains(api.status.last, `"resourceVersion":"7"`) {
		t.Errorf("an older state of the object is no obstacle: %s", api.status.last)
	}
	w.wantReports([]reportOutcome{{&entry, records.Report{State: "Ok"}}})
	got := write(1, nil, link("one", ""), link("two", ""))
	if got != "two entry" || err != nil || w.rest <= 0 || w.rest > statusInterval {
		t.Errorf("%v: %s; looked at again in %v", err, got, w.rest)
	}
	if write(3, nil, link("one", "")); strings.Count(logged.String(), "changes too often") != 1 || !strings.Contains(logged.String(), "link=one") {
		t.Errorf("logged %s", &logged)
	}
	// A link of that name that is made anew is another one, and the old one is forgotten.
	anew := link("one", "")
	anew.object.UID = "anew"
	if got := write(1, nil, anew); got != "one" || err != nil || len(w.writes) > 2 {
		t.Errorf("%v: %s; %d limits", err, got, len(w.writes))
	}
	if write(1, nil, anew); len(w.writes) != 1 || w.rest != 0 {
		t.Errorf("%d limits; looked at again in %v", len(w.writes), w.rest)
	}
	// It is written when the time has come, and what was held back is looked at then.
	written := make(chan struct{})
	api.status.names, api.status.then = nil, func(string) error { close(written); return nil }
	tokens := rate.NewLimiter(rate.Every(50*time.Millisecond), 1)
	tokens.Allow()
	w.writes["anew"] = &statusWrites{Limiter: tokens, told: true}
	woken := make(chan event.GenericEvent, 1)
	w.b.events.Store(&woken)
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.Start(ctx) }()
	want := func() { w.want(&outcome{links: []linkOutcome{anew}}) }
	want()
	<-woken
	want()
	for done := false; !done; {
		select {
		case <-woken: // rounded down
			want()
		case <-written:
			done = true
		}
	}
	end()
	<-ended
	if strings.Join(api.status.names, " ") != "one" {
		t.Errorf("written %q", api.status.names)
	}
}

// A status of ours is no change of names; what the user does is.
func TestGlobalWatchUpdates(t *testing.T) {
	w := &globalWatch{wake: func() {}}
	entry := func(change func(*coredns.CoreDNSEntry)) *coredns.CoreDNSEntry {
		e := &coredns.CoreDNSEntry{ObjectMeta: metav1.ObjectMeta{UID: "1", Generation: 1, Annotations: map[string]string{"a": "b"}}}
		change(e)
		return e
	}
	for _, c := range []struct {
		name   string
		change func(*coredns.CoreDNSEntry)
		counts bool
	}{
		{"status", func(e *coredns.CoreDNSEntry) { e.Status.State = "Ok"; e.ResourceVersion = "7" }, false},
		{"labels", func(e *coredns.CoreDNSEntry) { e.Labels = map[string]string{"a": "b"} }, false},
		{"spec", func(e *coredns.CoreDNSEntry) { e.Generation = 2 }, true},
		{"annotations", func(e *coredns.CoreDNSEntry) { e.Annotations = nil }, true},
		{"another object", func(e *coredns.CoreDNSEntry) { e.UID = "2" }, true},
	} {
		before := w.version.Load()
		w.OnUpdate(entry(func(*coredns.CoreDNSEntry) {}), entry(c.change))
		if (w.version.Load() != before) != c.counts {
			t.Errorf("%s", c.name)
		}
	}
}

// What is not known is said to be so, and what was known stays.
func TestGlobalsUnknown(t *testing.T) {
	const name = "svc.global.kubelink."
	g := &globals{}
	if err := g.unknown([]string{name}, nil); err == nil || len(g.zones) != 0 {
		t.Errorf("%v %v", err, g.zones)
	}
	forbidden := context.Canceled
	if err := g.unknown([]string{name}, &forbidden); err != nil || g.zones[name].Missing() != "the names of svc.global.kubelink are not known: context canceled" {
		t.Errorf("%v %v", err, g.zones)
	}
	before := g.zones[name]
	if err := g.unknown([]string{name}, &forbidden); err != nil || g.zones[name] != before {
		t.Errorf("another one for the same reason: %v", err)
	}
	known := zone.NewGlobal("kubelink.", records.Build(nil, nil, []string{name}).Zones[0], 1, nil, nil)
	g.zones = map[string]*zone.Global{name: known}
	if err := g.unknown([]string{name, "svc.global.other."}, nil); err == nil || len(g.zones) != 1 || g.zones[name] != known {
		t.Errorf("%v %v", err, g.zones)
	}
}

// fuzzObjects reads an object a line, in a form in which most texts mean something: the name, that of
// a HostedZone with a leading !, and words for the fields, each after a letter.
func fuzzObjects(text string) (entries []coredns.CoreDNSEntry, zones []coredns.HostedZone) {
	lines := strings.Split(text, "\n")
	for i, line := range lines[:min(len(lines), 30)] {
		name, rest, _ := strings.Cut(line, " ")
		var e coredns.CoreDNSEntry
		var z coredns.HostedZone
		for _, word := range strings.Split(rest, " ") {
			if word == "" {
				continue
			}
			switch v := word[1:]; word[0] {
			case '^':
				e.Spec.ZoneRef, z.Spec.ParentRef = v, v
			case 'n':
				e.Spec.DNSNames, z.Spec.DomainNames = append(e.Spec.DNSNames, coredns.DNSName(v)), append(z.Spec.DomainNames, coredns.DomainName(v))
			case '4':
				e.Spec.A = append(e.Spec.A, coredns.IPv4Address(v))
			case '6':
				e.Spec.AAAA = append(e.Spec.AAAA, coredns.IPv6Address(v))
			case 't':
				e.Spec.TXT = append(e.Spec.TXT, coredns.Text(v))
			case 'c':
				e.Spec.CNAME = v
			case 'd':
				e.Spec.NS = append(e.Spec.NS, coredns.NameServer(v))
			case 's':
				service, host, _ := strings.Cut(v, "/")
				if e.Spec.SRV == nil {
					e.Spec.SRV = &coredns.Service{Service: service}
				}
				e.Spec.SRV.Records = append(e.Spec.SRV.Records, coredns.SRVRecord{Protocol: "TCP", Port: int32(len(v)), Host: host})
			case 'm':
				z.Spec.EMail, z.Spec.Refresh = v, int32(len(v))
			case 'o':
				e.Annotations = map[string]string{coredns.AnnotationOrder: v, coredns.AnnotationFollowLinks: v}
			}
		}
		name, hosted := strings.CutPrefix(name, "!")
		meta := metav1.ObjectMeta{Namespace: "ns", Name: name, CreationTimestamp: metav1.Unix(int64(i/2), 0), Annotations: e.Annotations}
		if hosted {
			z.ObjectMeta = meta
			zones = append(zones, z)
		} else {
			e.ObjectMeta = meta
			entries = append(entries, e)
		}
	}
	return entries, zones
}

// FuzzGlobal leads objects all the way to answers: nothing panics, every answer can be sent, equal
// objects make equal names, and what an object is said to serve is there.
func FuzzGlobal(f *testing.F) {
	for _, seed := range []string{
		"a na.svc.global.kubelink n*.svc.global.kubelink 410.1.0.1 410.2.0.3 6fd00::1 tt ofixed\nb nb.svc.global.kubelink ca.svc.global.kubelink",
		"!r nsvc.global.kubelink nsvc.global.other.example ma.b@c\n!t ^r nt nu.t\na ^t n@ nx n* 410.2.0.3\ns ^r ns sl/x.t sl/s sl/a.example.\nx ^r nt dn.t.",
		"a nd.svc.global.kubelink dn.d.svc.global.kubelink dx.example\nb nn.d.svc.global.kubelink 410.2.0.3\nc nc.svc.global.kubelink cx.d.svc.global.kubelink\nl n*.l.svc.global.kubelink cx.l.svc.global.kubelink",
		"!a ^b na\n!b ^a nb\n!c nsvc.global.kubelink.\ne ^c nx.svc.global.kubelink. nx cx\ne2 ^c ny tback\\\\slash " + strings.Repeat("t", 300),
	} {
		f.Add(seed, "X.y.a.svc.global.kubelink.", dns.TypeA)
	}
	f.Fuzz(func(t *testing.T, text, name string, qtype uint16) {
		entries, zones := fuzzObjects(text)
		const top = "svc.global.kubelink."
		served := []string{top, "svc.global.other.example."}
		g := records.Build(entries, zones, served)
		slices.Reverse(entries)
		slices.Reverse(zones)
		// The API server sees to it that names are unique.
		if len(g.Entries) == len(entries) && len(g.HostedZones) == len(zones) && !reflect.DeepEqual(records.Build(entries, zones, served), g) {
			t.Error("another order of the objects makes other names")
		}
		globals := map[string]*zone.Global{}
		newGlobal := func(z records.Zone, serial uint32) *zone.Global {
			return zone.NewGlobal(strings.TrimPrefix(z.Name, "svc.global."), z, serial, []netip.Addr{netip.MustParseAddr("10.0.0.11")}, globals[z.Name])
		}
		for _, z := range g.Zones {
			globals[z.Name] = newGlobal(z, 1)
		}
		table := zone.New(nil, []mesh.Zone{
			{Domain: "kubelink.", Global: mesh.GlobalZone{Name: served[0]}}, {Domain: "other.example.", Global: mesh.GlobalZone{Name: served[1]}},
		}, func(link string) zone.Status { return zone.Status{Usable: link == "up", State: "Down", RTT: 1} }, zone.Options{
			Globals: globals, Networks: []zone.Network{
				{Prefix: netip.MustParsePrefix("10.1.0.0/16"), Link: "down"}, {Prefix: netip.MustParsePrefix("10.2.0.0/16"), Link: "up"},
				{Prefix: netip.MustParsePrefix("128.0.0.0/1"), Link: "down"}, {Prefix: netip.MustParsePrefix("f000::/4"), Link: "up"},
			},
		})

		ask := func(name string, qtype uint16) *dns.Msg {
			req := new(dns.Msg).SetQuestion(name, qtype)
			req.SetEdns0(1232, true)
			wire, err := req.Pack()
			if err != nil || req.Unpack(wire) != nil {
				return nil // no question of DNS
			}
			for _, tcp := range []bool{true, false} {
				state := request.Request{W: &test.ResponseWriter{TCP: tcp}, Req: req}
				match, ok := table.Match(state.Name())
				if !ok {
					return nil
				}
				reply, _ := match.Answer(context.Background(), &state)
				if tcp && len(reply.Answer) > 0 && reply.Answer[0].Header().Name != req.Question[0].Name {
					t.Errorf("%s %d: %v", name, qtype, reply)
				}
				state.SizeAndDo(reply)
				state.Scrub(reply)
				if wire, err = reply.Pack(); err != nil || len(wire) > state.Size() {
					t.Fatalf("%s %d: %d octets, %v", name, qtype, len(wire), err)
				}
			}
			reply := new(dns.Msg)
			if err := reply.Unpack(wire); err != nil {
				t.Fatalf("%s %d: %v", name, qtype, err)
			}
			return reply
		}
		ask(name, qtype)
		for _, z := range g.Zones {
			for _, owner := range z.Owners {
				for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeCNAME, dns.TypeSRV, dns.TypeNS, dns.TypeSOA, dns.TypeDS, dns.TypeANY, qtype} {
					if m := ask(owner.Name, qtype); m == nil || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeServerFailure && owner.CNAME == "" {
						t.Errorf("%s %d: %v", owner.Name, qtype, m)
					}
				}
				ask(name+owner.Name, qtype)
			}
			for _, apex := range z.Apexes {
				rrs, ok := table.Transfer(apex.Name, 0)
				if !ok || len(rrs) < 3 {
					t.Errorf("transfer of %s: %v", apex.Name, rrs)
				}
				for _, rr := range rrs {
					if _, err := dns.PackRR(rr, make([]byte, dns.MaxMsgSize), 0, nil, false); err != nil {
						t.Errorf("%v: %v", rr, err)
					}
				}
			}
		}
		// The serial of a zone changes with what is transferred of it, and with nothing else.
		for _, z := range records.Build(entries[len(entries)/2:], zones, served).Zones {
			now := newGlobal(z, 2)
			for _, apex := range z.Apexes {
				rrs, _ := now.Transfer(apex.Name, 0)
				before, _ := globals[z.Name].Transfer(apex.Name, 0)
				serial := rrs[0].(*dns.SOA).Serial
				same := slices.EqualFunc(rrs, before, func(a, b dns.RR) bool {
					a, b = dns.Copy(a), dns.Copy(b)
					for _, rr := range []dns.RR{a, b} {
						if soa, ok := rr.(*dns.SOA); ok {
							soa.Serial = 0
						}
					}
					return a.Header().Ttl == b.Header().Ttl && dns.IsDuplicate(a, b)
				})
				if same != (serial == 1) {
					t.Errorf("serial %d of %s:\n%v\nbefore\n%v", serial, apex.Name, rrs, before)
				}
			}
		}
		for _, e := range entries {
			r := g.Entries[types.NamespacedName{Namespace: e.Namespace, Name: e.Name}]
			if strings.Contains(r.Message, "\n") {
				t.Errorf("message %q", r.Message)
			}
			if r.Foreign && len(r.Names) > 0 || r.State == coredns.StateOk && len(r.Names) == 0 {
				t.Errorf("%s: %+v", e.Name, r)
			}
		}
	})
}

// BenchmarkGlobals is a change of one of 10,000 entries, from the objects to the zone.
func BenchmarkGlobals(b *testing.B) {
	var entries []coredns.CoreDNSEntry
	for i := range 10_000 {
		e := coredns.CoreDNSEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "e" + string(rune('a'+i%26)) + netip.AddrFrom4([4]byte{0, 0, byte(i >> 8), byte(i)}).String()}}
		e.Spec.DNSNames = []coredns.DNSName{coredns.DNSName("n" + strings.ReplaceAll(e.Name, ".", "-") + ".svc.global.kubelink")}
		e.Spec.A = []coredns.IPv4Address{coredns.IPv4Address(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String())}
		entries = append(entries, e)
	}
	b.ReportAllocs()
	for b.Loop() {
		names := records.Build(entries, nil, []string{"svc.global.kubelink."})
		zone.NewGlobal("kubelink.", names.Zones[0], 1, nil, nil)
		if n := len(differing(entries, nil, &names, &records.Result{})); n != len(entries) {
			b.Fatal(n)
		}
	}
}
