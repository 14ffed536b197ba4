// Package survey asks the brokers of several clusters for their reports, and the API servers for what tells why a
// broker does not answer. All is asked at the same time, and each question has a deadline: what is dead costs no more
// than that.
//
// Brokers are reached through the proxy of the API server (pods/proxy). Users need: list pods and get pods/proxy in
// kubelink's namespace, create serviceaccounts/token there for kubelink-diagnosis, and list kubelinks.
package survey

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	authentication "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/diagnosis"
)

const (
	// Deadline of a survey. What has not answered by then is dead.
	Deadline = 4 * time.Second
	// apiDeadline is what an API server has for what it knows itself. The rest is for brokers.
	apiDeadline   = 2500 * time.Millisecond
	grace         = 300 * time.Millisecond // for answers on their way
	busyPause     = 200 * time.Millisecond // until a broker that has too much to do is asked again
	tokenLifetime = 10 * time.Minute       // the shortest that API servers issue
	brokerLabel   = "app=kubelink"         // of brokers, as deploy has it
	routerLabel   = "app=kubelink-router"
	routerPort    = 10541 // of a router whose pod names none
	maxAsked      = 100   // routers of a cluster: the readiness of the others tells enough
	maxList       = 1000
)

// Target is a cluster that is asked.
type Target struct {
	Context   string // name in the kubeconfig
	Namespace string // of the broker
	API       *rest.Config
	Err       error // why there is no API; the other fields are not used then
}

// Answer is what is known of a cluster. Errors say why a part of it is not known.
type Answer struct {
	Context   string `json:"context"`
	Namespace string `json:"namespace"`

	Brokers  []Broker            `json:"brokers"`
	Routers  []Router            `json:"routers,omitempty"`
	Nodes    map[string]string   `json:"-"` // why nodes of brokers and routers are not ready, by name
	Links    []v1alpha1.KubeLink `json:"-"`
	Service  *corev1.Service     `json:"-"` // of the broker; nil: there is none
	Err      error               `json:"-"` // the API server cannot be asked
	LinksErr error               `json:"-"`
	PodsErr  error               `json:"-"`
	TokenErr error               `json:"-"`
}

// Broker is a broker of a cluster.
type Broker struct {
	Pod
	Report *diagnosis.Report `json:"report,omitempty"` // nil: it does not answer
	Err    error             `json:"-"`                // why not
}

// Router is the kubelink-router of a node.
type Router struct {
	Pod
	Report *diagnosis.NodeReport `json:"report,omitempty"` // nil: it was not asked, or does not answer
	Err    error                 `json:"-"`                // why not
}

// Pod is how a pod is.
type Pod struct {
	Name    string `json:"pod"`
	Node    string `json:"node,omitempty"`
	Running bool   `json:"running"`
	Ready   bool   `json:"ready"`
	Problem string `json:"problem,omitempty"` // why it does not run, one line
	Ended   string `json:"ended,omitempty"`   // how its program ended last, and how often it began again, one line

	port int32 // of reports
}

// Ask asks all targets and returns within Deadline. The answers have the order of the targets.
func Ask(ctx context.Context, targets []Target) []Answer {
	ctx, cancel := context.WithTimeout(ctx, Deadline)
	defer cancel()
	answers := make([]Answer, len(targets))
	type numbered struct {
		Answer
		number int
	}
	results := make(chan numbered, len(targets)) // a program that gets credentials for kubectl may hang
	for i, t := range targets {
		answers[i] = Answer{Context: t.Context, Namespace: t.Namespace, Brokers: []Broker{}, Err: context.DeadlineExceeded}
		go func() { results <- numbered{t.ask(ctx), i} }()
	}
	timer := time.NewTimer(Deadline + grace)
	defer timer.Stop()
	for range targets {
		select {
		case r := <-results:
			answers[r.number] = r.Answer
		case <-timer.C:
			return answers
		}
	}
	return answers
}

