package survey

// Pings that a broker sends.

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"k8s.io/client-go/kubernetes"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
)

// Ping has the broker that holds the links of a cluster ping the other end of a link.
func Ping(ctx context.Context, t Target, link string, size, count int) (*diagnosis.PingResult, error) {
	if t.Err != nil {
		return nil, t.Err
	}
	clients, err := kubernetes.NewForConfig(guardClient(t.API))
	if err != nil {
		return nil, err
	}
	q := &questions{Clientset: clients, namespace: t.Namespace}
	pods, err := q.listPods(ctx, brokerLabel)
	if err != nil {
		return nil, fmt.Errorf("list the brokers: %w", err)
	}
	token, err := q.requestToken(ctx)
	if err != nil {
		return nil, fmt.Errorf("request a token for %s: %w", diagnosis.ServiceAccount, err)
	}
	last := fmt.Errorf("there is no pod of kubelink in namespace %s: look at its Deployment", t.Namespace)
	for i := range pods {
		result := &diagnosis.PingResult{}
		port := describePod(&pods[i], "diagnosis", diagnosis.DefaultPort).port
		err := q.get(ctx, pods[i].Name, port, token, diagnosis.PingPath,
			diagnosis.PingParameters(link, size, count), result)
		if err == nil {
			return result, nil
		}
		last = fmt.Errorf("broker %s: %w", pods[i].Name, err)
		refused, ok := errors.AsType[*RefusedError](err)
		if ok && refused.Remedy != "" {
			last = fmt.Errorf("%w: %s", last, refused.Remedy)
		}
		if ok && refused.Code != http.StatusConflict { // another broker knows no more
			break
		}
	}
	return nil, last
}
