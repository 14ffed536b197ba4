package e2e

// Faults of the API server: a proxy between the broker and the real one is slow, refuses, or answers nothing.

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// apiFault may answer a request in place of the API server; false: it does not. It may also be slow.
type apiFault func(w http.ResponseWriter, r *http.Request) bool

// apiProxy stands between a broker and its API server.
type apiProxy struct {
	fault  atomic.Pointer[apiFault] // nil: none
	faults atomic.Int32             // requests that a fault has answered
	ended  atomic.Pointer[context.CancelFunc]
	epoch  atomic.Pointer[context.Context] // requests end with it
	to     *httputil.ReverseProxy
}

const proxyAddress = "127.0.0.1:7443"

// startProxy makes a proxy on the broker's node. The broker uses it from its next start until the test ends.
func startProxy(t *testing.T, b *fleet.Broker) *apiProxy {
	t.Helper()
	target, err := url.Parse(testbed.APIServerURL())
	must(t, err)
	certificate, err := b.ServingCertificate()
	must(t, err)
	p := &apiProxy{}
	p.to = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, FlushInterval: -1,
		Transport: &http.Transport{
			DialContext: b.Gateway().DialContext, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	p.setFault(nil)
	listener, err := b.Gateway().Listen("tcp", proxyAddress)
	must(t, err)
	server := &http.Server{
		Handler: p, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	go server.ServeTLS(listener, "", "")
	host, port, _ := strings.Cut(proxyAddress, ":")
	b.Env = []string{"KUBERNETES_SERVICE_HOST=" + host, "KUBERNETES_SERVICE_PORT=" + port}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		p.setFault(nil)
		b.Env = nil
		must(t, b.Kill(ctx, syscall.SIGTERM))
		must(t, b.Start(ctx))
		must(t, f.WaitMesh(ctx))
		server.Close()
	})
	return p
}

// setFault replaces the fault; nil: there is none. All requests on their way end, watches included.
func (p *apiProxy) setFault(fault apiFault) {
	if p.fault.Store(nil); fault != nil {
		p.fault.Store(&fault)
	}
	p.cut()
}

func (p *apiProxy) cut() {
	ctx, cancel := context.WithCancel(context.Background())
	p.epoch.Store(&ctx)
	if end := p.ended.Swap(&cancel); end != nil {
		(*end)()
	}
}

func (p *apiProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(*p.epoch.Load(), cancel)()
	r = r.WithContext(ctx)
	if fault := p.fault.Load(); fault != nil && (*fault)(w, r) {
		p.faults.Add(1)
		return
	}
	p.to.ServeHTTP(w, r)
}

// refuse answers as an API server that fails does.
func refuse(w http.ResponseWriter) bool {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusInternalServerError)
	json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError, Message: "a webhook refuses",
	})
	return true
}

// slowly makes each request take that much longer.
func slowly(d time.Duration) apiFault {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-time.After(d):
			return false
		case <-r.Context().Done():
			return true
		}
	}
}

// relaunch starts the broker anew and waits until its links are up.
func relaunch(t *testing.T, ctx context.Context, b *fleet.Broker, limit time.Duration) {
	t.Helper()
	must(t, b.Kill(ctx, syscall.SIGKILL))
	must(t, b.Launch())
	took := within(t, limit, "links to be up", func(ctx context.Context) error {
		v, err := b.Metric(ctx, `coredns_kubelink_links{state="Up"}`)
		if err == nil && v != 2 {
			err = fmt.Errorf("%g are", v)
		}
		return err
	})
	t.Logf("links are up after %s", took)
}

func expectMetric(t *testing.T, b *fleet.Broker, limit time.Duration, series string, want float64) {
	t.Helper()
	within(t, limit, series, func(ctx context.Context) error {
		v, err := b.Metric(ctx, series)
		if err == nil && v != want {
			err = fmt.Errorf("it is %g", v)
		}
		return err
	})
}

const (
	versionedCRD = "hostedzones.coredns.mandelsoft.org"
	crdVersion   = `-o=jsonpath={.metadata.annotations.kubelink\.mandelsoft\.org/crd-version}`
)

// checkCRDVersion checks the annotation of a CRD.
func checkCRDVersion(ctx context.Context, b *fleet.Broker, want string) error {
	out, err := b.Kubectl(ctx, "get", "crd", versionedCRD, crdVersion)
	if err == nil && out != want {
		err = fmt.Errorf("version %q, want %q", out, want)
	}
	return err
}

