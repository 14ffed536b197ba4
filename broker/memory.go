package broker

// What survives a restart when state-dir is set: the objects that names come from, and what clusters have answered.
// A broker that starts while API server or peers are away answers at once what the last one knew.

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/zone"
)

const (
	objectsFile = "objects.json"
	answersFile = "answers"
	// A killed broker loses what is younger.
	objectsInterval = time.Second
	answersInterval = 30 * time.Second
)

// savedObjects are the content of a file. What names do not need is not in there, least of all secrets.
type savedObjects struct {
	Links   []v1alpha1.KubeLink    `json:"kubeLinks"`
	Entries []coredns.CoreDNSEntry `json:"coreDNSEntries,omitempty"`
	Zones   []coredns.HostedZone   `json:"hostedZones,omitempty"`
}

// memory keeps the files of a folder up to date.
type memory struct {
	dir     string
	log     *slog.Logger
	answers *zone.ReplyCache

	mu     sync.Mutex
	latest savedObjects // their lists are not modified, nor what is in them
	news   bool         // since they were written

	changed chan struct{}
	stop    chan struct{}
	done    chan struct{}
	written []byte // the last objects
}

// openMemory reads what an earlier process left, if there is anything. Only a folder that cannot be used is an error:
// a file that cannot be read is replaced.
func openMemory(dir string, answers *zone.ReplyCache, log *slog.Logger) (*memory, *savedObjects, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("state-dir %s: %w", dir, err)
	}
	m := &memory{dir: dir, log: log, answers: answers, changed: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	// Better now than in half a minute.
	if err := m.write("probe", []byte("kubelink can write here\n")); err != nil {
		return nil, nil, fmt.Errorf("state-dir %s: %w", dir, err)
	}
	os.Remove(filepath.Join(dir, "probe"))

	known := func(name string, read func([]byte) error) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = read(data)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Warn("what an earlier process knew cannot be used in full", "file", filepath.Join(dir, name), "error", err)
		}
	}
	known(answersFile, func(data []byte) error { return answers.Load(bytes.NewReader(data)) })
	var last *savedObjects
	known(objectsFile, func(data []byte) error {
		o := new(savedObjects)
		if err := json.Unmarshal(data, o); err != nil {
			return err
		}
		last, m.latest, m.written = o, *o, data
		return nil
	})
	go m.run()
	return m, last, nil
}

// keep is told of objects that there are, by the reconciler. The memory may be nil.
func (m *memory) keep(change func(*savedObjects)) {
	if m == nil {
		return
	}
	m.mu.Lock()
	change(&m.latest)
	m.news = true
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// keepLinks is keep for links. Most changes are of their status, which is not kept.
func (m *memory) keepLinks(links []v1alpha1.KubeLink) {
	if m == nil {
		return
	}
	m.mu.Lock()
	known := slices.EqualFunc(m.latest.Links, links, func(a, b v1alpha1.KubeLink) bool {
		return a.UID == b.UID && a.Generation == b.Generation && (a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil)
	})
	m.mu.Unlock()
	if !known {
		m.keep(func(o *savedObjects) { o.Links = links })
	}
}

// run writes files until close.
func (m *memory) run() {
	defer close(m.done)
	answers := time.NewTicker(answersInterval)
	defer answers.Stop()
	var pause <-chan time.Time // objects have been written lately
	changed := m.changed
	for {
		select {
		case <-changed:
			m.saveObjects()
			changed, pause = nil, time.After(objectsInterval)
		case <-pause:
			changed, pause = m.changed, nil
		case <-answers.C:
			m.saveObjects() // if that failed
			m.saveAnswers()
		case <-m.stop:
			m.saveObjects()
			m.saveAnswers()
			return
		}
	}
}

func (m *memory) close() {
	close(m.stop)
	<-m.done
}

func (m *memory) saveObjects() {
	m.mu.Lock()
	o, news := m.latest, m.news
	m.news = false
	m.mu.Unlock()
	if !news {
		return
	}
	kept := savedObjects{Links: slices.Clone(o.Links), Entries: slices.Clone(o.Entries), Zones: slices.Clone(o.Zones)}
	for i := range kept.Links {
		l := &kept.Links[i]
		l.ManagedFields, l.ResourceVersion, l.Status, l.Spec.PresharedKey = nil, "", v1alpha1.KubeLinkStatus{}, ""
		l.Annotations = nil // kubectl keeps the whole spec in one
	}
	for i := range kept.Entries {
		e := &kept.Entries[i]
		e.ManagedFields, e.ResourceVersion, e.Status = nil, "", coredns.Status{}
		e.Annotations = withoutApplied(e.Annotations)
	}
	for i := range kept.Zones {
		z := &kept.Zones[i]
		z.ManagedFields, z.ResourceVersion, z.Status = nil, "", coredns.Status{}
		z.Annotations = withoutApplied(z.Annotations)
	}
	// A cache has them in no order.
	slices.SortFunc(kept.Entries, func(a, b coredns.CoreDNSEntry) int { return byName(&a.ObjectMeta, &b.ObjectMeta) })
	slices.SortFunc(kept.Zones, func(a, b coredns.HostedZone) int { return byName(&a.ObjectMeta, &b.ObjectMeta) })
	data, err := json.Marshal(kept)
	if err == nil && bytes.Equal(data, m.written) {
		return
	}
	if err == nil {
		err = m.write(objectsFile, data)
	}
	if err != nil {
		m.log.Warn("cannot keep the objects for a restart", "error", err)
		m.mu.Lock()
		m.news = true
		m.mu.Unlock()
		return
	}
	m.written = data
}

// byName orders objects of one kind.
func byName(a, b *metav1.ObjectMeta) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// withoutApplied leaves out the copy of the object that kubectl keeps. The map belongs to the cache.
func withoutApplied(annotations map[string]string) map[string]string {
	kept := maps.Clone(annotations)
	delete(kept, corev1.LastAppliedConfigAnnotation)
	return kept
}

func (m *memory) saveAnswers() {
	var data bytes.Buffer
	err := m.answers.Save(&data)
	if err == nil {
		err = m.write(answersFile, data.Bytes())
	}
	if err != nil {
		m.log.Warn("cannot keep the answers of clusters for a restart", "error", err)
	}
}

// write replaces a file as a whole: a crash leaves the old one or the new one.
func (m *memory) write(name string, data []byte) (err error) {
	f, err := os.CreateTemp(m.dir, name+".new-") // for the owner only
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(m.dir, name))
}
