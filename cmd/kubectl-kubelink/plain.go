package main

// What terminals take for commands, in texts of clusters and peers.

import (
	"io"
	"os"
	"regexp"
	"strings"
	"unicode"
)

// plainWriter writes texts without control characters, but for line ends, tabs and the colours of painter. Each Write
// has whole characters.
type plainWriter struct{ to io.Writer }

var (
	colour = regexp.MustCompile("\x1b\\[(0|31|32|33)m")
	// replaced stands for what a terminal does not get.
	replaced = string(unicode.ReplacementChar)
)

func (w plainWriter) Write(text []byte) (int, error) {
	if _, err := io.WriteString(w.to, makePlain(string(text))); err != nil {
		return 0, err
	}
	return len(text), nil
}

// makePlain replaces control characters, and those that turn the direction of the text (Unicode Annex 9).
func makePlain(text string) string {
	if !strings.ContainsFunc(text, isControl) {
		return text
	}
	var b strings.Builder
	for text != "" {
		at := colour.FindStringIndex(text)
		if at == nil {
			at = []int{len(text), len(text)}
		}
		for _, c := range text[:at[0]] {
			if isControl(c) {
				b.WriteString(replaced)
			} else {
				b.WriteRune(c)
			}
		}
		b.WriteString(text[at[0]:at[1]])
		text = text[at[1]:]
	}
	return b.String()
}

func isControl(c rune) bool {
	return c != '\n' && c != '\t' && (unicode.IsControl(c) || unicode.Is(unicode.Bidi_Control, c))
}

// fileOf is the file that a writer writes to; nil: it is none.
func fileOf(w io.Writer) *os.File {
	if p, ok := w.(plainWriter); ok {
		w = p.to
	}
	f, _ := w.(*os.File)
	return f
}
