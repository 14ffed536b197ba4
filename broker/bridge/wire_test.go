package bridge

// Frames and hellos against bytes composed by hand from the description of the format.

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/link"
)

// unhex decodes hex digits; blanks are for the reader.
func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// Parts of a hello by hand.
const (
	ip4Hex     = "00000000000000000000ffff c0a8000b" // 192.168.0.11
	maskHex    = "000000000000000000000000 ffffff00" // /24
	longMask   = "ffffffffffffffffffffffff ffffff00" // /24 in 16-byte form
	svcHex     = "00000000000000000000ffff 64401000" // 100.64.16.0
	svcMaskHex = "000000000000000000000000 fffff000" // /20
	noneHex    = "00000000000000000000000000000000 00000000000000000000000000000000"
	portHex    = "0050 000000000000000000000000" // 80, reserved
)

var (
	address   = netip.MustParsePrefix("192.168.0.11/24")
	serviceIP = netip.MustParsePrefix("100.64.16.0/20")
)

var hellos = []struct {
	name  string
	bytes string
	hello hello
	parse bool // only parsed: we would send it otherwise
}{
	{"bare", ip4Hex + maskHex + noneHex + portHex + "0000",
		hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80}}, false},
	{"long mask", ip4Hex + longMask + svcHex + "ffffffffffffffffffffffff fffff000" + portHex + "0000",
		hello{Announcement: link.Announcement{Address: address, ServiceCIDR: serviceIP, AdvertisedPort: 80}}, true},
	{"service network", ip4Hex + maskHex + svcHex + svcMaskHex + portHex + "0000",
		hello{Announcement: link.Announcement{Address: address, ServiceCIDR: serviceIP, AdvertisedPort: 80}}, false},
	{"IPv6", "fd000000000000000000000000000001 ffffffffffffffff0000000000000000" + noneHex + portHex + "0000",
		hello{Announcement: link.Announcement{Address: netip.MustParsePrefix("fd00::1/64"), AdvertisedPort: 80}}, false},
	{"API access", ip4Hex + maskHex + noneHex + portHex + "000a" + "01 0007" + "746f6b 00 504d45",
		hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80,
			API: &link.APIInfo{Token: "tok", CACert: []byte("PME")}}}, false},
	{"DNS", ip4Hex + maskHex + noneHex + portHex + "0015" + "02 0012" + "636c75737465722e6c6f63616c 00 6440100a",
		hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80,
			DNS: &link.DNSInfo{ClusterDomain: "cluster.local", Address: netip.MustParseAddr("100.64.16.10")}}}, false},
	{"DNS IPv6", ip4Hex + maskHex + noneHex + portHex + "0015" + "02 0012" + "63 00 fd00000000000000000000000000000a",
		hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80,
			DNS: &link.DNSInfo{ClusterDomain: "c", Address: netip.MustParseAddr("fd00::a")}}}, false},
	{"DNS without address", ip4Hex + maskHex + noneHex + portHex + "0005" + "02 0002" + "63 00",
		hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80, DNS: &link.DNSInfo{ClusterDomain: "c"}}},
		false},
	{"all and capabilities", ip4Hex + maskHex + noneHex + portHex + "0021" + "01 0004 74 00 5045" +
		"02 0006 63 00 6440100a" + "80 000e 00000003 0102030405060708 02 01",
		hello{link.Announcement{Address: address, AdvertisedPort: 80, API: &link.APIInfo{Token: "t", CACert: []byte("PE")},
			DNS: &link.DNSInfo{ClusterDomain: "c", Address: netip.MustParseAddr("100.64.16.10")}}, true, 3, 0x0102030405060708,
			2, 1, nil}, false},
	{"unknown extension", ip4Hex + maskHex + noneHex + portHex + "0019" + "09 0003 ffffff" +
		"80 0010 00000001 0000000000000007 0403 aaaa",
		hello{link.Announcement{Address: address, AdvertisedPort: 80}, true, 1, 7, 4, 3, nil}, true},
	{"capabilities without streams", ip4Hex + maskHex + noneHex + portHex + "000f" + "80 000c 00000001 0000000000000007",
		hello{link.Announcement{Address: address, AdvertisedPort: 80}, true, 1, 7, 0, 0, nil}, true},
	{"capabilities with terms", ip4Hex + maskHex + noneHex + portHex + "0019" +
		"80 0016 00000001 0000000000000007 0403 00000005 ffffffff",
		hello{link.Announcement{Address: address, AdvertisedPort: 80}, true, 1, 7, 4, 3, &terms{5, 1<<32 - 1}}, false},
	{"one term is cut", ip4Hex + maskHex + noneHex + portHex + "0018" +
		"80 0015 00000001 0000000000000007 0403 00000005 ffffff",
		hello{link.Announcement{Address: address, AdvertisedPort: 80}, true, 1, 7, 4, 3, nil}, true},
	{"more bytes than said", ip4Hex + maskHex + noneHex + portHex + "0000" + "ffff",
		hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80}}, true},
	{"service network is everything", ip4Hex + maskHex + svcHex + "00000000000000000000000000000000" + portHex + "0000",
		hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80}}, true},
	{"API access without token", ip4Hex + maskHex + noneHex + portHex + "0007" + "01 0004" + "00 504d45",
		hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80}}, true},
}

