// Package snapshot keeps what survives a restart when state-dir is set: the objects that names come from, and what
// clusters have answered. A broker that starts while the API server or the peers are away answers at once what the
// last broker knew.
package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/renameio/v2"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/onchange"
	"github.com/mandelsoft/kubelink/broker/zone"
)

const (
	objectsFile = "objects.json"
	repliesFile = "answers"
	probeFile   = "probe"
	// A broker that is killed loses what is younger.
	objectsInterval = time.Second
	repliesInterval = 30 * time.Second
)

// Snapshot keeps the files of a folder up to date.
type Snapshot struct {
	dir     string
	log     *slog.Logger
	replies *zone.ReplyCache

	mu     sync.Mutex // guards latest and dirty
	latest Objects    // the snapshot does not change the lists, nor the objects in them
	dirty  bool       // latest differs from the file

	changed chan struct{}
	stop    chan struct{}
	done    chan struct{}
	written []byte // content of the file of objects; belongs to saveChanges

	objectsErr, repliesErr error          // why a file could not be written last
	failure                onchange.Error // one of them, as logged last
}

// Open reads what an earlier process left; the objects are nil if it left none. Replies go to the given cache, which
// the snapshot keeps from now on. The snapshot only helps after a restart, so nothing of it is an error: what cannot be
// read counts as not there, and what cannot be written is logged and tried again. The caller ends the snapshot with
// Close.
func Open(dir string, replies *zone.ReplyCache, log *slog.Logger) (*Snapshot, *Objects) {
	s := &Snapshot{
		dir: dir, log: log, replies: replies,
		changed: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	removeUnfinished(dir)
	// A folder without write access shows now, and not in half a minute.
	s.repliesErr = s.writeFile(probeFile, []byte("kubelink can write here\n"))
	s.noteFailure()
	os.Remove(filepath.Join(dir, probeFile))

	s.readFile(repliesFile, func(data []byte) error { return replies.Load(bytes.NewReader(data)) })
	var last *Objects
	s.readFile(objectsFile, func(data []byte) error {
		o := new(Objects)
		if err := json.Unmarshal(data, o); err != nil {
			return err
		}
		last, s.latest, s.written = o, *o, data
		return nil
	})
	go s.saveChanges()
	return s, last
}

// Keep changes the objects to keep. It does not block. The caller does not change objects afterwards. A nil Snapshot
// keeps nothing.
func (s *Snapshot) Keep(change func(*Objects)) {
	if s == nil {
		return
	}
	s.mu.Lock()
	change(&s.latest)
	s.dirty = true
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// KeepLinks is Keep for links, where they have changed.
func (s *Snapshot) KeepLinks(links []v1alpha1.KubeLink) {
	if s == nil {
		return
	}
	s.mu.Lock()
	same := sameLinks(s.latest.Links, links)
	s.mu.Unlock()
	if !same {
		s.Keep(func(o *Objects) { o.Links = links })
	}
}

// Close writes what is not written yet, and ends the snapshot.
func (s *Snapshot) Close() {
	close(s.stop)
	<-s.done
}

// Failure is why a file could not be written last; nil: all are. A nil Snapshot has none.
func (s *Snapshot) Failure() error {
	if s == nil {
		return nil
	}
	if err := s.failure.Get(); err != nil {
		return fmt.Errorf("%s: %w", s.dir, err)
	}
	return nil
}

// saveChanges writes files until Close.
func (s *Snapshot) saveChanges() {
	defer close(s.done)
	replyTick := time.NewTicker(repliesInterval)
	defer replyTick.Stop()
	var pause <-chan time.Time // until objects may be written again
	changed := s.changed
	for {
		select {
		case <-changed:
			s.saveObjects()
			changed, pause = nil, time.After(objectsInterval)
		case <-pause:
			changed, pause = s.changed, nil
		case <-replyTick.C:
			s.saveObjects() // if that failed
			s.saveReplies()
		case <-s.stop:
			s.saveObjects()
			s.saveReplies()
			return
		}
	}
}

// saveObjects writes the objects if they have changed. After a failure they count as changed.
func (s *Snapshot) saveObjects() {
	s.mu.Lock()
	objects, dirty := s.latest, s.dirty
	s.dirty = false
	s.mu.Unlock()
	if !dirty {
		return
	}
	data, err := objects.encode()
	if err == nil && bytes.Equal(data, s.written) {
		return
	}
	if err == nil {
		err = s.writeFile(objectsFile, data)
	}
	s.objectsErr = err
	s.noteFailure()
	if err != nil {
		s.mu.Lock()
		s.dirty = true
		s.mu.Unlock()
		return
	}
	s.written = data
}

func (s *Snapshot) saveReplies() {
	var data bytes.Buffer
	err := s.replies.Save(&data)
	if err == nil {
		err = s.writeFile(repliesFile, data.Bytes())
	}
	s.repliesErr = err
	s.noteFailure()
}

// noteFailure logs why a file could not be written, or that all were, where that is new: on a full disk one of them may
// fit.
func (s *Snapshot) noteFailure() {
	err := s.objectsErr
	if err == nil {
		err = s.repliesErr
	}
	// The names of temporary files differ from one attempt to the next.
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = fmt.Errorf("%s: %w", path.Op, path.Err)
	} else if link, ok := errors.AsType[*os.LinkError](err); ok {
		err = fmt.Errorf("%s: %w", link.Op, link.Err)
	}
	switch changed := s.failure.Set(err); {
	case changed && err != nil:
		s.log.Warn("cannot write to state-dir: the next process will not know what this one knows, trying again",
			"folder", s.dir, "error", err)
	case changed:
		s.log.Info("state-dir is up to date again", "folder", s.dir)
	}
}

// readFile gives the content of a file to decode, if there is one.
func (s *Snapshot) readFile(name string, decode func([]byte) error) {
	file := filepath.Join(s.dir, name)
	data, err := os.ReadFile(file)
	if err == nil {
		err = decode(data)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		s.log.Warn("what an earlier process knew cannot be used in full", "file", file, "error", err)
	}
}

// removeUnfinished removes the files that a process has left that was killed while it wrote: as the library of
// writeFile names them, and as earlier versions did. Each may be as large as the file that it was to replace.
func removeUnfinished(dir string) {
	for _, name := range []string{objectsFile, repliesFile, probeFile} {
		for _, pattern := range []string{"." + name + "[0-9]*", name + ".new-*"} {
			files, _ := filepath.Glob(filepath.Join(escapeGlob(dir), pattern)) // the pattern is good
			for _, file := range files {
				os.Remove(file)
			}
		}
	}
}

// escapeGlob makes a pattern that only the path itself matches.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// writeFile replaces a file as a whole: after a crash there is the old one or the new one. Only the owner can read it,
// even if an earlier file had other permissions. A folder that is not there is made.
func (s *Snapshot) writeFile(name string, data []byte) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	f, err := renameio.TempFile(s.dir, filepath.Join(s.dir, name))
	if err != nil {
		return err
	}
	defer f.Cleanup() //nolint:errcheck // the other errors say more
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}