func TestAPIFaults(t *testing.T) {
	ctx := startTest(t, 10*time.Minute)
	b := brokers[0]
	p := startProxy(t, b)
	const crds = "coredns_kubelink_crds_installed"
	links := "/apis/" + v1alpha1.GroupVersion.String() + "/kubelinks"
	makeNewer := func() { // than the ones of this broker
		_, err := b.Kubectl(ctx, "annotate", "--overwrite", "crd", versionedCRD, v1alpha1.CRDVersion+"=99")
		must(t, err)
	}
	own, err := b.Kubectl(ctx, "get", "crd", versionedCRD, crdVersion)
	must(t, err)
	relaunch(t, ctx, b, 40*time.Second) // from now on it uses the proxy

	// CRDs cannot be applied, and the service cannot be read: both help, and links come up without them.
	t.Run("what helps", func(t *testing.T) {
		p.setFault(func(w http.ResponseWriter, r *http.Request) bool {
			crd := r.Method == http.MethodPatch && strings.HasPrefix(r.URL.Path, "/apis/apiextensions.k8s.io/")
			return (crd || strings.HasSuffix(r.URL.Path, "/namespaces/kubelink/services")) && refuse(w)
		})
		makeNewer()
		relaunch(t, ctx, b, 40*time.Second)
		expectMetric(t, b, 5*time.Second, crds, 0)
		must(t, b.Process.WaitLog(ctx, "CRDs are not up to date.*a webhook refuses"))
		must(t, b.WaitState(ctx, b.Name, v1alpha1.StateError, "service kubelink", "a webhook refuses"))
		p.setFault(nil)
		expectMetric(t, b, 60*time.Second, crds, 1)
		must(t, b.WaitState(ctx, b.Name, v1alpha1.StateUp))
		must(t, checkCRDVersion(ctx, b, "99")) // it is newer
	})

	// Nothing is no list of nothing.
	t.Run("empty answers", func(t *testing.T) {
		check := expectNoFailures(t, clients[0], servers[1].service)
		before := p.faults.Load()
		p.setFault(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.HasPrefix(r.URL.Path, links) {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, "{}")
			return true
		})
		must(t, b.Process.WaitLog(ctx, "without resourceVersion, which is not believed"))
		within(t, 30*time.Second, "more such answers", func(ctx context.Context) error {
			if n := p.faults.Load() - before; n < 6 {
				return fmt.Errorf("there were %d", n)
			}
			return nil
		})
		check()
		expectMetric(t, b, time.Second, `coredns_kubelink_links{state="Up"}`, 2)
		p.setFault(nil)
		changed := brokers[1].LinkTo()
		changed.Spec.Egress = []v1alpha1.EgressCIDR{"10.81.0.0/16"}
		must(t, b.Apply(ctx, changed))
		within(t, 40*time.Second, "the next change to be heard", func(ctx context.Context) error {
			text, err := brokerRoutes(ctx, b)
			if err == nil && !strings.Contains(text, "10.81.0.0/16") {
				err = errors.New(text)
			}
			return err
		})
		must(t, b.Apply(ctx, brokers[1].LinkTo()))
	})

	// What takes longer than a limit that is usual happens late, and not never.
	t.Run("slow", func(t *testing.T) {
		slow := slowly(8 * time.Second)
		p.fault.Store(&slow) // watches go on
		makeNewer()
		changed := brokers[1].LinkTo()
		changed.Spec.Egress = []v1alpha1.EgressCIDR{"10.82.0.0/16"}
		must(t, b.Apply(ctx, changed))
		late, cancel := context.WithTimeout(ctx, 2*time.Minute) // late, and not never
		defer cancel()
		must(t, b.WaitState(late, "kubelink2", v1alpha1.StateUp)) // the status of this generation is written
		must(t, b.Apply(ctx, brokers[1].LinkTo()))
		text := b.Corefile()
		must(t, b.SetCorefile(strings.Replace(text, "service kubelink\n", "service kubelink\n force-crd-update\n", 1)))
		defer func() { must(t, b.SetCorefile(text)) }()
		relaunch(t, ctx, b, 2*time.Minute)
		p.setFault(nil)
		within(t, time.Minute, "a newer CRD to be replaced by force", func(ctx context.Context) error {
			return checkCRDVersion(ctx, b, own)
		})
	})
}
