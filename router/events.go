package router

// Events at the Node: what is in the way. `kubectl describe node` shows them.

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/onchange"
)

const (
	component = "kubelink-router"
	// eventInterval is how often an Event says again what goes on: an API server forgets Events after an hour.
	eventInterval = 50 * time.Minute
	// maxEvents bounds the Events that wait for the API server, and the ones of a look.
	maxEvents   = 16
	maxNote     = 1000 // bytes; the API server takes 1024
	maxInstance = 128  // bytes that the API server takes
	eventTime   = 10 * time.Second
)

// events writes Events in a goroutine of its own: the API server may be away.
type events struct {
	client *rest.RESTClient // nil: none
	node   string
	log    *slog.Logger
	queue  chan link.Finding
	told   map[link.Finding]time.Time // by reportFindings only
	failed onchange.Error
	limit  *rate.Limiter // of new Events: a finding that comes and goes must not flood the API server
}

func newEvents(w *watcher, node string, log *slog.Logger) *events {
	e := &events{node: node, log: log, queue: make(chan link.Finding, maxEvents), told: map[link.Finding]time.Time{},
		limit: newEventLimit()}
	if client, err := w.newClient(eventsv1.SchemeGroupVersion, "/apis"); err == nil && node != "" {
		e.client = client
	}
	return e
}

// newEventLimit bounds Events as lines of the log.
func newEventLimit() *rate.Limiter { return rate.NewLimiter(rate.Every(lineInterval), lineBurst) }

// reportFindings makes an Event of each finding that is new, or old and goes on. It does not block.
func (e *events) reportFindings(findings link.Findings) {
	told := map[link.Finding]time.Time{}
	for _, f := range findings {
		at, known := e.told[f]
		switch {
		case known && time.Since(at) < eventInterval:
			told[f] = at
		case len(told) == maxListed || len(e.queue) == cap(e.queue) || !e.limit.Allow(): // a later look tells it
		default:
			e.queue <- f // which nothing else fills
			told[f] = time.Now()
		}
	}
	e.told = told
}

// writeAll writes Events until ctx ends.
func (e *events) writeAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-e.queue:
			if e.client == nil {
				continue
			}
			err := e.writeEvent(ctx, f)
			if e.failed.Set(err) && err != nil && ctx.Err() == nil {
				e.log.Warn("cannot write Events at the node", "error", err)
			}
		}
	}
}

// writeEvent writes an Event. The uid of a node in Events is its name, as kubelet has it.
func (e *events) writeEvent(ctx context.Context, f link.Finding) error {
	ctx, cancel := context.WithTimeout(ctx, eventTime)
	defer cancel()
	note := f.String()
	if len(note) > maxNote {
		note = note[:maxNote] + "..."
	}
	event := &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{GenerateName: component + "-", Namespace: metav1.NamespaceDefault},
		EventTime:           metav1.NowMicro(),
		ReportingController: component, ReportingInstance: e.node[:min(len(e.node), maxInstance)],
		Action: "SetRoutes", Reason: f.Reason, Type: corev1.EventTypeWarning, Note: note,
		Regarding: corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: e.node, UID: types.UID(e.node)},
	}
	return e.client.Post().Namespace(metav1.NamespaceDefault).Resource("events").Body(event).Do(ctx).Error()
}
