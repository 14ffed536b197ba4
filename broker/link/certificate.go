package link

// What certificates say: bundles in PEM form, names, and how long a chain is good. Each part of the broker that reads
// certificates reads them by these rules.

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"
)

const pemCertificate = "CERTIFICATE"

var (
	pemBegin, pemEnd = []byte("-----BEGIN"), []byte("-----END")
	byteOrderMark    = []byte("\xef\xbb\xbf")

	// bareBase64 is how each certificate begins (X.690: a sequence with a length of two bytes) whose BEGIN and END lines
	// are missing or damaged.
	bareBase64 = regexp.MustCompile(`(?m)^[ \t]*MII[A-Za-z0-9+/]{40,}`)
)

// ParseBundle parses a list of certificates in PEM form (RFC 7468). Each block has to be a certificate that can be
// read: the error names the block that is not, counted from 1. A list that is read in part would silently trust fewer
// authorities, or other ones, than its user thinks. Text before and between blocks is ignored, as OpenSSL writes it. An
// empty text has no certificates.
func ParseBundle(text []byte) ([]*x509.Certificate, error) { return parseBlocks(text, true) }

// ParseChain is like ParseBundle, but blocks of another type are ignored: the file of a certificate may have its key.
func ParseChain(text []byte) ([]*x509.Certificate, error) { return parseBlocks(text, false) }

func parseBlocks(text []byte, certificatesOnly bool) (certs []*x509.Certificate, err error) {
	for n, at := 1, 0; ; n++ {
		next := bytes.Index(text[at:], pemBegin)
		if next < 0 {
			next = len(text) - at
		}
		begin := at + next
		if err := checkGap(text, at, begin, n); err != nil || begin == len(text) {
			return certs, err
		}
		end := len(text)
		if next := bytes.Index(text[begin+len(pemBegin):], pemBegin); next >= 0 {
			end = begin + len(pemBegin) + next
		}
		block, rest := pem.Decode(text[begin:end])
		if block == nil {
			return nil, fmt.Errorf("block %d is cut or damaged: copy it anew", n)
		}
		at = end - len(rest)
		if block.Type != pemCertificate {
			if certificatesOnly {
				return nil, fmt.Errorf("block %d is %q, not a certificate: remove it", n, shortenText(block.Type))
			}
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", n, err)
		}
		certs = append(certs, cert)
	}
}

// checkGap looks at the text before block n, from the end of the block before to the begin of this one.
func checkGap(text []byte, from, begin, n int) error {
	switch gap := text[from:begin]; {
	case bytes.Contains(gap, pemEnd):
		return fmt.Errorf("block %d has an END line without BEGIN line: it is damaged, copy it anew", n)
	case bareBase64.Match(gap):
		return fmt.Errorf("block %d has neither BEGIN nor END line: it is damaged, copy it anew", n)
	case begin == len(text):
		return nil
	case bytes.HasSuffix(gap, byteOrderMark):
		return fmt.Errorf("a byte order mark stands before block %d: remove it", n)
	case begin > 0 && text[begin-1] != '\n':
		return fmt.Errorf("block %d begins in the middle of a line: add a line end before its BEGIN line", n)
	}
	return nil
}

// shortenText bounds a text that may be anything.
func shortenText(text string) string {
	const limit = 64
	if len(text) > limit {
		return strings.ToValidUTF8(text[:limit], "") + "..."
	}
	return text
}

// VerifyChain verifies certificates that an end has sent, its own first, against roots (nil: the system's), at a time.
// Each must allow servers or clients, or name no use (RFC 5280, section 4.2.1.12): certificates from ACME services are
// often for servers only, and here both ends use them. The result is the time until which a way to the roots is valid.
//
// Each signature is checked with a key that leads to the roots itself: from the roots down, and never with a key that a
// stranger has made, which may be as slow as he likes.
func VerifyChain(certs []*x509.Certificate, roots *x509.CertPool, now time.Time) (until time.Time, err error) {
	if len(certs) == 0 {
		return time.Time{}, errors.New("there is no certificate")
	}
	trusted := x509.VerifyOptions{
		Roots: roots, Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	rest := slices.Clone(certs[1:])
	for found := true; found; {
		found = false
		for i := len(rest) - 1; i >= 0; i-- { // the usual order begins below the root
			if c := rest[i]; c.IsCA {
				if _, err := c.Verify(trusted); err != nil {
					continue
				}
				trusted.Intermediates.AddCert(c)
				found = true
			}
			rest = slices.Delete(rest, i, i+1)
		}
	}
	ways, err := certs[0].Verify(trusted)
	if err == nil {
		return lastEnd(ways), nil
	}
	for _, c := range rest { // it may be the reason
		if string(c.RawSubject) == string(certs[0].RawIssuer) {
			if _, invalid := c.Verify(trusted); IsExpired(invalid) {
				return time.Time{}, invalid
			}
		}
	}
	return time.Time{}, err
}

// lastEnd returns when the last of several chains expires.
func lastEnd(chains [][]*x509.Certificate) (last time.Time) {
	for _, chain := range chains {
		end := chain[0].NotAfter
		for _, c := range chain[1:] {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		if end.After(last) {
			last = end
		}
	}
	return last
}

// IsExpired tells whether err says that a certificate is not valid now.
func IsExpired(err error) bool {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	return ok && invalid.Reason == x509.Expired
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// commonName is the name of a certificate without any alternative name; empty: it has one, or no common name. The
// common name counts only there (RFC 6125, section 6.4.4).
func commonName(leaf *x509.Certificate) string {
	for i := range leaf.Extensions {
		if leaf.Extensions[i].Id.Equal(oidSubjectAltName) {
			return ""
		}
	}
	return leaf.Subject.CommonName
}

// CertNames returns the DNS names and IP addresses of a certificate, or its common name when it has no alternative
// name of any kind.
func CertNames(leaf *x509.Certificate) []string {
	all := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	if cn := commonName(leaf); cn != "" {
		all = append(all, cn)
	}
	return all
}

// CertCovers tells whether a certificate is for host, a name or an IP address, by the rules of RFC 6125 as crypto/x509
// implements them.
func CertCovers(leaf *x509.Certificate, host string) bool {
	if cn := commonName(leaf); cn != "" {
		leaf = &x509.Certificate{DNSNames: []string{cn}}
		if ip := net.ParseIP(cn); ip != nil {
			leaf = &x509.Certificate{IPAddresses: []net.IP{ip}}
		}
	}
	return leaf.VerifyHostname(host) == nil
}

// Wildcard returns the name by which a certificate covers host, if that is a wildcard; empty: it names host itself, or
// does not cover it. The owner of a wildcard certificate can be any link below it.
func Wildcard(leaf *x509.Certificate, host string) string {
	if !CertCovers(leaf, host) {
		return ""
	}
	wild := ""
	for _, name := range CertNames(leaf) {
		if strings.EqualFold(strings.TrimSuffix(name, "."), strings.TrimSuffix(host, ".")) {
			return ""
		}
		if strings.HasPrefix(name, "*.") && (&x509.Certificate{DNSNames: []string{name}}).VerifyHostname(host) == nil {
			wild = name
		}
	}
	return wild
}
