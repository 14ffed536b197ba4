package diagnosis

// Requests that have the broker ping the other end of a link.

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/echo"
)

// PingPath has the broker send pings through a link. A user who may get Path may get it, too. The parameters are link,
// the name of a KubeLink, and optionally size, the bytes of each IP packet, and count. The answer is a PingResult.
const PingPath = Path + "/ping"

// PingResult is what came back. No answer is a result, too.
type PingResult struct {
	Link    string `json:"link"`
	Address string `json:"address"` // the cluster address of the other end
	Size    int    `json:"size"`    // of IP packets, bytes
	echo.Result
}

// PingError says why the broker cannot ping.
type PingError struct {
	Status int // of HTTP
	Refusal
}

func (e *PingError) Error() string { return e.Refusal.Error }

// PingParameters are the parameters of a request.
func PingParameters(link string, size, count int) url.Values {
	return url.Values{"link": {link}, "size": {strconv.Itoa(size)}, "count": {strconv.Itoa(count)}}
}

// pinger serves PingPath, one request at a time.
type pinger struct {
	ping func(context.Context, string, echo.Request) (*PingResult, error)
	busy chan struct{}
}

func (p *pinger) serve(w http.ResponseWriter, r *http.Request) {
	q, e := readPing(r.URL.Query())
	if e != nil {
		writeJSON(w, e.Status, e.Refusal)
		return
	}
	select {
	case p.busy <- struct{}{}:
		defer func() { <-p.busy }()
	default:
		writeJSON(w, http.StatusTooManyRequests,
			Refusal{Error: "the broker is sending pings for another request", Remedy: "try again in some seconds"})
		return
	}
	result, err := p.ping(r.Context(), r.URL.Query().Get("link"), q)
	if refused, ok := err.(*PingError); ok {
		writeJSON(w, refused.Status, refused.Refusal)
		return
	}
	if err != nil {
		writeJSON(w, http.StatusInternalServerError, Refusal{Error: err.Error(), Remedy: "look at the log of the broker"})
		return
	}
	writeJSON(w, http.StatusOK, result)
}

// readPing reads the parameters size and count.
func readPing(values url.Values) (q echo.Request, refused *PingError) {
	q = echo.Request{Size: echo.DefaultSize, Count: 3}
	for name, to := range map[string]*int{"size": &q.Size, "count": &q.Count} {
		text := values.Get(name)
		if text == "" {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			return q, newPingError(http.StatusBadRequest, "give a number", "%s %q is no number", name, shortenName(text))
		}
		*to = n
	}
	if err := q.Check(); err != nil {
		return q, newPingError(http.StatusBadRequest, "give a number in these bounds", "%s", err)
	}
	return q, nil
}

func newPingError(status int, remedy, format string, args ...any) *PingError {
	return &PingError{status, Refusal{Error: fmt.Sprintf(format, args...), Remedy: remedy}}
}

// FindTarget finds the address to ping for a link. An error is a PingError.
func (f *Facts) FindTarget(link string) (to netip.Addr, err error) {
	if !f.Lease.Active {
		return to, newPingError(http.StatusConflict, "ask the broker of "+f.Lease.Holder,
			"this broker does not hold the links")
	}
	if f.Outcome == nil {
		return to, newPingError(http.StatusServiceUnavailable, "try again in some seconds",
			"the broker has no links from the API server yet")
	}
	i := slices.IndexFunc(f.Outcome.Links, func(l v1alpha1.KubeLink) bool { return l.Name == link })
	if i < 0 {
		return to, newPingError(http.StatusNotFound, "kubectl get kubelinks shows their names",
			"there is no KubeLink %q", shortenName(link))
	}
	address, err := netip.ParsePrefix(f.Outcome.Links[i].Spec.ClusterAddress)
	if err != nil {
		return to, newPingError(http.StatusConflict, "mend its spec.clusterAddress", "link %s: %s", link, err)
	}
	return address.Addr(), nil
}
