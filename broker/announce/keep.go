package announce

// What peers announce, on its way to KubeLinks and secrets.

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"strings"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

const (
	// secretRefresh is how often the keeper writes secrets that should be there unchanged.
	secretRefresh = 10 * time.Minute
	// secretRetry is how often the keeper tries to write a secret that the API server refuses.
	secretRetry = time.Minute
	// A peer may change what it announces as often as it likes. Of each link, the keeper writes adoptBurst changes at
	// once, and then one in each adoptInterval: the latest one.
	adoptBurst    = 30
	adoptInterval = 30 * time.Second
)

// Applier applies objects on the server side, as a client.Client does.
type Applier interface {
	Apply(ctx context.Context, object runtime.ApplyConfiguration, opts ...client.ApplyOption) error
}

// Keeper writes what peers announce to the API. It has one user at a time.
type Keeper struct {
	Client    Applier
	Namespace string // of the secrets
	Log       *slog.Logger

	secrets   map[string]secretAttempt // the last attempts, by link
	budgets   map[string]*rate.Limiter // of changes, by link
	forbidden bool                     // it was logged that secrets may not be written
}

// secretAttempt is the last attempt to write a link's secret.
type secretAttempt struct {
	access *link.APIInfo
	owner  types.UID // of the KubeLink
	at     time.Time
	note   string // why the API server refused it
}

// isFor tells whether it was the attempt to write this access for this KubeLink.
func (a secretAttempt) isFor(l *v1alpha1.KubeLink, access *link.APIInfo) bool {
	return a.owner == l.UID && reflect.DeepEqual(a.access, access)
}

// Keep writes the facts of a link, where they differ. The note says what the API server refuses: another attempt would
// end the same way.
func (k *Keeper) Keep(ctx context.Context, l *v1alpha1.KubeLink, f Facts) (note string, err error) {
	if f == (Facts{}) {
		return "", nil
	}
	secret := secretName(k.Namespace, l.Name)
	spec, access := f.adopt(l, secret)
	if k.differs(l, f, spec, access) {
		budget := k.budget(l.Name)
		if budget.Tokens() < 1 {
			return fmt.Sprintf("the peer changes what it announces too often: kubelink takes over one change in %s",
				adoptInterval), nil
		}
		defer func() {
			if err == nil { // what failed is tried again at once when the API server is back
				budget.Allow()
			}
		}()
	}
	if access {
		if note, err = k.keepSecret(ctx, l, secret, f.access); err != nil {
			return "", err
		}
		if note != "" { // no reference to what is not there; the rest is written
			f.access = nil
			spec, _ = f.adopt(l, secret)
		}
	}
	if spec == nil {
		return note, nil
	}
	err = k.applySpec(ctx, l, spec)
	if apierrors.IsInvalid(err) {
		refused := "what the peer announces is refused by the API server: " +
			shorten(strings.ReplaceAll(err.Error(), "\n", "; "))
		if note != "" {
			refused = note + "; " + refused
		}
		return refused, nil
	}
	if err == nil {
		k.Log.Info("the link takes over what its peer announces",
			"link", l.Name, "cidr", spec["cidr"], "dns", spec["dns"], "apiAccess", spec["apiAccess"])
	}
	return note, err
}

// differs tells whether a link lacks something of what its peer announces.
func (k *Keeper) differs(l *v1alpha1.KubeLink, f Facts, spec map[string]any, access bool) bool {
	return spec != nil || access && !k.secrets[l.Name].isFor(l, f.access)
}

// budget bounds the changes of a link.
func (k *Keeper) budget(link string) *rate.Limiter {
	if k.budgets[link] == nil {
		if k.budgets == nil {
			k.budgets = map[string]*rate.Limiter{}
		}
		k.forgetIdle()
		k.budgets[link] = rate.NewLimiter(rate.Every(adoptInterval), adoptBurst)
	}
	return k.budgets[link]
}

// forgetIdle forgets what is as good as not known: so nothing stays of links that are gone.
func (k *Keeper) forgetIdle() {
	maps.DeleteFunc(k.budgets, func(_ string, b *rate.Limiter) bool { return b.Tokens() >= adoptBurst })
	maps.DeleteFunc(k.secrets, func(_ string, a secretAttempt) bool { return time.Since(a.at) >= secretRefresh })
}

// applySpec applies the fields of the spec. The version makes it fail, and not create or overwrite anything, where the
// object is not the one any more for which the fields were decided. Nothing is forced, for the same reason.
func (k *Keeper) applySpec(ctx context.Context, l *v1alpha1.KubeLink, spec map[string]any) error {
	apply := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	apply.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("KubeLink"))
	apply.SetName(l.Name)
	apply.SetUID(l.UID)
	apply.SetResourceVersion(l.ResourceVersion)
	return k.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(apply), client.FieldOwner(fieldOwner))
}

// keepSecret writes the secret of a link. It does not read it: the API server knows which party owns its fields.
func (k *Keeper) keepSecret(
	ctx context.Context, l *v1alpha1.KubeLink, ref corev1.SecretReference, access *link.APIInfo,
) (note string, err error) {
	last := k.secrets[l.Name]
	pause := secretRefresh
	if last.note != "" {
		pause = secretRetry
	}
	if last.isFor(l, access) && time.Since(last.at) < pause {
		return last.note, nil
	}
	secret := corev1ac.Secret(ref.Name, ref.Namespace).
		WithLabels(map[string]string{"app.kubernetes.io/managed-by": "kubelink"}).
		WithOwnerReferences(metav1ac.OwnerReference().
			WithAPIVersion(v1alpha1.GroupVersion.String()).WithKind("KubeLink").WithName(l.Name).WithUID(l.UID)).
		WithType(corev1.SecretTypeOpaque).
		WithData(map[string][]byte{mesh.KeyToken: []byte(access.Token), mesh.KeyCA: access.CACert})
	err = k.Client.Apply(ctx, secret, client.FieldOwner(fieldOwner))
	switch {
	case apierrors.IsForbidden(err):
		note = fmt.Sprintf("the peer announces access to its API, but kubelink may not keep it: "+
			"allow it to create and patch secrets in namespace %s, as deploy/components/advertisement does, "+
			"or set spec.apiAccess", ref.Namespace)
		if !k.forbidden {
			k.forbidden = true
			k.Log.Warn("peers announce access to their API, but kubelink may not keep it: "+
				"allow it to create and patch secrets, as deploy/components/advertisement does, "+
				"or set spec.apiAccess of the links", "namespace", ref.Namespace)
		}
	case apierrors.IsConflict(err), apierrors.IsInvalid(err):
		note = fmt.Sprintf("the peer announces access to its API, but secret %s/%s was written by somebody else: "+
			"delete it, or set spec.apiAccess", ref.Namespace, ref.Name)
		k.Log.Warn("cannot keep the access to its API that a peer announces", "link", l.Name, "error", err)
	case err != nil:
		return "", fmt.Errorf("secret %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	if k.secrets == nil {
		k.secrets = map[string]secretAttempt{}
	}
	k.secrets[l.Name] = secretAttempt{access, l.UID, time.Now(), note}
	return note, nil
}

// secretName is where announced access to the API of a link's cluster is kept.
func secretName(namespace, link string) corev1.SecretReference {
	return corev1.SecretReference{Namespace: namespace, Name: mesh.AnnouncedSecretName(link)}
}
