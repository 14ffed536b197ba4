package hello

// Lists of mesh services against bytes composed by hand from the description of the format.

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

var mesh4 = mesh.Prefixes{netip.MustParsePrefix("192.168.0.11/24")}

// Parts of entries by hand.
const (
	addressHex  = "04 c0a80064" // 192.168.0.100
	defaultHex  = "07 64656661756c74"
	echoHex     = "04 6563686f"
	serviceHex  = "03 737663"
	webPortHex  = "06 0050 03 776562" // TCP 80 web
	barePortHex = "11 0035 00"        // UDP 53
)

var serviceLists = []struct {
	name    string
	payload string // of the only frame
	offers  mesh.Offers
	parse   bool // only parsed: we would send it otherwise
}{
	{"nothing", "03 00000001", mesh.Offers{}, false},
	{"cut: the length says more bytes", "03 00000002  0019 01" + addressHex + defaultHex + echoHex + "00" + "0000",
		mesh.Offers{LeftOut: 1}, true},
	{"a whole address", "03 00000002  0016 01" + addressHex + defaultHex + echoHex + "00" + "0000",
		mesh.Offers{List: []mesh.Offer{{Namespace: "default", Name: "echo", Whole: true,
			Address: netip.MustParseAddr("192.168.0.100")}}}, false},
	{"ports, for a service", "03 00000003  0024 00" + addressHex + defaultHex + echoHex + serviceHex + "0002" +
		webPortHex + barePortHex,
		mesh.Offers{List: []mesh.Offer{{Namespace: "default", Name: "echo", StandsFor: "svc",
			Address: netip.MustParseAddr("192.168.0.100"),
			Ports:   []mesh.OfferPort{{Name: "web", Protocol: 6, Port: 80}, {Protocol: 17, Port: 53}}}}}, false},
	{"later fields and flags", "07 00000003  0018 81" + addressHex + defaultHex + echoHex + "00" + "0000" + "aabb",
		mesh.Offers{List: []mesh.Offer{{Namespace: "default", Name: "echo", Whole: true,
			Address: netip.MustParseAddr("192.168.0.100")}}}, true},
	{"IPv4 in 16 bytes", "03 00000002  0022 01" + "10 00000000000000000000ffff c0a80064" + defaultHex + echoHex + "000000",
		mesh.Offers{List: []mesh.Offer{{Namespace: "default", Name: "echo", Whole: true,
			Address: netip.MustParseAddr("192.168.0.100")}}}, true},
	{"neither whole nor ports", "03 00000002  0016 00" + addressHex + defaultHex + echoHex + "00" + "0000",
		mesh.Offers{LeftOut: 1}, true},
	{"namespace in upper case", "03 00000002  0016 01" + addressHex + "07 44656661756c74" + echoHex + "00" + "0000",
		mesh.Offers{LeftOut: 1}, true},
	{"no name", "03 00000002  0012 01" + addressHex + defaultHex + "00" + "00" + "0000", mesh.Offers{LeftOut: 1}, true},
	{"address of 5 bytes", "03 00000002  0017 01" + "05 c0a8006400" + defaultHex + echoHex + "00" + "0000",
		mesh.Offers{LeftOut: 1}, true},
	{"more ports than bytes", "03 00000002  001c 00" + addressHex + defaultHex + echoHex + "00" + "00ff" + webPortHex[:15],
		mesh.Offers{LeftOut: 1}, true},
	{"more ports than a service has", "03 00000002  041a 01" + addressHex + defaultHex + echoHex + "00" + "0101" +
		strings.Repeat("06 0050 00", 257), mesh.Offers{LeftOut: 1}, true},
	{"port 0", "03 00000002  001a 01" + addressHex + defaultHex + echoHex + "00" + "0001" + "06 0000 00",
		mesh.Offers{LeftOut: 1}, true},
	{"a good one after a bad one", "03 00000002  0000  0016 01" + addressHex + defaultHex + echoHex + "00" + "0000",
		mesh.Offers{LeftOut: 1, List: []mesh.Offer{{Namespace: "default", Name: "echo", Whole: true,
			Address: netip.MustParseAddr("192.168.0.100")}}}, true},
}

