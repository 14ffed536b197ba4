package diagnosis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mandelsoft/kubelink/broker/echo"
	authentication "k8s.io/api/authentication/v1"
	authorization "k8s.io/api/authorization/v1"
)

// fakeReviewer stands for the API server. It knows users by their token.
type fakeReviewer struct {
	mu      sync.Mutex
	asked   int
	allowed map[string]bool // by user
	err     error
	foreign bool // tokens are for another audience
}

func (f *fakeReviewer) reviewToken(_ context.Context, token string) (*authentication.TokenReviewStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.err != nil {
		return nil, f.err
	}
	_, known := f.allowed[token]
	st := &authentication.TokenReviewStatus{Authenticated: known, User: authentication.UserInfo{Username: token}}
	if !f.foreign {
		st.Audiences = []string{Audience}
	}
	return st, nil
}

func (f *fakeReviewer) reviewAccess(
	_ context.Context, u *authentication.UserInfo,
) (*authorization.SubjectAccessReviewStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &authorization.SubjectAccessReviewStatus{Allowed: f.allowed[u.Username]}, nil
}

func request(h http.Handler, method, token string) (*httptest.ResponseRecorder, Refusal) {
	w, r := httptest.NewRecorder(), httptest.NewRequest(method, Path, nil)
	if token != "" {
		r.Header.Set(TokenHeader, token)
	}
	h.ServeHTTP(w, r)
	var refusal Refusal
	_ = json.Unmarshal(w.Body.Bytes(), &refusal)
	return w, refusal
}

// Pings need the token of a report, and bounds. Two at a time are too many.
func TestPingRequests(t *testing.T) {
	begun, end := make(chan string), make(chan struct{})
	h := newHandler(newGate(&fakeReviewer{allowed: map[string]bool{"reader": true}}), &Config{
		Ping: func(_ context.Context, link string, q echo.Request) (*PingResult, error) {
			if link != "a" {
				return nil, newPingError(http.StatusNotFound, "look", "there is no KubeLink")
			}
			begun <- fmt.Sprint(q.Size, " ", q.Count)
			<-end
			return &PingResult{Link: link, Result: echo.Result{Sent: q.Count}}, nil
		}}, &meter{})
	ask := func(token, query string) (int, string) {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", PingPath+"?"+query, nil)
		r.Header.Set(TokenHeader, token)
		h.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	type answer struct {
		code int
		body string
	}
	first := make(chan answer)
	go func() {
		code, body := ask("reader", PingParameters("a", 1400, 2).Encode())
		first <- answer{code, body}
	}()
	if got := <-begun; got != "1400 2" {
		t.Errorf("size and count %s", got)
	}
	for _, c := range []struct {
		token, query string
		code         int
		says         string
	}{
		{"reader", "link=a", 429, "for another request"},
		{"stranger", "link=a", 401, "does not accept"},
		{"reader", "link=a&size=x", 400, `size \"x\" is no number`},
		{"reader", "link=a&size=63", 400, "want 64 to 65535"},
		{"reader", "link=a&count=7", 400, "want 1 to 6"},
	} {
		if code, body := ask(c.token, c.query); code != c.code || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d %s", c.query, code, body)
		}
	}
	close(end)
	if a := <-first; a.code != 200 || !strings.Contains(a.body, `"sent":2`) {
		t.Errorf("%+v", a)
	}
	if code, body := ask("reader", "link=b"); code != 404 || !strings.Contains(body, "no KubeLink") {
		t.Errorf("%d %s", code, body)
	}
}

