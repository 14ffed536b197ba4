package mesh

// Keys of links in mode wireguard: what is refused, with the whole message, and what peers get.

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

func publicKey(s string) mod { return func(l *v1alpha1.KubeLink) { l.Spec.PublicKey = s } }
func preshared(s string) mod { return func(l *v1alpha1.KubeLink) { l.Spec.PresharedKey = s } }
func presharedIn(secret string) mod {
	return func(l *v1alpha1.KubeLink) {
		l.Spec.PresharedKeySecretRef = &v1alpha1.SecretKeyRef{Name: secret, Key: "psk"}
	}
}

// testKey is a key that no other number has.
func testKey(n byte) SecretKey { return SecretKey{1: n, 31: 64} }

// wireGuard is a local cluster in mode wireguard.
func wireGuard() Local {
	return changed(func(l *Local) { l.Mode, l.DefaultPort = WireGuard, 8777 })
}

// keyed is a pair with a key, and a third link.
func keyed(mods ...mod) *objs {
	o := pair()
	publicKey(testKey(2).Public().String())(&o.list[1])
	preshared(testKey(9).Base64())(&o.list[1])
	return o.add("k3", "192.168.0.13/24", "c.example", mods...)
}

// TestKeyProblems: a young link with a bad key leaves everything as it was without it.
func TestKeyProblems(t *testing.T) {
	own, two, three := testKey(1).Public().String(), testKey(2).Public().String(), testKey(3).Public().String()
	const form = "want 32 bytes in base64, as wg(8) prints keys: 44 characters, the last one is ="
	shared := "Invalid: spec.publicKey " + two + " is that of the older link kubelink2, so both have one connection, but "
	const endpoints = ": set the key of k3 here, or the same endpoint in both"
	same := endpoint("Kubelink.two.example.:8777") // as kubelink2 writes it in another way
	for _, c := range []struct {
		name string
		mods []mod
		want string
	}{
		{"missing", nil, "Invalid: spec.publicKey is missing: mode wireguard needs the key of k3; " +
			"set it to status.publicKey of the LocalLink there, or to what wg pubkey prints there"},
		{"not base64", []mod{publicKey("abc")}, `Invalid: spec.publicKey "abc": ` + form},
		{"too short", []mod{publicKey("AAAA")}, `Invalid: spec.publicKey "AAAA": ` + form},
		{"zero", []mod{publicKey(strings.Repeat("A", 43) + "=")}, `Invalid: spec.publicKey "` + strings.Repeat("A", 43) +
			`=": all bits are zero: set what wg pubkey prints for the private key`},
		{"our own", []mod{publicKey(own)}, "Invalid: spec.publicKey " + own + " is the key of this cluster: " +
			"set the key of k3, status.publicKey " +
			"of the LocalLink there"},
		{"another's", []mod{publicKey(two), preshared(testKey(9).Base64())},
			shared + "spec.endpoint is c.example here, and kubelink.Two.example there" + endpoints},
		{"another's, other port", []mod{publicKey(two), endpoint("kubelink.two.example:1")},
			shared + "spec.endpoint is kubelink.two.example:1 here, and kubelink.Two.example there" + endpoints},
		{"another's, Inbound", []mod{publicKey(two), endpoint("Inbound")},
			shared + "spec.endpoint is Inbound here, and kubelink.Two.example there" + endpoints},
		{"another's, without preshared key", []mod{publicKey(two), same}, shared +
			"their preshared keys differ: set the key of k3 here, or the same preshared key in both"},
		{"another's, other preshared key", []mod{publicKey(two), same, preshared(testKey(8).Base64())}, shared +
			"their preshared keys differ: set the key of k3 here, or the same preshared key in both"},
		{"preshared key", []mod{publicKey(three), preshared("secret")}, "Invalid: spec.presharedKey: " + form},
		{"preshared key, zero", []mod{publicKey(three), preshared(strings.Repeat("A", 43) + "=")},
			"Invalid: spec.presharedKey: all bits are zero: make a key with wg genkey or wg genpsk"},
		{"two preshared keys", []mod{publicKey(three), preshared(testKey(9).Base64()), presharedIn("good")},
			"Invalid: spec.presharedKey and spec.presharedKeySecretRef are both set: remove one of them"},
		{"secret not read", []mod{publicKey(three), presharedIn("unread")},
			"Stale: spec.presharedKeySecretRef: secret unread was not read yet"},
		{"secret missing", []mod{publicKey(three), presharedIn("missing")},
			"Stale: spec.presharedKeySecretRef: secret ns/missing does not exist: create it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			keys := Keys{Own: testKey(1).Public(), Preshared: map[string]PresharedKey{}}
			if ref := keyed(c.mods...).list[2].Spec.PresharedKeySecretRef; ref != nil && ref.Name == "missing" {
				keys.Preshared["k3"] = PresharedKey{Problem: "secret ns/missing does not exist: create it"}
			}
			s := Build(Objects{Links: keyed(c.mods...).list, Keys: keys}, wireGuard())
			checkProblem(t, s, "k3", c.want)
			checkEqual(t, "number of problems", len(s.Problems), 1)
			checkUndisturbed(t, s, Build(Objects{Links: keyed().list[:2], Keys: keys}, wireGuard()))
		})
	}
}

