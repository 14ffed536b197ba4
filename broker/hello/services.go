package hello

// The mesh services that an end offers: lists in frames of type 19 after the hellos, where both announced FlagServices.
//
//	0  marks   uint8: 1 the list begins, 2 it ends
//	1  serial  uint32 BE: of lists with another content a later one has a larger number
//	5  entries: length uint16 BE, data
//
// A list has as many frames as it needs, on one connection, with the same serial; each has whole entries. It is all
// that the end offers to this peer, and takes the place of the list before. The data of an entry:
//
//	flags      uint8: 1 all of the address belongs to the service; else only the ports do
//	address    length uint8, 4 or 16; bytes
//	namespace  length uint8; bytes: a DNS label
//	name       length uint8; bytes: of the MeshService, DNS labels with dots between them
//	service    length uint8; bytes: name of the Kubernetes service that it stands for, a DNS label; none: length 0
//	ports      number uint16 BE; of each: protocol uint8 (IANA), port uint16 BE, name: length uint8, bytes: a DNS label;
//	           none: length 0
//
// Later fields are appended. A receiver reads MaxServices entries of MaxServiceBytes in total, each with up to
// MaxServicePorts ports. It leaves out entries that are malformed, and the ones that are too many, and counts both.

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"net/netip"
	"time"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Bounds of what is read of the list of a peer.
const (
	MaxServices     = 4096
	MaxServiceBytes = 512 << 10 // of all entries, with their lengths
	MaxServicePorts = 256       // of one entry
)

const (
	servicesBegin, servicesEnd = 1, 2 // marks
	servicesHeader             = 5

	wholeAddress = 1 // flag of an entry
)

// OwnServices are the mesh services that this end offers.
type OwnServices struct {
	Serial uint32 // larger than that of the list before, from 1 on
	List   []mesh.Offer
}

// AppendFrames appends the list for a peer to frames, in as many as it needs: the services in the networks of a mesh.
// A service of many ports loses their names where it would not fit into a frame. What does not fit in any case is left
// out: no service of Kubernetes has such names or as many ports.
func (o *OwnServices) AppendFrames(frames [][]byte, networks mesh.Prefixes) [][]byte {
	begin := func(marks byte) []byte {
		b := append(make([]byte, FrameHeader, 256), marks)
		return binary.BigEndian.AppendUint32(b, o.Serial)
	}
	frame, entry := begin(servicesBegin), []byte(nil)
	for i := range o.List {
		s := &o.List[i]
		if !networks.Contains(s.Address) || !isWritable(s) {
			continue
		}
		const room = MaxLegacyPayload - servicesHeader - 2
		if entry = appendEntry(entry[:0], s, true); len(entry) > room {
			entry = appendEntry(entry[:0], s, false)
		}
		if len(entry) > room {
			continue
		}
		if len(frame)-FrameHeader+2+len(entry) > MaxLegacyPayload {
			frames = append(frames, closeFrame(frame))
			frame = begin(0)
		}
		frame = binary.BigEndian.AppendUint16(frame, uint16(len(entry)))
		frame = append(frame, entry...)
	}
	frame[FrameHeader] |= servicesEnd
	return append(frames, closeFrame(frame))
}

// closeFrame writes the header of a frame, which has room for it.
func closeFrame(frame []byte) []byte {
	PutHeader(frame, len(frame)-FrameHeader, FrameServices)
	return frame
}

// isWritable tells whether the lengths of a service fit into an entry.
func isWritable(s *mesh.Offer) bool {
	fits := max(len(s.Namespace), len(s.Name), len(s.StandsFor)) <= math.MaxUint8 && len(s.Ports) <= math.MaxUint16
	for _, p := range s.Ports {
		fits = fits && len(p.Name) <= math.MaxUint8
	}
	return fits
}

func appendEntry(b []byte, s *mesh.Offer, portNames bool) []byte {
	flags := byte(0)
	if s.Whole {
		flags = wholeAddress
	}
	b = append(b, flags)
	b = appendShort(b, string(s.Address.AsSlice()))
	b = appendShort(b, s.Namespace)
	b = appendShort(b, s.Name)
	b = appendShort(b, s.StandsFor)
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.Ports)))
	for _, p := range s.Ports {
		b = append(b, p.Protocol)
		b = binary.BigEndian.AppendUint16(b, p.Port)
		if !portNames {
			p.Name = ""
		}
		b = appendShort(b, p.Name)
	}
	return b
}

