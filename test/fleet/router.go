package fleet

// This file has the router of a node, with the rights of the component router.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// RouterAccount is the account of routers in the manifests.
const RouterAccount = "kubelink-router"

// Router is kubelink-router on a node.
type Router struct {
	Host    *testbed.Pod
	Process *testbed.Process

	cluster *testbed.Cluster
}

// RouterBinary returns the path of kubelink-router: the value of the variable KUBELINK_ROUTER, or else the result of
// make build.
func RouterBinary() (string, error) {
	if path := os.Getenv("KUBELINK_ROUTER"); path != "" {
		return path, nil
	}
	root, err := testbed.Repository()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "bin", "kubelink-router")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run make build first", err)
	}
	return path, nil
}

// NodeRouter makes a pod for the router of a node, as the DaemonSet of the component does. The roles of the component
// are there already.
func (b *Broker) NodeRouter(ctx context.Context, n *testbed.Node) (*Router, error) {
	host, err := b.Cluster.Pod(ctx, "router-"+n.Name, testbed.PodOptions{
		Namespace: Namespace, Node: n, Labels: map[string]string{"app": "kubelink-router"}, ServiceAccount: RouterAccount,
		HostNetwork: true,
		Env:         []string{"NODE_NAME=" + n.Name, "NODE_IP=" + n.Address.String(), "NAMESPACE=" + Namespace},
	})
	return &Router{Host: host, cluster: b.Cluster}, err
}

// Launch starts the program with the arguments of the component, and more.
func (r *Router) Launch(arguments ...string) error {
	binary, err := RouterBinary()
	if err != nil {
		return err
	}
	r.Process, err = r.Host.Start(context.Background(), "kubelink-router", nil, binary, append([]string{
		"--node-cidr=" + testbed.NodeCIDR.String(), "--pod-cidr=" + testbed.PodCIDR.String(),
		"--server-port-http=10541", "--bind-address-http=" + r.Host.Node.Address.String()}, arguments...)...)
	return err
}

// URL is that of a page of the router.
func (r *Router) URL(page string) string {
	return fmt.Sprintf("http://%s:10541/%s", r.Host.Node.Address, page)
}

// NewReader returns a function that asks for what the router has found, as a user does who may read reports.
func (r *Router) NewReader(ctx context.Context) (func(context.Context) (string, error), error) {
	token, err := r.cluster.Kubectl(ctx, "--namespace", Namespace, "create", "token", diagnosis.ServiceAccount,
		"--audience", diagnosis.Audience)
	return func(ctx context.Context) (string, error) { return r.Findings(ctx, strings.TrimSpace(token)) }, err
}

// Findings asks for what the router has found, with a token; empty: without one.
func (r *Router) Findings(ctx context.Context, token string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL("findings"), nil)
	if err != nil {
		return "", err
	}
	request.Header.Set(diagnosis.TokenHeader, token)
	through := &http.Transport{DialContext: r.Host.DialContext}
	defer through.CloseIdleConnections()
	answer, err := (&http.Client{Transport: through}).Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return string(body), err
}

// WaitReady waits until the router is ready.
func (r *Router) WaitReady(ctx context.Context) error {
	return testbed.Until(ctx, "router on "+r.Host.Node.Name, func(ctx context.Context) error {
		select {
		case <-r.Process.Done():
			return errors.New(r.Process.Log())
		default:
		}
		_, err := r.Host.Get(ctx, r.URL("readyz"))
		return err
	})
}

// Kill ends the program and waits for its end.
func (r *Router) Kill(ctx context.Context, signal syscall.Signal) error {
	if err := r.Process.Kill(signal); err != nil {
		return err
	}
	select {
	case <-r.Process.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Cleanup removes what routers have set on the node.
func (r *Router) Cleanup(ctx context.Context) error {
	binary, err := RouterBinary()
	if err != nil {
		return err
	}
	_, err = r.Host.Run(ctx, binary, "--cleanup")
	return err
}
