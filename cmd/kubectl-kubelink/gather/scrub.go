package gather

// What keeps secrets out of an archive. Values of secrets are known, and are cut out of every text. What looks like a
// secret is cut out, too, as not all secrets are in Secrets.

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

const (
	redacted = "REDACTED"
	// shortest is the shortest value that is cut out of texts wherever it is: others are parts of usual words.
	shortest = 6
	// shortestWord is the shortest one that is cut out where it is a word. What is shorter still, such as 80, is hidden
	// where a field holds it alone, or a name says that it is a secret.
	shortestWord = 4
	// shortestLine is that of a line of a value, such as one of a PEM text.
	shortestLine    = 16
	wireguardLength = 44 // characters of a key in base64
	// maxNesting is how often a text may be encoded in base64, one time in the other.
	maxNesting = 4
)

// publicKeys are keys of secrets whose values are no secrets.
var publicKeys = []string{"ca.crt", "tls.crt", "certificate-authority-data", "namespace", "WireguardPublicKey"}

// scrubber cuts secrets out of texts.
type scrubber struct {
	mu     sync.Mutex      // guards the fields below while clusters are read
	values map[string]bool // of secrets
	short  map[string]bool // values that are shorter than shortest
	public map[string]bool // WireGuard keys that all may know

	longestFirst [][]byte // of values; nil: not made yet
}

func newScrubber() *scrubber {
	return &scrubber{values: map[string]bool{}, short: map[string]bool{}, public: map[string]bool{}}
}

// addSecret learns the values of a secret.
func (s *scrubber) addSecret(secret *corev1.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, value := range secret.Data {
		if !slices.Contains(publicKeys, key) {
			s.addValue(strings.TrimSpace(string(value)))
		}
	}
}

// addLink learns the keys of a link.
func (s *scrubber) addLink(link *v1alpha1.KubeLink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.public[link.Spec.PublicKey], s.public[link.Status.PublicKey] = true, true
	s.addValue(link.Spec.PresharedKey)
}