// appendShort appends a length of one byte and the bytes.
func appendShort(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

// ServiceList is a whole list of a peer that is not parsed yet: a peer that sends lists all the time causes no more
// than copies of bytes.
type ServiceList struct {
	serial  uint32
	raw     []byte // entries, with their lengths
	entries int    // in raw
	leftOut int
	sum     [sha256.Size]byte // of raw
}

// ServiceReader puts the list of a peer together. It belongs to the goroutine that reads the connection. The zero value
// is ready.
type ServiceReader struct {
	list *ServiceList // that has begun; nil: none
}

// AddFrame takes the payload of a frame of type 19, and returns the list that it ends; nil: it ends none. The list does
// not refer to the payload.
func (r *ServiceReader) AddFrame(payload []byte) *ServiceList {
	if len(payload) < servicesHeader {
		r.list = nil
		return nil
	}
	marks, serial := payload[0], binary.BigEndian.Uint32(payload[1:])
	if marks&servicesBegin != 0 {
		r.list = &ServiceList{serial: serial}
	}
	if r.list == nil || r.list.serial != serial { // its begin is missing
		r.list = nil
		return nil
	}
	r.addEntries(payload[servicesHeader:])
	if marks&servicesEnd == 0 {
		return nil
	}
	list := r.list
	r.list = nil
	list.sum = sha256.Sum256(list.raw)
	return list
}

// addEntries adds the entries of a frame, within the bounds.
func (r *ServiceReader) addEntries(b []byte) {
	for len(b) > 0 {
		size := math.MaxInt
		if len(b) >= 2 {
			size = 2 + int(binary.BigEndian.Uint16(b))
		}
		if size > len(b) { // cut
			r.list.leftOut++
			return
		}
		if r.list.entries < MaxServices && len(r.list.raw)+size <= MaxServiceBytes {
			r.list.raw = append(r.list.raw, b[:size]...)
			r.list.entries++
		} else {
			r.list.leftOut++
		}
		b = b[size:]
	}
}

// Parse parses the list.
func (l *ServiceList) Parse() *mesh.Offers {
	o := &mesh.Offers{LeftOut: l.leftOut}
	for b := l.raw; len(b) > 0; {
		end := 2 + int(binary.BigEndian.Uint16(b))
		if s, ok := parseEntry(b[2:end]); ok {
			o.List = append(o.List, s)
		} else {
			o.LeftOut++
		}
		b = b[end:]
	}
	return o
}

// entryReader reads the fields of an entry. It fails where the entry ends.
type entryReader struct {
	rest   []byte
	failed bool
}

// cutBytes returns the next n bytes; zeros if there are not as many.
func (r *entryReader) cutBytes(n int) []byte {
	if len(r.rest) < n {
		r.rest, r.failed = nil, true
		return make([]byte, n)
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *entryReader) cutByte() int { return int(r.cutBytes(1)[0]) }

// cutShort returns the bytes after a length of one byte.
func (r *entryReader) cutShort() []byte { return r.cutBytes(r.cutByte()) }

func parseEntry(b []byte) (s mesh.Offer, ok bool) {
	r := &entryReader{rest: b}
	s.Whole = r.cutByte()&wholeAddress != 0
	address, isAddress := netip.AddrFromSlice(r.cutShort())
	s.Address = address.Unmap()
	s.Namespace, s.Name, s.StandsFor = string(r.cutShort()), string(r.cutShort()), string(r.cutShort())
	ok = isAddress && isLabel(s.Namespace) && isSubdomain(s.Name) && (s.StandsFor == "" || isLabel(s.StandsFor))
	number := int(binary.BigEndian.Uint16(r.cutBytes(2)))
	const minPort = 4 // bytes
	if !ok || r.failed || number == 0 && !s.Whole || number > MaxServicePorts || number*minPort > len(r.rest) {
		return mesh.Offer{}, false
	}
	if number > 0 {
		s.Ports = make([]mesh.OfferPort, number)
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		p.Protocol, p.Port, p.Name = uint8(r.cutByte()), binary.BigEndian.Uint16(r.cutBytes(2)), string(r.cutShort())
		if r.failed || p.Port == 0 || p.Name != "" && !isLabel(p.Name) {
			return mesh.Offer{}, false
		}
	}
	return s, true
}

// isLabel tells whether a name is a DNS label, as names of Kubernetes objects are: lower case (RFC 1123).
func isLabel(name string) bool {
	if len(name) == 0 || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// isSubdomain tells whether a name is one or several DNS labels with dots between them, of 253 characters at most.
func isSubdomain(name string) bool {
	if len(name) > 253 {
		return false
	}
	start := 0
	for i := range len(name) + 1 {
		if i < len(name) && name[i] != '.' {
			continue
		}
		if !isLabel(name[start:i]) {
			return false
		}
		start = i + 1
	}
	return true
}

// serviceBurst is how many changes of a list take effect at once when there were none for a while. A list counts as one
// for each heavyEntries of its entries: this end has as much work with it.
const (
	serviceBurst = 64
	heavyEntries = MaxServices / 16
)

// ReceivedServices are what a peer offers. Changes take effect at once while they are few; the ones of a peer that
// changes its list all the time are an interval apart, and then the latest list counts. The zero value has none; the
// owner's lock guards it.
type ReceivedServices struct {
	Offers *mesh.Offers // what counts; nil: nothing yet, or the peer cannot say. It is not changed

	latest   *ServiceList  // the last that was admitted, without its content
	instance uint64        // of its sender
	spent    time.Duration // the changes so far count until then
	pending  *ServiceList  // has to wait
}

// Admit takes a list of the process with the instance. It returns the list if the owner has to parse it, and give the
// result to Keep; and, if wait is not 0, the owner has to call AdmitPending after that time. now is of a clock that
// does not jump.
func (r *ReceivedServices) Admit(
	list *ServiceList, instance uint64, now, interval time.Duration,
) (admitted *ServiceList, wait time.Duration) {
	newest := r.latest
	if r.pending != nil {
		newest = r.pending
	}
	if newest != nil && r.instance == instance && list.serial <= newest.serial { // it was on another connection
		return nil, 0
	}
	r.instance = instance
	if r.pending == nil && r.latest != nil && r.latest.sum == list.sum && r.latest.leftOut == list.leftOut {
		r.latest.serial = list.serial
		return nil, 0
	}
	if left := max(r.spent, now) + interval - (now + serviceBurst*interval); left > 0 {
		if r.pending == nil {
			wait = left
		}
		r.pending = list
		return nil, wait
	}
	return r.admit(list, now, interval), 0
}

// AdmitPending returns the list that had to wait, as Admit does; nil: there is none.
func (r *ReceivedServices) AdmitPending(now, interval time.Duration) *ServiceList {
	if r.pending == nil {
		return nil
	}
	return r.admit(r.pending, now, interval)
}

func (r *ReceivedServices) admit(list *ServiceList, now, interval time.Duration) *ServiceList {
	changes := time.Duration(max(1, list.entries/heavyEntries))
	r.pending, r.spent = nil, min(max(r.spent, now)+changes*interval, now+serviceBurst*interval)
	r.latest = &ServiceList{serial: list.serial, leftOut: list.leftOut, sum: list.sum}
	return list
}

// Keep keeps what was parsed of a list that was admitted, unless a later one with another content was admitted
// meanwhile, and tells whether it did.
func (r *ReceivedServices) Keep(list *ServiceList, offers *mesh.Offers) bool {
	if r.latest == nil || r.latest.sum != list.sum || r.latest.leftOut != list.leftOut {
		return false
	}
	r.Offers = offers
	return true
}

// Forget forgets all: the peer offers nothing any more, as one without FlagServices. It tells whether that is news.
func (r *ReceivedServices) Forget() (news bool) {
	news = r.Offers != nil
	*r = ReceivedServices{spent: r.spent}
	return news
}
