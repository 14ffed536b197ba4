package survey

// What a pod in place of a broker could do to the user who asks it.

import (
	"fmt"
	"io"
	"net/http"

	"k8s.io/client-go/rest"
)

// maxAnswer bounds an answer, in bytes. A report of 253 links and 4096 services is a tenth of that.
const maxAnswer = 32 << 20

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
	answer.Body = &limitedBody{answer.Body, maxAnswer}
	return answer, nil
}

// limitedBody fails after so many bytes.
type limitedBody struct {
	io.ReadCloser
	left int
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
