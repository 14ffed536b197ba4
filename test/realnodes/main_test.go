// Package realnodes tests on real nodes: with kubelet and containerd. It needs root, so that `make test` calls it as
// root only and else names its tests.
package realnodes

import (
	"os"
	"testing"

	"github.com/mandelsoft/kubelink/test/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Main(m.Run)) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// must returns a function, because so it can take both results of a call.
func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return value
	}
}
