package crds

// The CRDs at an API server that a test plays.

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// stub plays an API server that has CRDs.
type stub struct {
	mu       sync.Mutex
	versions map[string]string // by CRD
	applied  []string          // names of CRDs, in the order of their applies
	refuse   int               // HTTP status for applies; 0: they succeed
	failures int               // applies that are refused before they succeed; 0: all
	served   bool              // KubeLinks are served
}

const path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"

func (s *stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	name, isCRD := strings.CutPrefix(r.URL.Path, path)
	switch {
	case !isCRD && s.served:
		json.NewEncoder(w).Encode(metav1.APIResourceList{APIResources: []metav1.APIResource{{Name: "kubelinks"}}})
	case !isCRD:
		s.fail(w, http.StatusNotFound)
	case r.Method == http.MethodGet:
		if version, ok := s.versions[name]; ok {
			fmt.Fprint(w, crdText(name, version))
		} else {
			s.fail(w, http.StatusNotFound)
		}
	case s.refuse != 0:
		refuse := s.refuse
		if s.failures--; s.failures == 0 {
			s.refuse = 0
		}
		s.fail(w, refuse)
	default:
		s.applied = append(s.applied, name)
		s.versions[name] = strconv.Itoa(version)
		s.served = s.served || name == kubeLinkCRD
		fmt.Fprint(w, crdText(name, strconv.Itoa(version)))
	}
}

func (s *stub) fail(w http.ResponseWriter, code int) {
	reason := map[int]metav1.StatusReason{403: metav1.StatusReasonForbidden, 404: metav1.StatusReasonNotFound}[code]
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason,
	})
}

func crdText(name, version string) string {
	return fmt.Sprintf(`{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition",
		"metadata":{"name":%q,"annotations":{%q:%q}},"status":{"conditions":[{"type":"Established","status":"True"}]}}`,
		name, v1alpha1.CRDVersion, version)
}

var names = []string{
	"corednsentries.coredns.mandelsoft.org", "hostedzones.coredns.mandelsoft.org",
	"kubelinks.kubelink.mandelsoft.org", "linkgateways.kubelink.mandelsoft.org", "meshservices.kubelink.mandelsoft.org",
}