// addValue learns a value, with the forms in which it may be in texts, and the secrets in it.
func (s *scrubber) addValue(value string) {
	if value == "" || s.values[value] || isPlain(value) {
		return
	}
	if len(value) < shortest {
		s.short[value] = true
	}
	if len(value) < shortestWord {
		return
	}
	s.longestFirst = nil
	s.addForms(value)
	for _, e := range []*base64.Encoding{
		base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding,
	} {
		s.values[e.EncodeToString([]byte(value))] = true
		s.values[e.EncodeToString([]byte(value+"\n"))] = true
	}
	digits := hex.EncodeToString([]byte(value))
	s.values[digits], s.values[strings.ToUpper(digits)] = true, true
	for line := range strings.Lines(value) {
		if line = strings.TrimSpace(line); len(line) >= shortestLine && !strings.HasPrefix(line, "-----") {
			s.addForms(line)
		}
	}
	// A kubeconfig or the like: what is in it may be elsewhere, without its name.
	for _, p := range []*regexp.Regexp{yamlValue, namedValue, argument, userInfo} {
		for _, found := range p.FindAllStringSubmatch(value, -1) {
			inner := strings.Trim(found[p.SubexpIndex("value")], `"'\`)
			if _, password, ok := strings.Cut(inner, ":"); ok && p == userInfo {
				inner = password
			}
			s.addValue(inner)
		}
	}
	if decoded, err := base64.StdEncoding.DecodeString(value); err == nil {
		s.addValue(string(decoded))
	}
}

// addForms adds a text as it is, and as JSON, YAML, Go and URLs have it.
func (s *scrubber) addForms(text string) {
	var plain bytes.Buffer
	e := json.NewEncoder(&plain)
	e.SetEscapeHTML(false)
	_ = e.Encode(text)               // a text and a buffer do not fail
	escaped, _ := json.Marshal(text) // so it is here
	for _, form := range []string{text, strings.Trim(plain.String(), "\"\n"), strings.Trim(string(escaped), `"`),
		strings.Trim(strconv.Quote(text), `"`), strings.Trim(strconv.QuoteToASCII(text), `"`),
		strings.ReplaceAll(text, "'", "''"), url.QueryEscape(text), url.PathEscape(text),
		strings.TrimPrefix(url.UserPassword("", text).String(), ":"),
	} {
		if len(form) >= shortest {
			s.values[form] = true
		}
	}
}

// isPlain tells whether a text is none to hide, whatever its name is.
func isPlain(value string) bool {
	return slices.Contains([]string{redacted, "true", "false", "null", "<nil>"}, strings.Trim(value, `"',`))
}

// secretWords are the ends of names of secrets.
const secretWords = `(?:token|password|passwd|passphrase|pwd|client[-_]?key[-_]?data|psk|pre[-_]?shared[-_]?key|` +
	`private[-_]?key|api[-_]?key|access[-_]?key|secret[-_]?key|encryption[-_]?key|secret|credentials?|auth|cookie|` +
	`signature|sig)`

// anyValue is a text in escaped quotes, as in JSON in JSON, in quotes, or a word.
const anyValue = `(?P<value>\\"(?:\\\\\\\\|\\\\\\"|\\\\[^\\"]|[^\\"\n])*|\\+"[^"\n]*|"(?:[^"\\\n]|\\.)*|` +
	`'(?:[^'\n]|'')*|[^\s"'\\]+)`

var (
	// yamlValue is a setting of a line of its own. The value may have spaces.
	yamlValue = regexp.MustCompile(`(?im)(?P<keep>^[ \t-]*["']?[\w.-]*` + secretWords +
		`["']?:[ \t]+)(?P<value>[^\s|>{\[][^\n]*)`)
	// namedValue is a setting in JSON, a query or the environment.
	namedValue = regexp.MustCompile(`(?i)(?P<keep>` + secretWords + `[\\"']*[ \t]*[:=][ \t]*)` + anyValue)
	// argument is one of a command line, also of a list of arguments.
	argument = regexp.MustCompile(`(?im)(?P<keep>(?:^|[\s"'\[,])--?[\w-]*` + secretWords +
		`(?:[\\"']*[, \t]+))` + anyValue)
	// userInfo is that of a URL (RFC 3986, 3.2.1).
	userInfo = regexp.MustCompile(`(?P<keep>\b[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<value>[^/\s@"'?#]+)@`)
	// blockHead begins a block of lines in YAML, which have more indentation (YAML 1.2, 8.1).
	blockHead = regexp.MustCompile(`(?i)^[ \t-]*["']?[\w.-]*` + secretWords + `["']?:[ \t]+[|>][-+0-9]*\s*$`)
)

// patterns are texts that look like secrets. What the group named keep has stays.
var patterns = []*regexp.Regexp{
	regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----[\s\S]*?` +
		`(-----END [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----|$)`),
	regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*`), // JWT (RFC 7519)
	regexp.MustCompile(`(?i)(?P<keep>\b(bearer|basic)\s+)[A-Za-z0-9+/=._~-]{6,}`),   // RFC 9110, 11.4
	regexp.MustCompile(`(?i)(?P<keep>\bauthorization[\\"']*[ \t]*[:=][ \t\\"']*\w+[ \t]+)[^\s"'\\]+`),
	// CoreDNS: tsig. A line that does not begin so may be a sentence about a secret.
	regexp.MustCompile(`(?m)(?P<keep>(^|\\n)[ \t]*secret[ \t]+[^\s\\]+[ \t]+)[^\s\\]+`),
	regexp.MustCompile(`(?P<keep>: secret[ \t]+[^\s\\]+[ \t]+)[A-Za-z0-9+/_-]{16,}=*`),
	// CoreDNS: etcd, route53
	regexp.MustCompile(`(?m)(?P<keep>(^|\\n)[ \t]*(credentials|aws_access_key)[ \t]+[^\s\\]+[ \t]+)[^\s\\]+`),
	userInfo, yamlValue, namedValue, argument,
}

// hidePattern cuts out what a pattern finds.
func hidePattern(text []byte, p *regexp.Regexp) []byte {
	keep, value := p.SubexpIndex("keep"), p.SubexpIndex("value")
	return p.ReplaceAllFunc(text, func(found []byte) []byte {
		parts := p.FindSubmatch(found)
		switch {
		case value > 0 && parts != nil && isPlain(string(parts[value])):
			return found
		case keep < 0 || parts == nil:
			return []byte(redacted)
		}
		after := ""
		if p == userInfo {
			after = "@"
		} else if value > 0 && bytes.HasSuffix(parts[value], []byte(`\`)) {
			after = `\` // the quote that follows is an escaped one
		}
		quote := parts[0][:0]
		if value > 0 {
			quote = parts[value][:len(parts[value])-len(bytes.TrimLeft(parts[value], `\"'`))]
		}
		return slices.Concat(parts[keep], quote, []byte(redacted+after))
	})
}

// keyEnd ends a private key. Only what is left when all keys are cut out has none before it.
var keyEnd = regexp.MustCompile(`-----END [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----`)

// hideEnds cuts out the ends of keys whose beginnings are not there, as a log has its last lines only.
func hideEnds(text []byte) []byte {
	const longest = 100 // lines of a key
	for {
		at := keyEnd.FindIndex(text)
		if at == nil {
			return text
		}
		start := at[0]
		for n := 0; n < longest && start > 0; n++ {
			start = bytes.LastIndexByte(text[:start], '\n')
		}
		text = slices.Concat(text[:max(start, 0)], []byte("\n"+redacted), text[at[1]:])
	}
}

// hideBlocks cuts blocks of lines out of YAML.
func hideBlocks(text []byte) []byte {
	var b bytes.Buffer
	indent := -1 // of the setting whose block is cut out
	for line := range bytes.Lines(text) {
		own := len(line) - len(bytes.TrimLeft(line, " \t-"))
		if indent >= 0 && (own > indent || len(bytes.TrimSpace(line)) == 0) {
			continue
		}
		indent = -1
		b.Write(line)
		if blockHead.Match(line) {
			indent = own
			b.WriteString(strings.Repeat(" ", own+2) + redacted + "\n")
		}
	}
	return b.Bytes()
}

// wireguardKey is a private, public or preshared key: 32 bytes in base64.
var wireguardKey = regexp.MustCompile(`(^|[^A-Za-z0-9+/])[A-Za-z0-9+/]{43}=`)

// encoded is base64, also in lines, as files, JSON and logs have them.
var encoded = regexp.MustCompile(`[A-Za-z0-9+/_-]{16,}(?:` + between + `[A-Za-z0-9+/_-]{16,})*` +
	`(?:(?:\r?\n[ \t]*|\\r?\\n)[A-Za-z0-9+/_-]{1,15})?=*`)

const between = `(?:\s|\\r|\\n|\d{4}-\d\d-\d\dT[\d:.]+Z )+`

var (
	lineEnd    = regexp.MustCompile(between)
	toStandard = strings.NewReplacer("-", "+", "_", "/")
)

// isUnseen tells whether a text cannot be looked into: gzip (RFC 1952, 2.3.1), as in what Helm keeps of a release, and
// zip.
func isUnseen(text []byte) bool {
	return bytes.HasPrefix(text, []byte("\x1f\x8b\x08")) || bytes.HasPrefix(text, []byte("PK\x03\x04"))
}

// hideEncoded cuts out base64 that has a secret in it, or what cannot be looked into.
func (s *scrubber) hideEncoded(text []byte, nesting int) []byte {
	return encoded.ReplaceAllFunc(text, func(found []byte) []byte {
		lines := lineEnd.Split(strings.TrimRight(string(found), "="), -1)
		for skipped := range min(len(lines), 8) { // words before it, which look the same
			joined := toStandard.Replace(strings.Join(lines[skipped:], ""))
			decoded, _ := base64.RawStdEncoding.DecodeString(joined) // up to what is none
			if isUnseen(decoded) || isKey(decoded) || isText(decoded) && !bytes.Equal(decoded, s.scrub(decoded, nesting+1)) {
				return []byte(redacted)
			}
		}
		return found
	})
}

// isKey tells whether a text is a private key without the lines of PEM around it.
func isKey(der []byte) bool {
	const sequence = 0x30 // X.690, 8.9.1
	if len(der) == 0 || der[0] != sequence {
		return false
	}
	if _, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return true
	}
	if _, err := x509.ParseECPrivateKey(der); err == nil {
		return true
	}
	_, err := x509.ParsePKCS1PrivateKey(der)
	return err == nil
}

// isText tells whether a text begins as one that is not binary. Most words are binary, if they are taken for base64.
func isText(decoded []byte) bool {
	const first = 12
	return len(decoded) >= first && !bytes.ContainsFunc(decoded[:first], func(r rune) bool {
		return r != '\n' && r != '\r' && r != '\t' && (r < ' ' || r > '~')
	})
}

// scrubText returns the text without secrets.
func (s *scrubber) scrubText(text []byte) []byte {
	if s.longestFirst == nil {
		for v := range maps.Keys(s.values) {
			s.longestFirst = append(s.longestFirst, []byte(v))
		}
		slices.SortFunc(s.longestFirst, func(a, b []byte) int { return len(b) - len(a) })
	}
	return s.scrub(text, 0)
}

// scrub returns a text without secrets. It is in so many encoded texts, one in the other.
func (s *scrubber) scrub(text []byte, nesting int) []byte {
	for _, v := range s.longestFirst {
		text = bytes.ReplaceAll(text, v, []byte(redacted))
	}
	for v := range s.short {
		if len(v) >= shortestWord {
			text = hideWord(text, []byte(v))
		}
	}
	text = hideBlocks(text)
	for _, p := range patterns {
		text = hidePattern(text, p)
	}
	text = hideEnds(text)
	if nesting < maxNesting {
		text = s.hideEncoded(text, nesting)
	}
	return wireguardKey.ReplaceAllFunc(text, func(found []byte) []byte {
		start := max(len(found)-wireguardLength, 0)
		if s.public[string(found[start:])] {
			return found
		}
		return slices.Concat(found[:start], []byte(redacted))
	})
}

// hideWord cuts a value out of a text where it is no part of a longer word.
func hideWord(text, value []byte) []byte {
	var b bytes.Buffer
	for {
		at := bytes.Index(text, value)
		if at < 0 {
			b.Write(text)
			return b.Bytes()
		}
		end := at + len(value)
		b.Write(text[:at])
		if before, _ := utf8.DecodeLastRune(b.Bytes()); inWord(before) || beginsInWord(text[end:]) {
			b.Write(value[:1])
			text = text[at+1:]
			continue
		}
		b.WriteString(redacted)
		text = text[end:]
	}
}

// beginsInWord tells whether a text begins with a character of a word.
func beginsInWord(text []byte) bool {
	first, _ := utf8.DecodeRune(text)
	return inWord(first)
}

func inWord(r rune) bool {
	return r != utf8.RuneError && (r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r))
}

// secretName is that of a variable or an argument with a secret.
var secretName = regexp.MustCompile(`(?i)token|secret|passw|passphrase|pwd|psk|key|credential|auth`)

// secretFlag is an argument whose value is the next one.
var secretFlag = regexp.MustCompile(`(?i)^--?[\w.-]*(` + secretName.String()[len("(?i)"):] + `)[\w.-]*$`)

// publicAnnotations are what Secrets may have. Tools keep whole objects in other annotations.
var publicAnnotations = []string{"meta.helm.sh/", "helm.sh/", "cert-manager.io/"}

// scrubObject takes secrets out of the fields of an object where they are expected.
func (s *scrubber) scrubObject(o *unstructured.Unstructured) {
	o.SetManagedFields(nil)
	annotations := o.GetAnnotations()
	for name := range annotations {
		isPublic := slices.ContainsFunc(publicAnnotations, func(p string) bool { return strings.HasPrefix(name, p) })
		if strings.HasSuffix(name, "/last-applied-configuration") || secretName.MatchString(name) ||
			o.GetKind() == "Secret" && !isPublic {
			annotations[name] = redacted
		}
	}
	o.SetAnnotations(annotations)
	hidden := []string{"binaryData"} // of a ConfigMap: nothing tells what it is
	if o.GetKind() == "Secret" {
		hidden = []string{"data", "stringData"}
	}
	for _, field := range hidden {
		values, _, _ := unstructured.NestedMap(o.Object, field)
		for key, v := range values {
			values[key] = fmt.Sprintf("%s (%d characters)", redacted, len(fmt.Sprint(v)))
		}
		if values != nil {
			o.Object[field] = values
		}
	}
	if data, ok := o.Object["data"].(map[string]any); ok && o.GetKind() == "ConfigMap" {
		for key, v := range data {
			if s.isShort(v) {
				data[key] = redacted
			}
		}
	}
	s.scrubFields(o.Object)
}

// isShort tells whether a field has a short value of a secret, and nothing else.
func (s *scrubber) isShort(field any) bool {
	text, _ := field.(string)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.short[strings.TrimSpace(text)]
}

// scrubFields looks for preshared keys, and for variables and arguments of containers.
func (s *scrubber) scrubFields(value any) {
	switch v := value.(type) {
	case map[string]any:
		name, _ := v["name"].(string)
		if text, ok := v["value"].(string); ok && text != "" && (secretName.MatchString(name) || s.isShort(text)) {
			v["value"] = redacted
		}
		for key, field := range v {
			if text, ok := field.(string); ok && text != "" && strings.EqualFold(key, "presharedKey") {
				v[key] = redacted
				continue
			}
			s.scrubFields(field)
		}
	case []any:
		for i, item := range v {
			if text, ok := item.(string); ok && i > 0 && !strings.HasPrefix(text, "--") {
				if flag, _ := v[i-1].(string); secretFlag.MatchString(flag) || s.isShort(text) {
					v[i] = redacted
				}
			}
			s.scrubFields(item)
		}
	}
}
