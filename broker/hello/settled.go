package hello

// Reasons that settle: a link that cannot be connected fails for changing reasons, and each change of the reason that
// is shown is a line in the log and a write to the API.

import "slices"

// MaxReasons is the number of attempts whose reasons count.
const MaxReasons = 8

// SettledReason decides which of the reasons of failed attempts is shown. The zero value is ready; an attempt that
// succeeds resets it. The owner's lock guards it.
type SettledReason struct {
	Shown string   // empty: none yet
	last  []string // reasons of the last attempts, the latest at the end
}

// Change notes that an attempt failed for a reason, and tells whether this one is shown from now on, instead of another
// one: when it is the first; when it is new and comes twice in a row; or when the last attempts did not fail for the
// shown reason any more. So reasons that take turns leave what is shown as it is, and so does a peer that makes up
// another reason each time, most of the time.
func (s *SettledReason) Change(reason string) bool {
	earlier := slices.Clone(s.last)
	for len(earlier) > 0 && earlier[len(earlier)-1] == reason {
		earlier = earlier[:len(earlier)-1]
	}
	again, isNew := len(earlier) < len(s.last), !slices.Contains(earlier, reason)
	if len(s.last) == MaxReasons {
		s.last = slices.Delete(s.last, 0, 1)
	}
	s.last = append(s.last, reason)
	outdated := len(s.last) == MaxReasons && !slices.Contains(s.last, s.Shown)
	if reason == s.Shown || s.Shown != "" && !(again && isNew) && !outdated {
		return false
	}
	s.Shown = reason
	return true
}

// Reset forgets all reasons: an attempt has succeeded.
func (s *SettledReason) Reset() { *s = SettledReason{} }
