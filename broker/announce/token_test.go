package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/mandelsoft/kubelink/broker/link"
)

// tokenServer plays the API server: each token has a number.
type tokenServer struct {
	mu      sync.Mutex
	cert    []byte
	life    time.Duration
	issued  []time.Time
	invalid bool // the last token
	err     error
	fixed   *link.APIInfo // in a secret
	asked   int
}

func (s *tokenServer) readSecret(context.Context) (*link.APIInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fixed, nil
}

func (s *tokenServer) requestToken(context.Context) (string, time.Duration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.err != nil {
		return "", 0, s.err
	}
	s.issued, s.invalid = append(s.issued, time.Now()), false
	return fmt.Sprintf("token%d", len(s.issued)), s.life, nil
}

func (s *tokenServer) readCA(context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cert, nil
}

func (s *tokenServer) checkToken(_ context.Context, token string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.invalid && token == fmt.Sprintf("token%d", len(s.issued)), nil
}

func TestTokenSource(t *testing.T) {
	cert := testCA(t)
	synctest.Test(t, func(t *testing.T) {
		s := &tokenServer{cert: cert, life: 24 * time.Hour, err: errors.New("it does not exist")}
		account := types.NamespacedName{Namespace: "kube-system", Name: "names"}
		a := NewTokenSource(account, 24*time.Hour, slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		var woken atomic.Int32
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.Run(ctx, s, func() { woken.Add(1) })
		}()
		// after lets time pass, and then something else happen.
		after := func(d time.Duration, then func()) {
			time.Sleep(d)
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			then()
		}
		announces := func(d time.Duration, token, problem string) {
			t.Helper()
			after(d, func() {})
			access, err := a.Access()
			switch {
			case token == "" && access != nil, token != "" && (access == nil || access.Token != token):
				t.Errorf("announces %+v, want %s", access, token)
			case problem == "" && err != nil, problem != "" && (err == nil || !strings.Contains(err.Error(), problem)):
				t.Errorf("says %v, want %q", err, problem)
			}
		}
		announces(0, "", "service-account kube-system/names: it does not exist")
		after(time.Hour, func() {
			if n := woken.Load(); s.asked < 100 || s.asked > 400 || n != 1 {
				t.Errorf("asked %d times in an hour, woken %d times", s.asked, n)
			}
			s.err = nil
		})
		announces(maxRetry, "token1", "")

		// Two thirds of a day later there is another one; a day later the first would have ended.
		announces(16*time.Hour-2*time.Minute, "token1", "")
		announces(3*time.Minute, "token2", "")

		// The server may grant less.
		after(0, func() { s.life = time.Hour })
		var n int
		after(26*time.Hour, func() {
			n = len(s.issued)
			if gap := s.issued[n-1].Sub(s.issued[n-2]); gap < 40*time.Minute || gap > 41*time.Minute {
				t.Errorf("renewed after %s", gap)
			}
			// A failure is told, and what is announced stays.
			s.err = errors.New("no")
		})
		token := func() string { return fmt.Sprintf("token%d", n) }
		announces(50*time.Minute, token(), "no")
		after(0, func() { s.err = nil })
		n++
		announces(maxRetry, token(), "")

		// The account was made anew: the token does not open anything any more.
		after(0, func() { s.invalid = true })
		n++
		announces(tokenInterval, token(), "")

		// A secret comes, and goes. As long as it is there no token is asked for.
		after(0, func() { s.fixed = &link.APIInfo{Token: "fixed", CACert: cert} })
		announces(tokenInterval, "fixed", "")
		after(30*time.Hour, func() { s.fixed = nil })
		n++
		announces(tokenInterval, token(), "")

		// What peers would refuse is not sent.
		after(0, func() { s.cert = []byte("no PEM") })
		announces(tokenInterval, token(), "the CA has no certificate")
		stop()
		<-done
	})
}
