package survey

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authentication "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/diagnosis"
)

// address and network are those of the cluster with a number.
func address(n int) string { return fmt.Sprintf("192.168.0.%d/24", 10+n) }
func network(n int) string { return fmt.Sprintf("100.64.%d.0/20", 16*n) }
func named(n int) string   { return fmt.Sprintf("c%d", n) }

// newAnswer is that of a healthy cluster that has a link to another one.
func newAnswer(n, other int) Answer {
	r := &diagnosis.Report{
		Mode: "bridge", Node: "node1", Ready: true,
		Lease: diagnosis.Lease{Holder: "node1", Active: true},
		Clusters: []diagnosis.Cluster{{
			Name: named(n), Link: named(n), Addresses: []string{address(n)}, Services: []string{network(n)},
		}},
		Links: []diagnosis.Link{{Name: named(other), ClusterAddress: address(other), CIDR: network(other), State: "Up"}},
	}
	a := Answer{Context: named(n), Namespace: "kubelink",
		Brokers: []Broker{{Pod: Pod{Name: "kubelink", Node: "node1", Running: true, Ready: true, port: 10534}, Report: r}}}
	for _, to := range []int{n, other} {
		l := v1alpha1.KubeLink{}
		l.Name = named(to)
		l.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: address(to), CIDR: network(to), Endpoint: "x.example",
			PublicKey: "key of " + named(to)}
		if to == n {
			l.Spec.Endpoint, l.Status.PublicKey = v1alpha1.EndpointLocal, "key of "+named(n)
		}
		l.Status.State = v1alpha1.StateUp
		a.Links = append(a.Links, l)
	}
	return a
}

func report(a []Answer, n int) *diagnosis.Report { return a[n].Brokers[0].Report }

func notFound(resource, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: resource}, name)
}

// Of a healthy pair there is no finding, and both directions of its links are known.
func TestHealthyPair(t *testing.T) {
	answers := []Answer{newAnswer(1, 2), newAnswer(2, 1)}
	links, findings := Links(answers), Examine(answers)
	if len(findings) > 0 || len(links) != 2 {
		t.Errorf("%+v %+v", findings, links)
	}
	for _, l := range links {
		if l.State != "Up" || l.Back == nil || l.Back.State != "Up" || l.Back.Context == l.Context {
			t.Errorf("%+v %+v", l, l.Back)
		}
	}
	if h := Judge(answers, links, findings); h != (Health{}) {
		t.Errorf("%+v", h)
	}
}

