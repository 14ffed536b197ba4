package connectivity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/survey"
	"github.com/mandelsoft/kubelink/cmd/kubelink/probe"
)

func newLink(edit func(*survey.Link)) *survey.Link {
	l := &survey.Link{Context: "c1", Mode: "bridge", Link: diagnosis.Link{Name: "c2", ClusterAddress: "192.168.0.12/24",
		CIDR: "100.64.16.0/20", Routed: true, State: "Up", Names: &diagnosis.Names{Zone: "c2.kubelink."}},
		Back: &survey.Back{Context: "c2", Name: "c1", State: "Up"}}
	edit(l)
	return l
}

// What a link has decides what is tried, and why the rest is not.
func TestTargets(t *testing.T) {
	for name, c := range map[string]struct {
		edit    func(*survey.Link)
		service string // name, address and port
		skipped []string
	}{
		"all": {func(*survey.Link) {}, "kubernetes.default.svc.c2.kubelink 100.64.16.1 443", nil},
		"no names": {func(l *survey.Link) { l.Names = nil }, " 100.64.16.1 443",
			[]string{probe.ClusterDNS, probe.KubelinkDNS, probe.StateName}},
		"mesh services only": {func(l *survey.Link) { l.CIDR, l.Names.MeshService = "", "web.shop.msvc.c2.kubelink:80" },
			"web.shop.msvc.c2.kubelink invalid IP 80", nil},
		"network of this cluster": {
			func(l *survey.Link) { l.Routed, l.Names.MeshService = false, "web.shop.msvc.c2.kubelink:80" },
			"web.shop.msvc.c2.kubelink invalid IP 80", nil},
		"nothing to try": {func(l *survey.Link) { l.CIDR = "" }, " invalid IP 0",
			[]string{probe.ClusterDNS, probe.Connect, probe.KubelinkDNS}},
		"IPv6": {func(l *survey.Link) { l.CIDR = "fd00:1::/108" },
			"kubernetes.default.svc.c2.kubelink fd00:1::1 443", nil},
		"mode none": {func(l *survey.Link) { l.Mode, l.Routed = "none", false },
			"kubernetes.default.svc.c2.kubelink 100.64.16.1 0",
			[]string{probe.Connect, probe.Ping}},
	} {
		l := newTarget(newLink(c.edit), true)
		if got := fmt.Sprintf("%s %s %d", l.Service, l.Address, l.Port); got != c.service {
			t.Errorf("%s: %s, want %s", name, got, c.service)
		}
		for _, check := range probe.Checks {
			if (l.skipped[check] != "") != slices.Contains(c.skipped, check) {
				t.Errorf("%s: %s: %q", name, check, l.skipped[check])
			}
		}
	}
	if l := newTarget(newLink(func(*survey.Link) {}), false); l.skipped[probe.KubelinkDNS] == "" {
		t.Error("there is no DNS service to ask")
	}
}

// A large mesh is tested in part: nodes together test all links, if they can, and what is left out is said.
func TestPlan(t *testing.T) {
	for _, c := range []struct{ nodes, links, tasks, each, together, said int }{
		{2, 1, 2, 1, 1, 0}, {1, 128, 1, 128, 128, 0}, {0, 5, 0, 0, 0, 0},
		{1, 253, 1, 128, 128, 1}, {100, 253, 100, 40, 253, 1}, {5000, 2, 100, 2, 2, 1},
	} {
		nodes, links := make([]string, c.nodes), make([]target, c.links)
		for i := range links {
			links[i].Name = fmt.Sprint(i)
		}
		tasks, said := planTasks(nodes, links)
		seen := map[string]bool{}
		for _, k := range tasks {
			if len(k.links) != c.each {
				t.Errorf("%+v: %d links", c, len(k.links))
			}
			for _, l := range k.links {
				seen[l.Name] = true
			}
		}
		if len(tasks) != c.tasks || len(seen) != c.together || len(said) != c.said {
			t.Errorf("%+v: %d tasks, %d links, %q", c, len(tasks), len(seen), said)
		}
	}
}

