package router

// When the routes go with the DaemonSet, and when an answer is no reason for that.

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/host"
)

func TestDaemonSetIsGone(t *testing.T) {
	const object = `{"kind":"DaemonSet","apiVersion":"apps/v1","metadata":{"name":"kubelink-router","uid":"u1"%s}}`
	const status = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d,"details":{%s}}`
	const details = `"name":"kubelink-router","group":"apps","kind":"daemonsets"`
	for name, c := range map[string]struct {
		code int
		text string
		gone bool
	}{
		"there": {http.StatusOK, fmt.Sprintf(object, ""), false},
		"being deleted": {http.StatusOK,
			fmt.Sprintf(object, `,"deletionTimestamp":"2026-01-01T00:00:00Z"`), true},
		"not there": {http.StatusNotFound,
			fmt.Sprintf(status, "NotFound", 404, details), true},
		"kind unknown":                          {http.StatusNotFound, fmt.Sprintf(status, "NotFound", 404, ""), false},
		"forbidden":                             {http.StatusForbidden, fmt.Sprintf(status, "Forbidden", 403, details), false},
		"a load balancer without an API server": {http.StatusNotFound, "default backend - 404", false},
		"an answer of something else":           {http.StatusOK, "welcome", false},
	} {
		t.Run(name, func(t *testing.T) {
			code, text := http.StatusOK, fmt.Sprintf(object, "")
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if text[0] == '{' {
					w.Header().Set("Content-Type", "application/json")
				}
				w.WriteHeader(code)
				fmt.Fprint(w, text)
			}))
			defer server.Close()
			config := &Config{REST: &rest.Config{Host: server.URL}, DaemonSet: "kubelink-router", Namespace: "kubelink",
				Log: slog.Default()}
			w, err := newWatcher(config, host.NewAPIServer(), func() {})
			if err != nil {
				t.Fatal(err)
			}
			d := newDaemonSet(config, w)
			d.awaitFirst(context.Background())
			if d.uid != "u1" {
				t.Fatalf("uid %q", d.uid)
			}
			code, text = c.code, c.text
			if d.isGone() != c.gone {
				t.Errorf("gone: %v, want %v", !c.gone, c.gone)
			}
		})
	}
}
