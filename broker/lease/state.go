package lease

// What an Elector has found out.

import "time"

// Role is the part of a broker among the brokers of the same links.
type Role int

// The roles.
const (
	Unknown Role = iota // the API server has not told yet which broker holds the links
	Holder              // this broker carries the links, and writes to the API
	Standby             // another broker does
)

// State is what an Elector knows. It is not changed after it was published.
type State struct {
	Role   Role
	Lease  string // its name; empty: there is none, or it is not known yet
	Term   uint32 // of the holder; 0: there is no Lease
	Holder string // identity of the holder, one line; empty: unknown
	// Problem is why the Lease cannot be used or renewed, one line; empty: it can, or the API server does not answer yet.
	Problem string

	renewed   time.Time // when this broker has made sure last that it holds the Lease; zero: never
	confirmed time.Time // until then no other broker can have taken the Lease; zero: there is no Lease to take
}

// MayWrite tells whether this broker is the one that writes to the API. A holder that was cut off from the API server
// for a while may have lost its Lease without knowing, so it asks first.
func (s *State) MayWrite() bool {
	return s.Role == Holder && (s.confirmed.IsZero() || time.Now().Before(s.confirmed))
}

// HeldSince tells whether this broker has made sure after t that it holds the links. Without Lease, none is needed for
// that; with one that cannot be used, the broker never is sure.
func (s *State) HeldSince(t time.Time) bool {
	if s.confirmed.IsZero() {
		return s.Role == Holder && s.Problem == ""
	}
	return s.MayWrite() && s.renewed.After(t)
}

// equals ignores until when the role is confirmed.
func (s *State) equals(other *State) bool {
	return s.Role == other.Role && s.Term == other.Term && s.Holder == other.Holder && s.Problem == other.Problem
}
