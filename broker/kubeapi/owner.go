package kubeapi

// Does a process end because what runs it ends for good, or because it is replaced? The API server is asked for one
// object, by its name.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

const (
	// askTime is how long the API server may take at the end of the process.
	askTime = 3 * time.Second
	// firstAskPause is between requests at its start.
	firstAskPause = 10 * time.Second
)

// Owner is the DaemonSet, or the Deployment, that runs this process. A nil Owner is none.
type Owner struct {
	client    rest.Interface // of the group apps
	resource  string         // such as daemonsets
	namespace string
	name      string

	mu  sync.Mutex // guards uid
	uid types.UID  // as the process has seen it; empty: not yet
}

// NewOwner returns the object of a resource of the group apps; without name there is none.
func NewOwner(client rest.Interface, resource, namespace, name string) *Owner {
	if name == "" {
		return nil
	}
	return &Owner{client: client, resource: resource, namespace: namespace, name: name}
}

// DeploymentOf is the name of the Deployment that made a pod, by the name of the pod; empty: none did.
func DeploymentOf(pod string) string {
	parts := strings.Split(pod, "-") // Deployment, hash of its template, number of the pod
	return strings.Join(parts[:max(0, len(parts)-2)], "-")
}

// AwaitFirst looks until it has seen the object, and tells whether it has. One that was never there cannot be gone: the
// process may run otherwise.
func (o *Owner) AwaitFirst(ctx context.Context) bool {
	for o != nil {
		is, err := o.read(ctx)
		if err == nil {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.uid = is.Metadata.UID
			return true
		}
		if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(firstAskPause):
		}
	}
	return false
}

// IsGone tells whether the API server says that the object is gone, is being deleted, or is to have no pods. No answer
// says nothing.
func (o *Owner) IsGone() bool {
	if o == nil {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.uid == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	is, err := o.read(ctx)
	if err != nil {
		return o.isAbsence(err)
	}
	scaledDown := is.Spec.Replicas != nil && *is.Spec.Replicas == 0
	return is.Metadata.UID == o.uid && (is.Metadata.DeletionTimestamp != nil || scaledDown)
}

// isAbsence tells whether an API server says that it has no such object. What stands before it, such as a load balancer
// without a back end, may answer 404, too: client-go marks that, for it is no Status.
func (o *Owner) isAbsence(err error) bool {
	status, ok := errors.AsType[*apierrors.StatusError](err)
	if !ok || !apierrors.IsNotFound(err) || status.ErrStatus.Details == nil {
		return false
	}
	details := status.ErrStatus.Details
	unexpected := func(c metav1.StatusCause) bool { return c.Type == metav1.CauseTypeUnexpectedServerResponse }
	return details.Kind == o.resource && details.Name == o.name && !slices.ContainsFunc(details.Causes, unexpected)
}

// owner is what counts of the object.
type owner struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		Replicas *int32 `json:"replicas"` // of a Deployment
	} `json:"spec"`
}

func (o *Owner) read(ctx context.Context) (*owner, error) {
	result := o.client.Get().Namespace(o.namespace).Resource(o.resource).Name(o.name).Do(ctx)
	text, err := result.Raw()
	if err != nil {
		return nil, result.Error() // which Raw does not read from the answer
	}
	var is owner
	if err := json.Unmarshal(text, &is); err != nil || is.Metadata.Name != o.name || is.Metadata.UID == "" {
		return nil, fmt.Errorf("the answer for %s %s is no object of an API server: %v", o.resource, o.name, err)
	}
	return &is, nil
}