// The API server decides who gets a report. All others get an answer that says what to do, and no report is made.
func TestAccess(t *testing.T) {
	made := 0
	report := func(context.Context) *Report { made++; return &Report{Node: "node1"} }
	for name, c := range map[string]struct {
		method, token string
		api           *fakeReviewer
		status        int
		says          string
	}{
		"allowed":         {"GET", "reader", &fakeReviewer{}, 200, ""},
		"no token":        {"GET", "", &fakeReviewer{}, 401, "the request has no token"},
		"unknown token":   {"GET", "stranger", &fakeReviewer{}, 401, "does not accept the token"},
		"other audience":  {"GET", "reader", &fakeReviewer{foreign: true}, 401, "does not accept the token"},
		"long token":      {"GET", strings.Repeat("x", maxToken+1), &fakeReviewer{}, 401, "longer than"},
		"no right":        {"GET", "other", &fakeReviewer{}, 403, "other may not get /diagnosis"},
		"API server away": {"GET", "reader", &fakeReviewer{err: errors.New("a\nb")}, 503, "who this is: a; b"},
		"another method":  {"POST", "reader", &fakeReviewer{}, 405, ""},
	} {
		t.Run(name, func(t *testing.T) {
			made = 0
			c.api.allowed = map[string]bool{"reader": true, "other": false}
			w, refusal := request(newHandler(newGate(c.api), &Config{Report: report}, &meter{}), c.method, c.token)
			if w.Code != c.status || !strings.Contains(refusal.Error, c.says) {
				t.Errorf("%d %s, want %d with %q", w.Code, w.Body, c.status, c.says)
			}
			if (made > 0) != (c.status == 200) {
				t.Errorf("%d reports were made", made)
			}
			if c.says != "" && refusal.Remedy == "" {
				t.Error("no remedy")
			}
			kind := w.Header().Get("Content-Type")
			if c.status == 200 && (kind != "application/json" || !strings.Contains(w.Body.String(), "node1")) {
				t.Errorf("%s %s", kind, w.Body)
			}
		})
	}
}

// An answer is remembered for a while; then a right that was taken away ends. A failure is not remembered.
func TestAnswersAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeReviewer{allowed: map[string]bool{"reader": true}}
		h := newHandler(newGate(api), &Config{Report: func(context.Context) *Report { return &Report{} }}, &meter{})
		expect := func(status, asked int) {
			t.Helper()
			if w, _ := request(h, "GET", "reader"); w.Code != status || api.asked != asked {
				t.Errorf("%d after %d questions, want %d after %d", w.Code, api.asked, status, asked)
			}
		}
		expect(200, 1)
		expect(200, 1)
		api.allowed["reader"] = false
		time.Sleep(keepAnswer - time.Millisecond)
		expect(200, 1)
		time.Sleep(time.Millisecond)
		expect(403, 2)
		api.err = errors.New("away")
		time.Sleep(keepAnswer)
		expect(503, 3)
		expect(503, 4)
	})
}

// Strangers can have the API server asked so often, and no more, and the memory of answers is bounded. A user that
// polls, with a new token each time, waits for its turn and is not refused.
func TestReviewsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeReviewer{allowed: map[string]bool{}}
		g := newGate(api)
		h := newHandler(g, &Config{Report: func(context.Context) *Report { return &Report{} }}, &meter{})
		var limited atomic.Int32
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				if w, _ := request(h, "GET", strings.Repeat("x", i+10)); w.Code == 429 {
					limited.Add(1)
				}
			})
		}
		all.Wait()
		if most := burst + maxReviews; api.asked > most || int(limited.Load()) < 1000-most {
			t.Errorf("%d questions for 1000 strangers at once, %d were limited", api.asked, limited.Load())
		}
		start := time.Now()
		for i := range 200 {
			token := fmt.Sprint("user", i)
			api.allowed[token] = true
			if w, refusal := request(h, "GET", token); w.Code != 200 {
				t.Fatalf("request %d: %d %s", i, w.Code, refusal.Error)
			}
		}
		if took := time.Since(start); took > 201*time.Second/maxReviews {
			t.Errorf("200 requests, one after the other, took %s", took)
		}
		if len(g.answers) > maxAnswers {
			t.Errorf("%d answers are remembered", len(g.answers))
		}
	})
}
