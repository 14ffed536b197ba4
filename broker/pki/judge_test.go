package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// content is the data of a secret that a test edits.
type content map[string][]byte

func newContent(t testing.TB, name string, now time.Time) content {
	s := &corev1.Secret{}
	if _, _, err := ManageSecret(s, name, now); err != nil {
		t.Fatal(err)
	}
	return s.Data
}

// issue puts a certificate into c, signed by the CA of from; nil: by itself.
func (c content) issue(t testing.TB, from content, change func(*x509.Certificate)) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "issued"}, DNSNames: []string{"a.example"}, NotAfter: day0.Add(48 * time.Hour),
	}
	change(template)
	var parent *x509.Certificate
	var parentKey crypto.Signer = key
	if from != nil {
		if parent, parentKey, err = readPair(from[keyCA], from[keyCAKey]); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := signCertificate(template, parent, key, parentKey, template.NotAfter.Add(-72*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := writePair(&corev1.Secret{Data: c}, keyCert, keyKey, cert, key); err != nil {
		t.Fatal(err)
	}
}

// replaceKey puts a certificate for the key into c, signed by the CA of from.
func (c content) replaceKey(t testing.TB, from content, key crypto.Signer) {
	t.Helper()
	ca, caKey, err := readPair(from[keyCA], from[keyCAKey])
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{DNSNames: []string{"a.example"}, NotAfter: day0.Add(48 * time.Hour)}
	cert, err := signCertificate(template, ca, key, caKey, day0)
	if err != nil {
		t.Fatal(err)
	}
	if err := writePair(&corev1.Secret{Data: c}, keyCert, keyKey, cert, key); err != nil {
		t.Fatal(err)
	}
}

func newEd25519(t testing.TB) crypto.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// join puts PEM texts together. A line end at an end stays.
func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// cut is without the final line end.
func cut(text []byte) []byte { return bytes.TrimSpace(text) }

func TestJudge(t *testing.T) {
	good, other, third := newContent(t, "a.example", day0), newContent(t, "a.example", day0), newContent(t, "b", day0)
	now := day0.Add(time.Hour)
	nothing := func(*x509.Certificate) {}
	bom := []byte("\xef\xbb\xbf")
	bag := []byte("Bag Attributes\n    friendlyName: x\nKey Attributes: <No Attributes>\n")
	all := func(edit func([]byte) []byte) func(content) {
		return func(d content) {
			for key := range d {
				d[key] = edit(d[key])
			}
		}
	}
	for _, c := range []struct {
		name string
		edit func(content)
		says string // a part of the error; empty: accepted
	}{
		{"good", func(content) {}, ""},
		{"certificate missing", func(d content) { delete(d, keyCert) }, "tls.crt is missing"},
		{"key missing", func(d content) { delete(d, keyKey) }, "tls.key is missing"},
		{"no pair", func(d content) { d[keyKey] = other[keyKey] }, "tls.crt and tls.key: "},
		{"chain in the wrong order", func(d content) { d[keyCert] = join(d[keyCA], d[keyCert]) }, "tls.crt and tls.key: "},

		{"ca.crt empty", func(d content) { d[keyCA] = []byte{} }, "ca.crt is missing or empty"},
		{"ca.crt missing", func(d content) { delete(d, keyCA) }, "ca.crt is missing or empty"},
		{"ca.crt a line end", func(d content) { d[keyCA] = []byte("\n") }, "ca.crt has no certificate"},
		{"ca.crt no PEM", func(d content) { d[keyCA] = []byte("x") }, "ca.crt has no certificate"},
		{"two", func(d content) { d[keyCA] = join(d[keyCA], other[keyCA]) }, ""},
		{"glued", func(d content) { d[keyCA] = join(cut(d[keyCA]), cut(other[keyCA])) }, "ca.crt: block 2 begins in"},
		{"first of three glued", func(d content) { d[keyCA] = join(cut(d[keyCA]), other[keyCA], third[keyCA]) },
			"ca.crt: block 2 begins in"},
		{"own last and glued", func(d content) { d[keyCA] = join(third[keyCA], cut(d[keyCA]), cut(other[keyCA])) },
			"ca.crt: block 3 begins in"},
		{"second cut", func(d content) { d[keyCA] = join(d[keyCA], other[keyCA][:200]) }, "ca.crt: block 2 is cut"},
		{"second damaged", func(d content) {
			d[keyCA] = join(d[keyCA], bytes.Replace(other[keyCA], []byte("MII"), []byte("M!I"), 1))
		}, "ca.crt: block 2 is cut"},
		{"second with another letter", func(d content) {
			block, _ := pem.Decode(other[keyCA])
			block.Bytes[len(block.Bytes)-5] ^= 1 // of the signature
			d[keyCA] = join(d[keyCA], pem.EncodeToMemory(block))
		}, `ca.crt: block 2, "CN=kubelink CA", is damaged`},
		{"byte order mark", func(d content) { d[keyCA] = join(bom, d[keyCA]) }, "ca.crt: a byte order mark"},
		{"byte order mark before two", func(d content) { d[keyCA] = join(bom, d[keyCA], other[keyCA]) },
			"ca.crt: a byte order mark stands before block 1"},
		{"byte order mark in tls.crt", func(d content) { d[keyCert] = join(bom, d[keyCert]) }, "tls.crt: a byte order mark"},
		{"ca.crt a key", func(d content) { d[keyCA] = d[keyKey] }, `ca.crt: block 1 is "PRIVATE KEY"`},
		{"ca.crt with its key", func(d content) { d[keyCA] = join(d[keyCA], d[keyCAKey]) }, "ca.crt: block 2 is"},
		{"ca.crt the certificate", func(d content) { d[keyCA] = d[keyCert] }, "is not a CA"},
		{"ca.crt and the certificate", func(d content) { d[keyCA] = join(d[keyCA], d[keyCert]) }, "ca.crt: block 2, "},
		{"own CA not there", func(d content) { d[keyCA] = other[keyCA] }, "tls.crt is not signed by a CA in ca.crt"},
		{"tls.crt with glued authority", func(d content) { d[keyCert] = join(cut(d[keyCert]), d[keyCA]) },
			"tls.crt: block 2 begins in"},

		{"CRLF", all(func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")) }), ""},
		{"text before", all(func(b []byte) []byte { return join(bag, b) }), ""},
		{"key in tls.crt, too", func(d content) { d[keyCert] = join(d[keyKey], d[keyCert]) }, ""},
		{"base64 twice", all(func(b []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(b)) }), "tls.crt"},
		{"EC parameters", func(d content) {
			d[keyKey] = join([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), d[keyKey])
		}, ""},

		{"expired", func(d content) { d.issue(t, good, func(c *x509.Certificate) { c.NotAfter = day0.Add(-time.Hour) }) },
			"tls.crt is valid from 2025-12-28T22:00:00Z to 2025-12-31T23:00:00Z only"},
		{"not yet valid", func(d content) {
			d.issue(t, good, func(c *x509.Certificate) { c.NotAfter = day0.Add(1000 * time.Hour) })
		}, "tls.crt is valid from 2026-02-"},
		{"temporary certificate that signs itself", func(d content) { d.issue(t, nil, nothing) },
			"tls.crt signs itself, and is not signed by a CA in ca.crt"},
		{"such a certificate as CA, too", func(d content) {
			d.issue(t, nil, nothing)
			d[keyCA] = d[keyCert]
		}, "ca.crt has no CA any more"},
		{"of another CA", func(d content) { d.issue(t, other, nothing) }, "tls.crt is not signed by a CA in ca.crt"},
		{"other CA and certificate", func(d content) { maps.Copy(d, other) }, ""},
		{"other name", func(d content) { d.issue(t, good, func(c *x509.Certificate) { c.DNSNames = []string{"b.example"} }) },
			`tls.crt names "b.example", not dns-name a.example`},
		{"wildcard", func(d content) {
			d.issue(t, good, func(c *x509.Certificate) { c.DNSNames = []string{"*.example"} })
		}, ""},
		{"more certificates than peers look at", func(d content) {
			d[keyCert] = join(d[keyCert], d[keyCA], d[keyCA], d[keyCA], d[keyCA], d[keyCA])
		}, "tls.crt has 6 certificates, at most 5 are accepted"},
		{"more names than peers look at", func(d content) {
			d.issue(t, good, func(c *x509.Certificate) {
				for n := range 100 {
					c.DNSNames = append(c.DNSNames, fmt.Sprintf("x%d.example", n))
				}
			})
		}, "tls.crt has a certificate with 101 names"},
		{"for code", func(d content) {
			d.issue(t, good, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} })
		}, "neither for servers nor for clients"},
		{"Ed25519", func(d content) { d.replaceKey(t, good, newEd25519(t)) }, ""},
		{"RSA in PKCS #1", func(d content) {
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			d.replaceKey(t, good, key)
			d[keyKey] = pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
		}, ""},
	} {
		d := maps.Clone(good)
		c.edit(d)
		credentials, until, err := candidate{Config{DNSName: "a.example"}, d, good}.judge(now)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, expected %q", c.name, err, c.says)
		}
		if err == nil && (credentials.Roots == nil || !until.After(now)) {
			t.Errorf("%s: roots %v, until %s", c.name, credentials.Roots, until)
		}
		if err != nil && (strings.Contains(err.Error(), "\n") || len(err.Error()) > 700) {
			t.Errorf("%s: not a line: %v", c.name, err)
		}
	}
}

// A CA that expires is named, and the text is the same each time.
func TestJudgeExpiredCA(t *testing.T) {
	d := newContent(t, "a.example", day0)
	d.issue(t, d, func(c *x509.Certificate) { c.NotAfter = day0.Add(caLife + 48*time.Hour) })
	for _, age := range []time.Duration{1, 2} {
		_, _, err := candidate{data: d}.judge(day0.Add(caLife + age*time.Hour))
		const want = `the CA "CN=kubelink CA", which signed for tls.crt, is valid from 2025-12-31T23:00:00Z ` +
			"to 2035-12-30T00:00:00Z only, or the clock is wrong"
		if err == nil || err.Error() != want {
			t.Error(err)
		}
	}
}

// Without a CA, users have to say that they want the system's. Then nothing in the secret makes a difference.
func TestJudgeSystemCAs(t *testing.T) {
	d := newContent(t, "a.example", day0)
	for _, ca := range [][]byte{nil, d[keyCA], []byte("x")} {
		d[keyCA] = ca
		_, _, err := candidate{Config: Config{SystemCAs: true}, data: d}.judge(day0)
		if err == nil || !strings.Contains(err.Error(), "not signed by a public CA") {
			t.Error(err)
		}
	}
}