// Peers have the keys of their links, in mode wireguard only.
func TestKeysOfPeers(t *testing.T) {
	two, three := testKey(2).Public(), testKey(3).Public()
	secrets := map[string]PresharedKey{
		"good": {Key: testKey(7)}, "kept": {testKey(6), "secret ns/kept has no key psk: add it"},
	}
	for _, c := range []struct {
		name      string
		mode      Mode
		mods      []mod
		key       PublicKey
		preshared SecretKey
		host      string
		port      uint16
		note      string
	}{
		{"a key", WireGuard, []mod{publicKey(three.String())}, three, SecretKey{}, "c.example", 8777, ""},
		{"white space", WireGuard, []mod{publicKey(" " + three.String() + "\n")}, three, SecretKey{}, "c.example", 8777, ""},
		{"preshared key", WireGuard, []mod{publicKey(three.String()), preshared(testKey(8).Base64())}, three, testKey(8),
			"c.example", 8777, ""},
		{"secret", WireGuard, []mod{publicKey(three.String()), presharedIn("good")}, three, testKey(7),
			"c.example", 8777, ""},
		{"former content of a secret", WireGuard, []mod{publicKey(three.String()), presharedIn("kept")}, three, testKey(6),
			"c.example", 8777, "spec.presharedKeySecretRef: secret ns/kept has no key psk: add it; " +
				"the last usable key stays in use"},
		{"Inbound", WireGuard, []mod{publicKey(three.String()), endpoint("Inbound")}, three, SecretKey{}, "", 0, ""},
		{"port", WireGuard, []mod{publicKey(three.String()), endpoint("[2001:db8::3]:51820")}, three, SecretKey{},
			"2001:db8::3", 51820, ""},
		{"one peer", WireGuard, []mod{publicKey(two.String()), preshared(testKey(9).Base64()),
			endpoint("kubelink.two.example")}, two, testKey(9), "kubelink.two.example", 8777, ""},
		// Objects of the mode that a broker in mode bridge finds, after a change of the mode for example.
		{"bridge", Bridge, []mod{publicKey("abc"), preshared("abc")}, PublicKey{}, SecretKey{}, "c.example", 8777, ""},
		{"bridge without secret", Bridge, []mod{presharedIn("unread")}, PublicKey{}, SecretKey{}, "c.example", 8777, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			local := wireGuard()
			local.Mode = c.mode
			links := keyed(append(c.mods, cidr("100.64.32.0/20"))...).list
			keys := Keys{Own: testKey(1).Public(), Preshared: map[string]PresharedKey{}}
			if ref := links[2].Spec.PresharedKeySecretRef; ref != nil && secrets[ref.Name].Key != (SecretKey{}) {
				keys.Preshared["k3"] = secrets[ref.Name]
			}
			s := Build(Objects{Links: links, Keys: keys}, local)
			checkProblem(t, s, "k3", "")
			checkEqual(t, "note", s.Notes["k3"], c.note)
			p := s.Peers[0]
			checkEqual(t, "peer", p.Link, "k3")
			checkEqual(t, "key", p.Key, c.key)
			checkEqual(t, "preshared key", p.Preshared.Base64(), c.preshared.Base64())
			checkEqual(t, "host", p.Host, c.host)
			checkEqual(t, "port", p.Port, c.port)
		})
	}
}

