package writeback

import (
	"context"
	"encoding/json"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// fakeAPI is controller-runtime's fake client in place of the API server: it keeps objects and their versions. It
// notes the writes, and fails the ones that a test names.
type fakeAPI struct {
	client.Client
	mu     sync.Mutex       // guards writes while several goroutines write
	writes []string         // verb and name, in their order
	fail   map[string]error // by verb and name
	apply  string           // what was applied last, as JSON
}

func newFakeAPI(t *testing.T, objects ...client.Object) *fakeAPI {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	a := &fakeAPI{fail: map[string]error{}}
	note := func(verb, name string) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.writes = append(a.writes, verb+" "+name)
		return a.fail[verb+" "+name]
	}
	a.Client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.KubeLink{}, &v1alpha1.MeshService{}).
		WithInterceptorFuncs(interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				if err := note("create", o.GetName()); err != nil {
					return err
				}
				return c.Create(ctx, o, opts...)
			},
			Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
				if err := note("update", o.GetName()); err != nil {
					return err
				}
				return c.Update(ctx, o, opts...)
			},
			Patch: func(
				ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption,
			) error {
				if err := note("patch", o.GetName()); err != nil {
					return err
				}
				return c.Patch(ctx, o, p, opts...)
			},
			Apply: func(_ context.Context, _ client.WithWatch, o runtime.ApplyConfiguration, _ ...client.ApplyOption) error {
				data, err := json.Marshal(o)
				if err != nil {
					return err
				}
				a.apply = string(data)
				return note("apply", "certificate")
			},
			SubResourcePatch: func(
				ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch,
				opts ...client.SubResourcePatchOption,
			) error {
				if err := note(sub, o.GetName()); err != nil {
					return err
				}
				return c.SubResource(sub).Patch(ctx, o, p, opts...)
			},
		}).Build()
	return a
}

// getLink returns a KubeLink as a cache would have it; nil: there is none.
func (a *fakeAPI) getLink(t *testing.T, name string) *v1alpha1.KubeLink {
	t.Helper()
	var l v1alpha1.KubeLink
	if err := a.Get(t.Context(), client.ObjectKey{Name: name}, &l); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	} else if err != nil {
		return nil
	}
	return &l
}

// takeWrites returns the writes since the last call.
func (a *fakeAPI) takeWrites() []string {
	writes := a.writes
	a.writes = nil
	return writes
}
