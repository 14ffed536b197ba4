package meshservice

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

type schemaKind struct{ group, version, kind string }

func (k schemaKind) gvk() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.group, Version: k.version, Kind: k.kind}
}

func meshService(name, backend, address string) *v1alpha1.MeshService {
	m := &v1alpha1.MeshService{
		TypeMeta:   metav1.TypeMeta{Kind: "MeshService", APIVersion: v1alpha1.GroupVersion.String()},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Generation: 1},
		Spec:       v1alpha1.MeshServiceSpec{Service: backend, MeshAddress: address},
	}
	m.CreationTimestamp = metav1.NewTime(time.Now().Add(-time.Hour))
	return m
}

func kubeService(name string) *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{Kind: "Service", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Annotations: map[string]string{"note": "long"}},
		Spec:       corev1.ServiceSpec{ClusterIP: "100.64.0.9", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
}

func endpointSlice(name, of string, addresses ...string) *discovery.EndpointSlice {
	s := &discovery.EndpointSlice{
		TypeMeta: metav1.TypeMeta{Kind: "EndpointSlice", APIVersion: "discovery.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{
			discovery.LabelServiceName: of, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
		}, OwnerReferences: []metav1.OwnerReference{{Kind: "Service", Name: of, UID: "a-uid-of-thirty-six-characters"}}},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080)}},
	}
	s.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kube-controller-manager", Operation: "Update",
		FieldsV1: metav1.NewFieldsV1(fmt.Sprintf(`{"f:endpoints":%q}`, strings.Repeat("they are long ", 60)))}}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{a}, NodeName: ptr.To("node1"),
			Zone: ptr.To("zone1"), TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "pod-" + a, Namespace: "ns",
				UID: "a-uid-of-thirty-six-characters"},
			Conditions: discovery.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)}})
	}
	return s
}

func surroundings() service.Surroundings {
	return service.Surroundings{Mode: mesh.Bridge, Host: &mesh.Host{}, State: &mesh.State{Meshes: []mesh.Mesh{
		{Link: "here", Addresses: mesh.Prefixes{netip.MustParsePrefix("192.168.0.11/24")}},
	}}}
}

// readUntil reads and builds after each wake, until the services are as wanted.
func readUntil(t *testing.T, s *Services, w *Watch, woken chan struct{}, want string) {
	t.Helper()
	got := ""
	for range 50 {
		if s.Read(t.Context(), w) {
			s.Build(t.Context(), surroundings())
			if got = show(s.List()); got == want {
				return
			}
		}
		await(t, woken)
	}
	t.Fatalf("got %s, want %s", got, want)
}

func show(list []service.Service) string {
	var words []string
	for _, s := range list {
		words = append(words, fmt.Sprintf("%s %s>%v", s.Name, s.Address, s.Targets))
	}
	return strings.Join(words, "; ")
}

