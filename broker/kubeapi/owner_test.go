package kubeapi

// When a process ends for good, and when an answer is no reason to think so.

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	appsclient "k8s.io/client-go/kubernetes/typed/apps/v1"
	"k8s.io/client-go/rest"
)

func TestOwnerIsGone(t *testing.T) {
	const object = `{"apiVersion":"apps/v1","metadata":{"name":"kubelink","uid":%q%s},"spec":{%s}}`
	const status = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d,"details":{%s}}`
	const details = `"name":"kubelink","group":"apps","kind":"deployments"`
	const deleted = `,"deletionTimestamp":"2026-01-01T00:00:00Z"`
	for name, c := range map[string]struct {
		code int
		text string
		gone bool
	}{
		"there":                 {http.StatusOK, fmt.Sprintf(object, "u1", "", `"replicas":1`), false},
		"without replicas":      {http.StatusOK, fmt.Sprintf(object, "u1", "", ""), false},
		"scaled to 0":           {http.StatusOK, fmt.Sprintf(object, "u1", "", `"replicas":0`), true},
		"being deleted":         {http.StatusOK, fmt.Sprintf(object, "u1", deleted, `"replicas":1`), true},
		"another one":           {http.StatusOK, fmt.Sprintf(object, "u2", "", `"replicas":0`), false},
		"not there":             {http.StatusNotFound, fmt.Sprintf(status, "NotFound", 404, details), true},
		"kind unknown":          {http.StatusNotFound, fmt.Sprintf(status, "NotFound", 404, ""), false},
		"forbidden":             {http.StatusForbidden, fmt.Sprintf(status, "Forbidden", 403, details), false},
		"a load balancer alone": {http.StatusNotFound, "default backend - 404", false},
		"something else":        {http.StatusOK, "welcome", false},
	} {
		t.Run(name, func(t *testing.T) {
			code, text := http.StatusOK, fmt.Sprintf(object, "u1", "", "")
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if text[0] == '{' {
					w.Header().Set("Content-Type", "application/json")
				}
				w.WriteHeader(code)
				fmt.Fprint(w, text)
			}))
			defer server.Close()
			apps, err := appsclient.NewForConfig(&rest.Config{Host: server.URL})
			if err != nil {
				t.Fatal(err)
			}
			unseen := NewOwner(apps.RESTClient(), "deployments", "kubelink", "kubelink")
			o := NewOwner(apps.RESTClient(), "deployments", "kubelink", "kubelink")
			if !o.AwaitFirst(context.Background()) || o.uid != "u1" {
				t.Fatalf("uid %q", o.uid)
			}
			code, text = c.code, c.text
			if o.IsGone() != c.gone {
				t.Errorf("gone: %v, want %v", !c.gone, c.gone)
			}
			if unseen.IsGone() {
				t.Error("one that was never seen is gone")
			}
		})
	}
	if none := NewOwner(nil, "deployments", "kubelink", ""); none.AwaitFirst(t.Context()) || none.IsGone() {
		t.Error("without a name there is one")
	}
}

func TestDeploymentOf(t *testing.T) {
	for pod, want := range map[string]string{
		"kubelink-7d4b9c8f6-x2x7k": "kubelink", "kubelink-2-7d4b9c8f6-x2x7k": "kubelink-2", "kubelink": "", "node-1": "",
		"": "",
	} {
		if got := DeploymentOf(pod); got != want {
			t.Errorf("%q: %q, want %q", pod, got, want)
		}
	}
}
