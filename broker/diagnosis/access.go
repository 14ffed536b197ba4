package diagnosis

// The API server decides which users may read reports, by TokenReview and SubjectAccessReview.

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	authentication "k8s.io/api/authentication/v1"
	authorization "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/rest"
)

const (
	maxToken   = 16 << 10         // bytes
	keepAnswer = 10 * time.Second // a right that is taken away ends by then
	maxAnswers = 128
	// A stranger can make the broker ask the API server this often per second, and no more. With many addresses it is
	// sharesAtOnce times that.
	maxReviews = 5
	burst      = 20
	// A request waits this long for its turn, as polling users have more than maxReviews tokens per second for a while.
	reviewWait = time.Second
)

// decision is what became of a request.
type decision struct {
	status  int // of HTTP
	refusal Refusal
}

var granted = decision{status: http.StatusOK}

func refuse(status int, remedy, format string, args ...any) decision {
	return decision{status, Refusal{Error: fmt.Sprintf(format, args...), Remedy: remedy}}
}

// reviewer asks the API server.
type reviewer interface {
	reviewToken(ctx context.Context, token string) (*authentication.TokenReviewStatus, error)
	reviewAccess(context.Context, *authentication.UserInfo) (*authorization.SubjectAccessReviewStatus, error)
}

// gate lets requests in, or not. It remembers what the API server has said of a token.
type gate struct {
	api     reviewer
	reviews *turns

	mu      sync.Mutex // guards answers; not held while the API server is asked
	answers map[[sha256.Size]byte]answer
}

type answer struct {
	decision
	until time.Time
}

func newGate(api reviewer) *gate {
	return &gate{api: api, reviews: newTurns(), answers: map[[sha256.Size]byte]answer{}}
}

const tokenRemedy = "send a token of an account that may get " + Path + ", for the audience " + Audience +
	", in the header " + TokenHeader + ": kubectl -n kubelink create token " + ServiceAccount + " --audience " + Audience

// admitToken decides on a token that came from an address.
func (g *gate) admitToken(ctx context.Context, source netip.Addr, token string) decision {
	switch {
	case token == "":
		return refuse(http.StatusUnauthorized, tokenRemedy, "the request has no token")
	case len(token) > maxToken:
		return refuse(http.StatusUnauthorized, tokenRemedy, "the token is longer than %d bytes", maxToken)
	}
	key := sha256.Sum256([]byte(token))
	if d, ok := g.findAnswer(key); ok {
		return d
	}
	if !g.reviews.await(ctx, source) {
		return refuse(http.StatusTooManyRequests, "try again in a second", "too many requests with different tokens")
	}
	d, err := g.askAPI(ctx, token)
	if err != nil {
		return refuse(http.StatusServiceUnavailable, "see that the API server answers, and that the ClusterRole of this "+
			"program has the verb create for tokenreviews and subjectaccessreviews (rbac.yaml in deploy)",
			"cannot ask the API server who this is: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	g.rememberAnswer(key, d)
	return d
}

func (g *gate) findAnswer(key [sha256.Size]byte) (decision, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a, ok := g.answers[key]
	return a.decision, ok && time.Now().Before(a.until)
}

// rememberAnswer keeps an answer. A full memory forgets what is old, and then anything.
func (g *gate) rememberAnswer(key [sha256.Size]byte, d decision) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for k, a := range g.answers {
		if !time.Now().Before(a.until) {
			delete(g.answers, k)
		}
	}
	for k := range g.answers {
		if len(g.answers) < maxAnswers {
			break
		}
		delete(g.answers, k)
	}
	g.answers[key] = answer{d, time.Now().Add(keepAnswer)}
}

// askAPI asks the API server. An error is no answer.
func (g *gate) askAPI(ctx context.Context, token string) (decision, error) {
	who, err := g.api.reviewToken(ctx, token)
	if err != nil {
		return decision{}, err
	}
	if !who.Authenticated || !slices.Contains(who.Audiences, Audience) {
		return refuse(http.StatusUnauthorized, tokenRemedy, "the API server does not accept the token"), nil
	}
	may, err := g.api.reviewAccess(ctx, &who.User)
	if err != nil {
		return decision{}, err
	}
	if !may.Allowed || may.Denied {
		return refuse(http.StatusForbidden,
			"give it a ClusterRole with the verb get for the nonResourceURL "+Path+
				", or use the account "+ServiceAccount+" of the manifests",
			"%s may not get %s", shortenName(who.User.Username), Path), nil
	}
	return granted, nil
}

// shortenName bounds the name of a user.
func shortenName(name string) string {
	const limit = 253
	if len(name) > limit {
		return strings.ToValidUTF8(name[:limit], "") + "..."
	}
	return name
}

// apiReviewer asks an API server.
type apiReviewer struct {
	tokens *authenticationclient.AuthenticationV1Client
	access *authorizationclient.AuthorizationV1Client
}

func newReviewer(api *rest.Config) (*apiReviewer, error) {
	tokens, err := authenticationclient.NewForConfig(api)
	if err != nil {
		return nil, err
	}
	access, err := authorizationclient.NewForConfig(api)
	return &apiReviewer{tokens, access}, err
}

func (r *apiReviewer) reviewToken(ctx context.Context, token string) (*authentication.TokenReviewStatus, error) {
	review, err := r.tokens.TokenReviews().Create(ctx, &authentication.TokenReview{
		Spec: authentication.TokenReviewSpec{Token: token, Audiences: []string{Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	return &review.Status, nil
}

func (r *apiReviewer) reviewAccess(
	ctx context.Context, user *authentication.UserInfo,
) (*authorization.SubjectAccessReviewStatus, error) {
	spec := authorization.SubjectAccessReviewSpec{
		User: user.Username, Groups: user.Groups, UID: user.UID,
		NonResourceAttributes: &authorization.NonResourceAttributes{Path: Path, Verb: "get"},
	}
	for key, values := range user.Extra {
		if spec.Extra == nil {
			spec.Extra = map[string]authorization.ExtraValue{}
		}
		spec.Extra[key] = authorization.ExtraValue(values)
	}
	review, err := r.access.SubjectAccessReviews().Create(ctx,
		&authorization.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	return &review.Status, nil
}
