package service

// What users are told of a MeshService.

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Report is what users are to see of a MeshService.
type Report struct {
	State   v1alpha1.State // Ok, Invalid, Stale, Unsupported
	Message string         // one line, 1 KB at most
	Ready   bool           // state Ok, and there is an endpoint
	// Doubtful says that the object may be a mistake, though its state is Ok: the message says what.
	Doubtful bool
	// Weak says that another broker may know better: the report is for a MeshService of which none says anything.
	Weak bool
}

// maxMessage is the length of a message, in bytes.
const maxMessage = 1000

func invalid(format string, args ...any) *mesh.Problem {
	return &mesh.Problem{State: v1alpha1.StateInvalid, Message: fmt.Sprintf(format, args...)}
}

func stale(format string, args ...any) *mesh.Problem {
	return &mesh.Problem{State: v1alpha1.StateStale, Message: fmt.Sprintf(format, args...)}
}

// shorten cuts a message that is too long.
func shorten(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	end := maxMessage - len("...")
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "..."
}

// quote shows a value of a user.
func quote(s string) string {
	const longest = 80
	if len(s) > longest {
		s = s[:longest] + "..."
	}
	return fmt.Sprintf("%q", s)
}

// maxListed bounds what a message lists.
const maxListed = 5

// list shows the first of some things.
func list[T any](things []T, show func(T) string) string {
	var shown []string
	for i, t := range things {
		if i == maxListed {
			shown = append(shown, fmt.Sprintf("%d more", len(things)-i))
			break
		}
		shown = append(shown, show(t))
	}
	if len(shown) == 0 {
		return "none"
	}
	return strings.Join(shown, ", ")
}