// What only a look from outside can tell has its cause and its remedy.
func TestExamine(t *testing.T) {
	for name, c := range map[string]struct {
		spoil                           func(a []Answer)
		reason, object, message, remedy string
	}{
		"API server": {func(a []Answer) { a[1] = Answer{Context: "c2", Err: errors.New("refused")} },
			"APIServerUnreachable", "Cluster c2", "does not answer: refused", "kubectl config view"},
		"no context": {func(a []Answer) { a[1] = Answer{Context: "c2", Err: NewContextError("c2", errors.New("none"))} },
			NoContext, "Cluster c2", "context c2: none", "get-contexts"},
		"no CRDs": {func(a []Answer) { a[1].LinksErr = notFound("kubelinks", "") }, CRDsMissing,
			"CustomResourceDefinition kubelinks.kubelink.mandelsoft.org", "knows no KubeLinks", "deploy/crds"},
		"no rights": {func(a []Answer) {
			a[1].LinksErr = apierrors.NewForbidden(schema.GroupResource{Resource: "kubelinks"}, "", errors.New("no"))
		}, NoRights, "Cluster c2", "you may not list kubelinks", "use a context"},
		"no pods/proxy": {func(a []Answer) {
			a[1].Brokers[0].Report = nil
			a[1].Brokers[0].Err = apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "kubelink", errors.New("no"))
		}, NoRights, "Pod kubelink", "you may not get pods/proxy", "use a context"},
		"no pod": {func(a []Answer) { a[1].Brokers, a[1].LinksErr = nil, notFound("kubelinks", "") },
			NotInstalled, "Namespace kubelink", "no pod",
			"kubectl kubelink connect"},
		"image": {func(a []Answer) {
			b := &a[1].Brokers[0]
			b.Report, b.Running, b.Problem = nil, false, `ImagePullBackOff: Back-off pulling image "kubelink:nope"`
			b.Err = errors.New("the pod does not run: " + b.Problem)
		}, PodNotRunning, "Pod kubelink", `"kubelink:nope"`, "connect --image"},
		"image of a router": {func(a []Answer) {
			a[0].Routers = []Router{{Pod: Pod{Name: "r", Node: "node2", Problem: "ErrImagePull: no such host"}}}
		}, diagnosis.RouterNotReady, "Node node2", "no such host", "imagePullSecrets"},
		"no rights, in no words": {func(a []Answer) {
			a[1].LinksErr = &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonForbidden,
				Message: "unknown"}}
		}, NoRights, "Cluster c2", "you may not list kubelinks.kubelink.mandelsoft.org", "use a context"},
		"two holders": {func(a []Answer) {
			second := *report(a, 0)
			a[0].Brokers = append(a[0].Brokers, Broker{Pod: Pod{Name: "second", Running: true}, Report: &second})
		}, TwoHolders, "KubeLink c2", "kubelink, second", "the same lease-name"},
		"no holder": {func(a []Answer) { report(a, 0).Lease = diagnosis.Lease{Holder: "node9"} }, NoActiveBroker,
			"Lease kubelink", "the Lease names node9", "see that the broker on that node runs"},
		"one-sided": {func(a []Answer) { report(a, 1).Links = nil; a[1].Links = a[1].Links[:1] }, OneSidedLink, "KubeLink c2",
			"c2 has no link back", "connect c1 c2"},
		"modes": {func(a []Answer) { report(a, 1).Mode = "wireguard" }, DifferentModes, "KubeLink c2",
			"c2 has mode wireguard", "give both the same mode"},
		"network": {func(a []Answer) { report(a, 0).Links[0].CIDR = "10.0.0.0/8" }, WrongNetwork, "KubeLink c2", "10.0.0.0/8",
			"set spec.cidr"},
		"key": {func(a []Answer) { a[0].Links[1].Spec.PublicKey = "old" }, WrongKey, "KubeLink c2",
			"not the key of c2, key of c2", "status.publicKey"},
		"address twice": {func(a []Answer) { report(a, 1).Clusters[0].Addresses[0] = address(1) }, AddressTwice,
			"KubeLink c2", address(1) + " is also that of c1", "another spec.clusterAddress"},
		"router": {func(a []Answer) { a[0].Routers = []Router{{Pod: Pod{Name: "r", Node: "node2", Problem: "no route"}}} },
			diagnosis.RouterNotReady, "Node node2", "no route", "logs r"},
		"router that refuses": {func(a []Answer) {
			for _, node := range []string{"node1", "node2"} {
				a[0].Routers = append(a[0].Routers, Router{Pod: Pod{Name: "r", Node: node, Ready: true},
					Err: &RefusedError{Code: 503, Refusal: diagnosis.Refusal{Error: "no TokenReview", Remedy: "apply the roles"}}})
			}
		}, diagnosis.NodeNotChecked, "DaemonSet kubelink-router", "on node node1 and 1 more, as kubelink-router cannot be " +
			"asked: it refuses the request (503): no TokenReview", "apply the roles"},
		"router behind a firewall": {func(a []Answer) {
			a[0].Routers = []Router{{Pod: Pod{Name: "r", Node: "node2", Ready: true, port: 10541}, Err: errors.New("i/o timeout")}}
		}, diagnosis.NodeNotChecked, "DaemonSet kubelink-router", "on node node2, as kubelink-router cannot be asked: i/o timeout",
			"TCP port 10541"},
		"router that is not ready and refuses": {func(a []Answer) {
			a[0].Routers = []Router{{Pod: Pod{Name: "r", Node: "node2"}, Err: errors.New("connection refused")}}
		}, diagnosis.RouterNotReady, "Node node2", "connection refused", "logs r"},
		"dead node": {func(a []Answer) { a[0].Nodes = map[string]string{"node2": "since then: NodeStatusUnknown"} },
			NodeNotReady, "Node node2", "the node is not ready since then: NodeStatusUnknown", "get node node2"},
		"broker that ended": {func(a []Answer) {
			b := &a[1].Brokers[0]
			b.Report, b.Err = nil, apierrors.NewServiceUnavailable("")
			b.Ended = describeEnd(&corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}, 3)
		}, BrokerUnreachable, "Pod kubelink", "the API server has no connection to it; its program ended with exit code " +
			"137 (OOMKilled), and has been started 3 times again", "that the broker runs"},
		"finding of a router": {func(a []Answer) {
			a[0].Routers = []Router{{Pod: Pod{Name: "r", Node: "node2"}, Report: &diagnosis.NodeReport{
				Findings: []diagnosis.Finding{{Reason: "ForwardingOff", Severity: diagnosis.Error,
					Object: diagnosis.Object{Kind: "Node", Name: "node2"}, Message: "forwarding is off", Remedy: "sysctl -w"}}}}}
		}, "ForwardingOff", "Node node2", "forwarding is off", "sysctl -w"},
		"no external address": {func(a []Answer) {
			report(a, 0).Links[0].State = "Down"
			a[0].Service = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kubelink"},
				Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
		}, NoExternalAddress, "Service kubelink", "no external address", "NodePort"},
	} {
		t.Run(name, func(t *testing.T) {
			answers := []Answer{newAnswer(1, 2), newAnswer(2, 1)}
			c.spoil(answers)
			all := Examine(answers)
			for _, f := range all {
				if f.Reason == c.reason && f.Object.Kind+" "+f.Object.Name == c.object && strings.Contains(f.Message, c.message) &&
					strings.Contains(f.Remedy, c.remedy) {
					return
				}
			}
			t.Errorf("%+v", all)
		})
	}
}