// ask asks one cluster.
func (t *Target) ask(ctx context.Context) Answer {
	a := Answer{Context: t.Context, Namespace: t.Namespace, Err: t.Err, Brokers: []Broker{}}
	if a.Err != nil {
		return a
	}
	config := guardClient(t.API)
	config.QPS, config.Burst = 100, 100
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		a.Err = err
		return a
	}
	q := &questions{Clientset: clients, namespace: t.Namespace}
	first, cancel := context.WithTimeout(ctx, apiDeadline)
	defer cancel()
	var token string
	var pods, routers []corev1.Pod
	var parts sync.WaitGroup
	parts.Go(func() { pods, a.PodsErr = q.listPods(first, brokerLabel) })
	parts.Go(func() { token, a.TokenErr = q.requestToken(first) })
	parts.Go(func() { a.Links, a.LinksErr = ListLinks(first, clients) })
	parts.Go(func() { routers, _ = q.listPods(first, routerLabel) }) // the component router is optional
	parts.Go(func() {
		if s, err := clients.CoreV1().Services(t.Namespace).Get(first, "kubelink", metav1.GetOptions{}); err == nil {
			a.Service = s
		}
	})
	parts.Wait()
	if a.PodsErr != nil && a.LinksErr != nil && a.TokenErr != nil && !isAnswer(a.PodsErr) {
		a.Err = a.PodsErr
		return a
	}
	a.Brokers, a.Routers = make([]Broker, len(pods)), describeRouters(routers)
	parts.Go(func() { a.Nodes = q.findDeadNodes(first, slices.Concat(pods, routers)) })
	for i := range a.Routers[:min(len(a.Routers), maxAsked)] {
		parts.Go(func() { q.askRouter(ctx, &a.Routers[i], token) })
	}
	for i := range pods {
		if i >= maxBrokers {
			a.Brokers[i] = Broker{Pod: describePod(&pods[i], "diagnosis", diagnosis.DefaultPort),
				Err: fmt.Errorf("only %d brokers are asked", maxBrokers)}
			continue
		}
		parts.Go(func() { a.Brokers[i] = q.askBroker(ctx, &pods[i], token, a.TokenErr) })
	}
	parts.Wait()
	return a
}

// isAnswer tells whether an error came from the API server.
func isAnswer(err error) bool {
	_, ok := errors.AsType[*apierrors.StatusError](err)
	return ok
}

// questions are those to one cluster.
type questions struct {
	*kubernetes.Clientset
	namespace string
}

func (q *questions) listPods(ctx context.Context, label string) ([]corev1.Pod, error) {
	list, err := q.CoreV1().Pods(q.namespace).List(ctx, metav1.ListOptions{LabelSelector: label, Limit: maxList})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list.Items, func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return isEnded(&p) }), nil
}

