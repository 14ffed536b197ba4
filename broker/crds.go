package broker

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/mandelsoft/kubelink/deploy"
)

// installCRDs applies the CRDs (server-side apply) and waits until the API server serves them.
// Without the permission to do so, what is there must do: the log says so.
func installCRDs(ctx context.Context, cfg *rest.Config, log *slog.Logger) error {
	c, err := client.New(cfg, client.Options{})
	if err != nil {
		return err
	}
	files, err := fs.Glob(deploy.CRDs, "crds/*.yaml")
	if err != nil {
		return err
	}
	for _, f := range files {
		data, err := deploy.CRDs.ReadFile(f)
		if err != nil {
			return err
		}
		crd := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(data, &crd.Object); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		if err := installCRD(ctx, c, crd, log); err != nil {
			return err
		}
	}
	return nil
}

// installCRD applies one CRD and waits until the API server serves it.
func installCRD(ctx context.Context, c client.Client, crd *unstructured.Unstructured, log *slog.Logger) error {
	name := crd.GetName()
	ctx, cancel := context.WithTimeout(ctx, 2*apiTimeout)
	defer cancel()
	apply := client.ApplyConfigurationFromUnstructured(crd)
	err := c.Apply(ctx, apply, client.FieldOwner("kubelink"), client.ForceOwnership)
	if apierrors.IsForbidden(err) {
		log.Warn("no permission to install the CRD: install it by hand, or set disable-deploy-crds", "crd", name)
		return nil
	}
	if err != nil {
		return fmt.Errorf("install CRD %s: %w", name, err)
	}
	if isEstablished(crd) {
		return nil
	}
	err = wait.PollUntilContextCancel(ctx, 50*time.Millisecond, false, func(ctx context.Context) (bool, error) {
		err := c.Get(ctx, client.ObjectKey{Name: name}, crd)
		return isEstablished(crd), err
	})
	if ctx.Err() != nil {
		return fmt.Errorf("CRD %s is not served: %w", name, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("CRD %s: %w", name, err)
	}
	return nil
}

func isEstablished(crd *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
			return true
		}
	}
	return false
}
