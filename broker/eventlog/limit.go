package eventlog

// What peers, clients and programs on the node can cause as often as they like must not fill the disk. The first line
// about a cause is written at once. Of those within Interval after a line, the last one is written at its end, so that
// the log ends with what is true; it says how many others were left out.

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// maxCauses bounds the causes that have limits of their own. The ones after these share one.
const maxCauses = 1024

// limiter limits lines by cause. The zero value has seen no line.
type limiter struct {
	mu     sync.Mutex // guards the field below, and the causes in it; it is not held while a line is written
	causes map[string]*cause
}

// cause is what lines are about.
type cause struct {
	until   time.Time         // the next line is written then
	omitted int               // lines since the last one, without the one that waits
	waiting func(omitted int) // writes the line that waits; nil: none does
	timer   *time.Timer       // of that line
}

// pass has a line written, now or later. write gets the number of lines that were left out before.
func (l *limiter) pass(about string, now time.Time, write func(omitted int)) {
	if l.admit(about, now, write) {
		write(0)
	}
}

// admit tells whether a line may be written at once. Else it waits.
func (l *limiter) admit(about string, now time.Time, write func(omitted int)) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.find(about, now)
	if c.waiting == nil && !now.Before(c.until) {
		c.until = now.Add(Interval)
		return true
	}
	if c.waiting != nil {
		c.omitted++
	} else {
		c.timer = time.AfterFunc(c.until.Sub(now), func() { l.finish(c) })
	}
	c.waiting = write
	return false
}

// find returns the cause of a line. l.mu is held.
func (l *limiter) find(about string, now time.Time) *cause {
	if c := l.causes[about]; c != nil {
		return c
	}
	if l.causes == nil {
		l.causes = map[string]*cause{}
	}
	if len(l.causes) >= maxCauses {
		maps.DeleteFunc(l.causes, func(_ string, c *cause) bool { return c.waiting == nil && !now.Before(c.until) })
	}
	if len(l.causes) >= maxCauses {
		about = ""
	}
	c := l.causes[about]
	if c == nil {
		c = &cause{}
		l.causes[about] = c
	}
	return c
}

// finish writes the line that waits.
func (l *limiter) finish(c *cause) {
	l.mu.Lock()
	write, omitted := c.waiting, c.omitted
	c.waiting, c.omitted, c.until = nil, 0, time.Now().Add(Interval)
	l.mu.Unlock()
	if write != nil {
		write(omitted)
	}
}

// flush writes all lines that wait.
func (l *limiter) flush() {
	l.mu.Lock()
	all := slices.Collect(maps.Values(l.causes))
	l.mu.Unlock()
	for _, c := range all {
		l.stop(c)
		l.finish(c)
	}
}

func (l *limiter) stop(c *cause) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
}
