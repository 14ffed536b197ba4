package announce

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// testCA is a certificate in PEM form.
func testCA(t testing.TB) []byte { return testCAUntil(t, time.Now().Add(time.Hour)) }

func testCAUntil(t testing.TB, end time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: end,
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestCheckAccess(t *testing.T) {
	ca, old := testCA(t), testCAUntil(t, time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC))
	other := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	for _, c := range []struct {
		name, token string
		ca          []byte
		says        string
		want        []byte
	}{
		{"good", "eyJ.a-b_c~.x+/==", ca, "", ca},
		{"bundle with text", "t",
			bytes.Join([][]byte{[]byte("# one\n"), ca, []byte("# two\n"), ca, []byte("end")}, nil), "",
			append(bytes.Clone(ca), ca...)},
		{"no token", "", ca, "1 to 4096", nil},
		{"long token", strings.Repeat("a", MaxToken+1), ca, "1 to 4096", nil},
		{"header in token", "a\r\nHost: x", ca, "characters", nil},
		{"NUL in token", "a\x00b", ca, "characters", nil},
		{"word in token", "tökén", ca, "characters", nil},
		{"no CA", "t", nil, "no certificate", nil},
		{"no PEM", "t", []byte("hello"), "no certificate", nil},
		{"large CA", "t", bytes.Repeat(ca, MaxCA/len(ca)+1), "12288 is the limit", nil},
		{"a key", "t", append(bytes.Clone(ca), other...), "PRIVATE KEY", nil},
		{"two glued", "t", append(bytes.TrimSpace(ca), ca...), "the CA: block 2 begins in the middle of a line", nil},
		{"second one cut", "t", append(bytes.Clone(ca), ca[:100]...), "the CA: block 2 is cut or damaged", nil},
		{"expired", "t", old, "the CA expired at 2020-01-02T03:04:05Z", nil},
		{"expired one beside a good one", "t", append(bytes.Clone(old), ca...), "", append(bytes.Clone(old), ca...)},
		{"no certificate in it", "t",
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), "the CA: ", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := checkAccess(&link.APIInfo{Token: c.token, CACert: c.ca})
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "Host:") {
					t.Error(err)
				}
				return
			}
			if err != nil || got.Token != c.token || !bytes.Equal(got.CACert, c.want) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func testLink() *v1alpha1.KubeLink {
	l := &v1alpha1.KubeLink{}
	l.Name = "b"
	l.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: "192.168.0.12/24", CIDR: "100.64.16.0/20"}
	return l
}

func TestReceiveAnnouncement(t *testing.T) {
	s := &mesh.State{Meshes: []mesh.Mesh{{Domain: "kubelink."}}}
	api := &link.APIInfo{Token: "t", CACert: testCA(t)}
	ip := netip.MustParseAddr
	for _, c := range []struct {
		name        string
		in          link.Announcement
		unencrypted bool
		want        Facts
		notes       []string
	}{
		{"nothing", link.Announcement{}, false, Facts{}, nil},
		{"all",
			link.Announcement{DNS: &link.DNSInfo{ClusterDomain: "Cluster.Local.", Address: ip("100.64.16.10")}, API: api}, false,
			Facts{dnsIP: "100.64.16.10", baseDomain: "cluster.local", access: api}, nil},
		{"domain only", link.Announcement{DNS: &link.DNSInfo{ClusterDomain: "c.example"}}, false,
			Facts{baseDomain: "c.example"}, nil},
		{"address only", link.Announcement{DNS: &link.DNSInfo{Address: ip("192.168.0.12")}}, false,
			Facts{dnsIP: "192.168.0.12"}, nil},
		{"somebody else's address",
			link.Announcement{DNS: &link.DNSInfo{ClusterDomain: "c", Address: ip("100.64.0.10")}}, false,
			Facts{baseDomain: "c"},
			[]string{
				"announced by the peer, but not used", "DNS service 100.64.0.10", "not routed to this link", "spec.egress",
			}},
		{"no domain", link.Announcement{DNS: &link.DNSInfo{ClusterDomain: "a\nb\x00", Address: ip("100.64.16.10")}}, false,
			Facts{dnsIP: "100.64.16.10"}, []string{`"a\nb\x00"`, "not a letter"}},
		{"the mesh's domain", link.Announcement{DNS: &link.DNSInfo{ClusterDomain: "b.kubelink"}}, false, Facts{},
			[]string{`"b.kubelink"`, "mesh domain kubelink"}},
		{"a bad token", link.Announcement{API: &link.APIInfo{Token: "a b", CACert: api.CACert}}, false, Facts{},
			[]string{"access to its API", "characters"}},
		{"in plain text", link.Announcement{API: api}, true, Facts{},
			[]string{"access to its API", "without certificate", "secret"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h *receivedAnnouncement
			for range 2 { // the second time, from what is remembered
				var got Facts
				h, got = receiveAnnouncement(h, s, &testLink().Spec, &c.in, c.unencrypted)
				if !reflect.DeepEqual(got, c.want) || (h.note == "") != (len(c.notes) == 0) {
					t.Errorf("%+v, note %q", got, h.note)
				}
				for _, n := range c.notes {
					if !strings.Contains(h.note, n) {
						t.Errorf("the note %q does not contain %q", h.note, n)
					}
				}
			}
		})
	}
}

