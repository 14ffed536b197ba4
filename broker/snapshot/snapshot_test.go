package snapshot

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/renameio/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// Nothing is written where only the state of links has changed, or the order of objects; what could not be written is.
func TestSnapshotChanges(t *testing.T) {
	s := &Snapshot{dir: t.TempDir(), log: slog.New(slog.DiscardHandler), changed: make(chan struct{}, 1)}
	link := func(uid string, generation int64, state v1alpha1.State) []v1alpha1.KubeLink {
		return []v1alpha1.KubeLink{{
			ObjectMeta: metav1.ObjectMeta{Name: "a", UID: types.UID(uid), Generation: generation},
			Status:     v1alpha1.KubeLinkStatus{State: state},
		}}
	}
	for n, c := range []struct {
		links []v1alpha1.KubeLink
		news  bool
	}{
		{link("1", 1, "Up"), true}, {link("1", 1, "Idle"), false}, {link("1", 2, "Idle"), true},
		{link("2", 2, "Idle"), true}, {nil, true}, {nil, false},
	} {
		s.dirty = false
		if s.KeepLinks(c.links); s.dirty != c.news {
			t.Errorf("%d: dirty %v", n, s.dirty)
		}
	}
	entries := func(names ...string) func(*Objects) {
		return func(o *Objects) {
			o.Entries = nil
			for _, name := range names {
				o.Entries = append(o.Entries, coredns.CoreDNSEntry{ObjectMeta: metav1.ObjectMeta{Name: name}})
			}
		}
	}
	s.Keep(entries("a", "b"))
	s.saveObjects()
	file := filepath.Join(s.dir, objectsFile)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.Keep(entries("b", "a"))
	if s.saveObjects(); s.dirty {
		t.Error("what was written counts as changed")
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("written for another order")
	}
	s.Keep(entries("c"))
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := s.dir
	s.dir = filepath.Join(file, "nowhere") // below a file
	s.saveObjects()
	s.dir = dir
	s.saveObjects()
	if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), `"c"`) {
		t.Errorf("not tried again: %s, %v", data, err)
	}
}

// A folder that cannot be used costs nothing but the memory: one warning for as long as it lasts, and when the folder
// can be used, the files are there.
func TestUnusableFolder(t *testing.T) {
	inTheWay := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(inTheWay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(inTheWay, "state")
	var text bytes.Buffer // written by this goroutine only, until the end of the snapshot
	s, last := Open(dir, zone.NewReplyCache(), slog.New(slog.NewTextHandler(&text, nil)))
	s.Close() // this goroutine saves from here on
	if last != nil {
		t.Errorf("an object out of nowhere: %+v", last)
	}
	s.Keep(func(o *Objects) { *o = testObjects() })
	s.saveObjects()
	s.saveReplies()
	if n := strings.Count(text.String(), "level=WARN"); n != 1 || !strings.Contains(text.String(), dir) {
		t.Errorf("%d warnings, want 1 that names %s:\n%s", n, dir, text.String())
	}

	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	s.saveObjects()
	s.saveReplies()
	if !strings.Contains(text.String(), "up to date again") {
		t.Errorf("nothing says that the folder can be used:\n%s", text.String())
	}
	s, last = Open(dir, zone.NewReplyCache(), s.log)
	s.Close()
	if last == nil || len(last.Links) != 1 {
		t.Errorf("the next process knows %+v", last)
	}
}

// Files that a process did not finish before it was killed are gone after the next start; others stay.
func TestUnfinishedFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b]*")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	kept := map[string]bool{
		".answers123456": false, ".objects.json1": false, "answers.new-77": false, ".probe9": false,
		"answers.txt": true, ".answers": true, "other.new-1": true, ".answersX": true,
	}
	for name := range kept {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := Open(dir, zone.NewReplyCache(), slog.New(slog.DiscardHandler))
	s.Close()
	for name, want := range kept {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: kept is not %v", name, want)
		}
	}

	// What writeFile leaves when it is killed has such a name.
	f, err := renameio.TempFile(dir, filepath.Join(dir, repliesFile))
	if err != nil {
		t.Fatal(err)
	}
	left := f.Name()
	f.Close()
	if removeUnfinished(dir); fileExists(left) {
		t.Errorf("%s is left", left)
	}
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// A file that can be written does not hide the other one, which cannot: that would be two lines of the log each time.
func TestOneFileFails(t *testing.T) {
	dir := t.TempDir()
	inTheWay := filepath.Join(dir, repliesFile)
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	s := &Snapshot{
		dir: dir, log: slog.New(slog.NewTextHandler(&text, nil)), replies: zone.NewReplyCache(),
		changed: make(chan struct{}, 1),
	}
	save := func(name string) {
		s.Keep(func(o *Objects) {
			o.Entries = []coredns.CoreDNSEntry{{ObjectMeta: metav1.ObjectMeta{Name: name}}}
		})
		s.saveObjects()
		s.saveReplies()
	}
	save("a")
	save("b")
	save("c")
	if n := strings.Count(text.String(), "\n"); n != 1 {
		t.Errorf("%d lines:\n%s", n, text.String())
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	save("d")
	if !strings.Contains(text.String(), "up to date again") {
		t.Errorf("nothing says that all is written:\n%s", text.String())
	}
}
