package hello

// Frames against bytes composed by hand from the description of the format.

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"
)

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
			typ, payload, next, ok := CutFrame(rest)
			if !ok {
				break
			}
			got, rest = append(got, frame{typ, hex.EncodeToString(payload)}), next
		}
		if !reflect.DeepEqual(got, test.frames) || hex.EncodeToString(rest) != test.rest {
			t.Errorf("%s: %v, rest %x", test.name, got, rest)
		}
	}
	if got, want := AppendFrame(nil, 1, []byte("ab")), unhex("0002 01 6162"); !bytes.Equal(got, want) {
		t.Errorf("frame %x, expected %x", got, want)
	}
}

func TestReadHello(t *testing.T) {
	good := AppendFrame(nil, FrameHello, unhex(hellos[0].bytes))
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
		_, err := ReadHello(bytes.NewReader(test.in), MaxPayload)
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
			typ, payload, next, ok := CutFrame(rest)
			if !ok {
				break
			}
			if again := AppendFrame(nil, typ, payload); !bytes.Equal(again, rest[:len(again)]) {
				t.Fatalf("%x became %x", rest, again)
			}
			size += FrameHeader + len(payload)
			rest = next
		}
		if size+len(rest) != len(b) {
			t.Fatal("bytes lost")
		}
		ReadHello(bytes.NewReader(b), MaxPayload)
	})
}
