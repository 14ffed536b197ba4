package apizone

// One kubernetes plugin of CoreDNS on the API of one cluster: how it reaches the API server and how it
// answers. What goes wrong is seen where it is known best, at the HTTP transport, and is tried again
// there: client-go keeps the reason to itself and waits for up to a minute.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/pkg/nonwriter"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/connrotation"
)

// apiSource is the API of a cluster and the domains that its names go to. A change of any of it needs
// another instance.
type apiSource struct {
	zone          string // <cluster>.D
	clusterDomain string // what the cluster itself uses

	server    string // https://host
	secret    string // namespace/name, for messages
	token, ca string

	own *rest.Config // instead of the server: that of the broker itself
}

const (
	// pluginStanza has the defaults of the plugin and of the former system: names of services and of the
	// endpoints of headless ones; none of pods, whose addresses mean nothing in other clusters.
	pluginStanza = "kubernetes %s {\n ttl 5\n}"
	namesTTL     = 5 // seconds; also of what names of type ExternalName lead to

	// A failed request is tried again after retryFirst, later after retryLast.
	retryFirst, retryLast = 250 * time.Millisecond, 5 * time.Second
	// A handshake has more time than a dial: when hundreds begin at once they take turns at the processor.
	dialTimeout, handshakeTimeout = 5 * time.Second, 20 * time.Second
	// pingAfter is the silence after which a connection is asked for a sign of life, and how long that is
	// waited for.
	pingAfter = 10 * time.Second

	// maxReason is the longest text of a failure.
	maxReason = 300
)

// Tests have no time for these.
var (
	// maxNames bounds the objects of a resource as they are loaded, in bytes of their encoding.
	maxNames int64 = 256 << 20
	// tooMuchFor is the time between two attempts to load what was more than that.
	tooMuchFor = 10 * time.Minute
)

// instance is a running plugin.
type instance struct {
	apiSource
	number uint64
	plugin *kubernetes.Kubernetes // usable when it is synced
	end    context.CancelFunc
	failed func() // the result of failure has changed

	answers *answers

	transport http.RoundTripper
	conns     *connrotation.ConnectionTracker

	loaded atomic.Bool // the plugin has all names: watches tell what changes from now on

	mu       sync.Mutex
	failures map[string]string    // by resource and verb, or tooMuch
	sizes    map[string]int64     // of what was read since a list began, in bytes, by resource
	tooMuch  map[string]time.Time // when a resource was more than maxNames
	resumed  chan struct{}        // while it is suspended: closed at the end of that
}

// instances is how many there have been.
var instances atomic.Uint64

// newInstance starts to load the names in the background. synced is called when they are there, failed
// at each change of failure; both from goroutines of the instance.
func newInstance(s apiSource, a *answers, synced func(*instance), failed func()) *instance {
	ctx, end := context.WithCancel(context.Background())
	i := &instance{
		apiSource: s, number: instances.Add(1), end: end, failed: failed, answers: a,
		conns: connrotation.NewConnectionTracker(), failures: map[string]string{}, sizes: map[string]int64{}, tooMuch: map[string]time.Time{},
	}
	go func() {
		err := i.load(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			i.report("", err.Error())
		default:
			synced(i)
		}
	}()
	return i
}

// load starts the plugin and waits until it has all names, or ctx ends.
func (i *instance) load(ctx context.Context) (err error) {
	config, err := i.restConfig(ctx)
	if err != nil {
		return err
	}
	if i.own == nil {
		if err = i.connect(ctx); err != nil {
			return err
		}
	}
	// The plugin's options can be set in this way only.
	c := &caddy.Controller{Dispenser: caddyfile.NewDispenser(i.zone, strings.NewReader(fmt.Sprintf(pluginStanza, i.zone)))}
	c.Next()
	if i.plugin, err = kubernetes.ParseStanza(c); err != nil {
		return err
	}
	i.plugin.Upstream = nowhere{}
	i.plugin.ClientConfig = clientConfig{config: config}
	if _, _, err = i.plugin.InitKubeCache(ctx); err != nil {
		return err
	}
	api := i.plugin.APIConn
	go api.Run()
	context.AfterFunc(ctx, func() { _ = api.Stop() }) // the first call cannot fail
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !api.HasSynced() {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	i.loaded.Store(true)
	i.mu.Lock()
	maps.DeleteFunc(i.failures, func(kind, _ string) bool { return strings.HasPrefix(kind, tooMuch) })
	i.mu.Unlock()
	return nil
}

// connect makes one request alone. The watches then share its connection: this is what starting costs
// most. And where no connection is to be had, only one waits for it.
func (i *instance) connect(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, i.server+"/api/v1/namespaces?limit=1", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+i.token)
	resp, err := i.RoundTrip(req)
	if err == nil {
		_, _ = io.Copy(io.Discard, resp.Body) // else the connection is not shared
		resp.Body.Close()
	}
	return err
}