func TestHello(t *testing.T) {
	for _, test := range hellos {
		t.Run(test.name, func(t *testing.T) {
			raw := unhex(test.bytes)
			got, err := parseHello(raw)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, test.hello) {
				t.Errorf("parsed  %+v\nexpected %+v", *got, test.hello)
			}
			if test.parse {
				return
			}
			sent, err := test.hello.appendPayload(nil)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(sent, raw) {
				t.Errorf("sent %x\nexpected %x", sent, raw)
			}
		})
	}
}

func TestHelloErrors(t *testing.T) {
	for _, test := range []struct{ name, bytes, want string }{
		{"empty", "", "hello of 0 bytes: truncated"},
		{"short", ip4Hex, "hello of 16 bytes: truncated"},
		{"no address", noneHex + noneHex + portHex + "0000", "no cluster address"},
		{"mask with gaps", ip4Hex + "000000000000000000000000 ff00ff00" + noneHex + portHex + "0000",
			"mask ff00ff00 of 192.168.0.11 has gaps"},
		{"mask of service network", ip4Hex + maskHex + svcHex + "000000000000000000000000 0000000f" + portHex + "0000",
			"service network in hello: mask"},
		{"extensions missing", ip4Hex + maskHex + noneHex + portHex + "0004 01", "extensions of hello: truncated"},
		{"extension cut", ip4Hex + maskHex + noneHex + portHex + "0004 01 0002 aa", "extension of hello: truncated"},
		{"extension header cut", ip4Hex + maskHex + noneHex + portHex + "0002 01 00", "extension of hello: truncated"},
	} {
		if _, err := parseHello(unhex(test.bytes)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, expected %q", test.name, err, test.want)
		}
	}
	big := hello{Announcement: link.Announcement{Address: address,
		API: &link.APIInfo{Token: "t", CACert: make([]byte, 17000)}}}
	if _, err := big.appendPayload(nil); err == nil || !strings.Contains(err.Error(), "peers read 17000") {
		t.Errorf("too large: %v", err)
	}
}

func TestFrames(t *testing.T) {
	type frame struct {
		typ     byte
		payload string
	}
	for _, test := range []struct {
		name, bytes string
		frames      []frame
		rest        string
	}{
		{"nothing", "", nil, ""},
		{"part of a header", "0001", nil, "0001"},
		{"part of a payload", "0002 00 aa", nil, "000200aa"},
		{"empty payload", "0000 07", []frame{{7, ""}}, ""},
		{"two and a half", "0002 00 abcd  0001 10 ff  0005 00 01", []frame{{0, "abcd"}, {16, "ff"}}, "00050001"},
	} {
		rest := unhex(test.bytes)
		var got []frame
		for {
			typ, payload, next, ok := cutFrame(rest)
			if !ok {
				break
			}
			got, rest = append(got, frame{typ, hex.EncodeToString(payload)}), next
		}
		if !reflect.DeepEqual(got, test.frames) || hex.EncodeToString(rest) != test.rest {
			t.Errorf("%s: %v, rest %x", test.name, got, rest)
		}
	}
	if got, want := appendFrame(nil, 1, []byte("ab")), unhex("0002 01 6162"); !bytes.Equal(got, want) {
		t.Errorf("frame %x, expected %x", got, want)
	}
	buf := copyBuffer([]byte("abc"), vnetHeader{})
	if got, want := buf.frame(), unhex("0003 00 616263"); !bytes.Equal(got, want) {
		t.Errorf("packet frame %x, expected %x", got, want)
	}
	buf.vnet = vnetHeader{needsCsum, gsoTCPv4, 40, 1448, 20, 16}
	if got, want := buf.frame(), unhex("000a 12 01 01 2800 a805 1400 1000  0003 00 616263"); !bytes.Equal(got, want) {
		t.Errorf("offloaded packet is %x, expected %x", got, want)
	}
}

func TestReadHello(t *testing.T) {
	good := appendFrame(nil, frameHello, unhex(hellos[0].bytes))
	for _, test := range []struct {
		name string
		in   []byte
		want string
	}{
		{"at once", good, ""},
		{"after an unknown type", append(unhex("0001 20 00"), good...), ""},
		{"after a packet", append(unhex("0001 00 00"), good...), "packet before the hello"},
		{"never", bytes.Repeat(unhex("0001 20 00"), 20), "no hello"},
		{"cut", good[:20], "unexpected EOF"},
	} {
		_, err := readHello(bytes.NewReader(test.in))
		if test.want == "" && err != nil || test.want != "" && (err == nil || err.Error() != test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(unhex("0002 00 abcd  0001 10 ff  0005 00 01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rest, size := b, 0
		for {
			typ, payload, next, ok := cutFrame(rest)
			if !ok {
				break
			}
			if again := appendFrame(nil, typ, payload); !bytes.Equal(again, rest[:len(again)]) {
				t.Fatalf("%x became %x", rest, again)
			}
			size += frameHeader + len(payload)
			rest = next
		}
		if size+len(rest) != len(b) {
			t.Fatal("bytes lost")
		}
		readHello(bytes.NewReader(b))
	})
}

func FuzzHello(f *testing.F) {
	for _, test := range hellos {
		f.Add(unhex(test.bytes))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil {
			return
		}
		sent, err := h.appendPayload(nil)
		if err != nil {
			return // more than we would send
		}
		again, err := parseHello(sent)
		if err != nil || !reflect.DeepEqual(h, again) {
			t.Fatalf("%+v became %+v: %v", h, again, err)
		}
	})
}