// Services follow what changes, and nothing else wakes the reconciler.
func TestServicesFollow(t *testing.T) {
	api := newPlayedAPI()
	w, woken := startWatch(t, api)
	s := &Services{}
	readUntil(t, s, w, woken, "")
	if n := api.lists("endpointslices") + api.lists("services"); n > 0 {
		t.Errorf("without a MeshService, services were asked for %d times", n)
	}
	api.add(kubeService("echo"), endpointSlice("echo-1", "echo", "100.96.0.2"),
		endpointSlice("other-1", "other", "100.96.0.3"))
	echo := meshService("m", "echo", "192.168.0.100")
	api.send("ADDED", echo)
	readUntil(t, s, w, woken, "m 192.168.0.100>[100.96.0.2]")
	api.send("MODIFIED", endpointSlice("echo-1", "echo", "100.96.0.2", "100.96.0.4"))
	readUntil(t, s, w, woken, "m 192.168.0.100>[100.96.0.2 100.96.0.4]")
	if r := s.Reserved(); len(r) != 1 || r[0].Addr.String() != "192.168.0.100" {
		t.Errorf("reserved: %v", r)
	}

	// What no MeshService names, and what means nothing, changes nothing; of the last event the reconciler hears.
	version := w.version.Load()
	api.send("MODIFIED", endpointSlice("other-1", "other", "100.96.0.5"))
	annotated := endpointSlice("echo-1", "echo", "100.96.0.2", "100.96.0.4")
	annotated.Annotations = map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": "now"}
	api.send("MODIFIED", annotated)
	api.send("MODIFIED", endpointSlice("echo-1", "echo"))
	readUntil(t, s, w, woken, "m 192.168.0.100>[]")
	if n := w.version.Load() - version; n != 1 {
		t.Errorf("%d changes", n)
	}

	// The status that the broker writes is no news; that of another program is.
	var told []*Report
	s.Report(t.Context(), nil, func(r []*Report) { told = r })
	if len(told) != 1 || told[0].report.State != v1alpha1.StateOk || told[0].report.Ready {
		t.Fatalf("%+v", told)
	}
	version = w.version.Load()
	ours := echo.DeepCopy()
	ours.Status = v1alpha1.MeshServiceStatus{
		State: v1alpha1.StateOk, Message: told[0].report.Message, ObservedGeneration: 1,
	}
	for _, c := range newConditions(&told[0].report) {
		meta.SetStatusCondition(&ours.Status.Conditions, c)
	}
	api.send("MODIFIED", ours)
	foreign := ours.DeepCopy()
	foreign.Status.State = v1alpha1.StateInvalid
	api.send("MODIFIED", foreign)
	for told = nil; len(told) == 0; {
		await(t, woken)
		s.Read(t.Context(), w)
		s.Build(t.Context(), surroundings())
		s.Report(t.Context(), nil, func(r []*Report) { told = r })
	}
	if n := w.version.Load() - version; n != 1 || told[0].object.Status.State != v1alpha1.StateInvalid {
		t.Errorf("%d changes, %+v", n, told[0])
	}
	api.send("DELETED", foreign)
	readUntil(t, s, w, woken, "")
}

// What the broker has written may come after the objects were read, and before the watch knows that the broker has come
// to another conclusion. Then the status is told anew.
func TestStatusComesLate(t *testing.T) {
	api := newPlayedAPI()
	echo := meshService("m", "echo", "192.168.0.100")
	api.add(echo.DeepCopy(), kubeService("echo"), endpointSlice("echo-1", "echo", "100.96.0.2"))
	w, woken := startWatch(t, api)
	s := &Services{}
	readUntil(t, s, w, woken, "m 192.168.0.100>[100.96.0.2]")
	key := client.ObjectKeyFromObject(echo)
	first := s.Reports()[key]

	api.send("MODIFIED", endpointSlice("echo-1", "echo"))
	readUntil(t, s, w, woken, "m 192.168.0.100>[]")
	second := s.Reports()[key]
	late := echo.DeepCopy()
	for status, r := range map[*v1alpha1.MeshServiceStatus]*service.Report{&late.Status: &first, &echo.Status: &second} {
		status.State, status.Message, status.ObservedGeneration = r.State, r.Message, 1
		for _, c := range newConditions(r) {
			meta.SetStatusCondition(&status.Conditions, c)
		}
	}
	s.objects.MeshServices = []v1alpha1.MeshService{*echo} // as they were read
	version := w.version.Load()
	w.reports.Store(&map[types.NamespacedName]service.Report{key: first})
	api.send("MODIFIED", late)
	for got := (&v1alpha1.MeshService{}); got.Status.State == ""; {
		if err := w.cache.Get(t.Context(), key, got); err != nil {
			t.Fatal(err)
		}
	}
	reports := s.Reports()
	w.reports.Store(&reports)
	var told []*Report
	s.Report(t.Context(), nil, func(r []*Report) { told = r })
	if len(told) != 1 || !reflect.DeepEqual(told[0].report, second) || hasStatus(told[0].object, &second) {
		t.Errorf("%d changes, told %+v", w.version.Load()-version, told)
	}
}