func TestServices(t *testing.T) {
	for _, c := range serviceLists {
		t.Run(c.name, func(t *testing.T) {
			raw := unhex(c.payload)
			list := new(ServiceReader).AddFrame(raw)
			if list == nil {
				t.Fatal("no list")
			}
			if got := list.Parse(); !reflect.DeepEqual(*got, c.offers) {
				t.Errorf("parsed  %+v\nexpected %+v", *got, c.offers)
			}
			if c.parse {
				return
			}
			own := OwnServices{binary.BigEndian.Uint32(raw[1:]), c.offers.List}
			if sent := own.AppendFrames(nil, mesh4); len(sent) != 1 || !bytes.Equal(sent[0], AppendFrame(nil, 19, raw)) {
				t.Errorf("sent %x\nexpected %x", sent, raw)
			}
		})
	}
}

// makeOffers are n services with names of some length.
func makeOffers(n int) (list []mesh.Offer) {
	for i := range n {
		list = append(list, mesh.Offer{
			Namespace: "default", Name: fmt.Sprintf("service-%06d", i), StandsFor: "echo", Whole: i%2 == 0,
			Address: netip.AddrFrom4([4]byte{192, 168, 0, byte(i)}),
			Ports:   []mesh.OfferPort{{Name: "web", Protocol: 6, Port: uint16(i + 1)}},
		})
	}
	return list
}

// readFrames gives the frames of one list to a reader, and returns the list.
func readFrames(t *testing.T, r *ServiceReader, frames [][]byte) *ServiceList {
	t.Helper()
	for i, frame := range frames {
		typ, payload, rest, ok := CutFrame(frame)
		if !ok || typ != FrameServices || len(rest) > 0 || len(payload) > MaxLegacyPayload {
			t.Fatalf("frame %d: type %d, %d bytes, %d bytes after it", i, typ, len(payload), len(rest))
		}
		if list := r.AddFrame(payload); list != nil {
			if i < len(frames)-1 {
				t.Fatal("the list ends too soon")
			}
			return list
		}
	}
	return nil
}

// A list takes as many frames as it needs, has only what is in the mesh, and what cannot be written is left out.
func TestManyServices(t *testing.T) {
	want := makeOffers(3000)
	list := append(makeOffers(3000), mesh.Offer{Namespace: "default", Name: "elsewhere", Whole: true,
		Address: netip.MustParseAddr("192.168.1.1")},
		mesh.Offer{Namespace: "default", Name: "ports", Address: netip.MustParseAddr("192.168.0.7"),
			Ports: make([]mesh.OfferPort, 5000)})
	frames := (&OwnServices{1, list}).AppendFrames(nil, mesh4)
	if len(frames) < 5 || len(frames) > 10 {
		t.Errorf("%d frames", len(frames))
	}
	var r ServiceReader
	if got := readFrames(t, &r, frames).Parse(); got.LeftOut != 0 || !reflect.DeepEqual(got.List, want) {
		t.Errorf("%d services, %d left out", len(got.List), got.LeftOut)
	}
	// Names of ports give way.
	large := mesh.Offer{Namespace: "default", Name: "large", Address: netip.MustParseAddr("192.168.0.7")}
	for i := range 256 {
		large.Ports = append(large.Ports, mesh.OfferPort{Name: strings.Repeat("x", 63), Protocol: 6, Port: uint16(i + 1)})
	}
	parsed := readFrames(t, &r, (&OwnServices{1, []mesh.Offer{large}}).AppendFrames(nil, mesh4)).Parse()
	if len(parsed.List) != 1 || len(parsed.List[0].Ports) != 256 || parsed.List[0].Ports[0].Name != "" {
		t.Errorf("%+v", parsed)
	}
	// A list of which a part is missing is none, and the next one counts.
	for _, broken := range [][][]byte{frames[1:], frames[:2]} {
		if list := readFrames(t, &r, broken); list != nil {
			t.Errorf("a list of parts: %d services", len(list.Parse().List))
		}
	}
	other := (&OwnServices{2, list}).AppendFrames(nil, mesh4)
	if list := readFrames(t, &r, [][]byte{frames[0], other[len(other)-1]}); list != nil {
		t.Error("a list of parts of two")
	}
	if list := readFrames(t, &r, other); list == nil || len(list.Parse().List) != 3000 {
		t.Error("no list after broken ones")
	}
}

