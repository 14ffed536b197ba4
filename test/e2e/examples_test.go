package e2e

// The examples of deploy for two clusters whose networks may be the same.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// The clusters get the files as they are, and no service network of each other: pods call the services by name.
func TestOverlapExample(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	root, err := testbed.Repository()
	must(t, err)
	t.Cleanup(func() { restoreMesh(t) })
	pair := brokers[:2]
	for i, b := range pair {
		_, err := b.Service(ctx, "web", map[string]string{"app": "server"},
			[]corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(httpPort)}}, testbed.ServiceOptions{})
		must(t, err)
		t.Cleanup(func() { b.Kubectl(context.Background(), "delete", "service", "web") })
		for _, other := range pair { // what the files do not have, kubectl apply leaves
			_, err := b.Kubectl(ctx, "patch", "kubelink", other.Name, "--type=merge", "-p", `{"spec":{"cidr":null}}`)
			must(t, err)
		}
		file := filepath.Join(root, "deploy", "examples", fmt.Sprintf("overlap%d.yaml", i+1))
		text, err := os.ReadFile(file)
		must(t, err)
		_, err = b.KubectlInput(ctx, string(text), "apply", "-f", "-")
		must(t, err)
		t.Cleanup(func() { b.Kubectl(context.Background(), "delete", "meshservice", "web") })
	}
	for i, b := range pair {
		other := pair[1-i]
		waitMeshService(t, 10*time.Second, b, "web", "web", " Ok ", " True ")
		must(t, b.WaitState(ctx, other.Name, v1alpha1.StateUp))
		within(t, 10*time.Second, "the service network to be routed no more", func(ctx context.Context) error {
			out, err := b.Gateway().Run(ctx, "ip", "route", "show", other.ServiceCIDR.String(), "dev", "kubelink")
			if err == nil && out != "" {
				err = errors.New(out)
			}
			return err
		})
		for _, zone := range []string{"svc", "msvc"} {
			name := "web.default." + zone + "." + other.Name + ".kubelink"
			var seen string
			took := within(t, 10*time.Second, name, func(ctx context.Context) (err error) {
				seen, err = clients[i].Get(ctx, "http://"+name+"/")
				return err
			})
			t.Logf("%s answers a pod of %s after %v, which it sees as %s", name, b.Name, took, seen)
			if seen == b.MeshAddress.Addr().String() { // answers would have to find the gateway by themselves
				t.Errorf("%s sees the mesh address %s", name, seen)
			}
		}
	}
}
