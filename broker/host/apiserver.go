package host

// The addresses of the API server of the cluster: the ones that this process connects to, and the ones behind the
// service kubernetes, to which the node translates the address of the service.

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	discoveryv1 "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/deadline"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/onchange"
)

const (
	titleAPI = "the API server"
	// forgetAfter is how long an address counts to which there is no connection any more.
	forgetAfter = time.Hour
)

// APIServer knows the addresses of the API server. Its methods may be called concurrently, but for ReadEndpoints.
type APIServer struct {
	service netip.Addr     // of the service kubernetes, which is no address of a host; the zero Addr: unknown
	limit   deadline.Limit // of requests
	problem onchange.Error // why the endpoints cannot be read

	mu        sync.Mutex // guards the fields below
	connected map[netip.Addr]time.Time
	endpoints []netip.Addr
	follower  *Watcher // nil: none
}

// NewAPIServer returns an APIServer that knows no address yet.
func NewAPIServer() *APIServer {
	s := &APIServer{limit: deadline.New(deadline.First), connected: map[netip.Addr]time.Time{}}
	s.service, _ = netip.ParseAddr(os.Getenv("KUBERNETES_SERVICE_HOST"))
	return s
}

// follow makes a watcher the one that is told of changes.
func (s *APIServer) follow(w *Watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.follower = w
}

// unfollow is called at the end of a watcher. The next one may follow already.
func (s *APIServer) unfollow(w *Watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.follower == w {
		s.follower = nil
	}
}

// listNeeds returns the addresses as facts.
func (s *APIServer) listNeeds() (needs []mesh.HostAddress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	addresses := slices.Concat(s.endpoints, slices.Collect(maps.Keys(s.connected)))
	slices.SortFunc(addresses, netip.Addr.Compare)
	for _, a := range slices.Compact(addresses) {
		needs = append(needs, mesh.HostAddress{Addr: a, Title: titleAPI})
	}
	return needs
}

// noteConnection notes an address that a connection leads to, or shall lead to.
func (s *APIServer) noteConnection(address string) {
	ap, err := netip.ParseAddrPort(address)
	a := ap.Addr().Unmap()
	if err != nil || a == s.service || !isRoutable(a) {
		return
	}
	s.mu.Lock()
	_, known := s.connected[a]
	s.connected[a] = time.Now()
	if !known {
		maps.DeleteFunc(s.connected, func(_ netip.Addr, last time.Time) bool { return time.Since(last) > forgetAfter })
	}
	follower := s.follower
	s.mu.Unlock()
	if !known && follower != nil {
		follower.reportChange()
	}
}

// Wrap returns a transport that notes the addresses which another one connects to, before it does: an attempt that
// fails may fail because a link leads it away.
func (s *APIServer) Wrap(transport http.RoundTripper) http.RoundTripper { return &tracer{transport, s} }

type tracer struct {
	http.RoundTripper
	server *APIServer
}

func (t *tracer) RoundTrip(request *http.Request) (*http.Response, error) {
	trace := &httptrace.ClientTrace{
		ConnectStart: func(_, address string) { t.server.noteConnection(address) },
		GotConn:      func(c httptrace.GotConnInfo) { t.server.noteConnection(c.Conn.RemoteAddr().String()) },
	}
	return t.RoundTripper.RoundTrip(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
}

// WrappedRoundTripper lets client-go find the transport behind it.
func (t *tracer) WrappedRoundTripper() http.RoundTripper { return t.RoundTripper }

// ReadEndpoints reads the endpoints of the service kubernetes. Without the permission for that, the API server tells an
// address of its own to all clients.
func (s *APIServer) ReadEndpoints(ctx context.Context, cfg *rest.Config) error {
	client, err := discoveryv1.NewForConfig(cfg)
	if err != nil {
		return err
	}
	var endpoints []netip.Addr
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil && isRoutable(a.Unmap()) {
			endpoints = append(endpoints, a.Unmap())
		}
	}
	err = s.limit.Do(ctx, func(ctx context.Context) error {
		slice, err := client.EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
		if err == nil {
			for _, e := range slice.Endpoints {
				for _, a := range e.Addresses {
					add(a)
				}
			}
		}
		return err
	})
	if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
		versions := &metav1.APIVersions{}
		err = s.limit.Do(ctx, func(ctx context.Context) error {
			return client.RESTClient().Get().AbsPath("/api").Do(ctx).Into(versions)
		})
		for _, server := range versions.ServerAddressByClientCIDRs {
			if ap, err := netip.ParseAddrPort(server.ServerAddress); err == nil {
				add(ap.Addr().String())
			}
		}
	}
	if err != nil {
		return fmt.Errorf("endpoints of the service kubernetes: %w", err)
	}
	s.setEndpoints(endpoints)
	return nil
}

// setEndpoints replaces the endpoints. An answer without any is not believed.
func (s *APIServer) setEndpoints(endpoints []netip.Addr) {
	if len(endpoints) == 0 {
		return
	}
	s.mu.Lock()
	same := slices.Equal(s.endpoints, endpoints)
	s.endpoints = endpoints
	follower := s.follower
	s.mu.Unlock()
	if !same && follower != nil {
		follower.reportChange()
	}
}

// maxAttempts bounds how often AwaitEndpoints asks.
const maxAttempts = 4

// AwaitEndpoints reads the endpoints, also of a slow API server. It goes on without them where they cannot be read:
// links need them less than they need anything else.
func (s *APIServer) AwaitEndpoints(ctx context.Context, cfg *rest.Config, log *slog.Logger) {
	for attempt := 0; ctx.Err() == nil && attempt < maxAttempts; attempt++ {
		err := s.ReadEndpoints(ctx, cfg)
		if s.problem.Set(err) && err != nil && ctx.Err() == nil {
			log.Warn("links are not compared with all addresses of the API server", "error", err)
		}
		if err == nil {
			return
		}
		waitFor(ctx, time.Second)
	}
}

// FollowEndpoints reads the endpoints now and then until ctx ends.
func (s *APIServer) FollowEndpoints(ctx context.Context, cfg *rest.Config, log *slog.Logger) {
	for ctx.Err() == nil {
		waitFor(ctx, refreshInterval)
		s.AwaitEndpoints(ctx, cfg, log)
	}
}

func waitFor(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
