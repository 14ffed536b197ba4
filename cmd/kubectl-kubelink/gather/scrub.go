package gather

// What keeps secrets out of an archive. Values of secrets are known, and are cut out of every text. What looks like a
// secret is cut out, too, as not all secrets are in Secrets.

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const (
	redacted = "REDACTED"
	// shortest is the shortest value that is cut out of texts wherever it is: others are parts of usual words.
	shortest = 6
	// shortestLine is that of a line of a value, such as one of a PEM text.
	shortestLine = 16
)

// publicKeys are keys of secrets whose values are no secrets.
var publicKeys = []string{"ca.crt", "tls.crt", "certificate-authority-data", "namespace", "WireguardPublicKey"}

// scrubber cuts secrets out of texts.
type scrubber struct {
	values map[string]bool // of secrets
	public map[string]bool // WireGuard keys that all may know

	longestFirst [][]byte // of values; nil: not made yet
}

func newScrubber() *scrubber { return &scrubber{values: map[string]bool{}, public: map[string]bool{}} }

// addSecret learns the values of a secret.
func (s *scrubber) addSecret(secret *corev1.Secret) {
	for key, value := range secret.Data {
		if !slices.Contains(publicKeys, key) {
			s.addValue(strings.TrimSpace(string(value)))
		}
	}
}

// addValue learns a value, with the forms in which it may be in texts.
func (s *scrubber) addValue(value string) {
	if len(value) < shortest {
		return
	}
	s.longestFirst = nil
	s.values[value] = true
	for _, e := range []*base64.Encoding{
		base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding,
	} {
		s.values[e.EncodeToString([]byte(value))] = true
		s.values[e.EncodeToString([]byte(value+"\n"))] = true
	}
	if decoded, err := base64.StdEncoding.DecodeString(value); err == nil && len(decoded) >= shortest {
		s.values[string(decoded)] = true
	}
	for line := range strings.Lines(value) {
		if line = strings.TrimSpace(line); len(line) >= shortestLine && !strings.HasPrefix(line, "-----") {
			s.values[line] = true
		}
	}
}

// patterns are texts that look like secrets. What the group named keep has stays.
var patterns = []*regexp.Regexp{
	regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[\s\S]*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|$)`),
	regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*`),        // JWT (RFC 7519)
	regexp.MustCompile(`(?i)(?P<keep>\b(bearer|basic)\s+)[A-Za-z0-9+/=._~-]{6,}`),          // RFC 9110, 11.4
	regexp.MustCompile(`(?P<keep>\b[a-z][a-z0-9+.-]*://)[^/\s@"']+:[^/\s@"']+@`),           // RFC 3986, 3.2.1
	regexp.MustCompile(`(?m)(?P<keep>(^|: |\\n)\s*secret\s+\S+\s+)[A-Za-z0-9+/_-]{16,}=*`), // CoreDNS: tsig
	regexp.MustCompile(`(?i)(?P<keep>["']?[\w.-]*(token|password|passwd|client-key-data|presharedKey|preshared-key|` +
		`privateKey|private-key|api-?key|access-?key|credentials?)["']?\s*[:=]\s*["']?)[^\s"',}]{4,}`),
}

// wireguardKey is a private, public or preshared key: 32 bytes in base64.
var wireguardKey = regexp.MustCompile(`[A-Za-z0-9+/]{43}=`)

// encodedPEM is a PEM text in base64: that of "-----BEGIN".
var encodedPEM = regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/]+=*`)

// hidePrivate returns the base64 of a PEM text, unless there is a private key in it.
func hidePrivate(encoded []byte) []byte {
	text, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(string(encoded), "="))
	if err == nil && !bytes.Contains(text, []byte("PRIVATE KEY")) {
		return encoded
	}
	return []byte(redacted)
}

// scrubText returns the text without secrets.
func (s *scrubber) scrubText(text []byte) []byte {
	if s.longestFirst == nil {
		for v := range maps.Keys(s.values) {
			s.longestFirst = append(s.longestFirst, []byte(v))
		}
		slices.SortFunc(s.longestFirst, func(a, b []byte) int { return len(b) - len(a) })
	}
	for _, v := range s.longestFirst {
		text = bytes.ReplaceAll(text, v, []byte(redacted))
	}
	for _, p := range patterns {
		replacement := redacted
		if p.SubexpIndex("keep") > 0 {
			replacement = "${keep}" + redacted
		}
		text = p.ReplaceAll(text, []byte(replacement))
	}
	text = encodedPEM.ReplaceAllFunc(text, hidePrivate)
	return wireguardKey.ReplaceAllFunc(text, func(key []byte) []byte {
		if s.public[string(key)] {
			return key
		}
		return []byte(redacted)
	})
}

// secretName is that of a variable or an argument with a secret.
var secretName = regexp.MustCompile(`(?i)token|secret|passw|key|credential|auth`)

// scrubObject takes secrets out of the fields of an object where they are expected.
func (s *scrubber) scrubObject(o *unstructured.Unstructured) {
	o.SetManagedFields(nil)
	annotations := o.GetAnnotations()
	for name := range annotations {
		if strings.HasSuffix(name, "/last-applied-configuration") || secretName.MatchString(name) {
			annotations[name] = redacted
		}
	}
	o.SetAnnotations(annotations)
	if o.GetKind() == "Secret" {
		for _, field := range []string{"data", "stringData"} {
			values, _, _ := unstructured.NestedMap(o.Object, field)
			for key, v := range values {
				values[key] = fmt.Sprintf("%s (%d characters)", redacted, len(fmt.Sprint(v)))
			}
			if values != nil {
				o.Object[field] = values
			}
		}
	}
	scrubFields(o.Object)
}

// scrubFields looks for preshared keys, and for variables of containers.
func scrubFields(value any) {
	switch v := value.(type) {
	case map[string]any:
		name, _ := v["name"].(string)
		if text, ok := v["value"].(string); ok && text != "" && secretName.MatchString(name) {
			v["value"] = redacted
		}
		for key, field := range v {
			if text, ok := field.(string); ok && text != "" && strings.EqualFold(key, "presharedKey") {
				v[key] = redacted
				continue
			}
			scrubFields(field)
		}
	case []any:
		for _, item := range v {
			scrubFields(item)
		}
	}
}