// stop ends the instance, if there is one, and its connections. Queries that it has begun are still
// answered.
func (i *instance) stop() {
	if i == nil {
		return
	}
	i.end()
	i.conns.CloseAll()
}

// suspend is for a link that is lost: what would only wait for it ends, and nothing is sent, as packets
// make the link connect again and again.
func (i *instance) suspend() {
	i.mu.Lock()
	if i.resumed == nil {
		i.resumed = make(chan struct{})
	}
	i.mu.Unlock()
	i.conns.CloseAll()
}

// resume is for a link that has come back.
func (i *instance) resume() {
	i.mu.Lock()
	if i.resumed != nil {
		close(i.resumed)
		i.resumed = nil
	}
	i.mu.Unlock()
}

// suspended is nil, or closed at the end of the suspension.
func (i *instance) suspended() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.resumed
}

// restConfig leads all requests through RoundTrip, as many as there are.
func (i *instance) restConfig(ctx context.Context) (*rest.Config, error) {
	const protobuf, json = runtime.ContentTypeProtobuf, runtime.ContentTypeJSON
	content := rest.ContentConfig{ContentType: protobuf, AcceptContentTypes: protobuf + "," + json}
	if i.own != nil {
		config := rest.CopyConfig(i.own)
		config.ContentConfig, config.QPS = content, -1
		config.Wrap(func(rt http.RoundTripper) http.RoundTripper {
			i.transport = rt
			return i
		})
		return config, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(i.ca)) {
		return nil, errors.New("no CA certificate")
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	i.transport = &http.Transport{
		// No proxy: the address lies in the mesh.
		DialContext: func(dialCtx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(dialCtx, network, address)
			if err != nil {
				return nil, err
			}
			conn = i.conns.Track(conn)
			if ctx.Err() != nil { // stop may have been too early to close it
				conn.Close()
			}
			return conn, nil
		},
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: handshakeTimeout,
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter},
		IdleConnTimeout:     time.Minute,
	}
	return &rest.Config{Host: i.server, BearerToken: i.token, Transport: i, ContentConfig: content, QPS: -1, UserAgent: "kubelink"}, nil
}

// clientConfig gives the plugin a configuration that is not in a file. The plugin asks for nothing else.
type clientConfig struct {
	otherMethods
	config *rest.Config
}

type otherMethods = clientcmd.ClientConfig

func (c clientConfig) ClientConfig() (*rest.Config, error) { return c.config, nil }

// RoundTrip implements http.RoundTripper for client-go. All its requests are lists and watches: they
// have no body and can be repeated.
func (i *instance) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, resource, query := req.Context(), path.Base(req.URL.Path), req.URL.Query()
	kind, watch := resource, query.Get("watch") != ""
	if watch {
		kind += " watch"
	}
	// A list, in pages or as the events of a watch, brings all objects. Where there were too many, they are as many in another form.
	list := !watch || query.Get("sendInitialEvents") != "" && !i.loaded.Load()
	if list && !i.fits(ctx, resource) {
		return nil, ctx.Err()
	}
	for delay := retryFirst; ; delay = min(2*delay, retryLast) {
		if resumed := i.suspended(); resumed != nil {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-resumed:
				delay = retryFirst
			}
		}
		resp, err := i.transport.RoundTrip(req)
		if ctx.Err() != nil {
			return resp, err
		}
		if err != nil && i.suspended() != nil {
			continue // its connection was closed
		}
		why, retry := i.judge(resp, err)
		i.report(kind, why)
		if !retry {
			switch {
			case list:
				if query.Get("continue") == "" { // else it is another page
					i.begin(resource)
				}
				resp.Body = &boundedBody{ReadCloser: resp.Body, i: i, resource: resource, watch: watch}
			case resp.StatusCode < 300: // a list was complete
				i.report(tooMuch+resource, "")
			}
			return resp, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
	}
}

// boundedBody ends with an error where there is more to load than maxNames: it is another cluster's, and read into memory.
type boundedBody struct {
	io.ReadCloser
	i        *instance
	resource string
	watch    bool
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.watch && b.i.loaded.Load() || b.i.grow(b.resource, n) { // a watch goes on with what changes
		return n, err
	}
	why := fmt.Sprintf("it has more than %d MiB of %s: this is too much to load", maxNames>>20, b.resource)
	b.i.report(tooMuch+b.resource, why)
	return 0, errors.New(why)
}

// tooMuch is the kind of this failure, for each resource.
const tooMuch = "size of "

// begin is the start of a list.
func (i *instance) begin(resource string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.sizes[resource] = 0
	delete(i.tooMuch, resource)
}

// grow adds to the size of a list, unless it is too large.
func (i *instance) grow(resource string, n int) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.sizes[resource] += int64(n)
	if i.sizes[resource] > maxNames {
		i.tooMuch[resource] = time.Now()
		return false
	}
	return true
}

