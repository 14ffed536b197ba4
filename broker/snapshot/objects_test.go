package snapshot

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// testMeta is as objects of a cache have it.
func testMeta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: namespace, Name: name, ResourceVersion: "17", Generation: 3,
		Annotations:   map[string]string{corev1.LastAppliedConfigAnnotation: "SECRET", "kept": "kept"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
	}
}

func testObjects() Objects {
	l := v1alpha1.KubeLink{ObjectMeta: testMeta("", "b")}
	l.Spec = v1alpha1.KubeLinkSpec{Endpoint: "b.example", PresharedKey: "SECRET"}
	l.Status.Message = "STATUS"
	e := coredns.CoreDNSEntry{ObjectMeta: testMeta("default", "shop")}
	e.Status.Message = "STATUS"
	z := coredns.HostedZone{ObjectMeta: testMeta("default", "zone")}
	z.Status.Message = "STATUS"
	before := coredns.CoreDNSEntry{ObjectMeta: testMeta("default", "alpha")}
	return Objects{
		Links:   []v1alpha1.KubeLink{l},
		Entries: []coredns.CoreDNSEntry{e, before},
		Zones:   []coredns.HostedZone{z, {ObjectMeta: testMeta("a", "zone")}},
	}
}

func TestEncode(t *testing.T) {
	o := testObjects()
	data, err := o.encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"SECRET", "STATUS", "last-applied", "managedFields", `"17"`} {
		if strings.Contains(string(data), text) {
			t.Errorf("%s is kept: %s", text, data)
		}
	}
	if !reflect.DeepEqual(o, testObjects()) {
		t.Error("the objects of the cache are changed")
	}
	var got Objects
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if l := got.Links[0]; l.Name != "b" || l.Spec.Endpoint != "b.example" || l.Generation != 3 || l.Annotations != nil {
		t.Errorf("link %+v", l)
	}
	if e := got.Entries; e[0].Name != "alpha" || e[1].Name != "shop" || e[1].Annotations["kept"] != "kept" {
		t.Errorf("entries %+v", e)
	}
	if z := got.Zones; z[0].Namespace != "a" || z[1].Namespace != "default" {
		t.Errorf("zones %+v", z)
	}
}

// What one snapshot keeps, the next one finds, in files for the owner only.
func TestOpen(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	s, last := Open(dir, zone.NewReplyCache(), log)
	if last != nil {
		t.Fatalf("%v", last)
	}
	// Another process has made the file readable to all.
	if err := os.WriteFile(filepath.Join(dir, objectsFile), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Keep(func(o *Objects) { *o = testObjects() })
	s.Close()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f.Name(), info.Mode(), err)
		}
	}
	s, last = Open(dir, zone.NewReplyCache(), log)
	if last == nil || len(last.Links) != 1 || len(last.Entries) != 2 || len(last.Zones) != 2 {
		t.Errorf("%+v", last)
	}
	s.Close()
}

// A nil snapshot keeps nothing, and its users need not ask.
func TestNilSnapshot(*testing.T) {
	var s *Snapshot
	s.Keep(func(*Objects) { panic("nothing is kept") })
	s.KeepLinks(make([]v1alpha1.KubeLink, 1))
}
