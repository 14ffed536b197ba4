package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/mandelsoft/kubelink/broker/kubeapi"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
)

func TestWatchedKinds(t *testing.T) {
	all := NamesConfig{ConfigureDNS: true}
	always := []string{"*v1alpha1.KubeLink", "*v1alpha1.CoreDNSEntry", "*v1alpha1.HostedZone"}
	for _, c := range []struct {
		name       string
		cfg        Config
		allSecrets bool
		want       []string // besides always
	}{
		{"nothing is configured", Config{}, false, nil},
		{"a TLS secret", Config{CertificateConfig: CertificateConfig{Secret: "tls"}}, false, []string{"*v1.Secret helps"}},
		{"all secrets", Config{}, true, []string{"*v1.Secret helps"}},
		{"a service", Config{GatewayConfig: GatewayConfig{Service: "kubelink"}}, false, []string{"*v1.Service helps"}},
		{"an overlay", Config{
			GatewayConfig: GatewayConfig{VXLAN: VXLAN{Wanted: true}, NoRouters: true}, Local: mesh.Local{Mode: mesh.Bridge},
		}, false, []string{"*v1.Node helps"}},
		{"routers", Config{Local: mesh.Local{Mode: mesh.Bridge}}, false,
			[]string{"*v1.Node helps late", "*v1.Pod helps late"}},
		{"an overlay and routers", Config{
			GatewayConfig: GatewayConfig{VXLAN: VXLAN{Wanted: true}}, Local: mesh.Local{Mode: mesh.Bridge},
		}, false, []string{"*v1.Node helps", "*v1.Pod helps late"}},
		{"no packets", Config{Local: mesh.Local{Mode: mesh.None}}, false, nil},
		// The configurer decides by itself what is worth a look.
		{"the cluster's DNS", Config{NamesConfig: all}, false, []string{"*v1.ConfigMap"}},
		{"all", Config{
			CertificateConfig: CertificateConfig{Secret: "tls"}, GatewayConfig: GatewayConfig{Service: "kubelink"},
			NamesConfig: all,
		}, true, []string{"*v1.Secret helps", "*v1.Service helps", "*v1.ConfigMap"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, k := range watchedKinds(&c.cfg, cache.ByObject{}, c.allSecrets) {
				if !k.wanted {
					continue
				}
				text := fmt.Sprintf("%T", k.object)
				if k.helps {
					text += " helps"
				}
				if k.late {
					text += " late"
				}
				got = append(got, text)
			}
			want := slices.Concat(always, c.want)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("\ngot  %q\nwant %q", got, want)
			}
		})
	}
}

// The cache has one object of a kind, where that is all that the broker reads, and has no field owners of many objects.
func TestWatchedObjects(t *testing.T) {
	cfg := Config{
		APIConfig: APIConfig{Namespace: "ns"}, GatewayConfig: GatewayConfig{Service: "kubelink"},
		NamesConfig: NamesConfig{ConfigureDNS: true},
	}
	secrets := selectByName("ns", "tls")
	want := map[string]string{
		"*v1.Secret": "ns metadata.name=tls", "*v1.Service": "ns metadata.name=kubelink",
		"*v1.ConfigMap":          "kube-system metadata.name=coredns-custom",
		"*v1alpha1.KubeLink":     "all",
		"*v1.Node":               "all, stripped",
		"*v1.Pod":                "ns app=kubelink-router, stripped",
		"*v1alpha1.CoreDNSEntry": "all, stripped",
		"*v1alpha1.HostedZone":   "all, stripped",
	}
	for _, k := range watchedKinds(&cfg, *secrets, true) {
		got := "all"
		if k.cache != nil {
			for namespace, c := range k.cache.Namespaces {
				if got = namespace + " "; c.LabelSelector != nil {
					got += c.LabelSelector.String()
				} else {
					got += c.FieldSelector.String()
				}
			}
			if k.cache.Transform != nil {
				got += ", stripped"
			}
		}
		kind := fmt.Sprintf("%T", k.object)
		if got != want[kind] {
			t.Errorf("%s: %s, want %s", kind, got, want[kind])
		}
		delete(want, kind)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

// probedAPI plays the API server: each probe waits for the status that a test lets it have.
type probedAPI struct {
	probes  chan struct{}
	replies chan int // of HTTP, or one of the constants
}

const (
	refused = 0
	late    = -1
)

func (a *probedAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path != "/readyz" {
		return nil, fmt.Errorf("asked for %s", r.URL.Path)
	}
	a.probes <- struct{}{}
	switch status := <-a.replies; status {
	case refused:
		return nil, errors.New("connection refused")
	case late:
		<-r.Context().Done()
		return nil, r.Context().Err()
	default:
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
	}
}

// The health follows the API server, and the controllers are told when it is back. One late answer is no failure.
func TestProbeAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &probedAPI{make(chan struct{}), make(chan int)}
		ctx, end := context.WithCancel(t.Context())
		c := &controllers{
			api: &rest.Config{Host: "http://api.example", Transport: a}, health: newHealthState(),
			log: slog.New(slog.DiscardHandler), back: make(chan struct{}, 1),
		}
		c.synced.Store(true)
		c.wg.Go(func() { kubeapi.Probe(ctx, c.api, nil, c.noteAPI) })
		<-a.probes
		for i, step := range []struct {
			name  string
			reply int
			says  string // why it is not healthy; empty: it is
			back  bool
		}{
			{"healthy from the start", 200, "", false},
			{"late once", late, "", false},
			{"healthy again", 200, "", false},
			{"late once more", late, "", false},
			{"late twice", late, "deadline exceeded", false},
			{"late for good", late, "deadline exceeded", false},
			{"back", 200, "", true},
			{"refused", refused, "connection refused", false},
			{"it lives, but forbids to ask", 403, "", true},
			{"it lives, but does not know us", 401, "", false},
			{"not ready", 500, "an error on the server", false},
			{"late while it is not ready", late, "deadline exceeded", false},
			{"back at last", 200, "", true},
			{"late while a manager starts", late, "", false},
			{"late again", late, "deadline exceeded", false},
			{"it was slow, and not away", 200, "", false},
		} {
			if strings.Contains(step.name, "manager starts") {
				c.synced.Store(false)
			}
			a.replies <- step.reply
			<-a.probes // the next: the broker has noted the result
			err := c.health.Load().api
			if (err == nil) != (step.says == "") {
				t.Errorf("step %d, %s: %v", i, step.name, err)
			}
			if err != nil && (!strings.HasPrefix(err.Error(), "API server http://api.example: ") ||
				!strings.Contains(err.Error(), step.says)) {
				t.Errorf("step %d, %s: %v", i, step.name, err)
			}
			back := false
			select {
			case <-c.back:
				back = true
			default:
			}
			if back != step.back {
				t.Errorf("step %d, %s: back %v", i, step.name, back)
			}
		}
		end()
		a.replies <- late
		c.wg.Wait()
		if err := c.health.Load().api; err != nil {
			t.Errorf("the end is no failure: %v", err)
		}
	})
}
