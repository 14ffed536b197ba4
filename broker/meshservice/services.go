package meshservice

// The services as the broker has built them last. They are built again only when objects that count, or what they must
// fit into, have changed.

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// Services are the mesh services of this cluster. They stay when the API server is away. The zero value has none. Its
// methods may not be called concurrently.
type Services struct {
	objects  service.Objects
	reserved []mesh.Reserved
	complete bool // the objects were known once
	fresh    bool // nothing was built of the objects yet
	again    bool // they are to be read again, though nothing has changed
	built    service.Result
	offers   []mesh.Offer                  // what other clusters are told of built
	left     map[types.NamespacedName]bool // objects that this broker has served, and others may serve now
	reported bool                          // Reports of built are told
	told     []*Report                     // last, without those that are known to be written
	from     source
	problem  error // why the objects cannot be read
	at       time.Time
	took     time.Duration
}

// source is what the services were built from; equal sources make the same services.
type source struct {
	watch   *Watch // nil: nothing was read yet
	version uint64
	around  service.Surroundings
}

// Problem is why MeshServices, or what they name, cannot be read.
func (s *Services) Problem() error { return s.problem }

// List are the services. Readers do not change them.
func (s *Services) List() []service.Service { return s.built.Services }

// Reports are what users see of MeshServices. The map is not changed.
func (s *Services) Reports() map[types.NamespacedName]service.Report { return s.built.Reports }

// LinkNotes are what to know of KubeLinks, by name: which of the services their lists exclude. The map is not changed.
func (s *Services) LinkNotes() map[string]string { return s.built.LinkNotes }

// Offers are what other clusters are told of the services. Readers do not change them.
func (s *Services) Offers() []mesh.Offer { return s.offers }

// Reserved are the addresses that MeshServices keep from younger links.
func (s *Services) Reserved() []mesh.Reserved { return s.reserved }

// Read reads the objects, if they have changed. known is false while they are read for the first time: what an earlier
// process has told the kernel stays until then. A nil Watch has nothing to read.
func (s *Services) Read(ctx context.Context, w *Watch) (known bool) {
	if w == nil {
		return true
	}
	version, ready, failure := w.version.Load(), w.isReady(), w.failure.Get()
	switch {
	case ready:
		failure = nil // an informer that has failed goes on
	case s.complete:
		return true
	case failure == nil:
		s.problem = nil
		return s.from.watch == w || time.Since(w.born) > patience
	}
	same := s.from.watch == w && s.from.version == version
	if same && !s.again && (s.complete || !ready) || !same && s.postpone(w) {
		return true
	}
	s.problem = failure
	if err := s.readObjects(ctx, w); err != nil {
		s.problem = err
		return true
	}
	s.complete, s.again = ready, false
	s.from = source{watch: w, version: version} // and so they are built again
	return true
}

// postpone tells whether a change has to wait, and wakes the reconciler then: a burst of changes must not keep the
// processor busy with services that are old at once.
func (s *Services) postpone(w *Watch) bool {
	rest := time.Until(s.at.Add(4 * s.took))
	if s.from.watch != w || rest <= 0 {
		return false
	}
	time.AfterFunc(rest, w.Wake)
	return true
}

// readObjects reads MeshServices, and of services and EndpointSlices those that they name. Nothing here writes to
// them.
func (s *Services) readObjects(ctx context.Context, w *Watch) error {
	var list v1alpha1.MeshServiceList
	if w.listed.Load() {
		if err := w.cache.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
			return err
		}
	}
	used := map[types.NamespacedName]bool{}
	for i := range list.Items {
		if name := list.Items[i].Spec.Service; name != "" {
			used[types.NamespacedName{Namespace: list.Items[i].Namespace, Name: name}] = true
		}
	}
	// A change that the lists below do not have is one of an object that is used by now.
	w.used.Store(&used)
	objects := service.Objects{
		MeshServices: list.Items, Services: make(map[types.NamespacedName]*corev1.Service, len(used)),
		Slices: make(map[types.NamespacedName][]*discovery.EndpointSlice, len(used)),
	}
	if w.known.Load() && w.Backends {
		for key := range used {
			if err := readBackend(ctx, w.cache, key, &objects); err != nil {
				return err
			}
		}
	}
	s.objects, s.reserved, s.fresh = objects, service.Reserve(list.Items), true
	return nil
}

