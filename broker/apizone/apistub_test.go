package apizone

// This file has a stub of an API server: the test says what it answers to which client. The end-to-end tests show
// how a real one behaves.

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func init() { maxLoad, overloadPause = 8<<20, time.Second }

// apiStub serves lists and watches of the kinds that names are made of.
type apiStub struct {
	*httptest.Server
	ca string

	mu       sync.Mutex
	objects  map[string][]metav1.Object // by resource
	version  int
	changed  chan struct{} // closed at the next change
	events   []stubEvent
	refuse   func(*http.Request) (code int, message string) // 200: the message, again and again; 206: a page with it
	requests int                                            // under way
}

type stubEvent struct {
	resource string
	kind     string
	version  int
	object   metav1.Object
}

// newCertificate makes a CA and a certificate of it for 127.0.0.1.
func newCertificate(t testing.TB) (pair tls.Certificate, ca string) {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	caKey, key := newKey(), newKey()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	sign := func(cert *x509.Certificate, public *ecdsa.PublicKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, cert, root, public, caKey)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	pair = tls.Certificate{Certificate: [][]byte{sign(leaf, &key.PublicKey)}, PrivateKey: key}
	return pair, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: sign(root, &caKey.PublicKey)}))
}

func someCA(t testing.TB) string {
	t.Helper()
	_, ca := newCertificate(t)
	return ca
}