// A hostile peer that offers 100,000 services, or sends a list without end, has bounded memory.
func TestTooManyServices(t *testing.T) {
	frames := (&OwnServices{1, makeOffers(100000)}).AppendFrames(nil, mesh4)
	var r ServiceReader
	before := liveBytes()
	list := readFrames(t, &r, frames)
	if got := list.Parse(); len(got.List) != MaxServices || got.LeftOut != 100000-MaxServices {
		t.Errorf("%d services, %d left out", len(got.List), got.LeftOut)
	}
	for i := range 10 {
		for _, frame := range frames[:len(frames)-1] {
			frame[FrameHeader] &^= servicesBegin
			if i == 0 {
				frames[0][FrameHeader] |= servicesBegin
			}
			r.AddFrame(frame[FrameHeader:])
		}
	}
	if r.list == nil || r.list.leftOut < 900_000 || cap(r.list.raw) > 2*MaxServiceBytes {
		t.Errorf("%+v", r.list)
	}
	if grown := liveBytes() - before; grown > 4<<20 {
		t.Errorf("%d bytes for it", grown)
	} else {
		t.Logf("%d bytes for the lists", grown)
	}
	runtime.KeepAlive(list)
	runtime.KeepAlive(frames)
	// Few large entries are bounded by their bytes.
	big := makeOffers(2000)
	for i := range big {
		big[i].Ports = make([]mesh.OfferPort, 200)
		for j := range big[i].Ports {
			big[i].Ports[j] = mesh.OfferPort{Name: strings.Repeat("x", 60), Protocol: 6, Port: 1}
		}
	}
	got := readFrames(t, &r, (&OwnServices{3, big}).AppendFrames(nil, mesh4)).Parse()
	if len(got.List) < 30 || len(got.List) > MaxServiceBytes/(200*60)+1 || got.LeftOut != 2000-len(got.List) {
		t.Errorf("%d services, %d left out", len(got.List), got.LeftOut)
	}
}

func liveBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Changes take effect at once until there were many in a short time; then one in each interval, and the latest counts.
func TestReceivedServices(t *testing.T) {
	const interval = 3 * time.Second
	list := func(serial uint32, services int) *ServiceList {
		return readFrames(t, new(ServiceReader), (&OwnServices{serial, makeOffers(services)}).AppendFrames(nil, mesh4))
	}
	var r ReceivedServices
	admit := func(l *ServiceList, instance uint64, now time.Duration) (news bool, wait time.Duration) {
		admitted, wait := r.Admit(l, instance, now, interval)
		return admitted != nil && r.Keep(admitted, admitted.Parse()), wait
	}
	check := func(what string, news, wantNews bool, services int) {
		t.Helper()
		if news != wantNews || len(r.Offers.List) != services {
			t.Errorf("%s: news %t, %d services", what, news, len(r.Offers.List))
		}
	}
	news, _ := admit(list(1, 0), 7, 0)
	check("first", news, true, 0)
	news, _ = admit(list(2, 1), 7, time.Millisecond)
	check("changed at once", news, true, 1)
	news, _ = admit(list(3, 1), 7, time.Millisecond)
	check("the same", news, false, 1)
	news, _ = admit(list(2, 5), 7, time.Millisecond)
	check("an older one, late", news, false, 1)
	news, _ = admit(list(1, 2), 8, time.Millisecond)
	check("another process", news, true, 2)
	at, waits := time.Second, 0
	for serial := range uint32(1000) {
		at += time.Millisecond
		if _, wait := admit(list(10+serial, int(serial%7)), 8, at); wait > 0 {
			waits++
			if wait > interval {
				t.Errorf("wait %s", wait)
			}
		}
	}
	if waits != 1 || r.pending == nil || r.latest.serial < 10+serviceBurst-10 || r.latest.serial > 10+serviceBurst {
		t.Errorf("%d waits, the list that counts is %d", waits, r.latest.serial)
	}
	pending := r.AdmitPending(at+interval, interval)
	check("the latest", r.Keep(pending, pending.Parse()), true, 999%7)
	if r.AdmitPending(at+interval, interval) != nil {
		t.Error("nothing waits any more")
	}
	if !r.Forget() || r.Forget() || r.Offers != nil {
		t.Error("not forgotten")
	}
	if _, wait := admit(list(1, 3), 9, at+interval); wait == 0 {
		t.Error("a peer that comes anew has all its changes again")
	}
}