// What was ignored is taken over as soon as the policy wants it, although the peer announces nothing new.
func TestReceiveAfterIgnoring(t *testing.T) {
	announced := &link.Announcement{API: &link.APIInfo{Token: "t", CACert: testCA(t)}}
	objects, r := mesh.Objects{Links: []v1alpha1.KubeLink{*testLink()}}, &Receiver{}
	for _, ignore := range []bool{false, true, false} {
		policy := &Policy{Local: &mesh.Local{}, IgnoreFacts: ignore}
		got := r.ReceiveAll(objects, &mesh.State{}, []link.Status{{Link: "b", Announced: announced}}, policy,
			slog.New(slog.DiscardHandler))["b"]
		if (got.Facts.access == nil) != ignore || got.Note != "" {
			t.Errorf("with IgnoreFacts %v: %+v", ignore, got)
		}
	}
}

// Whatever is announced: what is taken is right, and what is said about the rest fits into a line.
func FuzzReceiveAnnouncement(f *testing.F) {
	f.Add("cluster.local", []byte{100, 64, 16, 10}, "token", testCA(f))
	f.Add("x.kubelink", []byte{8, 8, 8, 8}, "a\nb", []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add(strings.Repeat("\xff", 300), make([]byte, 16), "", []byte(nil))
	s := &mesh.State{Meshes: []mesh.Mesh{{Domain: "kubelink."}}}
	object := testLink()
	f.Fuzz(func(t *testing.T, domain string, address []byte, token string, ca []byte) {
		a := &link.Announcement{DNS: &link.DNSInfo{ClusterDomain: domain}, API: &link.APIInfo{Token: token, CACert: ca}}
		if ip, ok := netip.AddrFromSlice(address); ok {
			a.DNS.Address = ip.Unmap()
		}
		h, got := receiveAnnouncement(nil, s, &object.Spec, a, false)
		if strings.ContainsAny(h.note, "\n\r\x00") || !utf8.ValidString(h.note) || len(h.note) > 4*maxNote {
			t.Errorf("the note %q", h.note)
		}
		if token != "" && len(token) > 8 && strings.Contains(h.note, token) && !strings.Contains(domain, token) {
			t.Errorf("the note %q tells the token", h.note)
		}
		if got.access != nil {
			again, err := checkAccess(got.access)
			if err != nil || !reflect.DeepEqual(again, got.access) {
				t.Errorf("%+v: %v", got.access, err)
			}
		}
		// As if a user had written it.
		l := object.DeepCopy()
		l.Name, l.Spec.Endpoint = "b", "b.example"
		l.Spec.DNS = &v1alpha1.KubeLinkDNS{DNSIP: got.dnsIP, BaseDomain: got.baseDomain}
		local := *testLink()
		local.Name = "a"
		local.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: "192.168.0.11/24", Endpoint: v1alpha1.EndpointLocal}
		state := mesh.Build(mesh.Objects{Links: []v1alpha1.KubeLink{local, *l}}, mesh.Local{
			Mode: mesh.Bridge, Propagation: mesh.PropagateDNS, MeshDomain: "kubelink.", DefaultPort: 80,
		})
		if p, bad := state.Problems["b"]; bad || state.Notes["b"] != "" {
			t.Errorf("%+v: %s %s", got, p.Message, state.Notes["b"])
		}
	})
}