// fits waits until a resource that was too large may be tried again; false: ctx has ended.
func (i *instance) fits(ctx context.Context, resource string) bool {
	i.mu.Lock()
	since := i.tooMuch[resource]
	i.mu.Unlock()
	if since.IsZero() {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(time.Until(since.Add(tooMuchFor))):
		return true
	}
}

// judge says what is wrong with a response, if anything, and whether it is for us to try again.
func (i *instance) judge(resp *http.Response, err error) (why string, retry bool) {
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
			err = op.Err // without addresses: the one is known, the other changes
		}
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok && i.secret != "" {
			return "its certificate is not signed by the CA in certificate-authority-data of secret " + i.secret, true
		}
		return err.Error(), true
	}
	switch code := resp.StatusCode; {
	case code < 300, code == http.StatusBadRequest, code == http.StatusGone, code == http.StatusUnprocessableEntity, code == http.StatusTooManyRequests:
		return "", false // client-go knows what to do
	case code == http.StatusUnauthorized && i.own != nil:
		return statusMessage(resp), false // client-go reads the token's file again
	case code == http.StatusUnauthorized:
		return statusMessage(resp) + ": the token of secret " + i.secret + " is not accepted", true
	default: // a redirection, too: nobody sends us to other servers
		return statusMessage(resp), true
	}
}

// statusMessage is what an error response says. It takes the body.
func statusMessage(resp *http.Response) string {
	const most = 64 << 10
	body, err := io.ReadAll(io.LimitReader(resp.Body, most))
	resp.Body.Close()
	resp.Body = http.NoBody
	if err == nil {
		obj, _, err := clientscheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
		if s, ok := obj.(*metav1.Status); err == nil && ok && s.Message != "" {
			return s.Message
		}
	}
	return resp.Status
}

// report notes how a kind of request went; no text is good. The text may be another cluster's: it
// becomes one line of some length.
func (i *instance) report(kind, why string) {
	why = strings.Join(strings.Fields(why), " ")
	if len(why) > maxReason {
		why = strings.ToValidUTF8(why[:maxReason], "") + "..."
	}
	i.mu.Lock()
	changed := i.failures[kind] != why
	if why == "" {
		delete(i.failures, kind)
	} else {
		i.failures[kind] = why
	}
	i.mu.Unlock()
	if changed {
		i.failed()
	}
}

// failure is what the API server, or the way to it, complains of at present: one line. Of several
// complaints one is enough to go on.
func (i *instance) failure() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	kinds := slices.Sorted(maps.Keys(i.failures))
	if len(kinds) == 0 {
		return nil
	}
	server := i.server
	if i.own != nil {
		server = i.own.Host
	}
	return fmt.Errorf("API server %s: %s", server, i.failures[kinds[0]])
}

// services are the names of the services with the address.
func (i *instance) services(address string) (names []string) {
	for _, s := range i.plugin.APIConn.SvcIndexReverse(address) {
		name := s.Name + "." + s.Namespace + ".svc." + i.zone
		if _, ok := dns.IsDomainName(name); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// answer makes the reply to a query in the zone. Others have its records, too.
func (i *instance) answer(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	if kept := i.answers.find(i, state); kept != nil {
		return kept.to(i, state.Req), nil
	}
	return i.make(ctx, state)
}

// make makes a reply that is kept for others who ask.
func (i *instance) make(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	of, keep := i.objectsOf(state.Name())
	m, err := i.ask(ctx, state)
	if err == nil && keep {
		i.answers.keep(i, state, of, m)
	}
	return m, err
}

// ask puts the query to the plugin.
func (i *instance) ask(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	w := nonwriter.New(state.W)
	rcode, err := i.plugin.ServeDNS(ctx, w, state.Req)
	if err != nil {
		return nil, fmt.Errorf("names of %s: %w", i.zone, err)
	}
	m := w.Msg
	if m == nil {
		m = new(dns.Msg).SetRcode(state.Req, rcode)
	}
	for _, rr := range m.Answer {
		// An alias, as a service of type ExternalName is one. A target in the cluster's own domain belongs to the zone:
		// elsewhere that domain is another cluster's. It is followed as all aliases in the mesh are.
		alias, ok := rr.(*dns.CNAME)
		if !ok || !dns.IsSubDomain(i.clusterDomain, alias.Target) {
			continue
		}
		alias.Target = alias.Target[:len(alias.Target)-len(i.clusterDomain)] + i.zone
		if len(alias.Target) > 254 { // RFC 1035: 255 octets, and names of Kubernetes have no escapes
			return nil, fmt.Errorf("%s is an alias of a name that is longer than 255 octets in %s", state.Name(), i.zone)
		}
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl = min(h.Ttl, namesTTL)
			}
		}
	}
	return m, nil
}

// nowhere leaves it to others to follow aliases.
type nowhere struct{}

func (nowhere) Lookup(context.Context, request.Request, string, uint16) (*dns.Msg, error) {
	return new(dns.Msg), nil
}