// readBackend reads a service and its EndpointSlices.
func readBackend(ctx context.Context, from client.Reader, key types.NamespacedName, to *service.Objects) error {
	found := &corev1.Service{}
	switch err := from.Get(ctx, key, found, client.UnsafeDisableDeepCopy); {
	case err == nil:
		to.Services[key] = found
	case !apierrors.IsNotFound(err):
		return err
	}
	var list discovery.EndpointSliceList
	err := from.List(ctx, &list, client.UnsafeDisableDeepCopy, client.InNamespace(key.Namespace),
		client.MatchingFields{fieldService: key.Name})
	for i := range list.Items {
		to.Slices[key] = append(to.Slices[key], &list.Items[i])
	}
	return err
}

// Build builds the services anew, if the objects or their surroundings have changed since.
func (s *Services) Build(ctx context.Context, around service.Surroundings) {
	w := s.from.watch
	if w == nil || sameSurroundings(&s.from.around, &around) {
		return
	}
	begin := time.Now()
	if !s.fresh { // their statuses are old
		if err := s.readObjects(ctx, w); err != nil {
			s.problem = err
			return
		}
		if s.complete {
			s.problem = nil
		}
	}
	s.noteWritten()
	before := s.built.Reports
	s.built = service.Build(&s.objects, &around)
	s.offers = service.Offers(s.built.Services)
	if !s.complete {
		s.reportUnreadable()
	}
	s.left = leftOf(s.left, before, s.built.Reports)
	reports := s.built.Reports // the field gets another map by the next Build, while the watch reads this one
	w.reports.Store(&reports)
	s.from.around, s.reported, s.fresh = around, false, false
	s.at = time.Now()
	s.took = s.at.Sub(begin)
}

// reportUnreadable has nothing said of MeshServices while the services that they name are not known, other than that
// rights are missing: all else is about to pass, as it does while the CRD is new.
func (s *Services) reportUnreadable() {
	for i := range s.objects.MeshServices {
		m := &s.objects.MeshServices[i]
		key := client.ObjectKeyFromObject(m)
		r, ok := s.built.Reports[key]
		switch {
		case !ok || m.Spec.Service == "":
		case !apierrors.IsForbidden(s.problem):
			delete(s.built.Reports, key)
		case !r.Weak:
			s.built.Reports[key] = service.Report{State: v1alpha1.StateStale, Message: fmt.Sprintf("the broker cannot read "+
				"services and EndpointSlices: give it the rights of deploy/base/rbac.yaml (%.300v)", s.problem)}
		}
	}
}

// leftOf are the objects that this broker has served before, and that others may serve now.
func leftOf(
	left map[types.NamespacedName]bool, before, now map[types.NamespacedName]service.Report,
) map[types.NamespacedName]bool {
	still := map[types.NamespacedName]bool{}
	for key, r := range now {
		old, known := before[key]
		if r.Weak && (left[key] || known && !old.Weak) {
			still[key] = true
		}
	}
	return still
}

// sameSurroundings compares what services depend on.
func sameSurroundings(a, b *service.Surroundings) bool {
	if a.Mode != b.Mode || a.Partial != b.Partial || a.State == nil || b.State == nil {
		return false
	}
	s, t := a.State, b.State
	return slices.Equal(s.Networks, t.Networks) && slices.Equal(s.Local, t.Local) &&
		slices.Equal(s.LocalPorts, t.LocalPorts) && reflect.DeepEqual(s.Broken, t.Broken) &&
		reflect.DeepEqual(s.Foreign, t.Foreign) && maps.Equal(s.Offers.Rivals, t.Offers.Rivals) &&
		reflect.DeepEqual(s.Meshes, t.Meshes) && reflect.DeepEqual(s.Unserved, t.Unserved) &&
		reflect.DeepEqual(s.Lists, t.Lists) && reflect.DeepEqual(a.Host, b.Host)
}
