package e2e

// MeshServices: users see each state, and what is in the way.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
)

// applyMeshServices applies MeshServices, by name and spec, for the time of a test.
func applyMeshServices(t *testing.T, ctx context.Context, b *fleet.Broker, specs ...[2]string) {
	t.Helper()
	for _, s := range specs { // one after the other: their age counts
		_, err := b.KubectlInput(ctx, fmt.Sprintf(
			`{"apiVersion":"kubelink.mandelsoft.org/v1alpha1","kind":"MeshService","metadata":{"name":%q},"spec":{%s}}`,
			s[0], s[1]), "apply", "-f", "-")
		must(t, err)
		t.Cleanup(func() { b.Kubectl(context.Background(), "delete", "meshservice", s[0], "--ignore-not-found") })
	}
}

// waitMeshService waits until kubectl shows a MeshService with all of these words.
func waitMeshService(t *testing.T, limit time.Duration, b *fleet.Broker, name string, words ...string) {
	t.Helper()
	within(t, limit, fmt.Sprintf("%s to be %q", name, words), func(ctx context.Context) error {
		out, err := b.Kubectl(ctx, "get", "msvc", name, "-o", "wide", "--no-headers")
		if err != nil {
			return err
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				return errors.New(out)
			}
		}
		return nil
	})
}

// Users see each state with kubectl, with the reason, and it follows what they do about it.
func TestMeshServiceStates(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	b := brokers[1]
	must(t, b.Apply(ctx, newKubeLink("m5--kubelink2", "192.168.0.99/24", v1alpha1.EndpointLocal, nil)))
	t.Cleanup(func() { must(t, b.Remove(context.Background(), "m5--kubelink2")) })
	applyMeshServices(t, ctx, b,
		[2]string{"whole", `"service":"server","meshAddress":"192.168.0.100"`},
		[2]string{"ports", `"service":"server","ports":[{"port":8800,"protocol":"tcp"}],
			"endpoints":[{"portMappings":[{"port":8800,"targetPort":"http"}]}]`},
		[2]string{"far", `"meshAddress":"198.18.0.1","endpoints":[{"address":"10.250.0.77"}]`},
		[2]string{"missing", `"service":"nope","meshAddress":"192.168.0.101"`},
		[2]string{"taken", `"service":"server","meshAddress":"192.168.0.13"`},
		[2]string{"second", `"service":"server","meshAddress":"192.168.0.100"`},
		[2]string{"stale", `"service":"server","mesh":"m5","ports":[{"port":80}]`},
	)
	const limit = 5 * time.Second
	for name, words := range map[string][]string{
		"whole":   {"server", "192.168.0.100", " Ok ", " True "},
		"ports":   {"server", " Ok ", " True "},
		"far":     {"198.18.0.1", " Ok ", "lies in no mesh: it is served, but not announced"},
		"missing": {" Invalid ", " False ", `spec.service "nope": namespace default has no such service: create it`},
		"taken":   {" Invalid ", "spec.meshAddress 192.168.0.13 belongs to the link kubelink3"},
		"second":  {" Invalid ", "spec.meshAddress 192.168.0.100 belongs to the older MeshService default/whole"},
		"stale":   {" Stale ", "LocalLink m5--kubelink2 of mesh m5 cannot be used (Invalid): repair it first"},
	} {
		waitMeshService(t, limit, b, name, words...)
	}
	out, err := b.Kubectl(ctx, "get", "msvc", "-o", "wide")
	must(t, err)
	t.Log("\n" + out)

	// A service that comes, without endpoints; and what is free again.
	_, err = b.Kubectl(ctx, "create", "service", "clusterip", "nope", "--tcp=80")
	must(t, err)
	t.Cleanup(func() { b.Kubectl(context.Background(), "delete", "service", "nope", "--ignore-not-found") })
	waitMeshService(t, limit, b, "missing", " Ok ", " False ", "service nope has no ready endpoint (IPv4): connections are")
	_, err = b.Kubectl(ctx, "delete", "meshservice", "whole")
	must(t, err)
	waitMeshService(t, limit, b, "second", " Ok ", " True ")
	_, err = b.Kubectl(ctx, "delete", "service", "nope")
	must(t, err)
	waitMeshService(t, limit, b, "missing", " Invalid ", "no such service")

	// A younger link does not get the address.
	must(t, b.Apply(ctx, newKubeLink("late", "192.168.0.100/24", "late.example", nil)))
	t.Cleanup(func() { must(t, b.Remove(context.Background(), "late")) })
	must(t, b.WaitState(ctx, "late", v1alpha1.StateInvalid, "belongs to the older MeshService default/second"))
	within(t, limit, "events", func(ctx context.Context) error {
		out, err := b.Kubectl(ctx, "get", "events", "--field-selector", "involvedObject.kind=MeshService")
		for _, w := range []string{"MeshServiceInvalid", "MeshServiceOk", "no such service", "meshservice/second"} {
			if err == nil && !strings.Contains(out, w) {
				err = fmt.Errorf("no %q in\n%s", w, out)
			}
		}
		return err
	})
	testServedElsewhere(t, ctx, b)
}

// testServedElsewhere: with another list the broker leaves MeshServices to others, and says so; in mode none it serves
// none.
func testServedElsewhere(t *testing.T, ctx context.Context, b *fleet.Broker) {
	t.Run("served elsewhere", func(t *testing.T) {
		editCorefile(t, ctx, b, "service kubelink\n", "service kubelink\n        served-links m5\n")
		waitMeshService(t, 10*time.Second, b, "second", " Stale ", "no broker serves the default mesh: name it in served-links")
	})
	waitMeshService(t, 15*time.Second, b, "second", " Ok ", " True ")
	t.Run("mode none", func(t *testing.T) {
		edits := []string{"secret kubelink-tls", "mode none", "service kubelink\n", ""}
		if inWireGuard() {
			edits = []string{"mode wireguard", "mode none", "secret kubelink-tls", "", "secret-manage-mode self", "",
				"service kubelink\n", ""}
		}
		editCorefile(t, ctx, b, edits...)
		waitMeshService(t, 15*time.Second, b, "second", " Unsupported ", "mode none carries no traffic: MeshServices need")
	})
	waitMeshService(t, 15*time.Second, b, "second", " Ok ", " True ")
}
