package mesh

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestKeys(t *testing.T) {
	// Curve25519's vector of RFC 7748, section 6.1.
	const private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
	const public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
	k, err := ParseSecretKey("\n " + private + "\n")
	if err != nil || k.Public().String() != public || k.Base64() != private {
		t.Fatal(err, k.Public())
	}
	for _, verb := range []string{"%v", "%s", "%+v", "%#v"} {
		if got := fmt.Sprintf(verb, struct{ K SecretKey }{k}); !strings.Contains(got, "a secret key") ||
			strings.Contains(got, "119") || strings.Contains(got, private) {
			t.Errorf("%s prints %s", verb, got)
		}
	}
	if p, err := ParsePublicKey(public); err != nil || p != k.Public() {
		t.Error(p, err)
	}
	for name, text := range map[string]string{
		"nothing":       "",
		"31 bytes":      base64.StdEncoding.EncodeToString(make([]byte, 31)),
		"33 bytes":      base64.StdEncoding.EncodeToString(make([]byte, 33)),
		"zero":          base64.StdEncoding.EncodeToString(make([]byte, 32)),
		"other base64":  strings.ReplaceAll(public, "/", "_"),
		"stray bits":    strings.Replace(public, "o=", "p=", 1),
		"hexadecimal":   strings.Repeat("ab", 32),
		"space in it":   public[:20] + " " + public[20:],
		"two in a line": public + public,
	} {
		if k, err := ParseSecretKey(text); err == nil || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, %v", name, k.Base64(), err)
		}
	}
}

// A log in JSON does not have the key.
func TestSecretKeyInJSON(t *testing.T) {
	b, err := json.Marshal(struct{ Key SecretKey }{SecretKey{1, 2, 3}})
	if err != nil || string(b) != `{"Key":"a secret key"}` {
		t.Errorf("%s, %v", b, err)
	}
}