// The same list again while it is parsed, from a process that has begun anew, changes nothing: it counts.
func TestServicesAgain(t *testing.T) {
	var r ReceivedServices
	lists := [2]*ServiceList{}
	for i, serial := range []uint32{5, 1} {
		lists[i] = readFrames(t, new(ServiceReader), (&OwnServices{serial, makeOffers(2)}).AppendFrames(nil, mesh4))
	}
	admitted, _ := r.Admit(lists[0], 1, 0, 0)
	if again, wait := r.Admit(lists[1], 2, 0, 0); again != nil || wait != 0 {
		t.Fatal("it is no news")
	}
	if !r.Keep(admitted, admitted.Parse()) || r.Offers == nil || len(r.Offers.List) != 2 {
		t.Errorf("%+v", r.Offers)
	}
}

// Large lists are much work: few changes of them take effect at once, and then one in each interval, too.
func TestReceivedLargeLists(t *testing.T) {
	const interval = time.Second
	services := makeOffers(MaxServices)
	var r ReceivedServices
	now, admitted := time.Hour, 0
	for serial := range uint32(40) {
		services[0].Name = fmt.Sprint("x", serial)
		list := readFrames(t, new(ServiceReader), (&OwnServices{serial + 1, services}).AppendFrames(nil, mesh4))
		switch l, wait := r.Admit(list, 1, now, interval); {
		case l != nil:
			admitted++
		case wait > interval:
			t.Errorf("wait %s", wait)
		}
		if serial >= 20 { // no change came for an interval
			now += interval
			r.AdmitPending(now, interval)
		}
	}
	if admitted != 4 {
		t.Errorf("%d at once", admitted)
	}
}

// A list that was overtaken while it was parsed does not count.
func TestOvertakenServices(t *testing.T) {
	var r ReceivedServices
	lists := [2]*ServiceList{}
	for i := range lists {
		l := readFrames(t, new(ServiceReader), (&OwnServices{uint32(i + 1), makeOffers(i)}).AppendFrames(nil, mesh4))
		lists[i], _ = r.Admit(l, 1, 0, 0)
	}
	if !r.Keep(lists[1], lists[1].Parse()) || r.Keep(lists[0], lists[0].Parse()) || len(r.Offers.List) != 1 {
		t.Errorf("%+v", r.Offers)
	}
}

func FuzzServices(f *testing.F) {
	for _, c := range serviceLists {
		f.Add(unhex(c.payload))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r ServiceReader
		list := r.AddFrame(b)
		if list == nil {
			return
		}
		got := list.Parse()
		all := mesh.Prefixes{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		again := readFrames(t, &r, (&OwnServices{1, got.List}).AppendFrames(nil, all))
		if parsed := again.Parse(); parsed.LeftOut != 0 || !reflect.DeepEqual(parsed.List, got.List) {
			t.Fatalf("%+v became %+v", got, parsed)
		}
	})
}