// isEnded tells whether a pod has ended for good, and another one is in its place.
func isEnded(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (q *questions) requestToken(ctx context.Context) (string, error) {
	request := &authentication.TokenRequest{Spec: authentication.TokenRequestSpec{
		Audiences: []string{diagnosis.Audience}, ExpirationSeconds: ptr.To(int64(tokenLifetime.Seconds())),
	}}
	answer, err := q.CoreV1().ServiceAccounts(q.namespace).CreateToken(
		ctx, diagnosis.ServiceAccount, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return answer.Status.Token, nil
}

// ListLinks lists the KubeLinks of a cluster, by name.
func ListLinks(ctx context.Context, api kubernetes.Interface) ([]v1alpha1.KubeLink, error) {
	text, err := api.CoreV1().RESTClient().Get().MaxRetries(0).
		AbsPath("/apis", v1alpha1.GroupVersion.Group, v1alpha1.GroupVersion.Version, "kubelinks").DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	var list v1alpha1.KubeLinkList
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("list of kubelinks: %w", err)
	}
	slices.SortFunc(list.Items, func(a, b v1alpha1.KubeLink) int { return cmp.Compare(a.Name, b.Name) })
	return list.Items, nil
}

// askBroker asks the broker in a pod for its report, or finds out why the pod does not run.
func (q *questions) askBroker(ctx context.Context, pod *corev1.Pod, token string, noToken error) Broker {
	b := Broker{Pod: describePod(pod, "diagnosis", diagnosis.DefaultPort)}
	switch {
	case !b.Running:
		// Events repeat what is known of an image, or of a program that ends again and again.
		if text := q.lastEvent(ctx, pod); text != "" && !isAboutImage(b.Problem) && !strings.Contains(b.Problem, crashLoop) {
			b.Problem = joinTexts(b.Problem, text)
		}
		b.Err = errors.New("the pod does not run: " + cmp.Or(b.Problem, "no reason is known"))
	case noToken != nil:
		b.Err = noToken
	default:
		b.Report, b.Err = q.readReport(ctx, pod.Name, b.port, token)
	}
	return b
}

// describeRouters puts the routers that are not ready first.
func describeRouters(pods []corev1.Pod) (routers []Router) {
	for i := range pods {
		routers = append(routers, Router{Pod: describePod(&pods[i], "http", routerPort)})
	}
	slices.SortStableFunc(routers, func(a, b Router) int {
		return map[bool]int{false: 0, true: 1}[a.Ready] - map[bool]int{false: 0, true: 1}[b.Ready]
	})
	return routers
}

// askRouter asks a router what is in the way of packets on its node.
func (q *questions) askRouter(ctx context.Context, r *Router, token string) {
	if !r.Running || token == "" {
		return
	}
	report := &diagnosis.NodeReport{}
	if r.Err = q.get(ctx, r.Name, r.port, token, diagnosis.NodePath, nil, report); r.Err == nil {
		r.Report = report
	}
}

// RefusedError is the answer of a broker that gives no report.
type RefusedError struct {
	Code int // of HTTP
	diagnosis.Refusal
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("the broker refuses the request (%d): %s", e.Code, e.Refusal.Error)
}

func (q *questions) readReport(ctx context.Context, pod string, port int32, token string) (*diagnosis.Report, error) {
	r := &diagnosis.Report{}
	if err := q.get(ctx, pod, port, token, diagnosis.Path, nil, r); err != nil {
		return nil, err
	}
	if err := checkBounds(r); err != nil {
		return nil, err
	}
	return r, nil
}

// get requests a path of the broker in a pod. The answer is JSON. A broker that is asked too much is asked again.
func (q *questions) get(
	ctx context.Context, pod string, port int32, token, path string, parameters url.Values, answer any,
) error {
	for {
		err := q.getOnce(ctx, pod, port, token, path, parameters, answer)
		if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Code != http.StatusTooManyRequests {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(busyPause):
		}
	}
}

func (q *questions) getOnce(
	ctx context.Context, pod string, port int32, token, path string, parameters url.Values, answer any,
) error {
	var code int
	request := q.CoreV1().RESTClient().Get().MaxRetries(0).Namespace(q.namespace).Resource("pods").
		Name(fmt.Sprintf("http:%s:%d", pod, port)).SubResource("proxy").Suffix(path)
	for name, values := range parameters {
		for _, v := range values {
			request.Param(name, v)
		}
	}
	text, err := request.SetHeader(diagnosis.TokenHeader, token).Do(ctx).StatusCode(&code).Raw()
	if err != nil {
		refused := &RefusedError{Code: code}
		if json.Unmarshal(text, &refused.Refusal) == nil && refused.Refusal.Error != "" {
			return refused
		}
		if len(text) > 0 && text[0] != '{' { // in the words of the proxy
			const limit = 400
			return errors.New(strings.ToValidUTF8(strings.TrimSpace(string(text[:min(len(text), limit)])), ""))
		}
		status := &metav1.Status{}
		if json.Unmarshal(text, status) == nil && status.Message != "" && apierrors.IsServiceUnavailable(err) {
			return errors.New(status.Message) // of the proxy, which has no connection
		}
		return unwrapProxyError(err)
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("the answer of the broker cannot be read: %w", err)
	}
	return nil
}

// unwrapProxyError is what the proxy of the API server says, in place of the general text of a client for its code.
func unwrapProxyError(err error) error {
	status, ok := errors.AsType[*apierrors.StatusError](err)
	if !ok || status.ErrStatus.Details == nil {
		return err
	}
	for _, c := range status.ErrStatus.Details.Causes {
		if c.Type == metav1.CauseTypeUnexpectedServerResponse && c.Message != "" && c.Message != "unknown" {
			return errors.New(strings.TrimSpace(c.Message))
		}
	}
	return err
}

// describePod says how a pod is, and where its reports are: at the port with a name, or at another one.
func describePod(pod *corev1.Pod, portName string, port int32) Pod {
	p := Pod{Name: pod.Name, Node: pod.Spec.NodeName, Running: pod.Status.Phase == corev1.PodRunning,
		port: port}
	for _, c := range pod.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name == portName {
				p.port = port.ContainerPort
			}
		}
	}
	for _, c := range pod.Status.Conditions {
		switch {
		case c.Type == corev1.PodReady:
			p.Ready = c.Status == corev1.ConditionTrue
		case c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse:
			p.Problem = joinTexts(p.Problem, c.Reason, c.Message)
		}
	}
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		switch {
		case c.State.Waiting != nil:
			p.Running = false
			p.Problem = joinTexts(p.Problem, c.State.Waiting.Reason)
			if c.State.Waiting.Reason != crashLoop { // its message tells no more
				p.Problem = joinTexts(p.Problem, c.State.Waiting.Message)
			}
		case c.State.Terminated != nil:
			p.Running = false
			p.Problem = joinTexts(p.Problem, c.State.Terminated.Reason, lastLine(c.State.Terminated.Message))
		}
		if last := c.LastTerminationState.Terminated; last != nil {
			p.Ended = describeEnd(last, c.RestartCount)
			if !p.Running {
				p.Problem = joinTexts(p.Problem, p.Ended, lastLine(last.Message))
			}
		}
	}
	if pod.Status.Reason != "" || pod.DeletionTimestamp != nil {
		p.Problem = joinTexts(p.Problem, pod.Status.Reason, pod.Status.Message)
	}
	return p
}

