package apizone

// This file finds out why an API server cannot be used, and keeps the reasons for users: one line each, of bounded
// length, as the text may be another cluster's.

import (
	"bufio"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
)

const (
	// maxReason is the longest text of a failure, in bytes.
	maxReason = 300
	// overloadKind and a resource are the kind of failure of objects that are too large to load.
	overloadKind = "size of "
)

// judgeResponse says what is wrong with a response, if anything, and whether the transport shall try again.
func judgeResponse(s *apiSource, resp *http.Response, err error) (reason string, retry bool) {
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
			err = op.Err // without addresses: the server's is known, the other one changes
		}
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok && s.secret != "" {
			return "its certificate is not signed by the CA in certificate-authority-data of secret " + s.secret, true
		}
		return err.Error(), true
	}
	switch code := resp.StatusCode; {
	case code < 300,
		code == http.StatusBadRequest, code == http.StatusGone,
		code == http.StatusUnprocessableEntity, code == http.StatusTooManyRequests:
		return "", false // client-go knows what to do
	case code == http.StatusUnauthorized && s.own != nil:
		return readStatus(resp), false // client-go reads the token's file again
	case code == http.StatusUnauthorized:
		return readStatus(resp) + ": the token of secret " + s.secret + " is not accepted", true
	default: // a redirection, too: an API server must not send the broker to other servers
		return readStatus(resp), true
	}
}

// listVersion is in each list.
var listVersion = regexp.MustCompile(`"resourceVersion": ?"[^"]`)

// judgeList says why a response cannot be a list of an API server: a short text without the version of the list, such
// as {}. It would be taken for an empty list, and all names of the cluster would be gone.
func judgeList(resp *http.Response) (reason string, retry bool) {
	const shortest = 512 // bytes of a text that is worth a look
	isText := strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json")
	if resp.StatusCode != http.StatusOK || !isText {
		return "", false
	}
	body := bufio.NewReaderSize(resp.Body, shortest)
	start, err := body.Peek(shortest)
	if err == io.EOF && !listVersion.Match(start) {
		resp.Body.Close()
		return "it answers without resourceVersion, which is not believed", true
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{body, resp.Body}
	return "", false
}

// readStatus reads the message of an error response. It takes the body.
func readStatus(resp *http.Response) string {
	const maxBody = 64 << 10
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
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

// failures are the present failures of one API server.
type failures struct {
	mu      sync.Mutex        // guards reasons
	reasons map[string]string // by kind: resource and verb, or overloadKind and resource
}

func newFailures() *failures { return &failures{reasons: map[string]string{}} }

// setReason keeps how a kind of request went, in one line; an empty reason means success. It tells whether that is
// news.
func (f *failures) setReason(kind, reason string) (changed bool) {
	reason = strings.Join(strings.Fields(reason), " ")
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "..."
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	changed = f.reasons[kind] != reason
	if reason == "" {
		delete(f.reasons, kind)
	} else {
		f.reasons[kind] = reason
	}
	return changed
}

// deleteKinds forgets the failures of all kinds that begin with the prefix.
func (f *failures) deleteKinds(prefix string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.reasons, func(kind, _ string) bool { return strings.HasPrefix(kind, prefix) })
}

// firstReason is one of the failures, empty if there are none: one is enough to go on.
func (f *failures) firstReason() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	kinds := slices.Sorted(maps.Keys(f.reasons))
	if len(kinds) == 0 {
		return ""
	}
	return f.reasons[kinds[0]]
}