// A link behind a gateway needs no key, and its own means nothing: the former broker wanted one.
func TestKeyBehindGateway(t *testing.T) {
	for _, key := range []string{"", "abc", testKey(2).Public().String()} {
		s := keyed(endpoint(""), via("kubelink2"), publicKey(key), cidr("100.64.32.0/20")).build(wireGuard())
		checkProblem(t, s, "k3", "")
		note := ""
		if key != "" {
			note = "spec.publicKey has no meaning with spec.gatewayLink: that link has the connection"
		}
		checkEqual(t, "note", s.Notes["k3"], note)
		checkEqual(t, "peers", len(s.Peers), 1)
		checkEqual(t, "networks", Prefixes(s.Peers[0].Networks).String(),
			"100.64.16.0/20, 100.64.32.0/20, 192.168.0.12/32, 192.168.0.13/32")
	}
}

// The key of this cluster is in a secret. Mode bridge says nothing of keys.
func TestKeyOfLocalLink(t *testing.T) {
	for mode, note := range map[Mode]string{
		Bridge:    "",
		WireGuard: "spec.publicKey has no meaning on a LocalLink: the key of this cluster is in its status",
	} {
		o := new(objs).addLocal("a", "192.168.0.11/24")
		publicKey(testKey(2).Public().String())(&o.list[0])
		local := wireGuard()
		local.Mode = mode
		s := o.build(local)
		checkProblem(t, s, "a", "")
		checkEqual(t, string(mode), s.Notes["a"], note)
	}
}

// One cluster in two meshes is one WireGuard peer with the same key, and the older link wins over a younger one.
func TestKeyInTwoMeshes(t *testing.T) {
	key := publicKey(testKey(2).Public().String())
	o := new(objs).addLocal("m--a", "192.168.9.11/24").addLocal("a", "192.168.0.11/24").
		add("m--b", "192.168.9.12/24", "b.example", key, cidr("100.64.16.0/20")).
		add("b", "192.168.0.12/24", "b.example", key, egress("10.0.0.0/8")).
		add("c", "192.168.0.13/24", "c.example", key)
	s := o.build(wireGuard())
	checkProblem(t, s, "b", "")
	checkProblem(t, s, "m--b", "")
	checkProblem(t, s, "c", "Invalid: spec.publicKey "+testKey(2).Public().String()+" is that of the older link m--b, so "+
		"both have one connection, but spec.endpoint is c.example here, and b.example there: set the key of c here, or the "+
		"same endpoint in both")
	checkEqual(t, "keys", s.Peers[0].Key, s.Peers[1].Key)
	checkEqual(t, "networks of b", Prefixes(s.Peers[0].Networks).String(), "10.0.0.0/8, 192.168.0.12/32")
	checkEqual(t, "networks of m--b", Prefixes(s.Peers[1].Networks).String(), "100.64.16.0/20, 192.168.9.12/32")
}

// The address from which a peer without endpoint was connected last is not led into a tunnel.
func TestInboundRemote(t *testing.T) {
	o := keyed(publicKey(testKey(3).Public().String()), endpoint("Inbound")).
		add("k4", "192.168.0.14/24", "d.example", publicKey(testKey(4).Public().String()), egress("172.16.0.0/12"))
	objects := Objects{Links: o.list}
	objects.Host.Remotes = map[string]netip.Addr{"k3": ip("172.31.0.3")}
	s := Build(objects, wireGuard())
	checkProblem(t, s, "k3", "")
	checkProblem(t, s, "k4", "Invalid: the network 172.16.0.0/12 (spec.cidr, spec.egress) contains the endpoint "+
		"172.31.0.3 of link k3: its connection would run through a tunnel; narrow the network, or change the endpoint")
}