func newAPIStub(t testing.TB) *apiStub {
	t.Helper()
	pair, ca := newCertificate(t)
	s := &apiStub{ca: ca, objects: map[string][]metav1.Object{}, version: 1, changed: make(chan struct{})}
	s.Server = httptest.NewUnstartedServer(s)
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that do not trust it
	s.StartTLS()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// newWebStub has the service that most tests ask for.
func newWebStub(t testing.TB) *apiStub {
	t.Helper()
	s := newAPIStub(t)
	s.namespace("default")
	s.service("web", "100.64.16.20")
	return s
}

func (s *apiStub) source(token string) apiSource {
	return apiSource{
		zone: "two.kubelink.", clusterDomain: "cluster.local.",
		server: s.URL, secret: "kube-system/two", token: token, ca: s.ca,
	}
}

// setRefuse makes the stub refuse what f has a code for.
func (s *apiStub) setRefuse(f func(*http.Request) (int, string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

// put adds an object of a resource, or replaces the one of that name, and tells watchers.
func (s *apiStub) put(resource string, object metav1.Object) {
	s.change(resource, object, "ADDED", "MODIFIED")
}

// remove deletes it.
func (s *apiStub) remove(resource string, object metav1.Object) {
	s.change(resource, object, "", "DELETED")
}

func (s *apiStub) change(resource string, object metav1.Object, isNew, known string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	object.SetResourceVersion(fmt.Sprint(s.version))
	kind := isNew
	objects := slices.DeleteFunc(slices.Clone(s.objects[resource]), func(o metav1.Object) bool {
		if o.GetNamespace() != object.GetNamespace() || o.GetName() != object.GetName() {
			return false
		}
		kind = known
		return true
	})
	if kind != "DELETED" {
		objects = append(objects, object)
	}
	s.objects[resource] = objects
	s.events = append(s.events, stubEvent{resource, kind, s.version, object})
	close(s.changed)
	s.changed = make(chan struct{})
}

// busy is the number of requests under way.
func (s *apiStub) busy() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

func (s *apiStub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := path.Base(r.URL.Path)
	s.mu.Lock()
	s.requests++
	defer func() {
		s.mu.Lock()
		s.requests--
		s.mu.Unlock()
	}()
	refuse, version := s.refuse, s.version
	list := map[string]any{
		"metadata": map[string]any{"resourceVersion": fmt.Sprint(version)},
		"items":    append([]metav1.Object{}, s.objects[resource]...),
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	fail := func(code int, message string) {
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status:   "Failure", Code: int32(code), Message: message,
		})
	}
	if refuse != nil {
		switch code, message := refuse(r); code {
		case 0:
		case http.StatusOK: // without end
			for err := error(nil); err == nil; {
				_, err = io.WriteString(w, message)
			}
			return
		case http.StatusPartialContent: // a page, of pages without end
			list["metadata"] = map[string]any{"resourceVersion": fmt.Sprint(version), "continue": "more", "selfLink": message}
		default:
			fail(code, message)
			return
		}
	}
	q := r.URL.Query()
	kinds := map[string][2]string{
		"services": {"v1", "ServiceList"}, "namespaces": {"v1", "NamespaceList"},
		"endpointslices": {"discovery.k8s.io/v1", "EndpointSliceList"},
	}
	switch {
	case kinds[resource][0] == "":
		fail(http.StatusNotFound, "the server could not find the requested resource")
	case q.Get("sendInitialEvents") != "": // as servers before 1.32
		fail(http.StatusUnprocessableEntity, "sendInitialEvents: Forbidden: "+
			"sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
	case q.Get("watch") == "":
		list["apiVersion"], list["kind"] = kinds[resource][0], kinds[resource][1]
		json.NewEncoder(w).Encode(list)
	default:
		fmt.Sscan(q.Get("resourceVersion"), &version)
		s.watch(r.Context(), w, resource, version)
	}
}

// watch sends the events after a version until the client goes.
func (s *apiStub) watch(ctx context.Context, w http.ResponseWriter, resource string, version int) {
	out := json.NewEncoder(w)
	for {
		w.(http.Flusher).Flush()
		s.mu.Lock()
		events, changed := s.events, s.changed
		s.mu.Unlock()
		for _, e := range events {
			if e.version > version && e.resource == resource {
				out.Encode(map[string]any{"type": e.kind, "object": e.object})
			}
			version = max(version, e.version)
		}
		w.(http.Flusher).Flush()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// forbid refuses a resource the way RBAC does.
func forbid(resources ...string) func(*http.Request) (int, string) {
	return func(r *http.Request) (int, string) {
		for _, resource := range resources {
			if path.Base(r.URL.Path) == resource {
				return http.StatusForbidden, resource + ` is forbidden: User "system:serviceaccount:default:nobody" ` +
					`cannot list resource "` + resource + `" in API group "" at the cluster scope`
			}
		}
		return 0, ""
	}
}

// endless sends blanks, or with 206 pages that have them, instead of all objects of a resource: by a list, or by a
// watch, too.
func endless(resource string, code int, byWatch bool) func(*http.Request) (int, string) {
	blanks := strings.Repeat(" ", 1<<20)
	return func(r *http.Request) (int, string) {
		q := r.URL.Query()
		if path.Base(r.URL.Path) == resource && (q.Get("sendInitialEvents") != "" && byWatch || q.Get("watch") == "") {
			return code, blanks
		}
		return 0, ""
	}
}

// onlyToken refuses every other token.
func onlyToken(token string) func(*http.Request) (int, string) {
	return func(r *http.Request) (int, string) {
		if strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ") != token {
			return http.StatusUnauthorized, "Unauthorized"
		}
		return 0, ""
	}
}

func newNamespace(name string) *corev1.Namespace {
	return &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
	}
}

func (s *apiStub) namespace(name string) { s.put("namespaces", newNamespace(name)) }

func (s *apiStub) service(name, clusterIP string, edit ...func(*corev1.Service)) {
	s.put("services", newService(name, clusterIP, edit...))
}

func newService(name, clusterIP string, edit ...func(*corev1.Service)) *corev1.Service {
	o := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	for _, e := range edit {
		e(o)
	}
	return o
}

func external(target string) func(*corev1.Service) {
	return func(o *corev1.Service) {
		o.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: target}
	}
}

// endpoint is a pod behind a service.
func (s *apiStub) endpoint(service, hostname, address string) {
	s.put("endpointslices", newEndpoint(service, hostname, address))
}

func newEndpoint(service, hostname, address string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: service + "-" + hostname,
			Labels: map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{address}, Hostname: &hostname,
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		}},
		Ports: []discoveryv1.EndpointPort{{
			Name: ptr.To("http"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](8080),
		}},
	}
}
