package survey

// What a pod in place of a broker could do to the user who asks it.

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
)

// Bounds of answers.
const (
	maxAnswer     = 32 << 20 // bytes, of the API server
	maxPodAnswer  = 8 << 20  // bytes, of a pod; a report of 253 links and 4096 services is a third of that
	maxBrokers    = 32       // that are asked for a report
	maxLinks      = 2048     // of a report: many of them take time to compare
	maxClusters   = 256
	maxOfCluster  = 64    // addresses, and networks
	maxOtherItems = 16384 // of other lists
)

// checkBounds refuses a report that no broker makes.
func checkBounds(r *diagnosis.Report) error {
	switch {
	case len(r.Links) > maxLinks, len(r.Clusters) > maxClusters,
		max(len(r.MeshServices), len(r.Certificates), len(r.Findings), len(r.Checks)) > maxOtherItems,
		slices.ContainsFunc(r.Clusters, func(c diagnosis.Cluster) bool {
			return max(len(c.Addresses), len(c.Services)) > maxOfCluster
		}):
		return fmt.Errorf("the report is larger than one of a broker: %d links, %d meshes", len(r.Links), len(r.Clusters))
	}
	return nil
}

// guardClient has a client follow no redirects, with which the credentials of the user would go to another server, and
// read no answers without end.
func guardClient(api *rest.Config) *rest.Config {
	config := rest.CopyConfig(api)
	config.Wrap(func(to http.RoundTripper) http.RoundTripper { return guard{to} })
	return config
}

// guard implements http.RoundTripper.
type guard struct{ http.RoundTripper }

func (g guard) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := g.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if to := answer.Header.Get("Location"); to != "" && answer.StatusCode/100 == 3 {
		answer.Body.Close()
		return nil, fmt.Errorf("the answer is a redirect to %.200q, which is not followed: no broker sends one", to)
	}
	limit := maxAnswer
	if strings.Contains(r.URL.Path, "/proxy/") {
		limit = maxPodAnswer
	}
	answer.Body = &limitedBody{answer.Body, limit, limit}
	return answer, nil
}

// limitedBody fails after so many bytes.
type limitedBody struct {
	io.ReadCloser
	left, limit int
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the answer has more than %d bytes", b.limit)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