// What a broker says of a router stays where the router cannot be asked.
func TestSilentRouter(t *testing.T) {
	answers := []Answer{newAnswer(1, 2), newAnswer(2, 1)}
	answers[0].Routers = []Router{{Pod: Pod{Name: "r", Node: "node2", Ready: true}, Err: errors.New("i/o timeout")}}
	report(answers, 0).Findings = []diagnosis.Finding{{Reason: diagnosis.RouterNotReady, Severity: diagnosis.Error}}
	found := Examine(answers)
	if len(found) != 2 || found[0].Reason != diagnosis.RouterNotReady || found[1].Reason != diagnosis.NodeNotChecked {
		t.Errorf("%+v", found)
	}
}

// A router that is not ready is told once: the pod says why, the broker only which node it is. Where pods may not be
// listed, the broker tells it.
func TestRouterToldOnce(t *testing.T) {
	for name, routers := range map[string][]Router{
		"pod": {{Pod: Pod{Name: "r", Node: "node2", Problem: "no route"}}}, "no rights": nil,
	} {
		answers := []Answer{newAnswer(1, 2), newAnswer(2, 1)}
		answers[0].Routers = routers
		report(answers, 0).Findings = []diagnosis.Finding{
			{Reason: diagnosis.RouterNotReady, Severity: diagnosis.Error, Message: "is not ready on node node2"}}
		found := Examine(answers)
		if len(found) != 1 || found[0].Reason != diagnosis.RouterNotReady ||
			strings.Contains(found[0].Message, "no route") != (len(routers) > 0) {
			t.Errorf("%s: %+v", name, found)
		}
	}
}