// Where the broker may not read EndpointSlices, it says so of each MeshService that needs them, and goes on when it
// may.
func TestForbidden(t *testing.T) {
	api := newPlayedAPI()
	api.refused["endpointslices"] = true
	addressed := meshService("addressed", "", "192.168.0.101")
	addressed.Spec.Endpoints = []v1alpha1.MeshServiceEndpoint{{Address: "10.9.0.1"}}
	api.add(kubeService("echo"), endpointSlice("echo-1", "echo", "100.96.0.2"), meshService("m", "echo", "192.168.0.100"),
		addressed)
	w, woken := startWatch(t, api)
	s := &Services{}
	readUntil(t, s, w, woken, "addressed 192.168.0.101>[10.9.0.1]")
	r := s.built.Reports[types.NamespacedName{Namespace: "ns", Name: "m"}]
	if r.State != v1alpha1.StateStale || !strings.Contains(r.Message, "give it the rights of deploy/base/rbac.yaml") {
		t.Errorf("%+v", r)
	}
	if err := s.Problem(); err == nil || !strings.Contains(err.Error(), "EndpointSlice: refused") {
		t.Errorf("problem: %v", err)
	}
	api.set("endpointslices", api.refused, false)
	readUntil(t, s, w, woken, "m 192.168.0.100>[100.96.0.2]; addressed 192.168.0.101>[10.9.0.1]")
	if err := s.Problem(); err != nil {
		t.Error(err)
	}
}

// startWithoutCRD starts a watch while the kind MeshService is missing, which is told. Then it comes.
func startWithoutCRD(t *testing.T, api *playedAPI) (s *Services, w *Watch, woken chan struct{}) {
	t.Helper()
	api.missing["meshservices"] = true
	w, woken = startWatch(t, api)
	s = &Services{}
	await(t, woken)
	s.Read(t.Context(), w)
	s.Build(t.Context(), surroundings())
	if err := s.Problem(); err == nil || !strings.Contains(err.Error(), "MeshService: refused") {
		t.Errorf("problem: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s.Report(ctx, nil, func(told []*Report) {
		if len(told) > 0 || ctx.Err() != nil {
			t.Errorf("without the kind, %d reports are told, %v", len(told), ctx.Err())
		}
	})
	api.set("meshservices", api.missing, false)
	return s, w, woken
}

// While the CRD is new, and the services are being listed, nothing is said of the first MeshService, whatever else
// happens: no right is missing.
func TestFirstMeshService(t *testing.T) {
	api := newPlayedAPI()
	api.held["services"] = make(chan struct{})
	api.add(kubeService("echo"), endpointSlice("echo-1", "echo", "100.96.0.2"), meshService("m", "echo", "192.168.0.100"))
	s, w, woken := startWithoutCRD(t, api)
	for api.lists("services") == 0 {
		goruntime.Gosched()
	}
	// Something else changes.
	around := surroundings()
	around.State.LocalPorts = []mesh.LocalPort{{Protocol: "tcp", Port: 1}}
	if !s.Read(t.Context(), w) {
		t.Error("links have to wait")
	}
	s.Build(t.Context(), around)
	if len(s.objects.MeshServices) != 1 || s.Problem() != nil {
		t.Errorf("%d MeshServices, %v", len(s.objects.MeshServices), s.Problem())
	}
	s.Report(t.Context(), nil, func(told []*Report) {
		for _, r := range told {
			t.Errorf("told of %s: %+v", r.object.Name, r.report)
		}
	})
	close(api.held["services"])
	readUntil(t, s, w, woken, "m 192.168.0.100>[100.96.0.2]")
}

