package pki

import (
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// secretList is a source that has read one secret, or an error; neither: it reads.
type secretList struct {
	secret *corev1.Secret
	err    error
	wanted map[types.NamespacedName]bool
}

func (l *secretList) SetWanted(keys map[types.NamespacedName]bool) { l.wanted = keys }

func (l *secretList) Lookup(types.NamespacedName) (*corev1.Secret, bool, error) {
	return l.secret, l.secret != nil || l.err != nil, l.err
}

// What a secret had stays in use while it has no usable key. Messages have no key.
func TestPresharedKeys(t *testing.T) {
	good, other := mesh.SecretKey{1: 1}, mesh.SecretKey{1: 2}
	resource := schema.GroupResource{Resource: "secrets"}
	local := &mesh.Local{Mode: mesh.WireGuard}
	links := make([]v1alpha1.KubeLink, 2)
	links[0].Name, links[1].Name = "two", "three"
	links[0].Spec.PresharedKeySecretRef = &v1alpha1.SecretKeyRef{Name: "psk", Key: "two"}
	for _, c := range []struct {
		name   string
		source secretList
		want   mesh.SecretKey // before any usable key
		says   string
	}{
		{"good", secretList{secret: secretOf(map[string]string{"two": " " + good.Base64() + "\n"})}, good, ""},
		{"missing", secretList{err: apierrors.NewNotFound(resource, "psk")}, mesh.SecretKey{},
			"secret ns/psk does not exist: create it with the output of wg genpsk"},
		{"forbidden", secretList{err: apierrors.NewForbidden(resource, "psk", nil)}, mesh.SecretKey{},
			"secret ns/psk: the broker may not read it: create it if it does not exist, and allow its service account to " +
				"get it"},
		{"no answer", secretList{err: errors.New("no answer")}, mesh.SecretKey{}, "secret ns/psk: no answer"},
		{"no key", secretList{secret: secretOf(nil)}, mesh.SecretKey{},
			"secret ns/psk has no key two: add it with the output of wg genpsk"},
		{"bad key", secretList{secret: secretOf(map[string]string{"two": good.Base64()[1:]})}, mesh.SecretKey{},
			"key two of secret ns/psk: want 32 bytes in base64, as wg(8) prints keys: 44 characters, the last one is ="},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, now := &PresharedKeys{}, time.Now()
			keys, pending := p.Read(&c.source, "ns", local, links, now)
			if got := keys["two"]; got != (mesh.PresharedKey{Key: c.want, Problem: c.says}) || pending || len(keys) != 1 {
				t.Errorf("%q, right key %v, pending %v", got.Problem, got.Key == c.want, pending)
			}
			if at := (types.NamespacedName{Namespace: "ns", Name: "psk"}); len(c.source.wanted) != 1 || !c.source.wanted[at] {
				t.Errorf("wanted %v", c.source.wanted)
			}
			p = &PresharedKeys{}
			before := secretList{secret: secretOf(map[string]string{"two": other.Base64()})}
			p.Read(&before, "ns", local, links, now)
			want := other
			if c.says == "" {
				want = good
			}
			keys, _ = p.Read(&c.source, "ns", local, links, now)
			if got := keys["two"]; got != (mesh.PresharedKey{Key: want, Problem: c.says}) {
				t.Errorf("after a usable one: %q, right key %v", got.Problem, got.Key == want)
			}
		})
	}
}

// Links wait for the first look at a secret, but not for ever, and not where there is a key, or another mode.
func TestPresharedKeysPending(t *testing.T) {
	local := &mesh.Local{Mode: mesh.WireGuard}
	links := make([]v1alpha1.KubeLink, 1)
	links[0].Name = "two"
	links[0].Spec.PresharedKeySecretRef = &v1alpha1.SecretKeyRef{Name: "psk", Namespace: "other", Key: "two"}
	p, now, reading := &PresharedKeys{}, time.Now(), &secretList{}
	for _, c := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {4 * time.Second, true}, {5 * time.Second, false}, {time.Hour, false}} {
		keys, pending := p.Read(reading, "ns", local, links, now.Add(c.after))
		if pending != c.want || keys["two"].Problem != "secret other/psk is being read" {
			t.Errorf("after %s: pending %v, %q", c.after, pending, keys["two"].Problem)
		}
	}
	if keys, pending := p.Read(reading, "ns", &mesh.Local{Mode: mesh.Bridge}, links, now); pending || len(keys) != 0 {
		t.Errorf("mode bridge: pending %v, %d keys", pending, len(keys))
	}
	key := mesh.SecretKey{1: 1}
	p.Read(&secretList{secret: secretOf(map[string]string{"two": key.Base64()})}, "ns", local, links, now)
	if keys, pending := p.Read(reading, "ns", local, links, now); pending || keys["two"].Key != key {
		t.Errorf("pending %v, though there is a key", pending)
	}
}