const crashLoop = "CrashLoopBackOff" // kubelet's word

// lastLine is the last line of what a program has logged, where it mostly says why it ends.
func lastLine(message string) string {
	const limit = 400
	lines := strings.Split(strings.TrimSpace(message), "\n")
	last := lines[len(lines)-1]
	if len(last) > limit {
		last = strings.ToValidUTF8(last[:limit], "") + "..."
	}
	return last
}

// describeEnd says how a container ended.
func describeEnd(end *corev1.ContainerStateTerminated, restarts int32) string {
	text := fmt.Sprintf("its program ended with exit code %d", end.ExitCode)
	if end.Reason != "" && end.Reason != "Error" {
		text += " (" + end.Reason + ")"
	}
	if !end.FinishedAt.IsZero() {
		text += " at " + end.FinishedAt.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("%s, and has been started %d times again", text, restarts)
}

// findDeadNodes returns why nodes of pods are not ready, by name. What this user may not know is no problem.
func (q *questions) findDeadNodes(ctx context.Context, pods []corev1.Pod) map[string]string {
	names := map[string]bool{}
	for i := range pods {
		if len(names) < maxAsked && pods[i].Spec.NodeName != "" {
			names[pods[i].Spec.NodeName] = true
		}
	}
	var mu sync.Mutex // guards dead
	var all sync.WaitGroup
	dead := map[string]string{}
	for name := range names {
		all.Go(func() {
			n, err := q.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return
			}
			for _, c := range n.Status.Conditions {
				if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
					mu.Lock()
					dead[name] = fmt.Sprintf("since %s: %s", c.LastTransitionTime.UTC().Format(time.RFC3339),
						joinTexts(c.Reason, c.Message))
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	return dead
}

// lastEvent is the last warning about a pod; empty: there is none, or it cannot be had.
func (q *questions) lastEvent(ctx context.Context, pod *corev1.Pod) string {
	list, err := q.CoreV1().Events(q.namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "type=Warning,involvedObject.name=" + pod.Name, Limit: maxList,
	})
	if err != nil || len(list.Items) == 0 {
		return ""
	}
	last := slices.MaxFunc(list.Items, func(a, b corev1.Event) int { return timeOf(&a).Compare(timeOf(&b)) })
	return joinTexts(last.Reason, last.Message)
}

func timeOf(e *corev1.Event) time.Time {
	switch {
	case e.Series != nil:
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	}
	return e.EventTime.Time
}

// joinTexts joins texts that are not empty to one line.
func joinTexts(texts ...string) string {
	texts = slices.DeleteFunc(texts, func(s string) bool { return s == "" })
	return strings.ReplaceAll(strings.Join(texts, ": "), "\n", " ")
}