// Where there is no MeshService, the broker says nothing more of a CRD that was missing for a while.
func TestNoMeshService(t *testing.T) {
	api := newPlayedAPI()
	s, w, woken := startWithoutCRD(t, api)
	for s.Problem() != nil { // a wake that does not come ends the test
		await(t, woken)
		s.Read(t.Context(), w)
		s.Build(t.Context(), surroundings())
	}
}

// What was known stays while a new watch knows nothing, and nothing is known before the first one does.
func TestServicesStay(t *testing.T) {
	api := newPlayedAPI()
	api.add(kubeService("echo"), endpointSlice("echo-1", "echo", "100.96.0.2"), meshService("m", "echo", "192.168.0.100"))
	w, woken := startWatch(t, api)
	s := &Services{}
	fresh, err := NewWatch(w.Config)
	if err != nil {
		t.Fatal(err)
	}
	if s.Read(t.Context(), fresh) {
		t.Error("a watch that has not begun knows all")
	}
	readUntil(t, s, w, woken, "m 192.168.0.100>[100.96.0.2]")
	fresh.noteFailure(fmt.Errorf("connection refused"))
	around := surroundings()
	around.State.LocalPorts = []mesh.LocalPort{{Protocol: "tcp", Port: 1}}
	if !s.Read(t.Context(), fresh) {
		t.Error("the reconciler has to wait")
	}
	s.Build(t.Context(), around)
	if got := show(s.List()); got != "m 192.168.0.100>[100.96.0.2]" || len(s.Reserved()) != 1 {
		t.Errorf("%s, %v", got, s.Reserved())
	}
	fresh.born = time.Now().Add(-patience)
	if empty := (&Services{}); !empty.Read(t.Context(), w) {
		t.Error("a watch that knows all knows nothing")
	}
}

// noObjects is a cache that has none.
type noObjects struct{ cache.Cache }

func (noObjects) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }

// What was written while the broker came to another conclusion, or to an object that was another one by then, is a
// reason to look again, and told anew, even where another broker may know better.
func TestNoteWrite(t *testing.T) {
	key := types.NamespacedName{Namespace: "ns", Name: "m"}
	ok, weak := service.Report{State: "Ok", Ready: true}, service.Report{State: "Stale", Message: "not here", Weak: true}
	conflict := apierrors.NewConflict(schema.GroupResource{}, "m", nil)
	for _, c := range []struct {
		name         string
		written, now service.Report
		err          error
		counts       bool
	}{
		{"written", ok, ok, nil, false},
		{"written late", ok, weak, nil, true},
		{"another object", ok, ok, conflict, true},
		{"refused", ok, weak, apierrors.NewBadRequest("no"), false},
	} {
		m := meshService("m", "echo", "192.168.0.100")
		m.Status.State, m.Status.ObservedGeneration = c.written.State, 1
		for _, condition := range newConditions(&c.written) {
			meta.SetStatusCondition(&m.Status.Conditions, condition)
		}
		s := &Services{objects: service.Objects{MeshServices: []v1alpha1.MeshService{*m}}}
		woken := make(chan struct{}, 1)
		w := &Watch{Config: Config{Wake: func() { woken <- struct{}{} }}, some: make(chan struct{}), cache: noObjects{}}
		w.known.Store(true)
		w.listed.Store(true)
		s.from.watch, s.built.Reports = w, map[types.NamespacedName]service.Report{key: c.now}
		w.reports.Store(&s.built.Reports)
		began := time.Now()
		w.noteWrite(m, c.written, c.err)
		if c.counts {
			await(t, woken)
		}
		if took := time.Since(began); (took >= conflictPause) != (c.err == conflict) || (w.version.Load() > 0) != c.counts {
			t.Errorf("%s: after %s, %d changes", c.name, took, w.version.Load())
		}
		late := c.name == "written late"
		if w.isMistold(m) != late {
			t.Errorf("%s: mistold: %v", c.name, !late)
		}
		s.Report(t.Context(), nil, func(told []*Report) {
			if (len(told) == 1) != late {
				t.Errorf("%s: told %+v", c.name, told)
			}
		})
		w.Wake = func() {}
		if w.OnDelete(m); w.hasWritten(m) {
			t.Errorf("%s: kept after its deletion", c.name)
		}
	}
}

