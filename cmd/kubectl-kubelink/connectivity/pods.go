package connectivity

// The pods of a test.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/survey"
	"github.com/mandelsoft/kubelink/cmd/kubelink/probe"
)

const (
	podLabel      = "kubelink-test" // value of the label app
	runLabel      = "kubelink.mandelsoft.org/test"
	containerName = "probe"
	dnsService    = "kubelink-dns"

	parallelPods = 32
	podPoll      = 500 * time.Millisecond
	removeTime   = 10 * time.Second // for pods that are removed at the end
	outlive      = 30 * time.Second // that a pod has beyond the test, if nothing removes it
	maxLog       = 1 << 20          // bytes
)

// runner runs pods in a namespace.
type runner struct {
	kubernetes.Interface
	namespace   string
	say         func(format string, args ...any)
	image       string // this and the next ones as the broker has them
	pullPolicy  corev1.PullPolicy
	pullSecrets []corev1.LocalObjectReference
	dns         string // host and port of kubelink's DNS service; empty: there is none
	run         string // a name for this test
}

// newRunner reads the pod of the broker, and finds the DNS service.
func newRunner(ctx context.Context, t *survey.Target, broker string) (*runner, error) {
	config := rest.CopyConfig(t.API)
	config.QPS, config.Burst = 100, 100
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	pod, err := clients.CoreV1().Pods(t.Namespace).Get(ctx, broker, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get the pod of the broker: %w", err)
	}
	main := pod.Spec.Containers[0]
	for _, k := range pod.Spec.Containers {
		if k.Name == "kubelink" {
			main = k
		}
	}
	r := &runner{Interface: clients, namespace: t.Namespace, image: main.Image, pullPolicy: main.ImagePullPolicy,
		pullSecrets: pod.Spec.ImagePullSecrets, run: rand.String(6)}
	service, err := clients.CoreV1().Services(t.Namespace).Get(ctx, dnsService, metav1.GetOptions{})
	switch {
	case err == nil && service.Spec.ClusterIP != "" && service.Spec.ClusterIP != corev1.ClusterIPNone:
		r.dns = net.JoinHostPort(service.Spec.ClusterIP, "53")
	case err != nil && !apierrors.IsNotFound(err):
		return nil, fmt.Errorf("get service %s: %w", dnsService, err)
	}
	return r, nil
}

// newPod makes the pod for a node. It has no rights at all, and ends by itself.
func (p *runner) newPod(number int, t *task, life time.Duration) (*corev1.Pod, error) {
	request := probe.Request{DNS: p.dns}
	for i := range t.links {
		request.Links = append(request.Links, t.links[i].Link)
	}
	text, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("%s-%s-%d", podLabel, p.run, number), Namespace: p.namespace,
			Labels: map[string]string{"app": podLabel, runLabel: p.run,
				"app.kubernetes.io/managed-by": "kubectl-kubelink"},
		},
		Spec: corev1.PodSpec{
			NodeName: t.node, RestartPolicy: corev1.RestartPolicyNever,
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			ActiveDeadlineSeconds:         ptr.To(int64((life + outlive).Seconds())),
			TerminationGracePeriodSeconds: ptr.To(int64(0)),
			AutomountServiceAccountToken:  ptr.To(false), EnableServiceLinks: ptr.To(false),
			ImagePullSecrets: p.pullSecrets,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: ptr.To(true), RunAsUser: ptr.To(int64(65532)), RunAsGroup: ptr.To(int64(65532)),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				Sysctls:        []corev1.Sysctl{{Name: "net.ipv4.ping_group_range", Value: probe.PingGroups}},
			},
			Containers: []corev1.Container{{
				Name: containerName, Image: p.image, ImagePullPolicy: p.pullPolicy,
				Args: []string{probe.Command, string(text)},
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"),
						corev1.ResourceMemory: resource.MustParse("32Mi")},
					Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
				},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: ptr.To(false), ReadOnlyRootFilesystem: ptr.To(true),
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}, nil
}

