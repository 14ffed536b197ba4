package pki

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

var keyConfig = Config{Namespace: "ns", Secret: "wg", WireGuard: true, SecretManageMode: ManageNone}

func secretOf(data map[string]string) *corev1.Secret {
	secret := &corev1.Secret{Data: map[string][]byte{}}
	secret.Namespace, secret.Name = keyConfig.Namespace, keyConfig.Secret
	for key, value := range data {
		secret.Data[key] = []byte(value)
	}
	return secret
}

func TestRefreshKey(t *testing.T) {
	one, two := mesh.SecretKey{1: 1, 31: 64}, mesh.SecretKey{1: 2, 31: 64}
	const at = "secret ns/wg: "
	for _, c := range []struct {
		name   string
		secret *corev1.Secret
		says   string // empty: key one is used
	}{
		{"the key", secretOf(map[string]string{"WireguardPrivateKey": one.Base64()}), ""},
		{"white space", secretOf(map[string]string{"WireguardPrivateKey": " " + one.Base64() + "\r\n"}), ""},
		{"the other spelling", secretOf(map[string]string{"WireGuardPrivateKey": one.Base64()}), ""},
		{"both", secretOf(map[string]string{"WireguardPrivateKey": one.Base64(),
			"WireGuardPrivateKey": one.Base64() + "\n"}), ""},
		{"what the former system ignored", secretOf(map[string]string{"WireguardPrivateKey": one.Base64(),
			"WireguardPublicKey": "x"}), ""},
		{"both differ", secretOf(map[string]string{"WireguardPrivateKey": one.Base64(), "WireGuardPrivateKey": two.Base64()}),
			at + "WireguardPrivateKey and WireGuardPrivateKey are not the same: remove the one that peers do not know"},
		{"one is bad", secretOf(map[string]string{"WireguardPrivateKey": one.Base64(), "WireGuardPrivateKey": "x"}),
			at + "WireGuardPrivateKey: want 32 bytes in base64, as wg(8) prints keys: 44 characters, the last one is =; " +
				"replace it by the output of wg genkey"},
		{"bad", secretOf(map[string]string{"WireguardPrivateKey": one.Base64()[1:]}),
			at + "WireguardPrivateKey: want 32 bytes"},
		{"empty", secretOf(map[string]string{"WireguardPrivateKey": "\n"}), at + "WireguardPrivateKey is missing: " +
			"add it with the output of wg genkey, or set secret-manage-mode self"},
		{"a TLS secret", secretOf(map[string]string{"tls.crt": "x", "tls.key": "y"}), at + "WireguardPrivateKey is missing"},
		{"no secret", nil, at + "it does not exist: create it with the output of wg genkey as WireguardPrivateKey, " +
			"or set secret-manage-mode self"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, r := &Store{}, &secretReader{secret: c.secret}
			got := refresh(t, s, r, keyConfig, c.says)
			if (got != nil) != (c.says == "") || got != nil && got.PrivateKey != one || s.Usable() != (got != nil) {
				t.Errorf("credentials %v, usable %v", got != nil, s.Usable())
			}
			if s.Secret != nil {
				t.Error("a secret is to be written")
			}

			// The last usable key stays in use.
			s, r = &Store{}, &secretReader{secret: secretOf(map[string]string{"WireguardPrivateKey": two.Base64()})}
			refresh(t, s, r, keyConfig, "")
			r.secret = c.secret
			says, want := c.says, two
			if says == "" {
				want = one
			}
			if refresh(t, s, r, keyConfig, says); s.PublicKey() != want.Public() {
				t.Errorf("key %s, want %s", s.PublicKey(), want.Public())
			}
			if _, err := s.Refresh(t.Context(), r, keyConfig); err != nil {
				if !strings.HasSuffix(err.Error(), "; the key in use stays so") {
					t.Error(err)
				}
				if text := fmt.Sprintf("%v %+v %#v", err, s.used, s.used); strings.Contains(text, two.Base64()) ||
					strings.Contains(text, one.Base64()[5:]) {
					t.Errorf("it tells a key: %s", text)
				}
			}
		})
	}
}