// Who writes what: another broker may know better.
func TestReports(t *testing.T) {
	key := types.NamespacedName{Namespace: "ns", Name: "m"}
	ok, weak := service.Report{State: "Ok", Ready: true}, service.Report{State: "Stale", Message: "not here", Weak: true}
	for _, c := range []struct {
		name        string
		state       v1alpha1.State // in the status
		age         time.Duration
		before, now service.Report
		write       bool
	}{
		{"new", "", 0, service.Report{}, ok, true},
		{"another state", "Invalid", time.Hour, service.Report{}, ok, true},
		{"weak, new", "", 0, service.Report{}, weak, false},
		{"weak, and nothing has been said", "", time.Hour, service.Report{}, weak, true},
		{"weak, and another broker says Ok", "Ok", time.Hour, service.Report{}, weak, false},
		{"weak, and ours so far", "Ok", time.Hour, ok, weak, true},
		{"weak, and another broker knows why the mesh is", "Stale", time.Hour, service.Report{}, weak, false},
		{"weak, and no broker served it so far", "abandoned", time.Hour, service.Report{}, weak, true},
		{"weak, and unsupported so far", "Unsupported", time.Hour, service.Report{}, weak, true},
	} {
		m := meshService("m", "echo", "192.168.0.100")
		m.CreationTimestamp = metav1.NewTime(time.Now().Add(-c.age))
		if m.Status.State, m.Status.ObservedGeneration = c.state, m.Generation; c.state == "abandoned" {
			m.Status.State = v1alpha1.StateOk
			m.Abandon()
		}
		before := map[types.NamespacedName]service.Report{}
		if c.before.State != "" {
			before[key] = c.before
		}
		woken := make(chan struct{}, 1)
		s := &Services{objects: service.Objects{MeshServices: []v1alpha1.MeshService{*m}}}
		s.from.watch = &Watch{Config: Config{Wake: func() { woken <- struct{}{} }}, cache: noObjects{}}
		s.built.Reports = map[types.NamespacedName]service.Report{key: c.now}
		s.left = leftOf(nil, before, s.built.Reports)
		for range 2 { // it is told once
			var told []*Report
			s.Report(t.Context(), nil, func(r []*Report) { told = r })
			if (len(told) == 1) != c.write {
				t.Errorf("%s: %+v", c.name, told)
			}
			c.write = false
		}
		if s.again != (c.name == "weak, new") {
			t.Errorf("%s: again: %v", c.name, s.again)
		}
	}
}

// What the broker says last of an object that it has served is told until it is written, and not later.
func TestLastReportIsTold(t *testing.T) {
	m := meshService("m", "echo", "192.168.0.100")
	m.Status.State = "Ok"
	key := types.NamespacedName{Namespace: "ns", Name: "m"}
	weak := map[types.NamespacedName]service.Report{key: {State: "Stale", Message: "not here", Weak: true}}
	s := &Services{objects: service.Objects{MeshServices: []v1alpha1.MeshService{*m}}}
	s.from.watch = &Watch{Config: Config{Wake: func() {}}, cache: noObjects{}}
	s.built.Reports = map[types.NamespacedName]service.Report{key: {State: "Ok", Ready: true}}
	for n := range 4 {
		s.noteWritten()
		s.left, s.built.Reports, s.reported = leftOf(s.left, s.built.Reports, weak), weak, false
		var told []*Report
		s.Report(t.Context(), nil, func(r []*Report) { told = r })
		if (len(told) == 1) != (n < 3) {
			t.Fatalf("built %d times: told %+v", n+1, told)
		}
		if n == 2 {
			told[0].written.Store(true)
		}
	}
}