// runPod runs the pod of a node, and returns what it has printed. An error says why it has not printed all.
func (p *runner) runPod(ctx context.Context, number int, t *task) ([]probe.Result, error) {
	end, _ := ctx.Deadline()
	pod, err := p.newPod(number, t, time.Until(end))
	if err != nil {
		return nil, err
	}
	pods := p.CoreV1().Pods(p.namespace)
	defer p.removePod(ctx, pod.Name) // also if the answer got lost
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return nil, fmt.Errorf("create a pod: %w", err)
	}
	pod, ended := p.awaitEnd(ctx, pod)
	if pod.Status.Phase == corev1.PodPending {
		return nil, ended
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTime)
	defer cancel()
	options := &corev1.PodLogOptions{Container: containerName, LimitBytes: ptr.To(int64(maxLog))}
	text, err := pods.GetLogs(pod.Name, options).DoRaw(after)
	if err != nil {
		return nil, errors.Join(ended, fmt.Errorf("read the log of the pod: %w", err))
	}
	results, err := readResults(text)
	return results, errors.Join(ended, err)
}

// awaitEnd waits until the pod has ended, or cannot start. An error says what is in the way.
func (p *runner) awaitEnd(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	for {
		select {
		case <-ctx.Done():
			return pod, fmt.Errorf("the pod has not ended in time (--timeout): %s", describeWaiting(pod))
		case <-time.After(podPoll):
		}
		now, err := p.CoreV1().Pods(p.namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return pod, errors.New("something has removed the pod")
		case err != nil:
			continue
		}
		pod = now
		switch why := describeWaiting(pod); {
		case pod.Status.Phase == corev1.PodSucceeded:
			return pod, nil
		case pod.Status.Phase == corev1.PodFailed:
			return pod, errors.New("the pod has failed: " + why)
		case strings.HasPrefix(why, "ImagePullBackOff"), strings.HasPrefix(why, "ErrImageNeverPull"),
			strings.HasPrefix(why, "InvalidImageName"), strings.HasPrefix(why, "CreateContainerConfigError"):
			return pod, errors.New("the pod does not start: " + why)
		}
	}
}

// describeWaiting says how a pod is.
func describeWaiting(pod *corev1.Pod) string {
	for _, s := range pod.Status.ContainerStatuses {
		switch {
		case s.State.Waiting != nil:
			return strings.TrimSuffix(s.State.Waiting.Reason+": "+s.State.Waiting.Message, ": ")
		case s.State.Terminated != nil:
			return fmt.Sprintf("%s, exit code %d", s.State.Terminated.Reason, s.State.Terminated.ExitCode)
		case s.State.Running != nil:
			return "it runs"
		}
	}
	if pod.Status.Reason != "" {
		return strings.TrimSuffix(pod.Status.Reason+": "+pod.Status.Message, ": ")
	}
	return "kubelet of the node has not started it"
}

// readResults reads what a pod has printed. Its last line that is no result is the error.
func readResults(text []byte) (all []probe.Result, err error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		var r probe.Result
		if e := json.Unmarshal(lines.Bytes(), &r); e == nil && r.Check != "" {
			all = append(all, r)
		} else if line := strings.TrimSpace(lines.Text()); line != "" {
			err = errors.New("the pod says: " + line)
		}
	}
	return all, errors.Join(err, lines.Err())
}

// removePod removes a pod, also after the end of ctx.
func (p *runner) removePod(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTime)
	defer cancel()
	atOnce := metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))}
	err := p.CoreV1().Pods(p.namespace).Delete(ctx, name, atOnce)
	if err != nil && !apierrors.IsNotFound(err) {
		p.say("pod %s is left: %s; it ends by itself, and the next test removes it", name, err)
	}
}

// removeLeftovers removes the pods of tests that were killed. Those of a test that runs now are younger.
func (p *runner) removeLeftovers(ctx context.Context) {
	list, err := p.CoreV1().Pods(p.namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + podLabel})
	if err != nil {
		p.say("pods of earlier tests are not known: %s", err)
		return
	}
	for i := range list.Items {
		if pod := &list.Items[i]; isLeftover(pod, time.Now()) {
			p.say("pod %s of an earlier test is removed", pod.Name)
			p.removePod(ctx, pod.Name)
		}
	}
}

// isLeftover tells whether the test of a pod is over: it has ended some time ago, or should have.
func isLeftover(pod *corev1.Pod, now time.Time) bool {
	for _, s := range pod.Status.ContainerStatuses {
		if e := s.State.Terminated; e != nil && now.After(e.FinishedAt.Add(removeTime)) {
			return true
		}
	}
	life := time.Duration(ptr.Deref(pod.Spec.ActiveDeadlineSeconds, 0)) * time.Second
	return now.After(pod.CreationTimestamp.Add(life))
}