// With mode self a missing key is made, and one in use is put back: peers know it. All else in the secret stays.
func TestRefreshKeySelf(t *testing.T) {
	cfg := keyConfig
	cfg.SecretManageMode = ManageSelf
	for _, c := range []struct {
		name   string
		secret *corev1.Secret
	}{
		{"no secret", nil}, {"other data", secretOf(map[string]string{"tls.key": "x", "note": "y"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, r := &Store{}, &secretReader{secret: c.secret}
			refresh(t, s, r, cfg, "secret ns/wg: it is being written")
			if s.Usable() || s.Secret == nil || !s.Making() {
				t.Fatalf("usable %v, to be written: %v", s.Usable(), s.Secret != nil)
			}
			if c.secret != nil && (string(s.Secret.Data["tls.key"]) != "x" || string(s.Secret.Data["note"]) != "y") {
				t.Error("other data are changed")
			}
			made := string(s.Secret.Data["WireguardPrivateKey"])
			r.secret = s.Secret
			if got := refresh(t, s, r, cfg, ""); got == nil || got.PrivateKey.Base64() != made || s.Secret != nil {
				t.Fatal("the key that was made is not used")
			}
			key := s.PublicKey()
			for _, lost := range []*corev1.Secret{nil, secretOf(nil)} {
				r.secret = lost
				if got := refresh(t, s, r, cfg, ""); got != nil || s.Secret == nil ||
					string(s.Secret.Data["WireguardPrivateKey"]) != made || s.PublicKey() != key || s.Making() {
					t.Error("the key in use is not put back")
				}
			}
			bad := secretOf(map[string]string{"WireguardPrivateKey": "x"}) // a user has something in mind
			r.secret = bad
			if refresh(t, s, r, cfg, "want 32 bytes"); s.Secret != nil {
				t.Error("a bad key is overwritten")
			}
		})
	}
}

// Neither a certificate nor plain connections are credentials of mode wireguard, and the other way round.
func TestRefreshKeyAfterOtherMode(t *testing.T) {
	s, none := &Store{}, &secretReader{}
	if refresh(t, s, none, Config{}, ""); !s.Unencrypted() {
		t.Fatal("not plain")
	}
	if refresh(t, s, none, keyConfig, "it does not exist"); s.Usable() || s.Unencrypted() {
		t.Error("plain credentials are used in mode wireguard")
	}
	r := &secretReader{secret: secretOf(map[string]string{"WireguardPrivateKey": mesh.SecretKey{1: 1, 31: 64}.Base64()})}
	if refresh(t, s, r, keyConfig, ""); !s.Usable() {
		t.Fatal("no key")
	}
	other := keyConfig
	other.WireGuard = false
	if refresh(t, s, r, other, "tls.crt is missing"); s.Usable() || s.PublicKey() != (mesh.PublicKey{}) {
		t.Error("the key is used in mode bridge")
	}
}

// What peers have to do stands at the LocalLinks until the links that were Up work with the new key.
func TestKeyNote(t *testing.T) {
	one, two := mesh.SecretKey{1: 1, 31: 64}, mesh.SecretKey{1: 2, 31: 64}
	secret := func(k mesh.SecretKey) *corev1.Secret {
		return secretOf(map[string]string{"WireguardPrivateKey": k.Base64()})
	}
	links := make([]v1alpha1.KubeLink, 3)
	links[0].Name, links[1].Name, links[2].Name = "local", "b", "c"
	links[1].Status.State = v1alpha1.StateUp
	states := func(since time.Time, b, c link.State) []link.Status {
		return []link.Status{{Link: "b", State: b, Since: since}, {Link: "c", State: c, Since: since}}
	}
	note := "the key of this cluster has changed: set spec.publicKey of the links of other clusters to this one to " +
		two.Public().String()
	s, r := &Store{}, &secretReader{}
	now := time.Now()
	check := func(title string, statuses []link.Status, at time.Time, want string) {
		t.Helper()
		if got := s.KeyNote(links, statuses, at); got != want {
			t.Errorf("%s: %q, want %q", title, got, want)
		}
	}
	change := func() (before, after time.Time) {
		t.Helper()
		for _, k := range []mesh.SecretKey{one, two} {
			links[0].Status.PublicKey = s.PublicKey().String()
			r.secret = secret(k)
			refresh(t, s, r, keyConfig, "")
		}
		return time.Now().Add(-time.Hour), time.Now().Add(time.Second)
	}
	check("no key", states(now, link.Down, link.Down), now, "")
	r.secret = secret(one)
	refresh(t, s, r, keyConfig, "")
	check("the first key", states(now, link.Down, link.Down), now, "")
	links[0].Status.PublicKey = one.Public().String()
	check("the key that peers have", states(now, link.Down, link.Down), now, "")
	before, after := change()
	check("changed", states(before, link.Up, link.Down), after, note)
	links[1].Status.State = v1alpha1.StateIdle
	check("the link that was Up is not", states(after, link.Idle, link.Up), after.Add(time.Hour), note)
	check("it is Up again", states(after, link.Up, link.Down), after, "")
	check("before the LocalLink has the key", states(after, link.Up, link.Down), after, "")
	check("down for another reason", states(after, link.Down, link.Down), after.Add(time.Hour), "")

	before, after = change()
	check("none was Up", states(before, link.Down, link.Down), after, note)
	check("one is Up", states(after, link.Up, link.Down), after, note)
	check("both are", states(after, link.Up, link.Up), after, "")

	before, after = change()
	check("Up all the time", states(before, link.Up, link.Up), after, note)
	check("and for long", states(before, link.Up, link.Up), after.Add(time.Hour), "")

	s = &Store{} // after a restart
	refresh(t, s, r, keyConfig, "")
	links[0].Status.PublicKey = two.Public().String()
	check("the same key", states(after, link.Down, link.Down), now, "")
	s = &Store{}
	refresh(t, s, r, keyConfig, "")
	links[0].Status.PublicKey = one.Public().String()
	check("another key than before, no states", nil, now, note)
	check("another key than before", states(now, link.Down, link.Down), now, note)
	check("they are Up", states(now.Add(time.Second), link.Up, link.Up), now.Add(2*time.Second), "")
}
