package announce

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/link"
)

// applyServer plays the API server: it has an error for each kind, and keeps the objects that it was given.
type applyServer struct {
	errors  map[string]error
	applied []string // kind, blank, object as JSON
}

func (s *applyServer) Apply(_ context.Context, o runtime.ApplyConfiguration, _ ...client.ApplyOption) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	var object struct{ Kind string }
	if err := json.Unmarshal(data, &object); err != nil {
		return err
	}
	s.applied = append(s.applied, object.Kind+" "+string(data))
	return s.errors[object.Kind]
}

func TestKeep(t *testing.T) {
	resource := schema.GroupResource{Resource: "secrets"}
	forbidden := apierrors.NewForbidden(resource, "x", nil)
	conflict := apierrors.NewConflict(resource, "x", nil)
	invalid := apierrors.NewInvalid(schema.GroupKind{Kind: "KubeLink"}, "b", nil)
	down := apierrors.NewServiceUnavailable("down")
	all := Facts{dnsIP: "100.64.16.10", baseDomain: "cluster.local",
		access: &link.APIInfo{Token: "t", CACert: []byte("CA")}}
	for _, c := range []struct {
		name    string
		facts   Facts
		errors  map[string]error
		applied []string // texts of the objects, in order
		note    string
		says    string // by the error
	}{
		{"nothing", Facts{}, nil, nil, "", ""},
		{"all", all, nil,
			[]string{`"name":"kubelink-api-b"`, `"apiAccess":{"name":"kubelink-api-b","namespace":"kube-system"}`}, "", ""},
		{"DNS only", Facts{dnsIP: "100.64.16.10"}, nil, []string{`"spec":{"dns":{"dnsIP":"100.64.16.10"}}`}, "", ""},
		{"no secret allowed", all, map[string]error{"Secret": forbidden},
			[]string{"Secret", `"spec":{"dns":{"baseDomain":"cluster.local","dnsIP":"100.64.16.10"}}`},
			"allow it to create and patch secrets in namespace kube-system", ""},
		{"secret of a user", all, map[string]error{"Secret": conflict},
			[]string{"Secret", `"spec":{"dns":{"baseDomain":"cluster.local","dnsIP":"100.64.16.10"}}`},
			"secret kube-system/kubelink-api-b was written by", ""},
		{"refused link", all, map[string]error{"KubeLink": invalid},
			[]string{"Secret", "KubeLink"}, "refused by the API server", ""},
		{"both refused", all, map[string]error{"KubeLink": invalid, "Secret": forbidden}, []string{"Secret", "KubeLink"},
			"or set spec.apiAccess; what the peer announces is refused", ""},
		{"no server for the secret", all, map[string]error{"Secret": down},
			[]string{"Secret"}, "", "secret kube-system/kubelink-api-b: "},
		{"no server for the link", all, map[string]error{"KubeLink": down}, []string{"Secret", "KubeLink"}, "", "down"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &applyServer{errors: c.errors}
			k := Keeper{Client: s, Namespace: "kube-system", Log: slog.New(slog.DiscardHandler)}
			l := testLink()
			l.UID, l.ResourceVersion = "uid", "17"
			note, err := k.Keep(t.Context(), l, c.facts)
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %q", err, c.says)
			}
			if (note == "") != (c.note == "") || !strings.Contains(note, c.note) {
				t.Errorf("note %q, want %q", note, c.note)
			}
			if len(s.applied) != len(c.applied) {
				t.Fatalf("applied %q", s.applied)
			}
			for i, text := range c.applied {
				if !strings.Contains(s.applied[i], text) {
					t.Errorf("applied %s, want %s", s.applied[i], text)
				}
				versioned := strings.Contains(s.applied[i], `"resourceVersion":"17","uid":"uid"`)
				if strings.HasPrefix(s.applied[i], "KubeLink") && !versioned {
					t.Errorf("applied to any version: %s", s.applied[i])
				}
			}
		})
	}
}

// A secret is written again when the token changes, now and then otherwise, and soon if the API server refused it.
func TestKeepSecretAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &applyServer{errors: map[string]error{}}
		k := Keeper{Client: s, Namespace: "kube-system", Log: slog.New(slog.DiscardHandler)}
		for _, c := range []struct {
			name    string
			wait    time.Duration
			token   string
			refused bool
			writes  bool
			note    bool
		}{
			{"first", 0, "one", false, true, false},
			{"soon after", secretRefresh - time.Second, "one", false, false, false},
			{"now and then", 2 * time.Second, "one", false, true, false},
			{"another token", time.Second, "two", true, true, true},
			{"soon after a failure", secretRetry - time.Second, "two", false, false, true},
			{"again after a failure", 2 * time.Second, "two", false, true, false},
		} {
			time.Sleep(c.wait)
			s.applied, s.errors["Secret"] = nil, nil
			if c.refused {
				s.errors["Secret"] = apierrors.NewForbidden(schema.GroupResource{}, "x", nil)
			}
			l := testLink()
			note, err := k.Keep(t.Context(), l, Facts{access: &link.APIInfo{Token: c.token}})
			wrote := len(s.applied) > 0 && strings.HasPrefix(s.applied[0], "Secret")
			if err != nil || wrote != c.writes || (note != "") != c.note {
				t.Errorf("%s: applied %q, note %q, %v", c.name, s.applied, note, err)
			}
		}
	})
}

// A peer that announces another token every three seconds costs the API server a bounded number of writes. In the end
// the latest token is there.
func TestKeepIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &applyServer{}
		k := &Keeper{Client: api, Namespace: "kubelink", Log: slog.New(slog.DiscardHandler)}
		l := testLink()
		start, held := time.Now(), 0
		token := ""
		keep := func() string {
			note, err := k.Keep(t.Context(), l, Facts{access: &link.APIInfo{Token: token, CACert: []byte("CA")}})
			if err != nil {
				t.Fatal(err)
			}
			return note
		}
		for n := range 200 {
			token = fmt.Sprint("token", n)
			if strings.Contains(keep(), "too often") {
				held++
			}
			time.Sleep(3 * time.Second)
		}
		most := adoptBurst + int(time.Since(start)/adoptInterval) + 1
		secrets := func() []string {
			return slices.DeleteFunc(slices.Clone(api.applied), func(o string) bool { return !strings.HasPrefix(o, "Secret") })
		}
		if n := len(secrets()); n > most || n < adoptBurst || held == 0 {
			t.Errorf("%d secrets written, %d at most; %d held back", n, most, held)
		}
		time.Sleep(adoptInterval)
		note, all := keep(), secrets()
		if want := base64.StdEncoding.EncodeToString([]byte(token)); note != "" || !strings.Contains(all[len(all)-1], want) {
			t.Errorf("note %q, last write %s", note, all[len(all)-1])
		}
	})
}

// Links come and go: nothing is kept of those that are gone.
func TestKeepForgetsLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &Keeper{Client: &applyServer{}, Namespace: "kubelink", Log: slog.New(slog.DiscardHandler)}
		for n := range 500 {
			l := testLink()
			l.Name = fmt.Sprint("link", n)
			if _, err := k.Keep(t.Context(), l, Facts{access: &link.APIInfo{Token: "t", CACert: []byte("CA")}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		if budgets, secrets := len(k.budgets), len(k.secrets); budgets > 20 || secrets > 20 {
			t.Errorf("of 500 links, one in a minute, %d budgets and %d secrets are kept", budgets, secrets)
		}
	})
}