func newInstaller(t *testing.T, s *stub, force bool) (*Installer, *[]error, *strings.Builder) {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	var notes []error
	log := &strings.Builder{}
	i, err := New(&rest.Config{Host: server.URL}, force, func(err error) { notes = append(notes, err) },
		slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return i, &notes, log
}

// The version of the CRDs, and a hash of what they let pass and show.
const (
	version     = 3
	fingerprint = "6a4a4aa56f1f8ec7"
)

// Each CRD has the version; all have the same. A change of one raises it: else a broker from before the change, which
// may run beside this one, puts its own CRDs back, and fields that it does not know are gone.
func TestDefinitions(t *testing.T) {
	all, err := ReadDefinitions()
	if err != nil || len(all) != len(names) {
		t.Fatalf("%d CRDs, %v", len(all), err)
	}
	hash := fnv.New64a()
	for _, crd := range all {
		if v := readVersion(crd); v != version || !slices.Contains(names, crd.GetName()) {
			t.Errorf("%s has version %d", crd.GetName(), v)
		}
		text, err := json.Marshal(withoutDescriptions(crd.Object["spec"]))
		if err != nil {
			t.Fatal(err)
		}
		hash.Write(text)
	}
	if now := fmt.Sprintf("%x", hash.Sum64()); now != fingerprint {
		t.Errorf("a CRD has changed: raise crd-version in the markers of all kinds in broker/api, run make generate, and "+
			"note the version and the fingerprint %s here", now)
	}
}

// withoutDescriptions returns a value of JSON without the texts that explain fields.
func withoutDescriptions(value any) any {
	switch v := value.(type) {
	case map[string]any:
		kept := make(map[string]any, len(v))
		for key, part := range v {
			if _, text := part.(string); key != "description" || !text {
				kept[key] = withoutDescriptions(part)
			}
		}
		return kept
	case []any:
		kept := make([]any, len(v))
		for i := range v {
			kept[i] = withoutDescriptions(v[i])
		}
		return kept
	}
	return value
}

// kubectl explain has a text for each field of our own kinds.
func TestFieldsExplained(t *testing.T) {
	all, err := ReadDefinitions()
	if err != nil {
		t.Fatal(err)
	}
	for _, crd := range all {
		versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
		if err != nil || len(versions) == 0 {
			t.Fatalf("%s: %v", crd.GetName(), err)
		}
		for _, v := range versions {
			spec, ok, err := unstructured.NestedMap(v.(map[string]any), "schema", "openAPIV3Schema", "properties", "spec")
			if !ok || err != nil {
				t.Fatalf("%s has no spec: %v", crd.GetName(), err)
			}
			checkExplained(t, crd.GetName()+" spec", spec)
		}
	}
}

func checkExplained(t *testing.T, path string, field map[string]any) {
	t.Helper()
	if text, _ := field["description"].(string); text == "" {
		t.Errorf("%s has no description", path)
	}
	if items, ok := field["items"].(map[string]any); ok {
		field = items
	}
	properties, _ := field["properties"].(map[string]any)
	for name, p := range properties {
		checkExplained(t, path+"."+name, p.(map[string]any))
	}
}

// A newer CRD is never replaced, unless a user says so.
func TestVersions(t *testing.T) {
	for _, c := range []struct {
		version string
		force   bool
		applied bool
	}{
		{"", false, true}, {"0", false, true}, {strconv.Itoa(version), false, true},
		{strconv.Itoa(version + 1), false, false}, {"10", false, false}, {"10", true, true}, {"2.1", false, false},
		{"2.1", true, true},
	} {
		s := &stub{served: true, versions: map[string]string{names[1]: c.version}}
		i, notes, log := newInstaller(t, s, c.force)
		for range 2 {
			if err := i.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := slices.Contains(s.applied, names[1]); got != c.applied {
			t.Errorf("version %q, force %v: applied %v", c.version, c.force, got)
		}
		if !slices.Contains(s.applied, names[0]) || (*notes)[0] != nil {
			t.Errorf("version %q: applied %v, %v", c.version, s.applied, *notes)
		}
		want := 1
		if c.applied {
			want = 0
		}
		if n := strings.Count(log.String(), "of a newer kubelink"); n != want {
			t.Errorf("version %q: logged %d times: %s", c.version, n, log)
		}
	}
}

// A CRD that cannot be applied is tried again, and said once. Without the permission it is not tried again.
func TestRefused(t *testing.T) {
	s := &stub{served: true, versions: map[string]string{}, refuse: 500, failures: 5}
	i, notes, log := newInstaller(t, s, false)
	if err := i.Await(t.Context()); err != nil {
		t.Errorf("KubeLinks are served, but: %v", err)
	}
	i.Start(t.Context())
	if last := len(*notes) - 1; last < 1 || (*notes)[0] == nil || (*notes)[last] != nil || len(s.versions) != len(names) {
		t.Errorf("notes %v, CRDs %v", *notes, s.versions)
	}
	if text := log.String(); strings.Count(text, "CRDs are not up to date") > 2 ||
		strings.Count(text, "CRDs are up to date") != 1 {
		t.Errorf("logged %s", text)
	}

	s = &stub{served: true, versions: map[string]string{}, refuse: 403}
	i, notes, log = newInstaller(t, s, false)
	i.Start(t.Context())
	if len(*notes) != 1 || (*notes)[0] == nil || strings.Count(log.String(), "disable-deploy-crds") != 1 {
		t.Errorf("notes %v, logged %s", *notes, log)
	}
}

// Only the CRD without which there are no links is awaited.
func TestAwait(t *testing.T) {
	s := &stub{versions: map[string]string{}}
	i, _, _ := newInstaller(t, s, false)
	if err := i.Await(t.Context()); err != nil || !slices.Equal(s.applied, []string{kubeLinkCRD}) {
		t.Errorf("applied %v, %v", s.applied, err)
	}
	s = &stub{versions: map[string]string{}, refuse: 500}
	i, _, _ = newInstaller(t, s, false)
	if err := i.Await(t.Context()); err == nil || !strings.Contains(err.Error(), "install CRD "+kubeLinkCRD) {
		t.Errorf("%v", err)
	}
}
