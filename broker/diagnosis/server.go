package diagnosis

// The server of reports.

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/echo"
	"github.com/mandelsoft/kubelink/broker/link"
)

const (
	maxConnections = 256              // for each address
	headerTimeout  = 4 * time.Second  // for a client to say what it wants
	reviewTimeout  = 4 * time.Second  // for the API server to say who may read a report
	requestTimeout = 12 * time.Second // a review, and the longest series of pings
	listenRetry    = 5 * time.Second
)

// Config says what a Server serves.
type Config struct {
	Addresses []netip.AddrPort // to listen on; TCP
	API       *rest.Config     // of the API server that decides who may read reports
	// Report makes a report. It is called for each request that the API server lets in, and must not block for long.
	Report func(context.Context) *Report
	// Statuses are those of the dataplane. They are read once a second, for the rates of a report.
	Statuses func() []link.Status
	// Ping sends pings through a link. A PingError says why not.
	Ping func(ctx context.Context, link string, q echo.Request) (*PingResult, error)
	Log  *slog.Logger
}

// Server serves reports until Stop.
type Server struct {
	http *http.Server
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// Start starts a Server. An address that cannot be had is tried again until Stop: links do not depend on reports.
func Start(c Config) (*Server, error) {
	g, err := openGate(c.API)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	rates := &meter{}
	s := &Server{stop: stop, http: &http.Server{
		Handler: newHandler(g, &c, rates), ReadTimeout: requestTimeout,
		ReadHeaderTimeout: headerTimeout, WriteTimeout: requestTimeout,
		IdleTimeout: requestTimeout, MaxHeaderBytes: 2 * maxToken,
		ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug), // what strangers send is not for the log
	}}
	s.wg.Go(func() { rates.run(ctx, c.Statuses) })
	for _, at := range c.Addresses {
		s.wg.Go(func() { s.serve(ctx, at, c.Log) })
	}
	return s, nil
}

// openGate returns a gate that asks an API server.
func openGate(server *rest.Config) (*gate, error) {
	api := rest.CopyConfig(server)
	api.Timeout = reviewTimeout
	r, err := newReviewer(api)
	if err != nil {
		return nil, err
	}
	return newGate(r), nil
}

// NewAdmission returns a function that has a handler serve those users only that an API server lets read reports.
func NewAdmission(api *rest.Config) (func(http.HandlerFunc) http.HandlerFunc, error) {
	g, err := openGate(api)
	if err != nil {
		return nil, err
	}
	return g.admit, nil
}

// Stop ends the server and awaits the end of its listeners. A nil Server has none.
func (s *Server) Stop() {
	if s == nil {
		return
	}
	s.stop()
	s.http.Close()
	s.wg.Wait()
}

// serve listens on an address until ctx ends.
func (s *Server) serve(ctx context.Context, at netip.AddrPort, log *slog.Logger) {
	for told := false; ctx.Err() == nil; {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", at.String())
		if err == nil {
			told = false
			err = s.http.Serve(ShareConnections(listener, maxConnections))
		}
		if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
			return
		}
		if !told {
			log.Warn("no reports for kubectl kubelink at this address; set diagnosis-port to a free port, or to 0 for none",
				"address", at, "error", err)
			told = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(listenRetry):
		}
	}
}

// newHandler returns the handler of all paths.
func newHandler(g *gate, c *Config, rates *meter) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Path, g.admit(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), reviewTimeout)
		defer cancel()
		report := c.Report(ctx)
		rates.setRates(report)
		writeJSON(w, http.StatusOK, report)
	}))
	mux.HandleFunc("GET "+PingPath, g.admit((&pinger{ping: c.Ping, busy: make(chan struct{}, 1)}).serve))
	return mux
}

// admit hands a request on if its token is good.
func (g *gate) admit(serve http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), reviewTimeout)
		d := g.admitToken(ctx, sourceOf(r.RemoteAddr), r.Header.Get(TokenHeader))
		if cancel(); d.status != http.StatusOK {
			writeJSON(w, d.status, d.refusal)
			return
		}
		serve(w, r)
	}
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		status, text = http.StatusInternalServerError, []byte(`{"error":"the report cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(text) // the client may be gone
}
