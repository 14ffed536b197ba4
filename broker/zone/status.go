package zone

// What names need to know about links: their status.

import (
	"fmt"
	"math/bits"
	"time"
)

// Status is the state of a link as far as names are concerned.
type Status struct {
	Usable bool
	State  string        // as in the status of the KubeLink: Up, Down, ...
	Reason string        // why the link is not usable; one line
	Since  time.Time     // when State began; zero: not known
	RTT    time.Duration // round-trip time; 0: not known
}

// stateIdle is the state of a link that this process has not tried yet.
const stateIdle = "Idle"

// sameForNames tells whether answers are the same with either status. Round-trip times count by their order of
// magnitude, because no two measurements are equal.
func (s Status) sameForNames(o Status) bool {
	return s.Usable == o.Usable && s.State == o.State && s.Reason == o.Reason && s.Since.Equal(o.Since) &&
		s.rttClass() == o.rttClass()
}

// rttClass is the order of magnitude of the round-trip time: half and double are one class away.
func (s Status) rttClass() int { return bits.Len64(uint64(s.RTT / time.Microsecond)) }

// describeState lists what is known, as name=value.
func (s Status) describeState() []string {
	facts := []string{"state=" + s.State}
	if !s.Since.IsZero() {
		facts = append(facts, "since="+s.Since.UTC().Format(time.RFC3339))
	}
	if s.Usable && s.RTT > 0 {
		facts = append(facts, fmt.Sprintf("rtt=%.2fms", s.RTT.Seconds()*1000))
	}
	if s.Reason != "" {
		facts = append(facts, "reason="+clipText(s.Reason))
	}
	return facts
}
