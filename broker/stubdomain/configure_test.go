package stubdomain

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// apiServer plays the API server with the two ConfigMaps and the Deployment.
type apiServer struct {
	client.Reader
	cache.Informer
	configMaps map[string]map[string]string // data by name
	errors     map[string]error             // by verb and name
	patches    []string                     // names
	restarts   map[string]int               // by annotation
	changed    func()                       // nil: no watch
}

func (s *apiServer) fail(verb, name string) error {
	if err := s.errors[verb+" "+name]; err != nil {
		return err
	}
	if _, ok := s.configMaps[name]; !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
	}
	return nil
}

func (s *apiServer) Get(_ context.Context, key client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	if err := s.fail("get", key.Name); err != nil {
		return err
	}
	m := o.(*corev1.ConfigMap)
	m.Namespace, m.Name, m.Data = key.Namespace, key.Name, s.configMaps[key.Name]
	return nil
}

func (s *apiServer) Patch(_ context.Context, o client.Object, p client.Patch, _ ...client.PatchOption) error {
	data, err := p.Data(o)
	if err != nil {
		return err
	}
	kind := o.GetObjectKind().GroupVersionKind().Kind
	s.patches = append(s.patches, strings.TrimPrefix(kind+" "+o.GetName(), " "))
	if kind == "Deployment" {
		if err := s.errors["restart"]; err != nil {
			return err
		}
		s.restarts[string(data)]++
		return nil
	}
	if err := s.fail("patch", o.GetName()); err != nil {
		return err
	}
	var patch struct{ Data map[string]*string }
	if err := json.Unmarshal(data, &patch); err != nil {
		return err
	}
	for key, value := range patch.Data {
		if value == nil {
			delete(s.configMaps[o.GetName()], key)
		} else {
			s.configMaps[o.GetName()][key] = *value
		}
	}
	return nil
}

func (s *apiServer) GetInformer(context.Context, client.Object, ...cache.InformerGetOption) (cache.Informer, error) {
	return s, nil
}

func (s *apiServer) AddEventHandler(
	h toolscache.ResourceEventHandler,
) (toolscache.ResourceEventHandlerRegistration, error) {
	s.changed = func() { h.OnUpdate(nil, nil) }
	return nil, nil
}

const (
	good     = ".:53 {\n  reload\n}\nimport custom/*.server\n"
	noReload = ".:53 {\n  errors\n}\nimport custom/*.server\n"
	noImport = ".:53 {\n  reload\n}\n"
)

func newAPIServer(corefile string) *apiServer {
	return &apiServer{
		configMaps: map[string]map[string]string{"coredns": {"Corefile": corefile}, ConfigMap: {"other": "kept"}},
		errors:     map[string]error{}, restarts: map[string]int{},
	}
}

func (s *apiServer) configurer(restart *PendingRestart, wake func(), log *slog.Logger) *Configurer {
	return &Configurer{
		Client: s, Reader: s, Informers: s, Restart: restart, Interval: 30 * time.Second, Wake: wake, Log: log,
	}
}

func testStubs(domains ...string) (stubs []Stub) {
	for _, d := range domains {
		stubs = append(stubs, Stub{d, netip.MustParseAddr("100.64.0.11")})
	}
	return stubs
}

func TestConfigureNotes(t *testing.T) {
	resource := schema.GroupResource{Resource: "configmaps"}
	forbidden := apierrors.NewForbidden(resource, "x", nil)
	invalid := apierrors.NewInvalid(schema.GroupKind{Kind: "ConfigMap"}, strings.Repeat("long ", 100), nil)
	down := apierrors.NewServiceUnavailable("down")
	for _, c := range []struct {
		name   string
		edit   func(*apiServer)
		note   string
		fails  bool
		blocks bool // in the log
		watch  bool
	}{
		{"good", func(*apiServer) {}, "", false, false, true},
		{"no ConfigMap", func(s *apiServer) { delete(s.configMaps, ConfigMap) },
			"ConfigMap kube-system/coredns-custom does not exist", false, true, true},
		{"may not read it",
			func(s *apiServer) { s.errors["get "+ConfigMap] = forbidden },
			"kubelink may not read", false, true, false},
		{"may not write it",
			func(s *apiServer) { s.errors["patch "+ConfigMap] = forbidden },
			"kubelink may not read", false, true, true},
		{"immutable", func(s *apiServer) { s.errors["patch "+ConfigMap] = invalid }, "cannot be written", false, true, true},
		{"no import",
			func(s *apiServer) { s.configMaps["coredns"]["Corefile"] = noImport },
			"imports nothing", false, true, true},
		{"import of other files",
			func(s *apiServer) { s.configMaps["coredns"]["Corefile"] = noImport + "import custom/*.conf\n" },
			"does not include key kubelink.server", false, true, true},
		{"import that would break it",
			func(s *apiServer) {
				s.configMaps["coredns"]["Corefile"] = ".:53 {\n  import custom/*\n}\n"
				s.configMaps[ConfigMap][BlocksKey] = "an earlier one"
			}, "would break it", false, true, true},
		{"a block of the user", func(s *apiServer) { s.configMaps["coredns"]["Corefile"] = good + "kubelink:53 {\n}\n" },
			"which stays in force", false, false, true},
		{"no Corefile", func(s *apiServer) { delete(s.configMaps, "coredns") }, "", false, false, true},
		{"Corefile forbidden", func(s *apiServer) { s.errors["get coredns"] = forbidden }, "", false, false, true},
		{"server away", func(s *apiServer) { s.errors["get coredns"] = down }, "", true, false, false},
		{"server away later", func(s *apiServer) { s.errors["get "+ConfigMap] = down }, "", true, false, false},
		{"server away at last", func(s *apiServer) { s.errors["patch "+ConfigMap] = down }, "", true, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newAPIServer(good)
			c.edit(s)
			var log bytes.Buffer
			dns := s.configurer(&PendingRestart{}, func() {}, slog.New(slog.NewTextHandler(&log, nil)))
			err := dns.Configure(t.Context(), testStubs("kubelink"))
			if note := dns.note; (err != nil) != c.fails || (note == "") != (c.note == "") || !strings.Contains(note, c.note) {
				t.Errorf("note %q, %v", note, err)
			}
			if len(dns.note) > 2*maxNote || strings.Contains(dns.note, "\n") {
				t.Errorf("the note is no line: %q", dns.note)
			}
			if got := strings.Contains(log.String(), "forward . 100.64.0.11"); got != c.blocks {
				t.Errorf("logged: %s", log.String())
			}
			if (s.changed != nil) != c.watch {
				t.Errorf("watched: %v", s.changed != nil)
			}
			if strings.Contains(c.note, "would break it") && s.configMaps[ConfigMap][BlocksKey] != "" {
				t.Error("the key is there")
			}
			if data, ok := s.configMaps[ConfigMap]; ok && data["other"] != "kept" {
				t.Errorf("a foreign key is changed: %v", data)
			}
		})
	}
}

