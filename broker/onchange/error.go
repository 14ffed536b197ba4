// Package onchange tells when an error appears, changes or ends. What is tried again and again would fill the log with
// one line for each attempt; with this package, it logs only what is new.
package onchange

import "sync/atomic"

// Error is the error of the latest of many attempts. The zero value has none. Set and Get may be called concurrently.
type Error struct {
	latest atomic.Pointer[error] // nil: none yet
}

// Set replaces the error; nil: the attempt has succeeded. It tells whether the text differs from the one before. That
// of nil is empty.
func (e *Error) Set(err error) (changed bool) {
	return errorText(err) != errorText(load(e.latest.Swap(&err)))
}

// Get returns the latest error.
func (e *Error) Get() error { return load(e.latest.Load()) }

func load(p *error) error {
	if p == nil {
		return nil
	}
	return *p
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