// Findings put together what fails alike. They name nodes, links and a remedy.
func TestJudge(t *testing.T) {
	fails := func(node, link, check string) Check {
		return Check{Node: node, Link: link, Check: check, Result: Failed, Message: "no answer"}
	}
	good := func(node, link, check string) Check { return Check{Node: node, Link: link, Check: check, Result: OK} }
	for name, c := range map[string]struct {
		checks []Check
		want   []string // reason, object, message, remedy
	}{
		"one node": {[]Check{fails("n1", "c2", probe.Connect), good("n2", "c2", probe.Connect)},
			[]string{NotReachable, "Node n1", "connect over link c2 fails from pods on node n1, not on node n2: no answer",
				"--context c1 -n kubelink get pods -l app=kubelink-router --field-selector spec.nodeName=n1"}},
		"one node, two links": {[]Check{fails("n1", "c2", probe.Ping), fails("n1", "c3", probe.Ping),
			good("n2", "c2", probe.Ping), good("n2", "c3", probe.Ping)},
			[]string{NotReachable, "Node n1", "ping over links c2, c3 fails from pods on node n1, not on node n2", "router"}},
		"all nodes": {[]Check{fails("n1", "c2", probe.Connect), fails("n2", "c2", probe.Connect)},
			[]string{NotReachable, "KubeLink c2", "from pods on nodes n1, n2: no", "kubectl kubelink diagnose c1 c2 finds"}},
		"all nodes, all links": {[]Check{fails("n1", "c2", probe.ClusterDNS), fails("n1", "c3", probe.ClusterDNS)},
			[]string{NameNotFound, "Cluster c1", "cluster DNS over links c2, c3", "forward the domain"}},
		"DNS of a node": {[]Check{fails("n1", "c2", probe.ClusterDNS), good("n2", "c2", probe.ClusterDNS)},
			[]string{NameNotFound, "Node n1", "cluster DNS", "NodeLocal DNS"}},
		"kubelink": {[]Check{fails("n1", "c2", probe.KubelinkDNS)},
			[]string{NameNotFound, "KubeLink c2", "", "kubelink-dns"}},
		"pod":    {[]Check{fails("n1", "", checkPod)}, []string{PodFailed, "Node n1", "no result: no answer", "image img"}},
		"broker": {[]Check{fails("", "", checkBroker)}, []string{NotAnswered, "Cluster c1", "no answer", "diagnose c1"}},
		"link":   {[]Check{fails("", "c2", checkState)}, []string{LinkNotUp, "KubeLink c2", "no answer", "diagnose c1 c2"}},
	} {
		k := &cluster{Target: survey.Target{Context: "c1", Namespace: "kubelink"}, checks: c.checks,
			links: []survey.Link{*newLink(func(*survey.Link) {})}, pods: &runner{image: "img"}}
		all := k.makeFindings()
		if len(all) != 1 {
			t.Errorf("%s: %+v", name, all)
			continue
		}
		f := all[0]
		if f.Reason != c.want[0] || f.Object.Kind+" "+f.Object.Name != c.want[1] || !strings.Contains(f.Message, c.want[2]) ||
			!strings.Contains(f.Remedy, c.want[3]) {
			t.Errorf("%s: %+v, want %q", name, f, c.want)
		}
	}
}

// What a pod has printed becomes checks: none that it was to do is missing.
func TestResults(t *testing.T) {
	for name, c := range map[string]struct {
		results []probe.Result
		err     error
		want    string // results of the checks, in their order
	}{
		"all":    {results("", "", "", "", ""), nil, "ok ok ok ok ok"},
		"failed": {results("", "", "", "refused", "lost"), nil, "ok ok ok failed failed"},
		"no state names": {mark(results("", "", "none", "", ""), func(r []probe.Result) { r[2].Missing = true }), nil,
			"ok ok not tested ok ok"},
		"no names": {mark(results("none", "", "none", "", ""), func(r []probe.Result) { r[2].Missing = true }), nil,
			"failed ok failed ok ok"},
		"no right to ping": {mark(results("", "", "", "", "no"), func(r []probe.Result) { r[4].Denied = true }), nil,
			"ok ok ok ok not tested"},
		"no address": {slices.Delete(results("none", "none", "", "", ""), 3, 4), nil, "failed failed ok not tested ok"},
		"a part": {results("", "", "", "", "")[:2], errors.New("too slow"),
			"failed ok ok not tested not tested not tested"},
	} {
		k := &cluster{say: func(string, ...any) {}}
		k.addResults(&task{node: "n1", links: []target{newTarget(newLink(func(*survey.Link) {}), true)}}, c.results, c.err)
		var got []string
		for _, k := range k.checks {
			got = append(got, string(k.Result))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %+v", name, k.checks)
		}
	}
}

// mark changes results.
func mark(all []probe.Result, change func([]probe.Result)) []probe.Result {
	change(all)
	return all
}

// results are those of all checks, with their problems.
func results(problems ...string) (all []probe.Result) {
	for i, check := range probe.Checks {
		all = append(all, probe.Result{Link: "c2", Check: check, Target: "x", Problem: problems[i]})
	}
	return all
}