// A broker that ends again and again has the last line of its log as the reason, without the words that say nothing.
func TestCrashLoop(t *testing.T) {
	pod := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
		RestartCount: 2,
		State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff",
			Message: "back-off 20s restarting failed container=kubelink pod=kubelink_kubelink(1)"}},
		LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error",
			Message: "maxprocs: 2\n/etc/kubelink/Corefile:14 - Error during parsing: unknown property \"node-cdir\"\n"}},
	}}}}
	want := "CrashLoopBackOff: its program ended with exit code 1, and has been started 2 times again: " +
		`/etc/kubelink/Corefile:14 - Error during parsing: unknown property "node-cdir"`
	if got := describePod(pod, "diagnosis", 0); got.Problem != want || got.Running {
		t.Errorf("%+v", got)
	}
}

// fakeAPI is an API server with one pod, whose broker answers, or does not.
func fakeAPI(t *testing.T, hang *atomic.Bool, broker http.HandlerFunc) *rest.Config {
	t.Helper()
	released := make(chan struct{})
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "kubelink"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	mux := http.NewServeMux()
	send := func(value any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(value)
		}
	}
	const namespace = "/api/v1/namespaces/kubelink"
	mux.HandleFunc(namespace+"/pods", func(w http.ResponseWriter, r *http.Request) {
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		switch r.FormValue("labelSelector") {
		case brokerLabel:
			list.Items = []corev1.Pod{pod}
		case routerLabel:
			list.Items = []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "router"}, Status: pod.Status}}
		}
		send(list)(w, r)
	})
	mux.HandleFunc(namespace+"/serviceaccounts/kubelink-diagnosis/token", send(authentication.TokenRequest{
		TypeMeta: metav1.TypeMeta{Kind: "TokenRequest", APIVersion: "authentication.k8s.io/v1"},
		Status:   authentication.TokenRequestStatus{Token: "abc"},
	}))
	mux.HandleFunc("/apis/kubelink.mandelsoft.org/v1alpha1/kubelinks", send(v1alpha1.KubeLinkList{}))
	mux.HandleFunc(namespace+"/pods/http:kubelink:10534/proxy/diagnosis", broker)
	mux.HandleFunc(namespace+"/pods/http:router:10541/proxy/findings", func(w http.ResponseWriter, r *http.Request) {
		send(diagnosis.NodeReport{Node: r.Header.Get(diagnosis.TokenHeader)})(w, r)
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hang.Load() {
			<-released
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { close(released); server.Close() })
	return &rest.Config{Host: server.URL}
}

// busyAtFirst is a broker that has too many requests, three times.
func busyAtFirst() http.HandlerFunc {
	var asked atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) <= 3 {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusTooManyRequests)
			_ = json.NewEncoder(w).Encode(diagnosis.Refusal{Error: "too many requests"})
			return
		}
		_ = json.NewEncoder(w).Encode(diagnosis.Report{Node: r.Header.Get(diagnosis.TokenHeader)})
	}
}

// sendSpaces is a broker whose answer has no end.
func sendSpaces(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		for spaces := bytes.Repeat([]byte(" "), 1<<20); ; {
			if _, err := w.Write(spaces); err != nil {
				return
			}
		}
	}
}

// Brokers and routers are asked with a token in the header of its own, through the proxy of the API server.
func TestAsk(t *testing.T) {
	for name, c := range map[string]struct {
		broker http.HandlerFunc
		fails  string
	}{
		"report": {func(w http.ResponseWriter, r *http.Request) {
			_ = json.NewEncoder(w).Encode(diagnosis.Report{Node: r.Header.Get(diagnosis.TokenHeader)})
		}, ""},
		"refusal": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(403)
			_ = json.NewEncoder(w).Encode(diagnosis.Refusal{Error: "no right", Remedy: "give it"})
		}, "refuses the request (403): no right"},
		"busy at first": {busyAtFirst(), ""},
		"away": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "error trying to reach service: connection refused", http.StatusServiceUnavailable)
		}, "connection refused"},
		"endless":         {sendSpaces(http.StatusOK), "more than"},
		"endless refusal": {sendSpaces(http.StatusForbidden), "more than"},
		"no report":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }, "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			api := fakeAPI(t, &atomic.Bool{}, c.broker)
			a := Ask(t.Context(), []Target{{Context: "c1", Namespace: "kubelink", API: api}})[0]
			if a.Err != nil || len(a.Brokers) != 1 {
				t.Fatalf("%+v", a)
			}
			if len(a.Routers) != 1 || a.Routers[0].Report == nil || a.Routers[0].Report.Node != "abc" {
				t.Errorf("%+v", a.Routers)
			}
			b := a.Brokers[0]
			if c.fails == "" && (b.Err != nil || b.Report.Node != "abc") ||
				c.fails != "" && (b.Err == nil || !strings.Contains(b.Err.Error(), c.fails)) {
				t.Errorf("%+v %v", b.Report, b.Err)
			}
		})
	}
}

