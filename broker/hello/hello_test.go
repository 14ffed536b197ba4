package hello

// Hellos against bytes composed by hand from the description of the format.

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
	hello Hello
	parse bool // only parsed: we would send it otherwise
}{
	{"bare", ip4Hex + maskHex + noneHex + portHex + "0000",
		Hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80}}, false},
	{"long mask", ip4Hex + longMask + svcHex + "ffffffffffffffffffffffff fffff000" + portHex + "0000",
		Hello{Announcement: link.Announcement{Address: address, ServiceCIDR: serviceIP, AdvertisedPort: 80}}, true},
	{"service network", ip4Hex + maskHex + svcHex + svcMaskHex + portHex + "0000",
		Hello{Announcement: link.Announcement{Address: address, ServiceCIDR: serviceIP, AdvertisedPort: 80}}, false},
	{"IPv6", "fd000000000000000000000000000001 ffffffffffffffff0000000000000000" + noneHex + portHex + "0000",
		Hello{Announcement: link.Announcement{Address: netip.MustParsePrefix("fd00::1/64"), AdvertisedPort: 80}}, false},
	{"API access", ip4Hex + maskHex + noneHex + portHex + "000a" + "01 0007" + "746f6b 00 504d45",
		Hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80,
			API: &link.APIInfo{Token: "tok", CACert: []byte("PME")}}}, false},
	{"DNS", ip4Hex + maskHex + noneHex + portHex + "0015" + "02 0012" + "636c75737465722e6c6f63616c 00 6440100a",
		Hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80,
			DNS: &link.DNSInfo{ClusterDomain: "cluster.local", Address: netip.MustParseAddr("100.64.16.10")}}}, false},
	{"DNS IPv6", ip4Hex + maskHex + noneHex + portHex + "0015" + "02 0012" + "63 00 fd00000000000000000000000000000a",
		Hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80,
			DNS: &link.DNSInfo{ClusterDomain: "c", Address: netip.MustParseAddr("fd00::a")}}}, false},
	{"DNS without address", ip4Hex + maskHex + noneHex + portHex + "0005" + "02 0002" + "63 00",
		Hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80, DNS: &link.DNSInfo{ClusterDomain: "c"}}},
		false},
	{"all and capabilities", ip4Hex + maskHex + noneHex + portHex + "0021" + "01 0004 74 00 5045" +
		"02 0006 63 00 6440100a" + "80 000e 00000003 0102030405060708 02 01",
		Hello{link.Announcement{Address: address, AdvertisedPort: 80, API: &link.APIInfo{Token: "t", CACert: []byte("PE")},
			DNS: &link.DNSInfo{ClusterDomain: "c", Address: netip.MustParseAddr("100.64.16.10")}}, true, 3, 0x0102030405060708,
			2, 1, nil}, false},
	{"unknown extension", ip4Hex + maskHex + noneHex + portHex + "0019" + "09 0003 ffffff" +
		"80 0010 00000001 0000000000000007 0403 aaaa",
		Hello{link.Announcement{Address: address, AdvertisedPort: 80}, true, 1, 7, 4, 3, nil}, true},
	{"capabilities without streams", ip4Hex + maskHex + noneHex + portHex + "000f" + "80 000c 00000001 0000000000000007",
		Hello{link.Announcement{Address: address, AdvertisedPort: 80}, true, 1, 7, 0, 0, nil}, true},
	{"capabilities with terms", ip4Hex + maskHex + noneHex + portHex + "0019" +
		"80 0016 00000001 0000000000000007 0403 00000005 ffffffff",
		Hello{link.Announcement{Address: address, AdvertisedPort: 80}, true, 1, 7, 4, 3, &Terms{5, 1<<32 - 1}}, false},
	{"capabilities with version", ip4Hex + maskHex + noneHex + portHex + "0020" +
		"80 001d 00000001 0000000000000007 0403 00000005 00000001 06 76312e322d78",
		Hello{link.Announcement{Address: address, AdvertisedPort: 80, Version: "v1.2-x"}, true, 1, 7, 4, 3, &Terms{5, 1}},
		false},
	{"version is no label", ip4Hex + maskHex + noneHex + portHex + "001d" +
		"80 001a 00000001 0000000000000007 0403 00000005 00000001 03 760a22",
		Hello{link.Announcement{Address: address, AdvertisedPort: 80}, true, 1, 7, 4, 3, &Terms{5, 1}}, true},
	{"version is cut", ip4Hex + maskHex + noneHex + portHex + "001b" +
		"80 0018 00000001 0000000000000007 0403 00000005 00000001 03 76",
		Hello{link.Announcement{Address: address, AdvertisedPort: 80}, true, 1, 7, 4, 3, &Terms{5, 1}}, true},
	{"one term is cut", ip4Hex + maskHex + noneHex + portHex + "0018" +
		"80 0015 00000001 0000000000000007 0403 00000005 ffffff",
		Hello{link.Announcement{Address: address, AdvertisedPort: 80}, true, 1, 7, 4, 3, nil}, true},
	{"more bytes than said", ip4Hex + maskHex + noneHex + portHex + "0000" + "ffff",
		Hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80}}, true},
	{"service network is everything", ip4Hex + maskHex + svcHex + "00000000000000000000000000000000" + portHex + "0000",
		Hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80}}, true},
	{"API access without token", ip4Hex + maskHex + noneHex + portHex + "0007" + "01 0004" + "00 504d45",
		Hello{Announcement: link.Announcement{Address: address, AdvertisedPort: 80}}, true},
}

func TestHello(t *testing.T) {
	for _, test := range hellos {
		t.Run(test.name, func(t *testing.T) {
			raw := unhex(test.bytes)
			got, err := ParsePayload(raw)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, test.hello) {
				t.Errorf("parsed  %+v\nexpected %+v", *got, test.hello)
			}
			if test.parse {
				return
			}
			sent, err := test.hello.AppendPayload(nil)
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
		if _, err := ParsePayload(unhex(test.bytes)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, expected %q", test.name, err, test.want)
		}
	}
	big := Hello{Announcement: link.Announcement{Address: address,
		API: &link.APIInfo{Token: "t", CACert: make([]byte, 17000)}}}
	if _, err := big.AppendPayload(nil); err == nil || !strings.Contains(err.Error(), "peers read 17000") {
		t.Errorf("too large: %v", err)
	}
}

func FuzzHello(f *testing.F) {
	for _, test := range hellos {
		f.Add(unhex(test.bytes))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParsePayload(b)
		if err != nil {
			return
		}
		sent, err := h.AppendPayload(nil)
		if err != nil {
			return // more than we would send
		}
		again, err := ParsePayload(sent)
		if err != nil || !reflect.DeepEqual(h, again) {
			t.Fatalf("%+v became %+v: %v", h, again, err)
		}
	})
}