// A state that asks for a look is a Warning.
func TestAnnounce(t *testing.T) {
	const text = "100 % in no mesh" // it is no format
	for want, r := range map[string]service.Report{
		"Normal MeshServiceOk MeshService is served": {State: "Ok", Ready: true},
		"Normal MeshServiceOk " + text:               {State: "Ok", Ready: true, Message: text},
		"Warning MeshServiceOk " + text + "!":        {State: "Ok", Ready: true, Doubtful: true, Message: text + "!"},
		"Warning MeshServiceOk no endpoint":          {State: "Ok", Message: "no endpoint"},
		"Warning MeshServiceInvalid no address":      {State: "Invalid", Message: "no address"},
	} {
		recorder := events.NewFakeRecorder(1)
		m := meshService("m", "echo", "192.168.0.100")
		(&Report{object: m, report: r, recorder: recorder}).announce(m)
		if got := <-recorder.Events; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// A status is as it should be only if all of it is.
func TestHasStatus(t *testing.T) {
	r := service.Report{State: "Ok", Message: "service echo has no ready endpoint"}
	made := func() *v1alpha1.MeshService {
		m := meshService("m", "echo", "192.168.0.100")
		m.Status = v1alpha1.MeshServiceStatus{State: r.State, Message: r.Message, ObservedGeneration: 1}
		for _, c := range newConditions(&r) {
			meta.SetStatusCondition(&m.Status.Conditions, c)
		}
		return m
	}
	if !hasStatus(made(), &r) {
		t.Errorf("%+v", made().Status)
	}
	for name, change := range map[string]func(*v1alpha1.MeshServiceStatus){
		"state":      func(s *v1alpha1.MeshServiceStatus) { s.State = "Invalid" },
		"message":    func(s *v1alpha1.MeshServiceStatus) { s.Message = "" },
		"generation": func(s *v1alpha1.MeshServiceStatus) { s.ObservedGeneration = 0 },
		"conditions": func(s *v1alpha1.MeshServiceStatus) { s.Conditions = s.Conditions[:1] },
		"ready":      func(s *v1alpha1.MeshServiceStatus) { s.Conditions[1].Status = metav1.ConditionTrue },
		"reason":     func(s *v1alpha1.MeshServiceStatus) { s.Conditions[1].Reason = "Ok" },
	} {
		m := made()
		if change(&m.Status); hasStatus(m, &r) {
			t.Errorf("another %s is no difference", name)
		}
	}
}

// Ten thousand EndpointSlices that no MeshService leads to cost little memory.
func TestUnusedSlicesAreSmall(t *testing.T) {
	const count = 10_000
	measure := func(keep func(client.Object) any) uint64 {
		kept := make([]any, 0, count)
		var before, after goruntime.MemStats
		goruntime.GC()
		goruntime.ReadMemStats(&before)
		for i := range count {
			name := fmt.Sprintf("service-%d", i)
			kept = append(kept, keep(endpointSlice(name+"-x", name, fmt.Sprintf("100.96.%d.%d", i>>8, i&255),
				fmt.Sprintf("100.97.%d.%d", i>>8, i&255), fmt.Sprintf("100.98.%d.%d", i>>8, i&255))))
		}
		goruntime.GC()
		goruntime.ReadMemStats(&after)
		goruntime.KeepAlive(kept)
		return (after.HeapAlloc - before.HeapAlloc) / count
	}
	whole := measure(func(o client.Object) any { return o })
	reduced := measure(func(o client.Object) any {
		r, err := reduceSlice(o)
		if err != nil {
			t.Fatal(err)
		}
		return r
	})
	t.Logf("%d bytes for a slice of three endpoints, of %d", reduced, whole)
	if reduced > 1300 || reduced*2 > whole {
		t.Errorf("%d bytes for a slice of three endpoints, of %d", reduced, whole)
	}
}
