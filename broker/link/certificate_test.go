package link

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

// makeCertificate makes a certificate that signs itself.
func makeCertificate(t testing.TB, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newRoot(t testing.TB, name string) (text []byte) {
	cert := makeCertificate(t, func(c *x509.Certificate) {
		c.Subject, c.IsCA, c.BasicConstraintsValid = pkix.Name{CommonName: name}, true, true
	})
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func TestParseBundle(t *testing.T) {
	a, b, c := newRoot(t, "a"), newRoot(t, "b"), newRoot(t, "c")
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")})
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	cut := bytes.TrimSpace
	bom := []byte("\xef\xbb\xbf")
	bag := []byte("Bag Attributes\n    friendlyName: x\nKey Attributes: <No Attributes>\n")
	for _, test := range []struct {
		name string
		text []byte
		want string // names of the certificates, or a part of the error
	}{
		{"nothing", nil, ""},
		{"a line end", []byte("\n"), ""},
		{"no PEM", []byte("x"), ""},
		{"one", a, "a"},
		{"three", join(a, b, c), "a b c"},
		{"no final line end", join(a, cut(b)), "a b"},
		{"CRLF", bytes.ReplaceAll(join(a, b), []byte("\n"), []byte("\r\n")), "a b"},
		{"text before and between", join(bag, a, bag, b, []byte("the end")), "a b"},
		{"glued", join(cut(a), cut(b)), "block 2 begins in the middle of a line"},
		{"first two of three glued", join(cut(a), b, c), "block 2 begins in the middle of a line"},
		{"last two of three glued", join(a, cut(b), c), "block 3 begins in the middle of a line"},
		{"byte order mark", join(bom, a), "byte order mark stands before block 1"},
		{"byte order mark before two", join(bom, a, b), "byte order mark stands before block 1"},
		{"byte order mark between", join(a, bom, b), "byte order mark stands before block 2"},
		{"indented", bytes.ReplaceAll(join([]byte("  "), cut(a)), []byte("\n"), []byte("\n  ")), "block 1 begins in"},
		{"CR only", bytes.ReplaceAll(a, []byte("\n"), []byte("\r")), "block 1 is cut or damaged"},
		{"second one cut", join(a, b[:200]), "block 2 is cut or damaged"},
		{"second one cut, third whole", join(a, b[:200], []byte("\n"), c), "block 2 is cut or damaged"},
		{"second one without its BEGIN", join(a, b[40:], c), "block 2 has an END line without BEGIN"},
		{"wrong base64", join(a, bytes.Replace(b, []byte("MII"), []byte("M!I"), 1)), "block 2 is cut or damaged"},
		{"wrong ASN.1", join(a, bytes.Replace(b, []byte("MII"), []byte("NII"), 1)), "block 2: x509: "},
		{"a dash lost", join(a, bytes.Replace(b, []byte("-----BEGIN"), []byte("----BEGIN"), 1)), "END line without BEGIN"},
		{"a dash lost twice", join(a, bytes.ReplaceAll(b, []byte("-----"), []byte("----")), c), "block 2 has neither BEGIN"},
		{"last one without BEGIN and END", join(a, b[28:len(b)-27]), "block 2 has neither BEGIN nor END line"},
		{"other END", join(a, bytes.Replace(b, []byte("END C"), []byte("END D"), 1)), "block 2 is cut or damaged"},
		{"key", join(a, key), `block 2 is "PRIVATE KEY", not a certificate`},
		{"OpenSSL's trusted certificate", bytes.ReplaceAll(a, []byte("CERTIFICATE"), []byte("TRUSTED CERTIFICATE")),
			`block 1 is "TRUSTED CERTIFICATE"`},
	} {
		certs, err := ParseBundle(test.text)
		var names []string
		for _, c := range certs {
			names = append(names, c.Subject.CommonName)
		}
		got := strings.Join(names, " ")
		if err != nil {
			got = err.Error()
		}
		if got != test.want && (err == nil || !strings.Contains(got, test.want)) {
			t.Errorf("%s: %s, expected %s", test.name, got, test.want)
		}
	}
	if certs, err := ParseChain(join(a, key, b)); err != nil || len(certs) != 2 {
		t.Error(certs, err)
	}
}

func FuzzParseBundle(f *testing.F) {
	a, b := newRoot(f, "a"), newRoot(f, "b")
	for _, text := range [][]byte{nil, a, append(bytes.Clone(a), b...), append(bytes.TrimSpace(a), b...)} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		certs, err := ParseBundle(text)
		// What crypto/x509 finds, a list that was accepted has; and no BEGIN line is passed over.
		if err == nil && len(certs) != bytes.Count(text, pemBegin) {
			t.Errorf("%d certificates of %d blocks", len(certs), bytes.Count(text, pemBegin))
		}
	})
}

func TestCertNames(t *testing.T) {
	for _, test := range []struct {
		cert     string // names of the certificate; cn=, mail= and uri= are of these kinds
		host     string
		covers   bool
		wildcard string
	}{
		{"b.example", "b.example", true, ""},
		{"B.EXAMPLE", "b.example", true, ""},
		{"*.example", "b.example", true, "*.example"},
		{"*.example,b.example", "b.example", true, ""},
		{"*.example,B.example", "b.example.", true, ""},
		{"*.example", "x.b.example", false, ""},
		{"*.b.example", "b.example", false, ""},
		{"*", "b", false, ""},
		{"b*.example", "b1.example", false, ""},
		{"cn=b.example", "b.example", true, ""},
		{"cn=*.example", "b.example", true, "*.example"},
		{"cn=127.0.0.1", "127.0.0.1", true, ""},
		{"127.0.0.1", "127.0.0.1", true, ""},
		{"::ffff:127.0.0.1", "127.0.0.1", true, ""},
		{"a.example,cn=b.example", "b.example", false, ""},
		{"127.0.0.1,cn=b.example", "b.example", false, ""},
		{"mail=eve@b.example,cn=b.example", "b.example", false, ""},
		{"uri=spiffe://b.example/x,cn=b.example", "b.example", false, ""},
		{"b.example", "", false, ""},
		{"evil.example", "b.example", false, ""},
	} {
		cert := makeCertificate(t, func(c *x509.Certificate) {
			for _, name := range strings.Split(test.cert, ",") {
				kind, value, typed := strings.Cut(name, "=")
				switch {
				case kind == "cn" && typed:
					c.Subject.CommonName = value
				case kind == "mail":
					c.EmailAddresses = append(c.EmailAddresses, value)
				case kind == "uri":
					u, err := url.Parse(value)
					if err != nil {
						t.Fatal(err)
					}
					c.URIs = append(c.URIs, u)
				case net.ParseIP(name) != nil:
					c.IPAddresses = append(c.IPAddresses, net.ParseIP(name))
				default:
					c.DNSNames = append(c.DNSNames, name)
				}
			}
		})
		if got := CertCovers(cert, test.host); got != test.covers {
			t.Errorf("%s for %q: %v", test.cert, test.host, got)
		}
		if got := Wildcard(cert, test.host); got != test.wildcard {
			t.Errorf("%s for %q: wildcard %q, expected %q", test.cert, test.host, got, test.wildcard)
		}
	}
}