// As many links as may be in a report are compared in a time, of processors, that grows with the square of their number
// at most: each with each, which is quick.
func TestManyLinks(t *testing.T) {
	measure := func(n int) time.Duration {
		answers := []Answer{newAnswer(1, 2), newAnswer(2, 1), newAnswer(3, 2)}
		for i := range answers {
			r := report(answers, i)
			for len(r.Links) < n {
				l := r.Links[0]
				l.Name = fmt.Sprint(l.Name, "-", len(r.Links))
				r.Links = append(r.Links, l)
			}
			r.Links[0], r.Links[n-1] = r.Links[n-1], r.Links[0]
		}
		before := processorTime(t)
		links := Links(answers)
		Judge(answers, links, Examine(answers))
		took := processorTime(t) - before
		if len(links) != 3*n {
			t.Fatalf("%d links of 3 times %d", len(links), n)
		}
		return took
	}
	few, many := measure(maxLinks/8), measure(maxLinks)
	if many > 128*few { // 64 times the work, or so, and not 512 times
		t.Errorf("%d links take %s, %d take %s", 3*maxLinks, many, 3*maxLinks/8, few)
	}
}

// processorTime is what processors have worked for this process.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// What answers in place of a broker does not get the credentials of the user.
func TestRedirect(t *testing.T) {
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a request came, with the headers %v", r.Header)
	}))
	defer thief.Close()
	api := fakeAPI(t, &atomic.Bool{}, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, thief.URL+"/here", http.StatusFound)
	})
	api.BearerToken = "of the user"
	target := Target{Context: "c1", Namespace: "kubelink", API: api}
	a := Ask(t.Context(), []Target{target})[0]
	if len(a.Brokers) != 1 || a.Brokers[0].Err == nil || !strings.Contains(a.Brokers[0].Err.Error(), "redirect to") {
		t.Errorf("%+v", a)
	}
}

// Whatever is dead, a survey ends in time, and the others have answered.
func TestSurveyEnds(t *testing.T) {
	good := func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(diagnosis.Report{}) }
	var dead atomic.Bool
	dead.Store(true)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it accepts connections, and that is all
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	alive := func(broker http.HandlerFunc) *rest.Config { return fakeAPI(t, &atomic.Bool{}, broker) }
	hung := make(chan struct{})
	defer close(hung)
	targets := []Target{
		{Context: "good", API: alive(good)},
		{Context: "hangs", API: fakeAPI(t, &dead, good)},
		{Context: "silent", API: &rest.Config{Host: "https://" + silent.Addr().String()}},
		{Context: "refused", API: &rest.Config{Host: "http://127.0.0.1:1"}},
		{Context: "broker hangs", API: alive(func(http.ResponseWriter, *http.Request) { <-hung })},
	}
	for i := range targets {
		targets[i].Namespace = "kubelink"
	}
	start := time.Now()
	answers := Ask(t.Context(), targets)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if a := answers[0]; a.Err != nil || a.Brokers[0].Report == nil {
		t.Errorf("%+v", a)
	}
	for _, a := range answers[1:4] {
		if a.Err == nil {
			t.Errorf("%+v", a)
		}
	}
	if a := answers[4]; a.Err != nil || a.Brokers[0].Err == nil {
		t.Errorf("%+v", a)
	}
	if h := Judge(answers, Links(answers), Examine(answers)); !h.Unanswered {
		t.Errorf("%+v", h)
	}
}