// fakeAPI is an API server with pods only. Nothing runs them: a test says how they are.
type fakeAPI struct {
	mu      sync.Mutex // guards the next ones
	pods    map[string]*corev1.Pod
	created []*corev1.Pod
	status  corev1.PodStatus // of pods that are created
	log     string
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, rest, _ := strings.Cut(r.URL.Path, "/api/v1/namespaces/kubelink/pods")
	name, sub, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
	var answer any
	pod := f.pods[name]
	switch {
	case r.Method == http.MethodPost:
		pod = &corev1.Pod{}
		_ = json.NewDecoder(r.Body).Decode(pod)
		pod.Status = f.status
		f.pods[pod.Name], f.created, answer = pod, append(f.created, pod), pod
	case name == "":
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		for _, p := range f.pods {
			list.Items = append(list.Items, *p)
		}
		answer = list
	case pod == nil:
		w.WriteHeader(http.StatusNotFound)
		answer = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure",
			Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound}
	case sub == "log":
		fmt.Fprint(w, f.log)
		return
	case r.Method == http.MethodDelete:
		delete(f.pods, name)
		answer = pod
	default:
		answer = pod
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

// newFakeRunner runs pods at a fake API server.
func newFakeRunner(t *testing.T, f *fakeAPI) *runner {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	clients, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL,
		ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	return &runner{Interface: clients, namespace: "kubelink", say: func(string, ...any) {}, image: "img", run: "abc"}
}

// Whatever becomes of a pod, there is a result or a reason, and the pod is gone. (A fake API server, without nodes.)
func TestPodsWithFakeAPI(t *testing.T) {
	waiting := func(reason string) corev1.PodStatus {
		return corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "because"}}}}}
	}
	line := `{"link":"c2","check":"ping","seconds":0.1}` + "\n"
	for name, c := range map[string]struct {
		status  corev1.PodStatus
		log     string
		timeout time.Duration
		results int
		fails   string
	}{
		"succeeds": {corev1.PodStatus{Phase: corev1.PodSucceeded}, line + line, time.Minute, 2, ""},
		"fails": {corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted"}, line, time.Minute, 1,
			"has failed: Evicted"},
		"old image": {corev1.PodStatus{Phase: corev1.PodFailed}, "extra argument\n", time.Minute, 0,
			"the pod says: extra"},
		"no image":     {waiting("ImagePullBackOff"), "", time.Minute, 0, "does not start: ImagePullBackOff: because"},
		"never starts": {waiting("ContainerCreating"), "", time.Second, 0, "in time (--timeout): ContainerCreating"},
		"never ends":   {corev1.PodStatus{Phase: corev1.PodRunning}, line, time.Second, 1, "has not ended in time"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &fakeAPI{pods: map[string]*corev1.Pod{}, status: c.status, log: c.log}
			ctx, cancel := context.WithTimeout(t.Context(), c.timeout)
			defer cancel()
			task := &task{node: "n1", links: []target{newTarget(newLink(func(*survey.Link) {}), true)}}
			got, err := newFakeRunner(t, f).runPod(ctx, 0, task)
			if len(got) != c.results || (err == nil) != (c.fails == "") ||
				err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%+v, %v", got, err)
			}
			if len(f.created) != 1 || len(f.pods) != 0 {
				t.Errorf("%d pods were created, %d are left", len(f.created), len(f.pods))
			}
			spec := f.created[0].Spec
			if s := spec.Containers[0].SecurityContext; spec.NodeName != "n1" || *spec.AutomountServiceAccountToken ||
				*s.AllowPrivilegeEscalation || !*spec.SecurityContext.RunAsNonRoot || *spec.ActiveDeadlineSeconds < 29 {
				t.Errorf("%+v", spec)
			}
		})
	}
}

// Pods of tests that were killed are removed. Those of a test of another user are not.
func TestLeftoversWithFakeAPI(t *testing.T) {
	now := time.Now()
	pod := func(name string, age, ended time.Duration) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(now.Add(-age))},
			Spec: corev1.PodSpec{ActiveDeadlineSeconds: ptr.To(int64(90))}}
		if ended > 0 {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{
				Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(now.Add(-ended))}}}}
		}
		return p
	}
	f := &fakeAPI{pods: map[string]*corev1.Pod{}}
	for _, p := range []*corev1.Pod{pod("old", 2*time.Minute, 0), pod("ended", time.Minute, 20*time.Second),
		pod("runs", time.Minute, 0), pod("just-ended", time.Minute, time.Second)} {
		f.pods[p.Name] = p
	}
	newFakeRunner(t, f).removeLeftovers(t.Context())
	if len(f.pods) != 2 || f.pods["runs"] == nil || f.pods["just-ended"] == nil {
		t.Errorf("%v", f.pods)
	}
}
