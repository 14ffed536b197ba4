// Package crds brings the CustomResourceDefinitions of kubelink to the API server. They help, but decide nothing: with
// the ones that are served already, links come up, also where the new ones cannot be installed.
package crds

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/deadline"
	"github.com/mandelsoft/kubelink/broker/onchange"
	"github.com/mandelsoft/kubelink/deploy"
)

// maxAttempts bounds how often Await asks a slow API server.
const maxAttempts = 4

const (
	kubeLinks   = "kubelinks" // resource without which there are no links
	kubeLinkCRD = kubeLinks + ".kubelink.mandelsoft.org"
)

var resource = schema.GroupVersionResource{
	Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
}

// Installer installs the CRDs. It has one user at a time.
type Installer struct {
	Force bool        // replace newer ones, too
	Note  func(error) // called with the reason why the CRDs are not up to date; nil: they are
	Log   *slog.Logger

	api      rest.Interface
	crds     dynamic.ResourceInterface
	limit    deadline.Limit // of requests
	problem  onchange.Error // as logged
	reported map[string]bool
}

// New returns an Installer for an API server. It asks for nothing yet.
func New(cfg *rest.Config, force bool, note func(error), log *slog.Logger) (*Installer, error) {
	d, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, err
	}
	crds, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	return &Installer{
		Force: force, Note: note, Log: log, api: d.RESTClient(), crds: crds.Resource(resource),
		limit: deadline.New(deadline.First), reported: map[string]bool{},
	}, nil
}

// Await returns when the API server serves KubeLinks. It installs their CRD if it must; the error is why it cannot.
func (i *Installer) Await(ctx context.Context) error {
	served, err := i.isServed(ctx)
	for attempt := 1; deadline.IsTimeout(err) && attempt < maxAttempts; attempt++ { // the next one has more time
		served, err = i.isServed(ctx)
	}
	if served || err != nil {
		return err
	}
	all, err := ReadDefinitions()
	if err != nil {
		return err
	}
	for _, crd := range all {
		if crd.GetName() == kubeLinkCRD {
			err = errors.Join(err, i.installCRD(ctx, crd))
		}
	}
	return err
}

// isServed asks the API server whether it serves KubeLinks.
func (i *Installer) isServed(ctx context.Context) (bool, error) {
	list := &metav1.APIResourceList{}
	err := i.limit.Do(ctx, func(ctx context.Context) error {
		return i.api.Get().AbsPath("/apis/" + v1alpha1.GroupVersion.String()).Do(ctx).Into(list)
	})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask which kinds are served: %w", err)
	}
	return slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == kubeLinks }), nil
}

// firstRetry is the pause after the first attempt that fails; the pauses grow to longestRetry.
const (
	firstRetry   = time.Second
	longestRetry = 2 * time.Minute
)

// Start brings all CRDs up to date. It tries again until it succeeds, ctx ends, or there is no permission. It
// implements manager.Runnable.
func (i *Installer) Start(ctx context.Context) error {
	all, err := ReadDefinitions()
	if err != nil {
		return err
	}
	backoff := wait.Backoff{Duration: firstRetry / 2, Cap: longestRetry / 2, Factor: 2, Jitter: 1, Steps: math.MaxInt}
	for ctx.Err() == nil {
		var errs []error
		for _, crd := range all {
			errs = append(errs, i.installCRD(ctx, crd.DeepCopy()))
		}
		err := errors.Join(errs...)
		if ctx.Err() != nil {
			return nil
		}
		i.reportResult(err)
		if err == nil || !slices.ContainsFunc(errs, func(e error) bool { return e != nil && !apierrors.IsForbidden(e) }) {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff.Step()):
		}
	}
	return nil
}

// reportResult tells how the last attempt ended, when that is news.
func (i *Installer) reportResult(err error) {
	i.Note(err)
	switch before := i.problem.Get(); {
	case !i.problem.Set(err):
	case apierrors.IsForbidden(err):
		i.Log.Warn("no permission to install CRDs: install them by hand, or set disable-deploy-crds", "error", err)
	case err != nil:
		i.Log.Warn("CRDs are not up to date; links and names use the ones that are there", "error", err)
	case before != nil:
		i.Log.Info("CRDs are up to date")
	}
}

// installCRD applies one CRD (server-side apply), unless a newer one is there, and waits until the API server serves
// it.
func (i *Installer) installCRD(ctx context.Context, crd *unstructured.Unstructured) error {
	name := crd.GetName()
	var present *unstructured.Unstructured
	err := i.limit.Do(ctx, func(ctx context.Context) (err error) {
		present, err = i.crds.Get(ctx, name, metav1.GetOptions{})
		return err
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read CRD %s: %w", name, err)
	}
	if ours, theirs := readVersion(crd), readVersion(present); err == nil && theirs > ours && !i.Force {
		if !i.reported[name] {
			i.reported[name] = true
			i.Log.Warn("the CRD is of a newer kubelink and stays as it is: update this kubelink, or set force-crd-update",
				"crd", name, "version", present.GetAnnotations()[v1alpha1.CRDVersion], "own version", ours)
		}
		return nil
	}
	err = i.limit.Do(ctx, func(ctx context.Context) (err error) {
		present, err = i.crds.Apply(ctx, name, crd, metav1.ApplyOptions{FieldManager: "kubelink", Force: true})
		return err
	})
	if err != nil {
		return fmt.Errorf("install CRD %s: %w", name, err)
	}
	return i.awaitEstablished(ctx, present)
}

// awaitEstablished waits until the API server serves a CRD.
func (i *Installer) awaitEstablished(ctx context.Context, crd *unstructured.Unstructured) error {
	name := crd.GetName()
	err := i.limit.Do(ctx, func(ctx context.Context) error {
		return wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (_ bool, err error) {
			if !isEstablished(crd) {
				crd, err = i.crds.Get(ctx, name, metav1.GetOptions{})
			}
			return err == nil && isEstablished(crd), err
		})
	})
	if err != nil {
		return fmt.Errorf("CRD %s is not served: %w", name, err)
	}
	return nil
}

// ReadDefinitions returns the CRDs of this version.
func ReadDefinitions() ([]*unstructured.Unstructured, error) {
	files, err := fs.Glob(deploy.CRDs, "crds/*.yaml")
	if err != nil {
		return nil, err
	}
	var all []*unstructured.Unstructured
	for _, f := range files {
		data, err := deploy.CRDs.ReadFile(f)
		if err != nil {
			return nil, err
		}
		crd := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(data, &crd.Object); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		all = append(all, crd)
	}
	return all, nil
}

// readVersion returns the version of a CRD: that of kubelink's kinds, which grows with each change of them. A CRD
// without a version is older than all versions, nil is none, and one with a version that cannot be read is newer: a
// later kubelink may write it in another way.
func readVersion(crd *unstructured.Unstructured) int {
	if crd == nil {
		return 0
	}
	text := crd.GetAnnotations()[v1alpha1.CRDVersion]
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return math.MaxInt
	}
	return n
}

func isEstablished(crd *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	return slices.ContainsFunc(conditions, func(c any) bool {
		m, ok := c.(map[string]any)
		return ok && m["type"] == "Established" && m["status"] == "True"
	})
}
