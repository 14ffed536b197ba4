package diagnosis

// How much goes through links right now. Reports do not wait for that: the counters of links are read all the time.

import (
	"context"
	"sync"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

const (
	sampleEvery = time.Second
	maxSamples  = 6 // a rate is that of the intervals between them
)

// meter remembers what counters were.
type meter struct {
	mu      sync.Mutex // guards samples
	samples []sample   // oldest first
}

// sample has the counters of all links at one moment.
type sample struct {
	at    time.Time
	bytes map[string]counters // by KubeLink
}

type counters struct{ rx, tx uint64 }

// run takes samples until ctx ends.
func (m *meter) run(ctx context.Context, statuses func() []link.Status) {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		m.take(time.Now(), statuses())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// take takes a sample. The oldest one makes room for it.
func (m *meter) take(now time.Time, statuses []link.Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := sample{bytes: map[string]counters{}}
	if len(m.samples) == maxSamples {
		s = m.samples[0]
		m.samples = append(m.samples[:0], m.samples[1:]...)
		clear(s.bytes)
	}
	s.at = now
	for i := range statuses {
		s.bytes[statuses[i].Link] = counters{statuses[i].RxBytes, statuses[i].TxBytes}
	}
	m.samples = append(m.samples, s)
}

// setRates tells the links of a report what goes through them: since the oldest sample that has them.
func (m *meter) setRates(r *Report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range r.Links {
		l := &r.Links[i]
		for _, s := range m.samples {
			if before, ok := s.bytes[l.Name]; ok {
				seconds := r.Time.Sub(s.at).Seconds()
				l.RxRate, l.TxRate = rateOf(before.rx, l.RxBytes, seconds), rateOf(before.tx, l.TxBytes, seconds)
				break
			}
		}
	}
}

// rateOf is the growth of a counter per second. One that began anew, or was read just now, has no rate yet.
func rateOf(before, now uint64, seconds float64) float64 {
	if now < before || seconds < sampleEvery.Seconds()/2 {
		return 0
	}
	return float64(now-before) / seconds
}