// The key follows the stubs, and what other programs change is changed back, after a pause.
func TestConfigureRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAPIServer(good)
		var woken atomic.Int32
		dns := s.configurer(&PendingRestart{}, func() { woken.Add(1) }, slog.New(slog.DiscardHandler))
		configure := func(patches int, domains ...string) {
			t.Helper()
			s.patches = nil
			if err := dns.Configure(t.Context(), testStubs(domains...)); err != nil || len(s.patches) != patches {
				t.Errorf("patched %v, %v", s.patches, err)
			}
		}
		key := func() string { return s.configMaps[ConfigMap][BlocksKey] }
		configure(1, "kubelink")
		configure(0, "kubelink")
		configure(1, "kubelink", "b.example") // at once
		if !strings.Contains(key(), "b.example:53 {") {
			t.Errorf("written %q", key())
		}

		s.configMaps[ConfigMap][BlocksKey] = "foreign"
		configure(0, "kubelink", "b.example") // nothing has told it
		s.changed()
		if configure(0, "kubelink", "b.example"); woken.Load() != 1 {
			t.Errorf("woken %d times", woken.Load())
		}
		time.Sleep(repairPause)
		synctest.Wait()
		if configure(1, "kubelink", "b.example"); woken.Load() != 2 {
			t.Errorf("woken %d times", woken.Load())
		}

		delete(s.configMaps[ConfigMap], BlocksKey) // and the event is lost
		time.Sleep(dns.Interval)
		configure(1, "kubelink", "b.example")

		configure(1) // no mesh is left
		if _, there := s.configMaps[ConfigMap][BlocksKey]; there {
			t.Errorf("written %q", key())
		}
	})
}

// Without reload in the Corefile each change restarts the pods once, even by another configurer after a failure.
func TestConfigureRestarts(t *testing.T) {
	s := newAPIServer(noReload)
	restart := &PendingRestart{}
	configure := func(restarts int, fails bool, domains ...string) {
		t.Helper()
		dns := s.configurer(restart, func() {}, slog.New(slog.DiscardHandler))
		err := dns.Configure(t.Context(), testStubs(domains...))
		if (err != nil) != fails || len(s.restarts) != restarts {
			t.Errorf("restarts %v, %v", s.restarts, err)
		}
	}
	configure(1, false, "kubelink")
	configure(1, false, "kubelink")
	s.errors["restart"] = apierrors.NewServiceUnavailable("down")
	configure(1, true, "kubelink", "b.example")
	delete(s.errors, "restart")
	configure(2, false, "kubelink", "b.example")
	s.errors["restart"] = apierrors.NewForbidden(schema.GroupResource{}, "x", nil) // the user has to do it
	configure(2, false, "kubelink")
	delete(s.errors, "restart")
	configure(2, false, "kubelink")
	for patch, n := range s.restarts {
		if n != 1 {
			t.Errorf("%d times %s", n, patch)
		}
	}
}

// A Corefile that is gone or empty, as while a user replaces it, changes neither port nor anything else.
func TestConfigureKeepsCorefile(t *testing.T) {
	for _, corefile := range []map[string]string{nil, {}, {"Corefile": ""}, {"Corefile": "\n"}} {
		s := newAPIServer(".:8053 {\n  reload\n}\nimport custom/*.server\n")
		dns := s.configurer(&PendingRestart{}, func() {}, slog.New(slog.DiscardHandler))
		for _, domain := range []string{"kubelink", "b.example"} {
			if err := dns.Configure(t.Context(), testStubs(domain)); err != nil || dns.note != "" {
				t.Errorf("%v: %v, note %q", corefile, err, dns.note)
			}
			if text := s.configMaps[ConfigMap][BlocksKey]; !strings.Contains(text, domain+":8053 {") {
				t.Errorf("%v: written %q", corefile, text)
			}
			dns.written = time.Time{}
			if s.configMaps["coredns"] = corefile; corefile == nil {
				delete(s.configMaps, "coredns")
			}
		}
		if len(s.restarts) > 0 {
			t.Errorf("%v: restarts %v", corefile, s.restarts)
		}
	}
}
